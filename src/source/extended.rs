//! What a file system keeps beside the stat: extended attributes and inode flags.
//!
//! POSIX ACLs and file capabilities are extended attributes too. Inode flags are what `chattr` sets. Both are
//! read where the file system has them and lets us; that it has none is no error.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{fgetxattr, flistxattr, ioctl_getflags, lgetxattr, llistxattr};
use rustix::io::{Errno, retry_on_intr};

use crate::format::Entry;
use crate::format::entry::Xattr;

/// Linux lists no more bytes of names, and allows no longer value.
const XATTR_MAX: usize = 64 << 10;

/// What is known of a file, directory or anything else beside its stat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extended {
    /// Extended attributes, in order of their names.
    pub xattrs: Vec<Xattr>,
    /// Inode flags, as far as [`Entry::INODE_FLAGS`] keeps them.
    pub inode_flags: u32,
    /// Why something of it is not here.
    pub missing: Option<String>,
}

impl Extended {
    /// Of what `fd` is open on.
    pub fn of_fd(fd: impl AsFd) -> Self {
        let fd = fd.as_fd();
        let mut found = read(&Handle(fd));
        // Most file systems that have no such flags say so in one way or another, and none means harm.
        found.inode_flags = ioctl_getflags(fd).map_or(0, |flags| flags.bits() & Entry::INODE_FLAGS);
        found
    }

    /// Bytes of names and values of the attributes.
    pub fn bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Names of the extended attributes of what `fd` is open on; none if they can't be listed.
    pub fn names_of(fd: impl AsFd) -> Vec<Vec<u8>> {
        let list = with_room(|buffer| Handle(fd.as_fd()).list(buffer)).unwrap_or_default();
        list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
    }

    /// Of what has this name in an open directory, and can't or shouldn't be opened: a symlink itself, a
    /// device. Such things have no inode flags that matter.
    pub(super) fn of_child(directory: impl AsFd, name: &OsStr) -> Self {
        let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
        path.extend_from_slice(name.as_bytes());
        read(&Path(&path))
    }
}

/// Something that has extended attributes.
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
        // No such thing there, or the file is gone by now.
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
            // Removed since it was listed.
            Err(Errno::NODATA | Errno::NOENT) => {}
            Err(e) => {
                let name = String::from_utf8_lossy(name);
                found.missing.get_or_insert(format!("cannot read its extended attribute {name}: {e}"));
            }
        }
    }
    found.xattrs.sort_unstable();
    // A file system of a user's own may list a name twice.
    found.xattrs.dedup_by(|one, other| one.0 == other.0);
    found
}

/// Calls `fill` with a small buffer, and again with a large one if that was too small.
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

    /// Names and values as a file system may give them.
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
    fn what_cannot_be_read_is_said_and_the_rest_is_there() {
        let found = read(&Fake(vec![("a", Err(Errno::NODATA)), ("b", Err(Errno::IO)), ("c", Ok(1))]));
        assert_eq!(found.xattrs, [(b"c".to_vec(), b"v".to_vec())]);
        assert!(found.missing.unwrap().starts_with("cannot read its extended attribute b: "));
    }

    #[test]
    fn more_than_an_entry_can_hold_is_said() {
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let found = read(&Fake(names.iter().map(|name| (*name, Ok(60 << 10))).collect()));
        assert_eq!(found.xattrs.len(), 6);
        assert!(found.missing.unwrap().ends_with("; g is not stored"));
    }

    #[test]
    fn a_list_that_grows_meanwhile_is_an_error_not_a_loop() {
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
        // Needs a file system that has them.
        if fsetxattr(&file, "user.test", b"value", XattrFlags::empty()).is_err() {
            return;
        }
        let flags = ioctl_setflags(&file, IFlags::NODUMP | IFlags::NOATIME);
        let found = Extended::of_fd(&file);
        assert_eq!(found.xattrs, [(b"user.test".to_vec(), b"value".to_vec())]);
        if flags.is_ok() {
            assert_eq!(found.inode_flags, 0xc0);
        }
        let directory = Directory::open_root(folder.path()).unwrap();
        assert_eq!(directory.extended_of_child(OsStr::new("file")).xattrs, found.xattrs);
        assert_eq!(directory.extended_of_child(OsStr::new("link")), Extended::default());
        assert_eq!(directory.extended_of_child(OsStr::new("absent")), Extended::default());
    }
}
