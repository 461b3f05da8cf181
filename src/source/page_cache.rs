//! Reading without evicting other programs' data from the page cache.
//!
//! A backup reads every file once. Pages that were cached before stay cached; pages that only the backup brought in are
//! dropped. Linux 6.14 and later do that for a reading call that asks for it. Earlier ones need more calls, so small files
//! that are read at once are taken to be cached if the first one is.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};

use crate::sys::batch_read::BatchReader;

/// Bytes of a file that are dropped in one call.
const STRETCH: u64 = 8 << 20;

/// Reads a file sequentially and leaves the page cache as it was.
pub struct UncachedReader<'f> {
    file: &'f File,
    /// Whether the file was not cached before; `None` before the first read.
    cold: Option<bool>,
    /// Pages before this offset are dropped.
    dropped: u64,
    /// Bytes before this offset are read.
    read: u64,
}

impl<'f> UncachedReader<'f> {
    /// A reader of `file`.
    pub fn new(file: &'f File) -> Self {
        UncachedReader { file, cold: None, dropped: 0, read: 0 }
    }

    /// Reads at offset `at`, like [`FileExt::read_at`]. Each read must follow the one before.
    pub fn read_at(&mut self, room: &mut [u8], at: u64) -> io::Result<usize> {
        let read = match self.cold {
            Some(_) => self.file.read_at(room, at)?,
            None => self.first(room, at)?,
        };
        self.read = at + read as u64;
        if self.read - self.dropped >= STRETCH {
            self.drop_read();
        }
        Ok(read)
    }

    /// The first read. It detects whether the file is cached already.
    fn first(&mut self, room: &mut [u8], at: u64) -> io::Result<usize> {
        self.dropped = at;
        match preadv2(self.file, &mut [IoSliceMut::new(room)], at, ReadWriteFlags::NOWAIT) {
            Ok(read) => {
                self.cold = Some(false);
                Ok(read)
            }
            Err(e) => {
                // With any other error it is unknown whether the file was cached, so it is not dropped.
                self.cold = Some(e == Errno::AGAIN);
                self.file.read_at(room, at)
            }
        }
    }

    fn drop_read(&mut self) {
        if let (Some(true), Some(length)) = (self.cold, NonZeroU64::new(self.read.saturating_sub(self.dropped))) {
            // Best effort.
            let _ = fadvise(self.file, self.dropped, Some(length), Advice::DontNeed);
        }
        self.dropped = self.read;
    }
}

impl Drop for UncachedReader<'_> {
    fn drop(&mut self) {
        self.drop_read();
    }
}

/// Reads small files, several at once.
#[derive(Default)]
pub struct WholeReader {
    batches: Batches,
    /// How many more files are read without `RWF_DONTCACHE`. Then it is tried again, since the next ones may be on another file
    /// system.
    without_dontcache: u32,
}

/// Files that are read without `RWF_DONTCACHE` after it failed.
const NEIGHBOURS: u32 = 1000;
/// `RWF_DONTCACHE` of Linux 6.14.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

impl WholeReader {
    /// Whether the system reads several files at once.
    pub fn reads_in_batches() -> bool {
        BatchReader::new().is_some()
    }

    /// Reads `size` bytes of each file, or fewer if it is shorter. All are held in memory.
    pub fn read(&mut self, files: &[(&File, u64)]) -> Vec<io::Result<Vec<u8>>> {
        if self.without_dontcache == 0 {
            let read = self.read_with(files, DONTCACHE);
            if !read.iter().any(|read| read.as_ref().is_err_and(is_unsupported)) {
                return read;
            }
            self.without_dontcache = NEIGHBOURS;
        }
        self.without_dontcache = self.without_dontcache.saturating_sub(files.len() as u32);
        let are_cold = files.first().is_some_and(|(file, _)| is_cold(file));
        let read = self.read_with(files, ReadWriteFlags::empty());
        if are_cold {
            for (file, _) in files {
                // Best effort.
                let _ = fadvise(file, 0, None, Advice::DontNeed);
            }
        }
        read
    }

    /// The same for one file.
    pub fn read_one(&mut self, file: &File, size: u64) -> io::Result<Vec<u8>> {
        self.read(&[(file, size)]).pop().unwrap_or_else(|| Ok(Vec::new()))
    }

