//! The tree that is shown.
//!
//! ```text
//! all snapshots                 one snapshot
//! <source>/<UTC time>/…         …
//! <source>/latest -> <UTC time>
//! ```
//!
//! **Inode numbers** say where a thing is, so there is no table to grow: 23 bits count the snapshots as they
//! are found, 40 bits are the entry's rank in its snapshot (its place in a preorder walk; the root has 0). An
//! entry is found again by descending. Names of the same file must share a number, so hard links have the
//! highest bit set and their link's id instead of a rank; which entry that is, is kept while the kernel knows
//! the number.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::owners::Owners;
use crate::format::entry::Content;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::snapshot::Snapshot;
use crate::format::{Entry, Extent, Kind, Timestamp};
use crate::monitor::Monitor;
use crate::reader::{self, FileReader, Listed, Reader, Seek};

/// An inode number.
pub type Ino = u64;

/// The top of what is mounted.
pub const TOP: Ino = 1;
/// Bits of an inode number that are a rank or a hard link's id.
const RANK_BITS: u32 = 40;
const RANKS: u64 = 1 << RANK_BITS;
/// Set in the number of a file with several names.
const LINKED: u64 = 1 << 63;
/// How long a listing of snapshots is believed.
pub(super) const REFRESH: Duration = Duration::from_secs(1);
/// How long a target may be away before what needs it fails.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is tried whether it is back.
const RETRY: Duration = Duration::from_millis(100);
/// What a block of `st_blocks` is.
const SECTOR: u64 = 512;
/// Longest name on Linux, and what it says of longer ones that are not there.
const NAME_MAX: usize = 255;
/// Files that are kept at hand while they are read.
const AT_HAND: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

/// Why the file system can't answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing.
    #[error("not there")]
    NotFound,
    /// There is no such thing, and never will be.
    #[error("not there")]
    NeverThere,
    /// No name is as long.
    #[error("name too long")]
    NameTooLong,
    /// It has no entries.
    #[error("not a directory")]
    NotADirectory,
    /// It has entries and no content.
    #[error("a directory")]
    IsADirectory,
    /// It has no target.
    #[error("not a symbolic link")]
    NotALink,
    /// It has no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// It is no file.
    #[error("not a file")]
    NotAFile,
    /// It can't be changed.
    #[error("read only")]
    ReadOnly,
    /// Nothing of the kind comes after this place in the file.
    #[error("beyond the end")]
    Beyond,
    /// It can't be read, or is not what was written.
    #[error(transparent)]
    Reader(#[from] reader::Error),
}

/// What is known of a thing without reading its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes that are no holes.
    pub sectors: u64,
    /// Last change.
    pub mtime: Timestamp,
    /// Number of names; 1 for directories, which means that it does not count their directories.
    pub nlink: u32,
    /// Device number, as (major, minor).
    pub device: (u32, u32),
    /// Nothing about it will ever change.
    pub lasting: bool,
}

/// An entry of a listing.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its name.
    pub name: Vec<u8>,
    /// What is known of it.
    pub attributes: Attributes,
    /// Where a listing goes on after it.
    pub next: u64,
}

/// A file system over a reader. Shared by threads.
pub struct FileSystem {
    reader: Reader,
    /// The one snapshot, and the rank in it, that is shown; none: all snapshots.
    single: Option<(Arc<Snapshot>, u64)>,
    catalogue: Mutex<Catalogue>,
    /// Hard links that the kernel knows: which entry stands for them, and how often it was told.
    links: Mutex<HashMap<Ino, (u64, u64, u64)>>,
    /// The files that were read last: a read names its file by number, and finding that is a descent.
    readers: Mutex<LruCache<Ino, Arc<FileReader>>>,
    owners: Owners,
    /// Since when the target has been away.
    away: Mutex<Option<Instant>>,
    monitor: Box<dyn Monitor>,
    mounted: Timestamp,
    owner: (u32, u32),
}

