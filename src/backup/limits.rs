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
//! | files ahead of the engine ([`EVENTS`] jobs), digests of files of several names | 4 |
//! | the program itself, as far as it is used | 14 |
//!
//! Not all of it is held at the same time. Attributes are seldom large, and of trees that are not built for it what is in
//! the directories that the walk is in takes one or two MiB. A directory is sorted while nothing is read, and most blocks are half of
//! what they may be once they are compressed. `tests/memory.rs` holds the sum to a ceiling.
//!
//! With `low_memory` there is one sealer, and what was read ahead waits in temporary files of 16 MiB each, one for
//! small files and one for large ones.

use std::thread;

use super::Error;
use super::budget::Budget;
use super::parking::Parking;
use super::read::Lane;
use crate::format::{BLOCK_SIZE, SEALED_SIZE};

/// Bytes of small files that may be read ahead of the engine.
const SMALL_AHEAD: usize = 4 << 20;
/// Bytes of large files' chunks that may be.
const LARGE_AHEAD: usize = 4 << 20;
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
/// Readers of small files: on a cold disk each waits for a seek, so their number has nothing to do with cores.
const SMALL_READERS: usize = 16;
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

/// Where content waits that was read ahead: small files, and chunks of large ones. Each has room of its own, since the
/// engine takes files in the order of the walk, and one kind must not wait for the other.
pub(super) struct Lanes {
    pub(super) small: Lane,
    pub(super) large: Lane,
    /// What the walk takes loans for small files from.
    pub(super) budget: Option<Budget>,
    /// What loans for large sets of attributes are taken from.
    pub(super) attributes: Budget,
}

impl Lanes {
    pub(super) fn new(low_memory: bool) -> Result<Self, Error> {
        let attributes = Budget::new(ATTRIBUTES_AHEAD);
        if low_memory {
            let [small, large] = [Parking::new()?, Parking::new()?].map(Lane::Parking);
            return Ok(Lanes { small, large, budget: None, attributes });
        }
        let (small, large) = (Lane::Lent, Lane::Memory(Budget::new(LARGE_AHEAD)));
        Ok(Lanes { small, large, budget: Some(Budget::new(SMALL_AHEAD)), attributes })
    }

    /// Parked files wait for room when they are read: by a single reader, so that the first in the walk gets it first.
    pub(super) fn small_readers(&self) -> usize {
        match &self.small {
            Lane::Parking(_) => 1,
            _ => SMALL_READERS,
        }
    }

    pub(super) fn close(&self) {
        for lane in [&self.small, &self.large] {
            match lane {
                Lane::Memory(budget) => budget.close(),
                Lane::Parking(parking) => parking.close(),
                Lane::Lent => {}
            }
        }
        self.attributes.close();
        if let Some(budget) = &self.budget {
            budget.close();
        }
    }
}
