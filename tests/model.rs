//! Compares the file system of the mount, without a kernel, with a naive model: maps of the source at the time of each
//! backup. Random operations must have the same results on both.
//!
//! `PROPTEST_CASES` sets the number of cases. Seeds of failures are stored in `tests/proptest-regressions` and tried
//! first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use brackfs::archive::Seek;
use brackfs::format::Kind;
use brackfs::monitor::Silent;
use brackfs::mount::{Attributes, FileSystem, FileSystemError, Ino, ListingEntry};
use brackfs::reader::Reader;
use brackfs::repository::{Access, Repository};
use common::wait::next_second;
use common::{Site, data, noise, set_mode, set_time, settle};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use rustix::fs::XattrFlags;

/// The root of the mount.
const TOP: Ino = 1;

/// An entry of the model.
struct Known {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    sectors: u64,
    nlink: u64,
    /// Shared by all names of a file.
    identity: u64,
    content: Vec<u8>,
    /// Where there is data.
    data: Vec<(u64, u64)>,
    target: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Names of a directory.
    names: Vec<Vec<u8>>,
}

type Model = BTreeMap<PathBuf, Known>;

fn model_of(root: &Path) -> Model {
    let mut model = Model::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let full = root.join(&path);
        let stat = fs::symlink_metadata(&full).unwrap();
        let kind = match stat.file_type() {
            of if of.is_dir() => Kind::Directory,
            of if of.is_symlink() => Kind::Symlink,
            _ => Kind::File,
        };
        let mut names = Vec::new();
        if kind == Kind::Directory {
            for entry in fs::read_dir(&full).unwrap() {
                let name = entry.unwrap().file_name();
                left.push(path.join(&name));
                names.push(name.as_bytes().to_vec());
            }
            names.sort();
        }
        let data = if kind == Kind::File { data(&full) } else { Vec::new() };
        let known = Known {
            kind,
            mode: stat.mode() & 0o7777,
            owner: (stat.uid(), stat.gid()),
            mtime: (stat.mtime(), stat.mtime_nsec()),
            size: if kind == Kind::Directory { 0 } else { stat.size() },
            sectors: data.iter().map(|(start, end)| end - start).sum::<u64>().div_ceil(512),
            nlink: if kind == Kind::Directory { 1 } else { stat.nlink() },
            identity: stat.ino(),
            content: if kind == Kind::File { fs::read(&full).unwrap() } else { Vec::new() },
            data,
            target: match kind {
                Kind::Symlink => fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec(),
                _ => Vec::new(),
            },
            xattrs: common::xattrs(&full).unwrap(),
            names,
        };
        model.insert(path, known);
    }
    model
}

/// An index into the existing entries, modulo their number.
type Pick = u16;

fn pick<T>(from: &[T], at: Pick) -> &T {
    &from[usize::from(at) % from.len()]
}

/// Scales `part` to a number below `limit`.
fn part_of(part: u32, limit: u64) -> u64 {
    ((u128::from(part) * u128::from(limit)) >> 32) as u64
}

/// Changes of a source before a backup.
#[derive(Debug, Clone, PartialEq)]
struct Round {
    /// Folders in which new ones are made.
    folders: Vec<Pick>,
    things: Vec<New>,
    /// Many files in one folder.
    many: Option<(Pick, u16)>,
    gone: Option<Pick>,
    chunk: &'static str,
}

#[derive(Debug, Clone, PartialEq)]
struct New {
    folder: Pick,
    /// Approximate length of its name.
    name: usize,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Symlink,
    /// Another name of a file.
    Link(Pick),
    /// Every other page, or a few of them, and a hole at the end.
    Sparse {
        pages: u64,
        many: bool,
        end: u64,
    },
    File {
        length: usize,
        xattrs: Vec<usize>,
        mode: u32,
        time: (i64, i64),
    },
}

/// Lengths of all magnitudes up to this many bits.
fn length(bits: u32) -> impl Strategy<Value = usize> {
    (0..=bits).prop_flat_map(|bits| 0..1usize << bits)
}

fn new() -> impl Strategy<Value = New> {
    let sparse = (1..400u64, any::<bool>(), 0..9000u64);
    let xattrs = prop::collection::vec(0..300usize, 0..4);
    let time = (-(1i64 << 39)..1 << 39, 0..1_000_000_000i64);
    let what = prop_oneof![
        1 => Just(What::Symlink),
        1 => any::<Pick>().prop_map(What::Link),
        1 => sparse.prop_map(|(pages, many, end)| What::Sparse { pages, many, end }),
        5 => (length(18), xattrs, 0..0o10000u32, time)
            .prop_map(|(length, xattrs, mode, time)| What::File { length, xattrs, mode, time }),
    ];
    (any::<Pick>(), 0..200usize, what).prop_map(|(folder, name, what)| New { folder, name, what })
}

