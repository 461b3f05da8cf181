//! Commands that run before and after backups.

use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::outcome::Failed;
use crate::config::{Hook, Moment};
use crate::failure::FailureKind;
use crate::sys::process_group::ProcessGroup;

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

/// Runs a hook with these variables. Its output goes to standard error: standard output is for results.
pub(super) fn run(hook: &Hook, moment: Moment, variables: &[(&str, String)], stop: &AtomicBool) -> Verdict {
    let program = hook.words.first().map(String::as_str).unwrap_or_default();
    let mut command = Command::new(program);
    command.args(hook.words.iter().skip(1)).envs(variables.iter().map(|(name, value)| (name, value)));
    let begun = Instant::now();
    let is_stopped = || stop.load(Ordering::Relaxed);
    let gives_up = || is_stopped() || begun.elapsed() > hook.timeout;
    match ProcessGroup::start(command.stdin(Stdio::null()).stdout(io::stderr())).and_then(|group| group.wait(gives_up))
    {
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
