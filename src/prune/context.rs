//! The context of a prune: options, result, and what all parts use.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::error::Error;
use super::mark::Marked;
use crate::catalog::Catalog;
use crate::inventory::Inventory;
use crate::monitor::Monitor;
use crate::session::{Remover, Session};
use crate::source::now;
use crate::state::Lock;
use crate::storage::ErrorKind;

/// Number of removals after which a run looks for other runs again.
const LOOK_AFTER: usize = 1000;
/// Number of refused removals in a row after which a run tries no other.
const MAX_REFUSALS: usize = 16;

/// The options of a prune.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The bytes of dead blocks that may stay in packs with live ones, relative to the bytes of live blocks.
    pub max_waste: f64,
    /// The maximum number of bytes to copy.
    pub max_copy: u64,
    /// The time after which nothing more is copied.
    pub max_duration: Option<Duration>,
    /// The time for which condemned data stays.
    pub grace: Duration,
    /// The current time, in seconds since 1970; `None` for that of the clock.
    pub now: Option<i64>,
}

impl Default for Options {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Options { max_waste: 0.2, max_copy: u64::MAX, max_duration: None, grace: DAY, now: None }
    }
}

impl Options {
    /// `before` is the last generation before the run.
    pub(super) fn clock(&self, before: u64) -> Clock {
        Clock {
            now: self.now.unwrap_or_else(|| now().seconds),
            before,
            unseen: Cell::new(LOOK_AFTER),
            refusals: Cell::new(0),
            retained: Cell::new(0),
        }
    }
}

/// The result of a prune or a dry run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The size of all packs that are not condemned, at the start.
    pub stored_bytes: u64,
    /// The size of live blocks.
    pub live_bytes: u64,
    /// Packs from which live blocks were copied.
    pub compacted_packs: u64,
    /// The bytes copied.
    pub copied_bytes: u64,
    /// Packs with damaged blocks, which stay; each was reported.
    pub damaged_packs: u64,
    /// Packs that were condemned.
    pub condemned_packs: u64,
    /// Removed snapshots.
    pub removed_snapshots: u64,
    /// Removed packs.
    pub removed_packs: u64,
    /// The size of the removed packs.
    pub freed_bytes: u64,
    /// Objects that the target refused to remove.
    pub retained: u64,
    /// The size of packs that stay condemned until the grace period is over, or because they could not be removed.
    pub pending_bytes: u64,
}

impl Summary {
    pub(super) fn new(marked: &Marked) -> Self {
        let stored_bytes = marked.packs.iter().map(|pack| pack.length).sum();
        Summary { stored_bytes, live_bytes: marked.live_bytes(), ..Summary::default() }
    }

    /// The summary of rounds that follow one another.
    pub(super) fn joined(earlier: Option<Summary>, later: Option<Summary>) -> Option<Summary> {
        let (Some(earlier), Some(later)) = (&earlier, &later) else { return earlier.or(later) };
        Some(Summary {
            stored_bytes: earlier.stored_bytes,
            live_bytes: earlier.live_bytes,
            compacted_packs: earlier.compacted_packs + later.compacted_packs,
            copied_bytes: earlier.copied_bytes + later.copied_bytes,
            damaged_packs: earlier.damaged_packs + later.damaged_packs,
            condemned_packs: earlier.condemned_packs + later.condemned_packs,
            removed_snapshots: earlier.removed_snapshots + later.removed_snapshots,
            removed_packs: earlier.removed_packs + later.removed_packs,
            freed_bytes: earlier.freed_bytes + later.freed_bytes,
            retained: earlier.retained.max(later.retained),
            pending_bytes: later.pending_bytes,
        })
    }
}

/// The times of a prune, and counts of its removals.
pub(super) struct Clock {
    /// The current time, in seconds since 1970.
    pub(super) now: i64,
    /// The last generation before this run.
    pub(super) before: u64,
    /// Removals since the run looked for other runs.
    pub(super) unseen: Cell<usize>,
    /// Removals in a row that the target refused.
    pub(super) refusals: Cell<usize>,
    /// All objects that the target refused to remove.
    pub(super) retained: Cell<u64>,
}

/// What all parts of a prune use.
pub(super) struct Pruner<'s> {
    pub(super) session: &'s Session<'s>,
    pub(super) inventory: Inventory<'s>,
    pub(super) clock: &'s Clock,
    lock: &'s Lock,
}

impl<'s> Pruner<'s> {
    pub(super) fn new(
        session: &'s Session<'s>,
        lock: &'s Lock,
        clock: &'s Clock,
        monitor: &'s dyn Monitor,
        stop: &'s AtomicBool,
    ) -> Self {
        let inventory = Inventory { repository: session.repository(), access: session.access(), monitor, stop };
        Pruner { session, inventory, clock, lock }
    }

    /// Announces the run, waits until listings show all runs that began before it, and returns its remover. Fails if there
    /// is another run.
    pub(super) fn remover(&self, catalog: &mut Catalog) -> Result<Remover<'_>, Error> {
        self.session.announce(catalog)?;
        self.session.outlast_lag(&self.inventory)?;
        Ok(self.session.remover(catalog)?)
    }

    /// Removes objects in any order, unless they are gone. Returns for each whether it is gone now; otherwise the target refuses
    /// to remove it.
    ///
    /// Looks for other runs every [`LOOK_AFTER`] removals: another run may build on what is removed here.
    pub(super) fn remove_all(&self, remover: &Remover<'_>, objects: &[String]) -> Result<Vec<bool>, Error> {
        let mut gone = Vec::new();
        for batch in remover.batches(objects) {
            gone.extend(self.remove_batch(remover, batch)?);
        }
        Ok(gone)
    }

    /// The same for one of [`Remover::batches`].
    pub(super) fn remove_batch(&self, remover: &Remover<'_>, objects: &[String]) -> Result<Vec<bool>, Error> {
        self.inventory.check_interrupted()?;
        let Clock { unseen, refusals, retained, .. } = self.clock;
        let mut gone = vec![false; objects.len()];
        if unseen.get() + objects.len() > LOOK_AFTER {
            self.session.still_alone()?;
            unseen.set(0);
        }
        unseen.set(unseen.get() + objects.len());
        if refusals.get() < MAX_REFUSALS {
            let mut failed = None;
            let names: Vec<_> = objects.iter().map(String::as_str).collect();
            remover.remove_all(&names, |at, result| match result {
                Ok(()) => gone.iter_mut().skip(at).take(1).for_each(|gone| *gone = true),
                Err(error) if error.kind == ErrorKind::PermissionDenied => {
                    if retained.get() == 0 {
                        self.inventory.monitor.note(&format!("{error}; objects that cannot be removed stay"));
                    }
                    retained.set(retained.get() + 1);
                }
                Err(error) => failed = failed.take().or(Some(error)),
            })?;
            if let Some(error) = failed {
                return Err(error.into());
            }
        } else {
            retained.set(retained.get() + objects.len() as u64);
        }
        let refused = gone.iter().rev().take_while(|gone| !**gone).count();
        refusals.set(if refused == gone.len() { refusals.get() + refused } else { refused });
        Ok(gone)
    }

    /// Ends the run if another one waits for the lock. The work so far must be committed.
    pub(super) fn give_way(&self) -> Result<(), Error> {
        if self.is_wanted() { Err(Error::Wanted) } else { Ok(()) }
    }

    /// Whether another run waits for the lock.
    pub(super) fn is_wanted(&self) -> bool {
        self.lock.is_wanted()
    }
}
