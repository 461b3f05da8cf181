//! Commands that run before and after backups.

use std::cell::RefCell;
use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::outcome::Failed;
use crate::config::{Hook, Moment};
use crate::failure::FailureKind;
use crate::monitor::Monitor;
use crate::sys::process_group::{LinePipe, ProcessGroup};

/// The exit code of a hook that wants the backups to be skipped (EX_TEMPFAIL of sysexits.h).
const SKIP: i32 = 75;

/// What a hook wants.
#[derive(Debug)]
pub(super) enum Verdict {
    GoOn,
    /// The backups are skipped, which is no failure.
    Skip,
    Failed(Failed),
}

/// Runs a hook with these variables. Its output goes to standard error, or to the monitor: standard output is for results.
pub(super) fn run(
    hook: &Hook,
    moment: Moment,
    variables: &[(&str, String)],
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Verdict {
    let program = hook.words.first().map(String::as_str).unwrap_or_default();
    let mut command = Command::new(program);
    command.args(hook.words.iter().skip(1)).envs(variables.iter().map(|(name, value)| (name, value)));
    let begun = Instant::now();
    let is_stopped = || stop.load(Ordering::Relaxed);
    let gives_up = || is_stopped() || begun.elapsed() > hook.timeout;
    match wait_for(command.stdin(Stdio::null()), program, monitor, gives_up) {
        Ok(Some(status)) if status.success() => Verdict::GoOn,
        Ok(Some(status)) if status.code() == Some(SKIP) && moment == Moment::Before => Verdict::Skip,
        Ok(Some(status)) => Verdict::Failed(Failed::new(format!("{program} failed ({status})"))),
        Ok(None) if is_stopped() => {
            Verdict::Failed(Failed { kind: FailureKind::Interrupted, message: format!("interrupted during {program}") })
        }
        Ok(None) => {
            let seconds = hook.timeout.as_secs_f64();
            Verdict::Failed(Failed::new(format!("{program} was ended because it took longer than {seconds} s")))
        }
        Err(error) => Verdict::Failed(Failed::new(format!("cannot run {program}: {error}"))),
    }
}

/// Runs a command until it ends. `None` if `gives_up` returned true before.
fn wait_for(
    command: &mut Command,
    program: &str,
    monitor: &dyn Monitor,
    gives_up: impl Fn() -> bool,
) -> io::Result<Option<ExitStatus>> {
    if !monitor.takes_output() {
        return ProcessGroup::start(command.stdout(io::stderr()))?.wait(gives_up);
    }
    let (lines, end) = LinePipe::new()?;
    let group = ProcessGroup::start(command.stdout(end.try_clone()?).stderr(end))?;
    let (lines, output) = (RefCell::new(lines), |line: &str| monitor.output(program, line));
    let ended = group.wait(|| {
        lines.borrow_mut().take(&output);
        gives_up()
    });
    lines.into_inner().end(&output);
    ended
}
