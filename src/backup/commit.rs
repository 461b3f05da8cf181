//! Commits: the order of durability.
//!
//! Packs, then their sums and index, then the catalog, then (at the end) the snapshot. Each step is taken
//! when the one before is on disk. A kill or power cut at any moment leaves old snapshots whole, no snapshot
//! that names missing data, and a catalog that claims nothing that is not there.

use std::collections::BTreeMap;

use roaring::RoaringTreemap;

use super::Error;
use super::engine::Engine;
use crate::catalog::SnapshotRow;
use crate::format::PackId;
use crate::format::id::ObjectId;
use crate::format::index::{BlockRuns, Index, PackKind, SnapshotBlocks};
use crate::format::name::SnapshotName;

/// An index lists about so many chunks at most.
const INDEX_CHUNKS: usize = 16_000;

impl Engine<'_> {
    /// Seals and places everything that waits, up to the root.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        loop {
            self.close_composites(PackKind::Data)?;
            self.drain()?;
            self.close_composites(PackKind::Tree)?;
            self.drain()?;
            // Nodes that could be written now may have begun a composite again.
            match (self.store.is_empty(), self.nodes.is_empty()) {
                (true, true) => return Ok(()),
                (true, false) => return Err(Error::Stopped("a tree node waits for nothing")),
                (false, _) => {}
            }
        }
    }

    /// Waits until no block is with the sealers.
    fn drain(&mut self) -> Result<(), Error> {
        while !self.store.sealing.is_empty() {
            self.wait_for_result()?;
        }
        Ok(())
    }

    /// Makes durable what has a place, and what the catalog says of it.
    pub(super) fn commit(&mut self, mut snapshot: Option<SnapshotBlocks>) -> Result<(), Error> {
        self.drain()?;
        if !self.open_packs.flush() {
            return Err(self.why_stopped("storing packs"));
        }
        while !self.packs.is_empty() {
            self.wait_for_result()?;
        }
        if let Some(snapshot) = &mut snapshot {
            // Its last packs are counted only now.
            snapshot.stored_bytes = self.tally.data_bytes + self.tally.tree_bytes;
        }
        self.hand_over_chunks()?;
        self.write_index(snapshot)?;
        Ok(self.catalog.commit()?)
    }

    /// Writes sums and index of the packs that are stored, once they have so many chunks that listing more would
    /// take too much memory.
    pub(super) fn index_if_due(&mut self) -> Result<(), Error> {
        match self.chunks_finished >= INDEX_CHUNKS {
            true => self.write_index(None),
            false => Ok(()),
        }
    }

    fn write_index(&mut self, snapshot: Option<SnapshotBlocks>) -> Result<(), Error> {
        let packs = std::mem::take(&mut self.finished);
        self.chunks_finished = 0;
        if packs.is_empty() && snapshot.is_none() {
            return Ok(());
        }
        self.session.announce(&mut self.catalog)?;
        self.session.still_alone()?;
        if !packs.is_empty() {
            let sums: Vec<_> = packs.iter().map(|pack| (pack.id, pack.digest)).collect();
            self.session.writer.put_sums(ObjectId::random(), &sums)?;
        }
        Ok(self.session.writer.put_index(ObjectId::random(), &Index { packs, snapshot })?)
    }

    /// What the index says of the snapshot: its blocks, as the difference to the one before.
    pub(super) fn snapshot_blocks(
        &self,
        row: &SnapshotRow,
        base: Option<(SnapshotName, RoaringTreemap)>,
    ) -> Result<SnapshotBlocks, Error> {
        let (base, before) = base.unzip();
        let before = before.unwrap_or_default();
        Ok(SnapshotBlocks {
            snapshot: row.name.clone(),
            source: row.source.clone(),
            files: row.files,
            bytes: row.bytes,
            stored_bytes: row.stored_bytes,
            base,
            added: self.runs(&(&self.used - &before))?,
            removed: self.runs(&(&before - &self.used))?,
        })
    }

    /// Blocks as runs within their packs.
    fn runs(&self, blocks: &RoaringTreemap) -> Result<Vec<(PackId, BlockRuns)>, Error> {
        let mut packs: BTreeMap<PackId, Vec<u32>> = BTreeMap::new();
        for block in blocks {
            let (pack, ordinal) = self.catalog.ordinal(crate::catalog::BlockId(block))?;
            packs.entry(pack).or_default().push(ordinal);
        }
        Ok(packs.into_iter().map(|(pack, ordinals)| (pack, runs_of(ordinals))).collect())
    }
}

/// Numbers as runs of (first, count).
fn runs_of(mut numbers: Vec<u32>) -> BlockRuns {
    numbers.sort_unstable();
    let mut runs: BlockRuns = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join() {
        assert_eq!(runs_of(vec![]), []);
        assert_eq!(runs_of(vec![3, 1, 2, 7, 9, 8]), [(1, 3), (7, 3)]);
    }
}
