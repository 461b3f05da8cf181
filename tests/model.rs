//! The file system below the mount, without a kernel, against a naive model: what the source held when it was backed
//! up, kept in maps. Random operations must say the same of both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use brackfs::format::Kind;
use brackfs::monitor::Silent;
use brackfs::mount::{Attributes, FileSystem, FileSystemError, Ino, Item};
use brackfs::reader::{Reader, Seek};
use brackfs::repository::{Access, Repository};
use common::ordeal::{Random, rounds};
use common::{Site, set_mode, set_time, settle};
use rustix::fs::{SeekFrom, XattrFlags};

/// The top of what is mounted.
const TOP: Ino = 1;

/// What is known of a thing.
struct Known {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    sectors: u64,
    nlink: u64,
    /// What names of one file have in common.
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

/// Where a file has data.
fn data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        found.push((start, at));
    }
    found
}

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

/// Changes a source: what is new, and what goes.
fn change(source: &Path, random: &mut Random, round: u64) {
    let mut folders = vec![source.to_owned()];
    for at in 0..random.within(3, 12) {
        let folder = random.choose(&folders).join(format!("folder {round} {at}"));
        fs::create_dir(&folder).unwrap();
        folders.push(folder);
    }
    let mut files = Vec::new();
    for at in 0..random.within(5, 60) {
        let path = random.choose(&folders).join(format!("{} {round} {at}", "n".repeat(random.below(200) as usize)));
        match random.below(8) {
            0 => symlink(format!("target {at}"), &path).unwrap(),
            1 if !files.is_empty() => fs::hard_link(random.choose(&files), &path).unwrap(),
            2 => {
                let file = File::create(&path).unwrap();
                // Few extents stand in the entry, many in nodes.
                let (pages, many) = (random.within(1, 400), random.one_in(2));
                file.set_len(pages * 8192 + random.below(9000)).unwrap();
                for page in 0..if many { pages } else { pages.min(9) } {
                    file.write_all_at(&random.bytes(4096), page * 8192).unwrap();
                }
                files.push(path);
            }
            _ => {
                let magnitude = random.below(19);
                let length = random.below(1 << magnitude);
                fs::write(&path, random.bytes(length)).unwrap();
                for name in 0..random.below(4) {
                    let length = random.below(300);
                    let value = random.bytes(length);
                    rustix::fs::setxattr(&path, format!("user.{name}"), &value, XattrFlags::empty()).unwrap();
                }
                set_mode(&path, random.below(0o10000) as u32);
                set_time(&path, random.below(1 << 40) as i64 - (1 << 39), random.below(1_000_000_000) as i64);
                files.push(path);
            }
        }
    }
    if round == 0 {
        let many = random.choose(&folders).join("many");
        fs::create_dir(&many).unwrap();
        for at in 0..random.within(1100, 3000) {
            File::create(many.join(format!("{at}"))).unwrap();
        }
    } else {
        let names: Vec<_> = fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).collect();
        let gone = random.choose(&names);
        if gone.is_dir() && !gone.is_symlink() {
            fs::remove_dir_all(gone).unwrap();
        } else {
            fs::remove_file(gone).unwrap();
        }
    }
}

fn filesystem(site: &Site) -> FileSystem {
    let repository = Repository::open(site.repo().to_str().unwrap()).unwrap();
    let hosts = repository.keys().hosts().unwrap();
    // Caches that are too small for all of it.
    FileSystem::of_all(Reader::new(repository, Access::new(None, hosts), 2 << 20), Box::new(Silent))
}

/// What the kernel would know: numbers, what they stand for, and how often it was told.
struct Kernel<'m> {
    filesystem: FileSystem,
    models: &'m [Model],
    told: HashMap<Ino, (usize, PathBuf, u64)>,
    /// Which number a thing has; the other way round it is found in `told`.
    numbers: BTreeMap<(usize, u64), Ino>,
    /// Every number that was ever seen, and what it stood for.
    seen: HashMap<Ino, (usize, u64)>,
}

