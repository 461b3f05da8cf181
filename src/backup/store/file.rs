//! The content of a file on its way into an entry: extents, in nodes of their own if there are many.

use super::indexes::{LinkedExtents, over_extents};
use super::nodes::{Link, NodeKey, Nodes, PLACEHOLDER, Purpose};
use crate::backup::error::Error;
use crate::catalog::Stored;
use crate::format::entry::NodeRef;
use crate::format::{Content, Digest, Extent, Items};

/// Extents in a node, and nodes of extents in an index node.
const NODE_ITEMS: usize = 1000;
/// Extents, or nodes of extents, in the entry itself.
const INLINE_EXTENTS: usize = 100;

/// A part of a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum FilePart {
    Chunk(Stored),
    Hole(u64),
}

impl FilePart {
    pub(super) fn length(&self) -> u64 {
        match self {
            FilePart::Chunk(stored) => stored.length.into(),
            FilePart::Hole(length) => *length,
        }
    }

    /// The extent, referring to the block by the table of a node.
    fn place(&self, key: NodeKey, nodes: &mut Nodes<'_>) -> Result<Extent, Error> {
        match self {
            FilePart::Chunk(stored) => Ok(Extent::Chunk(nodes.refer(key, stored, None)?)),
            FilePart::Hole(length) => Ok(Extent::Hole(*length)),
        }
    }
}

/// The content of a file, as far as it is stored.
pub(super) struct StoredContent {
    /// The owner of the directory that the file is in.
    owner: u32,
    /// Parts that are in no node yet.
    parts: Vec<FilePart>,
    /// Nodes of the parts before those.
    nodes: Vec<LinkedExtents>,
    /// Bytes of all holes.
    holes: u64,
}

/// Content that is ready to stand in an entry.
pub(super) struct FinishedContent {
    pub(super) content: Content,
    /// Links to the nodes that the content refers to, in order. They are filled in once the entry is in its node.
    pub(super) links: Vec<Link>,
}

impl StoredContent {
    pub(super) fn new(owner: u32) -> Self {
        StoredContent { owner, parts: Vec::new(), nodes: Vec::new(), holes: 0 }
    }

    /// Appends a part.
    pub(super) fn push(&mut self, part: FilePart, nodes: &mut Nodes<'_>) -> Result<(), Error> {
        if let FilePart::Hole(length) = part {
            self.holes += length;
        }
        self.parts.push(part);
        if self.parts.len() >= NODE_ITEMS { self.close_node(nodes) } else { Ok(()) }
    }

    /// Puts the parts that are in no node yet into one.
    fn close_node(&mut self, nodes: &mut Nodes<'_>) -> Result<(), Error> {
        let parts = std::mem::take(&mut self.parts);
        let covers = parts.iter().map(FilePart::length).sum();
        let key = nodes.open(self.owner, Purpose::Extents, Items::Extents(Vec::new()));
        let extents = place_all(&parts, key, nodes)?;
        *nodes.items(key)? = Items::Extents(extents);
        self.nodes.push(LinkedExtents { covers, link: nodes.close(key)? });
        Ok(())
    }

    /// The content of an entry in the node `key`. `digest` is that of the whole file.
    pub(super) fn finish(
        mut self,
        key: NodeKey,
        digest: Digest,
        nodes: &mut Nodes<'_>,
    ) -> Result<FinishedContent, Error> {
        if self.nodes.is_empty() && self.parts.len() <= INLINE_EXTENTS {
            let content = match self.parts.as_slice() {
                [] => Content::Empty,
                [FilePart::Chunk(stored)] => Content::Chunk(nodes.refer(key, stored, None)?),
                parts => Content::Extents { digest, extents: place_all(parts, key, nodes)? },
            };
            return Ok(FinishedContent { content, links: Vec::new() });
        }
        if !self.parts.is_empty() {
            self.close_node(nodes)?;
        }
        let (depth, top) = over_extents(nodes, self.owner, self.nodes, INLINE_EXTENTS)?;
        let references = top.iter().map(|part| NodeRef { covers: part.covers, node: PLACEHOLDER }).collect();
        let content = Content::Nodes { digest, depth, nodes: references, holes: self.holes };
        Ok(FinishedContent { content, links: top.into_iter().map(|part| part.link).collect() })
    }
}

fn place_all(parts: &[FilePart], key: NodeKey, nodes: &mut Nodes<'_>) -> Result<Vec<Extent>, Error> {
    parts.iter().map(|part| part.place(key, nodes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::fixture::Site;

    fn stored(nodes: &mut Nodes<'_>, number: usize) -> FilePart {
        let bytes = number.to_be_bytes().to_vec();
        let digest = Digest::of(&bytes);
        FilePart::Chunk(nodes.blocks_mut().store_data(digest, 0, || Ok(bytes)).unwrap())
    }

    /// The content of a file of this many chunks, and a hole at the end if that is wanted.
    fn content(chunks: usize, hole: bool) -> FinishedContent {
        Site::new().with_nodes(|mut nodes| {
            let key = nodes.open(0, Purpose::Extents, Items::Extents(Vec::new()));
            let mut content = StoredContent::new(0);
            for number in 0..chunks {
                let part = stored(&mut nodes, number);
                content.push(part, &mut nodes).unwrap();
            }
            if hole {
                content.push(FilePart::Hole(7), &mut nodes).unwrap();
            }
            content.finish(key, Digest::of(b"all"), &mut nodes).unwrap()
        })
    }

    #[test]
    fn few_extents_are_in_the_entry() {
        assert!(matches!(content(0, false).content, Content::Empty));
        assert!(matches!(content(1, false).content, Content::Chunk(_)));
        assert!(matches!(content(0, true).content, Content::Extents { extents, .. } if extents.len() == 1));
        assert!(
            matches!(content(INLINE_EXTENTS, false).content, Content::Extents { extents, .. } if extents.len() == INLINE_EXTENTS)
        );
    }

    #[test]
    fn many_extents_are_in_nodes() {
        for (chunks, nodes) in [(INLINE_EXTENTS, 1), (NODE_ITEMS, 2), (2 * NODE_ITEMS - 1, 2)] {
            let FinishedContent { content, links } = content(chunks, true);
            let Content::Nodes { depth, nodes: list, holes, .. } = content else { panic!("{chunks} are not in nodes") };
            assert_eq!((depth, list.len(), links.len(), holes), (0, nodes, nodes, 7), "{chunks}");
            let covers: u64 = list.iter().map(|node| node.covers).sum();
            assert_eq!(covers, 8 * chunks as u64 + 7);
        }
    }
}
