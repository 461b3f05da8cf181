//! Directories that are opened without following symbolic links.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// Opens a directory below another one by its names. Fails for a symbolic link. The handle is only for further calls
/// (`O_PATH`).
pub(crate) fn open_below(from: impl AsFd, names: &[&[u8]]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(&from, names.join(&b'/'), flags, Mode::empty(), resolve) {
        // Linux before 5.6, or a seccomp filter.
        Err(Errno::NOSYS | Errno::PERM) => step_below(from, names),
        other => other,
    }
}

/// Opens one name after the other, which is equivalent.
fn step_below(from: impl AsFd, names: &[&[u8]]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let (first, rest) = names.split_first().ok_or(Errno::NOENT)?;
    let first = openat(from, *first, flags, Mode::empty())?;
    rest.iter().try_fold(first, |at, name| openat(&at, *name, flags, Mode::empty()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_refused_also_without_openat2() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        symlink("a", folder.path().join("link")).unwrap();
        symlink("b", folder.path().join("a/link")).unwrap();
        let top = fs::File::open(folder.path()).unwrap();
        let opens = |names: &[&[u8]]| [open_below(&top, names).is_ok(), step_below(&top, names).is_ok()];
        for good in [&[b"a" as &[u8], b"b"][..], &[b"."]] {
            assert_eq!(opens(good), [true; 2], "{good:?}");
        }
        for bad in [&[b"link" as &[u8], b"b"][..], &[b"a", b"link"], &[b"a", b"none"], &[]] {
            assert_eq!(opens(bad), [false; 2], "{bad:?}");
        }
    }
}
