//! Content of files: verified reads at any offset.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blocks::{Core, NodeValue, WholeFile};
use super::error::Error;
use super::look_ahead::{ChunksOfBlock, LOOKED_AHEAD, LookAhead};
use super::open::Reader;
use super::prefetch::{LARGE, Prefetch, PrefetchRequest, Until};
use super::starts::{find, starts_of};
use crate::archive::{self, EntryHandle, FileContent, FileData, Seek};
use crate::format::entry::{Content, NodeRef};
use crate::format::{BlockLocation, ChunkRef, Digest, Extent, Items, Kind, Node};

/// Maximum distance of reads that count as sequential: with readahead the kernel sends several at once, in any order.
const NEAR: u64 = 2 << 20;
/// Minimum length of a sequential read, in bytes, before prefetching starts.
const SETTLED: u64 = 256 << 10;

/// Maximum length of a hole that may be reported as data. Copy programs seek for each hole; in a file with many small
/// ones that takes several times as long as reading it.
const SMALL_HOLE: u64 = 32 << 10;
/// Maximum number of extents examined in search of a hole.
const SEARCHED: usize = 4096;

/// Reads the content of a file. Cheap to create; holds no content.
pub struct FileReader {
    core: Arc<Core>,
    threads: Arc<Prefetch>,
    /// The node with the file's entry, to which its block references are relative.
    home: Arc<NodeValue>,
    /// Index of the entry in the node.
    at: usize,
    /// Start of each item of the top list: extents, or nodes of extents.
    starts: Vec<u64>,
    size: u64,
    sequence: Mutex<Sequence>,
    /// Prefetch requests for data before this offset have expired.
    read_to: Arc<AtomicU64>,
}

/// Detects sequential reads of a file.
#[derive(Debug, Default)]
struct Sequence {
    /// Highest end of the sequential reads.
    end: u64,
    /// Number of bytes read sequentially.
    run: u64,
    /// End of the prefetched data.
    ahead: u64,
    /// Chunks read to their ends, with the ends. Reads that arrive out of order may still need them.
    passed: VecDeque<(u64, BlockLocation, ChunkRef)>,
}

impl Sequence {
    /// Records a read. Returns the offset up to which to prefetch; `None` if reads are not sequential or too few.
    fn read(&mut self, offset: u64, length: u64) -> Option<u64> {
        let end = offset + length;
        if self.end.abs_diff(offset) > NEAR {
            *self = Sequence { end, ahead: end, ..Sequence::default() };
        }
        self.run += length;
        self.end = self.end.max(end);
        self.ahead = self.ahead.max(end);
        (self.run >= SETTLED).then(|| self.end + self.run)
    }

    /// Notes that the chunk from `begins` to `end` is requested. Returns false if it was requested already.
    fn advance(&mut self, begins: u64, end: u64) -> bool {
        let is_new = begins >= self.ahead;
        if is_new {
            self.ahead = end;
        }
        is_new
    }
}

/// An extent of a file.
pub(super) enum FileExtent {
    Chunk(BlockLocation, ChunkRef),
    Hole,
}

/// The last extent node used, and its start in the file. The next extent is usually in it, and a node too large for the
/// cache must not be decoded again for each extent.
pub(super) type ExtentLeaf = Option<(Arc<NodeValue>, u64)>;

impl FileReader {
    /// Creates a reader of `file`. Entries of other kinds have no content.
    pub fn new(reader: &Reader, file: &EntryHandle) -> Result<Self, Error> {
        let (home, at) = file.in_list::<NodeValue>().ok_or_else(foreign)?;
        let entry = home.entries().get(at).ok_or_else(foreign)?;
        let starts = match &entry.content {
            Content::Extents { extents, .. } => starts_of(extents.iter().map(Extent::length)).0,
            Content::Nodes { nodes, .. } => starts_of(nodes.iter().map(|node| node.covers)).0,
            _ => Vec::new(),
        };
        let size = match entry.kind {
            Kind::File => entry.size,
            _ => 0,
        };
        Ok(FileReader {
            core: reader.core.clone(),
            threads: reader.prefetch.clone(),
            home,
            at,
            starts,
            size,
            sequence: Mutex::default(),
            read_to: Arc::default(),
        })
    }

