//! Directories: entries by name, by position, and by rank.
//!
//! The rank of an entry is its position in a preorder walk of the snapshot: the root has rank 0, and a directory of rank
//! r with n entries below it takes the ranks r to r + n. Nodes store how many ranks each child takes, so an entry is found
//! by its rank with one descent and no table.

use std::collections::HashSet;
use std::sync::Arc;

use super::blocks::NodeValue;
use super::cache::Weigh;
use super::error::Error;
use super::open::Reader;
use super::prefetch::{PrefetchRequest, Until};
use super::starts::find;
use crate::archive::entry::DirectoryLocation;
use crate::archive::{ContentPosition, EntryHandle, EntryList, EntryRef, Page, SnapshotDirectory};
use crate::format::entry::{Content, Subtree};
use crate::format::snapshot::Snapshot;
use crate::format::{BlockLocation, ChunkRef, Digest, Entry, Extent, Items, Node, PackId, Segment};

/// Maximum depth of segment indexes. With about 1,000 segments per node, no directory needs this many.
const INDEX_DEPTH: usize = 8;

impl EntryList for NodeValue {
    fn len(&self) -> usize {
        self.entries().len()
    }

    fn bytes(&self) -> usize {
        self.weight()
    }

    fn entry(&self, at: usize) -> Option<EntryRef<'_>> {
        let entry = self.entries().get(at)?;
        Some(EntryRef {
            name: &entry.name,
            kind: entry.kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: entry.size,
            target: match &entry.content {
                Content::Target(target) => target,
                _ => b"",
            },
            device: match entry.content {
                Content::Device(major, minor) => (major, minor),
                _ => (0, 0),
            },
            link: entry.link,
            xattrs: &entry.xattrs,
            flags: entry.flags,
            inode_flags: entry.inode_flags,
        })
    }

    fn ranks_before(&self, at: usize) -> u64 {
        self.starts.get(at).copied().unwrap_or(u64::MAX)
    }

    fn directory(&self, at: usize, rank: u64) -> Option<SnapshotDirectory> {
        let Content::Directory(subtree) = &self.entries().get(at)?.content else { return None };
        let location = subtree.node.and_then(|chunk| Some(encode(self.node.location(&chunk)?, &chunk)));
        Some(SnapshotDirectory {
            rank,
            below: subtree.below,
            digest: subtree.node.map(|chunk| chunk.digest),
            location: location.unwrap_or(INVALID),
        })
    }

    fn user(&self, at: usize) -> Option<&str> {
        self.node.users.get(&self.entries().get(at)?.uid).map(String::as_str)
    }

    fn group(&self, at: usize) -> Option<&str> {
        self.node.groups.get(&self.entries().get(at)?.gid).map(String::as_str)
    }

    fn digest(&self, at: usize) -> Option<Digest> {
        match &self.entries().get(at)?.content {
            Content::Chunk(chunk) => Some(chunk.digest),
            Content::Extents { digest, .. } | Content::Nodes { digest, .. } => Some(*digest),
            _ => None,
        }
    }

    fn stored_bytes(&self, at: usize) -> u64 {
        let Some(entry) = self.entries().get(at) else { return 0 };
        match &entry.content {
            Content::Extents { extents, .. } => extents
                .iter()
                .filter(|extent| matches!(extent, Extent::Chunk(_)))
                .fold(0, |sum, extent| sum + extent.length()),
            Content::Nodes { holes, .. } => entry.size.saturating_sub(*holes),
            Content::Target(_) => 0,
            _ => entry.size,
        }
    }

    fn file_digest(&self, at: usize) -> Digest {
        self.entries().get(at).map_or(Digest([0; 32]), Entry::file_digest)
    }

    fn inode_digest(&self, at: usize) -> Digest {
        self.entries().get(at).map_or(Digest([0; 32]), Entry::inode_digest)
    }

    fn content_position(&self, at: usize) -> Option<ContentPosition> {
        let chunk = match &self.entries().get(at)?.content {
            Content::Chunk(chunk) => chunk,
            Content::Extents { extents, .. } => extents.iter().find_map(|extent| match extent {
                Extent::Chunk(chunk) => Some(chunk),
                Extent::Hole(_) => None,
            })?,
            // The nodes of a large file are stored next to its content.
            Content::Nodes { nodes, .. } => &nodes.first()?.node,
            _ => return None,
        };
        let block = self.node.location(chunk)?;
        Some(ContentPosition { object: *block.pack.as_bytes(), offset: block.offset })
    }
}

impl NodeValue {
    /// The block with the content of a small file.
    fn small_content(&self, at: usize) -> Option<BlockLocation> {
        match &self.entries().get(at)?.content {
            Content::Chunk(chunk) => self.node.location(chunk),
            _ => None,
        }
    }

