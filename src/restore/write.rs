//! Writing one entry, relative to an open directory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Conflict;
use super::describe::{Describe, FORBIDDING};
use super::refusals::What;
use crate::format::entry::Content;
use crate::format::{Digest, Entry, Kind};
use crate::reader::{self, FileReader, Listed, Reader};

/// What became of an entry.
pub(super) enum Written {
    /// It is there.
    Made {
        /// What is not as it should be all the same.
        warning: Option<String>,
    },
    /// Something was there, and was left.
    Skipped {
        /// It looks like the entry.
        same: bool,
    },
    /// The system does not let us; that is counted.
    Refused,
}

/// What became of a further name.
pub(super) enum Linked {
    Made,
    /// It was there already.
    There,
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

/// Whether something has the entry's name, and if so, whether it looks like the entry.
pub(super) fn there(directory: &OwnedFd, entry: &Entry) -> Option<bool> {
    let there = rustix::fs::statat(directory, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let sized = matches!(entry.kind, Kind::File | Kind::Symlink);
    Some(
        FileType::from_raw_mode(there.st_mode) == file_type(entry.kind)
            && (!sized || there.st_size as u64 == entry.size)
            && there.st_mtime == entry.mtime.seconds
            && there.st_mtime_nsec == u64::from(entry.mtime.nanos),
    )
}

/// Writes an entry that is no directory.
pub(super) fn entry(
    reader: &Reader,
    listed: &Listed,
    into: &OwnedFd,
    conflict: Conflict,
    describe: &Describe,
) -> Result<Written, Error> {
    let entry = listed.entry();
    match (there(into, entry), conflict) {
        (Some(same), Conflict::Skip) => return Ok(Written::Skipped { same }),
        (Some(true), Conflict::Abort | Conflict::Update) => return Ok(Written::Skipped { same: true }),
        (Some(false), Conflict::Abort) => return Err(Error::Exists),
        (Some(false), Conflict::Update) | (Some(_), Conflict::Overwrite) | (None, _) => {}
    }
    let temporary = temporary_name(&entry.name);
    let made = make(reader, listed, into, &temporary, describe)
        .and_then(|warning| name_it(into, &temporary, &entry.name, conflict).map(|()| warning));
    match made {
        Ok(warning) => Ok(Written::Made { warning }),
        Err(Error::Io(e))
            if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice)
                && Errno::from_io_error(&e).is_some_and(|why| describe.refusals.count(What::Device, why)) =>
        {
            Ok(Written::Refused)
        }
        Err(error) => {
            // Nothing half-written stays; if it can't be removed, the error that is reported says why.
            let _ = rustix::fs::unlinkat(into, &temporary, AtFlags::empty());
            Err(error)
        }
    }
}

/// The name of an entry until it is complete: always the same, so that what a killed run left is found.
fn temporary_name(name: &[u8]) -> String {
    let digest = Digest::of(name).to_string();
    format!(".brackfs-{}", digest.get(..16).unwrap_or(&digest))
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
    describe: &Describe,
) -> Result<Option<String>, Error> {
    let entry = listed.entry();
    let private = Mode::RUSR | Mode::WUSR;
    match (&entry.content, entry.kind) {
        (_, Kind::File) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = afresh(into, name, || rustix::fs::openat(into, name, flags, private))?;
            // How a file is stored is decided before there is anything in it.
            describe.set_inode_flags(&file, entry.inode_flags & !FORBIDDING);
            let mut file = File::from(file);
            let warning = content(reader, listed, &mut file)?;
            describe.file(&file, listed)?;
            return Ok(warning);
        }
        (Content::Target(target), _) => {
            afresh(into, name, || rustix::fs::symlinkat(target.as_slice(), into, name))?;
        }
        (Content::Device(major, minor), kind) => {
            let device = rustix::fs::makedev(*major, *minor);
            afresh(into, name, || rustix::fs::mknodat(into, name, file_type(kind), private, device))?;
        }
        (_, kind) => afresh(into, name, || rustix::fs::mknodat(into, name, file_type(kind), private, 0))?,
    }
    describe.child(into, name, listed)?;
    Ok(None)
}

/// Makes something under a temporary name, in the place of what a killed run left there.
fn afresh<T>(into: &OwnedFd, name: &str, make: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(into, name, AtFlags::empty())?;
            make()
        }
        other => other,
    }
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

/// Gives the file `first` in `folder` a further name. Replaces only a file that is another one.
pub(super) fn link(
    (folder, first): (&OwnedFd, &[u8]),
    into: &OwnedFd,
    name: &[u8],
    conflict: Conflict,
) -> Result<Linked, Error> {
    let linked = || rustix::fs::linkat(folder, first, into, name, AtFlags::empty());
    match linked() {
        Err(Errno::EXIST) => {}
        other => return Ok(other.map(|()| Linked::Made)?),
    }
    let inode = |directory: &OwnedFd, name: &[u8]| {
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
    };
    match conflict {
        _ if inode(folder, first)? == inode(into, name)? => Ok(Linked::There),
        Conflict::Abort => Err(Error::Exists),
        Conflict::Skip => Ok(Linked::There),
        Conflict::Overwrite | Conflict::Update => {
            rustix::fs::unlinkat(into, name, AtFlags::empty())?;
            Ok(linked().map(|()| Linked::Made)?)
        }
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
