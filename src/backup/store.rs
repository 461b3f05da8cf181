//! Chunks on their way into blocks: what is known is not stored again, what is small is gathered.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::Error;
use super::engine::Engine;
use super::event::Bytes;
use super::seal::Plain;
use crate::catalog::{BlockId, Stored};
use crate::format::index::PackKind;
use crate::format::{BLOCK_SIZE, BlockLocation, Digest};

/// Composites of tree nodes are smaller than those of files: looking up a path decodes one for each step.
const TREE_COMPOSITE: usize = 256 << 10;
/// The smallest that a composite of files is closed at, unless it is the last.
const SMALL_COMPOSITE: usize = 256 << 10;
/// What part of all that a run has gathered one composite may hold: later runs with few changes have small ones. Who reads
/// a tree that many runs added to needs a composite of each of them at hand.
const SHARE: u64 = 8;
/// Most chunks in one composite, so that what waits for it stays small however tiny files are.
const COMPOSITE_CHUNKS: usize = 4096;
/// Owners whose composites are filled at the same time. What is compressed together tells by its length how much one part
/// has of another, so a user who sees packs grow could find out what is in another user's files: nobody's bytes stand in a
/// composite with those of others. A tree of homes comes to one user after the other, and a few that alternate have room.
const OWNERS: usize = 3;
/// New chunks that are held before they go into the catalog in order of their digests.
const CHUNKS_HELD: usize = 1 << 15;

/// What a block holds: digests and lengths.
pub(super) type Chunks = Vec<(Digest, u32)>;

/// A composite that is being filled.
struct Gather {
    owner: u32,
    block: BlockId,
    bytes: Vec<u8>,
    chunks: Chunks,
}

/// Where a chunk is.
struct Held {
    block: BlockId,
    start: u32,
    length: u32,
}

/// Blocks that have no place yet, and chunks that the catalog does not have yet.
pub(super) struct Store {
    next: BlockId,
    /// Composites of files and of nodes, of one owner each. The one that was added to last is at the end.
    data: Vec<Gather>,
    tree: Vec<Gather>,
    /// Bytes of files that were gathered so far.
    gathered: u64,
    /// Blocks being gathered or sealed.
    unplaced: HashSet<BlockId>,
    /// Blocks with the sealers, and what they hold.
    pub(super) sealing: HashMap<BlockId, Chunks>,
    /// Chunks of this run that are not in the catalog's table.
    held: HashMap<Digest, Held>,
    /// Those of them whose blocks have places.
    ready: Vec<Digest>,
    /// Places of recent blocks.
    pub(super) places: HashMap<BlockId, BlockLocation>,
}

impl Store {
    pub(super) fn new(next: BlockId) -> Self {
        Store {
            next,
            data: Vec::new(),
            tree: Vec::new(),
            gathered: 0,
            unplaced: HashSet::new(),
            sealing: HashMap::new(),
            held: HashMap::new(),
            ready: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Whether nothing is being gathered or sealed.
    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.tree.is_empty() && self.sealing.is_empty()
    }

    /// Whether a block has no place yet.
    pub(super) fn is_unplaced(&self, block: BlockId) -> bool {
        self.unplaced.contains(&block)
    }

    /// Bytes that a composite of files may hold by now: a power of two, so that readers have buffers that fit.
    fn composite(&self) -> usize {
        let share = self.gathered / SHARE;
        let share = share.clamp(SMALL_COMPOSITE as u64, BLOCK_SIZE as u64) as usize;
        1 << share.ilog2()
    }

    fn new_block(&mut self) -> BlockId {
        let block = self.next;
        self.next = BlockId(block.0 + 1);
        self.unplaced.insert(block);
        block
    }
}

impl Engine<'_> {
    /// Stores a chunk of a file of this owner, unless it is there already.
    pub(super) fn store_data(&mut self, bytes: Bytes, digest: Digest, owner: u32) -> Result<Stored, Error> {
        match self.known(&digest)? {
            Some(known) => Ok(known),
            None => self.store_new((PackKind::Data, owner), bytes.take()?.into(), digest),
        }
    }

