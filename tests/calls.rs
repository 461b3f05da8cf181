//! System calls per small file: each takes time, mostly where there is one core.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use common::ordeal::under_strace;
use common::{Site, run, tree};

/// Calls that are not made for a file: when threads wait for each other or need memory, and in debug builds before a file is
/// closed (fcntl).
const OTHERS: [&str; 8] = ["futex", "sched_yield", "mmap", "munmap", "madvise", "mremap", "brk", "fcntl"];
/// Number of files in a directory.
const FILES: usize = 100;

/// The system calls of a command, by name.
fn calls(site: &Site, command: &Command) -> BTreeMap<String, u64> {
    let log = site.path().join("log");
    run(under_strace(&["-o", log.to_str().unwrap()], command)).ok();
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        // The rest of a call that another thread's interrupted, a signal, or an exit has no such name.
        let call = line.split_whitespace().nth(1).and_then(|call| call.split_once('('));
        if let Some((name, _)) = call.filter(|(name, _)| !OTHERS.contains(name)) {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

/// A site with a backup of this many directories of small files.
fn site(directories: usize) -> Site {
    let site = Site::new();
    for number in 0..directories * FILES {
        site.write(&format!("{}/{number}", number / FILES), format!("a small file {number}"));
    }
    site.init();
    site.backup(&[]).ok();
    site
}

/// The calls for each further file, from the numbers of calls for `few` and for `many` directories of files.
fn per_file(few: &BTreeMap<String, u64>, many: &BTreeMap<String, u64>, directories: usize) -> f64 {
    let sum = |calls: &BTreeMap<String, u64>| calls.values().sum::<u64>() as f64;
    (sum(many) - sum(few)) / (directories * FILES) as f64
}

#[test]
fn a_small_file_is_restored_with_a_few_system_calls() {
    let [few, many] = [2, 12].map(|directories| {
        let site = site(directories);
        let restore = site.command(&["restore", "latest", "--to", "restored"]);
        let calls = calls(&site, &restore);
        assert_eq!(tree(&site.path().join("restored")), tree(&site.source()));
        calls
    });
    let per_file = per_file(&few, &many, 10);
    // Open, write, owner, mode, times, link and close, and the calls for its directory.
    assert!((5.0..8.0).contains(&per_file), "{per_file} calls for each file: {many:#?}");
}
