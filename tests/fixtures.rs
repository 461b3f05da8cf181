//! Repositories of each format and kind in `tests/fixtures/` still restore to what was backed up.
//!
//! ```text
//! <format>/<kind>/repository/         without README.txt and FORMAT.txt, which are only for people
//! <format>/<kind>/key                 the owner's secret key, if it is not in the repository
//! <format>/<kind>/passphrase          the passphrase, if the key has one
//! <format>/<tag>.json                 the tree that the snapshots with this tag hold
//! ```
//!
//! After a change of a format that is not released yet, make its repositories again:
//!
//! ```text
//! BRACKFS_RENEW_FIXTURES=1 cargo test --test fixtures
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::rewrap::rewrap_all;
use common::{Entry, Kind, Run, Site, noise, run, set_mode, set_time, settle, tree};
use rustix::fs::{CWD, FileType, IFlags, Mode, XattrFlags};
use serde_json::{Value, json};

/// If this variable is set, the repositories of the current format are made again first.
const RENEW: &str = "BRACKFS_RENEW_FIXTURES";

/// The format of the repositories that brackfs writes now.
const CURRENT: &str = "format-1";

/// The folders of each format.
const FORMATS: [(&str, &[&str]); 1] =
    [(CURRENT, &["compacted", "later-recipient", "not-encrypted", "passphrase", "rfc4880", "rfc9580"])];

const PASSPHRASE: &str = "correct horse";

/// The tags of the snapshots, oldest first.
const TAGS: [&str; 2] = ["first", "second"];

/// The directory of fixtures, which are made again first if [`RENEW`] is set.
fn fixtures() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        if std::env::var_os(RENEW).is_some() {
            renew(&folder.join(CURRENT));
        }
        folder
    })
}

/// The names of the directories in a directory.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).map(Result::unwrap);
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<_> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.arg("-r").args([from, to]);
    run(command).ok();
}

// --- trees ---

/// A tree with every kind of entry, small enough for version control.
fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    for folder in ["d/e", "empty", "many", "special"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::write(at("a"), "one").unwrap();
    fs::write(at("no bytes"), "").unwrap();
    fs::write(at("d/e/b"), "two").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"d/not \xff UTF-8\n")), "odd name").unwrap();
    for number in 0..40 {
        fs::write(at(&format!("many/{number}")), format!("content of {number}")).unwrap();
    }
    // Several chunks, which compress well.
    let large = (0..64).flat_map(|number| noise(&format!("large {number}"), 16).repeat(64)).collect::<Vec<_>>();
    fs::write(at("large"), large).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(&[7; 4096], 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    fs::hard_link(at("a"), at("d/another name of a")).unwrap();
    symlink("../d/e/b", at("special/link")).unwrap();
    symlink("nowhere", at("special/dangling link")).unwrap();
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("special/fifo", FileType::Fifo, 0);
    node("special/socket", FileType::Socket, 0);
    node("special/device", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("special/block device", FileType::BlockDevice, rustix::fs::makedev(7, 0));
    let attribute = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    attribute("d", "user.colour", b"green");
    attribute("d/e/b", "user.empty", b"");
    attribute("d/e/b", "trusted.binary", b"\0\xff");
    // u::rwx,u:1:r--,g::r-x,m::r-x,o::---
    let acl = "02000000 01000700ffffffff 0200040001000000 04000500ffffffff 10000500ffffffff 20000000ffffffff";
    attribute("many/1", "system.posix_acl_access", &bytes(acl));
    lchown(at("d/e"), Some(1234), Some(4_000_000_000)).unwrap();
    lchown(at("special/link"), Some(1), Some(2)).unwrap();
    for (name, mode) in [("d/e/b", 0o6755), ("no bytes", 0o400), ("empty", 0o1777), ("many", 0o2711)] {
        set_mode(&at(name), mode);
    }
    rustix::fs::ioctl_setflags(File::open(at("large")).unwrap(), IFlags::NODUMP).unwrap();
    set_times(root);
}

/// Removes, adds, moves and changes entries of [`fill`].
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::remove_file(at("no bytes")).unwrap();
    fs::rename(at("many"), at("moved")).unwrap();
    fs::write(at("d/e/b"), "two and more").unwrap();
    fs::write(at("new"), "three").unwrap();
    File::options().write(true).open(at("large")).unwrap().write_all_at(b"changed", 30_000).unwrap();
    set_times(root);
}

