//! The mount and a restore equal the source, for everything that a Unix tree can hold.
//!
//! The trees are compared by independent programs: rsync, casync, tar, lsattr.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::machine::succeed;
use common::{Run, Site, data, in_mount_namespace, noise, run, set_mode, set_time, settle, tree, xattrs};
use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, XattrFlags};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Runs a program, which must succeed, and returns its output.
#[track_caller]
fn output(program: &str, arguments: &[&OsStr]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    run(command).ok().stdout
}

/// The actions of rsync to make `b` equal to `a` in content and metadata. Excludes paths that are too long for rsync.
#[track_caller]
fn difference(a: &Path, b: &Path) -> String {
    let slash = |path: &Path| [path.as_os_str(), OsStr::new("/")].concat_os();
    let (a, b) = (slash(a), slash(b));
    let flags = ["-aHAXnci", "--delete", "--exclude=/deep"].map(OsStr::new);
    output("rsync", &[&flags[..], &[&a, &b]].concat())
}

/// The digest that casync computes of a tree, with all metadata.
#[track_caller]
fn digest(tree: &Path) -> String {
    output(
        "casync",
        &["digest", "--with=all"].map(OsStr::new).into_iter().chain([tree.as_os_str()]).collect::<Vec<_>>(),
    )
}

trait ConcatOs {
    fn concat_os(&self) -> std::ffi::OsString;
}

impl ConcatOs for [&OsStr; 2] {
    fn concat_os(&self) -> std::ffi::OsString {
        let mut joined = self[0].to_owned();
        joined.push(self[1]);
        joined
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{name} of {}: {e}", path.display()));
}

fn set_flags(path: &Path, flags: IFlags) {
    rustix::fs::ioctl_setflags(File::open(path).unwrap(), flags).unwrap();
}

fn flags(path: &Path) -> u32 {
    rustix::fs::ioctl_getflags(File::open(path).unwrap()).unwrap().bits()
}

/// A file of `length` bytes with data only at these offsets.
fn sparse(path: &Path, length: u64, islands: &[(u64, &[u8])]) {
    let mut file = File::create(path).unwrap();
    for (at, bytes) in islands {
        file.seek(SeekFrom::Start(*at)).unwrap();
        file.write_all(bytes).unwrap();
    }
    file.set_len(length).unwrap();
}

/// The last of nested directories whose path is longer than paths can be.
fn deep(below: &Path) -> OwnedFd {
    let name = "d".repeat(200);
    let directory = OFlags::RDONLY | OFlags::DIRECTORY;
    fs::create_dir(below.join("deep")).unwrap();
    let mut at = rustix::fs::open(below.join("deep"), directory, Mode::empty()).unwrap();
    for _ in 0..30 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, directory, Mode::empty()).unwrap();
    }
    at
}

