//! The mounted tree.
//!
//! ```text
//! all snapshots                                                     one snapshot
//! <source>/<UTC time>/…                                             …
//! <source>/latest -> <UTC time>
//! by-tag/<tag>/<source>-<UTC time> -> ../../<source>/<UTC time>
//! ```

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::attributes::{Attributes, ListingEntry, Validity};
use super::error::Error;
use super::links::SharedInodes;
use super::lock::lock;
use super::number::{Ino, Number, VirtualNode};
use super::owners::OwnerMapping;
use super::virtual_tree::{LookupResult, VirtualTree};
use crate::archive::{self, Archive, EntryHandle, FileContent, OpenSnapshot, Seek};
use crate::failure::Failure;
use crate::format::Kind;
use crate::monitor::Monitor;

/// Maximum length of a name on Linux, in bytes.
const NAME_MAX: usize = 255;
/// Number of open files to keep.
const KEPT_CONTENTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

const XATTR_DIGEST: &[u8] = b"user.brackfs.blake3";
const XATTR_FLAGS: &[u8] = b"user.brackfs.flags";

/// A read-only file system over an archive. Threads share it.
pub struct FileSystem {
    archive: Arc<dyn Archive>,
    monitor: Arc<dyn Monitor>,
    shown: Shown,
    links: SharedInodes,
    /// Recently read files by snapshot and rank, since finding an entry takes a descent from the root.
    contents: Mutex<LruCache<(u64, u64), Arc<dyn FileContent>>>,
    owners: OwnerMapping,
}

/// The content of the mount.
enum Shown {
    /// All snapshots.
    All(Box<VirtualTree>),
    /// The directory at a rank of one snapshot, whose number is 0.
    One(Arc<OpenSnapshot>, u64),
}

/// The location of an inode.
enum InodeAddress {
    /// Above the snapshots.
    Virtual(VirtualNode),
    /// A snapshot's number and a rank in it.
    Entry(u64, u64),
}

/// An inode.
enum MountedNode {
    /// Above the snapshots.
    Virtual(VirtualNode),
    /// A snapshot's number and an entry in it.
    Entry(u64, EntryHandle),
}

impl FileSystem {
    /// Creates a file system of all snapshots, by source and time.
    pub fn of_all(archive: Arc<dyn Archive>, monitor: Box<dyn Monitor>) -> Self {
        let monitor = Arc::from(monitor);
        let tree = VirtualTree::new(Arc::clone(&archive), Arc::clone(&monitor));
        FileSystem::new(archive, monitor, Shown::All(Box::new(tree)))
    }

    /// Lists the snapshots and opens the newest one, so that a wrong key is found at once, and the first access need not do
    /// it. The inner error is that of the newest snapshot, which the first access tries again.
    pub fn open_newest(&self) -> Result<Result<(), archive::Error>, archive::Error> {
        match &self.shown {
            Shown::All(tree) => tree.open_newest(),
            Shown::One(..) => Ok(Ok(())),
        }
    }

    /// Creates a file system of the directory `entry` of one snapshot.
    pub fn of_one(
        archive: Arc<dyn Archive>,
        snapshot: Arc<OpenSnapshot>,
        entry: &EntryHandle,
        monitor: Box<dyn Monitor>,
    ) -> Self {
        FileSystem::new(archive, Arc::from(monitor), Shown::One(snapshot, entry.rank))
    }

    fn new(archive: Arc<dyn Archive>, monitor: Arc<dyn Monitor>, shown: Shown) -> Self {
        FileSystem {
            archive,
            monitor,
            shown,
            links: SharedInodes::default(),
            contents: Mutex::new(LruCache::new(KEPT_CONTENTS)),
            owners: OwnerMapping::default(),
        }
    }

    /// Replaces the owner mapping for entries of snapshots.
    #[must_use]
    pub fn with_owners(self, owners: OwnerMapping) -> Self {
        FileSystem { owners, ..self }
    }

    /// Whether the tree never changes: it is one snapshot.
    pub fn is_immutable(&self) -> bool {
        matches!(self.shown, Shown::One(..))
    }

