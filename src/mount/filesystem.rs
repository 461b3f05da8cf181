//! The tree that is shown.
//!
//! ```text
//! all snapshots                                                     one snapshot
//! <source>/<UTC time>/…                                             …
//! <source>/latest -> <UTC time>
//! by-tag/<tag>/<source>-<UTC time> -> ../../<source>/<UTC time>
//! ```
//!
//! **Inode numbers** say where a thing is, so there is no table to grow: 23 bits count the snapshots as they
//! are found, 40 bits are the entry's rank in its snapshot (its place in a preorder walk; the root has 0). An
//! entry is found again by descending. Names of the same file must share a number, so hard links have the
//! highest bit set and their link's id instead of a rank; which entry that is, is kept while the kernel knows
//! the number. What stands in no snapshot has none in its number: sources have even ones, `latest` has an odd one that
//! says which snapshot it leads to, and with the highest bit below the snapshot's, 16 bits count tags and 23 the links
//! in them. So no link ever leads elsewhere, and the kernel may keep where they lead.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::catalogue::{Catalogue, Folder};
use super::owners::Owners;
use super::tags::{self, Tags};
use crate::format::entry::Content;
use crate::format::id::SourceId;
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
/// How long it is believed that the tags of a snapshot can't be read.
const TAGS_RETRY: Duration = Duration::from_secs(30);
/// The folder of tags; its folders and links have numbers above.
const BY_TAG: Ino = 1 << (RANK_BITS - 1);
/// Bits of an inode number that say which snapshot a link in a tag's folder leads to.
const LINK_BITS: u32 = 23;
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
    /// How long all this holds.
    pub lasting: Lasting,
}

/// How long what was said of a thing holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// For ever, and so does its name.
    Always,
    /// As long as it is there. It can be removed: it is the root of a snapshot.
    WhileThere,
    /// It changes with the snapshots that there are.
    Briefly,
    /// It is not known yet: who asks for the thing itself is told something else.
    Unknown,
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
    /// When the snapshots were last listed. Held while they are, so that reads need not wait for that.
    listed: Mutex<Option<Instant>>,
    tags: Mutex<Tagged>,
    /// Objects whose damage was reported: each look at the top would come upon it again.
    reported: Mutex<HashSet<String>>,
    /// Hard links that the kernel knows: which entry stands for them, and how often it was told.
    links: Mutex<HashMap<Ino, (u64, u64, u64)>>,
    /// The files that were read last: a read names its file by number, and finding that is a descent.
    readers: Mutex<LruCache<Ino, Arc<FileReader>>>,
    owners: Owners,
    /// Since when the target has been away.
    away: Mutex<Option<Instant>>,
    monitor: Box<dyn Monitor>,
    /// When what stands in no snapshot last changed. Never the same again after a change: the kernel keeps a listing
    /// as long as the time of its folder is what it was.
    changed: Mutex<Timestamp>,
    owner: (u32, u32),
}

/// Tags, and when they were last looked for.
#[derive(Default)]
struct Tagged {
    tags: Tags,
    looked: Option<Instant>,
    all_readable: bool,
}

impl Tagged {
    /// Whether it is time to look again for those that could not be read.
    fn is_due(&self) -> bool {
        !self.all_readable && self.looked.is_some_and(|at| at.elapsed() >= TAGS_RETRY)
    }
}

