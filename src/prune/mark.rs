//! How much of each pack is live.

use roaring::RoaringTreemap;

use super::error::Error;
use crate::catalog::{Catalog, PackLoad, Presence, SnapshotRow};

/// The live blocks, and the load of each pack that is not condemned.
pub(super) struct Marked {
    /// Blocks that a kept snapshot uses.
    pub(super) live: RoaringTreemap,
    /// Blocks that the newest snapshot of a source uses.
    pub(super) current: RoaringTreemap,
    pub(super) packs: Vec<PackLoad>,
}

impl Marked {
    /// The bytes of live blocks in usable packs.
    pub(super) fn live_bytes(&self) -> u64 {
        self.packs.iter().filter(|pack| pack.is_usable).map(|pack| pack.live).sum()
    }
}

/// Whether the blocks of a snapshot are live. Snapshots that are missing may reappear, so they count.
fn is_kept(row: &SnapshotRow) -> bool {
    match row.presence {
        Presence::Intended | Presence::There | Presence::NotFound => true,
        Presence::NeverWritten | Presence::Forgotten | Presence::Swept => false,
    }
}

/// Finds live blocks.
pub(super) fn mark(catalog: &Catalog) -> Result<Marked, Error> {
    let rows: Vec<_> = catalog.snapshots()?.into_iter().filter(is_kept).collect();
    let mut newest = std::collections::BTreeMap::new();
    for row in &rows {
        newest.insert(row.name.source, row.name.sequence);
    }
    let kept: Vec<_> = rows.iter().map(|row| row.name.sequence).collect();
    let newest: Vec<_> = newest.into_values().collect();
    let live = catalog.live(&kept)?;
    let packs = catalog.pack_loads(&live)?;
    Ok(Marked { current: catalog.live(&newest)?, live, packs })
}