/// Rounds of changes: the first adds a folder of many files, the others remove entries.
fn source() -> impl Strategy<Value = Vec<Round>> {
    let folders = prop::collection::vec(any::<Pick>(), 3..12);
    let things = prop::collection::vec(new(), 5..60);
    let chunk = prop_oneof![Just("--chunk-size=16KiB"), Just("--chunk-size=1MiB")];
    let round = (folders, things, any::<Pick>(), chunk);
    let rounds = prop::collection::vec(round, 1..4);
    (rounds, 1100..3000u16).prop_map(|(rounds, count)| {
        let rounds = rounds.into_iter().enumerate();
        let round = rounds.map(|(at, (folders, things, pick, chunk))| match at {
            0 => Round { folders, things, many: Some((pick, count)), gone: None, chunk },
            _ => Round { folders, things, many: None, gone: Some(pick), chunk },
        });
        round.collect()
    })
}

impl Round {
    fn apply(&self, source: &Path, round: usize) {
        let mut folders = vec![source.to_owned()];
        for (at, folder) in self.folders.iter().enumerate() {
            let folder = pick(&folders, *folder).join(format!("folder {round} {at}"));
            fs::create_dir(&folder).unwrap();
            folders.push(folder);
        }
        let mut files = Vec::new();
        for (at, New { folder, name, what }) in self.things.iter().enumerate() {
            let path = pick(&folders, *folder).join(format!("{} {round} {at}", "n".repeat(*name)));
            let bytes = |what: &str, length| noise(&format!("{what} of {round} {at}"), length);
            match what {
                What::Symlink => symlink(format!("target {at}"), &path).unwrap(),
                What::Link(_) if files.is_empty() => continue,
                What::Link(file) => fs::hard_link(pick(&files, *file), &path).unwrap(),
                What::Sparse { pages, many, end } => {
                    let file = File::create(&path).unwrap();
                    file.set_len(pages * 8192 + end).unwrap();
                    // Few extents stand in the entry, many in nodes.
                    for page in 0..if *many { *pages } else { 9.min(*pages) } {
                        file.write_all_at(&bytes(&format!("page {page}"), 4096), page * 8192).unwrap();
                    }
                }
                What::File { length, xattrs, mode, time } => {
                    fs::write(&path, bytes("content", *length)).unwrap();
                    for (name, length) in xattrs.iter().enumerate() {
                        let value = bytes(&format!("attribute {name}"), *length);
                        rustix::fs::setxattr(&path, format!("user.{name}"), &value, XattrFlags::empty()).unwrap();
                    }
                    set_mode(&path, *mode);
                    set_time(&path, time.0, time.1);
                }
            }
            if !matches!(what, What::Symlink) {
                files.push(path);
            }
        }
        if let Some((folder, count)) = self.many {
            let many = pick(&folders, folder).join("many");
            fs::create_dir(&many).unwrap();
            (0..count).for_each(|at| drop(File::create(many.join(format!("{at}"))).unwrap()));
        }
        if let Some(gone) = self.gone {
            let mut paths: Vec<_> = fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            let gone = pick(&paths, gone);
            if gone.is_dir() && !gone.is_symlink() {
                fs::remove_dir_all(gone).unwrap();
            } else {
                fs::remove_file(gone).unwrap();
            }
        }
    }
}

/// A request of the kernel about an entry that it knows, valid for the kind of the entry.
#[derive(Debug, Clone)]
enum Question {
    /// Requests for an entry, possibly missing; for bytes; for a target.
    Content {
        name: Pick,
        missing: Option<&'static str>,
        offset: u32,
        length: usize,
    },
    /// Requests for some entries; for data and holes.
    Parts {
        from: u32,
        room: usize,
        remembered: bool,
    },
    Attributes,
    Xattrs,
    /// Forgets some lookups of it.
    Forget(u32),
}

#[derive(Debug, Clone)]
struct Step {
    of: u32,
    question: Question,
}

