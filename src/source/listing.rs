//! The names in a directory, sorted as bytes, with their kind if the file system reports it.
//!
//! The directory is read to its end first, so changes during the walk of its entries do not affect the listing. Up to
//! 50,000 names or 4 MiB are kept in RAM, more in an unnamed temporary file. A listing uses at most 5 MiB of memory for
//! any size of directory.

use std::ffi::OsString;
use std::io;
use std::iter::FusedIterator;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::error::Error;
use super::shared_path::SharedPath;
use super::sort::{Limits, Sorted, Sorter, temporary_folder};

/// Size in bytes of the buffer for directory entries, about a thousand names.
const BUFFER: usize = 32 << 10;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedName {
    /// The name, a single path component.
    pub name: OsString,
    /// Whether the entry is a directory; `None` if the file system does not report it. For a mount point, this is the
    /// kind of the covered entry.
    pub is_directory: Option<bool>,
}

/// The names in a directory without `.` and `..`, strictly ascending. The iteration ends after the first error.
#[derive(Debug)]
pub struct Listing {
    /// Sort keys from [`key_of`].
    names: Sorted,
    last: OsString,
    path: SharedPath,
    failed: bool,
}

impl Listing {
    /// Reads an open directory from its start. `path` is used in messages, and `kept` are the bytes of names that may stay in
    /// memory.
    pub fn read(fd: BorrowedFd<'_>, path: &SharedPath, kept: usize) -> Result<Self, Error> {
        let unreadable = |e: Errno| Error::io("list the directory", path.clone(), e);
        let unsorted = |source| unsorted(path, source);
        let mut sorter = Sorter::new(Limits { kept, ..Limits::default() });
        let mut sorting = Ok(());
        let mut key = Vec::new();
        each_name(fd, |name, is_directory| {
            key_of(name, is_directory, &mut key);
            sorting = sorter.push(&key);
            sorting.is_ok()
        })
        .map_err(unreadable)?;
        sorting.map_err(unsorted)?;
        let names = sorter.finish().map_err(unsorted)?;
        Ok(Listing { names, last: OsString::new(), path: path.clone(), failed: false })
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        self.names.memory()
    }
}

/// Reads the sorted names in an open directory; `None` if there are more than `most`.
pub(super) fn read_short(fd: BorrowedFd<'_>, path: &SharedPath, most: usize) -> Result<Option<Vec<ListedName>>, Error> {
    let mut names = Vec::new();
    let mut long = false;
    each_name(fd, |name, is_directory| {
        long = names.len() == most;
        names.push(ListedName { name: OsString::from_vec(name.to_vec()), is_directory });
        !long
    })
    .map_err(|e| Error::io("list the directory", path.clone(), e))?;
    names.sort_unstable();
    // A directory that changes while it is read may show a name twice.
    names.dedup_by(|one, other| one.name == other.name);
    Ok((!long).then_some(names))
}

fn unsorted(path: &SharedPath, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::FileTooLarge {
        return Error::io("list the directory", path.clone(), source);
    }
    Error::Temporary { path: path.clone(), folder: temporary_folder(), source }
}

/// Passes the names in a directory to `sink`, unsorted, until it returns false.
fn each_name(fd: BorrowedFd<'_>, mut sink: impl FnMut(&[u8], Option<bool>) -> bool) -> Result<(), Errno> {
    seek(fd, SeekFrom::Start(0))?;
    // On the stack: malloc would tidy its free lists for each buffer of this size.
    let mut buffer = [const { MaybeUninit::uninit() }; BUFFER];
    let mut entries = RawDir::new(fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            entry => entry?,
        };
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name if sink(name, is_directory(entry.file_type())) => {}
            _ => break,
        }
    }
    Ok(())
}

fn is_directory(found: FileType) -> Option<bool> {
    (found != FileType::Unknown).then_some(found == FileType::Directory)
}

