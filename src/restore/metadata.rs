//! What belongs to an entry beside its content: owner, extended attributes, mode, times, inode flags.
//!
//! The order matters. A change of owner takes set-id bits and capabilities away, an ACL decides over the mode, a
//! read-only mode keeps its owner from setting attributes, and times come after everything that changes them. A step
//! that fails does not keep the others from being made, and never costs the content.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    AtFlags, CWD, Gid, IFlags, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, Uid, XattrFlags, fremovexattr,
    fsetxattr, ioctl_getflags, ioctl_setflags, removexattr, setxattr,
};
use rustix::io::Errno;

use super::refusals::{Refusals, What};
use super::{Options, mark};
use crate::format::{Entry, Kind, Timestamp};
use crate::reader::EntryHandle;
use crate::source::{Extended, Owners};

/// Inode flags that forbid what may still have to be done.
pub(super) const FORBIDDING: u32 = Entry::IMMUTABLE | Entry::APPEND_ONLY;

/// The attribute that holds a POSIX ACL.
const ACL: &[u8] = b"system.posix_acl_access";

/// How entries are described, and what of it was refused.
pub(super) struct Describe {
    privileged: bool,
    numeric_owner: bool,
    trust_set_id: bool,
    owners: Mutex<Owners>,
    /// Entries whose set-id bits, capabilities or devices were left out, since their mount ignored them.
    left_out: AtomicU64,
    pub(super) refusals: Refusals,
}

impl Describe {
    pub(super) fn new(options: &Options) -> Self {
        Describe {
            privileged: rustix::process::geteuid().is_root(),
            numeric_owner: options.numeric_owner,
            trust_set_id: options.trust_set_id,
            owners: Mutex::default(),
            left_out: AtomicU64::new(0),
            refusals: Refusals::default(),
        }
    }

    /// Whether set-id bits, capabilities or the device of an entry are left out because they had no effect where it lay.
    /// Other users than root can't restore them anyway.
    pub(super) fn is_left_out(&self, entry: &Entry) -> bool {
        self.privileged && !self.trust_set_id && entry.flags & Entry::UNPRIVILEGED != 0
    }

    /// Counts an entry of which something was left out.
    pub(super) fn count_left_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// How many entries were counted.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// A file that was just written. Returns what could not be done of it, though it should be possible.
    pub(super) fn file(&self, file: impl AsFd, listed: &EntryHandle) -> Option<String> {
        let (fd, entry) = (file.as_fd(), listed.entry());
        let mut steps = Steps::default();
        let owned = steps.done("set its owner", self.own(listed, |uid, gid| rustix::fs::fchown(fd, uid, gid)));
        self.xattrs(entry, &mut steps, &Extended::names_of(fd), |attribute, value| match value {
            Some(value) => fsetxattr(fd, attribute, value, XattrFlags::empty()),
            None => fremovexattr(fd, attribute),
        });
        let mode = self.mode(entry, owned.unwrap_or(false));
        steps.done("set its mode", self.allowed(What::Mode, rustix::fs::fchmod(fd, mode)));
        steps.done("set its times", self.allowed(What::Times, rustix::fs::futimens(fd, &times(entry.mtime))));
        steps.first
    }

    /// A directory that has everything in it. `unmark` makes it a finished one.
    pub(super) fn directory(
        &self,
        directory: impl AsFd,
        listed: &EntryHandle,
        unmark: impl FnOnce() -> Option<String>,
    ) -> Option<String> {
        let fd = directory.as_fd();
        let problem = self.file(fd, listed);
        // Inode flags may forbid to change attributes.
        let unmarked = unmark();
        self.set_inode_flags(fd, listed.entry().inode_flags);
        problem.or(unmarked)
    }

