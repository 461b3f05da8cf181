//! Progress of a run: a line on a terminal, an answer to SIGUSR1, lines of JSON.
//!
//! A backup of a pipe runs until the test closes the pipe, so no result depends on the clock.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::backup::{Options, Reading, RunPolicy, Selection, Storing, back_up};
use brackfs::monitor::{Monitor, Progress, Total};
use brackfs::repository::Repository;
use common::silent::Silent;
use common::wait::{send, until_it_waits_for_fuse};
use common::{Site, noise, number};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

const MIB: usize = 1 << 20;

fn ready() -> Site {
    let site = Site::new();
    site.init();
    site
}

/// A backup of an open pipe that has read some MiB.
struct Held {
    child: Child,
    pipe: PipeWriter,
}

impl Held {
    /// Starts `command` with a pipe for its standard input. When this returns most of `bytes` was read.
    fn start(mut command: Command, bytes: &[u8]) -> Held {
        let (reader, mut pipe) = std::io::pipe().unwrap();
        let child = command.stdin(reader).spawn().unwrap();
        drop(command);
        pipe.write_all(bytes).unwrap();
        Held { child, pipe }
    }

    fn of_pipe(site: &Site, extra: &[&str]) -> Held {
        let mut command = site.command(&[&["backup", "--stdin-filename", "x"], extra].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Held::start(command, &noise("held", 4 * MIB))
    }

    fn ask(&self) {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::USR1).unwrap();
    }

    /// Closes the pipe, and asserts that the backup succeeds.
    #[track_caller]
    fn end(mut self) {
        drop(self.pipe);
        assert!(self.child.wait().unwrap().success());
    }
}

fn next_line(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line
}

#[track_caller]
fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
}

#[test]
fn a_signal_prints_the_progress_at_once() {
    for quiet in [&[][..], &["-q"]] {
        let site = ready();
        let mut held = Held::of_pipe(&site, quiet);
        let mut said = BufReader::new(held.child.stderr.take().unwrap());
        let mut line = String::new();
        // Data that was read from the pipe may not be counted yet.
        while !line.contains(" MiB read (") {
            held.ask();
            line = next_line(&mut said);
            assert!(line.starts_with("brackfs: 0 files, ") && line.contains(" elapsed"), "{line}");
            assert!(!line.contains('%') && line.ends_with('\n'), "{line}");
        }
        held.end();
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }
}

#[test]
fn the_last_snapshot_gives_an_estimate_of_the_total() {
    let site = ready();
    let first = Held::of_pipe(&site, &[]);
    first.end();
    let mut held = Held::of_pipe(&site, &["--json"]);
    let mut said = BufReader::new(held.child.stderr.take().unwrap());
    held.ask();
    let status = json(&next_line(&mut said));
    assert_eq!(status["message_type"], "status");
    assert_eq!((number(&status, "total_files"), number(&status, "total_bytes")), (1, 4 * MIB as u64), "{status}");
    assert_eq!((&status["total_estimated"], number(&status, "files_done")), (&Value::Bool(true), 0), "{status}");
    assert!((0.0..1.0).contains(&status["percent_done"].as_f64().unwrap()), "{status}");
    held.end();
}

