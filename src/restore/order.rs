//! The order of the packs.
//!
//! Small files share blocks, and each backup puts those that had changed into blocks of its own. Neighbours in a
//! directory so come from as many blocks as there were backups, and in the order of the tree each block would be decoded
//! again and again, unless all of them stay in memory. So entries wait until there are many, and are handed out in the order in
//! which their content lies in packs.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::links::Links;
use super::{Error, Job};

/// Entries that are handed out before workers have time for them, at most.
const AHEAD: usize = 64;
/// Entries that wait at most.
const ENTRIES: usize = 8192;
/// Directories that are held open for them at most, but for those that the walk is in.
const FOLDERS: usize = 512;
/// Bytes of decoded nodes, and of paths, that are held for them at most.
const BYTES: usize = 16 << 20;

/// Entries that wait to be handed out. What still waits when this is dropped is not handed out.
pub(super) struct Ordered<'j> {
    /// Takes what is handed out.
    take: &'j dyn Fn(Job) -> Result<(), Error>,
    links: &'j Links,
    waiting: Vec<Job>,
    /// Further names of files whose first names wait, or are being written.
    later: Vec<Job>,
    most_folders: usize,
    folders: usize,
    bytes: usize,
}

impl<'j> Ordered<'j> {
    pub(super) fn new(take: &'j dyn Fn(Job) -> Result<(), Error>, links: &'j Links) -> Self {
        let most_folders = most_folders();
        Ordered { take, links, waiting: Vec::new(), later: Vec::new(), most_folders, folders: 0, bytes: 0 }
    }

    /// Adds an entry. If there are enough, all are handed out.
    pub(super) fn add(&mut self, mut job: Job) -> Result<(), Error> {
        let is_ready = self.links.assign(&mut job)?;
        let list = if is_ready { &mut self.waiting } else { &mut self.later };
        let last = list.last();
        // Of those that lead to it the ones that the last one's path has, too, are counted.
        let shared = last.map_or(0, |last| last.path.iter().zip(&job.path).take_while(|(a, b)| a == b).count());
        if last.is_none_or(|last| !Arc::ptr_eq(&last.folder, &job.folder)) {
            self.folders += job.path.iter().count().saturating_sub(1 + shared).max(1);
        }
        if last.is_none_or(|last| !last.listed.shares_node(&job.listed)) {
            self.bytes += job.listed.node_bytes();
        }
        self.bytes += job.path.as_os_str().len();
        list.push(job);
        let entries = self.waiting.len() + self.later.len();
        match entries >= ENTRIES || self.folders >= self.most_folders || self.bytes >= BYTES {
            true => self.hand_out(),
            false => Ok(()),
        }
    }

    /// Hands out all that wait.
    pub(super) fn hand_out(&mut self) -> Result<(), Error> {
        (self.folders, self.bytes) = (0, 0);
        // Of one block, in the order of the tree.
        self.waiting.sort_by_cached_key(|job| job.listed.first_block());
        self.waiting.drain(..).try_for_each(self.take)?;
        self.later.drain(..).try_for_each(|mut job| {
            self.links.assign_in_time(&mut job)?;
            (self.take)(job)
        })
    }
}

/// How many directories entries that wait may hold open: a quarter of the files that may be open, at most.
fn most_folders() -> usize {
    FOLDERS.min(open_files() / 4).max(1)
}

/// How many entries may be handed out before workers have time for them. Each can hold a directory open, too.
pub(super) fn ahead() -> usize {
    AHEAD.min(open_files() / 8).max(1)
}

/// How many files may be open.
fn open_files() -> usize {
    getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}