/// What an inode number stands for.
enum Place {
    Top,
    /// A source, by number.
    Source(u64),
    /// The link to the newest snapshot of a source, by the snapshot's number.
    Latest(u64),
    ByTag,
    /// A tag, by number.
    Tag(u64),
    /// In the folder of a tag, the link to a snapshot, both by number.
    Link(u64, u64),
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
        FileSystem {
            reader,
            single,
            catalogue: Mutex::new(Catalogue::new(BY_TAG_NAME)),
            listed: Mutex::default(),
            tags: Mutex::default(),
            reported: Mutex::default(),
            links: Mutex::default(),
            readers: Mutex::new(LruCache::new(AT_HAND)),
            owners: Owners::default(),
            away: Mutex::default(),
            monitor,
            changed: Mutex::new(now()),
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
            Place::Top if name == BY_TAG_NAME.as_bytes() => Ok(self.folder(BY_TAG)),
            Place::Top => {
                let source = self.refreshed()?.top().get(text(name)?).ok_or(Error::NotFound)?;
                Ok(self.folder(source_ino(source)))
            }
            Place::Source(source) => {
                let number = {
                    let catalogue = self.refreshed()?;
                    let shown = catalogue.snapshots_of(source).ok_or(Error::NotFound)?;
                    if name == LATEST.as_bytes() {
                        return self.latest(&catalogue, shown.last().ok_or(Error::NotFound)?);
                    }
                    shown.get(text(name)?).ok_or(Error::NotFound)?
                };
                self.attributes(snapshot_ino(number, 0))
            }
            Place::ByTag => {
                let tag = self.tagged()?.tags.top().get(text(name)?).ok_or(Error::NotFound)?;
                Ok(self.folder(tag_ino(tag)))
            }
            Place::Tag(tag) => {
                let number = {
                    let tagged = self.tagged()?;
                    let links = tagged.tags.links_of(tag).ok_or(Error::NotFound)?;
                    links.get(text(name)?).ok_or(Error::NotFound)?
                };
                self.link(&lock(&self.catalogue), tag, number)
            }
            Place::Entry(number, listed) => {
                let directory = listed.directory().ok_or(Error::NotADirectory)?;
                match self.reader.lookup(&directory, name)? {
                    Some(found) => Ok(self.told(number, &found)),
                    None if name.len() > NAME_MAX => Err(Error::NameTooLong),
                    None => Err(Error::NeverThere),
                }
            }
            Place::Latest(_) | Place::Link(..) => Err(Error::NotADirectory),
        }
    }

    /// What is known of a thing.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Error> {
        match self.place(ino)? {
            Place::Top => {
                self.look();
                Ok(self.folder(ino))
            }
            Place::Source(source) => {
                self.look();
                lock(&self.catalogue).snapshots_of(source).ok_or(Error::NotFound)?;
                Ok(self.folder(ino))
            }
            Place::ByTag => {
                self.look_for_tags();
                Ok(self.folder(ino))
            }
            Place::Tag(tag) => {
                self.look_for_tags();
                lock(&self.tags).tags.links_of(tag).ok_or(Error::NotFound)?;
                Ok(self.folder(ino))
            }
            Place::Latest(number) => self.latest(&*self.refreshed()?, number),
            Place::Link(tag, number) => self.link(&*self.refreshed()?, tag, number),
            Place::Entry(number, listed) => {
                let attributes = self.attributes_of(number, &listed);
                let is_root = self.single.is_none() && listed.rank == 0;
                let lasting = if is_root { Lasting::WhileThere } else { Lasting::Always };
                Ok(Attributes { lasting, ..attributes })
            }
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match self.place(ino)? {
            Place::Latest(number) => {
                let catalogue = self.refreshed()?;
                let (_, newest) = catalogue.shown(number).ok_or(Error::NotFound)?;
                Ok(newest.as_bytes().to_vec())
            }
            Place::Link(_, number) => {
                let target = tags::target(&*self.refreshed()?, number).ok_or(Error::NotFound)?;
                Ok(target.into_bytes())
            }
            Place::Entry(_, listed) => match &listed.entry().content {
                Content::Target(target) => Ok(target.clone()),
                _ => Err(Error::NotALink),
            },
            Place::Top | Place::Source(_) | Place::ByTag | Place::Tag(_) => Err(Error::NotALink),
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
                let sources = catalogue.top().behind(from);
                let sources =
                    sources.map(|(name, source)| (name, Folder::place(source), self.folder(source_ino(source))));
                let by_tag = (from != LAST).then(|| (BY_TAG_NAME, LAST, self.folder(BY_TAG)));
                send(sources.chain(by_tag), take);
                return Ok(());
            }
            Place::Source(source) => {
                let catalogue = self.refreshed()?;
                let shown = catalogue.snapshots_of(source).ok_or(Error::NotFound)?;
                // Opened when looked at, not when listed.
                let unopened =
                    |number| Attributes { lasting: Lasting::Unknown, ..self.folder(snapshot_ino(number, 0)) };
                let snapshots =
                    shown.behind(from).map(|(name, number)| (name, Folder::place(number), unopened(number)));
                let newest = shown.last().filter(|_| from != LAST);
                let latest = newest.map(|number| self.latest(&catalogue, number)).transpose()?;
                send(snapshots.chain(latest.map(|latest| (LATEST, LAST, latest))), take);
                return Ok(());
            }
            Place::ByTag => {
                let tagged = self.tagged()?;
                let folders = tagged.tags.top().behind(from);
                send(folders.map(|(name, tag)| (name, Folder::place(tag), self.folder(tag_ino(tag)))), take);
                return Ok(());
            }
            Place::Tag(tag) => {
                let tagged = self.tagged()?;
                let catalogue = lock(&self.catalogue);
                let links = tagged.tags.links_of(tag).ok_or(Error::NotFound)?.behind(from);
                let links = links.filter_map(|(name, number)| {
                    Some((name, Folder::place(number), self.link(&catalogue, tag, number).ok()?))
                });
                send(links, take);
                return Ok(());
            }
            Place::Latest(_) | Place::Link(..) => return Err(Error::NotADirectory),
            Place::Entry(number, listed) => (number, listed),
        };
        let directory = listed.directory().ok_or(Error::NotADirectory)?;
        loop {
            let page = self.reader.list(&directory, from)?;
            if page.is_empty() {
                return Ok(());
            }
            for listed in page {
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

    /// Hands bytes of a file, as many as there are up to `length`, to `use_bytes`.
    pub fn read<T>(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        use_bytes: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        Ok(self.file(ino)?.read(&self.reader, offset, length, use_bytes)?)
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
        catalogue.all_open().map(|snapshot| totals_of(snapshot)).fold((0, 0), |(bytes, entries), (more, others)| {
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
            (0, BY_TAG, None) => Ok(Place::ByTag),
            (0, low, None) if low > BY_TAG => {
                let (tag, link) = ((low - BY_TAG) >> LINK_BITS, low % (1 << LINK_BITS));
                let tag = tag.checked_sub(1).ok_or(Error::NotFound)?;
                Ok(link.checked_sub(1).map_or(Place::Tag(tag), |snapshot| Place::Link(tag, snapshot)))
            }
            (0, low, None) => {
                let of = (low / 2).checked_sub(1).ok_or(Error::NotFound)?;
                Ok(if low % 2 == 0 { Place::Source(of) } else { Place::Latest(of) })
            }
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
            let mut catalogue = lock(&self.catalogue);
            // Also if it was removed: who is in it may stay.
            if let Some(open) = catalogue.open(number) {
                return Ok(open);
            }
            catalogue.name(number).cloned().ok_or(Error::NotFound)?
        };
        let (snapshot, _) = self.reader.snapshot(&name)?;
        lock(&self.catalogue).keep(number, snapshot.clone());
        Ok(snapshot)
    }

    /// The snapshots, listed anew if the last look is too long ago.
    fn refreshed(&self) -> Result<MutexGuard<'_, Catalogue>, Error> {
        let mut listed = lock(&self.listed);
        if listed.is_none_or(|at| at.elapsed() >= REFRESH) {
            let there = self.reader.snapshots()?;
            if there.is_empty() && !self.reader.repository().is_there() {
                return Err(reader::Error::NotFound("the repository is away".into()).into());
            }
            let unnamed = lock(&self.catalogue).unnamed(&there);
            let names = unnamed.into_iter().filter_map(|id| Some((id, self.source_name(id)?))).collect();
            if lock(&self.catalogue).update(there, names) {
                self.change();
            }
            *listed = Some(Instant::now());
        }
        Ok(lock(&self.catalogue))
    }

    /// Lists the snapshots anew, if it is time and they can be. What is only asked for the sake of the way through it
    /// must not fail while the target is away.
    fn look(&self) {
        drop(self.refreshed());
    }

    /// The same, and if it is time to look again for tags that could not be read, whoever kept a listing of them may not
    /// keep it. No snapshot is opened for that: it could take long.
    fn look_for_tags(&self) {
        self.look();
        if self.tags.try_lock().is_ok_and(|tagged| tagged.is_due()) {
            self.change();
        }
    }

    /// Takes note that what stands in no snapshot has changed.
    fn change(&self) {
        let mut changed = lock(&self.changed);
        let next = match changed.nanos.checked_add(1).filter(|nanos| *nanos < 1_000_000_000) {
            Some(nanos) => Timestamp { nanos, ..*changed },
            None => Timestamp { seconds: changed.seconds.saturating_add(1), nanos: 0 },
        };
        // The clock may have been set back.
        *changed = now().max(next);
    }

    fn source_name(&self, id: SourceId) -> Option<String> {
        let name = self.reader.source_name(id);
        name.map_err(|error| self.report_once(&crate::format::name::source(id), &error)).ok()
    }

    /// Reports damage of an object that every look comes upon.
    fn report_once(&self, object: &str, error: &reader::Error) {
        if lock(&self.reported).insert(object.to_owned()) {
            self.monitor.problem(object.as_ref(), &error.to_string());
        }
    }

    /// The tags of all snapshots that are there: each is opened for that the first time.
    fn tagged(&self) -> Result<MutexGuard<'_, Tagged>, Error> {
        let mut tagged = lock(&self.tags);
        let unknown: Vec<_> = {
            let catalogue = self.refreshed()?;
            if tagged.tags.is_up_to_date(&catalogue) && !tagged.is_due() {
                return Ok(tagged);
            }
            let unknown = catalogue.there().iter().filter(|number| !tagged.tags.knows(**number));
            unknown.filter_map(|number| Some((*number, catalogue.name(*number)?.clone()))).collect()
        };
        tagged.all_readable = true;
        let mut found = false;
        for (number, name) in unknown {
            match self.reader.snapshot(&name) {
                Ok((snapshot, _)) => {
                    tagged.tags.add(number, &snapshot.tags);
                    found = true;
                }
                Err(error) => {
                    tagged.all_readable = false;
                    self.report_once(&name.object(), &error);
                }
            }
        }
        tagged.looked = Some(Instant::now());
        let catalogue = lock(&self.catalogue);
        if !tagged.tags.is_up_to_date(&catalogue) || found {
            tagged.tags.show(&catalogue);
            drop(catalogue);
            self.change();
        }
        Ok(tagged)
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
            mtime: *lock(&self.changed),
            nlink: 1,
            device: (0, 0),
            lasting: Lasting::Briefly,
        }
    }

    /// A symbolic link that stands in no snapshot.
    fn symlink(&self, ino: Ino, target: &str) -> Attributes {
        Attributes { kind: Kind::Symlink, mode: 0o777, size: target.len() as u64, ..self.folder(ino) }
    }

    fn latest(&self, catalogue: &Catalogue, number: u64) -> Result<Attributes, Error> {
        let (_, newest) = catalogue.shown(number).ok_or(Error::NotFound)?;
        Ok(self.symlink(latest_ino(number), newest))
    }

    fn link(&self, catalogue: &Catalogue, tag: u64, snapshot: u64) -> Result<Attributes, Error> {
        let target = tags::target(catalogue, snapshot).ok_or(Error::NotFound)?;
        Ok(self.symlink(tag_ino(tag) | (snapshot + 1), &target))
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
            lasting: Lasting::Always,
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
            if let Some((source, time)) = catalogue.shown(number) {
                path.extend([source, time]);
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

const LATEST: &str = "latest";
const BY_TAG_NAME: &str = "by-tag";
/// Where a listing is after what comes behind all that have numbers.
const LAST: u64 = 1 << 60;
const XATTR_DIGEST: &[u8] = b"user.brackfs.blake3";
const XATTR_FLAGS: &[u8] = b"user.brackfs.flags";

fn source_ino(source: u64) -> Ino {
    (source + 1) * 2
}

fn latest_ino(snapshot: u64) -> Ino {
    (snapshot + 1) * 2 + 1
}

fn tag_ino(tag: u64) -> Ino {
    BY_TAG | (tag + 1) << LINK_BITS
}

fn snapshot_ino(number: u64, low: u64) -> Ino {
    (number + 1) << RANK_BITS | low
}

fn now() -> Timestamp {
    let now = jiff::Timestamp::now();
    Timestamp { seconds: now.as_second(), nanos: now.subsec_nanosecond().unsigned_abs() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a name has to be where all names are text.
fn text(name: &[u8]) -> Result<&str, Error> {
    str::from_utf8(name).map_err(|_| Error::NotFound)
}

/// Hands out names, places after them, and attributes, until `take` has enough.
fn send<'n>(items: impl Iterator<Item = (&'n str, u64, Attributes)>, take: &mut dyn FnMut(&Item) -> bool) {
    for (name, next, attributes) in items {
        if !take(&Item { name: name.as_bytes().to_vec(), attributes, next }) {
            break;
        }
    }
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
