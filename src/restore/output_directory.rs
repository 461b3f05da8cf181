//! A directory of the destination. It is created for its first entry, and gets its metadata after its last one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mark::{Mark, Marks};
use super::metadata::{FORBIDDING, FileId, MetadataWriter, inode};
use super::open_output::{Clash, OpenOutput};
use super::temporary;
use crate::archive::{self, Archive, EntryHandle, EntryRef, SnapshotDirectory};
use crate::sys::below::open_below;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A path of this many names of maximum length (255 bytes) is below PATH_MAX.
const NAMES_AT_ONCE: usize = 15;

/// A directory of the destination.
pub(super) struct OutputDirectory {
    pub(super) above: Option<Arc<OutputDirectory>>,
    place: EntryLocation,
    /// Whether the directory itself is restored, and not only entries below it.
    wanted: bool,
    /// The destination's handle.
    root: Arc<OnceLock<Arc<OwnedFd>>>,
    open: OnceLock<Option<OpenOutput>>,
    /// Files in the directory that still get restrictive inode flags: name, inode and flags.
    forbidding: Mutex<Vec<(Vec<u8>, FileId, u32)>>,
}

/// The location of a directory's entry in the snapshot. Subdirectories store the location instead of the entry itself,
/// because entries on all levels of a deep tree could take unlimited memory.
enum EntryLocation {
    Top(EntryHandle),
    In(SnapshotDirectory, Vec<u8>),
}

/// The parameters for creating directories.
pub(super) struct CreateContext<'m> {
    pub(super) archive: &'m dyn Archive,
    pub(super) marks: &'m Marks,
    /// Whether to replace an existing file that is not a directory.
    pub(super) replace: bool,
    /// The number of removed temporary files of interrupted restores.
    pub(super) leftovers: &'m AtomicU64,
}

/// Creates or opens the destination. With `take`, an empty destination gets the metadata of the restored directory.
pub(super) fn make_top(path: &Path, take: bool, marks: &Marks) -> io::Result<OpenOutput> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(blocked()),
        other => other.and_then(|()| OpenOutput::top(path, take, marks)),
    }
}

/// The error for an existing file in place of a directory.
pub(super) fn blocked() -> io::Error {
    io::Error::other("a file with its name exists; choose another directory, or move the file away")
}

impl OutputDirectory {
    /// The destination itself. `opened` is `None` if it is missing in a dry run.
    pub(super) fn top(listed: EntryHandle, opened: Option<OpenOutput>, wanted: bool) -> Self {
        let (root, open) = (OnceLock::new(), OnceLock::new());
        if let Some(opened) = &opened {
            // Cannot fail: the cells are new.
            let _ = root.set(opened.fd.clone());
        }
        let _ = open.set(opened);
        OutputDirectory {
            above: None,
            place: EntryLocation::Top(listed),
            wanted,
            root: Arc::new(root),
            open,
            forbidding: Mutex::default(),
        }
    }

    /// A subdirectory `name` of `above`. `directory` is the snapshot's directory that contains its entry.
    pub(super) fn below(above: &Arc<OutputDirectory>, directory: SnapshotDirectory, name: &[u8], wanted: bool) -> Self {
        OutputDirectory {
            above: Some(above.clone()),
            place: EntryLocation::In(directory, name.to_vec()),
            wanted,
            root: above.root.clone(),
            open: OnceLock::new(),
            forbidding: Mutex::default(),
        }
    }

