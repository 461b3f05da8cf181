//! `brackfs backup`: the files it reads, the data it stores, and the content of the snapshot.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use common::machine::{copy, mount_tmpfs, need, succeed};
use common::{NOBODY, Run, Site, age, content, noise, number, run, settle, tree};
use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, XattrFlags, setxattr, utimensat};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A site with these files and a repository, not backed up yet.
fn ready<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site
}

/// Backs up the source and returns the summary.
#[track_caller]
fn backup(site: &Site, extra: &[&str]) -> Value {
    site.backup(extra).ok().json()
}

/// The names that `ls -R` shows, in its order.
#[track_caller]
fn names(site: &Site, what: &str) -> Vec<String> {
    let run = site.brackfs(&["ls", "-R", what]).ok();
    run.stdout.lines().map(str::to_owned).collect()
}

#[track_caller]
fn cat(site: &Site, path: &str) -> String {
    site.brackfs(&["cat", path]).ok().stdout
}

/// Restores the newest snapshot into a new directory of the site.
#[track_caller]
fn restored(site: &Site, name: &str) -> PathBuf {
    let to = site.path().join(name);
    site.brackfs(&["restore", "latest", "--to", to.to_str().unwrap()]).ok();
    to
}

#[track_caller]
fn snapshots(site: &Site) -> Vec<Value> {
    let run = site.brackfs(&["snapshots", "--json"]).ok();
    let Ok(Value::Array(list)) = serde_json::from_str(&run.stdout) else { panic!("no array\n{run}") };
    list
}

