//! Tree nodes that wait: a node can be written once every block that it refers to has a place in a pack.
//!
//! Nodes form a graph: a directory's node waits for the blocks of its files and for the nodes of its directories, which
//! are in blocks again. A node is written as soon as it waits for nothing, so only waiting ones are in memory. When the
//! block of the node has a place too, the catalog's rows about it are written. So the rows of a commit are true wherever
//! the run breaks off.

use std::collections::HashMap;

use roaring::RoaringTreemap;

use super::blocks::BlockStore;
use super::rows::{DirectoryDone, PendingRow, PendingRows};
use crate::backup::entry::weight;
use crate::backup::error::Error;
use crate::catalog::stats::Stats;
use crate::catalog::{BlockId, Catalog, DirectoryId, NewSegment, SegmentId, SourceRow, Stored};
use crate::format::pack::PackKind;
use crate::format::{BlockLocation, ChunkRef, Content, Digest, Entry, Items, Node, Segment};
use crate::session::NewSnapshot;
use crate::source::Owners;

/// Takes the place of a reference that is filled in later.
pub(super) const PLACEHOLDER: ChunkRef = ChunkRef { digest: Digest([0; 32]), block: 0, start: 0, length: 0 };

/// Names a waiting node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeKey(u64);

/// A reference to a node.
#[derive(Debug, Clone)]
pub(super) enum Link {
    /// The node is written. Comes with the blocks of index nodes or extents below it.
    Written(Stored, Vec<BlockId>),
    Waiting(NodeKey),
}

/// A reference of a node that has yet to be filled in.
#[derive(Debug, Clone, Copy)]
struct OpenReference {
    /// The number of the item.
    item: usize,
    /// Which of the item's references.
    reference: usize,
}

/// The purpose of a node. It decides which rows the catalog gets about the node.
pub(super) enum Purpose {
    /// A segment of a directory.
    Segment(SegmentDraft),
    /// An index over segments.
    Index,
    /// Extents of a file, or an index over such nodes.
    Extents,
}

/// A segment of a directory that is being made.
pub(super) struct SegmentDraft {
    pub(super) directory: DirectoryId,
    pub(super) replaces: Vec<SegmentId>,
    pub(super) stats: Stats,
    /// The directories among its entries.
    pub(super) children: Vec<DirectoryId>,
}

/// A node that waits.
struct WaitingNode {
    purpose: Purpose,
    /// The owner of the directory that it belongs to.
    owner: u32,
    items: Items,
    table: BlockTable,
    /// Blocks below extent nodes that it refers to.
    more: Vec<BlockId>,
    /// How many things it waits for: blocks without a place, nodes not written, and itself while items are added.
    missing: usize,
    dependents: Vec<(NodeKey, OpenReference)>,
    /// The directory whose top node it is, and the entries below that.
    completes: Option<(DirectoryId, u64)>,
}

impl WaitingNode {
    /// About how many bytes it takes in memory.
    fn weight(&self) -> usize {
        let items = match &self.items {
            Items::Entries(entries) => entries.iter().map(weight).sum(),
            Items::Segments(segments) => segments.iter().map(|part| size_of::<Segment>() + part.first.len()).sum(),
            Items::ExtentIndex(nodes) => size_of_val(nodes.as_slice()),
            Items::Extents(extents) => size_of_val(extents.as_slice()),
        };
        size_of::<WaitingNode>() + items
    }

    /// Fills in a reference. `more` are the blocks of index nodes or extents below the node that it leads to.
    fn fill(&mut self, at: OpenReference, chunk: ChunkRef, more: &[BlockId]) {
        let place = match &mut self.items {
            Items::Entries(entries) => match entries.get_mut(at.item).map(|entry| &mut entry.content) {
                Some(Content::Directory(subtree)) => {
                    subtree.node = Some(chunk);
                    // The row of that directory has its index nodes.
                    return;
                }
                Some(Content::Nodes { nodes, .. }) => nodes.get_mut(at.reference).map(|node| &mut node.node),
                _ => None,
            },
            Items::Segments(segments) => segments.get_mut(at.item).map(|segment| &mut segment.node),
            Items::ExtentIndex(nodes) => nodes.get_mut(at.item).map(|node| &mut node.node),
            Items::Extents(_) => None,
        };
        if let Some(place) = place {
            *place = chunk;
        }
        self.more.extend_from_slice(more);
    }
}

