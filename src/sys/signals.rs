//! Signals that end a program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{SIGHUP, SIGINT, SIGTERM, c_int};

/// The signals by which users and service managers end a program. SIGHUP is left out if it is ignored, as nohup(1) does.
pub(crate) fn ending() -> Vec<c_int> {
    let is_ignored = |signal: c_int| {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        #[expect(unsafe_code, reason = "there is no safe way to ask")]
        // SAFETY: without a new action, the call only writes the current one.
        let handler = unsafe {
            match libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) {
                0 => action.assume_init().sa_sigaction,
                _ => return false,
            }
        };
        handler == libc::SIG_IGN
    };
    [SIGINT, SIGTERM].into_iter().chain(Some(SIGHUP).filter(|signal| !is_ignored(*signal))).collect()
}

/// Makes a signal end the process with this exit code whenever `when` is set. `last` is written to standard error first.
pub(crate) fn end_at_once(signal: c_int, when: Arc<AtomicBool>, code: u8, last: Vec<u8>) -> io::Result<()> {
    let end = move || {
        if when.load(Ordering::Relaxed) {
            #[expect(unsafe_code, reason = "the standard library's write is not documented as safe in a handler")]
            // SAFETY: write is async-signal-safe, and the bytes live as long as the handler.
            let _written = unsafe { libc::write(libc::STDERR_FILENO, last.as_ptr().cast(), last.len()) };
            signal_hook::low_level::exit(code.into());
        }
    };
    #[expect(unsafe_code, reason = "there is no safe way to write in a handler")]
    // SAFETY: the action loads an atomic, writes prepared bytes and exits, all of which are async-signal-safe.
    let registered = unsafe { signal_hook::low_level::register(signal, end) };
    registered.map(drop)
}
