//! The expected content of a snapshot, and that shown by the reader and the file system.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use brackfs::archive::{Archive, EntryHandle, Error, FileData};
use brackfs::format;
use brackfs::format::name::SnapshotName;
use brackfs::reader::Reader;

use crate::common::{self, Entry, Kind};

/// An entry with only the `user.` extended attributes: the tests make no others.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub entry: Entry,
    /// Blocks of 512 bytes that the file used, if known.
    pub blocks: Option<u64>,
}

/// By path from the root, which has the empty path.
pub type Tree = BTreeMap<PathBuf, Item>;

/// A pattern and a simple implementation of it.
pub struct Pattern {
    pub glob: &'static str,
    excludes: bool,
    matches: fn(&Path, &[u8], bool) -> bool,
}

/// Later ones take precedence.
pub const PATTERNS: [Pattern; 7] = [
    Pattern { glob: "*.o", excludes: true, matches: |_, name, _| name.ends_with(b".o") },
    Pattern { glob: "!keep.o", excludes: false, matches: |_, name, _| name == b"keep.o" },
    Pattern { glob: "/a", excludes: true, matches: |path, _, _| path == Path::new("a") },
    Pattern { glob: "cache/", excludes: true, matches: |_, name, directory| name == b"cache" && directory },
    Pattern { glob: "b/c", excludes: true, matches: |path, _, _| path == Path::new("b/c") },
    Pattern { glob: "m*5", excludes: true, matches: |_, name, _| name.starts_with(b"m") && name.ends_with(b"5") },
    Pattern {
        glob: "/*/b/",
        excludes: true,
        matches: |path, name, directory| directory && name == b"b" && path.iter().count() == 2,
    },
];

/// Whether the patterns whose bits are set exclude a path or a parent of it.
pub fn is_excluded(patterns: u8, path: &Path, is_directory: &dyn Fn(&Path) -> bool) -> bool {
    let mut ancestors = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    ancestors.any(|part| {
        let name = part.file_name().unwrap_or_default().as_bytes();
        let directory = part != path || is_directory(part);
        let held = PATTERNS.iter().enumerate().filter(|(at, _)| patterns >> at & 1 == 1);
        let mut matching = held.filter(|(_, pattern)| (pattern.matches)(part, name, directory));
        matching.next_back().is_some_and(|(_, pattern)| pattern.excludes)
    })
}

#[track_caller]
pub fn assert_same(expected: &Tree, found: &Tree, what: &str) {
    let paths = expected.keys().chain(found.keys().filter(|path| !expected.contains_key(*path)));
    let mut wrong = Vec::new();
    for path in paths {
        match (expected.get(path), found.get(path)) {
            (Some(e), Some(f)) if e.entry == f.entry => {}
            (e, f) => wrong.push(format!("{}\n  instead of {e:?}\n  is {f:?}", path.display())),
        }
    }
    let some: Vec<_> = wrong.iter().take(5).map(String::as_str).collect();
    assert!(wrong.is_empty(), "{what} {} of {} paths wrong:\n{}", wrong.len(), expected.len(), some.join("\n"));
}

/// The tree of a directory.
pub fn of_files(root: &Path) -> Tree {
    let item = |(path, mut entry): (PathBuf, Entry)| {
        entry.xattrs.retain(|name, _| name.starts_with("user."));
        (path, Item { entry, blocks: None })
    };
    common::tree(root).into_iter().map(item).collect()
}

/// Asserts that holes are restored: files use no more blocks than before.
#[track_caller]
pub fn assert_holes(tree: &Tree, restored: &Path) {
    // Blocks that a file system needs to map a file.
    const SLACK: u64 = 64;
    // Gathered files are stored without holes, up to this size.
    const GATHERED: u64 = 1 << 20;
    for (path, item) in tree.iter().filter(|(_, item)| item.entry.size >= GATHERED) {
        let Some(blocks) = item.blocks else { continue };
        let found = fs::symlink_metadata(restored.join(path)).unwrap().blocks();
        assert!(found <= blocks + SLACK, "{} takes {found} blocks instead of {blocks}", path.display());
    }
}

