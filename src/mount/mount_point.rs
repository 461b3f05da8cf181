//! Mount points, resolved once and used by descriptor.
//!
//! The owner of a directory above a mount point can replace it by a link or another directory at any time, so that a path
//! resolved twice may refer to two directories, the second one `/etc`. So the path is resolved once. Its last component
//! must not be a symbolic link, and all later steps use descriptors of the directory to cover or of its parent. The kernel
//! does not allow renaming a directory that something is mounted on.

use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::helper;
use crate::sys::mountinfo::{self, mount_id};

/// A name in a directory, on which a mount is or will be.
pub(super) struct MountPoint {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl MountPoint {
    /// Resolves a path except for its last component.
    pub(super) fn find(path: &Path) -> io::Result<MountPoint> {
        // The name of a path that ends with `..` is known only after resolving it.
        let resolved;
        let path = match path.file_name() {
            Some(_) => path,
            None => {
                resolved = fs::canonicalize(path)?;
                &resolved
            }
        };
        let name = path.file_name().unwrap_or(OsStr::new("."));
        let above = path.parent().unwrap_or(path);
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(CWD, above, flags, Mode::empty())?;
        let mut path = fs::read_link(descriptor(&parent))?;
        if name != "." {
            path.push(name);
        }
        Ok(MountPoint { name: name.to_owned(), parent, path })
    }

    /// The absolute path at the time of resolving it, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the major and minor device number of the brackfs mount that is there, if any.
    pub(super) fn mounted(&self) -> io::Result<Option<(u32, u32)>> {
        let id = mount_id(self.open()?)?;
        if id == mount_id(&self.parent)? {
            return Ok(None);
        }
        let table = mountinfo::read()?;
        let mut mounts = mountinfo::mounts(&table);
        Ok(mounts.find(|mount| mount.id == id && mount.is_brackfs()).map(|mount| mount.device))
    }

    /// Sends a request to the file system that is there. The kernel does not answer it from a cache.
    pub(super) fn ask(&self) -> io::Result<()> {
        rustix::fs::fstatfs(self.open()?)?;
        Ok(())
    }

    /// Opens the file or directory that is there, without following a symbolic link.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.parent, &self.name, flags, Mode::empty())?)
    }

    /// Opens the directory to mount on.
    pub(super) fn directory(&self) -> io::Result<CoveredDirectory> {
        let opened = self.open()?;
        match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
            FileType::Directory => Ok(CoveredDirectory(opened)),
            FileType::Symlink => Err(io::Error::other("it is a symbolic link; give the directory that it points to")),
            _ => Err(io::Error::other("it is not a directory")),
        }
    }

    /// Unmounts the mount that is there; `lazy` detaches it even if it is in use.
    pub(super) fn unmount(&self, lazy: bool) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return helper::unmount(&descriptor(&self.parent), &self.name, lazy);
        }
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        let path = descriptor(&self.parent).join(&self.name);
        Ok(rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW)?)
    }
}

/// A directory to mount on, independent of its path.
pub(super) struct CoveredDirectory(OwnedFd);

impl CoveredDirectory {
    /// Whether the directory has no entries.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(fs::read_dir(self.path())?.next().is_none())
    }

    /// Returns a path that this process can use for as long as the directory is open.
    pub(super) fn path(&self) -> PathBuf {
        descriptor(&self.0)
    }

    /// Mounts on it.
    pub(super) fn mount(&self, source: &Path, kind: &str, flags: MountFlags, data: &CStr) -> io::Result<()> {
        Ok(rustix::mount::mount(source, self.path(), kind, flags, data)?)
    }
}

fn descriptor(of: &impl AsFd) -> PathBuf {
    Path::new("/proc/self/fd").join(of.as_fd().as_raw_fd().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_stays_the_same_when_its_path_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("above/empty")).unwrap();
        fs::create_dir_all(path.join("other/empty/full")).unwrap();
        symlink(path.join("other/empty"), path.join("link")).unwrap();
        let place = MountPoint::find(&path.join("above/empty")).unwrap();
        assert_eq!(place.path(), path.join("above/empty"));
        fs::rename(path.join("above"), path.join("moved")).unwrap();
        symlink(path.join("other"), path.join("above")).unwrap();
        let directory = place.directory().unwrap();
        assert!(directory.is_empty().unwrap());
        fs::remove_dir(path.join("moved/empty")).unwrap();
        fs::rename(path.join("link"), path.join("moved/empty")).unwrap();
        assert!(place.directory().is_err_and(|error| error.to_string().contains("symbolic link")));
        assert!(directory.is_empty().unwrap());
        // A link in the path is followed.
        assert!(!MountPoint::find(&path.join("above/empty")).unwrap().directory().unwrap().is_empty().unwrap());
    }

    #[test]
    fn any_path_is_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        fs::create_dir(path.join("a")).unwrap();
        for (given, found) in [("a", "a"), ("a/", "a"), ("a/.", "a"), ("a/..", ""), ("missing", "missing")] {
            let place = MountPoint::find(&path.join(given)).unwrap();
            assert_eq!(place.path(), path.join(found).components().collect::<PathBuf>(), "{given}");
            assert_eq!(place.directory().is_ok(), found != "missing");
            assert!(place.directory().is_err() || place.mounted().unwrap().is_none());
        }
        assert!(!MountPoint::find(Path::new("/")).unwrap().directory().unwrap().is_empty().unwrap());
        assert!(MountPoint::find(&path.join("missing/a")).is_err());
    }
}
