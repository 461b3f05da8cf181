//! A directory of the destination: made when something goes into it, described when all of it is there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::describe::{Describe, FORBIDDING, Inode};
use crate::format::Entry;
use crate::reader::{self, Directory, Listed, Reader};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// So many names of the longest kind still make a path that is not too long.
const NAMES_AT_ONCE: usize = 15;

/// A directory of the destination.
pub(super) struct Folder {
    pub(super) above: Option<Arc<Folder>>,
    place: Place,
    /// It is to become what it is in the snapshot. Otherwise it only leads to what is.
    wanted: bool,
    /// The directory at the top of all.
    root: Arc<OnceLock<Open>>,
    open: OnceLock<Option<Open>>,
    /// Files in it with inode flags that forbid what may still be done to them.
    forbidding: Mutex<Vec<(Vec<u8>, Inode, u32)>>,
}

/// Where its entry stands. Of a directory below it only that is kept: entries of all levels of a deep tree could
/// take any memory.
enum Place {
    Top(Listed),
    In(Directory, Vec<u8>),
}

#[derive(Clone)]
struct Open {
    fd: Arc<OwnedFd>,
    /// It was not there before, or looks as a run that was broken off leaves what it made.
    ours: bool,
}

/// Makes the directory that everything is restored into, or finds it. Returns it and whether it is ours: made by us,
/// or empty.
pub(super) fn make_top(path: &Path) -> io::Result<(OwnedFd, bool)> {
    let made = match std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(blocked()),
        other => other.and_then(|()| rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(io::Error::from))?,
    };
    // Until it is complete nobody else needs to look, and a later run knows it by that.
    let is_empty = std::fs::read_dir(path)?.next().is_none();
    let ours = is_unfinished(&made) || is_empty && rustix::fs::fchmod(&made, Mode::RWXU).is_ok();
    Ok((made, ours))
}

/// The error for something that is no directory where one should be.
pub(super) fn blocked() -> io::Error {
    io::Error::other("something that is no directory has its name")
}

