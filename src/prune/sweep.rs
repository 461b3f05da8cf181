//! Removes what was condemned in an earlier generation.
//!
//! Snapshots go first and packs last, so that no document names data that is gone, except a tombstone. After a kill,
//! the next sweep removes the rest, all of which is dead.

use std::collections::HashSet;

use roaring::RoaringTreemap;

use super::context::{Pruner, Summary};
use super::error::Error;
use super::indexes::{self, Removals};
use super::mark::Marked;
use super::sums::{self, Lists};
use crate::catalog::{Catalog, DoomedPack, Folder, PackRow, Presence, RetainedPack, SnapshotRow};
use crate::format::name;
use crate::session::Remover;

/// Number of generations that stay, so that copies of this machine's state are noticed.
const GENERATIONS: usize = 64;

/// Snapshots and packs that may be removed now.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) snapshots: Vec<SnapshotRow>,
    pub(super) packs: Vec<DoomedPack>,
    /// Condemned packs that have live blocks again, since a snapshot is shown again.
    pub(super) revived: Vec<PackRow>,
}

/// Finds snapshots and packs that were forgotten or condemned before `generation`, at least `grace` seconds before `now`,
/// and are still dead. A pack stays as long as a forgotten snapshot that uses it can be taken back.
pub(super) fn find_due(
    catalog: &Catalog,
    marked: &Marked,
    generation: u64,
    now: i64,
    grace: i64,
) -> Result<Due, Error> {
    let mut due = Due::default();
    let is_over = |at: i64| now.saturating_sub(at) >= grace;
    let mut hidden = Vec::new();
    for row in catalog.snapshots()?.into_iter().filter(|row| row.presence == Presence::Forgotten) {
        let sequence = row.name.sequence;
        if catalog.seen_forgotten(sequence)?.is_some_and(|(seen_in, at)| seen_in < generation && is_over(at)) {
            due.snapshots.push(row);
        } else if catalog.is_recorded(sequence)? {
            hidden.push(sequence);
        }
    }
    due.packs = catalog.doomed_packs()?;
    retain(&mut due.packs, |pack| {
        let is_live = has_any(catalog, pack, &marked.live)?;
        if is_live {
            due.revived.push(pack.row);
        }
        Ok(!is_live && (1..generation).contains(&pack.generation) && is_over(pack.at))
    })?;
    retain_unused(catalog, &mut due.packs, &hidden)?;
    Ok(due)
}

/// Retains only the packs without blocks that these snapshots use.
fn retain_unused(catalog: &Catalog, packs: &mut Vec<DoomedPack>, snapshots: &[u64]) -> Result<(), Error> {
    if packs.is_empty() || snapshots.is_empty() {
        return Ok(());
    }
    let used = catalog.live(snapshots)?;
    retain(packs, |pack| Ok(!has_any(catalog, pack, &used)?))
}

/// Like [`Vec::retain`], for a condition that may fail. There may be too many packs for a second list.
fn retain(
    packs: &mut Vec<DoomedPack>,
    mut is_retained: impl FnMut(&DoomedPack) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut result = Ok(());
    packs.retain(|pack| {
        result.is_ok()
            && is_retained(pack).unwrap_or_else(|error| {
                result = Err(error);
                false
            })
    });
    result
}

/// Whether a pack has any of these blocks.
fn has_any(catalog: &Catalog, pack: &DoomedPack, blocks: &RoaringTreemap) -> Result<bool, Error> {
    Ok(catalog.blocks_in(pack.row)?.iter().any(|block| blocks.contains(block.block.0)))
}

/// Takes back packs that have live blocks again, and removes what is due. Also removes what a killed prune has left.
pub(super) fn sweep_due(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    due: Due,
    summary: &mut Summary,
) -> Result<(), Error> {
    due.revived.iter().try_for_each(|pack| catalog.take_back(*pack))?;
    let mut has_leftovers = false;
    for row in catalog.snapshots()?.iter().filter(|row| row.presence == Presence::Swept) {
        has_leftovers |= catalog.is_recorded(row.name.sequence)?;
    }
    if has_leftovers || !due.packs.is_empty() || !due.snapshots.is_empty() {
        sweep(pruner, catalog, due, summary)?;
    }
    Ok(())
}

/// Notes which snapshots are forgotten at this time, so that a later run removes them.
pub(super) fn note_forgotten(pruner: &Pruner<'_>, catalog: &mut Catalog) -> Result<(), Error> {
    let rows = catalog.snapshots()?.into_iter().filter(|row| row.presence == Presence::Forgotten);
    let forgotten: HashSet<_> = rows.map(|row| row.name.sequence).collect();
    catalog.drop_notes(&forgotten)?;
    if !forgotten.is_empty() {
        // So that the next run has a higher generation.
        pruner.session.announce(catalog)?;
    }
    let generation = pruner.session.generation();
    Ok(forgotten.iter().try_for_each(|sequence| catalog.note_forgotten(*sequence, generation, pruner.clock.now))?)
}

