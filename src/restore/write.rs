//! Writing one entry, relative to an open directory.
//!
//! What is made has no name, or one that nobody can guess, until it is complete. Somebody else may be able to write
//! to the directory, so what was made is only touched through a handle, and never again by its name.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use uuid::Uuid;

use super::Conflict;
use super::describe::{Describe, FORBIDDING, Inode, inode};
use super::refusals::What;
use crate::format::entry::Content;
use crate::format::{ContentHasher, Entry, Kind};
use crate::monitor::Progress;
use crate::reader::{self, FileReader, Listed, Reader};

/// What became of an entry.
pub(super) enum Written {
    /// It is there.
    Made {
        /// What is not as it should be all the same.
        warning: Option<String>,
        inode: Inode,
    },
    /// Something was there, and was left.
    Skipped(There),
    /// The system does not let us; that is counted.
    Refused,
}

/// What has the name of an entry already.
#[derive(Debug, Clone, Copy)]
pub(super) struct There {
    /// It looks like the entry.
    pub(super) same: bool,
    /// It is a directory, which no file takes the place of.
    pub(super) directory: bool,
    pub(super) inode: Inode,
}

/// What became of a further name.
pub(super) enum Linked {
    Made,
    /// It was there already, or something else was, and was left.
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
    #[error("it is not restored: a directory has its name")]
    Directory,
    #[error("interrupted")]
    Stopped,
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Io(errno.into())
    }
}

/// What has the entry's name, if anything.
pub(super) fn there(directory: &OwnedFd, entry: &Entry) -> Option<There> {
    let there = rustix::fs::statat(directory, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = FileType::from_raw_mode(there.st_mode);
    let sized = matches!(entry.kind, Kind::File | Kind::Symlink);
    // Some file systems keep whole seconds only.
    let nanos = there.st_mtime_nsec == u64::from(entry.mtime.nanos) || there.st_mtime_nsec == 0;
    let same = kind == file_type(entry.kind)
        && (!sized || there.st_size as u64 == entry.size)
        && there.st_mtime == entry.mtime.seconds
        && nanos;
    Some(There { same, directory: kind == FileType::Directory, inode: inode(&there) })
}

/// How entries are written.
pub(super) struct Writing<'a> {
    pub(super) reader: &'a Reader,
    pub(super) conflict: Conflict,
    pub(super) describe: &'a Describe,
    pub(super) progress: &'a Progress,
    pub(super) stop: &'a AtomicBool,
}

impl Writing<'_> {
    /// Writes an entry that is no directory.
    pub(super) fn entry(&self, listed: &Listed, into: &OwnedFd) -> Result<Written, Error> {
        let entry = listed.entry();
        match (there(into, entry), self.conflict) {
            (Some(there), Conflict::Skip) => return Ok(Written::Skipped(there)),
            (Some(there), Conflict::Abort | Conflict::Update) if there.same => return Ok(Written::Skipped(there)),
            (Some(_), Conflict::Abort) => return Err(Error::Exists),
            (Some(There { directory: true, .. }), _) => return Err(Error::Directory),
            (Some(_), Conflict::Update | Conflict::Overwrite) | (None, _) => {}
        }
        let made = match entry.kind {
            Kind::File => self.file(listed, into),
            _ => self.special(listed, into),
        };
        match made {
            Ok((draft, warning)) => {
                let inode = draft.inode()?;
                draft.name(&entry.name, self.conflict)?;
                Ok(Written::Made { warning, inode })
            }
            Err(Error::Io(e))
                if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice)
                    && Errno::from_io_error(&e).is_some_and(|why| self.describe.refusals.count(What::Device, why)) =>
            {
                Ok(Written::Refused)
            }
            Err(error) => Err(error),
        }
    }

    fn file<'d>(&self, listed: &Listed, into: &'d OwnedFd) -> Result<(Draft<'d>, Option<String>), Error> {
        let draft = Draft::file(into)?;
        // How a file is stored is decided before there is anything in it.
        self.describe.set_inode_flags(&draft.fd, listed.entry().inode_flags & !FORBIDDING);
        let mut file = File::from(draft.fd.try_clone()?);
        let differs = self.content(listed, &mut file)?;
        let described = self.describe.file(&file, listed);
        Ok((draft, differs.or(described)))
    }

    fn special<'d>(&self, listed: &Listed, into: &'d OwnedFd) -> Result<(Draft<'d>, Option<String>), Error> {
        let entry = listed.entry();
        let private = Mode::RUSR | Mode::WUSR;
        let draft = Draft::special(into, file_type(entry.kind), |name| match &entry.content {
            Content::Target(target) => rustix::fs::symlinkat(target.as_slice(), into, name),
            Content::Device(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(into, name, file_type(entry.kind), private, device)
            }
            _ => rustix::fs::mknodat(into, name, file_type(entry.kind), private, 0),
        })?;
        let described = self.describe.special(&draft.fd, listed);
        Ok((draft, described))
    }

    /// Writes a file's content; holes stay holes. All chunks are verified before they are written. A digest of the
    /// whole that differs all the same is a warning: every piece of it is what was stored.
    fn content(&self, listed: &Listed, file: &mut File) -> Result<Option<String>, Error> {
        let source = FileReader::new(listed.clone());
        let mut hasher = ContentHasher::default();
        source.each(self.reader, |stretch| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            match stretch {
                Ok(bytes) => {
                    hasher.data(bytes);
                    file.write_all(bytes)?;
                    self.progress.bytes(bytes.len() as u64);
                }
                Err(hole) => {
                    hasher.hole(hole);
                    self.progress.bytes(hole);
                    let hole = i64::try_from(hole).map_err(io::Error::other)?;
                    file.seek(SeekFrom::Current(hole))?;
                }
            }
            Ok(())
        })?;
        // A hole at the end has no byte that would make the file so long.
        file.set_len(source.size())?;
        let right = source.digest().is_none_or(|digest| digest == hasher.finish());
        Ok((!right).then(|| "all of its chunks are right, but not its digest as a whole".to_owned()))
    }

    /// Gives the file `first` in `folder` a further name.
    pub(super) fn link(
        &self,
        (folder, first): (&OwnedFd, &[u8]),
        into: &OwnedFd,
        entry: &Entry,
    ) -> Result<Linked, Error> {
        let link = |name: &[u8]| rustix::fs::linkat(folder, first, into, name, AtFlags::empty());
        match link(&entry.name) {
            Err(Errno::EXIST) => {}
            other => return Ok(other.map(|()| Linked::Made)?),
        }
        let Some(there) = there(into, entry) else { return Ok(link(&entry.name).map(|()| Linked::Made)?) };
        let same_file = || {
            let first = rustix::fs::statat(folder, first, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok::<_, Errno>(inode(&first) == there.inode)
        };
        match self.conflict {
            Conflict::Skip => return Ok(Linked::There),
            Conflict::Abort | Conflict::Update if there.same => return Ok(Linked::There),
            _ if same_file()? => return Ok(Linked::There),
            Conflict::Abort => return Err(Error::Exists),
            Conflict::Overwrite | Conflict::Update if there.directory => return Err(Error::Directory),
            Conflict::Overwrite | Conflict::Update => {}
        }
        let temporary = temporary_name();
        link(temporary.as_bytes())?;
        rustix::fs::renameat(into, &temporary, into, entry.name.as_slice()).inspect_err(|_| {
            // The error that is reported says why it may have stayed.
            let _ = rustix::fs::unlinkat(into, &temporary, AtFlags::empty());
        })?;
        Ok(Linked::Made)
    }
}

