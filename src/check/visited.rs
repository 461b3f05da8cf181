//! The parts of trees that were visited and whose packs are in no index, or differ from it. The others have a mark in the
//! [`PackTable`](super::packs::PackTable).

use std::collections::{BTreeSet, HashMap, HashSet};

use super::record::Claim;
use crate::format::{BLOCK_SIZE, BlockLocation, ChunkRef, PackId};

/// Identifies a chunk at a location: the head of its digest XOR that of the pack's id, and the chunk's position in the
/// pack. A chunk that is stored in two places has two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LooseKey(i64, u64, Claim);

impl LooseKey {
    pub(super) fn new(at: &BlockLocation, chunk: &ChunkRef, claim: Claim) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *at.pack.as_bytes();
        let place = at.offset.wrapping_mul(BLOCK_SIZE as u64).wrapping_add(chunk.start.into());
        LooseKey(chunk.digest.head() ^ i64::from_be_bytes([a, b, c, d, e, f, g, h]), place, claim)
    }
}

/// Why a pack that is needed is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flaw {
    /// It is in no index.
    Unindexed,
    /// It is missing, too short or damaged.
    Lost,
}

/// Packs with a flaw that something needs.
pub(super) type Lacking = BTreeSet<(Flaw, PackId)>;

/// Visited parts of trees.
#[derive(Debug, Default)]
pub(super) struct Visited {
    /// Nodes and chunks that are not where an index has them.
    pub(super) loose: HashSet<LooseKey>,
    /// Packs with a flaw that directories and extent nodes need.
    pub(super) lacking: HashMap<LooseKey, Lacking>,
}
