//! `brackfs mount`: unchanged files, read-only, and clean mounting and unmounting.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use common::wait::{ended, until};
use common::{
    Kind, Mounted, Site, content, in_mount_namespace, is_mounted, noise, run, set_mode, set_time, settle, tree,
};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, Signal};

const MIB: usize = 1 << 20;

/// A site with these files, backed up.
fn ready<C: AsRef<[u8]>>(files: &[(&str, C)]) -> Site {
    let site = Site::with_files(files);
    site.init();
    site.backup(&[]).ok();
    site
}

/// A source with one of everything.
fn motley() -> Site {
    let site = Site::new();
    let large = noise("large", 3 * MIB + 17);
    site.write("large", &large);
    for (name, mode) in [("plain", 0o644), ("private", 0o600), ("set-id", 0o6755), ("closed", 0o000)] {
        set_mode(&site.write(&format!("modes/{name}"), name), mode);
    }
    set_mode(&site.source().join("modes"), 0o3711);
    for (name, owner, group) in [("daemon", 1, 1), ("unknown", 123_456, 4_000_000_000)] {
        chown(site.write(&format!("owners/{name}"), name), Some(owner), Some(group)).unwrap();
    }
    chown(site.source().join("owners"), Some(1), Some(2)).unwrap();
    let below = site.source();
    symlink("nowhere/at all", below.join("dangling")).unwrap();
    symlink("modes/plain", below.join("link")).unwrap();
    symlink("/etc/passwd", below.join("absolute")).unwrap();
    std::os::unix::fs::lchown(below.join("link"), Some(7), Some(8)).unwrap();
    fs::create_dir(below.join("empty")).unwrap();
    site.write("nothing", "");
    site.write("names/first", "of three");
    fs::create_dir(below.join("names/more")).unwrap();
    for name in ["names/second", "names/more/third"] {
        fs::hard_link(below.join("names/first"), below.join(name)).unwrap();
    }
    for name in [&b"line\nbreak"[..], b"not \xff UTF-8 \xc3", b"-rf *", "h\u{e4}user".as_bytes()] {
        fs::write(below.join(OsStr::from_bytes(name)), name).unwrap();
    }
    rustix::fs::mknodat(CWD, below.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    for (name, seconds, nanoseconds) in [
        ("times/long-ago", -1_234_567_890, 987_654_321),
        ("times/just-before", -1, 999_999_999),
        ("times/epoch", 0, 0),
        ("times/now", 1_700_000_000, 123_456_789),
        ("times/after-2038", 4_102_444_800, 1),
    ] {
        set_time(&site.write(name, name), seconds, nanoseconds);
    }
    set_time(&below.join("dangling"), 1_000_000_000, 5);
    for (name, nanoseconds) in [("times", 1), ("names/more", 2), ("empty", 3), ("", 4)] {
        set_time(&below.join(name), -86_400, nanoseconds);
    }
    settle();
    site.init();
    site.backup(&[]).ok();
    site
}

#[test]
fn the_mounted_tree_equals_the_source() {
    let site = motley();
    let expected = tree(&site.source());
    // The tree has the intended special cases.
    assert!(expected.values().any(|entry| entry.mtime < -1_000_000_000_000_000_000 && entry.mtime % 10 != 0));
    assert!(expected.values().any(|entry| entry.mtime > (1 << 31) * 1_000_000_000));
    let mounted = site.mount(&[]);
    let found = tree(&mounted.latest());
    for (path, entry) in &expected {
        assert_eq!(found.get(path), Some(entry), "{}", path.display());
    }
    assert_eq!(found, expected);
}

#[test]
fn hard_links_share_inode_number_and_count() {
    let site = motley();
    let mounted = site.mount(&[]);
    let names = ["first", "second", "more/third"];
    let stats = names.map(|name| fs::metadata(mounted.latest().join("names").join(name)).unwrap());
    for stat in &stats {
        assert_eq!((stat.ino(), stat.nlink()), (stats[0].ino(), 3));
    }
    let other = fs::metadata(mounted.latest().join("nothing")).unwrap();
    assert_eq!(other.nlink(), 1);
    assert_ne!(other.ino(), stats[0].ino());
}

/// The inode number of every entry.
fn numbers(root: &Path) -> BTreeMap<PathBuf, u64> {
    let paths = tree(root).into_keys();
    paths.map(|path| (path.clone(), fs::symlink_metadata(root.join(path)).unwrap().ino())).collect()
}

#[test]
fn inode_numbers_are_distinct_and_stable_across_mounts() {
    let site = motley();
    let mounted = site.mount(&[]);
    let before = numbers(&mounted.latest());
    let distinct: std::collections::BTreeSet<_> = before.values().collect();
    assert_eq!(distinct.len(), before.len() - 2, "three names share one");
    drop(mounted);
    let mounted = site.mount(&[]);
    assert_eq!(numbers(&mounted.latest()), before);
}

#[test]
fn one_snapshot_can_be_the_root() {
    let site = motley();
    let mounted = site.mount(&["latest"]);
    assert_eq!(tree(mounted.path()), tree(&site.source()));
}

#[test]
fn a_directory_of_a_snapshot_can_be_the_root() {
    let site = motley();
    let mounted = site.mount(&["source/latest:names"]);
    assert_eq!(tree(mounted.path()), tree(&site.source().join("names")));
}

#[test]
fn a_file_or_a_missing_path_cannot_be_the_root() {
    let site = ready(&[("a", "one")]);
    for what in ["latest:a", "latest:missing", "other/latest"] {
        let run = site.brackfs(&["mount", what, site.mnt().to_str().unwrap()]).code(1);
        assert!(!is_mounted(&site.mnt()), "{run}");
    }
}

#[test]
fn nothing_can_be_written() {
    let site = ready(&[("a", "one"), ("d/b", "two")]);
    let mounted = site.mount(&[]);
    let root = mounted.latest();
    let [a, d, new] = ["a", "d", "new"].map(|name| root.join(name));
    let mode = fs::Permissions::from_mode(0o777);
    let attempts: [(&str, io::Result<()>); 13] = [
        ("create", File::create_new(&new).map(drop)),
        ("open to write", OpenOptions::new().write(true).open(&a).map(drop)),
        ("open to append", OpenOptions::new().append(true).open(&a).map(drop)),
        (
            "truncate",
            rustix::fs::open(&a, rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::TRUNC, Mode::empty())
                .map(drop)
                .map_err(Into::into),
        ),
        ("unlink", fs::remove_file(&a)),
        ("mkdir", fs::create_dir(&new)),
        ("rmdir", fs::remove_dir(&d)),
        ("chmod", fs::set_permissions(&a, mode)),
        ("chown", chown(&a, Some(1), Some(1))),
        ("rename", fs::rename(&a, &new)),
        ("link", fs::hard_link(&a, &new)),
        ("symlink", symlink("a", &new)),
        ("create at the top", File::create_new(mounted.path().join("new")).map(drop)),
    ];
    for (attempt, result) in attempts {
        let error = result.expect_err(attempt);
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()), "{attempt}: {error}");
    }
    assert_eq!(tree(&root), tree(&site.source()));
}

