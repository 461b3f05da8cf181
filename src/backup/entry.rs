//! Entries of a snapshot as the file system describes them, and the words for their changes.

use crate::format::{Content, Entry};
use crate::source::{Extended, Stat};

/// The message about a file that changed during every attempt at reading it.
pub(super) const CHANGED: &str = "it changed while it was read; what was read is stored and marked";

/// An entry with the metadata of the file system.
pub(super) fn entry_of(name: Vec<u8>, stat: &Stat, extended: Extended, content: Content) -> Entry {
    let size = match &content {
        Content::Target(target) => target.len() as u64,
        _ => 0,
    };
    Entry {
        name,
        kind: stat.kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.mtime,
        size,
        content,
        link: None,
        xattrs: extended.xattrs,
        flags: 0,
        inode_flags: extended.inode_flags,
    }
}

/// The word for an entry that is stored: the last backup had one of its name, or not.
pub(super) fn change(existed: bool) -> &'static str {
    if existed { "changed" } else { "new" }
}

/// Returns about how many bytes an entry takes in a node, as an upper estimate.
pub(super) fn weight(entry: &Entry) -> usize {
    let content = match &entry.content {
        Content::Target(target) => target.len(),
        Content::Extents { extents, .. } => 50 * extents.len(),
        Content::Nodes { nodes, .. } => 60 * nodes.len(),
        _ => 0,
    };
    let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
    // A name, numbers, a digest and a block of its own in the table; owners' names.
    300 + entry.name.len() + content + xattrs
}
