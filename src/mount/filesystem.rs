//! The tree that is shown.
//!
//! ```text
//! all snapshots                                                     one snapshot
//! <source>/<UTC time>/…                                             …
//! <source>/latest -> <UTC time>
//! by-tag/<tag>/<source>-<UTC time> -> ../../<source>/<UTC time>
//! ```

use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::attributes::{Attributes, ListingEntry, Validity, stored_bytes};
use super::error::Error;
use super::links::SharedInodes;
use super::lock::lock;
use super::number::{Ino, Number, VirtualNode};
use super::owners::OwnerMapping;
use super::virtual_tree::{LookupResult, VirtualTree};
use crate::format::entry::Content;
use crate::format::snapshot::Snapshot;
use crate::format::{Entry, Kind};
use crate::monitor::Monitor;
use crate::reader::{EntryHandle, FileReader, Reader, Seek};

/// How long a target may be away before what needs it fails.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is tried whether it is back.
const RETRY: Duration = Duration::from_millis(100);
/// Longest name on Linux, and what it says of longer ones that are not there.
const NAME_MAX: usize = 255;
/// Files that are kept at hand while they are read.
const AT_HAND: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

const XATTR_DIGEST: &[u8] = b"user.brackfs.blake3";
const XATTR_FLAGS: &[u8] = b"user.brackfs.flags";

/// A file system over a reader. Shared by threads.
pub struct FileSystem {
    reader: Arc<Reader>,
    monitor: Arc<dyn Monitor>,
    shown: Shown,
    links: SharedInodes,
    /// The files that were read last, by snapshot and rank: finding an entry is a descent.
    readers: Mutex<LruCache<(u64, u64), Arc<FileReader>>>,
    owners: OwnerMapping,
    /// Since when the target has been away.
    away: Mutex<Option<Instant>>,
}

/// What is shown.
enum Shown {
    /// All snapshots.
    All(Box<VirtualTree>),
    /// What lies at a rank of one, whose number is 0.
    One(Arc<Snapshot>, u64),
}

/// Where an inode number leads to.
enum InodeAddress {
    /// VirtualTree the snapshots.
    Virtual(VirtualNode),
    /// In the snapshot of this number, at this rank.
    Entry(u64, u64),
}

/// What an inode number leads to.
enum MountedNode {
    /// VirtualTree the snapshots.
    Virtual(VirtualNode),
    /// In the snapshot of this number.
    Entry(u64, EntryHandle),
}

impl FileSystem {
    /// All snapshots of a repository, by source and time.
    pub fn of_all(reader: Reader, monitor: Box<dyn Monitor>) -> Self {
        let (reader, monitor) = (Arc::new(reader), Arc::from(monitor));
        let above = VirtualTree::new(Arc::clone(&reader), Arc::clone(&monitor));
        FileSystem::new(reader, monitor, Shown::All(Box::new(above)))
    }

    /// What lies at `entry` of one snapshot.
    pub fn of_one(reader: Reader, snapshot: Arc<Snapshot>, entry: &EntryHandle, monitor: Box<dyn Monitor>) -> Self {
        FileSystem::new(Arc::new(reader), Arc::from(monitor), Shown::One(snapshot, entry.rank))
    }

    fn new(reader: Arc<Reader>, monitor: Arc<dyn Monitor>, shown: Shown) -> Self {
        FileSystem {
            reader,
            monitor,
            shown,
            links: SharedInodes::default(),
            readers: Mutex::new(LruCache::new(AT_HAND)),
            owners: OwnerMapping::default(),
            away: Mutex::default(),
        }
    }

    /// The same with other owners of what is in snapshots.
    #[must_use]
    pub fn with_owners(self, owners: OwnerMapping) -> Self {
        FileSystem { owners, ..self }
    }

    /// Whether nothing of it ever changes: no snapshot comes or goes.
    pub fn is_immutable(&self) -> bool {
        matches!(self.shown, Shown::One(..))
    }

