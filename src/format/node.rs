//! Tree nodes.
//!
//! A directory of up to about 1,000 entries is one node. A larger one is an index of such nodes, with further levels if
//! needed. A file of up to about 100 extents lists them in its entry. A larger one has nodes of extents. A node contains
//! the locations of all blocks that it refers to, so readers need no index, and equal digests mean equal content at equal
//! locations.

use std::collections::BTreeMap;

use super::cbor::{CborReader, CborWriter};
use super::entry::{ChunkRef, Entry, Extent, Kind, NodeRef, is_name, read_entry_count};
use super::error::Error;
use super::id::PackId;
use super::limits::{BLOCK_SIZE, SEALED_SIZE};

/// The location of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockLocation {
    /// The pack that contains it.
    pub pack: PackId,
    /// The offset in the pack in bytes.
    pub offset: u64,
    /// The stored size in bytes.
    pub length: u32,
}

/// A part of a large directory: the entries from its first name to the first name of the next segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The first name in the segment.
    pub first: Vec<u8>,
    /// The number of the directory's entries in this segment.
    pub entries: u64,
    /// The number of entries in this segment, including everything below them.
    pub span: u64,
    /// The node with the entries, or a further index.
    pub node: ChunkRef,
}

/// The items of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Items {
    /// Entries of a directory, sorted by name as bytes.
    Entries(Vec<Entry>),
    /// Segments of a directory, in order.
    Segments(Vec<Segment>),
    /// Extents of a file, in order.
    Extents(Vec<Extent>),
    /// References to nodes of a file's extents, in order.
    ExtentIndex(Vec<NodeRef>),
}

/// A node of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The table of blocks; items refer to them by index.
    pub blocks: Vec<BlockLocation>,
    /// All items are of one type.
    pub items: Items,
    /// User names by uid, for the entries' owners that have a name on the source.
    pub users: BTreeMap<u32, String>,
    /// Group names by gid, for the entries' groups that have a name on the source.
    pub groups: BTreeMap<u32, String>,
}

impl Node {
    /// The number of entries in this node, including everything below them; 0 for extents.
    pub fn span(&self) -> u64 {
        match &self.items {
            Items::Entries(entries) => entries.iter().map(Entry::span).fold(0, u64::saturating_add),
            Items::Segments(segments) => segments.iter().map(|s| s.span).fold(0, u64::saturating_add),
            Items::Extents(_) | Items::ExtentIndex(_) => 0,
        }
    }

    /// The number of the directory's entries in this node and the nodes below it; 0 for extents.
    pub fn entries(&self) -> u64 {
        match &self.items {
            Items::Entries(entries) => entries.len() as u64,
            Items::Segments(segments) => segments.iter().map(|s| s.entries).fold(0, u64::saturating_add),
            Items::Extents(_) | Items::ExtentIndex(_) => 0,
        }
    }

    /// The first and the last name in the node itself; `None` for extents.
    pub fn names(&self) -> Option<(&[u8], &[u8])> {
        match &self.items {
            Items::Entries(entries) => Some((&entries.first()?.name, &entries.last()?.name)),
            Items::Segments(segments) => Some((&segments.first()?.first, &segments.last()?.first)),
            Items::Extents(_) | Items::ExtentIndex(_) => None,
        }
    }

    /// Returns the location of a chunk's block; `None` if it is not in the table.
    pub fn location(&self, chunk: &ChunkRef) -> Option<BlockLocation> {
        self.blocks.get(chunk.block as usize).copied()
    }

