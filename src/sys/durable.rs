//! Durable writes of small files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::sync_folder;

/// The effect of a write if the file exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfExists {
    /// The write fails with [`io::ErrorKind::AlreadyExists`].
    Fail,
    /// The file is replaced.
    Replace,
}

/// Writes a file atomically and durably: after an error or a crash, the path has the whole new file or what it had before.
/// Parallel writers do not mix; the last one wins.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32, if_exists: IfExists) -> io::Result<()> {
    let temporary = temporary_path(path);
    // A killed process with the same id may have left it, with other permissions.
    let _ = fs::remove_file(&temporary);
    let put = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match if_exists {
            IfExists::Fail => rename_new(&temporary, path),
            IfExists::Replace => fs::rename(&temporary, path),
        }
    };
    put().inspect_err(|_| _ = fs::remove_file(&temporary))?;
    sync_path(path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new(".")))
}

/// Syncs a directory, if its file system supports that.
pub(crate) fn sync_path(folder: &Path) -> io::Result<()> {
    sync_folder(File::open(folder)?.as_fd()).map(drop)
}

/// Renames a file to a name that must not exist.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot do this atomically.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_ok() => Err(Errno::EXIST.into()),
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, to),
        other => Ok(other?),
    }
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_new_file_has_its_content_and_mode_and_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        write_file(&path, b"first", 0o600, IfExists::Fail).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        let error = write_file(&path, b"second", 0o600, IfExists::Fail).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        fs::write(&path, "a longer first version").unwrap();
        fs::write(temporary_path(&path), "left by a killed process").unwrap();
        write_file(&path, b"second", 0o600, IfExists::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["list"]);
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory");
        fs::create_dir(&path).unwrap();
        write_file(&path, b"bytes", 0o600, IfExists::Replace).unwrap_err();
        assert_eq!(names(folder.path()), ["directory"]);
    }
}
