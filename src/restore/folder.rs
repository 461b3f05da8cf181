//! A directory of the destination: made when something goes into it, described when all of it is there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::mark::{Mark, Marks};
use super::metadata::{Describe, FORBIDDING, Inode, inode};
use super::opened::{Clash, Opened};
use super::temporary;
use crate::format::Entry;
use crate::reader::{self, EntryHandle, Reader, SnapshotDirectory};

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
    root: Arc<OnceLock<Arc<OwnedFd>>>,
    open: OnceLock<Option<Opened>>,
    /// Files in it with inode flags that forbid what may still be done to them.
    forbidding: Mutex<Vec<(Vec<u8>, Inode, u32)>>,
}

/// Where its entry stands. Of a directory below it only that is kept: entries of all levels of a deep tree could
/// take any memory.
enum Place {
    Top(EntryHandle),
    In(SnapshotDirectory, Vec<u8>),
}

/// What is needed to make directories.
pub(super) struct Making<'m> {
    pub(super) reader: &'m Reader,
    pub(super) marks: &'m Marks,
    /// What is no directory goes.
    pub(super) replace: bool,
    /// Leftovers of interrupted restores that were removed.
    pub(super) leftovers: &'m AtomicU64,
}

/// Makes the directory that everything is restored into, or finds it. `take`: if it is empty, it becomes what the
/// snapshot says.
pub(super) fn make_top(path: &Path, take: bool, marks: &Marks) -> io::Result<Opened> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(blocked()),
        other => other.and_then(|()| Opened::top(path, take, marks)),
    }
}

/// The error for something that is no directory where one should be.
pub(super) fn blocked() -> io::Error {
    io::Error::other("something that is no directory has its name")
}

