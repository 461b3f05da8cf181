//! Content of files: any bytes, from anywhere, verified.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

use super::blocks::NodeValue;
use super::tree::Listed;
use super::{Error, Reader};
use crate::format::entry::{Content, NodeRef};
use crate::format::{BlockLocation, ChunkRef, Digest, Extent, Items, Node};

/// Files from this size on are worth a thread.
const LARGE: u64 = 4 << 20;
/// Stretches that are decoded ahead at most.
const WINDOW: usize = 4;
/// Threads that decode ahead.
const HELPERS: usize = 2;

/// A file whose content can be read. Cheap to make; holds no content.
pub struct FileReader {
    file: Listed,
    /// Where each item of the top list begins: extents, or nodes of extents.
    starts: Vec<u64>,
    size: u64,
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
enum Stretch {
    Chunk(BlockLocation, ChunkRef),
    Hole,
}

/// The node of extents that was used last, and where in the file it begins. The next stretch is mostly in it, too,
/// and a node that is too large for the cache must not be decoded again for each.
type Leaf = Option<(Arc<NodeValue>, u64)>;

impl FileReader {
    /// A reader of `file`; an entry that is no file has no content.
    pub fn new(file: Listed) -> Self {
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
        FileReader { file, starts, size }
    }

    /// The file.
    pub fn file(&self) -> &Listed {
        &self.file
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest of the file's bytes, those of holes left out; none for an empty file.
    pub fn digest(&self) -> Option<Digest> {
        match &self.file.entry().content {
            Content::Chunk(chunk) => Some(chunk.digest),
            Content::Extents { digest, .. } | Content::Nodes { digest, .. } => Some(*digest),
            _ => None,
        }
    }

    /// Reads bytes from `offset` on, as many as there are up to `length`.
    pub fn read(&self, reader: &Reader, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let length = length.min(usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let mut out = Vec::with_capacity(length);
        let (mut at, mut leaf) = (offset, None);
        while out.len() < length {
            let left = length - out.len();
            let (begins, covers, stretch) = self.stretch(reader, at, &mut leaf)?;
            let within = at - begins;
            let count = usize::try_from(covers - within).unwrap_or(usize::MAX).min(left);
            match stretch {
                Stretch::Hole => out.resize(out.len() + count, 0),
                Stretch::Chunk(location, chunk) => {
                    let within = within as usize;
                    reader.with_chunk(&location, &chunk, |bytes| {
                        out.extend_from_slice(bytes.get(within..within + count).unwrap_or_default());
                    })?;
                }
            }
            at += count as u64;
        }
        Ok(out)
    }

    /// Calls `visit` with every stretch of the file in order: bytes of a chunk, or the length of a hole. Chunks that
    /// come next are decoded meanwhile, if the cache has room for them.
    pub fn each<E: From<Error>>(
        &self,
        reader: &Reader,
        visit: impl FnMut(Result<&[u8], u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let window = if self.size < LARGE { 0 } else { reader.room_for_blocks().min(WINDOW) };
        if window < 2 {
            return self.each_ahead(reader, 1, |_| {}, visit);
        }
        thread::scope(|threads| {
            let (sender, next) = crossbeam_channel::bounded::<(BlockLocation, ChunkRef)>(window);
            for _ in 0..HELPERS {
                let next = next.clone();
                // What fails here fails again, with its reason, for who wants the chunk.
                threads.spawn(move || next.iter().for_each(|(location, chunk)| drop(reader.verify(&location, &chunk))));
            }
            drop(next);
            let prefetch = |stretch: &Stretch| {
                if let Stretch::Chunk(location, chunk) = stretch {
                    let _ = sender.try_send((*location, *chunk));
                }
            };
            let result = self.each_ahead(reader, window, prefetch, visit);
            drop(sender);
            result
        })
    }

    /// Calls `soon` with stretches as soon as they are no more than `window` ahead of the one that is visited.
    fn each_ahead<E: From<Error>>(
        &self,
        reader: &Reader,
        window: usize,
        soon: impl Fn(&Stretch),
        mut visit: impl FnMut(Result<&[u8], u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, mut leaf) = (0, None);
        let mut waiting = VecDeque::with_capacity(window);
        loop {
            while waiting.len() < window && at < self.size {
                let (begins, covers, stretch) = self.stretch(reader, at, &mut leaf)?;
                soon(&stretch);
                waiting.push_back((covers, stretch));
                at = begins + covers;
            }
            match waiting.pop_front() {
                Some((covers, Stretch::Hole)) => visit(Err(covers))?,
                Some((_, Stretch::Chunk(location, chunk))) => {
                    reader.with_chunk(&location, &chunk, |bytes| visit(Ok(bytes)))??;
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
            if let Stretch::Chunk(location, chunk) = stretch {
                visit(begins, &location, &chunk)?;
            }
            at = begins + covers;
        }
        Ok(())
    }

    /// The next offset at or after `offset` that lies in data, or in a hole; the end of the file counts as a hole.
    /// `None`: there is none.
    pub fn seek(&self, reader: &Reader, offset: u64, to: Seek) -> Result<Option<u64>, Error> {
        let (mut at, mut leaf) = (offset, None);
        while at < self.size {
            let (begins, covers, stretch) = self.stretch(reader, at, &mut leaf)?;
            match (stretch, to) {
                (Stretch::Hole, Seek::Hole) | (Stretch::Chunk(..), Seek::Data) => return Ok(Some(at)),
                _ => at = begins + covers,
            }
        }
        Ok((offset < self.size && to == Seek::Hole).then_some(self.size))
    }

    /// The stretch in which `offset`, which is below the size, lies: where it begins, how long it is, what it
    /// is.
    fn stretch(&self, reader: &Reader, offset: u64, leaf: &mut Leaf) -> Result<(u64, u64, Stretch), Error> {
        let node = self.file.node();
        let (at, begins) = find(&self.starts, offset);
        match &self.file.entry().content {
            Content::Chunk(chunk) => Ok((0, self.size, Stretch::Chunk(place(node, chunk)?, *chunk))),
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
    let value = reader.node(&place(home, &part.node)?, &part.node)?;
    if value.covers != Some(part.covers) {
        return Err(Error::Tree(format!("extents that do not cover {} bytes", part.covers)));
    }
    match (&value.node.items, depth) {
        (Items::Extents(_), 0) => Ok((value, begins)),
        (Items::ExtentIndex(nodes), 1..) => {
            let (at, within) = find(&value.starts, offset - begins);
            let part = nodes.get(at).ok_or_else(beyond)?;
            descend(reader, &value.node, part, depth - 1, begins + within, offset)
        }
        _ => Err(Error::Tree("a node of another kind where extents should be".into())),
    }
}

fn extent(node: &Node, extents: &[Extent], at: usize, begins: u64) -> Result<(u64, u64, Stretch), Error> {
    match extents.get(at) {
        Some(Extent::Hole(length)) => Ok((begins, *length, Stretch::Hole)),
        Some(Extent::Chunk(chunk)) => Ok((begins, chunk.length.into(), Stretch::Chunk(place(node, chunk)?, *chunk))),
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
fn find(starts: &[u64], offset: u64) -> (usize, u64) {
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
