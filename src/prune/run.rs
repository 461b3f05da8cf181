//! The order of a prune.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tracing::debug_span;

use super::compact::{Compactor, choose, write_shards};
use super::condemn::{condemn, forget_unwritten};
use super::context::{Options, Pruner, Summary};
use super::error::Error;
use super::mark::{Marked, current, mark};
use super::sweep::{find_due, note_forgotten, remove_old_tombstones, sweep_due};
use crate::catalog::{Catalog, Presence};
use crate::crypt::SecretKey;
use crate::inventory::{Inventory, host_access, host_key};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::session::{self, Checks, Mend, NOTHING_YET, Session};
use crate::state::{Lock, RepositoryState};

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
    let clock = options.clock(session.last_generation());
    let pruner = Pruner::new(&session, &clock, monitor, stop);
    if let Some(doubt) = session.doubt(&mut catalog, &pruner.inventory)? {
        return Err(Error::Doubt(doubt));
    }
    pruner.inventory.find_copies(&catalog)?;
    let unwritten = forget_unwritten(&catalog)?;
    if unwritten {
        session.announce_changes(&mut catalog)?;
    }
    let pruner = Pruner::new(&session, &clock, monitor, stop);
    let mut marked = mark(&catalog)?;
    let mut summary = Summary::new(&marked);
    let grace = seconds(options.grace);
    let mut changed = unwritten;
    if grace > 0 {
        let due = find_due(&catalog, &marked, session.generation(), clock.now, grace)?;
        changed |= sweep_due(&pruner, &mut catalog, &due, &mut summary)?;
    }
    compact_and_condemn(&pruner, &mut catalog, &mut marked, options, changed, &mut summary)?;
    remove_old_tombstones(&pruner, &mut catalog)?;
    if grace == 0 && has_work(&catalog)? {
        session.announce(&mut catalog)?;
        // From the second generation on, no run is left that could build on what the first one condemned.
        session.announce_again(&mut catalog)?;
        let pruner = Pruner::new(&session, &clock, monitor, stop);
        let due = find_due(&catalog, &marked, session.generation(), clock.now, 0)?;
        if sweep_due(&pruner, &mut catalog, &due, &mut summary)? {
            session.put_tombstones(&mut catalog)?;
        }
        remove_old_tombstones(&pruner, &mut catalog)?;
    }
    summary.pending_bytes = catalog.doomed_packs()?.iter().map(|pack| pack.length).sum();
    catalog.set_finished()?;
    catalog.commit()?;
    Ok(summary)
}

/// Computes what a prune would do, without the sizes of new documents. Takes no lock and changes nothing.
pub fn predict(
    repository: &Repository,
    state: &RepositoryState,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let catalog = session::look(repository, state, monitor, stop)?;
    let access = host_access(&host_key(state)?)?;
    let inventory = Inventory { repository, access: &access, monitor, stop };
    let generations = inventory.generations(&catalog.strange_generations()?)?;
    let Some(last) = generations.last.first() else { return Err(Error::Doubt(NOTHING_YET.to_owned())) };
    if let Some(doubt) = inventory.doubt_of_listings(&catalog, last)? {
        return Err(Error::Doubt(doubt));
    }
    let marked = mark(&catalog)?;
    let mut summary = Summary::new(&marked);
    let chosen = choose(&marked, options.max_waste, options.max_copy);
    let dead: Vec<_> = marked.packs.iter().filter(|pack| pack.live == 0).collect();
    summary.compacted_packs = chosen.len() as u64;
    summary.copied_bytes = chosen.iter().map(|pack| pack.live).sum();
    summary.condemned_packs = (dead.len() + chosen.len()) as u64;
    let condemned: u64 = dead.iter().map(|pack| pack.length).chain(chosen.iter().map(|pack| pack.length)).sum();
    let grace = seconds(options.grace);
    let due = find_due(&catalog, &marked, u64::MAX, options.clock(last.number).now, grace)?;
    for pack in catalog.doomed_packs()?.iter().filter(|pack| !due.revived.contains(&pack.row)) {
        if grace == 0 || due.packs.contains(pack) {
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
    changed: bool,
    summary: &mut Summary,
) -> Result<(), Error> {
    let until = options.max_duration.and_then(|duration| Instant::now().checked_add(duration));
    let chosen = choose(marked, options.max_waste, options.max_copy);
    if !chosen.is_empty() {
        Compactor::new(pruner, current(catalog)?).compact(catalog, marked, &chosen, until, summary)?;
        if summary.damaged_packs > 0 {
            pruner.inventory.find_copies(catalog)?;
        }
    }
    // An earlier prune may have been killed before it wrote them.
    write_shards(pruner, catalog)?;
    marked.update(catalog)?;
    let dead: Vec<_> = marked.packs.iter().filter(|pack| pack.live == 0).map(|pack| pack.row).collect();
    // First, since snapshots must not stay longer than their data.
    note_forgotten(pruner, catalog)?;
    condemn(pruner, catalog, &dead, changed, summary)?;
    Ok(catalog.commit()?)
}
