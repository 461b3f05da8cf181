//! Ends uploads that take too long.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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
