//! Malicious objects in a repository are rejected with a message, and change nothing outside the destination.
//!
//! An attacker with the host key can sign anything: see [`Forger`]. An attacker with only the storage can write any
//! bytes, copy and rename. Malformed bytes are tested with their parsers (`src/format`, `src/crypt`), and changes of
//! each byte of valid objects in `flip.rs`.
//!
//! By design, two attacks are not detected: a deleted snapshot that is put back unchanged under its own name, and the
//! deletion of the newest snapshots. An older one is missed as the `previous` of its successor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use brackfs::crypt::{SecretKey, Signer};
use brackfs::format::block::Encoder;
use brackfs::format::entry::{Content, HardLink, Subtree};
use brackfs::format::id::{ObjectId, SourceId};
use brackfs::format::index::Index;
use brackfs::format::name::{self, SnapshotName};
use brackfs::format::pack::{IndexedBlock, IndexedPack, PackKind};
use brackfs::format::snapshot::{Snapshot, Statistics};
use brackfs::format::source::Source;
use brackfs::format::{
    BlockLocation, Check, ChunkRef, ContentHasher, Digest, Entry, Extent, Items, Kind, Node, NodeRef, PackId, Segment,
    SnapshotId, Timestamp,
};
use brackfs::repository::{Repository, Writer};
use common::forgery::entry;
use common::machine::{copy, succeed};
use common::{Run, Site, run, tree};

/// Time limit for reading malicious objects, in seconds.
const PATIENCE: &str = "120";

/// A malicious writer with the host key of a repository that is not encrypted.
struct Forger {
    site: Site,
    repository: Repository,
    pack: PackId,
    bytes: Vec<u8>,
    /// The blocks of the pack.
    blocks: Vec<IndexedBlock>,
    encoder: Encoder,
    /// The file count of snapshots.
    counted: u64,
}

/// A stored chunk and its location.
#[derive(Clone, Copy)]
struct Stored {
    at: BlockLocation,
    digest: Digest,
    length: u32,
}

impl Stored {
    /// A reference to it as the block `block` of a table.
    fn chunk(&self, block: u32) -> ChunkRef {
        ChunkRef { digest: self.digest, block, start: 0, length: self.length }
    }
}

impl Forger {
    fn new() -> Forger {
        let site = Site::new();
        site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
        let repository = Repository::open(&site.repo().as_path().into()).unwrap();
        let (pack, encoder) = (PackId::random(), Encoder::new(1).unwrap());
        Forger { repository, site, pack, bytes: Vec::new(), blocks: Vec::new(), encoder, counted: u64::MAX }
    }

    fn store(&mut self, plaintext: &[u8]) -> Stored {
        let mut frame = Vec::new();
        self.encoder.encode(plaintext, true, &mut frame).unwrap();
        self.store_frame(&frame, plaintext)
    }

    /// Stores a block whose header states the length of `plaintext`.
    fn store_frame(&mut self, frame: &[u8], plaintext: &[u8]) -> Stored {
        let (offset, length) = (self.bytes.len() as u64, frame.len() as u32);
        self.bytes.extend(frame);
        let at = BlockLocation { pack: self.pack, offset, length };
        let stored = Stored { at, digest: Digest::of(plaintext), length: plaintext.len() as u32 };
        let (ordinal, check) = (self.blocks.len() as u32, Check::of(frame));
        self.blocks.push(IndexedBlock { ordinal, offset, length, check, chunks: vec![(stored.digest, stored.length)] });
        stored
    }

    fn store_node(&mut self, blocks: &[Stored], items: Items) -> Stored {
        let node = node(blocks, items);
        self.store(&node.encode())
    }

    /// Signs a snapshot of a root directory with this top node, and `below` entries below it.
    fn snapshot(&self, top: Stored, below: u64) -> SnapshotName {
        let path = self.repository.target().local_path().unwrap().join(name::pack(self.pack));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &self.bytes).unwrap();

        let state = self.site.state().join(self.repository.id().to_string());
        let key = SecretKey::parse(&fs::read(state.join("host.key")).unwrap()).unwrap();
        let host = key.certificate();
        let writer = Writer::new(&self.repository, Signer::new(key).unwrap(), &host, &[]).unwrap();
        let digest = Digest::of(&self.bytes);
        let pack = IndexedPack {
            id: self.pack,
            kind: PackKind::Data,
            digest: Some(digest),
            count: self.blocks.len() as u32,
            length: self.bytes.len() as u64,
            blocks: self.blocks.clone(),
        };
        writer.put_sums(ObjectId::random(), &[(self.pack, digest)]).unwrap();
        writer.put_index(ObjectId::random(), &Index { generation: 1, packs: vec![pack], ..Index::default() }).unwrap();
        let source = Source { id: SourceId::random(), name: "planted".into() };
        writer.put_source(&source).unwrap();
        let time = Timestamp { seconds: 1_763_650_321, nanos: 0 };
        let name =
            SnapshotName { source: source.id, sequence: 1, time: "20251120T145201Z".into(), id: SnapshotId::random() };
        let root = directory("", below, Some(top.chunk(0)));
        let snapshot = Snapshot {
            name: name.clone(),
            source: source.name,
            host: "nowhere".into(),
            started: time,
            finished: time,
            paths: Vec::new(),
            root_path: None,
            tags: Vec::new(),
            encrypted: false,
            previous: None,
            statistics: Statistics { files: self.counted, ..Statistics::default() },
            program: "forger".into(),
            root: node(&[top], Items::Entries(vec![root])),
        };
        writer.put_snapshot(&snapshot).unwrap();
        name
    }

    /// Signs a snapshot of a directory that is a single node of these entries.
    fn snapshot_of(&mut self, blocks: &[Stored], entries: Vec<Entry>) -> SnapshotName {
        let node = node(blocks, Items::Entries(entries));
        let below = node.span();
        let top = self.store(&node.encode());
        self.snapshot(top, below)
    }

    /// Restores everything to `out/`. Any exit code is accepted.
    fn restore(&self) -> (Run, PathBuf) {
        let out = self.site.path().join("out");
        let run = patiently(&self.site, &["restore".into(), "latest".into(), "--to".into(), out.clone().into()]);
        (run, out)
    }
}