/// The same for one that need not be there.
pub(super) fn open_if_there(path: &Path) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Folder {
    /// The destination itself: already open, unless it is not there and will not be.
    pub(super) fn top(listed: Listed, fd: Option<OwnedFd>, ours: bool, wanted: bool) -> Self {
        let opened = fd.map(|fd| Open { fd: Arc::new(fd), ours });
        let (root, open) = (OnceLock::new(), OnceLock::new());
        if let Some(opened) = &opened {
            // Both are new and empty.
            let _ = root.set(opened.clone());
        }
        let _ = open.set(opened);
        Folder {
            above: None,
            place: Place::Top(listed),
            wanted,
            root: Arc::new(root),
            open,
            forbidding: Mutex::default(),
        }
    }

    /// A directory in another one; `directory` is that in the snapshot.
    pub(super) fn below(above: &Arc<Folder>, directory: Directory, name: &[u8], wanted: bool) -> Self {
        Folder {
            above: Some(above.clone()),
            place: Place::In(directory, name.to_vec()),
            wanted,
            root: above.root.clone(),
            open: OnceLock::new(),
            forbidding: Mutex::default(),
        }
    }

    /// Its path below the destination.
    pub(super) fn path(&self) -> PathBuf {
        let mut names = Vec::new();
        let mut next = Some(self);
        while let Some(folder) = next {
            names.push(OsStr::from_bytes(folder.name()));
            next = folder.above.as_deref();
        }
        names.iter().rev().collect()
    }

    fn name(&self) -> &[u8] {
        match &self.place {
            Place::Top(_) => b"",
            Place::In(_, name) => name,
        }
    }

    fn listed(&self, reader: &Reader) -> Result<Option<Listed>, reader::Error> {
        match &self.place {
            Place::Top(listed) => Ok(Some(listed.clone())),
            Place::In(directory, name) => reader.lookup(directory, name),
        }
    }

    /// The directory, if it is open.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.open.get()?.as_ref().map(|open| &*open.fd)
    }

    /// The directory that a path below the destination leads to, opened without following links, and the last
    /// name of the path.
    pub(super) fn open_beneath(&self, path: &Path) -> io::Result<(OwnedFd, Vec<u8>)> {
        let root = self.root.get().ok_or(Errno::NOENT)?;
        let mut names: Vec<&[u8]> = path.iter().map(OsStr::as_bytes).collect();
        let last = names.pop().unwrap_or_default().to_vec();
        let (flags, beneath) = (OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, ResolveFlags::BENEATH);
        let step = |from: &OwnedFd, path: &[u8]| {
            rustix::fs::openat2(from, path, flags, Mode::empty(), beneath | ResolveFlags::NO_SYMLINKS)
        };
        let mut at = step(&root.fd, b".")?;
        // A few names at a time: the whole may be longer than a path can be.
        for some in names.chunks(NAMES_AT_ONCE) {
            at = step(&at, &some.join(&b'/'))?;
        }
        Ok((at, last))
    }

    /// Makes the directory, and those that lead to it, or finds them. `replace`: what is no directory goes. Returns
    /// whether it is open; the error, with the path that it is about, only once.
    pub(super) fn make(&self, replace: bool) -> Result<bool, (PathBuf, io::Error)> {
        // From the top down, without recursion: a tree may be deep.
        let mut missing = Vec::new();
        let mut next = Some(self);
        while let Some(folder) = next.filter(|folder| folder.open.get().is_none()) {
            missing.push(folder);
            next = folder.above.as_deref();
        }
        while let Some(folder) = missing.pop() {
            let made =
                folder.above.as_ref().and_then(|above| above.fd()).map(|above| make(above, folder.name(), replace));
            let (opened, failed) = match made.transpose() {
                Ok(opened) => (opened, None),
                Err(e) => (None, Some(e)),
            };
            // Only the walk makes directories, one after the other.
            let _ = folder.open.set(opened);
            if let Some(error) = failed {
                return Err((folder.path(), error));
            }
        }
        Ok(self.fd().is_some())
    }

    /// Whether something that is no directory has its name.
    pub(super) fn is_blocked(&self) -> bool {
        let above = self.above.as_ref().and_then(|above| above.find());
        let there = above.and_then(|above| rustix::fs::statat(&*above, self.name(), AtFlags::SYMLINK_NOFOLLOW).ok());
        there.is_some_and(|there| FileType::from_raw_mode(there.st_mode) != FileType::Directory)
    }

    /// The directory, if it is there; it is not made.
    pub(super) fn find(&self) -> Option<Arc<OwnedFd>> {
        if let Some(open) = self.open.get() {
            return open.as_ref().map(|open| open.fd.clone());
        }
        let mut names = Vec::new();
        let mut at = self;
        let mut found = loop {
            if let Some(open) = at.open.get() {
                break open.as_ref()?.fd.clone();
            }
            names.push(at.name());
            at = at.above.as_ref()?;
        };
        while let Some(name) = names.pop() {
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            found = Arc::new(rustix::fs::openat(&*found, name, flags, Mode::empty()).ok()?);
        }
        Some(found)
    }

    /// Remembers inode flags of a file in it that forbid to change it.
    pub(super) fn forbid_later(&self, entry: &Entry, inode: Inode) {
        let flags = entry.inode_flags & FORBIDDING;
        if flags != 0 {
            let mut forbidding = self.forbidding.lock().unwrap_or_else(PoisonError::into_inner);
            forbidding.push((entry.name.clone(), inode, flags));
        }
    }

    /// Everything is in it: it and what is in it get what would have hindered before. A directory that was there
    /// keeps what it has, unless `replace` is set.
    pub(super) fn finish(
        &mut self,
        reader: &Reader,
        describe: &Describe,
        replace: bool,
        mut problem: impl FnMut(&Path, &str),
    ) {
        let Some(Some(Open { fd, ours })) = self.open.take() else { return };
        let forbidding = std::mem::take(&mut self.forbidding);
        for (name, inode, flags) in forbidding.into_inner().unwrap_or_else(PoisonError::into_inner) {
            describe.forbid(&fd, &name, inode, flags);
        }
        if !(ours || self.wanted && replace) {
            return;
        }
        let described = match self.listed(reader) {
            // One file may be restored into a directory that has nothing to do with it.
            Ok(Some(listed)) if listed.directory().is_some() => describe.directory(&*fd, &listed),
            Ok(_) => None,
            Err(e) => Some(format!("cannot set owner, attributes, mode and times: {e}")),
        };
        if let Some(why) = described {
            problem(&self.path(), &why);
        }
    }
}

/// Makes a directory, or finds it, and opens it. A link in its place is not followed.
fn make(above: &OwnedFd, name: &[u8], replace: bool) -> io::Result<Open> {
    let mut ours = true;
    match rustix::fs::mkdirat(above, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => ours = false,
        Err(e) => return Err(e.into()),
    }
    let open = || rustix::fs::openat(above, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
    let fd = match open() {
        // Something else has its name.
        Err(Errno::NOTDIR | Errno::LOOP) if replace => {
            rustix::fs::unlinkat(above, name, AtFlags::empty())?;
            rustix::fs::mkdirat(above, name, Mode::RWXU)?;
            ours = true;
            open()?
        }
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(blocked());
        }
        other => other?,
    };
    let ours = ours || is_unfinished(&fd);
    Ok(Open { fd: Arc::new(fd), ours })
}

/// Whether a directory looks as a run that was broken off leaves those that it made.
pub(super) fn is_unfinished(directory: &OwnedFd) -> bool {
    rustix::fs::fstat(directory).is_ok_and(|stat| {
        Mode::from_raw_mode(stat.st_mode) == Mode::RWXU && stat.st_uid == rustix::process::geteuid().as_raw()
    })
}
