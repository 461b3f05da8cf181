//! Upper bounds on the memory of a backup, for any source.
//!
//! | what | MiB |
//! | --- | --- |
//! | small files read ahead ([`SMALL_AHEAD`]), chunks of large files ([`LARGE_AHEAD`]) | 4 + 4 |
//! | extended attributes read ahead ([`ATTRIBUTES_AHEAD`]), the attributes of the next file, and one set (384 KiB) in each of up to 17 readers and the walk | 2 + 7 |
//! | directories that the walk is in: their attributes ([`ATTRIBUTES_OPEN`]) and entries ([`ENTRIES_OPEN`]) | 4 + 8 |
//! | nodes that wait for a block to be sealed: at most [`NODES_WAITING`] for each block in flight | 10 |
//! | the chunker of a large file: its buffer, and the current chunk | 3 |
//! | open composites: a block of data and an eighth of a block of tree nodes, each in a buffer for a block; up to three of each in a tree of several owners | 4 to 12 |
//! | blocks on their way to the sealers ([`CHANNEL`]), and empty ones on their way back | 2 + 2 |
//! | each sealer: a block, its frame, the sealed frame (2, 2.5, 2.5), and the tables of zstd (1.2 at level 3) | 8.2 |
//! | the SQLite caches of the publisher and of the walk | 6 + 2 |
//! | chunks that the catalog does not have yet (32,768 of them, 48 bytes each in a table, and a list of digests) | 4.5 |
//! | an index: 16,000 chunks of 36 bytes, as a list, encoded, signed and sealed | 2.5 |
//! | sorting the names of a long directory; entries of short directories that are read ahead ([`ENTRIES_AHEAD`]), and of long ones | 4 + 3 + 2.5 |
//! | entries and names of the directories that the walk is in ([`WALK_HELD`]) | 8 |
//! | a tree of 3,000 levels: 3 to 8 KiB for each level's name, group of entries and stack frames | 24 |
//! | files ahead of the assembler ([`EVENTS`] jobs), digests of files with several names | 4 |
//! | the pages of the program that are used | 14 |
//!
//! These do not peak at the same time. Attributes are rarely large, and in ordinary trees the open directories take one or two
//! MiB. Directories are sorted while no file is read, and most blocks compress to half their size. `tests/memory.rs` checks
//! the total.
//!
//! While the first backup of a source counts its files ahead, which it does only if progress is shown, a second walk takes about
//! 20 MiB: open directories, names to sort, its SQLite cache and its stack.
//!
//! With `low_memory` there is one sealer, nothing is counted ahead, and content that was read ahead waits in two temporary files
//! of 16 MiB, one for small files and one for large ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Resource, getrlimit};

use crate::format::{BLOCK_SIZE, SEALED_SIZE};

/// Bytes of small files that may be read ahead of the assembler.
pub(super) const SMALL_AHEAD: usize = 4 << 20;
/// Bytes of chunks of large files that may be read ahead.
pub(super) const LARGE_AHEAD: usize = 4 << 20;
/// Bytes of large sets of extended attributes that may be read ahead.
pub(super) const ATTRIBUTES_AHEAD: usize = 2 << 20;
/// Bytes of extended attributes of open directories. They are written when the walk leaves the directory.
pub(super) const ATTRIBUTES_OPEN: usize = 4 << 20;
/// Bytes of entries of open directories. Above it, a segment ends early.
pub(super) const ENTRIES_OPEN: usize = 8 << 20;
/// Bytes of nodes that may wait for open composites. Above it, the composites are sealed early: if most chunks are known, they
/// would fill slowly, and the nodes would wait until the next commit.
pub(super) const NODES_WAITING: usize = 2 << 20;
/// Bytes of entries and names that the directories hold in which the walk is. Above it, each further directory holds few.
pub(super) const WALK_HELD: usize = 8 << 20;
/// Messages in a channel between two stages.
pub(super) const CHANNEL: usize = 1;
/// Batches of events, and jobs, that the walk may be ahead of the assembler.
pub(super) const EVENTS: usize = 128;
/// Messages that the content of a file may be ahead of the assembler.
pub(super) const CONTENT_AHEAD: usize = 4;
/// Readers of small files. On a cold disk each waits for a seek, so their number does not depend on the cores.
const SMALL_READERS: usize = 16;
/// The same if each reads the files of a job at once.
const BATCH_READERS: usize = 8;
/// Most small files in a job.
pub(super) const JOB_FILES: usize = 16;
/// Helpers that read directories ahead of the walk. On a cold disk they wait too.
pub(super) const HELPERS: usize = 4;
/// The stack of the walk's thread, which recurses into directories. Only used pages take memory.
pub(super) const WALK_STACK: usize = 256 << 20;
/// Bytes that all sealers may take together: enough for three at level 3 of zstd. The other stages can't keep more busy.
const SEALERS: usize = 26 << 20;

/// The number of sealers: one for each core, within the bound on memory.
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

/// Descriptors for everything except directories of the source: files that are read, and their directories, the catalog,
/// packs and locks.
const RESERVED: usize = 64 + 2 * SMALL_READERS;
/// The same if each reader has the files of a job open.
const RESERVED_FOR_BATCHES: usize = 64 + BATCH_READERS * (JOB_FILES + 1);
/// The limit of open files from which that is so.
const BATCHES_FROM: usize = 512;
/// The limit of open files from which the walk that counts a source ahead may open directories, too.
const COUNTING_FROM: usize = 4096;
/// The directories that it may open.
const COUNTING: usize = 256;
/// Directories that helpers may have open.
const OPEN_AHEAD: usize = 512;
/// Entries of short directories that may be read ahead. Each takes some 300 bytes, or 450 with a long name.
const ENTRIES_AHEAD: usize = 8192;
/// Levels of a tree that fit on the walk's stack.
const LEVELS: usize = 10_000;

