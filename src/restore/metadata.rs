//! Sets the metadata of a restored entry: owner, extended attributes, mode, times, inode flags.
//!
//! The order matters: a change of owner clears set-id bits and capabilities, an ACL changes the mode, a read-only mode
//! prevents its owner from setting attributes, and all these steps change the times. If a step fails, the others still
//! run, and the content is kept.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    AtFlags, CWD, Gid, IFlags, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, Uid, XattrFlags, fremovexattr,
    fsetxattr, ioctl_getflags, ioctl_setflags, removexattr, setxattr,
};
use rustix::io::Errno;

use super::mark;
use super::options::Options;
use super::refusals::{Property, Refusals};
use crate::archive::{EntryHandle, EntryRef};
use crate::format::{Entry, Kind, Timestamp};
use crate::source::{Extended, Owners};

/// Restrictive inode flags. They prevent further changes and links, so they are set last.
pub(super) const FORBIDDING: u32 = Entry::IMMUTABLE | Entry::APPEND_ONLY;

/// The mode of a file that is not complete.
pub(super) const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The attribute of a POSIX access ACL.
const ACL: &[u8] = b"system.posix_acl_access";

/// Sets the metadata of entries, and counts refused operations.
pub(super) struct MetadataWriter {
    /// The effective user.
    user: Uid,
    numeric_owner: bool,
    trust_set_id: bool,
    owners: Mutex<Owners>,
    /// The number of entries restored without privileges or not at all, because their mount ignored privileges.
    left_out: AtomicU64,
    pub(super) refusals: Refusals,
}

impl MetadataWriter {
    pub(super) fn new(options: &Options) -> Self {
        MetadataWriter {
            user: rustix::process::geteuid(),
            numeric_owner: options.numeric_owner,
            trust_set_id: options.trust_set_id,
            owners: Mutex::default(),
            left_out: AtomicU64::new(0),
            refusals: Refusals::default(),
        }
    }

    fn is_privileged(&self) -> bool {
        self.user.is_root()
    }

    /// Whether set-id bits, capabilities or device number of an entry are not restored because the mount it was on
    /// ignored them. False for users other than root, who cannot restore them anyway.
    pub(super) fn is_left_out(&self, entry: &EntryRef<'_>) -> bool {
        self.is_privileged() && !self.trust_set_id && entry.is_unprivileged()
    }

    /// Counts an entry for [`MetadataWriter::left_out`].
    pub(super) fn count_left_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of entries restored without privileges or not at all.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Sets the metadata of a file that was just written. `there` are the names of the attributes that it has. Owner and mode
    /// are set only if they differ, since reading them takes less time. Returns the first unexpected failure.
    pub(super) fn file(&self, file: impl AsFd, listed: &EntryHandle, there: &[Vec<u8>]) -> Option<String> {
        let (fd, entry) = (file.as_fd(), listed.entry());
        let mut steps = Steps::default();
        let now = rustix::fs::fstat(fd).ok();
        let has_owner = |uid: Option<Uid>, gid: Option<Gid>| {
            let has = |wanted: Option<u32>, id: u32| wanted.is_none_or(|wanted| wanted == id);
            now.is_some_and(|now| has(uid.map(Uid::as_raw), now.st_uid) && has(gid.map(Gid::as_raw), now.st_gid))
        };
        let own = |uid, gid| if has_owner(uid, gid) { Ok(()) } else { rustix::fs::fchown(fd, uid, gid) };
        let owned = steps.record("set its owner", self.own(listed, own));
        self.xattrs(&entry, &mut steps, there, |attribute, value| match value {
            Some(value) => fsetxattr(fd, attribute, value, XattrFlags::empty()),
            None => fremovexattr(fd, attribute),
        });
        let mode = self.mode(&entry, owned.unwrap_or(false));
        // Attributes may have changed the mode.
        let is_plain = there.is_empty() && entry.xattrs.is_empty();
        if !(is_plain && now.is_some_and(|now| Mode::from_raw_mode(now.st_mode) == mode)) {
            steps.record("set its mode", self.allowed(Property::Mode, rustix::fs::fchmod(fd, mode)));
        }
        steps.record("set its times", self.allowed(Property::Times, rustix::fs::futimens(fd, &times(entry.mtime))));
        steps.first
    }

    /// Sets the metadata of a complete directory. `unmark` removes its mark.
    pub(super) fn directory(
        &self,
        directory: impl AsFd,
        listed: &EntryHandle,
        unmark: impl FnOnce() -> Option<String>,
    ) -> Option<String> {
        let fd = directory.as_fd();
        let problem = self.file(fd, listed, &Extended::names_of(fd));
        // Before the inode flags, which may prevent the removal of an attribute.
        let unmarked = unmark();
        self.set_inode_flags(fd, listed.entry().inode_flags);
        problem.or(unmarked)
    }

