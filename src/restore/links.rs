//! Files of several names: the first name gets the content, the others become links to it.
//!
//! What is remembered is a path for each such file, until as many of its names were seen as it had.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::folder::Folder;
use super::{Identity, Job, content_of, describe};
use crate::format::Entry;

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
    /// Files with inode flags that forbid further links.
    forbidding: Mutex<Vec<(PathBuf, u32)>>,
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
    /// The first name is being written; these wait for it.
    Writing(Vec<Job>),
    /// This name has the content.
    There(PathBuf),
}

impl Links {
    fn files(&self) -> MutexGuard<'_, HashMap<u64, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a job its role, and the job back if it can be done now. Otherwise it waits here for the first name
    /// of its file.
    pub(super) fn assign(&self, mut job: Job) -> Option<Job> {
        let Some(link) = job.listed.entry().link else { return Some(job) };
        let content = content_of(&job.listed);
        let mut files = self.files();
        let new = || File { content, state: State::Nowhere, left: link.count };
        let file = files.entry(link.id).or_insert_with(new);
        file.left = file.left.saturating_sub(1);
        // The file changed while its names were backed up one after the other: this one is a file of its own.
        if file.content != content {
            return Some(job);
        }
        let last = file.left == 0;
        match &mut file.state {
            State::Nowhere => {
                file.state = State::Writing(Vec::new());
                job.role = Role::First;
            }
            State::Writing(waiting) => {
                waiting.push(job);
                return None;
            }
            State::There(first) => {
                job.role = Role::Further(first.clone());
                if last {
                    files.remove(&link.id);
                }
            }
        }
        Some(job)
    }

    /// A job is done; `there`: its name has the content. Returns the jobs that waited for it.
    pub(super) fn done(&self, job: &Job, there: bool) -> Vec<Job> {
        let Some(link) = job.listed.entry().link.filter(|_| job.role == Role::First) else { return Vec::new() };
        let mut files = self.files();
        let Some(file) = files.get_mut(&link.id) else { return Vec::new() };
        let State::Writing(waiting) = &mut file.state else { return Vec::new() };
        let mut waiting = std::mem::take(waiting);
        if !there {
            // The next one is written in its place.
            let next = waiting.pop().map(|job| Job { role: Role::First, ..job });
            file.state = if next.is_some() { State::Writing(waiting) } else { State::Nowhere };
            return Vec::from_iter(next);
        }
        file.state = State::There(job.path.clone());
        if file.left == 0 {
            files.remove(&link.id);
        }
        waiting.iter_mut().for_each(|waiting| waiting.role = Role::Further(job.path.clone()));
        waiting
    }

    /// Remembers inode flags of a file that forbid to change it, or to link it.
    pub(super) fn forbid_later(&self, path: &Path, entry: &Entry) {
        let flags = entry.inode_flags & describe::FORBIDDING;
        if flags != 0 {
            self.forbidding.lock().unwrap_or_else(PoisonError::into_inner).push((path.to_owned(), flags));
        }
    }

    /// All names are there.
    pub(super) fn finish(&self, top: &Folder, describe: &describe::Describe, mut problem: impl FnMut(&Path, &str)) {
        let forbidding = std::mem::take(&mut *self.forbidding.lock().unwrap_or_else(PoisonError::into_inner));
        for (path, flags) in forbidding {
            match top.open_beneath(&path) {
                Ok((folder, name)) => describe.forbid(&folder, &name, flags),
                Err(e) => problem(&path, &format!("cannot set its inode flags: {e}")),
            }
        }
    }
}
