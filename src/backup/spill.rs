//! Chunks that wait in an unnamed temporary file instead of in memory.
//!
//! The file has room for [`SLOTS`] chunks, which is taken at the start: a full disk shows then, and not in the middle
//! of a run. A chunk has a slot until it is taken or dropped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Error;
use super::budget::{Budget, Loan};
use crate::source::{PIECE_MAX, temporary_folder};

/// Chunks that may wait at once.
pub(super) const SLOTS: usize = 16;

/// An unnamed file with room for chunks. Clones are the same file.
#[derive(Debug, Clone)]
pub(super) struct Spill {
    shared: Arc<Shared>,
    /// Counts slots.
    room: Budget,
}

#[derive(Debug)]
struct Shared {
    file: File,
    free: Mutex<Vec<u64>>,
}

/// A chunk in the file.
#[derive(Debug)]
pub(super) struct Parked {
    shared: Arc<Shared>,
    slot: u64,
    length: usize,
    _room: Loan,
}

impl Spill {
    /// Makes the file, in the directory for temporary files.
    pub(super) fn new() -> Result<Self, Error> {
        let make = || -> io::Result<File> {
            let file = tempfile::tempfile_in(temporary_folder())?;
            match fallocate(&file, FallocateFlags::empty(), 0, (SLOTS * PIECE_MAX) as u64) {
                // Some file systems can't take room ahead.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(file),
                Err(e) => Err(e.into()),
            }
        };
        let file = make().map_err(temporary)?;
        let free = Mutex::new((0..SLOTS as u64).collect());
        Ok(Spill { shared: Arc::new(Shared { file, free }), room: Budget::new(SLOTS) })
    }

    /// Puts a chunk of at most [`PIECE_MAX`] bytes into the file, as soon as there is room. None: nobody takes chunks any more.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<Option<Parked>, Error> {
        if bytes.len() > PIECE_MAX {
            return Err(Error::Stopped("a chunk is larger than its room"));
        }
        let Some(room) = self.room.take(1) else { return Ok(None) };
        let slot = self.shared.free().pop().ok_or(Error::Stopped("temporary files"))?;
        // From here on the slot comes back whatever happens.
        let parked = Parked { shared: self.shared.clone(), slot, length: bytes.len(), _room: room };
        self.shared.file.write_all_at(bytes, parked.offset()).map_err(temporary)?;
        Ok(Some(parked))
    }

    /// Lets everyone who waits go away.
    pub(super) fn close(&self) {
        self.room.close();
    }
}

impl Shared {
    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parked {
    /// Reads the chunk back.
    pub(super) fn take(self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.length];
        self.shared.file.read_exact_at(&mut bytes, self.offset()).map_err(temporary)?;
        Ok(bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Its length, or that of a small part of all room: few may be held back, however short they are.
    pub(super) fn weight(&self) -> usize {
        self.length.max(PIECE_MAX / 64)
    }

    fn offset(&self) -> u64 {
        self.slot * PIECE_MAX as u64
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        // The loan goes back after this, so whoever gets it finds the slot.
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
        let parking = Spill::new().unwrap();
        for _ in 0..3 {
            let put: Vec<_> =
                (0..SLOTS).map(|n| parking.put(&vec![n as u8; PIECE_MAX - n]).unwrap().unwrap()).collect();
            for (n, parked) in put.into_iter().enumerate().rev() {
                assert_eq!(parked.take().unwrap(), vec![n as u8; PIECE_MAX - n]);
            }
        }
    }

    #[test]
    fn a_chunk_waits_for_room() {
        let parking = Spill::new().unwrap();
        let mut put: Vec<_> = (0..SLOTS).map(|_| parking.put(b"x").unwrap()).collect();
        std::thread::scope(|threads| {
            let more = threads.spawn(|| parking.put(b"more").unwrap().unwrap().take().unwrap());
            put.pop();
            assert_eq!(more.join().unwrap(), b"more");
            let never = threads.spawn(|| [parking.put(b"y"), parking.put(b"z")].map(Result::unwrap));
            parking.close();
            assert!(never.join().unwrap()[1].is_none());
        });
    }

    #[test]
    fn no_more_room_is_taken_than_said() {
        let parking = Spill::new().unwrap();
        parking.put(&[1; PIECE_MAX]).unwrap().unwrap().take().unwrap();
        assert!(parking.shared.file.metadata().unwrap().len() <= (SLOTS * PIECE_MAX) as u64);
    }
}
