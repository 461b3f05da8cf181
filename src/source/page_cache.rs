//! Reading without pushing what others use out of the page cache.
//!
//! A backup reads everything once. What was in the page cache before stays there; what came in only because of the
//! backup is dropped again.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Bytes of a file that are dropped together.
const STRETCH: u64 = 8 << 20;

/// Reads a file from its beginning on, and leaves the page cache as it was.
pub struct UncachedReader<'f> {
    file: &'f File,
    /// Nobody had the file in memory before; none: nothing was read yet.
    cold: Option<bool>,
    /// What lies before this is dropped.
    dropped: u64,
    /// What lies before this was read.
    read: u64,
}

impl<'f> UncachedReader<'f> {
    /// A reader of `file`.
    pub fn new(file: &'f File) -> Self {
        UncachedReader { file, cold: None, dropped: 0, read: 0 }
    }

    /// Reads what is at `at`, as [`FileExt::read_at`] does; each read behind the one before.
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

    /// The first read shows whether the file is in memory already.
    fn first(&mut self, room: &mut [u8], at: u64) -> io::Result<usize> {
        self.dropped = at;
        match preadv2(self.file, &mut [IoSliceMut::new(room)], at, ReadWriteFlags::NOWAIT) {
            Ok(read) => {
                self.cold = Some(false);
                Ok(read)
            }
            Err(e) => {
                // Other errors: who can't be asked is left alone.
                self.cold = Some(e == Errno::AGAIN);
                self.file.read_at(room, at)
            }
        }
    }

    fn drop_read(&mut self) {
        if let (Some(true), Some(length)) = (self.cold, NonZeroU64::new(self.read.saturating_sub(self.dropped))) {
            // Only advice: if it is not taken, memory is used that could be used better.
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

    /// Whether the first page of a file is in memory.
    fn is_cached(file: &File) -> bool {
        preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT).is_ok()
    }

    fn file() -> File {
        // Not in memory only: what has no disk stays in the cache.
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.sync_all().unwrap();
        file
    }

    /// Reads a file to its end. Returns whether none of it was in memory.
    fn read(file: &File) -> Option<bool> {
        let (mut passing, mut room, mut at) = (UncachedReader::new(file), [0; 65_536], 0);
        loop {
            // Short if the page cache has only the beginning.
            let read = passing.read_at(&mut room, at).unwrap();
            if read == 0 {
                break;
            }
            assert!(room[..read].iter().all(|byte| *byte == 7));
            at += read as u64;
        }
        assert_eq!(at, 100_000);
        passing.cold
    }

    #[test]
    fn what_was_in_the_page_cache_stays_there() {
        let file = file();
        read(&file);
        assert!(is_cached(&file));
    }

    #[test]
    fn what_was_not_is_dropped_again() {
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
