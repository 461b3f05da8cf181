//! Connections to one server, opened when they are needed.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::debug;

use super::failure::Failure;
use super::session::Session;
use super::ssh::Ssh;
use crate::storage::interrupt::Interrupt;
use crate::storage::remote::{FEW, Remote};

/// How long to do with fewer connections after the server refused one.
const PAUSE: Duration = Duration::from_secs(60);

/// Up to a number of connections. An operation takes a free one, or a new one, or shares the one with the fewest users.
#[derive(Debug)]
pub(super) struct Pool {
    ssh: Arc<Ssh>,
    most: NonZeroUsize,
    /// How long a connection may be silent.
    stall: Duration,
    interrupt: Interrupt,
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
    pub(super) fn new(ssh: Ssh, remote: &Remote) -> Self {
        let (most, stall) = (remote.connections(FEW), remote.stall);
        let interrupt = remote.interrupt.clone();
        Pool { ssh: Arc::new(ssh), most, stall, interrupt, open: Mutex::default(), opened: Condvar::new() }
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
            let has_room = open.lanes.len() + open.opening < self.most.get();
            let may_open = if least.is_none() { has_room } else { self.may_open(&open) };
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
            match self.open() {
                Ok(lease) => return Ok(lease),
                Err(failure) => {
                    open = self.lock();
                    if open.lanes.iter().all(|lane| lane.session.is_lost()) {
                        return Err(failure);
                    }
                }
            }
        }
    }

    /// Takes a connection for a large transfer that must not wait for a login: shares one, and opens another in the
    /// background if all are in use.
    pub(super) fn share_and_grow(self: &Arc<Self>) -> Result<Lease, Failure> {
        let lease = self.share()?;
        if lease.0.users.load(Ordering::Relaxed) > 1 {
            self.grow(1);
        }
        Ok(lease)
    }

    /// Opens all connections that may be opened, in the background.
    pub(super) fn widen(self: &Arc<Self>) {
        self.grow(self.most());
    }

    /// Opens up to `count` more connections in the background, while there are others.
    fn grow(self: &Arc<Self>, count: usize) {
        let mut open = self.lock();
        for _ in 0..count {
            if !self.may_open(&open) {
                break;
            }
            let pool = self.clone();
            // If the system refuses, the connections that exist have to do.
            let started = thread::Builder::new().name("sftp login".into()).spawn(move || drop(pool.open()));
            open.opening += usize::from(started.is_ok());
        }
    }

    /// Opens a connection that was counted as being opened. After a failure, no more are opened for a while if there are
    /// others.
    fn open(&self) -> Result<Lease, Failure> {
        let session = Session::open(&self.ssh, self.stall, &self.interrupt);
        let mut open = self.lock();
        open.opening -= 1;
        self.opened.notify_all();
        match session {
            Ok(session) => {
                let lane = Arc::new(Lane { session, users: AtomicUsize::new(0) });
                open.lanes.push(lane.clone());
                Ok(Lease::new(lane))
            }
            Err(failure) => {
                // Servers limit the number of connections, so those that exist have to do.
                if open.lanes.iter().any(|lane| !lane.session.is_lost()) {
                    debug!(connections = open.lanes.len(), ?failure, "no further connection");
                    open.paused_until = Some(Instant::now() + PAUSE);
                }
                Err(failure)
            }
        }
    }

    /// Whether one more connection may be opened, while there are others.
    fn may_open(&self, open: &Open) -> bool {
        let has_room = open.lanes.len() + open.opening < self.most.get();
        has_room && open.paused_until.is_none_or(|until| until < Instant::now())
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
