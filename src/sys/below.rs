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
        let ways: [fn(&fs::File, &[&[u8]]) -> Result<OwnedFd, Errno>; 2] =
            [|from, names| open_below(from, names), |from, names| step_below(from, names)];
        for open in ways {
            assert!(open(&top, &[b"a", b"b"]).is_ok() && open(&top, &[b"."]).is_ok());
            assert!(open(&top, &[b"link", b"b"]).is_err() && open(&top, &[b"a", b"link"]).is_err());
            assert!(open(&top, &[b"a", b"none"]).is_err() && open(&top, &[]).is_err());
        }
    }
}