fn node(blocks: &[Stored], items: Items) -> Node {
    let blocks = blocks.iter().map(|stored| stored.at).collect();
    Node { blocks, items, users: BTreeMap::new(), groups: BTreeMap::new() }
}

fn directory(name: &str, below: u64, node: Option<ChunkRef>) -> Entry {
    entry(name, Kind::Directory, 0, Content::Directory(Subtree { below, node }))
}

fn file(name: impl AsRef<[u8]>, stored: &Stored, block: u32) -> Entry {
    entry(name, Kind::File, stored.length.into(), Content::Chunk(stored.chunk(block)))
}

fn link(name: &str, target: &Path) -> Entry {
    entry(name, Kind::Symlink, 0, Content::Target(target.to_str().unwrap().into()))
}

/// Runs brackfs, and asserts that it ends in time and not by a signal.
#[track_caller]
fn patiently(site: &Site, arguments: &[OsString]) -> Run {
    let inner = site.command(arguments);
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", PATIENCE]).arg(inner.get_program()).args(inner.get_args());
    command.current_dir(site.path()).stdin(std::process::Stdio::null());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let run = run(command);
    assert!([0, 1, 2, 10, 12].contains(&run.code), "it crashed, or hung\n{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
    run
}

#[track_caller]
fn says(run: &Run, words: &[&str]) {
    for word in words {
        let is_said = run.stderr.contains(word) || short_id(word).is_some_and(|id| run.stderr.contains(id));
        assert!(is_said, "it does not say {word:?}\n{run}");
    }
}

/// The beginning of the id in the name of a pack, an index or a snapshot, by which messages name it.
fn short_id(name: &str) -> Option<&str> {
    let id = if name.len() == 36 { name } else { name.rsplit_once('-')?.1 };
    let is_id = name.len() >= 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_id.then(|| id.get(..8)).flatten()
}

/// Asserts that `check`, `restore` and `ls -R` fail with these words.
#[track_caller]
fn refused(forger: &Forger, words: &[&str]) {
    let (restored, out) = forger.restore();
    let checked = patiently(&forger.site, &["check".into(), "-v".into()]);
    let listed = patiently(&forger.site, &["ls".into(), "-R".into(), "latest".into()]);
    for run in [restored, checked, listed] {
        assert_ne!(run.code, 0, "{run}");
        says(&run, words);
    }
    let names = fs::read_dir(&out).into_iter().flatten().count();
    assert_eq!(names, 0, "something came out of {forger:?}", forger = forger.pack);
}

#[test]
fn malicious_names_are_never_restored() {
    let long = "n".repeat(1025);
    for name in ["..", ".", "", "/etc/x", "a/b", "../x", "nul\0", &long] {
        let mut forger = Forger::new();
        let stored = forger.store(b"planted");
        forger.snapshot_of(&[stored], vec![file(name, &stored, 0)]);
        refused(&forger, &["tree node", "invalid name", &forger.pack.to_string()]);
    }
}

#[test]
fn duplicate_and_unsorted_names_are_refused() {
    for names in [["same", "same"], ["b", "a"]] {
        let mut forger = Forger::new();
        let stored = forger.store(b"planted");
        let outside = forger.site.path().join("outside");
        forger.snapshot_of(&[stored], vec![link(names[0], &outside), file(names[1], &stored, 0)]);
        refused(&forger, &["a name is repeated or out of order"]);
        assert!(!outside.exists());
    }
}

/// A directory of two segments, each with one entry.
fn segments(forger: &mut Forger, entries: [Entry; 2], said: [&str; 2], blocks: &[Stored]) {
    let nodes = entries.map(|entry| forger.store_node(blocks, Items::Entries(vec![entry])));
    let parts =
        [0, 1].map(|at| Segment { first: said[at].into(), entries: 1, span: 1, node: nodes[at].chunk(at as u32) });
    let top = forger.store_node(&nodes, Items::Segments(parts.to_vec()));
    forger.snapshot(top, 2);
}

#[test]
fn a_link_and_a_file_of_the_same_name_write_nothing_outside() {
    // The index gives the second segment a later first name, or its true one, which is out of order.
    for said in [["same", "tame"], ["same", "same"], ["same", "a"]] {
        let mut forger = Forger::new();
        let stored = forger.store(b"planted");
        let outside = forger.site.path().join("outside");
        let entries = [link("same", &outside), file("same", &stored, 0)];
        segments(&mut forger, entries, said, &[stored]);
        let (restored, out) = forger.restore();
        let checked = patiently(&forger.site, &["check".into(), "-v".into()]);
        for run in [restored.code(1), checked.code(1)] {
            assert!(
                run.stderr.contains("the names of a node") || run.stderr.contains("repeated or out of order"),
                "{run}"
            );
        }
        assert!(!outside.exists());
        assert!(!out.join("same").is_file());
    }
}

#[test]
fn a_link_and_a_directory_of_the_same_name_write_nothing_outside() {
    let mut forger = Forger::new();
    let outside = forger.site.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let stored = forger.store(b"planted");
    let inner = forger.store_node(&[stored], Items::Entries(vec![file("file", &stored, 0)]));
    let sub = directory("same", 1, Some(inner.chunk(0)));
    let nodes = [
        forger.store_node(&[], Items::Entries(vec![link("same", &outside)])),
        forger.store_node(&[inner], Items::Entries(vec![sub])),
    ];
    let part = |at: usize, first: &str, span| Segment {
        first: first.into(),
        entries: 1,
        span,
        node: nodes[at].chunk(at as u32),
    };
    let top = forger.store_node(&nodes, Items::Segments(vec![part(0, "same", 1), part(1, "tame", 2)]));
    forger.snapshot(top, 3);
    let (run, _) = forger.restore();
    says(&run.code(1), &["the names of a node"]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was written outside");
}

#[test]
fn a_hard_link_to_a_symlink_does_not_lead_outside() {
    let mut forger = Forger::new();
    let outside = forger.site.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let mut entries = vec![link("a", &outside), link("b", &outside)];
    for entry in &mut entries {
        entry.link = Some(HardLink { id: 1, count: 2 });
    }
    forger.snapshot_of(&[], entries);
    let (run, out) = forger.restore();
    run.ok();
    assert_eq!(fs::read_link(out.join("b")).unwrap(), outside);
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(&outside).unwrap()), 1);
}

