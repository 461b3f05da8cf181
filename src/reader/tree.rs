//! Directories: entries by name, by position, and by rank.
//!
//! The rank of an entry is its position in a preorder walk of the snapshot: the root has rank 0, and a directory of rank
//! r with n entries below it takes the ranks r to r + n. Nodes store how many ranks each child takes, so an entry is found
//! by its rank with one descent and no table.

use std::collections::HashSet;
use std::sync::Arc;

use super::blocks::NodeValue;
use super::cache::Weigh;
use super::file::find;
use super::{Error, Reader};
use crate::format::entry::Content;
use crate::format::snapshot::Snapshot;
use crate::format::{BlockLocation, ChunkRef, Digest, Entry, Extent, Items, Kind, Node, Segment};

/// Maximum depth of segment indexes. With about 1,000 segments per node, no directory needs this many.
const INDEX_DEPTH: usize = 8;

/// An entry and the node that contains it, to which its block references are relative.
#[derive(Clone)]
pub struct EntryHandle {
    home: EntryNode,
    /// Index of the entry in the node.
    at: usize,
    /// Position in a preorder walk of the snapshot.
    pub rank: u64,
}

/// Identifies the content of a file. The size is part of it because an empty file has no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentIdentity {
    kind: Kind,
    size: u64,
    digest: Option<Digest>,
}

/// The node that contains an entry.
#[derive(Clone)]
enum EntryNode {
    Node(Arc<NodeValue>),
    Root(Arc<Snapshot>),
}

impl EntryHandle {
    /// Returns the root directory of a snapshot.
    pub fn root(snapshot: Arc<Snapshot>) -> Result<Self, Error> {
        match snapshot.root_entry() {
            Some(_) => Ok(EntryHandle { home: EntryNode::Root(snapshot), at: 0, rank: 0 }),
            None => Err(Error::Tree("the snapshot has no root".into())),
        }
    }

    pub(super) fn node(&self) -> &Node {
        match &self.home {
            EntryNode::Node(value) => &value.node,
            EntryNode::Root(snapshot) => &snapshot.root,
        }
    }

    /// Records that the file's only chunk is being read. If the files of the directory are read in order, returns the
    /// block after the chunk's as the one to prefetch.
    pub(super) fn next_block(&self, chunk: &ChunkRef) -> Option<BlockLocation> {
        match &self.home {
            EntryNode::Node(value) => value.next_block(chunk),
            EntryNode::Root(_) => None,
        }
    }

    /// The entry itself.
    pub fn entry(&self) -> &Entry {
        static NOTHING: std::sync::OnceLock<Entry> = std::sync::OnceLock::new();
        match &self.node().items {
            Items::Entries(entries) => entries.get(self.at),
            _ => None,
        }
        // Handles are created only for entries that exist.
        .unwrap_or_else(|| NOTHING.get_or_init(nothing))
    }

    /// The owner's name, if the machine that was backed up had one.
    pub fn user(&self) -> Option<&str> {
        self.node().users.get(&self.entry().uid).map(String::as_str)
    }

    /// The group's name, if the machine that was backed up had one.
    pub fn group(&self) -> Option<&str> {
        self.node().groups.get(&self.entry().gid).map(String::as_str)
    }

    /// Returns the identity of the file's content.
    pub fn identity(&self) -> ContentIdentity {
        let entry = self.entry();
        let digest = match &entry.content {
            Content::Chunk(chunk) => Some(chunk.digest),
            Content::Extents { digest, .. } | Content::Nodes { digest, .. } => Some(*digest),
            _ => None,
        };
        ContentIdentity { kind: entry.kind, size: entry.size, digest }
    }

