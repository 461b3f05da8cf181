//! Devices with other numbers than in the last backup: after a reboot, or where each snapshot of a file system is a device.
//!
//! A directory in its old place with its old inode number is on its old device. From there on the catalog knows the whole
//! device by the number that it was first seen with. No two devices of a run share a number: rows of one, such as where a
//! directory with a certain inode number was, would be taken for rows of the other. Foreign file systems
//! ([`is_foreign`](crate::source::is_foreign)) are not settled here: their inode numbers prove nothing.

use std::collections::{HashMap, HashSet};

/// Added to a taken number until a free one is found. Device numbers of Linux are below it.
const STEP: u64 = 1 << 32;

/// Current device numbers, and the numbers by which the catalog knows the devices.
#[derive(Debug, Default)]
pub(super) struct Devices {
    known: HashMap<u64, u64>,
    taken: HashSet<u64>,
}

impl Devices {
    /// The number by which the catalog knows a device, if that is settled.
    pub(super) fn known_as(&self, now: u64) -> Option<u64> {
        self.known.get(&now).copied()
    }

    /// Whether a device has this number in the catalog.
    pub(super) fn is_taken(&self, number: u64) -> bool {
        self.taken.contains(&number)
    }

    /// Settles the number of device `now` in the catalog. `then` is its number in the last backup, if it was recognized. The
    /// first call for a device decides: directories at the top of a file system come first.
    pub(super) fn settle(&mut self, now: u64, then: Option<u64>) -> u64 {
        if let Some(number) = self.known_as(now) {
            return number;
        }
        let mut number = then.filter(|then| !self.is_taken(*then)).unwrap_or(now);
        while self.is_taken(number) {
            number += STEP;
        }
        self.known.insert(now, number);
        self.taken.insert(number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settles devices in this order.
    fn settled(devices: &[(u64, Option<u64>)]) -> Vec<u64> {
        let mut all = Devices::default();
        devices.iter().map(|(now, then)| all.settle(*now, *then)).collect()
    }

    #[test]
    fn a_device_keeps_its_first_number() {
        assert_eq!(settled(&[(7, None), (7, Some(8))]), [7, 7]);
        // Two that changed their numbers.
        assert_eq!(settled(&[(7, Some(8)), (8, Some(7)), (8, Some(9))]), [8, 7, 7]);
    }

    #[test]
    fn two_devices_never_share_a_number() {
        assert_eq!(settled(&[(7, Some(7)), (8, Some(7))]), [7, 8]);
        assert_eq!(settled(&[(7, Some(8)), (8, None)]), [8, 8 + STEP]);
        assert_eq!(settled(&[(7, Some(8)), (8, Some(8)), (9, Some(8 + STEP))]), [8, 8 + STEP, 9]);
    }
}