/// Files that differ in content, owner, mode, time or attributes, and claim to be links of one file. Each has
/// two names that agree, `NAME-1` and `NAME-2`.
fn false_links(forger: &mut Forger) -> Vec<(Entry, Vec<u8>)> {
    let contents = [b"first".to_vec(), b"other".to_vec()];
    let stored = contents.each_ref().map(|content| forger.store(content));
    let link = Some(HardLink { id: 5, count: 2 });
    let first = Entry { link, mode: 0o644, ..file("content-0", &stored[0], 0) };
    let mut kinds = vec![
        (first.clone(), 0),
        (Entry { name: b"content-1".to_vec(), content: Content::Chunk(stored[1].chunk(1)), ..first.clone() }, 1),
        (Entry { name: b"group".to_vec(), gid: 5, ..first.clone() }, 0),
        (Entry { name: b"mode".to_vec(), mode: 0o4755, ..first.clone() }, 0),
        (Entry { name: b"owner".to_vec(), uid: 5, ..first.clone() }, 0),
        (Entry { name: b"time".to_vec(), mtime: Timestamp { seconds: 5, nanos: 0 }, ..first.clone() }, 0),
        (Entry { name: b"xattr".to_vec(), xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())], ..first.clone() }, 0),
    ];
    // The inode number has a part of the digest: this file has the same part as the first one.
    let part = |entry: &Entry| entry.inode_digest().0[0];
    let mut twin = Entry { name: b"zwin".to_vec(), content: Content::Chunk(stored[1].chunk(1)), ..first.clone() };
    while part(&twin) != part(&first) {
        twin.mtime.seconds += 1;
    }
    kinds.push((twin, 1));
    let twice = kinds.into_iter().flat_map(|(entry, content)| {
        let named = |number| {
            let name = [&entry.name, &b"-"[..], number].concat();
            (Entry { name, ..entry.clone() }, contents[content].clone())
        };
        [named(b"1"), named(b"2")]
    });
    let all: Vec<_> = twice.collect();
    forger.snapshot_of(&stored, all.iter().map(|(entry, _)| entry.clone()).collect());
    all
}

