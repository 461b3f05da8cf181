//! Content of files: any bytes, from anywhere, verified.

use std::sync::Arc;

use super::tree::Listed;
use super::{Error, Reader};
use crate::format::entry::{Content, NodeRef};
use crate::format::{BlockLocation, ChunkRef, Digest, Extent, Items, Node};

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

impl FileReader {
    /// A reader of `file`; an entry that is no file has no content.
    pub fn new(file: Listed) -> Self {
        let entry = file.entry();
        let starts = match &entry.content {
            Content::Extents { extents, .. } => starts_of(extents.iter().map(Extent::length)),
            Content::Nodes { nodes, .. } => starts_of(nodes.iter().map(|node| node.covers)),
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
        let mut at = offset;
        while out.len() < length {
            let left = length - out.len();
            let (begins, covers, stretch) = self.stretch(reader, at)?;
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

    /// Calls `visit` with every stretch of the file in order: bytes of a chunk, or the length of a hole.
    pub fn each<E: From<Error>>(
        &self,
        reader: &Reader,
        mut visit: impl FnMut(Result<&[u8], u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = 0;
        while at < self.size {
            let (begins, covers, stretch) = self.stretch(reader, at)?;
            match stretch {
                Stretch::Hole => visit(Err(covers))?,
                Stretch::Chunk(location, chunk) => reader.with_chunk(&location, &chunk, |bytes| visit(Ok(bytes)))??,
            }
            at = begins + covers;
        }
        Ok(())
    }

    /// Calls `visit` with every chunk of the file, where in the file it begins and where its block lies, without
    /// reading any.
    pub fn each_chunk(
        &self,
        reader: &Reader,
        mut visit: impl FnMut(u64, &BlockLocation, &ChunkRef) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = 0;
        while at < self.size {
            let (begins, covers, stretch) = self.stretch(reader, at)?;
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
        let mut at = offset;
        while at < self.size {
            let (begins, covers, stretch) = self.stretch(reader, at)?;
            match (stretch, to) {
                (Stretch::Hole, Seek::Hole) | (Stretch::Chunk(..), Seek::Data) => return Ok(Some(at)),
                _ => at = begins + covers,
            }
        }
        Ok((offset < self.size && to == Seek::Hole).then_some(self.size))
    }

    /// The stretch in which `offset`, which is below the size, lies: where it begins, how long it is, what it
    /// is.
    fn stretch(&self, reader: &Reader, offset: u64) -> Result<(u64, u64, Stretch), Error> {
        let node = self.file.node();
        let (at, begins) = find(&self.starts, offset);
        match &self.file.entry().content {
            Content::Chunk(chunk) => Ok((0, self.size, Stretch::Chunk(place(node, chunk)?, *chunk))),
            Content::Extents { extents, .. } => extent(node, extents, at, begins),
            Content::Nodes { depth, nodes, .. } => {
                let part = nodes.get(at).ok_or_else(beyond)?;
                descend(reader, node, part, *depth, begins, offset)
            }
            _ => Err(beyond()),
        }
    }
}

/// Goes down from a node of extents to the extent in which `offset` lies.
fn descend(
    reader: &Reader,
    home: &Node,
    part: &NodeRef,
    depth: u8,
    begins: u64,
    offset: u64,
) -> Result<(u64, u64, Stretch), Error> {
    let value = reader.node(&place(home, &part.node)?, &part.node)?;
    let node = Arc::clone(&value);
    let node = &node.node;
    match (&node.items, depth) {
        (Items::Extents(extents), 0) => {
            covers(part, extents.iter().map(Extent::length))?;
            let starts = starts_of(extents.iter().map(Extent::length));
            let (at, within) = find(&starts, offset - begins);
            extent(node, extents, at, begins + within)
        }
        (Items::ExtentIndex(nodes), 1..) => {
            covers(part, nodes.iter().map(|node| node.covers))?;
            let starts = starts_of(nodes.iter().map(|node| node.covers));
            let (at, within) = find(&starts, offset - begins);
            let part = nodes.get(at).ok_or_else(beyond)?;
            descend(reader, node, part, depth - 1, begins + within, offset)
        }
        _ => Err(Error::Tree("a node of another kind where extents should be".into())),
    }
}

/// Checks that parts cover what was said above them.
fn covers(part: &NodeRef, lengths: impl Iterator<Item = u64>) -> Result<(), Error> {
    match lengths.into_iter().try_fold(0u64, u64::checked_add) == Some(part.covers) {
        true => Ok(()),
        false => Err(Error::Tree(format!("extents that do not cover {} bytes", part.covers))),
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

/// Where each of several lengths begins, one after the other. Sums were checked when they were parsed.
fn starts_of(lengths: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut at = 0u64;
    lengths
        .map(|length| {
            let start = at;
            at = at.saturating_add(length);
            start
        })
        .collect()
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
        let starts = starts_of([5, 1, 10].into_iter());
        assert_eq!(starts, [0, 5, 6]);
        assert_eq!([0, 4, 5, 6, 15].map(|offset| find(&starts, offset)), [(0, 0), (0, 0), (1, 5), (2, 6), (2, 6)]);
        assert_eq!(find(&[], 7), (0, 0));
    }
}
