//! Recognizing directories: which row of the catalog a directory is.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use roaring::RoaringTreemap;

use super::devices::Devices;
use super::rules::Rules;
use crate::backup::error::Error;
use crate::catalog::{DirectoryRow, Parent, Past, SegmentId, SourceRow};
use crate::format::Timestamp;
use crate::source::{Directory, EntryMount, Inode, LastMount, PathMap, Stat, is_foreign};

/// A directory that the catalog knows.
#[derive(Clone)]
pub(super) struct KnownDirectory {
    pub(super) row: DirectoryRow,
    /// The directory is where it was. Otherwise its entries can be reused, but its rows stay untouched.
    pub(super) in_place: bool,
    /// The catalog knows its device by another number than before, and so it does files with several names.
    pub(super) renumbered: bool,
}

/// The directory that another one is in, as the catalog knows it.
#[derive(Clone, Copy)]
pub(super) struct KnownParent {
    /// `None` if the catalog does not have it: its directories are found by their inodes only.
    id: Option<Parent>,
    in_place: bool,
    /// Its device. `None` above a source's root.
    device: Option<u64>,
}

impl KnownParent {
    /// The place above the root directory of a source.
    pub(super) fn above(source: Option<SourceRow>) -> Self {
        KnownParent { id: source.map(Parent::Source), in_place: true, device: None }
    }

    pub(super) fn of(known: Option<&KnownDirectory>) -> Self {
        match known {
            Some(KnownDirectory { row, in_place, .. }) => {
                KnownParent { id: Some(Parent::Directory(row.id)), in_place: *in_place, device: Some(row.inode.device) }
            }
            None => KnownParent { id: None, in_place: false, device: None },
        }
    }

    /// The same parent, for directories that are certainly in place.
    pub(super) fn in_place(self) -> Self {
        KnownParent { in_place: true, ..self }
    }
}

/// The root, or a given path, in the last backup.
pub(super) enum LastTime {
    /// Entries below it; 0 if it was not there.
    Entries(u64),
    /// Another file system was mounted there, with entries in it.
    OtherFileSystem,
}

/// Finds the catalog's rows of directories.
pub(super) struct Recognizer {
    pub(super) past: Past,
    devices: Devices,
    mounts: LastMount,
    /// Where paths are read.
    map: PathMap,
    /// The inode number of a directory counts.
    by_inode: bool,
    /// The rows of directories that were entered in this run.
    entered: RoaringTreemap,
    source: Option<SourceRow>,
    /// The root of the tree, once the walk is there.
    root: Option<Arc<Directory>>,
}

impl Recognizer {
    pub(super) fn new(past: Past, rules: &Rules, source: Option<SourceRow>) -> Self {
        Recognizer {
            past,
            devices: Devices::default(),
            mounts: LastMount::of_table(&rules.mounts),
            map: rules.map.clone(),
            by_inode: rules.identity.inode,
            entered: RoaringTreemap::new(),
            source,
            root: None,
        }
    }

    pub(super) fn source(&self) -> Option<SourceRow> {
        self.source
    }

    /// The root of the tree, once the walk has been there.
    pub(super) fn root(&self) -> Option<&Arc<Directory>> {
        self.root.as_ref()
    }

    pub(super) fn set_root(&mut self, root: Arc<Directory>) {
        self.root = Some(root);
    }

    /// Notes that a directory was entered.
    pub(super) fn note_entered(&mut self, row: &DirectoryRow) {
        self.entered.insert(row.id.0 as u64);
    }

    /// Finds a directory that the walk has not been to. A row is entered only once in a run: after that it describes another
    /// directory of this run.
    pub(super) fn find_new(
        &mut self,
        parent: KnownParent,
        name: &[u8],
        stat: &Stat,
    ) -> Result<Option<KnownDirectory>, Error> {
        let Some(mut known) = self.find(parent, name, stat)? else { return Ok(None) };
        if self.entered.contains(known.row.id.0 as u64) {
            // The same directory a second time; another one can only claim to be the same.
            if known.row.inode != self.inode_of(stat) {
                return Ok(None);
            }
            known.in_place = false;
        }
        Ok(Some(known))
    }

    /// Finds the directory `name` of `parent`: the row of that name if it can be the same directory, or else the row with
    /// its inode. That directory was moved here, or is seen twice.
    pub(super) fn find(
        &mut self,
        parent: KnownParent,
        name: &[u8],
        stat: &Stat,
    ) -> Result<Option<KnownDirectory>, Error> {
        let there = match parent.id {
            Some(id) => self.past.directory(id, name)?,
            None => None,
        };
        let device = self.settle_device(parent, there.as_ref(), stat);
        if let Some(row) = there
            && (row.inode.number == stat.ino || !self.by_inode)
            && (row.inode.device == device || !is_foreign(row.inode.device) && !is_foreign(device))
        {
            let renumbered = row.inode.device != device;
            return Ok(Some(KnownDirectory { row, in_place: parent.in_place, renumbered }));
        }
        if !self.by_inode {
            return Ok(None);
        }
        let inode = Inode { device, number: stat.ino };
        let Some(mut row) = self.past.directory_by_inode(inode)? else { return Ok(None) };
        let in_place = self.was_moved(&row)?;
        // No segment of the directory that it is in now has its node.
        row.linked &= !in_place;
        Ok(Some(KnownDirectory { row, in_place, renumbered: false }))
    }

