//! The source and its model, to which every change is applied.
//!
//! The model has its own names, kinds, modes, contents, targets, attributes and links. Times and owners are read from
//! the file system at the time of a backup.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::change::{Change, Kind, Name, Pick, Shape, Tiny};
use crate::common;
use crate::common::machine::need;
use crate::tree::{Item, Tree, is_excluded};

/// A part of a file's content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Piece {
    /// Bytes of an endless stream.
    Noise {
        seed: u64,
        at: u64,
        length: u64,
    },
    Zeros(u64),
    Hole(u64),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Piece::Noise { length, .. } | Piece::Zeros(length) | Piece::Hole(length) => *length,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length() as usize];
        if let Piece::Noise { seed, at, .. } = self {
            let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
            stream.set_position(*at);
            stream.fill(&mut bytes);
        }
        bytes
    }

    /// The bytes from `from` on, `length` of them.
    fn part(&self, from: u64, length: u64) -> Piece {
        match self {
            Piece::Noise { seed, at, .. } => Piece::Noise { seed: *seed, at: at + from, length },
            Piece::Zeros(_) => Piece::Zeros(length),
            Piece::Hole(_) => Piece::Hole(length),
        }
    }
}

/// A file's content.
type Pieces = Vec<Piece>;

fn size(pieces: &Pieces) -> u64 {
    pieces.iter().map(Piece::length).sum()
}

fn cut(pieces: &Pieces, from: u64, to: u64) -> Pieces {
    let mut at = 0;
    let mut cut = Vec::new();
    for piece in pieces {
        let (begin, end) = (from.max(at), to.min(at + piece.length()));
        if begin < end {
            cut.push(piece.part(begin - at, end - begin));
        }
        at += piece.length();
    }
    cut
}

fn pieces_of(shape: &Shape) -> Pieces {
    let mut hole = shape.hole_first;
    let mut at = 0;
    let mut pieces = Vec::new();
    for &length in &shape.lengths {
        pieces.push(match (hole, shape.zeros) {
            (true, _) => Piece::Hole(length),
            (false, true) => Piece::Zeros(length),
            (false, false) => Piece::Noise { seed: shape.seed, at, length },
        });
        at += length;
        hole = !hole;
    }
    pieces
}

/// A node, which several names may share.
#[derive(Debug, Clone)]
struct Node {
    what: What,
    mode: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone)]
enum What {
    File(Pieces),
    Directory,
    Symlink(OsString),
    Fifo,
}

/// Inode, ctime, mtime, size, mode and links of every file. Files with the same values need not be read.
pub type Identities = BTreeMap<PathBuf, [i128; 6]>;

/// Names for entries: some match patterns, some sort or print oddly.
fn name(number: Name) -> OsString {
    let long = [b'l'; 255];
    let names: [&[u8]; 14] = [
        b"a",
        b"b",
        b"c",
        b"x.o",
        b"keep.o",
        b"cache",
        b"a.b",
        b"a-b",
        b" ",
        b"-",
        b"\xff\xfe",
        "ä".as_bytes(),
        b"n\nl",
        &long,
    ];
    OsString::from_vec(names[usize::from(number) % names.len()].to_vec())
}

pub struct World {
    root: PathBuf,
    names: BTreeMap<PathBuf, u64>,
    nodes: HashMap<u64, Node>,
    last: u64,
    hashes: HashMap<Pieces, blake3::Hash>,
}

impl World {
    pub fn new(root: PathBuf) -> World {
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let mut world = World { root, names: BTreeMap::new(), nodes: HashMap::new(), last: 0, hashes: HashMap::new() };
        world.add(PathBuf::new(), What::Directory, 0o755);
        world
    }

