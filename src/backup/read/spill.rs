//! Chunks that wait in an unnamed temporary file instead of in memory.
//!
//! The file has room for [`SLOTS`] chunks, which is allocated at the start, so that a full disk fails the run then, and not
//! midway. A chunk has a slot until it is taken or dropped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::budget::{Budget, Loan};
use crate::backup::error::Error;
use crate::source::{PIECE_MAX, temporary_folder};

/// Chunks that may wait at once.
pub(in crate::backup) const SLOTS: usize = 16;

/// An unnamed file with room for chunks. Clones are the same file.
#[derive(Debug, Clone)]
pub(in crate::backup) struct SpillFile {
    shared: Arc<SpillShared>,
    /// Counts slots.
    room: Budget,
}

#[derive(Debug)]
struct SpillShared {
    file: File,
    free: Mutex<Vec<u64>>,
}

/// A chunk in the file.
#[derive(Debug)]
pub(in crate::backup) struct SpilledChunk {
    shared: Arc<SpillShared>,
    slot: u64,
    length: usize,
    _room: Loan,
}

impl SpillFile {
    /// Makes the file, in the directory for temporary files.
    pub(in crate::backup) fn new() -> Result<Self, Error> {
        let make = || -> io::Result<File> {
            let file = tempfile::tempfile_in(temporary_folder())?;
            match fallocate(&file, FallocateFlags::empty(), 0, (SLOTS * PIECE_MAX) as u64) {
                // Some file systems can't allocate in advance.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(file),
                Err(e) => Err(e.into()),
            }
        };
        let file = make().map_err(temporary)?;
        let free = Mutex::new((0..SLOTS as u64).collect());
        Ok(SpillFile { shared: Arc::new(SpillShared { file, free }), room: Budget::new(SLOTS) })
    }

    /// Writes a chunk of at most [`PIECE_MAX`] bytes, as soon as there is room. `None` if the file is closed.
    pub(in crate::backup) fn put(&self, bytes: &[u8]) -> Result<Option<SpilledChunk>, Error> {
        if bytes.len() > PIECE_MAX {
            return Err(Error::Internal("a chunk is larger than its slot"));
        }
        let Some(room) = self.room.take(1) else { return Ok(None) };
        let slot = self.shared.free().pop().ok_or(Error::Internal("no slot is free in a temporary file"))?;
        // From here on the slot is freed on every path.
        let chunk = SpilledChunk { shared: self.shared.clone(), slot, length: bytes.len(), _room: room };
        self.shared.file.write_all_at(bytes, chunk.offset()).map_err(temporary)?;
        Ok(Some(chunk))
    }

    /// Wakes all threads that wait for room.
    pub(in crate::backup) fn close(&self) {
        self.room.close();
    }
}

impl SpillShared {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpilledChunk {
    /// Reads the chunk back.
    pub(in crate::backup) fn take(self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.length];
        self.shared.file.read_exact_at(&mut bytes, self.offset()).map_err(temporary)?;
        Ok(bytes)
    }

    pub(in crate::backup) fn len(&self) -> usize {
        self.length
    }

    /// Its length, or more if it is short: every chunk takes a slot, so only few may be held back.
    pub(in crate::backup) fn weight(&self) -> usize {
        self.length.max(PIECE_MAX / 64)
    }

    fn offset(&self) -> u64 {
        self.slot * PIECE_MAX as u64
    }
}

impl Drop for SpilledChunk {
    fn drop(&mut self) {
        // The loan is given back after this, so the thread that gets it finds a free slot.
        self.shared.free().push(self.slot);
    }
}

/// The error of a temporary file.
fn temporary(source: io::Error) -> Error {
    Error::Temporary { folder: temporary_folder().display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_in_any_order() {
        let spill = SpillFile::new().unwrap();
        for _ in 0..3 {
            let put: Vec<_> = (0..SLOTS).map(|n| spill.put(&vec![n as u8; PIECE_MAX - n]).unwrap().unwrap()).collect();
            for (n, chunk) in put.into_iter().enumerate().rev() {
                assert_eq!(chunk.take().unwrap(), vec![n as u8; PIECE_MAX - n]);
            }
        }
    }

    #[test]
    fn a_chunk_waits_for_room() {
        let spill = SpillFile::new().unwrap();
        let mut put: Vec<_> = (0..SLOTS).map(|_| spill.put(b"x").unwrap()).collect();
        std::thread::scope(|threads| {
            let more = threads.spawn(|| spill.put(b"more").unwrap().unwrap().take().unwrap());
            put.pop();
            assert_eq!(more.join().unwrap(), b"more");
            let never = threads.spawn(|| [spill.put(b"y"), spill.put(b"z")].map(Result::unwrap));
            spill.close();
            assert!(never.join().unwrap()[1].is_none());
        });
    }

    #[test]
    fn the_file_does_not_grow() {
        let spill = SpillFile::new().unwrap();
        spill.put(&[1; PIECE_MAX]).unwrap().unwrap().take().unwrap();
        assert!(spill.shared.file.metadata().unwrap().len() <= (SLOTS * PIECE_MAX) as u64);
    }
}