/// A tree of everything.
fn everything(root: &Path) {
    let at = |name: &str| root.join(name);
    let write = |name: &str, bytes: &[u8]| {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), bytes).unwrap();
        at(name)
    };
    // Content: sizes around limits of storage, and duplicates.
    for size in [0, 1, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3] {
        write(&format!("sizes/{size}"), &noise("size", size));
        write(&format!("sizes/{size}.again"), &noise("size", size));
    }
    write("zeros", &vec![0; 3 * MIB]);
    fs::create_dir(at("sparse")).unwrap();
    sparse(&at("sparse/ends"), 40 * MIB as u64, &[(20 * MIB as u64, &noise("island", 10_000))]);
    sparse(&at("sparse/hole"), 3 * MIB as u64, &[]);
    let islands: Vec<_> = (0..400).map(|i| (i * 64 * KIB as u64, &b"island"[..])).collect();
    sparse(&at("sparse/many"), 40 * MIB as u64, &islands);
    // Links.
    fs::create_dir(at("links")).unwrap();
    for (name, target) in [
        ("dangling", "nowhere/at all"),
        ("itself", "itself"),
        ("odd", "/..//./etc/../../\u{e9} \n"),
        ("root", "/"),
        ("up", "../.."),
    ] {
        symlink(target, at("links").join(name)).unwrap();
    }
    symlink("x".repeat(4095), at("links/long")).unwrap();
    lchown(at("links/dangling"), Some(77), Some(88)).unwrap();
    set_time(&at("links/itself"), -5, 7);
    write("first/name", b"of several");
    for name in ["first/second", "sizes/third", "zz"] {
        fs::hard_link(at("first/name"), at(name)).unwrap();
    }
    let outside = root.with_file_name("outside");
    fs::write(&outside, "has a name outside of the source").unwrap();
    fs::hard_link(&outside, at("inside")).unwrap();
    symlink("linked symlink", at("links/one")).unwrap();
    fs::hard_link(at("links/one"), at("links/other")).unwrap();
    // Special files.
    let node = |name: &str, kind, major, minor| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("fifo", FileType::Fifo, 0, 0);
    node("socket", FileType::Socket, 0, 0);
    node("null", FileType::CharacterDevice, 1, 3);
    node("disk", FileType::BlockDevice, 259, 70_000);
    fs::hard_link(at("fifo"), at("fifo too")).unwrap();
    // Owners and modes.
    for (name, mode) in [("set-id", 0o6755), ("none", 0), ("sticky", 0o1644), ("read-only", 0o400)] {
        let path = write(&format!("modes/{name}"), name.as_bytes());
        chown(&path, Some(123_456), Some(4_000_000_000)).unwrap();
        set_mode(&path, mode);
    }
    write("closed/file", b"in a directory of mode 0");
    for (name, mode) in [("closed", 0), ("modes", 0o3777)] {
        set_mode(&at(name), mode);
    }
    // Attributes, ACLs, capabilities, flags.
    write("attributes/large", b"x");
    set_xattr(&at("attributes/large"), "user.large", &noise("large", 64 * KIB));
    write("attributes/many", b"x");
    for i in 0..100 {
        set_xattr(&at("attributes/many"), &format!("user.{i}"), &noise("many", i * 10));
    }
    set_xattr(&at("attributes"), "user.of a directory", b"\0\xff\n");
    set_xattr(&at("attributes"), "trusted.of a directory", b"for root");
    set_xattr(&at("links/itself"), "trusted.of a link", b"link");
    set_xattr(&at("fifo"), "trusted.of a fifo", b"fifo");
    set_xattr(&at("null"), "trusted.of a device", b"device");
    set_xattr(&at("modes/read-only"), "user.of what nobody may write", b"");
    fs::copy("/bin/true", at("attributes/capable")).unwrap();
    output("setcap", &[OsStr::new("cap_net_raw+ep"), at("attributes/capable").as_os_str()]);
    write("acl/file", b"x");
    let acl = |words: &[&str], name: &str| {
        let path = at(name);
        let words = words.iter().map(OsStr::new).chain([path.as_os_str()]).collect::<Vec<_>>();
        output("setfacl", &words);
    };
    acl(&["-m", "u:bin:rwx,g:daemon:r,m:rw"], "acl/file");
    acl(&["-m", "u:daemon:rx"], "acl");
    acl(&["-d", "-m", "u:bin:rx,o:-"], "acl");
    fs::create_dir(at("acl/inherits")).unwrap();
    fs::write(at("acl/inherits/file"), "x").unwrap();
    for (name, flag) in [("nodump", IFlags::NODUMP), ("noatime", IFlags::NOATIME)] {
        set_flags(&write(&format!("flags/{name}"), b"x"), flag);
    }
    // Names.
    fs::create_dir(at("names")).unwrap();
    for byte in (1..=255).filter(|byte| *byte != b'/') {
        for name in [&[byte, b'_'][..], &[b'_', byte]] {
            fs::write(at("names").join(OsStr::from_bytes(name)), name).unwrap();
        }
    }
    for name in ["line\nbreak", " ", "-rf *", "...", "~", &"n".repeat(255), &"\u{1f980}".repeat(63)] {
        fs::write(at("names").join(name), name).unwrap();
    }
    let bottom = deep(root);
    let file = OFlags::WRONLY | OFlags::CREATE;
    let file = File::from(rustix::fs::openat(&bottom, "file", file, Mode::RUSR).unwrap());
    (&file).write_all(b"at the bottom").unwrap();
    rustix::fs::linkat(CWD, at("first/name"), &bottom, "one more name", AtFlags::empty()).unwrap();
    fs::create_dir(at("empty")).unwrap();
    // Times, at last.
    for (name, seconds, nanoseconds) in [
        ("times/long-ago", -9_000_000_000, 987_654_321),
        ("times/just-before", -1, 999_999_999),
        ("times/now", 1_700_000_000, 123_456_789),
        ("times/after-2038", 4_102_444_800, 1),
        ("times/far", 9_000_000_000, 5),
    ] {
        set_time(&write(name, name.as_bytes()), seconds, nanoseconds);
    }
    for (name, nanoseconds) in [("fifo", 1), ("null", 2), ("first", 3), ("links", 4), ("closed", 5), ("", 6)] {
        set_time(&at(name), -86_400, nanoseconds);
    }
    // These cannot be changed from here on.
    set_flags(&write("flags/immutable", b"x"), IFlags::IMMUTABLE);
    set_flags(&write("flags/append-only", b"x"), IFlags::APPEND);
    write("flags/linked", b"x");
    fs::hard_link(at("flags/linked"), at("links/to immutable")).unwrap();
    set_flags(&at("flags/linked"), IFlags::IMMUTABLE);
    write("flags/directory/file", b"x");
    set_flags(&at("flags/directory"), IFlags::IMMUTABLE | IFlags::NODUMP);
}