/// A node's table of blocks, under construction.
#[derive(Default)]
struct BlockTable {
    blocks: Vec<(BlockId, Option<BlockLocation>)>,
    index: HashMap<BlockId, u32>,
}

impl BlockTable {
    /// Returns the index of a block, and whether it is new in the table.
    fn add(&mut self, block: BlockId, place: Option<BlockLocation>) -> (u32, bool) {
        let next = self.blocks.len() as u32;
        let at = *self.index.entry(block).or_insert(next);
        if at == next {
            self.blocks.push((block, place));
        }
        (at, at == next)
    }

    fn ids(&self) -> Vec<BlockId> {
        self.blocks.iter().map(|(id, _)| *id).collect()
    }
}

/// All nodes that wait.
pub(in crate::backup) struct Nodes<'a> {
    blocks: BlockStore<'a>,
    owners: Owners,
    waiting: HashMap<NodeKey, WaitingNode>,
    /// Nodes that were written while a link to them was given out and not used yet.
    written: HashMap<NodeKey, (Stored, Vec<BlockId>)>,
    last: u64,
    /// Nodes that wait for a block to get its place.
    by_block: HashMap<BlockId, Vec<NodeKey>>,
    rows: PendingRows,
    /// Blocks of the snapshot that is being made.
    used: RoaringTreemap,
}

impl<'a> Nodes<'a> {
    pub(in crate::backup) fn new(blocks: BlockStore<'a>) -> Self {
        Nodes {
            blocks,
            owners: Owners::default(),
            waiting: HashMap::new(),
            written: HashMap::new(),
            last: 0,
            by_block: HashMap::new(),
            rows: PendingRows::default(),
            used: RoaringTreemap::new(),
        }
    }