/// Snapshots as far as they were looked at.
#[derive(Default)]
struct Catalogue {
    listed: Option<Instant>,
    /// By number; numbers are never given again.
    snapshots: Vec<SnapshotName>,
    open: HashMap<u64, Arc<Snapshot>>,
    sources: Vec<SourceId>,
    names: HashMap<SourceId, String>,
    /// Folders of the top: names, and what they show, by number of the snapshot.
    shown: BTreeMap<String, (u64, BTreeMap<String, u64>)>,
}

/// What an inode number stands for.
enum Place {
    Top,
    /// A source, by number.
    Source(u64),
    Latest(u64),
    Entry(u64, Listed),
}

impl FileSystem {
    /// All snapshots of a repository, by source and time.
    pub fn of_all(reader: Reader, monitor: Box<dyn Monitor>) -> Self {
        FileSystem::new(reader, None, monitor)
    }

    /// What lies at `entry` of one snapshot.
    pub fn of_one(reader: Reader, snapshot: Arc<Snapshot>, entry: &Listed, monitor: Box<dyn Monitor>) -> Self {
        FileSystem::new(reader, Some((snapshot, entry.rank)), monitor)
    }

    fn new(reader: Reader, single: Option<(Arc<Snapshot>, u64)>, monitor: Box<dyn Monitor>) -> Self {
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let now = jiff::Timestamp::now();
        FileSystem {
            reader,
            single,
            catalogue: Mutex::default(),
            links: Mutex::default(),
            readers: Mutex::new(LruCache::new(AT_HAND)),
            owners: Owners::default(),
            away: Mutex::default(),
            monitor,
            mounted: Timestamp { seconds: now.as_second(), nanos: 0 },
            owner,
        }
    }

    /// The same with other owners of what is in snapshots.
    #[must_use]
    pub fn with_owners(self, owners: Owners) -> Self {
        FileSystem { owners, ..self }
    }

    /// Whether nothing of it ever changes: no snapshot comes or goes.
    pub fn is_lasting(&self) -> bool {
        self.single.is_some()
    }

    /// Whether a thing is in a snapshot, or the top of one.
    pub fn is_within(&self, ino: Ino) -> bool {
        self.is_lasting() || ino >> RANK_BITS != 0
    }

