//! The owner of what root writes for another user.
//!
//! A run by hand as root must leave nothing in a user's state directory or repository that the user's own runs cannot use. So root
//! gives new files and folders to the owner of the folder that they are in. All of this is best effort: not all file systems have
//! owners, and in a container root may not be allowed to set them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{fchown, fstat};
use rustix::process::{Gid, Uid, geteuid};

use super::folder_of;

/// Gives a file or folder that was just made to the owner of the folder that it is in, if this process is root.
pub(crate) fn follow(made: impl AsFd, folder: impl AsFd) {
    if !geteuid().is_root() {
        return;
    }
    if let Ok(owner) = fstat(folder)
        && owner.st_uid != 0
    {
        let _ = fchown(made, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)));
    }
}

/// The same for a folder with this path.
pub(crate) fn follow_parent(folder: &Path) {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let made = OpenOptions::new().read(true).custom_flags(flags).open(folder);
    if let (Ok(made), Ok(parent)) = (made, File::open(folder_of(folder))) {
        follow(made, parent);
    }
}

/// Creates a folder and those above it, accessible by their owner only. All of them follow the folder that existed.
pub(crate) fn create_folders(folder: &Path) -> io::Result<()> {
    let missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.is_dir()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    missing.iter().rev().for_each(|made| follow_parent(made));
    Ok(())
}

/// Opens a file with options that allow writing. If it is missing, creates it, readable by its owner only.
///
/// Links are not followed: the owner of the folder could make root write to any file.
pub(crate) fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_NOFOLLOW);
    loop {
        match create(path, options.create_new(true)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
        match options.create_new(false).open(path) {
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
}

/// Creates a file, readable by its owner only. Fails if it exists.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    create(path, OpenOptions::new().write(true).create_new(true))
}

fn create(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.mode(0o600).open(path)?;
    File::open(folder_of(path)).iter().for_each(|folder| follow(&file, folder));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;

    /// A folder of the user and group 1234. The tests run as root.
    fn folder_of_a_user() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(1234), Some(1234)).unwrap();
        folder
    }

    fn owner(path: &Path) -> (u32, u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid(), found.gid(), found.permissions().mode() & 0o777)
    }

    #[test]
    fn what_root_makes_belongs_to_the_owner_of_the_folder() {
        let folder = folder_of_a_user();
        let below = folder.path().join("one/two");
        create_folders(&below).unwrap();
        let file = below.join("file");
        open_private(&file, OpenOptions::new().append(true)).unwrap().write_all(b"1").unwrap();
        open_private(&file, OpenOptions::new().append(true)).unwrap().write_all(b"2").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"12");
        assert_eq!(owner(&below.with_file_name("")), (1234, 1234, 0o700));
        assert_eq!((owner(&below), owner(&file)), ((1234, 1234, 0o700), (1234, 1234, 0o600)));
    }

    #[test]
    fn existing_files_keep_their_owner_and_links_are_not_followed() {
        let folder = folder_of_a_user();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "content").unwrap();
        open_private(&file, OpenOptions::new().write(true)).unwrap();
        assert_eq!(owner(&file).0, 0);
        symlink(&file, &link).unwrap();
        assert!(open_private(&link, OpenOptions::new().write(true)).is_err());
        symlink(folder.path().join("missing"), folder.path().join("dangling")).unwrap();
        assert!(open_private(&folder.path().join("dangling"), OpenOptions::new().write(true)).is_err());
        assert!(!folder.path().join("missing").exists());
    }
}