/// A site with a tree of everything, backed up. Not encrypted, which makes no difference here.
fn ready() -> Site {
    let site = Site::on_tmpfs();
    everything(&site.source());
    settle();
    site.brackfs(&[OsStr::new("init"), site.repo().as_os_str(), OsStr::new("--no-encryption")]).ok();
    site.backup(&[]).ok();
    site
}

#[track_caller]
fn restore(site: &Site, to: &Path, extra: &[&str]) -> Run {
    let mut arguments = vec!["restore", "latest", "--json", "--numeric-owner", "--to", to.to_str().unwrap()];
    arguments.extend(extra);
    site.brackfs(&arguments)
}

#[test]
fn everything_is_restored() {
    let site = ready();
    let out = site.path().join("out");
    let run = restore(&site, &out, &[]).ok();
    assert_eq!((run.json()["problems"].as_u64(), run.stderr.as_str()), (Some(0), ""));
    let mounted = site.mount(&[]);
    for copy in [&out, &mounted.latest()] {
        assert_eq!(difference(&site.source(), copy), "", "{}", copy.display());
        assert_eq!(digest(copy), digest(&site.source()), "{}", copy.display());
        for name in ["nodump", "noatime", "immutable", "append-only", "linked", "directory"] {
            let name = format!("flags/{name}");
            // tmpfs sets a flag of its own on all files.
            let kept = flags(&copy.join(&name)) & 0x2083_00f8;
            assert_eq!(kept, flags(&site.source().join(&name)) & 0x2083_00f8, "{name}");
        }
    }
    for name in ["sparse/ends", "sparse/hole", "sparse/many"] {
        assert_eq!(data(&out.join(name)), data(&site.source().join(name)), "{name}");
        assert_eq!(data(&mounted.latest().join(name)), data(&site.source().join(name)), "{name}");
        let blocks = |root: &Path| fs::metadata(root.join(name)).unwrap().blocks();
        assert_eq!(blocks(&out), blocks(&site.source()), "{name}");
    }
    // The mount counts the name outside of the source; the restored file does not have it.
    assert_eq!(fs::metadata(mounted.latest().join("inside")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(out.join("inside")).unwrap().nlink(), 1);
}

#[test]
fn tar_archives_the_mount_like_the_source() {
    let site = ready();
    let mounted = site.mount(&[]);
    let archive = |root: &Path| {
        let mut command = Command::new("tar");
        command.args(["--create", "--sort=name", "--format=posix", "--pax-option=delete=atime,delete=ctime"]);
        command.args(["--xattrs", "--xattrs-include=*", "--acls"]);
        // tar writes attributes in the order of the file system.
        command.args(["--exclude=./attributes", "--file=-", "--directory"]).arg(root).arg(".");
        let archive = site.path().join("archive");
        command.stdout(File::create(&archive).unwrap()).stderr(std::process::Stdio::null());
        succeed(&mut command);
        common::content(&archive).unwrap()
    };
    assert_eq!(archive(&mounted.latest()), archive(&site.source()));
}

#[test]
fn a_changed_attribute_is_detected_without_storing_the_file_again() {
    let site = ready();
    settle();
    assert_eq!(site.backup(&[]).ok().json()["files_read"], 0);
    for (path, value) in [("sizes/1048577", &b"new"[..]), ("empty", b"new"), ("attributes/large", b"new")] {
        set_xattr(&site.source().join(path), "user.large", value);
    }
    set_xattr(&site.source(), "user.root", b"new");
    settle();
    let summary = site.backup(&[]).ok().json();
    assert_eq!((summary["files_changed"].as_u64(), summary["data_packs"].as_u64()), (Some(2), Some(0)));
    let mounted = site.mount(&[]);
    assert_eq!(difference(&site.source(), &mounted.latest()), "");
    assert_eq!(xattrs(&mounted.latest()).unwrap()["user.root"], b"new");
}

#[test]
fn a_huge_sparse_file_costs_only_its_data() {
    let site = Site::on_tmpfs();
    let path = site.source().join("huge");
    // More than 4 GiB, mostly holes.
    sparse(&path, 1 << 40, &[(0, b"begin"), (5 << 30, &noise("middle", MIB)), ((1 << 40) - 3, b"end")]);
    settle();
    site.init();
    let summary = site.backup(&[]).ok().json();
    assert_eq!(summary["bytes"], 1u64 << 40);
    assert!(summary["stored_bytes"].as_u64().unwrap() < 2 * MIB as u64, "{summary}");
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", out.to_str().unwrap()]).ok();
    let mounted = site.mount(&[]);
    assert_eq!(data(&out.join("huge")), data(&path));
    assert_eq!(data(&mounted.latest().join("huge")), data(&path));
    // This is fast if cp finds the holes.
    let copy = site.path().join("copy");
    output("cp", &[OsStr::new("--sparse=auto"), mounted.latest().join("huge").as_os_str(), copy.as_os_str()]);
    assert_eq!(data(&copy), data(&path));
    let (copy, shown) = (fs::metadata(out.join("huge")).unwrap(), mounted.latest().join("huge"));
    assert_eq!((copy.len(), copy.blocks()), (1 << 40, fs::metadata(&path).unwrap().blocks()));
    assert_eq!(fs::metadata(&shown).unwrap().len(), 1 << 40);
    assert!(fs::metadata(&shown).unwrap().blocks() < 1 << 13);
    for (start, end) in data(&path) {
        let part = |path: &Path| {
            let mut file = File::open(path).unwrap();
            file.seek(SeekFrom::Start(start.saturating_sub(10))).unwrap();
            let mut bytes = Vec::new();
            file.take(end - start + 20).read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert!(part(&path) == part(&shown) && part(&path) == part(&out.join("huge")), "{start}");
    }
}

#[test]
fn a_directory_of_200_000_entries_is_restored() {
    let site = Site::on_tmpfs();
    let directory = site.source().join("flat");
    fs::create_dir(&directory).unwrap();
    // Links to a few files: as many entries, with less work.
    let name = |i: usize| directory.join(format!("a name of usual length {i}"));
    for i in 0..200_000 {
        match i % 1000 {
            0 => drop(File::create(name(i)).unwrap()),
            _ => fs::hard_link(name(i - i % 1000), name(i)).unwrap(),
        }
    }
    settle();
    site.brackfs(&[OsStr::new("init"), site.repo().as_os_str(), OsStr::new("--no-encryption")]).ok();
    site.backup(&[]).ok();
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", out.to_str().unwrap()]).ok();
    let mounted = site.mount(&[]);
    let names = |root: &Path| {
        let entries = fs::read_dir(root.join("flat")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort_unstable();
        names
    };
    let expected = names(&site.source());
    assert_eq!(expected.len(), 200_000);
    assert!(names(&out) == expected && names(&mounted.latest()) == expected);
    let last = |root: &Path| fs::metadata(root.join("flat").join(expected.last().unwrap())).unwrap().nlink();
    assert_eq!((last(&out), last(&mounted.latest())), (1000, 1000));
}

#[test]
fn attributes_that_an_ordinary_user_cannot_set_are_reported_once() {
    let site = ready();
    let out = site.path().join("out");
    fs::create_dir(&out).unwrap();
    chown(&out, Some(65_534), Some(65_534)).unwrap();
    let home = site.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(65_534), Some(65_534)).unwrap();
    let mut command = site.command_as_nobody(&["restore", "latest", "--json", "--to", out.to_str().unwrap()]);
    command.env("BRACKFS_STATE_DIR", &home);
    set_mode(&site.repo(), 0o755);
    let run = common::run(command);
    // Devices are missing, so the restore is incomplete.
    let run = run.code(1);
    for once in
        ["cannot restore devices (2 entries)", "owner or group of", "extended attributes trusted.* of 3 entries"]
    {
        assert_eq!(run.stderr.matches(once).count(), 1, "{once}\n{run}");
    }
    assert!(run.stderr.lines().count() < 12, "{run}");
    assert_eq!(run.json()["problems"], 1, "{run}");
    assert!(run.stderr.contains(&format!("\"path\":\"{}\"", out.display())), "{run}");
    // Its paths are too long for these programs.
    for root in [site.source(), out.clone()] {
        output("rm", &[OsStr::new("-r"), root.join("deep").as_os_str()]);
    }
    let (mut expected, found) = (tree(&site.source()), tree(&out));
    for gone in ["null", "disk", ""] {
        expected.remove(Path::new(gone));
    }
    for (path, entry) in &mut expected {
        entry.uid = 65_534;
        entry.gid = 65_534;
        if entry.kind != common::Kind::Directory {
            entry.mode &= 0o1777;
        }
        entry.xattrs.retain(|name, _| !name.starts_with("trusted.") && !name.starts_with("security."));
        let found = found.get(path).unwrap_or_else(|| panic!("no {}\n{run}", path.display()));
        assert_eq!(found, entry, "{}", path.display());
    }
}

#[test]
fn a_backup_reports_files_that_its_user_may_not_read() {
    let site = Site::on_tmpfs();
    for name in ["mine", "also mine", "not mine"] {
        chown(site.write(name, name), Some(65_534), Some(65_534)).unwrap();
    }
    chown(site.source().join("not mine"), Some(0), Some(0)).unwrap();
    set_mode(&site.source().join("not mine"), 0o600);
    set_xattr(&site.source().join("not mine"), "user.a", b"secret");
    let home = site.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(65_534), Some(65_534)).unwrap();
    settle();
    let repo = home.join("repo");
    let brackfs = |arguments: &[&OsStr]| {
        let mut command = site.command_as_nobody(arguments);
        command.env("BRACKFS_STATE_DIR", home.join("state")).env("BRACKFS_REPOSITORY", &repo);
        common::run(command)
    };
    brackfs(&[OsStr::new("init"), repo.as_os_str(), OsStr::new("--no-encryption")]).ok();
    let run = brackfs(&[OsStr::new("backup"), site.source().as_os_str()]).code(3);
    assert_eq!(run.stderr.matches("not mine").count(), 1, "{run}");
    let run = brackfs(&[OsStr::new("ls"), OsStr::new("latest")]).ok();
    assert_eq!(run.stdout.lines().collect::<Vec<_>>(), ["also mine", "mine"]);
}

#[test]
fn owners_are_restored_by_name_unless_numbers_are_requested() {
    let site = Site::with_files(&[("file", "x")]);
    chown(site.source().join("file"), Some(1), Some(2)).unwrap();
    settle();
    site.init();
    site.backup(&[]).ok();
    // On this machine, daemon and bin have these numbers, so both ways have the same result.
    for extra in [&[][..], &["--numeric-owner"]] {
        let out = site.path().join(format!("out{}", extra.len()));
        let mut arguments = vec!["restore", "latest", "--to", out.to_str().unwrap()];
        arguments.extend(extra);
        site.brackfs(&arguments).ok();
        let stat = fs::metadata(out.join("file")).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1, 2));
    }
    // With a user database in which daemon has another number.
    let table = site.path().join("passwd");
    fs::write(&table, "root:x:0:0::/:/bin/sh\ndaemon:x:4711:2::/:/bin/sh\n").unwrap();
    let restore = |to: &PathBuf, extra: &str| {
        let inner = site.command(&["restore", "latest", "--to", to.to_str().unwrap()]);
        let mut command = in_mount_namespace("sh");
        command.args(["-c", "mount --bind \"$0\" /etc/passwd && exec \"$@\""]).arg(&table);
        command.arg(inner.get_program()).args(inner.get_args()).args((!extra.is_empty()).then_some(extra));
        command.current_dir(site.path()).env("BRACKFS_STATE_DIR", site.state());
        command.env("BRACKFS_REPOSITORY", site.repo()).env("BRACKFS_KEY_FILE", site.keys().join("owner"));
        run(command).ok();
        fs::metadata(to.join("file")).unwrap().uid()
    };
    assert_eq!(restore(&site.path().join("by name"), ""), 4711);
    assert_eq!(restore(&site.path().join("by number"), "--numeric-owner"), 1);
}