    /// The reader below.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Does `act`, again and again while the target is away, but only for so long: who waits for a disk that is not
    /// plugged in again should not wait for ever, and after the first who did so in vain nobody waits.
    pub fn patiently<T>(&self, mut act: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        loop {
            let result = act();
            let failed = matches!(result, Err(Error::Reader(_)));
            if !failed && lock(&self.away).is_none() {
                return result;
            }
            // What is at hand is answered without the target, and says nothing of it.
            if self.reader.repository().is_there() {
                match lock(&self.away).take() {
                    // It came back behind the back of `act`.
                    Some(_) if failed => continue,
                    _ => return result,
                }
            }
            if !failed || lock(&self.away).get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                return result;
            }
            thread::sleep(RETRY);
        }
    }

    /// Says that something could not be read, and what it was.
    pub fn report(&self, ino: Ino, error: &Error) {
        if let Error::Reader(error) = error {
            self.monitor.problem(&self.path_of(ino), &error.to_string());
        }
    }

    /// The entry `name` of a directory. The kernel remembers it until it is forgotten.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Error> {
        match self.place(parent)? {
            Place::Top => {
                let catalogue = self.refreshed()?;
                let name = str::from_utf8(name).map_err(|_| Error::NotFound)?;
                let (source, _) = catalogue.shown.get(name).ok_or(Error::NotFound)?;
                Ok(self.folder(source_ino(*source)))
            }
            Place::Source(source) => {
                let name = str::from_utf8(name).map_err(|_| Error::NotFound)?;
                let number = {
                    let catalogue = self.refreshed()?;
                    let shown = catalogue.snapshots_of(source).ok_or(Error::NotFound)?;
                    if name == LATEST && !shown.is_empty() {
                        return self.latest(&catalogue, source);
                    }
                    *shown.get(name).ok_or(Error::NotFound)?
                };
                self.attributes(snapshot_ino(number, 0))
            }
            Place::Entry(number, listed) => {
                let directory = listed.directory().ok_or(Error::NotADirectory)?;
                match self.reader.lookup(&directory, name)? {
                    Some(found) => Ok(self.told(number, &found)),
                    None if name.len() > NAME_MAX => Err(Error::NameTooLong),
                    None => Err(Error::NeverThere),
                }
            }
            Place::Latest(_) => Err(Error::NotADirectory),
        }
    }

    /// What is known of a thing.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Error> {
        match self.place(ino)? {
            Place::Top | Place::Source(_) => Ok(self.folder(ino)),
            Place::Latest(source) => self.latest(&*self.refreshed()?, source),
            Place::Entry(number, listed) => Ok(self.attributes_of(number, &listed)),
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match self.place(ino)? {
            Place::Latest(source) => {
                let catalogue = self.refreshed()?;
                let shown = catalogue.snapshots_of(source).ok_or(Error::NotFound)?;
                newest(shown).map(|name| name.as_bytes().to_vec()).ok_or(Error::NotFound)
            }
            Place::Entry(_, listed) => match &listed.entry().content {
                Content::Target(target) => Ok(target.clone()),
                _ => Err(Error::NotALink),
            },
            Place::Top | Place::Source(_) => Err(Error::NotALink),
        }
    }

    /// Entries of a directory from `from` on (0: the first), to `take`, until that says that it has enough by
    /// returning false. An entry that was taken is remembered by the kernel if `remembered` is set.
    pub fn list(
        &self,
        ino: Ino,
        mut from: u64,
        remembered: bool,
        take: &mut dyn FnMut(&Item) -> bool,
    ) -> Result<(), Error> {
        let (number, listed) = match self.place(ino)? {
            Place::Top => {
                let catalogue = self.refreshed()?;
                let items = catalogue.shown.iter().map(|(name, (source, _))| (name, self.folder(source_ino(*source))));
                return send(items, from, take);
            }
            Place::Source(source) => {
                let catalogue = self.refreshed()?;
                let shown = catalogue.snapshots_of(source).ok_or(Error::NotFound)?;
                let latest = match shown.is_empty() {
                    true => None,
                    false => Some((&*LATEST_NAME, self.latest(&catalogue, source)?)),
                };
                // Opened when looked at, not when listed: see Attributes::lasting.
                let snapshots = shown.iter().map(|(name, number)| (name, self.folder(snapshot_ino(*number, 0))));
                return send(snapshots.chain(latest), from, take);
            }
            Place::Latest(_) => return Err(Error::NotADirectory),
            Place::Entry(number, listed) => (number, listed),
        };
        let directory = listed.directory().ok_or(Error::NotADirectory)?;
        loop {
            let some = self.reader.list(&directory, from)?;
            if some.is_empty() {
                return Ok(());
            }
            for listed in some {
                from += 1;
                let attributes = self.attributes_of(number, &listed);
                let item = Item { name: listed.entry().name.clone(), attributes, next: from };
                if !take(&item) {
                    return Ok(());
                }
                if remembered {
                    self.tell(number, &listed);
                }
            }
        }
    }

    /// Reads from a file, as many bytes as there are up to `length`.
    pub fn read(&self, ino: Ino, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        Ok(self.file(ino)?.read(&self.reader, offset, length)?)
    }

    /// The next data or hole of a file.
    pub fn seek(&self, ino: Ino, offset: u64, to: Seek) -> Result<u64, Error> {
        self.file(ino)?.seek(&self.reader, offset, to)?.ok_or(Error::Beyond)
    }

    fn file(&self, ino: Ino) -> Result<Arc<FileReader>, Error> {
        if let Some(file) = lock(&self.readers).get(&ino) {
            return Ok(file.clone());
        }
        let Place::Entry(_, listed) = self.place(ino)? else { return Err(Error::IsADirectory) };
        match listed.entry().kind {
            Kind::Directory => return Err(Error::IsADirectory),
            Kind::File => {}
            _ => return Err(Error::NotAFile),
        }
        let file = Arc::new(FileReader::new(listed));
        lock(&self.readers).put(ino, file.clone());
        Ok(file)
    }

    /// Inode flags of a thing, as Linux numbers them.
    pub fn inode_flags(&self, ino: Ino) -> Result<u32, Error> {
        match self.place(ino)? {
            Place::Entry(_, listed) => Ok(listed.entry().inode_flags),
            _ => Ok(0),
        }
    }

    /// Names of the extended attributes of a thing.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Error> {
        let Place::Entry(_, listed) = self.place(ino)? else { return Ok(Vec::new()) };
        Ok(listed.entry().xattrs.iter().map(|(name, _)| name.clone()).collect())
    }

    /// An extended attribute. Beside those that were backed up there are two of our own, which are not listed
    /// where they would get copied: `user.brackfs.blake3` and `user.brackfs.flags`.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        let Place::Entry(_, listed) = self.place(ino)? else { return Err(Error::NoAttribute) };
        let entry = listed.entry();
        if let Ok(at) = entry.xattrs.binary_search_by(|(stored, _)| stored.as_slice().cmp(name)) {
            return entry.xattrs.get(at).map(|(_, value)| value.clone()).ok_or(Error::NoAttribute);
        }
        match name {
            XATTR_DIGEST => {
                let digest = FileReader::new(listed).digest().ok_or(Error::NoAttribute)?;
                Ok(digest.to_string().into_bytes())
            }
            XATTR_FLAGS if entry.flags & Entry::CHANGED != 0 => Ok(b"changed-while-read".to_vec()),
            _ => Err(Error::NoAttribute),
        }
    }

    /// The kernel forgot `times` answers that named this number.
    pub fn forget(&self, ino: Ino, times: u64) {
        if ino & LINKED == 0 {
            return;
        }
        let mut links = lock(&self.links);
        if let Some((_, _, told)) = links.get_mut(&ino) {
            *told = told.saturating_sub(times);
            if *told == 0 {
                links.remove(&ino);
            }
        }
    }

    /// Bytes and entries, for `df`: those of the snapshot that the thing is in, above that those of all snapshots
    /// that somebody looked at.
    pub fn totals(&self, ino: Ino) -> (u64, u64) {
        let within = match (&self.single, self.place(ino)) {
            (Some((snapshot, _)), _) => Some(snapshot.clone()),
            (None, Ok(Place::Entry(number, _))) => self.snapshot(number).ok(),
            (None, _) => None,
        };
        if let Some(snapshot) = within {
            return totals_of(&snapshot);
        }
        let catalogue = lock(&self.catalogue);
        catalogue.open.values().map(|snapshot| totals_of(snapshot)).fold((0, 0), |(bytes, entries), (more, others)| {
            (bytes.saturating_add(more), entries.saturating_add(others))
        })
    }

    fn place(&self, ino: Ino) -> Result<Place, Error> {
        if ino & LINKED != 0 {
            let known = lock(&self.links).get(&ino).copied();
            let (number, rank, _) = known.ok_or(Error::NotFound)?;
            return self.entry(number, rank);
        }
        let (number, low) = (ino >> RANK_BITS, ino % RANKS);
        match (number, low, &self.single) {
            (0, TOP, Some((snapshot, rank))) => Ok(Place::Entry(0, self.reader.at_rank(snapshot, *rank)?)),
            (0, TOP, None) => Ok(Place::Top),
            (0, low, None) if low % 2 == 0 => Ok(Place::Source(low / 2 - 1)),
            (0, low, None) => Ok(Place::Latest(low / 2 - 1)),
            (0, ..) => Err(Error::NotFound),
            (number, rank, _) => self.entry(number - 1, rank),
        }
    }

    fn entry(&self, number: u64, rank: u64) -> Result<Place, Error> {
        let snapshot = self.snapshot(number)?;
        Ok(Place::Entry(number, self.reader.at_rank(&snapshot, rank)?))
    }

    /// The snapshot with this number, opened when it is first needed.
    fn snapshot(&self, number: u64) -> Result<Arc<Snapshot>, Error> {
        if let Some((snapshot, _)) = &self.single {
            return Ok(snapshot.clone());
        }
        let name = {
            let catalogue = lock(&self.catalogue);
            if let Some(open) = catalogue.open.get(&number) {
                return Ok(open.clone());
            }
            let at = usize::try_from(number).unwrap_or(usize::MAX);
            catalogue.snapshots.get(at).cloned().ok_or(Error::NotFound)?
        };
        let (snapshot, _) = self.reader.snapshot(&name)?;
        lock(&self.catalogue).open.insert(number, snapshot.clone());
        Ok(snapshot)
    }

    /// The snapshots, listed anew if the last look is too long ago.
    fn refreshed(&self) -> Result<MutexGuard<'_, Catalogue>, Error> {
        let mut catalogue = lock(&self.catalogue);
        if catalogue.listed.is_some_and(|at| at.elapsed() < REFRESH) {
            return Ok(catalogue);
        }
        let there = self.reader.snapshots()?;
        if there.is_empty() && !self.reader.repository().is_there() {
            return Err(reader::Error::NotFound("the repository is away".into()).into());
        }
        for name in &there {
            if !catalogue.snapshots.contains(name) && catalogue.snapshots.len() < 1 << 22 {
                catalogue.snapshots.push(name.clone());
            }
            if catalogue.sources.contains(&name.source) {
                continue;
            }
            match self.reader.source_name(name.source) {
                Ok(called) => {
                    catalogue.names.insert(name.source, called);
                    catalogue.sources.push(name.source);
                }
                Err(error) => self.monitor.problem(&PathBuf::from(name.object()), &error.to_string()),
            }
        }
        catalogue.show(&there);
        catalogue.listed = Some(Instant::now());
        Ok(catalogue)
    }

    /// A folder that stands in no snapshot, or one of a snapshot not opened yet.
    fn folder(&self, ino: Ino) -> Attributes {
        Attributes {
            ino,
            kind: Kind::Directory,
            mode: 0o755,
            uid: self.owner.0,
            gid: self.owner.1,
            size: 0,
            sectors: 0,
            mtime: self.mounted,
            nlink: 1,
            device: (0, 0),
            lasting: false,
        }
    }

    fn latest(&self, catalogue: &Catalogue, source: u64) -> Result<Attributes, Error> {
        let shown = catalogue.snapshots_of(source).ok_or(Error::NotFound)?;
        let target = newest(shown).ok_or(Error::NotFound)?;
        let folder = self.folder(source_ino(source) + 1);
        Ok(Attributes { kind: Kind::Symlink, mode: 0o777, size: target.len() as u64, ..folder })
    }

    fn ino_of(&self, number: u64, listed: &Listed) -> Ino {
        if let Some((_, rank)) = &self.single
            && listed.rank == *rank
        {
            return TOP;
        }
        match &listed.entry().link {
            Some(link) if link.count > 1 => LINKED | snapshot_ino(number, link.id),
            _ => snapshot_ino(number, listed.rank),
        }
    }

    fn told(&self, number: u64, listed: &Listed) -> Attributes {
        self.tell(number, listed);
        self.attributes_of(number, listed)
    }

    fn attributes_of(&self, number: u64, listed: &Listed) -> Attributes {
        let entry = listed.entry();
        let (uid, gid) = self.owners.shown(entry.uid, entry.gid);
        let device = match entry.content {
            Content::Device(major, minor) => (major, minor),
            _ => (0, 0),
        };
        Attributes {
            ino: self.ino_of(number, listed),
            kind: entry.kind,
            mode: entry.mode,
            uid,
            gid,
            size: entry.size,
            sectors: stored_bytes(entry).div_ceil(SECTOR),
            mtime: entry.mtime,
            nlink: entry.link.map_or(1, |link| link.count.max(1)),
            device,
            lasting: true,
        }
    }

    /// Remembers which entry stands for a hard link that the kernel was told of.
    fn tell(&self, number: u64, listed: &Listed) {
        let ino = self.ino_of(number, listed);
        if ino & LINKED != 0 {
            lock(&self.links).entry(ino).or_insert((number, listed.rank, 0)).2 += 1;
        }
    }

    /// The path of a thing, for messages.
    fn path_of(&self, ino: Ino) -> PathBuf {
        let linked = lock(&self.links).get(&ino).copied();
        let (number, rank) = match linked {
            Some((number, rank, _)) => (number, rank),
            None if ino >> RANK_BITS == 0 => return PathBuf::from("/"),
            None => ((ino >> RANK_BITS) - 1, ino % RANKS),
        };
        let mut path = PathBuf::from("/");
        if self.single.is_none() {
            let catalogue = lock(&self.catalogue);
            if let Some(name) = usize::try_from(number).ok().and_then(|at| catalogue.snapshots.get(at)) {
                path.push(catalogue.names.get(&name.source).cloned().unwrap_or_default());
                path.push(&name.time);
            }
        }
        let Ok(snapshot) = self.snapshot(number) else { return path };
        let mut at = Listed::root(snapshot);
        while let Ok(listed) = &at {
            if listed.rank == rank {
                break;
            }
            let next = listed.directory().map(|directory| self.reader.by_rank(&directory, rank));
            match next {
                Some(Ok(Some(next))) => {
                    path.push(std::ffi::OsString::from_vec(next.entry().name.clone()));
                    at = Ok(next);
                }
                _ => break,
            }
        }
        path
    }
}

