//! Chunks on their way into blocks: known chunks are not stored again, small ones are gathered in composites.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::composites::{Chunks, Composite, Composites, TREE_COMPOSITE};
use super::packer::Packer;
use super::seal::{PlainBlock, SealedBlock};
use crate::backup::error::Error;
use crate::backup::limits::NODES_WAITING;
use crate::catalog::{BlockId, Catalog, SourceRow, Stored};
use crate::format::pack::PackKind;
use crate::format::{BLOCK_SIZE, BlockLocation, Digest};
use crate::session::NewSnapshot;

/// New chunks that are kept in memory before they enter the catalog, sorted by digest. As many places of blocks are cached.
const CHUNKS_HELD: usize = 1 << 15;

/// Whose bytes a chunk holds, and in which kind of pack they go.
#[derive(Debug, Clone, Copy)]
struct ChunkClass {
    kind: PackKind,
    owner: u32,
}

/// Where a chunk is that the catalog does not have yet.
struct ChunkPlace {
    block: BlockId,
    start: u32,
    length: u32,
}

/// Chunks that the catalog does not have yet.
struct NewChunks {
    places: HashMap<Digest, ChunkPlace>,
    /// The chunks whose blocks have places, so that they may enter the catalog.
    ready: Vec<Digest>,
}

impl NewChunks {
    fn insert(&mut self, Stored { digest, block, start, length }: Stored) {
        self.places.insert(digest, ChunkPlace { block, start, length });
    }

    fn get(&self, digest: &Digest) -> Option<Stored> {
        let ChunkPlace { block, start, length } = *self.places.get(digest)?;
        Some(Stored { digest: *digest, block, start, length })
    }
}

/// Stores chunks: finds duplicates, gathers small chunks in composites, and knows which blocks have a place in a pack.
pub(in crate::backup) struct BlockStore<'a> {
    packer: Packer<'a>,
    /// Chunks of files below this many bytes are gathered.
    merge_under: usize,
    next: BlockId,
    composites: Composites,
    /// Blocks that are being filled or sealed.
    unplaced: HashSet<BlockId>,
    /// The chunks of blocks that are with the sealers.
    in_flight: HashMap<BlockId, Chunks>,
    new_chunks: NewChunks,
    /// Places of recent blocks.
    places: HashMap<BlockId, BlockLocation>,
    /// About how many bytes in memory wait for composites of files, and of tree nodes, to be sealed.
    waiting_for_data: usize,
    waiting_for_tree: usize,
}

impl<'a> BlockStore<'a> {
    /// A store that gathers chunks of files below `merge_under` bytes.
    pub(in crate::backup) fn new(packer: Packer<'a>, merge_under: usize) -> Result<Self, Error> {
        Ok(BlockStore {
            next: packer.catalog().next_block()?,
            packer,
            merge_under,
            composites: Composites::new(),
            unplaced: HashSet::new(),
            in_flight: HashMap::new(),
            new_chunks: NewChunks { places: HashMap::new(), ready: Vec::new() },
            places: HashMap::new(),
            waiting_for_data: 0,
            waiting_for_tree: 0,
        })
    }

    pub(in crate::backup) fn catalog(&self) -> &Catalog {
        self.packer.catalog()
    }

