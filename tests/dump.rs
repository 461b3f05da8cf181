//! `brackfs dump`: tar extracts the same files from the archive, and it never has wrong bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use brackfs::format::entry::{Content, HardLink, Subtree};
use brackfs::format::name::{self, SnapshotName};
use brackfs::format::snapshot::Snapshot;
use brackfs::format::{
    self, BlockLocation, ChunkRef, ContentHasher, Digest, Extent, Items, Node, PackId, SnapshotId, SourceId, block,
};
use brackfs::monitor::Monitor;
use brackfs::reader::{Reader, root_of};
use brackfs::repository::{Access, Repository};
use common::forgery::entry;
use common::{Entry, Kind, Run, Site, age, noise, run, set_mode, set_time, settle, tree};
use rustix::fs::{CWD, FileType, Mode};

const MIB: usize = 1 << 20;

/// Makes the repository of a site, and backs up into it.
fn back_up(site: &Site) {
    settle();
    site.init();
    site.backup(&[]).ok();
}

/// Dumps into `archive.tar` of the site, so the `stdout` of the run is empty.
#[must_use = "it may have failed: say .ok() or .code(n)"]
fn dump(site: &Site, arguments: &[&str]) -> (Run, PathBuf) {
    let archive = site.path().join("archive.tar");
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"out=$1; shift; exec "$@" > "$out""#, "sh"]).arg(&archive);
    let brackfs = site.command(&[&["dump"], arguments].concat());
    shell.arg(brackfs.get_program()).args(brackfs.get_args()).current_dir(site.path()).stdin(Stdio::null());
    for (name, value) in brackfs.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    (run(shell), archive)
}

/// tar with an archive.
fn tar(arguments: &[&str], archive: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(arguments).arg("--file").arg(archive).env("LC_ALL", "C");
    tar
}

/// Extracts with GNU tar into a new directory of the site.
#[track_caller]
fn extracted(site: &Site, archive: &Path) -> PathBuf {
    let out = site.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut tar = tar(&["-xp", "--xattrs", "--acls", "--numeric-owner"], archive);
    tar.arg("--directory").arg(&out);
    run(tar).ok();
    out
}

/// Dumps, extracts, and compares with the source.
#[track_caller]
fn assert_round_trip(site: &Site) -> PathBuf {
    let (run, archive) = dump(site, &["latest"]);
    run.ok();
    let out = extracted(site, &archive);
    let (found, mut expected) = (tree(&out), tree(&site.source()));
    expected.retain(|_, entry| entry.kind != Kind::Socket);
    for (path, entry) in &expected {
        assert_eq!(found.get(path), Some(entry), "{}", path.display());
    }
    assert_eq!(found, expected);
    out
}

/// The names in an archive as GNU tar lists them, escaped as in C.
#[track_caller]
fn listed(archive: &Path) -> Vec<String> {
    let run = run(tar(&["-t"], archive)).ok();
    run.stdout.lines().map(str::to_owned).collect()
}

fn make_node(path: &Path, kind: FileType, major: u32, minor: u32) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), rustix::fs::makedev(major, minor)).unwrap();
}

#[test]
fn content_modes_owners_and_directories_are_restored() {
    let site = Site::with_files(&[("empty file", ""), ("small", "one"), ("d/below", "two"), ("d/e/f/deep", "three")]);
    // Sizes around those of a block and of a chunk.
    for size in [511, 512, 513, 3 * MIB + 17] {
        site.write(&format!("of-{size}"), noise("content", size));
    }
    for (name, mode) in [("private", 0o600), ("set-id", 0o6755), ("closed", 0o000), ("sticky", 0o1777)] {
        set_mode(&site.write(&format!("modes/{name}"), name), mode);
    }
    for (name, owner, group) in [("daemon", 1, 1), ("high", 3_000_000, 4_000_000_000)] {
        let path = site.write(&format!("owners/{name}"), name);
        chown(&path, Some(owner), Some(group)).unwrap();
        set_mode(&path, 0o4750);
    }
    fs::create_dir_all(site.source().join("empty/er")).unwrap();
    age(&site.source());
    // Mode and time of a directory are set after its entries are made.
    for (name, mode, seconds) in [("d/e", 0o555, 7), ("modes", 0o2711, 8), ("empty", 0o1755, 9), ("", 0o750, 10)] {
        let path = site.source().join(name);
        set_mode(&path, mode);
        set_time(&path, seconds, 123_456_789);
    }
    back_up(&site);
    assert_round_trip(&site);
}

