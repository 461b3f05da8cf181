//! What belongs to an entry beside its content: owner, extended attributes, mode, times, inode flags.
//!
//! The order matters. A change of owner takes set-id bits and capabilities away, an ACL decides over the mode, a
//! read-only mode keeps its owner from setting attributes, and times come after everything that changes them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    AtFlags, Gid, IFlags, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, flistxattr, fremovexattr, fsetxattr,
    ioctl_getflags, ioctl_setflags, lremovexattr, lsetxattr,
};
use rustix::io::Errno;

use super::refusals::{Refusals, What};
use crate::format::{Entry, Kind, Timestamp};
use crate::reader::Listed;
use crate::source::Owners;

/// Inode flags that forbid what may still have to be done.
pub(super) const FORBIDDING: u32 = Entry::IMMUTABLE | Entry::APPEND_ONLY;

/// The attribute that holds a POSIX ACL.
const ACL: &[u8] = b"system.posix_acl_access";

/// How entries are described, and what of it was refused.
pub(super) struct Describe {
    privileged: bool,
    numeric_owner: bool,
    owners: Mutex<Owners>,
    pub(super) refusals: Refusals,
}

impl Describe {
    pub(super) fn new(numeric_owner: bool) -> Self {
        Describe {
            privileged: rustix::process::geteuid().is_root(),
            numeric_owner,
            owners: Mutex::default(),
            refusals: Refusals::default(),
        }
    }

    /// A file that was just written.
    pub(super) fn file(&self, file: impl AsFd, listed: &Listed) -> io::Result<()> {
        let (fd, entry) = (file.as_fd(), listed.entry());
        let owned = self.own(listed, |uid, gid| rustix::fs::fchown(fd, uid, gid))?;
        self.xattrs_of_fd(fd, entry)?;
        rustix::fs::fchmod(fd, self.mode(entry, owned))?;
        Ok(rustix::fs::futimens(fd, &times(entry.mtime))?)
    }

    /// A directory that has everything in it.
    pub(super) fn directory(&self, directory: impl AsFd, listed: &Listed) -> io::Result<()> {
        let fd = directory.as_fd();
        self.file(fd, listed)?;
        self.set_inode_flags(fd, listed.entry().inode_flags);
        Ok(())
    }

    /// What can't be opened: a link, a device.
    pub(super) fn child(&self, above: &OwnedFd, name: &str, listed: &Listed) -> io::Result<()> {
        let entry = listed.entry();
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let owned = self.own(listed, |uid, gid| rustix::fs::chownat(above, name, uid, gid, no_follow))?;
        // There is no call for this relative to a directory; a handle's path serves, and the last name in it is
        // not followed.
        let path = format!("/proc/self/fd/{}/{name}", above.as_raw_fd());
        for (attribute, value) in &entry.xattrs {
            let set = lsetxattr(&path, attribute.as_slice(), value, XattrFlags::empty());
            self.refused_xattr(attribute, set)?;
        }
        // Links have neither an ACL nor a mode of their own.
        if entry.kind != Kind::Symlink {
            if !has(entry, ACL) {
                match lremovexattr(&path, ACL) {
                    // It got none from the directory, or the file system has none.
                    Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                    other => self.refused_xattr(ACL, other)?,
                }
            }
            rustix::fs::chmodat(above, name, self.mode(entry, owned), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(above, name, &times(entry.mtime), no_follow)?)
    }

    /// Sets owner and group. Returns whether both are right now.
    fn own(
        &self,
        listed: &Listed,
        change: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        let (uid, gid) = self.owner(listed);
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        if self.privileged {
            return change(Some(uid), Some(gid)).map(|()| true);
        }
        // Others can keep what is theirs, and give to groups that they are in.
        let mine = rustix::process::geteuid() == uid;
        match change(None, Some(gid)) {
            Ok(()) if mine => Ok(true),
            Ok(()) => {
                self.refusals.count(What::Owner, Errno::PERM);
                Ok(false)
            }
            Err(why) if self.refusals.count(What::Owner, why) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Owner and group as numbers of this machine: by name where it knows the name.
    fn owner(&self, listed: &Listed) -> (u32, u32) {
        let entry = listed.entry();
        if self.numeric_owner {
            return (entry.uid, entry.gid);
        }
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = listed.user().and_then(|name| owners.uid(name)).unwrap_or(entry.uid);
        let gid = listed.group().and_then(|name| owners.gid(name)).unwrap_or(entry.gid);
        (uid, gid)
    }

    /// Set-id bits are for the owner that was backed up, not for whoever restores.
    fn mode(&self, entry: &Entry, owned: bool) -> Mode {
        let bits = match owned || entry.kind == Kind::Directory {
            true => entry.mode,
            false => entry.mode & !0o6000,
        };
        Mode::from_raw_mode(bits)
    }

    /// Sets attributes, and takes away what came from a default ACL or was there before.
    fn xattrs_of_fd(&self, fd: impl AsFd, entry: &Entry) -> io::Result<()> {
        let fd = fd.as_fd();
        let mut names = [0; 1024];
        let listed = flistxattr(fd, &mut names).unwrap_or_default();
        for name in names.get(..listed).unwrap_or_default().split(|byte| *byte == 0) {
            let ours = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
            if ours && !has(entry, name) {
                self.refused_xattr(name, fremovexattr(fd, name))?;
            }
        }
        for (name, value) in &entry.xattrs {
            self.refused_xattr(name, fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()))?;
        }
        Ok(())
    }

    fn refused_xattr(&self, name: &[u8], result: Result<(), Errno>) -> io::Result<()> {
        let Err(why) = result else { return Ok(()) };
        let space = name.split(|byte| *byte == b'.').next().unwrap_or_default();
        match self.refusals.count(What::Xattr(String::from_utf8_lossy(space).into_owned()), why) {
            true => Ok(()),
            false => {
                let name = String::from_utf8_lossy(name);
                Err(io::Error::other(format!("cannot set its extended attribute {name}: {why}")))
            }
        }
    }

    /// Adds inode flags. Each may be one that this file system lacks.
    pub(super) fn set_inode_flags(&self, fd: impl AsFd, flags: u32) {
        if flags == 0 {
            return;
        }
        let fd = fd.as_fd();
        let set = |flags| {
            let now = ioctl_getflags(fd)?;
            ioctl_setflags(fd, now | IFlags::from_bits_retain(flags))
        };
        if set(flags).is_ok() {
            return;
        }
        for flag in (0..u32::BITS).map(|bit| 1 << bit).filter(|flag| flags & flag != 0) {
            if let Err(why) = set(flag) {
                self.refusals.count(What::InodeFlags, why);
            }
        }
    }

    /// Gives a complete file the inode flags that forbid to change it.
    pub(super) fn forbid(&self, above: &OwnedFd, name: &[u8], flags: u32) {
        let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(above, OsStr::from_bytes(name), open, Mode::empty()) {
            Ok(file) => self.set_inode_flags(file, flags),
            Err(why) => {
                self.refusals.count(What::InodeFlags, why);
            }
        }
    }
}

fn has(entry: &Entry, xattr: &[u8]) -> bool {
    entry.xattrs.binary_search_by(|(name, _)| name.as_slice().cmp(xattr)).is_ok()
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