    /// What is not opened: a link, a device. `fd` only says which it is.
    pub(super) fn special(&self, fd: &OwnedFd, listed: &EntryHandle) -> Option<String> {
        let entry = listed.entry();
        // Most calls can't be made with such a handle, but with its path, which leads to itself and nowhere else. Without
        // /proc they are refused.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut steps = Steps::default();
        let own = self.own(listed, |uid, gid| rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH));
        let owned = steps.done("set its owner", own);
        // Of a default ACL of its directory it can have no more than this.
        let inherited = if entry.kind == Kind::Symlink { vec![] } else { vec![ACL.to_vec()] };
        self.xattrs(entry, &mut steps, &inherited, |attribute, value| match value {
            Some(value) => setxattr(&path, attribute, value, XattrFlags::empty()),
            None => removexattr(&path, attribute),
        });
        // Links have no mode of their own.
        if entry.kind != Kind::Symlink {
            let mode = self.mode(entry, owned.unwrap_or(false));
            let set = rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty());
            steps.done("set its mode", self.allowed(What::Mode, set));
        }
        let set = match rustix::fs::utimensat(fd, c"", &times(entry.mtime), AtFlags::EMPTY_PATH) {
            // Linux before 5.8.
            Err(Errno::INVAL) => rustix::fs::utimensat(CWD, &path, &times(entry.mtime), AtFlags::empty()),
            other => other,
        };
        steps.done("set its times", self.allowed(What::Times, set));
        steps.first
    }

    /// Takes an error away that is counted as a refusal.
    fn allowed(&self, what: What, result: Result<(), Errno>) -> Result<(), Errno> {
        match result {
            Err(why) if self.refusals.count(what, why) => Ok(()),
            other => other,
        }
    }

    /// Sets owner and group. Returns whether both are right now.
    fn own(
        &self,
        listed: &EntryHandle,
        change: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        let (uid, gid) = self.owner(listed);
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let mine = rustix::process::geteuid() == uid;
        // Those who may not give files away can keep what is theirs, and give to groups that they are in.
        let result = match self.privileged {
            true => change(Some(uid), Some(gid)).map(|()| true),
            false => change(None, Some(gid)).map(|()| mine),
        };
        match result {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.refusals.count(What::Owner, Errno::PERM);
                Ok(false)
            }
            Err(why) if self.refusals.count(What::Owner, why) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Owner and group as numbers of this machine: by name where it knows the name.
    fn owner(&self, listed: &EntryHandle) -> (u32, u32) {
        let entry = listed.entry();
        if self.numeric_owner {
            return (entry.uid, entry.gid);
        }
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = listed.user().and_then(|name| owners.uid(name)).unwrap_or(entry.uid);
        let gid = listed.group().and_then(|name| owners.gid(name)).unwrap_or(entry.gid);
        (uid, gid)
    }

    /// The mode of an entry. Set-id bits of files are for the owner that was backed up, and only root can say who that is:
    /// a user's own number in a snapshot may stand for somebody else's file.
    fn mode(&self, entry: &Entry, owned: bool) -> Mode {
        let trusted = self.privileged && owned && !self.is_left_out(entry);
        let bits = match trusted || entry.kind == Kind::Directory {
            true => entry.mode,
            false => entry.mode & !Entry::SET_ID,
        };
        Mode::from_raw_mode(bits)
    }

    /// Sets attributes, and takes away those that are `there` because of a default ACL, or were there before.
    fn xattrs(
        &self,
        entry: &Entry,
        steps: &mut Steps,
        there: &[Vec<u8>],
        change: impl Fn(&[u8], Option<&[u8]>) -> Result<(), Errno>,
    ) {
        let ours = |name: &[u8]| name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        let kept = |name: &[u8]| entry.xattrs.binary_search_by(|(kept, _)| kept.as_slice().cmp(name)).is_ok();
        let gone = there.iter().filter(|name| ours(name) && !kept(name)).map(|name| (name, None));
        // A backup may have taken the mark of an unfinished directory.
        let left_out = self.is_left_out(entry);
        let is_unwanted = |name: &[u8]| mark::is_attribute(name) || left_out && name == Entry::CAPABILITIES;
        let wanted = entry.xattrs.iter().filter(|(name, _)| !is_unwanted(name));
        let set = wanted.map(|(name, value)| (name, Some(value.as_slice())));
        for (name, value) in gone.chain(set) {
            let result = match change(name, value) {
                // It was not there, or the file system has none.
                Err(Errno::NODATA | Errno::OPNOTSUPP) if value.is_none() => Ok(()),
                other => other,
            };
            let space = String::from_utf8_lossy(name.split(|byte| *byte == b'.').next().unwrap_or_default());
            let what = format!("set its extended attribute {}", String::from_utf8_lossy(name));
            steps.done(&what, self.allowed(What::Xattr(space.into_owned()), result));
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

    /// Gives a complete file the inode flags that forbid to change it, if it still has its name.
    pub(super) fn forbid(&self, above: &OwnedFd, name: &[u8], expected: Inode, flags: u32) {
        let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let result = rustix::fs::openat(above, name, open, Mode::empty());
        match result.and_then(|file| rustix::fs::fstat(&file).map(|stat| (file, stat))) {
            Ok((file, stat)) if inode(&stat) == expected => self.set_inode_flags(file, flags),
            Ok(_) => {}
            Err(why) => {
                self.refusals.count(What::InodeFlags, why);
            }
        }
    }
}

/// What is done one after the other, whatever becomes of the step before.
#[derive(Default)]
struct Steps {
    /// The first that failed.
    first: Option<String>,
}

impl Steps {
    fn done<T>(&mut self, what: &str, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) => {
                self.first.get_or_insert_with(|| format!("it is there, but cannot {what}: {e}"));
                None
            }
        }
    }
}

/// Which file it is: device and inode.
pub(super) type Inode = (u64, u64);

pub(super) fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

pub(super) fn times(mtime: Timestamp) -> Timestamps {
    // The time of the last access is not in the snapshot. It is set all the same: file systems built on version 2 of
    // libfuse ignore a call that sets only one of both times, and report success.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: now, last_modification: time }
}