impl Catalogue {
    fn snapshots_of(&self, source: u64) -> Option<&BTreeMap<String, u64>> {
        self.shown.values().find(|(number, _)| *number == source).map(|(_, shown)| shown)
    }

    /// Builds the folders anew from the snapshots that are there.
    fn show(&mut self, there: &[SnapshotName]) {
        self.shown.clear();
        for (number, name) in self.snapshots.iter().enumerate() {
            let Some(source) = self.sources.iter().position(|source| *source == name.source) else { continue };
            if !there.contains(name) {
                continue;
            }
            let called = self.names.get(&name.source).cloned().unwrap_or_default();
            // Two sources of one name, or two snapshots of one second, are told apart by their ids.
            let other = self.shown.get(&called).is_some_and(|(shown, _)| *shown != source as u64);
            let folder = if other { format!("{called}-{}", name.source) } else { called };
            let (_, shown) = self.shown.entry(folder).or_insert((source as u64, BTreeMap::new()));
            let time = match shown.contains_key(&name.time) {
                true => format!("{}-{}", name.time, name.id.short()),
                false => name.time.clone(),
            };
            shown.insert(time, number as u64);
        }
    }
}

const LATEST: &str = "latest";
static LATEST_NAME: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| LATEST.to_owned());
const XATTR_DIGEST: &[u8] = b"user.brackfs.blake3";
const XATTR_FLAGS: &[u8] = b"user.brackfs.flags";

