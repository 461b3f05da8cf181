//! A file, link or device that is being created and does not have its final name yet.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::entry_error::EntryError;
use super::metadata::{FileId, PRIVATE, inode};
use super::temporary;

/// Serializes checking and taking a name where the file system cannot do both in one call.
static RENAMING: Mutex<()> = Mutex::new(());

static IS_ROOT: LazyLock<bool> = LazyLock::new(|| rustix::process::geteuid().is_root());

/// Whether an unnamed file can be linked to a name later, which takes either /proc or root.
static CAN_BE_NAMED_LATER: LazyLock<bool> =
    LazyLock::new(|| *IS_ROOT || rustix::fs::access("/proc/self/fd", Access::EXISTS).is_ok());

/// A file, link or device without its final name. It is deleted on drop.
pub(super) struct Draft<'d> {
    into: &'d OwnedFd,
    pub(super) fd: File,
    temporary: Option<String>,
}

impl<'d> Draft<'d> {
    /// Creates a regular file: unnamed and with this mode if the file system supports it, otherwise with a temporary name and
    /// private.
    pub(super) fn file(into: &'d OwnedFd, mode: Mode) -> Result<Self, Errno> {
        let write = OFlags::WRONLY | OFlags::CLOEXEC;
        let unnamed = if *CAN_BE_NAMED_LATER {
            rustix::fs::openat(into, c".", write | OFlags::TMPFILE, mode)
        } else {
            Err(Errno::OPNOTSUPP)
        };
        match unnamed {
            Ok(fd) => Ok(Draft { into, fd: fd.into(), temporary: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let name = temporary::name();
                let flags = write | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let fd = rustix::fs::openat(into, &name, flags, PRIVATE)?;
                Ok(Draft { into, fd: fd.into(), temporary: Some(name) })
            }
            Err(e) => Err(e),
        }
    }

    /// Creates an entry of another kind by calling `make` with a temporary name.
    pub(super) fn special(
        into: &'d OwnedFd,
        kind: FileType,
        make: impl FnOnce(&str) -> Result<(), Errno>,
    ) -> Result<Self, EntryError> {
        let name = temporary::name();
        make(&name)?;
        let fd = rustix::fs::openat(into, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        // The temporary name is removed on drop, whatever has it.
        let draft = match fd {
            Ok(fd) => Draft { into, fd: fd.into(), temporary: Some(name) },
            Err(e) => {
                remove(into, &name);
                return Err(e.into());
            }
        };
        let stat = rustix::fs::fstat(&draft.fd)?;
        // Another process may have replaced the entry between the two calls.
        let is_right = FileType::from_raw_mode(stat.st_mode) == kind && stat.st_nlink == 1 && is_own(into, &stat)?;
        if is_right {
            Ok(draft)
        } else {
            Err(io::Error::other("another process replaced it while it was created").into())
        }
    }

    pub(super) fn inode(&self) -> Result<FileId, Errno> {
        rustix::fs::fstat(&self.fd).map(|stat: Stat| inode(&stat))
    }

    /// Gives the complete draft its final name. With `replace`, replaces an existing file.
    pub(super) fn name(mut self, name: &[u8], replace: bool) -> Result<(), EntryError> {
        if self.temporary.is_none() {
            let link = |name: &[u8]| link_unnamed(&self.fd, self.into, name);
            match link(name) {
                Err(Errno::EXIST) if replace => {
                    // Only a rename replaces a file atomically, and it needs a name.
                    let temporary = temporary::name();
                    link(temporary.as_bytes())?;
                    self.temporary = Some(temporary);
                }
                Err(Errno::EXIST) => return Err(EntryError::Exists),
                other => return Ok(other?),
            }
        }
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let renamed = if replace {
            rustix::fs::renameat(self.into, temporary, self.into, name)
        } else {
            rename(self.into, temporary.as_bytes(), name)
        };
        match renamed {
            Err(Errno::EXIST) => Err(EntryError::Exists),
            Err(Errno::ISDIR) => Err(EntryError::Directory),
            Err(e) => Err(e.into()),
            Ok(()) => {
                self.temporary = None;
                Ok(())
            }
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            remove(self.into, name);
        }
    }
}

fn remove(folder: &OwnedFd, name: &str) {
    // Best effort: the next restore removes leftovers.
    let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
}

/// Links an unnamed file to a name: by its handle, which only root may do, or through /proc.
fn link_unnamed(file: &File, folder: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    if *IS_ROOT {
        match rustix::fs::linkat(file, c"", folder, name, AtFlags::EMPTY_PATH) {
            // Root in a user namespace may lack the capability.
            Err(Errno::NOENT | Errno::INVAL) => {}
            other => return other,
        }
    }
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, &itself, folder, name, AtFlags::SYMLINK_FOLLOW)
}

/// Renames `old` to `new`; fails with EEXIST if `new` exists.
pub(super) fn rename(folder: &OwnedFd, old: &[u8], new: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(folder, old, folder, new, RenameFlags::NOREPLACE) {
        // Not supported by the file system. The lock prevents at least races between workers.
        Err(Errno::INVAL | Errno::NOSYS) => {
            let _alone = RENAMING.lock().unwrap_or_else(PoisonError::into_inner);
            match rustix::fs::statat(folder, new, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => rustix::fs::renameat(folder, old, folder, new),
                other => Err(other.err().unwrap_or(Errno::EXIST)),
            }
        }
        other => other,
    }
}

/// Whether a file in `folder` has the owner that new files get there. That may differ from the current user: NFS
/// servers, and mounts of NTFS and CIFS, may give all files the same owner.
pub(super) fn is_own(folder: &OwnedFd, stat: &Stat) -> Result<bool, Errno> {
    if stat.st_uid == rustix::process::geteuid().as_raw() {
        return Ok(true);
    }
    let new = Draft::file(folder, PRIVATE)?;
    Ok(rustix::fs::fstat(&new.fd)?.st_uid == stat.st_uid)
}
