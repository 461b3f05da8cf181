//! The root of a target that is a directory, and how everything below it is opened.
//!
//! Reads, writes and listings all start at a descriptor of the root and follow no symbolic link on the way down, so a
//! link inside the repository leads no access out of it. The root's own path may contain links: the user gave it.
//!
//! The root is opened anew for each access. A descriptor that stayed open would keep the disk busy that the repository
//! is on, and would miss a disk that is unplugged and mounted again.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, statat};
use rustix::io::{Errno, retry_on_intr};

/// Opens a folder so that its names can be listed and synced.
pub(super) const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens an object. A pipe must not block, and a terminal must not become ours.
const OBJECT: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The directory that holds all objects.
#[derive(Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// The root at an absolute path without links.
    pub(super) fn new(path: PathBuf) -> Self {
        Root(path)
    }

    /// Its path.
    pub(super) fn path(&self) -> &PathBuf {
        &self.0
    }

    /// Opens the root itself.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        Ok(openat(CWD, &self.0, FOLDER, Mode::empty())?)
    }

    /// Opens a folder; `None` if it does not exist. That is believed only if the root holds anything at all: where a disk
    /// was unplugged, an empty mount point is left.
    pub(super) fn folder(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        let root = self.open()?;
        match beneath(root.as_fd(), name, FOLDER) {
            Err(Errno::NOENT) if is_empty(&root)? => {
                Err(io::Error::other("the repository's directory is empty; is a disk not mounted?"))
            }
            Err(Errno::NOENT) => Ok(None),
            found => Ok(Some(found?)),
        }
    }

    /// Opens the regular file `name`; `None` if something else has this name.
    pub(super) fn object(&self, name: &str) -> io::Result<Option<File>> {
        let root = self.open()?;
        let file = match beneath(root.as_fd(), name, OBJECT) {
            // Another program holds a lease on the file, and gives it up only for an open that waits.
            Err(Errno::AGAIN) => match is_file(&beneath(root.as_fd(), name, OFlags::PATH | OFlags::CLOEXEC)?)? {
                true => beneath(root.as_fd(), name, OBJECT.difference(OFlags::NONBLOCK))?,
                false => return Ok(None),
            },
            // A socket, or a device without a driver.
            Err(Errno::NXIO | Errno::NODEV) => return Ok(None),
            opened => opened?,
        };
        Ok(is_file(&file)?.then(|| file.into()))
    }
}

/// Opens what `name` leads to below `from` without following any link: a link is [`Errno::LOOP`].
pub(super) fn beneath(from: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match retry_on_intr(|| rustix::fs::openat2(from, name, flags, Mode::empty(), resolve)) {
        // Kernels before 5.6, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(from, name, flags),
        opened => opened,
    }
}

/// The same, one name after the other.
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
            // What openat says of a link that should be a directory.
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
    let mut entries = Dir::read_from(directory)?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))))
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
    fn a_missing_folder_is_believed_only_where_something_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().to_owned());
        assert!(root.folder("packs").unwrap_err().to_string().contains("not mounted"));
        fs::write(dir.path().join("description"), "").unwrap();
        assert!(root.folder("packs").unwrap().is_none());
        fs::create_dir(dir.path().join("packs")).unwrap();
        assert!(root.folder("packs").unwrap().is_some());
    }
}
