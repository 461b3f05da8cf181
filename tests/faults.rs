//! System calls of a backup fail: it ends with a message, and no data is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brackfs::storage::Target;
use common::disk::{Disk, Operation};
use common::ordeal::{End, Ordeal, Random, count_calls, place, rounds, under_strace};
use common::{Run, Site, run};
use rustix::io::Errno;

/// Errors of disks.
const ERRORS: [(Errno, &str); 3] = [(Errno::IO, "EIO"), (Errno::NOSPC, "ENOSPC"), (Errno::DQUOT, "EDQUOT")];

/// The exit code of a run that SIGBUS ended.
const BUS: i32 = 128 + 7;

/// Asserts that a failed run printed one line with the failed operation and the cause.
#[track_caller]
fn says_why(end: &Run) {
    assert!(!end.stderr.contains("panicked") && !end.stderr.contains("please report"), "a defect shows\n{end}");
    // With --json, it is an object.
    let is_failure = |line: &str| line.starts_with("brackfs: ") || line.contains(r#""message_type":"exit_error""#);
    let mut lines = end.stderr.lines().filter(|line| is_failure(line));
    let line = lines.next().unwrap_or_else(|| panic!("nothing is said\n{end}"));
    assert!(lines.next().is_none(), "it is said more than once\n{end}");
    // SQLite has its own messages, and treats a file that it cannot open as read-only.
    let system = ["Input/output error", "No space left on device", "Disk quota exceeded", "Operation not permitted"];
    assert!(!line.contains("os error"), "a number is said\n{end}");
    let words = ["disk I/O error", "full", "unable to open database file", "readonly database"];
    assert!(words.iter().chain(&system).any(|why| line.contains(why)), "it is not said why\n{end}");
}

/// A site whose repository and state lie on a disk.
fn on_disk(random: Random) -> (Disk, Ordeal) {
    let site = Site::in_memory();
    let at = site.path().join("disk");
    fs::create_dir(&at).expect("a mount point");
    let disk = Disk::mount(&at);
    place(&site, &at);
    (disk, Ordeal::at(site, random, 1))
}

#[test]
fn a_backup_succeeds_and_keeps_leftovers_where_it_may_not_delete() {
    let (disk, mut ordeal) = on_disk(Random::new(1, "no deletion"));
    ordeal.change();
    // Packs, and a list of their sums without an index.
    disk.refuse_to_sync("/repo/sums");
    ordeal.site.backup(&[]).code(1);
    let left = ordeal.orphans();
    assert!(left.iter().any(|name| name.starts_with("packs/")), "{left:?}");
    disk.refuse(Operation::Unlink, 1, Errno::PERM.raw_os_error(), false);
    let told = ordeal.back_up();
    assert!(told.stderr.contains("are not removed"), "{told}");
    assert!(disk.relent() > 0);
    assert_eq!(ordeal.orphans(), left);
    // It is reported once.
    ordeal.change();
    let next = ordeal.back_up();
    assert_eq!(next.stderr, "");
    ordeal.site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn after_any_error_of_the_disk_a_backup_ends_with_a_message_and_loses_nothing() {
    let mut refused = 0;
    rounds("refusal", 4, |random| {
        let (disk, mut ordeal) = on_disk(random);
        ordeal.change();
        disk.count();
        let usual = ordeal.command();
        run(usual).ok();
        let counts = disk.counts();
        ordeal.holds();
        for _ in 0..4 {
            ordeal.change();
            let operations: Vec<_> = Operation::ALL.into_iter().filter(|one| counts.contains_key(one)).collect();
            let operation = *ordeal.random.choose(&operations);
            let nth = ordeal.random.within(1, counts[&operation] + 1);
            let (error, name) = *ordeal.random.choose(&ERRORS);
            let once = !ordeal.random.one_in(3);
            let command = ordeal.command();
            disk.refuse(operation, nth, error.raw_os_error(), once);
            let end = run(command);
            let hits = disk.relent();
            eprintln!("refusal: {name} at {operation:?} {nth}, once: {once}: {hits} times, {}", end.stderr.trim_end());
            match end.code {
                0 => {}
                1 => says_why(&end),
                // SQLite maps its own file next to the catalog; an unreadable page of it raises a signal.
                BUS if operation == Operation::Read => {}
                _ => panic!("{name} at {operation:?} {nth}\n{end}"),
            }
            assert!(hits > 0 || end.code == 0, "nothing was refused\n{end}");
            refused += hits;
            ordeal.look();
            ordeal.holds();
        }
    });
    assert!(refused > 0, "nothing was ever refused");
}

#[test]
fn lists_and_syncs_of_an_unreliable_disk_are_complete_or_fail() {
    const FOLDERS: [&str; 4] = ["packs/", "sums/", "index/", "snapshots/"];
    let mut random = Random::new(1, "listings");
    let (mut disk, mut ordeal) = on_disk(random.clone());
    for _ in 0..4 {
        ordeal.change();
        ordeal.site.backup(&[]).ok();
    }
    let unreliable = ordeal.site.path().join("unreliable");
    fs::create_dir(&unreliable).unwrap();
    disk.show_unreliably(&unreliable);
    let target = Target::open(&unreliable.join("repo").as_path().into()).unwrap();
    let list = || FOLDERS.map(|folder| target.list(folder));
    let all = list().map(Result::unwrap);
    assert!(all.iter().all(|objects| objects.len() > 3));
    let synced = || {
        disk.count();
        target.settle(&FOLDERS).map(|()| disk.counts()[&Operation::SyncFolder])
    };
    let folders = synced().unwrap();
    let (mut whole, mut failed) = (0, 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let end = End(&stop);
        let (mut other, disk, stop) = (random.clone(), &disk, &stop);
        threads.spawn(move || {
            // Plug and unplug it in turns as short as a listing.
            while !stop.load(Ordering::Relaxed) {
                disk.unplug(other.one_in(2));
                std::thread::sleep(Duration::from_micros(other.below(3000)));
            }
            disk.unplug(false);
        });
        while whole < 50 || failed < 50 {
            disk.falter(random.within(20, 200), random.clone());
            random.next();
            for (found, all) in list().into_iter().zip(&all) {
                match found {
                    Ok(found) => assert_eq!(&found, all),
                    Err(_) => failed += 1,
                }
            }
            if let Ok(found) = synced() {
                assert_eq!(found, folders);
                whole += 1;
            }
        }
        drop(end);
    });
    disk.falter(0, random);
    assert_eq!(list().map(Result::unwrap), all);
}

#[test]
fn data_that_an_unreadable_run_may_have_removed_is_stored_again() {
    let (disk, mut ordeal) = on_disk(Random::new(1, "an unreadable run"));
    let site = ordeal.site.clone();
    let (at, content) = (site.source().join("x"), ordeal.random.bytes(3 << 20));
    let write = || {
        fs::write(&at, &content).unwrap();
        common::set_time(&at, common::AGED, 0);
    };
    write();
    site.backup(&[]).ok();
    fs::remove_file(&at).unwrap();
    site.backup(&[]).ok();
    let names = || -> BTreeSet<_> {
        let entries = fs::read_dir(site.repo().join("generation")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let known = names();
    // Another machine with a copy of the state removes the data.
    let copy = site.path().join("disk/copy");
    let copied = Command::new("cp").arg("-a").arg(site.path().join("disk/state")).arg(&copy).status().unwrap();
    assert!(copied.success());
    for arguments in [&["forget", "--keep-last", "1", "--force"][..], &["prune", "--grace", "0", "--max-waste", "0"]] {
        let mut command = site.command(arguments);
        run({
            command.env("BRACKFS_STATE_DIR", &copy);
            command
        })
        .ok();
    }
    write();
    let newer: Vec<_> = names().difference(&known).map(|name| format!("/repo/generation/{name}")).collect();
    assert!(newer.len() >= 2, "{newer:?}");
    disk.refuse_to_open(newer);
    let told = site.backup(&[]).ok();
    assert!(told.stderr.contains("Input/output error") && told.stderr.contains("missing"), "{told}");
    disk.refuse_to_open(Vec::new());
    site.brackfs(&["check", "--read-data"]).ok();
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest:x", "--to", out.to_str().unwrap()]).ok();
    assert_eq!(fs::read(out.join("x")).unwrap(), content);
}

/// System calls that write, on a file system with unnamed files.
const CALLS: [&str; 9] =
    ["write", "pwrite64", "fsync", "fdatasync", "linkat", "openat", "unlink", "mkdir", "ftruncate"];

/// Asserts that a prune with an error did not lose anything.
#[track_caller]
fn holds_after_faulty_prune(ordeal: &mut Ordeal, end: &Run, what: &str) {
    match end.code {
        0 => ordeal.holds_after_prune(),
        1 => {
            says_why(end);
            ordeal.holds_after_prune();
        }
        // Data that cannot be read stays, and is not used by later backups.
        3 => {
            assert!(end.stderr.contains("the pack stays"), "{what}\n{end}");
            ordeal.site.brackfs(&["check", "--read-data"]).ok();
            ordeal.back_up();
        }
        _ => panic!("{what}\n{end}"),
    }
}

#[test]
fn after_any_error_of_the_disk_a_prune_ends_with_a_message_and_loses_nothing() {
    let mut refused = 0;
    rounds("refusal in a prune", 2, |random| {
        let (disk, mut ordeal) = on_disk(random);
        ordeal.forget();
        disk.count();
        run(ordeal.prune_command()).ok();
        let counts = disk.counts();
        ordeal.holds_after_prune();
        for _ in 0..3 {
            ordeal.forget();
            let operations: Vec<_> = Operation::ALL.into_iter().filter(|one| counts.contains_key(one)).collect();
            let operation = *ordeal.random.choose(&operations);
            let nth = ordeal.random.within(1, counts[&operation] + 1);
            let (error, name) = *ordeal.random.choose(&ERRORS);
            let once = !ordeal.random.one_in(3);
            let command = ordeal.prune_command();
            disk.refuse(operation, nth, error.raw_os_error(), once);
            let end = run(command);
            let hits = disk.relent();
            let what = format!("{name} at {operation:?} {nth}, once: {once}: {hits} times");
            eprintln!("refusal: {what}, {}", end.stderr.trim_end());
            refused += hits;
            if end.code == BUS && operation == Operation::Read {
                // SQLite maps its own file next to the catalog; an unreadable page of it raises a signal.
                ordeal.holds_after_prune();
            } else {
                holds_after_faulty_prune(&mut ordeal, &end, &what);
            }
        }
    });
    assert!(refused > 0, "nothing was ever refused");
}

#[test]
fn a_run_that_cannot_open_or_list_once_says_why_or_succeeds() {
    let (disk, mut ordeal) = on_disk(Random::new(1, "a run that cannot open"));
    ordeal.forget();
    let runs: [fn(&mut Ordeal) -> Command; 2] = [|ordeal| ordeal.prune_command(), |ordeal| ordeal.command()];
    for (command, operation) in runs.into_iter().flat_map(|run| [(run, Operation::Open), (run, Operation::List)]) {
        for nth in 1.. {
            disk.refuse(operation, nth, Errno::IO.raw_os_error(), true);
            let end = run(command(&mut ordeal));
            let hits = disk.relent();
            ordeal.look();
            if hits == 0 {
                assert!(end.code == 0 && nth > 4, "{operation:?} {nth}\n{end}");
                break;
            }
            match end.code {
                0 => {}
                1 => says_why(&end),
                _ => panic!("{operation:?} {nth}\n{end}"),
            }
            assert!(!end.stderr.contains("another machine"), "{operation:?} {nth}\n{end}");
        }
    }
    ordeal.holds_after_prune();
}

#[test]
fn after_any_failed_system_call_a_prune_ends_with_a_message_and_loses_nothing() {
    let mut failed = 0;
    rounds("errors of system calls in a prune", 2, |random| {
        let mut ordeal = Ordeal::new(random, 1);
        ordeal.forget();
        let calls = count_calls(&[&CALLS[..], &["unlinkat"]].concat(), &ordeal.prune_command());
        ordeal.holds_after_prune();
        for _ in 0..3 {
            ordeal.forget();
            let (call, when) = choose(&mut ordeal.random, &calls);
            let (_, error) = *ordeal.random.choose(&ERRORS);
            let inject = format!("inject={call}:error={error}:when={when}");
            let trace = format!("trace={call}");
            let strace = ["-o", "/dev/null", "-e", &trace, "-e", &inject];
            let end = run(under_strace(&strace, &ordeal.prune_command()));
            eprintln!("{inject}: {}", end.stderr.trim_end());
            failed += u32::from(end.code != 0);
            if call == "write" && end.code == 1 {
                // The n-th write of each thread fails, also that of the message.
                ordeal.holds_after_prune();
            } else {
                holds_after_faulty_prune(&mut ordeal, &end, &inject);
            }
        }
    });
    assert!(failed > 0, "nothing ever failed");
}

/// Number of files that a process opens before `main`: libraries and their configuration.
const LOADING: u64 = 12;

#[test]
fn after_any_failed_system_call_a_backup_ends_with_a_message_and_loses_nothing() {
    let mut failed = 0;
    rounds("errors of system calls", 4, |random| {
        let mut ordeal = Ordeal::new(random, 1);
        ordeal.change();
        let calls = count_calls(&CALLS, &ordeal.command());
        ordeal.holds();
        for _ in 0..3 {
            ordeal.change();
            let (call, when) = choose(&mut ordeal.random, &calls);
            let (_, error) = *ordeal.random.choose(&ERRORS);
            let inject = format!("inject={call}:error={error}:when={when}");
            let trace = format!("trace={call}");
            let end = run(under_strace(&["-o", "/dev/null", "-e", &trace, "-e", &inject], &ordeal.command()));
            eprintln!("{inject}: {}", end.stderr.trim_end());
            match end.code {
                0 => {}
                // A file of the source that could not be opened.
                3 if call == "openat" => {}
                // The n-th write of each thread fails, also that of the message.
                1 if call == "write" => {}
                1 => says_why(&end),
                _ => panic!("{inject}\n{end}"),
            }
            failed += u32::from(end.code != 0);
            ordeal.look();
            ordeal.holds();
        }
    });
    assert!(failed > 0, "nothing ever failed");
}

fn choose(random: &mut Random, calls: &std::collections::BTreeMap<&'static str, u64>) -> (&'static str, u64) {
    let names: Vec<_> = calls.keys().collect();
    let call = **random.choose(&names);
    let least = if call == "openat" { LOADING } else { 1 };
    (call, random.within(least, least + calls[call]))
}
