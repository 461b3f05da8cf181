//! The order of a prune.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tracing::debug_span;

use super::compact::{Compactor, choose, write_shards};
use super::condemn::{condemn, forget_unwritten};
use super::context::{Clock, Options, Pruner, Summary};
use super::error::Error;
use super::mark::{Marked, current, mark};
use super::sweep::{find_due, note_forgotten, remove_old_tombstones, sweep};
use crate::catalog::{Catalog, DoomedPack, Presence};
use crate::crypt::SecretKey;
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
    let clock = Clock {
        now: options.now.unwrap_or_else(|| now().seconds),
        before: session.last_generation(),
        removals: Cell::new(0),
    };
    let mut summary = Summary::default();
    let pruner = Pruner::new(&session, &clock, monitor, stop);
    if let Some(doubt) = session.doubt(&mut catalog, &pruner.inventory)? {
        return Err(Error::Doubt(doubt));
    }
    let mut marked = mark(&catalog)?;
    summary.stored_bytes = marked.packs.iter().map(|pack| pack.length).sum();
    summary.live_bytes = marked.live_bytes();
    if options.dry_run {
        predict(&pruner, &catalog, &marked, options, &mut summary)?;
        return Ok(summary);
    }
    let unwritten = forget_unwritten(&catalog)?;
    let grace = seconds(options.grace);
    if grace > 0 {
        let due = find_due(&pruner, &catalog, &marked, session.generation(), grace)?;
        if !due.is_empty() {
            sweep(&pruner, &mut catalog, &due, &mut summary)?;
        }
    }
    compact_and_condemn(&pruner, &mut catalog, &mut marked, options, unwritten, &mut summary)?;
    remove_old_tombstones(&pruner, &mut catalog)?;
    if grace == 0 && has_work(&catalog)? {
        session.announce(&mut catalog)?;
        // From the second generation on, no run is left that could build on what the first one condemned.
        session.announce_again(&mut catalog)?;
        let pruner = Pruner::new(&session, &clock, monitor, stop);
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

fn seconds(grace: Duration) -> i64 {
    i64::try_from(grace.as_secs()).unwrap_or(i64::MAX)
}

/// Whether anything is forgotten or condemned, and not removed yet.
fn has_work(catalog: &Catalog) -> Result<bool, Error> {
    let forgotten = catalog.snapshots()?.iter().any(|row| row.presence == Presence::Forgotten);
    Ok(forgotten || !catalog.doomed_packs()?.is_empty())
}

fn compact_and_condemn(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    marked: &mut Marked,
    options: &Options,
    unwritten: bool,
    summary: &mut Summary,
) -> Result<(), Error> {
    let until = options.max_duration.and_then(|duration| Instant::now().checked_add(duration));
    let chosen = choose(marked, options.max_waste, options.max_copy);
    if !chosen.is_empty() {
        Compactor::new(pruner, current(catalog)?).compact(catalog, marked, &chosen, until, summary)?;
    }
    // An earlier prune may have been killed before it wrote them.
    write_shards(pruner, catalog)?;
    marked.update(catalog)?;
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
    let grace = seconds(options.grace);
    for pack in &doomed {
        if !is_dead(pack)? {
            continue;
        }
        let is_due = grace == 0 || (pack.generation > 0 && pruner.clock.now.saturating_sub(pack.at) >= grace);
        if is_due {
            summary.removed_packs += 1;
            summary.freed_bytes += pack.length;
        } else {
            summary.pending_bytes += pack.length;
        }
    }
    if grace == 0 {
        summary.removed_packs += summary.condemned_packs;
        summary.freed_bytes += condemned;
    } else {
        summary.pending_bytes += condemned;
    }
    Ok(())
}
