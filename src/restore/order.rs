//! A queue that sorts entries by the position of their content in packs.
//!
//! Small files share blocks, and each backup stores changed files in new blocks. So the files of a directory may be
//! spread over as many blocks as there were backups. In tree order, each block would be decoded many times unless all
//! blocks fit in memory. The queue therefore collects many entries and passes them on in pack order.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

use super::links::HardLinks;
use super::{Error, RestoreJob};

/// The maximum number of entries in the channel to the workers.
const AHEAD: usize = 64;
/// The maximum number of queued entries.
const ENTRIES: usize = 8192;
/// The maximum number of directories held open by queued entries, in addition to those of the walk.
const FOLDERS: usize = 512;
/// The maximum number of bytes of decoded nodes and paths held by queued entries.
const BYTES: usize = 16 << 20;

/// A queue of entries. On drop, remaining entries are discarded.
pub(super) struct JobQueue<'j> {
    /// Receives the sorted entries.
    take: &'j dyn Fn(RestoreJob) -> Result<(), Error>,
    /// How many blocks with content are prefetched.
    blocks_ahead: usize,
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
        blocks_ahead: usize,
        links: &'j HardLinks,
    ) -> Self {
        let most_folders = most_folders();
        let (waiting, later) = (Vec::new(), Vec::new());
        JobQueue { take, blocks_ahead, links, waiting, later, most_folders, folders: 0, bytes: 0 }
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
        set_read_next(&mut self.waiting, self.blocks_ahead);
        self.waiting.drain(..).try_for_each(self.take)?;
        self.later.drain(..).try_for_each(|mut job| {
            self.links.assign_blocking(&mut job)?;
            (self.take)(job)
        })
    }
}

/// Sets [`RestoreJob::read_next`]: the first file of each block names the one of the block `ahead` blocks later, and the very
/// first file those of the blocks before that. So workers announce each block once, and at most `ahead` blocks before it is
/// read. Files that exist do not count: most are left as they are.
fn set_read_next(sorted: &mut [RestoreJob], ahead: usize) {
    if ahead == 0 {
        return;
    }
    let (mut firsts, mut last) = (Vec::new(), None);
    for (at, job) in sorted.iter().enumerate() {
        let position = job.listed.content_position();
        if position.is_some() && position != last && !job.had {
            firsts.push((at, job.listed.clone()));
            last = position;
        }
    }
    let mut announced = 0;
    for (block, (at, _)) in firsts.iter().enumerate() {
        let end = (block + ahead + 1).min(firsts.len());
        let next = firsts.get(announced.max(1)..end).unwrap_or_default();
        if let Some(job) = sorted.get_mut(*at) {
            job.read_next = next.iter().map(|(_, file)| file.clone()).collect();
        }
        announced = end;
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