    /// Returns the block with the start of the content, as far as it is known without reading a node.
    pub fn first_block(&self) -> Option<BlockLocation> {
        let chunk = match &self.entry().content {
            Content::Chunk(chunk) => chunk,
            Content::Extents { extents, .. } => extents.iter().find_map(|extent| match extent {
                Extent::Chunk(chunk) => Some(chunk),
                Extent::Hole(_) => None,
            })?,
            // The nodes of a large file are stored next to its content.
            Content::Nodes { nodes, .. } => &nodes.first()?.node,
            _ => return None,
        };
        self.node().location(chunk)
    }

    /// Size in bytes of the node that this handle keeps in memory. All handles of one node share it.
    pub fn node_bytes(&self) -> usize {
        match &self.home {
            EntryNode::Node(value) => value.weight(),
            EntryNode::Root(_) => 0,
        }
    }

    /// Whether both entries are in the same node in memory.
    pub fn shares_node(&self, other: &EntryHandle) -> bool {
        match (&self.home, &other.home) {
            (EntryNode::Node(one), EntryNode::Node(another)) => Arc::ptr_eq(one, another),
            (EntryNode::Root(one), EntryNode::Root(another)) => Arc::ptr_eq(one, another),
            _ => false,
        }
    }

    /// Returns the directory, or `None` for other kinds.
    pub fn directory(&self) -> Option<SnapshotDirectory> {
        let Content::Directory(subtree) = &self.entry().content else { return None };
        let top = match &subtree.node {
            None => Top::Empty,
            Some(chunk) => match self.node().location(chunk) {
                Some(location) => Top::Node(location, *chunk),
                None => Top::Broken,
            },
        };
        Some(SnapshotDirectory { top, rank: self.rank, below: subtree.below })
    }
}

/// A placeholder for an entry that does not exist; never shown.
fn nothing() -> Entry {
    Entry {
        name: Vec::new(),
        kind: Kind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Default::default(),
        size: 0,
        content: Content::Empty,
        link: None,
        xattrs: Vec::new(),
        flags: 0,
        inode_flags: 0,
    }
}

/// A directory in a snapshot.
#[derive(Clone)]
pub struct SnapshotDirectory {
    top: Top,
    rank: u64,
    below: u64,
}

#[derive(Clone)]
enum Top {
    Empty,
    Node(BlockLocation, ChunkRef),
    Broken,
}

impl SnapshotDirectory {
    /// Position in a preorder walk of the snapshot.
    pub fn rank(&self) -> u64 {
        self.rank
    }

    /// Number of entries below it at any depth, as stored in its entry.
    pub fn below(&self) -> u64 {
        self.below
    }

    /// Its top node and the block with it; `None` if the directory is empty or its reference is invalid.
    pub fn node(&self) -> Option<(&BlockLocation, &ChunkRef)> {
        match &self.top {
            Top::Node(location, chunk) => Some((location, chunk)),
            Top::Empty | Top::Broken => None,
        }
    }
}

/// A search key in a directory.
#[derive(Clone, Copy)]
enum Sought<'n> {
    Name(&'n [u8]),
    /// The entry at this position, counted from 0.
    Position(u64),
    /// The entry whose ranks include this one, counted from the directory's first entry.
    Rank(u64),
}

/// A leaf node of a directory, and its position in the directory.
struct DirectoryLeaf {
    value: Arc<NodeValue>,
    /// Entries of the directory before this node.
    entries_before: u64,
    /// Ranks taken before this node, counted from the directory's first entry.
    ranks_before: u64,
}

impl DirectoryLeaf {
    /// Returns its entries from index `at` on.
    fn page(self, directory: &SnapshotDirectory, at: usize) -> Page {
        let rank = directory.rank.saturating_add(1).saturating_add(self.ranks_before);
        Page { value: Some(self.value), at, rank }
    }
}

/// An iterator over the entries of one directory node.
#[derive(Default)]
pub struct Page {
    value: Option<Arc<NodeValue>>,
    at: usize,
    /// The rank of the node's first entry.
    rank: u64,
}

impl Page {
    /// Whether no entry is left.
    pub fn is_empty(&self) -> bool {
        self.value.as_ref().is_none_or(|value| self.at >= value.starts.len())
    }
}

