//! Storage that waits for a target that is away, and for one that asks for fewer requests.

use std::fmt;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::debug;

use super::contract::Storage;
use super::error::{Error, ErrorKind};
use super::spool::Spool;
use super::wrapper::{Call, Operation, Try, Wrapper};

/// Bytes per comparison of a stored object with its spool.
const PIECE: usize = 1 << 20;

/// How long to wait for a target, and how often to try.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The time after which an operation fails, and also after which no operation waits for a target that is still away.
    pub longest: Duration,
    /// The wait before the second try. It doubles from try to try; half of each wait is random.
    pub first_wait: Duration,
    /// The maximum wait between two tries, unless the target asks for more.
    pub longest_wait: Duration,
}

/// A wait before another try.
#[derive(Debug)]
pub struct Waiting<'a> {
    /// Why the last try failed.
    pub error: &'a Error,
    /// The tries of this operation so far.
    pub tries: u32,
    /// The time since the target was last there.
    pub away: Duration,
    /// The time until the next try.
    pub wait: Duration,
}

/// Ends all waits of a [`Retry`], present and future. Clones are the same interrupt.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<Interrupted>);

#[derive(Debug, Default)]
struct Interrupted {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Interrupt {
    /// Ends all waits. Operations that wait return the error of their last try.
    pub fn set(&self) {
        *lock(&self.0.set) = true;
        self.0.changed.notify_all();
    }

    /// Waits. Returns false if it was interrupted.
    fn sleep(&self, time: Duration) -> bool {
        let waited = self.0.changed.wait_timeout_while(lock(&self.0.set), time, |set| !*set);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Is told of each wait before it begins.
type Notice = Box<dyn Fn(&Waiting<'_>) + Send + Sync>;

/// A storage that tries again after temporary errors. All threads share the patience with a target that is away: once it
/// is used up, every operation fails at its first try until the target is back.
pub struct Retry {
    inner: Box<dyn Storage>,
    patience: Patience,
    interrupt: Interrupt,
    notice: Notice,
    /// When the target was first found to be away; `None` while it is there.
    away_since: Mutex<Option<Instant>>,
    /// The same as a flag, so that successful operations take no lock.
    is_away: AtomicBool,
}

impl Retry {
    /// A storage that tries operations on `inner` again.
    pub fn new(inner: Box<dyn Storage>, patience: Patience) -> Self {
        Retry {
            inner,
            patience,
            interrupt: Interrupt::default(),
            notice: Box::new(|_| ()),
            away_since: Mutex::default(),
            is_away: AtomicBool::default(),
        }
    }

    /// The same with an interrupt that ends waits.
    #[must_use]
    pub fn with_interrupt(self, interrupt: Interrupt) -> Self {
        Retry { interrupt, ..self }
    }

    /// The same with a function that is told of each wait before it begins.
    #[must_use]
    pub fn with_notice(self, notice: impl Fn(&Waiting<'_>) + Send + Sync + 'static) -> Self {
        Retry { notice: Box::new(notice), ..self }
    }

    /// Notes that the target does not answer. Returns since when.
    fn away_since(&self) -> Instant {
        let since = *lock(&self.away_since).get_or_insert_with(Instant::now);
        self.is_away.store(true, Ordering::Relaxed);
        since
    }

    /// Notes that the target answered.
    fn answered(&self) {
        if self.is_away.load(Ordering::Relaxed) {
            *lock(&self.away_since) = None;
            self.is_away.store(false, Ordering::Relaxed);
        }
    }

    /// The wait after this many tries.
    fn wait_after(&self, tries: u32, error: &Error) -> Duration {
        let Patience { first_wait, longest_wait, .. } = self.patience;
        let doubled = first_wait.saturating_mul(1 << (tries - 1).min(20)).min(longest_wait);
        // Without random bytes the wait is only less random.
        let random = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
        let jittered = doubled.mul_f64(0.5 + random / 2.0);
        error.retry_after().map_or(jittered, |asked| jittered.max(asked))
    }

    /// Whether the object in the storage is the spooled one. An earlier try may have stored it and failed afterwards.
    fn holds(&self, spool: &Spool) -> Result<bool, Error> {
        if self.inner.length(spool.object())? != spool.length() {
            return Ok(false);
        }
        let (mut contents, mut at) = (spool.contents(), 0);
        let (mut ours, mut stored) = (Vec::new(), Vec::new());
        while at < spool.length() {
            ours.clear();
            let read = contents.by_ref().take(PIECE as u64).read_to_end(&mut ours);
            read.map_err(|e| Error::io("read the temporary file of", spool.object(), e))?;
            self.inner.read(spool.object(), at, ours.len(), &mut stored)?;
            if ours.is_empty() || ours != stored {
                return Ok(false);
            }
            at += ours.len() as u64;
        }
        Ok(true)
    }
}

impl Wrapper for Retry {
    const REPEATS: bool = true;

    fn inner(&self) -> &dyn Storage {
        &*self.inner
    }

    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        let (mut tries, mut begun) = (0, None);
        loop {
            let result = match attempt() {
                // The effect of an earlier try whose answer was lost.
                Err(error) if tries > 0 => match (call.operation, call.spool, error.kind) {
                    (Operation::Remove, _, ErrorKind::NotFound) => Ok(()),
                    (Operation::Store, Some(spool), ErrorKind::AlreadyExists) => match self.holds(spool) {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(error),
                        Err(error) => Err(error),
                    },
                    _ => Err(error),
                },
                result => result,
            };
            let error = match result {
                Err(error) if error.is_temporary() => error,
                result => {
                    self.answered();
                    return result;
                }
            };
            tries += 1;
            let away = self.away_since().elapsed();
            // The target may answer others, and never this operation.
            let waited = away.max(begun.get_or_insert_with(Instant::now).elapsed());
            let left = self.patience.longest.saturating_sub(waited);
            if left.is_zero() {
                return Err(error);
            }
            let wait = self.wait_after(tries, &error).min(left);
            debug!(operation = ?call.operation, tries, wait_ms = wait.as_millis(), error = ?error.kind, "waiting for the target");
            (self.notice)(&Waiting { error: &error, tries, away, wait });
            if !self.interrupt.sleep(wait) {
                return Err(error);
            }
        }
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("inner", &self.inner).field("patience", &self.patience).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Memory;
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_half_of_each_is_random() {
        let milliseconds = Duration::from_millis;
        let patience =
            Patience { longest: Duration::MAX, first_wait: milliseconds(100), longest_wait: milliseconds(1000) };
        let retry = Retry::new(Box::new(Memory::default()), patience);
        let error = || Error::new(ErrorKind::Throttled, "read", "x", "too many requests");
        for (tries, most) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (40, 1000), (u32::MAX, 1000)] {
            let waits: Vec<_> = (0..50).map(|_| retry.wait_after(tries, &error())).collect();
            assert!(waits.iter().all(|wait| (milliseconds(most / 2)..=milliseconds(most)).contains(wait)), "{waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{tries}: {waits:?}");
        }
        // The target knows better.
        let asked = milliseconds(7000);
        assert_eq!(retry.wait_after(1, &error().with_retry_after(asked)), asked);
    }
}