    /// Whether a thing is in a snapshot, or the top of one.
    pub fn is_within(&self, ino: Ino) -> bool {
        self.is_immutable() || matches!(Number::of(ino), Some(Number::Entry(..) | Number::Linked(..)))
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
        match self.thing(parent)? {
            MountedNode::Virtual(place) => match self.above()?.lookup(place, name)? {
                LookupResult::Here(attributes) => Ok(attributes),
                LookupResult::Snapshot(number) => self.attributes(Number::Entry(number, 0).ino()),
            },
            MountedNode::Entry(number, listed) => {
                let directory = listed.directory().ok_or(Error::NotADirectory)?;
                match self.reader.lookup(&directory, name)? {
                    Some(found) => Ok(self.attributes_of(&found, self.tell(number, &found))),
                    None if name.len() > NAME_MAX => Err(Error::NameTooLong),
                    None => Err(Error::NeverThere),
                }
            }
        }
    }

    /// What is known of a thing.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Error> {
        match self.thing(ino)? {
            MountedNode::Virtual(place) => self.above()?.attributes(place),
            MountedNode::Entry(_, listed) => {
                let is_root = !self.is_immutable() && listed.rank == 0;
                let validity = if is_root { Validity::WhileThere } else { Validity::Always };
                Ok(Attributes { validity, ..self.attributes_of(&listed, ino) })
            }
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match self.thing(ino)? {
            MountedNode::Virtual(place) => self.above()?.read_link(place),
            MountedNode::Entry(_, listed) => match &listed.entry().content {
                Content::Target(target) => Ok(target.clone()),
                _ => Err(Error::NotALink),
            },
        }
    }