#[test]
fn reads_at_any_offset_give_correct_bytes() {
    let bytes = noise("offsets", 3 * MIB + 4321);
    let site = Site::with_files(&[("file", &bytes)]);
    site.init();
    // Small chunks, for many borders.
    site.backup(&["--chunk-size", "16KiB"]).ok();
    let mounted = site.mount(&[]);
    let file = File::open(mounted.latest().join("file")).unwrap();
    let size = bytes.len();
    let starts = (0..60).map(|step| step * 53_987).chain([1, 4095, 16_383, 65_537, MIB - 1, size - 1, size - 4097]);
    for start in starts.filter(|start| *start < size) {
        for length in [1, 13, 4096, 70_001, 300_007] {
            let mut read = vec![0; length.min(size - start)];
            file.read_exact_at(&mut read, start as u64).unwrap();
            assert!(read == bytes[start..start + read.len()], "{length} bytes at {start}");
        }
    }
    let mut room = [0; 100];
    assert_eq!(file.read_at(&mut room, size as u64 - 7).unwrap(), 7, "no more than the file has");
    assert_eq!(room[..7], bytes[size - 7..]);
    for past in [size as u64, size as u64 + 1, size as u64 + (1 << 30), 1 << 50] {
        assert_eq!(file.read_at(&mut room, past).unwrap(), 0, "at {past}");
    }
}

