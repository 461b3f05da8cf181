//! Restoring to unusual file systems: nothing is lost or replaced without a message, nothing is left over,
//! and a repeated restore continues.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::machine::succeed;
use common::{Run, Site, set_mode, set_time, settle};
use rustix::fs::{FileType, Mode};
use rustix::process::{Pid, Signal};

/// An empty NTFS below the site, mounted by `program` of ntfs-3g with these options.
fn ntfs(site: &Site, program: &str, options: &str) -> PathBuf {
    let (image, place) = (site.path().join("image"), site.path().join("place"));
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    fs::create_dir(&place).unwrap();
    succeed(Command::new("mkfs.ntfs").args([Path::new("-q"), Path::new("-F"), &image]));
    succeed(Command::new(program).args([image.as_path(), &place, Path::new("-o"), Path::new(options)]));
    place
}

/// A bindfs mount of another directory, with these options.
fn bindfs(site: &Site, options: &[&str]) -> PathBuf {
    let (below, place) = (site.path().join("below"), site.path().join("place"));
    fs::create_dir(&below).unwrap();
    fs::create_dir(&place).unwrap();
    let options = options.iter().map(Path::new);
    let arguments: Vec<&Path> = options.chain([below.as_path(), &place]).collect();
    succeed(Command::new("bindfs").args(arguments));
    place
}

fn ready(site: &Site) {
    settle();
    site.brackfs(&["init", site.repo().to_str().unwrap(), "--no-encryption"]).ok();
    site.backup(&[]).ok();
}

#[must_use = "it may have failed: say .ok() or .code(n)"]
fn restore(site: &Site, to: &Path, extra: &[&str]) -> Run {
    site.brackfs(&[&["restore", "latest", "--json", "--to", to.to_str().unwrap()], extra].concat())
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// The reported problems by path below the destination.
fn problems(run: &Run, out: &Path) -> BTreeMap<String, String> {
    let lines = run.stderr.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let problems = lines.filter(|line| line["message_type"] == "error");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let problems = problems.map(|line| (PathBuf::from(text(&line["path"])), text(&line["message"])));
    let below = problems.filter_map(|(path, said)| {
        let path = path.strip_prefix(out).ok()?.to_str()?.to_owned();
        Some((path, said))
    });
    below.collect()
}

/// Pairs of entries whose names differ in case only.
const TWINS: [(&str, &str); 4] = [("README", "readme"), ("names/B", "names/b"), ("LINK", "link"), ("Dir", "dir")];

fn with_twins() -> Site {
    let site = Site::with_files(&[("README", "one"), ("readme", "two"), ("Dir/x", "three"), ("dir/y", "four")]);
    site.write("names/B", "five");
    fs::hard_link(site.source().join("names/B"), site.source().join("names/b")).unwrap();
    symlink("ONE", site.source().join("LINK")).unwrap();
    symlink("two", site.source().join("link")).unwrap();
    ready(&site);
    site
}

/// Asserts that one of each pair exists, and that the problem of the other one names both.
#[track_caller]
fn assert_one_of_each_pair(run: Run, out: &Path) {
    let run = run.code(1);
    let problems = problems(&run, out);
    assert_eq!(problems.len(), TWINS.len(), "{run}");
    for (one, other) in TWINS {
        let (there, missing) = match problems.contains_key(one) {
            true => (other, one),
            false => (one, other),
        };
        let said = problems.get(missing).unwrap_or_else(|| panic!("nothing was said of {missing}\n{run}"));
        let name = Path::new(there).file_name().unwrap().to_str().unwrap();
        assert!(said.contains(name), "{missing}: {said}");
        match there {
            "README" => assert_eq!(fs::read(out.join(there)).unwrap(), b"one"),
            "readme" => assert_eq!(fs::read(out.join(there)).unwrap(), b"two"),
            "LINK" => assert_eq!(fs::read_link(out.join(there)).unwrap(), Path::new("ONE")),
            "link" => assert_eq!(fs::read_link(out.join(there)).unwrap(), Path::new("two")),
            "Dir" => assert_eq!(names(&out.join(there)), ["x"]),
            "dir" => assert_eq!(names(&out.join(there)), ["y"]),
            _ => assert_eq!(fs::read(out.join(there)).unwrap(), b"five"),
        }
    }
}

#[test]
fn entries_whose_names_collide_are_reported_and_nothing_is_replaced() {
    let site = with_twins();
    let place = ntfs(&site, "lowntfs-3g", "ignore_case");
    for conflict in ["abort", "skip", "overwrite", "update"] {
        let out = place.join(conflict);
        assert_one_of_each_pair(restore(&site, &out, &["--conflict", conflict]), &out);
    }
    let out = place.join("chosen");
    let run = restore(&site, &out, &["--include", "README", "--include", "readme"]).code(1);
    assert_eq!(problems(&run, &out).len(), 1, "{run}");
}

#[test]
fn an_interrupted_restore_continues_and_leaves_nothing_where_unnamed_files_are_unsupported() {
    // With and without attributes, which could mark unfinished files.
    for options in [&[][..], &["--xattr-none"]] {
        let site = Site::new();
        for i in 0..40 {
            site.write(&format!("d{}/{i}", i % 4), common::noise(&i.to_string(), 4 << 20));
        }
        for (number, mode) in [(0, 0o2511), (1, 0o700), (2, 0o1777), (3, 0o755)] {
            let folder = site.source().join(format!("d{number}"));
            set_mode(&folder, mode);
            set_time(&folder, 1_000_000_000 + number, 123_456_789);
        }
        ready(&site);
        let out = bindfs(&site, options).join("out");
        let files = || fs::read_dir(out.join("d0")).map_or(0, |names| names.count());
        let mut child = site.command(&["restore", "latest", "--to", out.to_str().unwrap()]).spawn().unwrap();
        while files() < 3 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        rustix::process::kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
        assert!(!child.wait().unwrap().success(), "it was done before");
        let left = out.join("d0/.brackfs-restore-00000000000000000000000000000000");
        let mine = out.join("d0/.brackfs-restore-of-mine");
        [&left, &mine].into_iter().for_each(|path| fs::write(path, "").unwrap());
        let run = restore(&site, &out, &[]).ok();
        assert!(run.stderr.contains("unfinished file"), "{run}");
        assert!(!left.exists() && mine.exists());
        fs::remove_file(&mine).unwrap();
        set_time(&out.join("d0"), 1_000_000_000, 123_456_789);
        let below = site.path().join("below/out");
        assert_eq!(common::tree(&below), common::tree(&site.source()), "{options:?}");
    }
}

#[test]
fn unfinished_files_of_a_running_restore_are_left_alone() {
    let site = Site::with_files(&[("d/a", "one"), ("d/b", "two")]);
    ready(&site);
    let out = site.path().join("out");
    restore(&site, &out, &[]).ok();
    let unfinished = out.join("d/.brackfs-restore-00000000000000000000000000000000");
    fs::write(&unfinished, "").unwrap();
    let folder = File::open(out.join("d")).unwrap();
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockShared).unwrap();
    restore(&site, &out, &[]).ok();
    assert!(unfinished.exists());
    drop(folder);
    restore(&site, &out, &["--dry-run"]).ok();
    assert!(unfinished.exists());
    restore(&site, &out, &[]).ok();
    assert!(!unfinished.exists());
}