    pub(in crate::backup) fn packer(&self) -> &Packer<'a> {
        &self.packer
    }

    pub(in crate::backup) fn packer_mut(&mut self) -> &mut Packer<'a> {
        &mut self.packer
    }

    /// Whether no block is being filled or sealed.
    pub(super) fn is_idle(&self) -> bool {
        self.composites.is_empty(PackKind::Data) && self.composites.is_empty(PackKind::Tree) && !self.is_sealing()
    }

    /// Whether blocks are with the sealers.
    pub(super) fn is_sealing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether a block has no place yet.
    pub(super) fn is_unplaced(&self, block: BlockId) -> bool {
        self.unplaced.contains(&block)
    }

    /// Looks up a chunk that this run or an earlier one stored.
    pub(in crate::backup) fn known(&self, digest: &Digest) -> Result<Option<Stored>, Error> {
        match self.new_chunks.get(digest) {
            Some(stored) => Ok(Some(stored)),
            None => Ok(self.catalog().chunk(digest)?),
        }
    }

    /// Stores a chunk of a file of this owner, unless it is known. `bytes` is called only for a new chunk.
    pub(in crate::backup) fn store_data(
        &mut self,
        digest: Digest,
        owner: u32,
        bytes: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Stored, Error> {
        match self.known(&digest)? {
            Some(known) => Ok(known),
            None => self.store_new(ChunkClass { kind: PackKind::Data, owner }, bytes()?.into(), digest),
        }
    }

    /// Stores a node of a directory of this owner, unless it is known.
    pub(super) fn store_node(&mut self, bytes: &[u8], owner: u32) -> Result<Stored, Error> {
        let digest = Digest::of(bytes);
        match self.known(&digest)? {
            Some(known) => Ok(known),
            None => self.store_new(ChunkClass { kind: PackKind::Tree, owner }, bytes.into(), digest),
        }
    }

    fn store_new(&mut self, class: ChunkClass, bytes: Cow<'_, [u8]>, digest: Digest) -> Result<Stored, Error> {
        if bytes.len() > BLOCK_SIZE {
            return Err(Error::Internal("a chunk is larger than a block"));
        }
        let is_small = match class.kind {
            PackKind::Data => bytes.len() < self.merge_under,
            PackKind::Tree => bytes.len() < TREE_COMPOSITE,
        };
        if is_small {
            return self.gather(class, &bytes, digest);
        }
        let block = self.new_block();
        let length = bytes.len() as u32;
        let stored = Stored { digest, block, start: 0, length };
        self.new_chunks.insert(stored);
        self.seal(block, class.kind, bytes.into_owned(), vec![(digest, length)])?;
        Ok(stored)
    }

    fn gather(
        &mut self,
        ChunkClass { kind, owner }: ChunkClass,
        bytes: &[u8],
        digest: Digest,
    ) -> Result<Stored, Error> {
        if let Some(composite) = self.composites.take_blocking(kind, owner, bytes.len()) {
            if self.composites.is_empty(kind) {
                self.reset_waiting(kind);
            }
            self.seal_composite(kind, composite)?;
        }
        let mut composite = match self.composites.take_of(kind, owner) {
            Some(open) => open,
            None => {
                let block = self.new_block();
                Composite::new(owner, block, self.packer.buffer())
            }
        };
        let start = composite.append(bytes, digest);
        let stored = Stored { digest, block: composite.block, start, length: bytes.len() as u32 };
        self.composites.put(kind, composite, bytes.len());
        self.new_chunks.insert(stored);
        Ok(stored)
    }

    fn new_block(&mut self) -> BlockId {
        let block = self.next;
        self.next = BlockId(block.0 + 1);
        self.unplaced.insert(block);
        block
    }

    /// Sends the composites of all owners to the sealers, however little they hold.
    pub(super) fn close_composites(&mut self, kind: PackKind) -> Result<(), Error> {
        self.reset_waiting(kind);
        let open = self.composites.take_all(kind);
        open.into_iter().try_for_each(|composite| self.seal_composite(kind, composite))
    }

    fn seal_composite(&mut self, kind: PackKind, composite: Composite) -> Result<(), Error> {
        let Composite { block, bytes, chunks, .. } = composite;
        self.seal(block, kind, bytes, chunks)
    }

    fn seal(&mut self, block: BlockId, kind: PackKind, bytes: Vec<u8>, chunks: Chunks) -> Result<(), Error> {
        // The exact length of a single chunk would be a fingerprint of it.
        let pad = chunks.len() == 1;
        self.in_flight.insert(block, chunks);
        let sent = self.packer.seal(PlainBlock { block, kind, bytes, pad });
        if sent.is_err() {
            self.in_flight.remove(&block);
        }
        sent
    }

    /// Notes that about `bytes` in memory wait for the composites of a kind to be sealed.
    pub(super) fn note_waiting(&mut self, kind: PackKind, bytes: usize) {
        match kind {
            PackKind::Data => self.waiting_for_data += bytes,
            PackKind::Tree => self.waiting_for_tree += bytes,
        }
    }

    /// All composites of a kind are being sealed, so nothing waits for an open one.
    fn reset_waiting(&mut self, kind: PackKind) {
        match kind {
            PackKind::Data => self.waiting_for_data = 0,
            PackKind::Tree => self.waiting_for_tree = 0,
        }
    }

    /// Seals composites that are not full if much waits for them.
    pub(super) fn seal_if_awaited(&mut self) -> Result<(), Error> {
        if self.waiting_for_data > NODES_WAITING {
            self.close_composites(PackKind::Data)?;
            // Nodes of directories also wait for the nodes below them.
            self.close_composites(PackKind::Tree)?;
        }
        if self.waiting_for_tree > NODES_WAITING {
            self.close_composites(PackKind::Tree)?;
        }
        Ok(())
    }

    /// Handles results of sealing that are available, up to the next block, and returns that. It has a place now.
    pub(super) fn poll(&mut self) -> Result<Option<BlockId>, Error> {
        match self.packer.poll()? {
            Some(sealed) => self.take(sealed).map(Some),
            None => Ok(None),
        }
    }

    /// Waits for a result of sealing. Returns the block that has a place now, if it is about one.
    pub(super) fn wait(&mut self) -> Result<Option<BlockId>, Error> {
        match self.packer.wait()? {
            Some(sealed) => self.take(sealed).map(Some),
            None => Ok(None),
        }
    }

    fn take(&mut self, sealed: SealedBlock) -> Result<BlockId, Error> {
        let block = sealed.block;
        let chunks =
            self.in_flight.remove(&block).ok_or(Error::Internal("a block was sealed that is not in flight"))?;
        self.cache_place(block, sealed.placed.at);
        self.unplaced.remove(&block);
        self.new_chunks.ready.extend(chunks.iter().map(|(digest, _)| *digest));
        self.packer.add_block(&sealed, chunks)?;
        if self.new_chunks.ready.len() >= CHUNKS_HELD {
            self.hand_over_chunks()?;
        }
        Ok(block)
    }

    /// Moves chunks whose blocks have places into the catalog.
    fn hand_over_chunks(&mut self) -> Result<(), Error> {
        let NewChunks { places, ready } = &mut self.new_chunks;
        ready.sort_unstable_by_key(Digest::head);
        let stored = ready.iter().filter_map(|digest| {
            let ChunkPlace { block, start, length } = *places.get(digest)?;
            Some(Stored { digest: *digest, block, start, length })
        });
        self.packer.catalog().add_chunks(stored)?;
        for digest in ready.drain(..) {
            places.remove(&digest);
        }
        Ok(())
    }

    /// The place of a block that has one.
    pub(super) fn location(&mut self, block: BlockId) -> Result<BlockLocation, Error> {
        if let Some(place) = self.places.get(&block) {
            return Ok(*place);
        }
        let place = self.catalog().location(block)?;
        self.cache_place(block, place);
        Ok(place)
    }

    fn cache_place(&mut self, block: BlockId, place: BlockLocation) {
        if self.places.len() >= CHUNKS_HELD {
            self.places.clear();
        }
        self.places.insert(block, place);
    }

    /// Whether a commit is due.
    pub(super) fn is_commit_due(&self) -> bool {
        self.packer.is_commit_due()
    }

    /// Makes everything durable that is sealed. No block may be with the sealers.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        self.hand_over_chunks()?;
        self.packer.commit()
    }

    /// Ends a run without a snapshot: commits the stored packs. After an interrupt, the others are dropped within seconds.
    pub(super) fn keep_stored(&mut self) -> Result<(), Error> {
        self.hand_over_chunks()?;
        self.packer.keep_stored()
    }

    /// The same as [`BlockStore::commit`], together with the row of a snapshot of `source` that is about to be written.
    pub(super) fn commit_snapshot(&mut self, snapshot: &NewSnapshot, source: SourceRow) -> Result<(), Error> {
        self.hand_over_chunks()?;
        self.packer.commit_snapshot(snapshot, source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::fixture::{MERGE_UNDER, Site};

    fn store(blocks: &mut BlockStore<'_>, bytes: &[u8], owner: u32) -> Stored {
        blocks.store_data(Digest::of(bytes), owner, || Ok(bytes.to_vec())).unwrap()
    }

    /// Seals everything, and waits for it.
    fn place_all(blocks: &mut BlockStore<'_>) {
        blocks.close_composites(PackKind::Data).unwrap();
        while blocks.is_sealing() {
            blocks.wait().unwrap();
        }
    }

    #[test]
    fn a_known_chunk_is_not_stored_again() {
        let site = Site::new();
        let bytes = [7; 100];
        let first = site.with_blocks(|mut blocks| {
            let first = store(&mut blocks, &bytes, 1);
            let again = blocks.store_data(first.digest, 1, || panic!("the bytes are not needed")).unwrap();
            assert_eq!(again, first);
            place_all(&mut blocks);
            blocks.commit().unwrap();
            first
        });
        // Nor by a later run.
        site.with_blocks(|mut blocks| {
            let again = blocks.store_data(first.digest, 2, || panic!("the bytes are not needed")).unwrap();
            assert_eq!(again, first);
        });
    }

    #[test]
    fn small_chunks_of_an_owner_share_a_block_and_large_ones_do_not() {
        Site::new().with_blocks(|mut blocks| {
            let [a, b] = [b"a", b"b"].map(|bytes| store(&mut blocks, bytes, 1));
            let other = store(&mut blocks, b"c", 2);
            let large = store(&mut blocks, &[0; MERGE_UNDER], 1);
            assert_eq!((a.block, a.start, b.block, b.start), (b.block, 0, a.block, 1));
            assert!(other.block != a.block && large.block != a.block && large.start == 0);
        });
    }

    #[test]
    fn a_block_has_a_place_once_it_is_sealed() {
        Site::new().with_blocks(|mut blocks| {
            let stored = store(&mut blocks, b"a", 1);
            assert!(blocks.is_unplaced(stored.block) && !blocks.is_sealing() && !blocks.is_idle());
            place_all(&mut blocks);
            assert!(!blocks.is_unplaced(stored.block) && blocks.is_idle());
            let place = blocks.location(stored.block).unwrap();
            assert_eq!(blocks.catalog().location(stored.block).unwrap(), place);
        });
    }

    #[test]
    fn composites_are_sealed_early_if_much_waits_for_them() {
        Site::new().with_blocks(|mut blocks| {
            store(&mut blocks, b"a", 1);
            blocks.note_waiting(PackKind::Data, NODES_WAITING);
            blocks.seal_if_awaited().unwrap();
            assert!(!blocks.is_sealing());
            blocks.note_waiting(PackKind::Data, 1);
            blocks.seal_if_awaited().unwrap();
            assert!(blocks.is_sealing() && blocks.waiting_for_data == 0);
        });
    }

    #[test]
    fn a_chunk_larger_than_a_block_is_an_error() {
        Site::new().with_blocks(|mut blocks| {
            let bytes = vec![0; BLOCK_SIZE + 1];
            assert!(blocks.store_data(Digest::of(&bytes), 1, || Ok(bytes)).is_err());
        });
    }
}