#[test]
fn a_new_snapshot_appears_in_a_running_mount_and_latest_follows() {
    let site = ready(&[("a", "one")]);
    let mounted = site.mount(&[]);
    let first = mounted.latest();
    assert!(!first.join("b").exists());
    site.write("b", "two");
    site.backup(&[]).ok();
    until("latest is another snapshot", || mounted.latest() != first);
    assert_eq!(fs::read(mounted.latest().join("b")).unwrap(), b"two");
    // The older snapshot is unchanged.
    assert_eq!(fs::read(first.join("a")).unwrap(), b"one");
    assert!(!first.join("b").exists());
    let mut names: Vec<_> =
        fs::read_dir(mounted.path().join("source")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let mut expected = vec![first.file_name().unwrap().to_owned(), mounted.latest().file_name().unwrap().to_owned()];
    expected.push("latest".into());
    assert_eq!(names, expected);
}

#[test]
fn the_mount_has_the_expected_type_and_options() {
    let site = ready(&[("a", "one")]);
    let mounted = site.mount(&[]);
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let path = mounted.path().to_str().unwrap();
    let ours = fields.into_iter().find(|fields| fields[1] == path).expect("the mount");
    assert_eq!(ours[2], "fuse.brackfs");
    let options: Vec<_> = ours[3].split(',').collect();
    for option in ["ro", "nosuid", "nodev", "default_permissions"] {
        assert!(options.contains(&option), "{option} in {options:?}");
    }
}

/// Starts a mount in the foreground, and waits for it.
fn in_foreground(site: &Site) -> Child {
    let (mnt, said) = (site.mnt(), site.path().join("said"));
    let mut command = site.command(&["mount", "--foreground", mnt.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::null()).stderr(File::create(&said).unwrap()).spawn().unwrap();
    until("it is mounted", || {
        assert!(child.try_wait().unwrap().is_none(), "mount --foreground ended");
        fs::read_to_string(&said).unwrap().contains("mounted on")
    });
    assert!(is_mounted(&mnt));
    child
}

fn ends_with_status(mut child: Child) -> i32 {
    ended(&mut child).code().expect("a code, not a signal")
}

#[track_caller]
fn signal_unmounts(signal: Signal) {
    let site = ready(&[("a", "one")]);
    let child = in_foreground(&site);
    assert_eq!(fs::read(site.mnt().join("source/latest/a")).unwrap(), b"one");
    rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
    assert_eq!(ends_with_status(child), 0);
    assert!(!is_mounted(&site.mnt()));
}

#[test]
fn sigterm_unmounts() {
    signal_unmounts(Signal::TERM);
}

#[test]
fn sigint_unmounts() {
    signal_unmounts(Signal::INT);
}

#[test]
fn umount_unmounts_and_ends_the_process() {
    let site = ready(&[("a", "one")]);
    let child = in_foreground(&site);
    site.brackfs(&["umount", site.mnt().to_str().unwrap()]).ok();
    assert!(!is_mounted(&site.mnt()));
    assert_eq!(ends_with_status(child), 0);
}

#[test]
fn a_mount_in_use_is_only_unmounted_lazily() {
    let site = ready(&[("a", "one")]);
    let mounted = site.mount(&[]);
    let file = File::open(mounted.latest().join("a")).unwrap();
    let path = site.mnt();
    let run = site.brackfs(&["umount", path.to_str().unwrap()]).code(1);
    assert!(run.stderr.contains("in use"), "{run}");
    assert!(mounted.is_mounted());
    site.brackfs(&["umount", "--lazy", path.to_str().unwrap()]).ok();
    assert!(!mounted.is_mounted());
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, 2).unwrap(), 1, "open files stay readable");
}