    /// Whether an inode is in a snapshot or the root of one.
    pub fn is_within(&self, ino: Ino) -> bool {
        self.is_immutable() || matches!(Number::of(ino), Some(Number::Entry(..) | Number::Linked(..)))
    }

    /// The archive that is shown.
    pub fn archive(&self) -> &dyn Archive {
        &*self.archive
    }

    /// Reports a read error to the monitor, with the path of the inode.
    pub fn report(&self, ino: Ino, error: &Error) {
        if let Error::Archive(error) = error {
            let hint = if self.is_forgotten(ino, error) {
                "; the snapshot was forgotten and its data was removed"
            } else {
                ""
            };
            let (path, message) = (self.path_of(ino), format!("{error}{hint}"));
            match error.lost_object() {
                Some(object) => self.monitor.problem_of(&object, &path, &message),
                None => self.monitor.problem(&path, &message),
            }
        }
    }

    fn is_forgotten(&self, ino: Ino, error: &archive::Error) -> bool {
        let Ok(InodeAddress::Entry(number, _)) = self.address(ino) else { return false };
        self.snapshot(number).is_ok_and(|snapshot| self.archive.is_forgotten(&snapshot.name, error))
    }

    /// Looks up a name in a directory. Counts as one lookup of the inode, until [`FileSystem::forget`].
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, Error> {
        match self.node(parent)? {
            MountedNode::Virtual(place) => match self.virtual_tree()?.lookup(place, name)? {
                LookupResult::Here(attributes) => Ok(attributes),
                LookupResult::Snapshot(number) => self.attributes(Number::Entry(number, 0).ino()),
            },
            MountedNode::Entry(number, listed) => {
                let directory = listed.directory().ok_or(Error::NotADirectory)?;
                match self.archive.lookup(&directory, name)? {
                    Some(found) => Ok(self.attributes_of(&found, self.ino_counted(number, &found))),
                    None if name.len() > NAME_MAX => Err(Error::NameTooLong),
                    None => Err(Error::NeverThere),
                }
            }
        }
    }

