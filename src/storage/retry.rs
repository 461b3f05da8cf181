//! Storage that waits for a target that is away, and for one that asks for fewer requests.

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::debug;

use super::contract::Storage;
use super::error::{Error, ErrorKind};
use super::interrupt::Interrupt;
use super::layout::folder_of;
use super::spool::Spool;
use super::wrapper::{Call, Operation, Try, Wrapper};

/// Bytes per comparison of a stored object with its spool.
const PIECE: usize = 1 << 20;

/// How long to wait for a target, and how often to try.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// The longest wait of an operation. Once a target has been away for this long, operations fail at their first try
    /// until it is back.
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
    /// The tries of this operation so far, since the last one that took effect in part.
    pub tries: u32,
    /// The time since the target was last there.
    pub away: Duration,
    /// The time until the next try.
    pub wait: Duration,
}

thread_local! {
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns how long this thread has waited in all its retries.
pub fn waited() -> Duration {
    WAITED.get()
}

/// Counts a wait of another thread as one of this thread, which waited for the other one.
pub(super) fn add_waited(wait: Duration) {
    WAITED.set(WAITED.get() + wait);
}

/// Is told of each wait before it begins.
type Notice = Box<dyn Fn(&Waiting<'_>) + Send + Sync>;

/// A storage that tries again after temporary errors. All threads share the patience with a target that is away: once it
/// is used up, every operation fails at its first try until the target is back.
pub struct RetryStorage {
    inner: Box<dyn Storage>,
    patience: RetryPolicy,
    interrupt: Interrupt,
    notice: Notice,
    /// When the target was first found to be away; `None` while it is there.
    away_since: Mutex<Option<Instant>>,
    /// The same as a flag, so that successful operations take no lock.
    is_away: AtomicBool,
}

impl RetryStorage {
    /// A storage that tries operations on `inner` again.
    pub fn new(inner: Box<dyn Storage>, patience: RetryPolicy) -> Self {
        RetryStorage {
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
        RetryStorage { interrupt, ..self }
    }

    /// The same with a function that is told of each wait before it begins.
    #[must_use]
    pub fn with_notice(self, notice: impl Fn(&Waiting<'_>) + Send + Sync + 'static) -> Self {
        RetryStorage { notice: Box::new(notice), ..self }
    }

    /// Notes that the target does not answer. Returns since when.
    fn away_since(&self) -> Instant {
        let mut since = lock(&self.away_since);
        // Under the lock, so that the flag and the time always agree.
        self.is_away.store(true, Ordering::Relaxed);
        *since.get_or_insert_with(Instant::now)
    }

    /// Notes that the target answered.
    fn answered(&self) {
        if self.is_away.load(Ordering::Relaxed) {
            let mut since = lock(&self.away_since);
            self.is_away.store(false, Ordering::Relaxed);
            *since = None;
        }
    }

    /// The wait after this many tries.
    fn wait_after(&self, tries: u32, error: &Error) -> Duration {
        let RetryPolicy { first_wait, longest_wait, .. } = self.patience;
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

impl Wrapper for RetryStorage {
    const REPEATS: bool = true;

    fn inner(&self) -> &dyn Storage {
        &*self.inner
    }

    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        let (mut tries, mut begun) = (0, None);
        loop {
            let result = match attempt().map(drop) {
                // The effect of an earlier try whose answer was lost.
                Err(error) if tries > 0 => match (call.operation, call.spool, error.kind) {
                    // The earlier try may have failed before its effect was durable.
                    (Operation::Remove, _, ErrorKind::NotFound) => self.inner.settle(&[folder_of(call.name)]),
                    (Operation::Store, Some(spool), ErrorKind::AlreadyExists) => match self.holds(spool) {
                        Ok(true) => self.inner.settle(&[folder_of(call.name)]),
                        Ok(false) => Err(error),
                        Err(error) => Err(error),
                    },
                    _ => Err(error),
                },
                result => result,
            };
            let error = match result {
                Err(error) if call.spool.is_some_and(Spool::is_cut_off) => return Err(error),
                Err(error) if error.is_temporary() => error,
                result => {
                    self.answered();
                    return result;
                }
            };
            if call.progress.is_some_and(Cell::take) {
                // The target answered before it went away.
                self.answered();
                (tries, begun) = (0, None);
            }
            tries += 1;
            let away = self.away_since().elapsed();
            // The target may answer others, and never this operation.
            let waited = away.max(begun.get_or_insert_with(Instant::now).elapsed());
            let left = self.patience.longest.saturating_sub(waited);
            if left.is_zero() {
                return Err(error);
            }
            if self.interrupt.is_set() {
                return Err(error);
            }
            let wait = self.wait_after(tries, &error).min(left);
            debug!(operation = ?call.operation, tries, wait_ms = wait.as_millis(), error = ?error.kind, "waiting for the target");
            (self.notice)(&Waiting { error: &error, tries, away, wait });
            let asleep = Instant::now();
            let goes_on = self.interrupt.sleep(wait);
            add_waited(asleep.elapsed());
            if !goes_on {
                return Err(error);
            }
        }
    }
}

impl fmt::Debug for RetryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryStorage")
            .field("inner", &self.inner)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;

    use super::super::contract::Ended;
    use super::super::parts::Parts;
    use super::super::testing::{Fault, Faulty, Memory, Record, Recording};
    use super::*;

    const QUICK: RetryPolicy = RetryPolicy {
        longest: Duration::from_secs(60),
        first_wait: Duration::from_millis(2),
        longest_wait: Duration::from_millis(2),
    };

    #[test]
    fn waits_double_up_to_a_bound_and_half_of_each_is_random() {
        let milliseconds = Duration::from_millis;
        let patience =
            RetryPolicy { longest: Duration::MAX, first_wait: milliseconds(100), longest_wait: milliseconds(1000) };
        let retry = RetryStorage::new(Box::new(Memory::default()), patience);
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

    #[test]
    fn a_target_that_is_back_is_waited_for_again_and_waits_are_counted() {
        let (faulty, faults) = Faulty::new(Box::new(Memory::default()));
        let retry = RetryStorage::new(Box::new(faulty), QUICK);
        let before = waited();
        for _ in 0..3 {
            faults.add(Fault { times: 2, ..Fault::next(Operation::List, ErrorKind::Unavailable) });
            retry.visit("", &mut |_| ()).unwrap();
            assert!(lock(&retry.away_since).is_none() && !retry.is_away.load(Ordering::Relaxed));
        }
        assert!(waited() - before >= 6 * QUICK.first_wait / 2);
    }

    /// A storage that removes one object per try, and asks for fewer requests then.
    #[derive(Debug)]
    struct OneATry(Memory);

    impl Wrapper for OneATry {
        fn inner(&self) -> &dyn Storage {
            &self.0
        }

        fn around(&self, _: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
            attempt().map(drop)
        }

        fn around_removals(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
            let (first, others) = names.split_first().unwrap();
            ended(0, self.0.remove(first));
            if others.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::Throttled, "remove", "", "slow down")) }
        }
    }

    #[test]
    fn a_try_that_removes_some_objects_is_an_answer() {
        let memory = Memory::default();
        let names: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        for name in &names {
            memory.store(&memory.spool(name, Uuid::nil()).unwrap()).unwrap();
        }
        let wait = Duration::from_millis(20);
        let patience = RetryPolicy { longest: 5 * wait, first_wait: wait, longest_wait: wait };
        let tries = Arc::new(Mutex::new(Vec::new()));
        let noted = tries.clone();
        let retry = RetryStorage::new(Box::new(OneATry(memory.clone())), patience)
            .with_notice(move |waiting| lock(&noted).push(waiting.tries));
        let mut ended = Vec::new();
        let objects: Vec<_> = names.iter().map(String::as_str).collect();
        retry.remove_all(&objects, &mut |at, result| ended.push((at, result.is_ok()))).unwrap();
        assert_eq!(ended, (0..20).map(|at| (at, true)).collect::<Vec<_>>());
        assert_eq!((memory.names().len(), &*lock(&tries)), (0, &vec![1; 19]));
    }

    #[test]
    fn after_a_failure_only_the_parts_that_are_missing_are_read_again() {
        let (recording, records) = Recording::new(Box::new(Memory::default()));
        let (faulty, faults) = Faulty::new(Box::new(recording));
        let retry = RetryStorage::new(Box::new(faulty), QUICK);
        let mut spool = retry.spool("packs/ab/x", Uuid::nil()).unwrap();
        spool.append(b"one two three four").unwrap();
        retry.store(&spool).unwrap();
        let read = |lengths: &[usize]| {
            let (mut taken, mut bytes) = (Vec::new(), Vec::new());
            let mut take = |part: &[u8]| taken.push(String::from_utf8_lossy(part).into_owned());
            let parts = Parts { offset: 4, lengths, bytes: &mut bytes, take: &mut take };
            let result = retry.read_parts("packs/ab/x", parts).map_err(|error| error.kind);
            (taken, result)
        };
        for after in [0, 1, 2] {
            records.take();
            faults.add(Fault { after, times: 3, ..Fault::next(Operation::Read, ErrorKind::Unavailable) });
            let (taken, result) = read(&[4, 0, 6, 4]);
            assert_eq!((taken.join("|").as_str(), result), ("two ||three |four", Ok(())), "{after}");
            assert_eq!(records.take().len(), 4);
            faults.clear();
        }
        let (taken, result) = read(&[4, 6, 5]);
        assert_eq!((taken, result), (vec!["two ".to_owned(), "three ".to_owned()], Err(ErrorKind::Truncated)));
    }

    #[test]
    fn an_object_whose_reply_was_lost_is_made_durable() {
        let (recording, records) = Recording::new(Box::new(Memory::default()));
        let (faulty, faults) = Faulty::new(Box::new(recording));
        let retry = RetryStorage::new(Box::new(faulty), QUICK);
        let settled = |records: Vec<Record>| records.iter().any(|record| record.operation == Operation::Settle);
        let lost = |operation| Fault { takes_effect: true, ..Fault::next(operation, ErrorKind::Unavailable) };
        let mut spool = retry.spool("packs/ab/x", Uuid::nil()).unwrap();
        spool.append(b"hello").unwrap();
        faults.add(lost(Operation::Store));
        retry.store(&spool).unwrap();
        assert!(settled(records.take()));
        faults.add(lost(Operation::Remove));
        retry.remove("packs/ab/x").unwrap();
        assert!(settled(records.take()));
        assert_eq!([folder_of("packs/ab/x"), folder_of("x")], ["packs/ab/", ""]);
    }
}
