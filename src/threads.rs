//! Starts worker threads, as many as wanted or as the system allows.

use std::io;
use std::thread::{Builder, Scope};

/// The system did not allow even one thread.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot start a thread for {work}: {source}; raise the limit of processes (ulimit -u, or pids.max of a container) or \
     of memory"
)]
pub struct TooFew {
    /// The thread's task, which is also the thread's name.
    pub work: &'static str,
    /// The error of the system.
    pub source: io::Error,
}

/// Starts `wanted` threads in a scope, or fewer if the system allows no more. Returns the number of started threads,
/// which is at least one unless `wanted` is 0. `make` is called once per thread and returns the thread's function.
///
/// Start one thread of each required kind first, then additional ones. After an error, drop the channels on which
/// threads wait before the scope ends.
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
    fn all_wanted_threads_run() {
        let done = AtomicUsize::new(0);
        let work = || _ = done.fetch_add(1, Ordering::Relaxed);
        scope(|threads| {
            assert_eq!(start(threads, "nothing", 0, || work).unwrap(), 0);
            assert_eq!(start(threads, "counting", 3, || work).unwrap(), 3);
        });
        assert_eq!(done.into_inner(), 3);
    }
}
