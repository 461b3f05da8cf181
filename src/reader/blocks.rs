//! Blocks: fetched, decrypted, decompressed and cached. Each chunk is verified before its first use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::buffers::{self, Buffers};
use super::cache::{Cache, Weigh};
use super::error::BlockProblem;
use super::error::Error;
use super::moves::{self, Moves};
use super::starts::starts_of;
use crate::format::block;
use crate::format::{BLOCK_SIZE, BlockLocation, ChunkRef, Digest, Entry, Extent, Items, Node};
use crate::repository::{Access, Repository};

/// Divisor: this fraction of the cache is for decoded tree nodes.
const NODE_SHARE: usize = 4;

/// A repository, the keys to read it, and the caches. Threads share it.
pub(super) struct Core {
    pub(super) repository: Repository,
    pub(super) access: Access,
    blocks: Blocks,
    moves: Moves,
    buffers: Arc<Buffers>,
    /// Number of blocks decoded.
    decoded: AtomicU64,
    /// The content of a small file was read since a directory was listed.
    content_read: AtomicBool,
    /// The number of files that are read as a whole at the moment.
    whole_files: AtomicUsize,
}

/// Caches of blocks and nodes.
pub(super) struct Blocks {
    /// By the location that trees refer to, wherever the block was read. Blocks of restored chunks are cached by their own
    /// location.
    blocks: Cache<BlockLocation, Block, Error>,
    /// The key includes the location: a copy of the node elsewhere must be verified again.
    pub(super) nodes: Cache<(BlockLocation, Digest), NodeValue, Error>,
}

/// A decoded block. On drop its buffer returns to the pool.
pub(super) struct Block {
    plaintext: Vec<u8>,
    /// Where it was read.
    place: BlockLocation,
    buffers: Arc<Buffers>,
    /// Length and digest of the verified chunks, by offset in the block.
    verified: Mutex<HashMap<u32, (u32, Digest)>>,
}

impl Weigh for Block {
    fn weight(&self) -> usize {
        self.plaintext.capacity()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.buffers.give_plaintext(std::mem::take(&mut self.plaintext));
    }
}

/// A decoded node.
pub(super) struct NodeValue {
    pub(super) node: Node,
    /// Start of each item within the node, in bytes of a file or ranks of a directory. Computed once: a node of a megabyte
    /// can list a million holes.
    pub(super) starts: Vec<u64>,
    /// Sum of the lengths of all items; `None` if it overflows.
    pub(super) covers: Option<u64>,
    /// Size of the encoded node, in bytes.
    encoded: usize,
    /// Position of the chunk read last: the block's index in the high half, the offset in the block in the low half.
    last: AtomicU64,
}

impl NodeValue {
    pub(super) fn new(node: Node, encoded: usize) -> Self {
        let (starts, covers) = match &node.items {
            Items::Extents(extents) => starts_of(extents.iter().map(Extent::length)),
            Items::ExtentIndex(nodes) => starts_of(nodes.iter().map(|node| node.covers)),
            Items::Entries(entries) => starts_of(entries.iter().map(Entry::span)),
            Items::Segments(segments) => starts_of(segments.iter().map(|segment| segment.span)),
        };
        NodeValue { node, starts, covers, encoded, last: AtomicU64::new(u64::MAX) }
    }

    /// Records that a chunk is being read. If the node's chunks are read in order, returns up to `most` blocks after the
    /// chunk's, to be prefetched.
    pub(super) fn next_blocks(&self, chunk: &ChunkRef, most: usize) -> &[BlockLocation] {
        let position = |block: u32, start: u32| u64::from(block) << 32 | u64::from(start);
        let last = self.last.swap(position(chunk.block, chunk.start), Ordering::Relaxed);
        let in_order =
            last < position(chunk.block, chunk.start) && position(chunk.block, 0) <= last.saturating_add(1 << 32);
        let blocks = self.node.blocks.get((chunk.block as usize).saturating_add(1)..).filter(|_| in_order);
        let blocks = blocks.unwrap_or_default();
        blocks.get(..most.min(blocks.len())).unwrap_or_default()
    }
}

impl Weigh for NodeValue {
    fn weight(&self) -> usize {
        // The heap data of entries and segments is about as large as their encoding.
        let items = match &self.node.items {
            Items::Entries(entries) => size_of_val(entries.as_slice()),
            Items::Segments(segments) => size_of_val(segments.as_slice()),
            Items::Extents(extents) => size_of_val(extents.as_slice()),
            Items::ExtentIndex(nodes) => size_of_val(nodes.as_slice()),
        };
        items + size_of_val(self.node.blocks.as_slice()) + size_of_val(self.starts.as_slice()) + 2 * self.encoded
    }
}