#[test]
fn a_mount_gives_each_name_its_own_bytes_despite_false_links() {
    let mut forger = Forger::new();
    let entries = false_links(&mut forger);
    let name = |entry: &Entry| String::from_utf8(entry.name.clone()).unwrap();
    let mut numbers = Vec::new();
    // The order of lookups must not matter, nor the state of the kernel's caches.
    for backwards in [false, true] {
        let mounted = forger.site.mount(&["latest"]);
        let mut order: Vec<_> = entries.iter().collect();
        if backwards {
            order.reverse();
        }
        let mut found = BTreeMap::new();
        for forget in [false, true] {
            for (entry, content) in &order {
                let path = mounted.path().join(name(entry));
                assert_eq!(&fs::read(&path).unwrap(), content, "{}", name(entry));
                let stat = fs::metadata(&path).unwrap();
                let shown = (stat.mode() & 0o7777, stat.uid(), stat.gid(), stat.mtime());
                assert_eq!(shown, (entry.mode, entry.uid, entry.gid, entry.mtime.seconds), "{}", name(entry));
                let xattr = rustix::fs::lgetxattr(&path, c"user.a", &mut [0; 9]);
                assert_eq!(xattr.is_ok(), !entry.xattrs.is_empty(), "{}", name(entry));
                found.insert(name(entry), stat.ino());
                if forget && (name(entry).starts_with("content-0") || name(entry).starts_with("zwin")) {
                    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
                }
            }
        }
        numbers.push(found);
    }
    // Names that agree share an inode number, others do not, and a new mount has the same numbers.
    let number = |numbers: &BTreeMap<String, u64>, name: &str| numbers[name];
    let mut distinct = BTreeSet::new();
    for kind in ["content-0", "content-1", "group", "mode", "owner", "time", "xattr"] {
        let [first, second] = ["1", "2"].map(|which| number(&numbers[0], &format!("{kind}-{which}")));
        assert_eq!(first, second, "{kind}");
        assert!(distinct.insert(first), "{kind}");
        assert!(kind == "content-0" || number(&numbers[1], &format!("{kind}-1")) == first, "{kind}");
    }
}

#[test]
fn inconsistent_counts_are_refused() {
    for (below, words) in
        [(0, "an empty directory with a node"), (2, "the ranks of a node"), ((1 << 40) - 1, "the ranks of a node")]
    {
        let mut forger = Forger::new();
        let top = forger.store_node(&[], Items::Entries(vec![entry("fifo", Kind::Fifo, 0, Content::Empty)]));
        forger.snapshot(top, below);
        refused(&forger, &[words]);
    }
    let mut forger = Forger::new();
    let top = forger.store_node(&[], Items::Entries(vec![]));
    forger.snapshot(top, 1 << 40);
    refused(&forger, &["number of entries", "limit"]);
}

/// Signs a snapshot with six levels of directories, each with 30 names for the next one.
fn repeated(counted: u64) -> Forger {
    let mut forger = Forger::new();
    forger.counted = counted;
    let stored = forger.store(b"bottom");
    let mut node = forger.store_node(&[stored], Items::Entries(vec![file("f", &stored, 0)]));
    let mut below = 1;
    for _ in 0..6 {
        let names = (10..40).map(|name: u64| directory(&name.to_string(), below, Some(node.chunk(0))));
        node = forger.store_node(&[node], Items::Entries(names.collect()));
        below = 30 * (below + 1);
    }
    forger.snapshot(node, below);
    forger
}

#[test]
fn every_reader_refuses_a_snapshot_with_more_entries_than_its_count() {
    let forger = repeated(1_000_000);
    refused(&forger, &["counts 1000000 entries", "1483137930 below it"]);
    for arguments in
        [&["find", "f"][..], &["dump", "latest"], &["versions", "f"], &["cat", "latest:10/10/10/10/10/10/f"]]
    {
        let run = patiently(&forger.site, &arguments.iter().map(OsString::from).collect::<Vec<_>>()).code(1);
        says(&run, &["counts 1000000 entries"]);
    }
}

#[test]
fn endless_repetition_is_checked_in_a_moment() {
    let forger = repeated(u64::MAX);
    let checked = patiently(&forger.site, &["check".into(), "--read-data".into(), "--json".into()]).ok();
    assert_eq!((checked.json()["directories"].as_u64(), checked.json()["files"].as_u64()), (Some(7), Some(1)));

    // A file of 5 * 2^60 bytes without holes.
    let mut forger = Forger::new();
    let stored = forger.store(&vec![7; 1 << 20]);
    let mut node = forger.store_node(&[stored], Items::Extents(vec![Extent::Chunk(stored.chunk(0)); 1 << 10]));
    let mut covers = 1 << 30;
    for _ in 0..3 {
        let nodes = vec![NodeRef { covers, node: node.chunk(0) }; 1 << 10];
        node = forger.store_node(&[node], Items::ExtentIndex(nodes));
        covers <<= 10;
    }
    let nodes = vec![NodeRef { covers, node: node.chunk(0) }; 5];
    let content = Content::Nodes { digest: Digest::of(b""), depth: 3, nodes, holes: 0 };
    forger.snapshot_of(&[node], vec![entry("huge", Kind::File, 5 * covers, content)]);
    let checked = patiently(&forger.site, &["check".into(), "--read-data".into(), "--json".into()]).ok();
    assert_eq!(checked.json()["chunks"], 1);
}

/// Signs a snapshot of directories that nest `levels` deep, with a file at the bottom.
fn deep(levels: u64) -> Forger {
    let mut forger = Forger::new();
    let stored = forger.store(b"bottom");
    let mut node = forger.store_node(&[stored], Items::Entries(vec![file("f", &stored, 0)]));
    for below in 1..levels {
        node = forger.store_node(&[node], Items::Entries(vec![directory("dd", below, Some(node.chunk(0)))]));
    }
    forger.snapshot(node, levels);
    forger
}

