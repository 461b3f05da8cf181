//! Devices that have other numbers than last time: after a reboot, or where each snapshot of a file system is a device.
//!
//! A directory that stands where it stood, with the inode number that it had, is on the device that it was on. From
//! there on the whole device goes by the number that it had when it was seen first. No two devices of a run go by one
//! number: what is known of one, such as where a directory with a certain inode number was, would pass for known of
//! the other. Foreign file systems ([`is_foreign`](crate::source::is_foreign)) are not asked about
//! here: their inode numbers prove nothing.

use std::collections::{HashMap, HashSet};

/// What is added to a number that is taken until one is found that is not. Numbers of Linux devices are below it.
const STEP: u64 = 1 << 32;

/// Numbers of devices now, and what the catalog knows them by.
#[derive(Debug, Default)]
pub(super) struct Devices {
    known: HashMap<u64, u64>,
    taken: HashSet<u64>,
}

impl Devices {
    /// What the catalog knows a device by, if that is settled.
    pub(super) fn known_as(&self, now: u64) -> Option<u64> {
        self.known.get(&now).copied()
    }

    /// Whether a device goes by this number.
    pub(super) fn is_taken(&self, number: u64) -> bool {
        self.taken.contains(&number)
    }

    /// Settles what device `now` goes by. `then`: its number when it was seen last, if it is known again. What was
    /// settled first holds: the directories at the top of a file system come first.
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
    fn a_device_keeps_the_number_that_it_was_seen_with_first() {
        assert_eq!(settled(&[(7, None), (7, Some(8))]), [7, 7]);
        // Two that changed their numbers.
        assert_eq!(settled(&[(7, Some(8)), (8, Some(7)), (8, Some(9))]), [8, 7, 7]);
    }

    #[test]
    fn two_devices_never_go_by_one_number() {
        assert_eq!(settled(&[(7, Some(7)), (8, Some(7))]), [7, 8]);
        assert_eq!(settled(&[(7, Some(8)), (8, None)]), [8, 8 + STEP]);
        assert_eq!(settled(&[(7, Some(8)), (8, Some(8)), (9, Some(8 + STEP))]), [8, 8 + STEP, 9]);
    }
}
