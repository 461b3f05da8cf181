//! A queue that sorts entries by the position of their content in packs.
//!
//! Small files share blocks, and each backup stores changed files in new blocks. So the files of a directory may be
//! spread over as many blocks as there were backups. In tree order, each block would be decoded many times unless all
//! blocks fit in memory. The queue therefore collects many entries and passes them on in pack order.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::links::HardLinks;
use super::{Error, RestoreJob};
use crate::archive::EntryHandle;

/// The maximum number of entries in the channel to the workers.
const AHEAD: usize = 64;
/// The maximum number of queued entries.
const ENTRIES: usize = 8192;
/// The number of blocks that are announced before they are needed.
const BLOCKS: usize = 8;
/// The maximum number of directories held open by queued entries, in addition to those of the walk.
const FOLDERS: usize = 512;
/// The maximum number of bytes of decoded nodes and paths held by queued entries.
const BYTES: usize = 16 << 20;

/// A queue of entries. On drop, remaining entries are discarded.
pub(super) struct JobQueue<'j> {
    /// Receives the sorted entries.
    take: &'j dyn Fn(RestoreJob) -> Result<(), Error>,
    /// Receives files whose content is read soon.
    prefetch: &'j dyn Fn(&EntryHandle),
    links: &'j HardLinks,
    waiting: Vec<RestoreJob>,
    /// Further names of files whose first names are queued or being written.
    later: Vec<RestoreJob>,
    most_folders: usize,
    folders: usize,
    bytes: usize,
}

impl<'j> JobQueue<'j> {
    pub(super) fn new(
        take: &'j dyn Fn(RestoreJob) -> Result<(), Error>,
        prefetch: &'j dyn Fn(&EntryHandle),
        links: &'j HardLinks,
    ) -> Self {
        let most_folders = most_folders();
        JobQueue { take, prefetch, links, waiting: Vec::new(), later: Vec::new(), most_folders, folders: 0, bytes: 0 }
    }

    /// Adds an entry. Flushes the queue when a limit is reached.
    pub(super) fn add(&mut self, mut job: RestoreJob) -> Result<(), Error> {
        let is_ready = self.links.assign(&mut job)?;
        let list = if is_ready { &mut self.waiting } else { &mut self.later };
        let last = list.last();
        // Ancestors shared with the previous entry are already counted.
        let shared = last.map_or(0, |last| last.path.iter().zip(&job.path).take_while(|(a, b)| a == b).count());
        if last.is_none_or(|last| !Arc::ptr_eq(&last.folder, &job.folder)) {
            self.folders += job.path.iter().count().saturating_sub(1 + shared).max(1);
        }
        if last.is_none_or(|last| !last.listed.shares_list(&job.listed)) {
            self.bytes += job.listed.list_bytes();
        }
        self.bytes += job.path.as_os_str().len();
        list.push(job);
        let entries = self.waiting.len() + self.later.len();
        let is_full = entries >= ENTRIES || self.folders >= self.most_folders || self.bytes >= BYTES;
        if is_full { self.flush() } else { Ok(()) }
    }

    /// Passes on all queued entries in pack order.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        (self.folders, self.bytes) = (0, 0);
        // The sort is stable: entries of the same block stay in tree order.
        self.waiting.sort_by_cached_key(|job| job.listed.content_position());
        let mut hints = BlockHints::new(&self.waiting);
        for (at, job) in self.waiting.drain(..).enumerate() {
            hints.give(at, self.prefetch);
            (self.take)(job)?;
        }
        self.later.drain(..).try_for_each(|mut job| {
            self.links.assign_blocking(&mut job)?;
            (self.take)(job)
        })
    }
}

/// Tells which content will be read soon: the first file of each of the next blocks.
struct BlockHints {
    /// The first file of each block, and its index.
    firsts: Vec<(usize, EntryHandle)>,
    given: usize,
    passed: usize,
}

impl BlockHints {
    fn new(sorted: &[RestoreJob]) -> Self {
        let (mut firsts, mut last) = (Vec::new(), None);
        for (at, job) in sorted.iter().enumerate() {
            let position = job.listed.content_position();
            if position.is_some() && position != last {
                firsts.push((at, job.listed.clone()));
            }
            last = position;
        }
        BlockHints { firsts, given: 0, passed: 0 }
    }

    /// Tells of the blocks up to [`BLOCKS`] after that of the file at this index.
    fn give(&mut self, at: usize, prefetch: &dyn Fn(&EntryHandle)) {
        while self.firsts.get(self.passed).is_some_and(|(first, _)| *first <= at) {
            self.passed += 1;
        }
        while self.given < self.passed + BLOCKS
            && let Some((_, file)) = self.firsts.get(self.given)
        {
            prefetch(file);
            self.given += 1;
        }
    }
}

/// The number of directories that queued entries may hold open: at most a quarter of the limit of open files.
fn most_folders() -> usize {
    FOLDERS.min(open_files() / 4).max(1)
}

/// The capacity of the channel to the workers. Each entry in it can hold a directory open.
pub(super) fn ahead() -> usize {
    AHEAD.min(open_files() / 8).max(1)
}

/// The process's limit of open files.
fn open_files() -> usize {
    getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}
