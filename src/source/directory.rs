//! An open directory. Its entries are reached by a single name, relative to its handle.
//!
//! A name is a single path component, as in a [`Listing`]. Symlinks are followed only in the path of the root. A
//! [`PathMap`] may say that an entry is read elsewhere; its path is still that of the entry. The other place is opened without
//! following symlinks, so a symlink that somebody made cannot lead to other files.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use rustix::io::{Errno, retry_on_intr};

use super::error::Error;
use super::extended::Extended;
use super::listing::{ListedName, Listing};
use super::path_map::PathMap;
use super::shared_path::SharedPath;
use super::stat::Stat;
use super::{listing, stat};
use crate::format::Kind;
use crate::sys::below::open_below;

/// An open directory. Threads may share it.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: SharedPath,
    /// Entries that are read elsewhere.
    map: PathMap,
    /// Held while the names are read, because the read position belongs to the handle.
    listing: Mutex<()>,
}

impl Directory {
    /// Opens the root of a walk. Follows symlinks, since the user named the path.
    pub fn open_root(path: &Path) -> Result<Self, Error> {
        Directory::open_mapped(path, &PathMap::default())
    }

    /// The same, where the map says that an absolute path and those below it are read.
    pub fn open_mapped(path: &Path, map: &PathMap) -> Result<Self, Error> {
        let opened = match map.mapped_place(path) {
            Some(place) => at_place(&place, |above, name| open_directory(above, name, OFlags::NOFOLLOW)),
            None => open_directory(CWD, path.as_os_str(), OFlags::empty()),
        };
        Directory::new(opened, path.into(), map.at(path))
    }

    /// Opens a subdirectory; fails for a symlink. Access times are preserved if the system permits it.
    pub fn open_child(&self, name: &OsStr) -> Result<Directory, Error> {
        let opened = self.at(name, |above, name| open_directory(above, name, OFlags::NOFOLLOW));
        Directory::new(opened, self.path.child(name), self.map.child(name))
    }

    fn new(opened: io::Result<OwnedFd>, path: SharedPath, map: PathMap) -> Result<Self, Error> {
        match opened {
            Ok(fd) => Ok(Directory { fd, path, map, listing: Mutex::new(()) }),
            Err(e) => Err(Error::io("open the directory", path, e)),
        }
    }

    /// Acts on an entry where it is read: by its name there, in an open directory.
    fn at<T>(&self, name: &OsStr, act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> io::Result<T>) -> io::Result<T> {
        match self.map.mapped(Path::new(name)) {
            Some(place) => at_place(&place, act),
            None => act(self.fd.as_fd(), name),
        }
    }

    /// Stats the directory itself.
    pub fn stat(&self) -> Result<Stat, Error> {
        Stat::of_fd(&self.fd).map_err(|e| Error::io("stat", self.path.clone(), e))
    }

    /// Stats an entry; does not follow a symlink. If the name is missing, the error [is
    /// vanished](Error::is_vanished).
    pub fn stat_child(&self, name: &OsStr) -> Result<Stat, Error> {
        self.at(name, Stat::child).map_err(|e| Error::io("stat", self.path.child(name), e))
    }

    /// Stats the root of the mount at `name` from the kernel's cache. It contacts no server or FUSE program, so it
    /// cannot hang or fail with one. If the kernel has no cached stat, the result is a private directory on `device`.
    pub fn stat_mount_point(&self, name: &OsStr, device: u64) -> Stat {
        self.at(name, Stat::cached_child).unwrap_or_else(|_| Stat::of_hidden_directory(device))
    }

    /// Whether a directory, not a single file, is mounted at `name`. Does not block, like
    /// [`Directory::stat_mount_point`]. `None` if the kernel does not know.
    pub fn is_mounted_directory(&self, name: &OsStr) -> Option<bool> {
        self.at(name, Stat::cached_child).ok().map(|stat| stat.kind == Kind::Directory)
    }

    /// Whether an entry is on the same mount as the directory itself. `None` if the kernel does not report mounts.
    pub fn shares_mount_with(&self, name: &OsStr) -> Option<bool> {
        let own = stat::mount_id(&self.fd, OsStr::new(""))?;
        Some(own == self.at(name, |above, name| Ok(stat::mount_id(above, name))).ok()??)
    }

    /// Extended attributes and inode flags of the directory itself.
    pub fn extended(&self) -> Extended {
        Extended::of_fd(&self.fd)
    }

    /// Extended attributes and inode flags of an entry; does not follow a symlink.
    pub fn extended_of_child(&self, name: &OsStr) -> Extended {
        self.at(name, |above, name| Ok(Extended::of_child(above, name))).unwrap_or_else(|e| Extended {
            missing: Some(format!("cannot list its extended attributes: {e}")),
            ..Extended::default()
        })
    }

    /// The target of a symlink, unchanged.
    pub fn read_link(&self, name: &OsStr) -> Result<Vec<u8>, Error> {
        match self.at(name, |above, name| Ok(readlinkat(above, name, Vec::new())?)) {
            Ok(target) => Ok(target.into_bytes()),
            Err(e) => Err(Error::io("read the symlink", self.path.child(name), e)),
        }
    }