/// Gives each entry a time of its own, some of them before 1970.
fn set_times(root: &Path) {
    for (number, path) in (0..).zip(tree(root).keys().rev()) {
        let seconds = if number % 7 == 0 { -number } else { common::AGED + number };
        set_time(&root.join(path), seconds, 999_999_999 - number);
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|digit| !digit.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap()).collect()
}

/// All entries of a tree, by path.
fn described(root: &Path) -> BTreeMap<String, Value> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let describe = |(path, entry): (&PathBuf, &Entry)| {
        let name = |path: &PathBuf| text(path.as_os_str().as_bytes());
        let xattrs: BTreeMap<_, _> = entry.xattrs.iter().map(|(name, value)| (name, text(value))).collect();
        let mut value = json!({
            "kind": format!("{:?}", entry.kind),
            "mode": format!("{:04o}", entry.mode),
            "owner": format!("{}:{}", entry.uid, entry.gid),
            "mtime": entry.mtime.to_string(),
        });
        let mut add = |name: &str, field: Value| value.as_object_mut().unwrap().insert(name.into(), field);
        if entry.kind == Kind::File {
            let file = root.join(path);
            add("size", entry.size.into());
            add("blake3", entry.content.unwrap().to_string().into());
            let ranges = common::data(&file).into_iter().map(|(start, end)| format!("{start}-{end}"));
            add("data", json!(ranges.collect::<Vec<_>>().join(" ")));
            let flags = rustix::fs::ioctl_getflags(File::open(&file).unwrap()).unwrap();
            add("flags", (flags & (IFlags::NODUMP | IFlags::IMMUTABLE | IFlags::APPEND)).bits().into());
        }
        if let Some(target) = &entry.target {
            add("target", name(target).into());
        }
        if let Some(first) = &entry.first_name {
            add("first_name", name(first).into());
        }
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            add("device", entry.rdev.into());
        }
        if !xattrs.is_empty() {
            add("xattrs", json!(xattrs));
        }
        (name(path), value)
    };
    tree(root).iter().map(describe).collect()
}

// --- making them ---

fn renew(format: &Path) {
    if format.exists() {
        fs::remove_dir_all(format).unwrap();
    }
    let (_, kinds) = FORMATS.into_iter().find(|(name, _)| *name == CURRENT).unwrap();
    for kind in kinds {
        make(kind, format);
    }
}

fn make(kind: &str, format: &Path) {
    let site = Site::on_tmpfs();
    let folder = format.join(kind);
    fs::create_dir_all(&folder).unwrap();
    let mut init = vec!["init".into(), site.repo().into_os_string()];
    match kind {
        "not-encrypted" => init.push("--no-encryption".into()),
        "passphrase" => fs::write(folder.join("passphrase"), PASSPHRASE).unwrap(),
        kind => {
            let key = site.key(if kind == "rfc4880" { kind } else { "rfc9580" });
            init.extend(["--recipient".into(), key.with_extension("pub").into()]);
            fs::copy(key, folder.join("key")).unwrap();
        }
    }
    let mut init = site.command(&init);
    init.env("BRACKFS_PASSPHRASE", PASSPHRASE);
    run(init).ok();
    let small = ["--chunk-size", "16KiB", "--merge-files-under", "16KiB", "--compression", "19"];
    if kind == "compacted" {
        // Dropped later, together with a part of the first pack.
        fill(&site.source());
        fs::write(site.source().join("dropped"), noise("dropped", 100_000)).unwrap();
        settle();
        site.backup(&[&small[..], &["--tag", "dropped"]].concat()).ok();
        fs::remove_dir_all(site.source()).unwrap();
        fs::create_dir(site.source()).unwrap();
    }
    for (tag, write) in TAGS.into_iter().zip([fill as fn(&Path), change]) {
        write(&site.source());
        settle();
        site.backup(&[&small[..], &["--tag", tag]].concat()).ok();
        // All kinds hold the same trees.
        let described = serde_json::to_string_pretty(&described(&site.source())).unwrap() + "\n";
        let file = format.join(tag).with_extension("json");
        if file.exists() {
            assert_eq!(fs::read_to_string(&file).unwrap(), described, "the tree of {kind}");
        }
        fs::write(file, described).unwrap();
    }
    match kind {
        "compacted" => {
            site.brackfs(&["forget", "--keep-tag", TAGS[0], "--keep-tag", TAGS[1], "--force"]).ok();
            site.brackfs(&["prune", "--grace", "0", "--max-waste", "0"]).ok();
            assert!(!tree(&site.repo().join("moved")).is_empty(), "nothing was moved");
        }
        "later-recipient" => {
            let (old, later) = (site.keys().join("owner"), site.key_named("later", "rfc9580"));
            rewrap_all(&site.repo(), &old, &later);
            fs::copy(later, folder.join("key")).unwrap();
        }
        _ => {}
    }
    copy(&site.repo(), &folder.join("repository"));
    for text in ["README.txt", "FORMAT.txt"] {
        fs::remove_file(folder.join("repository").join(text)).unwrap();
    }
}

