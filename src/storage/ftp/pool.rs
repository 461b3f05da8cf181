//! Sessions on one server, opened when they are needed. Each has one user at a time.

use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::debug;

use super::failure::Failure;
use super::session::{Server, Session};

/// How long to do with fewer sessions after the server refused one.
const PAUSE: Duration = Duration::from_secs(60);

/// Up to a number of sessions.
#[derive(Debug)]
pub(super) struct Pool {
    server: Arc<Server>,
    most: NonZeroUsize,
    open: Mutex<Open>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    free: Vec<Session>,
    /// The number of sessions that are free, in use or being opened.
    count: usize,
    /// No more sessions are opened until then, unless there is none.
    paused_until: Option<Instant>,
}

/// The use of a session for an operation. An operation must not take a second one.
#[derive(Debug)]
pub(super) struct Lease<'p> {
    session: Session,
    pool: &'p Pool,
}

impl Pool {
    pub(super) fn new(server: Server, most: NonZeroUsize) -> Self {
        Pool { server: Arc::new(server), most, open: Mutex::default(), freed: Condvar::new() }
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// The maximum number of sessions.
    pub(super) fn most(&self) -> usize {
        self.most.get()
    }

    /// Takes a session. Waits while all are in use.
    pub(super) fn take(&self) -> Result<Lease<'_>, Failure> {
        let mut open = self.lock();
        loop {
            if let Some(session) = open.free.pop() {
                if session.is_usable() {
                    return Ok(Lease { session, pool: self });
                }
                open.count -= 1;
                drop(open);
                drop(session);
                open = self.lock();
                continue;
            }
            let is_paused = open.paused_until.is_some_and(|until| Instant::now() < until);
            if open.count >= self.most.get() || (open.count > 0 && is_paused) {
                open = self.freed.wait(open).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            open.count += 1;
            drop(open);
            let session = Session::open(&self.server);
            open = self.lock();
            match session {
                Ok(session) => return Ok(Lease { session, pool: self }),
                Err(failure) => {
                    open.count -= 1;
                    self.freed.notify_one();
                    if open.count == 0 {
                        return Err(failure);
                    }
                    // Servers limit the number of sessions, so those that exist have to do.
                    debug!(sessions = open.count, ?failure, "no further session");
                    open.paused_until = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Lease<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let session = self.session.hand_over();
        let mut open = self.pool.lock();
        if session.is_lost() {
            open.count -= 1;
        } else {
            open.free.push(session);
        }
        self.pool.freed.notify_one();
    }
}
