//! Restoring: a part of a snapshot becomes files again.
//!
//! One walk over the snapshot makes directories and hands files to workers, many at a time, in the order in which
//! their content lies in packs. A directory gets its owner, mode and times when nobody needs it any more: what is made
//! in it would change them again. Further names of a hard-linked file are made when its content is there.
//!
//! Everything is done relative to open directories, and no symbolic link is followed, so nothing is written
//! outside of the destination, whatever the repository says. A file gets its name when it is complete; so a
//! restore that was interrupted goes on when it is run again, and leaves what is there already.
//!
//! - [`options`]: what is asked for
//! - [`folder`]: a directory of the destination; [`opened`]: the same once it is open, and the names in it
//! - [`mark`]: what tells an unfinished directory from others; [`temporary`]: names of what is being made
//! - [`links`]: files of several names
//! - [`order`]: the order of the packs
//! - [`work`]: what workers do; [`mod@write`]: an entry, and its content; [`draft`]: what has no name yet
//! - [`same`]: whether an entry is there already
//! - [`describe`]: owner, extended attributes, mode, times, inode flags
//! - [`refusals`]: what the system does not allow, said once

mod draft;
mod folder;
mod links;
mod mark;
mod metadata;
mod opened;
mod options;
mod order;
mod refusals;
mod same;
mod temporary;
mod work;
mod write;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::bounded;

pub use options::{Conflict, Options};

use crate::format::{Entry, Kind};
use crate::monitor::Monitor;
use crate::reader::{self, EntryHandle, Reader, SnapshotDirectory, TreeWalk, WalkStep, first_names};
use folder::{Folder, Making};
use links::{Links, Role};
use mark::Marks;
use metadata::Describe;
use opened::Opened;
use options::Chosen;
use order::Ordered;

/// What was restored, or would be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Files written.
    pub files: u64,
    /// Directories made or found.
    pub directories: u64,
    /// Links and special files made.
    pub others: u64,
    /// Bytes of files written.
    pub bytes: u64,
    /// Files left as they were.
    pub skipped: u64,
    /// Entries that could not be restored, or not entirely.
    pub problems: u64,
}