#[test]
fn names_and_link_targets_of_any_bytes_and_length_are_restored() {
    let site = Site::new();
    let (long, bytes) = ("n".repeat(250), b"not \xff UTF-8 \xc3\x28");
    let deep = PathBuf::from(&long).join(&long).join(&long);
    fs::create_dir_all(site.source().join(&deep)).unwrap();
    let mut names: Vec<OsString> = vec![deep.join("at the end").into(), deep.join(OsStr::from_bytes(bytes)).into()];
    names.extend(
        [&b"line\nbreak"[..], bytes, b"-rf *", b" ", b"back\\slash", b"\x01", b"=", b"%"]
            .map(|name| OsStr::from_bytes(name).into()),
    );
    // Lengths around the limit of a header, after the two bytes of "./".
    names.extend((95..=101).map(|length| OsString::from("m".repeat(length))));
    names.push("grün".into());
    for name in &names {
        fs::write(site.source().join(name), name.as_bytes()).unwrap();
    }
    let targets = [deep.as_os_str(), OsStr::from_bytes(bytes), OsStr::new("line\nbreak"), OsStr::new("nowhere/at all")];
    for (at, target) in targets.into_iter().enumerate() {
        let link = site.source().join(format!("link-{at}"));
        symlink(target, &link).unwrap();
        lchown(&link, Some(7), Some(8)).unwrap();
        set_time(&link, 1_000_000_000, 5);
    }
    for (at, name) in names.iter().enumerate().take(4) {
        fs::hard_link(site.source().join(name), site.source().join(format!("z-{at}"))).unwrap();
    }
    back_up(&site);
    assert_round_trip(&site);
}

#[test]
fn times_to_the_nanosecond_before_1970_and_far_from_now_are_restored() {
    let site = Site::new();
    for (name, seconds, nanoseconds) in [
        ("long-ago", -1_234_567_890, 987_654_321),
        ("just-before", -1, 999_999_999),
        ("whole-before", -1, 0),
        ("at-the-beginning", 0, 1),
        ("now", 1_700_000_000, 120_000_000),
        ("after-2038", 4_102_444_800, 1),
        ("after-2242", 10_413_792_000, 2),
    ] {
        set_time(&site.write(name, name), seconds, nanoseconds);
    }
    back_up(&site);
    assert_round_trip(&site);
}

#[test]
fn special_files_are_restored_and_sockets_reported() {
    let site = Site::with_files(&[("a", "one")]);
    let below = |name: &str| site.source().join(name);
    make_node(&below("fifo"), FileType::Fifo, 0, 0);
    make_node(&below("socket"), FileType::Socket, 0, 0);
    make_node(&below("null"), FileType::CharacterDevice, 1, 3);
    make_node(&below("disk"), FileType::BlockDevice, 259, 70_000);
    for name in ["fifo", "null", "disk"] {
        set_time(&below(name), 1_000_000_000, 6);
    }
    // Several names of special files.
    fs::hard_link(below("fifo"), below("fifo too")).unwrap();
    symlink("a", below("link")).unwrap();
    fs::hard_link(below("link"), below("link too")).unwrap();
    back_up(&site);
    let out = assert_round_trip(&site);
    assert_eq!(fs::metadata(out.join("disk")).unwrap().rdev(), rustix::fs::makedev(259, 70_000));
    let (run, _) = dump(&site, &["latest"]);
    let run = run.ok();
    assert!(run.stderr.contains("socket") && run.stderr.lines().count() == 1, "{run}");
    let (run, _) = dump(&site, &["latest", "--quiet"]);
    assert_eq!(run.ok().stderr, "");
}