fn set_mtime(path: &Path, time: SystemTime) {
    OpenOptions::new().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_file_with_several_names_is_read_once() {
    let site = Site::new();
    let first = site.write("first", noise("first", 20 * MIB));
    for i in 0..200 {
        fs::create_dir(site.source().join(format!("{i}"))).unwrap();
        fs::hard_link(&first, site.source().join(format!("{i}/name"))).unwrap();
    }
    settle();
    site.init();
    let (log, backup) = (site.path().join("log"), site.command(&["backup", "source"]));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-e", "trace=read,pread64", "-o"]).arg(&log);
    strace.arg(backup.get_program()).args(backup.get_args()).current_dir(site.path());
    strace.envs(backup.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(strace).ok();
    let read: u64 = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .filter(|line| line.contains("/source/"))
        .filter_map(|line| line.rsplit("= ").next()?.parse::<u64>().ok())
        .sum();
    // Interrupted calls are in the log in two parts: one has the path, the other the length.
    assert!((MIB..50 * MIB).contains(&(read as usize)), "{read} bytes were read");
    let mounted = site.mount(&[]);
    assert_eq!(tree(&mounted.latest()), tree(&site.source()));
}

#[test]
fn an_unchanged_tree_is_neither_read_nor_stored_again() {
    let site = ready(&[("a", "one"), ("d/b", "two"), ("d/e/c", "three")]);
    assert_eq!(number(&backup(&site, &[]), "files_read"), 3);
    let second = backup(&site, &[]);
    for field in ["files_read", "files_new", "files_changed", "data_packs", "stored_bytes"] {
        assert_eq!(number(&second, field), 0, "{field} in {second}");
    }
    assert_eq!(number(&second, "files_unmodified"), 3);
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

#[test]
fn only_the_changed_file_of_many_is_read() {
    let site = ready(&[("a", "one"), ("d/b", "two"), ("d/c", "three")]);
    backup(&site, &[]);
    site.write("d/b", "twice");
    settle();
    let second = backup(&site, &[]);
    assert_eq!(number(&second, "files_read"), 1);
    assert_eq!(number(&second, "files_changed"), 1);
    assert_eq!(number(&second, "files_unmodified"), 2);
    assert_eq!(cat(&site, "latest:d/b"), "twice");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

#[test]
fn files_of_a_renamed_directory_are_not_read_again() {
    let site = ready(&[("old/a", "one"), ("old/deep/b", "two"), ("z", "last")]);
    backup(&site, &[]);
    fs::rename(site.source().join("old"), site.source().join("new")).unwrap();
    settle();
    let second = backup(&site, &[]);
    assert_eq!(number(&second, "files_read"), 0, "{second}");
    assert_eq!(number(&second, "data_packs"), 0);
    assert_eq!(names(&site, "latest"), ["new/", "new/a", "new/deep/", "new/deep/b", "z"]);
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

/// Moves directories in each of many ways; each time none of their files is opened, next to nothing is stored, and the
/// run after it finds nothing changed.
#[test]
fn moved_directories_are_recognized() {
    let files = ["a/1", "a/deep/2", "b/3", "b/deep/4", "c/5", "d/6"];
    let site = ready(&files.map(|name| (name, name)));
    // Another empty directory changes the root's own segment without a file.
    fs::create_dir(site.source().join("empty")).unwrap();
    backup(&site, &[]);
    let moves: [(&str, &[(&str, &str)]); 5] = [
        ("two change places", &[("a", "x"), ("b", "a"), ("x", "b")]),
        ("into another", &[("c", "d/c")]),
        ("out of it, with the other inside", &[("d/c", "c"), ("d", "c/d")]),
        ("over an empty one", &[("c", "empty")]),
        ("three in a ring", &[("a", "x"), ("b", "a"), ("empty", "b"), ("x", "empty")]),
    ];
    for (what, steps) in moves {
        for (from, to) in steps {
            fs::rename(site.source().join(from), site.source().join(to)).unwrap();
        }
        settle();
        for again in [false, true] {
            let run = backup(&site, &[]);
            assert_eq!((number(&run, "files_read"), number(&run, "data_packs")), (0, 0), "{what}: {run}");
            if again {
                assert_eq!(number(&run, "stored_bytes"), 0, "{what}: {run}");
            }
        }
        assert_eq!(tree(&site.mount(&[]).latest()), tree(&site.source()), "{what}");
    }
}

/// Another directory gets the old name at once, so names alone cannot distinguish them.
#[test]
fn a_moved_directory_is_recognized_if_another_has_its_old_name() {
    let site = ready(&[("a/1", "one"), ("a/deep/2", "two"), ("z", "last")]);
    backup(&site, &[]);
    fs::rename(site.source().join("a"), site.source().join("b")).unwrap();
    site.write("a/1", "another");
    settle();
    let second = backup(&site, &[]);
    assert_eq!(number(&second, "files_read"), 1, "{second}");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
    fs::remove_dir_all(site.source().join("a")).unwrap();
    fs::rename(site.source().join("b"), site.source().join("a")).unwrap();
    settle();
    assert_eq!(number(&backup(&site, &[]), "files_read"), 0);
    assert_eq!(tree(&restored(&site, "again")), tree(&site.source()));
}

/// A bind mount; unmounted when dropped.
struct Bound(PathBuf);

impl Bound {
    fn new(what: &Path, at: PathBuf) -> Self {
        succeed(Command::new("mount").arg("--bind").args([what, &at]));
        Bound(at)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A bind mount shows a directory twice. Neither path may count as moved to the other, in any run.
#[test]
fn a_directory_seen_twice_does_not_count_as_moved() {
    let site = ready(&[("once/1", "one"), ("once/deep/2", "two")]);
    backup(&site, &[]);
    let (once, twice) = (site.source().join("once"), site.source().join("twice"));
    fs::create_dir(&twice).unwrap();
    let bound = Bound::new(&once, twice);
    settle();
    let runs = [(); 3].map(|()| backup(&site, &[]));
    let shown = tree(&site.mount(&[]).latest());
    drop(bound);
    assert_eq!(runs.each_ref().map(|run| number(run, "files_read")), [0; 3]);
    assert_eq!(number(&runs[2], "stored_bytes"), 0, "{}", runs[2]);
    assert!(shown.contains_key(Path::new("twice/deep/2")), "{shown:?}");
}

#[test]
fn a_moved_file_is_read_but_its_data_is_not_stored_again() {
    let site = ready(&[("from/large", noise("moved", 3 * MIB)), ("to/x", b"x".to_vec())]);
    backup(&site, &[]);
    fs::rename(site.source().join("from/large"), site.source().join("to/large")).unwrap();
    settle();
    let second = backup(&site, &[]);
    assert_eq!(number(&second, "files_read"), 1);
    assert_eq!(number(&second, "data_packs"), 0, "{second}");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

#[test]
fn identical_files_are_stored_once() {
    let large = noise("twins", 3 * MIB);
    let site = ready(&[("a", &large), ("b", &large), ("d/c", &large)]);
    let first = backup(&site, &[]);
    assert_eq!(number(&first, "bytes"), 9 * MIB as u64);
    assert!(number(&first, "stored_bytes") < 4 * MIB as u64, "{first}");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

#[test]
fn patterns_exclude_as_in_a_gitignore() {
    let files = ["a.o", "top", "d/a.o", "d/keep.o", "d/top", "d/a.c", "cache/x", "d/cache"];
    let site = ready(&files.map(|name| (name, name)));
    let patterns = ["--exclude", "*.o", "-e", "!keep.o", "--exclude", "/top", "--exclude", "cache/"];
    backup(&site, &patterns);
    assert_eq!(names(&site, "latest"), ["d/", "d/a.c", "d/cache", "d/keep.o", "d/top"]);
    // The snapshot has the entries that are no longer excluded, and lacks the newly excluded ones.
    backup(&site, &["--exclude", "/d"]);
    assert_eq!(names(&site, "latest"), ["a.o", "cache/", "cache/x", "top"]);
}

/// A file system of its own below the source; unmounted when dropped.
struct OtherFileSystem(PathBuf);

impl OtherFileSystem {
    fn mount(path: PathBuf) -> OtherFileSystem {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=1m", "brackfs-test"]).arg(&path);
        run(command).ok();
        OtherFileSystem(path)
    }
}

impl Drop for OtherFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn one_file_system_stores_mount_points_as_empty_directories() {
    let site = Site::with_files(&[("a", "one"), ("below/covered", "by the mount")]);
    site.init();
    let other = OtherFileSystem::mount(site.source().join("below"));
    site.write("below/elsewhere", "on the other");
    backup(&site, &["--one-file-system"]);
    assert_eq!(names(&site, "latest"), ["a", "below/"]);
    backup(&site, &[]);
    assert_eq!(names(&site, "latest"), ["a", "below/", "below/elsewhere"]);
    drop(other);
    backup(&site, &["-x"]);
    assert_eq!(names(&site, "latest"), ["a", "below/", "below/covered"]);
}

#[test]
fn several_paths_have_a_common_root_with_their_parents() {
    let site = ready(&[("one/a", "a"), ("two/b", "b"), ("three/c", "c")]);
    let [one, two] = ["one", "two/b"].map(|name| site.source().join(name));
    let arguments = ["backup", one.to_str().unwrap(), two.to_str().unwrap(), "--json"];
    let summary = site.brackfs(&arguments).ok().json();
    assert_eq!(summary["source"], "root");
    let leading = site.source().strip_prefix("/").unwrap().to_str().unwrap().to_owned();
    assert_eq!(names(&site, &format!("latest:{leading}")), ["one/", "one/a", "two/", "two/b"]);
    // The parents have no other entries.
    let mut expected: Vec<PathBuf> = Path::new(&leading).ancestors().map(Path::to_owned).collect();
    expected.retain(|path| !path.as_os_str().is_empty());
    expected.reverse();
    let expected: Vec<String> = expected.iter().map(|path| format!("{}/", path.display())).collect();
    assert_eq!(names(&site, "latest")[..expected.len()], expected);
    assert_eq!(names(&site, "latest").len(), expected.len() + 4);
    assert_eq!(cat(&site, &format!("latest:{leading}/two/b")), "b");
    // Unchanged files are not read again.
    assert_eq!(number(&site.brackfs(&arguments).ok().json(), "files_read"), 0);
}

#[test]
fn a_single_file_can_be_backed_up() {
    let site = ready(&[("only", "content"), ("other", "not asked for")]);
    let file = site.source().join("only");
    let summary = site.brackfs(&["backup", file.to_str().unwrap(), "--json"]).ok().json();
    assert_eq!(number(&summary, "files"), 1);
    let names = names(&site, "latest");
    let name = names.last().expect("the file");
    assert!(name.ends_with("only"), "{names:?}");
    assert!(!names.iter().any(|name| name.ends_with("other")), "{names:?}");
    assert_eq!(cat(&site, &format!("latest:{name}")), "content");
}

/// The command, run by an unprivileged user that owns the site.
fn as_nobody(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.command_as_nobody(arguments);
    let mut all = vec![site.path().to_owned()];
    while let Some(path) = all.pop() {
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        if path.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    command.env("HOME", site.path());
    command
}

#[test]
fn an_unreadable_file_is_reported_and_the_rest_is_backed_up() {
    let site = ready(&[("a", "one"), ("secret", "not for you"), ("z", "last")]);
    let secret = site.source().join("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let source = site.source();
    let run = run(as_nobody(&site, &["backup", source.to_str().unwrap()])).code(3);
    assert!(run.stderr.contains(secret.to_str().unwrap()), "{run}");
    assert_eq!(cat(&site, "latest:a"), "one");
    assert_eq!(cat(&site, "latest:z"), "last");
    assert!(!names(&site, "latest").contains(&"secret".to_owned()), "its content is not there, so it must not be");
}

#[test]
fn an_unreadable_directory_is_reported_and_the_rest_is_backed_up() {
    let site = ready(&[("a", "one"), ("closed/b", "not for you"), ("z", "last")]);
    let closed = site.source().join("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let source = site.source();
    let run = run(as_nobody(&site, &["backup", source.to_str().unwrap()])).code(3);
    assert!(run.stderr.contains(closed.to_str().unwrap()), "{run}");
    assert_eq!(cat(&site, "latest:a"), "one");
    assert_eq!(cat(&site, "latest:z"), "last");
}

#[test]
fn a_file_rewritten_right_after_a_backup_gets_its_new_content() {
    let site = Site::with_files(&[("old", "not read again")]);
    site.init();
    let file = site.write("fresh", "before");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    backup(&site, &[]);
    fs::write(&file, "behind").unwrap();
    set_mtime(&file, time);
    let second = backup(&site, &[]);
    assert_eq!(number(&second, "files_read"), 1, "{second}");
    assert_eq!(cat(&site, "latest:fresh"), "behind");
}

#[test]
fn a_fresh_file_is_read_again_even_if_its_stamps_are_unchanged() {
    let site = Site::with_files(&[("old", "not read again")]);
    site.init();
    let file = site.write("fresh", "before");
    // A time slightly in the future: fresh even if the run is slow.
    let time = SystemTime::now() + Duration::from_secs(600);
    set_mtime(&file, time);
    backup(&site, &["--ignore-ctime"]);
    fs::write(&file, "behind").unwrap();
    set_mtime(&file, time);
    let second = backup(&site, &["--ignore-ctime"]);
    assert_eq!(number(&second, "files_read"), 1, "{second}");
    assert_eq!(cat(&site, "latest:fresh"), "behind");
}

#[test]
fn fresh_links_and_directories_are_read_again_even_if_their_stamps_are_unchanged() {
    let site = Site::with_files(&[("d/old", "not read again")]);
    site.init();
    let (link, directory) = (site.source().join("link"), site.source().join("d"));
    let attribute = |value: &[u8]| {
        need(
            setxattr(&directory, "user.test", value, XattrFlags::empty()),
            "user attributes in the temporary directory",
        );
    };
    attribute(b"before");
    symlink("before", &link).unwrap();
    // A time slightly in the future: fresh even if the run is slow.
    let ahead = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_secs(600);
    let time = Timespec { tv_sec: ahead.as_secs() as i64, tv_nsec: 0 };
    let stamp = |path: &Path| {
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    stamp(&link);
    stamp(&directory);
    let extra = ["--ignore-ctime", "--ignore-inode"];
    backup(&site, &extra);
    fs::remove_file(&link).unwrap();
    symlink("behind", &link).unwrap();
    attribute(b"behind");
    stamp(&link);
    stamp(&directory);
    let second = backup(&site, &extra);
    assert_eq!(number(&second, "files_read"), 0, "{second}");
    let out = restored(&site, "out");
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("behind"));
    assert_eq!(tree(&out)[Path::new("d")], tree(&site.source())[Path::new("d")]);
}

/// Changes the content of a file after a backup, but not its size and mtime; then backs up again.
#[track_caller]
fn backup_after_a_hidden_change(extra: &[&str]) -> (Site, Value) {
    let site = ready(&[("a", "before"), ("b", "other")]);
    backup(&site, extra);
    let file = site.source().join("a");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "behind").unwrap();
    set_mtime(&file, time);
    settle();
    let second = backup(&site, extra);
    (site, second)
}

#[test]
fn a_file_with_only_a_changed_ctime_is_read_again() {
    let (site, second) = backup_after_a_hidden_change(&[]);
    assert_eq!(number(&second, "files_read"), 1, "{second}");
    assert_eq!(cat(&site, "latest:a"), "behind");
}

#[test]
fn ignore_ctime_skips_files_with_only_a_changed_ctime() {
    let (site, second) = backup_after_a_hidden_change(&["--ignore-ctime"]);
    assert_eq!(number(&second, "files_read"), 0, "{second}");
    assert_eq!(cat(&site, "latest:a"), "before");
}

/// Memory for the entries and attributes of open directories is bounded: beyond the bound, entries are written early or
/// reported.
#[test]
fn nested_directories_with_large_attributes_are_restored_as_far_as_there_is_room() {
    let site = Site::on_tmpfs();
    let set = |path: &Path, most: u8| {
        for number in 0..most {
            setxattr(path, format!("trusted.{number}"), &[number; 60_000], XattrFlags::empty()).unwrap();
        }
    };
    let mut folder = site.source().join("below");
    let mut folders = Vec::new();
    for depth in 0..40 {
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a"), depth.to_string()).unwrap();
        fs::write(folder.join("z"), depth.to_string()).unwrap();
        set(&folder.join("a"), 6);
        folders.push(folder.clone());
        folder.push("below");
    }
    site.init();
    settle();
    let round = |out: &str| {
        assert_eq!(tree(&restored(&site, out)), tree(&site.source()));
        site.brackfs(&["check", "--read-data"]).ok();
    };
    backup(&site, &[]);
    round("first");
    for folder in &folders {
        fs::write(folder.join("m"), "between").unwrap();
    }
    settle();
    backup(&site, &[]);
    round("second");
    // 14 MiB, of which 4 fit.
    folders.iter().for_each(|folder| set(folder, 6));
    settle();
    let run = site.backup(&[]).code(3);
    assert!(run.stderr.contains("extended attributes; its own are not stored"), "{run}");
    let out = restored(&site, "third");
    let kept = tree(&out).values().filter(|entry| entry.xattrs.len() == 6).count();
    assert!((50..60).contains(&kept), "{kept}");
}

/// The catalog stores all fields of a file's identity, including ignored ones, and updates them when they change.
#[test]
fn ignoring_inodes_and_ctimes_once_causes_no_reads_then_or_later() {
    let files: Vec<_> = (0..40).map(|n| (format!("d{}/f{n}", n % 4), n.to_string())).collect();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_bytes())).collect();
    let site = ready(&files);
    fs::hard_link(site.source().join("d0/f0"), site.source().join("d1/also-f0")).unwrap();
    settle();
    backup(&site, &[]);
    // Looks like another disk.
    let copied = site.path().join("copied");
    copy(&site.source(), &copied);
    fs::remove_dir_all(site.source()).unwrap();
    fs::rename(&copied, site.source()).unwrap();
    settle();
    let ignoring = ["--ignore-inode", "--ignore-ctime"];
    let run = backup(&site, &[&ignoring[..], &["--skip-if-unchanged"]].concat());
    assert_eq!((number(&run, "files_read"), number(&run, "files_unmodified")), (0, 41), "{run}");
    let run = backup(&site, &["--skip-if-unchanged"]);
    assert_eq!((number(&run, "files_read"), number(&run, "files_unmodified")), (0, 41), "{run}");
    // A moved directory is found by its new number, and both names of the file still share one inode.
    fs::rename(site.source().join("d0"), site.source().join("moved")).unwrap();
    let run = backup(&site, &[]);
    assert_eq!(number(&run, "files_read"), 0, "{run}");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
    // The option applies to one run: the next run detects changes that only these fields show.
    let file = site.source().join("d2/f2");
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "x").unwrap();
    set_mtime(&file, time);
    settle();
    assert_eq!(number(&backup(&site, &[]), "files_read"), 1);
}

#[test]
fn skip_if_unchanged_makes_a_snapshot_only_after_a_change() {
    let site = ready(&[("a", "one")]);
    backup(&site, &["--skip-if-unchanged"]);
    assert_eq!(snapshots(&site).len(), 1);
    let second = backup(&site, &["--skip-if-unchanged"]);
    assert_eq!(second["snapshot_id"], Value::Null);
    assert_eq!(snapshots(&site).len(), 1);
    site.write("b", "two");
    assert!(backup(&site, &["--skip-if-unchanged"])["snapshot_id"].is_string());
    assert_eq!(snapshots(&site).len(), 2);
}

#[test]
fn a_new_mode_of_the_root_is_a_change() {
    let site = ready(&[("a", "one")]);
    backup(&site, &[]);
    fs::set_permissions(site.source(), fs::Permissions::from_mode(0o751)).unwrap();
    settle();
    assert!(backup(&site, &["--skip-if-unchanged"])["snapshot_id"].is_string());
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
    assert_eq!(backup(&site, &["--skip-if-unchanged"])["snapshot_id"], Value::Null);
}

#[test]
fn a_change_without_a_snapshot_is_still_a_change_for_the_next_run() {
    let site = ready(&[("a", "one")]);
    backup(&site, &["--skip-if-unchanged"]);
    age(&site.write("b", "two"));
    settle();
    let closed = OtherFileSystem::mount(site.repo().join("snapshots"));
    let mut command = Command::new("mount");
    command.args(["-o", "remount,ro"]).arg(&closed.0);
    run(command).ok();
    let failed = site.backup(&["--skip-if-unchanged"]).code(1);
    assert!(failed.stderr.contains("read-only"), "{failed}");
    drop(closed);
    let next = backup(&site, &["--skip-if-unchanged"]);
    assert_eq!(number(&next, "files_read"), 0, "{next}");
    assert!(next["snapshot_id"].is_string(), "{next}");
    assert_eq!(names(&site, "latest"), ["a", "b"]);
}

#[test]
fn reread_reads_all_files_and_stores_none() {
    let site = ready(&[("a", "one"), ("d/b", "two")]);
    backup(&site, &[]);
    let second = backup(&site, &["--reread"]);
    assert_eq!(number(&second, "files_read"), 2);
    assert_eq!(number(&second, "data_packs"), 0, "{second}");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

#[test]
fn tags_and_source_are_listed() {
    let site = ready(&[("a", "one")]);
    let summary = backup(&site, &["--source", "machine", "--tag", "before-upgrade", "--tag", "weekly"]);
    assert_eq!(summary["source"], "machine");
    backup(&site, &[]);
    let list = snapshots(&site);
    assert_eq!(list.len(), 2);
    let of = |source: &str| list.iter().find(|snapshot| snapshot["source"] == source).expect("its snapshot");
    assert_eq!(of("machine")["tags"], serde_json::json!(["before-upgrade", "weekly"]));
    assert_eq!(of("source")["tags"], serde_json::json!([]));
    assert_eq!(of("machine")["id"], summary["snapshot_id"]);
    assert_eq!(of("machine")["time"], summary["time"]);
    let run = site.brackfs(&["snapshots", "--source", "machine", "--json"]).ok();
    assert_eq!(serde_json::from_str::<Value>(&run.stdout).unwrap(), serde_json::json!([of("machine")]));
}

#[test]
fn backing_up_and_listing_need_no_secret_key() {
    let site = ready(&[("a", "one")]);
    fs::rename(site.keys(), site.path().join("far away")).unwrap();
    let summary = backup(&site, &[]);
    let list = snapshots(&site);
    assert_eq!(list.len(), 1);
    assert_eq!(list[0]["id"], summary["snapshot_id"]);
    let run = site.brackfs(&["snapshots"]).ok();
    let short = &summary["snapshot_id"].as_str().unwrap()[..8];
    assert!(run.stdout.contains(short) && run.stdout.contains("source"), "{run}");
}

#[test]
fn files_are_added_to_and_removed_from_a_large_directory() {
    let name = |number: usize| format!("many/file-{number:05}");
    let files: Vec<_> = (0..2500).map(|number| (name(number), number.to_string())).collect();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content)).collect();
    let site = ready(&files);
    backup(&site, &[]);
    let list = |site: &Site| {
        let mut list = names(site, "latest:many");
        assert!(list.is_sorted(), "not in order");
        list.retain(|name| !name.ends_with('/'));
        list
    };
    let mut expected: Vec<_> = (0..2500).map(|number| format!("file-{number:05}")).collect();
    assert_eq!(list(&site), expected);

    site.write("many/file-01234-a", "added");
    age(&site.source().join("many/file-01234-a"));
    settle();
    let second = backup(&site, &[]);
    assert_eq!(number(&second, "files_read"), 1, "{second}");
    expected.insert(1235, "file-01234-a".into());
    assert_eq!(list(&site), expected);

    fs::remove_file(site.source().join(name(77))).unwrap();
    settle();
    let third = backup(&site, &[]);
    assert_eq!(number(&third, "files_read"), 0, "{third}");
    expected.remove(77);
    assert_eq!(list(&site), expected);
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

#[test]
fn a_segment_that_is_split_off_may_begin_with_the_same_name() {
    let old: Vec<_> = (0..600).map(|number| (format!("many/old-{number:04}"), "old")).collect();
    let old: Vec<_> = old.iter().map(|(name, content)| (name.as_str(), content)).collect();
    let site = ready(&old);
    backup(&site, &[]);
    // Enough for the first segment, so that the second one begins with the first name of the old one.
    for number in 0..1000 {
        site.write(&format!("many/new-{number:04}"), number.to_string());
    }
    settle();
    let second = backup(&site, &[]);
    assert_eq!(number(&second, "files_read"), 1000, "{second}");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
}

/// Writes a file of noise.
fn write_noise(site: &Site, name: &str, mebibytes: usize) -> PathBuf {
    let path = site.write(name, b"");
    let mut file = File::create(&path).unwrap();
    let mut stream = blake3::Hasher::new().update(name.as_bytes()).finalize_xof();
    let mut piece = vec![0; MIB];
    for _ in 0..mebibytes {
        stream.fill(&mut piece);
        file.write_all(&piece).unwrap();
    }
    path
}

/// A file of 100 MiB that is a hole except for its last bytes.
fn write_sparse(site: &Site, name: &str) -> PathBuf {
    let path = site.write(name, b"");
    let mut file = File::create(&path).unwrap();
    file.seek(SeekFrom::Start(100 * MIB as u64)).unwrap();
    file.write_all(b"the end").unwrap();
    path
}

#[test]
fn large_and_sparse_files_are_restored() {
    let site = Site::with_files(&[("d/small", "beside them")]);
    site.init();
    write_noise(&site, "d/large", 5);
    write_noise(&site, "d/larger", 12);
    write_sparse(&site, "d/sparse");
    settle();
    let first = backup(&site, &["--chunk-size", "64KiB"]);
    assert!(number(&first, "stored_bytes") < 18 * MIB as u64, "{first}");
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
    let second = backup(&site, &["--chunk-size", "64KiB"]);
    assert_eq!(number(&second, "files_read"), 0);
}

#[test]
fn appending_to_a_file_of_thousands_of_chunks_stores_only_the_tail() {
    let site = Site::with_files(&[("small", "beside it")]);
    site.init();
    let large = write_noise(&site, "large", 40);
    settle();
    let extra = ["--chunk-size", "16KiB"];
    let first = backup(&site, &extra);
    assert!(number(&first, "data_bytes") >= 40 * MIB as u64, "{first}");
    OpenOptions::new().append(true).open(&large).unwrap().write_all(&noise("tail", 4096)).unwrap();
    settle();
    let second = backup(&site, &extra);
    assert_eq!(number(&second, "files_read"), 1);
    // The changed last chunk and the appended data.
    assert!(number(&second, "data_bytes") < 256 << 10, "{second}");
    let out = restored(&site, "out");
    assert_eq!(content(&out.join("large")).unwrap(), content(&large).unwrap());
}

#[test]
fn low_memory_makes_the_same_snapshot() {
    let site = Site::with_files(&[("small", "beside them"), ("d/empty", "")]);
    site.init();
    write_noise(&site, "d/large", 5);
    write_sparse(&site, "d/sparse");
    settle();
    backup(&site, &["--low-memory"]);
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
    // Chunk borders are the same, so an ordinary run stores nothing.
    let second = backup(&site, &["--reread"]);
    assert_eq!(number(&second, "files_read"), 4);
    assert_eq!(number(&second, "data_packs"), 0, "{second}");
}

/// More chunks than may wait, from many files and from one: readers must get room in the order of the walk.
#[test]
fn low_memory_takes_turns_with_many_small_chunks() {
    let site = Site::new();
    for number in 0..300 {
        site.write(&format!("d{}/{number}", number % 7), noise(&number.to_string(), 100 + number * 97));
    }
    write_noise(&site, "d3/large", 12);
    write_noise(&site, "z", 3);
    settle();
    site.init();
    backup(&site, &["--low-memory", "--chunk-size", "16KiB", "--merge-files-under", "0B"]);
    assert_eq!(tree(&restored(&site, "out")), tree(&site.source()));
    backup(&site, &["--low-memory", "--chunk-size", "16KiB", "--reread"]);
    assert_eq!(tree(&restored(&site, "again")), tree(&site.source()));
}

#[test]
fn a_backup_without_room_for_temporary_files_fails_with_a_message() {
    let site = ready(&[("a", "one")]);
    let limited = site.path().join("limited");
    fs::create_dir(&limited).unwrap();
    mount_tmpfs(&limited, c"size=4m");
    // More names than are sorted in memory.
    let long = site.source().join("long");
    fs::create_dir(&long).unwrap();
    (0..51_000).for_each(|n| drop(File::create(long.join(format!("{}{n}", "x".repeat(200)))).unwrap()));
    let [low, long] = [(["--low-memory"].as_slice(), 1), (&[], 3)].map(|(extra, code)| {
        let mut command = site.command(&[&["backup", site.source().to_str().unwrap()], extra].concat());
        command.env("TMPDIR", &limited);
        run(command).code(code)
    });
    rustix::mount::unmount(&limited, rustix::mount::UnmountFlags::DETACH).unwrap();
    for run in [low, long] {
        for part in [limited.to_str().unwrap(), "No space left", "TMPDIR"] {
            assert!(run.stderr.contains(part), "{run}");
        }
    }
    // A directory that can't be sorted is left empty; the rest is stored.
    assert_eq!(snapshots(&site).len(), 1);
    assert_eq!(site.brackfs(&["ls", "-R", "latest"]).ok().stdout, "a\nlong/\n");
}

#[test]
fn low_memory_bounds_memory_for_large_files() {
    let site = Site::with_files(&[("small", "beside it")]);
    site.init();
    write_noise(&site, "large", 300);
    let source = site.source();
    let mut command = site.command(&["backup", source.to_str().unwrap(), "--low-memory"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        // The kernel keeps the peak, so polling until the end is enough.
        let status = fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kibibytes.unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        sleep(Duration::from_millis(5));
    };
    assert!(ended.success(), "{ended}");
    assert!(peak > 0, "no peak was seen");
    assert!(peak < 100 << 10, "{peak} KiB");
}

#[test]
fn a_concurrent_run_fails_because_the_first_one_holds_the_lock() {
    let site = ready(&[("a", "one")]);
    backup(&site, &[]);
    let folders = fs::read_dir(site.state()).unwrap().map(|entry| entry.unwrap().path());
    let locks: Vec<_> = folders.map(|folder| folder.join("lock")).filter(|lock| lock.exists()).collect();
    assert_eq!(locks.len(), 1, "{locks:?}");
    let lock = OpenOptions::new().write(true).open(&locks[0]).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let run = site.backup(&[]).code(11);
    assert!(run.stderr.contains("another run"), "{run}");
    drop(lock);
    backup(&site, &[]);
    assert_eq!(snapshots(&site).len(), 2);
}

#[test]
fn the_summary_has_numbers() {
    let site = ready(&[("a", "one"), ("d/b", "three")]);
    let summary = backup(&site, &[]);
    let fields = ["files_new", "files_changed", "files_unmodified", "files_read", "files", "directories", "others"];
    let more = ["bytes", "data_packs", "data_bytes", "tree_packs", "tree_bytes", "stored_bytes", "problems"];
    for field in fields.into_iter().chain(more).chain(["bytes_read", "bytes_added"]) {
        number(&summary, field);
    }
    assert!(summary["seconds"].is_number());
    assert_eq!(number(&summary, "files"), 2);
    assert_eq!(number(&summary, "files_new"), 2);
    assert_eq!(number(&summary, "bytes"), 8);
    assert_eq!(number(&summary, "problems"), 0);
    let stored = number(&summary, "data_bytes") + number(&summary, "tree_bytes");
    assert_eq!(number(&summary, "stored_bytes"), stored);
}

#[test]
fn the_summary_distinguishes_read_new_and_stored_bytes() {
    let kib = 1 << 10;
    let twice = noise("twice", 200 * kib);
    let site = ready(&[("a", &twice), ("b", &twice)]);
    let first = backup(&site, &[]);
    assert_eq!(number(&first, "bytes_read"), 400 * kib as u64);
    // Plus the nodes of the directories.
    assert!((200..210).contains(&(number(&first, "bytes_added") / kib as u64)), "{first}");
    let second = backup(&site, &["--reread"]);
    assert_eq!((number(&second, "bytes_read"), number(&second, "data_bytes")), (400 * kib as u64, 0));
    let third = backup(&site, &[]);
    assert_eq!((number(&third, "bytes_read"), number(&third, "bytes_added")), (0, 0));
}

#[test]
fn the_message_shows_read_new_and_stored_bytes() {
    let site = ready(&[("a", vec![b'a'; MIB / 2]), ("b", vec![b'b'; MIB / 2])]);
    let said = site.brackfs(&["backup", "source", "-v"]).ok().stderr;
    let names: Vec<_> = ["", "/a", "/b"].map(|name| format!("new {}{name}", site.source().display())).into();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..3], names, "{said}");
    assert!(lines[3].starts_with("snapshot ") && lines[3].ends_with(" of source"), "{said}");
    assert_eq!(lines[4], "2 files (2 new, 0 changed, 0 unmodified), 1 directory, 1.00 MiB");
    assert!(lines[5].starts_with("1.00 MiB read, 1.00 MiB new, ") && lines[5].contains(":1) in "), "{said}");
    site.write("b", "other");
    settle();
    let said = site.brackfs(&["backup", "source", "-v"]).ok().stderr;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], format!("changed {}/b", site.source().display()), "{said}");
    assert!(lines[3].starts_with("5 B read, "), "{said}");
    assert_eq!(site.brackfs(&["backup", "source"]).ok().stderr, "");
}

#[test]
fn a_missing_path_is_an_error_and_makes_no_snapshot() {
    let site = ready(&[("a", "one")]);
    let missing = site.path().join("missing");
    let run: Run = site.brackfs(&["backup", missing.to_str().unwrap()]);
    assert!(![0, 3].contains(&run.code), "{run}");
    assert!(run.stderr.contains(missing.to_str().unwrap()), "{run}");
    assert!(snapshots(&site).is_empty());
}
