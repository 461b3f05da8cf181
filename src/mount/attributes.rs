//! What is told of a thing.

use super::number::Ino;
use super::owners::OwnerMapping;
use crate::format::entry::Content;
use crate::format::{Entry, Extent, Kind, Timestamp};

/// What a block of `st_blocks` is.
const SECTOR: u64 = 512;

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
    pub validity: Validity,
}

/// How long what was said of a thing holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
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
pub struct ListingEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// What is known of it.
    pub attributes: Attributes,
    /// Where a listing goes on after it.
    pub next: u64,
}

impl Attributes {
    /// Those of an entry, whose number is `ino`.
    pub(super) fn of(entry: &Entry, ino: Ino, owners: &OwnerMapping) -> Self {
        let (uid, gid) = owners.shown(entry.uid, entry.gid);
        let device = match entry.content {
            Content::Device(major, minor) => (major, minor),
            _ => (0, 0),
        };
        Attributes {
            ino,
            kind: entry.kind,
            mode: entry.mode,
            uid,
            gid,
            size: entry.size,
            sectors: stored_bytes(entry).div_ceil(SECTOR),
            mtime: entry.mtime,
            nlink: entry.link.map_or(1, |link| link.count.max(1)),
            device,
            validity: Validity::Always,
        }
    }
}

/// Bytes of a file outside of its holes.
pub(super) fn stored_bytes(entry: &Entry) -> u64 {
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
