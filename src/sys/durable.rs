//! Durable writes of small files.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::Builder;

use super::{folder_of, owner, sync_folder};

/// The effect of a write if the file exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfExists {
    /// The write fails with [`io::ErrorKind::AlreadyExists`].
    Fail,
    /// The file is replaced.
    Replace,
}

/// Writes a file atomically and durably: after an error or a crash, the path has the whole new file or what it had before.
/// Parallel writers do not mix; the last one wins. The umask does not restrict the mode, if the file system has modes.
pub(crate) fn write_file(path: &Path, bytes: &[u8], mode: u32, if_exists: IfExists) -> io::Result<()> {
    write(path, bytes, mode, if_exists, |_, _| ())
}

/// The same for a file that follows the owner of its folder.
pub(crate) fn write_owned_file(path: &Path, bytes: &[u8], mode: u32, if_exists: IfExists) -> io::Result<()> {
    write(path, bytes, mode, if_exists, |file, folder| {
        File::open(folder).iter().for_each(|folder| owner::follow(file, folder));
    })
}

fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    if_exists: IfExists,
    prepare: impl FnOnce(&File, &Path),
) -> io::Result<()> {
    let folder = folder_of(path);
    // A random name: in two containers, processes with one id may write to the same directory.
    let permissions = Permissions::from_mode(mode);
    let mut file = Builder::new().prefix(".brackfs-").permissions(permissions.clone()).tempfile_in(folder)?;
    prepare(file.as_file(), folder);
    // The umask of a service would hide metrics from the program that reads them. Some file systems refuse to change a mode.
    if mode & !file.as_file().metadata()?.permissions().mode() != 0 {
        let _ = file.as_file().set_permissions(permissions);
    }
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    match if_exists {
        IfExists::Fail => rename_new(file.path(), path)?,
        IfExists::Replace => fs::rename(file.path(), path)?,
    }
    // The name is gone; on an error above, the file is removed.
    let _ = file.into_temp_path().keep();
    sync_path(folder)
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

#[cfg(test)]
mod tests {
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
    fn a_file_is_replaced_as_a_whole_and_no_other_file_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let other = folder.path().join(format!("key.{}", std::process::id()));
        fs::write(&path, "a longer first version").unwrap();
        fs::write(&other, "an older key").unwrap();
        write_file(&path, b"second", 0o600, IfExists::Replace).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read(&other).unwrap(), b"an older key");
        assert_eq!(names(folder.path()).len(), 2);
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
