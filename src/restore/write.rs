//! Writes one entry, relative to an open directory.
//!
//! An incomplete file has no name or an unpredictable one. Since other users may have write permission in the
//! directory, a created file is only accessed through its handle, never again by its name.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::draft::Draft;
use super::entry_error::EntryError;
use super::existing::{self, ExistingEntry, file_type};
use super::metadata::{FORBIDDING, FileId, MetadataWriter, PRIVATE, first_mode, inode};
use super::open_output::{Clash, OpenOutput};
use super::options::Conflict;
use super::refusals::Property;
use super::temporary;
use crate::archive::{Archive, EntryHandle, FileData};
use crate::format::{ContentHasher, Kind};
use crate::monitor::Progress;

/// The result of writing an entry.
pub(super) enum Written {
    Made {
        /// A property that is not restored.
        warning: Option<String>,
        /// Its inode, if it still gets restrictive inode flags.
        forbidden: Option<FileId>,
    },
    /// An existing file was kept.
    Skipped(ExistingEntry),
    /// A device that the system refuses to create, or whose mount ignored devices. It has been counted.
    Refused,
}

/// The result of creating a hard link.
pub(super) enum Linked {
    Made,
    /// The link or another file existed and was kept.
    There,
}

/// Writes entries.
pub(super) struct EntryWriter<'a> {
    pub(super) archive: &'a dyn Archive,
    pub(super) conflict: Conflict,
    pub(super) metadata: &'a MetadataWriter,
    pub(super) progress: &'a Progress,
    pub(super) stop: &'a AtomicBool,
}

/// The destination of an entry.
pub(super) struct Destination<'a> {
    pub(super) opened: &'a OpenOutput,
    /// Whether an existing file with the entry's name belongs to another entry.
    pub(super) clash: &'a dyn Fn(FileId) -> Option<Clash>,
}

