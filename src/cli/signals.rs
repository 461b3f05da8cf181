//! Ending on SIGINT, SIGTERM and SIGHUP.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{exit, output, terminal};
use crate::failure::FailureKind;
use crate::storage::Interrupt;
use crate::sys::signals::{end_at_once, ending};

/// Exit code after a signal.
pub(super) const INTERRUPTED: u8 = exit::code(FailureKind::Interrupted);

/// Stack of a command's thread: as large as the main thread's usually is.
const COMMAND_STACK: usize = 8 << 20;

/// Time limit for an orderly end after a signal. Service managers wait longer before they kill.
const GRACE: Duration = Duration::from_secs(60);

/// Time limit for commands that leave no state to clean up.
const READER_GRACE: Duration = Duration::from_secs(2);

/// Ends waits for a target when the first signal arrives.
pub(super) fn interrupt() -> &'static Interrupt {
    static INTERRUPT: LazyLock<Interrupt> = LazyLock::new(Interrupt::default);
    &INTERRUPT
}

/// Runs a command in a thread of its own. The kernel delivers a signal to the main thread if it can, and while that thread
/// is blocked in a file system that does not answer, the signal is not handled.
pub(super) fn run_in_thread(run: impl Fn() -> Result<ExitCode> + Sync) -> Result<ExitCode> {
    thread::scope(|threads| {
        let command = thread::Builder::new().name("command".into()).stack_size(COMMAND_STACK);
        match command.spawn_scoped(threads, &run) {
            Ok(command) => command.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // If no thread can be started, run it here.
            Err(_) => run(),
        }
    })
}

/// Whether the first signal ends the process at once.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));

/// Makes the first signal end the process at once, until a command has work that it must finish: see [`stop_on_signals`].
pub(super) fn end_on_signals() {
    for signal in ending() {
        // Without a handler, a signal ends the process as well.
        let _ = end_at_once(signal, AT_ONCE.clone(), INTERRUPTED, last_line("interrupted"));
    }
}

/// The last line on standard error of a process that a signal ends at once. It is empty without --json.
fn last_line(message: &str) -> Vec<u8> {
    if output::is_json() { (output::exit_error_line(INTERRUPTED, message) + "\n").into_bytes() } else { Vec::new() }
}

/// A flag that the first signal sets. A second signal ends the process at once, and so does the end of [`GRACE`].
pub(super) fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    stop_within(GRACE)
}

/// The same with [`READER_GRACE`], for commands that may be blocked in a file system and lose nothing by ending early.
pub(super) fn stop_soon_on_signals() -> Result<Arc<AtomicBool>> {
    stop_within(READER_GRACE)
}

fn stop_within(grace: Duration) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let failed = "cannot install signal handlers";
    let (mut waiting, wake) = UnixStream::pair().context(failed)?;
    for signal in ending() {
        // In this order: the first handler checks the flag before the second one sets it.
        end_at_once(signal, stop.clone(), INTERRUPTED, last_line("interrupted by a second signal"))
            .and_then(|()| signal_hook::flag::register(signal, stop.clone()))
            .and_then(|_| signal_hook::low_level::pipe::register(signal, wake.try_clone()?))
            .context(failed)?;
    }
    AT_ONCE.store(false, Ordering::Relaxed);
    let end = move || {
        if waiting.read_exact(&mut [0]).is_ok() {
            if terminal::is_interactive() {
                terminal::announce("stopping…");
            }
            interrupt().set();
            interrupt().end_silence(grace);
            let seconds = grace.as_secs();
            terminal::abort(&format!("interrupted, and killed because it did not end within {seconds} s"));
        }
    };
    // Without this thread, a second signal still ends the process.
    let _ending = thread::Builder::new().name("ending".into()).spawn(end);
    Ok(stop)
}