    fn read_with(&mut self, files: &[(&File, u64)], flags: ReadWriteFlags) -> Vec<io::Result<Vec<u8>>> {
        if files.len() > 1
            && let Some(batches) = self.batches.get()
        {
            let handles: Vec<_> = files.iter().map(|(file, _)| file.as_fd()).collect();
            let buffers = files.iter().map(|(_, size)| vec![0; *size as usize]).collect();
            match batches.read(&handles, buffers, flags.bits() as i32) {
                Ok(read) => return read,
                Err(_) => self.batches = Batches::Refused,
            }
        }
        files.iter().map(|(file, size)| read_whole(file, *size, flags)).collect()
    }
}

/// The means to read several files at once.
#[derive(Default)]
enum Batches {
    #[default]
    Untried,
    Ready(Box<BatchReader>),
    Refused,
}

impl Batches {
    fn get(&mut self) -> Option<&mut BatchReader> {
        if let Batches::Untried = self {
            *self = BatchReader::new().map_or(Batches::Refused, |batches| Batches::Ready(Box::new(batches)));
        }
        match self {
            Batches::Ready(batches) => Some(batches),
            _ => None,
        }
    }
}

/// Whether the first page of a file is not cached.
fn is_cold(file: &File) -> bool {
    preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT) == Err(Errno::AGAIN)
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::NOSYS))
}

fn read_whole(file: &File, size: u64, flags: ReadWriteFlags) -> io::Result<Vec<u8>> {
    let (mut bytes, mut filled) = (vec![0; size as usize], 0);
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match retry_on_intr(|| preadv2(file, &mut [IoSliceMut::new(room)], filled as u64, flags))? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Whether the first page of a file is cached.
    fn is_cached(file: &File) -> bool {
        preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT).is_ok()
    }

    fn file() -> File {
        // Not on tmpfs, where files cannot be dropped from the page cache.
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.sync_all().unwrap();
        file
    }

    /// Reads a file to its end. Returns whether it was uncached before.
    fn read(file: &File) -> Option<bool> {
        let (mut reader, mut room, mut at) = (UncachedReader::new(file), [0; 65_536], 0);
        loop {
            // Short if the page cache has only the beginning.
            let read = reader.read_at(&mut room, at).unwrap();
            if read == 0 {
                break;
            }
            assert!(room[..read].iter().all(|byte| *byte == 7));
            at += read as u64;
        }
        assert_eq!(at, 100_000);
        reader.cold
    }

    #[test]
    fn a_cached_file_stays_cached() {
        let file = file();
        read(&file);
        assert!(is_cached(&file));
    }

    fn readers() -> impl Iterator<Item = WholeReader> {
        let kinds = [(true, 0), (true, 5000), (false, 0), (false, 5000)];
        kinds.into_iter().map(|(batched, without_dontcache)| {
            let batches = if batched { Batches::Untried } else { Batches::Refused };
            WholeReader { batches, without_dontcache }
        })
    }

    #[test]
    fn small_files_leave_the_page_cache_as_it_was() {
        let files: Vec<_> = (0..20).map(|_| file()).collect();
        // A file that is larger than expected, and others that are shorter.
        let sizes = [60_000].into_iter().chain(std::iter::repeat(200_000));
        let all: Vec<_> = files.iter().zip(sizes).collect();
        for mut reader in readers() {
            let mut read = || {
                for ((_, size), read) in all.iter().zip(reader.read(&all)) {
                    assert!(read.unwrap() == vec![7; 100_000.min(*size as usize)]);
                }
            };
            // The kernel keeps pages that are in use, so one request may not drop them.
            let are_dropped = (0..100).any(|_| {
                files.iter().for_each(|file| fadvise(file, 0, None, Advice::DontNeed).unwrap());
                read();
                !files.iter().any(is_cached)
            });
            assert!(are_dropped, "this test needs a file system on a disk in /var/tmp");
            for file in &files {
                file.read_at(&mut vec![0; 100_000], 0).unwrap();
            }
            read();
            assert!(files.iter().all(is_cached));
        }
    }

    #[test]
    fn an_error_is_that_of_one_file() {
        let (good, bad) = (file(), File::open("/").unwrap());
        for mut reader in readers() {
            let [first, second, third] = reader.read(&[(&good, 5), (&bad, 5), (&good, 5)]).try_into().unwrap();
            assert_eq!((first.unwrap(), third.unwrap()), (vec![7; 5], vec![7; 5]));
            assert!(second.is_err());
        }
    }

    #[test]
    fn an_uncached_file_is_dropped_after_reading() {
        let file = file();
        // The kernel keeps pages that are in use, so one request may not drop them.
        for _ in 0..100 {
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            if read(&file) == Some(true) {
                assert!(!is_cached(&file));
                return;
            }
        }
        panic!("the page cache keeps files in /var/tmp; this test needs a file system on a disk there");
    }
}
