//! Reading without evicting other programs' data from the page cache.
//!
//! A backup reads every file once. Pages that were cached before stay cached; pages that only the backup brought in are
//! dropped.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

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