impl EntryWriter<'_> {
    /// Writes an entry that is not a directory.
    pub(super) fn entry(&self, listed: &EntryHandle, at: &Destination<'_>) -> Result<Written, EntryError> {
        // In a new directory, a name is seldom taken, and then naming the complete file fails.
        let there = if at.opened.is_new() { None } else { self.look(at, listed)? };
        match self.entry_unless(there, listed, at) {
            // A race: the name was taken by another entry or another process.
            Err(EntryError::Exists) if there.is_none() => self.entry_unless(self.look(at, listed)?, listed, at),
            other => other,
        }
    }

    fn entry_unless(
        &self,
        there: Option<ExistingEntry>,
        listed: &EntryHandle,
        at: &Destination<'_>,
    ) -> Result<Written, EntryError> {
        let entry = listed.entry();
        match (there, self.conflict) {
            (Some(there), Conflict::Skip) => return Ok(Written::Skipped(there)),
            (Some(there), Conflict::Abort | Conflict::Update) if there.same => return Ok(Written::Skipped(there)),
            (Some(_), Conflict::Abort) => return Err(EntryError::Exists),
            (Some(ExistingEntry { directory: true, .. }), _) => return Err(EntryError::Directory),
            (Some(_), Conflict::Update | Conflict::Overwrite) | (None, _) => {}
        }
        let is_device = matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice);
        let left_out = self.metadata.is_left_out(&entry);
        if left_out {
            self.metadata.count_left_out();
        }
        if left_out && is_device {
            return Ok(Written::Refused);
        }
        let into = &*at.opened.fd;
        let made = match entry.kind {
            Kind::File => self.file(listed, at.opened),
            _ => self.special(listed, into),
        };
        match made {
            Ok((draft, warning)) => {
                if let Some(there) = there {
                    at.opened.replaces(there.inode, draft.inode()?);
                }
                let forbidden = if entry.inode_flags & FORBIDDING == 0 { None } else { Some(draft.inode()?) };
                draft.name(entry.name, there.is_some())?;
                Ok(Written::Made { warning, forbidden })
            }
            Err(EntryError::Io(e))
                if is_device
                    && Errno::from_io_error(&e)
                        .is_some_and(|why| self.metadata.refusals.count(Property::Device, why)) =>
            {
                Ok(Written::Refused)
            }
            Err(error) => Err(error),
        }
    }

    fn file<'d>(&self, listed: &EntryHandle, into: &'d OpenOutput) -> Result<(Draft<'d>, Option<String>), EntryError> {
        let draft = Draft::file(&into.fd, first_mode(&listed.entry()))?;
        // Set before the first write: flags such as compression or no-copy-on-write apply to new data only.
        self.metadata.set_inode_flags(&draft.fd, listed.entry().inode_flags & !FORBIDDING);
        let differs = self.content(listed, &draft.fd)?;
        let described = self.metadata.file(&draft.fd, listed, &into.inherited(&draft.fd));
        Ok((draft, differs.or(described)))
    }

    fn special<'d>(&self, listed: &EntryHandle, into: &'d OwnedFd) -> Result<(Draft<'d>, Option<String>), EntryError> {
        let entry = listed.entry();
        let draft = Draft::special(into, file_type(entry.kind), |name| match entry.kind {
            Kind::Symlink => rustix::fs::symlinkat(entry.target, into, name),
            kind => {
                let (major, minor) = entry.device;
                rustix::fs::mknodat(into, name, file_type(kind), PRIVATE, rustix::fs::makedev(major, minor))
            }
        })?;
        let described = self.metadata.special(&draft.fd, listed);
        Ok((draft, described))
    }

    /// Writes a file's content and preserves holes. Each chunk is verified before it is written. A wrong digest of the
    /// whole file is only a warning, since every chunk is what was stored.
    fn content(&self, listed: &EntryHandle, mut file: &File) -> Result<Option<String>, EntryError> {
        let (mut at, mut end) = (0, 0);
        let source = self.archive.content(listed)?;
        let mut unverified = source.unverified_digest().map(|digest| (digest, ContentHasher::default()));
        source.each(|data| {
            if self.stop.load(Ordering::Relaxed) {
                return Err(EntryError::Stopped);
            }
            if let Some((_, hasher)) = &mut unverified {
                match data {
                    FileData::Bytes(bytes) => hasher.data(bytes),
                    FileData::Hole(hole) => hasher.hole(hole),
                }
            }
            match data {
                FileData::Bytes(bytes) => {
                    file.write_all(bytes)?;
                    end = at + data.length();
                }
                FileData::Hole(hole) => {
                    let hole = i64::try_from(hole).map_err(io::Error::other)?;
                    file.seek(SeekFrom::Current(hole))?;
                }
            }
            at += data.length();
            self.progress.bytes(data.length());
            Ok(())
        })?;
        if end != source.size() {
            // It ends with a hole.
            file.set_len(source.size())?;
        }
        let right = unverified.is_none_or(|(digest, hasher)| digest == hasher.finish());
        Ok((!right).then(|| "the digest of the whole file is wrong, although all its chunks are valid".to_owned()))
    }

    /// Creates a hard link to the file `first` in `folder`.
    pub(super) fn link(
        &self,
        (folder, first): (&OwnedFd, &[u8]),
        at: &Destination<'_>,
        listed: &EntryHandle,
    ) -> Result<Linked, EntryError> {
        let entry = listed.entry();
        let into = &*at.opened.fd;
        let link = |name: &[u8]| rustix::fs::linkat(folder, first, into, name, AtFlags::empty());
        match link(entry.name) {
            Err(Errno::EXIST) => {}
            other => return Ok(other.map(|()| Linked::Made)?),
        }
        let Some(there) = self.look(at, listed)? else { return Ok(link(entry.name).map(|()| Linked::Made)?) };
        let first_inode = inode(&rustix::fs::statat(folder, first, AtFlags::SYMLINK_NOFOLLOW)?);
        match self.conflict {
            Conflict::Skip => return Ok(Linked::There),
            Conflict::Abort | Conflict::Update if there.same => return Ok(Linked::There),
            _ if first_inode == there.inode => return Ok(Linked::There),
            Conflict::Abort => return Err(EntryError::Exists),
            Conflict::Overwrite | Conflict::Update if there.directory => return Err(EntryError::Directory),
            Conflict::Overwrite | Conflict::Update => {}
        }
        let temporary = temporary::name();
        link(temporary.as_bytes())?;
        at.opened.replaces(there.inode, first_inode);
        rustix::fs::renameat(into, &temporary, into, entry.name).inspect_err(|_| {
            // Best effort: the next restore removes leftovers.
            let _ = rustix::fs::unlinkat(into, &temporary, AtFlags::empty());
        })?;
        Ok(Linked::Made)
    }

    /// Finds the existing file with an entry's name, if any. Fails if it belongs to another entry.
    fn look(&self, at: &Destination<'_>, listed: &EntryHandle) -> Result<Option<ExistingEntry>, EntryError> {
        let Some(there) = existing::find(&at.opened.fd, &listed.entry()) else { return Ok(None) };
        if let Some(clash) = (at.clash)(there.inode) {
            return Err(EntryError::Clash(clash));
        }
        match self.conflict {
            Conflict::Abort | Conflict::Update => Ok(Some(there.look_closer(&at.opened.fd, listed, self.archive))),
            Conflict::Skip | Conflict::Overwrite => Ok(Some(there)),
        }
    }
}