fn step() -> impl Strategy<Value = Step> {
    let missing = prop::option::weighted(0.2, prop::sample::select(vec!["missing", "n", "folder", "~"]));
    let question = prop_oneof![
        3 => (any::<Pick>(), missing, any::<u32>(), length(20))
            .prop_map(|(name, missing, offset, length)| Question::Content { name, missing, offset, length }),
        2 => (any::<u32>(), 0..100usize, any::<bool>())
            .prop_map(|(from, room, remembered)| Question::Parts { from, room, remembered }),
        1 => Just(Question::Attributes),
        1 => Just(Question::Xattrs),
        1 => any::<u32>().prop_map(Question::Forget),
    ];
    (any::<u32>(), question).prop_map(|(of, question)| Step { of, question })
}

/// Some thousand steps in groups, which shrink as a whole first.
fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..100), 0..160)
}

fn filesystem(site: &Site) -> FileSystem {
    let repository = Repository::open(&site.repo().as_path().into()).unwrap();
    let hosts = repository.keys().hosts().unwrap();
    // Caches that are too small for all of it.
    FileSystem::of_all(Arc::new(Reader::new(repository, Access::new(None, hosts), 2 << 20)), Box::new(Silent))
}

/// The state of a kernel: inode numbers, their entries, and lookup counts.
struct Kernel<'m> {
    filesystem: FileSystem,
    models: &'m [Model],
    told: HashMap<Ino, (usize, PathBuf, u64)>,
    /// The inode number of each node; `told` has the reverse.
    numbers: BTreeMap<(usize, u64), Ino>,
    /// Every inode number seen so far, and its entry.
    seen: HashMap<Ino, (usize, u64)>,
}

fn whole(filesystem: &FileSystem, ino: Ino) -> Vec<ListingEntry> {
    let mut items = Vec::new();
    let mut take = |item: &ListingEntry| {
        items.push(item.clone());
        true
    };
    filesystem.list(ino, 0, false, &mut take).unwrap();
    items
}

impl<'m> Kernel<'m> {
    /// Goes to the roots of all snapshots.
    fn new(filesystem: FileSystem, models: &'m [Model]) -> Self {
        let mut kernel =
            Kernel { filesystem, models, told: HashMap::new(), numbers: BTreeMap::new(), seen: HashMap::new() };
        let source = kernel.filesystem.lookup(TOP, b"source").unwrap();
        let listed = whole(&kernel.filesystem, source.ino);
        let times: Vec<_> = listed.into_iter().filter(|item| item.attributes.kind == Kind::Directory).collect();
        assert_eq!(times.len(), models.len());
        for (at, time) in times.iter().enumerate() {
            let root = kernel.filesystem.lookup(source.ino, &time.name).unwrap();
            kernel.tell(at, PathBuf::new(), &root);
        }
        kernel
    }

    /// Compares the attributes of an entry, and records its inode number.
    fn tell(&mut self, snapshot: usize, path: PathBuf, said: &Attributes) {
        self.compare(snapshot, &path, said);
        self.told.entry(said.ino).or_insert((snapshot, path, 0)).2 += 1;
    }

    fn compare(&mut self, snapshot: usize, path: &Path, said: &Attributes) {
        let known = &self.models[snapshot][path];
        let shown = path.display();
        assert_eq!((said.kind, said.mode, (said.uid, said.gid)), (known.kind, known.mode, known.owner), "{shown}");
        assert_eq!((said.mtime.seconds, i64::from(said.mtime.nanos)), known.mtime, "{shown}");
        assert_eq!((said.size, u64::from(said.nlink)), (known.size, known.nlink), "{shown}");
        assert_eq!(said.sectors, known.sectors, "{shown}");
        // All names of a node share one number, and each number has one node.
        assert_eq!(*self.numbers.entry((snapshot, known.identity)).or_insert(said.ino), said.ino, "{shown}");
        assert_eq!(*self.seen.entry(said.ino).or_insert((snapshot, known.identity)), (snapshot, known.identity));
    }

