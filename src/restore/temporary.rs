//! Names of temporary files, and what an interrupted restore left of them.
//!
//! A name is a prefix and 32 random hex digits, so nobody can guess it, and a later restore recognizes it. A running
//! restore holds a shared lock (`flock`) on every directory that it has open. A later one removes leftovers from a
//! directory only if it got an exclusive lock when it listed the names: no other restore on this machine was there then.

use std::fmt::Display;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use uuid::Uuid;

/// What all names begin with.
const PREFIX: &str = ".brackfs-restore-";
/// Hex digits that follow.
const DIGITS: usize = 32;

/// A name that nothing has, and that nobody can guess.
pub(super) fn name() -> String {
    named(Uuid::new_v4().simple())
}

/// The name with these digits.
pub(super) fn named(digits: impl Display) -> String {
    format!("{PREFIX}{digits}")
}

/// Whether a name is one of these.
pub(super) fn is_one(name: &[u8]) -> bool {
    let digits = name.strip_prefix(PREFIX.as_bytes());
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit))
}

/// Removes what has the name `name`: a file, or a directory that holds nothing but the file `mark`. Returns whether it
/// is gone.
pub(super) fn remove(folder: &OwnedFd, name: &[u8], mark: &str) -> bool {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        // Which of the two it is depends on the file system.
        Err(Errno::ISDIR | Errno::PERM) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(inside) = rustix::fs::openat(folder, name, flags, Mode::empty()) {
                // It need not be there.
                let _ = rustix::fs::unlinkat(&inside, mark, AtFlags::empty());
            }
            rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).is_ok()
        }
        other => other.is_ok(),
    }
}

/// Keeps later restores from removing temporary files in this directory, as long as it is open.
pub(super) fn lock(folder: &OwnedFd) {
    // Somebody else may hold a lock for reasons of their own. Then no restore removes anything here.
    let _ = flock(folder, FlockOperation::NonBlockingLockShared);
}

/// Locks the directory for this restore alone. Returns whether no other one is in it.
pub(super) fn lock_alone(folder: &OwnedFd) -> bool {
    flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_temporary_files_are_recognized() {
        assert!(is_one(name().as_bytes()));
        assert_ne!(name(), name());
        let (short, long) = (format!("{PREFIX}{}", "a".repeat(31)), format!("{PREFIX}{}", "a".repeat(33)));
        let other = format!("{PREFIX}{}", "g".repeat(32));
        for name in [short.as_str(), &long, &other, PREFIX, ".brackfs-", "a", ""] {
            assert!(!is_one(name.as_bytes()), "{name}");
        }
    }
}
