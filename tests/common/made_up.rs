//! A FUSE file system whose files are not of the size that it says.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request,
};

const ROOT: u64 = 1;

/// A file: its size as a stat shows it, and its content.
pub type MadeUp = (u64, Vec<u8>);

/// Mounts files at an empty directory, until the session is dropped.
pub fn mount(files: BTreeMap<String, MadeUp>, at: &Path) -> BackgroundSession {
    fuser::spawn_mount(Files(files), at, &Config::default()).expect("root may mount")
}

struct Files(BTreeMap<String, MadeUp>);

impl Files {
    fn file(&self, ino: u64) -> Option<&MadeUp> {
        self.0.values().nth(ino.checked_sub(ROOT + 1)? as usize)
    }

    fn attributes(&self, ino: u64) -> Option<FileAttr> {
        let (kind, size) = match ino {
            ROOT => (FileType::Directory, 0),
            _ => (FileType::RegularFile, self.file(ino)?.0),
        };
        let time: SystemTime = UNIX_EPOCH + Duration::from_secs(1_577_836_800);
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = self.0.keys().position(|file| OsStr::new(file) == name);
        match at.and_then(|at| self.attributes(ROOT + 1 + at as u64)) {
            Some(attributes) => reply.entry(&Duration::ZERO, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino.0) {
            Some(attributes) => reply.attr(&Duration::ZERO, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // With direct I/O, reads beyond the claimed size arrive, too.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((_, content)) = self.file(ino.0) else { return reply.error(Errno::ENOENT) };
        let start = content.len().min(offset as usize);
        let end = content.len().min(start + size as usize);
        reply.data(&content[start..end]);
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (at, name) in self.0.keys().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(ROOT + 1 + at as u64), at as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}
