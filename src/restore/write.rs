//! Writing one entry, relative to an open directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use uuid::Uuid;

use super::Conflict;
use crate::format::entry::Content;
use crate::format::{Digest, Entry, Kind, Timestamp};
use crate::reader::{self, FileReader, Listed, Reader};

/// What became of an entry.
pub(super) enum Written {
    Made {
        /// What is not as it should be, though the entry is there.
        warning: Option<String>,
    },
    Skipped,
}

/// Why an entry is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("it is not restored: {0}")]
    Reader(#[from] reader::Error),
    #[error("cannot write it: {0}")]
    Io(#[from] io::Error),
    #[error("it is there already")]
    Exists,
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Io(errno.into())
    }
}

/// Opens the directory that everything is restored into.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Makes a directory, or finds it, and opens it. A link in its place is not followed.
pub(super) fn make_directory(above: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(above, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(above, name, flags, Mode::empty())?)
}

/// Writes an entry that is no directory.
pub(super) fn entry(
    reader: &Reader,
    listed: &Listed,
    into: &OwnedFd,
    conflict: Conflict,
    privileged: bool,
) -> Result<Written, Error> {
    let entry = listed.entry();
    if let Ok(there) = rustix::fs::statat(into, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
        let same = there.st_size as u64 == entry.size
            && there.st_mtime == entry.mtime.seconds
            && there.st_mtime_nsec == u64::from(entry.mtime.nanos)
            && FileType::from_raw_mode(there.st_mode) == file_type(entry.kind);
        match conflict {
            Conflict::Abort => return Err(Error::Exists),
            Conflict::Skip => return Ok(Written::Skipped),
            Conflict::Update if same => return Ok(Written::Skipped),
            Conflict::Update | Conflict::Overwrite => {}
        }
    }
    let temporary = format!(".brackfs-{}", Uuid::new_v4());
    let made = make(reader, listed, into, &temporary, privileged)
        .and_then(|warning| name_it(into, &temporary, &entry.name, conflict).map(|()| warning));
    match made {
        Ok(warning) => Ok(Written::Made { warning }),
        Err(error) => {
            // Nothing half-written stays; if it can't be removed, the error that is reported says why.
            let _ = rustix::fs::unlinkat(into, &temporary, AtFlags::empty());
            Err(error)
        }
    }
}

/// Gives a complete file its name.
fn name_it(into: &OwnedFd, temporary: &str, name: &[u8], conflict: Conflict) -> Result<(), Error> {
    let flags = match conflict {
        Conflict::Overwrite | Conflict::Update => RenameFlags::empty(),
        Conflict::Abort | Conflict::Skip => RenameFlags::NOREPLACE,
    };
    match rustix::fs::renameat_with(into, temporary, into, name, flags) {
        // A file system that can't promise not to replace; the name was free a moment ago.
        Err(Errno::INVAL) => Ok(rustix::fs::renameat(into, temporary, into, name)?),
        Err(Errno::EXIST) => Err(Error::Exists),
        other => Ok(other?),
    }
}

fn make(
    reader: &Reader,
    listed: &Listed,
    into: &OwnedFd,
    name: &str,
    privileged: bool,
) -> Result<Option<String>, Error> {
    let entry = listed.entry();
    match (&entry.content, entry.kind) {
        (_, Kind::File) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(into, name, flags, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            let warning = content(reader, listed, &mut file)?;
            describe(&file, entry, privileged)?;
            return Ok(warning);
        }
        (Content::Target(target), _) => rustix::fs::symlinkat(target.as_slice(), into, name)?,
        (Content::Device(major, minor), kind) => {
            let device = rustix::fs::makedev(*major, *minor);
            rustix::fs::mknodat(into, name, file_type(kind), Mode::RUSR | Mode::WUSR, device)?;
        }
        (_, kind) => rustix::fs::mknodat(into, name, file_type(kind), Mode::RUSR | Mode::WUSR, 0)?,
    }
    describe_at(into, name, entry, privileged)?;
    Ok(None)
}

/// Writes a file's content; holes stay holes. All chunks are verified before they are written. A digest of the
/// whole that differs all the same is a warning: every piece of it is what was stored.
fn content(reader: &Reader, listed: &Listed, file: &mut File) -> Result<Option<String>, Error> {
    let source = FileReader::new(listed.clone());
    let mut hasher = blake3::Hasher::new();
    source.each(reader, |stretch| {
        match stretch {
            Ok(bytes) => {
                hasher.update(bytes);
                file.write_all(bytes)?;
            }
            Err(hole) => {
                let hole = i64::try_from(hole).map_err(io::Error::other)?;
                file.seek(SeekFrom::Current(hole))?;
            }
        }
        Ok::<(), Error>(())
    })?;
    // A hole at the end has no byte that would make the file so long.
    file.set_len(source.size())?;
    let right = source.digest().is_none_or(|digest| digest == Digest::from(hasher.finalize()));
    Ok((!right).then(|| "all of its chunks are right, but not its digest as a whole".to_owned()))
}

/// Sets owner, mode and times of an open file or directory.
pub(super) fn describe(file: impl AsFd, entry: &Entry, privileged: bool) -> io::Result<()> {
    if privileged {
        rustix::fs::fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    }
    // After the owner: a change of owner clears set-id bits.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode(entry, privileged)))?;
    Ok(rustix::fs::futimens(&file, &times(entry.mtime))?)
}

/// The same for what can't be opened.
fn describe_at(into: &OwnedFd, name: &str, entry: &Entry, privileged: bool) -> Result<(), Error> {
    if privileged {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(into, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    // Links have no mode of their own.
    if entry.kind != Kind::Symlink {
        rustix::fs::chmodat(into, name, Mode::from_raw_mode(mode(entry, privileged)), AtFlags::empty())?;
    }
    Ok(rustix::fs::utimensat(into, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Set-id bits are for the owner that was backed up, not for whoever restores.
fn mode(entry: &Entry, privileged: bool) -> u32 {
    match privileged || entry.kind == Kind::Directory {
        true => entry.mode,
        false => entry.mode & !0o6000,
    }
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Gives the file at `first`, below the destination, a further name.
pub(super) fn link(top: &OwnedFd, first: &Path, into: &OwnedFd, name: &[u8], conflict: Conflict) -> Result<(), Error> {
    let (folder, leaf) = (first.parent().unwrap_or(Path::new("")), first.file_name().unwrap_or(OsStr::new("")));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let folder = rustix::fs::openat2(top, folder, flags, Mode::empty(), beneath)?;
    match rustix::fs::linkat(&folder, leaf.as_bytes(), into, name, AtFlags::empty()) {
        Err(Errno::EXIST) => match conflict {
            Conflict::Abort => Err(Error::Exists),
            Conflict::Skip => Ok(()),
            Conflict::Overwrite | Conflict::Update => {
                rustix::fs::unlinkat(into, name, AtFlags::empty())?;
                Ok(rustix::fs::linkat(&folder, leaf.as_bytes(), into, name, AtFlags::empty())?)
            }
        },
        other => Ok(other?),
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}
