//! Devices that have other numbers than last time: after a reboot, or where each snapshot of a file system is a device.
//!
//! A directory that stands where it stood, with the inode number that it had, is on the device that it was on. From
//! there on the whole device goes by the number that it had when it was seen first.

use std::collections::HashMap;

use crate::catalog::DirectoryRow;

/// Numbers of devices now, and what the catalog knows them by.
#[derive(Debug, Default)]
pub(super) struct Devices(HashMap<u64, u64>);

impl Devices {
    /// Learns from a directory on device `now`. What was learned first holds: the directories at the top of a file
    /// system come first.
    pub(super) fn learn(&mut self, now: u64, row: &DirectoryRow) {
        if let (true, Some(then)) = (row.in_place, row.device) {
            self.0.entry(now).or_insert(then);
        }
    }

    /// What the catalog knows a device by.
    pub(super) fn known_as(&self, now: u64) -> u64 {
        self.0.get(&now).copied().unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::DirectoryId;

    #[test]
    fn a_device_keeps_the_number_that_it_was_seen_with_first() {
        let row = |device, in_place| DirectoryRow {
            id: DirectoryId(1),
            in_place,
            device,
            linked: true,
            subtree: None,
            indexes: Vec::new(),
        };
        let mut devices = Devices::default();
        devices.learn(7, &row(Some(5), false));
        devices.learn(7, &row(None, true));
        assert_eq!(devices.known_as(7), 7);
        // Two that changed their numbers.
        devices.learn(7, &row(Some(8), true));
        devices.learn(8, &row(Some(7), true));
        devices.learn(8, &row(Some(9), true));
        assert_eq!([7, 8, 9].map(|now| devices.known_as(now)), [8, 7, 9]);
    }
}
