//! The order of a prune.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tracing::debug_span;

use super::compact::{Compactor, choose};
use super::condemn::{condemn, forget_unwritten};
use super::context::{Options, Pruner, Summary};
use super::error::Error;
use super::mark::{Marked, current, mark};
use super::sweep::{find_due, note_forgotten, remove_old_tombstones, remove_retained, sweep_due};
use crate::catalog::{Catalog, Presence};
use crate::crypt::SecretKey;
use crate::inventory::{Inventory, host_access, host_key};
use crate::monitor::{Monitor, Total, Unit};
use crate::repository::Repository;
use crate::session::{self, Checks, LockWait, Priority, Session};
use crate::state::{Lock, RepositoryState};

/// Removes data that no kept snapshot needs, with the host key alone. Waits up to `wait` for the lock. Gives it up for other
/// runs that wait, and goes on after them. If the disk is full, uses the reserve.
pub fn prune(
    repository: &Repository,
    state: &RepositoryState,
    options: &Options,
    wait: LockWait,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let (mut whole, mut begun): (Option<Summary>, Option<Instant>) = (None, None);
    session::with_reserve(repository, state, monitor, || {
        loop {
            let wait = if whole.is_none() { wait } else { LockWait { longest: Duration::MAX, ..wait } };
            let lock = session::lock(state, wait, Priority::Low, monitor, stop).map_err(session::Error::from)?;
            let copied = whole.as_ref().map_or(0, |whole| whole.copied_bytes);
            let begun = *begun.get_or_insert_with(Instant::now);
            let until = options.max_duration.and_then(|duration| begun.checked_add(duration));
            let limits = Limits { until, max_copy: options.max_copy.saturating_sub(copied), lock: &lock };
            let mut summary = None;
            let result = Round { repository, options, limits, monitor, stop }.run(host_key(state)?, &mut summary);
            whole = Summary::joined(whole.take(), summary);
            match result {
                Err(Error::Wanted) => monitor.note("another run waits for the lock; pruning goes on after it"),
                other => break other,
            }
        }
    })?;
    session::keep_reserve(repository, state);
    Ok(whole.unwrap_or_default())
}

/// How far a round goes.
struct Limits<'a> {
    until: Option<Instant>,
    max_copy: u64,
    lock: &'a Lock,
}

/// A prune from when it gets the lock until it ends or gives the lock up.
struct Round<'a> {
    repository: &'a Repository,
    options: &'a Options,
    limits: Limits<'a>,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
}