#[test]
fn a_tree_deeper_than_any_path_is_checked_listed_and_restored() {
    // Twice as deep as a path can be, and three times as deep as a recursive walk once could go.
    let forger = deep(9000);
    let checked = patiently(&forger.site, &["check".into(), "--read-data".into(), "--json".into()]).ok();
    assert_eq!(checked.json()["directories"], 9000);
    let listed = patiently(&forger.site, &["ls".into(), "-R".into(), "latest".into()]).ok();
    assert_eq!(listed.stdout.lines().count(), 9000);

    // As deep as the limit of open files allows, since a walk keeps directories open.
    let forger = deep(900);
    let (run, out) = forger.restore();
    run.ok();
    let mut at = out;
    for _ in 1..900 {
        at.push("dd");
    }
    assert_eq!(fs::read(at.join("f")).unwrap(), b"bottom");
}

#[test]
fn a_hundred_thousand_levels_overflow_no_stack() {
    let forger = deep(100_000);
    let checked = patiently(&forger.site, &["check".into(), "--json".into()]).ok();
    assert_eq!(checked.json()["directories"], 100_000);

    // A restore cannot open so many directories. The message names the path.
    let out = forger.site.path().join("out");
    let inner = forger.site.command(&["restore".into(), "latest".into(), "--to".into(), out.as_os_str().to_owned()]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.env(name, value);
    }
    let run = run(command).code(1);
    says(&run, &["open files", "dd/dd/dd"]);
}

#[test]
fn a_node_of_a_million_holes_is_read_quickly() {
    let mut forger = Forger::new();
    let holes = 1_000_000u64;
    let list = forger.store_node(&[], Items::Extents(vec![Extent::Hole(1); holes as usize]));
    let mut hasher = ContentHasher::default();
    hasher.hole(holes);
    let content = |covers| Content::Nodes {
        digest: hasher.finish(),
        depth: 0,
        nodes: vec![NodeRef { covers, node: list.chunk(0) }],
        holes: 0,
    };
    forger.snapshot_of(&[list], vec![entry("holes", Kind::File, holes, content(holes))]);
    patiently(&forger.site, &["check".into(), "-v".into()]).ok();
    let (run, out) = forger.restore();
    run.ok();
    assert_eq!(fs::read(out.join("holes")).unwrap(), vec![0; holes as usize]);

    let mut forger = Forger::new();
    let short = forger.store_node(&[], Items::Extents(vec![Extent::Hole(1); 10]));
    let nodes = vec![NodeRef { covers: 11, node: short.chunk(0) }];
    let content = Content::Nodes { digest: Digest::of(b""), depth: 0, nodes, holes: 0 };
    forger.snapshot_of(&[short], vec![entry("holes", Kind::File, 11, content)]);
    let (run, out) = forger.restore();
    says(&run.code(1), &["holes", "do not cover 11 bytes"]);
    assert!(!out.join("holes").exists());
}