    /// Opens a file for reading; fails for a symlink. Access times are preserved if the system permits it.
    ///
    /// Does not block, even if the name is a FIFO by now. Check the type of the opened file with [`Stat::of_fd`].
    pub fn open_file(&self, name: &OsStr) -> Result<File, Error> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        match self.at(name, |above, name| Ok(open_quietly(above, name, flags)?)) {
            Ok(fd) => Ok(File::from(fd)),
            Err(e) => Err(Error::io("open", self.path.child(name), e)),
        }
    }

    /// The path of the directory.
    pub fn shared_path(&self) -> SharedPath {
        self.path.clone()
    }

    /// The path of the directory, in one piece.
    pub fn path(&self) -> PathBuf {
        self.path.to_path()
    }

    /// The path of `name` in the directory.
    pub fn child_path(&self, name: &OsStr) -> PathBuf {
        let mut path = self.path();
        path.push(name);
        path
    }

    /// Lists the names in the directory, sorted as bytes.
    pub fn list(&self) -> Result<Listing, Error> {
        self.list_within(usize::MAX)
    }

    /// The same with at most `kept` bytes of names in memory while they are used.
    pub fn list_within(&self, kept: usize) -> Result<Listing, Error> {
        let _alone = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        Listing::read(self.fd.as_fd(), &self.path, kept)
    }

    /// Lists the names in the directory, sorted; `None` if there are more than `most`.
    pub fn list_short(&self, most: usize) -> Result<Option<Vec<ListedName>>, Error> {
        let _alone = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing::read_short(self.fd.as_fd(), &self.path, most)
    }
}

