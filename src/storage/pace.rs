//! A bounded number of bytes per second.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::interrupt::Interrupt;

/// A bound in one direction, summed over all threads.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: NonZeroU64,
    interrupt: Interrupt,
    /// The time when all bytes so far are paid for.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64, interrupt: Interrupt) -> Self {
        Pace { bytes_per_second, interrupt, paid: Mutex::default() }
    }

    /// Pays for bytes whose transfer began at `begun`: waits until the bound holds, or for the interrupt.
    pub(super) fn pay(&self, begun: Instant, bytes: u64) {
        // After an interrupt the rest is transferred at once, so that the run ends soon.
        self.interrupt.sleep(self.spend(begun, bytes));
    }

    /// Notes the bytes. Returns the time to wait.
    fn spend(&self, begun: Instant, bytes: u64) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        // Time without transfers earns nothing.
        let until = paid.map_or(begun, |paid| paid.max(begun)) + cost;
        *paid = Some(until);
        until.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_all_threads_are_paid_one_after_the_other_and_idle_time_earns_nothing() {
        let pace = Pace::new(NonZeroU64::new(1000).unwrap(), Interrupt::default());
        let begun = Instant::now();
        let second = |wait: Duration| wait.as_secs_f64();
        let (first, next) = (second(pace.spend(begun, 1000)), second(pace.spend(begun, 500)));
        assert!((0.9..=1.0).contains(&first) && (1.4..=1.5).contains(&next), "{first} {next}");
        let later = second(pace.spend(begun + Duration::from_secs(100), 1000));
        assert!((100.9..=101.0).contains(&later), "{later}");
    }

    #[test]
    fn an_interrupt_ends_the_wait() {
        let interrupt = Interrupt::default();
        let pace = Pace::new(NonZeroU64::MIN, interrupt.clone());
        let begun = Instant::now();
        std::thread::scope(|threads| {
            threads.spawn(|| pace.pay(begun, 1000));
            interrupt.set();
        });
        assert!(begun.elapsed() < Duration::from_secs(100));
    }
}