/// What ends a restore.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot can't be read.
    #[error(transparent)]
    Reader(#[from] reader::Error),
    /// A pattern is not valid.
    #[error(transparent)]
    Pattern(#[from] crate::source::Error),
    /// The destination can't be used.
    #[error("cannot restore to {path}: {source}")]
    Destination {
        /// The destination.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk is full: every further file would fail too.
    #[error("no space left while writing {path}; what was restored so far is complete, run again to go on")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// There is no room to remember files of several names.
    #[error(transparent)]
    Names(#[from] reader::spill::Error),
    /// A file is there already, and looks different.
    #[error(
        "{path} is there already, and differs; choose with --conflict what to do with files that are (skip, overwrite, update)"
    )]
    Conflict {
        /// The file.
        path: PathBuf,
    },
    /// The run was told to stop.
    #[error("interrupted; files that have their names are complete, run again to go on")]
    Interrupted,
}

/// Restores `from` (a directory: what is in it; anything else: itself) into the directory `to`, which is made
/// if it is missing. A dry run only counts.
pub fn restore(
    reader: &Reader,
    from: &EntryHandle,
    to: &Path,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let chosen = Chosen::of(options)?;
    let failed = |source| Error::Destination { path: to.to_owned(), source };
    let marks = Marks::new(reader.repository().id());
    let top = match options.dry_run {
        true => Opened::to_look_at(to),
        // One file may be restored into a directory that has nothing to do with it.
        false => folder::make_top(to, from.directory().is_some(), &marks).map(Some),
    };
    let top = top.map_err(failed)?;
    let wanted = from.directory().is_some() && chosen.is_everything();
    let run = Run {
        reader,
        options,
        chosen,
        monitor,
        stop,
        to,
        counts: Counts::default(),
        describe: Describe::new(options),
        links: Links::default(),
        marks,
        leftovers: AtomicU64::new(0),
        failed: Mutex::new(None),
    };
    let result = run.stages(from, Arc::new(Folder::top(from.clone(), top, wanted)));
    if let Some(error) = run.failed().take() {
        return Err(error);
    }
    result?;
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    if let Some(note) = first_names::apart(run.links.apart()) {
        monitor.note(&note);
    }
    match run.leftovers.load(Ordering::Relaxed) {
        0 => {}
        1 => monitor.note("an unfinished file of an interrupted restore was removed"),
        more => monitor.note(&format!("{more} unfinished files of an interrupted restore were removed")),
    }
    if let Some(note) = reader::left_out(run.describe.left_out()) {
        monitor.note(&note);
    }
    for refusal in run.describe.refusals.take() {
        match refusal.loses_an_entry {
            true => run.problem(Path::new(""), &refusal.to_string()),
            false => monitor.note(&refusal.to_string()),
        }
    }
    Ok(run.counts.summary())
}

/// An entry to be made, in a directory that is open.
struct Job {
    role: Role,
    listed: EntryHandle,
    folder: Arc<Folder>,
    path: PathBuf,
    /// The directory had an entry of exactly this name before this run.
    had: bool,
}

#[derive(Default)]
struct Counts {
    files: AtomicU64,
    directories: AtomicU64,
    others: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    problems: AtomicU64,
}

impl Counts {
    fn summary(&self) -> Summary {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Summary {
            files: get(&self.files),
            directories: get(&self.directories),
            others: get(&self.others),
            bytes: get(&self.bytes),
            skipped: get(&self.skipped),
            problems: get(&self.problems),
        }
    }

    fn made(&self, entry: &Entry) {
        match entry.kind {
            Kind::File => {
                self.files.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(entry.size, Ordering::Relaxed);
            }
            _ => {
                self.others.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

struct Run<'a> {
    reader: &'a Reader,
    options: &'a Options,
    chosen: Chosen,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    to: &'a Path,
    counts: Counts,
    describe: Describe,
    links: Links,
    marks: Marks,
    /// What interrupted restores left, and this one removed.
    leftovers: AtomicU64,
    /// The error that ended the work of a worker.
    failed: Mutex<Option<Error>>,
}

impl Run<'_> {
    /// Starts the workers and walks.
    fn stages(&self, from: &EntryHandle, top: Arc<Folder>) -> Result<(), Error> {
        thread::scope(|threads| {
            let (jobs, queue) = bounded(order::ahead());
            let wanted = thread::available_parallelism().map_or(1, usize::from);
            // Where threads are few, some do.
            let start = |_| {
                let queue = queue.clone();
                thread::Builder::new().spawn_scoped(threads, move || queue.iter().for_each(|job| self.work(job))).ok()
            };
            let workers = (0..wanted).map_while(start).count();
            drop(queue);
            let take = |job| match workers {
                0 => {
                    self.work(job);
                    Ok(())
                }
                // Workers only go away with an error of their own, which ends the run.
                _ => jobs.send(job).map_err(|_| Error::Interrupted),
            };
            let mut jobs = Ordered::new(&take, &self.links);
            match self.walk(from, &top, &mut jobs) {
                Ok(()) => jobs.hand_out(),
                // Entries before the unreadable node are restored.
                Err(error @ Error::Reader(_)) => jobs.hand_out().and(Err(error)),
                Err(error) => {
                    // Known before what waits is dropped: no directory may look complete without it.
                    self.failed().get_or_insert(error);
                    Err(Error::Interrupted)
                }
            }
        })?;
        if self.is_over() {
            return Err(Error::Interrupted);
        }
        self.links.finish(&top, &self.describe, |path, why| self.problem(path, why))?;
        self.leave(top);
        Ok(())
    }

    /// Goes through what is to be restored: makes directories, hands out the rest.
    fn walk(&self, from: &EntryHandle, top: &Arc<Folder>, jobs: &mut Ordered<'_>) -> Result<(), Error> {
        let wanted = self.chosen.is_everything();
        let mut path = PathBuf::new();
        let Some(directory) = from.directory() else {
            return self.one(from.clone(), None, (top, wanted), &mut path, jobs).map(drop);
        };
        let mut walk = TreeWalk::new(self.reader, directory);
        let mut folders = vec![(top.clone(), wanted)];
        while let (Some(step), Some((into, wanted))) = (walk.step(), folders.last()) {
            match step {
                WalkStep::Entry(listed) => {
                    let below = listed.directory();
                    let entered = self.one(listed, walk.directory(), (into, *wanted), &mut path, jobs)?;
                    if let (Some(below), Some(entered)) = (below, entered) {
                        walk.enter(below);
                        folders.push(entered);
                    }
                }
                WalkStep::Failed(error) if walk.depth() == 1 => return Err(error.into()),
                WalkStep::Failed(error) => {
                    self.problem(&path, &format!("a part of this directory is not restored: {error}"));
                }
                WalkStep::Leave => {
                    path.pop();
                    if let Some((folder, _)) = folders.pop() {
                        folder.walked(&self.making());
                        self.leave(folder);
                    }
                }
            }
        }
        Ok(())
    }

    /// One entry of the directory at `path`, which is left as it is unless a directory is to be entered: that is
    /// handed back. `wanted`: a pattern chose what it is in.
    fn one(
        &self,
        listed: EntryHandle,
        above: Option<&SnapshotDirectory>,
        (into, wanted): (&Arc<Folder>, bool),
        path: &mut PathBuf,
        jobs: &mut Ordered<'_>,
    ) -> Result<Option<(Arc<Folder>, bool)>, Error> {
        if self.is_over() {
            return Err(Error::Interrupted);
        }
        let entry = listed.entry();
        path.push(OsStr::from_bytes(&entry.name));
        let is_directory = entry.kind == Kind::Directory;
        let entered = match (self.chosen.choose(path, is_directory, wanted), above) {
            (None, _) => None,
            (Some(wanted), Some(above)) if is_directory => {
                let folder = Arc::new(Folder::below(into, above.clone(), &entry.name, wanted));
                self.counts.directories.fetch_add(wanted.into(), Ordering::Relaxed);
                (!wanted || self.make(&folder)?).then_some((folder, wanted))
            }
            (Some(wanted), _) => {
                if wanted {
                    self.hand_out(
                        Job { role: Role::Alone, listed, folder: into.clone(), path: path.clone(), had: false },
                        jobs,
                    )?;
                }
                None
            }
        };
        if entered.is_none() {
            path.pop();
        }
        Ok(entered)
    }

    fn hand_out(&self, mut job: Job, jobs: &mut Ordered<'_>) -> Result<(), Error> {
        if self.options.dry_run {
            // Nobody is at work, so it has not to wait.
            self.links.assign(&mut job)?;
            let there = self.would_write(&job)?;
            return Ok(self.links.done(&job, there)?);
        }
        if !self.make(&job.folder)? {
            return Ok(());
        }
        job.had = job.folder.had(&job.listed.entry().name, &self.making());
        jobs.add(job)
    }

    /// Sees to it that a directory of the destination is there and open; otherwise that was reported.
    fn make(&self, folder: &Folder) -> Result<bool, Error> {
        let failed = if !self.options.dry_run {
            match folder.make(&self.making()) {
                Ok(open) => return Ok(open),
                Err((path, e)) if is_full(&e) => return Err(Error::Full { path: self.to.join(path) }),
                Err(failed) => failed,
            }
        } else if self.replace() || !folder.is_blocked() {
            return Ok(true);
        } else {
            (folder.path(), folder::blocked())
        };
        let (path, why) = failed;
        self.problem(&path, &format!("cannot make the directory: {why}"));
        Ok(false)
    }

    fn making(&self) -> Making<'_> {
        let (reader, marks, replace) = (self.reader, &self.marks, self.replace());
        Making { reader, marks, replace, leftovers: &self.leftovers }
    }

    /// Whether what is there is replaced.
    fn replace(&self) -> bool {
        matches!(self.options.conflict, Conflict::Overwrite | Conflict::Update)
    }

    /// Counts what would become of an entry. Returns whether its content would be there.
    fn would_write(&self, job: &Job) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let there = job.folder.find().and_then(|directory| same::there(&directory, entry));
        match (there, self.options.conflict) {
            (Some(there), Conflict::Abort) if !there.same => {
                return Err(Error::Conflict { path: self.to.join(&job.path) });
            }
            (Some(there), Conflict::Skip | Conflict::Abort) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                return Ok(there.same);
            }
            (Some(there), Conflict::Update) if there.same => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                return Ok(true);
            }
            (Some(there), _) if there.directory => {
                self.problem(&job.path, &write::Error::Directory.to_string());
                return Ok(false);
            }
            _ => {}
        }
        match job.role {
            Role::Further(_) => {
                self.counts.others.fetch_add(1, Ordering::Relaxed);
            }
            Role::First | Role::Alone => self.counts.made(entry),
        }
        self.monitor.entry(&job.path, "would restore");
        Ok(true)
    }

    /// Whether the run ends before everything is done.
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failed().is_some()
    }

    fn failed(&self) -> MutexGuard<'_, Option<Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of a directory. The last to do so gives it what belongs to it, and lets go of the one above.
    fn leave(&self, folder: Arc<Folder>) {
        // What is not complete must not look as if it were: a later run goes on with it.
        let over = self.options.dry_run || self.is_over();
        let mut next = Some(folder).filter(|_| !over);
        while let Some(mut folder) = next.and_then(Arc::into_inner) {
            folder
                .finish(self.reader, &self.describe, &self.marks, self.replace(), |path, why| self.problem(path, why));
            next = folder.above.take();
        }
    }

    fn problem(&self, path: &Path, why: &str) {
        self.counts.problems.fetch_add(1, Ordering::Relaxed);
        self.monitor.problem(&self.to.join(path), why);
    }
}

/// Whether there is no room: every further file would fail too.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