    /// Stores a node of a directory of this owner, unless it is there already.
    pub(super) fn store_node(&mut self, bytes: &[u8], owner: u32) -> Result<Stored, Error> {
        let digest = Digest::of(bytes);
        match self.known(&digest)? {
            Some(known) => Ok(known),
            None => self.store_new((PackKind::Tree, owner), bytes.into(), digest),
        }
    }

    fn store_new(
        &mut self,
        (kind, owner): (PackKind, u32),
        bytes: Cow<'_, [u8]>,
        digest: Digest,
    ) -> Result<Stored, Error> {
        if bytes.len() > BLOCK_SIZE {
            return Err(Error::Stopped("a chunk is larger than a block"));
        }
        let gathers = match kind {
            PackKind::Data => bytes.len() < self.options.storing.merge_files_under,
            PackKind::Tree => bytes.len() < TREE_COMPOSITE,
        };
        if gathers {
            return self.gather((kind, owner), &bytes, digest);
        }
        let block = self.store.new_block();
        let stored = Stored { digest, block, start: 0, length: bytes.len() as u32 };
        self.store.hold(stored);
        let chunks = vec![(digest, bytes.len() as u32)];
        self.seal(block, kind, bytes.into_owned(), chunks)?;
        Ok(stored)
    }

    /// A chunk that this run or an earlier one stored.
    pub(super) fn known(&mut self, digest: &Digest) -> Result<Option<Stored>, Error> {
        match self.store.held(digest) {
            Some(stored) => Ok(Some(stored)),
            None => Ok(self.catalog.chunk(digest)?),
        }
    }

    fn gather(&mut self, (kind, owner): (PackKind, u32), bytes: &[u8], digest: Digest) -> Result<Stored, Error> {
        // To seal one may write nodes, which are gathered, too.
        while let Some(gather) = self.store.take_in_the_way(kind, owner, bytes.len()) {
            if self.store.open(kind).is_empty() {
                self.nodes.sealing(kind);
            }
            self.seal_composite(kind, gather)?;
        }
        let mut open = match self.store.take_of(kind, owner) {
            Some(open) => open,
            None => {
                let block = self.store.new_block();
                let bytes = self.buffers.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK_SIZE));
                Gather { owner, block, bytes, chunks: Vec::new() }
            }
        };
        let stored = Stored { digest, block: open.block, start: open.bytes.len() as u32, length: bytes.len() as u32 };
        open.bytes.extend_from_slice(bytes);
        open.chunks.push((digest, bytes.len() as u32));
        self.store.open(kind).push(open);
        if kind == PackKind::Data {
            self.store.gathered += bytes.len() as u64;
        }
        self.store.hold(stored);
        Ok(stored)
    }

    /// Sends the composites of all owners to the sealers, however little they hold.
    pub(super) fn close_composites(&mut self, kind: PackKind) -> Result<(), Error> {
        self.nodes.sealing(kind);
        let open = std::mem::take(self.store.open(kind));
        open.into_iter().try_for_each(|gather| self.seal_composite(kind, gather))
    }

    fn seal_composite(&mut self, kind: PackKind, gather: Gather) -> Result<(), Error> {
        let Gather { block, bytes, chunks, .. } = gather;
        self.seal(block, kind, bytes, chunks)
    }

    fn seal(&mut self, block: BlockId, kind: PackKind, bytes: Vec<u8>, chunks: Chunks) -> Result<(), Error> {
        self.session.announce(&mut self.catalog)?;
        // One chunk's length is a fingerprint; that of many together says little.
        let pad = chunks.len() == 1;
        self.store.sealing.insert(block, chunks);
        if self.plain.send(Plain { block, kind, bytes, pad }).is_err() {
            return Err(self.why_stopped("sealing"));
        }
        self.take_results()
    }

    /// Called when a block got its place.
    pub(super) fn chunks_placed(&mut self, block: BlockId, chunks: &Chunks) -> Result<(), Error> {
        self.store.unplaced.remove(&block);
        self.store.ready.extend(chunks.iter().map(|(digest, _)| *digest));
        match self.store.ready.len() >= CHUNKS_HELD {
            true => self.hand_over_chunks(),
            false => Ok(()),
        }
    }

    /// Puts chunks whose blocks have places into the catalog.
    pub(super) fn hand_over_chunks(&mut self) -> Result<(), Error> {
        let mut ready = std::mem::take(&mut self.store.ready);
        ready.sort_unstable_by_key(Digest::head);
        self.catalog.add_chunks(ready.iter().filter_map(|digest| self.store.held(digest)))?;
        for digest in ready.drain(..) {
            self.store.held.remove(&digest);
        }
        // Its room is used again.
        self.store.ready = ready;
        Ok(())
    }

    /// Where a block lies.
    pub(super) fn location(&mut self, block: BlockId) -> Result<BlockLocation, Error> {
        if let Some(place) = self.store.places.get(&block) {
            return Ok(*place);
        }
        let place = self.catalog.location(block)?;
        self.store.place(block, place);
        Ok(place)
    }
}

