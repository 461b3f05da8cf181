//! Attributes of files and directories in a mount.

use super::number::Ino;
use super::owners::OwnerMapping;
use crate::archive::EntryHandle;
use crate::format::{Kind, Timestamp};

/// Unit of `st_blocks`, in bytes.
const SECTOR: u64 = 512;

/// The attributes of an inode, as in stat(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub ino: Ino,
    /// Kind of the inode.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner as shown.
    pub uid: u32,
    /// Group as shown.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Size without holes, in units of 512 bytes.
    pub sectors: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Number of names; 1 for directories, which means that their subdirectories are not counted.
    pub nlink: u32,
    /// Device number, as (major, minor).
    pub device: (u32, u32),
    /// How long the kernel may cache the attributes.
    pub validity: Validity,
}

/// How long attributes and names may be cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Forever: the entry is in a snapshot.
    Always,
    /// As long as the snapshot exists: the entry is the root of one.
    WhileThere,
    /// Until snapshots are added or removed.
    Briefly,
    /// Not at all: these are placeholders for a snapshot that is not open.
    Unknown,
}

/// An entry of a directory listing.
#[derive(Debug, Clone)]
pub struct ListingEntry {
    /// Name in the directory.
    pub name: Vec<u8>,
    /// Attributes of the entry.
    pub attributes: Attributes,
    /// Offset at which the listing continues after this entry.
    pub next: u64,
}

impl Attributes {
    /// Returns the attributes of an entry with the inode number `ino`.
    pub(super) fn of(listed: &EntryHandle, ino: Ino, owners: &OwnerMapping) -> Self {
        let entry = listed.entry();
        let (uid, gid) = owners.shown(entry.uid, entry.gid);
        Attributes {
            ino,
            kind: entry.kind,
            mode: entry.mode,
            uid,
            gid,
            size: entry.size,
            sectors: listed.stored_bytes().div_ceil(SECTOR),
            mtime: entry.mtime,
            nlink: entry.link.map_or(1, |link| link.count.max(1)),
            device: entry.device,
            validity: Validity::Always,
        }
    }
}