#[test]
fn a_file_with_nodes_of_a_wrong_kind_or_depth_is_refused() {
    let mut forger = Forger::new();
    let leaf = forger.store_node(&[], Items::Extents(vec![Extent::Hole(5)]));
    let index = forger.store_node(&[leaf], Items::ExtentIndex(vec![NodeRef { covers: 5, node: leaf.chunk(0) }]));
    let nested = |depth, block: u32, stored: &Stored| Content::Nodes {
        digest: Digest::of(b""),
        depth,
        nodes: vec![NodeRef { covers: 5, node: stored.chunk(block) }],
        holes: 0,
    };
    let entries = vec![
        entry("a", Kind::File, 5, nested(1, 0, &leaf)),
        entry("b", Kind::File, 5, nested(0, 1, &index)),
        entry("c", Kind::File, 5, nested(8, 1, &index)),
        entry("good", Kind::File, 5, nested(1, 1, &index)),
    ];
    forger.snapshot_of(&[leaf, index], entries);
    let (run, out) = forger.restore();
    says(&run.code(1), &["out/a", "out/b", "out/c", "another kind"]);
    assert_eq!(fs::read(out.join("good")).unwrap(), [0; 5]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn decompression_bombs_are_refused_and_their_neighbours_are_readable() {
    let mut forger = Forger::new();
    let huge = zstd::bulk::compress(&vec![0; 512 << 20], 1).unwrap();
    let bomb = forger.store_frame(&huge, b"x");
    let good = forger.store(b"good");
    forger.snapshot_of(&[bomb, good], vec![file("bomb", &bomb, 0), file("good", &good, 1)]);
    let (run, out) = forger.restore();
    says(&run.code(1), &["bomb", "is above the limit", &forger.pack.to_string()]);
    assert_eq!(fs::read(out.join("good")).unwrap(), b"good");
    assert!(!out.join("bomb").exists());
}

/// A repository with one backup.
fn backed_up(encrypted: bool) -> Site {
    let site = Site::with_files(&[("file", "content")]);
    match encrypted {
        true => site.init(),
        false => _ = site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok(),
    }
    site.backup(&[]).ok();
    site
}

/// Objects of the repository with this prefix.
fn objects(site: &Site, start: &str) -> Vec<PathBuf> {
    let paths = tree(&site.repo()).into_keys().filter(|path| path.to_str().unwrap().starts_with(start));
    paths.map(|path| site.repo().join(path)).filter(|path| path.is_file()).collect()
}

fn leaf(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap()
}

#[test]
fn special_files_in_place_of_objects_fail_without_waiting() {
    for what in ["pipe", "directory", "device", "sparse"] {
        for start in [
            "packs",
            "snapshots",
            "sources",
            "index",
            "sums",
            "secrets",
            "generation",
            "keys",
            "brackfs.toml",
            "brackfs-copy.toml",
            // The description and its copy.
            "brackfs",
        ] {
            let site = backed_up(false);
            // Both packs; the only key is that of the host.
            for path in objects(&site, start) {
                fs::remove_file(&path).unwrap();
                match what {
                    "pipe" => succeed(Command::new("mkfifo").arg(&path)),
                    "directory" => fs::create_dir(&path).unwrap(),
                    "device" => symlink("/dev/zero", &path).unwrap(),
                    // Larger than any memory, so it must not be allocated.
                    _ => File::create(&path).unwrap().set_len(1 << 40).unwrap(),
                }
            }
            let to = site.path().join("out");
            let restored = patiently(&site, &["restore".into(), "latest".into(), "--to".into(), to.clone().into()]);
            let checked = patiently(&site, &["check".into(), "-v".into()]);
            let is_needed = ["packs", "snapshots", "brackfs"].contains(&start);
            assert_eq!(restored.code != 0, is_needed, "a {what} in {start}\n{restored}");
            match fs::read(to.join("file")) {
                Ok(bytes) => assert_eq!(bytes, b"content"),
                Err(_) => assert!(is_needed, "a {what} in {start}\n{restored}"),
            }
            // Only files are objects. A check does not notice missing objects that only writers need.
            let unmissed = what != "sparse" && ["index", "secrets", "generation", "snapshots"].contains(&start);
            let sums = start == "sums" && checked.stderr.contains("sums/");
            assert!(
                checked.code != 0 && (!is_needed || !checked.stderr.is_empty()) || unmissed || sums,
                "{what} {start}\n{checked}"
            );
            let backup = patiently(&site, &["backup".into(), site.source().into()]);
            assert!(start != "brackfs" || backup.code != 0, "a {what} in {start}\n{backup}");
        }
    }
}

/// The descriptions of the repository. Each is a copy of the other.
const DESCRIPTIONS: [&str; 2] = ["brackfs.toml", "brackfs-copy.toml"];

/// Ways to use a repository.
fn uses(site: &Site) -> [Vec<OsString>; 4] {
    let backup = vec!["backup".into(), site.source().into()];
    let others = [vec!["check"], vec!["ls", "latest"], vec!["catalog", "verify"]];
    let [check, ls, verify] = others.map(|words| words.into_iter().map(OsString::from).collect());
    [check, ls, verify, backup]
}

#[test]
fn a_damaged_description_is_replaced_and_its_copy_serves_until_then() {
    let site = backed_up(false);
    let good = fs::read_to_string(site.repo().join(DESCRIPTIONS[0])).unwrap();
    let without = |key: &str| good.lines().filter(|line| !line.starts_with(key)).map(|l| format!("{l}\n")).collect();
    let cases: [String; 5] = [
        without("version"),
        without("encryption") + "encryption = \"rot13\"",
        format!("{good}#{}", "x".repeat(10 << 20)),
        format!("{good}deep = {}", "[".repeat(60_000)),
        format!("{good}deep = {}", "{a=".repeat(20_000)),
    ];
    for object in DESCRIPTIONS {
        let path = site.repo().join(object);
        for text in &cases {
            fs::write(&path, text).unwrap();
            let [check, ls, verify, backup] = uses(&site).map(|arguments| patiently(&site, &arguments));
            ls.ok();
            says(&check.code(1), &[object]);
            says(&verify.code(1), &[object]);
            says(&backup.ok(), &[object, "put back"]);
            assert_eq!(fs::read_to_string(&path).unwrap(), good);
            patiently(&site, &["check".into(), "-v".into()]).ok();
        }
    }
}

#[test]
fn an_edited_description_is_refused_with_a_message_and_kept() {
    for encrypted in [true, false] {
        let site = backed_up(encrypted);
        let good = fs::read_to_string(site.repo().join(DESCRIPTIONS[0])).unwrap();
        let id = Repository::open(&site.repo().as_path().into()).unwrap().id().to_string();
        let other = "c28b6a0e-94a1-4f0c-9d5e-1f5a3f8f9d1b";
        let (is, becomes, shown) = match encrypted {
            true => ("openpgp", "none", ", not encrypted"),
            false => ("none", "openpgp", ", encrypted"),
        };
        let cases = [
            (good.replace("version = 1", "version = 2"), "format version 2"),
            (good.replace(&id, other), other),
            (good.replace(is, becomes), shown),
        ];
        let put = |objects: &[&str], text: &str| {
            objects.iter().for_each(|object| fs::write(site.repo().join(object), text).unwrap());
        };
        for (text, words) in &cases {
            for edited in [&DESCRIPTIONS[..1], &DESCRIPTIONS[1..], &DESCRIPTIONS] {
                put(edited, text);
                let before = tree(&site.repo());
                for arguments in uses(&site) {
                    let run = patiently(&site, &arguments);
                    assert!([1, 12].contains(&run.code), "{arguments:?} {edited:?}\n{run}");
                    assert_eq!(run.stdout, "", "{arguments:?} {edited:?}");
                    if edited.len() == 1 {
                        says(&run, &DESCRIPTIONS);
                        says(&run, &[words, &id]);
                    }
                }
                assert_eq!(tree(&site.repo()), before, "{edited:?} {words}: the repository was changed");
                put(edited, &good);
            }
        }
        patiently(&site, &["check".into(), "-v".into()]).ok();
    }
}

#[test]
fn descriptions_with_encryption_switched_off_are_refused() {
    let site = backed_up(true);
    for object in DESCRIPTIONS {
        let path = site.repo().join(object);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("openpgp", "none")).unwrap();
    }
    let snapshot = objects(&site, "snapshots").remove(0);
    for arguments in [vec!["ls", "latest"], vec!["check"]] {
        let run = patiently(&site, &arguments.into_iter().map(OsString::from).collect::<Vec<_>>()).code(1);
        says(&run, &[leaf(&snapshot), "it is encrypted, but should only be signed"]);
    }
}

#[test]
fn documents_of_another_repository_by_the_same_host_are_refused() {
    let site = backed_up(false);
    let id = Repository::open(&site.repo().as_path().into()).unwrap().id().to_string();
    // The same machine, the same key, another repository: only the id differs.
    let other = site.path().join("other");
    copy(&site.repo(), &other);
    for object in DESCRIPTIONS {
        let path = other.join(object);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&id, "c28b6a0e-94a1-4f0c-9d5e-1f5a3f8f9d1b")).unwrap();
    }
    let arguments = ["check", "--repo", other.to_str().unwrap()].map(OsString::from);
    let run = patiently(&site, &arguments).code(1);
    says(&run, &[leaf(&objects(&site, "snapshots")[0]), &id, "repository", "moved, renamed or forged"]);
    says(&run, &[leaf(&objects(&site, "index")[0]), leaf(&objects(&site, "secrets")[0])]);
}

