//! File systems that do not answer: excluded paths are not accessed, and a signal ends a backup that waits for other
//! paths.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::machine::mount_tmpfs;
use common::silent::Silent;
use common::wait::{ended, send, until, until_it_waits_for_fuse};
use common::{Run, Site, noise, number, run_within, settle};
use rustix::process::Signal;

/// A run that does not wait takes well below a second.
const LIMIT: Duration = Duration::from_secs(60);

type Mount = fn(&Path) -> Silent;

/// A source with empty directories for mounts: at its root, in a directory that is read in several batches, and in
/// directories that helper threads read.
fn site() -> (Site, [&'static str; 3]) {
    let mut files: Vec<_> = (0..300).map(|number| format!("many/{number:03}")).collect();
    files.extend(["few/deeper/file".into(), "zz/last".into()]);
    let files: Vec<_> = files.iter().map(|name| (name.as_str(), "content")).collect();
    let site = Site::with_files(&files);
    site.init();
    let points = ["hung", "many/200-hung", "few/deeper/hung"];
    points.iter().for_each(|point| fs::create_dir(site.source().join(point)).unwrap());
    (site, points)
}

/// Mounts at all of these paths.
fn mount(site: &Site, points: &[&str], how: Mount) -> Vec<Silent> {
    points.iter().map(|point| how(&site.source().join(point))).collect()
}

/// Backs up the source with these arguments.
#[must_use = "it may have failed: say .ok() or .code(n)"]
fn backup(site: &Site, arguments: &[&str]) -> Run {
    let source = site.source();
    let all = [&["backup", source.to_str().unwrap()], arguments].concat();
    run_within(site.command(&all), LIMIT)
}

/// Asserts that a run succeeded without a message.
#[track_caller]
fn assert_silent_success(run: Run, what: &str) {
    println!("{what}");
    assert_eq!(run.ok().stderr, "", "{what}");
}

fn names(site: &Site) -> Vec<String> {
    site.brackfs(&["ls", "-R", "latest"]).ok().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn excluded_paths_are_not_accessed() {
    let mounts: [(&str, Mount); 3] = [("dead", Silent::dead), ("silent", Silent::mount), ("private", Silent::private)];
    for (how, mounted) in mounts {
        let (site, points) = site();
        let list = site.path().join("patterns");
        fs::write(&list, "*hung\n").unwrap();
        let _mounts = mount(&site, &points, mounted);
        for arguments in [
            &["--exclude", "*hung"][..],
            &["--exclude", "*hung/"],
            &["--exclude", "/hung", "--exclude", "/many/200-hung", "--exclude", "few/*/hung/"],
            &["--exclude-from", list.to_str().unwrap()],
            &["--exclude", "*hung", "--one-file-system"],
            &["--exclude", "*hung", "--exclude-nodump", "--exclude-caches", "--exclude-if-present", "absent"],
        ] {
            assert_silent_success(
                backup(&site, &[arguments, &["--reread"]].concat()),
                &format!("{how}: {arguments:?}"),
            );
            assert!(!names(&site).iter().any(|name| name.contains("hung")));
            assert!(names(&site).contains(&"zz/last".to_owned()));
            let dry = backup(&site, &[arguments, &["--dry-run"]].concat()).ok();
            assert!(!dry.stderr.contains("cannot"), "{dry}");
        }
    }
}

#[test]
fn one_file_system_does_not_access_other_mounts() {
    let mounts: [(&str, Mount); 3] = [("dead", Silent::dead), ("silent", Silent::mount), ("private", Silent::private)];
    for (how, mounted) in mounts {
        let (site, points) = site();
        let _mounts = mount(&site, &points, mounted);
        for more in [&[][..], &["--exclude-nodump"], &["--reread"]] {
            assert_silent_success(backup(&site, &[&["-x"], more].concat()), &format!("{how}: -x {more:?}"));
        }
        backup(&site, &["-x", "--dry-run"]).ok();
        let names = names(&site);
        // The snapshot has them as empty directories.
        for point in points {
            assert_eq!(names.iter().filter(|name| name.starts_with(point)).count(), 1, "{names:?}");
        }
        site.brackfs(&["restore", "latest", "--to", site.path().join("out").to_str().unwrap()]).ok();
    }
}

#[test]
fn a_brackfs_mount_is_stored_empty_without_access() {
    let (site, points) = site();
    let _mounts = mount(&site, &points, Silent::brackfs);
    for arguments in [&[][..], &["--dry-run"], &["-x"]] {
        let run = backup(&site, &[arguments, &["-v"]].concat()).ok();
        for point in points {
            let words = format!("{} belongs to brackfs itself", site.source().join(point).display());
            assert!(run.stderr.contains(&words), "{run}");
        }
    }
    assert_eq!(names(&site).iter().filter(|name| name.contains("hung")).count(), 3);
}

#[test]
fn excluded_paths_are_not_resolved() {
    let (site, points) = site();
    let source = site.source();
    let inside = format!("{}/hung/below/file", source.display());
    let (last, list) = (source.join("zz/last"), site.path().join("list"));
    fs::write(&list, format!("{inside}\n{}\n{}\n", source.join("few/deeper/hung").display(), last.display())).unwrap();
    let _mounts = mount(&site, &points, Silent::mount);
    let list = list.to_str().unwrap();
    for pattern in ["hung", "hung/", &format!("{}/**/hung", source.display())] {
        let listed = site.command(&["backup", "--files-from", list, "--exclude", pattern]);
        assert_silent_success(run_within(listed, LIMIT), pattern);
        let given = site.command(&["backup", &inside, last.to_str().unwrap(), "--exclude", pattern]);
        assert_silent_success(run_within(given, LIMIT), pattern);
        let found = site.brackfs(&["cat", &format!("latest:{}", last.display())]).ok();
        assert_eq!(found.stdout, "content");
    }
}

/// Starts a backup of a mount that does not answer, and sends it a signal once it waits. Returns its messages.
#[track_caller]
fn assert_one_signal_ends(command: Command, path: &Path) -> String {
    assert_one_signal_ends_after(0, command, path)
}

/// The same, but not before it has read this many bytes.
#[track_caller]
fn assert_one_signal_ends_after(read: u64, mut command: Command, path: &Path) -> String {
    let (stderr, mut text) = (tempfile::tempfile().unwrap(), String::new());
    let mut child = command.stderr(stderr.try_clone().unwrap()).stdout(Stdio::null()).spawn().unwrap();
    until_it_waits_for_fuse(&mut child);
    until("files are read", || read_by(&child) >= read);
    send(&child, Signal::TERM);
    let ended = ended(&mut child);
    (&stderr).rewind().and_then(|()| (&stderr).read_to_string(&mut text)).unwrap();
    assert_eq!(ended.code(), Some(130), "{command:?}\n{text}");
    assert!(text.contains(path.to_str().unwrap()) && text.contains("does not answer"), "{command:?}\n{text}");
    text
}

/// The bytes that a process has read from files and pipes.
fn read_by(child: &Child) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
    let read = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.unwrap().parse().unwrap()
}

#[test]
fn one_signal_ends_a_backup_that_waits_for_a_mount() {
    let case = |point: usize, inside: &str, extra: &[&str]| {
        let (site, points) = site();
        let hung = site.source().join(points[point]);
        let _mounts = mount(&site, &points[point..=point], Silent::mount);
        let path = if inside.is_empty() { site.source() } else { hung.join(inside) };
        let arguments = [&["backup", path.to_str().unwrap()], extra].concat();
        assert_one_signal_ends(site.command(&arguments), if inside.is_empty() { &hung } else { &path });
    };
    thread::scope(|threads| {
        for point in 0..3 {
            threads.spawn(move || case(point, "", &[]));
        }
        threads.spawn(move || case(1, "", &["--dry-run"]));
        threads.spawn(move || case(0, "x", &[]));
    });
}

#[test]
fn the_path_that_an_interrupted_backup_waited_for_is_shown_after_many_problems() {
    let (site, points) = site();
    let hung = site.source().join(points[0]);
    let list = site.path().join("list");
    let missing: String = (0..30).map(|number| format!("/nowhere/{number}\n")).collect();
    fs::write(&list, format!("{missing}{}\n", site.source().display())).unwrap();
    let _mounts = mount(&site, &points[..1], Silent::mount);
    let backup = ["backup", "--files-from", list.to_str().unwrap(), "--source", "s"];
    let said = assert_one_signal_ends(site.command(&backup), &hung);
    let (last, before) = said.trim_end().rsplit_once('\n').unwrap();
    assert!(before.contains("does not answer") && last.ends_with("and 10 more: -v shows all"), "{said}");
    let said = assert_one_signal_ends(site.command(&[&backup[..], &["--json"]].concat()), &hung);
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["message_type"], &last["code"]), (&"exit_error".into(), &130.into()), "{said}");
    assert!(last["message"].as_str().unwrap().contains("does not answer"), "{said}");
}

