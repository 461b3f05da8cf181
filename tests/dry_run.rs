//! `brackfs backup --dry-run` prints the actions of a backup, and changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Run, Site, age, noise, number, run, settle, tree};
use rustix::process::{Pid, Signal};
use serde_json::Value;

const MIB: usize = 1 << 20;

fn ready<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site
}

#[track_caller]
fn dry_run(site: &Site, extra: &[&str]) -> Value {
    site.backup(&[&["--dry-run"], extra].concat()).ok().json()
}

/// Every file of the repository and the state directory, with its bytes.
#[track_caller]
fn everything(site: &Site) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in [site.repo(), site.state()] {
        for path in tree(&folder).into_keys().map(|path| folder.join(path)).filter(|path| path.is_file()) {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

/// The lines of `-v`, with paths relative to the site.
#[track_caller]
fn named(site: &Site, arguments: &[&str]) -> Vec<String> {
    let run = site.brackfs(&[&["backup", "source", "-v"], arguments].concat()).ok();
    let is_name = |line: &&str| line.starts_with("new ") || line.starts_with("changed ");
    let site = site.path().to_str().unwrap();
    run.stderr.lines().filter(is_name).map(|line| line.replace(&format!("{site}/"), "")).collect()
}

#[test]
fn a_dry_run_changes_nothing_and_predicts_the_backup() {
    let site = ready(&[("a", "one"), ("d/b", "two"), ("d/e/c", "three")]);
    symlink("a", site.source().join("link")).unwrap();
    let before = everything(&site);
    let said = dry_run(&site, &[]);
    assert_eq!(everything(&site), before);
    assert_eq!((&said["dry_run"], &said["snapshot_id"]), (&Value::Bool(true), &Value::Null));
    let same = ["files_new", "files_changed", "files_unmodified", "files_read", "bytes_read", "files", "directories"];
    let done = site.backup(&[]).ok().json();
    for field in same.into_iter().chain(["others", "bytes", "problems", "source"]) {
        assert_eq!(said[field], done[field], "{field}");
    }
    assert_eq!(done["dry_run"], Value::Bool(false));

    site.write("d/b", "twice");
    site.write("d/new", "four");
    fs::remove_file(site.source().join("a")).unwrap();
    settle();
    let before = everything(&site);
    let said = dry_run(&site, &[]);
    assert_eq!(everything(&site), before);
    assert_eq!((number(&said, "files_new"), number(&said, "files_changed")), (1, 1), "{said}");
    assert_eq!((number(&said, "files_unmodified"), number(&said, "bytes_read")), (1, 9), "{said}");
    let done = site.backup(&[]).ok().json();
    for field in same {
        assert_eq!(said[field], done[field], "{field}");
    }
    let said = dry_run(&site, &[]);
    assert_eq!((number(&said, "files_read"), number(&said, "files_unmodified")), (0, 3), "{said}");
    let said = dry_run(&site, &["--reread"]);
    assert_eq!((number(&said, "files_read"), number(&said, "files_changed")), (3, 3), "{said}");
}

#[test]
fn new_and_changed_files_are_named_as_in_a_backup() {
    let site = ready(&[("a", "one"), ("d/b", "two"), ("z", "last")]);
    symlink("a", site.source().join("link")).unwrap();
    let said = named(&site, &["-n"]);
    let all = ["source", "source/a", "source/d", "source/d/b", "source/link", "source/z"];
    assert_eq!(said, all.map(|path| format!("new {path}")));
    assert_eq!(named(&site, &[]), said);
    site.write("d/b", "twice");
    site.write("e/f", "new");
    fs::remove_file(site.source().join("link")).unwrap();
    symlink("z", site.source().join("link")).unwrap();
    settle();
    let said = named(&site, &["-n"]);
    assert_eq!(said, ["changed source/d/b", "new source/e", "new source/e/f", "changed source/link"]);
    assert_eq!(named(&site, &[]), said);

    let run = site.brackfs(&["backup", "source", "-n", "-v", "--json"]).ok();
    assert!(run.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{run}");
    assert_eq!(run.stderr, "");
}

#[test]
fn the_message_is_also_printed_without_a_terminal() {
    let site = ready(&[("a", "one"), ("b", "three")]);
    let run = site.brackfs(&["backup", "source", "--dry-run"]).ok();
    assert!(run.stderr.starts_with("dry run of source: nothing is stored\n2 files (2 new, 0 changed"), "{run}");
    assert!(run.stderr.contains("would read 2 files, 8 B. The size is an upper bound"), "{run}");
    assert_eq!(run.stdout, "");
    let run = site.brackfs(&["backup", "source", "--dry-run", "-q"]).ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
}

#[test]
fn a_dry_run_opens_no_file() {
    // More than the readahead limit: the budget of each file must be returned.
    let names: Vec<_> = (0..200).map(|i| format!("d{}/{i}", i % 7)).collect();
    let bytes = noise("small", 100 << 10);
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), &bytes)).collect();
    let site = ready(&files);
    site.write("large", noise("large", 5 * MIB));
    let (log, backup) = (site.path().join("log"), site.command(&["backup", "source", "--dry-run", "--json"]));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-e", "trace=openat,read,pread64", "-o"]).arg(&log);
    strace.arg(backup.get_program()).args(backup.get_args()).current_dir(site.path());
    strace.envs(backup.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = run(strace).ok().json();
    assert_eq!(number(&said, "files_read"), 201);
    assert_eq!(number(&said, "bytes_read"), (200 * bytes.len() + 5 * MIB) as u64);
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("/source"), "nothing was looked at");
    let opened = |line: &&str| line.contains("/source") && line.contains("openat(") && !line.contains("O_DIRECTORY");
    let read = |line: &&str| line.contains("/source/") && line.contains("read");
    let found: Vec<_> = log.lines().filter(|line| opened(line) || read(line)).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_dry_run_honors_all_options_that_select_files() {
    let site = ready(&[("a.o", "one"), ("b", "two"), ("d/c", "three"), ("d/e.o", "four")]);
    assert_eq!(
        named(&site, &["-n", "--exclude", "*.o"]),
        ["new source", "new source/b", "new source/d", "new source/d/c"]
    );
    fs::write(site.path().join("list"), "source/b\nsource/missing\n").unwrap();
    let run = site.brackfs(&["backup", "--files-from", "list", "-n", "--json"]).code(3);
    assert_eq!((number(&run.json(), "files_read"), number(&run.json(), "problems")), (1, 1), "{run}");
    assert!(run.stderr.contains("missing"), "{run}");
}

#[test]
fn a_dry_run_takes_no_lock_and_runs_during_a_backup() {
    let site = ready(&[("a", "one")]);
    let (reader, mut pipe) = std::io::pipe().unwrap();
    let mut command = site.command(&["backup", "--stdin-filename", "x"]);
    let mut child = command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    // Once this is read, the lock is taken.
    pipe.write_all(&noise("beside", 4 * MIB)).unwrap();
    let busy = site.backup(&[]).code(11);
    assert!(busy.stderr.contains("another run"), "{busy}");
    assert_eq!(number(&dry_run(&site, &[]), "files_new"), 1);
    drop(pipe);
    assert!(child.wait().unwrap().success());
}

#[test]
fn errors_that_stop_a_backup_stop_a_dry_run() {
    let says = |run: Run, text: &str| assert!(run.stderr.contains(text), "{run}");
    let site = ready(&[("a", "one")]);
    site.backup(&[]).ok();
    let mut elsewhere = site.command(&["backup", "source", "-n"]);
    elsewhere.env("BRACKFS_STATE_DIR", site.path().join("elsewhere"));
    says(run(elsewhere).code(1), "host key");
    assert!(!site.path().join("elsewhere").exists());
    says(site.brackfs(&["backup", "-n", "nowhere"]).code(1), "cannot back up");
    says(site.brackfs(&["backup", "-n", "repo"]).code(2), "belongs to this repository");
    says(site.brackfs(&["backup", "-n", "--stdin-filename", "x"]).code(2), "cannot be used with");
    // An older copy of the repository stops neither, and is reported.
    let generations = site.repo().join("generation");
    let last = fs::read_dir(&generations).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    fs::remove_file(last).unwrap();
    says(site.backup(&["-n"]).ok(), "set back");
}

#[test]
fn an_interrupt_ends_a_dry_run() {
    let site = ready(&[("a", "one")]);
    let list = site.path().join("list");
    rustix::fs::mknodat(rustix::fs::CWD, &list, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    age(&site.source());
    let mut command = site.command(&["backup", "-n", "--files-from", "list"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut writer = fs::OpenOptions::new().write(true).open(&list).unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    writer.write_all(b"source/a\n").unwrap();
    drop(writer);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("a dry run stores nothing"), "{said}");
}