    /// The path relative to the destination.
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
            EntryLocation::Top(_) => b"",
            EntryLocation::In(_, name) => name,
        }
    }

    fn listed(&self, archive: &dyn Archive) -> Result<Option<EntryHandle>, archive::Error> {
        match &self.place {
            EntryLocation::Top(listed) => Ok(Some(listed.clone())),
            EntryLocation::In(directory, name) => archive.lookup(directory, name),
        }
    }

    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.opened().map(|opened| &*opened.fd)
    }

    pub(super) fn opened(&self) -> Option<&OpenOutput> {
        self.open.get()?.as_ref()
    }

    /// Whether the directory contained exactly this name before the restore. The walk calls this with ascending names.
    pub(super) fn had(&self, name: &[u8], making: &CreateContext<'_>) -> bool {
        self.opened().is_some_and(|opened| opened.had(name, |left| self.sweep(opened, left, making)))
    }

    /// Called after the walk has left the directory.
    pub(super) fn walked(&self, making: &CreateContext<'_>) {
        if let Some(opened) = self.opened() {
            opened.walked(|left| self.sweep(opened, left, making));
        }
    }

    /// Removes a temporary file of an interrupted restore, unless the snapshot has an entry of that name.
    fn sweep(&self, opened: &OpenOutput, name: &[u8], making: &CreateContext<'_>) {
        let is_mark = opened.mark == Some(Mark::File) && name == making.marks.file().as_bytes();
        if !is_mark && !self.is_entry(name, making.archive) && temporary::remove(&opened.fd, name, making.marks.file())
        {
            making.leftovers.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the directory in the snapshot has an entry of this name. True if it cannot be read.
    fn is_entry(&self, name: &[u8], archive: &dyn Archive) -> bool {
        match self.directory(archive) {
            Ok(Some(directory)) => archive.lookup(&directory, name).map_or(true, |found| found.is_some()),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// The corresponding directory in the snapshot.
    fn directory(&self, archive: &dyn Archive) -> Result<Option<SnapshotDirectory>, archive::Error> {
        Ok(self.listed(archive)?.and_then(|listed| listed.directory()))
    }

    /// Whether an existing file `there` with the entry's name belongs to another entry of the snapshot. `had` is the
    /// result of [`OutputDirectory::had`].
    pub(super) fn clash(&self, name: &[u8], had: bool, there: FileId, archive: &dyn Archive) -> Option<Clash> {
        self.opened()?.clash(name, had, there, |is_other| {
            let Ok(Some(directory)) = self.directory(archive) else { return };
            let mut from = 0;
            // An unreadable part of the directory is not restored, so it cannot clash.
            while let Ok(page) = archive.list(&directory, from)
                && !page.is_empty()
            {
                for listed in page {
                    from += 1;
                    if is_other(listed.entry().name) {
                        return;
                    }
                }
            }
        })
    }

    /// Opens the parent directory of a path relative to the destination, without following symlinks. Returns it with
    /// the last name of the path.
    pub(super) fn open_beneath(&self, path: &Path) -> io::Result<(OwnedFd, Vec<u8>)> {
        let root = self.root.get().ok_or(Errno::NOENT)?;
        let mut names: Vec<&[u8]> = path.iter().map(OsStr::as_bytes).collect();
        let last = names.pop().unwrap_or_default().to_vec();
        let mut at = open_below(root, &[b"."])?;
        // In steps of a few names: the whole path may exceed PATH_MAX.
        for some in names.chunks(NAMES_AT_ONCE) {
            at = open_below(&at, some)?;
        }
        Ok((at, last))
    }

    /// Creates or opens the directory and its ancestors. Returns whether it is open. An error, with the path of the
    /// failed directory, is returned only once.
    pub(super) fn make(&self, making: &CreateContext<'_>) -> Result<bool, (PathBuf, io::Error)> {
        // Top-down, without recursion: a tree may be deep.
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
            // Cannot fail: only the walk's thread creates directories.
            let _ = folder.open.set(opened);
            if let Some(error) = failed {
                return Err((folder.path(), error));
            }
        }
        Ok(self.fd().is_some())
    }

    /// Creates the directory in its parent, or opens the existing one.
    fn make_in(
        &self,
        above: &OutputDirectory,
        opened: &OpenOutput,
        making: &CreateContext<'_>,
    ) -> io::Result<OpenOutput> {
        let (fd, name) = (&*opened.fd, self.name());
        let had = above.had(name, making);
        let look = || match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => Ok(Some(inode(&there))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        };
        let mut there = if opened.is_new() { None } else { look()? };
        if there.is_none() {
            match OpenOutput::create(fd, name, making.marks) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => there = look()?,
                other => return other,
            }
        }
        if let Some(clash) = there.and_then(|there| above.clash(name, had, there, making.archive)) {
            return Err(io::Error::other(format!("{clash}; its content is not restored")));
        }
        match OpenOutput::existing(fd, name, &self.path(), making.marks) {
            // NOTDIR and LOOP: the name exists, but is not a directory.
            Err(e) if !matches!(Errno::from_io_error(&e), Some(Errno::NOTDIR | Errno::LOOP)) => Err(e),
            Err(_) if making.replace => {
                rustix::fs::unlinkat(fd, name, AtFlags::empty())?;
                OpenOutput::create(fd, name, making.marks)
            }
            Err(_) => Err(blocked()),
            other => other,
        }
    }

    /// Whether an existing file that is not a directory has the name.
    pub(super) fn is_blocked(&self) -> bool {
        let above = self.above.as_ref().and_then(|above| above.find());
        let there = above.and_then(|above| rustix::fs::statat(&*above, self.name(), AtFlags::SYMLINK_NOFOLLOW).ok());
        there.is_some_and(|there| FileType::from_raw_mode(there.st_mode) != FileType::Directory)
    }

    /// The handle of the directory if it exists; does not create it.
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

    /// Schedules restrictive inode flags of a file, which are set after the directory is complete.
    pub(super) fn forbid_later(&self, entry: &EntryRef<'_>, inode: FileId) {
        let flags = entry.inode_flags & FORBIDDING;
        if flags != 0 {
            let mut forbidding = self.forbidding.lock().unwrap_or_else(PoisonError::into_inner);
            forbidding.push((entry.name.to_vec(), inode, flags));
        }
    }

    /// Completes the directory: sets restrictive inode flags of its files, then its own metadata. An existing directory
    /// keeps its metadata unless `replace` is set.
    pub(super) fn finish(
        &mut self,
        archive: &dyn Archive,
        metadata: &MetadataWriter,
        marks: &Marks,
        replace: bool,
        mut problem: impl FnMut(&Path, &str),
    ) {
        let Some(Some(opened)) = self.open.take() else { return };
        let fd = &*opened.fd;
        let forbidding = std::mem::take(&mut self.forbidding);
        for (name, inode, flags) in forbidding.into_inner().unwrap_or_else(PoisonError::into_inner) {
            metadata.forbid(fd, &name, inode, flags);
        }
        let mark = opened.mark.unwrap_or(Mark::None);
        if opened.mark.is_none() && !(self.wanted && replace) {
            return;
        }
        let unmark = |mark| {
            let failed = marks.remove(fd, mark).err()?;
            Some(format!("cannot remove the mark of an unfinished restore: {failed}"))
        };
        // Removing a mark file changes the directory's mtime, and removing a user attribute needs write permission. So
        // these marks are removed before the metadata is set.
        let (first, last) = if mark.goes_first() { (mark, Mark::None) } else { (Mark::None, mark) };
        let unmarked = unmark(first);
        let described = match self.listed(archive) {
            Ok(Some(listed)) if listed.directory().is_some() => metadata.directory(fd, &listed, || unmark(last)),
            Ok(_) => unmark(last),
            Err(e) => Some(format!("cannot set owner, attributes, mode and times: {e}")),
        };
        if let Some(why) = unmarked.or(described) {
            problem(&self.path(), &why);
        }
    }
}
