//! How much of each pack is live.

use std::collections::BTreeMap;

use roaring::RoaringTreemap;

use super::error::Error;
use crate::catalog::{Catalog, PackLoad, Presence, SnapshotRow};

/// The live blocks, and the load of each pack that is not condemned.
pub(super) struct Marked {
    /// Blocks that a kept snapshot uses.
    pub(super) live: RoaringTreemap,
    pub(super) packs: Vec<PackLoad>,
}

impl Marked {
    /// The bytes of live blocks in usable packs.
    pub(super) fn live_bytes(&self) -> u64 {
        self.packs.iter().filter(|pack| pack.is_usable).map(|pack| pack.live).sum()
    }

    /// Computes again how much of each pack is live, after blocks were moved.
    pub(super) fn update(&mut self, catalog: &Catalog) -> Result<(), Error> {
        // The old list is freed first: there may be many packs.
        self.packs = Vec::new();
        self.packs = catalog.pack_loads(&self.live)?;
        Ok(())
    }
}

/// Finds live blocks.
pub(super) fn mark(catalog: &Catalog) -> Result<Marked, Error> {
    let kept: Vec<_> = kept(catalog)?.iter().map(|row| row.name.sequence).collect();
    let live = catalog.live(&kept)?;
    let packs = catalog.pack_loads(&live)?;
    Ok(Marked { live, packs })
}

/// Finds the blocks that the newest snapshot of a source uses.
pub(super) fn current(catalog: &Catalog) -> Result<RoaringTreemap, Error> {
    let newest: BTreeMap<_, _> = kept(catalog)?.into_iter().map(|row| (row.name.source, row.name.sequence)).collect();
    Ok(catalog.live(&newest.into_values().collect::<Vec<_>>())?)
}

/// The snapshots whose blocks are live, oldest first. Missing ones may reappear, so they count.
fn kept(catalog: &Catalog) -> Result<Vec<SnapshotRow>, Error> {
    let is_kept = |row: &SnapshotRow| match row.presence {
        Presence::Intended | Presence::There | Presence::NotFound => true,
        Presence::NeverWritten | Presence::Forgotten | Presence::Swept => false,
    };
    Ok(catalog.snapshots()?.into_iter().filter(is_kept).collect())
}