    pub(in crate::backup) fn blocks(&self) -> &BlockStore<'a> {
        &self.blocks
    }

    pub(in crate::backup) fn blocks_mut(&mut self) -> &mut BlockStore<'a> {
        &mut self.blocks
    }

    pub(in crate::backup) fn catalog(&self) -> &Catalog {
        self.blocks.catalog()
    }

    /// Notes that the snapshot uses these blocks.
    pub(super) fn use_blocks(&mut self, blocks: &[BlockId]) {
        self.used.extend(blocks.iter().map(|block| block.0));
    }

    /// The blocks that the snapshot uses.
    pub(in crate::backup) fn take_used(&mut self) -> RoaringTreemap {
        std::mem::take(&mut self.used)
    }

    /// Begins a node for a directory of this owner. It is not written before [`Nodes::close`].
    pub(super) fn open(&mut self, owner: u32, purpose: Purpose, items: Items) -> NodeKey {
        self.last += 1;
        let key = NodeKey(self.last);
        let node = WaitingNode {
            purpose,
            owner,
            items,
            table: BlockTable::default(),
            more: Vec::new(),
            missing: 1,
            dependents: Vec::new(),
            completes: None,
        };
        self.waiting.insert(key, node);
        key
    }

    /// Ends a node: all its items are there. It is written as soon as it can be.
    pub(super) fn close(&mut self, key: NodeKey) -> Result<Link, Error> {
        self.release(key)?;
        if let Some(node) = self.waiting.get(&key) {
            self.blocks.note_waiting(PackKind::Data, node.weight());
        }
        Ok(self.resolve(Link::Waiting(key)))
    }

    /// Drops a node that is not closed and that no node refers to.
    pub(super) fn discard(&mut self, key: NodeKey) -> Option<Purpose> {
        self.waiting.remove(&key).map(|node| node.purpose)
    }

    /// The items of a node that is not closed yet.
    pub(super) fn items(&mut self, key: NodeKey) -> Result<&mut Items, Error> {
        Ok(&mut self.get(key)?.items)
    }

    /// The segment that a node is for, before it is closed.
    pub(super) fn segment(&mut self, key: NodeKey) -> Result<&mut SegmentDraft, Error> {
        match &mut self.get(key)?.purpose {
            Purpose::Segment(draft) => Ok(draft),
            _ => Err(Error::Internal("a tree node is not a segment")),
        }
    }

    /// Makes a node the top node of a directory, with `below` entries below that.
    pub(super) fn complete(&mut self, link: Link, directory: DirectoryId, below: u64) -> Result<Link, Error> {
        let link = self.resolve(link);
        match &link {
            Link::Written(stored, indexes) => {
                let done = DirectoryDone { id: directory, below, stored: *stored, indexes: indexes.clone() };
                self.rows.put(PendingRow::Directory(done), &mut self.blocks)?;
            }
            Link::Waiting(key) => self.get(*key)?.completes = Some((directory, below)),
        }
        Ok(link)
    }

    /// Makes a node refer to a stored chunk, the place of whose block may be known.
    pub(super) fn refer(
        &mut self,
        key: NodeKey,
        chunk: &Stored,
        place: Option<BlockLocation>,
    ) -> Result<ChunkRef, Error> {
        let node = self.waiting.get_mut(&key).ok_or(Error::Internal("a tree node is missing"))?;
        let (block, new) = node.table.add(chunk.block, place);
        if new && self.blocks.is_unplaced(chunk.block) {
            node.missing += 1;
            self.by_block.entry(chunk.block).or_default().push(key);
        }
        Ok(ChunkRef { digest: chunk.digest, block, start: chunk.start, length: chunk.length })
    }

    /// Makes item `item` of a node refer to another node, as its reference number `reference`.
    pub(super) fn depend(&mut self, key: NodeKey, item: usize, reference: usize, on: Link) -> Result<(), Error> {
        let at = OpenReference { item, reference };
        match self.resolve(on) {
            Link::Written(stored, below) => self.fill(key, at, &stored, &below),
            Link::Waiting(other) => {
                self.get(other)?.dependents.push((key, at));
                self.get(key)?.missing += 1;
                Ok(())
            }
        }
    }

    /// Adds blocks below extent nodes that the node refers to.
    pub(super) fn add_more(&mut self, key: NodeKey, blocks: &[BlockId]) -> Result<(), Error> {
        self.get(key)?.more.extend_from_slice(blocks);
        Ok(())
    }

    /// The node of a snapshot: the entry of its root directory, whose top node is stored.
    pub(in crate::backup) fn root(
        &mut self,
        directory: DirectoryId,
        entry: impl FnOnce(u64, Option<ChunkRef>) -> Entry,
    ) -> Result<Node, Error> {
        let mut blocks = Vec::new();
        let mut top = None;
        let (below, stored) = self.catalog().subtree(directory)?;
        if let Some(Stored { digest, block, start, length }) = stored {
            blocks.push(self.blocks.location(block)?);
            top = Some(ChunkRef { digest, block: 0, start, length });
        }
        self.catalog().link_directories(&[directory])?;
        let items = Items::Entries(vec![entry(below, top)]);
        let mut node = Node { blocks, items, users: Default::default(), groups: Default::default() };
        self.name_owners(&mut node);
        Ok(node)
    }

    /// Handles the results of sealing that are available, without waiting, and seals composites if much waits for them.
    pub(super) fn take_results(&mut self) -> Result<(), Error> {
        while let Some(block) = self.blocks.poll()? {
            self.placed(block)?;
        }
        self.blocks.seal_if_awaited()
    }

    /// Seals and places everything that waits, up to the root.
    pub(in crate::backup) fn settle(&mut self) -> Result<(), Error> {
        loop {
            self.blocks.close_composites(PackKind::Data)?;
            self.drain()?;
            self.blocks.close_composites(PackKind::Tree)?;
            self.drain()?;
            // Nodes that could be written now may have begun a composite again.
            if self.blocks.is_idle() {
                let done = self.waiting.is_empty() && self.rows.is_empty();
                return if done { Ok(()) } else { Err(Error::Internal("a tree node waits for nothing")) };
            }
        }
    }

    /// Waits until no block is with the sealers.
    fn drain(&mut self) -> Result<(), Error> {
        while self.blocks.is_sealing() {
            if let Some(block) = self.blocks.wait()? {
                self.placed(block)?;
            }
        }
        Ok(())
    }

    /// Makes all sealed blocks durable, and the catalog's rows about them.
    pub(in crate::backup) fn commit(&mut self) -> Result<(), Error> {
        self.drain()?;
        self.blocks.commit()
    }

    /// Ends a run without a snapshot: commits the stored packs. After an interrupt, the others are dropped within seconds.
    pub(in crate::backup) fn keep_stored(&mut self) -> Result<(), Error> {
        match self.drain() {
            Ok(()) | Err(Error::Interrupted) => self.blocks.keep_stored(),
            Err(error) => Err(error),
        }
    }

    /// Commits if it is time to.
    pub(super) fn commit_if_due(&mut self) -> Result<(), Error> {
        if self.blocks.is_commit_due() { self.commit() } else { Ok(()) }
    }

    /// Commits together with the row of a snapshot of `source` that is about to be written.
    pub(in crate::backup) fn commit_snapshot(
        &mut self,
        snapshot: &NewSnapshot,
        source: SourceRow,
    ) -> Result<(), Error> {
        self.drain()?;
        self.blocks.commit_snapshot(snapshot, source)
    }

    fn get(&mut self, key: NodeKey) -> Result<&mut WaitingNode, Error> {
        self.waiting.get_mut(&key).ok_or(Error::Internal("a tree node is missing"))
    }

    /// Replaces a link to a waiting node if that has been written since.
    fn resolve(&mut self, link: Link) -> Link {
        match link {
            Link::Waiting(key) => match self.written.remove(&key) {
                Some((stored, below)) => Link::Written(stored, below),
                None => Link::Waiting(key),
            },
            written => written,
        }
    }

    fn fill(&mut self, key: NodeKey, at: OpenReference, stored: &Stored, more: &[BlockId]) -> Result<(), Error> {
        let chunk = self.refer(key, stored, None)?;
        self.get(key)?.fill(at, chunk, more);
        Ok(())
    }

    /// A node waits for one thing less. If it was the last, writes the node.
    fn release(&mut self, key: NodeKey) -> Result<(), Error> {
        let node = self.get(key)?;
        node.missing -= 1;
        if node.missing == 0 { self.write(key) } else { Ok(()) }
    }

    /// A block has a place now: writes the rows about it, and releases the nodes that waited for it.
    fn placed(&mut self, block: BlockId) -> Result<(), Error> {
        self.rows.placed(block, self.blocks.catalog())?;
        for key in self.by_block.remove(&block).unwrap_or_default() {
            self.release(key)?;
        }
        Ok(())
    }

    /// Stores a node whose references all have places, and the rows about it.
    fn write(&mut self, key: NodeKey) -> Result<(), Error> {
        let WaitingNode { purpose, owner, items, table, more, dependents, completes, .. } =
            self.waiting.remove(&key).ok_or(Error::Internal("a tree node is missing"))?;
        let node = self.node_of(items, &table)?;
        let bytes = node.encode();
        let stored = self.blocks.store_node(&bytes, owner)?;
        let below = match purpose {
            Purpose::Segment(draft) => {
                self.write_segment(draft, &node, NodeInBlock { stored, bytes, blocks: table.ids(), more })?;
                Vec::new()
            }
            Purpose::Index => {
                let mut indexes = more;
                indexes.push(stored.block);
                indexes
            }
            Purpose::Extents => {
                let mut below = table.ids();
                below.extend(more);
                below.sort_unstable();
                below.dedup();
                // This row is true already: it says nothing about places.
                self.catalog().add_extent_node(&stored.digest, &below)?;
                below
            }
        };
        if let Some((id, entries)) = completes {
            let done = DirectoryDone { id, below: entries, stored, indexes: below.clone() };
            self.rows.put(PendingRow::Directory(done), &mut self.blocks)?;
        }
        self.use_blocks(&[stored.block]);
        if dependents.is_empty() {
            self.written.insert(key, (stored, below));
            return Ok(());
        }
        for (dependent, at) in dependents {
            self.fill(dependent, at, &stored, &below)?;
            self.release(dependent)?;
        }
        Ok(())
    }

    fn node_of(&mut self, items: Items, table: &BlockTable) -> Result<Node, Error> {
        let mut blocks = Vec::with_capacity(table.blocks.len());
        for (id, place) in &table.blocks {
            blocks.push(match place {
                Some(place) => *place,
                None => self.blocks.location(*id)?,
            });
        }
        let mut node = Node { blocks, items, users: Default::default(), groups: Default::default() };
        self.name_owners(&mut node);
        Ok(node)
    }

    fn write_segment(&mut self, draft: SegmentDraft, node: &Node, stored: NodeInBlock) -> Result<(), Error> {
        let SegmentDraft { directory, replaces, stats, children } = draft;
        let NodeInBlock { stored, bytes, blocks, more } = stored;
        let entries = match &node.items {
            Items::Entries(entries) => entries.as_slice(),
            _ => &[],
        };
        self.use_blocks(&blocks);
        self.use_blocks(&more);
        let segment = NewSegment {
            directory,
            replaces,
            first: entries.first().map(|entry| entry.name.clone()).unwrap_or_default(),
            entries: entries.len() as u64,
            span: node.span(),
            stored,
            blocks,
            more,
            stats,
            node: bytes,
        };
        self.rows.put(PendingRow::Segment { segment: Box::new(segment), children }, &mut self.blocks)
    }

    /// Adds the names of the owners of a node's entries.
    fn name_owners(&mut self, node: &mut Node) {
        let Items::Entries(entries) = &node.items else { return };
        for entry in entries {
            if let Some(name) = self.owners.user(entry.uid) {
                node.users.entry(entry.uid).or_insert_with(|| name.to_string());
            }
            if let Some(name) = self.owners.group(entry.gid) {
                node.groups.entry(entry.gid).or_insert_with(|| name.to_string());
            }
        }
    }
}

