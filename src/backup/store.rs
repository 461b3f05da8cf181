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
/// New chunks that are held before they go into the catalog in order of their digests.
const CHUNKS_HELD: usize = 1 << 15;

/// What a block holds: digests and lengths.
pub(super) type Chunks = Vec<(Digest, u32)>;

/// A composite that is being filled.
struct Gather {
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
    data: Option<Gather>,
    tree: Option<Gather>,
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
            data: None,
            tree: None,
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
        self.data.is_none() && self.tree.is_none() && self.sealing.is_empty()
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
    /// Stores a chunk of a file, unless it is there already.
    pub(super) fn store_data(&mut self, bytes: Bytes, digest: Digest) -> Result<Stored, Error> {
        match self.known(&digest)? {
            Some(known) => Ok(known),
            None => self.store_new(PackKind::Data, bytes.take()?.into(), digest),
        }
    }

    /// Stores a tree node, unless it is there already.
    pub(super) fn store_node(&mut self, bytes: &[u8]) -> Result<Stored, Error> {
        let digest = Digest::of(bytes);
        match self.known(&digest)? {
            Some(known) => Ok(known),
            None => self.store_new(PackKind::Tree, bytes.into(), digest),
        }
    }

    fn store_new(&mut self, kind: PackKind, bytes: Cow<'_, [u8]>, digest: Digest) -> Result<Stored, Error> {
        if bytes.len() > BLOCK_SIZE {
            return Err(Error::Stopped("a chunk is larger than a block"));
        }
        let gathers = match kind {
            PackKind::Data => bytes.len() < self.options.merge_files_under,
            PackKind::Tree => bytes.len() < TREE_COMPOSITE,
        };
        if gathers {
            return self.gather(kind, &bytes, digest);
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

    fn gather(&mut self, kind: PackKind, bytes: &[u8], digest: Digest) -> Result<Stored, Error> {
        let most = match kind {
            PackKind::Data => self.store.composite(),
            PackKind::Tree => TREE_COMPOSITE,
        };
        let open = self.slot(kind).as_ref();
        if open.is_some_and(|open| open.bytes.len() + bytes.len() > most || open.chunks.len() >= COMPOSITE_CHUNKS) {
            self.close_composite(kind)?;
        }
        let mut open = match self.slot(kind).take() {
            Some(open) => open,
            None => {
                let block = self.store.new_block();
                let bytes = self.buffers.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK_SIZE));
                Gather { block, bytes, chunks: Vec::new() }
            }
        };
        let stored = Stored { digest, block: open.block, start: open.bytes.len() as u32, length: bytes.len() as u32 };
        open.bytes.extend_from_slice(bytes);
        open.chunks.push((digest, bytes.len() as u32));
        *self.slot(kind) = Some(open);
        if kind == PackKind::Data {
            self.store.gathered += bytes.len() as u64;
        }
        self.store.hold(stored);
        Ok(stored)
    }

    fn slot(&mut self, kind: PackKind) -> &mut Option<Gather> {
        match kind {
            PackKind::Data => &mut self.store.data,
            PackKind::Tree => &mut self.store.tree,
        }
    }

    /// Sends a composite to the sealers, however little it holds.
    pub(super) fn close_composite(&mut self, kind: PackKind) -> Result<(), Error> {
        self.nodes.sealing(kind);
        match self.slot(kind).take() {
            Some(Gather { block, bytes, chunks }) => self.seal(block, kind, bytes, chunks),
            None => Ok(()),
        }
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
    fn composites_grow_with_what_a_run_stores() {
        let after = |gathered: u64| Store { gathered, ..Store::new(BlockId(1)) }.composite();
        let lengths = [0, 1 << 20, (4 << 20) - 1, 4 << 20, 16 << 20, u64::MAX].map(after);
        assert_eq!(lengths, [256 << 10, 256 << 10, 256 << 10, 512 << 10, BLOCK_SIZE, BLOCK_SIZE]);
    }
}