    fn entry_content(&self) -> &Content {
        self.home.entries().get(self.at).map_or(&Content::Empty, |entry| &entry.content)
    }

    /// Calls `use_bytes` with up to `length` bytes from `offset` on; fewer at the end of the file. Sequential reads are
    /// prefetched; the window grows with the bytes read.
    fn read_at(&self, offset: u64, length: usize, use_bytes: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let length = length.min(usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        if length == 0 {
            use_bytes(&[]);
            return Ok(());
        }
        let mut leaf = None;
        // Prefetch errors are ignored: the read that needs the data reports them.
        let _ = self.prefetch(offset, length as u64, &mut leaf);
        let (begins, covers, extent) = self.extent_at(offset, &mut leaf)?;
        let within = offset - begins;
        if let FileExtent::Chunk(location, chunk) = extent
            && length as u64 <= covers - within
        {
            // Without a copy.
            let within = within as usize;
            let use_slice = |bytes: &[u8]| use_bytes(bytes.get(within..within + length).unwrap_or_default());
            self.core.with_chunk(&location, &chunk, use_slice)?;
            self.chunk_read(offset + length as u64, begins..begins + covers, (location, chunk));
            return Ok(());
        }
        let mut out = self.core.buffer(length);
        let mut at = offset;
        while out.len() < length {
            let left = length - out.len();
            let (begins, covers, extent) = self.extent_at(at, &mut leaf)?;
            let within = at - begins;
            let count = usize::try_from(covers - within).unwrap_or(usize::MAX).min(left);
            match extent {
                FileExtent::Hole => out.resize(out.len() + count, 0),
                FileExtent::Chunk(location, chunk) => {
                    let within = within as usize;
                    self.core.with_chunk(&location, &chunk, |bytes| {
                        out.extend_from_slice(bytes.get(within..within + count).unwrap_or_default());
                    })?;
                    self.chunk_read(at + count as u64, begins..begins + covers, (location, chunk));
                }
            }
            at += count as u64;
        }
        use_bytes(&out);
        self.core.give_back(out);
        Ok(())
    }

    /// Begins to read all of the file.
    pub(super) fn begin_whole(&self) -> WholeFile<'_> {
        self.core.begin_whole_file()
    }

    /// How many blocks to prefetch at most if all of the file is read.
    pub(super) fn most_ahead(&self) -> usize {
        let reach = self.threads.reach;
        if self.size < reach.whole_files_from { 0 } else { reach.file }
    }

    /// Whether a block is cached or being read.
    pub(super) fn has_block(&self, block: &BlockLocation) -> bool {
        self.core.has_block(block)
    }

    /// How many bytes to request together.
    pub(super) fn joined(&self) -> usize {
        self.threads.reach.joined
    }

    /// Requests blocks. The request for a block expires when the file has been read up to the end of its chunks.
    pub(super) fn request(&self, blocks: Vec<ChunksOfBlock>) {
        let request = |ChunksOfBlock { block, chunks, end }| {
            let until = Until::Passed(self.read_to.clone(), end);
            PrefetchRequest { block, chunks, until }
        };
        self.threads.send(&self.core, blocks.into_iter().map(request).collect());
    }

    /// Records that the chunk that covers `within` was read up to `at`. Demotes the blocks of finished chunks more than
    /// [`NEAR`] before the read position.
    fn chunk_read(&self, at: u64, within: Range<u64>, (location, chunk): (BlockLocation, ChunkRef)) {
        if at < within.end {
            return;
        }
        let mut sequence = self.sequence();
        sequence.passed.push_back((within.end, location, chunk));
        let end = sequence.end.max(at);
        while let Some((passed, location, chunk)) = sequence.passed.front().copied()
            && (passed + NEAR <= end || end == self.size)
        {
            sequence.passed.pop_front();
            self.core.chunk_finished(&location, &chunk, self.size >= LARGE);
        }
    }

