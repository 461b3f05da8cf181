//! Commands that are stopped in the middle.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::ordeal::under_strace;
use super::{Run, run};

/// Runs a command that is stopped after the `nth` of these calls by one of its threads. Meanwhile runs `work`, and then lets
/// the command go on. Returns `None` if no thread makes as many calls.
#[track_caller]
pub fn stopped_at(calls: &str, nth: usize, command: &Command, work: impl FnOnce()) -> Option<Run> {
    let log = tempfile::NamedTempFile::new().expect("a log");
    let (trace, stop) = (format!("trace={calls}"), format!("inject={calls}:signal=STOP:when={nth}"));
    let strace = under_strace(&["-o", log.path().to_str().expect("a path"), "-e", &trace, "-e", &stop], command);
    let stops = || -> Vec<i32> {
        let log = fs::read_to_string(log.path()).expect("the log");
        let stopped = log.lines().filter(|line| line.contains("stopped by SIGSTOP"));
        stopped.map(|line| line.split(' ').next().and_then(|thread| thread.parse().ok()).expect("a thread")).collect()
    };
    std::thread::scope(|threads| {
        let running = threads.spawn(move || run(strace));
        let (mut work, mut seen) = (Some(work), 0);
        while !running.is_finished() {
            // Each thread counts its own calls, so there may be several stops. All threads are stopped, and named.
            for thread in stops().split_off(seen) {
                seen += 1;
                let done = work.take().map(|work| catch_unwind(AssertUnwindSafe(work)));
                let sent = kill_process(Pid::from_raw(thread).expect("a thread"), Signal::CONT);
                assert!(matches!(sent, Ok(()) | Err(Errno::SRCH)), "{sent:?}");
                if let Some(Err(panic)) = done {
                    resume_unwind(panic);
                }
            }
            sleep(Duration::from_millis(2));
        }
        let run = running.join().expect("the end of the command");
        work.is_none().then_some(run)
    })
}
