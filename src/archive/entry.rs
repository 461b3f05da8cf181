//! Entries of snapshots, and handles to them that any format can make.

use std::any::Any;
use std::sync::Arc;

use crate::format::entry::{HardLink, Xattr};
use crate::format::{Digest, Entry, Kind, Timestamp};

/// An entry of a directory, as a view of a format's own data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The name: any bytes except `/` and NUL.
    pub name: &'a [u8],
    /// The type.
    pub kind: Kind,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u32,
    /// The numeric user id.
    pub uid: u32,
    /// The numeric group id.
    pub gid: u32,
    /// The time of the last change of the content.
    pub mtime: Timestamp,
    /// The size of a file or of a link's target in bytes; otherwise 0.
    pub size: u64,
    /// The target of a symbolic link; otherwise empty.
    pub target: &'a [u8],
    /// The number of a device (major, minor); otherwise zeros.
    pub device: (u32, u32),
    /// Set if the file has other names.
    pub link: Option<HardLink>,
    /// The extended attributes, sorted by name.
    pub xattrs: &'a [Xattr],
    /// Bits of [`Entry::CHANGED`] and [`Entry::UNPRIVILEGED`].
    pub flags: u64,
    /// Bits of [`Entry::INODE_FLAGS`].
    pub inode_flags: u32,
}

impl EntryRef<'_> {
    /// An empty file without a name.
    pub const EMPTY: EntryRef<'static> = EntryRef {
        name: b"",
        kind: Kind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 0, nanos: 0 },
        size: 0,
        target: b"",
        device: (0, 0),
        link: None,
        xattrs: &[],
        flags: 0,
        inode_flags: 0,
    };

    /// Whether the file changed while it was read; the stored content may mix two states.
    pub fn is_changed(&self) -> bool {
        self.flags & Entry::CHANGED != 0
    }

    /// Whether the mount that the entry was read from ignored its set-id bits, capabilities or device number.
    pub fn is_unprivileged(&self) -> bool {
        self.flags & Entry::UNPRIVILEGED != 0
    }
}

/// Entries of one directory that a format decodes together. Methods take the index of an entry, below [`EntryList::len`].
pub trait EntryList: Any + Send + Sync {
    /// The number of entries.
    fn len(&self) -> usize;

    /// Whether there is no entry.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes of the list in memory.
    fn bytes(&self) -> usize;

    /// Returns an entry.
    fn entry(&self, at: usize) -> Option<EntryRef<'_>>;

    /// Returns the number of ranks that the entries before this one take in the list (see [`EntryHandle::rank`]).
    fn ranks_before(&self, at: usize) -> u64;

    /// Returns an entry as a directory, or `None` for other kinds. `rank` is the entry's.
    fn directory(&self, at: usize, rank: u64) -> Option<SnapshotDirectory>;

    /// The name of an entry's owner, if the machine that was backed up had one.
    fn user(&self, at: usize) -> Option<&str>;

    /// The name of an entry's group, if the machine that was backed up had one.
    fn group(&self, at: usize) -> Option<&str>;

    /// Returns the digest of a file's content; `None` for empty files and other kinds.
    fn digest(&self, at: usize) -> Option<Digest>;

    /// Returns the size of a file without its holes, in bytes; 0 for symbolic links.
    fn stored_bytes(&self, at: usize) -> u64;

    /// Returns a digest of everything that the names of a hard-linked file share, with the claimed digest of the content.
    /// For commands that verify the digest of the whole content.
    fn file_digest(&self, at: usize) -> Digest;

    /// Like [`EntryList::file_digest`], but with the digest of each part of the content that a read returns.
    fn inode_digest(&self, at: usize) -> Digest;

    /// Returns the position of the start of a file's content, as far as it is known without reading.
    fn content_position(&self, at: usize) -> Option<ContentPosition>;
}

/// The position of stored content. Reading in ascending order decodes each object once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentPosition {
    /// The object with the content.
    pub object: [u8; 16],
    /// The offset in the object in bytes.
    pub offset: u64,
}

/// An entry of a snapshot. Cheap to clone; keeps the list with the entry in memory.
#[derive(Clone)]
pub struct EntryHandle {
    list: Arc<dyn EntryList>,
    at: usize,
    /// Position in a preorder walk of the snapshot: the root has rank 0, and a directory of rank r with n entries below it
    /// takes the ranks r to r + n.
    pub rank: u64,
}