/// brackfs under strace, which makes calls fail as `inject` says.
#[track_caller]
fn with_failing(site: &Site, inject: &str, arguments: &[&str]) -> Run {
    let inner = site.command(arguments);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("inject={inject}"));
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(site.path());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    common::run(command)
}

/// Files with times of all kinds, a link and a pipe.
fn with_times() -> Site {
    let site = Site::with_files(&[("a", "one"), ("late", "two"), ("early", "three")]);
    symlink("a", site.source().join("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, site.source().join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    for (name, seconds) in [("a", 1_000_000_000), ("late", 5_000_000_000), ("early", -5_000_000_000), ("link", 7)] {
        set_time(&site.source().join(name), seconds, 123_456_789);
    }
    ready(&site);
    site
}

/// Asserts that a repeated restore finds everything except missing files and those with other content.
#[track_caller]
fn assert_continues(out: &Path, restore: &dyn Fn() -> Run) {
    restore().ok();
    fs::remove_file(out.join("late")).unwrap();
    let run = restore().ok();
    assert_eq!(run.json()["skipped"], 4, "{run}");
    assert_eq!(fs::read(out.join("late")).unwrap(), b"two");
    fs::write(out.join("a"), "ONE").unwrap();
    let run = restore().code(1);
    assert!(run.stderr.contains("--conflict") && run.stderr.contains("out/a"), "{run}");
    assert_eq!(fs::read(out.join("a")).unwrap(), b"ONE");
}

#[test]
fn a_restore_continues_where_times_are_coarse_or_incomplete() {
    let site = with_times();
    let out = ntfs(&site, "ntfs-3g", "permissions").join("out");
    assert_continues(&out, &|| restore(&site, &out, &[]));

    // Small inodes hold whole seconds from 1901 to 2038.
    let site = with_times();
    let (image, place) = (site.path().join("image"), site.path().join("place"));
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    fs::create_dir(&place).unwrap();
    succeed(Command::new("mkfs.ext4").args([
        Path::new("-q"),
        Path::new("-F"),
        Path::new("-I"),
        Path::new("128"),
        &image,
    ]));
    succeed(Command::new("mount").args([Path::new("-o"), Path::new("loop"), &image, &place]));
    let out = place.join("out");
    assert_continues(&out, &|| restore(&site, &out, &[]));
}

#[test]
fn a_restore_continues_where_no_time_can_be_set_by_comparing_content() {
    let site = with_times();
    let out = site.path().join("out");
    let arguments = ["restore", "latest", "--json", "--to", out.to_str().unwrap()];
    assert_continues(&out, &|| with_failing(&site, "utimensat:error=EPERM", &arguments));
}

#[test]
fn links_and_pipes_are_restored_where_all_files_have_one_owner() {
    let site = with_times();
    let squash = ["--force-user=nobody", "--force-group=nogroup", "--chown-ignore", "--chgrp-ignore"];
    let out = bindfs(&site, &squash).join("out");
    for _ in 0..2 {
        restore(&site, &out, &[]).ok();
        assert_eq!(names(&out), ["a", "early", "late", "link", "pipe"]);
        assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("a"));
    }
}

