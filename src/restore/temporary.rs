//! Names of temporary files, and removal of leftovers of an interrupted restore.
//!
//! A name is a prefix and 32 random hex digits, so it cannot be guessed, and a later restore recognizes it. A running
//! restore holds a shared lock (`flock`) on each open directory. A later restore removes leftovers from a directory
//! only if it held an exclusive lock while listing the names, when no other restore on this machine used the directory.

use std::fmt::Display;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use uuid::Uuid;

/// The prefix of all temporary names.
const PREFIX: &str = ".brackfs-restore-";
/// The number of hex digits after the prefix.
const DIGITS: usize = 32;

/// A new, unpredictable name.
pub(super) fn name() -> String {
    named(Uuid::new_v4().simple())
}

/// The temporary name with these digits.
pub(super) fn named(digits: impl Display) -> String {
    format!("{PREFIX}{digits}")
}

/// Whether a name is that of a temporary file.
pub(super) fn is_temporary(name: &[u8]) -> bool {
    let digits = name.strip_prefix(PREFIX.as_bytes());
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit))
}

/// Removes a file, or a directory that is empty except for the file `mark`. Returns whether it was removed.
pub(super) fn remove(folder: &OwnedFd, name: &[u8], mark: &str) -> bool {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        // The name is a directory. The error depends on the file system.
        Err(Errno::ISDIR | Errno::PERM) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(inside) = rustix::fs::openat(folder, name, flags, Mode::empty()) {
                // The mark may be missing.
                let _ = rustix::fs::unlinkat(&inside, mark, AtFlags::empty());
            }
            rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).is_ok()
        }
        other => other.is_ok(),
    }
}

/// Takes a shared lock, which prevents other restores from removing temporary files, until the directory is closed.
pub(super) fn lock(folder: &OwnedFd) {
    // If another program holds a lock, no restore can lock the directory exclusively and remove files.
    let _ = flock(folder, FlockOperation::NonBlockingLockShared);
}

/// Takes an exclusive lock. Returns false if another restore uses the directory.
pub(super) fn lock_alone(folder: &OwnedFd) -> bool {
    flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_temporary_files_are_recognized() {
        assert!(is_temporary(name().as_bytes()));
        assert_ne!(name(), name());
        let (short, long) = (format!("{PREFIX}{}", "a".repeat(31)), format!("{PREFIX}{}", "a".repeat(33)));
        let other = format!("{PREFIX}{}", "g".repeat(32));
        for name in [short.as_str(), &long, &other, PREFIX, ".brackfs-", "a", ""] {
            assert!(!is_temporary(name.as_bytes()), "{name}");
        }
    }
}
