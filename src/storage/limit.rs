//! Storage that bounds the bytes per second.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::contract::Storage;
use super::error::Error;
use super::wrapper::{Call, Operation, Try, Wrapper};

/// Maximum bytes per second; `None` for no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// From here to the target.
    pub upload: Option<NonZeroU64>,
    /// From the target to here.
    pub download: Option<NonZeroU64>,
}

/// A storage that transfers a bounded number of bytes per second, summed over all threads. Only the content of objects
/// counts. An object is stored at once and paid for afterwards, so the bound holds on average.
#[derive(Debug)]
pub struct Limit {
    inner: Box<dyn Storage>,
    upload: Option<Pace>,
    download: Option<Pace>,
}

impl Limit {
    /// A storage that transfers to and from `inner` at these rates.
    pub fn new(inner: Box<dyn Storage>, rates: Rates) -> Self {
        Limit { inner, upload: rates.upload.map(Pace::new), download: rates.download.map(Pace::new) }
    }
}

impl Wrapper for Limit {
    fn inner(&self) -> &dyn Storage {
        &*self.inner
    }

    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        let begun = Instant::now();
        attempt()?;
        let pace = if call.operation == Operation::Store { &self.upload } else { &self.download };
        if let (Some(pace), 1..) = (pace, call.bytes) {
            thread::sleep(pace.spend(begun, call.bytes));
        }
        Ok(())
    }
}

/// One direction.
#[derive(Debug)]
struct Pace {
    bytes_per_second: NonZeroU64,
    /// The time when all bytes so far are paid for.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    fn new(bytes_per_second: NonZeroU64) -> Self {
        Pace { bytes_per_second, paid: Mutex::default() }
    }

    /// Pays for bytes whose transfer began at `begun`. Returns the time to wait.
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
        let pace = Pace::new(NonZeroU64::new(1000).unwrap());
        let begun = Instant::now();
        let second = |wait: Duration| wait.as_secs_f64();
        let (first, next) = (second(pace.spend(begun, 1000)), second(pace.spend(begun, 500)));
        assert!((0.9..=1.0).contains(&first) && (1.4..=1.5).contains(&next), "{first} {next}");
        let later = second(pace.spend(begun + Duration::from_secs(100), 1000));
        assert!((100.9..=101.0).contains(&later), "{later}");
    }
}