/// Entries that are restored in different ways: a file, two names, a link, a pipe, nested directories.
fn with_all_kinds() -> Site {
    let site = with_times();
    site.write("one/two/three/file", "content");
    fs::create_dir(site.source().join("names")).unwrap();
    fs::hard_link(site.source().join("one/two/three/file"), site.source().join("names/file")).unwrap();
    settle();
    site.backup(&[]).ok();
    site
}

#[test]
fn a_restore_needs_no_proc() {
    let site = with_all_kinds();
    let program = site.path().join("brackfs");
    fs::copy(env!("CARGO_BIN_EXE_brackfs"), &program).unwrap();
    set_mode(&program, 0o755);
    set_mode(site.path(), 0o755);
    for user in [0, 65_534] {
        let home = site.path().join(user.to_string());
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(user), Some(user)).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "mount -t tmpfs none /proc && exec setpriv \"$@\"", "sh"]);
        command.args(["--reuid", &user.to_string(), "--clear-groups"]).arg(&program);
        command.args(["restore", "latest", "--to"]).arg(home.join("out"));
        command.env("BRACKFS_STATE_DIR", home.join("state")).env("BRACKFS_REPOSITORY", site.repo());
        command.current_dir(&home);
        let run = common::run(command).ok();
        let (mut found, mut expected) = (common::tree(&home.join("out")), common::tree(&site.source()));
        // The mode cannot be set through this handle.
        for tree in [&mut found, &mut expected] {
            let pipe = tree.remove(Path::new("pipe")).expect("a pipe");
            assert_eq!(pipe.kind, common::Kind::Fifo);
        }
        if user == 0 {
            assert_eq!(found, expected, "{run}");
        } else {
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{run}");
        }
    }
}

#[test]
fn a_restore_needs_no_openat2() {
    let site = with_all_kinds();
    for (at, error) in ["ENOSYS", "EPERM"].into_iter().enumerate() {
        let out = site.path().join(format!("out{at}"));
        let arguments = ["restore", "latest", "--to", out.to_str().unwrap()];
        with_failing(&site, &format!("openat2:error={error}"), &arguments).ok();
        assert_eq!(common::tree(&out), common::tree(&site.source()));
        // A link in the place of a directory is not followed.
        fs::remove_file(out.join("one/two/three/file")).unwrap();
        fs::rename(out.join("names"), site.path().join(format!("names{at}"))).unwrap();
        symlink(site.path().join(format!("names{at}")), out.join("names")).unwrap();
        with_failing(&site, &format!("openat2:error={error}"), &arguments).code(1);
        assert_eq!(names(&site.path().join(format!("names{at}"))), ["file"]);
    }
}

#[test]
fn a_restore_works_with_few_open_files_and_few_threads() {
    let site = with_all_kinds();
    for number in 0..200 {
        site.write(&format!("many/{number}/file"), number.to_string());
    }
    settle();
    site.backup(&[]).ok();
    let out = site.path().join("files");
    let inner = site.command(&["restore", "latest", "--to", out.to_str().unwrap()]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.env("BRACKFS_STATE_DIR", site.state()).env("BRACKFS_REPOSITORY", site.repo()).current_dir(site.path());
    common::run(command).ok();
    assert_eq!(common::tree(&out), common::tree(&site.source()));
    let mut codes = Vec::new();
    for most in 0..6 {
        let out = site.path().join(format!("threads{most}"));
        let arguments = ["restore", "latest", "--to", out.to_str().unwrap()];
        let run = with_failing(&site, &format!("clone3,clone:error=EAGAIN:when={}+", most + 1), &arguments);
        assert!(!run.stderr.contains("panicked"), "{most}: {run}");
        match run.code {
            0 => assert_eq!(common::tree(&out), common::tree(&site.source())),
            1 => assert!(!run.stderr.is_empty(), "{most}: {run}"),
            _ => panic!("{most}: {run}"),
        }
        codes.push(run.code);
    }
    // The thread that waits for signals is required, workers are not.
    assert_eq!(codes[2..], [0; 4], "{codes:?}");
}

#[test]
fn a_file_too_large_for_the_destination_is_reported_and_the_rest_is_restored() {
    let site = Site::with_files(&[("small", vec![1; 100]), ("large", common::noise("large", 3 << 20))]);
    ready(&site);
    let out = site.path().join("out");
    let inner = site.command(&["restore", "latest", "--json", "--to", out.to_str().unwrap()]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 2000 && exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.env("BRACKFS_STATE_DIR", site.state()).env("BRACKFS_REPOSITORY", site.repo()).current_dir(site.path());
    let run = common::run(command).code(1);
    assert!(problems(&run, &out).get("large").is_some_and(|said| said.contains("ulimit -f")), "{run}");
    assert_eq!(names(&out), ["small"]);
}