    /// The expected tree of a backup now.
    pub fn tree(&mut self, exclude: u8) -> Tree {
        let directory = |path: &Path| matches!(self.node(path).what, What::Directory);
        let wanted = self.names.iter().filter(|(path, _)| !is_excluded(exclude, path, &directory));
        let wanted: Vec<_> = wanted.map(|(path, node)| (path.clone(), *node)).collect();
        let mut first: HashMap<u64, (PathBuf, usize)> = HashMap::new();
        for (path, node) in &wanted {
            let named = first.entry(*node).or_insert_with(|| (path.clone(), 0));
            named.1 += 1;
        }
        let item = |(path, number): (PathBuf, u64)| {
            let node = &self.nodes[&number];
            let stat = fs::symlink_metadata(self.root.join(&path)).unwrap();
            let (kind, size, content, target) = match &node.what {
                What::File(pieces) => {
                    let hash = || {
                        let mut hasher = blake3::Hasher::new();
                        for piece in pieces {
                            hasher.update(&piece.bytes());
                        }
                        hasher.finalize()
                    };
                    let content = *self.hashes.entry(pieces.clone()).or_insert_with(hash);
                    (common::Kind::File, size(pieces), Some(content), None)
                }
                What::Directory => (common::Kind::Directory, 0, None, None),
                What::Symlink(to) => (common::Kind::Symlink, to.len() as u64, None, Some(PathBuf::from(to))),
                What::Fifo => (common::Kind::Fifo, 0, None, None),
            };
            let entry = common::Entry {
                kind,
                // A symlink's mode can't be chosen.
                mode: if kind == common::Kind::Symlink { stat.mode() & 0o7777 } else { node.mode },
                uid: stat.uid(),
                gid: stat.gid(),
                mtime: i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec()),
                size,
                content,
                target,
                first_name: first.get(&number).filter(|(_, names)| *names > 1).map(|(path, _)| path.clone()),
                rdev: 0,
                xattrs: node.xattrs.clone(),
            };
            let blocks = (kind == common::Kind::File).then(|| stat.blocks());
            (path, Item { entry, blocks })
        };
        wanted.into_iter().map(item).collect()
    }

    pub fn identities(&self) -> Identities {
        let identity = |path: &PathBuf| {
            let stat = fs::symlink_metadata(self.root.join(path)).unwrap();
            let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
            let (mtime, ctime) = (time(stat.mtime(), stat.mtime_nsec()), time(stat.ctime(), stat.ctime_nsec()));
            let numbers = [stat.ino(), stat.size(), stat.nlink(), stat.mode().into()].map(i128::from);
            (path.clone(), [numbers[0], numbers[1], numbers[2], numbers[3], mtime, ctime])
        };
        self.names.keys().map(identity).collect()
    }

    fn node(&self, path: &Path) -> &Node {
        &self.nodes[&self.names[path]]
    }

    fn node_mut(&mut self, path: &Path) -> &mut Node {
        self.nodes.get_mut(&self.names[path]).unwrap()
    }

    fn full(&self, path: &Path) -> PathBuf {
        // Joining an empty path would append a slash, which follows a link.
        if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn add(&mut self, path: PathBuf, what: What, mode: u32) {
        self.last += 1;
        self.names.insert(path, self.last);
        self.nodes.insert(self.last, Node { what, mode, xattrs: BTreeMap::new() });
    }

    /// One of the paths for which `is` holds.
    fn pick(&self, pick: Pick, is: impl Fn(&Path, &Node) -> bool) -> Option<PathBuf> {
        let fitting: Vec<_> = self.names.iter().filter(|(path, node)| is(path, &self.nodes[*node])).collect();
        fitting.get(usize::from(pick) % fitting.len().max(1)).map(|(path, _)| (*path).clone())
    }

    fn any(&self, pick: Pick) -> Option<PathBuf> {
        self.pick(pick, |path, _| !path.as_os_str().is_empty())
    }

    fn file(&self, pick: Pick) -> Option<(PathBuf, Pieces)> {
        let path = self.pick(pick, |_, node| matches!(node.what, What::File(_)))?;
        match &self.node(&path).what {
            What::File(pieces) => Some((path.clone(), pieces.clone())),
            _ => None,
        }
    }

    /// A path in one of the directories. An entry that has it is removed.
    fn free(&mut self, into: Pick, number: Name) -> PathBuf {
        let folder = self.pick(into, |_, node| matches!(node.what, What::Directory)).unwrap();
        let path = folder.join(name(number));
        self.remove(&path);
        path
    }

    fn remove(&mut self, path: &Path) {
        if !self.names.contains_key(path) {
            return;
        }
        let full = self.full(path);
        match self.node(path).what {
            What::Directory => fs::remove_dir_all(full).unwrap(),
            _ => fs::remove_file(full).unwrap(),
        }
        self.names.retain(|other, _| !other.starts_with(path));
    }

    /// Makes an entry, whose name must be free.
    fn make(&mut self, path: PathBuf, what: What, mode: u32) {
        let full = self.full(&path);
        match &what {
            What::File(pieces) => write(&full, pieces),
            What::Directory => fs::create_dir(&full).unwrap(),
            What::Symlink(target) => symlink(target, &full).unwrap(),
            What::Fifo => rustix::fs::mknodat(CWD, &full, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
        }
        if !matches!(what, What::Symlink(_)) {
            fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
        }
        self.add(path, what, mode);
    }

    /// Changes a file in place with `how`, and updates the model.
    fn edit(&mut self, path: &Path, pieces: Pieces, keep_time: bool, how: impl FnOnce(&Path)) {
        let full = self.full(path);
        let time = fs::metadata(&full).unwrap().modified().unwrap();
        how(&full);
        if keep_time {
            OpenOptions::new().write(true).open(&full).unwrap().set_modified(time).unwrap();
        }
        let node = self.node_mut(path);
        node.what = What::File(pieces);
        // Writing takes set-id bits away from all but root.
        let mode = node.mode;
        fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        fs::rename(self.full(from), self.full(to)).unwrap();
        let moved: Vec<_> = self.names.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            let node = self.names.remove(&path).unwrap();
            let rest = path.strip_prefix(from).unwrap();
            let new = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            self.names.insert(new, node);
        }
    }

    /// Applies a change, if suitable entries exist.
    pub fn apply(&mut self, change: &Change) {
        // A change without a suitable path is a no-op.
        let _ = self.try_apply(change);
    }

    fn try_apply(&mut self, change: &Change) -> Option<()> {
        match change {
            Change::File { into, name, shape } => {
                let path = self.free(*into, *name);
                self.make(path, What::File(pieces_of(shape)), 0o644);
            }
            Change::Directory { into, name } => {
                let path = self.free(*into, *name);
                self.make(path, What::Directory, 0o755);
            }
            Change::Symlink { into, name: number, target } => {
                let path = self.free(*into, *number);
                self.make(path, What::Symlink(name(*target)), 0o777);
            }
            Change::Fifo { into, name } => {
                let path = self.free(*into, *name);
                self.make(path, What::Fifo, 0o640);
            }
            Change::Many { into, first, count, stride, tiny, seed } => {
                // Not into a directory of a series: series should meet.
                let folder = self.pick(*into, |path, node| {
                    let in_row = path.iter().any(|name| name.as_bytes().starts_with(b"m"));
                    matches!(node.what, What::Directory) && !in_row
                })?;
                for number in (0..u64::from(*count)).map(|number| u64::from(*first) + number * u64::from(*stride)) {
                    let path = folder.join(format!("m{number:05}"));
                    if !self.names.contains_key(&path) {
                        self.make_tiny(path, *tiny, seed.wrapping_add(number));
                    }
                }
            }
            Change::Thin { at, part, count } => {
                // In the largest directories, where it matters.
                let mut sizes: HashMap<&Path, usize> = HashMap::new();
                for parent in self.names.keys().filter_map(|path| path.parent()) {
                    *sizes.entry(parent).or_default() += 1;
                }
                let large = sizes.values().max().map_or(0, |most| most / 2);
                let folder = self.pick(*at, |path, _| sizes.get(path).is_some_and(|size| *size > large))?;
                let names: Vec<_> = self.names.keys().filter(|path| path.parent() == Some(&folder)).cloned().collect();
                let from = (names.len() as f64 * part) as usize;
                names.iter().skip(from).take((*count).into()).for_each(|path| self.remove_alone(path));
            }
            Change::Delete { at } => self.remove(&self.any(*at)?),
            Change::Overwrite { at, shape, keep_time } => {
                let (path, _) = self.file(*at)?;
                let pieces = pieces_of(shape);
                self.edit(&path, pieces.clone(), *keep_time, |full| write(full, &pieces));
            }
            Change::Append { at, seed, length } => {
                let (path, mut pieces) = self.file(*at)?;
                let more = Piece::Noise { seed: *seed, at: 0, length: *length };
                pieces.push(more.clone());
                self.edit(&path, pieces, false, |full| {
                    OpenOptions::new().append(true).open(full).unwrap().write_all(&more.bytes()).unwrap();
                });
            }
            Change::Truncate { at, part } => {
                let (path, pieces) = self.file(*at)?;
                let (before, after) = (size(&pieces), (size(&pieces) as f64 * part) as u64);
                let mut pieces = cut(&pieces, 0, after);
                if after > before {
                    pieces.push(Piece::Hole(after - before));
                }
                self.edit(&path, pieces, false, |full| {
                    OpenOptions::new().write(true).open(full).unwrap().set_len(after).unwrap();
                });
            }
            Change::Flip { at, part, seed, keep_time } => {
                let (path, pieces) = self.file(*at)?;
                let offset = (size(&pieces) as f64 * part) as u64;
                let byte = Piece::Noise { seed: *seed, at: 0, length: 1 };
                if offset < size(&pieces) {
                    let end = cut(&pieces, offset + 1, u64::MAX);
                    let pieces = [cut(&pieces, 0, offset), vec![byte.clone()], end].concat();
                    self.edit(&path, pieces, *keep_time, |full| write_at(full, &byte, offset));
                }
            }
            Change::Insert { at, part, seed, length } => {
                let (path, pieces) = self.file(*at)?;
                let offset = (size(&pieces) as f64 * part) as u64;
                let more = Piece::Noise { seed: *seed, at: 0, length: *length };
                let pieces = [cut(&pieces, 0, offset), vec![more], cut(&pieces, offset, u64::MAX)].concat();
                self.edit(&path, pieces.clone(), false, |full| write(full, &pieces));
            }
            Change::Punch { at, part, length } => {
                let (path, pieces) = self.file(*at)?;
                let offset = (size(&pieces) as f64 * part) as u64;
                let length = (*length).min(size(&pieces) - offset);
                if length > 0 {
                    let end = cut(&pieces, offset + length, u64::MAX);
                    let pieces = [cut(&pieces, 0, offset), vec![Piece::Hole(length)], end].concat();
                    self.edit(&path, pieces, false, |full| punch(full, offset, length));
                }
            }
            Change::Rename { at, into, name: number } => {
                let path = self.any(*at)?;
                let folder = self.pick(*into, |_, node| matches!(node.what, What::Directory))?;
                let to = folder.join(name(*number));
                if !to.starts_with(&path) && !path.starts_with(&to) && !self.is_same(&path, &to) {
                    self.remove(&to);
                    self.rename(&path, &to);
                }
            }
            Change::Swap { one, other } => {
                let (one, other) = (self.any(*one)?, self.any(*other)?);
                if !one.starts_with(&other) && !other.starts_with(&one) {
                    let aside = PathBuf::from("aside for a moment");
                    self.rename(&one, &aside);
                    self.rename(&other, &one);
                    self.rename(&aside, &other);
                }
            }
            Change::Replace { at, by } => {
                let path = self.any(*at)?;
                self.remove(&path);
                let (what, mode) = match by {
                    Kind::File => (What::File(vec![Piece::Noise { seed: 3, at: 0, length: 77 }]), 0o600),
                    Kind::Directory => (What::Directory, 0o700),
                    Kind::Symlink => (What::Symlink("elsewhere".into()), 0o777),
                    Kind::Fifo => (What::Fifo, 0o600),
                };
                self.make(path, what, mode);
            }
            Change::Mode { at, mode } => {
                let path = self.pick(*at, |_, node| !matches!(node.what, What::Symlink(_)))?;
                // The owner can always read it.
                let modes = [0o600, 0o640, 0o755, 0o777, 0o4755, 0o1700, 0o2750];
                let modes = if matches!(self.node(&path).what, What::Directory) { &modes[2..] } else { &modes };
                let mode = modes[usize::from(*mode) % modes.len()];
                fs::set_permissions(self.full(&path), fs::Permissions::from_mode(mode)).unwrap();
                self.node_mut(&path).mode = mode;
            }
            Change::Time { at, time } => {
                let path = self.pick(*at, |_, _| true)?;
                let times =
                    [(0, 0), (-1, 999_999_999), (common::AGED, 123_456_789), (4_102_444_800, 1), (-2_000_000_000, 0)];
                let (tv_sec, tv_nsec) = times[usize::from(*time) % times.len()];
                let time = Timespec { tv_sec, tv_nsec };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, self.full(&path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
            Change::Attribute { at, name, value } => {
                let path = self.pick(*at, |_, node| matches!(node.what, What::File(_) | What::Directory))?;
                let key = format!("user.{}", ["one", "two", "drei"][usize::from(*name) % 3]);
                let full = self.full(&path);
                match value {
                    Some(value) => {
                        let bytes = vec![*value; usize::from(*value)];
                        let set = rustix::fs::setxattr(&full, &key, &bytes, XattrFlags::empty());
                        need(set, "user attributes in the temporary directory");
                        self.node_mut(&path).xattrs.insert(key, bytes);
                    }
                    None => {
                        if self.node_mut(&path).xattrs.remove(&key).is_some() {
                            rustix::fs::removexattr(&full, &key).unwrap();
                        }
                    }
                }
            }
            Change::Link { at, into, name } => {
                let path = self.pick(*at, |_, node| !matches!(node.what, What::Directory))?;
                let to = self.free(*into, *name);
                // It may have been replaced.
                let node = *self.names.get(&path)?;
                fs::hard_link(self.full(&path), self.full(&to)).unwrap();
                self.names.insert(to, node);
            }
            Change::Unlink { at } => {
                let (path, pieces) = self.file(*at)?;
                let mode = self.node(&path).mode;
                self.remove(&path);
                self.make(path, What::File(pieces), mode);
            }
            Change::Copy { at, into, name } => {
                let (_, pieces) = self.file(*at)?;
                let to = self.free(*into, *name);
                self.make(to, What::File(pieces), 0o644);
            }
        }
        Some(())
    }

    /// Whether these are two names of one file, for which a rename is a no-op.
    fn is_same(&self, one: &Path, other: &Path) -> bool {
        self.names.get(one) == self.names.get(other)
    }

    fn make_tiny(&mut self, path: PathBuf, tiny: Tiny, seed: u64) {
        match tiny {
            Tiny::Files if !seed.is_multiple_of(3) => {
                let content = vec![Piece::Noise { seed, at: 0, length: 1 + seed % 40 }];
                self.make(path, What::File(content), 0o644);
            }
            Tiny::Files | Tiny::Empty => self.make(path, What::File(Vec::new()), 0o600),
            Tiny::Symlinks => self.make(path, What::Symlink(seed.to_string().into()), 0o777),
            Tiny::Directories => {
                self.make(path.clone(), What::Directory, 0o755);
                for number in 0..seed % 4 {
                    let content = vec![Piece::Noise { seed, at: number, length: 20 }];
                    self.make(path.join(number.to_string()), What::File(content), 0o644);
                }
            }
        }
    }

    /// Removes an entry. Faster for files and empty directories.
    fn remove_alone(&mut self, path: &Path) {
        match self.node(path).what {
            What::Directory => self.remove(path),
            _ => {
                fs::remove_file(self.full(path)).unwrap();
                self.names.remove(path);
            }
        }
    }
}

fn write(path: &Path, pieces: &Pieces) {
    let file = File::create(path).unwrap();
    let mut at = 0;
    for piece in pieces {
        if !matches!(piece, Piece::Hole(_)) {
            file.write_all_at(&piece.bytes(), at).unwrap();
        }
        at += piece.length();
    }
    file.set_len(at).unwrap();
}

fn write_at(path: &Path, piece: &Piece, offset: u64) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&piece.bytes(), offset).unwrap();
}

fn punch(path: &Path, offset: u64, length: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if rustix::fs::fallocate(&file, how, offset, length).is_err() {
        // Without support for holes, zeros are the same content.
        file.write_all_at(&vec![0; length as usize], offset).unwrap();
    }
}
