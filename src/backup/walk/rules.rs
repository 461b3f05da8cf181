//! Exclusions, and how files are recognized.

use std::collections::HashSet;
use std::ffi::OsStr;

use super::scope::Scope;
use crate::backup::options::{Reading, Selection};
use crate::catalog::stats::ComparedFields;
use crate::format::Kind;
use crate::source::{Directory, Inode, MountTable, PathMap, Patterns, Stat, Tags};

/// The rules of a walk.
pub(in crate::backup) struct Rules {
    pub(in crate::backup) exclude: Patterns,
    /// The entries that exclude all others of their directory.
    pub(in crate::backup) tags: Tags,
    /// Leave out files with the attribute `d`.
    pub(in crate::backup) exclude_nodump: bool,
    pub(in crate::backup) identity: ComparedFields,
    pub(in crate::backup) one_file_system: bool,
    /// Read every file, even if it looks unchanged.
    pub(in crate::backup) reread: bool,
    /// Files of this many bytes and more are read one after the other.
    pub(in crate::backup) large: u64,
    /// Where paths are read.
    pub(in crate::backup) map: PathMap,
    /// The mounts of these places.
    pub(in crate::backup) mounts: MountTable,
    /// Directories that are never entered: the repository and this program's state.
    pub(in crate::backup) forbidden: HashSet<Inode>,
}

impl Rules {
    pub(in crate::backup) fn new(
        selection: &Selection,
        reading: &Reading,
        scope: &Scope,
        large: u64,
        mounts: MountTable,
        forbidden: HashSet<Inode>,
    ) -> Self {
        Rules {
            exclude: scope.exclude.clone(),
            tags: Tags { caches: selection.exclude_caches, names: selection.exclude_if_present.clone() },
            exclude_nodump: selection.exclude_nodump,
            identity: reading.identity,
            one_file_system: selection.one_file_system,
            reread: reading.reread,
            large,
            map: scope.map.clone(),
            mounts,
            forbidden,
        }
    }

    /// Whether an entry of a directory is excluded.
    pub(super) fn leaves_out(&self, directory: &Directory, name: &OsStr, stat: &Stat) -> bool {
        let excluded = || self.exclude.matches(&directory.child_path(name), stat.kind == Kind::Directory);
        self.exclude_nodump && stat.nodump || !self.exclude.is_empty() && excluded()
    }

    /// Whether a directory below one on `device` is an ordinary one: not a mount, and not of brackfs.
    pub(super) fn is_inside(&self, stat: &Stat, device: u64) -> bool {
        stat.dev == device && !self.forbidden.contains(&stat.inode()) && !self.mounts.of(stat).is_brackfs
    }
}