#[test]
fn a_default_acl_at_the_destination_does_not_spread() {
    let site = ready();
    let out = site.path().join("out");
    fs::create_dir(&out).unwrap();
    output("setfacl", &[OsStr::new("-d"), OsStr::new("-m"), OsStr::new("u:bin:rwx"), out.as_os_str()]);
    restore(&site, &out, &[]).ok();
    assert_eq!(difference(&site.source(), &out), "");
}

#[test]
fn other_users_of_a_shared_mount_see_what_the_acl_allows() {
    let site = Site::on_tmpfs();
    let path = site.write("file", "for bin, and not for the group");
    chown(&path, Some(0), Some(65_534)).unwrap();
    set_mode(&path, 0o600);
    // The mask shows in the mode as if the group could read.
    output("setfacl", &[OsStr::new("-m"), OsStr::new("u:bin:r,m:rwx"), path.as_os_str()]);
    settle();
    site.init();
    site.backup(&[]).ok();
    let mounted = site.mount(&["--allow-other"]);
    let shown = mounted.latest().join("file");
    let read = |user: u32, group: u32| {
        let mut command = Command::new("cat");
        command.arg(&shown).uid(user).gid(group);
        run(command).code == 0
    };
    assert!(read(2, 2), "bin may");
    assert!(!read(65_534, 65_534), "its group may not");
}