impl EntryHandle {
    /// Creates a handle to the entry at index `at` of a list.
    pub fn new(list: Arc<dyn EntryList>, at: usize, rank: u64) -> Self {
        EntryHandle { list, at, rank }
    }

    /// Returns the list with the entry and the entry's index, if the list is of type `L`.
    pub fn in_list<L: EntryList>(&self) -> Option<(Arc<L>, usize)> {
        let list: Arc<dyn Any + Send + Sync> = self.list.clone();
        Some((list.downcast().ok()?, self.at))
    }

    /// The entry itself.
    pub fn entry(&self) -> EntryRef<'_> {
        // Handles are created only for entries that exist.
        self.list.entry(self.at).unwrap_or(EntryRef::EMPTY)
    }

    /// Returns the directory, or `None` for other kinds.
    pub fn directory(&self) -> Option<SnapshotDirectory> {
        self.list.directory(self.at, self.rank)
    }

    /// The owner's name, if the machine that was backed up had one.
    pub fn user(&self) -> Option<&str> {
        self.list.user(self.at)
    }

    /// The group's name, if the machine that was backed up had one.
    pub fn group(&self) -> Option<&str> {
        self.list.group(self.at)
    }

    /// Returns the digest of a file's content; `None` for empty files and other kinds.
    pub fn digest(&self) -> Option<Digest> {
        self.list.digest(self.at)
    }

    /// Returns the size of a file without its holes, in bytes; 0 for symbolic links.
    pub fn stored_bytes(&self) -> u64 {
        self.list.stored_bytes(self.at)
    }

    /// See [`EntryList::file_digest`].
    pub fn file_digest(&self) -> Digest {
        self.list.file_digest(self.at)
    }

    /// See [`EntryList::inode_digest`].
    pub fn inode_digest(&self) -> Digest {
        self.list.inode_digest(self.at)
    }

    /// See [`EntryList::content_position`].
    pub fn content_position(&self) -> Option<ContentPosition> {
        self.list.content_position(self.at)
    }

    /// Size in bytes of the list that this handle keeps in memory. All handles of one list share it.
    pub fn list_bytes(&self) -> usize {
        self.list.bytes()
    }

    /// Whether both entries are in the same list in memory.
    pub fn shares_list(&self, other: &EntryHandle) -> bool {
        Arc::ptr_eq(&self.list, &other.list)
    }
}

/// A directory in a snapshot. It keeps nothing in memory, so that a walk may hold one for each level.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotDirectory {
    /// Position in a preorder walk of the snapshot.
    pub rank: u64,
    /// Number of entries below it at any depth, as stored in its entry.
    pub below: u64,
    /// Digest of the tree below it; `None` if the directory is empty.
    pub digest: Option<Digest>,
    /// The location of its entries, which only the archive that made it understands.
    pub location: DirectoryLocation,
}

/// A location of a directory's entries, in the words of its format.
pub type DirectoryLocation = [u64; 5];

impl SnapshotDirectory {
    /// Whether both directories have the same entries, at any depth.
    pub fn has_same_tree(&self, other: &SnapshotDirectory) -> bool {
        self.below == other.below && self.digest == other.digest
    }
}

/// An iterator over the entries of a directory that are in one list.
#[derive(Default)]
pub struct Page {
    list: Option<Arc<dyn EntryList>>,
    at: usize,
    /// The rank of the list's first entry.
    rank: u64,
}

impl Page {
    /// Returns the entries of a list from index `at` on. `rank` is that of the list's first entry.
    pub fn new(list: Arc<dyn EntryList>, at: usize, rank: u64) -> Self {
        Page { list: Some(list), at, rank }
    }

    /// Whether no entry is left.
    pub fn is_empty(&self) -> bool {
        self.list.as_ref().is_none_or(|list| self.at >= list.len())
    }
}

impl Iterator for Page {
    type Item = EntryHandle;

    fn next(&mut self) -> Option<EntryHandle> {
        let list = self.list.as_ref().filter(|list| self.at < list.len())?;
        let at = self.at;
        self.at += 1;
        Some(EntryHandle::new(list.clone(), at, self.rank.saturating_add(list.ranks_before(at))))
    }
}
