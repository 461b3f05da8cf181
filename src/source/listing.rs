//! The names in a directory, sorted as bytes.
//!
//! The directory is read to its end first, so that what happens in it while the walk is below does not
//! matter. Up to 50,000 names (4 MiB of them) wait in RAM, more in an unnamed temporary file; a
//! listing that is alive takes 5 MiB at most, whatever the size of the directory.

use std::ffi::OsString;
use std::io;
use std::iter::FusedIterator;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::Error;
use super::sort::{Limits, Sorted, Sorter, temporary_folder};

/// Bytes asked of the kernel at once, about a thousand names. A single name is far smaller.
const BUFFER: usize = 32 << 10;

/// The names in a directory without `.` and `..`, strictly ascending. It ends at the first error.
#[derive(Debug)]
pub struct Listing {
    names: Sorted,
    path: PathBuf,
    failed: bool,
}

impl Listing {
    /// Reads the directory that `fd` is open on, from the start. `path` is for messages.
    pub(super) fn read(fd: BorrowedFd<'_>, path: &Path) -> Result<Self, Error> {
        let unreadable = |e: Errno| Error::io("list the directory", path, e);
        let unsorted = |source| unsorted(path, source);
        let mut sorter = Sorter::new(Limits::default());
        let mut sorting = Ok(());
        each_name(fd, |name| {
            sorting = sorter.push(name);
            sorting.is_ok()
        })
        .map_err(unreadable)?;
        sorting.map_err(unsorted)?;
        let names = sorter.finish().map_err(unsorted)?;
        Ok(Listing { names, path: path.to_owned(), failed: false })
    }
}

/// Reads the names in the directory that `fd` is open on, sorted, unless they are more than `most`.
pub(super) fn read_short(fd: BorrowedFd<'_>, path: &Path, most: usize) -> Result<Option<Vec<OsString>>, Error> {
    let mut names = Vec::new();
    let mut long = false;
    each_name(fd, |name| {
        long = names.len() == most;
        names.push(OsString::from_vec(name.to_vec()));
        !long
    })
    .map_err(|e| Error::io("list the directory", path, e))?;
    names.sort_unstable();
    // A directory that changes while it is read may show a name twice.
    names.dedup();
    Ok((!long).then_some(names))
}

fn unsorted(path: &Path, source: io::Error) -> Error {
    Error::Temporary { path: path.to_owned(), folder: temporary_folder(), source }
}

/// Hands out names from the start of a directory on, as they come, until `sink` says no.
fn each_name(fd: BorrowedFd<'_>, mut sink: impl FnMut(&[u8]) -> bool) -> Result<(), Errno> {
    seek(fd, SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            entry => entry?,
        };
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name if sink(name) => {}
            _ => break,
        }
    }
    Ok(())
}

impl Iterator for Listing {
    type Item = Result<OsString, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        match self.names.next()? {
            Ok(name) => Some(Ok(OsString::from_vec(name))),
            Err(e) => {
                self.failed = true;
                Some(Err(unsorted(&self.path, e)))
            }
        }
    }
}

impl FusedIterator for Listing {}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;

    use super::super::Directory;

    fn listed(names: &[&[u8]]) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            File::create(folder.path().join(OsStr::from_bytes(name))).unwrap();
        }
        let directory = Directory::open_root(folder.path()).unwrap();
        let first: Vec<_> = directory.list().unwrap().map(|name| name.unwrap().into_encoded_bytes()).collect();
        let second: Vec<_> = directory.list().unwrap().map(|name| name.unwrap().into_encoded_bytes()).collect();
        assert_eq!(first, second, "listing twice through one handle");
        first
    }

    #[test]
    fn empty_directory_has_no_names() {
        assert!(listed(&[]).is_empty());
    }

    #[test]
    fn one_name() {
        assert_eq!(listed(&[b"a"]), [b"a"]);
    }

    #[test]
    fn names_are_sorted_as_bytes() {
        let sorted: [&[u8]; 9] = [b"\x01", b"\n", b"\n\n", b"...", b"A", b"a", b"a\nb", "ä".as_bytes(), b"\xff\xfe"];
        let mut names = sorted;
        names.reverse();
        assert_eq!(listed(&names), sorted);
    }

    #[test]
    fn many_names_come_once_each() {
        let names: Vec<_> = (0..3000).map(|n| format!("{n:05}-{}", "x".repeat(n % 90)).into_bytes()).collect();
        let given: Vec<_> = names.iter().map(Vec::as_slice).collect();
        assert_eq!(listed(&given), names);
    }

    #[test]
    fn short_directories_are_listed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        ["c", "a", "b"].iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        let directory = Directory::open_root(folder.path()).unwrap();
        for _ in 0..2 {
            assert_eq!(directory.list_short(2).unwrap(), None);
            assert_eq!(directory.list_short(3).unwrap().unwrap(), ["a", "b", "c"]);
        }
    }

    #[test]
    fn a_deleted_directory_is_empty_or_vanished() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        folder.close().unwrap();
        assert!(directory.list().map_or_else(|e| e.is_vanished(), |mut names| names.next().is_none()));
    }
}
