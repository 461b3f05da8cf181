//! Files of several names: the first name gets the content, the others become links to it.
//!
//! A name becomes a link only if all its entry says is the same: content, owner, mode, attributes. Otherwise an id that
//! somebody chose, or that two file systems gave to two files, would give one file's owner and mode to another's content.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Job;
use super::folder::Folder;
use super::metadata::{Describe, FORBIDDING, Inode};
use crate::format::{Digest, Entry};
use crate::reader::{FirstNames, LinkLookup, SpillTable, spill};

/// What a name is among the names of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Role {
    /// The only one that matters.
    Alone,
    /// The one that gets the content.
    First,
    /// To be a link to this one.
    Further(PathBuf),
}

/// Which files have names already.
#[derive(Default)]
pub(super) struct Links {
    files: Mutex<Files>,
    /// The first name of a file is written.
    written: Condvar,
    /// Files with inode flags that forbid further links.
    forbidding: Mutex<Forbidding>,
}

#[derive(Default)]
struct Files {
    /// Files whose first names are being written, and how many names are still to come.
    writing: HashMap<u64, (Digest, u32)>,
    /// Files whose first names are there.
    there: FirstNames,
    /// Names that became files of their own.
    apart: u64,
}

#[derive(Default)]
struct Forbidding {
    count: u64,
    files: SpillTable,
}

impl Links {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a job its role. False: not before the first name of its file is written.
    pub(super) fn assign(&self, job: &mut Job) -> Result<bool, spill::Error> {
        self.files().assign(job)
    }

    /// Gives a job its role, and waits while the first name of its file is being written.
    pub(super) fn assign_in_time(&self, job: &mut Job) -> Result<(), spill::Error> {
        let mut files = self.files();
        while !files.assign(job)? {
            files = self.written.wait(files).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// A job is done; `there`: its name has the content.
    pub(super) fn done(&self, job: &Job, there: bool) -> Result<(), spill::Error> {
        let Some(link) = job.listed.entry().link.filter(|_| job.role == Role::First) else { return Ok(()) };
        let mut files = self.files();
        let added = match files.writing.remove(&link.id) {
            Some((file, left)) if there => files.there.add(link.id, file, left, job.path.as_os_str().as_bytes()),
            // The next name that comes is the first.
            _ => Ok(()),
        };
        self.written.notify_all();
        added
    }

    /// How many names became files of their own, though another name had the same id.
    pub(super) fn apart(&self) -> u64 {
        self.files().apart
    }

    /// Remembers inode flags of a file that forbid to change it, or to link it.
    pub(super) fn forbid_later(&self, path: &Path, entry: &Entry, inode: Inode) -> Result<(), spill::Error> {
        let flags = entry.inode_flags & FORBIDDING;
        if flags == 0 {
            return Ok(());
        }
        let mut forbidding = self.forbidding.lock().unwrap_or_else(PoisonError::into_inner);
        forbidding.count += 1;
        let key = forbidding.count;
        forbidding.files.put(key, encode(path, inode, flags))
    }

    /// All names are there.
    pub(super) fn finish(
        &self,
        top: &Folder,
        describe: &Describe,
        mut problem: impl FnMut(&Path, &str),
    ) -> Result<(), spill::Error> {
        let mut forbidding = self.forbidding.lock().unwrap_or_else(PoisonError::into_inner);
        forbidding.files.drain(|value| {
            let Some((path, inode, flags)) = decode(&value) else { return };
            match top.open_beneath(path) {
                Ok((folder, name)) => describe.forbid(&folder, &name, inode, flags),
                Err(e) => problem(path, &format!("cannot set its inode flags: {e}")),
            }
        })
    }
}

impl Files {
    /// Gives a job its role, unless the first name of its file is being written.
    fn assign(&mut self, job: &mut Job) -> Result<bool, spill::Error> {
        let entry = job.listed.entry();
        let Some(link) = entry.link else { return Ok(true) };
        let file = entry.file_digest();
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
                job.role = Role::First;
            }
            LinkLookup::Named(first) => job.role = Role::Further(PathBuf::from(OsString::from_vec(first))),
            LinkLookup::Other => self.apart += 1,
        }
        Ok(true)
    }
}

fn encode(path: &Path, (device, number): Inode, flags: u32) -> Vec<u8> {
    let path = path.as_os_str().as_bytes();
    [&device.to_le_bytes(), number.to_le_bytes().as_slice(), &flags.to_le_bytes(), path].concat()
}

fn decode(value: &[u8]) -> Option<(&Path, Inode, u32)> {
    let (device, rest) = value.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (flags, path) = rest.split_first_chunk()?;
    let inode = (u64::from_le_bytes(*device), u64::from_le_bytes(*number));
    Some((Path::new(OsStr::from_bytes(path)), inode, u32::from_le_bytes(*flags)))
}
