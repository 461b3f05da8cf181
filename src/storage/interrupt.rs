//! Ends waits when the user wants to stop.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Ends all waits of storage, present and future. Clones are the same interrupt.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<Interrupted>);

#[derive(Debug, Default)]
struct Interrupted {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Interrupt {
    /// Ends all waits. Operations that wait for a target return the error of their last try, and rates are not limited any
    /// more.
    pub fn set(&self) {
        *self.0.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }

    /// Waits. Returns false if it was interrupted.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_timeout_while(set, time, |set| !*set);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The time at which uploads of spools are given up, once it is set. Clones are the same cut-off.
#[derive(Debug, Clone, Default)]
pub struct CutOff(Arc<OnceLock<Instant>>);

impl CutOff {
    /// Sets the time, unless it is set.
    pub fn set(&self, within: Duration) {
        let _ = self.0.set(Instant::now() + within);
    }

    /// Whether the time has passed.
    pub fn has_passed(&self) -> bool {
        self.0.get().is_some_and(|end| *end <= Instant::now())
    }
}