    /// Encodes the node.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = CborWriter::default();
        let named = usize::from(!self.users.is_empty()) + usize::from(!self.groups.is_empty());
        w.map(4 + named);
        let mut packs: Vec<PackId> = Vec::new();
        let mut places = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            // Search from the end: adjacent blocks are usually in the same pack.
            let at = packs.iter().rposition(|pack| *pack == block.pack).unwrap_or_else(|| {
                packs.push(block.pack);
                packs.len() - 1
            });
            places.push(at);
        }
        w.uint(0).uint(self.items.code());
        w.uint(1).array(packs.len());
        packs.iter().for_each(|pack| {
            w.bytes(pack.as_bytes());
        });
        w.uint(2).array(self.blocks.len() * 3);
        for (block, at) in self.blocks.iter().zip(places) {
            w.uint(at as u64).uint(block.offset).uint(block.length.into());
        }
        w.uint(3);
        match &self.items {
            Items::Entries(entries) => {
                w.array(entries.len());
                entries.iter().for_each(|entry| entry.write(&mut w));
            }
            Items::Segments(segments) => {
                w.array(segments.len());
                segments.iter().for_each(|segment| segment.write(&mut w));
            }
            Items::Extents(extents) => {
                w.array(extents.len());
                extents.iter().for_each(|extent| extent.write(&mut w));
            }
            Items::ExtentIndex(nodes) => {
                w.array(nodes.len());
                nodes.iter().for_each(|node| node.write(&mut w));
            }
        }
        for (key, names) in [(4, &self.users), (5, &self.groups)] {
            if !names.is_empty() {
                w.uint(key).map(names.len());
                names.iter().for_each(|(id, name)| {
                    w.uint((*id).into()).text(name);
                });
            }
        }
        w.finish()
    }

    /// Decodes a node.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Self::read(bytes, false)
    }

    /// Decodes the node in a snapshot, which has one entry without a name, the root.
    pub fn decode_root(bytes: &[u8]) -> Result<Self, Error> {
        Self::read(bytes, true)
    }

    fn read(bytes: &[u8], root: bool) -> Result<Self, Error> {
        if bytes.len() > BLOCK_SIZE {
            return Err(Error::TooLarge { what: "tree node", found: bytes.len() as u64, limit: BLOCK_SIZE as u64 });
        }
        let mut r = CborReader::new("tree node", bytes);
        let mut code = None;
        let mut packs = Vec::new();
        let mut blocks = Vec::new();
        let mut items = None;
        let (mut users, mut groups) = (BTreeMap::new(), BTreeMap::new());
        r.fields(|r, key| {
            match key {
                0 => code = Some(r.uint()?),
                1 => {
                    packs = (0..r.array()?).map(|_| PackId::from_slice(r.bytes()?)).collect::<Result<Vec<_>, _>>()?;
                }
                2 => blocks = read_blocks(r, &packs)?,
                3 => items = Some(read_items(r, code, blocks.len(), root)?),
                4 => users = read_names(r)?,
                5 => groups = read_names(r)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        r.end()?;
        Ok(Node { blocks, items: r.need("items", items)?, users, groups })
    }
}

impl Items {
    fn code(&self) -> u64 {
        match self {
            Items::Entries(_) => 0,
            Items::Segments(_) => 1,
            Items::Extents(_) => 2,
            Items::ExtentIndex(_) => 3,
        }
    }
}

impl Segment {
    fn write(&self, w: &mut CborWriter) {
        self.node.write(w.array(7).bytes(&self.first).uint(self.entries).uint(self.span));
    }

    fn read(r: &mut CborReader<'_>, table: usize) -> Result<Self, Error> {
        r.array_of(7)?;
        let first = r.bytes()?;
        if !is_name(first) {
            return Err(r.wrong("a segment with an invalid first name"));
        }
        let (entries, span) = (read_entry_count(r)?, read_entry_count(r)?);
        let node = ChunkRef::read(r, table)?;
        if entries == 0 || span < entries {
            return Err(r.wrong("a segment with impossible counts"));
        }
        Ok(Segment { first: first.to_vec(), entries, span, node })
    }
}

fn read_blocks(r: &mut CborReader<'_>, packs: &[PackId]) -> Result<Vec<BlockLocation>, Error> {
    let numbers = r.array()?;
    if numbers % 3 != 0 {
        return Err(r.wrong("truncated table of blocks"));
    }
    (0..numbers / 3)
        .map(|_| {
            let at = r.u32()? as usize;
            let pack = *packs.get(at).ok_or_else(|| r.wrong("a block in a pack beyond the table"))?;
            let (offset, length) = (r.uint()?, r.u32()?);
            if length as usize > SEALED_SIZE {
                return Err(Error::TooLarge { what: "stored block", found: length.into(), limit: SEALED_SIZE as u64 });
            }
            if length == 0 || offset.checked_add(length.into()).is_none() {
                return Err(r.wrong("an empty block, or one with too large an offset"));
            }
            Ok(BlockLocation { pack, offset, length })
        })
        .collect()
}

fn read_items(r: &mut CborReader<'_>, code: Option<u64>, table: usize, root: bool) -> Result<Items, Error> {
    let count = r.array()?;
    match code {
        Some(0) => {
            let mut entries: Vec<Entry> = Vec::new();
            for _ in 0..count {
                let entry = Entry::read(r, table, root)?;
                if entries.last().is_some_and(|last| last.name >= entry.name) {
                    return Err(r.wrong("a name is repeated or out of order"));
                }
                entries.push(entry);
            }
            let rooted = matches!(entries.as_slice(), [only] if only.name.is_empty() && only.kind == Kind::Directory);
            if root && !rooted {
                return Err(r.wrong("the root is not a single directory without a name"));
            }
            Ok(Items::Entries(entries))
        }
        _ if root => Err(r.wrong("a root that is not a directory")),
        Some(1) => {
            let mut segments: Vec<Segment> = Vec::new();
            for _ in 0..count {
                let segment = Segment::read(r, table)?;
                if segments.last().is_some_and(|last| last.first >= segment.first) {
                    return Err(r.wrong("a segment is repeated or out of order"));
                }
                segments.push(segment);
            }
            Ok(Items::Segments(segments))
        }
        Some(2) => (0..count).map(|_| Extent::read(r, table)).collect::<Result<_, _>>().map(Items::Extents),
        Some(3) => (0..count).map(|_| NodeRef::read(r, table)).collect::<Result<_, _>>().map(Items::ExtentIndex),
        _ => Err(r.wrong("a node of unknown type")),
    }
}

fn read_names(r: &mut CborReader<'_>) -> Result<BTreeMap<u32, String>, Error> {
    let mut names = BTreeMap::new();
    r.fields(|r, id| {
        let id = u32::try_from(id).map_err(|_| r.wrong("a user or group id that is too large"))?;
        names.insert(id, r.text()?.to_owned());
        Ok(true)
    })?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::entry::{Content, HardLink, Subtree, Timestamp};
    use crate::format::id::Digest;

    fn chunk(block: u32, start: u32, length: u32) -> ChunkRef {
        ChunkRef { digest: Digest::of(&length.to_le_bytes()), block, start, length }
    }

    fn entry(name: &str, kind: Kind, size: u64, content: Content) -> Entry {
        Entry {
            name: name.into(),
            kind,
            mode: 0o4755,
            uid: 1000,
            gid: 0,
            mtime: Timestamp { seconds: -5, nanos: 999_999_999 },
            size,
            content,
            link: None,
            xattrs: Vec::new(),
            flags: 0,
            inode_flags: 0,
        }
    }

    fn every_kind() -> Node {
        let pack = PackId::random();
        let blocks = (0..4).map(|i| BlockLocation { pack, offset: i * 1000, length: 1000 }).collect();
        let digest = Digest::of(b"whole");
        let extents = vec![Extent::Chunk(chunk(1, 0, 1 << 20)), Extent::Hole(1 << 40), Extent::Chunk(chunk(0, 9, 1))];
        let size = extents.iter().map(Extent::length).sum();
        let mut linked = entry("linked", Kind::File, 10, Content::Chunk(chunk(3, 100, 10)));
        linked.link = Some(HardLink { id: 7, count: 2 });
        linked.xattrs = vec![(b"user.a".to_vec(), vec![0; 300]), (b"user.b".to_vec(), vec![])];
        linked.flags = Entry::CHANGED | Entry::UNPRIVILEGED;
        let mut entries = vec![
            entry("empty", Kind::File, 0, Content::Empty),
            entry("holes", Kind::File, size, Content::Extents { digest, extents }),
            linked,
            entry(
                "many",
                Kind::File,
                99,
                Content::Nodes {
                    digest,
                    depth: 1,
                    nodes: vec![NodeRef { covers: 99, node: chunk(0, 0, 5) }],
                    holes: 40,
                },
            ),
            entry("null", Kind::CharDevice, 0, Content::Device(1, 3)),
            entry("pipe", Kind::Fifo, 0, Content::Empty),
            entry("sub", Kind::Directory, 0, Content::Directory(Subtree { below: 5, node: Some(chunk(2, 0, 50)) })),
            entry("sub0", Kind::Directory, 0, Content::Directory(Subtree::default())),
            entry("to", Kind::Symlink, 4, Content::Target(b"\xff/..".to_vec())),
        ];
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Node {
            blocks,
            items: Items::Entries(entries),
            users: BTreeMap::from([(1000, "alice".into())]),
            groups: BTreeMap::from([(0, "root".into())]),
        }
    }

    #[test]
    fn every_kind_of_entry_round_trips() {
        let node = every_kind();
        let bytes = node.encode();
        assert_eq!(Node::decode(&bytes).unwrap(), node);
        assert_eq!(node.span(), 9 + 5);
    }

    #[test]
    fn holes_larger_than_the_file_are_refused() {
        let with = |found: u64| {
            let mut node = every_kind();
            let Items::Entries(entries) = &mut node.items else { panic!("entries") };
            for entry in entries {
                if let Content::Nodes { holes, .. } = &mut entry.content {
                    *holes = found;
                }
            }
            Node::decode(&node.encode()).map(drop)
        };
        assert!(with(99).is_ok());
        assert!(with(100).unwrap_err().to_string().contains("holes"));
    }

    #[test]
    fn indexes_round_trip() {
        let blocks = vec![BlockLocation { pack: PackId::random(), offset: 0, length: 9 }];
        let segments =
            ["a", "b"].map(|first| Segment { first: first.into(), entries: 2, span: 3, node: chunk(0, 0, 5) }).to_vec();
        let lists = [
            Items::Segments(segments),
            Items::Extents(vec![Extent::Hole(5), Extent::Chunk(chunk(0, 1, 2))]),
            Items::ExtentIndex(vec![NodeRef { covers: 5, node: chunk(0, 0, 5) }]),
        ];
        for items in lists {
            let node = Node { blocks: blocks.clone(), items, users: BTreeMap::new(), groups: BTreeMap::new() };
            assert_eq!(Node::decode(&node.encode()).unwrap(), node);
        }
    }

    #[test]
    fn hostile_and_repeated_names_are_refused() {
        let long = "n".repeat(1025);
        for name in ["", ".", "..", "a/b", "/etc", "nul\0", &long] {
            let node = Node {
                blocks: vec![],
                items: Items::Entries(vec![entry(name, Kind::File, 0, Content::Empty)]),
                users: BTreeMap::new(),
                groups: BTreeMap::new(),
            };
            assert!(Node::decode(&node.encode()).is_err(), "{name:?}");
        }
        let twice = entry("a", Kind::File, 0, Content::Empty);
        let node = Node {
            blocks: vec![],
            items: Items::Entries(vec![twice.clone(), twice]),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        assert!(Node::decode(&node.encode()).is_err());
    }

    #[test]
    fn segments_out_of_order_or_with_impossible_counts_are_refused() {
        let refused = |parts: &[(&str, u64, u64)]| {
            let segment = |&(first, entries, span): &(&str, u64, u64)| Segment {
                first: first.into(),
                entries,
                span,
                node: chunk(0, 0, 5),
            };
            let node = Node {
                blocks: vec![BlockLocation { pack: PackId::random(), offset: 0, length: 9 }],
                items: Items::Segments(parts.iter().map(segment).collect()),
                users: BTreeMap::new(),
                groups: BTreeMap::new(),
            };
            Node::decode(&node.encode()).is_err()
        };
        assert!(!refused(&[("a", 1, 1), ("b", 1, (1 << 40) - 1)]));
        for parts in [[("b", 1, 1), ("a", 1, 1)], [("a", 1, 1), ("a", 1, 1)], [("a", 1, 1), ("..", 1, 1)]] {
            assert!(refused(&parts), "{parts:?}");
        }
        for counts in [(0, 0), (0, 1), (2, 1), (1, 1 << 40), (u64::MAX, u64::MAX)] {
            assert!(refused(&[("a", counts.0, counts.1)]), "{counts:?}");
        }
    }

    #[test]
    fn references_beyond_the_table_or_the_block_are_refused() {
        for bad in [
            chunk(1, 0, 1),
            chunk(0, BLOCK_SIZE as u32 - 1, 2),
            chunk(0, 0, 2 * BLOCK_SIZE as u32),
            chunk(u32::MAX, 0, 1),
        ] {
            let node = Node {
                blocks: vec![BlockLocation { pack: PackId::random(), offset: 0, length: 1 }],
                items: Items::Extents(vec![Extent::Chunk(bad)]),
                users: BTreeMap::new(),
                groups: BTreeMap::new(),
            };
            assert!(Node::decode(&node.encode()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn truncated_and_damaged_nodes_do_not_panic() {
        let bytes = every_kind().encode();
        for length in 0..bytes.len() {
            assert!(Node::decode(&bytes[..length]).is_err());
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let _ = Node::decode(&damaged);
            }
        }
    }
}