/// A name that nothing has, and that nobody can guess.
fn temporary_name() -> String {
    format!(".brackfs-{}", Uuid::new_v4().simple())
}

/// Something that is being made, and does not have its name yet. Dropped, it is gone.
struct Draft<'d> {
    into: &'d OwnedFd,
    fd: OwnedFd,
    temporary: Option<String>,
}

impl<'d> Draft<'d> {
    /// A new file: without any name, where the file system can do that.
    fn file(into: &'d OwnedFd) -> Result<Self, Errno> {
        let (write, private) = (OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        match rustix::fs::openat(into, c".", write | OFlags::TMPFILE, private) {
            Ok(fd) => Ok(Draft { into, fd, temporary: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let name = temporary_name();
                let flags = write | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let fd = rustix::fs::openat(into, &name, flags, private)?;
                Ok(Draft { into, fd, temporary: Some(name) })
            }
            Err(e) => Err(e),
        }
    }

    /// Anything else, which `make` makes under a name that it is given.
    fn special(into: &'d OwnedFd, kind: FileType, make: impl FnOnce(&str) -> Result<(), Errno>) -> Result<Self, Error> {
        let name = temporary_name();
        make(&name)?;
        let fd = rustix::fs::openat(into, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        // Between the two calls somebody else could have put something of another's there.
        let ours = FileType::from_raw_mode(stat.st_mode) == kind
            && stat.st_nlink == 1
            && stat.st_uid == rustix::process::geteuid().as_raw();
        let draft = Draft { into, fd, temporary: ours.then_some(name) };
        match ours {
            true => Ok(draft),
            false => Err(io::Error::other("something else took its place while it was made").into()),
        }
    }

    fn inode(&self) -> Result<Inode, Errno> {
        rustix::fs::fstat(&self.fd).map(|stat: Stat| inode(&stat))
    }

    /// Gives it its name, now that it is complete.
    fn name(mut self, name: &[u8], conflict: Conflict) -> Result<(), Error> {
        let replace = matches!(conflict, Conflict::Overwrite | Conflict::Update);
        if self.temporary.is_none() {
            let itself = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
            let link = |name: &[u8]| rustix::fs::linkat(CWD, &itself, self.into, name, AtFlags::SYMLINK_FOLLOW);
            match link(name) {
                Err(Errno::EXIST) if replace => {
                    // Only a rename takes the place of something without a gap.
                    let temporary = temporary_name();
                    link(temporary.as_bytes())?;
                    self.temporary = Some(temporary);
                }
                Err(Errno::EXIST) => return Err(Error::Exists),
                other => return Ok(other?),
            }
        }
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = match rustix::fs::renameat_with(self.into, temporary, self.into, name, flags) {
            // A file system that can't promise not to replace; the name was free a moment ago.
            Err(Errno::INVAL) => rustix::fs::renameat(self.into, temporary, self.into, name),
            other => other,
        };
        match renamed {
            Err(Errno::EXIST) => Err(Error::Exists),
            Err(Errno::ISDIR) => Err(Error::Directory),
            Err(e) => Err(e.into()),
            Ok(()) => {
                self.temporary = None;
                Ok(())
            }
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            // If it can't be removed, the error that led here is the one to report.
            let _ = rustix::fs::unlinkat(self.into, name, AtFlags::empty());
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
