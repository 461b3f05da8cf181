//! Translates FUSE requests into calls of the file system, and their results into replies.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use tracing::{debug_span, trace, warn};

use super::attributes::{Attributes, ListingEntry, Validity};
use super::errno::errno;
use super::error::Error;
use super::filesystem::FileSystem;
use super::virtual_tree::REFRESH;
use crate::archive::Seek;
use crate::format::{Kind, Timestamp};

/// Cache lifetime of entries in snapshots: they never change.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Cache lifetime of the roots of snapshots: snapshots can be removed.
const SNAPSHOT_TTL: Duration = Duration::from_secs(1);
/// Cache lifetime of the directories above the snapshots: the interval at which snapshots are listed. With 0 the kernel
/// would look up the first components of a path on each access.
const VIRTUAL_TTL: Duration = REFRESH;
/// Always 0: inode numbers are never reused.
const GENERATION: Generation = Generation(0);
/// Number of offsets that `.` and `..` take in a listing.
const DOTS: u64 = 2;
/// A negative entry, which the kernel caches.
const NEGATIVE: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};
/// `st_blksize`: the preferred read size, in bytes.
const READ_SIZE: u32 = 128 << 10;

/// `FS_IOC_GETFLAGS`: the inode flags, as `lsattr` shows them.
const GET_FLAGS: u32 = 0x8008_6601;

/// Serves a file system over FUSE.
pub(super) struct Shell {
    filesystem: Arc<FileSystem>,
    /// Whether other users have access. Then the kernel must check ACLs: the group bits of a file with an ACL are its
    /// mask, so the mode alone would allow the group too much.
    shared: bool,
    /// Whether the kernel supports ENOSYS for `open`, and then opens files without a request.
    no_open: bool,
    /// Whether the kernel supports ENOSYS for `opendir`, and caches listings until the directory's mtime changes.
    no_opendir: bool,
}

impl Shell {
    pub(super) fn new(filesystem: Arc<FileSystem>, shared: bool) -> Self {
        Shell { filesystem, shared, no_open: false, no_opendir: false }
    }

    /// Runs `act`. Reports an error and returns it as an errno.
    fn ask<T>(&self, ino: INodeNo, act: impl FnOnce() -> Result<T, Error>) -> Result<T, Errno> {
        let _span = debug_span!("fuse", inode = ino.0).entered();
        act().map_err(|error| {
            self.filesystem.report(ino.0, &error);
            let number = errno(&error);
            match error {
                Error::Archive(_) | Error::Unreadable => warn!(errno = number.code(), "request failed"),
                _ => trace!(errno = number.code(), "request refused"),
            }
            number
        })
    }

    /// Lists entries from the kernel's `offset` on. An error after the first entry ends the listing, and the kernel's next
    /// request gets it.
    fn list(
        &self,
        ino: INodeNo,
        offset: u64,
        counted: bool,
        take: &mut dyn FnMut(&ListingEntry) -> bool,
    ) -> Result<(), Errno> {
        let mut taken = false;
        self.ask(ino, || {
            let mut take = |item: &ListingEntry| {
                let more = take(item);
                taken |= more;
                more
            };
            match self.filesystem.list(ino.0, offset.saturating_sub(DOTS), counted, &mut take) {
                Err(_) if taken => Ok(()),
                result => result,
            }
        })
    }
}