    fn step(&mut self, step: &Step) {
        let mut inos: Vec<_> = self.told.keys().copied().collect();
        inos.sort_unstable();
        let ino = inos[part_of(step.of, inos.len() as u64) as usize];
        let (snapshot, path, times) = self.told[&ino].clone();
        let known = &self.models[snapshot][&path];
        let shown = path.display();
        match (&step.question, known.kind) {
            (Question::Content { name, missing, .. }, Kind::Directory) => {
                let name = match missing {
                    Some(missing) => missing.as_bytes().to_vec(),
                    None if known.names.is_empty() => b"missing".to_vec(),
                    None => pick(&known.names, *name).clone(),
                };
                let below = path.join(std::ffi::OsStr::from_bytes(&name));
                match self.filesystem.lookup(ino, &name) {
                    Ok(said) => self.tell(snapshot, below, &said),
                    Err(FileSystemError::NeverThere) => assert!(!known.names.contains(&name), "{}", below.display()),
                    Err(error) => panic!("{}: {error}", below.display()),
                }
            }
            (Question::Parts { from, room, remembered }, Kind::Directory) => {
                let from = part_of(*from, known.names.len() as u64 + 2);
                let mut left = *room;
                let mut items = Vec::new();
                let mut take = |item: &ListingEntry| {
                    let taken = left > 0;
                    left = left.saturating_sub(1);
                    if taken {
                        items.push(item.clone());
                    }
                    taken
                };
                self.filesystem.list(ino, from, *remembered, &mut take).unwrap();
                let expected = known.names.iter().skip(from as usize).take(*room);
                assert!(items.iter().map(|item| &item.name).eq(expected), "{room} of {shown} from {from}");
                for (item, next) in items.into_iter().zip(from + 1..) {
                    assert_eq!(item.next, next, "{shown}");
                    let below = path.join(std::ffi::OsStr::from_bytes(&item.name));
                    match remembered {
                        true => self.tell(snapshot, below, &item.attributes),
                        false => self.compare(snapshot, &below, &item.attributes),
                    }
                }
            }
            (Question::Content { offset, length, .. }, Kind::File) => {
                let offset = part_of(*offset, known.size + known.size / 4 + 2);
                let start = known.content.len().min(offset as usize);
                let end = known.content.len().min(start + length);
                let found = self.filesystem.read(ino, offset, *length, <[u8]>::to_vec).unwrap();
                assert!(found == known.content[start..end], "{length} bytes of {shown} from {offset}");
            }
            (Question::Parts { from, .. }, Kind::File) => {
                let offset = part_of(*from, known.size + 2);
                let inside = known.data.iter().find(|(start, end)| (*start..*end).contains(&offset));
                let next = known.data.iter().map(|(start, _)| *start).find(|start| *start >= offset);
                let to_data = inside.map(|_| offset).or(next);
                let to_hole = (offset < known.size).then(|| inside.map_or(offset, |(_, end)| *end));
                assert_eq!(self.filesystem.seek(ino, offset, Seek::Data).ok(), to_data, "{shown} from {offset}");
                let found = self.filesystem.seek(ino, offset, Seek::Hole).ok();
                assert_eq!(found.is_some(), to_hole.is_some(), "{shown} from {offset}");
                if let (Some(found), Some(to_hole)) = (found, to_hole) {
                    let begins = found == to_hole || known.data.iter().any(|(_, end)| *end == found);
                    assert!(begins, "{shown} from {offset}: {found} is in data");
                    // Small holes count as data as long as they have no more bytes than the data between them.
                    let data =
                        known.data.iter().map(|(start, end)| (*end).min(found).saturating_sub((*start).max(offset)));
                    let data: u64 = data.sum();
                    assert!(found - offset <= 2 * data, "{shown} from {offset}: {found} is after a large hole");
                }
            }
            (Question::Xattrs, _) => {
                let names = self.filesystem.xattr_names(ino).unwrap();
                assert!(names.iter().eq(known.xattrs.keys().map(String::as_bytes)), "{shown}");
                for (name, value) in &known.xattrs {
                    assert_eq!(&self.filesystem.xattr(ino, name.as_bytes()).unwrap(), value, "{name} of {shown}");
                }
                assert!(matches!(self.filesystem.xattr(ino, b"user.x"), Err(FileSystemError::NoAttribute)));
            }
            (Question::Forget(part), _) if !path.as_os_str().is_empty() => {
                let some = 1 + part_of(*part, times);
                self.filesystem.forget(ino, some);
                match times - some {
                    0 => drop(self.told.remove(&ino)),
                    left => self.told.get_mut(&ino).unwrap().2 = left,
                }
            }
            (_, Kind::Symlink) => assert_eq!(self.filesystem.read_link(ino).unwrap(), known.target, "{shown}"),
            _ => {
                let said = self.filesystem.attributes(ino).unwrap();
                assert_eq!(said.ino, ino);
                self.compare(snapshot, &path, &said);
                assert!(matches!(self.filesystem.read_link(ino), Err(FileSystemError::NotALink)));
                let other = match known.kind {
                    Kind::Directory => self.filesystem.read(ino, 0, 1, |_| ()),
                    _ => self.filesystem.list(ino, 0, false, &mut |_| true),
                };
                assert!(other.is_err(), "{shown}");
            }
        }
    }
}

