//! A cache of files with several names: further names of a file are not read again.
//!
//! Files are read in any order, but the assembler takes them in the order of the walk: only an earlier name can spare the
//! reading of a later one. The cache has the digests of a file's chunks until all of its names came, and a few MiB in all.
//! Files that do not fit are read again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::Digest;
use crate::source::{Inode, Stat};

/// Most pieces in the cache, of all files together. Each file counts for four more.
const PIECES: usize = 100_000;

/// A piece of a file's content.
#[derive(Debug, Clone, Copy)]
pub(super) enum CachedPiece {
    Chunk(Digest, u32),
    Hole(u64),
}

/// The content of a file as it was delivered.
#[derive(Debug, Clone)]
pub(super) struct CachedFile {
    /// The number of the file's first name in the order of the walk.
    pub(super) number: u64,
    pub(super) stat: Stat,
    pub(super) pieces: Vec<CachedPiece>,
    /// The digest of the content.
    pub(super) digest: Digest,
}

impl CachedFile {
    /// Its share of [`PIECES`].
    fn weight(&self) -> usize {
        self.pieces.len() + 4
    }
}

/// The cache.
#[derive(Debug, Default)]
pub(in crate::backup) struct HardLinkCache(Mutex<CachedFiles>);

#[derive(Debug, Default)]
struct CachedFiles {
    files: HashMap<Inode, WaitingFile>,
    /// The weight of all files together.
    weight: usize,
}

#[derive(Debug)]
struct WaitingFile {
    file: CachedFile,
    /// How many more names are expected.
    names: u32,
}

impl HardLinkCache {
    fn lock(&self) -> MutexGuard<'_, CachedFiles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file is worth remembering while it is read.
    pub(super) fn wants(stat: &Stat) -> bool {
        stat.nlink > 1 && stat.size > 0
    }

    /// Keeps a file, if there is room.
    pub(super) fn keep(&self, file: CachedFile) {
        let mut cache = self.lock();
        let weight = file.weight();
        let key = file.stat.inode();
        if cache.weight + weight <= PIECES && !cache.files.contains_key(&key) {
            cache.weight += weight;
            let names = file.stat.nlink.saturating_sub(1);
            cache.files.insert(key, WaitingFile { file, names });
        }
    }

    /// Finds the content of a file that looks like this one, and was delivered under a name before the one of this number.
    pub(super) fn find(&self, stat: &Stat, number: u64) -> Option<CachedFile> {
        let mut cache = self.lock();
        let WaitingFile { file, names } = cache.files.get_mut(&stat.inode())?;
        let usable = file.stat.same_content_as(stat) && file.number < number;
        *names = names.saturating_sub(1);
        if usable && *names > 0 {
            return Some(file.clone());
        }
        // It has changed, this name comes before, or this was the last name.
        let WaitingFile { file, .. } = cache.files.remove(&stat.inode())?;
        cache.weight -= file.weight();
        usable.then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: u64, nlink: u32, pieces: usize) -> CachedFile {
        let stat = Stat { ino, nlink, size: 1, ..Stat::of_fd(tempfile::tempfile().unwrap()).unwrap() };
        CachedFile { number: 5, stat, pieces: vec![CachedPiece::Hole(1); pieces], digest: Digest::of(b"") }
    }

    #[test]
    fn a_file_is_kept_until_its_last_name() {
        let cache = HardLinkCache::default();
        let first = file(1, 3, 2);
        cache.keep(first.clone());
        assert!(cache.find(&file(2, 3, 2).stat, 6).is_none());
        assert_eq!(cache.find(&first.stat, 6).unwrap().pieces.len(), 2);
        assert!(cache.find(&first.stat, 7).is_some());
        assert!(cache.find(&first.stat, 8).is_none());
        assert_eq!(cache.lock().weight, 0);
    }

    #[test]
    fn a_changed_file_is_not_found() {
        let cache = HardLinkCache::default();
        let first = file(1, 9, 2);
        cache.keep(first.clone());
        assert!(cache.find(&Stat { size: 2, ..first.stat.clone() }, 6).is_none());
        assert!(cache.find(&first.stat, 6).is_none());
    }

    /// It may be read later, and the assembler would be told of chunks that it does not have yet.
    #[test]
    fn an_earlier_name_is_read() {
        let cache = HardLinkCache::default();
        let first = file(1, 9, 2);
        cache.keep(first.clone());
        assert!(cache.find(&first.stat, 4).is_none());
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = HardLinkCache::default();
        (0..1000).for_each(|ino| cache.keep(file(ino, 2, 996)));
        let held = cache.lock();
        assert_eq!((held.files.len(), held.weight), (100, PIECES));
    }
}