/// How many small files are read at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SmallReading {
    /// Readers, each a thread.
    pub(super) readers: usize,
    /// Files that each may have open at once.
    pub(super) files_at_once: usize,
}

/// The numbers for this process. `in_batches`: a reader can read several files in one call.
pub(super) fn small_reading(in_batches: bool) -> SmallReading {
    match in_batches && open_files() >= BATCHES_FROM {
        true => SmallReading { readers: BATCH_READERS, files_at_once: JOB_FILES },
        false => SmallReading { readers: SMALL_READERS, files_at_once: 1 },
    }
}

/// Whether a source may be counted ahead.
pub(super) fn may_count_ahead() -> bool {
    open_files() >= COUNTING_FROM
}

fn open_files() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// How many directories of the source may be open at once, and for what. A deep tree must not use up the descriptors for
/// reading files.
#[derive(Debug)]
pub(super) struct Directories {
    /// Levels of the tree: each has an open directory.
    pub(super) levels: usize,
    /// Jobs in the queue of a reader: each has an open directory.
    pub(super) jobs: usize,
    /// Directories that may still be opened ahead.
    ahead: AtomicUsize,
    /// Entries that may still be read ahead.
    entries: AtomicUsize,
}

impl Directories {
    /// The numbers for the limit of this process.
    pub(super) fn of_process() -> Self {
        Directories::of(open_files())
    }

    /// The numbers for the walk that counts a source ahead.
    pub(super) fn of_count() -> Self {
        let (jobs, ahead) = (1, COUNTING / 2);
        let levels = COUNTING - 2 * jobs - ahead;
        Directories { levels, jobs, ahead: AtomicUsize::new(ahead), entries: AtomicUsize::new(ENTRIES_AHEAD) }
    }

    fn of(limit: usize) -> Self {
        let reserved = match limit {
            ..BATCHES_FROM => RESERVED,
            BATCHES_FROM..COUNTING_FROM => RESERVED_FOR_BATCHES,
            _ => RESERVED_FOR_BATCHES + COUNTING,
        };
        let free = limit.saturating_sub(reserved);
        // There are two queues.
        let jobs = (free / 16).clamp(1, EVENTS);
        let ahead = (free / 8).min(OPEN_AHEAD);
        let levels = free.saturating_sub(2 * jobs + ahead).clamp(1, LEVELS);
        Directories { levels, jobs, ahead: AtomicUsize::new(ahead), entries: AtomicUsize::new(ENTRIES_AHEAD) }
    }

    /// Takes the right to open a directory ahead. `None` if too many are open.
    pub(super) fn take_ahead(self: &Arc<Self>) -> Option<OpenAhead> {
        take(&self.ahead, 1).then(|| OpenAhead { of: self.clone(), entries: 0 })
    }
}

/// Takes `count` from `left`. If there is less, takes nothing and returns false.
fn take(left: &AtomicUsize, count: usize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count)).is_ok()
}

/// The right to have a directory open ahead of the walk, and to hold entries of it. It is given back when it is dropped.
#[derive(Debug)]
pub(super) struct OpenAhead {
    of: Arc<Directories>,
    entries: usize,
}

impl OpenAhead {
    /// Takes the right to hold this many entries of the directory. Returns false if too many are held.
    pub(super) fn take_entries(&mut self, count: usize) -> bool {
        let taken = take(&self.of.entries, count);
        self.entries += if taken { count } else { 0 };
        taken
    }
}

impl Drop for OpenAhead {
    fn drop(&mut self) {
        self.of.ahead.fetch_add(1, Ordering::Relaxed);
        self.of.entries.fetch_add(self.entries, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_leave_descriptors_for_files() {
        for limit in [0, 64, 100, 120, 256, 1024, 4096, 1 << 20, usize::MAX] {
            let Directories { levels, jobs, ahead, .. } = Directories::of(limit);
            let all = levels + 2 * jobs + ahead.into_inner();
            assert!(levels > 0 && jobs > 0, "{limit}");
            assert!(all <= limit.saturating_sub(RESERVED).max(3), "{limit}: {all}");
        }
        assert!(Directories::of(1024).levels > 600);
        assert_eq!(Directories::of(1 << 20).levels, LEVELS);
    }

    #[test]
    fn the_walk_that_counts_has_descriptors_of_its_own() {
        let all = |directories: Directories| directories.levels + 2 * directories.jobs + directories.ahead.into_inner();
        assert!(all(Directories::of_count()) <= COUNTING);
        let limit = COUNTING_FROM;
        assert!(all(Directories::of(limit)) + COUNTING + RESERVED_FOR_BATCHES <= limit);
        // Below it, nothing is counted ahead.
        assert!(all(Directories::of(limit - 1)) + RESERVED_FOR_BATCHES < limit);
    }

    #[test]
    fn directories_opened_ahead_are_given_back() {
        let directories = Arc::new(Directories::of(RESERVED + 16));
        let all: Vec<_> = std::iter::from_fn(|| directories.take_ahead()).collect();
        assert_eq!(all.len(), 2);
        drop(all);
        assert!(directories.take_ahead().is_some());
    }

    #[test]
    fn entries_read_ahead_are_given_back() {
        let directories = Arc::new(Directories::of(1024));
        let mut first = directories.take_ahead().unwrap();
        assert!(first.take_entries(ENTRIES_AHEAD - 1) && first.take_entries(1));
        let mut second = directories.take_ahead().unwrap();
        assert!(!second.take_entries(1));
        drop(first);
        assert!(second.take_entries(ENTRIES_AHEAD));
    }
}