/// Acts on an absolute path by its last name, in the directory above. Fails if there is a symlink on the way.
fn at_place<T>(place: &Path, act: impl FnOnce(BorrowedFd<'_>, &OsStr) -> io::Result<T>) -> io::Result<T> {
    let mut names: Vec<_> = place.components().filter(|part| *part != Component::RootDir).collect();
    let last = names.pop().map_or(OsStr::new("."), |part| part.as_os_str());
    let names: Vec<_> = names.iter().map(|part| part.as_os_str().as_bytes()).collect();
    let top = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let above = if names.is_empty() { top } else { open_below(top, &names)? };
    act(above.as_fd(), last)
}

fn open_directory(above: impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(open_quietly(above, name, flags | OFlags::DIRECTORY)?)
}

/// Opens for reading. Preserves the access time if the system permits it.
fn open_quietly(directory: impl AsFd, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    let open = |flags| retry_on_intr(|| openat(&directory, name, flags, Mode::empty()));
    match open(flags | OFlags::NOATIME) {
        // Only the owner and root may use O_NOATIME.
        Err(Errno::PERM) => open(flags),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use rustix::fs::{AtFlags, FileType, Timespec, Timestamps, makedev, mkfifoat, mknodat, utimensat};
    use tempfile::TempDir;

    use super::*;

    fn site() -> (TempDir, Directory) {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        (folder, directory)
    }

    fn kind(directory: &Directory, name: &str) -> Kind {
        directory.stat_child(OsStr::new(name)).unwrap().kind
    }

    #[test]
    fn stat_reports_each_kind() {
        let (folder, directory) = site();
        let path = folder.path();
        fs::write(path.join("file"), "12345").unwrap();
        fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(path.join("file"), path.join("other")).unwrap();
        fs::create_dir(path.join("directory")).unwrap();
        symlink("no/where", path.join("symlink")).unwrap();
        mkfifoat(CWD, path.join("fifo"), Mode::RUSR).unwrap();
        let _socket = UnixListener::bind(path.join("socket")).unwrap();

        let file = directory.stat_child(OsStr::new("file")).unwrap();
        let truth = fs::metadata(path.join("file")).unwrap();
        assert_eq!((file.kind, file.mode, file.size, file.nlink), (Kind::File, 0o4751, 5, 2));
        assert_eq!((file.dev, file.ino, file.blocks), (truth.dev(), truth.ino(), truth.blocks()));
        assert_eq!((file.uid, file.gid, file.rdev), (truth.uid(), truth.gid(), 0));
        assert_eq!((file.mtime.seconds, i64::from(file.mtime.nanos)), (truth.mtime(), truth.mtime_nsec()));
        assert_eq!((file.ctime.seconds, i64::from(file.ctime.nanos)), (truth.ctime(), truth.ctime_nsec()));
        assert_eq!(kind(&directory, "directory"), Kind::Directory);
        assert_eq!(directory.stat_child(OsStr::new("directory")).unwrap().size, 0);
        assert_eq!(kind(&directory, "symlink"), Kind::Symlink);
        assert_eq!(kind(&directory, "fifo"), Kind::Fifo);
        assert_eq!(kind(&directory, "socket"), Kind::Socket);
        assert_eq!(directory.stat().unwrap().ino, fs::metadata(path).unwrap().ino());
    }

    #[test]
    fn stat_reports_devices() {
        let devices = Directory::open_root(Path::new("/dev")).unwrap();
        let null = devices.stat_child(OsStr::new("null")).unwrap();
        assert_eq!((null.kind, null.rdev), (Kind::CharDevice, makedev(1, 3)));
        let (folder, directory) = site();
        let path = folder.path().join("block");
        mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR, makedev(7, 300)).expect("only root can make devices");
        let block = directory.stat_child(OsStr::new("block")).unwrap();
        assert_eq!((block.kind, block.rdev), (Kind::BlockDevice, makedev(7, 300)));
    }

    #[test]
    fn read_link_gives_the_target_as_written() {
        let (folder, directory) = site();
        let long = "x/".repeat(1000);
        symlink(&long, folder.path().join("long")).unwrap();
        assert_eq!(directory.read_link(OsStr::new("long")).unwrap(), long.as_bytes());
        assert!(directory.read_link(OsStr::new("absent")).unwrap_err().is_vanished());
    }

    #[test]
    fn an_absent_name_is_vanished() {
        let (folder, directory) = site();
        let name = OsStr::new("absent");
        assert!(directory.stat_child(name).unwrap_err().is_vanished());
        assert!(directory.open_file(name).unwrap_err().is_vanished());
        let error = directory.open_child(name).unwrap_err();
        assert!(error.is_vanished());
        let path = folder.path().join("absent");
        assert_eq!(
            error.to_string(),
            format!("cannot open the directory {}: No such file or directory (os error 2)", path.display())
        );
    }

    #[test]
    fn a_symlink_is_followed_at_the_root_only() {
        let (folder, directory) = site();
        fs::create_dir(folder.path().join("real")).unwrap();
        fs::write(folder.path().join("real/file"), "").unwrap();
        symlink("real", folder.path().join("to-directory")).unwrap();
        symlink("real/file", folder.path().join("to-file")).unwrap();
        assert!(directory.open_child(OsStr::new("real")).is_ok());
        let error = directory.open_child(OsStr::new("to-directory")).unwrap_err();
        assert!(!error.is_vanished());
        assert!(directory.open_file(OsStr::new("to-file")).is_err());
        let root = Directory::open_root(&folder.path().join("to-directory")).unwrap();
        assert!(root.open_file(OsStr::new("file")).is_ok());
    }

    #[test]
    fn reading_leaves_access_times_alone() {
        let (folder, directory) = site();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/f"), "x").unwrap();
        fs::write(folder.path().join("control"), "x").unwrap();
        // Access times older than the modification are updated even on file systems mounted with relatime.
        let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let new = Timespec { tv_sec: 1_500_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: old, last_modification: new };
        for name in ["d", "d/f", "control"] {
            utimensat(CWD, folder.path().join(name), &times, AtFlags::empty()).unwrap();
        }
        let accessed = |name| fs::metadata(folder.path().join(name)).map(|stat| (stat.atime(), stat.atime_nsec()));
        let before = (accessed("d").unwrap(), accessed("d/f").unwrap());
        fs::read(folder.path().join("control")).unwrap();
        assert_ne!(accessed("control").unwrap(), before.1, "$TMPDIR must be on a file system without noatime");
        let child = directory.open_child(OsStr::new("d")).unwrap();
        assert_eq!(child.list().unwrap().count(), 1);
        let file = child.open_file(OsStr::new("f")).unwrap();
        assert_eq!(std::io::read_to_string(file).unwrap(), "x");
        assert_eq!((accessed("d").unwrap(), accessed("d/f").unwrap()), before);
    }

    #[test]
    fn files_of_other_users_can_be_read() {
        let root = Directory::open_root(Path::new("/")).unwrap();
        let etc = root.open_child(OsStr::new("etc")).unwrap();
        // O_NOATIME is allowed only for the owner and root.
        let open_as_other_user = || {
            #[expect(unsafe_code, reason = "no crate changes the file system user of a thread")]
            // SAFETY: the argument is an integer, and only this thread is changed.
            unsafe {
                libc::setfsuid(65_534)
            };
            let noatime = OFlags::RDONLY | OFlags::NOATIME;
            assert_eq!(openat(&etc.fd, "passwd", noatime, Mode::empty()).unwrap_err(), Errno::PERM);
            etc.open_file(OsStr::new("passwd")).unwrap();
        };
        std::thread::scope(|threads| threads.spawn(open_as_other_user).join().unwrap());
    }

    #[test]
    fn open_file_does_not_wait_for_a_fifo_writer() {
        let (folder, directory) = site();
        mkfifoat(CWD, folder.path().join("fifo"), Mode::RUSR).unwrap();
        let file = directory.open_file(OsStr::new("fifo")).unwrap();
        assert_eq!(Stat::of_fd(&file).unwrap().kind, Kind::Fifo);
    }

    #[test]
    fn trees_may_be_deeper_than_paths_are_long() {
        let (_folder, root) = site();
        let name = "d".repeat(200);
        let mut directory = root;
        for _ in 0..30 {
            rustix::fs::mkdirat(&directory.fd, &name, Mode::RWXU).unwrap();
            directory = directory.open_child(OsStr::new(&name)).unwrap();
        }
        assert!(directory.path().as_os_str().len() > 4096);
        assert_eq!(directory.list().unwrap().count(), 0);
    }
}
