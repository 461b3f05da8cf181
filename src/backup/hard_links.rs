//! Files of several names that were read in this run: their further names are not read again.
//!
//! Files are read in any order, but the engine takes them in the order of the walk: only a name that comes before
//! another can spare that one. What is kept of a file is the digests of its chunks, until as many of its names came as it has; and of all files
//! together no more than a few MiB. What is not kept is read again, and only costs time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::Digest;
use crate::source::Stat;

/// Most pieces that are kept, of all files together.
const PIECES: usize = 100_000;

/// A piece of a file's content that was delivered.
#[derive(Debug, Clone, Copy)]
pub(super) enum SeenPiece {
    Chunk(Digest, u32),
    Hole(u64),
}

/// What was delivered of a file.
#[derive(Debug, Clone)]
pub(super) struct SeenFile {
    /// The number of the name in the order of the walk.
    pub(super) number: u64,
    pub(super) stat: Stat,
    pub(super) pieces: Vec<SeenPiece>,
    /// The digest of the whole.
    pub(super) digest: Digest,
}

/// The files that are kept, by device and inode.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    files: HashMap<(u64, u64), (SeenFile, u32)>,
    pieces: usize,
}

impl Seen {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file's pieces are worth to be noted while it is read.
    pub(super) fn wants(stat: &Stat) -> bool {
        stat.nlink > 1 && stat.size > 0
    }

    /// Keeps what was delivered, if there is room.
    pub(super) fn keep(&self, file: SeenFile) {
        let mut table = self.table();
        // Each file counts for itself, too.
        let weight = file.pieces.len() + 4;
        let key = (file.stat.dev, file.stat.ino);
        if table.pieces + weight <= PIECES && !table.files.contains_key(&key) {
            table.pieces += weight;
            let left = file.stat.nlink.saturating_sub(1);
            table.files.insert(key, (file, left));
        }
    }

    /// What was delivered of a file that looks like this one, under a name that comes before the one of this
    /// number.
    pub(super) fn find(&self, stat: &Stat, number: u64) -> Option<SeenFile> {
        let mut table = self.table();
        let key = (stat.dev, stat.ino);
        let (file, left) = table.files.get_mut(&key)?;
        let same = file.stat.same_content_as(stat) && file.number < number;
        *left = left.saturating_sub(1);
        match (same, *left) {
            (true, 1..) => Some(file.clone()),
            // It is another one by now, this name comes before it, or it was the last.
            _ => {
                let (file, _) = table.files.remove(&key)?;
                table.pieces -= file.pieces.len() + 4;
                same.then_some(file)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: u64, nlink: u32, pieces: usize) -> SeenFile {
        let stat = Stat { ino, nlink, size: 1, ..Stat::of_fd(tempfile::tempfile().unwrap()).unwrap() };
        SeenFile { number: 5, stat, pieces: vec![SeenPiece::Hole(1); pieces], digest: Digest::of(b"") }
    }

    #[test]
    fn a_file_is_kept_for_as_many_names_as_it_has() {
        let seen = Seen::default();
        let first = file(1, 3, 2);
        seen.keep(first.clone());
        assert!(seen.find(&file(2, 3, 2).stat, 6).is_none());
        assert_eq!(seen.find(&first.stat, 6).unwrap().pieces.len(), 2);
        assert!(seen.find(&first.stat, 7).is_some());
        assert!(seen.find(&first.stat, 8).is_none());
        assert_eq!(seen.table().pieces, 0);
    }

    #[test]
    fn a_file_that_changed_is_not_the_same() {
        let seen = Seen::default();
        let first = file(1, 9, 2);
        seen.keep(first.clone());
        assert!(seen.find(&Stat { size: 2, ..first.stat.clone() }, 6).is_none());
        assert!(seen.find(&first.stat, 6).is_none());
    }

    /// It may be read later all the same, and the engine would be told of chunks that it does not have yet.
    #[test]
    fn a_name_that_comes_before_is_not_spared() {
        let seen = Seen::default();
        let first = file(1, 9, 2);
        seen.keep(first.clone());
        assert!(seen.find(&first.stat, 4).is_none());
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let seen = Seen::default();
        (0..1000).for_each(|ino| seen.keep(file(ino, 2, 996)));
        let table = seen.table();
        assert_eq!((table.files.len(), table.pieces), (100, PIECES));
    }
}