    /// The state of sequential reads. It is not kept locked while anything is read: that may wait for the storage.
    fn sequence(&self) -> MutexGuard<'_, Sequence> {
        self.sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prefetches the data after a read, as far as the cache has room.
    fn prefetch(&self, offset: u64, length: u64, leaf: &mut ExtentLeaf) -> Result<(), Error> {
        if self.starts.len() <= 1 {
            if let (0, Content::Chunk(chunk)) = (offset, self.entry_content()) {
                self.core.note_content_read();
                let most = self.threads.reach.next_files.min(self.core.room_for_blocks());
                let request = |block: &_| PrefetchRequest { block: *block, chunks: Vec::new(), until: Until::Open };
                let requests = self.home.next_blocks(chunk, most).iter().map(request).collect();
                self.threads.send(&self.core, requests);
            }
            return Ok(());
        }
        let window = self.core.room_for_blocks().min(self.threads.reach.file);
        let (until, mut at, ahead) = {
            let mut sequence = self.sequence();
            let until = sequence.read(offset, length);
            self.read_to.store(sequence.end, Ordering::Relaxed);
            (until, sequence.end, sequence.ahead)
        };
        let Some(until) = until else { return Ok(()) };
        let (mut blocks, mut last, mut new) = (0, None, Vec::new());
        for _ in 0..LOOKED_AHEAD {
            if at >= until.min(self.size) {
                break;
            }
            let (begins, covers, extent) = self.extent_at(at, leaf)?;
            let end = begins + covers;
            if let FileExtent::Chunk(block, chunk) = extent {
                // Blocks that were already requested count, too.
                if last != Some(block) {
                    if blocks == window {
                        break;
                    }
                    blocks += 1;
                    last = Some(block);
                }
                if begins >= ahead && self.sequence().advance(begins, end) {
                    ChunksOfBlock::add(&mut new, block, chunk, end);
                }
            }
            at = end;
        }
        self.request(new);
        Ok(())
    }

