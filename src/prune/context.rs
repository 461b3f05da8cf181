//! The context of a prune: options, result, and what all parts use.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::error::Error;
use super::mark::Marked;
use crate::inventory::Inventory;
use crate::monitor::Monitor;
use crate::session::Session;
use crate::source::now;

/// Number of removals after which a run looks for other runs again.
const LOOK_AFTER: u64 = 1000;

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

impl Options {
    /// `before` is the last generation before the run.
    pub(super) fn clock(&self, before: u64) -> Clock {
        Clock { now: self.now.unwrap_or_else(|| now().seconds), before, removals: Cell::new(0) }
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
    /// The size of packs that stay condemned until the grace period is over.
    pub pending_bytes: u64,
}

impl Summary {
    pub(super) fn new(marked: &Marked) -> Self {
        let stored_bytes = marked.packs.iter().map(|pack| pack.length).sum();
        Summary { stored_bytes, live_bytes: marked.live_bytes(), ..Summary::default() }
    }
}

/// The times of a prune, and a count of its removals.
pub(super) struct Clock {
    /// The current time, in seconds since 1970.
    pub(super) now: i64,
    /// The last generation before this run.
    pub(super) before: u64,
    pub(super) removals: Cell<u64>,
}

/// What all parts of a prune use.
pub(super) struct Pruner<'s> {
    pub(super) session: &'s Session<'s>,
    pub(super) inventory: Inventory<'s>,
    pub(super) clock: &'s Clock,
}

impl<'s> Pruner<'s> {
    pub(super) fn new(
        session: &'s Session<'s>,
        clock: &'s Clock,
        monitor: &'s dyn Monitor,
        stop: &'s AtomicBool,
    ) -> Self {
        let inventory = Inventory { repository: session.repository(), access: session.access(), monitor, stop };
        Pruner { session, inventory, clock }
    }

    /// Looks for other runs every [`LOOK_AFTER`] calls: another run may build on what is removed here.
    pub(super) fn alone_before_removal(&self) -> Result<(), Error> {
        let removals = self.clock.removals.get();
        self.clock.removals.set(removals + 1);
        if removals.is_multiple_of(LOOK_AFTER) {
            self.session.still_alone()?;
        }
        Ok(())
    }
}