    /// Entries of a directory from `from` on (0: the first), to `take`, until that says that it has enough by
    /// returning false. An entry that was taken is remembered by the kernel if `remembered` is set.
    pub fn list(
        &self,
        ino: Ino,
        mut from: u64,
        remembered: bool,
        take: &mut dyn FnMut(&ListingEntry) -> bool,
    ) -> Result<(), Error> {
        let (number, listed) = match self.thing(ino)? {
            MountedNode::Virtual(place) => return self.above()?.list(place, from, take),
            MountedNode::Entry(number, listed) => (number, listed),
        };
        let directory = listed.directory().ok_or(Error::NotADirectory)?;
        loop {
            let page = self.reader.list(&directory, from)?;
            if page.is_empty() {
                return Ok(());
            }
            for listed in page {
                from += 1;
                let ino = match remembered {
                    true => self.tell(number, &listed),
                    false => self.ino_of(number, &listed),
                };
                let attributes = self.attributes_of(&listed, ino);
                let item = ListingEntry { name: listed.entry().name.clone(), attributes, next: from };
                if !take(&item) {
                    if remembered {
                        self.forget(ino, 1);
                    }
                    return Ok(());
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
        let InodeAddress::Entry(number, rank) = self.spot(ino)? else { return Err(Error::IsADirectory) };
        if let Some(file) = lock(&self.readers).get(&(number, rank)) {
            return Ok(file.clone());
        }
        let listed = self.entry(number, rank)?;
        match listed.entry().kind {
            Kind::Directory => return Err(Error::IsADirectory),
            Kind::File => {}
            _ => return Err(Error::NotAFile),
        }
        let file = Arc::new(FileReader::new(listed));
        lock(&self.readers).put((number, rank), file.clone());
        Ok(file)
    }

    /// Inode flags of a thing, as Linux numbers them.
    pub fn inode_flags(&self, ino: Ino) -> Result<u32, Error> {
        match self.thing(ino)? {
            MountedNode::Entry(_, listed) => Ok(listed.entry().inode_flags),
            MountedNode::Virtual(_) => Ok(0),
        }
    }

    /// Names of the extended attributes of a thing.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Error> {
        let MountedNode::Entry(_, listed) = self.thing(ino)? else { return Ok(Vec::new()) };
        Ok(listed.entry().xattrs.iter().map(|(name, _)| name.clone()).collect())
    }

    /// An extended attribute. Beside those that were backed up there are two of our own, which are not listed
    /// where they would get copied: `user.brackfs.blake3` and `user.brackfs.flags`.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        let MountedNode::Entry(_, listed) = self.thing(ino)? else { return Err(Error::NoAttribute) };
        let entry = listed.entry();
        if let Ok(at) = entry.xattrs.binary_search_by(|(stored, _)| stored.as_slice().cmp(name)) {
            return entry.xattrs.get(at).map(|(_, value)| value.clone()).ok_or(Error::NoAttribute);
        }
        match name {
            // The digest of a file with holes is not what b3sum prints for it.
            XATTR_DIGEST if stored_bytes(entry) == entry.size => {
                let digest = FileReader::new(listed).digest().ok_or(Error::NoAttribute)?;
                Ok(digest.to_string().into_bytes())
            }
            XATTR_FLAGS if entry.flags & Entry::CHANGED != 0 => Ok(b"changed-while-read".to_vec()),
            _ => Err(Error::NoAttribute),
        }
    }

    /// The kernel forgot `times` answers that named this number.
    pub fn forget(&self, ino: Ino, times: u64) {
        self.links.forget(ino, times);
    }

    /// Bytes and entries, for `df`: those of the snapshot that the thing is in, above that those of all snapshots
    /// that somebody looked at.
    pub fn totals(&self, ino: Ino) -> (u64, u64) {
        let within = match (&self.shown, self.thing(ino)) {
            (Shown::One(snapshot, _), _) => Some(snapshot.clone()),
            (Shown::All(above), Ok(MountedNode::Entry(number, _))) => above.snapshot(number).ok(),
            (Shown::All(_), _) => None,
        };
        if let Some(snapshot) = within {
            return totals_of(&snapshot);
        }
        let mut totals = (0u64, 0u64);
        if let Shown::All(above) = &self.shown {
            above.each_open(|snapshot| {
                let (bytes, entries) = totals_of(snapshot);
                totals = (totals.0.saturating_add(bytes), totals.1.saturating_add(entries));
            });
        }
        totals
    }

    fn thing(&self, ino: Ino) -> Result<MountedNode, Error> {
        match self.spot(ino)? {
            InodeAddress::Virtual(place) => Ok(MountedNode::Virtual(place)),
            InodeAddress::Entry(number, rank) => Ok(MountedNode::Entry(number, self.entry(number, rank)?)),
        }
    }

    fn spot(&self, ino: Ino) -> Result<InodeAddress, Error> {
        match (Number::of(ino).ok_or(Error::NotFound)?, &self.shown) {
            (Number::Virtual(VirtualNode::Top), Shown::One(_, rank)) => Ok(InodeAddress::Entry(0, *rank)),
            (Number::Virtual(place), _) => Ok(InodeAddress::Virtual(place)),
            (Number::Entry(number, rank), _) => Ok(InodeAddress::Entry(number, rank)),
            (Number::Linked(..), _) => {
                let (number, rank) = self.links.place(ino).ok_or(Error::NotFound)?;
                Ok(InodeAddress::Entry(number, rank))
            }
        }
    }

    fn entry(&self, number: u64, rank: u64) -> Result<EntryHandle, Error> {
        let snapshot = self.snapshot(number)?;
        Ok(self.reader.at_rank(&snapshot, rank)?)
    }

    fn snapshot(&self, number: u64) -> Result<Arc<Snapshot>, Error> {
        match &self.shown {
            Shown::All(above) => above.snapshot(number),
            Shown::One(snapshot, _) => Ok(snapshot.clone()),
        }
    }

    /// What stands above the snapshots, where anything does.
    fn above(&self) -> Result<&VirtualTree, Error> {
        match &self.shown {
            Shown::All(above) => Ok(above),
            Shown::One(..) => Err(Error::NotFound),
        }
    }

    fn ino_of(&self, number: u64, listed: &EntryHandle) -> Ino {
        self.links.ino(number, listed.rank, listed.entry())
    }

    /// The number of an entry, which the kernel remembers until [`FileSystem::forget`].
    fn tell(&self, number: u64, listed: &EntryHandle) -> Ino {
        self.links.tell(number, listed.rank, listed.entry())
    }

    fn attributes_of(&self, listed: &EntryHandle, ino: Ino) -> Attributes {
        Attributes::of(listed.entry(), ino, &self.owners)
    }

    /// The path of a thing, for messages.
    fn path_of(&self, ino: Ino) -> PathBuf {
        let mut path = PathBuf::from("/");
        let Ok(InodeAddress::Entry(number, rank)) = self.spot(ino) else { return path };
        if let Shown::All(above) = &self.shown {
            path.extend(above.path_of(number));
        }
        let Ok(snapshot) = self.snapshot(number) else { return path };
        let mut at = EntryHandle::root(snapshot);
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

/// Bytes and entries of a snapshot.
fn totals_of(snapshot: &Snapshot) -> (u64, u64) {
    let statistics = &snapshot.statistics;
    let entries = statistics.files.saturating_add(statistics.directories).saturating_add(statistics.others);
    (statistics.bytes, entries)
}