#[test]
fn json_lines_show_the_progress_and_end_with_the_summary() {
    let site = ready();
    let mut held = Held::of_pipe(&site, &["--json", "-v"]);
    let mut lines = BufReader::new(held.child.stdout.take().unwrap());
    let mut said = BufReader::new(held.child.stderr.take().unwrap());
    let mut found = Vec::new();
    // The duration varies.
    while found.last().is_none_or(|last: &Value| last["bytes_read"].as_u64().unwrap_or(0) == 0) {
        found.push(json(&next_line(&mut lines)));
    }
    let status = &found[found.len() - 1];
    for field in ["percent_done", "total_files", "total_bytes", "total_estimated", "seconds_remaining"] {
        assert!(status.as_object().unwrap().contains_key(field) && status[field].is_null(), "{field} in {status}");
    }
    assert_eq!((number(status, "files_done"), status["path"].as_str()), (0, Some("x")), "{status}");
    assert_eq!(status["message_type"], "status");
    number(status, "seconds_elapsed");
    held.ask();
    assert_eq!(json(&next_line(&mut said))["message_type"], "status");
    held.end();
    found.extend(lines.lines().map(|line| json(&line.unwrap())));
    let summary = &found[found.len() - 1];
    assert_eq!((&summary["message_type"], &summary["dry_run"]), (&"summary".into(), &false.into()));
    assert_eq!(number(summary, "bytes_read"), 4 * MIB as u64);
    let named = |line: &&Value| line["message_type"] == "verbose_status";
    let named: Vec<_> = found.iter().filter(named).map(|line| (&line["action"], &line["item"])).collect();
    assert_eq!(named, [(&"new".into(), &"x".into())]);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_signal_before_a_run_begins_does_nothing() {
    let site = Site::with_files(&[("a", "one")]);
    let mut init = site.command(&["init".as_ref(), site.repo().as_os_str()]);
    init.env("BRACKFS_PASSPHRASE", "secret");
    common::run(init).ok();
    site.backup(&[]).ok();
    for arguments in [&["ls", "latest"][..], &["check"], &["restore", "latest", "--to", "out"]] {
        let fifo = site.path().join("passphrase");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let mut command = site.command(arguments);
        command.env("BRACKFS_PASSPHRASE_COMMAND", "cat passphrase");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // Waits for the passphrase prompt.
        let mut answer = OpenOptions::new().write(true).open(&fifo).unwrap();
        rustix::process::kill_process(Pid::from_child(&child), Signal::USR1).unwrap();
        answer.write_all(b"secret\n").unwrap();
        drop(answer);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0), "{arguments:?}");
        fs::remove_file(fifo).unwrap();
    }
}

/// A pseudoterminal with this many columns: the side of the test, and the side of the program.
fn terminal(columns: u16) -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    tcsetwinsize(&theirs, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    (ours.into(), theirs)
}

/// Reads until `wanted` appears, or to the end if it is empty.
fn read_until(screen: &mut File, seen: &mut Vec<u8>, wanted: &str) {
    let mut some = [0; 4096];
    while wanted.is_empty() || !String::from_utf8_lossy(seen).contains(wanted) {
        match screen.read(&mut some) {
            // Linux says EIO when the last one has closed the other side.
            Ok(0) | Err(_) => return,
            Ok(length) => seen.extend_from_slice(&some[..length]),
        }
    }
}

#[test]
fn a_line_on_a_terminal_shows_the_progress_and_is_erased_at_the_end() {
    let site = ready();
    let (mut screen, theirs) = terminal(60);
    let mut command = site.command(&["backup", "--stdin-filename", "x"]);
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(theirs);
    let held = Held::start(command, &noise("shown", 4 * MIB));
    let mut seen = Vec::new();
    read_until(&mut screen, &mut seen, " files  ");
    // The answer is not in the progress line.
    held.ask();
    read_until(&mut screen, &mut seen, " elapsed");
    held.end();
    read_until(&mut screen, &mut seen, "");
    let seen = String::from_utf8(seen).unwrap();
    let (running, result) = seen.split_once("snapshot ").expect("a summary");
    assert!(running.contains("0 files  "), "{seen:?}");
    // The line is erased before the summary.
    let last = running.rsplit("\x1b[2K").next().unwrap();
    assert_eq!(last.trim_matches(['\r', '\n']), "", "{seen:?}");
    assert!(result.contains("4.00 MiB read, ") && !result.contains('\x1b'), "{seen:?}");
    for drawn in running.split(['\r', '\n']).filter(|drawn| drawn.contains(" files  ")) {
        let text = drawn.rsplit("\x1b[2K").next().unwrap();
        assert!(text.chars().count() <= 60, "{text:?} is too wide");
    }
}

/// A monitor that shows progress, and waits with the first entry until the total is known.
#[derive(Default)]
struct Patient {
    progress: Progress,
    total: OnceLock<Option<Total>>,
}

impl Monitor for Patient {
    fn problem(&self, path: &Path, message: &str) {
        panic!("{}: {message}", path.display());
    }

    fn note(&self, _message: &str) {}

    fn entry(&self, _path: &Path, _what: &str) {
        self.total.get_or_init(|| {
            let begin = Instant::now();
            while self.progress.snapshot().total.is_none() && begin.elapsed() < Duration::from_secs(60) {
                sleep(Duration::from_millis(10));
            }
            self.progress.snapshot().total
        });
    }