    /// Settles the number of a directory's device. The device is recognized by `there`, the row of the directory that was in
    /// the same place, unless that was part of the surrounding file system: then something is mounted there now.
    fn settle_device(&mut self, parent: KnownParent, there: Option<&DirectoryRow>, stat: &Stat) -> u64 {
        if let Some(number) = self.mounts.of(stat).foreign(stat.dev) {
            return number;
        }
        let then = there.map(|row| row.inode).filter(|inode| {
            parent.in_place
                && inode.number == stat.ino
                && !is_foreign(inode.device)
                && parent.device != Some(inode.device)
        });
        self.devices.settle(stat.dev, then.map(|inode| inode.device))
    }

    /// The number by which the catalog knows the device of a file or directory, so far.
    pub(super) fn device_of(&self, stat: &Stat) -> u64 {
        let foreign = self.mounts.of(stat).foreign(stat.dev);
        foreign.or_else(|| self.devices.known_as(stat.dev)).unwrap_or(stat.dev)
    }

    fn inode_of(&self, stat: &Stat) -> Inode {
        Inode { device: self.device_of(stat), number: stat.ino }
    }

    /// Looks up the directory `name` of `parent`, which is the root or a given path, in the last backup. It may be another
    /// directory by now.
    pub(super) fn last_time(
        &self,
        parent: KnownParent,
        name: &[u8],
        stat: &Stat,
        path: &Path,
    ) -> Result<LastTime, Error> {
        let Some(id) = parent.id else { return Ok(LastTime::Entries(0)) };
        let row = self.past.directory(id, name)?;
        let Some((inode, below)) = row.and_then(|row| Some((row.inode, row.subtree?.0))) else {
            return Ok(LastTime::Entries(0));
        };
        // The directory of a pipe is on no device.
        let is_other = inode.number != stat.ino && inode.device != self.device_of(stat) && inode.device != 0;
        let above = self.map.place(path).parent().and_then(|above| above.symlink_metadata().ok());
        if below > 0 && is_other && above.is_some_and(|above| above.dev() == stat.dev) {
            return Ok(LastTime::OtherFileSystem);
        }
        Ok(LastTime::Entries(below))
    }

    /// Whether a directory that was found by its inode is gone from where it was. Otherwise it is seen twice: through a bind
    /// mount, or in another source.
    fn was_moved(&self, row: &DirectoryRow) -> Result<bool, Error> {
        let Some(root) = &self.root else { return Ok(false) };
        let Some(place) = self.past.place(row.id)? else { return Ok(true) };
        if Some(place.source) != self.source {
            return Ok(false);
        }
        let path: PathBuf = place.names.iter().map(|name| OsStr::from_bytes(name)).collect();
        match root.stat_child(path.as_os_str()) {
            Ok(there) => Ok(self.inode_of(&there) != row.inode),
            Err(e) => Ok(e.is_vanished()),
        }
    }

    /// The segments of a directory that is not walked now, so that none of its old entries stay.
    pub(super) fn all_segments(&self, known: Option<&KnownDirectory>) -> Result<Vec<SegmentId>, Error> {
        match known.filter(|known| known.in_place) {
            Some(known) => Ok(self.past.segment_ids(known.row.id)?),
            None => Ok(Vec::new()),
        }
    }

    /// Whether one more change after `looked` could leave the same stamps.
    pub(super) fn is_fresh(&self, stat: &Stat, looked: Timestamp) -> bool {
        stat.is_fresh(looked, self.mounts.of(stat).clock)
    }

    /// The time after `looked` for which one more change could leave the same stamps.
    pub(super) fn fresh_for(&self, stat: &Stat, looked: Timestamp) -> Option<std::time::Duration> {
        stat.fresh_for(looked, self.mounts.of(stat).clock)
    }

    /// Whether a file or directory is on a mount of brackfs.
    pub(super) fn is_on_brackfs(&self, stat: &Stat) -> bool {
        self.mounts.of(stat).is_brackfs
    }

    /// The mount of an entry of a directory on `device`, as it is compared.
    pub(super) fn entry_mount(&self, stat: &Stat, device: u64) -> EntryMount {
        self.mounts.of(stat).entry_mount(stat, device)
    }
}
