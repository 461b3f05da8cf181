//! Looking ahead in a file that is read as a whole, so that its next blocks are prefetched.

use std::collections::VecDeque;

use super::blocks::WholeFile;
use super::buffers::round_up;
use super::error::Error;
use super::file::{ExtentLeaf, FileExtent, FileReader};
use crate::archive::FileContent;
use crate::format::{BLOCK_SIZE, BlockLocation, ChunkRef};

/// Maximum number of extents to look ahead for blocks to prefetch.
pub(super) const LOOKED_AHEAD: usize = 128;

/// Chunks in one block that are near each other in a file, up to an offset.
pub(super) struct ChunksOfBlock {
    pub(super) block: BlockLocation,
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) end: u64,
}

impl ChunksOfBlock {
    /// Adds a chunk, which comes after those in `blocks`.
    pub(super) fn add(blocks: &mut Vec<Self>, block: BlockLocation, chunk: ChunkRef, end: u64) {
        match blocks.iter_mut().find(|same| same.block == block) {
            Some(same) => {
                same.chunks.push(chunk);
                same.end = end;
            }
            None => blocks.push(ChunksOfBlock { block, chunks: vec![chunk], end }),
        }
    }

    /// The stored bytes of these blocks.
    pub(super) fn stored(blocks: &[Self]) -> usize {
        blocks.iter().map(|one| one.block.length as usize).sum()
    }
}

/// The extents of a file in order, some of them ahead of the one that is read. Requests their blocks, each once and with all
/// chunks in it, as far as the cache has room. Neighbours are requested together.
pub(super) struct LookAhead<'f> {
    file: &'f FileReader,
    reading: WholeFile<'f>,
    /// Maximum number of blocks to request.
    most: usize,
    /// How far the extents are known.
    at: u64,
    leaf: ExtentLeaf,
    waiting: VecDeque<WaitingExtent>,
    /// The number of blocks whose first extent is waiting.
    blocks: usize,
    /// The memory for the blocks of the waiting extents.
    bytes: usize,
    last: Option<LastBlock>,
    /// Blocks to request with the ones after them.
    held: Vec<ChunksOfBlock>,
    /// The memory for them.
    held_bytes: usize,
}

/// An extent that is not read yet.
struct WaitingExtent {
    covers: u64,
    extent: FileExtent,
    /// Whether it is the first of its block.
    is_first: bool,
    /// The memory for its block that no earlier extent counts.
    bytes: usize,
}

/// The block of the last chunk.
#[derive(Clone, Copy)]
struct LastBlock {
    block: BlockLocation,
    /// The memory for it, as far as its chunks show it.
    bytes: usize,
    is_requested: bool,
}

impl<'f> LookAhead<'f> {
    pub(super) fn new(file: &'f FileReader) -> Self {
        let (reading, most) = (file.begin_whole(), file.most_ahead());
        LookAhead {
            file,
            reading,
            most,
            at: 0,
            leaf: None,
            waiting: VecDeque::new(),
            blocks: 0,
            bytes: 0,
            last: None,
            held: Vec::new(),
            held_bytes: 0,
        }
    }

    /// The size of the next extent, and the extent.
    pub(super) fn next(&mut self) -> Result<Option<(u64, FileExtent)>, Error> {
        self.look()?;
        let Some(WaitingExtent { covers, extent, is_first, bytes }) = self.waiting.pop_front() else { return Ok(None) };
        self.blocks -= usize::from(is_first);
        self.bytes -= bytes;
        Ok(Some((covers, extent)))
    }

    fn look(&mut self) -> Result<(), Error> {
        while self.at < self.file.size() && self.waiting.len() < LOOKED_AHEAD {
            let (begins, covers, extent) = self.file.extent_at(self.at, &mut self.leaf)?;
            let end = begins + covers;
            let (mut is_first, mut bytes) = (false, 0);
            if let FileExtent::Chunk(block, chunk) = &extent {
                let same = self.last.filter(|last| last.block == *block);
                let known = same.map_or(0, |same| same.bytes);
                let room = round_up(chunk.start.saturating_add(chunk.length) as usize).min(BLOCK_SIZE).max(known);
                (is_first, bytes) = (same.is_none(), room - known);
                if is_first && !self.has_room(bytes) {
                    break;
                }
                // A block that is needed at once, or was read for another part of the file, is not requested.
                let is_missing = || self.most > 0 && !self.waiting.is_empty() && !self.file.has_block(block);
                let is_requested = same.map_or_else(is_missing, |same| same.is_requested);
                self.last = Some(LastBlock { block: *block, bytes: room, is_requested });
                if is_requested {
                    if is_first && ChunksOfBlock::stored(&self.held) + block.length as usize > self.joined() {
                        self.request();
                    }
                    ChunksOfBlock::add(&mut self.held, *block, *chunk, end);
                    self.held_bytes += bytes;
                }
            }
            self.blocks += usize::from(is_first);
            self.bytes += bytes;
            self.waiting.push_back(WaitingExtent { covers, extent, is_first, bytes });
            self.at = end;
        }
        if self.at >= self.file.size() || self.is_urgent() {
            self.request();
        }
        Ok(())
    }

    fn request(&mut self) {
        if !self.held.is_empty() {
            self.file.request(std::mem::take(&mut self.held));
            self.held_bytes = 0;
        }
    }

    /// How many bytes to request together: at most a third of the room, so that some are on their way while others are read. 0
    /// if that is less than a block.
    fn joined(&self) -> usize {
        let joined = self.file.joined().min(self.reading.room() / 3);
        if joined < BLOCK_SIZE { 0 } else { joined }
    }

    /// Whether few bytes are on their way or waiting to be read, except for those that are held.
    fn is_urgent(&self) -> bool {
        let joined = self.joined();
        joined == 0 || self.bytes.saturating_sub(self.held_bytes) <= joined
    }

    /// Whether one more block of this size may be requested.
    fn has_room(&self, bytes: usize) -> bool {
        self.waiting.is_empty() || (self.blocks <= self.most && self.bytes + bytes <= self.reading.room())
    }
}
