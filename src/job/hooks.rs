//! Commands that run before and after backups.

use std::cell::{Cell, RefCell};
use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::outcome::{Failed, Row};
use crate::config::{Hook, Moment};
use crate::failure::FailureKind;
use crate::monitor::Monitor;
use crate::sys::process_group::{LinePipe, ProcessGroup};

/// The exit code of a hook that wants the backups to be skipped (EX_TEMPFAIL of sysexits.h).
const SKIP: i32 = 75;
/// Maximum length of a variable in bytes. Linux starts no program with one of 128 KiB.
const VARIABLE: usize = 64 << 10;

/// What a hook wants.
#[derive(Debug)]
pub(super) enum Verdict {
    GoOn,
    /// The backups are skipped, which is no failure.
    Skip,
    Failed(Failed),
}

/// An interrupt, and how long a hook may run after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interrupt<'a> {
    pub(super) stop: &'a AtomicBool,
    pub(super) grace: Duration,
}

/// The messages of steps with problems, as a variable of the environment: one for each line, and without NUL.
pub(super) fn messages(rows: &[Row]) -> String {
    let failed = rows.iter().filter(|row| row.outcome.failure().is_some());
    let lines: Vec<_> = failed.map(|row| format!("{}: {}", row.step.name(), row.outcome)).collect();
    let mut text = lines.join("\n").replace('\0', " ");
    if text.len() > VARIABLE {
        let end = (0..=VARIABLE).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The steps as a list of JSON, as a variable of the environment. If they are too many, those that went well are left out, and
/// then the last ones.
pub(super) fn summary(rows: &[Row], json: impl Fn(&Row) -> String) -> String {
    let has_failed = |row: &&Row| row.outcome.failure().is_some();
    let mut steps: Vec<_> = rows.iter().map(&json).collect();
    let size = |steps: &[String]| steps.iter().map(|step| step.len() + 1).sum::<usize>() + 1;
    if size(&steps) > VARIABLE {
        steps = rows.iter().filter(has_failed).map(&json).collect();
    }
    while size(&steps) > VARIABLE {
        steps.pop();
    }
    format!("[{}]", steps.join(","))
}

/// Runs a hook with these variables. Its output goes to standard error, or to the monitor: standard output is for results.
pub(super) fn run(
    hook: &Hook,
    moment: Moment,
    variables: &[(&str, String)],
    monitor: &dyn Monitor,
    interrupt: Interrupt<'_>,
) -> Verdict {
    let program = hook.words.first().map(String::as_str).unwrap_or_default();
    let mut command = Command::new(program);
    command.args(hook.words.iter().skip(1)).envs(variables.iter().map(|(name, value)| (name, value)));
    let begun = Instant::now();
    let stopped = Cell::new(None);
    let is_stopped = || {
        if stopped.get().is_none() && interrupt.stop.load(Ordering::Relaxed) {
            stopped.set(Some(Instant::now()));
        }
        stopped.get().is_some_and(|since: Instant| since.elapsed() >= interrupt.grace)
    };
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

#[cfg(test)]
mod tests {
    use super::super::outcome::{Outcome, Step};
    use super::*;
    use crate::config::OnFailure;
    use crate::monitor::Silent;

    fn shell(script: &str, timeout: Duration) -> Hook {
        let words = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook {
            on: vec![Moment::Finally],
            sources: Vec::new(),
            words,
            timeout,
            on_failure: OnFailure::Abort,
            used: Vec::new(),
        }
    }

    #[test]
    fn a_hook_may_run_for_a_while_after_an_interrupt() {
        let (hour, stop) = (Duration::from_secs(3600), AtomicBool::new(false));
        let ended = |script: &str, grace: Duration| {
            let hook = shell(script, hour);
            run(&hook, Moment::Finally, &[], &Silent, Interrupt { stop: &stop, grace })
        };
        std::thread::scope(|threads| {
            threads.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                stop.store(true, Ordering::Relaxed);
            });
            let verdict = ended("sleep 1000", Duration::from_millis(300));
            assert!(
                matches!(&verdict, Verdict::Failed(failed) if failed.kind == FailureKind::Interrupted),
                "{verdict:?}"
            );
        });
        assert!(matches!(ended("sleep 0.1", hour), Verdict::GoOn));
    }

    #[test]
    fn the_messages_of_many_steps_fit_in_a_variable() {
        let row = |message: &str| Row {
            step: Step::Backup,
            source: None,
            target: None,
            repository: None,
            outcome: Outcome::Failed(Failed::new(message)),
            counts: None,
            duration: Duration::ZERO,
        };
        assert_eq!(messages(&[row("a\0b"), row("c")]), "backup: a b\nbackup: c");
        let json = |row: &Row| serde_json::json!({ "message": row.outcome.to_string() }).to_string();
        assert_eq!(summary(&[row("a"), row("c\0")], json), r#"[{"message":"a"},{"message":"c\u0000"}]"#);
        let done = Row { outcome: Outcome::Done("x".repeat(1000)), ..row("") };
        let many: Vec<_> = (0..100).map(|_| done.clone()).chain([row("why")]).collect();
        assert_eq!(summary(&many, json), r#"[{"message":"why"}]"#);
        let failures: Vec<_> = (0..100).map(|_| row(&"x".repeat(1000))).collect();
        let steps: Vec<serde_json::Value> = serde_json::from_str(&summary(&failures, json)).unwrap();
        assert!((50..65).contains(&steps.len()), "{}", steps.len());

        let message = messages(&[row(&"ü".repeat(200_000))]);
        let hook = shell("test ${#MESSAGE} -gt 30000", Duration::from_secs(60));
        let interrupt = Interrupt { stop: &AtomicBool::new(false), grace: Duration::ZERO };
        let verdict = run(&hook, Moment::Failure, &[("MESSAGE", message)], &Silent, interrupt);
        assert!(matches!(verdict, Verdict::GoOn), "{verdict:?}");
    }
}
