//! What the system does not allow: said once for each kind, not for each file.
//!
//! An ordinary user can't give files away, and not every file system has attributes. Both are known before, and
//! thousands of lines about it would hide what else went wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::monitor::count;

/// What was refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// The owner or group of an entry.
    Owner,
    /// Extended attributes of a namespace, such as `user`.
    Xattr(String),
    /// The mode of an entry.
    Mode,
    /// The times of an entry.
    Times,
    /// Inode flags.
    InodeFlags,
    /// A device, which is missing now.
    Device,
}

/// How often something was refused, and why.
#[derive(Debug)]
pub(super) struct Refusal {
    what: What,
    why: Errno,
    times: u64,
    /// Entries are missing, not only something of them.
    pub(super) loses_an_entry: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Errno::PERM | Errno::ACCESS => "that takes more rights than you have here".to_owned(),
            Errno::INVAL if self.what == What::Owner => "there are no such owners here".to_owned(),
            Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::INVAL => {
                "the file system at the destination has no such thing".to_owned()
            }
            // Other paths than that of a handle are not used.
            Errno::NOENT => "that takes /proc, which is not mounted".to_owned(),
            other => other.to_string(),
        };
        let of = count(self.times, "entry", "entries");
        match &self.what {
            What::Owner => write!(f, "owner or group of {of} could not be set: {why}"),
            What::Xattr(space) => write!(f, "extended attributes {space}.* of {of} could not be set: {why}"),
            What::Mode => write!(f, "the mode of {of} could not be set: {why}"),
            What::Times => write!(f, "the times of {of} could not be set: {why}"),
            What::InodeFlags => write!(f, "inode flags (chattr) of {of} could not be set: {why}"),
            What::Device => write!(f, "devices were not restored, {of}: {why}"),
        }
    }
}

/// All that was refused during a run.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<(What, i32), u64>>);

impl Refusals {
    /// Whether an error is of the kind that is counted here; if so, it is.
    pub(super) fn count(&self, what: What, why: Errno) -> bool {
        let known = [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS, Errno::INVAL];
        let takes_proc = why == Errno::NOENT && matches!(what, What::Xattr(_) | What::Mode | What::Times);
        if !known.contains(&why) && !takes_proc {
            return false;
        }
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((what, why.raw_os_error())).or_default() += 1;
        true
    }

    /// What was counted so far.
    pub(super) fn take(&self) -> Vec<Refusal> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let refusal = |((what, why), times)| {
            let loses_an_entry = what == What::Device;
            Refusal { what, why: Errno::from_raw_os_error(why), times, loses_an_entry }
        };
        counts.into_iter().map(refusal).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once() {
        let refusals = Refusals::default();
        for _ in 0..3 {
            assert!(refusals.count(What::Owner, Errno::PERM));
        }
        assert!(refusals.count(What::Xattr("trusted".into()), Errno::PERM));
        assert!(refusals.count(What::Device, Errno::PERM));
        assert!(!refusals.count(What::Owner, Errno::IO));
        let said: Vec<_> =
            refusals.take().iter().map(|refusal| (refusal.to_string(), refusal.loses_an_entry)).collect();
        let rights = "that takes more rights than you have here";
        assert_eq!(
            said,
            [
                (format!("owner or group of 3 entries could not be set: {rights}"), false),
                (format!("extended attributes trusted.* of 1 entry could not be set: {rights}"), false),
                (format!("devices were not restored, 1 entry: {rights}"), true),
            ]
        );
        assert!(refusals.take().is_empty());
    }
}
