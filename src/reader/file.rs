//! Content of files: any bytes, from anywhere, verified.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::blocks::NodeValue;
use super::prefetch::{PrefetchRequest, Until};
use super::tree::EntryHandle;
use super::{Error, Reader};
use crate::format::entry::{Content, NodeRef};
use crate::format::{BlockLocation, ChunkRef, Digest, Extent, Items, Node};

/// Files from this size on are worth a thread, and not worth to be in memory twice.
const LARGE: u64 = 4 << 20;
/// Stretches that are decoded ahead at most.
const WINDOW: usize = 4;
/// Reads that are no farther apart than this are one after the other: those who read ahead ask for several at once, and
/// they arrive in any order.
const NEAR: u64 = 2 << 20;
/// Bytes that must be read one after the other before anything is decoded ahead.
const SETTLED: u64 = 256 << 10;

/// Holes that are no longer can count as data when a hole is looked for. Programs that copy files ask for each hole, and
/// for a file of many small ones that takes several times as long as to read it.
const SMALL_HOLE: u64 = 32 << 10;
/// Most stretches that are looked at in search of a hole.
const SEARCHED: usize = 4096;

/// A file whose content can be read. Cheap to make; holds no content.
pub struct FileReader {
    file: EntryHandle,
    /// Where each item of the top list begins: extents, or nodes of extents.
    starts: Vec<u64>,
    size: u64,
    sequence: Mutex<Sequence>,
    /// What lies before this is read, or being so.
    read_to: Arc<AtomicU64>,
}

/// How a file is being read.
#[derive(Debug, Default)]
struct Sequence {
    /// Where the farthest read of those that are one after the other ended.
    end: u64,
    /// Bytes that were read so.
    run: u64,
    /// What lies before this was decoded ahead, or is being so.
    ahead: u64,
    /// Chunks that were read to their ends, and where those are. What comes late may still want them.
    passed: VecDeque<(u64, BlockLocation, ChunkRef)>,
}

impl Sequence {
    /// Takes note of a read. Returns how far it makes sense to decode ahead; none if reads are not one after the other,
    /// or not yet.
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
}

/// What to look for in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Bytes that are stored.
    Data,
    /// Zeros that are not.
    Hole,
}

/// A stretch of a file at hand.
enum FileExtent {
    Chunk(BlockLocation, ChunkRef),
    Hole,
}

/// The node of extents that was used last, and where in the file it begins. The next stretch is mostly in it, too,
/// and a node that is too large for the cache must not be decoded again for each.
type ExtentLeaf = Option<(Arc<NodeValue>, u64)>;

impl FileReader {
    /// A reader of `file`; an entry that is no file has no content.
    pub fn new(file: EntryHandle) -> Self {
        let entry = file.entry();
        let starts = match &entry.content {
            Content::Extents { extents, .. } => starts_of(extents.iter().map(Extent::length)).0,
            Content::Nodes { nodes, .. } => starts_of(nodes.iter().map(|node| node.covers)).0,
            _ => vec![0],
        };
        let size = match entry.kind {
            crate::format::Kind::File => entry.size,
            _ => 0,
        };
        FileReader { file, starts, size, sequence: Mutex::default(), read_to: Arc::default() }
    }