/// An encoded node, and the block that it is stored in.
struct NodeInBlock {
    stored: Stored,
    bytes: Vec<u8>,
    /// The blocks of its table.
    blocks: Vec<BlockId>,
    /// Blocks below extent nodes that it refers to.
    more: Vec<BlockId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::fixture::Site;
    use crate::catalog::Parent;
    use crate::format::{Extent, Kind, Subtree, Timestamp};
    use crate::source::Inode;

    fn entry(name: &str, kind: Kind, content: Content) -> Entry {
        Entry {
            name: name.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: 1,
            content,
            link: None,
            xattrs: Vec::new(),
            flags: 0,
            inode_flags: 0,
        }
    }

    /// A new directory of the catalog.
    fn directory(nodes: &Nodes<'_>, number: u64) -> DirectoryId {
        let parent = Parent::Source(SourceRow(1));
        nodes.catalog().enter_directory(parent, &number.to_be_bytes(), Inode { device: 1, number }).unwrap()
    }

    fn open_segment(nodes: &mut Nodes<'_>, directory: DirectoryId) -> NodeKey {
        let draft = SegmentDraft { directory, replaces: Vec::new(), stats: Stats::default(), children: Vec::new() };
        nodes.open(0, Purpose::Segment(draft), Items::Entries(Vec::new()))
    }

