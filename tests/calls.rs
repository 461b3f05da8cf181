//! System calls per small file: each takes time, mostly where there is one core.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::process::Command;

use common::machine::succeed;
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

/// Makes this many directories of small files in a site's source.
fn make_files(site: &Site, directories: usize) {
    for number in 0..directories * FILES {
        site.write(&format!("{}/{number}", number / FILES), format!("a small file {number}"));
    }
}

/// The calls for each further file, from the numbers of calls for `few` and for `many` directories of files.
fn per_file(few: &BTreeMap<String, u64>, many: &BTreeMap<String, u64>, directories: usize) -> f64 {
    let sum = |calls: &BTreeMap<String, u64>| calls.values().sum::<u64>() as f64;
    (sum(many) - sum(few)) / (directories * FILES) as f64
}

#[test]
fn a_small_file_is_restored_with_a_few_system_calls() {
    let [few, many] = [2, 12].map(|directories| {
        let site = Site::new();
        make_files(&site, directories);
        site.init();
        site.backup(&[]).ok();
        let restore = site.command(&["restore", "latest", "--to", "restored"]);
        let calls = calls(&site, &restore);
        assert_eq!(tree(&site.path().join("restored")), tree(&site.source()));
        calls
    });
    let per_file = per_file(&few, &many, 10);
    // Open, write, look, times, link and close, and the calls for its directory.
    assert!((4.0..6.8).contains(&per_file), "{per_file} calls for each file: {many:#?}");
}

/// Moves a site's source to a file system of its own, where all files were last changed years ago: no program can set the
/// time of the last change. It is unmounted with the site.
fn make_old(site: &Site, directories: usize) {
    let [image, script] = ["image", "script"].map(|name| site.path().join(name));
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    succeed(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).args([&site.source(), &image]));
    let mut lines = String::new();
    for number in 0..directories * FILES {
        for field in ["mtime", "ctime"] {
            writeln!(lines, "set_inode_field {}/{number} {field} 20200101000000", number / FILES).unwrap();
        }
    }
    fs::write(&script, lines).unwrap();
    let output = Command::new("debugfs").arg("-w").arg("-f").args([&script, &image]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    succeed(Command::new("mount").args(["-o", "loop"]).args([&image, &site.source()]));
}

/// The calls of a first backup for each small file. Those of old files start with an empty page cache.
fn calls_of_first_backup(are_old: bool) -> f64 {
    let [few, many] = [2, 12].map(|directories| {
        let site = Site::new();
        make_files(&site, directories);
        if are_old {
            make_old(&site, directories);
        }
        site.init();
        let backup = site.command(&["backup", "--settle-max", "0", site.source().to_str().unwrap()]);
        let calls = calls(&site, &backup);
        let _mount = site.mount(&["latest"]);
        assert_eq!(fs::read(site.mnt().join("1/101")).unwrap(), b"a small file 101");
        calls
    });
    let per_file = per_file(&few, &many, 10);
    println!("{per_file} calls for each file: {many:#?}");
    per_file
}

#[test]
fn a_small_file_is_stored_with_a_few_system_calls() {
    // Stat, open, attributes, flags, stat and close, a read of many, and the calls for its directory. Kernels before 6.14 need
    // one more call to leave the page cache as it was, and one more read where io_uring is refused.
    let calls = calls_of_first_backup(true);
    assert!((5.5..8.6).contains(&calls), "{calls}");
}

#[test]
fn a_young_file_is_stored_with_some_more_system_calls() {
    // The start of writeback, another stat, and a read of its own; it may be read twice. A lease and its end are not counted.
    let calls = calls_of_first_backup(false);
    assert!((8.0..11.0).contains(&calls), "{calls}");
}