impl Folder {
    /// The destination itself: already open, unless it is not there and will not be.
    pub(super) fn top(listed: EntryHandle, opened: Option<Opened>, wanted: bool) -> Self {
        let (root, open) = (OnceLock::new(), OnceLock::new());
        if let Some(opened) = &opened {
            // Both are new and empty.
            let _ = root.set(opened.fd.clone());
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
    pub(super) fn below(above: &Arc<Folder>, directory: SnapshotDirectory, name: &[u8], wanted: bool) -> Self {
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

    fn listed(&self, reader: &Reader) -> Result<Option<EntryHandle>, reader::Error> {
        match &self.place {
            Place::Top(listed) => Ok(Some(listed.clone())),
            Place::In(directory, name) => reader.lookup(directory, name),
        }
    }

    /// The directory, if it is open.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.opened().map(|opened| &*opened.fd)
    }

    pub(super) fn opened(&self) -> Option<&Opened> {
        self.open.get()?.as_ref()
    }

    /// Whether the directory had an entry of exactly this name before this run. Only the walk asks, in ascending order.
    pub(super) fn had(&self, name: &[u8], making: &Making<'_>) -> bool {
        self.opened().is_some_and(|opened| opened.had(name, |left| self.sweep(opened, left, making)))
    }

    /// The walk is through with the directory.
    pub(super) fn walked(&self, making: &Making<'_>) {
        if let Some(opened) = self.opened() {
            opened.walked(|left| self.sweep(opened, left, making));
        }
    }

    /// Removes what an interrupted restore left, unless the snapshot has an entry of that name.
    fn sweep(&self, opened: &Opened, name: &[u8], making: &Making<'_>) {
        let is_mark = opened.mark == Some(Mark::File) && name == making.marks.file().as_bytes();
        if !is_mark && !self.is_entry(name, making.reader) && temporary::remove(&opened.fd, name, making.marks.file()) {
            making.leftovers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the snapshot has an entry of this name in the directory. If that can't be told, it is taken for one.
    fn is_entry(&self, name: &[u8], reader: &Reader) -> bool {
        match self.directory(reader) {
            Ok(Some(directory)) => reader.lookup(&directory, name).map_or(true, |found| found.is_some()),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// The directory in the snapshot.
    fn directory(&self, reader: &Reader) -> Result<Option<SnapshotDirectory>, reader::Error> {
        Ok(self.listed(reader)?.and_then(|listed| listed.directory()))
    }

    /// Whether the entry `name` clashes with another one of the snapshot, since `there` has its name. `had`: what
    /// [`Folder::had`] said.
    pub(super) fn clash(&self, name: &[u8], had: bool, there: Inode, reader: &Reader) -> Option<Clash> {
        self.opened()?.clash(name, had, there, |is_other| {
            let Ok(Some(directory)) = self.directory(reader) else { return };
            let mut from = 0;
            // What can't be read is no entry of this run either.
            while let Ok(page) = reader.list(&directory, from)
                && !page.is_empty()
            {
                for listed in page {
                    from += 1;
                    if is_other(&listed.entry().name) {
                        return;
                    }
                }
            }
        })
    }

    /// The directory that a path below the destination leads to, opened without following links, and the last
    /// name of the path.
    pub(super) fn open_beneath(&self, path: &Path) -> io::Result<(OwnedFd, Vec<u8>)> {
        let root = self.root.get().ok_or(Errno::NOENT)?;
        let mut names: Vec<&[u8]> = path.iter().map(OsStr::as_bytes).collect();
        let last = names.pop().unwrap_or_default().to_vec();
        let mut at = open_path(root, &[b"."])?;
        // A few names at a time: the whole may be longer than a path can be.
        for some in names.chunks(NAMES_AT_ONCE) {
            at = open_path(&at, some)?;
        }
        Ok((at, last))
    }

    /// Makes the directory, and those that lead to it, or finds them. Returns whether it is open; the error, with the
    /// path that it is about, only once.
    pub(super) fn make(&self, making: &Making<'_>) -> Result<bool, (PathBuf, io::Error)> {
        // From the top down, without recursion: a tree may be deep.
        let mut missing = Vec::new();
        let mut next = Some(self);
        while let Some(folder) = next.filter(|folder| folder.open.get().is_none()) {
            missing.push(folder);
            next = folder.above.as_deref();
        }
        while let Some(folder) = missing.pop() {
            let above = folder.above.as_deref().and_then(|above| Some((above, above.opened()?)));
            let made = above.map(|(above, opened)| folder.make_in(above, opened, making));
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

    /// Makes the directory in the one above it, or finds it there.
    fn make_in(&self, above: &Folder, opened: &Opened, making: &Making<'_>) -> io::Result<Opened> {
        let (fd, name) = (&*opened.fd, self.name());
        let had = above.had(name, making);
        let look = || match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Ok(Some(inode(&there))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        };
        let mut there = if opened.is_new() { None } else { look()? };
        if there.is_none() {
            match Opened::create(fd, name, making.marks) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => there = look()?,
                other => return other,
            }
        }
        if let Some(clash) = there.and_then(|there| above.clash(name, had, there, making.reader)) {
            return Err(io::Error::other(format!("{clash}; nothing in it is restored either")));
        }
        match Opened::existing(fd, name, &self.path(), making.marks) {
            // Something else has its name.
            Err(e) if !matches!(Errno::from_io_error(&e), Some(Errno::NOTDIR | Errno::LOOP)) => Err(e),
            Err(_) if making.replace => {
                rustix::fs::unlinkat(fd, name, AtFlags::empty())?;
                Opened::create(fd, name, making.marks)
            }
            Err(_) => Err(blocked()),
            other => other,
        }
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
            return open.as_ref().map(|opened| opened.fd.clone());
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
        marks: &Marks,
        replace: bool,
        mut problem: impl FnMut(&Path, &str),
    ) {
        let Some(Some(opened)) = self.open.take() else { return };
        let fd = &*opened.fd;
        let forbidding = std::mem::take(&mut self.forbidding);
        for (name, inode, flags) in forbidding.into_inner().unwrap_or_else(PoisonError::into_inner) {
            describe.forbid(fd, &name, inode, flags);
        }
        let mark = opened.mark.unwrap_or(Mark::None);
        if opened.mark.is_none() && !(self.wanted && replace) {
            return;
        }
        let unmark = |mark| {
            let failed = marks.remove(fd, mark).err()?;
            Some(format!("cannot remove the mark of an unfinished restore: {failed}"))
        };
        // A file that goes changes the directory's time, and an attribute of a user's goes only from what they may write to.
        let (first, last) = if mark.goes_first() { (mark, Mark::None) } else { (Mark::None, mark) };
        let unmarked = unmark(first);
        let described = match self.listed(reader) {
            Ok(Some(listed)) if listed.directory().is_some() => describe.directory(fd, &listed, || unmark(last)),
            Ok(_) => unmark(last),
            Err(e) => Some(format!("cannot set owner, attributes, mode and times: {e}")),
        };
        if let Some(why) = unmarked.or(described) {
            problem(&self.path(), &why);
        }
    }
}

/// Opens the directory that a few names lead to, without following links.
fn open_path(from: &OwnedFd, names: &[&[u8]]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(from, names.join(&b'/'), flags, Mode::empty(), resolve) {
        // Linux before 5.6, or a filter that does not know the call: one name after the other comes to the same.
        Err(Errno::NOSYS | Errno::PERM) => {
            let step =
                |at: &OwnedFd, name: &[u8]| rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW, Mode::empty());
            let (first, rest) = names.split_first().ok_or(Errno::NOENT)?;
            rest.iter().try_fold(step(from, first)?, |at, name| step(&at, name))
        }
        other => other,
    }
}
