//! A file system in user space that claims things: inode numbers, owners, modes and times of files that it does not
//! have. It answers as a program of an ordinary user could.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// The inode number of the root in requests of the kernel, even if the root claims another one.
const ROOT: u64 = 1;

/// The claimed attributes and content of a file or directory.
#[derive(Debug, Clone)]
struct Claim {
    attr: FileAttr,
    children: BTreeMap<OsString, u64>,
    content: Vec<u8>,
}

/// The claims of a file system that is not mounted yet.
#[derive(Debug, Clone)]
pub struct Liar {
    /// By inode number.
    claims: BTreeMap<u64, Claim>,
}

/// A mounted liar; unmounted when dropped.
pub struct Lying {
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Liar {
    /// Claims to be the folder `like`, in which there is nothing so far.
    pub fn like(like: &Path) -> Liar {
        let top = Claim { attr: attributes(&metadata(like)), children: BTreeMap::new(), content: Vec::new() };
        Liar { claims: BTreeMap::from([(ROOT, top)]) }
    }

    /// Claims that `path` is the file or folder `like`, with this content.
    pub fn claim(&mut self, path: &str, like: &Path, content: &[u8]) -> &mut FileAttr {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = self.find(above);
        let attr = attributes(&metadata(like));
        let number = attr.ino.0;
        self.claims.get_mut(&above).expect("the folder above").children.insert(name.into(), number);
        let claim = Claim { attr, children: BTreeMap::new(), content: content.to_vec() };
        self.claims.insert(number, claim);
        &mut self.claims.get_mut(&number).expect("a claim").attr
    }

    /// The claimed attributes of a path.
    pub fn attributes(&mut self, path: &str) -> &mut FileAttr {
        let number = self.find(path);
        &mut self.claims.get_mut(&number).expect("a claim").attr
    }

    fn find(&self, path: &str) -> u64 {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.fold(ROOT, |at, name| self.claims[&at].children[OsStr::new(name)])
    }

    /// Mounts it for everybody, as a mount of this user.
    pub fn mount(self, at: &Path, user: u32, flags: MountFlags) -> Lying {
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse, as root");
        let options = format!("fd={},rootmode=40000,user_id={user},group_id={user},allow_other", device.as_raw_fd());
        let options = CString::new(options).expect("options");
        mount("liar", at, "fuse.liar", flags, options.as_c_str()).expect("mounting the liar");
        let session = Session::from_fd(self, OwnedFd::from(device), SessionACL::All, Config::default());
        let session = session.and_then(Session::spawn).expect("a session of the liar");
        Lying { at: at.to_owned(), session: Some(session) }
    }
}

impl Drop for Lying {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
        // With the last mount the session ends.
        let _ = self.session.take().map(BackgroundSession::join);
    }
}

fn metadata(path: &Path) -> Metadata {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn attributes(of: &Metadata) -> FileAttr {
    let time = |seconds: i64, nanos: i64| {
        UNIX_EPOCH + Duration::new(seconds.try_into().expect("after 1970"), nanos.try_into().expect("nanoseconds"))
    };
    FileAttr {
        ino: INodeNo(of.ino()),
        size: of.size(),
        blocks: of.blocks(),
        atime: SystemTime::now(),
        mtime: time(of.mtime(), of.mtime_nsec()),
        ctime: time(of.ctime(), of.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: FileType::from_std(of.file_type()).expect("a kind of file"),
        perm: (of.mode() & 0o7777) as u16,
        nlink: of.nlink() as u32,
        uid: of.uid(),
        gid: of.gid(),
        rdev: of.rdev() as u32,
        blksize: 4096,
        flags: 0,
    }
}

const NOW: Duration = Duration::ZERO;

impl Filesystem for Liar {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let child = self.claims.get(&parent.0).and_then(|above| above.children.get(name));
        match child.and_then(|number| self.claims.get(number)) {
            Some(claim) => reply.entry(&NOW, &claim.attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.claims.get(&number.0) {
            Some(claim) => reply.attr(&NOW, &claim.attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(claim) = self.claims.get(&number.0) else { return reply.error(Errno::ENOENT) };
        let from = claim.content.len().min(offset as usize);
        let to = claim.content.len().min(from + size as usize);
        reply.data(&claim.content[from..to]);
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(claim) = self.claims.get(&number.0) else { return reply.error(Errno::ENOENT) };
        for (next, (name, number)) in (1..).zip(&claim.children).skip(offset as usize) {
            let Some(child) = self.claims.get(number) else { continue };
            if reply.add(INodeNo(*number), next, child.attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
