//! Writing one entry, relative to an open directory.
//!
//! What is made has no name, or one that nobody can guess, until it is complete. Somebody else may be able to write
//! to the directory, so what was made is only touched through a handle, and never again by its name.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::Conflict;
use super::draft::Draft;
use super::metadata::{Describe, FORBIDDING, Inode, inode};
use super::opened::{Clash, Opened};
use super::refusals::What;
use super::same::{self, There, file_type};
use super::temporary;
use crate::format::entry::Content;
use crate::format::{ContentHasher, Kind};
use crate::monitor::Progress;
use crate::reader::{self, EntryHandle, FileReader, Reader};

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
    /// The system does not let us, or it would be a device that its mount ignored; that is counted.
    Refused,
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
    #[error("cannot write it: {}", said(.0))]
    Io(#[from] io::Error),
    #[error("it is there already")]
    Exists,
    #[error("it is not restored: {0}")]
    Clash(Clash),
    #[error("it is not restored: a directory has its name")]
    Directory,
    #[error("interrupted")]
    Stopped,
}

/// An error of the system in words.
fn said(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::FileTooLarge => {
            "it is larger than the file system, or the limit of file sizes here (ulimit -f), allows".to_owned()
        }
        _ => error.to_string(),
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Io(errno.into())
    }
}

/// How entries are written.
pub(super) struct Writing<'a> {
    pub(super) reader: &'a Reader,
    pub(super) conflict: Conflict,
    pub(super) describe: &'a Describe,
    pub(super) progress: &'a Progress,
    pub(super) stop: &'a AtomicBool,
}

/// Where an entry goes.
pub(super) struct At<'a> {
    pub(super) opened: &'a Opened,
    /// Whether what has the entry's name belongs to another entry.
    pub(super) clash: &'a dyn Fn(Inode) -> Option<Clash>,
}

impl Writing<'_> {
    /// Writes an entry that is no directory.
    pub(super) fn entry(&self, listed: &EntryHandle, at: &At<'_>) -> Result<Written, Error> {
        let there = self.look(at, listed)?;
        match self.entry_unless(there, listed, at) {
            // Something got its name meanwhile: another entry, or a file of somebody else.
            Err(Error::Exists) if there.is_none() => self.entry_unless(self.look(at, listed)?, listed, at),
            other => other,
        }
    }

    fn entry_unless(&self, there: Option<There>, listed: &EntryHandle, at: &At<'_>) -> Result<Written, Error> {
        let entry = listed.entry();
        match (there, self.conflict) {
            (Some(there), Conflict::Skip) => return Ok(Written::Skipped(there)),
            (Some(there), Conflict::Abort | Conflict::Update) if there.same => return Ok(Written::Skipped(there)),
            (Some(_), Conflict::Abort) => return Err(Error::Exists),
            (Some(There { directory: true, .. }), _) => return Err(Error::Directory),
            (Some(_), Conflict::Update | Conflict::Overwrite) | (None, _) => {}
        }
        let is_device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
        let left_out = self.describe.is_left_out(entry);
        if left_out {
            self.describe.count_left_out();
        }
        if left_out && is_device {
            return Ok(Written::Refused);
        }
        let into = &*at.opened.fd;
        let made = match entry.kind {
            Kind::File => self.file(listed, into),
            _ => self.special(listed, into),
        };
        match made {
            Ok((draft, warning)) => {
                let inode = draft.inode()?;
                if let Some(there) = there {
                    at.opened.replaces(there.inode, inode);
                }
                draft.name(&entry.name, there.is_some())?;
                Ok(Written::Made { warning, inode })
            }
            Err(Error::Io(e))
                if is_device
                    && Errno::from_io_error(&e).is_some_and(|why| self.describe.refusals.count(What::Device, why)) =>
            {
                Ok(Written::Refused)
            }
            Err(error) => Err(error),
        }
    }

    fn file<'d>(&self, listed: &EntryHandle, into: &'d OwnedFd) -> Result<(Draft<'d>, Option<String>), Error> {
        let draft = Draft::file(into)?;
        // How a file is stored is decided before there is anything in it.
        self.describe.set_inode_flags(&draft.fd, listed.entry().inode_flags & !FORBIDDING);
        let mut file = File::from(draft.fd.try_clone()?);
        let differs = self.content(listed, &mut file)?;
        let described = self.describe.file(&file, listed);
        Ok((draft, differs.or(described)))
    }

    fn special<'d>(&self, listed: &EntryHandle, into: &'d OwnedFd) -> Result<(Draft<'d>, Option<String>), Error> {
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
    fn content(&self, listed: &EntryHandle, file: &mut File) -> Result<Option<String>, Error> {
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
        at: &At<'_>,
        listed: &EntryHandle,
    ) -> Result<Linked, Error> {
        let entry = listed.entry();
        let into = &*at.opened.fd;
        let link = |name: &[u8]| rustix::fs::linkat(folder, first, into, name, AtFlags::empty());
        match link(&entry.name) {
            Err(Errno::EXIST) => {}
            other => return Ok(other.map(|()| Linked::Made)?),
        }
        let Some(there) = self.look(at, listed)? else { return Ok(link(&entry.name).map(|()| Linked::Made)?) };
        let first_inode = || rustix::fs::statat(folder, first, AtFlags::SYMLINK_NOFOLLOW).map(|first| inode(&first));
        match self.conflict {
            Conflict::Skip => return Ok(Linked::There),
            Conflict::Abort | Conflict::Update if there.same => return Ok(Linked::There),
            _ if first_inode()? == there.inode => return Ok(Linked::There),
            Conflict::Abort => return Err(Error::Exists),
            Conflict::Overwrite | Conflict::Update if there.directory => return Err(Error::Directory),
            Conflict::Overwrite | Conflict::Update => {}
        }
        let temporary = temporary::name();
        link(temporary.as_bytes())?;
        at.opened.replaces(there.inode, first_inode()?);
        rustix::fs::renameat(into, &temporary, into, entry.name.as_slice()).inspect_err(|_| {
            // The error that is reported says why it may have stayed.
            let _ = rustix::fs::unlinkat(into, &temporary, AtFlags::empty());
        })?;
        Ok(Linked::Made)
    }

    /// What has an entry's name, if anything; an error if it belongs to another entry.
    fn look(&self, at: &At<'_>, listed: &EntryHandle) -> Result<Option<There>, Error> {
        let Some(there) = same::there(&at.opened.fd, listed.entry()) else { return Ok(None) };
        if let Some(clash) = (at.clash)(there.inode) {
            return Err(Error::Clash(clash));
        }
        match self.conflict {
            Conflict::Abort | Conflict::Update => Ok(Some(there.look_closer(&at.opened.fd, listed, self.reader))),
            Conflict::Skip | Conflict::Overwrite => Ok(Some(there)),
        }
    }
}
