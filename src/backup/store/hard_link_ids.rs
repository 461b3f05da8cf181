//! Ids of files with several names: all names of a file have the same one, in every snapshot of this host.

use std::collections::HashMap;

use crate::backup::error::Error;
use crate::catalog::Catalog;
use crate::format::{Entry, HardLink};
use crate::source::{Inode, LastMount, MountTable, Stat};

/// Finds the ids of files with several names.
pub(super) struct HardLinkIds {
    mounts: LastMount,
    /// Compare change times.
    by_ctime: bool,
    /// The numbers by which the catalog knows devices, as far as directories on them were entered.
    devices: HashMap<u64, u64>,
}

impl HardLinkIds {
    pub(super) fn new(mounts: &MountTable, by_ctime: bool) -> Self {
        HardLinkIds { mounts: LastMount::of_table(mounts), by_ctime, devices: HashMap::new() }
    }

    /// Notes the number by which the catalog knows a device.
    pub(super) fn note_device(&mut self, device: u64, number: u64) {
        self.devices.insert(device, number);
    }

    /// Returns the link id that joins the names of a file. `None` if all ids are taken, or if the file's device has the number by
    /// which the catalog knows another one: a file may be mounted by itself, or come from a layer below its directory.
    pub(super) fn find(&self, catalog: &Catalog, entry: &Entry, stat: &Stat) -> Result<Option<HardLink>, Error> {
        let foreign = self.mounts.of(stat).foreign(stat.dev);
        let device = match foreign.or_else(|| self.devices.get(&stat.dev).copied()) {
            Some(number) => number,
            None if self.devices.values().any(|number| *number == stat.dev) => return Ok(None),
            None => stat.dev,
        };
        let inode = Inode { device, number: stat.ino };
        let id = catalog.hard_link(inode, stat.ctime, &entry.content_digest(), self.by_ctime)?;
        Ok((id < HardLink::ID_LIMIT).then_some(HardLink { id, count: stat.nlink }))
    }
}