impl Iterator for Page {
    type Item = EntryHandle;

    fn next(&mut self) -> Option<EntryHandle> {
        let value = self.value.as_ref()?;
        let Items::Entries(entries) = &value.node.items else { return None };
        let (_, at) = (entries.get(self.at)?, self.at);
        self.at += 1;
        let before = value.starts.get(at).copied()?;
        Some(EntryHandle { home: EntryNode::Node(value.clone()), at, rank: self.rank.saturating_add(before) })
    }
}

impl Reader {
    /// Finds an entry of a directory by name.
    pub fn lookup(&self, directory: &SnapshotDirectory, name: &[u8]) -> Result<Option<EntryHandle>, Error> {
        let Some(leaf) = self.leaf(directory, Sought::Name(name))? else { return Ok(None) };
        let entries = entries(&leaf.value.node)?;
        let found = entries.binary_search_by(|entry| entry.name.as_slice().cmp(name)).ok();
        Ok(found.and_then(|at| leaf.page(directory, at).next()))
    }

    /// Finds the entry of a directory that has the absolute rank `rank` or contains the entry with it.
    pub fn by_rank(&self, directory: &SnapshotDirectory, rank: u64) -> Result<Option<EntryHandle>, Error> {
        let Some(within) = rank.checked_sub(directory.rank + 1) else { return Ok(None) };
        let Some(leaf) = self.leaf(directory, Sought::Rank(within))? else { return Ok(None) };
        let (at, _) = find(&leaf.value.starts, within - leaf.ranks_before);
        Ok(leaf.page(directory, at).next())
    }

    /// Returns entries from position `from` on: those of one node, so that memory stays bounded. Empty at the end.
    pub fn list(&self, directory: &SnapshotDirectory, from: u64) -> Result<Page, Error> {
        let Some(leaf) = self.leaf(directory, Sought::Position(from))? else { return Ok(Page::default()) };
        let at = usize::try_from(from - leaf.entries_before).unwrap_or(usize::MAX);
        Ok(leaf.page(directory, at))
    }

    /// Passes the location of each node of a directory to `take`: of its top node, and of the parts of a large directory.
    /// A node that is used several times is passed once.
    pub fn each_node(&self, directory: &SnapshotDirectory, take: &mut dyn FnMut(&BlockLocation)) -> Result<(), Error> {
        let Some((location, chunk)) = directory.node() else { return Ok(()) };
        let mut passed = HashSet::new();
        let mut waiting = vec![(*location, *chunk, 0)];
        while let Some((location, chunk, depth)) = waiting.pop() {
            if depth > INDEX_DEPTH || !passed.insert((location, chunk.start)) {
                continue;
            }
            take(&location);
            let value = self.core.node(&location, &chunk)?;
            if let Items::Segments(segments) = &value.node.items {
                let parts = segments.iter().map(|segment| segment.node);
                waiting.extend(parts.filter_map(|part| Some((value.node.location(&part)?, part, depth + 1))));
            }
        }
        Ok(())
    }

