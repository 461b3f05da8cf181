//! Something that is being made, and does not have its name yet.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{LazyLock, Mutex, PoisonError};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::metadata::{Inode, inode};
use super::temporary;
use super::write::Error;

/// Held while a name is found free and then taken, where that takes two calls.
static RENAMING: Mutex<()> = Mutex::new(());

static IS_ROOT: LazyLock<bool> = LazyLock::new(|| rustix::process::geteuid().is_root());

/// Whether a file that is made without a name can get one. Without /proc that takes root's rights.
static CAN_BE_NAMED_LATER: LazyLock<bool> =
    LazyLock::new(|| *IS_ROOT || rustix::fs::access("/proc/self/fd", Access::EXISTS).is_ok());

/// Something that is being made, and does not have its name yet. Dropped, it is gone.
pub(super) struct Draft<'d> {
    into: &'d OwnedFd,
    pub(super) fd: OwnedFd,
    temporary: Option<String>,
}

impl<'d> Draft<'d> {
    /// A new file: without any name, where the file system can do that.
    pub(super) fn file(into: &'d OwnedFd) -> Result<Self, Errno> {
        let (write, private) = (OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let unnamed = match *CAN_BE_NAMED_LATER {
            true => rustix::fs::openat(into, c".", write | OFlags::TMPFILE, private),
            false => Err(Errno::OPNOTSUPP),
        };
        match unnamed {
            Ok(fd) => Ok(Draft { into, fd, temporary: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let name = temporary::name();
                let flags = write | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let fd = rustix::fs::openat(into, &name, flags, private)?;
                Ok(Draft { into, fd, temporary: Some(name) })
            }
            Err(e) => Err(e),
        }
    }

    /// Anything else, which `make` makes under a name that it is given.
    pub(super) fn special(
        into: &'d OwnedFd,
        kind: FileType,
        make: impl FnOnce(&str) -> Result<(), Errno>,
    ) -> Result<Self, Error> {
        let name = temporary::name();
        make(&name)?;
        let fd = rustix::fs::openat(into, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        // From here on it goes again, whatever it is: the name is ours.
        let draft = match fd {
            Ok(fd) => Draft { into, fd, temporary: Some(name) },
            Err(e) => {
                remove(into, &name);
                return Err(e.into());
            }
        };
        let stat = rustix::fs::fstat(&draft.fd)?;
        // Between the two calls somebody else could have put something of another's there.
        let is_right = FileType::from_raw_mode(stat.st_mode) == kind && stat.st_nlink == 1 && is_own(into, &stat)?;
        match is_right {
            true => Ok(draft),
            false => Err(io::Error::other("something else took its place while it was made").into()),
        }
    }

    pub(super) fn inode(&self) -> Result<Inode, Errno> {
        rustix::fs::fstat(&self.fd).map(|stat: Stat| inode(&stat))
    }

    /// Gives it its name, now that it is complete. `replace`: what has the name goes.
    pub(super) fn name(mut self, name: &[u8], replace: bool) -> Result<(), Error> {
        if self.temporary.is_none() {
            let link = |name: &[u8]| link_unnamed(&self.fd, self.into, name);
            match link(name) {
                Err(Errno::EXIST) if replace => {
                    // Only a rename takes the place of something without a gap.
                    let temporary = temporary::name();
                    link(temporary.as_bytes())?;
                    self.temporary = Some(temporary);
                }
                Err(Errno::EXIST) => return Err(Error::Exists),
                other => return Ok(other?),
            }
        }
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let renamed = match replace {
            true => rustix::fs::renameat(self.into, temporary, self.into, name),
            false => rename(self.into, temporary.as_bytes(), name),
        };
        match renamed {
            Err(Errno::EXIST) => Err(Error::Exists),
            Err(Errno::ISDIR) => Err(Error::Directory),
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
    // If it can't be removed, the error that led here is the one to report; the next restore removes it.
    let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
}

/// Gives a file without a name one: by its handle, which takes rights that root has, or by way of /proc.
fn link_unnamed(file: &OwnedFd, folder: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    if *IS_ROOT {
        match rustix::fs::linkat(file, c"", folder, name, AtFlags::EMPTY_PATH) {
            // Root of a user namespace has not all rights.
            Err(Errno::NOENT | Errno::INVAL) => {}
            other => return other,
        }
    }
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, &itself, folder, name, AtFlags::SYMLINK_FOLLOW)
}

/// Gives what is called `old` the name `new`, unless that is taken.
pub(super) fn rename(folder: &OwnedFd, old: &[u8], new: &[u8]) -> Result<(), Errno> {
    match rustix::fs::renameat_with(folder, old, folder, new, RenameFlags::NOREPLACE) {
        // The file system can't promise that. So at least no two workers may find the name free at the same time.
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

/// Whether something in `folder` belongs to the user that new files there belong to. That is not always the user who
/// makes them: NFS servers and mounts of NTFS and CIFS may give all files one owner.
pub(super) fn is_own(folder: &OwnedFd, stat: &Stat) -> Result<bool, Errno> {
    if stat.st_uid == rustix::process::geteuid().as_raw() {
        return Ok(true);
    }
    let new = Draft::file(folder)?;
    Ok(rustix::fs::fstat(&new.fd)?.st_uid == stat.st_uid)
}
