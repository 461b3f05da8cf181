//! Directories: entries by name, by position, and by rank.
//!
//! An entry's rank is its place in a preorder walk of the snapshot: the root has rank 0, and a directory of
//! rank r with n entries below it takes the ranks r to r + n. Nodes say how many ranks their parts take, so an
//! entry is found again from its rank by descending, without any table.

use std::sync::Arc;

use super::blocks::NodeValue;
use super::cache::Weigh;
use super::file::find;
use super::{Error, Reader};
use crate::format::entry::Content;
use crate::format::snapshot::Snapshot;
use crate::format::{BlockLocation, ChunkRef, Digest, Entry, Extent, Items, Kind, Node, Segment};

/// How deep indexes over segments may nest: 1,000 to this power is more than any directory has.
const INDEX_DEPTH: usize = 8;

/// An entry, with the node that its references count in.
#[derive(Clone)]
pub struct EntryHandle {
    home: EntryNode,
    at: usize,
    /// Its place in a preorder walk of the snapshot.
    pub rank: u64,
}

/// What names of one file must have in common to be links of each other: the file may have changed while they were
/// backed up. The size counts too, because an empty file has no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentIdentity {
    kind: Kind,
    size: u64,
    digest: Option<Digest>,
}

/// Where an entry stands.
#[derive(Clone)]
enum EntryNode {
    Node(Arc<NodeValue>),
    Root(Arc<Snapshot>),
}

impl EntryHandle {
    /// The root directory of a snapshot.
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

    /// Takes note that the file's only chunk is read. If files of its directory are being read one after the other: the
    /// block that comes behind that chunk's.
    pub(super) fn passes(&self, chunk: &ChunkRef) -> Option<BlockLocation> {
        match &self.home {
            EntryNode::Node(value) => value.passes(chunk),
            EntryNode::Root(_) => None,
        }
    }

    /// The entry.
    pub fn entry(&self) -> &Entry {
        static NOTHING: std::sync::OnceLock<Entry> = std::sync::OnceLock::new();
        match &self.node().items {
            Items::Entries(entries) => entries.get(self.at),
            _ => None,
        }
        // Made only for positions that are there.
        .unwrap_or_else(|| NOTHING.get_or_init(nothing))
    }

    /// The owner's name, where the machine that was backed up knew it.
    pub fn user(&self) -> Option<&str> {
        self.node().users.get(&self.entry().uid).map(String::as_str)
    }

    /// The group's name, where the machine that was backed up knew it.
    pub fn group(&self) -> Option<&str> {
        self.node().groups.get(&self.entry().gid).map(String::as_str)
    }

    /// What tells the content of a file from another's.
    pub fn identity(&self) -> ContentIdentity {
        let entry = self.entry();
        let digest = match &entry.content {
            Content::Chunk(chunk) => Some(chunk.digest),
            Content::Extents { digest, .. } | Content::Nodes { digest, .. } => Some(*digest),
            _ => None,
        };
        ContentIdentity { kind: entry.kind, size: entry.size, digest }
    }

    /// Where the content begins, as far as that is known without reading anything.
    pub fn first_block(&self) -> Option<BlockLocation> {
        let chunk = match &self.entry().content {
            Content::Chunk(chunk) => chunk,
            Content::Extents { extents, .. } => extents.iter().find_map(|extent| match extent {
                Extent::Chunk(chunk) => Some(chunk),
                Extent::Hole(_) => None,
            })?,
            // Those of a large file lie where its content does.
            Content::Nodes { nodes, .. } => &nodes.first()?.node,
            _ => return None,
        };
        self.node().location(chunk)
    }

    /// Bytes that are held as long as this is, or another one beside it.
    pub fn node_bytes(&self) -> usize {
        match &self.home {
            EntryNode::Node(value) => value.weight(),
            EntryNode::Root(_) => 0,
        }
    }

    /// Whether both stand in one node.
    pub fn is_beside(&self, other: &EntryHandle) -> bool {
        match (&self.home, &other.home) {
            (EntryNode::Node(one), EntryNode::Node(another)) => Arc::ptr_eq(one, another),
            (EntryNode::Root(one), EntryNode::Root(another)) => Arc::ptr_eq(one, another),
            _ => false,
        }
    }

    /// The directory, if it is one.
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

/// An entry for positions that are not there; never shown.
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
    /// Its place in a preorder walk.
    pub fn rank(&self) -> u64 {
        self.rank
    }

    /// Entries below it at any depth, as its own entry says.
    pub fn below(&self) -> u64 {
        self.below
    }

    /// Its top node and where that lies; none if the directory is empty, or points nowhere.
    pub fn node(&self) -> Option<(&BlockLocation, &ChunkRef)> {
        match &self.top {
            Top::Node(location, chunk) => Some((location, chunk)),
            Top::Empty | Top::Broken => None,
        }
    }
}

/// What to look for in a directory.
#[derive(Clone, Copy)]
enum Sought<'n> {
    Name(&'n [u8]),
    /// The entry at this position, counted from 0.
    Position(u64),
    /// The entry whose ranks include this one, counted from the directory's first entry.
    Rank(u64),
}

