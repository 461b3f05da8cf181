//! Stores objects as files in a directory.
//!
//! Every object is written to an unnamed file (`O_TMPFILE`) in its own folder, synced, and linked to its name, which
//! fails if the name is taken. Then the folder is synced. A process killed at any point leaves no files.
//!
//! Fallbacks for file systems that lack some of this:
//! - no unnamed files, or they cannot be linked: a temporary file `.tmp-<run>-<uuid>` is renamed with `RENAME_NOREPLACE`
//! - no `RENAME_NOREPLACE`: the temporary is hard-linked to its name and then unlinked
//! - no hard links: the temporary is renamed after checking that the name is free
//! - folders cannot be synced: the file system decides when names become durable
//!
//! [`place`](super::place) opens folders and files without following links.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    Advice, AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, fadvise, flock, linkat, mkdirat,
    openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use uuid::Uuid;

use crate::sys::{append_at, owner, sync_folder};

use super::contract::{Capabilities, Ended, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::layout::{DEPTH, LOST_AND_FOUND, TEMPORARY, folder_of, is_beyond_files, temporary_name, writer_of};
use super::place::{FOLDER, Root, beneath, is_empty};
use super::spool::Home;
use super::spool::Spool;

/// Objects of at least this size (bytes) are dropped from the page cache once they are stored.
const LARGE: u64 = 1 << 20;

/// The mode of objects, before the umask.
const MODE: Mode = Mode::from_raw_mode(0o644);

/// A target that is a directory.
#[derive(Debug)]
pub struct DirectoryStorage {
    root: Root,
    /// Unnamed files can be created and linked. Assumed until one fails.
    nameless: AtomicBool,
    /// The file system lacked both hard links and `RENAME_NOREPLACE`.
    unlinked: AtomicBool,
    /// The file system could not sync folders.
    unsynced: AtomicBool,
    /// An object was read from here, so the directory cannot be empty unless its disk was unmounted.
    seen: AtomicBool,
    /// After `create`: the locked root, and whether `create` made it.
    making: Option<(OwnedFd, bool)>,
}

impl DirectoryStorage {
    /// Opens the target in the directory `root`. A missing directory is [`ErrorKind::NotFound`].
    pub fn open(root: &Path) -> Result<Self, Error> {
        let shown = root.display().to_string();
        if root.as_os_str().is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "open", &shown, "the location is empty"));
        }
        let root = fs::canonicalize(root).map_err(|e| Error::io("open", &shown, e))?;
        if !root.is_dir() {
            return Err(Error::new(ErrorKind::NotFound, "open", &shown, "it is not a directory"));
        }
        Ok(DirectoryStorage {
            root: Root::new(root),
            nameless: AtomicBool::new(true),
            unlinked: AtomicBool::default(),
            unsynced: AtomicBool::default(),
            seen: AtomicBool::default(),
            making: None,
        })
    }

    /// Creates the directory, or uses an existing one that holds only leftovers of an interrupted `create`.
    pub(super) fn create(path: &Path, is_leftover: &dyn Fn(&str) -> bool) -> Result<Self, Error> {
        let shown = path.display().to_string();
        let failed = |e| Error::io("create", &shown, e);
        let taken = |why| Error::new(ErrorKind::AlreadyExists, "create", &shown, why);
        let new = match fs::create_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            other => other.map(|()| true).map_err(failed)?,
        };
        let mut target = DirectoryStorage::open(path).map_err(|e| match e.kind {
            ErrorKind::NotFound if !new => taken("it is not a directory"),
            _ => e,
        })?;
        let root = target.root.open().map_err(failed)?;
        // Without file locks, concurrent runs are still detected: only one of them can store the description, at the end.
        if flock(&root, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(taken("another run is creating a repository there"));
        }
        if !target.clear(is_leftover).map_err(failed)? {
            return Err(taken("the directory is not empty"));
        }
        // Needed for an existing directory as well: its creator may not have synced the parent.
        if let Some(above) = target.root.path().parent() {
            target.sync_folder(File::open(above).map_err(failed)?.as_fd()).map_err(failed)?;
        }
        target.making = Some((root, new));
        Ok(target)
    }

    /// Removes all temporary files, all objects and folders that `may_go` accepts. `lost+found` does not count. If there is
    /// anything else, removes nothing and returns false.
    fn clear(&self, may_go: &dyn Fn(&str) -> bool) -> io::Result<bool> {
        let root = self.root.open()?;
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for (name, kind) in names(root.as_fd())? {
            match kind {
                // It is part of the file system, so it stays.
                FileType::Directory if name == LOST_AND_FOUND => {}
                FileType::RegularFile => files.push((None, name)),
                FileType::Directory if may_go(&format!("{name}/")) => {
                    let folder = openat(&root, &name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
                    for (below, kind) in names(folder.as_fd())? {
                        match kind {
                            FileType::RegularFile => files.push((Some(folders.len()), below)),
                            _ => return Ok(false),
                        }
                    }
                    folders.push((name, folder));
                }
                _ => return Ok(false),
            }
        }
        let folder_of = |at: &Option<usize>| at.and_then(|at| folders.get(at));
        let may_all_go = files.iter().all(|(at, file)| {
            let object = folder_of(at).map_or(file.clone(), |(folder, _)| format!("{folder}/{file}"));
            writer_of(file).is_some() || may_go(&object)
        });
        if !may_all_go {
            return Ok(false);
        }
        for (at, file) in &files {
            let folder = folder_of(at).map_or(&root, |(_, folder)| folder);
            unlinkat(folder, file, AtFlags::empty())?;
        }
        for (name, _) in &folders {
            unlinkat(&root, name, AtFlags::REMOVEDIR)?;
        }
        Ok(true)
    }

    fn file(&self, name: &str) -> Result<File, Error> {
        let file = self.root.object(name).map_err(|e| self.explain(Error::reading(name, e)))?;
        let file = file.ok_or_else(|| Error::new(ErrorKind::NotAFile, "read", name, "it is not a file"))?;
        if !self.seen.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
        }
        Ok(file)
    }

    fn failed(&self, action: &'static str, object: &str, error: impl Into<io::Error>) -> Error {
        self.explain(Error::io(action, object, error.into()))
    }

    /// Changes an error to [`ErrorKind::Unavailable`] if the whole target is away: then it says nothing about the object.
    fn explain(&self, error: Error) -> Error {
        match error.kind {
            ErrorKind::NotFound | ErrorKind::Damaged | ErrorKind::PermissionDenied | ErrorKind::Other
                if !self.is_there() =>
            {
                error.unavailable()
            }
            // Which disk is full.
            ErrorKind::Full => error.at(&self.root.path().display().to_string()),
            _ => error,
        }
    }

    /// Whether the root can be opened and is not the empty mount point of an unplugged disk.
    fn is_there(&self) -> bool {
        let seen = self.seen.load(Ordering::Relaxed);
        self.root.open().and_then(|root| Ok(!(seen && is_empty(&root)?))).unwrap_or(false)
    }

    /// Opens the folder of an object. Creates missing folders, durably.
    fn folder_for(&self, name: &str) -> io::Result<OwnedFd> {
        let mut at = self.root.open()?;
        let Some((folder, _)) = name.rsplit_once('/') else { return Ok(at) };
        match beneath(at.as_fd(), folder, FOLDER) {
            Err(Errno::NOENT) => {}
            found => return Ok(found?),
        }
        for name in folder.split('/') {
            match mkdirat(&at, name, Mode::from_raw_mode(0o777)) {
                Err(Errno::EXIST) => {}
                made => {
                    made?;
                    let made = openat(&at, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
                    owner::follow(made, &at);
                    // A folder becomes durable when its parent is synced.
                    self.sync_folder(at.as_fd())?;
                }
            }
            at = beneath(at.as_fd(), name, FOLDER)?;
        }
        Ok(at)
    }

    /// Syncs a folder if the file system supports it.
    fn sync_folder(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        if !sync_folder(folder)? {
            self.unsynced.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Calls `visit` with each of these folders that exists, and with its direct subfolders.
    fn each_folder(
        &self,
        folders: &[&str],
        action: &'static str,
        visit: &dyn Fn(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        for name in folders {
            let failed = |e| self.failed(action, name, e);
            let Some(folder) = self.root.folder(name).map_err(failed)? else { continue };
            visit(folder.as_fd()).map_err(failed)?;
            for (below, kind) in names(folder.as_fd()).map_err(failed)? {
                let failed = |e| self.failed(action, &format!("{name}{below}"), e);
                if kind == FileType::Directory {
                    let below = openat(&folder, &below, FOLDER | OFlags::NOFOLLOW, Mode::empty());
                    below.map_err(io::Error::from).and_then(|below| visit(below.as_fd())).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Links an unnamed file to its name. Returns false if the file system does not support it.
    fn link(spool: &Spool, folder: &OwnedFd, leaf: &str) -> Result<bool, Errno> {
        let by_path = format!("/proc/self/fd/{}", spool.file.as_raw_fd());
        let linked = match linkat(CWD, &by_path, folder, leaf, AtFlags::SYMLINK_FOLLOW) {
            // Without /proc. AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH on kernels before 6.10.
            Err(Errno::NOENT) => linkat(&spool.file, "", folder, leaf, AtFlags::EMPTY_PATH),
            other => other,
        };
        match linked {
            Err(Errno::NOENT) => Ok(false),
            Err(e) if knows_no_links(e) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Copies a spool to a synced temporary file in the folder of its object.
    fn copy(&self, spool: &Spool) -> io::Result<Spool> {
        let (name, length) = (spool.object(), spool.length());
        let mut copy = temporary_file(self.root.path(), name, self.folder_for(name)?, spool.run())?;
        let copied = io::copy(&mut spool.contents(), &mut copy.file)?;
        if copied != length {
            return Err(io::Error::other(format!(
                "only {copied} of {length} bytes were copied to a temporary file; run again"
            )));
        }
        copy.file.sync_all()?;
        Ok(copy)
    }

    /// Renames a temporary file to its object's name; fails if the name is taken. An unnamed file is left as it is.
    fn rename(&self, home: &Home, leaf: &str) -> Result<(), Errno> {
        let Some(temporary) = &home.temporary else { return Ok(()) };
        // By an earlier try, after which the folder could not be synced.
        if home.renamed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let folder = &home.folder;
        match renameat_with(folder, temporary, folder, leaf, RenameFlags::NOREPLACE) {
            // NFS and many other file systems lack RENAME_NOREPLACE, and sandboxes may block the call.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {}
            other => {
                other?;
                home.renamed.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
        match linkat(folder, temporary, folder, leaf, AtFlags::empty()) {
            Err(e) if knows_no_links(e) => {}
            // Dropping the spool removes the temporary's own name.
            other => return other,
        }
        match statat(folder, leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => renameat(folder, temporary, folder, leaf)?,
            Err(e) => return Err(e),
            Ok(_) => return Err(Errno::EXIST),
        }
        self.unlinked.store(true, Ordering::Relaxed);
        home.renamed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Calls `found` with the objects in a folder and in its subfolders, at most `depth` levels down.
    fn walk(
        &self,
        folder: OwnedFd,
        prefix: &str,
        depth: usize,
        found: &mut dyn FnMut(ObjectInfo),
    ) -> Result<(), Error> {
        let failed = |e: Errno| self.failed("list", prefix, e);
        let mut entries = Dir::new(folder).map_err(failed)?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let is_foreign = prefix.is_empty() && name == LOST_AND_FOUND;
            if matches!(name, "." | "..") || name.starts_with(TEMPORARY) || is_foreign {
                continue;
            }
            let folder = entries.fd().map_err(failed)?;
            let stat = match entry.file_type() {
                FileType::Directory => None,
                FileType::RegularFile | FileType::Unknown => match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                    // Removed during the listing.
                    Err(Errno::NOENT) => continue,
                    stat => Some(stat.map_err(failed)?),
                },
                _ => continue,
            };
            let kind = stat.map_or(FileType::Directory, |stat| FileType::from_raw_mode(stat.st_mode));
            match (kind, stat) {
                (FileType::Directory, _) if depth > 0 => {
                    let below = match openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                        Err(Errno::NOENT) => continue,
                        below => below.map_err(failed)?,
                    };
                    self.walk(below, &format!("{prefix}{name}/"), depth - 1, found)?;
                }
                (FileType::RegularFile, Some(stat)) => {
                    let length = u64::try_from(stat.st_size).unwrap_or_default();
                    found(ObjectInfo { name: format!("{prefix}{name}"), length });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Storage for DirectoryStorage {
    fn capabilities(&self) -> Capabilities {
        let unlinked = "the file system supports neither hard links nor renames that refuse to replace, so brackfs \
                        checks that a name is free before it stores an object";
        let unsynced = "the file system does not sync directories, so a power cut may lose the newest backup; older \
                        backups are safe";
        let known = [(&self.unlinked, unlinked), (&self.unsynced, unsynced)];
        let lacking = known.into_iter().filter(|(lacks, _)| lacks.load(Ordering::Relaxed));
        Capabilities {
            directory: Some(self.root.path().clone()),
            shortcomings: lacking.map(|(_, words)| words).collect(),
            ..Capabilities::default()
        }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        let folder = self.folder_for(name).map_err(|e| self.failed("write", name, e))?;
        if self.nameless.load(Ordering::Relaxed) {
            match openat(&folder, ".", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, MODE) {
                Ok(fd) => {
                    owner::follow(&fd, &folder);
                    return Ok(Spool::in_folder(fd.into(), name, run, Home::new(self.root.path(), folder, None)));
                }
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT | Errno::NOSYS) => {}
                Err(e) => return Err(self.failed("write", name, e)),
            }
        }
        temporary_file(self.root.path(), name, folder, run).map_err(|e| self.failed("write", name, e))
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let name = spool.object();
        let failed = |e| self.failed("store", name, e);
        let length = spool.file.metadata().map_err(failed)?.len();
        if length != spool.length() {
            let why = format!("the temporary file has {length} bytes, but {} were written; run again", spool.length());
            return Err(Error::new(ErrorKind::Other, "store", name, why));
        }
        let leaf = name.rsplit('/').next().unwrap_or(name);
        let place = |home: &Home| {
            self.rename(home, leaf).map_err(|e| failed(e.into()))?;
            self.sync_folder(home.folder.as_fd()).map_err(failed)
        };
        if let Some(home) = &spool.home {
            spool.file.sync_all().map_err(failed)?;
            if length >= LARGE {
                // Best effort: the object will not be read again soon.
                let _ = fadvise(&spool.file, 0, None, Advice::DontNeed);
            }
            if home.temporary.is_some() || Self::link(spool, &home.folder, leaf).map_err(|e| failed(e.into()))? {
                return place(home);
            }
            self.nameless.store(false, Ordering::Relaxed);
        }
        let copy = self.copy(spool).map_err(failed)?;
        copy.home.as_ref().map_or(Ok(()), place)
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let failed = |e| self.explain(Error::reading(name, e));
        let file = self.file(name)?;
        if is_beyond_files(offset, length) {
            return Err(Error::truncated(name));
        }
        bytes.clear();
        bytes.reserve_exact(length);
        while bytes.len() < length {
            let (at, left) = (offset + bytes.len() as u64, length - bytes.len());
            if append_at(file.as_fd(), at, left, bytes).map_err(failed)? == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }

    fn evict(&self, name: &str, offset: u64, length: usize) {
        // Best effort.
        if let (Ok(file), Some(length)) = (self.file(name), NonZeroU64::new(length as u64)) {
            let _ = fadvise(file, offset, Some(length), Advice::DontNeed);
        }
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        let metadata = self.file(name)?.metadata().map_err(|e| self.explain(Error::reading(name, e)))?;
        Ok(metadata.len())
    }

    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let metadata = self.file(name)?.metadata().map_err(|e| self.explain(Error::reading(name, e)))?;
        let version = [metadata.ino(), metadata.ctime().cast_unsigned(), metadata.ctime_nsec().cast_unsigned()];
        Ok(Stamp::new(metadata.len(), version))
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        if prefix.is_empty() {
            let root = self.root.open().map_err(|e| self.failed("list", "the repository", e))?;
            return self.walk(root, prefix, DEPTH + 1, found);
        }
        match self.root.folder(prefix).map_err(|e| self.failed("list", prefix, e))? {
            Some(folder) => self.walk(folder, prefix, DEPTH, found),
            None => Ok(()),
        }
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let failed = |e| self.failed("remove", name, e);
        let (folder, leaf) = name.rsplit_once('/').unwrap_or((".", name));
        let root = self.root.open().map_err(failed)?;
        let folder = beneath(root.as_fd(), folder, FOLDER).map_err(|e| failed(e.into()))?;
        unlinkat(&folder, leaf, AtFlags::empty()).map_err(|e| failed(e.into()))?;
        self.sync_folder(folder.as_fd()).map_err(failed)
    }

    /// Syncs each folder once.
    fn remove_all(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        let mut folders: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, name) in names.iter().enumerate() {
            folders.entry(folder_of(name)).or_default().push(at);
        }
        for (folder, all) in folders {
            let folder = if folder.is_empty() { "." } else { folder.trim_end_matches('/') };
            let opened = self.root.open().and_then(|root| Ok(beneath(root.as_fd(), folder, FOLDER)?));
            let mut results: Vec<_> = all
                .iter()
                .filter_map(|at| Some((*at, names.get(*at)?)))
                .map(|(at, name)| {
                    let leaf = name.rsplit_once('/').map_or(*name, |(_, leaf)| leaf);
                    let removed = match &opened {
                        Ok(folder) => unlinkat(folder, leaf, AtFlags::empty()),
                        Err(error) => Err(errno(error)),
                    };
                    (at, *name, removed)
                })
                .collect();
            if let (Ok(folder), true) = (&opened, results.iter().any(|(_, _, removed)| removed.is_ok()))
                && let Err(error) = self.sync_folder(folder.as_fd())
            {
                results.iter_mut().for_each(|(_, _, removed)| *removed = removed.and(Err(errno(&error))));
            }
            for (at, name, removed) in results {
                match removed.map_err(|error| self.failed("remove", name, error)) {
                    Err(error) if error.is_away() => return Err(error),
                    removed => ended(at, removed),
                }
            }
        }
        Ok(())
    }

    /// A killed writer may have linked objects without syncing their folders.
    fn settle(&self, prefixes: &[&str]) -> Result<(), Error> {
        let root = self.root.open().and_then(|root| self.sync_folder(root.as_fd()));
        root.map_err(|e| self.failed("sync", &self.root.path().display().to_string(), e))?;
        self.each_folder(prefixes, "sync", &|folder| self.sync_folder(folder))
    }

    /// The remains are temporary files.
    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        let removed = std::cell::Cell::new(0);
        self.each_folder(prefixes, "remove temporary files in", &|folder| {
            let is_of_run = |name: &str| writer_of(name).is_some_and(|run| runs.contains(&run));
            let temporaries = names(folder)?.into_iter().filter(|(name, _)| is_of_run(name));
            let mut any = false;
            for (name, _) in temporaries {
                unlinkat(folder, &name, AtFlags::empty())?;
                removed.set(removed.get() + 1);
                any = true;
            }
            // After a power cut they would reappear, and later runs would not look for them.
            if any { self.sync_folder(folder) } else { Ok(()) }
        })?;
        Ok(removed.get())
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        let Some((_, new)) = self.making else { return false };
        let cleared = self.clear(is_ours).unwrap_or_default();
        if cleared && new {
            // Best effort: an empty directory does no harm.
            let _ = fs::remove_dir(self.root.path());
        }
        cleared
    }
}

/// The number of an error of the system.
fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Whether a link failed because the file system has no hard links. Some file systems report EIO for this, which may also
/// mean a broken disk; in that case the fallback fails too.
fn knows_no_links(error: Errno) -> bool {
    let known = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::IO, Errno::MLINK, Errno::XDEV];
    known.contains(&error)
}

/// Creates a spool for `name` with a temporary name in its folder.
fn temporary_file(root: &Path, name: &str, folder: OwnedFd, run: Uuid) -> Result<Spool, Errno> {
    let temporary = temporary_name(run);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&folder, &temporary, flags, MODE)?;
    owner::follow(&file, &folder);
    Ok(Spool::in_folder(file.into(), name, run, Home::new(root, folder, Some(temporary))))
}

/// Returns the names in a folder and their types. Invalid UTF-8 is replaced; names used by brackfs are ASCII, so such a
/// name matches none of them.
fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<(String, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push((entry.file_name().to_string_lossy().into_owned(), kind));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;
    use crate::storage::spool::Spools;

    const RUN: Uuid = Uuid::from_u128(7);

    fn list(storage: &DirectoryStorage, prefix: &str) -> Result<Vec<ObjectInfo>, Error> {
        let mut objects = Vec::new();
        storage.visit(prefix, &mut |object| objects.push(object))?;
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    #[test]
    fn objects_are_created_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        let mut spool = target.spool("packs/ab/x", RUN).unwrap();
        spool.append(b"hello").unwrap();
        assert!(list(&target, "packs/").unwrap().is_empty());
        target.store(&spool).unwrap();
        let listed = list(&target, "packs/").unwrap();
        assert_eq!(listed, [ObjectInfo { name: "packs/ab/x".into(), length: 5 }]);
        let again = target.spool("packs/ab/x", RUN).unwrap();
        assert_eq!(target.store(&again).unwrap_err().kind, ErrorKind::AlreadyExists);
        let mut bytes = b"what was there before".to_vec();
        target.read("packs/ab/x", 1, 3, &mut bytes).unwrap();
        assert_eq!(bytes, b"ell");
        let mut kind = |name, offset, length| target.read(name, offset, length, &mut bytes).unwrap_err().kind;
        assert_eq!(kind("packs/ab/x", 1, 5), ErrorKind::Truncated);
        assert_eq!(kind("packs/ab/y", 0, 0), ErrorKind::NotFound);
    }

    #[test]
    fn reading_anything_but_a_regular_file_fails_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        rustix::fs::mkfifoat(CWD, dir.path().join("pipe"), Mode::RWXU).unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("device")).unwrap();
        for name in ["pipe", "folder", "device"] {
            assert_eq!(target.read(name, 0, 1, &mut Vec::new()).unwrap_err().kind, ErrorKind::NotAFile, "{name}");
            assert_eq!(target.length(name).unwrap_err().kind, ErrorKind::NotAFile, "{name}");
        }
    }

    #[test]
    fn listings_stop_at_the_depth_of_objects() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        for name in ["packs/ab/x", "packs/ab/deeper/y"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let listed = list(&target, "packs/").unwrap();
        assert_eq!(listed, [ObjectInfo { name: "packs/ab/x".into(), length: 0 }]);
    }

    #[test]
    fn a_missing_folder_lists_as_empty_and_a_missing_target_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let target = DirectoryStorage::create(&root, &|_| false).unwrap();
        fs::write(root.join("description"), "there").unwrap();
        assert!(list(&target, "packs/").unwrap().is_empty());
        fs::rename(&root, dir.path().join("away")).unwrap();
        assert_eq!(list(&target, "packs/").unwrap_err().kind, ErrorKind::Unavailable);
        // The empty mount point of an unplugged disk.
        fs::create_dir(&root).unwrap();
        assert!(list(&target, "packs/").unwrap_err().to_string().contains("not mounted"));
    }

    #[test]
    fn an_object_is_missing_only_if_its_target_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (root, away) = (dir.path().join("root"), dir.path().join("away"));
        fs::create_dir(&root).unwrap();
        let target = DirectoryStorage::open(&root).unwrap();
        let kind = || target.length("description").unwrap_err().kind;
        // Nothing was ever seen in it: it is an empty directory, and not known to be a repository.
        assert_eq!(kind(), ErrorKind::NotFound);
        fs::write(root.join("description"), "there").unwrap();
        assert_eq!(target.length("description").unwrap(), 5);
        fs::rename(&root, &away).unwrap();
        assert_eq!(kind(), ErrorKind::Unavailable);
        fs::create_dir(&root).unwrap();
        assert_eq!(kind(), ErrorKind::Unavailable);
        fs::write(root.join("other"), "").unwrap();
        assert_eq!(kind(), ErrorKind::NotFound);
    }

    #[test]
    fn dropping_a_spool_removes_its_named_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        target.nameless.store(false, Ordering::Relaxed);
        let spool = target.spool("packs/ab/x", RUN).unwrap();
        let path = dir.path().join("packs/ab").join(spool.home.as_ref().unwrap().temporary.as_ref().unwrap());
        assert!(path.exists());
        drop(spool);
        assert!(!path.exists());
    }

    #[test]
    fn temporaries_of_a_killed_writer_are_removed_and_objects_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        let temporary = || temporary_name(RUN);
        let left = ["packs/ab", "packs", "index"].map(|folder| format!("{folder}/{}", temporary()));
        // Folders that are not listed, other runs, and names without two UUIDs.
        let others = ["packs/ab/deeper", "ours/not"].map(|folder| format!("{folder}/{}", temporary()));
        let other_run = format!("packs/ab/{}", temporary_name(Uuid::from_u128(8)));
        let nameless = format!("packs/{TEMPORARY}{}", Uuid::new_v4());
        let others = others.into_iter().chain([other_run, nameless, "packs/ab/x".into(), "packs/.tmp-1".into()]);
        let others: Vec<_> = others.collect();
        for name in left.iter().chain(&others) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let folders = ["packs/", "index/", "none/"];
        target.settle(&folders).unwrap();
        assert_eq!(target.discard(&folders, &[RUN]).unwrap(), 3);
        assert_eq!(target.discard(&folders, &[RUN]).unwrap(), 0);
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
        target.remove("packs/ab/x").unwrap();
        assert_eq!(target.remove("packs/ab/x").unwrap_err().kind, ErrorKind::NotFound);
    }

    /// Tries several times: the kernel may drop pages at any time, and keep pages that it is at work on.
    fn in_the_end(mut is_so: impl FnMut() -> bool) -> bool {
        (0..200).any(|_| {
            is_so() || {
                thread::sleep(Duration::from_millis(20));
                false
            }
        })
    }

    #[test]
    fn forgotten_bytes_leave_the_page_cache_and_can_still_be_read() {
        // Not on tmpfs, where the page cache is the storage.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        let mut spool = target.spool("packs/ab/x", RUN).unwrap();
        spool.append(&[7; 500_000]).unwrap();
        target.store(&spool).unwrap();
        let is_cached = || {
            let file = target.file("packs/ab/x").unwrap();
            preadv2(&file, &mut [io::IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT).is_ok()
        };
        let mut bytes = Vec::new();
        let mut read = || {
            target.read("packs/ab/x", 0, 500_000, &mut bytes).unwrap();
            assert!(bytes.len() == 500_000 && bytes.iter().all(|byte| *byte == 7));
        };
        let needed = "/var/tmp must be on a disk, with a file system that uses the page cache";
        let is_read = in_the_end(|| {
            read();
            is_cached()
        });
        assert!(is_read, "{needed}");
        let is_evicted = in_the_end(|| {
            target.evict("packs/ab/x", 0, 500_000);
            !is_cached()
        });
        assert!(is_evicted, "{needed}");
        read();
        // A missing object is ignored.
        target.evict("packs/ab/y", 0, 1);
    }

    #[test]
    fn storing_never_replaces_an_object() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        fs::write(dir.path().join("taken"), "old").unwrap();
        for nameless in [true, false] {
            target.nameless.store(nameless, Ordering::Relaxed);
            let spool = target.spool("taken", RUN).unwrap();
            assert_eq!(spool.home.as_ref().unwrap().temporary.is_none(), nameless);
            assert_eq!(target.store(&spool).unwrap_err().kind, ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read(dir.path().join("taken")).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "temporaries are left");
    }

    #[test]
    fn a_spool_that_got_its_name_can_be_stored_again() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        target.nameless.store(false, Ordering::Relaxed);
        let mut spool = target.spool("packs/ab/x", RUN).unwrap();
        spool.append(b"hello").unwrap();
        // As after a rename whose folder could not be synced.
        target.store(&spool).unwrap();
        target.store(&spool).unwrap();
        drop(spool);
        assert_eq!(list(&target, "packs/").unwrap(), [ObjectInfo { name: "packs/ab/x".into(), length: 5 }]);
    }

    #[test]
    fn a_place_without_permission_is_away_only_if_the_root_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let target = DirectoryStorage::create(&root, &|_| false).unwrap();
        let denied = || Error::new(ErrorKind::PermissionDenied, "read", "x", "permission denied");
        assert_eq!(target.explain(denied()).kind, ErrorKind::PermissionDenied);
        fs::remove_dir(&root).unwrap();
        assert_eq!(target.explain(denied()).kind, ErrorKind::Unavailable);
    }

    #[test]
    fn files_that_cannot_be_linked_are_copied_to_named_ones() {
        let dir = tempfile::tempdir().unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        // A spool that is not in the directory can never be linked.
        let mut spool = Spools::new(None, 1, 100).open("x", RUN).unwrap();
        spool.append(b"bytes").unwrap();
        for failure in [None, Some(ErrorKind::AlreadyExists)] {
            assert_eq!(target.store(&spool).err().map(|e| e.kind), failure);
            assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"bytes");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn links_in_a_repository_are_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("x"), "secret").unwrap();
        fs::write(outside.path().join(temporary_name(RUN)), "").unwrap();
        for folder in ["packs", "packs/cd"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        for link in ["packs/ab", "index"] {
            std::os::unix::fs::symlink(outside.path(), dir.path().join(link)).unwrap();
        }
        std::os::unix::fs::symlink(outside.path().join("x"), dir.path().join("packs/cd/x")).unwrap();
        let target = DirectoryStorage::open(dir.path()).unwrap();
        for name in ["packs/ab/x", "index/x", "packs/cd/x"] {
            let error = target.read(name, 0, 1, &mut Vec::new()).unwrap_err();
            assert!(error.kind == ErrorKind::NotAFile && error.to_string().contains("symbolic link"), "{error}");
        }
        for name in ["packs/ab/y", "index/y"] {
            assert!(target.spool(name, RUN).unwrap_err().to_string().contains("symbolic link"));
            target.remove(name).unwrap_err();
        }
        assert_eq!(list(&target, "packs/").unwrap(), []);
        list(&target, "index/").unwrap_err();
        assert_eq!(target.discard(&["packs/"], &[RUN]).unwrap(), 0);
        target.discard(&["index/"], &[RUN]).unwrap_err();
        target.remove("index/x").unwrap_err();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
        // The root's own path may be a link.
        let link = outside.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let target = DirectoryStorage::open(&link).unwrap();
        target.store(&target.spool("packs/cd/y", RUN).unwrap()).unwrap();
        assert_eq!(list(&target, "packs/").unwrap().len(), 1);
    }

    #[test]
    fn create_replaces_leftovers_of_a_killed_run_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let is_ours = |name: &str| matches!(name, "keys/" | "keys/a" | "readme");
        let create = || DirectoryStorage::create(dir.path(), &is_ours).map(drop);
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        write("keys/a");
        write("readme");
        write(&temporary_name(RUN));
        create().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // The root of a file system.
        write("lost+found/#12");
        write("keys/a");
        create().unwrap();
        assert!(dir.path().join("lost+found/#12").exists() && !dir.path().join("keys/a").exists());
        fs::remove_dir_all(dir.path().join("lost+found")).unwrap();
        write("lost+found");
        assert_eq!(create().unwrap_err().kind, ErrorKind::AlreadyExists, "a file of this name");
        fs::remove_file(dir.path().join("lost+found")).unwrap();
        for other in ["keys/b", "other", "packs/a", "keys/below/a"] {
            write("keys/a");
            write(other);
            assert_eq!(create().unwrap_err().kind, ErrorKind::AlreadyExists, "{other}");
            assert!(dir.path().join("keys/a").exists() && dir.path().join(other).exists());
            fs::remove_dir_all(dir.path()).unwrap();
            fs::create_dir(dir.path()).unwrap();
        }
        // Two runs at the same time.
        let one = DirectoryStorage::create(dir.path(), &is_ours).unwrap();
        assert!(create().unwrap_err().to_string().contains("another run"));
        write("keys/a");
        assert!(one.abandon(&is_ours));
        drop(one);
        create().unwrap();
        let new = dir.path().join("new");
        let made = DirectoryStorage::create(&new, &is_ours).unwrap();
        write("new/readme");
        assert!(made.abandon(&is_ours) && !new.exists());
    }

    #[test]
    fn a_target_is_created_only_in_a_new_or_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(DirectoryStorage::create(dir.path(), &|_| false).unwrap_err().kind, ErrorKind::AlreadyExists);
        DirectoryStorage::create(&dir.path().join("new"), &|_| false).unwrap();
        DirectoryStorage::create(&dir.path().join("new"), &|_| false).unwrap();
        assert!(DirectoryStorage::open(&dir.path().join("file")).is_err());
        assert!(DirectoryStorage::open(&dir.path().join("none")).is_err());
    }
}
