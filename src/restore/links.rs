//! Hard links: the first name of a file gets the content, further names become links to it.
//!
//! A name becomes a link only if content, owner, mode and attributes of its entry are equal. Otherwise a forged id, or
//! one that occurs on two file systems, would combine one file's owner and mode with the content of another.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::RestoreJob;
use super::metadata::{FORBIDDING, FileId, MetadataWriter};
use super::output_directory::OutputDirectory;
use crate::archive::{EntryRef, FirstNames, LinkLookup, SpillTable, spill};
use crate::format::Digest;

/// The role of a name among the names of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkRole {
    /// Not part of a hard link.
    Alone,
    /// The first name, which gets the content.
    First,
    /// A link to this path.
    Further(PathBuf),
}

/// Tracks the files whose first names are written.
#[derive(Default)]
pub(super) struct HardLinks {
    files: Mutex<Files>,
    /// Signals that a first name has been written, or has failed.
    written: Condvar,
    /// Files that still get restrictive inode flags, which would prevent further links.
    forbidding: Mutex<Forbidding>,
}

#[derive(Default)]
struct Files {
    /// Files whose first names are being written, with the number of further names.
    writing: HashMap<u64, (Digest, u32)>,
    /// Files whose first names are written.
    there: FirstNames,
    /// The number of names that became separate files.
    apart: u64,
}

#[derive(Default)]
struct Forbidding {
    count: u64,
    files: SpillTable,
}

impl HardLinks {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the role of a job. Returns false if the first name of its file is not written yet.
    pub(super) fn assign(&self, job: &mut RestoreJob) -> Result<bool, spill::Error> {
        self.files().assign(job)
    }

    /// Sets the role of a job. Blocks while the first name of its file is being written.
    pub(super) fn assign_blocking(&self, job: &mut RestoreJob) -> Result<(), spill::Error> {
        let mut files = self.files();
        while !files.assign(job)? {
            files = self.written.wait(files).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Records the end of a job. `there`: the content exists under its name.
    pub(super) fn finish_name(&self, job: &RestoreJob, there: bool) -> Result<(), spill::Error> {
        let Some(link) = job.listed.entry().link.filter(|_| job.role == LinkRole::First) else { return Ok(()) };
        let mut files = self.files();
        let added = match files.writing.remove(&link.id) {
            Some((file, left)) if there => files.there.add(link.id, file, left, job.path.as_os_str().as_bytes()),
            // The next name becomes the first one.
            _ => Ok(()),
        };
        self.written.notify_all();
        added
    }

    /// The number of names that became separate files, although another name has the same id.
    pub(super) fn apart(&self) -> u64 {
        self.files().apart
    }

    /// Schedules restrictive inode flags of a file, which are set after all its names exist.
    pub(super) fn forbid_later(&self, path: &Path, entry: &EntryRef<'_>, inode: FileId) -> Result<(), spill::Error> {
        let flags = entry.inode_flags & FORBIDDING;
        if flags == 0 {
            return Ok(());
        }
        let mut forbidding = self.forbidding.lock().unwrap_or_else(PoisonError::into_inner);
        forbidding.count += 1;
        let key = forbidding.count;
        forbidding.files.put(key, encode(path, inode, flags))
    }

    /// Sets the scheduled inode flags. Called after all names are written.
    pub(super) fn finish(
        &self,
        top: &OutputDirectory,
        metadata: &MetadataWriter,
        mut problem: impl FnMut(&Path, &str),
    ) -> Result<(), spill::Error> {
        let mut forbidding = self.forbidding.lock().unwrap_or_else(PoisonError::into_inner);
        forbidding.files.drain(|value| {
            let Some((path, inode, flags)) = decode(&value) else { return };
            match top.open_beneath(path) {
                Ok((folder, name)) => metadata.forbid(&folder, &name, inode, flags),
                Err(e) => problem(path, &format!("cannot set its inode flags: {e}")),
            }
        })
    }
}

impl Files {
    /// Sets the role of a job. Returns false if the first name of its file is being written.
    fn assign(&mut self, job: &mut RestoreJob) -> Result<bool, spill::Error> {
        let entry = job.listed.entry();
        let Some(link) = entry.link else { return Ok(true) };
        let file = job.listed.file_digest();
        if let Some((known, left)) = self.writing.get_mut(&link.id) {
            if *known == file {
                return Ok(false);
            }
            *left = left.saturating_sub(1);
            self.apart += 1;
            return Ok(true);
        }
        match self.there.find(link, file)? {
            LinkLookup::Nothing => {
                self.writing.insert(link.id, (file, link.count.saturating_sub(1)));
                job.role = LinkRole::First;
            }
            LinkLookup::Named(first) => job.role = LinkRole::Further(PathBuf::from(OsString::from_vec(first))),
            LinkLookup::Other => self.apart += 1,
        }
        Ok(true)
    }
}

fn encode(path: &Path, (device, number): FileId, flags: u32) -> Vec<u8> {
    let path = path.as_os_str().as_bytes();
    [&device.to_le_bytes(), number.to_le_bytes().as_slice(), &flags.to_le_bytes(), path].concat()
}

fn decode(value: &[u8]) -> Option<(&Path, FileId, u32)> {
    let (device, rest) = value.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (flags, path) = rest.split_first_chunk()?;
    let inode = (u64::from_le_bytes(*device), u64::from_le_bytes(*number));
    Some((Path::new(OsStr::from_bytes(path)), inode, u32::from_le_bytes(*flags)))
}