    fn shows_progress(&self) -> bool {
        true
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

#[test]
fn the_first_backup_counts_ahead() {
    const DIRECTORIES: u64 = 5000;
    let site = Site::in_memory();
    // More than the walk may be ahead of the assembler.
    for number in 0..DIRECTORIES {
        site.write(&format!("{number}/f"), "text");
    }
    site.init();
    let selection = Selection { paths: vec![site.source()], ..Selection::default() };
    let options =
        Options { selection, reading: Reading::default(), storing: Storing::default(), policy: RunPolicy::default() };
    let repository = Repository::open(&site.repo().as_path().into()).unwrap();
    let monitor = Patient::default();
    let stop = AtomicBool::new(false);
    let summary = back_up(&repository, &site.state(), &options, |_| (), &monitor, &stop).unwrap();
    assert_eq!(summary.files, DIRECTORIES);
    let expected = Total { files: DIRECTORIES, bytes: 4 * DIRECTORIES, estimated: true };
    assert_eq!(monitor.total.get(), Some(&Some(expected)));
    // In the end, the total is exact.
    assert_eq!(monitor.progress.snapshot().total, Some(Total { estimated: false, ..expected }));
}

#[test]
fn an_interrupt_is_answered_at_once_on_a_terminal() {
    let site = ready();
    let (mut screen, theirs) = terminal(80);
    let mut command = site.command(&["backup", "--stdin-filename", "x"]);
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(theirs);
    let mut held = Held::start(command, &noise("stopped", 4 * MIB));
    let mut seen = Vec::new();
    read_until(&mut screen, &mut seen, " files  ");
    rustix::process::kill_process(Pid::from_child(&held.child), Signal::INT).unwrap();
    read_until(&mut screen, &mut seen, "brackfs: stopping…");
    read_until(&mut screen, &mut seen, "");
    let seen = String::from_utf8(seen).unwrap();
    let (_, rest) = seen.split_once("brackfs: stopping…").expect("an answer");
    assert!(rest.contains("interrupted"), "{seen:?}");
    assert_eq!(held.child.wait().unwrap().code(), Some(130));
}

#[test]
fn commands_that_wait_for_the_repository_answer_an_interrupt_at_once() {
    let site = Site::with_files(&[("f", "f")]);
    site.init();
    site.backup(&[]).ok();
    let silent = Silent::mount(&{
        let packs = site.repo().join("packs");
        fs::rename(&packs, site.path().join("packs")).unwrap();
        fs::create_dir(&packs).unwrap();
        packs
    });
    for arguments in [&["check"][..], &["restore", "latest", "--to", "out"], &["catalog", "verify"]] {
        let (mut screen, theirs) = terminal(80);
        let mut command = site.command(arguments);
        command.env("TERM", "xterm").stdout(Stdio::null()).stderr(theirs);
        let mut child = command.spawn().unwrap();
        drop(command);
        until_it_waits_for_fuse(&mut child);
        let begin = Instant::now();
        send(&child, Signal::INT);
        let mut seen = Vec::new();
        read_until(&mut screen, &mut seen, "brackfs: stopping…");
        // It takes a few milliseconds, and more on a busy machine.
        assert!(begin.elapsed() < Duration::from_secs(1), "{arguments:?}: {:?}", begin.elapsed());
        send(&child, Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{arguments:?}");
    }
    // Without a second signal, a command that has nothing to finish ends as well. The progress line does not stay.
    let (mut screen, theirs) = terminal(80);
    let mut command = site.command(&["check"]);
    command.env("TERM", "xterm").stdout(Stdio::null()).stderr(theirs);
    let mut child = command.spawn().unwrap();
    drop(command);
    until_it_waits_for_fuse(&mut child);
    send(&child, Signal::INT);
    let mut seen = Vec::new();
    read_until(&mut screen, &mut seen, "");
    let seen = String::from_utf8(seen).unwrap();
    let last = seen.trim_end().rsplit(['\r', '\n']).next().unwrap();
    let last = last.rsplit("\x1b[2K").next().unwrap();
    assert_eq!(last, "brackfs: interrupted, and killed because it did not end within 2 s", "{seen:?}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(silent);
}

#[test]
fn a_mount_in_the_background_says_where_it_is() {
    let site = Site::with_files(&[("f", "f")]);
    site.init();
    site.backup(&[]).ok();
    for (options, is_said) in [(&[][..], true), (&["-q"], false)] {
        let (mut screen, theirs) = terminal(80);
        let mut command = site.command(&[&["mount", "mnt"], options].concat());
        command.stdout(Stdio::null()).stderr(theirs);
        let status = command.status().unwrap();
        drop(command);
        assert!(status.success());
        let mut seen = Vec::new();
        read_until(&mut screen, &mut seen, "");
        let seen = String::from_utf8(seen).unwrap();
        assert_eq!(seen.contains("mounted on mnt; to unmount: brackfs umount mnt"), is_said, "{seen:?}");
        site.brackfs(&["umount", "mnt"]).ok();
    }
}

#[test]
fn restore_and_check_know_how_much_is_done() {
    let files = [("d/a", 3 * MIB), ("d/b", 3 * MIB), ("d/left out", MIB)];
    let site = Site::with_files(&files.map(|(name, length)| (name, noise(name, length))));
    site.init();
    site.backup(&[]).ok();
    // At this rate they take three seconds.
    for arguments in [
        &["restore", "latest", "--to", "out"][..],
        &["restore", "latest:d", "--to", "part", "--exclude", "left out"],
        &["restore", "latest:d/a", "--to", "file"],
        &["check", "--read-data"],
    ] {
        let run = site.brackfs(&[arguments, &["--json", "--limit-download", "2MiB"]].concat()).ok();
        let lines: Vec<_> = run.stdout.lines().map(json).filter(|line| line["message_type"] == "status").collect();
        let parts: Vec<_> = lines.iter().map(|line| line["percent_done"].as_f64().expect("a part")).collect();
        assert!(!parts.is_empty() && parts.is_sorted() && parts.iter().all(|part| *part <= 1.0), "{run}");
        assert!(parts.iter().any(|part| (0.1..0.95).contains(part)), "{run}");
        assert!(lines.iter().any(|line| line["seconds_remaining"].as_u64().is_some()), "{run}");
        let total = match arguments {
            [_, "latest:d", ..] => 6,
            [_, "latest:d/a", ..] => 3,
            _ => 7,
        };
        let totals: Vec<_> = lines.iter().map(|line| number(line, "total_bytes") / MIB as u64).collect();
        assert!(totals.iter().all(|found| *found == total), "{totals:?} {run}");
    }
}

#[test]
fn a_quiet_run_prints_nothing_on_a_terminal() {
    for json in [false, true] {
        let site = ready();
        let (mut screen, theirs) = terminal(80);
        let mut arguments = vec!["backup", "--stdin-filename", "x"];
        // With JSON, nothing is drawn either.
        arguments.push(if json { "--json" } else { "-q" });
        let mut command = site.command(&arguments);
        command.env("TERM", "xterm").stdout(Stdio::null()).stderr(theirs);
        Held::start(command, &noise("quiet", 4 * MIB)).end();
        let mut seen = Vec::new();
        read_until(&mut screen, &mut seen, "");
        assert_eq!(String::from_utf8_lossy(&seen), "");
    }
}

#[test]
fn a_check_of_the_structure_knows_how_much_is_done() {
    let site = Site::new();
    for directory in 0..40 {
        for file in 0..50 {
            let name: String =
                noise(&format!("{directory}/{file}"), 90).iter().map(|byte| format!("{byte:02x}")).collect();
            site.write(&format!("{directory}/{name}"), format!("{directory} {file}"));
        }
    }
    site.init();
    site.backup(&[]).ok();
    // Of the second snapshot, only the changed directory is checked.
    site.write("0/new", "new");
    site.backup(&[]).ok();
    let mut command = site.command(&["check", "--json", "--limit-download", "60KiB"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| json(&line.unwrap()));
    let (mut parts, mut is_asked) = (Vec::new(), false);
    for line in lines.filter(|line| line["message_type"] == "status") {
        parts.push(line["percent_done"].as_f64());
        if line["seconds_remaining"].as_u64().is_some() && !is_asked {
            rustix::process::kill_process(Pid::from_child(&child), Signal::USR1).unwrap();
            is_asked = true;
        }
    }
    let run = child.wait_with_output().unwrap();
    assert!(run.status.success() && is_asked, "{run:?} {parts:?}");
    let known: Vec<_> = parts.iter().copied().skip_while(Option::is_none).collect();
    // It is not known until the indexes are read.
    assert!(known.len() > 2 && known.iter().all(Option::is_some) && known.is_sorted(), "{parts:?}");
    assert!(known.iter().flatten().any(|part| (0.1..0.9).contains(part)), "{parts:?}");
    let answer = json(String::from_utf8(run.stderr).unwrap().lines().next().unwrap());
    assert_eq!((&answer["message_type"], answer["percent_done"].is_f64()), (&"status".into(), true), "{answer}");
}