#[test]
fn umount_of_a_path_that_is_not_a_mount_is_an_error() {
    let site = Site::new();
    for path in [site.mnt(), site.path().join("missing")] {
        let run = site.brackfs(&["umount", path.to_str().unwrap()]).code(1);
        assert!(run.stderr.contains("is not a brackfs mount"), "{run}");
    }
}

#[track_caller]
fn refused(site: &Site, mountpoint: &Path, why: &str) {
    let before = is_mounted(mountpoint);
    let run = site.brackfs(&["mount", mountpoint.to_str().unwrap()]).code(1);
    assert!(run.stderr.contains(why), "{why:?} is not said\n{run}");
    assert!(run.stderr.contains(mountpoint.to_str().unwrap()), "{run}");
    assert_eq!(is_mounted(mountpoint), before);
}

#[test]
fn unsuitable_mount_points_are_refused_with_a_reason() {
    let site = ready(&[("a", "one")]);
    refused(&site, &site.path().join("missing"), "there is no such directory");
    refused(&site, &site.source().join("a"), "it is not a directory");
    refused(&site, &site.source(), "the directory is not empty");
    let inside = site.repo().join("inside");
    fs::create_dir(&inside).unwrap();
    refused(&site, &inside, "it contains the repository or is in it");
    refused(&site, &site.repo(), "it contains the repository or is in it");
}

#[test]
fn a_mount_over_a_mount_is_refused_and_the_first_stays() {
    let site = ready(&[("a", "one")]);
    let mounted = site.mount(&[]);
    refused(&site, mounted.path(), "already");
    assert_eq!(fs::read(mounted.latest().join("a")).unwrap(), b"one");
}

fn git(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(["-c", "user.name=test", "-c", "user.email=test@localhost"]).args(arguments);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null").stdin(Stdio::null());
    run(command).ok();
}

#[test]
fn a_git_repository_in_the_mount_passes_fsck() {
    let site = Site::new();
    git(&site.source(), &["init", "-q", "project"]);
    let project = site.source().join("project");
    for round in 0..3 {
        for file in 0..40 {
            site.write(&format!("project/d{}/f{file}", file % 7), format!("{round} {file}\n").repeat(50));
        }
        git(&project, &["add", "."]);
        git(&project, &["commit", "-q", "-m", &round.to_string()]);
        if round == 1 {
            git(&project, &["gc", "-q"]);
        }
    }
    site.init();
    site.backup(&[]).ok();
    let mounted = site.mount(&[]);
    git(&mounted.latest().join("project"), &["fsck", "--full", "--strict"]);
}

#[test]
fn a_large_directory_is_listed_completely_and_in_order() {
    // Names of different lengths, so that answers to the kernel end at different places.
    let names: Vec<_> = (0..3000).map(|number| format!("{number:04}{}", "x".repeat(number % 97))).collect();
    let site = Site::new();
    fs::create_dir(site.source().join("many")).unwrap();
    for name in &names {
        File::create(site.source().join("many").join(name)).unwrap();
    }
    settle();
    site.init();
    site.backup(&[]).ok();
    let mounted = site.mount(&[]);
    let many = mounted.latest().join("many");
    for _ in 0..2 {
        let listed: Vec<_> =
            fs::read_dir(&many).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(listed == names, "{} names, {} were expected", listed.len(), names.len());
    }
    assert!(fs::symlink_metadata(many.join(&names[2999])).is_ok());
    assert!(fs::symlink_metadata(many.join("0000y")).is_err());
}