impl Round<'_> {
    /// `key` is the host key. `summary` has the work that was done, also if the round fails.
    fn run(&self, key: SecretKey, summary: &mut Option<Summary>) -> Result<(), Error> {
        let _span = debug_span!("prune").entered();
        let Round { repository, limits, monitor, stop, .. } = self;
        let checks = Checks::default();
        let (mut session, mut catalog) = Session::open(repository, limits.lock, key, checks, &mut 0, *monitor, stop)?;
        let result = self.work(&mut session, &mut catalog, summary);
        if matches!(result, Ok(()) | Err(Error::Wanted)) {
            catalog.set_finished()?;
            catalog.commit()?;
        }
        result
    }

    fn work(
        &self,
        session: &mut Session<'_>,
        catalog: &mut Catalog,
        summary: &mut Option<Summary>,
    ) -> Result<(), Error> {
        let Round { options, limits, monitor, stop, .. } = self;
        let (monitor, stop, lock) = (*monitor, *stop, limits.lock);
        let clock = options.clock(session.last_generation());
        let pruner = Pruner::new(session, lock, &clock, monitor, stop);
        if let Some(doubt) = session.doubt(catalog, &pruner.inventory)? {
            return Err(Error::Doubt(doubt));
        }
        pruner.inventory.find_copies(catalog)?;
        pruner.inventory.place_lost_chunks(catalog)?;
        forget_unwritten(session, catalog)?;
        let mut marked = mark(catalog)?;
        let summary = summary.insert(Summary::new(&marked));
        let grace = seconds(options.grace);
        let pruner = Pruner::new(session, lock, &clock, monitor, stop);
        if grace > 0 {
            let due = find_due(catalog, &marked, session.generation(), clock.now, grace)?;
            sweep_due(&pruner, catalog, due, summary)?;
        }
        remove_retained(&pruner, catalog, summary)?;
        self.compact_and_condemn(&pruner, catalog, &mut marked, summary)?;
        if grace == 0 && has_work(catalog)? {
            session.announce(catalog)?;
            // From the second generation on, no run is left that could build on what the first one condemned.
            session.announce_again(catalog)?;
            let pruner = Pruner::new(session, lock, &clock, monitor, stop);
            session.outlast_lag(&pruner.inventory)?;
            // Listings of some targets are late: the index of a run that was not seen may be listed only now.
            if let Some(doubt) = pruner.inventory.doubt_of_documents(catalog)? {
                return Err(Error::Doubt(doubt));
            }
            let due = find_due(catalog, &marked, session.generation(), clock.now, 0)?;
            sweep_due(&pruner, catalog, due, summary)?;
            if catalog.has_stale_tombstones()? {
                session.put_tombstones(catalog)?;
            }
        }
        remove_old_tombstones(&Pruner::new(session, lock, &clock, monitor, stop), catalog)?;
        let retained: u64 = catalog.retained_packs()?.iter().map(|pack| pack.length).sum();
        summary.pending_bytes = catalog.doomed_bytes()? + retained;
        summary.retained = clock.retained.get();
        Ok(())
    }

    fn compact_and_condemn(
        &self,
        pruner: &Pruner<'_>,
        catalog: &mut Catalog,
        marked: &mut Marked,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let chosen = choose(marked, self.options.max_waste, self.limits.max_copy);
        if !chosen.is_empty() {
            let bytes = chosen.iter().map(|pack| pack.live).sum();
            self.monitor.progress().count(Unit::Packs);
            self.monitor.progress().expect(Total { files: chosen.len() as u64, bytes, estimated: false });
            Compactor::new(pruner, current(catalog)?).compact(catalog, marked, &chosen, self.limits.until, summary)?;
            if summary.damaged_packs > 0 {
                pruner.inventory.find_copies(catalog)?;
            }
        }
        // An earlier prune may have been killed before it wrote them.
        pruner.session.write_shards(&pruner.inventory, catalog)?;
        marked.update(catalog)?;
        let dead: Vec<_> = marked.packs.iter().filter(|pack| pack.live == 0).map(|pack| pack.row).collect();
        // There may be many, and only the live blocks are needed from here on.
        marked.packs = Vec::new();
        // First, since snapshots must not stay longer than their data.
        note_forgotten(pruner, catalog)?;
        condemn(pruner, catalog, &dead, summary)?;
        Ok(catalog.commit()?)
    }
}

/// Computes what a prune would do, without the sizes of new documents. Takes no lock and changes nothing.
pub fn predict(
    repository: &Repository,
    state: &RepositoryState,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    session::look(repository, state, monitor, stop, |catalog| {
        let access = host_access(&host_key(state)?)?;
        predict_from(&catalog, &Inventory { repository, access: &access, monitor, stop }, options)
    })
}

fn predict_from(catalog: &Catalog, inventory: &Inventory<'_>, options: &Options) -> Result<Summary, Error> {
    let generations = inventory.generations(catalog)?;
    let Some(last) = generations.last.first() else { return Err(Error::NothingYet) };
    if let Some(doubt) = inventory.doubt_of_listings(catalog, last)? {
        return Err(Error::Doubt(doubt));
    }
    let marked = mark(catalog)?;
    let mut summary = Summary::new(&marked);
    let chosen = choose(&marked, options.max_waste, options.max_copy);
    let dead: Vec<_> = marked.packs.iter().filter(|pack| pack.live == 0).collect();
    summary.compacted_packs = chosen.len() as u64;
    summary.copied_bytes = chosen.iter().map(|pack| pack.live).sum();
    summary.condemned_packs = (dead.len() + chosen.len()) as u64;
    let condemned: u64 = dead.iter().map(|pack| pack.length).chain(chosen.iter().map(|pack| pack.length)).sum();
    let grace = seconds(options.grace);
    let due = find_due(catalog, &marked, u64::MAX, options.clock(last.number).now, grace)?;
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
    Ok(forgotten || catalog.has_doomed_packs()?)
}
