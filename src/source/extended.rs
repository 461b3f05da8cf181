//! Extended attributes and inode flags.
//!
//! POSIX ACLs and file capabilities are stored as extended attributes. Inode flags are set by `chattr`. A file system
//! without them is not an error.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{fgetxattr, flistxattr, ioctl_getflags, lgetxattr, llistxattr};
use rustix::io::{Errno, retry_on_intr};

use crate::format::Entry;
use crate::format::entry::Xattr;

/// Linux's limits of a list of names and of a value, in bytes.
const XATTR_MAX: usize = 64 << 10;

/// The metadata of an inode that is not in its stat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extended {
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// Inode flags, restricted to [`Entry::INODE_FLAGS`].
    pub inode_flags: u32,
    /// The first error, if some attributes could not be read.
    pub missing: Option<String>,
}

impl Extended {
    /// Reads the attributes and flags of an open file or directory.
    pub fn of_fd(fd: impl AsFd) -> Self {
        let fd = fd.as_fd();
        let mut found = read(&Handle(fd));
        // File systems without inode flags fail with various errors; all mean that there are none.
        found.inode_flags = ioctl_getflags(fd).map_or(0, |flags| flags.bits() & Entry::INODE_FLAGS);
        found
    }

    /// Total size of the attributes' names and values in bytes.
    pub fn bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Lists the names of an open file's extended attributes; empty if that fails.
    pub fn names_of(fd: impl AsFd) -> Vec<Vec<u8>> {
        let list = with_room(|buffer| Handle(fd.as_fd()).list(buffer)).unwrap_or_default();
        list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
    }

    /// Reads the attributes of a directory entry that should not be opened, such as a symlink or a device. Such entries
    /// have no relevant inode flags.
    pub(super) fn of_child(directory: impl AsFd, name: &OsStr) -> Self {
        let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name.as_bytes());
        read(&Path(&path))
    }
}

/// An object with extended attributes.
trait Attributed {
    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno>;
    fn get(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno>;
}

struct Handle<'fd>(BorrowedFd<'fd>);

impl Attributed for Handle<'_> {
    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        flistxattr(self.0, buffer)
    }

    fn get(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        fgetxattr(self.0, name, buffer)
    }
}

struct Path<'p>(&'p [u8]);

impl Attributed for Path<'_> {
    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        llistxattr(self.0, buffer)
    }

    fn get(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
        lgetxattr(self.0, name, buffer)
    }
}

fn read(of: &impl Attributed) -> Extended {
    let mut found = Extended::default();
    let names = match with_room(|buffer| of.list(buffer)) {
        Ok(names) => names,
        // Not supported, or the file was removed.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOENT) => return found,
        Err(e) => {
            found.missing = Some(format!("cannot list its extended attributes: {e}"));
            return found;
        }
    };
    let mut room = Entry::XATTRS_MAX;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match with_room(|buffer| of.get(name, buffer)) {
            Ok(value) if name.len() + value.len() <= room => {
                room -= name.len() + value.len();
                found.xattrs.push((name.to_vec(), value));
            }
            Ok(_) => {
                let (name, most) = (String::from_utf8_lossy(name), Entry::XATTRS_MAX >> 10);
                let why = format!("it has more than {most} KiB of extended attributes; {name} is not stored");
                found.missing.get_or_insert(why);
            }
            // The attribute was removed after it was listed.
            Err(Errno::NODATA | Errno::NOENT) => {}
            Err(e) => {
                let name = String::from_utf8_lossy(name);
                found.missing.get_or_insert(format!("cannot read its extended attribute {name}: {e}"));
            }
        }
    }
    found.xattrs.sort_unstable();
    // A FUSE file system may list a name twice.
    found.xattrs.dedup_by(|one, other| one.0 == other.0);
    found
}

/// Calls `fill` with a small buffer, and again with a large one if it was too small.
fn with_room(fill: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 512];
    match retry_on_intr(|| fill(&mut small)) {
        Ok(length) => return Ok(small.get(..length).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0; XATTR_MAX];
    let length = retry_on_intr(|| fill(&mut large))?;
    large.truncate(length);
    large.shrink_to_fit();
    Ok(large)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::os::unix::fs::symlink;

    use rustix::fs::{IFlags, XattrFlags, fsetxattr, ioctl_setflags};

    use super::super::Directory;
    use super::*;

    /// Attributes of a fake file system: names, and the length or error of each value.
    struct Fake(Vec<(&'static str, Result<usize, Errno>)>);

    impl Attributed for Fake {
        fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
            let names: String = self.0.iter().map(|(name, _)| format!("{name}\0")).collect();
            fill(buffer, names.as_bytes())
        }

        fn get(&self, name: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
            let found = self.0.iter().find(|(known, _)| known.as_bytes() == name).unwrap();
            fill(buffer, &vec![b'v'; found.1?])
        }
    }

    fn fill(buffer: &mut [u8], with: &[u8]) -> Result<usize, Errno> {
        buffer.get_mut(..with.len()).ok_or(Errno::RANGE)?.copy_from_slice(with);
        Ok(with.len())
    }

    #[test]
    fn attributes_are_sorted_and_large_ones_are_read() {
        let found = read(&Fake(vec![("user.b", Ok(64 << 10)), ("user.a", Ok(0)), ("user.a", Ok(0))]));
        assert_eq!(found.xattrs, [(b"user.a".to_vec(), vec![]), (b"user.b".to_vec(), vec![b'v'; 64 << 10])]);
        assert_eq!(found.missing, None);
    }

    #[test]
    fn an_unreadable_attribute_is_reported_and_the_others_are_read() {
        let found = read(&Fake(vec![("a", Err(Errno::NODATA)), ("b", Err(Errno::IO)), ("c", Ok(1))]));
        assert_eq!(found.xattrs, [(b"c".to_vec(), b"v".to_vec())]);
        assert!(found.missing.unwrap().starts_with("cannot read its extended attribute b: "));
    }

    #[test]
    fn attributes_beyond_the_limit_are_reported() {
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let found = read(&Fake(names.iter().map(|name| (*name, Ok(60 << 10))).collect()));
        assert_eq!(found.xattrs.len(), 6);
        assert!(found.missing.unwrap().ends_with("; g is not stored"));
    }

    #[test]
    fn a_list_that_keeps_growing_is_an_error_not_a_loop() {
        let calls = Cell::new(0);
        let result = with_room(|_| {
            calls.set(calls.get() + 1);
            Err(Errno::RANGE)
        });
        assert_eq!((result, calls.get()), (Err(Errno::RANGE), 2));
    }

    #[test]
    fn files_and_links_of_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("file")).unwrap();
        symlink("file", folder.path().join("link")).unwrap();
        let needed = "$TMPDIR must be on a file system with attributes and flags, such as ext4";
        fsetxattr(&file, "user.test", b"value", XattrFlags::empty()).expect(needed);
        ioctl_setflags(&file, IFlags::NODUMP | IFlags::NOATIME).expect(needed);
        let found = Extended::of_fd(&file);
        assert_eq!(found.xattrs, [(b"user.test".to_vec(), b"value".to_vec())]);
        assert_eq!(found.inode_flags, 0xc0);
        let directory = Directory::open_root(folder.path()).unwrap();
        assert_eq!(directory.extended_of_child(OsStr::new("file")).xattrs, found.xattrs);
        assert_eq!(directory.extended_of_child(OsStr::new("link")), Extended::default());
        assert_eq!(directory.extended_of_child(OsStr::new("absent")), Extended::default());
    }
}
