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

/// Chunks in one block that follow each other in a file, up to an offset.
pub(super) struct ChunksOfBlock {
    pub(super) block: BlockLocation,
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) end: u64,
}

impl ChunksOfBlock {
    /// Adds a chunk to those in `open`. If it is in another block, it begins new ones, and the others are returned.
    pub(super) fn add(open: &mut Option<Self>, block: BlockLocation, chunk: ChunkRef, end: u64) -> Option<Self> {
        match open {
            Some(same) if same.block == block => {
                same.chunks.push(chunk);
                same.end = end;
                None
            }
            other => other.replace(ChunksOfBlock { block, chunks: vec![chunk], end }),
        }
    }
}

/// The extents of a file in order, some of them ahead of the one that is read. Requests their blocks, each once and with all
/// chunks in it, as far as the cache has room.
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
        let (waiting, last) = (VecDeque::new(), None);
        LookAhead { file, reading, most, at: 0, leaf: None, waiting, blocks: 0, bytes: 0, last }
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
        let mut new = None;
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
                // A block that is needed at once is not requested.
                let is_requested = same.map_or(self.most > 0 && !self.waiting.is_empty(), |same| same.is_requested);
                self.last = Some(LastBlock { block: *block, bytes: room, is_requested });
                if is_requested && let Some(full) = ChunksOfBlock::add(&mut new, *block, *chunk, end) {
                    self.file.request(full);
                }
            }
            self.blocks += usize::from(is_first);
            self.bytes += bytes;
            self.waiting.push_back(WaitingExtent { covers, extent, is_first, bytes });
            self.at = end;
        }
        if let Some(last) = new {
            self.file.request(last);
        }
        Ok(())
    }

    /// Whether one more block of this size may be requested.
    fn has_room(&self, bytes: usize) -> bool {
        self.waiting.is_empty() || (self.blocks <= self.most && self.bytes + bytes <= self.reading.room())
    }
}
