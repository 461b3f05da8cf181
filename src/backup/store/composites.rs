//! Composites: blocks that are filled with small chunks of one owner.

use crate::catalog::BlockId;
use crate::format::pack::PackKind;
use crate::format::{BLOCK_SIZE, Digest};

/// Bytes of a composite of tree nodes. It is smaller than one of files: looking up a path decodes one for each step.
pub(super) const TREE_COMPOSITE: usize = 256 << 10;
/// The least bytes at which a composite of files counts as full.
const SMALL_COMPOSITE: usize = 256 << 10;
/// A composite of files holds at most this part of all bytes gathered in the run, so that small runs make small
/// composites: a reader of a tree that many runs added to needs a composite of each of them in memory.
const SHARE: u64 = 8;
/// Most chunks in a composite, so that few nodes wait for it however tiny the files are.
const COMPOSITE_CHUNKS: usize = 4096;
/// Owners with an open composite. Chunks of different owners never share a composite: the length of a compressed block tells
/// how similar its chunks are, so a user who sees packs grow could learn about another user's files. Trees of home
/// directories come one owner after the other; three open composites allow for owners that alternate.
const OWNERS: usize = 3;

/// The digests and lengths of a block's chunks.
pub(super) type Chunks = Vec<(Digest, u32)>;

/// A block that is being filled.
pub(super) struct Composite {
    pub(super) owner: u32,
    pub(super) block: BlockId,
    pub(super) bytes: Vec<u8>,
    pub(super) chunks: Chunks,
}

impl Composite {
    pub(super) fn new(owner: u32, block: BlockId, buffer: Vec<u8>) -> Self {
        Composite { owner, block, bytes: buffer, chunks: Vec::new() }
    }

    /// Appends a chunk and returns where it starts.
    pub(super) fn append(&mut self, bytes: &[u8], digest: Digest) -> u32 {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        self.chunks.push((digest, bytes.len() as u32));
        start
    }
}

/// The composites of one kind that are being filled, of one owner each, least recently used first.
struct OpenComposites(Vec<Composite>);

impl OpenComposites {
    fn take_of(&mut self, owner: u32) -> Option<Composite> {
        let at = self.0.iter().position(|composite| composite.owner == owner)?;
        Some(self.0.remove(at))
    }

    /// Takes the composite that must be sealed before `length` bytes of an owner can be gathered: the owner's own if it is
    /// full, or the least recently used one if all are in use by others.
    fn take_blocking(&mut self, owner: u32, length: usize, limit: usize) -> Option<Composite> {
        let at = match self.0.iter().position(|composite| composite.owner == owner) {
            Some(at) => {
                let own = &self.0[at];
                let full = own.bytes.len() + length > limit || own.chunks.len() >= COMPOSITE_CHUNKS;
                full.then_some(at)
            }
            None => (self.0.len() >= OWNERS).then_some(0),
        }?;
        Some(self.0.remove(at))
    }
}

/// All composites that are being filled.
pub(super) struct Composites {
    data: OpenComposites,
    tree: OpenComposites,
    /// Bytes of files that were gathered in this run.
    gathered: u64,
}

impl Composites {
    pub(super) fn new() -> Self {
        Composites { data: OpenComposites(Vec::new()), tree: OpenComposites(Vec::new()), gathered: 0 }
    }

    pub(super) fn is_empty(&self, kind: PackKind) -> bool {
        self.of(kind).0.is_empty()
    }

    /// Takes the composite that must be sealed before `length` bytes of an owner can be gathered.
    pub(super) fn take_blocking(&mut self, kind: PackKind, owner: u32, length: usize) -> Option<Composite> {
        let limit = match kind {
            PackKind::Data => self.data_limit(),
            PackKind::Tree => TREE_COMPOSITE,
        };
        self.of_mut(kind).take_blocking(owner, length, limit)
    }

    /// Takes the open composite of an owner, to be put back.
    pub(super) fn take_of(&mut self, kind: PackKind, owner: u32) -> Option<Composite> {
        self.of_mut(kind).take_of(owner)
    }

    /// Puts a composite back after `gathered` bytes were added to it.
    pub(super) fn put(&mut self, kind: PackKind, composite: Composite, gathered: usize) {
        if kind == PackKind::Data {
            self.gathered += gathered as u64;
        }
        self.of_mut(kind).0.push(composite);
    }

    /// Takes all composites of a kind.
    pub(super) fn take_all(&mut self, kind: PackKind) -> Vec<Composite> {
        std::mem::take(&mut self.of_mut(kind).0)
    }

    /// Bytes that a composite of files may hold now: a power of two, so that it fits the buffers of readers.
    fn data_limit(&self) -> usize {
        let share = self.gathered / SHARE;
        let share = share.clamp(SMALL_COMPOSITE as u64, BLOCK_SIZE as u64) as usize;
        1 << share.ilog2()
    }

    fn of(&self, kind: PackKind) -> &OpenComposites {
        match kind {
            PackKind::Data => &self.data,
            PackKind::Tree => &self.tree,
        }
    }

    fn of_mut(&mut self, kind: PackKind) -> &mut OpenComposites {
        match kind {
            PackKind::Data => &mut self.data,
            PackKind::Tree => &mut self.tree,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_owner_makes_room() {
        let mut open = Composites::new();
        let composite = |owner| Composite::new(owner, BlockId(1), vec![0; 100]);
        for owner in 1..=3 {
            assert!(open.take_blocking(PackKind::Data, owner, 5).is_none());
            open.put(PackKind::Data, composite(owner), 0);
        }
        let again = open.take_of(PackKind::Data, 1).unwrap();
        open.put(PackKind::Data, again, 0);
        assert!(open.take_blocking(PackKind::Data, 3, 5).is_none());
        assert!(open.take_blocking(PackKind::Tree, 4, 5).is_none());
        assert_eq!(open.take_blocking(PackKind::Data, 4, 5).unwrap().owner, 2);
        // Two are left, and one of them is full.
        assert!(open.take_blocking(PackKind::Data, 4, 5).is_none());
        assert_eq!(open.take_blocking(PackKind::Data, 1, SMALL_COMPOSITE).unwrap().owner, 1);
    }

    #[test]
    fn composites_grow_with_the_bytes_of_a_run() {
        let after = |gathered: u64| Composites { gathered, ..Composites::new() }.data_limit();
        let lengths = [0, 1 << 20, (4 << 20) - 1, 4 << 20, 16 << 20, u64::MAX].map(after);
        assert_eq!(lengths, [256 << 10, 256 << 10, 256 << 10, 512 << 10, BLOCK_SIZE, BLOCK_SIZE]);
    }
}