/// The tree of a snapshot, as the reader shows it.
pub fn of_snapshot(reader: &Reader, name: &SnapshotName) -> Tree {
    let snapshot = reader.open(name).unwrap();
    let mut shown = Shown { reader, tree: Tree::new(), names: BTreeMap::new(), rank: 0 };
    shown.visit(&snapshot.root, PathBuf::new());
    let Shown { mut tree, names, .. } = shown;
    for names in names.into_values().filter(|names| names.len() > 1) {
        let first = names.iter().min().cloned();
        for name in &names {
            tree.get_mut(name).unwrap().entry.first_name = first.clone();
        }
    }
    // By name and by rank. Only a sample of thousands.
    let few = tree.len() / 100 + 1;
    for path in tree.keys().step_by(few) {
        let by_path = reader.at_path(&snapshot, path.as_os_str().as_bytes()).unwrap();
        let by_rank = reader.at_rank(&snapshot, by_path.rank).unwrap();
        assert_eq!(by_path.entry(), by_rank.entry());
        assert_eq!(OsStr::from_bytes(by_path.entry().name), path.file_name().unwrap_or_default());
    }
    tree
}

struct Shown<'r> {
    reader: &'r Reader,
    tree: Tree,
    /// Paths by the id of their link.
    names: BTreeMap<u64, Vec<PathBuf>>,
    rank: u64,
}

impl Shown<'_> {
    fn visit(&mut self, listed: &EntryHandle, path: PathBuf) {
        assert_eq!(listed.rank, self.rank, "the rank of {}", path.display());
        self.rank += 1;
        let entry = listed.entry();
        assert!(!entry.is_changed(), "{} did not change", path.display());
        if let Some(link) = entry.link {
            self.names.entry(link.id).or_default().push(path.clone());
        }
        let kind = kind(entry.kind);
        let text = |(name, value): &(Vec<u8>, Vec<u8>)| (String::from_utf8_lossy(name).into_owned(), value.clone());
        let xattrs = entry.xattrs.iter().map(text).filter(|(name, _)| name.starts_with("user."));
        let shown = Entry {
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: i128::from(entry.mtime.seconds) * 1_000_000_000 + i128::from(entry.mtime.nanos),
            size: entry.size,
            content: (kind == Kind::File).then(|| self.content(listed)),
            target: (kind == Kind::Symlink).then(|| PathBuf::from(OsStr::from_bytes(entry.target))),
            first_name: None,
            rdev: 0,
            xattrs: xattrs.collect(),
        };
        self.tree.insert(path.clone(), Item { entry: shown, blocks: None });
        if let Some(directory) = listed.directory() {
            let mut from = 0;
            loop {
                let page = self.reader.list(&directory, from).unwrap();
                if page.is_empty() {
                    return;
                }
                for below in page {
                    from += 1;
                    let path = path.join(OsStr::from_bytes(below.entry().name));
                    self.visit(&below, path);
                }
            }
        }
    }

    /// Read from end to end, and a part of it from the middle.
    fn content(&self, listed: &EntryHandle) -> blake3::Hash {
        let file = self.reader.content(listed).unwrap();
        let mut bytes = Vec::new();
        let read = file.each(|data| {
            match data {
                FileData::Bytes(data) => bytes.extend_from_slice(data),
                FileData::Hole(hole) => bytes.resize(bytes.len() + hole as usize, 0),
            }
            Ok::<_, Error>(())
        });
        read.unwrap();
        assert_eq!(bytes.len() as u64, file.size());
        let from = bytes.len() / 3;
        let part = file.read(from as u64, bytes.len() / 2, <[u8]>::to_vec).unwrap();
        assert!(part == bytes[from..from + bytes.len() / 2], "another content when read from the middle");
        blake3::hash(&bytes)
    }
}

fn kind(of: format::Kind) -> Kind {
    match of {
        format::Kind::File => Kind::File,
        format::Kind::Directory => Kind::Directory,
        format::Kind::Symlink => Kind::Symlink,
        format::Kind::Fifo => Kind::Fifo,
        format::Kind::Socket => Kind::Socket,
        format::Kind::CharDevice => Kind::CharDevice,
        format::Kind::BlockDevice => Kind::BlockDevice,
    }
}