#[test]
fn data_stored_before_an_interrupted_wait_is_kept() {
    let (site, _) = site();
    let source = site.source();
    site.write("few/large", noise("kept", 8 << 20));
    fs::create_dir(source.join("zz/later")).unwrap();
    settle();
    let mounts = mount(&site, &["zz/later"], Silent::mount);
    let backup = site.command(&["backup", source.to_str().unwrap()]);
    assert_one_signal_ends_after(8 << 20, backup, &source.join("zz/later"));
    drop(mounts);
    let summary = site.backup(&[]).ok().json();
    assert!(number(&summary, "data_bytes") < 2 << 20, "it was stored again: {summary}");
}

#[test]
fn a_path_given_inside_a_mount_is_backed_up_with_one_file_system() {
    let (site, points) = site();
    let inside = site.source().join("few");
    mount_tmpfs(&inside, c"mode=755");
    fs::create_dir_all(inside.join("given/hung")).unwrap();
    fs::write(inside.join("given/file"), "content").unwrap();
    let _mounts = mount(&site, &[points[0], "few/given/hung"], Silent::mount);
    let (given, source) = (inside.join("given"), site.source());
    let arguments = ["backup", "-x", source.to_str().unwrap(), given.to_str().unwrap()];
    assert_silent_success(run_within(site.command(&arguments), LIMIT), "a path inside of a mount");
    let found = site.brackfs(&["cat", &format!("latest:{}", given.join("file").display())]).ok();
    assert_eq!(found.stdout, "content");
}
