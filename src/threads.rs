//! Threads that share work: as many as are wanted, or as many as the system allows.

use std::io;
use std::thread::{Builder, Scope};

/// The system allows no thread for work that cannot be done without one.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot start a thread for {work}: {source}; the limit of processes (ulimit -u, or pids.max of a container) or of \
     memory is too low"
)]
pub struct TooFew {
    /// What the thread was for.
    pub work: &'static str,
    /// Why it could not be started.
    pub source: io::Error,
}

/// Starts `wanted` threads in a scope, or fewer if the system allows no more. Returns how many run: at least one.
/// `make` is called once for each, and returns what that thread does.
///
/// Start what a run cannot do without first, one of each kind, and then what makes it faster. After an error, drop the
/// channels that threads wait at before the scope ends.
pub fn start<'scope, W>(
    scope: &'scope Scope<'scope, '_>,
    work: &'static str,
    wanted: usize,
    mut make: impl FnMut() -> W,
) -> Result<usize, TooFew>
where
    W: FnOnce() + Send + 'scope,
{
    for started in 0..wanted {
        match Builder::new().name(work.to_owned()).spawn_scoped(scope, make()) {
            Ok(_) => {}
            Err(source) if started == 0 => return Err(TooFew { work, source }),
            Err(_) => return Ok(started),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::scope;

    use super::*;

    #[test]
    fn each_thread_does_its_work() {
        let done = AtomicUsize::new(0);
        let work = || _ = done.fetch_add(1, Ordering::Relaxed);
        scope(|threads| {
            assert_eq!(start(threads, "nothing", 0, || work).unwrap(), 0);
            assert_eq!(start(threads, "counting", 3, || work).unwrap(), 3);
        });
        assert_eq!(done.into_inner(), 3);
    }
}
