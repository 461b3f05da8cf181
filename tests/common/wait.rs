//! Waiting for events. No result depends on a fixed time: a condition is polled, and a limit that no busy machine
//! reaches only turns a hang into a failure.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};

/// After this time, an event that did not occur never will.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Waits until a condition holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "not after {LIMIT:?}: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// Waits until a program ends. A program that hangs is killed.
#[track_caller]
pub fn ended(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return status;
        }
        if start.elapsed() > LIMIT {
            child.kill().expect("killing a child");
            panic!("process {} does not end", child.id());
        }
        sleep(Duration::from_millis(5));
    }
}

/// Waits until the clock shows another second: names of snapshots have no smaller unit.
pub fn next_second() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
    let before = now();
    until("another second", || now() != before);
}

#[track_caller]
pub fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("a signal");
}

/// Waits until a signal that was sent to a program is delivered.
#[track_caller]
pub fn until_delivered(child: &Child, signal: Signal) {
    let status = format!("/proc/{}/status", child.id());
    until("the signal is delivered", || {
        let status = fs::read_to_string(&status).expect("status of a child");
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).expect("pending signals");
        let pending = u64::from_str_radix(pending.trim(), 16).expect("a set of signals");
        pending >> (signal.as_raw() - 1) & 1 == 0
    });
}

/// Waits until a thread of a program waits for an answer of a FUSE file system.
#[track_caller]
pub fn until_it_waits_for_fuse(child: &mut Child) {
    until("it waits for a file system", || {
        assert!(child.try_wait().expect("waiting for a child").is_none(), "it ended");
        threads(child.id(), "wchan").iter().any(|place| is_in_fuse(place))
    });
}

/// Waits until a thread waits for an answer of a FUSE file system, or for a page that is read from it. The thread is given
/// by its folder in `/proc`.
#[track_caller]
pub fn until_thread_waits_for_fuse(thread: &Path) {
    until("the thread waits for a file system", || {
        let place = fs::read_to_string(thread.join("wchan")).expect("a thread");
        is_in_fuse(&place) || place.starts_with("folio_wait")
    });
}

/// Whether the function of the kernel that a thread waits in is one of FUSE.
fn is_in_fuse(place: &str) -> bool {
    place.contains("fuse") || place == "request_wait_answer"
}

/// A file in `/proc` of each thread of a program.
pub fn threads(process: u32, file: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join(file)).ok()).collect()
}
