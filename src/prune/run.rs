//! The order of a prune.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tracing::debug_span;

use super::compact::{Compactor, choose, write_shards};
use super::condemn::{condemn, forget_unwritten};
use super::context::{Options, Pruner, Summary};
use super::error::Error;
use super::mark::{Marked, mark};
use super::sweep::{find_due, note_forgotten, remove_old_tombstones, sweep};
use crate::catalog::{Catalog, DoomedPack, Presence};
use crate::crypt::SecretKey;
use crate::inventory::Inventory;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::session::{Checks, Mend, Session};
use crate::source::now;
use crate::state::Lock;

/// Removes data that no kept snapshot needs. `key` is the host key.
pub fn prune(
    repository: &Repository,
    lock: &Lock,
    key: SecretKey,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let _span = debug_span!("prune").entered();
    let checks = Checks { mend: Mend::No, recheck: 0 };
    let mut lost_packs = 0;
    let (mut session, mut catalog) = Session::open(repository, lock, key, checks, &mut lost_packs, monitor, stop)?;
    let (now, removals) = (options.now.unwrap_or_else(|| now().seconds), Cell::new(0));
    let before = session.last_generation();
    fn pruner<'s>(
        session: &'s Session<'s>,
        (monitor, stop): (&'s dyn Monitor, &'s AtomicBool),
        (now, before, removals): (i64, u64, &'s Cell<u64>),
    ) -> Pruner<'s> {
        let inventory = Inventory { repository: session.repository(), access: session.access(), monitor, stop };
        Pruner { session, inventory, now, before, removals }
    }
    let watch = (monitor, stop);
    let times = (now, before, &removals);
    let mut summary = Summary::default();
    let no_grace = options.grace.is_zero();
    let grace = i64::try_from(options.grace.as_secs()).unwrap_or(i64::MAX);
    {
        let pruner = pruner(&session, watch, times);
        if let Some(doubt) = session.doubt(&mut catalog, &pruner.inventory)? {
            return Err(Error::Doubt(doubt));
        }
        let marked = mark(&catalog)?;
        summary.stored_bytes = marked.packs.iter().map(|pack| pack.length).sum();
        summary.live_bytes = marked.live_bytes();
        if options.dry_run {
            predict(&pruner, &catalog, &marked, options, &mut summary)?;
            return Ok(summary);
        }
        let unwritten = forget_unwritten(&catalog)?;
        if !no_grace {
            let due = find_due(&pruner, &catalog, &marked, session.generation(), grace)?;
            if !due.is_empty() {
                sweep(&pruner, &mut catalog, &due, &mut summary)?;
            }
        }
        compact_and_condemn(&pruner, &mut catalog, options, unwritten, &mut summary)?;
        remove_old_tombstones(&pruner, &mut catalog)?;
    }
    let is_done = |catalog: &Catalog| -> Result<bool, Error> {
        let forgotten = catalog.snapshots()?.iter().any(|row| row.presence == Presence::Forgotten);
        Ok(!forgotten && catalog.doomed_packs()?.is_empty())
    };
    if no_grace && !is_done(&catalog)? {
        session.announce(&mut catalog)?;
        // From the second generation on, no run is left that could build on what the first one condemned.
        session.announce_again(&mut catalog)?;
        let pruner = pruner(&session, watch, times);
        let marked = mark(&catalog)?;
        let due = find_due(&pruner, &catalog, &marked, session.generation(), 0)?;
        if !due.is_empty() {
            sweep(&pruner, &mut catalog, &due, &mut summary)?;
            session.put_tombstones(&mut catalog)?;
        }
        remove_old_tombstones(&pruner, &mut catalog)?;
    }
    summary.pending_bytes = catalog.doomed_packs()?.iter().map(|pack| pack.length).sum();
    catalog.set_finished()?;
    catalog.commit()?;
    Ok(summary)
}

fn compact_and_condemn(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    options: &Options,
    unwritten: bool,
    summary: &mut Summary,
) -> Result<(), Error> {
    let until = options.max_duration.and_then(|duration| Instant::now().checked_add(duration));
    let marked = mark(catalog)?;
    let chosen = choose(&marked, options.max_waste, options.max_copy);
    Compactor::new(pruner).compact(catalog, &marked, &chosen, until, summary)?;
    // An earlier prune may have been killed before it wrote them.
    write_shards(pruner, catalog)?;
    let marked = mark(catalog)?;
    let dead: Vec<_> = marked.packs.iter().filter(|pack| pack.live == 0).map(|pack| pack.row).collect();
    condemn(pruner, catalog, &dead, unwritten || summary.removed_packs > 0, summary)?;
    note_forgotten(pruner, catalog)?;
    Ok(catalog.commit()?)
}

/// Computes what a prune would do, without the sizes of new documents.
fn predict(
    pruner: &Pruner<'_>,
    catalog: &Catalog,
    marked: &Marked,
    options: &Options,
    summary: &mut Summary,
) -> Result<(), Error> {
    let chosen = choose(marked, options.max_waste, options.max_copy);
    let dead: Vec<_> = marked.packs.iter().filter(|pack| pack.live == 0).collect();
    summary.compacted_packs = chosen.len() as u64;
    summary.copied_bytes = chosen.iter().map(|pack| pack.live).sum();
    summary.condemned_packs = (dead.len() + chosen.len()) as u64;
    let condemned: u64 = dead.iter().map(|pack| pack.length).chain(chosen.iter().map(|pack| pack.length)).sum();
    let doomed = catalog.doomed_packs()?;
    let is_dead = |pack: &DoomedPack| -> Result<bool, Error> {
        let blocks = catalog.blocks_in(pack.row)?;
        Ok(!blocks.iter().any(|block| marked.live.contains(block.block.0)))
    };
    let grace = i64::try_from(options.grace.as_secs()).unwrap_or(i64::MAX);
    for pack in &doomed {
        if !is_dead(pack)? {
            continue;
        }
        let is_due = options.grace.is_zero() || (pack.generation > 0 && pruner.now.saturating_sub(pack.at) >= grace);
        if is_due {
            summary.removed_packs += 1;
            summary.freed_bytes += pack.length;
        } else {
            summary.pending_bytes += pack.length;
        }
    }
    if options.grace.is_zero() {
        summary.removed_packs += summary.condemned_packs;
        summary.freed_bytes += condemned;
    } else {
        summary.pending_bytes += condemned;
    }
    Ok(())
}