    /// The entries of a directory node; none in nodes of other kinds.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.node.items {
            Items::Entries(entries) => entries,
            _ => &[],
        }
    }
}

/// The location of a directory that is empty, or whose reference is invalid. No block has length 0.
const INVALID: DirectoryLocation = [0; 5];

/// Encodes the location of a directory's top node, except for the digest.
fn encode(block: BlockLocation, chunk: &ChunkRef) -> DirectoryLocation {
    let pack = u128::from_be_bytes(*block.pack.as_bytes());
    let lengths = u64::from(block.length) << 32 | u64::from(chunk.length);
    [(pack >> 64) as u64, pack as u64, block.offset, lengths, chunk.start.into()]
}

/// Returns the top node of a directory and the block with it; `None` if the directory is empty or its reference is
/// invalid.
pub fn top_node(directory: &SnapshotDirectory) -> Option<(BlockLocation, ChunkRef)> {
    let [high, low, offset, lengths, start] = directory.location;
    let (length, digest) = ((lengths >> 32) as u32, directory.digest?);
    let pack = u128::from(high) << 64 | u128::from(low);
    let pack = PackId::from_slice(&pack.to_be_bytes()).ok().filter(|_| length > 0)?;
    let chunk = ChunkRef { digest, block: 0, start: start as u32, length: lengths as u32 };
    Some((BlockLocation { pack, offset, length }, chunk))
}

/// Returns the root directory of a snapshot.
pub fn root_of(snapshot: &Snapshot) -> Result<EntryHandle, Error> {
    match snapshot.root_entry() {
        Some(_) => Ok(EntryHandle::new(Arc::new(NodeValue::new(snapshot.root.clone(), 0)), 0, 0)),
        None => Err(Error::Tree("the snapshot has no root".into())),
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
        Page::new(self.value, at, rank)
    }
}

/// A position in an index node of a large directory.
struct IndexPosition {
    value: Arc<NodeValue>,
    /// The segment with the position.
    at: usize,
    /// Entries of the segment before the position.
    before: u64,
}

impl IndexPosition {
    /// The position after `before` entries of a node; `None` if it is not in a segment of this node.
    fn new(value: Arc<NodeValue>, mut before: u64) -> Option<Self> {
        let Items::Segments(segments) = &value.node.items else { return None };
        let mut at = 0;
        while segments.get(at)?.entries <= before {
            before -= segments.get(at)?.entries;
            at += 1;
        }
        Some(IndexPosition { value, at, before })
    }

