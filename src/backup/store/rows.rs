//! Rows of the catalog about tree nodes. A row is written once the block of its node has a place in a pack.

use std::collections::HashMap;

use super::blocks::BlockStore;
use crate::backup::error::Error;
use crate::catalog::{BlockId, Catalog, DirectoryId, NewSegment, Stored};
use crate::format::pack::PackKind;

/// A directory whose top node is written.
pub(super) struct DirectoryDone {
    pub(super) id: DirectoryId,
    /// Entries below it.
    pub(super) below: u64,
    /// Its top node.
    pub(super) stored: Stored,
    /// Blocks of its index nodes.
    pub(super) indexes: Vec<BlockId>,
}

/// A row about a node.
pub(super) enum PendingRow {
    Segment {
        segment: Box<NewSegment>,
        /// The directories among its entries.
        children: Vec<DirectoryId>,
    },
    Directory(DirectoryDone),
}

impl PendingRow {
    fn block(&self) -> BlockId {
        match self {
            PendingRow::Segment { segment, .. } => segment.stored.block,
            PendingRow::Directory(done) => done.stored.block,
        }
    }

    /// About how many bytes it takes in memory.
    fn weight(&self) -> usize {
        let content = match self {
            PendingRow::Segment { segment, .. } => {
                let NewSegment { stats, node, blocks, more, .. } = segment.as_ref();
                let lists = (blocks.len() + more.len()) * size_of::<BlockId>();
                size_of::<NewSegment>() + stats.bytes() + node.len() + lists
            }
            PendingRow::Directory(done) => done.indexes.len() * size_of::<BlockId>(),
        };
        size_of::<PendingRow>() + content
    }

    fn write(&self, catalog: &Catalog) -> Result<(), Error> {
        match self {
            PendingRow::Segment { segment, children } => {
                catalog.put_segment(segment)?;
                catalog.link_directories(children)?;
            }
            PendingRow::Directory(DirectoryDone { id, below, stored, indexes }) => {
                catalog.finish_directory(*id, *below, Some(stored), indexes)?;
            }
        }
        Ok(())
    }
}

/// Rows that wait for the blocks of their nodes.
#[derive(Default)]
pub(super) struct PendingRows(HashMap<BlockId, Vec<PendingRow>>);

impl PendingRows {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes a row now, or when its node's block has a place.
    pub(super) fn put(&mut self, row: PendingRow, blocks: &mut BlockStore<'_>) -> Result<(), Error> {
        let block = row.block();
        if !blocks.is_unplaced(block) {
            return row.write(blocks.catalog());
        }
        blocks.note_waiting(PackKind::Tree, row.weight());
        self.0.entry(block).or_default().push(row);
        Ok(())
    }

    /// Writes the rows that waited for a block.
    pub(super) fn placed(&mut self, block: BlockId, catalog: &Catalog) -> Result<(), Error> {
        self.0.remove(&block).unwrap_or_default().iter().try_for_each(|row| row.write(catalog))
    }
}