#[test]
fn check_reports_renamed_and_unsigned_documents() {
    for folder in ["index", "sources", "secrets", "generation", "snapshots"] {
        let site = backed_up(false);
        let path = objects(&site, folder).pop().unwrap();
        let good = fs::read(&path).unwrap();
        let renamed = match folder {
            "generation" => "0000000009-c28b6a0e-94a1-4f0c-9d5e-1f5a3f8f9d1b".to_owned(),
            "snapshots" => leaf(&path).replacen("20", "21", 1),
            _ => "c28b6a0e-94a1-4f0c-9d5e-1f5a3f8f9d1b".to_owned(),
        };
        fs::rename(&path, path.with_file_name(&renamed)).unwrap();
        says(&patiently(&site, &["check".into(), "-v".into()]).code(1), &[&renamed, "moved, renamed or forged"]);
        fs::remove_file(path.with_file_name(&renamed)).unwrap();

        // Bare CBOR: the document out of the message.
        // A literal packet with a length of five octets, in binary, without a file name: other bytes may be random.
        let is_literal = |window: &[u8]| window[..2] == [0xCB, 0xFF] && window[6..] == [b'b', 0];
        let at = good.windows(8).position(is_literal).unwrap();
        let length = u32::from_be_bytes(good[at + 2..at + 6].try_into().unwrap()) as usize;
        fs::write(&path, &good[at + 12..at + 6 + length]).unwrap();
        says(&patiently(&site, &["check".into(), "-v".into()]).code(1), &[leaf(&path)]);

        // Signed by a stranger: the same document by the host of another repository.
        let stranger = Forger::new();
        let state = stranger.site.state().join(stranger.repository.id().to_string());
        let key = SecretKey::parse(&fs::read(state.join("host.key")).unwrap()).unwrap();
        let signed = Signer::new(key).unwrap().sign(&good[at + 12..at + 6 + length]).unwrap();
        fs::write(&path, signed).unwrap();
        says(&patiently(&site, &["check".into(), "-v".into()]).code(1), &[leaf(&path), "unknown key"]);
        fs::write(&path, &good).unwrap();
        patiently(&site, &["check".into(), "-v".into()]).ok();
    }
}

#[test]
fn keys_under_wrong_names_are_reported_and_not_trusted() {
    let site = backed_up(true);
    let strangers = backed_up(true);
    for role in ["host-", "recipient-"] {
        let key = |site: &Site| objects(site, "keys").into_iter().find(|path| leaf(path).starts_with(role)).unwrap();
        let (path, stranger) = (key(&site), key(&strangers));
        let good = fs::read(&path).unwrap();
        fs::copy(&stranger, &path).unwrap();
        says(&patiently(&site, &["check".into(), "-v".into()]).code(1), &[leaf(&path)]);
        fs::write(&path, good).unwrap();
        // Another valid one is harmless.
        fs::copy(&stranger, path.with_file_name(leaf(&stranger))).unwrap();
        patiently(&site, &["check".into(), "-v".into()]).ok();
    }
}