    /// The file.
    pub fn file(&self) -> &EntryHandle {
        &self.file
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the file's digest ([`ContentHasher`](crate::format::ContentHasher)); `None` for an empty file.
    pub fn digest(&self) -> Option<Digest> {
        match &self.file.entry().content {
            Content::Chunk(chunk) => Some(chunk.digest),
            Content::Extents { digest, .. } | Content::Nodes { digest, .. } => Some(*digest),
            _ => None,
        }
    }

    /// Hands bytes from `offset` on, as many as there are up to `length`, to `use_bytes`. If the file is being read from one
    /// end to the other, what comes next is decoded meanwhile; the more was read, the more of it.
    pub fn read<T>(
        &self,
        reader: &Reader,
        offset: u64,
        length: usize,
        use_bytes: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        let length = length.min(usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(use_bytes(&[]));
        }
        let mut leaf = None;
        // What can't be found out ahead is an error for who comes to it.
        let _ = self.look_ahead(reader, offset, length as u64, &mut leaf);
        let (begins, covers, stretch) = self.stretch(reader, offset, &mut leaf)?;
        let within = offset - begins;
        if let FileExtent::Chunk(location, chunk) = stretch
            && length as u64 <= covers - within
        {
            // Without a copy.
            let within = within as usize;
            let use_slice = |bytes: &[u8]| use_bytes(bytes.get(within..within + length).unwrap_or_default());
            let result = reader.core.with_chunk(&location, &chunk, use_slice)?;
            self.pass(reader, offset + length as u64, begins..begins + covers, (location, chunk));
            return Ok(result);
        }
        let mut out = reader.core.buffer(length);
        let mut at = offset;
        while out.len() < length {
            let left = length - out.len();
            let (begins, covers, stretch) = self.stretch(reader, at, &mut leaf)?;
            let within = at - begins;
            let count = usize::try_from(covers - within).unwrap_or(usize::MAX).min(left);
            match stretch {
                FileExtent::Hole => out.resize(out.len() + count, 0),
                FileExtent::Chunk(location, chunk) => {
                    let within = within as usize;
                    reader.core.with_chunk(&location, &chunk, |bytes| {
                        out.extend_from_slice(bytes.get(within..within + count).unwrap_or_default());
                    })?;
                    self.pass(reader, at + count as u64, begins..begins + covers, (location, chunk));
                }
            }
            at += count as u64;
        }
        let result = use_bytes(&out);
        reader.core.give_back(out);
        Ok(result)
    }

    /// A chunk that ends at `end`, and is wanted until the file is read to there.
    fn wanted(&self, block: BlockLocation, chunk: ChunkRef, end: u64) -> PrefetchRequest {
        PrefetchRequest { block, chunk: Some(chunk), until: Until::Passed(self.read_to.clone(), end) }
    }

    /// Says that the chunk that covers `within` was read up to `at`, and lets go of those that were read to their ends and
    /// lie far behind.
    fn pass(&self, reader: &Reader, at: u64, within: Range<u64>, (location, chunk): (BlockLocation, ChunkRef)) {
        if at < within.end {
            return;
        }
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        sequence.passed.push_back((within.end, location, chunk));
        let end = sequence.end.max(at);
        while let Some((passed, location, chunk)) = sequence.passed.front().copied()
            && (passed + NEAR <= end || end == self.size)
        {
            sequence.passed.pop_front();
            reader.core.passed(&location, &chunk, self.size >= LARGE);
        }
    }

    /// Has decoded ahead what comes behind a read, as far as there is room for it.
    fn look_ahead(&self, reader: &Reader, offset: u64, length: u64, leaf: &mut ExtentLeaf) -> Result<(), Error> {
        if self.starts.len() <= 1 {
            if let (0, Content::Chunk(chunk)) = (offset, &self.file.entry().content)
                && let Some(next) = self.file.passes(chunk)
            {
                reader.soon(PrefetchRequest { block: next, chunk: None, until: Until::Open });
            }
            return Ok(());
        }
        let window = reader.core.room_for_blocks().min(WINDOW);
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let until = sequence.read(offset, length);
        self.read_to.store(sequence.end, Ordering::Relaxed);
        let Some(until) = until else { return Ok(()) };
        let mut waiting = 0;
        let mut at = sequence.end;
        // Those that were begun with before count, too.
        while at < until.min(self.size) && waiting < window {
            let (begins, covers, stretch) = self.stretch(reader, at, leaf)?;
            at = begins + covers;
            if let FileExtent::Chunk(location, chunk) = stretch {
                waiting += 1;
                if begins >= sequence.ahead {
                    sequence.ahead = at;
                    reader.soon(self.wanted(location, chunk, at));
                }
            }
        }
        Ok(())
    }

    /// Calls `visit` with every stretch of the file in order: bytes of a chunk, or the length of a hole. Chunks that
    /// come next are decoded meanwhile, if the cache has room for them.
    pub fn each<E: From<Error>>(
        &self,
        reader: &Reader,
        mut visit: impl FnMut(Result<&[u8], u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.read_to.store(0, Ordering::Relaxed);
        let ahead = if self.size < LARGE { 0 } else { reader.core.room_for_blocks().min(WINDOW) };
        let (mut at, mut leaf) = (0, None);
        let mut waiting = VecDeque::with_capacity(ahead + 1);
        loop {
            while waiting.len() <= ahead && at < self.size {
                let (begins, covers, stretch) = self.stretch(reader, at, &mut leaf)?;
                at = begins + covers;
                if let (FileExtent::Chunk(location, chunk), false) = (&stretch, waiting.is_empty()) {
                    reader.soon(self.wanted(*location, *chunk, at));
                }
                waiting.push_back((covers, stretch));
            }
            if let Some((covers, _)) = waiting.front() {
                self.read_to.fetch_add(*covers, Ordering::Relaxed);
            }
            match waiting.pop_front() {
                Some((covers, FileExtent::Hole)) => visit(Err(covers))?,
                Some((_, FileExtent::Chunk(location, chunk))) => {
                    reader.core.with_chunk(&location, &chunk, |bytes| visit(Ok(bytes)))??;
                    reader.core.passed(&location, &chunk, self.size >= LARGE);
                }
                None => return Ok(()),
            }
        }
    }

    /// Calls `visit` with every chunk of the file, where in the file it begins and where its block lies, without
    /// reading any.
    pub fn each_chunk(
        &self,
        reader: &Reader,
        mut visit: impl FnMut(u64, &BlockLocation, &ChunkRef) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut at, mut leaf) = (0, None);
        while at < self.size {
            let (begins, covers, stretch) = self.stretch(reader, at, &mut leaf)?;
            if let FileExtent::Chunk(location, chunk) = stretch {
                visit(begins, &location, &chunk)?;
            }
            at = begins + covers;
        }
        Ok(())
    }

    /// Shows `parts` the file's chunks and where their blocks lie, like [`FileReader::each_chunk`], but goes only into those
    /// nodes of extents that it wants to see.
    pub fn each_part(&self, reader: &Reader, parts: &mut dyn ExtentVisitor) -> Result<(), Error> {
        let Content::Nodes { depth, nodes, .. } = &self.file.entry().content else {
            return self.each_chunk(reader, |_, at, chunk| parts.chunk(at, chunk));
        };
        if nodes.iter().fold(0u64, |sum, node| sum.saturating_add(node.covers)) < self.size {
            return Err(beyond());
        }
        show(reader, self.file.node(), nodes, *depth, parts)
    }

    /// The next offset at or after `offset` that lies in data, or in a hole; the end of the file counts as a hole.
    /// `None`: there is none.
    ///
    /// From within data, small holes count as data as long as they are no more bytes than the data between them. Data
    /// never counts as a hole.
    pub fn seek(&self, reader: &Reader, offset: u64, to: Seek) -> Result<Option<u64>, Error> {
        let (mut at, mut leaf) = (offset, None);
        let (mut data, mut holes, mut searched) = (0, 0, 0);
        while at < self.size {
            let (begins, covers, stretch) = self.stretch(reader, at, &mut leaf)?;
            searched += 1;
            match (stretch, to) {
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

    /// The stretch in which `offset`, which is below the size, lies: where it begins, how long it is, what it
    /// is.
    fn stretch(&self, reader: &Reader, offset: u64, leaf: &mut ExtentLeaf) -> Result<(u64, u64, FileExtent), Error> {
        let node = self.file.node();
        let (at, begins) = find(&self.starts, offset);
        match &self.file.entry().content {
            Content::Chunk(chunk) => Ok((0, self.size, FileExtent::Chunk(place(node, chunk)?, *chunk))),
            Content::Extents { extents, .. } => extent(node, extents, at, begins),
            Content::Nodes { depth, nodes, .. } => {
                let there = leaf.take().filter(|(value, begins)| {
                    offset >= *begins && value.covers.is_some_and(|covers| offset - begins < covers)
                });
                let (value, begins) = match there {
                    Some(there) => there,
                    None => descend(reader, node, nodes.get(at).ok_or_else(beyond)?, *depth, begins, offset)?,
                };
                let (at, within) = find(&value.starts, offset - begins);
                let Items::Extents(extents) = &value.node.items else { return Err(beyond()) };
                let stretch = extent(&value.node, extents, at, begins + within);
                *leaf = Some((value, begins));
                stretch
            }
            _ => Err(beyond()),
        }
    }
}

/// Goes down from a node to the one of extents in which `offset` lies, and tells where that begins.
fn descend(
    reader: &Reader,
    home: &Node,
    part: &NodeRef,
    depth: u8,
    begins: u64,
    offset: u64,
) -> Result<(Arc<NodeValue>, u64), Error> {
    let value = part_of(reader, home, part)?;
    match (&value.node.items, depth) {
        (Items::Extents(_), 0) => Ok((value, begins)),
        (Items::ExtentIndex(nodes), 1..) => {
            let (at, within) = find(&value.starts, offset - begins);
            let part = nodes.get(at).ok_or_else(beyond)?;
            descend(reader, &value.node, part, depth - 1, begins + within, offset)
        }
        _ => Err(another_kind()),
    }
}

/// What looks at the nodes and chunks of a file.
pub trait ExtentVisitor {
    /// Comes to a node of extents, with the bytes that it should cover and the levels below it. Returns whether to go into
    /// it.
    fn enter(&mut self, at: &BlockLocation, part: &NodeRef, depth: u8) -> bool;
    /// Comes out of a node that was entered.
    fn leave(&mut self);
    /// Comes to a chunk.
    fn chunk(&mut self, at: &BlockLocation, chunk: &ChunkRef) -> Result<(), Error>;
}

/// Shows nodes of extents and what is below them. The format bounds the depth.
fn show(
    reader: &Reader,
    home: &Node,
    nodes: &[NodeRef],
    depth: u8,
    parts: &mut dyn ExtentVisitor,
) -> Result<(), Error> {
    for part in nodes {
        if !parts.enter(&place(home, &part.node)?, part, depth) {
            continue;
        }
        let value = part_of(reader, home, part)?;
        match (&value.node.items, depth) {
            (Items::Extents(extents), 0) => {
                for extent in extents {
                    if let Extent::Chunk(chunk) = extent {
                        parts.chunk(&place(&value.node, chunk)?, chunk)?;
                    }
                }
            }
            (Items::ExtentIndex(nodes), 1..) => show(reader, &value.node, nodes, depth - 1, parts)?,
            _ => return Err(another_kind()),
        }
        parts.leave();
    }
    Ok(())
}

/// A node that must cover as many bytes as the one above it says.
fn part_of(reader: &Reader, home: &Node, part: &NodeRef) -> Result<Arc<NodeValue>, Error> {
    let value = reader.core.node(&place(home, &part.node)?, &part.node)?;
    match value.covers == Some(part.covers) {
        true => Ok(value),
        false => Err(Error::Tree(format!("extents that do not cover {} bytes", part.covers))),
    }
}

fn another_kind() -> Error {
    Error::Tree("a node of another kind where extents should be".into())
}

fn extent(node: &Node, extents: &[Extent], at: usize, begins: u64) -> Result<(u64, u64, FileExtent), Error> {
    match extents.get(at) {
        Some(Extent::Hole(length)) => Ok((begins, *length, FileExtent::Hole)),
        Some(Extent::Chunk(chunk)) => Ok((begins, chunk.length.into(), FileExtent::Chunk(place(node, chunk)?, *chunk))),
        None => Err(beyond()),
    }
}

fn place(node: &Node, chunk: &ChunkRef) -> Result<BlockLocation, Error> {
    node.location(chunk).ok_or_else(|| Error::Tree("a chunk in no block of its node".into()))
}

fn beyond() -> Error {
    Error::Tree("a file that is shorter than its size".into())
}

/// Where each of several lengths begins, one after the other, and their sum, if that is a number at all.
pub(super) fn starts_of(lengths: impl Iterator<Item = u64>) -> (Vec<u64>, Option<u64>) {
    let mut end = Some(0u64);
    let mut start = 0;
    let starts = lengths.map(|length| {
        let begins = start;
        end = end.and_then(|end| end.checked_add(length));
        start = end.unwrap_or(u64::MAX);
        begins
    });
    (starts.collect(), end)
}

/// The last start that is not above `offset`, and which it is.
pub(super) fn find(starts: &[u64], offset: u64) -> (usize, u64) {
    let at = starts.partition_point(|start| *start <= offset).saturating_sub(1);
    (at, starts.get(at).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_find_their_stretch() {
        let (starts, end) = starts_of([5, 1, 10].into_iter());
        assert_eq!((starts.as_slice(), end), ([0, 5, 6].as_slice(), Some(16)));
        assert_eq!(starts_of([u64::MAX, 1].into_iter()).1, None);
        assert_eq!([0, 4, 5, 6, 15].map(|offset| find(&starts, offset)), [(0, 0), (0, 0), (1, 5), (2, 6), (2, 6)]);
        assert_eq!(find(&[], 7), (0, 0));
    }
}
