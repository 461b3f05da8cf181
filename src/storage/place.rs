//! The root directory of a target, and opening files and folders below it.
//!
//! Reads, writes and listings start at a descriptor of the root and follow no symbolic links, so a link inside the
//! repository cannot lead out of it. The root's own path may contain links, since it comes from the user.
//!
//! Each access opens the root again. A descriptor kept open would keep the disk busy and would become stale when the
//! disk is unplugged and mounted again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, statat};
use rustix::io::{Errno, retry_on_intr};

/// Flags to open a folder for listing and syncing.
pub(super) const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Flags to open an object. Opening a pipe must not block, and a terminal must not become the controlling terminal.
const OBJECT: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// A target's root directory.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// `path` is absolute and contains no links.
    pub(super) fn new(path: PathBuf) -> Self {
        Root(path)
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.0
    }

    /// Opens the root itself.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        Ok(openat(CWD, &self.0, FOLDER, Mode::empty())?)
    }

    /// Opens a folder; `None` if it does not exist. If the root itself is empty, that is an error: it may be the mount point
    /// of an unplugged disk.
    pub(super) fn folder(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        let root = self.open()?;
        match beneath(root.as_fd(), name, FOLDER) {
            Err(Errno::NOENT) if is_empty(&root)? => {
                let why = "the repository's directory is empty; its disk is probably not mounted";
                Err(io::Error::new(io::ErrorKind::NotConnected, why))
            }
            Err(Errno::NOENT) => Ok(None),
            found => Ok(Some(found?)),
        }
    }

    /// Opens the regular file `name`; `None` if it is not a regular file.
    pub(super) fn object(&self, name: &str) -> io::Result<Option<File>> {
        let root = self.open()?;
        let file = match beneath(root.as_fd(), name, OBJECT) {
            // Another process holds a lease on the file and releases it only for a blocking open.
            Err(Errno::AGAIN) => {
                if !is_file(&beneath(root.as_fd(), name, OFlags::PATH | OFlags::CLOEXEC)?)? {
                    return Ok(None);
                }
                beneath(root.as_fd(), name, OBJECT.difference(OFlags::NONBLOCK))?
            }
            // A socket or a device without a driver.
            Err(Errno::NXIO | Errno::NODEV) => return Ok(None),
            opened => opened?,
        };
        Ok(is_file(&file)?.then(|| file.into()))
    }
}

/// Opens `name` below `from` without following links. A link on the way is [`Errno::LOOP`].
pub(super) fn beneath(from: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match retry_on_intr(|| rustix::fs::openat2(from, name, flags, Mode::empty(), resolve)) {
        // Kernels before 5.6, and sandboxes that block openat2.
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(from, name, flags),
        opened => opened,
    }
}

/// Does the same as `openat2`, one path component at a time.
fn step_by_step(from: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut names = name.split('/').filter(|name| !name.is_empty()).peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        let flags = match names.peek() {
            Some(_) => OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            None => flags,
        };
        let from = at.as_ref().map_or(from, AsFd::as_fd);
        let opened = match retry_on_intr(|| openat(from, name, flags | OFlags::NOFOLLOW, Mode::empty())) {
            // openat reports a link as ENOTDIR if a directory is required.
            Err(Errno::NOTDIR) if is_link(from, name) => return Err(Errno::LOOP),
            opened => opened?,
        };
        at = Some(opened);
    }
    at.ok_or(Errno::NOENT)
}

fn is_link(folder: BorrowedFd<'_>, name: &str) -> bool {
    let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Symlink)
}

fn is_file(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::RegularFile)
}

/// Whether a directory has no entries.
pub(super) fn is_empty(directory: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_link_is_followed_with_or_without_openat2() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::create_dir_all(outside.join("b")).unwrap();
        fs::write(inside.join("a/b/file"), "").unwrap();
        fs::write(outside.join("b/file"), "").unwrap();
        symlink(&outside, inside.join("folder")).unwrap();
        symlink(inside.join("a"), inside.join("same")).unwrap();
        symlink(outside.join("b/file"), inside.join("a/b/link")).unwrap();
        let root = Root::new(inside).open().unwrap();
        for open in [beneath, step_by_step] {
            let open = |name, flags| open(root.as_fd(), name, flags).map(drop);
            assert_eq!(open("a/b/file", OBJECT), Ok(()));
            assert_eq!(open("a/b", FOLDER), Ok(()));
            assert_eq!(open("a/b/none", OBJECT), Err(Errno::NOENT));
            for name in ["folder/b/file", "same/b/file", "a/b/link"] {
                assert_eq!(open(name, OBJECT), Err(Errno::LOOP), "{name}");
            }
            for name in ["folder", "folder/", "folder/b", "same/b"] {
                assert_eq!(open(name, FOLDER), Err(Errno::LOOP), "{name}");
            }
        }
    }

    #[test]
    fn a_missing_folder_in_an_empty_root_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().to_owned());
        assert!(root.folder("packs").unwrap_err().to_string().contains("not mounted"));
        fs::write(dir.path().join("description"), "").unwrap();
        assert!(root.folder("packs").unwrap().is_none());
        fs::create_dir(dir.path().join("packs")).unwrap();
        assert!(root.folder("packs").unwrap().is_some());
    }
}
