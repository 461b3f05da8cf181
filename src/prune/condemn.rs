//! Tombstones of packs that nothing needs any more.

use super::context::{Pruner, Summary};
use super::error::Error;
use crate::catalog::{Catalog, PackRow, Presence};
use crate::session::Session;

/// Forgets snapshots that were never written, so that they stay hidden if they appear after all.
pub(super) fn forget_unwritten(session: &mut Session<'_>, catalog: &mut Catalog) -> Result<(), Error> {
    let rows = catalog.snapshots()?.into_iter();
    let unwritten: Vec<_> = rows.filter(|row| row.presence == Presence::NeverWritten).map(|row| row.name.id).collect();
    Ok(session.forget_missing(catalog, &unwritten)?)
}

/// Condemns packs without live blocks. Writes tombstones if those in the repository differ from the catalog.
pub(super) fn condemn(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    packs: &[PackRow],
    summary: &mut Summary,
) -> Result<(), Error> {
    if packs.is_empty() && !catalog.has_stale_tombstones()? {
        return Ok(());
    }
    pruner.session.announce(catalog)?;
    catalog.condemn_for_removal(packs, pruner.clock.now)?;
    // From here on, this machine does not build on them; from the tombstone on, neither do its copies.
    catalog.commit()?;
    pruner.session.put_tombstones(catalog)?;
    summary.condemned_packs += packs.len() as u64;
    Ok(())
}
