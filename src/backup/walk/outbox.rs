//! The outgoing messages of a walk: events to its follower, and jobs to the readers.

use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};

use super::event::{Event, NewFile, NewFiles};
use super::stop::WalkStop;
use crate::backup::limits::{CONTENT_AHEAD, JOB_FILES};
use crate::backup::read::budget::{Budget, Loan};
use crate::backup::read::jobs::{FILE_OVERHEAD, JobFile, ReadJob};
use crate::backup::read::spill::SLOTS;
use crate::backup::read::verdict::Patience;
use crate::format::entry::Xattr;
use crate::source::{Directory, Stat};

/// Most events that are sent together.
const BATCH: usize = 32;
/// Files that are spilled wait for room: not more than have room may be in a job, or they would wait for each other.
const _: () = assert!(JOB_FILES <= SLOTS);
/// Bytes of small files in a job, unless a single one has more.
const JOB_BYTES: u64 = 128 << 10;

/// The queues of the readers.
pub(in crate::backup) struct ReaderQueues {
    pub(in crate::backup) small: Sender<ReadJob>,
    pub(in crate::backup) large: Sender<ReadJob>,
}

/// Neighbouring small files that are to be read together.
struct SmallFiles {
    directory: Arc<Directory>,
    files: Vec<NewFile>,
    jobs: Vec<JobFile>,
    bytes: u64,
}

impl SmallFiles {
    fn of(directory: Arc<Directory>) -> Self {
        SmallFiles { directory, files: Vec::new(), jobs: Vec::new(), bytes: 0 }
    }
}

/// Sends events in batches, since waking the follower for each takes longer than handling it.
pub(in crate::backup) struct Outbox {
    events: Sender<Vec<Event>>,
    batch: Vec<Event>,
    small_files: Option<SmallFiles>,
    queues: ReaderQueues,
    /// Lends memory for small files. `None` if they wait elsewhere.
    budget: Option<Budget>,
    /// Lends memory for attributes.
    attributes: Budget,
    /// Files that were sent to the readers.
    files_sent: u64,
}

impl Outbox {
    pub(in crate::backup) fn new(
        events: Sender<Vec<Event>>,
        queues: ReaderQueues,
        budget: Option<Budget>,
        attributes: Budget,
    ) -> Self {
        Outbox { events, batch: Vec::new(), small_files: None, queues, budget, attributes, files_sent: 0 }
    }

    pub(super) fn send(&mut self, event: Event) -> Result<(), WalkStop> {
        self.send_small_files()?;
        self.batch.push(event);
        if self.batch.len() >= BATCH { self.send_batch() } else { Ok(()) }
    }

    /// Sends everything that is held back.
    pub(super) fn flush(&mut self) -> Result<(), WalkStop> {
        self.send_small_files()?;
        self.send_batch()
    }

    fn send_batch(&mut self) -> Result<(), WalkStop> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        self.events.send(batch).map_err(|_| WalkStop::Gone)
    }

    /// Waits until there is room for attributes on their way to the follower, unless they are few.
    pub(super) fn lend(&mut self, xattrs: &[Xattr]) -> Result<Option<Loan>, WalkStop> {
        let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes <= FILE_OVERHEAD {
            return Ok(None);
        }
        if let Some(loan) = self.attributes.try_take(bytes) {
            return Ok(Some(loan));
        }
        // Loans are given back once the follower has the earlier events.
        self.flush()?;
        self.attributes.take(bytes).map(Some).ok_or(WalkStop::Gone)
    }

    /// Sends a file that is to be read. Files of `large` bytes and more are read one after the other.
    pub(super) fn send_file(
        &mut self,
        directory: &Arc<Directory>,
        file: NewFile,
        seen: Stat,
        patience: Patience,
        large: u64,
    ) -> Result<(), WalkStop> {
        self.files_sent += 1;
        let mut job = JobFile { name: file.name.clone(), number: self.files_sent, loan: None, patience, seen };
        if file.size >= large {
            self.send_small_files()?;
            let job = self.announce(directory.clone(), vec![file], vec![job])?;
            return self.queues.large.send(job).map_err(|_| WalkStop::Gone);
        }
        // The loans of files that were not sent yet are far smaller than the budget, so this never waits for those.
        if let Some(budget) = &self.budget {
            job.loan = Some(budget.take(file.size as usize + FILE_OVERHEAD).ok_or(WalkStop::Gone)?);
        }
        let small = self.small_files.get_or_insert_with(|| SmallFiles::of(directory.clone()));
        small.bytes += file.size;
        small.files.push(file);
        small.jobs.push(job);
        let is_full = small.jobs.len() >= JOB_FILES || small.bytes >= JOB_BYTES;
        if is_full { self.send_small_files() } else { Ok(()) }
    }

    fn send_small_files(&mut self) -> Result<(), WalkStop> {
        let Some(SmallFiles { directory, files, jobs, .. }) = self.small_files.take() else { return Ok(()) };
        let job = self.announce(directory, files, jobs)?;
        self.queues.small.send(job).map_err(|_| WalkStop::Gone)
    }

    /// Sends the event of a job, and returns the job. The event goes first: the follower must know of the files before a full
    /// queue can block the walk.
    fn announce(
        &mut self,
        directory: Arc<Directory>,
        files: Vec<NewFile>,
        jobs: Vec<JobFile>,
    ) -> Result<ReadJob, WalkStop> {
        let (sender, content) = bounded(CONTENT_AHEAD);
        self.batch.push(Event::Files(Box::new(NewFiles { files, content })));
        self.send_batch()?;
        Ok(ReadJob { directory, files: jobs, content: sender })
    }
}
