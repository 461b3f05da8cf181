//! A backup is killed at any moment, and nothing is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::ordeal::{Ordeal, Random, count_calls, rounds, under_strace};
use common::wait::{send, until};
use common::{Run, run};
use rustix::process::Signal;

/// System calls that make changes visible to other processes, or that order such changes.
const CALLS: [&str; 11] = [
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "linkat",
    "renameat2",
    "openat",
    "mkdir",
    "unlink",
    "ftruncate",
    "mmap",
];

/// Kills a command this long after its start. True if it was still running.
fn killed_after(mut command: Command, time: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("brackfs runs");
    sleep(time);
    let running = child.try_wait().expect("waiting").is_none();
    child.kill().expect("a kill");
    child.wait().expect("waiting");
    running
}

/// Duration of an undisturbed run.
fn duration(command: Command) -> Duration {
    let start = Instant::now();
    run(command).ok();
    start.elapsed()
}

#[test]
fn a_backup_killed_at_any_moment_loses_nothing() {
    let mut killed = 0;
    rounds("crash by time", 7, |random| {
        let mut ordeal = Ordeal::new(random, 2);
        ordeal.change();
        let command = ordeal.command();
        let usual = duration(command);
        ordeal.holds();
        // Several kills in a row: the run that recovers from the first one is killed, too.
        for _ in 0..ordeal.random.within(1, 4) {
            ordeal.change();
            let command = ordeal.command();
            let moment = usual.mul_f64(ordeal.random.below(1000) as f64 / 1000.0);
            killed += u32::from(killed_after(command, moment));
            ordeal.look();
        }
        ordeal.holds();
    });
    assert!(killed > 0, "no run was killed: all were faster");
}

#[test]
fn a_backup_killed_at_a_system_call_loses_nothing() {
    let mut killed = 0;
    rounds("crash by system call", 7, |random| {
        let mut ordeal = Ordeal::new(random, 1);
        ordeal.change();
        let command = ordeal.command();
        let calls = count_calls(&CALLS, &command);
        ordeal.holds();
        for _ in 0..ordeal.random.within(1, 3) {
            ordeal.change();
            let command = ordeal.command();
            killed += u32::from(killed_at(&mut ordeal.random, &calls, &command));
            ordeal.look();
        }
        ordeal.holds();
    });
    assert!(killed > 0, "no run was killed: all made too few calls");
}

#[test]
fn a_prune_killed_at_a_system_call_loses_nothing() {
    let mut killed = 0;
    rounds("crash of a prune by system call", 3, |random| {
        let mut ordeal = Ordeal::new(random, 1);
        ordeal.forget();
        let calls = count_calls(&[&CALLS[..], &["unlinkat", "pread64"]].concat(), &ordeal.prune_command());
        ordeal.holds_after_prune();
        ordeal.forget();
        for _ in 0..ordeal.random.within(1, 3) {
            let command = ordeal.prune_command();
            killed += u32::from(killed_at(&mut ordeal.random, &calls, &command));
        }
        ordeal.holds_after_prune();
    });
    assert!(killed > 0, "no run was killed: all made too few calls");
}

/// Kills a command at one of these calls. True if it got that far.
fn killed_at(random: &mut Random, calls: &std::collections::BTreeMap<&'static str, u64>, command: &Command) -> bool {
    let names: Vec<_> = calls.keys().collect();
    let call = *random.choose(&names);
    let when = random.within(1, calls[call] + 1);
    let end = kill_at(call, when, command);
    match end.code {
        0 => false,
        137 => true,
        _ => panic!("neither done nor killed at {call} {when}\n{end}"),
    }
}

/// Runs a command that is killed when one of its threads makes a call for the n-th time.
fn kill_at(call: &str, nth: u64, command: &Command) -> Run {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    run(under_strace(&["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject], command))
}

#[test]
fn a_backup_killed_before_any_object_loses_nothing_and_the_next_one_cleans_up() {
    let (mut left, mut unknown) = (0, 0);
    // strace counts the calls of each thread separately, so the n-th calls of different threads are far apart.
    for call in ["linkat", "fsync"] {
        for nth in 1.. {
            let mut ordeal = Ordeal::new(Random::new(nth, call), 1);
            ordeal.change();
            let source = ordeal.site.source().display().to_string();
            let end = kill_at(call, nth, &ordeal.site.command(&["backup", &source]));
            ordeal.look();
            let orphans = ordeal.orphans();
            left += orphans.len();
            let known = ordeal.known_packs();
            unknown += ordeal.indexed_packs().iter().filter(|pack| !known.contains_key(*pack)).count();
            ordeal.holds();
            if end.code == 0 {
                break;
            }
            assert_eq!(end.code, 137, "killed at {call} {nth}\n{end}");
        }
    }
    assert!(left > 0, "no pack was left by any of them");
    assert!(unknown > 0, "no run was killed between an index and its record in the catalog");
}

#[test]
fn a_stopped_and_killed_backup_holds_no_lock() {
    let mut ordeal = Ordeal::new(Random::new(1, "lock"), 2);
    ordeal.change();
    let mut child = ordeal.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("brackfs runs");
    let locks = || fs::read_to_string("/proc/locks").expect("/proc/locks");
    let holder = format!(" {} ", child.id());
    until("it holds a lock", || locks().lines().any(|lock| lock.contains("FLOCK") && lock.contains(&holder)));
    send(&child, Signal::STOP);
    child.kill().expect("a kill");
    child.wait().expect("waiting");
    ordeal.holds();
}