    /// Returns the attributes of an inode.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Error> {
        match self.node(ino)? {
            MountedNode::Virtual(place) => self.virtual_tree()?.attributes(place),
            MountedNode::Entry(_, listed) => {
                let is_root = !self.is_immutable() && listed.rank == 0;
                let validity = if is_root { Validity::WhileThere } else { Validity::Always };
                Ok(Attributes { validity, ..self.attributes_of(&listed, ino) })
            }
        }
    }

    /// Returns the target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        match self.node(ino)? {
            MountedNode::Virtual(place) => self.virtual_tree()?.read_link(place),
            MountedNode::Entry(_, listed) => match listed.entry().kind {
                Kind::Symlink => Ok(listed.entry().target.to_vec()),
                _ => Err(Error::NotALink),
            },
        }
    }

    /// Calls `take` with the entries of a directory from offset `from` on (0: the first), until it returns false. With
    /// `counted`, each entry taken counts as one lookup of its inode.
    pub fn list(
        &self,
        ino: Ino,
        mut from: u64,
        counted: bool,
        take: &mut dyn FnMut(&ListingEntry) -> bool,
    ) -> Result<(), Error> {
        let (number, listed) = match self.node(ino)? {
            MountedNode::Virtual(place) => return self.virtual_tree()?.list(place, from, take),
            MountedNode::Entry(number, listed) => (number, listed),
        };
        let directory = listed.directory().ok_or(Error::NotADirectory)?;
        if from == 0 {
            self.archive.prefetch_after(&listed);
        }
        loop {
            let page = self.archive.list(&directory, from)?;
            if page.is_empty() {
                return Ok(());
            }
            for listed in page {
                from += 1;
                let ino = if counted { self.ino_counted(number, &listed) } else { self.ino_of(number, &listed) };
                let attributes = self.attributes_of(&listed, ino);
                let item = ListingEntry { name: listed.entry().name.to_vec(), attributes, next: from };
                if !take(&item) {
                    if counted {
                        self.forget(ino, 1);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Calls `use_bytes` with up to `length` bytes of a file from `offset` on; fewer at the end of the file.
    pub fn read<T>(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        use_bytes: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Error> {
        Ok(self.file(ino)?.read(offset, length, use_bytes)?)
    }

    /// Returns the offset of the next data or hole of a file.
    pub fn seek(&self, ino: Ino, offset: u64, to: Seek) -> Result<u64, Error> {
        self.file(ino)?.seek(offset, to)?.ok_or(Error::Beyond)
    }

    fn file(&self, ino: Ino) -> Result<Arc<dyn FileContent>, Error> {
        let InodeAddress::Entry(number, rank) = self.address(ino)? else { return Err(Error::IsADirectory) };
        if let Some(file) = lock(&self.contents).get(&(number, rank)) {
            return Ok(file.clone());
        }
        let listed = self.entry(number, rank)?;
        match listed.entry().kind {
            Kind::Directory => return Err(Error::IsADirectory),
            Kind::File => {}
            _ => return Err(Error::NotAFile),
        }
        let file = self.archive.content(&listed)?;
        lock(&self.contents).put((number, rank), file.clone());
        Ok(file)
    }

    /// Returns the inode flags, as Linux numbers them.
    pub fn inode_flags(&self, ino: Ino) -> Result<u32, Error> {
        match self.node(ino)? {
            MountedNode::Entry(_, listed) => Ok(listed.entry().inode_flags),
            MountedNode::Virtual(_) => Ok(0),
        }
    }

    /// Returns the names of an inode's extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>, Error> {
        let MountedNode::Entry(_, listed) = self.node(ino)? else { return Ok(Vec::new()) };
        Ok(listed.entry().xattrs.iter().map(|(name, _)| name.clone()).collect())
    }

    /// Returns an extended attribute. In addition to the stored ones there are `user.brackfs.blake3` and
    /// `user.brackfs.flags`, which are not listed, so that programs do not copy them.
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        let MountedNode::Entry(_, listed) = self.node(ino)? else { return Err(Error::NoAttribute) };
        let entry = listed.entry();
        if let Ok(at) = entry.xattrs.binary_search_by(|(stored, _)| stored.as_slice().cmp(name)) {
            return entry.xattrs.get(at).map(|(_, value)| value.clone()).ok_or(Error::NoAttribute);
        }
        match name {
            // The digest of a file with holes differs from the one b3sum prints.
            XATTR_DIGEST if listed.stored_bytes() == entry.size => {
                let digest = listed.digest().ok_or(Error::NoAttribute)?;
                Ok(digest.to_string().into_bytes())
            }
            XATTR_FLAGS if entry.is_changed() => Ok(b"changed-while-read".to_vec()),
            _ => Err(Error::NoAttribute),
        }
    }

    /// Reduces the lookup count of an inode by `times`.
    pub fn forget(&self, ino: Ino, times: u64) {
        self.links.forget(ino, times);
    }

    /// Returns bytes and entries for statfs(2): of the snapshot with the inode, or above the snapshots of all open ones.
    pub fn totals(&self, ino: Ino) -> (u64, u64) {
        let within = match (&self.shown, self.node(ino)) {
            (Shown::One(snapshot, _), _) => Some(snapshot.clone()),
            (Shown::All(tree), Ok(MountedNode::Entry(number, _))) => tree.snapshot(number).ok(),
            (Shown::All(_), _) => None,
        };
        if let Some(snapshot) = within {
            return totals_of(&snapshot);
        }
        let mut totals = (0u64, 0u64);
        if let Shown::All(tree) = &self.shown {
            tree.each_open(|snapshot| {
                let (bytes, entries) = totals_of(snapshot);
                totals = (totals.0.saturating_add(bytes), totals.1.saturating_add(entries));
            });
        }
        totals
    }

    fn node(&self, ino: Ino) -> Result<MountedNode, Error> {
        match self.address(ino)? {
            InodeAddress::Virtual(place) => Ok(MountedNode::Virtual(place)),
            InodeAddress::Entry(number, rank) => Ok(MountedNode::Entry(number, self.entry(number, rank)?)),
        }
    }

    fn address(&self, ino: Ino) -> Result<InodeAddress, Error> {
        match (Number::of(ino).ok_or(Error::NotFound)?, &self.shown) {
            (Number::Virtual(VirtualNode::Top), Shown::One(_, rank)) => Ok(InodeAddress::Entry(0, *rank)),
            (Number::Virtual(place), _) => Ok(InodeAddress::Virtual(place)),
            (Number::Entry(number, rank), _) => Ok(InodeAddress::Entry(number, rank)),
            (Number::Linked(..), _) => {
                let (number, rank) = self.links.entry(ino).ok_or(Error::NotFound)?;
                Ok(InodeAddress::Entry(number, rank))
            }
        }
    }

    fn entry(&self, number: u64, rank: u64) -> Result<EntryHandle, Error> {
        let snapshot = self.snapshot(number)?;
        Ok(self.archive.at_rank(&snapshot, rank)?)
    }

    fn snapshot(&self, number: u64) -> Result<Arc<OpenSnapshot>, Error> {
        match &self.shown {
            Shown::All(tree) => tree.snapshot(number),
            Shown::One(snapshot, _) => Ok(snapshot.clone()),
        }
    }

    /// Returns the tree above the snapshots; an error if only one snapshot is mounted.
    fn virtual_tree(&self) -> Result<&VirtualTree, Error> {
        match &self.shown {
            Shown::All(tree) => Ok(tree),
            Shown::One(..) => Err(Error::NotFound),
        }
    }

    fn ino_of(&self, number: u64, listed: &EntryHandle) -> Ino {
        self.links.ino(number, listed)
    }

    /// Returns the inode number of an entry and counts a lookup of it, until [`FileSystem::forget`].
    fn ino_counted(&self, number: u64, listed: &EntryHandle) -> Ino {
        self.links.ino_counted(number, listed)
    }

    fn attributes_of(&self, listed: &EntryHandle, ino: Ino) -> Attributes {
        Attributes::of(listed, ino, &self.owners)
    }

    /// Returns the path of an inode, for messages.
    fn path_of(&self, ino: Ino) -> PathBuf {
        let mut path = PathBuf::from("/");
        let Ok(InodeAddress::Entry(number, rank)) = self.address(ino) else { return path };
        if let Shown::All(tree) = &self.shown {
            path.extend(tree.path_of(number));
        }
        let Ok(snapshot) = self.snapshot(number) else { return path };
        let mut at = snapshot.root.clone();
        while at.rank != rank {
            let next = at.directory().map(|directory| self.archive.by_rank(&directory, rank));
            let Some(Ok(Some(next))) = next else { break };
            path.push(OsStr::from_bytes(next.entry().name));
            at = next;
        }
        path
    }
}

/// Returns the number of bytes and of entries of a snapshot.
fn totals_of(snapshot: &OpenSnapshot) -> (u64, u64) {
    let statistics = &snapshot.statistics;
    let entries = statistics.files.saturating_add(statistics.directories).saturating_add(statistics.others);
    (statistics.bytes, entries)
}

#[cfg(test)]
mod tests {
    use super::super::number::TOP;
    use super::*;
    use crate::archive::memory::{MemoryArchive, MemoryEntry};
    use crate::monitor::Silent;

    #[test]
    fn an_archive_of_another_format_is_shown() {
        let files = ["1", "2", "3"].map(|name| MemoryEntry::file(name, name.as_bytes()));
        let archive = MemoryArchive::new(vec![vec![MemoryEntry::directory("d", files.to_vec())]]);
        let filesystem = FileSystem::of_all(Arc::new(archive), Box::new(Silent));
        let path = ["memory", "20261101T010000Z", "d"];
        let directory = path.iter().fold(TOP, |at, name| filesystem.lookup(at, name.as_bytes()).unwrap().ino);
        let mut content = Vec::new();
        filesystem
            .list(directory, 0, false, &mut |item| {
                let bytes = filesystem.read(item.attributes.ino, 0, 10, <[u8]>::to_vec).unwrap();
                content.push((item.name.clone(), bytes));
                true
            })
            .unwrap();
        assert_eq!(content, ["1", "2", "3"].map(|name| (name.into(), name.into())));
        assert!(matches!(filesystem.lookup(directory, b"4"), Err(Error::NeverThere)));
    }
}