/// user::rw-, user:12345:rwx, group::r--, mask::rwx, other::---, as Linux keeps it.
const ACCESS_LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\x39\x30\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

#[test]
fn attributes_and_access_lists_are_restored() {
    let site = Site::with_files(&[("file", "one"), ("program", "two"), ("d/x", "three")]);
    let set: [(&str, &str, &[u8]); 6] = [
        ("file", "user.lines and bytes", b"a\nb=c\0d\xff\n"),
        ("file", "user.equals=100%", b""),
        ("file", "system.posix_acl_access", ACCESS_LIST),
        ("d", "system.posix_acl_default", ACCESS_LIST),
        ("d", "trusted.of a directory", b"yes"),
        // To bind low ports.
        ("program", "security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ];
    for (name, attribute, value) in set {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(site.source().join(name), attribute, value, flags).unwrap();
    }
    back_up(&site);
    let (run_of_dump, archive) = dump(&site, &["latest"]);
    run_of_dump.ok();
    let out = site.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut tar = tar(&["-xp", "--xattrs", "--xattrs-include=*", "--acls"], &archive);
    tar.arg("--directory").arg(&out);
    run(tar).ok();
    for (name, attribute, expected) in set {
        let mut value = [0; 256];
        let length = rustix::fs::getxattr(out.join(name), attribute, value.as_mut_slice())
            .unwrap_or_else(|e| panic!("{name}: {attribute}: {e}"));
        assert_eq!(&value[..length], expected, "{name}: {attribute}");
    }
    assert_eq!(tree(&out), tree(&site.source()));
}

#[test]
fn further_names_of_a_file_are_links_to_the_first() {
    let site = Site::with_files(&[("d/first", noise("linked", 2 * MIB))]);
    fs::create_dir(site.source().join("e")).unwrap();
    for name in ["d/second", "e/third"] {
        fs::hard_link(site.source().join("d/first"), site.source().join(name)).unwrap();
    }
    back_up(&site);
    let out = assert_round_trip(&site);
    assert_eq!(fs::metadata(out.join("e/third")).unwrap().nlink(), 3);
    let archive = site.path().join("archive.tar");
    let size = fs::metadata(&archive).unwrap().len();
    assert!(size < 3 * MIB as u64, "the content is there once, in {size} bytes");
    // Dumped alone, a second name is a file.
    let (run, archive) = dump(&site, &["latest:e"]);
    run.ok();
    fs::remove_dir_all(&out).unwrap();
    let out = extracted(&site, &archive);
    assert_eq!(fs::read(out.join("third")).unwrap(), noise("linked", 2 * MIB));
}

#[test]
fn holes_are_restored_as_holes() {
    let site = Site::with_files(&[("small", "beside it")]);
    let sparse = |name: &str, size: u64, islands: &[(u64, &[u8])]| {
        let mut file = File::create(site.source().join(name)).unwrap();
        for (at, bytes) in islands {
            file.seek(SeekFrom::Start(*at)).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.set_len(size).unwrap();
    };
    let many: Vec<u64> = (0..2500).map(|at| 100_000 + at * 12_345).collect();
    let islands: Vec<(u64, &[u8])> = many.iter().map(|at| (*at, b"island".as_slice())).collect();
    sparse("many islands", 40 << 20, &islands);
    sparse("nothing but a hole", 10 << 20, &[]);
    sparse("a hole at the beginning", (5 << 20) + 4, &[(5 << 20, b"tail")]);
    sparse("a hole at the end", 5 << 20, &[(0, b"head")]);
    sparse("a small file with a hole", 40_000, &[(20_000, b"island")]);
    sparse("a hole of one block", (256 << 10) + 4096, &[(0, &[1; 128 << 10]), ((128 << 10) + 4096, &[2; 128 << 10])]);
    let large = noise("between holes", 2 * MIB);
    sparse("an odd end", (8 << 20) + 777, &[(3 << 20, &large), (8 << 20, &[3; 777])]);
    sparse(&"long and sparse ".repeat(10), 1 << 20, &[(500_000, b"x")]);
    fs::write(site.source().join(OsStr::from_bytes(b"\xff sparse")), []).unwrap();
    File::options()
        .write(true)
        .open(site.source().join(OsStr::from_bytes(b"\xff sparse")))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    fs::hard_link(site.source().join("a hole at the end"), site.source().join("a second name")).unwrap();
    age(&site.source());
    back_up(&site);
    let out = assert_round_trip(&site);
    for path in tree(&out).into_keys() {
        let blocks = |below: &Path| fs::metadata(below.join(&path)).unwrap().blocks();
        let (there, here) = (blocks(&out), blocks(&site.source()));
        // Blocks that map the extents are counted as soon as they are written.
        assert!(there.abs_diff(here) <= here / 64, "{}: {there} instead of {here}", path.display());
    }
}

#[test]
fn a_huge_sparse_file_takes_little_space_in_the_archive() {
    let site = Site::new();
    let mut file = File::create(site.source().join("enormous")).unwrap();
    for at in [1 << 30, 1 << 39, (1 << 40) - 100] {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(b"island").unwrap();
    }
    file.set_len(1 << 40).unwrap();
    back_up(&site);
    let (run, archive) = dump(&site, &["latest"]);
    run.ok();
    assert!(fs::metadata(&archive).unwrap().len() < MIB as u64);
    let out = extracted(&site, &archive).join("enormous");
    let stat = fs::metadata(&out).unwrap();
    assert_eq!((stat.size(), stat.blocks()), (1 << 40, fs::metadata(site.source().join("enormous")).unwrap().blocks()));
    let mut restored = File::open(out).unwrap();
    let mut bytes = [0; 6];
    restored.seek(SeekFrom::Start(1 << 39)).and_then(|_| restored.read_exact(&mut bytes)).unwrap();
    assert_eq!(&bytes, b"island");
}

#[test]
fn names_are_relative_and_in_tree_order() {
    let site = Site::with_files(&[("b/two", "2"), ("b/one/x", "1"), ("a.b", "3"), ("a/z", "4"), ("-dash", "5")]);
    back_up(&site);
    let (run, archive) = dump(&site, &["latest", "--verbose"]);
    let run = run.ok();
    let names = ["./", "./-dash", "./a/", "./a/z", "./a.b", "./b/", "./b/one/", "./b/one/x", "./b/two"];
    assert_eq!(listed(&archive), names);
    let said: Vec<&str> = run.stderr.lines().filter_map(|line| line.strip_prefix("dumped ")).collect();
    assert_eq!(said, names);
    let (run, archive) = dump(&site, &["source/latest:/b/"]);
    assert_eq!(run.ok().stderr, "");
    assert_eq!(listed(&archive), ["./", "./one/", "./one/x", "./two"]);
    let (run, archive) = dump(&site, &["latest:b/one/x"]);
    run.ok();
    assert_eq!(listed(&archive), ["x"]);
    let out = extracted(&site, &archive);
    assert_eq!(fs::read(out.join("x")).unwrap(), b"1");
    assert_eq!(fs::metadata(&archive).unwrap().len() % 10_240, 0);
}

#[test]
fn owners_have_names() {
    let site = Site::with_files(&[("a", "one")]);
    chown(site.source().join("a"), Some(1), Some(0)).unwrap();
    back_up(&site);
    let (run_of_dump, archive) = dump(&site, &["latest:a"]);
    run_of_dump.ok();
    // User and group names are those of the machine that made the backup, not of this one.
    let header = fs::read(&archive).unwrap();
    assert_eq!(header[265..272], *b"daemon\0");
    assert_eq!(header[297..302], *b"root\0");
}

#[test]
fn another_tar_reader_finds_the_same_entries() {
    let site = Site::with_files(&[("d/a", "one"), ("d/b", "two")]);
    let long = format!("d/{}", "long ".repeat(40));
    site.write(&long, "three");
    fs::hard_link(site.source().join("d/a"), site.source().join("link")).unwrap();
    symlink("d/a", site.source().join("symlink")).unwrap();
    File::create(site.source().join("sparse")).unwrap().set_len(1 << 20).unwrap();
    let path = site.source().join("sparse");
    let mut sparse = File::options().write(true).open(&path).unwrap();
    sparse.seek(SeekFrom::Start(500_000)).and_then(|_| sparse.write_all(b"island")).unwrap();
    set_time(&site.source().join("d/b"), -5, 500_000_000);
    set_mode(&site.source().join("d/b"), 0o4711);
    back_up(&site);
    let (run_of_dump, archive) = dump(&site, &["latest"]);
    run_of_dump.ok();
    let script = "
import sys, tarfile, hashlib
with tarfile.open(sys.argv[1]) as archive:
    for m in archive:
        data = archive.extractfile(m).read() if m.isreg() else b''
        print(m.name, m.type.decode(), oct(m.mode), m.size, m.linkname, m.mtime if m.mtime < 0 else '', data.strip(b'\\0').decode(), sep='|')
";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(&archive);
    let run = run(python).ok();
    let lines: BTreeSet<&str> = run.stdout.lines().collect();
    let long = format!("./{long}|0|0o644|5|||three");
    let expected = [
        "./d/a|0|0o644|3|||one",
        "./d/b|0|0o4711|3||-4.5|two",
        "./link|1|0o644|0|./d/a||",
        "./symlink|2|0o777|0|d/a||",
        "./sparse|0|0o644|1048576|||island",
        &long,
    ];
    for line in expected {
        assert!(lines.contains(line), "{line:?} is missing\n{run}");
    }
    assert_eq!(lines.len(), expected.len() + 2, "with ./ and ./d\n{run}");
}

/// The largest object below `packs/` that is not in `known`, all of which is added to it.
fn new_pack(site: &Site, known: &mut BTreeSet<PathBuf>) -> PathBuf {
    let paths = tree(&site.repo().join("packs")).into_keys().map(|path| site.repo().join("packs").join(path));
    let new: Vec<PathBuf> = paths.filter(|path| path.is_file() && known.insert(path.clone())).collect();
    new.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).expect("a new pack")
}

fn flip_the_middle(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Asserts that `out` has exactly these files, as in the source.
#[track_caller]
fn only(site: &Site, out: &Path, files: &[&str]) {
    let expected = tree(&site.source());
    let mut found: Vec<String> = Vec::new();
    for (path, entry) in tree(out) {
        if let Entry { content: Some(content), .. } = entry {
            assert_eq!(expected[&path].content, Some(content), "{} is wrong", path.display());
            found.push(path.to_str().unwrap().to_owned());
        }
    }
    assert_eq!(found, files);
}

#[test]
fn a_damaged_small_file_is_left_out_and_reported() {
    let site = Site::with_files(&[("a/intact", noise("intact", 300 << 10))]);
    back_up(&site);
    let mut packs = BTreeSet::new();
    new_pack(&site, &mut packs);
    site.write("b/damaged", noise("damaged", 5 * MIB));
    fs::hard_link(site.source().join("b/damaged"), site.source().join("b/second name")).unwrap();
    site.write("c/empty", "");
    age(&site.source());
    settle();
    site.backup(&[]).ok();
    flip_the_middle(&new_pack(&site, &mut packs));
    let (run, archive) = dump(&site, &["latest"]);
    let run = run.code(1);
    for name in ["b/damaged", "b/second name"] {
        assert!(run.stderr.contains(name), "{name} is lost and not named\n{run}");
    }
    only(&site, &extracted(&site, &archive), &["a/intact", "c/empty"]);
}

#[test]
fn damage_far_inside_a_file_ends_the_archive() {
    let site = Site::with_files(&[("large", noise("large", 20 * MIB)), ("z", b"behind it".to_vec())]);
    settle();
    site.init();
    site.backup(&[]).ok();
    let mut packs = BTreeSet::new();
    new_pack(&site, &mut packs);
    // Chunks well before the end are from the first backup.
    let whole = [noise("large", 20 * MIB), noise("more", MIB)].concat();
    site.write("large", &whole);
    age(&site.source());
    settle();
    site.backup(&[]).ok();
    let (run_of_dump, archive) = dump(&site, &["latest"]);
    run_of_dump.ok();
    let intact = fs::read(&archive).unwrap();
    let damaged = new_pack(&site, &mut packs);
    flip_the_middle(&damaged);
    let (run_of_dump, archive) = dump(&site, &["latest"]);
    let run_of_dump = run_of_dump.code(1);
    assert!(run_of_dump.stderr.contains("large"), "it is not named\n{run_of_dump}");
    let cut = fs::read(&archive).unwrap();
    assert!(cut.len() > 16 * MIB && cut.len() < 21 * MIB, "{} bytes", cut.len());
    assert!(intact.starts_with(&cut), "the written part is correct");
    let run = run(tar(&["-t"], &archive)).code(2);
    assert!(run.stderr.contains("Unexpected EOF"), "{run}");
    assert!(!run.stdout.lines().any(|name| name == "./z"), "{run}");
}

#[test]
fn a_damaged_directory_is_reported_and_the_rest_is_dumped() {
    let site = Site::new();
    site.write("a/lost", "one");
    age(&site.source());
    back_up(&site);
    let trees = |site: &Site| {
        let paths = tree(&site.repo().join("packs")).into_keys().map(|path| site.repo().join("packs").join(path));
        let mut paths: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
        paths.sort_by_key(|path| fs::metadata(path).unwrap().len());
        paths
    };
    let first = trees(&site);
    site.write("b/there", "two");
    age(&site.source().join("b"));
    set_time(&site.source(), common::AGED, 0);
    settle();
    site.backup(&[]).ok();
    // Everything from the first backup: the content of `lost`, and the node of `a`.
    for pack in first {
        fs::remove_file(pack).unwrap();
    }
    let (run, archive) = dump(&site, &["latest"]);
    let run = run.code(1);
    assert!(run.stderr.contains("./a"), "it is not named\n{run}");
    assert_eq!(listed(&archive), ["./", "./a/", "./b/", "./b/there"]);
    only(&site, &extracted(&site, &archive), &["b/there"]);
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let site = Site::with_files(&[("large", noise("large", 3 * MIB))]);
    back_up(&site);
    let mut child = site.command(&["dump", "latest"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut byte = [0; 1];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut byte).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn a_full_disk_is_a_failure() {
    let site = Site::with_files(&[("a", "one")]);
    back_up(&site);
    let mut command = site.command(&["dump", "latest"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot write the archive"), "{said}");
}

#[test]
fn a_terminal_gets_no_archive() {
    let site = Site::with_files(&[("a", "one")]);
    back_up(&site);
    // The end of a new terminal that a terminal emulator would hold.
    let terminal = File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let output = site.command(&["dump", "latest"]).stdout(terminal).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("terminal"), "{said}");
}

#[test]
fn a_missing_path_makes_no_archive() {
    let site = Site::with_files(&[("a", "one")]);
    back_up(&site);
    for (what, code) in [("latest:missing", 1), ("latest:a/below", 1), ("ffffffffffff", 1), (":a", 2)] {
        let (run, archive) = dump(&site, &[what]);
        let run = run.code(code);
        assert!(!run.stderr.is_empty(), "{run}");
        assert_eq!(fs::metadata(archive).unwrap().len(), 0, "{run}");
    }
}

/// A repository with handmade trees, for entries that no backup makes on demand.
struct Handmade {
    site: Site,
    reader: Reader,
    pack: PackId,
    /// The content of the pack.
    bytes: Vec<u8>,
    blocks: Vec<BlockLocation>,
}

impl Handmade {
    fn new() -> Handmade {
        let site = Site::new();
        site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
        let repository = Repository::open(&site.repo().as_path().into()).unwrap();
        let reader = Reader::new(repository, Access::new(None, Vec::new()), 64 << 20);
        Handmade { site, reader, pack: PackId::random(), bytes: Vec::new(), blocks: Vec::new() }
    }

    /// A chunk in a block of its own.
    fn chunk(&mut self, bytes: &[u8]) -> ChunkRef {
        let mut frame = Vec::new();
        block::Encoder::new(1).unwrap().encode(bytes, false, &mut frame).unwrap();
        let offset = self.bytes.len() as u64;
        self.blocks.push(BlockLocation { pack: self.pack, offset, length: frame.len().try_into().unwrap() });
        self.bytes.append(&mut frame);
        let block = u32::try_from(self.blocks.len() - 1).unwrap();
        ChunkRef { digest: Digest::of(bytes), block, start: 0, length: bytes.len().try_into().unwrap() }
    }

    /// Dumps a directory of these entries. Returns the archive and the reported problems.
    fn dump(&mut self, entries: Vec<format::Entry>) -> (PathBuf, Vec<String>) {
        let node = |blocks: &[BlockLocation], entries| {
            let items = Items::Entries(entries);
            Node { blocks: blocks.to_vec(), items, users: Default::default(), groups: Default::default() }
        };
        let below = entries.len() as u64;
        let top = node(&self.blocks, entries).encode();
        let top = self.chunk(&top);
        let pack = self.site.repo().join(name::pack(self.pack));
        fs::create_dir_all(pack.parent().unwrap()).unwrap();
        fs::write(pack, &self.bytes).unwrap();
        let content = Content::Directory(Subtree { below, node: Some(top) });
        let root = format::Entry { mode: 0o755, ..handmade("", format::Kind::Directory, content) };
        let name = SnapshotName {
            source: SourceId::random(),
            sequence: 1,
            time: "19700101T000000Z".into(),
            id: SnapshotId::random(),
        };
        let snapshot = Snapshot {
            name,
            source: "handmade".into(),
            host: "host".into(),
            started: Default::default(),
            finished: Default::default(),
            paths: Vec::new(),
            root_path: None,
            tags: Vec::new(),
            encrypted: false,
            previous: None,
            statistics: Default::default(),
            program: "tests".into(),
            root: node(&self.blocks, vec![root]),
        };
        let listed = root_of(&snapshot).unwrap();
        let archive = self.site.path().join("archive.tar");
        let told = Told::default();
        let summary = brackfs::dump::dump(&self.reader, &listed, File::create(&archive).unwrap(), false, &told)
            .expect("an archive");
        let problems = told.problems.into_inner().unwrap();
        assert_eq!(summary.problems, problems.len() as u64);
        (archive, problems)
    }
}

/// An entry owned by root.
fn handmade(name: &str, kind: format::Kind, content: Content) -> format::Entry {
    let size = match &content {
        Content::Chunk(chunk) => chunk.length.into(),
        Content::Extents { extents, .. } => extents.iter().map(Extent::length).sum(),
        _ => 0,
    };
    format::Entry { mode: 0o644, ..entry(name, kind, size, content) }
}

#[derive(Default)]
struct Told {
    problems: Mutex<Vec<String>>,
}

impl Monitor for Told {
    fn problem(&self, path: &Path, message: &str) {
        self.problems.lock().unwrap().push(format!("{}: {message}", path.display()));
    }
    fn note(&self, _message: &str) {}
    fn entry(&self, _path: &Path, _what: &str) {}
}

#[test]
fn a_file_that_changed_between_its_names_is_written_in_full() {
    let mut made = Handmade::new();
    let (old, new) = (made.chunk(b"old"), made.chunk(b"new"));
    let link = Some(HardLink { id: 5, count: 4 });
    let named = |name, chunk| format::Entry { link, ..handmade(name, format::Kind::File, Content::Chunk(chunk)) };
    let mut hasher = ContentHasher::default();
    hasher.data(b"old");
    hasher.hole(512);
    let longer = Content::Extents { digest: hasher.finish(), extents: vec![Extent::Chunk(old), Extent::Hole(512)] };
    let longer = format::Entry { link, ..handmade("longer", format::Kind::File, longer) };
    let (archive, problems) = made.dump(vec![named("a", old), named("b", new), named("c", old), longer]);
    assert_eq!(problems, [""; 0]);
    let out = extracted(&made.site, &archive);
    let read = |name: &str| fs::read(out.join(name)).unwrap();
    assert_eq!((read("a"), read("b"), read("c")), (b"old".to_vec(), b"new".to_vec(), b"old".to_vec()));
    assert_eq!(read("longer").len(), 515);
    let inode = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("c"));
    assert!(inode("b") != inode("a") && inode("longer") != inode("a"));
}

#[test]
fn unaligned_holes_are_restored_by_every_reader() {
    let mut made = Handmade::new();
    let data = noise("islands", 3000);
    let [a, b, c, d] = [0..7, 7..1000, 1000..1513, 1513..3000].map(|part| made.chunk(&data[part]));
    let holes = [100, 1, 700, 5000, 3].map(Extent::Hole);
    let [h0, h1, h2, h3, h4] = holes;
    let [a, b, c, d] = [a, b, c, d].map(Extent::Chunk);
    let extents = vec![h0, a, h1, b, h2, c, h3, d, h4];
    let expected = [
        vec![0; 100],
        data[..7].to_vec(),
        vec![0; 1],
        data[7..1000].to_vec(),
        vec![0; 700],
        data[1000..1513].to_vec(),
        vec![0; 5000],
        data[1513..].to_vec(),
        vec![0; 3],
    ]
    .concat();
    let mut hasher = ContentHasher::default();
    let mut rest = data.as_slice();
    for extent in &extents {
        match extent {
            Extent::Hole(length) => hasher.hole(*length),
            Extent::Chunk(chunk) => hasher.data(rest.split_off(..chunk.length as usize).unwrap()),
        }
    }
    let content = Content::Extents { digest: hasher.finish(), extents };
    let (archive, problems) = made.dump(vec![handmade("sparse", format::Kind::File, content)]);
    assert_eq!(problems, [""; 0]);
    let out = extracted(&made.site, &archive);
    assert!(fs::read(out.join("sparse")).unwrap() == expected, "GNU tar");
    let mut python = Command::new("python3");
    let script = "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])";
    python.args(["-c", script]).arg(&archive).arg(out.join("python"));
    run(python).ok();
    assert!(fs::read(out.join("python/sparse")).unwrap() == expected, "Python");
}

#[test]
fn a_wrong_digest_of_a_file_is_a_problem() {
    let mut made = Handmade::new();
    let parts = [made.chunk(b"one"), made.chunk(b"two")].map(Extent::Chunk);
    let content = |digest| Content::Extents { digest, extents: parts.to_vec() };
    let right = handmade("right", format::Kind::File, content(Digest::of(b"onetwo")));
    let wrong = handmade("wrong", format::Kind::File, content(Digest::of(b"twoone")));
    let (archive, problems) = made.dump(vec![right, wrong]);
    assert_eq!(problems, ["./wrong: the digest of the whole file is wrong, although all its chunks are valid"]);
    assert_eq!(listed(&archive), ["./", "./right", "./wrong"]);
}

#[test]
fn a_device_that_tar_cannot_hold_is_left_out() {
    let mut made = Handmade::new();
    let device = |name, major| handmade(name, format::Kind::CharDevice, Content::Device(major, 1));
    let (archive, problems) = made.dump(vec![device("fits", 4095), device("large", 1 << 30)]);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("./large: skipped"), "{problems:?}");
    assert_eq!(listed(&archive), ["./", "./fits"]);
}