    /// Sets the metadata of a symlink or special file. `fd` is open with O_PATH.
    pub(super) fn special(&self, fd: &File, listed: &EntryHandle) -> Option<String> {
        let entry = listed.entry();
        // Most calls fail for an O_PATH handle, so they use its path in /proc. Without /proc they count as refused.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut steps = Steps::default();
        let own = self.own(listed, |uid, gid| rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH));
        let owned = steps.record("set its owner", own);
        // The only attribute that a new entry inherits, from the default ACL of its directory.
        let inherited = if entry.kind == Kind::Symlink { vec![] } else { vec![ACL.to_vec()] };
        self.xattrs(&entry, &mut steps, &inherited, |attribute, value| match value {
            Some(value) => setxattr(&path, attribute, value, XattrFlags::empty()),
            None => removexattr(&path, attribute),
        });
        // Symlinks have no mode.
        if entry.kind != Kind::Symlink {
            let mode = self.mode(&entry, owned.unwrap_or(false));
            let set = rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty());
            steps.record("set its mode", self.allowed(Property::Mode, set));
        }
        let set = match rustix::fs::utimensat(fd, c"", &times(entry.mtime), AtFlags::EMPTY_PATH) {
            // Linux before 5.8.
            Err(Errno::INVAL) => rustix::fs::utimensat(CWD, &path, &times(entry.mtime), AtFlags::empty()),
            other => other,
        };
        steps.record("set its times", self.allowed(Property::Times, set));
        steps.first
    }

    /// Counts an expected error as a refusal and returns success.
    fn allowed(&self, property: Property, result: Result<(), Errno>) -> Result<(), Errno> {
        match result {
            Err(why) if self.refusals.count(property, why) => Ok(()),
            other => other,
        }
    }

    /// Sets owner and group. Returns whether the owner and group are those of the entry.
    fn own(
        &self,
        listed: &EntryHandle,
        change: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
    ) -> Result<bool, Errno> {
        let (uid, gid) = self.owner(listed);
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        // Other users cannot change the owner, but can set a group that they are in.
        let result = if self.is_privileged() {
            change(Some(uid), Some(gid)).map(|()| true)
        } else {
            change(None, Some(gid)).map(|()| self.user == uid)
        };
        match result {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.refusals.count(Property::Owner, Errno::PERM);
                Ok(false)
            }
            Err(why) if self.refusals.count(Property::Owner, why) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// The ids of owner and group on this machine: by name if it knows the name, otherwise the stored ids.
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

    /// The mode of an entry. Set-id bits of files are restored only by root and only if the owner was set: with a
    /// different owner they would give a wrong user's rights. A uid in a snapshot may belong to another user on this
    /// machine.
    fn mode(&self, entry: &EntryRef<'_>, owned: bool) -> Mode {
        let trusted = self.is_privileged() && owned && !self.is_left_out(entry);
        let keeps_set_id = trusted || entry.kind == Kind::Directory;
        let bits = if keeps_set_id { entry.mode } else { entry.mode & !Entry::SET_ID };
        Mode::from_raw_mode(bits)
    }

    /// Sets the attributes of an entry, and removes others in `there`, which were inherited or existed before.
    fn xattrs(
        &self,
        entry: &EntryRef<'_>,
        steps: &mut Steps,
        there: &[Vec<u8>],
        change: impl Fn(&[u8], Option<&[u8]>) -> Result<(), Errno>,
    ) {
        let ours = |name: &[u8]| name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        let kept = |name: &[u8]| entry.xattrs.binary_search_by(|(kept, _)| kept.as_slice().cmp(name)).is_ok();
        let gone = there.iter().filter(|name| ours(name) && !kept(name)).map(|name| (name, None));
        // The snapshot may contain the mark of an unfinished directory.
        let left_out = self.is_left_out(entry);
        let is_unwanted = |name: &[u8]| mark::is_attribute(name) || left_out && name == Entry::CAPABILITIES;
        let wanted = entry.xattrs.iter().filter(|(name, _)| !is_unwanted(name));
        let set = wanted.map(|(name, value)| (name, Some(value.as_slice())));
        for (name, value) in gone.chain(set) {
            let result = match change(name, value) {
                // The attribute was removed already, or attributes are not supported.
                Err(Errno::NODATA | Errno::OPNOTSUPP) if value.is_none() => Ok(()),
                other => other,
            };
            let space = String::from_utf8_lossy(name.split(|byte| *byte == b'.').next().unwrap_or_default());
            let what = format!("set its extended attribute {}", String::from_utf8_lossy(name));
            steps.record(&what, self.allowed(Property::Xattr(space.into_owned()), result));
        }
    }

    /// Adds inode flags: together, or one by one if the file system lacks some of them.
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
                self.refusals.count(Property::InodeFlags, why);
            }
        }
    }

    /// Sets the restrictive inode flags of a complete file, unless its name belongs to a different inode by now.
    pub(super) fn forbid(&self, above: &OwnedFd, name: &[u8], expected: FileId, flags: u32) {
        let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let result = rustix::fs::openat(above, name, open, Mode::empty());
        match result.and_then(|file| rustix::fs::fstat(&file).map(|stat| (file, stat))) {
            Ok((file, stat)) if inode(&stat) == expected => self.set_inode_flags(file, flags),
            Ok(_) => {}
            Err(why) => {
                self.refusals.count(Property::InodeFlags, why);
            }
        }
    }
}

/// The mode with which to create a file. It is that of the entry without set-id bits, so most files need no change of it
/// later. A file with attributes is created private, because a read-only mode prevents its owner from setting them.
pub(super) fn first_mode(entry: &EntryRef<'_>) -> Mode {
    match entry.xattrs.is_empty() {
        true => Mode::from_raw_mode(entry.mode) & (Mode::RWXU | Mode::RWXG | Mode::RWXO),
        false => PRIVATE,
    }
}

/// A sequence of steps that continues after a failure.
#[derive(Default)]
struct Steps {
    /// The first failure.
    first: Option<String>,
}

impl Steps {
    fn record<T>(&mut self, what: &str, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) => {
                self.first.get_or_insert_with(|| format!("restored, but cannot {what}: {e}"));
                None
            }
        }
    }
}

/// Device and inode number of a file.
pub(super) type FileId = (u64, u64);

pub(super) fn inode(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

pub(super) fn times(mtime: Timestamp) -> Timestamps {
    // The snapshot has no access time, so it is set to now. It cannot be omitted: file systems based on libfuse 2
    // ignore a call that sets only one of the times, and report success.
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: now, last_modification: time }
}