#[test]
fn parallel_readers_get_correct_bytes() {
    let files: Vec<_> = (0..60)
        .map(|number| (format!("d{}/f{number}", number % 5), noise(&number.to_string(), number * 9973)))
        .collect();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes)).collect();
    let site = Site::with_files(&files);
    site.write("large", noise("large", 4 * MIB));
    settle();
    site.init();
    site.backup(&["--chunk-size", "64KiB"]).ok();
    // A cache for only a part, so that readers evict each other's blocks.
    let mounted = site.mount(&["--cache-size", "2MiB"]);
    let expected: Vec<_> = tree(&site.source()).into_iter().filter(|(_, entry)| entry.kind == Kind::File).collect();
    let root = mounted.latest();
    thread::scope(|threads| {
        for reader in 0..8 {
            let (expected, root) = (&expected, &root);
            threads.spawn(move || {
                // Each begins at another file.
                let files = expected.iter().cycle().skip(reader * expected.len() / 8).take(expected.len());
                for (path, entry) in files {
                    assert_eq!(Some(content(&root.join(path)).unwrap()), entry.content, "{}", path.display());
                }
            });
        }
    });
}

/// An ordinary user mounts, compares and unmounts.
///
/// Runs in its own mount namespace, where all users may open /dev/fuse, as on an ordinary Debian. In containers it may
/// be for root only.
const AS_OTHER_USER: &str = r#"
set -eu
mkdir dev
mount -t tmpfs -o mode=755,size=64k brackfs-test dev
mknod dev/fuse c 10 229
chmod 666 dev/fuse
mount --bind dev/fuse /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -euc '
    ./brackfs init repo --recipient keys/owner.pub
    ./brackfs backup source
    ./brackfs mount mnt
    grep " $PWD/mnt fuse.brackfs ro,nosuid,nodev" /proc/self/mounts
    diff -r source mnt/source/latest
    ./brackfs umount mnt
    ! grep " $PWD/mnt " /proc/self/mounts
    test -z "$(ls -A mnt)"
'
"#;

#[test]
fn an_ordinary_user_can_back_up_and_mount() {
    let helper = ["/usr/bin/fusermount3", "/bin/fusermount3"].iter().find_map(|path| fs::metadata(path).ok());
    let is_set_id = helper.is_some_and(|helper| helper.uid() == 0 && helper.mode() & 0o4000 != 0);
    assert!(is_set_id, "fusermount3 (Debian package fuse3) has to be set-uid root");
    let site = Site::with_files(&[("a", "one"), ("d/b", "two")]);
    site.key("rfc9580");
    site.program_for_everyone();
    let mut all = vec![site.path().to_owned()];
    while let Some(path) = all.pop() {
        chown(&path, Some(65534), Some(65534)).unwrap();
        if path.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let mut command = in_mount_namespace("sh");
    command.args(["-c", AS_OTHER_USER]).current_dir(site.path()).stdin(Stdio::null());
    command.env("HOME", site.path()).env("BRACKFS_KEY_FILE", site.keys().join("owner"));
    // No state directory is named: it is below the user's home.
    command.env("BRACKFS_REPOSITORY", site.repo()).env_remove("BRACKFS_STATE_DIR").env_remove("XDG_STATE_HOME");
    run(command).ok();
    assert!(site.path().join(".local/state/brackfs").is_dir());
}

#[test]
fn dropping_the_guard_unmounts() {
    let site = ready(&[("a", "one")]);
    let mounted: Mounted = site.mount(&[]);
    assert!(mounted.is_mounted());
    drop(mounted);
    assert!(!is_mounted(&site.mnt()));
}