impl Blocks {
    pub(super) fn new(cache_size: usize) -> Self {
        let nodes = cache_size / NODE_SHARE;
        Blocks { blocks: Cache::new(cache_size - nodes), nodes: Cache::new(nodes) }
    }
}

/// A file that is read as a whole.
pub(super) struct WholeFile<'c>(&'c Core);

impl WholeFile<'_> {
    /// How many bytes to prefetch for it: its share of the cache, and at most half of the cache. More would remove blocks from
    /// the cache that are not read yet.
    pub(super) fn room(&self) -> usize {
        let files = self.0.whole_files.load(Ordering::Relaxed).max(2);
        self.0.blocks.blocks.limit() / files
    }
}

impl Drop for WholeFile<'_> {
    fn drop(&mut self) {
        self.0.whole_files.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Core {
    pub(super) fn new(repository: Repository, access: Access, cache_size: usize) -> Self {
        Core {
            repository,
            access,
            blocks: Blocks::new(cache_size),
            moves: Moves::new(),
            buffers: Arc::default(),
            decoded: AtomicU64::new(0),
            content_read: AtomicBool::new(false),
            whole_files: AtomicUsize::new(0),
        }
    }

    /// Maximum size of the caches and the free buffers, in bytes.
    pub(super) fn room(&self) -> usize {
        let caches = self.blocks.blocks.limit().saturating_add(self.blocks.nodes.limit());
        caches.saturating_add(moves::MEMORY + buffers::KEPT + buffers::WORK_KEPT)
    }

    /// Number of blocks decoded so far.
    pub(super) fn decoded(&self) -> u64 {
        self.decoded.load(Ordering::Relaxed)
    }

    /// Notes that the content of a small file is read.
    pub(super) fn note_content_read(&self) {
        self.content_read.store(true, Ordering::Relaxed);
    }

    /// Whether the content of a small file was read since the last call.
    pub(super) fn take_content_read(&self) -> bool {
        self.content_read.swap(false, Ordering::Relaxed)
    }

    /// Whether a block is cached or being loaded.
    pub(super) fn has_block(&self, location: &BlockLocation) -> bool {
        self.blocks.blocks.has(location)
    }

    /// Notes that a chunk was read to its end. If it is the last in its block, moves the block to the LRU tail. For large
    /// files it also drops the ciphertext from the page cache, which holds it in addition to the cached plaintext.
    pub(super) fn chunk_finished(&self, location: &BlockLocation, chunk: &ChunkRef, large: bool) {
        let end = u64::from(chunk.start) + u64::from(chunk.length);
        let mut place = *location;
        let is_last = |block: &Block| {
            place = block.place;
            block.plaintext.len() as u64 == end
        };
        if self.blocks.blocks.demote_if(location, is_last) && large {
            self.repository.forget_block(&place);
        }
    }

    /// Calls `use_bytes` with the verified bytes of a chunk in the block at `location`.
    pub(super) fn with_chunk<T>(
        &self,
        location: &BlockLocation,
        chunk: &ChunkRef,
        use_bytes: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        let (block, start) = self.find(location, chunk)?;
        Ok(use_bytes(block.chunk(start, chunk)?))
    }

    /// Returns a block with a chunk that was verified, and the chunk's offset in the block.
    fn find(&self, location: &BlockLocation, chunk: &ChunkRef) -> Result<(Arc<Block>, u32), Error> {
        let (wrong, error) = match self.block_with(location, || self.fetch(location), (chunk, chunk.start)) {
            Ok((block, Ok(()))) => return Ok((block, chunk.start)),
            Ok((block, Err(error))) => (Some(block.place), error),
            Err(error) if error.is_lost() => (None, error),
            Err(error) => return Err(error),
        };
        let found = self.moves.find((&self.repository, &self.access), location.pack, |moved| {
            // A block that is gone was looked for there before.
            let elsewhere = |wrong| moved.location(location).filter(|place| *place != wrong);
            let whole = wrong.and_then(elsewhere).map(|place| (place, chunk.start));
            let mut result = Ok(None);
            for (place, start) in whole.into_iter().chain(moved.restored_chunk(location.pack, &chunk.digest)) {
                match self.block_with(&place, || self.fetch_at(&place), (chunk, start)) {
                    Ok((block, Ok(()))) => return Ok(Some((block, start))),
                    Ok((_, Err(error))) => result = Err(error),
                    Err(error) if error.is_lost() => result = Err(error),
                    Err(error) => return Err(error),
                }
            }
            result
        })?;
        found.ok_or(error)
    }

    /// Returns a block, and whether it has this chunk at this offset. If not, and the bytes came from a cache on disk, it is
    /// loaded once more; likewise if another thread has dropped it, as it may have found the same.
    fn block_with(
        &self,
        location: &BlockLocation,
        load: impl Fn() -> Result<Block, Error>,
        (chunk, start): (&ChunkRef, u32),
    ) -> Result<(Arc<Block>, Result<(), Error>), Error> {
        let mut block = self.blocks.blocks.get(location, &load)?;
        let mut verified = block.chunk(start, chunk).map(drop);
        if verified.is_err() {
            if self.repository.drop_copy(&block.place) {
                self.blocks.blocks.remove(location, &block);
            } else if self.blocks.blocks.is_current(location, &block) {
                return Ok((block, verified));
            }
            block = self.blocks.blocks.get(location, &load)?;
            verified = block.chunk(start, chunk).map(drop);
        }
        Ok((block, verified))
    }

    /// Returns a location outside its pack at which a chunk may be read, and which `is_there` accepts.
    pub(super) fn moved_to(
        &self,
        location: &BlockLocation,
        chunk: &ChunkRef,
        is_there: impl Fn(&BlockLocation) -> bool,
    ) -> Result<Option<BlockLocation>, Error> {
        self.moves.find((&self.repository, &self.access), location.pack, |moved| {
            let restored = moved.restored_chunk(location.pack, &chunk.digest).map(|(place, _)| place);
            Ok(moved.location(location).filter(&is_there).or(restored.filter(&is_there)))
        })
    }

    /// Number of blocks of the maximum size that fit half of the cache.
    pub(super) fn room_for_blocks(&self) -> usize {
        self.blocks.blocks.limit() / BLOCK_SIZE / 2
    }

    /// Begins to read a whole file.
    pub(super) fn begin_whole_file(&self) -> WholeFile<'_> {
        self.whole_files.fetch_add(1, Ordering::Relaxed);
        WholeFile(self)
    }

    /// Reads a chunk and verifies it.
    pub(super) fn verify(&self, location: &BlockLocation, chunk: &ChunkRef) -> Result<(), Error> {
        self.with_chunk(location, chunk, |_| ())
    }

    /// Verifies that a stored block consists of exactly these chunks, in this order.
    pub(super) fn verify_stored(
        &self,
        location: &BlockLocation,
        stored: &[u8],
        chunks: &[(Digest, u32)],
    ) -> Result<(), Error> {
        let block = self.decode(location, stored)?;
        let mut start = 0u32;
        for (digest, length) in chunks {
            block.chunk(start, &ChunkRef { digest: *digest, block: 0, start, length: *length })?;
            start = start.saturating_add(*length);
        }
        if block.plaintext.len() as u64 == u64::from(start) {
            Ok(())
        } else {
            Err(Error::Tree(format!(
                "the block at {} of pack {} has {} bytes, and its chunks {start}",
                location.offset,
                location.pack,
                block.plaintext.len()
            )))
        }
    }

    /// Returns a tree node, verified and decoded.
    pub(super) fn node(&self, location: &BlockLocation, chunk: &ChunkRef) -> Result<Arc<NodeValue>, Error> {
        let load = || {
            let (block, start) = self.find(location, chunk)?;
            self.repository.prefer_block(&block.place);
            let node = Node::decode(block.chunk(start, chunk)?);
            let node = node.map_err(|e| {
                Error::Tree(format!("{e} (in the block at {} of pack {})", location.offset, location.pack))
            })?;
            Ok(NodeValue::new(node, chunk.length as usize))
        };
        self.blocks.nodes.get(&(*location, chunk.digest), load)
    }

    /// Returns a decoded block.
    pub(super) fn block(&self, location: &BlockLocation) -> Result<Arc<Block>, Error> {
        self.blocks.blocks.get(location, || self.fetch(location))
    }

    /// Loads blocks that follow each other in a pack, and verifies chunks in them. Skips blocks that are cached or being loaded;
    /// each run of the others is read with one request. Returns the blocks that were loaded. A reader that needs one of the
    /// others loads it itself, or gets the error if the target is away.
    pub(super) fn load_neighbours(&self, wanted: &[(BlockLocation, &[ChunkRef])]) -> Vec<BlockLocation> {
        let (mut loaded, mut left) = (Vec::new(), wanted);
        while !left.is_empty() {
            let begin =
                |(block, chunks): &(BlockLocation, _)| Some((*block, *chunks, self.blocks.blocks.begin(block)?));
            let begun: Vec<_> = left.iter().map_while(begin).collect();
            left = left.get(begun.len() + 1..).unwrap_or_default();
            let blocks: Vec<_> = begun.iter().map(|(block, ..)| *block).collect();
            let (mut part, mut stored) = (self.buffers.work(), Vec::new());
            let mut collect = |bytes: &[u8]| stored.extend_from_slice(bytes);
            let read = self.repository.read_neighbours(&blocks, &mut part, &mut collect);
            self.buffers.give_work(part);
            let failed = read.err().zip(blocks.first());
            let failed = failed.map(|(e, first)| Error::block(first, BlockProblem::Read(e))).filter(|e| !e.is_lost());
            let mut rest = stored.as_slice();
            // Decoding may wait for other reads, so it begins when the connection is free.
            for (location, chunks, begun) in begun {
                let Some((sealed, after)) = rest.split_at_checked(location.length as usize) else {
                    // To wait for the target once more would not help.
                    if let Some(error) = &failed {
                        let _ = begun.end(Err(error.clone()));
                    }
                    continue;
                };
                rest = after;
                if let Ok(block) = self.decode(&location, sealed) {
                    chunks.iter().for_each(|chunk| _ = block.chunk(chunk.start, chunk));
                    let _ = begun.end(Ok(Arc::new(block)));
                    loaded.push(location);
                }
            }
        }
        loaded
    }

    /// Returns an empty buffer with room for `length` bytes.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        self.buffers.plaintext(length)
    }

    /// Returns such a buffer to the pool.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        self.buffers.give_plaintext(buffer);
    }

    /// Reads a block where it was first stored, or else where it was moved to.
    fn fetch(&self, location: &BlockLocation) -> Result<Block, Error> {
        let error = match self.fetch_at(location) {
            Err(error) if error.is_lost() => error,
            result => return result,
        };
        let moved = self.moves.find((&self.repository, &self.access), location.pack, |moved| {
            moved.location(location).map(|place| self.fetch_at(&place)).transpose()
        })?;
        moved.ok_or(error)
    }

    /// Reads a block at this place. If the bytes of a cache on disk are wrong, reads those of the target.
    fn fetch_at(&self, location: &BlockLocation) -> Result<Block, Error> {
        match self.read_at(location) {
            Err(error) if error.is_lost() && self.repository.drop_copy(location) => self.read_at(location),
            result => result,
        }
    }

    fn read_at(&self, location: &BlockLocation) -> Result<Block, Error> {
        let mut sealed = self.buffers.work();
        let read = self.repository.read_block(location, &mut sealed);
        read.map_err(|e| Error::block(location, BlockProblem::Read(e)))?;
        let block = self.decode(location, &sealed)?;
        self.buffers.give_work(sealed);
        Ok(block)
    }

    /// Decrypts and decompresses a stored block.
    fn decode(&self, location: &BlockLocation, sealed: &[u8]) -> Result<Block, Error> {
        let failed = |why| Error::block(location, why);
        let take = |length| self.buffers.plaintext(length);
        let decode = |frame: &[u8]| block::decode(frame, take).map_err(|e| failed(BlockProblem::Decode(e)));
        let plaintext = match (self.repository.encrypted(), self.access.opener()) {
            (true, Some(opener)) => {
                let mut frame = self.buffers.work();
                let opened = self.repository.open_block(opener, sealed, &mut frame);
                opened.map_err(|e| failed(BlockProblem::Open(e)))?;
                let plaintext = decode(&frame)?;
                self.buffers.give_work(frame);
                plaintext
            }
            (true, None) => return Err(failed(BlockProblem::NoKey)),
            (false, _) => decode(sealed)?,
        };
        self.decoded.fetch_add(1, Ordering::Relaxed);
        Ok(Block { plaintext, place: *location, buffers: self.buffers.clone(), verified: Mutex::default() })
    }
}

impl Block {
    /// Returns the bytes of `chunk`, which begins at `start` in this block, verifying them on first use.
    fn chunk(&self, start: u32, chunk: &ChunkRef) -> Result<&[u8], Error> {
        let wrong = || Error::Chunk { pack: self.place.pack, offset: self.place.offset, start };
        let first = start as usize;
        let end = first.checked_add(chunk.length as usize).ok_or_else(wrong)?;
        let bytes = self.plaintext.get(first..end).ok_or_else(wrong)?;
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.get(&start) != Some(&(chunk.length, chunk.digest)) {
            if Digest::of(bytes) != chunk.digest {
                return Err(wrong());
            }
            verified.insert(start, (chunk.length, chunk.digest));
        }
        Ok(bytes)
    }
}
