//! Ends waits when the user wants to stop.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may be silent after an interrupt, about a request that it got before.
const SILENCE: Duration = Duration::from_secs(1);
/// The same about the first later request, such as one that keeps what is stored: some services take seconds for an object.
/// After such a silence the server is given up.
const LAST_SILENCE: Duration = Duration::from_secs(3);
/// Time between two looks for silent servers.
const LOOK: Duration = Duration::from_millis(100);

/// Ends all waits of storage, present and future. Clones are the same interrupt.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<Interrupted>);

#[derive(Debug, Default)]
struct Interrupted {
    /// When it was set.
    at: Mutex<Option<Instant>>,
    changed: Condvar,
    connections: Mutex<Vec<Weak<dyn Connected>>>,
}

/// A connection to a server.
pub(super) trait Connected: fmt::Debug + Send + Sync {
    /// Since when the server is silent while this end waits for it; `None` if this end does not wait.
    fn silent_since(&self) -> Option<Instant>;

    /// Ends the connection, and all waits for it.
    fn end(&self);
}

impl Interrupt {
    /// Ends all waits. Operations that wait for a target return the error of their last try, and rates are not limited any
    /// more.
    pub fn set(&self) {
        self.at().get_or_insert_with(Instant::now);
        self.0.changed.notify_all();
    }

    /// Whether it was set.
    pub fn is_set(&self) -> bool {
        self.at().is_some()
    }

    /// Ends connections whose servers are silent, for this long after it was set. Blocks.
    pub fn end_silence(&self, time: Duration) {
        let begun = self.at().unwrap_or_else(Instant::now);
        let mut is_given_up = false;
        while begun.elapsed() < time {
            // Without the lock: the end of a connection may drop others.
            let connections: Vec<_> = lock(&self.0.connections).iter().filter_map(Weak::upgrade).collect();
            for connection in connections {
                let Some(since) = connection.silent_since() else { continue };
                let is_old = since < begun;
                if is_given_up || is_old && begun.elapsed() >= SILENCE || since.elapsed() >= LAST_SILENCE {
                    connection.end();
                    is_given_up |= !is_old;
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// Adds a connection whose waits it ends.
    pub(super) fn watch(&self, connection: Weak<dyn Connected>) {
        let mut connections = lock(&self.0.connections);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(connection);
    }

    /// Waits. Returns false if it was interrupted.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let waited = self.0.changed.wait_timeout_while(self.at(), time, |at| at.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_none()
    }

    fn at(&self) -> MutexGuard<'_, Option<Instant>> {
        lock(&self.0.at)
    }
}

impl PartialEq for Interrupt {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Interrupt {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The waits of one connection that one thread uses at a time.
pub(super) struct Waits {
    since: Mutex<Option<Instant>>,
    end: Box<dyn Fn() + Send + Sync>,
}

impl Waits {
    /// Waits that `interrupt` ends with `end`.
    pub(super) fn new(interrupt: &Interrupt, end: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        let waits = Arc::new(Waits { since: Mutex::default(), end: Box::new(end) });
        let connected: Arc<dyn Connected> = waits.clone();
        interrupt.watch(Arc::downgrade(&connected));
        waits
    }

    /// Does work that waits for the server, until some bytes moved.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        *lock(&self.since) = Some(Instant::now());
        let result = work();
        *lock(&self.since) = None;
        result
    }
}

impl Connected for Waits {
    fn silent_since(&self) -> Option<Instant> {
        *lock(&self.since)
    }

    fn end(&self) {
        (self.end)();
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").field("since", &self.since).finish_non_exhaustive()
    }
}
