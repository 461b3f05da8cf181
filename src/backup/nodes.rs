//! Tree nodes that wait: a node can be written once every block that it refers to has its place.
//!
//! Nodes form a graph: a directory's node waits for the blocks of its files and for the nodes of its
//! directories, and those again lie in blocks. Only what waits is held; what can be written, is. When a
//! node's own block has its place too, the catalog's rows about it are written. So what the catalog says
//! after a commit is true, wherever the run breaks off.

use std::collections::HashMap;

use super::Error;
use super::engine::Engine;
use super::entry::weight;
use super::limits::NODES_WAITING;
use crate::catalog::stats::Stats;
use crate::catalog::{BlockId, DirectoryId, SegmentId, Stored};
use crate::format::index::PackKind;
use crate::format::{BlockLocation, ChunkRef, Content, Digest, Extent, Items, Node, NodeRef, Segment};

/// Names a node that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeKey(u64);

/// A node that is written, with the blocks of index nodes below it, or one that will be.
#[derive(Debug, Clone)]
pub(super) enum Link {
    Ready(Stored, Vec<BlockId>),
    Waiting(NodeKey),
}

/// A place in a node that refers to another node: the item, and which of its references.
#[derive(Debug, Clone, Copy)]
struct Slot {
    item: usize,
    reference: usize,
}

/// What a node is for, that is, what the catalog says about it.
pub(super) enum Purpose {
    /// A segment of a directory.
    Segment {
        directory: DirectoryId,
        replaces: Vec<SegmentId>,
        stats: Stats,
        /// Directories among its entries.
        children: Vec<DirectoryId>,
    },
    /// An index over segments.
    Index,
    /// Extents of a file, or an index over such nodes.
    Extents,
}

/// A row that the catalog gets when the node's block has its place.
enum Row {
    Segment {
        directory: DirectoryId,
        replaces: Vec<SegmentId>,
        first: Vec<u8>,
        counts: (u64, u64),
        stored: Stored,
        blocks: Vec<BlockId>,
        more: Vec<BlockId>,
        stats: Stats,
        node: Vec<u8>,
        children: Vec<DirectoryId>,
    },
    Directory {
        id: DirectoryId,
        below: u64,
        stored: Stored,
        indexes: Vec<BlockId>,
    },
    ExtentNode {
        digest: Digest,
        blocks: Vec<BlockId>,
    },
}

/// A node that waits.
pub(super) struct Waiting {
    purpose: Purpose,
    /// The owner of the directory that it is made for.
    owner: u32,
    items: Items,
    table: Table,
    /// Blocks below extent nodes that it refers to.
    more: Vec<BlockId>,
    /// What it waits for: blocks without a place, nodes not written, and itself while items are added.
    missing: usize,
    dependents: Vec<(NodeKey, Slot)>,
    /// The directory whose top node it is.
    completes: Option<(DirectoryId, u64)>,
}

/// A node's table of blocks, under construction.
#[derive(Default)]
pub(super) struct Table {
    blocks: Vec<(BlockId, Option<BlockLocation>)>,
    index: HashMap<BlockId, u32>,
}

impl Table {
    /// The index of a block, and whether it is new.
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

/// All nodes and rows that wait.
#[derive(Default)]
pub(super) struct Nodes {
    waiting: HashMap<NodeKey, Waiting>,
    /// Nodes that were written after a link to them was given out, and before it was used.
    written: HashMap<NodeKey, (Stored, Vec<BlockId>)>,
    last: u64,
    /// Nodes that wait for a block to get its place.
    by_block: HashMap<BlockId, Vec<NodeKey>>,
    /// Rows that wait for their node's block to get its place.
    rows: HashMap<BlockId, Vec<Row>>,
    /// About how many bytes of nodes wait since no composite of files was filled, and of rows since none of nodes was.
    nodes_waiting: usize,
    rows_waiting: usize,
}

impl Row {
    /// About how many bytes it takes.
    fn weight(&self) -> usize {
        let content = match self {
            Row::Segment { stats, node, blocks, more, .. } => {
                stats.bytes() + node.len() + (blocks.len() + more.len()) * size_of::<BlockId>()
            }
            Row::Directory { indexes, .. } => indexes.len() * size_of::<BlockId>(),
            Row::ExtentNode { blocks, .. } => blocks.len() * size_of::<BlockId>(),
        };
        size_of::<Row>() + content
    }
}

impl Waiting {
    /// About how many bytes it takes.
    fn weight(&self) -> usize {
        let items = match &self.items {
            Items::Entries(entries) => entries.iter().map(weight).sum(),
            Items::Segments(segments) => segments.iter().map(|part| size_of::<Segment>() + part.first.len()).sum(),
            Items::ExtentIndex(nodes) => size_of_val(nodes.as_slice()),
            Items::Extents(extents) => size_of_val(extents.as_slice()),
        };
        size_of::<Waiting>() + items
    }
}

impl Nodes {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rows.is_empty()
    }

