//! Mount points, found once.
//!
//! Who owns a directory above a mount point can rename what is in it at any moment, and put a link or another directory
//! in its place. A path that is used twice can lead to two places: the second may be `/etc`. So a path is walked once.
//! Its last component must not be a symbolic link, and from then on everything is done through descriptors: of the
//! directory that the mount covers, or of its parent. While a mount is on a name, the kernel lets nobody rename it.

use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::helper;
use super::table::{self, MountEntry};

/// A name in a directory, where a mount is or is going to be.
pub(super) struct MountPoint {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl MountPoint {
    /// Walks a path, except for its last component.
    pub(super) fn find(path: &Path) -> io::Result<MountPoint> {
        // A path that ends with `..` has its last component elsewhere.
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

    /// The absolute path at the time it was found, without links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The mount of ours that is there.
    pub(super) fn mounted(&self) -> io::Result<Option<MountEntry>> {
        let id = table::mount_id(self.open()?)?;
        if id == table::mount_id(&self.parent)? {
            return Ok(None);
        }
        Ok(table::mounts()?.into_iter().find(|mount| mount.id == id && mount.is_ours))
    }

    /// Asks the file system that is there whether it answers. Nothing is answered from a cache of the kernel's.
    pub(super) fn ask(&self) -> io::Result<()> {
        rustix::fs::fstatfs(self.open()?)?;
        Ok(())
    }

    /// Opens what is there.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.parent, &self.name, flags, Mode::empty())?)
    }

    /// Opens the directory that a mount is going to cover.
    pub(super) fn directory(&self) -> io::Result<CoveredDirectory> {
        let opened = self.open()?;
        match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
            FileType::Directory => Ok(CoveredDirectory(opened)),
            FileType::Symlink => Err(io::Error::other("it is a symbolic link; name the directory that it leads to")),
            _ => Err(io::Error::other("it is not a directory")),
        }
    }

    /// Unmounts what is there; `lazy` detaches it even if it is in use.
    pub(super) fn unmount(&self, lazy: bool) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return helper::unmount(&descriptor(&self.parent), &self.name, lazy);
        }
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        let path = descriptor(&self.parent).join(&self.name);
        Ok(rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW)?)
    }
}

/// A directory that a mount is going to cover, whatever its path is by then.
pub(super) struct CoveredDirectory(OwnedFd);

impl CoveredDirectory {
    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(fs::read_dir(self.path())?.next().is_none())
    }

    /// A path that leads to it for as long as it is open, for this process only.
    pub(super) fn path(&self) -> PathBuf {
        descriptor(&self.0)
    }

    /// Covers it.
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
    fn the_directory_is_the_one_that_was_found_whatever_its_name_leads_to_later() {
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
        // The way there may be a link.
        assert!(!MountPoint::find(&path.join("above/empty")).unwrap().directory().unwrap().is_empty().unwrap());
    }

    #[test]
    fn any_path_has_a_place() {
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
