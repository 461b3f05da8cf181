//! What the process asks of the system before it does anything.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use libc::SIGXFSZ;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use signal_hook::consts::SIGUSR1;

use crate::sys::{keep_heap_small, stdout_was_closed};

/// Keeps secrets out of core dumps, and allows as many open files as the system does: a walk holds each
/// directory between the root and where it is. Where that is refused, things still work, less deep.
///
/// Two signals would end the process by default. SIGUSR1 asks how far a run is, and is ignored until a run can tell. SIGXFSZ
/// comes with a write beyond the limit of file sizes, and the error of that write says what to do.
pub(super) fn prepare() {
    keep_heap_small();
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    for signal in [SIGUSR1, SIGXFSZ] {
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
}

/// Why nothing can be done in this process, whatever the command; `prints`: its result goes to standard output.
pub(super) fn refusal(prints: bool) -> Option<String> {
    if prints && stdout_was_closed() {
        return Some(
            "standard output is closed, and the result would be lost; send it somewhere, to /dev/null if you like"
                .into(),
        );
    }
    clock_problem(SystemTime::now())
}

/// What is wrong with a time of day. OpenPGP counts the seconds since 1970 in 32 bits.
fn clock_problem(now: SystemTime) -> Option<String> {
    let seconds = now.duration_since(UNIX_EPOCH).map(|since| since.as_secs());
    match seconds {
        Ok(seconds) if u32::try_from(seconds).is_ok() => None,
        Ok(_) => Some("the clock of this machine is in the year 2106 or later, which keys and signatures know no times for; set it".into()),
        Err(_) => Some("the clock of this machine is before 1970; set it".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_signatures_cannot_state_is_refused() {
        let at = |seconds: u64| clock_problem(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!([0, 1_800_000_000, u32::MAX.into()].map(at), [const { None }; 3]);
        assert!(at(1 << 32).is_some_and(|why| why.contains("2106")));
        assert!(clock_problem(UNIX_EPOCH - Duration::from_secs(1)).is_some_and(|why| why.contains("1970")));
    }
}
