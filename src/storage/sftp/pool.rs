//! Connections to one server, opened when they are needed.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::debug;

use super::failure::Failure;
use super::session::Session;
use super::ssh::Ssh;

/// How long to do with fewer connections after the server refused one.
const PAUSE: Duration = Duration::from_secs(60);

/// Up to a number of connections. An operation takes a free one, or a new one, or shares the one with the fewest users.
#[derive(Debug)]
pub(super) struct Pool {
    ssh: Arc<Ssh>,
    most: NonZeroUsize,
    /// How long a connection may be silent.
    stall: Duration,
    open: Mutex<Open>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    lanes: Vec<Arc<Lane>>,
    /// The number of connections that are being opened.
    opening: usize,
    /// No more connections are opened until then, unless there is none.
    paused_until: Option<Instant>,
}

/// A connection, and the number of operations that use it.
#[derive(Debug)]
struct Lane {
    session: Session,
    users: AtomicUsize,
}

/// The use of a connection for an operation.
#[derive(Debug)]
pub(super) struct Lease(Arc<Lane>);

impl Pool {
    pub(super) fn new(ssh: Ssh, most: NonZeroUsize, stall: Duration) -> Self {
        Pool { ssh: Arc::new(ssh), most, stall, open: Mutex::default(), opened: Condvar::new() }
    }

    /// The maximum number of connections.
    pub(super) fn most(&self) -> usize {
        self.most.get()
    }

    /// Takes a connection for a short operation: the one with the fewest users, since a new one takes longer.
    pub(super) fn share(&self) -> Result<Lease, Failure> {
        let open = self.lock();
        let there = open.lanes.iter().filter(|lane| !lane.session.is_lost());
        if let Some(lane) = there.min_by_key(|lane| lane.users.load(Ordering::Relaxed)) {
            return Ok(Lease::new(lane.clone()));
        }
        drop(open);
        self.take()
    }

    /// Takes a connection.
    pub(super) fn take(&self) -> Result<Lease, Failure> {
        let mut open = self.lock();
        loop {
            open.lanes.retain(|lane| !lane.session.is_lost());
            let least = open.lanes.iter().min_by_key(|lane| lane.users.load(Ordering::Relaxed)).cloned();
            let is_free = least.as_ref().is_some_and(|lane| lane.users.load(Ordering::Relaxed) == 0);
            let may_open = open.lanes.len() + open.opening < self.most.get()
                && (least.is_none() || open.paused_until.is_none_or(|until| until < Instant::now()));
            match least {
                Some(lane) if is_free || !may_open => return Ok(Lease::new(lane)),
                None if !may_open => {
                    open = self.opened.wait(open).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                _ => {}
            }
            open.opening += 1;
            drop(open);
            let session = Session::open(&self.ssh, self.stall);
            open = self.lock();
            open.opening -= 1;
            self.opened.notify_all();
            match session {
                Ok(session) => {
                    let lane = Arc::new(Lane { session, users: AtomicUsize::new(0) });
                    open.lanes.push(lane.clone());
                    return Ok(Lease::new(lane));
                }
                // Servers limit the number of connections, so those that exist have to do.
                Err(failure) if open.lanes.iter().any(|lane| !lane.session.is_lost()) => {
                    debug!(connections = open.lanes.len(), ?failure, "no further connection");
                    open.paused_until = Some(Instant::now() + PAUSE);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Forgets that a file is open.
    pub(super) fn forget(&self, path: &str) {
        let lanes = self.lock().lanes.clone();
        lanes.iter().for_each(|lane| lane.session.forget(path));
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Called with the pool locked, so that two operations do not both find the same connection free.
    fn new(lane: Arc<Lane>) -> Self {
        lane.users.fetch_add(1, Ordering::Relaxed);
        Lease(lane)
    }
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0.session
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::Relaxed);
    }
}
