//! How much memory a backup takes at most, whatever it backs up.
//!
//! | what | MiB |
//! | --- | --- |
//! | small files read ahead ([`SMALL_AHEAD`]), chunks of large ones ([`LARGE_AHEAD`]) | 4 + 4 |
//! | extended attributes read ahead ([`ATTRIBUTES_AHEAD`]), those of the file that comes next, and one set (384 KiB) in each of 17 readers and the walk | 2 + 7 |
//! | directories that the walk is in: their attributes ([`ATTRIBUTES_OPEN`]) and entries ([`ENTRIES_OPEN`]) | 4 + 8 |
//! | nodes that wait for a block to be sealed: at most [`NODES_WAITING`] for each block on its way | 10 |
//! | a large file's cutter: its buffer, and the chunk that is cut | 3 |
//! | composites that are filled: of data a block, of tree nodes an eighth, in buffers of a block; in a tree of several owners, for three of them | 4 to 12 |
//! | blocks on their way to the sealers ([`CHANNEL`]), and empty ones on their way back | 2 + 2 |
//! | each sealer: a block, its frame, the same sealed (2, 2.5, 2.5), and zstd's tables (1.2 at level 3) | 8.2 |
//! | SQLite's caches, of the engine and of the walk | 6 + 2 |
//! | chunks that the catalog does not have yet (32,768 of them, 48 bytes each in a table, and a list of digests) | 4.5 |
//! | an index: 16,000 chunks of 36 bytes, as a list, encoded, signed and sealed | 2.5 |
//! | sorting the names of a long directory (short ones: some 50 KiB for each that is looked into ahead, at most 32) | 5 |
//! | a tree of 3,000 levels, for each level its name, a group of entries and stack: 3 to 8 KiB | 24 |
//! | files ahead of the engine ([`EVENTS`] jobs), digests of files of several names | 4 |
//! | the program itself, as far as it is used | 14 |
//!
//! Not all of it is held at the same time. Attributes are seldom large, and of trees that are not built for it what is in
//! the directories that the walk is in takes one or two MiB. A directory is sorted while nothing is read, and most blocks are half of
//! what they may be once they are compressed. `tests/memory.rs` holds the sum to a ceiling.
//!
//! With `low_memory` there is one sealer, and what was read ahead waits in temporary files of 16 MiB each, one for
//! small files and one for large ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Resource, getrlimit};

use crate::format::{BLOCK_SIZE, SEALED_SIZE};

/// Bytes of small files that may be read ahead of the engine.
pub(super) const SMALL_AHEAD: usize = 4 << 20;
/// Bytes of large files' chunks that may be.
pub(super) const LARGE_AHEAD: usize = 4 << 20;
/// Bytes of large sets of extended attributes that may be.
pub(super) const ATTRIBUTES_AHEAD: usize = 2 << 20;
/// Bytes of extended attributes of the directories that the walk is in. They are written when it leaves them.
pub(super) const ATTRIBUTES_OPEN: usize = 4 << 20;
/// Bytes of entries of those directories. Above it, a segment ends early.
pub(super) const ENTRIES_OPEN: usize = 8 << 20;
/// Bytes of nodes that may wait for the composite that is being filled. Above it, the composite is sealed as it is: if
/// chunks are stored already, it would never be full, and what refers to it would wait until the next commit.
pub(super) const NODES_WAITING: usize = 2 << 20;
/// Messages in a channel between two stages.
pub(super) const CHANNEL: usize = 1;
/// Batches of events, and jobs, that the walk may be ahead of the engine.
pub(super) const EVENTS: usize = 128;
/// Messages that the content of a file may be ahead of the assembler.
pub(super) const CONTENT_AHEAD: usize = 4;
/// Readers of small files: on a cold disk each waits for a seek, so their number has nothing to do with cores.
pub(super) const SMALL_READERS: usize = 16;
/// Helpers that look at directories ahead of the walk: on a cold disk they wait, too.
pub(super) const HELPERS: usize = 4;
/// Stack of the walk's thread, which recurses into directories. Only what is used takes memory.
pub(super) const WALK_STACK: usize = 256 << 20;
/// What all sealers may take together. It allows for three at zstd's level 3, and more could not be fed.
const SEALERS: usize = 26 << 20;

/// How many sealers there are: as many as cores, if there is memory for them.
pub(super) fn workers(level: i32) -> usize {
    // Measured with blocks of the largest size.
    let tables = match level {
        ..=3 => 1_300_000,
        4..=6 => 3 << 20,
        7..=9 => 11 << 20,
        10..=12 => 21 << 20,
        _ => 34 << 20,
    };
    let each = BLOCK_SIZE + 2 * SEALED_SIZE + tables;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    cores.min(SEALERS / each).max(1)
}

/// Descriptors for all but the directories of the source: files that are read, and the directories they are in, the catalog,
/// packs, locks, and what else a run has open.
const RESERVED: usize = 64 + 2 * SMALL_READERS;
/// Directories that may be open because helpers looked into them.
const OPEN_AHEAD: usize = 512;
/// Levels of a tree that the walk's stack has room for.
const LEVELS: usize = 10_000;

/// How many directories of the source may be open at once, and for what. A deep tree must not take the descriptors that
/// other files are read with.
#[derive(Debug)]
pub(super) struct Directories {
    /// Levels of the tree that the walk goes down: each holds a directory open.
    pub(super) levels: usize,
    /// Jobs for readers that wait in a lane: each holds its directory open.
    pub(super) jobs: usize,
    /// Directories that may still be opened ahead.
    ahead: AtomicUsize,
}

impl Directories {
    /// By the limit of this process.
    pub(super) fn of_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Directories::of(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    fn of(limit: usize) -> Self {
        let free = limit.saturating_sub(RESERVED);
        // There are two lanes.
        let jobs = (free / 16).clamp(1, EVENTS);
        let ahead = (free / 8).min(OPEN_AHEAD);
        let levels = free.saturating_sub(2 * jobs + ahead).clamp(1, LEVELS);
        Directories { levels, jobs, ahead: AtomicUsize::new(ahead) }
    }

    /// Takes a directory that is to be opened ahead. None: there are as many as may be.
    pub(super) fn take_ahead(self: &Arc<Self>) -> Option<OpenAhead> {
        let one_less = |left: usize| left.checked_sub(1);
        self.ahead.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok()?;
        Some(OpenAhead(self.clone()))
    }
}

/// A directory that is open because a helper looked into it; it counts until this is dropped.
#[derive(Debug)]
pub(super) struct OpenAhead(Arc<Directories>);

impl Drop for OpenAhead {
    fn drop(&mut self) {
        self.0.ahead.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_leave_descriptors_for_files() {
        for limit in [0, 64, 100, 120, 256, 1024, 4096, 1 << 20, usize::MAX] {
            let Directories { levels, jobs, ahead } = Directories::of(limit);
            let all = levels + 2 * jobs + ahead.into_inner();
            assert!(levels > 0 && jobs > 0, "{limit}");
            assert!(all <= limit.saturating_sub(RESERVED).max(3), "{limit}: {all}");
        }
        assert!(Directories::of(1024).levels > 600);
        assert_eq!(Directories::of(1 << 20).levels, LEVELS);
    }

    #[test]
    fn directories_opened_ahead_are_given_back() {
        let directories = Arc::new(Directories::of(RESERVED + 16));
        let all: Vec<_> = std::iter::from_fn(|| directories.take_ahead()).collect();
        assert_eq!(all.len(), 2);
        drop(all);
        assert!(directories.take_ahead().is_some());
    }
}