/// A leaf node of a directory, with what comes before it.
struct DirectoryLeaf {
    value: Arc<NodeValue>,
    /// Entries of the directory before this node.
    entries_before: u64,
    /// Ranks taken before this node, counted from the directory's first entry.
    ranks_before: u64,
}

impl DirectoryLeaf {
    /// Its entries from `at` on.
    fn page(self, directory: &SnapshotDirectory, at: usize) -> Page {
        let rank = directory.rank.saturating_add(1).saturating_add(self.ranks_before);
        Page { value: Some(self.value), at, rank }
    }
}

/// Entries of a directory that stand in one node, one after the other.
#[derive(Default)]
pub struct Page {
    value: Option<Arc<NodeValue>>,
    at: usize,
    /// The rank of the node's first entry.
    rank: u64,
}

impl Page {
    /// Whether nothing is left of it.
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
    /// The entry `name` of a directory.
    pub fn lookup(&self, directory: &SnapshotDirectory, name: &[u8]) -> Result<Option<EntryHandle>, Error> {
        let Some(leaf) = self.leaf(directory, Sought::Name(name))? else { return Ok(None) };
        let entries = entries(&leaf.value.node)?;
        let found = entries.binary_search_by(|entry| entry.name.as_slice().cmp(name)).ok();
        Ok(found.and_then(|at| leaf.page(directory, at).next()))
    }

    /// The entry that has the absolute rank `rank`, or the directory among the entries that it lies below.
    pub fn by_rank(&self, directory: &SnapshotDirectory, rank: u64) -> Result<Option<EntryHandle>, Error> {
        let Some(within) = rank.checked_sub(directory.rank + 1) else { return Ok(None) };
        let Some(leaf) = self.leaf(directory, Sought::Rank(within))? else { return Ok(None) };
        let (at, _) = find(&leaf.value.starts, within - leaf.ranks_before);
        Ok(leaf.page(directory, at).next())
    }

    /// Entries from position `from` on: those of one node, so that memory stays bounded. Empty at the end.
    pub fn list(&self, directory: &SnapshotDirectory, from: u64) -> Result<Page, Error> {
        let Some(leaf) = self.leaf(directory, Sought::Position(from))? else { return Ok(Page::default()) };
        let at = usize::try_from(from - leaf.entries_before).unwrap_or(usize::MAX);
        Ok(leaf.page(directory, at))
    }

    /// The entry at `path` below the snapshot's root; no symbolic link is followed.
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

    /// The entry of a snapshot that has this rank.
    pub fn at_rank(&self, snapshot: &Arc<Snapshot>, rank: u64) -> Result<EntryHandle, Error> {
        let mut at = EntryHandle::root(snapshot.clone())?;
        while at.rank != rank {
            let next = match at.directory() {
                Some(directory) => self.by_rank(&directory, rank)?,
                None => None,
            };
            at = next.ok_or_else(|| Error::NotFound(format!("nothing of rank {rank} in the snapshot")))?;
        }
        Ok(at)
    }

    /// The leaf node in which `sought` is, if it is there at all.
    fn leaf(&self, directory: &SnapshotDirectory, sought: Sought<'_>) -> Result<Option<DirectoryLeaf>, Error> {
        let (location, chunk) = match &directory.top {
            Top::Empty => return Ok(None),
            Top::Broken => return Err(Error::Tree("a directory in no block of its node".into())),
            Top::Node(location, chunk) => (location, chunk),
        };
        let (mut entries_before, mut ranks_before) = (0u64, 0u64);
        let mut value = self.core.node(location, chunk)?;
        if value.covers != Some(directory.below) {
            return Err(not_as_said("ranks"));
        }
        // No name may reach the part behind the one at hand.
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
                    return Err(Error::Tree("extents where a directory should be".into()));
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
            let location = value.node.location(&segment.node).ok_or_else(|| Error::Tree("a segment nowhere".into()))?;
            let next = self.core.node(&location, &segment.node)?;
            check_segment(&next, segment, before.as_deref())?;
            value = next;
        }
        Err(Error::Tree("indexes that nest without end".into()))
    }
}

/// Checks that a node is what was said of it above: otherwise two entries could share a rank or a name.
fn check_segment(value: &NodeValue, said: &Segment, before: Option<&[u8]>) -> Result<(), Error> {
    let Some((first, last)) = value.node.names() else { return Err(not_as_said("names")) };
    if first != said.first || before.is_some_and(|before| last >= before) {
        return Err(not_as_said("names"));
    }
    match (value.covers == Some(said.span), value.node.entries() == said.entries) {
        (true, true) => Ok(()),
        (false, _) => Err(not_as_said("ranks")),
        (true, false) => Err(not_as_said("entries")),
    }
}

fn not_as_said(what: &str) -> Error {
    Error::Tree(format!("a node has other {what} than the node above it says"))
}

fn entries(node: &Node) -> Result<&[Entry], Error> {
    match &node.items {
        Items::Entries(entries) => Ok(entries),
        _ => Err(Error::Tree("no entries where a directory should be".into())),
    }
}
