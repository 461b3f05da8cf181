//! A file without content that takes space, to be given up when the disk is full.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::durable::sync_path;
use super::folder_of;
use super::owner::open_private;

/// The name of the file.
pub(crate) const NAME: &str = "reserve";
/// Its size in bytes.
const SIZE: u64 = 4 << 20;
/// A disk with less free space than this gets no reserve, in bytes.
const MIN_FREE: u64 = 4 * SIZE;
/// A smaller reserve would be of no use, in bytes.
const MIN_SIZE: u64 = 256 << 10;
/// File systems allocate space in units of at most this size, in bytes.
const UNIT: u64 = 64 << 10;
/// The unit of [`MetadataExt::blocks`], in bytes.
const BLOCK: u64 = 512;

/// The reserve in a directory.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// The reserve in `folder`. Does not access the file system.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Reserve { path: folder.join(NAME) }
    }

    /// Makes sure that the reserve is there, unless the disk is almost full.
    pub(crate) fn keep(&self) -> io::Result<()> {
        if self.free()? < MIN_FREE { Ok(()) } else { self.fill(SIZE) }
    }

    /// Makes a reserve of the space that is left, after it was given up on a full disk.
    pub(crate) fn restore(&self) -> io::Result<()> {
        let size = SIZE.min(self.free()?) / UNIT * UNIT;
        if size < MIN_SIZE { Ok(()) } else { self.fill(size) }
    }

    /// The free space in bytes.
    fn free(&self) -> io::Result<u64> {
        let space = statvfs(folder_of(&self.path))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn fill(&self, size: u64) -> io::Result<()> {
        let mut file = open_private(&self.path, OpenOptions::new().write(true))?;
        let found = file.metadata()?;
        if found.blocks() * BLOCK >= size {
            return Ok(());
        }
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                // Random, so that a file system that compresses does not store less.
                let mut random = vec![0; size as usize];
                getrandom::fill(&mut random).map_err(|e| io::Error::other(e.to_string()))?;
                file.write_all(&random)
            }
            other => Ok(other?),
        }
    }

    /// Removes the reserve. Returns whether there was one.
    pub(crate) fn give_up(&self) -> bool {
        let is_removed = fs::remove_file(&self.path).is_ok();
        // Some file systems free the space only then.
        let _ = sync_path(folder_of(&self.path));
        is_removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_takes_space_until_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::in_folder(folder.path());
        assert!(!reserve.give_up());
        for _ in 0..2 {
            reserve.keep().unwrap();
            assert!(fs::metadata(folder.path().join(NAME)).unwrap().blocks() * BLOCK >= SIZE);
        }
        assert!(reserve.give_up() && !reserve.give_up());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "content").unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join(NAME)).unwrap();
        assert!(Reserve::in_folder(folder.path()).keep().is_err());
        assert_eq!(fs::read_to_string(&other).unwrap(), "content");
    }
}
