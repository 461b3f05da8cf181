//! Operations that the system refuses, reported once for each kind instead of for each file.
//!
//! Unprivileged users cannot change owners, and some file systems have no extended attributes. A message per file about
//! such expected failures would hide other problems.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::monitor::count;

/// The property that could not be restored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Property {
    /// Owner or group.
    Owner,
    /// Extended attributes of a namespace, such as `user`.
    Xattr(String),
    Mode,
    Times,
    InodeFlags,
    /// A device; the whole entry is missing.
    Device,
}

/// The number of refusals of one property with one error.
#[derive(Debug)]
pub(super) struct Refusal {
    property: Property,
    why: Errno,
    times: u64,
    /// Whether entries are missing, and not only a property of them.
    pub(super) loses_an_entry: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Errno::PERM | Errno::ACCESS => "permission denied".to_owned(),
            Errno::INVAL if self.property == Property::Owner => {
                "the owners do not exist in this user namespace".to_owned()
            }
            Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL => {
                "the file system at the destination does not support it".to_owned()
            }
            // The only path used is that of a handle in /proc.
            Errno::NOENT => "/proc is not mounted".to_owned(),
            other => other.to_string(),
        };
        let of = count(self.times, "entry", "entries");
        match &self.property {
            Property::Owner => write!(f, "cannot set owner or group of {of}: {why}"),
            Property::Xattr(space) => write!(f, "cannot set extended attributes {space}.* of {of}: {why}"),
            Property::Mode => write!(f, "cannot set the mode of {of}: {why}"),
            Property::Times => write!(f, "cannot set the times of {of}: {why}"),
            Property::InodeFlags => write!(f, "cannot set inode flags (chattr) of {of}: {why}"),
            Property::Device => write!(f, "cannot restore devices ({of}): {why}"),
        }
    }
}

/// Counts of refusals.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<(Property, i32), u64>>);

impl Refusals {
    /// Counts an expected error and returns true; returns false for other errors.
    pub(super) fn count(&self, property: Property, why: Errno) -> bool {
        let known = [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS, Errno::INVAL];
        let takes_proc =
            why == Errno::NOENT && matches!(property, Property::Xattr(_) | Property::Mode | Property::Times);
        if !known.contains(&why) && !takes_proc {
            return false;
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((property, why.raw_os_error())).or_default() += 1;
        true
    }

    /// Takes the counts so far.
    pub(super) fn take(&self) -> Vec<Refusal> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let refusal = |((property, why), times)| {
            let loses_an_entry = property == Property::Device;
            Refusal { property, why: Errno::from_raw_os_error(why), times, loses_an_entry }
        };
        counts.into_iter().map(refusal).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_reported_once() {
        let refusals = Refusals::default();
        for _ in 0..3 {
            assert!(refusals.count(Property::Owner, Errno::PERM));
        }
        assert!(refusals.count(Property::Xattr("trusted".into()), Errno::PERM));
        assert!(refusals.count(Property::Device, Errno::PERM));
        assert!(!refusals.count(Property::Owner, Errno::IO));
        let said: Vec<_> =
            refusals.take().iter().map(|refusal| (refusal.to_string(), refusal.loses_an_entry)).collect();
        let rights = "permission denied";
        assert_eq!(
            said,
            [
                (format!("cannot set owner or group of 3 entries: {rights}"), false),
                (format!("cannot set extended attributes trusted.* of 1 entry: {rights}"), false),
                (format!("cannot restore devices (1 entry): {rights}"), true),
            ]
        );
        assert!(refusals.take().is_empty());
    }
}