fn whole(filesystem: &FileSystem, ino: Ino) -> Vec<Item> {
    let mut items = Vec::new();
    let mut take = |item: &Item| {
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

    /// Compares what is said of a thing, and remembers its number.
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
        // One number for all names of a thing, and one thing for a number.
        assert_eq!(*self.numbers.entry((snapshot, known.identity)).or_insert(said.ino), said.ino, "{shown}");
        assert_eq!(*self.seen.entry(said.ino).or_insert((snapshot, known.identity)), (snapshot, known.identity));
    }

    fn step(&mut self, random: &mut Random) {
        let mut inos: Vec<_> = self.told.keys().copied().collect();
        inos.sort_unstable();
        let ino = *random.choose(&inos);
        let (snapshot, path, times) = self.told[&ino].clone();
        let known = &self.models[snapshot][&path];
        let shown = path.display();
        match (random.below(8), known.kind) {
            (0..=2, Kind::Directory) => {
                let name = match random.one_in(5) || known.names.is_empty() {
                    true => random.choose(&["missing", "n", "folder", "~"]).as_bytes().to_vec(),
                    false => random.choose(&known.names).clone(),
                };
                let below = path.join(std::ffi::OsStr::from_bytes(&name));
                match self.filesystem.lookup(ino, &name) {
                    Ok(said) => self.tell(snapshot, below, &said),
                    Err(FileSystemError::NeverThere) => assert!(!known.names.contains(&name), "{}", below.display()),
                    Err(error) => panic!("{}: {error}", below.display()),
                }
            }
            (3 | 4, Kind::Directory) => {
                let from = random.below(known.names.len() as u64 + 2);
                let mut room = random.below(100) as usize;
                let asked = room;
                let remembered = random.one_in(2);
                let mut items = Vec::new();
                let mut take = |item: &Item| {
                    let taken = room > 0;
                    room = room.saturating_sub(1);
                    if taken {
                        items.push(item.clone());
                    }
                    taken
                };
                self.filesystem.list(ino, from, remembered, &mut take).unwrap();
                let expected = known.names.iter().skip(from as usize).take(items.len());
                assert!(items.iter().map(|item| &item.name).eq(expected), "{shown} from {from}");
                assert_eq!(
                    items.len(),
                    asked.min(known.names.len().saturating_sub(from as usize)),
                    "{shown} from {from}"
                );
                for (item, next) in items.into_iter().zip(from + 1..) {
                    assert_eq!(item.next, next, "{shown}");
                    let below = path.join(std::ffi::OsStr::from_bytes(&item.name));
                    match remembered {
                        true => self.tell(snapshot, below, &item.attributes),
                        false => self.compare(snapshot, &below, &item.attributes),
                    }
                }
            }
            (0..=3, Kind::File) => {
                let magnitude = random.below(20);
                let length = random.below(1 << magnitude) as usize;
                let offset = random.below(known.size + known.size / 4 + 2);
                let start = known.content.len().min(offset as usize);
                let end = known.content.len().min(start + length);
                let found = self.filesystem.read(ino, offset, length, <[u8]>::to_vec).unwrap();
                assert!(found == known.content[start..end], "{length} bytes of {shown} from {offset}");
            }
            (4, Kind::File) => {
                let offset = random.below(known.size + 2);
                let inside = known.data.iter().find(|(start, end)| (*start..*end).contains(&offset));
                let next = known.data.iter().map(|(start, _)| *start).find(|start| *start >= offset);
                let to_data = inside.map(|_| offset).or(next);
                let to_hole = (offset < known.size).then(|| inside.map_or(offset, |(_, end)| *end));
                assert_eq!(self.filesystem.seek(ino, offset, Seek::Data).ok(), to_data, "{shown} from {offset}");
                assert_eq!(self.filesystem.seek(ino, offset, Seek::Hole).ok(), to_hole, "{shown} from {offset}");
            }
            (5, _) => {
                let names = self.filesystem.xattr_names(ino).unwrap();
                assert!(names.iter().eq(known.xattrs.keys().map(String::as_bytes)), "{shown}");
                for (name, value) in &known.xattrs {
                    assert_eq!(&self.filesystem.xattr(ino, name.as_bytes()).unwrap(), value, "{name} of {shown}");
                }
                assert!(matches!(self.filesystem.xattr(ino, b"user.x"), Err(FileSystemError::NoAttribute)));
            }
            (6, _) if !path.as_os_str().is_empty() => {
                let some = random.within(1, times + 1);
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

/// The number of every entry, by walking all.
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

#[test]
fn random_operations_say_what_the_model_says() {
    rounds("model", 4, |mut random| {
        let site = Site::on_tmpfs();
        site.brackfs(&["init".as_ref(), site.repo().as_os_str(), "--no-encryption".as_ref()]).ok();
        let mut models = Vec::new();
        for round in 0..random.within(1, 4) {
            change(&site.source(), &mut random, round);
            settle();
            let chunk = random.choose(&["--chunk-size=16KiB", "--chunk-size=1MiB"]).to_string();
            site.backup(&[&chunk]).ok();
            models.push(model_of(&site.source()));
            // Snapshots of one second are told apart by their ids, which are in no order.
            std::thread::sleep(std::time::Duration::from_millis(1100));
        }
        let mut kernel = Kernel::new(filesystem(&site), &models);
        for _ in 0..4000 {
            kernel.step(&mut random);
        }
        // All of it, and once more by another program.
        let all = numbers(&kernel.filesystem);
        assert_eq!(numbers(&filesystem(&site)), all);
        let things: BTreeSet<_> = models
            .iter()
            .enumerate()
            .flat_map(|(at, model)| model.values().map(move |known| (at, known.identity)))
            .collect();
        let distinct: BTreeSet<_> = all.values().collect();
        // The source, its `latest`, and `by-tag` have numbers as well.
        assert_eq!(distinct.len(), things.len() + 3);
    });
}

#[test]
fn readers_of_one_file_system_are_not_in_each_others_way() {
    let site = Site::on_tmpfs();
    site.brackfs(&["init".as_ref(), site.repo().as_os_str(), "--no-encryption".as_ref()]).ok();
    let mut random = Random::new(1, "side by side");
    change(&site.source(), &mut random, 0);
    settle();
    site.backup(&["--chunk-size=16KiB"]).ok();
    let model = model_of(&site.source());
    let filesystem = Arc::new(filesystem(&site));
    let source = filesystem.lookup(TOP, b"source").unwrap().ino;
    let time = whole(&filesystem, source).remove(0).name;
    let root = filesystem.lookup(source, &time).unwrap().ino;
    std::thread::scope(|threads| {
        for thread in 0..6 {
            let (filesystem, model) = (filesystem.clone(), &model);
            threads.spawn(move || {
                // Each begins elsewhere, and none of them has more files at hand than are kept.
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