// --- reading them ---

/// A new machine that has a copy of a repository and its key.
struct Reader {
    site: Site,
    fixture: PathBuf,
}

impl Reader {
    fn new(fixture: PathBuf) -> Reader {
        let site = Site::on_tmpfs();
        copy(&fixture.join("repository"), &site.repo());
        Reader { site, fixture }
    }

    #[track_caller]
    fn brackfs(&self, arguments: &[&str]) -> Run {
        let mut command = self.site.command(arguments);
        for (variable, name) in [("BRACKFS_KEY_FILE", "key"), ("BRACKFS_PASSPHRASE_FILE", "passphrase")] {
            let file = self.fixture.join(name);
            if file.exists() {
                command.env(variable, file);
            }
        }
        run(command).ok()
    }

    /// The id of each snapshot by its tag.
    fn snapshots(&self) -> BTreeMap<String, String> {
        let list: Value = serde_json::from_str(&self.brackfs(&["snapshots", "--json"]).stdout).unwrap();
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        list.as_array().unwrap().iter().map(|snapshot| (text(&snapshot["tags"][0]), text(&snapshot["id"]))).collect()
    }

    fn restores_all(&self) {
        let snapshots = self.snapshots();
        let tags: Vec<_> = snapshots.keys().collect();
        assert_eq!(tags, TAGS, "{}", self.fixture.display());
        for (tag, id) in &snapshots {
            let what = format!("snapshot {tag} of {}", self.fixture.display());
            let out = self.site.path().join(tag);
            self.brackfs(&["restore", id, "--trust-set-id", "--to", out.to_str().unwrap()]);
            let expected = fs::read(self.fixture.with_file_name(tag).with_extension("json")).unwrap();
            let expected: BTreeMap<String, Value> = serde_json::from_slice(&expected).unwrap();
            let found = described(&out);
            for path in expected.keys().chain(found.keys()) {
                assert_eq!(found.get(path), expected.get(path), "{path} in {what}");
            }
            assert!(expected.len() > 50, "{what} has only {} entries", expected.len());
        }
        self.brackfs(&["check", "--read-data"]);
    }
}

#[track_caller]
fn restores(format: &str, kind: &str) {
    Reader::new(fixtures().join(format).join(kind)).restores_all();
}

#[test]
fn format_1_compacted_is_restored() {
    restores("format-1", "compacted");
}

#[test]
fn format_1_with_session_keys_sealed_again_for_a_later_recipient_is_restored() {
    restores("format-1", "later-recipient");
}

#[test]
fn format_1_not_encrypted_is_restored() {
    restores("format-1", "not-encrypted");
}

#[test]
fn format_1_with_a_passphrase_is_restored() {
    restores("format-1", "passphrase");
}

#[test]
fn format_1_for_a_key_of_rfc_4880_is_restored() {
    restores("format-1", "rfc4880");
}

#[test]
fn format_1_for_a_key_of_rfc_9580_is_restored() {
    restores("format-1", "rfc9580");
}

#[test]
fn every_fixture_is_restored_by_a_test() {
    let source = include_str!("fixtures.rs");
    assert_eq!(names(fixtures()), FORMATS.map(|(format, _)| format));
    for (format, kinds) in FORMATS {
        assert_eq!(names(&fixtures().join(format)), kinds);
        for kind in kinds {
            let call = format!("restores({format:?}, {kind:?});");
            assert!(source.contains(&call), "no test says {call}");
        }
    }
}
