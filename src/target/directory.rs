//! Objects as files below a directory.
//!
//! The durable write, used for every object: a file without a name (`O_TMPFILE`) in the object's own
//! folder, written, synced, linked to its name (which fails if the name is taken), and the folder synced.
//! A kill at any moment leaves no trace. Where a file system knows no nameless files, a temporary named
//! `.tmp-…` is renamed instead, without replacing.

use std::fs::{self, DirEntry, File};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, fadvise, statat};
use rustix::io::Errno;
use uuid::Uuid;

use crate::kernel::append_at;

use super::{Error, ErrorKind, ObjectInfo, Spool, Storage};

/// Names of temporaries begin so; no object's does.
const TEMPORARY: &str = ".tmp-";

/// Folders between a listed one and an object: the one that packs are in, or that of a source's snapshots.
const DEPTH: usize = 1;

/// How often something is looked for that was not there, and is when it is looked for in another way.
const TRIES: usize = 3;

/// Objects from this size on are not kept in the page cache when they are stored.
const LARGE: u64 = 1 << 20;

/// A target that is a directory.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
}

impl Directory {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let shown = root.display().to_string();
        let root = fs::canonicalize(root).map_err(|e| Error::io("open", &shown, e))?;
        match root.is_dir() {
            true => Ok(Directory { root }),
            false => Err(Error::new(ErrorKind::NotFound, "open", &shown, "it is not a directory")),
        }
    }

    pub(super) fn create(root: &Path) -> Result<Self, Error> {
        let shown = root.display().to_string();
        match fs::create_dir(root) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mut entries = fs::read_dir(root).map_err(|e| Error::io("create", &shown, e))?;
                if entries.next().is_some() {
                    let why = "the directory is not empty";
                    return Err(Error::new(ErrorKind::AlreadyExists, "create", &shown, why));
                }
            }
            other => other.map_err(|e| Error::io("create", &shown, e))?,
        }
        let target = Directory::open(root)?;
        // Also if it was there: whoever made it may not have come to that.
        target.root.parent().map_or(Ok(()), sync_folder).map_err(|e| Error::io("create", &shown, e))?;
        Ok(target)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Opens an object. Whatever lies in its place is looked at first: opening a pipe would wait for ever, and
    /// opening a device may do anything.
    fn file(&self, name: &str) -> Result<File, Error> {
        let failed = |e| Error::io("read", name, e);
        let path = self.path(name);
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
        let no_file = || Error::new(ErrorKind::NotAFile, "read", name, "it is not a file");
        if !fs::metadata(&path).map_err(failed)?.is_file() {
            return Err(no_file());
        }
        let file = File::options().read(true).custom_flags(flags).open(&path).map_err(failed)?;
        match file.metadata().map_err(failed)?.is_file() {
            true => Ok(file),
            false => Err(no_file()),
        }
    }

    /// The folder of an object, made if it is missing, and durable.
    fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path(name);
        let folder = path.parent().unwrap_or(&self.root).to_owned();
        if folder.is_dir() {
            return Ok(folder);
        }
        // From the top: a folder is durable once the one above it is synced.
        let below = folder.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let mut at = self.root.clone();
        for part in below.components() {
            let above = at.clone();
            at.push(part);
            match fs::create_dir(&at) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => {
                    other.and_then(|()| sync_folder(&above)).map_err(|e| Error::io("create the folder of", name, e))?;
                }
            }
        }
        Ok(folder)
    }

    /// Calls `visit` with each of these folders that is there, and with those in it that objects may lie in.
    fn each_folder(&self, folders: &[&str], visit: &mut dyn FnMut(&Path) -> Result<(), Error>) -> Result<(), Error> {
        for folder in folders.iter().map(|folder| self.path(folder)) {
            if !self.is_folder(&folder)? {
                continue;
            }
            visit(&folder)?;
            for entry in entries(&folder)? {
                if self.is_folder(&entry.path())? {
                    visit(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// What `look` finds at a path; none if nothing is there. Who looks while the target is away, if only for a moment,
    /// is told the same, so that is believed only when the target's directory says so that was open before, and when that has
    /// anything in it at all.
    fn if_there<T>(&self, path: &Path, look: impl Fn() -> io::Result<T>) -> io::Result<Option<T>> {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        for _ in 0..TRIES {
            match look() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                found => return found.map(Some),
            }
            let root = File::open(&self.root)?;
            match statat(&root, below, AtFlags::SYMLINK_NOFOLLOW) {
                // Where a disk was unplugged there is an empty directory.
                Err(Errno::NOENT) if is_empty(&root)? => {
                    return Err(io::Error::other("the repository's directory is empty; is a disk not mounted?"));
                }
                Err(Errno::NOENT) => return Ok(None),
                found => _ = found?,
            }
        }
        look().map(Some)
    }

    /// Whether it is a folder, and no link to one: what links lead to is not ours.
    fn is_folder(&self, path: &Path) -> Result<bool, Error> {
        let found = self.if_there(path, || fs::symlink_metadata(path));
        let found = found.map_err(|e| Error::io("look at", &path.display().to_string(), e))?;
        Ok(found.is_some_and(|found| found.is_dir()))
    }

    /// Objects in `folder` and in folders below it, down to `depth`: no object lies deeper, whatever else does.
    fn walk(&self, folder: &Path, depth: usize, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        let failed = |e| Error::io("list", &folder.display().to_string(), e);
        let Some(entries) = self.if_there(folder, || fs::read_dir(folder)).map_err(failed)? else { return Ok(()) };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if name.to_str().is_none_or(|name| name.starts_with(TEMPORARY)) {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                match depth {
                    0 => {}
                    depth => self.walk(&entry.path(), depth - 1, found)?,
                }
            } else if kind.is_file() {
                let path = entry.path();
                let Some(name) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) else { continue };
                match entry.metadata() {
                    Ok(metadata) => found(ObjectInfo { name: name.to_owned(), length: metadata.len() }),
                    // It was deleted while it was listed. Nothing else makes it one that is not there.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        Ok(())
    }
}

impl Storage for Directory {
    fn spool(&self, name: &str) -> Result<Spool, Error> {
        let folder = self.folder(name)?;
        let mode = Mode::from_raw_mode(0o644);
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::open(&folder, flags, mode) {
            Ok(fd) => Ok(Spool { file: fd.into(), object: name.to_owned(), length: 0, named: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let path = folder.join(format!("{TEMPORARY}{}", Uuid::new_v4()));
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
                    .map_err(|e| Error::io("write", name, e))?;
                Ok(Spool { file, object: name.to_owned(), length: 0, named: Some(path) })
            }
            Err(e) => Err(Error::io("write", name, e.into())),
        }
    }

    fn store(&self, name: &str, mut spool: Spool) -> Result<(), Error> {
        let failed = |e| Error::io("store", name, e);
        let length = spool.file.metadata().map_err(failed)?.len();
        if length != spool.length {
            let why = format!("{length} bytes reached the file where {} were written", spool.length);
            return Err(Error::new(ErrorKind::Other, "store", name, why));
        }
        spool.file.sync_all().map_err(failed)?;
        if length >= LARGE {
            // Nobody reads it soon; the page cache has better uses. If the advice is not taken, no harm is done.
            let _ = fadvise(&spool.file, 0, None, Advice::DontNeed);
        }
        let path = self.path(name);
        match &spool.named {
            None => {
                let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&spool.file.as_fd()));
                rustix::fs::linkat(CWD, &link, CWD, &path, AtFlags::SYMLINK_FOLLOW).map_err(|e| failed(e.into()))?;
            }
            Some(temporary) => {
                match rustix::fs::renameat_with(CWD, temporary, CWD, &path, RenameFlags::NOREPLACE) {
                    // NFS and some others can't refuse to replace: link refuses everywhere.
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        fs::hard_link(temporary, &path).map_err(failed)?;
                        fs::remove_file(temporary).map_err(failed)?;
                    }
                    other => other.map_err(|e| failed(e.into()))?,
                }
                spool.named = None;
            }
        }
        sync_folder(path.parent().unwrap_or(&self.root)).map_err(failed)
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let failed = |e| Error::io("read", name, e);
        let file = self.file(name)?;
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

    fn forget(&self, name: &str, offset: u64, length: usize) {
        // Only advice: if it is not taken, memory is used that could be used better.
        if let (Ok(file), Some(length)) = (self.file(name), NonZeroU64::new(length as u64)) {
            let _ = fadvise(file, offset, Some(length), Advice::DontNeed);
        }
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        let metadata = self.file(name)?.metadata().map_err(|e| Error::io("read", name, e))?;
        Ok(metadata.len())
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Error> {
        let mut objects = Vec::new();
        self.visit(prefix, &mut |object| objects.push(object))?;
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn sync(&self, folders: &[&str]) -> Result<(), Error> {
        let sync =
            &mut |folder: &Path| sync_folder(folder).map_err(|e| Error::io("sync", &folder.display().to_string(), e));
        sync(&self.root)?;
        self.each_folder(folders, sync)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let failed = |e| Error::io("remove", name, e);
        let path = self.path(name);
        fs::remove_file(&path).map_err(failed)?;
        sync_folder(path.parent().unwrap_or(&self.root)).map_err(failed)
    }

    fn remove_temporaries(&self, folders: &[&str]) -> Result<u64, Error> {
        let mut removed = 0;
        self.each_folder(folders, &mut |folder| {
            let failed = |e| Error::io("remove temporary files in", &folder.display().to_string(), e);
            let temporaries: Vec<_> = entries(folder)?.into_iter().filter(is_temporary).collect();
            temporaries.iter().try_for_each(|entry| fs::remove_file(entry.path())).map_err(failed)?;
            if !temporaries.is_empty() {
                // Or they come back with a power cut, and nobody looks for them any more.
                sync_folder(folder).map_err(failed)?;
            }
            removed += temporaries.len() as u64;
            Ok(())
        })?;
        Ok(removed)
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        self.walk(&self.path(prefix), DEPTH, found)
    }
}

/// Whether it has a name that only a writer gives.
fn is_temporary(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    name.to_str().and_then(|name| name.strip_prefix(TEMPORARY)).is_some_and(|id| Uuid::try_parse(id).is_ok())
}

/// What a folder holds.
fn entries(folder: &Path) -> Result<Vec<DirEntry>, Error> {
    let listed = fs::read_dir(folder).and_then(Iterator::collect);
    listed.map_err(|e| Error::io("list", &folder.display().to_string(), e))
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Whether nothing is in a directory.
fn is_empty(directory: &File) -> io::Result<bool> {
    let mut entries = Dir::read_from(directory)?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))))
}

#[cfg(test)]
mod tests {
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;

    #[test]
    fn objects_are_created_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = Directory::open(dir.path()).unwrap();
        let mut spool = target.spool("packs/ab/x").unwrap();
        spool.append(b"hello").unwrap();
        assert!(target.list("packs/").unwrap().is_empty());
        target.store("packs/ab/x", spool).unwrap();
        let listed = target.list("packs/").unwrap();
        assert_eq!(listed, [ObjectInfo { name: "packs/ab/x".into(), length: 5 }]);
        let again = target.spool("packs/ab/x").unwrap();
        assert_eq!(target.store("packs/ab/x", again).unwrap_err().kind, ErrorKind::AlreadyExists);
        let mut bytes = b"what was there before".to_vec();
        target.read("packs/ab/x", 1, 3, &mut bytes).unwrap();
        assert_eq!(bytes, b"ell");
        let mut kind = |name, offset, length| target.read(name, offset, length, &mut bytes).unwrap_err().kind;
        assert_eq!(kind("packs/ab/x", 1, 5), ErrorKind::Truncated);
        assert_eq!(kind("packs/ab/y", 0, 0), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_no_file_is_no_object_and_nothing_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = Directory::open(dir.path()).unwrap();
        rustix::fs::mkfifoat(CWD, dir.path().join("pipe"), Mode::RWXU).unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("device")).unwrap();
        for name in ["pipe", "folder", "device"] {
            assert_eq!(target.read(name, 0, 1, &mut Vec::new()).unwrap_err().kind, ErrorKind::NotAFile, "{name}");
            assert_eq!(target.length(name).unwrap_err().kind, ErrorKind::NotAFile, "{name}");
        }
    }

    #[test]
    fn listings_go_as_deep_as_objects_lie() {
        let dir = tempfile::tempdir().unwrap();
        let target = Directory::open(dir.path()).unwrap();
        for name in ["packs/ab/x", "packs/ab/deeper/y"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let listed = target.list("packs/").unwrap();
        assert_eq!(listed, [ObjectInfo { name: "packs/ab/x".into(), length: 0 }]);
    }

    #[test]
    fn a_folder_that_was_never_made_is_empty_and_a_target_that_is_away_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let target = Directory::create(&root).unwrap();
        fs::write(root.join("description"), "there").unwrap();
        assert!(target.list("packs/").unwrap().is_empty());
        fs::rename(&root, dir.path().join("away")).unwrap();
        assert_eq!(target.list("packs/").unwrap_err().kind, ErrorKind::NotFound);
        // What a disk that was unplugged leaves.
        fs::create_dir(&root).unwrap();
        assert!(target.list("packs/").unwrap_err().to_string().contains("not mounted"));
    }

    #[test]
    fn a_dropped_spool_leaves_nothing_even_with_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".tmp-1");
        let file = File::create_new(&path).unwrap();
        drop(Spool { file, object: "x".into(), length: 0, named: Some(path.clone()) });
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_writer_left_goes_and_objects_stay() {
        let dir = tempfile::tempdir().unwrap();
        let target = Directory::open(dir.path()).unwrap();
        let temporary = || format!("{TEMPORARY}{}", Uuid::new_v4());
        let left = ["packs/ab", "packs", "index"].map(|folder| format!("{folder}/{}", temporary()));
        // In folders of other people, and under names that we don't give.
        let others = ["packs/ab/deeper", "ours/not"].map(|folder| format!("{folder}/{}", temporary()));
        let others = others.into_iter().chain(["packs/ab/x", "packs/.tmp-1"].map(String::from));
        let others: Vec<_> = others.collect();
        for name in left.iter().chain(&others) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let folders = ["packs/", "index/", "none/"];
        target.sync(&folders).unwrap();
        assert_eq!(target.remove_temporaries(&folders).unwrap(), 3);
        assert_eq!(target.remove_temporaries(&folders).unwrap(), 0);
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
        target.remove("packs/ab/x").unwrap();
        assert_eq!(target.remove("packs/ab/x").unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn what_is_forgotten_leaves_the_page_cache_and_is_still_there() {
        // Not in memory only: what has no disk stays in the cache.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        if rustix::fs::statfs(dir.path()).unwrap().f_type == libc::TMPFS_MAGIC {
            return;
        }
        let target = Directory::open(dir.path()).unwrap();
        let mut spool = target.spool("packs/ab/x").unwrap();
        spool.append(&[7; 500_000]).unwrap();
        target.store("packs/ab/x", spool).unwrap();
        let is_cached = || {
            let file = target.file("packs/ab/x").unwrap();
            preadv2(&file, &mut [io::IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT).is_ok()
        };
        let mut bytes = Vec::new();
        let mut read = || {
            target.read("packs/ab/x", 0, 500_000, &mut bytes).unwrap();
            assert!(bytes.len() == 500_000 && bytes.iter().all(|byte| *byte == 7));
        };
        read();
        if !is_cached() {
            // A file system without a page cache of its own.
            return;
        }
        target.forget("packs/ab/x", 0, 500_000);
        assert!(!is_cached());
        read();
        // Nothing is said of what is not there.
        target.forget("packs/ab/y", 0, 1);
    }

    #[test]
    fn named_temporaries_do_not_replace() {
        let dir = tempfile::tempdir().unwrap();
        let target = Directory::open(dir.path()).unwrap();
        fs::write(dir.path().join("taken"), "old").unwrap();
        let path = dir.path().join(".tmp-2");
        let file = File::create_new(&path).unwrap();
        let spool = Spool { file, object: "taken".into(), length: 0, named: Some(path) };
        assert_eq!(target.store("taken", spool).unwrap_err().kind, ErrorKind::AlreadyExists);
        assert_eq!(fs::read(dir.path().join("taken")).unwrap(), b"old");
    }

    #[test]
    fn a_target_is_made_only_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(Directory::create(dir.path()).unwrap_err().kind, ErrorKind::AlreadyExists);
        Directory::create(&dir.path().join("new")).unwrap();
        Directory::create(&dir.path().join("new")).unwrap();
        assert!(Directory::open(&dir.path().join("file")).is_err());
        assert!(Directory::open(&dir.path().join("none")).is_err());
    }
}