impl Store {
    fn open(&mut self, kind: PackKind) -> &mut Vec<Gather> {
        match kind {
            PackKind::Data => &mut self.data,
            PackKind::Tree => &mut self.tree,
        }
    }

    /// The composite that is filled for an owner.
    fn take_of(&mut self, kind: PackKind, owner: u32) -> Option<Gather> {
        let open = self.open(kind);
        let at = open.iter().position(|gather| gather.owner == owner)?;
        Some(open.remove(at))
    }

    /// A composite that must be sealed before `length` bytes of an owner can be gathered: his own if it is full, or the
    /// one that was not added to for longest.
    fn take_in_the_way(&mut self, kind: PackKind, owner: u32, length: usize) -> Option<Gather> {
        let most = match kind {
            PackKind::Data => self.composite(),
            PackKind::Tree => TREE_COMPOSITE,
        };
        let open = self.open(kind);
        let at = match open.iter().position(|gather| gather.owner == owner) {
            Some(at) => {
                let own = &open[at];
                let full = own.bytes.len() + length > most || own.chunks.len() >= COMPOSITE_CHUNKS;
                full.then_some(at)
            }
            None => (open.len() >= OWNERS).then_some(0),
        }?;
        Some(open.remove(at))
    }

    fn hold(&mut self, Stored { digest, block, start, length }: Stored) {
        self.held.insert(digest, Held { block, start, length });
    }

    fn held(&self, digest: &Digest) -> Option<Stored> {
        let Held { block, start, length } = *self.held.get(digest)?;
        Some(Stored { digest: *digest, block, start, length })
    }

    /// Remembers where a block lies, for a while.
    pub(super) fn place(&mut self, block: BlockId, place: BlockLocation) {
        if self.places.len() >= CHUNKS_HELD {
            self.places.clear();
        }
        self.places.insert(block, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_that_was_not_added_to_for_longest_makes_room() {
        let mut store = Store::new(BlockId(1));
        let gather = |owner| Gather { owner, block: BlockId(1), bytes: vec![0; 100], chunks: Vec::new() };
        for owner in 1..=3 {
            assert!(store.take_in_the_way(PackKind::Data, owner, 5).is_none());
            store.data.push(gather(owner));
        }
        let again = store.take_of(PackKind::Data, 1).unwrap();
        store.data.push(again);
        assert!(store.take_in_the_way(PackKind::Data, 3, 5).is_none());
        assert!(store.take_in_the_way(PackKind::Tree, 4, 5).is_none());
        assert_eq!(store.take_in_the_way(PackKind::Data, 4, 5).unwrap().owner, 2);
        // Two are left, and one of them is full.
        assert!(store.take_in_the_way(PackKind::Data, 4, 5).is_none());
        assert_eq!(store.take_in_the_way(PackKind::Data, 1, SMALL_COMPOSITE).unwrap().owner, 1);
    }

    #[test]
    fn composites_grow_with_what_a_run_stores() {
        let after = |gathered: u64| Store { gathered, ..Store::new(BlockId(1)) }.composite();
        let lengths = [0, 1 << 20, (4 << 20) - 1, 4 << 20, 16 << 20, u64::MAX].map(after);
        assert_eq!(lengths, [256 << 10, 256 << 10, 256 << 10, 512 << 10, BLOCK_SIZE, BLOCK_SIZE]);
    }
}