impl Filesystem for Shell {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // With AUTO_INVAL_DATA the kernel checks the mtime of a directory before it uses a cached listing.
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS;
        let available = config.capabilities();
        // Without one of these the mount is only slower.
        let _ = config.add_capabilities(wanted & available);
        self.no_open = available.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = available.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT | InitFlags::FUSE_AUTO_INVAL_DATA);
        if self.shared {
            let lacking =
                |_| io::Error::new(io::ErrorKind::Unsupported, "this kernel does not check ACLs of FUSE mounts");
            config.add_capabilities(InitFlags::FUSE_POSIX_ACL).map_err(lacking)?;
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.ask(parent, || match self.filesystem.lookup(parent.0, name.as_bytes()) {
            Ok(found) => Ok(Some(found)),
            Err(Error::NeverThere) => Ok(None),
            Err(error) => Err(error),
        });
        match found {
            Ok(Some(found)) => {
                // Names in a snapshot never change; names of snapshots may be removed.
                let named = if self.filesystem.is_within(parent.0) { FOREVER } else { VIRTUAL_TTL };
                reply.entry_with_ttls(&lifetime(&found), &named, &attr(&found), GENERATION);
            }
            // ENOENT would not be cached.
            Ok(None) => reply.entry(&FOREVER, &NEGATIVE, GENERATION),
            Err(number) => reply.error(number),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, times: u64) {
        self.filesystem.forget(ino.0, times);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.ask(ino, || self.filesystem.attributes(ino.0)) {
            Ok(found) => reply.attr(&lifetime(&found), &attr(&found)),
            Err(number) => reply.error(number),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.ask(ino, || self.filesystem.read_link(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(number) => reply.error(number),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != fuser::OpenAccMode::O_RDONLY {
            reply.error(errno(&Error::ReadOnly));
        } else if self.no_open {
            // The kernel opens files without a request from now on.
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut reply = Some(reply);
        let read = self.ask(ino, || {
            self.filesystem.read(ino.0, offset, size as usize, |bytes| {
                if let Some(reply) = reply.take() {
                    reply.data(bytes);
                }
            })
        });
        if let (Err(number), Some(reply)) = (read, reply) {
            reply.error(number);
        }
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            return reply.error(Errno::ENOSYS);
        }
        match self.ask(ino, || self.filesystem.attributes(ino.0)) {
            Ok(found) if found.kind != Kind::Directory => reply.error(errno(&Error::NotADirectory)),
            Ok(found) => {
                let cached = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                reply.opened(
                    FileHandle(0),
                    match found.validity {
                        Validity::Always | Validity::WhileThere => cached,
                        Validity::Briefly | Validity::Unknown => FopenFlags::empty(),
                    },
                );
            }
            Err(number) => reply.error(number),
        }
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (at, name) in [(0, "."), (1, "..")] {
            if offset <= at && reply.add(ino, at + 1, FileType::Directory, name) {
                return reply.ok();
            }
        }
        let mut take = |item: &ListingEntry| {
            let found = &item.attributes;
            let name = OsStr::from_bytes(&item.name);
            !reply.add(INodeNo(found.ino), item.next + DOTS, file_type(found.kind), name)
        };
        match self.list(ino, offset, false, &mut take) {
            Ok(()) => reply.ok(),
            Err(number) => reply.error(number),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let itself = match self.ask(ino, || self.filesystem.attributes(ino.0)) {
            Ok(found) => attr(&found),
            Err(number) => return reply.error(number),
        };
        for (at, name) in [(0, "."), (1, "..")] {
            // The kernel ignores the attributes of these two.
            if offset <= at && reply.add(ino, at + 1, name, &VIRTUAL_TTL, &itself, GENERATION) {
                return reply.ok();
            }
        }
        let mut take = |item: &ListingEntry| {
            let found = &item.attributes;
            let (name, life) = (OsStr::from_bytes(&item.name), lifetime(found));
            !reply.add(INodeNo(found.ino), item.next + DOTS, name, &life, &attr(found), GENERATION)
        };
        match self.list(ino, offset, true, &mut take) {
            Ok(()) => reply.ok(),
            Err(number) => reply.error(number),
        }
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let (bytes, entries) = self.filesystem.totals(ino.0);
        reply.statfs(bytes.div_ceil(512), 0, 0, entries, 0, 512, 255, 512);
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let to = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.ask(ino, || self.filesystem.seek(ino.0, offset, to)).map(i64::try_from) {
            Ok(Ok(found)) => reply.offset(found),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(number) => reply.error(number),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        match self.ask(ino, || self.filesystem.inode_flags(ino.0)) {
            Ok(flags) if command == GET_FLAGS => reply.ioctl(0, &flags.to_ne_bytes()),
            Ok(_) => reply.error(Errno::ENOTTY),
            Err(number) => reply.error(number),
        }
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.ask(ino, || self.filesystem.xattr(ino.0, name.as_bytes())) {
            Ok(value) => sized(reply, &value, size),
            Err(number) => reply.error(number),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.ask(ino, || self.filesystem.xattr_names(ino.0)) {
            Ok(names) => {
                let list: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
                sized(reply, &list, size);
            }
            Err(number) => reply.error(number),
        }
    }
}

/// Replies with a value, or with its size if `size` is 0.
fn sized(reply: ReplyXattr, value: &[u8], size: u32) {
    match (size, u32::try_from(value.len())) {
        (0, Ok(length)) => reply.size(length),
        (size, Ok(length)) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

fn lifetime(found: &Attributes) -> Duration {
    match found.validity {
        Validity::Always => FOREVER,
        Validity::WhileThere => SNAPSHOT_TTL,
        Validity::Briefly => VIRTUAL_TTL,
        Validity::Unknown => Duration::ZERO,
    }
}

fn attr(found: &Attributes) -> FileAttr {
    let mtime = system_time(found.mtime);
    let (major, minor) = found.device;
    FileAttr {
        ino: INodeNo(found.ino),
        size: found.size,
        blocks: found.sectors,
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(found.kind),
        perm: found.mode as u16,
        nlink: found.nlink,
        uid: found.uid,
        gid: found.gid,
        // The kernel's own 32-bit form (new_encode_dev).
        rdev: minor & 0xff | major << 8 | (minor & !0xff) << 12,
        blksize: READ_SIZE,
        flags: 0,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(time.nanos.into());
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let moment = if time.seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    moment.and_then(|moment| moment.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}