fn sweep(pruner: &Pruner<'_>, catalog: &mut Catalog, mut due: Due, summary: &mut Summary) -> Result<(), Error> {
    let remover = pruner.remover(catalog)?;
    let mut retained = Vec::new();
    let objects: Vec<_> = due.snapshots.iter().map(|row| row.name.object()).collect();
    for (row, is_gone) in due.snapshots.iter().zip(pruner.remove_all(&remover, &objects)?) {
        if is_gone {
            catalog.set_missing(row.name.id, Presence::Swept)?;
            summary.removed_snapshots += 1;
        } else if catalog.is_recorded(row.name.sequence)? {
            retained.push(row.name.sequence);
        }
    }
    catalog.commit()?;
    // A snapshot stays complete as long as it is there.
    retain_unused(catalog, &mut due.packs, &retained)?;
    let mut packs: HashSet<_> = due.packs.iter().map(|pack| pack.id).collect();
    let swept = catalog.snapshots()?.into_iter().filter(|row| row.presence == Presence::Swept);
    let (snapshots, sequences): (HashSet<_>, Vec<_>) = swept.map(|row| (row.name.id, row.name.sequence)).unzip();
    let mut lists = Lists::find(pruner.session.repository().target())?;
    let candidates = indexes::read(pruner, catalog, &packs, &snapshots, |id, index| lists.learn(id, index))?;
    sums::rewrite(pruner, &remover, lists, &mut packs)?;
    due.packs.retain(|pack| packs.contains(&pack.id));
    indexes::rewrite(pruner, catalog, candidates, &Removals { packs: &packs, snapshots: &snapshots })?;
    indexes::remove_replaced(pruner, catalog, |folder| matches!(folder, Folder::Moved(_)))?;
    let mut recorded = Vec::new();
    for sequence in sequences {
        recorded.extend(catalog.is_recorded(sequence)?.then_some(sequence));
    }
    // Even if there are no new ones, to finish the work of a killed prune.
    catalog.forget_usage(&recorded)?;
    let mut left = due.packs.len();
    for batch in remover.batches(&due.packs) {
        left -= batch.len();
        let objects: Vec<_> = batch.iter().map(|pack| name::pack(pack.id)).collect();
        for (pack, is_gone) in batch.iter().zip(pruner.remove_batch(&remover, &objects)?) {
            if is_gone {
                summary.removed_packs += 1;
                summary.freed_bytes += pack.length;
            } else {
                catalog.retain_pack(RetainedPack { id: pack.id, length: pack.length })?;
            }
            catalog.remove_pack(pack.row)?;
        }
        catalog.commit()?;
        if left > 0 {
            pruner.give_way()?;
        }
    }
    remove_generations(pruner, &remover)
}

/// Tries again to remove packs that the target refused to remove.
pub(super) fn remove_retained(pruner: &Pruner<'_>, catalog: &mut Catalog, summary: &mut Summary) -> Result<(), Error> {
    let mut packs = catalog.retained_packs()?;
    // Another beginning each time: a run gives up after some refusals.
    let first = usize::try_from(pruner.clock.now).unwrap_or_default().checked_rem(packs.len()).unwrap_or_default();
    packs.rotate_left(first);
    if packs.is_empty() {
        return Ok(catalog.commit()?);
    }
    let remover = pruner.remover(catalog)?;
    let objects: Vec<_> = packs.iter().map(|pack| name::pack(pack.id)).collect();
    for (pack, is_gone) in packs.into_iter().zip(pruner.remove_all(&remover, &objects)?) {
        if is_gone {
            catalog.drop_retained(pack.id)?;
            summary.removed_packs += 1;
            summary.freed_bytes += pack.length;
        }
    }
    pruner.clock.refusals.set(0);
    Ok(catalog.commit()?)
}

/// Removes documents of tombstones that a later one replaced.
pub(super) fn remove_old_tombstones(pruner: &Pruner<'_>, catalog: &mut Catalog) -> Result<(), Error> {
    indexes::remove_replaced(pruner, catalog, |folder| folder == Folder::Forgotten)
}

/// Removes all but the last generations.
fn remove_generations(pruner: &Pruner<'_>, remover: &Remover<'_>) -> Result<(), Error> {
    let names = pruner.session.repository().generations()?;
    // The oldest first, so that a killed run leaves no gap where removals have an order.
    let old = names.iter().take(names.len().saturating_sub(GENERATIONS)).map(|(name, _)| name.object());
    pruner.remove_all(remover, &Vec::from_iter(old)).map(drop)
}