/// The inode number of every entry, by a full walk.
fn numbers(filesystem: &FileSystem) -> BTreeMap<Vec<Vec<u8>>, Ino> {
    let mut found = BTreeMap::new();
    let mut left = vec![(TOP, Vec::new())];
    while let Some((ino, path)) = left.pop() {
        for item in whole(filesystem, ino) {
            let mut below: Vec<Vec<u8>> = path.clone();
            below.push(item.name);
            if item.attributes.kind == Kind::Directory {
                left.push((item.attributes.ino, below.clone()));
            }
            found.insert(below, item.attributes.ino);
        }
    }
    found
}

/// A repository and the models of its snapshots.
struct World {
    site: Site,
    models: Vec<Model>,
}

impl World {
    fn new(source: &[Round]) -> World {
        let site = Site::on_tmpfs();
        site.brackfs(&["init".as_ref(), site.repo().as_os_str(), "--no-encryption".as_ref()]).ok();
        let mut models = Vec::new();
        for (at, round) in source.iter().enumerate() {
            round.apply(&site.source(), at);
            settle();
            // A round may take away most of the files.
            site.backup(&[round.chunk, "--allow-shrink"]).ok();
            models.push(model_of(&site.source()));
            if at + 1 < source.len() {
                // Names of snapshots of one second differ only in ids, which have no order.
                next_second();
            }
        }
        World { site, models }
    }

    fn play(&self, steps: &[Vec<Step>]) {
        let mut kernel = Kernel::new(filesystem(&self.site), &self.models);
        steps.iter().flatten().for_each(|step| kernel.step(step));
        // A full walk, and another one by a second instance.
        let all = numbers(&kernel.filesystem);
        assert_eq!(numbers(&filesystem(&self.site)), all);
        let things: BTreeSet<_> = self
            .models
            .iter()
            .enumerate()
            .flat_map(|(at, model)| model.values().map(move |known| (at, known.identity)))
            .collect();
        let distinct: BTreeSet<_> = all.values().collect();
        // The source, its `latest` and `by-tag` have numbers, too.
        assert_eq!(distinct.len(), things.len() + 3);
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/proptest-regressions/model.txt");
    let config = Config {
        cases: asked.unwrap_or(4),
        // Time limit for shrinking a failed case, in milliseconds.
        max_shrink_time: 120_000,
        // The default limit is a multiple of the number of cases.
        max_shrink_iters: u32::MAX - 1,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..Config::default()
    };
    // Shrinking tries many shorter prefixes of steps on one repository.
    let last: RefCell<Option<(Vec<Round>, World)>> = RefCell::new(None);
    let result = TestRunner::new(config).run(&(steps(), source()), |(steps, source)| {
        let mut last = last.borrow_mut();
        let (_, world) = match last.take() {
            Some(same) if same.0 == source => last.insert(same),
            _ => last.insert((source.clone(), World::new(&source))),
        };
        world.play(&steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn concurrent_readers_of_one_file_system_get_correct_results() {
    let mut source = source().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    source.truncate(1);
    let World { site, models } = World::new(&source);
    let model = &models[0];
    let filesystem = Arc::new(filesystem(&site));
    let source = filesystem.lookup(TOP, b"source").unwrap().ino;
    let time = whole(&filesystem, source).remove(0).name;
    let root = filesystem.lookup(source, &time).unwrap().ino;
    std::thread::scope(|threads| {
        for thread in 0..6 {
            let filesystem = filesystem.clone();
            threads.spawn(move || {
                // Each thread begins at another entry, and none needs more files than the cache holds.
                for (path, known) in model.iter().cycle().skip(thread * model.len() / 6).take(model.len()) {
                    let mut told = Vec::new();
                    let found = path.iter().fold(root, |at, name| {
                        told.push(filesystem.lookup(at, name.as_bytes()).unwrap().ino);
                        told[told.len() - 1]
                    });
                    if known.kind == Kind::File {
                        let bytes = filesystem.read(found, 0, 1 << 30, <[u8]>::to_vec).unwrap();
                        assert!(bytes == known.content, "{}", path.display());
                    }
                    told.into_iter().for_each(|ino| filesystem.forget(ino, 1));
                }
            });
        }
    });
}