    /// The segments from the position on.
    fn segments(&self) -> &[Segment] {
        match &self.value.node.items {
            Items::Segments(segments) => segments.get(self.at..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Number of entries left in the segment with the position.
    fn left(&self) -> u64 {
        self.segments().first().map_or(0, |segment| segment.entries - self.before)
    }

    /// The number of entries in the segments from here on that are the same in both nodes.
    fn shared(&self, other: &IndexPosition) -> u64 {
        if self.before > 0 || other.before > 0 {
            return 0;
        }
        let pairs = self.segments().iter().zip(other.segments());
        let is_same =
            |(a, b): &(&Segment, &Segment)| (a.node.digest, a.entries, a.span) == (b.node.digest, b.entries, b.span);
        pairs.take_while(is_same).map(|(segment, _)| segment.entries).fold(0, u64::saturating_add)
    }
}

impl Reader {
    /// Returns the number of entries in the nodes that start at these positions in both directories and have the same
    /// digests. Reads only index nodes, and the nodes that [`Reader::page`] reads next.
    pub(super) fn shared_entries(
        &self,
        a: (&SnapshotDirectory, u64),
        b: (&SnapshotDirectory, u64),
    ) -> Result<u64, Error> {
        let top = |(directory, from): (&SnapshotDirectory, u64)| match top_node(directory) {
            Some((location, chunk)) => Ok(IndexPosition::new(self.core.node(&location, &chunk)?, from)),
            None => Ok::<_, Error>(None),
        };
        let (Some(mut a), Some(mut b)) = (top(a)?, top(b)?) else { return Ok(0) };
        for _ in 0..2 * INDEX_DEPTH {
            let shared = a.shared(&b);
            if shared > 0 {
                return Ok(shared);
            }
            // The larger segment cannot be a part of the smaller one.
            let larger = if (a.left(), a.before) >= (b.left(), b.before) { &mut a } else { &mut b };
            match self.below(larger)? {
                Some(below) => *larger = below,
                None => return Ok(0),
            }
        }
        Ok(0)
    }

    /// The same position in the node of its segment; `None` if that has entries.
    fn below(&self, position: &IndexPosition) -> Result<Option<IndexPosition>, Error> {
        let Some(segment) = position.segments().first() else { return Ok(None) };
        let Some(location) = position.value.node.location(&segment.node) else { return Ok(None) };
        Ok(IndexPosition::new(self.core.node(&location, &segment.node)?, position.before))
    }

    /// Finds an entry of a directory by name.
    pub(super) fn find_name(&self, directory: &SnapshotDirectory, name: &[u8]) -> Result<Option<EntryHandle>, Error> {
        let Some(leaf) = self.leaf(directory, Sought::Name(name))? else { return Ok(None) };
        let entries = entries(&leaf.value.node)?;
        let found = entries.binary_search_by(|entry| entry.name.as_slice().cmp(name)).ok();
        Ok(found.and_then(|at| leaf.page(directory, at).next()))
    }

    /// Finds the entry of a directory that has the absolute rank `rank` or contains the entry with it.
    pub(super) fn find_rank(&self, directory: &SnapshotDirectory, rank: u64) -> Result<Option<EntryHandle>, Error> {
        let Some(within) = rank.checked_sub(directory.rank.saturating_add(1)) else { return Ok(None) };
        let Some(leaf) = self.leaf(directory, Sought::Rank(within))? else { return Ok(None) };
        let (at, _) = find(&leaf.value.starts, within - leaf.ranks_before);
        Ok(leaf.page(directory, at).next())
    }

    /// Returns entries from position `from` on: those of one node, so that memory stays bounded. Empty at the end.
    pub(super) fn page(&self, directory: &SnapshotDirectory, from: u64) -> Result<Page, Error> {
        let Some(leaf) = self.leaf(directory, Sought::Position(from))? else { return Ok(Page::default()) };
        let at = usize::try_from(from - leaf.entries_before).unwrap_or(usize::MAX);
        self.prefetch_directories(&leaf.value, at);
        // A program that reads files of one directory after the other reads those of this one next.
        if self.core.take_content_read() {
            let files = leaf.value.entries().len();
            let blocks = (at..files).filter_map(|at| leaf.value.small_content(at));
            self.prefetch_blocks(blocks, self.prefetch.reach.announced_files);
        }
        Ok(leaf.page(directory, at))
    }

    /// Prefetches blocks with the directories in a node, from this index on: programs that list a tree need them next.
    pub(super) fn prefetch_directories(&self, value: &NodeValue, at: usize) {
        let entries = value.entries().get(at..).unwrap_or_default().iter();
        let blocks = entries.filter_map(|entry| match &entry.content {
            Content::Directory(Subtree { node, .. }) => value.node.location(node.as_ref()?),
            _ => None,
        });
        self.prefetch_blocks(blocks, self.prefetch.reach.directories);
    }

    /// Prefetches the content of a small file. Large ones are prefetched while they are read.
    pub(super) fn prefetch_content(&self, file: &EntryHandle) {
        if let Some((list, at)) = file.in_list::<NodeValue>() {
            self.prefetch_blocks(list.small_content(at).into_iter(), self.announced_files());
        }
    }

    /// The number of blocks with small files to prefetch before they are read, as far as the cache has room.
    pub(super) fn announced_files(&self) -> usize {
        self.prefetch.reach.announced_files.min(self.core.room_for_blocks())
    }

    fn prefetch_blocks(&self, blocks: impl Iterator<Item = BlockLocation>, most: usize) {
        let most = most.min(self.core.room_for_blocks());
        let mut last = None;
        let blocks = blocks.filter(|block| last.replace(*block) != Some(*block)).take(most);
        let request = |block| PrefetchRequest { block, chunks: Vec::new(), until: Until::Open };
        self.prefetch.send(&self.core, blocks.map(request).collect());
    }

    /// Whether the top node of a directory can be read and has as many entries below it as the parent claims.
    pub fn has_below(&self, directory: &SnapshotDirectory) -> bool {
        let node = top_node(directory).map(|(location, chunk)| self.core.node(&location, &chunk));
        matches!(node, Some(Ok(value)) if value.covers == Some(directory.below))
    }

    /// Passes the location of each node of a directory to `take`: of its top node, and of the parts of a large directory.
    /// A node that is used several times is passed once.
    pub fn each_node(&self, directory: &SnapshotDirectory, take: &mut dyn FnMut(&BlockLocation)) -> Result<(), Error> {
        let Some((location, chunk)) = top_node(directory) else { return Ok(()) };
        let mut passed = HashSet::new();
        let mut waiting = vec![(location, chunk, 0)];
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

    /// Returns the leaf node that contains `sought`, if it exists.
    fn leaf(&self, directory: &SnapshotDirectory, sought: Sought<'_>) -> Result<Option<DirectoryLeaf>, Error> {
        if directory.digest.is_none() {
            return Ok(None);
        }
        let Some((location, chunk)) = top_node(directory) else {
            return Err(Error::Tree("the reference of a directory names no block of its node".into()));
        };
        let (mut entries_before, mut ranks_before) = (0u64, 0u64);
        let mut value = self.core.node(&location, &chunk)?;
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
