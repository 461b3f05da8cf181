//! Files of several names: the first name gets the content, the others become links to it.
//!
//! What is remembered is a path for each such file, until as many of its names were seen as it had.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Job;
use super::describe::{Describe, FORBIDDING, Inode};
use super::folder::Folder;
use crate::format::Entry;
use crate::reader::Identity;

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
    files: Mutex<HashMap<u64, File>>,
    /// The first name of a file is written.
    written: Condvar,
    /// Files with inode flags that forbid further links.
    forbidding: Mutex<Vec<(PathBuf, Inode, u32)>>,
}

struct File {
    content: Identity,
    state: State,
    /// Names that are still to come.
    left: u32,
}

enum State {
    /// No name has the content.
    Nowhere,
    /// The first name is being written.
    Writing,
    /// This name has the content.
    There(PathBuf),
}

impl Links {
    fn files(&self) -> MutexGuard<'_, HashMap<u64, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a job its role. False: not before the first name of its file is written.
    pub(super) fn assign(&self, job: &mut Job) -> bool {
        assign(&mut self.files(), job)
    }

    /// Gives a job its role, and waits while the first name of its file is being written.
    pub(super) fn assign_in_time(&self, job: &mut Job) {
        let mut files = self.files();
        while !assign(&mut files, job) {
            files = self.written.wait(files).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A job is done; `there`: its name has the content.
    pub(super) fn done(&self, job: &Job, there: bool) {
        let Some(link) = job.listed.entry().link.filter(|_| job.role == Role::First) else { return };
        let mut files = self.files();
        match files.get_mut(&link.id) {
            // No further name is to come.
            Some(File { left: 0, .. }) => drop(files.remove(&link.id)),
            Some(file) => file.state = if there { State::There(job.path.clone()) } else { State::Nowhere },
            None => {}
        }
        self.written.notify_all();
    }

    /// Remembers inode flags of a file that forbid to change it, or to link it.
    pub(super) fn forbid_later(&self, path: &Path, entry: &Entry, inode: Inode) {
        let flags = entry.inode_flags & FORBIDDING;
        if flags != 0 {
            self.forbidding.lock().unwrap_or_else(PoisonError::into_inner).push((path.to_owned(), inode, flags));
        }
    }

    /// All names are there.
    pub(super) fn finish(&self, top: &Folder, describe: &Describe, mut problem: impl FnMut(&Path, &str)) {
        let forbidding = std::mem::take(&mut *self.forbidding.lock().unwrap_or_else(PoisonError::into_inner));
        for (path, inode, flags) in forbidding {
            match top.open_beneath(&path) {
                Ok((folder, name)) => describe.forbid(&folder, &name, inode, flags),
                Err(e) => problem(&path, &format!("cannot set its inode flags: {e}")),
            }
        }
    }
}

/// Gives a job its role, unless the first name of its file is being written.
fn assign(files: &mut HashMap<u64, File>, job: &mut Job) -> bool {
    let entry = job.listed.entry();
    let Some(link) = entry.link else { return true };
    let content = job.listed.identity();
    let file = files.entry(link.id).or_insert_with(|| File { content, state: State::Nowhere, left: link.count });
    // Otherwise the file changed while its names were backed up one after the other: this one is a file of its own.
    if file.content == content {
        match &file.state {
            State::Writing => return false,
            State::Nowhere => {
                file.state = State::Writing;
                job.role = Role::First;
            }
            State::There(first) => job.role = Role::Further(first.clone()),
        }
    }
    file.left = file.left.saturating_sub(1);
    if file.left == 0 && !matches!(file.state, State::Writing) {
        files.remove(&link.id);
    }
    true
}