    /// Returns the entry at `path` below the snapshot's root. Symbolic links are not followed.
    pub fn at_path(&self, snapshot: &Arc<Snapshot>, path: &[u8]) -> Result<EntryHandle, Error> {
        let mut at = EntryHandle::root(snapshot.clone())?;
        let mut walked = String::new();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let Some(directory) = at.directory() else { return Err(Error::NotADirectory(walked)) };
            walked = format!("{walked}/{}", String::from_utf8_lossy(name));
            let found = self.lookup(&directory, name)?;
            at = found.ok_or_else(|| Error::NotFound(format!("no {walked} in the snapshot")))?;
        }
        Ok(at)
    }

    /// Returns the entry of a snapshot with this rank.
    pub fn at_rank(&self, snapshot: &Arc<Snapshot>, rank: u64) -> Result<EntryHandle, Error> {
        let mut at = EntryHandle::root(snapshot.clone())?;
        while at.rank != rank {
            let next = match at.directory() {
                Some(directory) => self.by_rank(&directory, rank)?,
                None => None,
            };
            at = next.ok_or_else(|| Error::NotFound(format!("no entry with rank {rank} in the snapshot")))?;
        }
        Ok(at)
    }

    /// Returns the leaf node that contains `sought`, if it exists.
    fn leaf(&self, directory: &SnapshotDirectory, sought: Sought<'_>) -> Result<Option<DirectoryLeaf>, Error> {
        let (location, chunk) = match &directory.top {
            Top::Empty => return Ok(None),
            Top::Broken => return Err(Error::Tree("the reference of a directory names no block of its node".into())),
            Top::Node(location, chunk) => (location, chunk),
        };
        let (mut entries_before, mut ranks_before) = (0u64, 0u64);
        let mut value = self.core.node(location, chunk)?;
        if value.covers != Some(directory.below) {
            return Err(contradicts_parent("ranks"));
        }
        // First name of the next segment: all names of the chosen one must sort before it.
        let mut before: Option<Vec<u8>> = None;
        for _ in 0..INDEX_DEPTH {
            let segments = match &value.node.items {
                Items::Entries(entries) => {
                    let there = match sought {
                        Sought::Name(_) => true,
                        Sought::Position(position) => position < entries_before + entries.len() as u64,
                        Sought::Rank(rank) => rank < ranks_before.saturating_add(value.covers.unwrap_or(u64::MAX)),
                    };
                    return Ok(there.then_some(DirectoryLeaf { value, entries_before, ranks_before }));
                }
                Items::Segments(segments) => segments,
                Items::Extents(_) | Items::ExtentIndex(_) => {
                    return Err(Error::Tree("extents in place of a directory".into()));
                }
            };
            let mut chosen: Option<&Segment> = None;
            for segment in segments {
                let further = match sought {
                    Sought::Name(name) => segment.first.as_slice() <= name,
                    Sought::Position(position) => {
                        position >= entries_before.saturating_add(chosen.map_or(0, |s| s.entries))
                    }
                    Sought::Rank(rank) => rank >= ranks_before.saturating_add(chosen.map_or(0, |s| s.span)),
                };
                if !further {
                    before = Some(segment.first.clone());
                    break;
                }
                if let Some(passed) = chosen.replace(segment) {
                    entries_before = entries_before.saturating_add(passed.entries);
                    ranks_before = ranks_before.saturating_add(passed.span);
                }
            }
            let Some(segment) = chosen else { return Ok(None) };
            let location = value.node.location(&segment.node);
            let location =
                location.ok_or_else(|| Error::Tree("the reference of a segment names no block of its node".into()))?;
            let next = self.core.node(&location, &segment.node)?;
            check_segment(&next, segment, before.as_deref())?;
            value = next;
        }
        Err(Error::Tree("directory indexes nest too deep".into()))
    }
}

/// Checks a node against the segment in its parent: otherwise two entries could share a rank or a name. All its names
/// must sort before `before`.
fn check_segment(value: &NodeValue, segment: &Segment, before: Option<&[u8]>) -> Result<(), Error> {
    let Some((first, last)) = value.node.names() else { return Err(contradicts_parent("names")) };
    if first != segment.first || before.is_some_and(|before| last >= before) {
        return Err(contradicts_parent("names"));
    }
    if value.covers != Some(segment.span) {
        return Err(contradicts_parent("ranks"));
    }
    if value.node.entries() != segment.entries {
        return Err(contradicts_parent("entries"));
    }
    Ok(())
}

fn contradicts_parent(what: &str) -> Error {
    Error::Tree(format!("the {what} of a node differ from those in its parent"))
}

fn entries(node: &Node) -> Result<&[Entry], Error> {
    match &node.items {
        Items::Entries(entries) => Ok(entries),
        _ => Err(Error::Tree("a directory node without entries".into())),
    }
}
