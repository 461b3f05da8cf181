//! What a backup takes, and how it knows files again.

use std::collections::HashSet;
use std::ffi::OsStr;

use crate::catalog::stats::ComparedFields;
use crate::format::Kind;
use crate::source::{Directory, MountTable, Patterns, Stat, Tags};

/// What the walk needs to know.
pub(super) struct Rules {
    pub(super) exclude: Patterns,
    /// What makes a directory one whose content is left out.
    pub(super) tags: Tags,
    /// Leave out what has the attribute.
    pub(super) exclude_nodump: bool,
    pub(super) identity: ComparedFields,
    pub(super) one_file_system: bool,
    /// Believe no identity: read every file.
    pub(super) reread: bool,
    /// Files from this size on are read one after the other.
    pub(super) large: u64,
    pub(super) mounts: MountTable,
    /// Directories that are never entered: the repository and this program's state, by device and inode.
    pub(super) forbidden: HashSet<(u64, u64)>,
}

impl Rules {
    /// Whether an entry of a directory is left out.
    pub(super) fn leaves_out(&self, directory: &Directory, name: &OsStr, stat: &Stat) -> bool {
        let excluded = || self.exclude.matches(&directory.child_path(name), stat.kind == Kind::Directory);
        self.exclude_nodump && stat.nodump || !self.exclude.is_empty() && excluded()
    }

    /// Whether nothing special is about a directory below one on `device`: no mount, and not ours.
    pub(super) fn is_inside(&self, stat: &Stat, device: u64) -> bool {
        stat.dev == device && !self.forbidden.contains(&(stat.dev, stat.ino)) && !self.mounts.of(stat).is_brackfs
    }
}