    /// Calls `visit` with every extent of the file in order, until it returns `Break`. The next blocks are prefetched if the
    /// file is large enough and the cache has room.
    fn visit_data(&self, visit: &mut dyn FnMut(FileData<'_>) -> ControlFlow<()>) -> Result<(), Error> {
        self.read_to.store(0, Ordering::Relaxed);
        let mut ahead = LookAhead::new(self);
        while let Some((covers, extent)) = ahead.next()? {
            self.read_to.fetch_add(covers, Ordering::Relaxed);
            let flow = match extent {
                FileExtent::Hole => visit(FileData::Hole(covers)),
                FileExtent::Chunk(location, chunk) => {
                    let flow = self.core.with_chunk(&location, &chunk, |bytes| visit(FileData::Bytes(bytes)))?;
                    self.core.chunk_finished(&location, &chunk, self.size >= LARGE);
                    flow
                }
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Calls `visit` with every chunk of the file, its start in the file and the location of its block. Reads no chunk.
    pub fn each_chunk(
        &self,
        mut visit: impl FnMut(u64, &BlockLocation, &ChunkRef) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut at, mut leaf) = (0, None);
        while at < self.size {
            let (begins, covers, extent) = self.extent_at(at, &mut leaf)?;
            if let FileExtent::Chunk(location, chunk) = extent {
                visit(begins, &location, &chunk)?;
            }
            at = begins + covers;
        }
        Ok(())
    }

    /// Like [`FileReader::each_chunk`], but descends only into the extent nodes that the visitor asks for.
    pub fn visit_extents(&self, visitor: &mut dyn ExtentVisitor) -> Result<(), Error> {
        let Content::Nodes { depth, nodes, .. } = self.entry_content() else {
            return self.each_chunk(|_, at, chunk| visitor.chunk(at, chunk));
        };
        if nodes.iter().fold(0u64, |sum, node| sum.saturating_add(node.covers)) < self.size {
            return Err(too_short());
        }
        visit_nodes(&self.core, &self.home.node, nodes, *depth, visitor)
    }

    /// Returns the next offset at or after `offset` in data or in a hole; `None` if there is none. The end of the file
    /// counts as a hole.
    ///
    /// When searching for a hole from within data, small holes count as data as long as they have, in total, no more bytes
    /// than the data between them. Data never counts as a hole.
    fn seek_extent(&self, offset: u64, to: Seek) -> Result<Option<u64>, Error> {
        let (mut at, mut leaf) = (offset, None);
        let (mut data, mut holes, mut searched) = (0, 0, 0);
        while at < self.size {
            let (begins, covers, extent) = self.extent_at(at, &mut leaf)?;
            searched += 1;
            match (extent, to) {
                (FileExtent::Chunk(..), Seek::Data) => return Ok(Some(at)),
                (FileExtent::Hole, Seek::Data) => {}
                (FileExtent::Chunk(..), Seek::Hole) => data += begins + covers - at,
                (FileExtent::Hole, Seek::Hole) => {
                    holes += covers;
                    let ends_file = begins + covers >= self.size;
                    if covers > SMALL_HOLE || holes > data || ends_file || searched > SEARCHED {
                        return Ok(Some(at));
                    }
                }
            }
            at = begins + covers;
        }
        Ok((offset < self.size && to == Seek::Hole).then_some(self.size))
    }

    /// Returns start, length and content of the extent with `offset`, which must be below the size.
    pub(super) fn extent_at(&self, offset: u64, leaf: &mut ExtentLeaf) -> Result<(u64, u64, FileExtent), Error> {
        let node = &self.home.node;
        let (at, begins) = find(&self.starts, offset);
        match self.entry_content() {
            Content::Chunk(chunk) => Ok((0, self.size, FileExtent::Chunk(location_of(node, chunk)?, *chunk))),
            Content::Extents { extents, .. } => nth_extent(node, extents, at, begins),
            Content::Nodes { depth, nodes, .. } => {
                let there = leaf.take().filter(|(value, begins)| {
                    offset >= *begins && value.covers.is_some_and(|covers| offset - begins < covers)
                });
                let (value, begins) = match there {
                    Some(there) => there,
                    None => descend(&self.core, node, nodes.get(at).ok_or_else(too_short)?, *depth, begins, offset)?,
                };
                let (at, within) = find(&value.starts, offset - begins);
                let Items::Extents(extents) = &value.node.items else { return Err(too_short()) };
                let extent = nth_extent(&value.node, extents, at, begins + within);
                *leaf = Some((value, begins));
                extent
            }
            _ => Err(too_short()),
        }
    }
}

impl FileContent for FileReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_with(&self, offset: u64, length: usize, use_bytes: &mut dyn FnMut(&[u8])) -> Result<(), archive::Error> {
        Ok(self.read_at(offset, length, use_bytes)?)
    }

    fn visit(&self, visit: &mut dyn FnMut(FileData<'_>) -> ControlFlow<()>) -> Result<(), archive::Error> {
        Ok(self.visit_data(visit)?)
    }

    fn stored_ranges(&self, visit: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), archive::Error> {
        Ok(self.each_chunk(|begins, location, chunk| {
            if visit(begins, chunk.length.into()) { self.core.verify(location, chunk) } else { Ok(()) }
        })?)
    }

    fn seek(&self, offset: u64, to: Seek) -> Result<Option<u64>, archive::Error> {
        Ok(self.seek_extent(offset, to)?)
    }

    fn unverified_digest(&self) -> Option<Digest> {
        match self.entry_content() {
            // The digest of a single chunk is also that of the file.
            Content::Extents { digest, .. } | Content::Nodes { digest, .. } => Some(*digest),
            _ => None,
        }
    }
}

/// Descends from a node to the extent node with `offset`. Returns it and its start in the file.
fn descend(
    core: &Core,
    parent: &Node,
    part: &NodeRef,
    depth: u8,
    begins: u64,
    offset: u64,
) -> Result<(Arc<NodeValue>, u64), Error> {
    let value = child_node(core, parent, part)?;
    match (&value.node.items, depth) {
        (Items::Extents(_), 0) => Ok((value, begins)),
        (Items::ExtentIndex(nodes), 1..) => {
            let (at, within) = find(&value.starts, offset - begins);
            let part = nodes.get(at).ok_or_else(too_short)?;
            descend(core, &value.node, part, depth - 1, begins + within, offset)
        }
        _ => Err(wrong_kind()),
    }
}

/// Visits the extent nodes and chunks of a file.
pub trait ExtentVisitor {
    /// Called for each extent node with the location of its block, its reference, and the number of levels below it.
    /// Returns whether to descend into it.
    fn enter(&mut self, at: &BlockLocation, part: &NodeRef, depth: u8) -> bool;
    /// Called instead for the children of a node that was entered, if it cannot be read. After an error the walk ends.
    fn unreadable(&mut self, error: Error) -> Result<(), Error>;
    /// Called after the last child of a node that was entered.
    fn leave(&mut self);
    /// Called for each chunk with the location of its block.
    fn chunk(&mut self, at: &BlockLocation, chunk: &ChunkRef) -> Result<(), Error>;
}

/// Visits extent nodes recursively. The format bounds the depth.
fn visit_nodes(
    core: &Core,
    parent: &Node,
    nodes: &[NodeRef],
    depth: u8,
    parts: &mut dyn ExtentVisitor,
) -> Result<(), Error> {
    for part in nodes {
        if !parts.enter(&location_of(parent, &part.node)?, part, depth) {
            continue;
        }
        match child_node(core, parent, part) {
            Ok(value) => visit_children(core, &value.node, depth, parts)?,
            Err(error) => parts.unreadable(error)?,
        }
        parts.leave();
    }
    Ok(())
}

fn visit_children(core: &Core, node: &Node, depth: u8, parts: &mut dyn ExtentVisitor) -> Result<(), Error> {
    match (&node.items, depth) {
        (Items::Extents(extents), 0) => {
            for extent in extents {
                if let Extent::Chunk(chunk) = extent {
                    parts.chunk(&location_of(node, chunk)?, chunk)?;
                }
            }
            Ok(())
        }
        (Items::ExtentIndex(nodes), 1..) => visit_nodes(core, node, nodes, depth - 1, parts),
        _ => Err(wrong_kind()),
    }
}

/// Reads a child node and checks that it covers as many bytes as its parent says.
fn child_node(core: &Core, parent: &Node, part: &NodeRef) -> Result<Arc<NodeValue>, Error> {
    let value = core.node(&location_of(parent, &part.node)?, &part.node)?;
    if value.covers == Some(part.covers) {
        Ok(value)
    } else {
        Err(Error::Tree(format!("extents that do not cover {} bytes", part.covers)))
    }
}

fn wrong_kind() -> Error {
    Error::Tree("a node of another kind in place of extents".into())
}

fn nth_extent(node: &Node, extents: &[Extent], at: usize, begins: u64) -> Result<(u64, u64, FileExtent), Error> {
    match extents.get(at) {
        Some(Extent::Hole(length)) => Ok((begins, *length, FileExtent::Hole)),
        Some(Extent::Chunk(chunk)) => {
            Ok((begins, chunk.length.into(), FileExtent::Chunk(location_of(node, chunk)?, *chunk)))
        }
        None => Err(too_short()),
    }
}

fn location_of(node: &Node, chunk: &ChunkRef) -> Result<BlockLocation, Error> {
    node.location(chunk).ok_or_else(|| Error::Tree("the reference of a chunk names no block of its node".into()))
}

fn foreign() -> Error {
    Error::Tree("the entry belongs to another archive".into())
}

fn too_short() -> Error {
    Error::Tree("the extents of a file are shorter than its size".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_find_their_extent() {
        let (starts, end) = starts_of([5, 1, 10].into_iter());
        assert_eq!((starts.as_slice(), end), ([0, 5, 6].as_slice(), Some(16)));
        assert_eq!(starts_of([u64::MAX, 1].into_iter()).1, None);
        assert_eq!([0, 4, 5, 6, 15].map(|offset| find(&starts, offset)), [(0, 0), (0, 0), (1, 5), (2, 6), (2, 6)]);
        assert_eq!(find(&[], 7), (0, 0));
    }
}