    fn push(nodes: &mut Nodes<'_>, key: NodeKey, entry: Entry) {
        match nodes.items(key).unwrap() {
            Items::Entries(entries) => entries.push(entry),
            _ => panic!("not a segment"),
        }
    }

    fn store(nodes: &mut Nodes<'_>, bytes: &[u8]) -> Stored {
        nodes.blocks_mut().store_data(Digest::of(bytes), 0, || Ok(bytes.to_vec())).unwrap()
    }

    /// Closes a segment that is all of its directory.
    fn finish(nodes: &mut Nodes<'_>, key: NodeKey, directory: DirectoryId, below: u64) -> Link {
        let link = nodes.close(key).unwrap();
        nodes.complete(link, directory, below).unwrap()
    }

    #[test]
    fn a_node_waits_for_the_block_of_its_file_and_its_row_for_its_own_block() {
        Site::new().with_nodes(|mut nodes| {
            let directory = directory(&nodes, 1);
            let key = open_segment(&mut nodes, directory);
            let chunk = store(&mut nodes, b"x");
            let content = Content::Chunk(nodes.refer(key, &chunk, None).unwrap());
            push(&mut nodes, key, entry("f", Kind::File, content));
            assert!(matches!(finish(&mut nodes, key, directory, 1), Link::Waiting(_)));

            nodes.blocks.close_composites(PackKind::Data).unwrap();
            nodes.drain().unwrap();
            assert!(nodes.waiting.is_empty() && !nodes.rows.is_empty());
            assert!(nodes.catalog().subtree(directory).is_err());

            nodes.settle().unwrap();
            assert!(nodes.rows.is_empty());
            let (below, top) = nodes.catalog().subtree(directory).unwrap();
            assert_eq!(below, 1);
            assert_eq!(nodes.take_used(), [chunk.block.0, top.unwrap().block.0].into_iter().collect());
        });
    }