    /// All composites of a kind are being sealed: what waits for them goes on without more.
    pub(super) fn sealing(&mut self, kind: PackKind) {
        match kind {
            PackKind::Data => self.nodes_waiting = 0,
            PackKind::Tree => self.rows_waiting = 0,
        }
    }

    fn get(&mut self, key: NodeKey) -> Result<&mut Waiting, Error> {
        self.waiting.get_mut(&key).ok_or(Error::Stopped("a tree node is missing"))
    }
}

impl Engine<'_> {
    /// Begins a node; it is not written before [`Engine::close_node`].
    pub(super) fn open_node(&mut self, purpose: Purpose, items: Items) -> NodeKey {
        self.open_node_for(self.owner(), purpose, items)
    }

    fn open_node_for(&mut self, owner: u32, purpose: Purpose, items: Items) -> NodeKey {
        self.nodes.last += 1;
        let key = NodeKey(self.nodes.last);
        let waiting = Waiting {
            purpose,
            owner,
            items,
            table: Table::default(),
            more: Vec::new(),
            missing: 1,
            dependents: Vec::new(),
            completes: None,
        };
        self.nodes.waiting.insert(key, waiting);
        key
    }

    /// Says that all items are there. The node is written as soon as it can be.
    pub(super) fn close_node(&mut self, key: NodeKey) -> Result<Link, Error> {
        self.release(key)?;
        if let Some(node) = self.nodes.waiting.get(&key) {
            self.nodes.nodes_waiting += node.weight();
        }
        Ok(self.resolve(Link::Waiting(key)))
    }

    /// Seals composites that are not full if much waits for them.
    pub(super) fn seal_if_nodes_wait(&mut self) -> Result<(), Error> {
        if self.nodes.nodes_waiting > NODES_WAITING {
            self.close_composites(PackKind::Data)?;
            // Directories wait for those below them, too.
            self.close_composites(PackKind::Tree)?;
        }
        if self.nodes.rows_waiting > NODES_WAITING {
            self.close_composites(PackKind::Tree)?;
        }
        Ok(())
    }

    /// The link, with the node's place if it has one by now.
    fn resolve(&mut self, link: Link) -> Link {
        match link {
            Link::Waiting(key) => match self.nodes.written.remove(&key) {
                Some((stored, below)) => Link::Ready(stored, below),
                None => Link::Waiting(key),
            },
            ready => ready,
        }
    }

    /// Says whose top node this is, `below` being the entries below the directory.
    pub(super) fn complete(&mut self, link: Link, id: DirectoryId, below: u64) -> Result<Link, Error> {
        let link = self.resolve(link);
        match &link {
            Link::Ready(stored, indexes) => {
                self.row(Row::Directory { id, below, stored: *stored, indexes: indexes.clone() })?;
            }
            Link::Waiting(key) => self.nodes.get(*key)?.completes = Some((id, below)),
        }
        Ok(link)
    }

    /// Drops a node that is not closed and that nothing refers to.
    pub(super) fn discard_node(&mut self, key: NodeKey) -> Option<Purpose> {
        self.nodes.waiting.remove(&key).map(|node| node.purpose)
    }

    /// The items of a node that is not closed yet.
    pub(super) fn node_items(&mut self, key: NodeKey) -> Result<&mut Items, Error> {
        Ok(&mut self.nodes.get(key)?.items)
    }

    /// The purpose of a node that is not closed yet.
    pub(super) fn node_purpose(&mut self, key: NodeKey) -> Result<&mut Purpose, Error> {
        Ok(&mut self.nodes.get(key)?.purpose)
    }

    /// Lets a node refer to a stored chunk.
    pub(super) fn refer(&mut self, key: NodeKey, chunk: &Stored) -> Result<ChunkRef, Error> {
        self.refer_placed(key, chunk, None)
    }

    /// Lets a node refer to a stored chunk, the place of whose block may be known.
    pub(super) fn refer_placed(
        &mut self,
        key: NodeKey,
        chunk: &Stored,
        place: Option<BlockLocation>,
    ) -> Result<ChunkRef, Error> {
        let node = self.nodes.waiting.get_mut(&key).ok_or(Error::Stopped("a tree node is missing"))?;
        let (block, new) = node.table.add(chunk.block, place);
        if new && self.store.is_unplaced(chunk.block) {
            node.missing += 1;
            self.nodes.by_block.entry(chunk.block).or_default().push(key);
        }
        Ok(ChunkRef { digest: chunk.digest, block, start: chunk.start, length: chunk.length })
    }

    /// Lets item `item` of a node refer to another node, as its reference number `reference`.
    pub(super) fn depend(&mut self, key: NodeKey, item: usize, reference: usize, on: Link) -> Result<(), Error> {
        let slot = Slot { item, reference };
        match self.resolve(on) {
            Link::Ready(stored, below) => self.fill(key, slot, &stored, &below),
            Link::Waiting(other) => {
                self.nodes.get(other)?.dependents.push((key, slot));
                self.nodes.get(key)?.missing += 1;
                Ok(())
            }
        }
    }

    /// Adds blocks below extent nodes that the node refers to.
    pub(super) fn add_more(&mut self, key: NodeKey, blocks: &[BlockId]) -> Result<(), Error> {
        self.nodes.get(key)?.more.extend_from_slice(blocks);
        Ok(())
    }

    fn fill(&mut self, key: NodeKey, slot: Slot, stored: &Stored, more: &[BlockId]) -> Result<(), Error> {
        let chunk = self.refer(key, stored)?;
        let node = self.nodes.get(key)?;
        let mut more = more;
        let place = match &mut node.items {
            Items::Entries(entries) => {
                entries.get_mut(slot.item).and_then(|entry| match &mut entry.content {
                    Content::Directory(subtree) => {
                        subtree.node = Some(chunk);
                        // A directory's index nodes are in its own row.
                        more = &[];
                        None
                    }
                    Content::Nodes { nodes, .. } => nodes.get_mut(slot.reference).map(|node| &mut node.node),
                    _ => None,
                })
            }
            Items::Segments(segments) => segments.get_mut(slot.item).map(|segment| &mut segment.node),
            Items::ExtentIndex(nodes) => nodes.get_mut(slot.item).map(|node| &mut node.node),
            Items::Extents(_) => None,
        };
        if let Some(place) = place {
            *place = chunk;
        }
        node.more.extend_from_slice(more);
        Ok(())
    }

    /// One thing less that a node waits for. If it was the last, the node is written.
    fn release(&mut self, key: NodeKey) -> Result<(), Error> {
        let node = self.nodes.get(key)?;
        node.missing -= 1;
        match node.missing {
            0 => self.write(key),
            _ => Ok(()),
        }
    }

    /// Called when a block got its place: rows about it are written, and nodes that waited go on.
    pub(super) fn placed(&mut self, block: BlockId) -> Result<(), Error> {
        for row in self.nodes.rows.remove(&block).unwrap_or_default() {
            self.write_row(row)?;
        }
        for key in self.nodes.by_block.remove(&block).unwrap_or_default() {
            self.release(key)?;
        }
        Ok(())
    }

    /// Stores a node whose references all have places.
    fn write(&mut self, key: NodeKey) -> Result<(), Error> {
        let Waiting { purpose, owner, items, table, more, dependents, completes, .. } =
            self.nodes.waiting.remove(&key).ok_or(Error::Stopped("a tree node is missing"))?;
        let blocks = table.ids();
        let mut node = Node { blocks: Vec::new(), items, users: Default::default(), groups: Default::default() };
        for (id, place) in &table.blocks {
            node.blocks.push(match place {
                Some(place) => *place,
                None => self.location(*id)?,
            });
        }
        self.name_owners(&mut node);
        let bytes = node.encode();
        let stored = self.store_node(&bytes, owner)?;
        let mut below = Vec::new();
        match purpose {
            Purpose::Segment { directory, replaces, stats, children } => {
                let first = match &node.items {
                    Items::Entries(entries) => entries.first().map(|e| e.name.clone()).unwrap_or_default(),
                    _ => Vec::new(),
                };
                let entries = match &node.items {
                    Items::Entries(entries) => entries.len() as u64,
                    _ => 0,
                };
                self.use_blocks(&blocks);
                self.use_blocks(&more);
                let counts = (entries, node.span());
                self.row(Row::Segment {
                    directory,
                    replaces,
                    first,
                    counts,
                    stored,
                    blocks,
                    more,
                    stats,
                    node: bytes,
                    children,
                })?;
                if let Some((id, below)) = completes {
                    self.row(Row::Directory { id, below, stored, indexes: Vec::new() })?;
                }
            }
            Purpose::Index => {
                let mut indexes = more;
                indexes.push(stored.block);
                if let Some((id, below)) = completes {
                    self.row(Row::Directory { id, below, stored, indexes: indexes.clone() })?;
                }
                below = indexes;
            }
            Purpose::Extents => {
                below = blocks;
                below.extend(more);
                below.sort_unstable();
                below.dedup();
                self.row(Row::ExtentNode { digest: stored.digest, blocks: below.clone() })?;
            }
        }
        self.use_blocks(&[stored.block]);
        if dependents.is_empty() {
            self.nodes.written.insert(key, (stored, below.clone()));
        }
        for (dependent, slot) in dependents {
            self.fill(dependent, slot, &stored, &below)?;
            self.release(dependent)?;
        }
        Ok(())
    }

    /// Writes a row now, or when the block of its node has its place.
    fn row(&mut self, row: Row) -> Result<(), Error> {
        match &row {
            Row::Segment { stored, .. } | Row::Directory { stored, .. } if self.store.is_unplaced(stored.block) => {
                self.nodes.rows_waiting += row.weight();
                self.nodes.rows.entry(stored.block).or_default().push(row);
                Ok(())
            }
            // An extent node's row says nothing that is not true already.
            _ => self.write_row(row),
        }
    }

    fn write_row(&mut self, row: Row) -> Result<(), Error> {
        match row {
            Row::Segment { directory, replaces, first, counts, stored, blocks, more, stats, node, children } => {
                let lists = (blocks.as_slice(), more.as_slice());
                self.catalog.put_segment(directory, &replaces, &first, counts, &stored, lists, &stats, &node)?;
                self.catalog.link_directories(&children)?;
            }
            Row::Directory { id, below, stored, indexes } => {
                self.catalog.finish_directory(id, below, Some(&stored), &indexes)?;
            }
            Row::ExtentNode { digest, blocks } => self.catalog.add_extent_node(&digest, &blocks)?,
        }
        Ok(())
    }

    /// Names of the owners of a node's entries.
    pub(super) fn name_owners(&mut self, node: &mut Node) {
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

    /// Puts indexes above the parts of a directory of this owner until one node can list them.
    pub(super) fn index_segments(
        &mut self,
        mut parts: Vec<(Segment, Link)>,
        most: usize,
        owner: u32,
    ) -> Result<Vec<(Segment, Link)>, Error> {
        while parts.len() > most {
            let mut above = Vec::with_capacity(parts.len() / most + 1);
            let mut rest = parts.into_iter().peekable();
            while rest.peek().is_some() {
                let some: Vec<_> = rest.by_ref().take(most).collect();
                let segment = Segment {
                    first: some.first().map(|(part, _)| part.first.clone()).unwrap_or_default(),
                    entries: some.iter().map(|(part, _)| part.entries).sum(),
                    span: some.iter().map(|(part, _)| part.span).sum(),
                    node: PLACEHOLDER,
                };
                above.push((segment, self.segment_index(some, owner)?));
            }
            parts = above;
        }
        Ok(parts)
    }

    /// An index node over segments of a directory of this owner.
    pub(super) fn segment_index(&mut self, parts: Vec<(Segment, Link)>, owner: u32) -> Result<Link, Error> {
        let (segments, links): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let key = self.open_node_for(owner, Purpose::Index, Items::Segments(segments));
        for (item, link) in links.into_iter().enumerate() {
            self.depend(key, item, 0, link)?;
        }
        self.close_node(key)
    }

    /// Lists of extents as nodes: the links of the top level and how many levels of indexes it has.
    pub(super) fn index_extents(
        &mut self,
        mut nodes: Vec<(u64, Link)>,
        most: usize,
    ) -> Result<(u8, Vec<(u64, Link)>), Error> {
        let mut depth = 0;
        while nodes.len() > most {
            let mut above = Vec::with_capacity(nodes.len() / most + 1);
            for some in nodes.chunks(most) {
                let items = some.iter().map(|(covers, _)| NodeRef { covers: *covers, node: PLACEHOLDER });
                let key = self.open_node(Purpose::Extents, Items::ExtentIndex(items.collect()));
                for (item, (_, link)) in some.iter().enumerate() {
                    self.depend(key, item, 0, link.clone())?;
                }
                above.push((some.iter().map(|(covers, _)| covers).sum(), self.close_node(key)?));
            }
            nodes = above;
            depth += 1;
        }
        Ok((depth, nodes))
    }

    /// A node of extents, closed. `extents` come with the stored chunks that they refer to.
    pub(super) fn extents_node(&mut self, extents: &[(Extent, Option<Stored>)]) -> Result<(u64, Link), Error> {
        let covers = extents.iter().map(|(extent, _)| extent.length()).sum();
        let key = self.open_node(Purpose::Extents, Items::Extents(Vec::new()));
        let list = self.place_extents(key, extents)?;
        *self.node_items(key)? = Items::Extents(list);
        Ok((covers, self.close_node(key)?))
    }

    /// The extents with references into the table of a node.
    pub(super) fn place_extents(
        &mut self,
        key: NodeKey,
        extents: &[(Extent, Option<Stored>)],
    ) -> Result<Vec<Extent>, Error> {
        extents
            .iter()
            .map(|(extent, stored)| match stored {
                Some(stored) => Ok(Extent::Chunk(self.refer(key, stored)?)),
                None => Ok(*extent),
            })
            .collect()
    }
}

/// Stands where a reference will be filled in.
pub(super) const PLACEHOLDER: ChunkRef = ChunkRef { digest: Digest([0; 32]), block: 0, start: 0, length: 0 };