/// Writes the latest snapshot as a tar archive, and unpacks it to `unpacked/`.
fn dump_and_unpack(forger: &Forger, extra: &[&str]) -> (Run, PathBuf) {
    let (archive, unpacked) = (forger.site.path().join("archive.tar"), forger.site.path().join("unpacked"));
    let said = forger.site.path().join("said");
    let mut command = forger.site.command(&[&["dump", "latest"], extra].concat());
    command.stdout(File::create(&archive).unwrap()).stderr(File::create(&said).unwrap());
    assert!(command.status().unwrap().success(), "{}", fs::read_to_string(&said).unwrap());
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir(&unpacked).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--same-permissions", "--same-owner", "--numeric-owner"]);
    let run = run({
        tar.arg("-xf").arg(&archive).arg("-C").arg(&unpacked);
        tar
    });
    let mut run = run.ok();
    run.stderr = fs::read_to_string(said).unwrap();
    (run, unpacked)
}

#[test]
fn names_of_one_id_are_links_only_if_their_attributes_agree() {
    let stat = |path: PathBuf| fs::metadata(path).unwrap();
    type Change = fn(&mut Entry);
    let changes: [Change; 5] = [
        |entry| entry.mode = 0o4755,
        |entry| entry.uid = 5,
        |entry| entry.gid = 5,
        |entry| entry.xattrs = vec![(b"user.a".to_vec(), b"b".to_vec())],
        |entry| entry.inode_flags = Entry::NO_DUMP,
    ];
    for change in changes {
        let mut forger = Forger::new();
        let stored = forger.store(b"a program");
        let names = ["first", "other", "same"].map(|name| {
            let mut entry = file(name, &stored, 0);
            entry.link = Some(HardLink { id: 1, count: 3 });
            entry
        });
        let [first, mut other, same] = names;
        change(&mut other);
        let (mode, uid, gid) = (other.mode, other.uid, other.gid);
        forger.snapshot_of(&[stored], vec![first, other, same]);
        let (restored, out) = forger.restore();
        let (dumped, unpacked) = dump_and_unpack(&forger, &[]);
        for (run, out) in [(restored.ok(), out), (dumped, unpacked)] {
            let [first, other, same] = ["first", "other", "same"].map(|name| stat(out.join(name)));
            assert_eq!((first.ino(), first.mode() & 0o7777, first.uid()), (same.ino(), 0o755, 0), "{run}");
            assert_ne!(first.ino(), other.ino(), "{run}");
            assert_eq!((other.mode() & 0o7777, other.uid(), other.gid()), (mode, uid, gid), "{run}");
            says(&run, &["1 name of a hard-linked file became a separate file"]);
        }
    }
}

#[test]
fn privileges_and_devices_ignored_by_a_mount_are_restored_only_on_request() {
    let mut forger = Forger::new();
    let stored = forger.store(b"a program");
    // cap_net_raw+ep
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut entries = ["capable", "real", "su"].map(|name| file(name, &stored, 0)).to_vec();
    entries.push(entry("zero", Kind::CharDevice, 0, Content::Device(1, 5)));
    entries[0].xattrs = vec![(b"security.capability".to_vec(), capability.to_vec())];
    entries[1].mode = 0o4755;
    entries[2].mode = 0o6755;
    for at in [0, 2, 3] {
        entries[at].flags = Entry::UNPRIVILEGED;
    }
    forger.snapshot_of(&[stored], entries);
    let look = |out: &Path| {
        let mode = |name: &str| fs::metadata(out.join(name)).unwrap().mode() & 0o7777;
        let capable = common::xattrs(&out.join("capable")).unwrap().contains_key("security.capability");
        (capable, mode("real"), mode("su"), out.join("zero").exists())
    };
    for (extra, seen) in [(&[][..], (false, 0o4755, 0o755, false)), (&["--trust-set-id"], (true, 0o4755, 0o6755, true))]
    {
        let out = forger.site.path().join(format!("out{}", extra.len()));
        let arguments = [&["restore", "latest", "--to", out.to_str().unwrap()], extra].concat();
        let restored = forger.site.brackfs(&arguments).ok();
        let (dumped, unpacked) = dump_and_unpack(&forger, extra);
        for (run, out) in [(restored, out), (dumped, unpacked)] {
            assert_eq!(look(&out), seen, "{run}");
            assert_eq!(
                run.stderr.matches("of 3 entries were left out").count(),
                usize::from(extra.is_empty()),
                "{run}"
            );
        }
    }
}

#[test]
fn an_ordinary_user_gets_no_set_id_bits_even_on_files_recorded_as_their_own() {
    let user = 65_534;
    let mut forger = Forger::new();
    let stored = forger.store(b"a program");
    let mut program = file("program", &stored, 0);
    (program.mode, program.uid, program.gid) = (0o6755, user, user);
    forger.snapshot_of(&[stored], vec![program]);
    let site = &forger.site;
    let (copy, home) = (site.path().join("brackfs"), site.path().join("home"));
    fs::copy(env!("CARGO_BIN_EXE_brackfs"), &copy).unwrap();
    fs::create_dir(&home).unwrap();
    for path in [site.path(), &copy] {
        common::set_mode(path, 0o755);
    }
    std::os::unix::fs::chown(&home, Some(user), Some(user)).unwrap();
    let mut command = Command::new(&copy);
    command.args(["restore", "latest", "--to"]).arg(home.join("out")).uid(user).gid(user).current_dir(&home);
    command.env("BRACKFS_STATE_DIR", home.join("state")).env("BRACKFS_REPOSITORY", site.repo());
    let run = run(command).ok();
    let stat = fs::metadata(home.join("out/program")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid()), (0o755, user), "{run}");
}