/// Names are times, so the newest is the last.
fn newest(shown: &BTreeMap<String, u64>) -> Option<&String> {
    shown.keys().next_back()
}

fn source_ino(source: u64) -> Ino {
    (source + 1) * 2
}

fn snapshot_ino(number: u64, low: u64) -> Ino {
    (number + 1) << RANK_BITS | low
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send<'n>(
    items: impl Iterator<Item = (&'n String, Attributes)>,
    from: u64,
    take: &mut dyn FnMut(&Item) -> bool,
) -> Result<(), Error> {
    for (at, (name, attributes)) in (1..).zip(items).skip(usize::try_from(from).unwrap_or(usize::MAX)) {
        if !take(&Item { name: name.as_bytes().to_vec(), attributes, next: at }) {
            break;
        }
    }
    Ok(())
}

/// Bytes and entries of a snapshot.
fn totals_of(snapshot: &Snapshot) -> (u64, u64) {
    let statistics = &snapshot.statistics;
    let entries = statistics.files.saturating_add(statistics.directories).saturating_add(statistics.others);
    (statistics.bytes, entries)
}

/// Bytes of a file that are no holes.
fn stored_bytes(entry: &Entry) -> u64 {
    match &entry.content {
        Content::Extents { extents, .. } => extents
            .iter()
            .filter(|extent| matches!(extent, Extent::Chunk(_)))
            .fold(0, |sum, extent| sum + extent.length()),
        Content::Nodes { holes, .. } => entry.size.saturating_sub(*holes),
        Content::Target(_) => 0,
        _ => entry.size,
    }
}
