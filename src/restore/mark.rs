//! Marks of unfinished directories, which a restore has created or found empty.
//!
//! A directory without a mark belongs to the user and keeps its owner, mode and times. The mark contains the
//! archive's id instead of the snapshot's, since `latest` may be a different snapshot when an interrupted restore is
//! run again.
//!
//! The mark is a `trusted.*` attribute, which only root can set or forge. For other users it is a `user.*` attribute,
//! which is accepted only if no other user may write to the directory. Without extended attributes it is an empty file
//! with the same owner as the directory.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

use super::temporary;

const TRUSTED: &str = "trusted.brackfs.unfinished";
const USER: &str = "user.brackfs.unfinished";

/// Write permission for group and others.
const OTHERS_WRITE: u32 = 0o022;

/// Whether an extended attribute is a mark.
pub(super) fn is_attribute(name: &[u8]) -> bool {
    [TRUSTED, USER].iter().any(|mark| mark.as_bytes() == name)
}

/// How a directory is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// By an extended attribute of this name.
    Attribute(&'static str),
    /// By a file in the directory.
    File,
    /// The directory cannot be marked, so a later restore does not recognize it.
    None,
}

impl Mark {
    /// Whether the mark must be removed before the directory's mode and times are set.
    pub(super) fn goes_first(self) -> bool {
        self != Mark::Attribute(TRUSTED)
    }
}

/// Sets, finds and removes marks of one archive.
#[derive(Debug)]
pub(super) struct Marks {
    id: String,
    file: String,
    privileged: bool,
}

impl Marks {
    /// Marks of the archive with this id.
    pub(super) fn new(id: String) -> Self {
        let privileged = rustix::process::geteuid().is_root();
        Marks { file: temporary::named(id.replace('-', "")), id, privileged }
    }

    /// The name of a mark file.
    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn set(&self, directory: &OwnedFd) -> Mark {
        for name in [TRUSTED, USER] {
            let may = name == USER || self.privileged;
            if may && fsetxattr(directory, name, self.id.as_bytes(), XattrFlags::empty()).is_ok() {
                return Mark::Attribute(name);
            }
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, &*self.file, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) | Err(Errno::EXIST) => Mark::File,
            Err(_) => Mark::None,
        }
    }

    /// Finds the mark of a directory; `None` if it is not marked.
    pub(super) fn find(&self, directory: &OwnedFd) -> Option<Mark> {
        let stat = rustix::fs::fstat(directory).ok()?;
        for name in [TRUSTED, USER] {
            let may = name == TRUSTED || stat.st_mode & OTHERS_WRITE == 0;
            if may && self.has_attribute(directory, name) {
                return Some(Mark::Attribute(name));
            }
        }
        let file = rustix::fs::statat(directory, &*self.file, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        is_mark(&file, &stat).then_some(Mark::File)
    }

    fn has_attribute(&self, directory: &OwnedFd, name: &str) -> bool {
        let mut value = [0; 64];
        let length = fgetxattr(directory, name, &mut value).ok();
        length.and_then(|length| value.get(..length)) == Some(self.id.as_bytes())
    }

    /// Removes a mark; succeeds if it is missing.
    pub(super) fn remove(&self, directory: &OwnedFd, mark: Mark) -> Result<(), Errno> {
        let removed = match mark {
            Mark::Attribute(name) => fremovexattr(directory, name),
            Mark::File => rustix::fs::unlinkat(directory, &*self.file, AtFlags::empty()),
            Mark::None => Ok(()),
        };
        match removed {
            Err(Errno::NODATA | Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// Whether a file in `directory` is a mark set by the directory's owner.
fn is_mark(file: &Stat, directory: &Stat) -> bool {
    FileType::from_raw_mode(file.st_mode) == FileType::RegularFile
        && file.st_uid == directory.st_uid
        && file.st_size == 0
}
