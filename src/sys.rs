//! Calls to the system that several modules make, or that no safe crate offers: the one place with `unsafe` code.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, pread, retry_on_intr};

/// What takes as many bytes is not taken from the heap but from the system, and given back to it.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 128 << 10;

/// Keeps the heap small.
///
/// glibc gives each thread a heap of its own, up to eight for each core, and each of them keeps what was freed in it.
/// Buffers here go from thread to thread, so that every heap would come to hold a little of everything: all threads share
/// one. And after the first large buffer was given back, others would be taken from the heap, too, and leave holes in it as
/// large as all that is in use: they stay apart.
#[cfg(target_env = "gnu")]
pub(crate) fn keep_heap_small() {
    for (what, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD)] {
        #[expect(unsafe_code, reason = "there is no safe way to say it")]
        // SAFETY: mallopt takes two numbers, and may be called at any time.
        let _done = unsafe { libc::mallopt(what, value) };
    }
}

/// Other C libraries have one heap as it is.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_heap_small() {}

/// Has the system begin to write what a file has in memory only, without waiting for the disk.
///
/// Whoever has the file mapped leaves no new stamps as long as he changes pages that are not written yet. From here on
/// his next change of any page leaves some. Where that can't be asked for nothing is lost but this.
pub(crate) fn start_writeback(file: BorrowedFd<'_>) {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: the descriptor is open as long as it is borrowed, and the call touches none of our memory.
    let _done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
}

/// Appends what a file holds at `offset` to `bytes`: `most` bytes, or as many as come at once. None: the file ends there.
///
/// Into memory that nobody has written to: to clear it first takes as long as to read.
pub(crate) fn append_at(file: BorrowedFd<'_>, offset: u64, most: usize, bytes: &mut Vec<u8>) -> io::Result<usize> {
    bytes.reserve(most);
    let room = bytes.spare_capacity_mut().get_mut(..most).unwrap_or_default();
    let read = retry_on_intr(|| pread(file, &mut *room, offset).map(|(read, _)| read.len()))?;
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: so many bytes behind the end were written to just now, and there is room for them.
    unsafe {
        bytes.set_len(bytes.len() + read);
    }
    Ok(read)
}

/// Whether the process was started without a standard output. Rust opens `/dev/null` in its place before `main`, so that
/// what is written there would vanish without an error.
pub(crate) fn stdout_was_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Runs before `main`.
#[used]
#[expect(unsafe_code, reason = "after the start of main it is too late to look")]
// SAFETY: functions in this section are called at the start, without arguments that matter here. This one makes a system call
// and sets a number, which needs nothing that is not set up yet.
#[unsafe(link_section = ".init_array")]
static CHECK_STDOUT: extern "C" fn() = check_stdout;

extern "C" fn check_stdout() {
    #[expect(unsafe_code, reason = "the descriptor may be closed, which safe types exclude")]
    // SAFETY: the call takes two numbers.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    STDOUT_WAS_CLOSED.store(flags == -1, Ordering::Relaxed);
}

/// Makes the names in a folder durable. Returns whether the file system can do that: some (CIFS, many FUSE file systems,
/// Windows drives under WSL) refuse to sync a folder, and there is no other way.
pub(crate) fn sync_folder(folder: BorrowedFd<'_>) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::fsync(folder)) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// The same number wherever Linux runs Rust.
const F_SETSIG: libc::c_int = 10;

/// Whether anybody has a file open for writing, or has mapped it so. `file` must be open for reading only. Where that
/// can't be asked for, or by whom it can't, the answer is no.
///
/// It is asked by way of a lease, which is refused then. Who opens the file in the moment until it is given back is
/// held up for so long.
pub(crate) fn is_open_for_writing(file: BorrowedFd<'_>) -> bool {
    let fd = file.as_raw_fd();
    #[expect(unsafe_code, reason = "there is no safe way to say it")]
    // SAFETY: the descriptor is open as long as it is borrowed, and the calls take numbers only. The signal that tells
    // of someone who waits for the lease is one that is ignored unless somebody asks for it.
    unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) == 0 && libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == 0 {
            libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
            return false;
        }
    }
    Errno::from_io_error(&std::io::Error::last_os_error()) == Some(Errno::AGAIN)
}

/// Closes the files that were open when the program started, except for standard input, output and error.
///
/// Files that the program opens itself are closed when it runs another one, and the inherited ones are not, or they would
/// not have been inherited: that is how they are told apart.
pub(crate) fn close_inherited() {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<libc::c_int> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > libc::STDERR_FILENO) {
        #[expect(unsafe_code, reason = "no safe type owns a descriptor that was inherited")]
        // SAFETY: the calls take numbers only. Everything here that owns a descriptor opened it with O_CLOEXEC.
        unsafe {
            if libc::fcntl(number, libc::F_GETFD) == 0 {
                libc::close(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_mapping_leaves_new_stamps_once_its_pages_are_written() {
        // On a disk: a file system in memory never stamps such changes.
        let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        if rustix::fs::statfs(folder.path()).unwrap().f_type == libc::TMPFS_MAGIC {
            return;
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(folder.path().join("f")).unwrap();
        file.set_len(4096).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        #[expect(unsafe_code, reason = "the standard library has no mappings")]
        // SAFETY: a new mapping of a file that is as long; nobody else has it.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(page, libc::MAP_FAILED);
        let change = |byte: u8| {
            sleep(Duration::from_millis(20));
            #[expect(unsafe_code, reason = "as above")]
            // SAFETY: within the mapping, which is never undone.
            unsafe {
                page.cast::<u8>().write_volatile(byte)
            };
            let stat = file.metadata().unwrap();
            (stat.mtime(), stat.mtime_nsec())
        };
        let first = change(1);
        assert_eq!(change(2), first);
        start_writeback(file.as_fd());
        assert_ne!(change(3), first);
    }

    #[test]
    fn what_is_read_is_appended_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "0123456789").unwrap();
        let file = File::open(&path).unwrap();
        let mut bytes = Vec::with_capacity(100);
        bytes.extend(b"ab");
        assert_eq!(append_at(file.as_fd(), 1, 3, &mut bytes).unwrap(), 3);
        assert_eq!(bytes, b"ab123");
        assert_eq!(append_at(file.as_fd(), 8, 200, &mut bytes).unwrap(), 2);
        assert_eq!(append_at(file.as_fd(), 10, 1, &mut bytes).unwrap(), 0);
        assert_eq!(append_at(file.as_fd(), 0, 0, &mut bytes).unwrap(), 0);
        assert_eq!(bytes, b"ab12389");
    }

    #[test]
    fn a_file_that_somebody_may_write_to_is_told_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(is_open_for_writing(reader.as_fd()));
        drop(writer);
        assert!(!is_open_for_writing(reader.as_fd()));
        // Nobody is kept waiting.
        File::create(&path).unwrap();
    }
}