    #[test]
    fn a_directory_waits_for_the_directories_in_it() {
        Site::new().with_nodes(|mut nodes| {
            let [parent, child] = [1, 2].map(|number| directory(&nodes, number));
            let below = open_segment(&mut nodes, child);
            let chunk = store(&mut nodes, b"x");
            let content = Content::Chunk(nodes.refer(below, &chunk, None).unwrap());
            push(&mut nodes, below, entry("f", Kind::File, content));
            let link = finish(&mut nodes, below, child, 1);

            let above = open_segment(&mut nodes, parent);
            push(&mut nodes, above, entry("d", Kind::Directory, Content::Directory(Subtree { below: 1, node: None })));
            nodes.depend(above, 0, 0, link).unwrap();
            finish(&mut nodes, above, parent, 2);
            nodes.settle().unwrap();

            let node = nodes.root(parent, |below, top| {
                assert_eq!(below, 2);
                entry("", Kind::Directory, Content::Directory(Subtree { below, node: top }))
            });
            assert_eq!(node.unwrap().blocks.len(), 1);
            let top = nodes.catalog().subtree(child).unwrap().1.unwrap();
            assert!(nodes.take_used().contains(top.block.0));

            // The parent's node refers to the child's.
            nodes.commit().unwrap();
            let past = nodes.catalog().past().unwrap();
            let segment = past.segment_node(past.segment_ids(parent).unwrap()[0]).unwrap().unwrap();
            let Items::Entries(entries) = segment.node.items else { panic!("not a segment") };
            let Content::Directory(Subtree { node: Some(chunk), .. }) = &entries[0].content else {
                panic!("the directory has no node")
            };
            assert_eq!((chunk.digest, segment.blocks[chunk.block as usize]), (top.digest, top.block));
        });
    }

    #[test]
    fn a_node_without_open_references_is_written_when_it_is_closed() {
        Site::new().with_nodes(|mut nodes| {
            let key = nodes.open(0, Purpose::Extents, Items::Extents(vec![Extent::Hole(5)]));
            let Link::Written(stored, below) = nodes.close(key).unwrap() else { panic!("it waits") };
            assert!(below.is_empty() && nodes.waiting.is_empty() && nodes.written.is_empty());
            assert!(nodes.blocks.known(&stored.digest).unwrap().is_some());
        });
    }

    #[test]
    fn a_node_that_waits_for_nothing_that_comes_is_an_error() {
        Site::new().with_nodes(|mut nodes| {
            let directory = directory(&nodes, 1);
            open_segment(&mut nodes, directory);
            assert!(nodes.settle().is_err());
        });
    }

    #[test]
    fn a_dropped_node_is_not_waited_for() {
        Site::new().with_nodes(|mut nodes| {
            let directory = directory(&nodes, 1);
            let key = open_segment(&mut nodes, directory);
            assert!(matches!(nodes.discard(key), Some(Purpose::Segment(_))));
            nodes.settle().unwrap();
            nodes.commit().unwrap();
        });
    }

    #[test]
    fn a_table_has_each_block_once() {
        let mut table = BlockTable::default();
        assert_eq!([3, 5, 3].map(|block| table.add(BlockId(block), None)), [(0, true), (1, true), (0, false)]);
        assert_eq!(table.ids(), [BlockId(3), BlockId(5)]);
    }
}
