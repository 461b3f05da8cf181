//! Limits and signal handlers of the process, set at startup, and checks of its environment.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use libc::SIGXFSZ;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use signal_hook::consts::SIGUSR1;

use crate::sys::{keep_heap_small, stdout_was_closed};

/// Disables core dumps, which could contain secrets, and raises the limit of open files: a walk keeps all directories between
/// the root and the current one open. If the limit can't be raised, deep trees are cut.
///
/// Handles two signals that end a process by default. SIGUSR1 requests the progress of a run, and is ignored before a run
/// starts. SIGXFSZ is sent for a write beyond the file size limit; the write's error is reported instead.
pub(super) fn prepare() {
    keep_heap_small();
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    for signal in [SIGUSR1, SIGXFSZ] {
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
}

/// The reason why no command can run in this process. `prints`: the command has no effect except its output.
pub(super) fn refusal(prints: bool) -> Option<String> {
    if prints && stdout_was_closed() {
        return Some(
            "cannot print the result: standard output is closed; redirect it to a file or to /dev/null".into(),
        );
    }
    clock_problem(SystemTime::now())
}

/// Checks the system time. OpenPGP stores times as 32-bit seconds since 1970.
fn clock_problem(now: SystemTime) -> Option<String> {
    let seconds = now.duration_since(UNIX_EPOCH).map(|since| since.as_secs());
    match seconds {
        Ok(seconds) if u32::try_from(seconds).is_ok() => None,
        Ok(_) => Some(
            "the clock of this machine is in the year 2106 or later, which OpenPGP can't represent; set the clock"
                .into(),
        ),
        Err(_) => Some("the clock of this machine is before 1970; set the clock".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_that_openpgp_cannot_represent_is_refused() {
        let at = |seconds: u64| clock_problem(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!([0, 1_800_000_000, u32::MAX.into()].map(at), [const { None }; 3]);
        assert!(at(1 << 32).is_some_and(|why| why.contains("2106")));
        assert!(clock_problem(UNIX_EPOCH - Duration::from_secs(1)).is_some_and(|why| why.contains("1970")));
    }
}