/// The sort key of a name: the name, a NUL, which sorts before all bytes of names, and a letter for its kind.
fn key_of(name: &[u8], is_directory: Option<bool>, key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(name);
    key.extend(match is_directory {
        None => [0, b'?'],
        Some(false) => [0, b'f'],
        Some(true) => [0, b'd'],
    });
}

/// The inverse of [`key_of`].
fn of_key(mut key: Vec<u8>) -> ListedName {
    let is_directory = match key.pop() {
        Some(b'f') => Some(false),
        Some(b'd') => Some(true),
        _ => None,
    };
    key.pop();
    ListedName { name: OsString::from_vec(key), is_directory }
}

impl Iterator for Listing {
    type Item = Result<ListedName, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            match self.names.next()? {
                Ok(key) => {
                    let listed = of_key(key);
                    // A directory that changes while it is read may show a name twice, with different kinds.
                    if listed.name != self.last {
                        self.last.clone_from(&listed.name);
                        return Some(Ok(listed));
                    }
                }
                Err(e) => {
                    self.failed = true;
                    return Some(Err(unsorted(&self.path, e)));
                }
            }
        }
        None
    }
}

impl FusedIterator for Listing {}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::os::unix::ffi::OsStrExt;

    use super::super::Directory;
    use super::*;

    fn listed(names: &[&[u8]]) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            File::create(folder.path().join(OsStr::from_bytes(name))).unwrap();
        }
        let directory = Directory::open_root(folder.path()).unwrap();
        let first: Vec<_> = directory.list().unwrap().map(|listed| listed.unwrap().name.into_encoded_bytes()).collect();
        let second: Vec<_> =
            directory.list().unwrap().map(|listed| listed.unwrap().name.into_encoded_bytes()).collect();
        assert_eq!(first, second, "listing twice through one handle");
        first
    }

    #[test]
    fn empty_directory_has_no_names() {
        assert!(listed(&[]).is_empty());
    }

    #[test]
    fn a_single_name_is_listed() {
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
    fn only_short_directories_are_listed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        ["c", "a", "b"].iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        let directory = Directory::open_root(folder.path()).unwrap();
        for _ in 0..2 {
            assert_eq!(directory.list_short(2).unwrap(), None);
            let short = directory.list_short(3).unwrap().unwrap();
            assert!(short.iter().map(|listed| &listed.name).eq(["a", "b", "c"]));
        }
    }

    #[test]
    fn kinds_come_with_the_names() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("folder", folder.path().join("link")).unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        let kinds: Vec<_> = directory.list().unwrap().map(|listed| listed.unwrap().is_directory).collect();
        // File systems may leave the kinds out.
        assert!(kinds == [Some(false), Some(true), Some(false)] || kinds == [None; 3], "{kinds:?}");
        assert!(directory.list_short(3).unwrap().unwrap().iter().map(|listed| listed.is_directory).eq(kinds));
    }

    #[test]
    fn keys_sort_like_names_and_are_reversible() {
        let names: [&[u8]; 5] = [b"a", b"a\x01", b"a\xff", b"ab", b"\xff"];
        let kinds = [None, Some(false), Some(true)];
        let all = names.iter().flat_map(|name| kinds.map(|kind| (*name, kind)));
        let mut keys = Vec::new();
        for (name, is_directory) in all {
            let mut key = Vec::new();
            key_of(name, is_directory, &mut key);
            assert_eq!(of_key(key.clone()), ListedName { name: OsString::from_vec(name.to_vec()), is_directory });
            keys.push((key, name));
        }
        keys.sort();
        assert!(keys.is_sorted_by_key(|(_, name)| *name));
    }

    #[test]
    fn a_deleted_directory_is_empty_or_vanished() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open_root(folder.path()).unwrap();
        folder.close().unwrap();
        assert!(directory.list().map_or_else(|e| e.is_vanished(), |mut names| names.next().is_none()));
    }
}
