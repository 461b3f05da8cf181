//! Restoring: a part of a snapshot becomes files again.
//!
//! One walk over the snapshot makes directories and hands files to workers. A directory gets its owner, mode and
//! times when nobody needs it any more: what is made in it would change them again. Further names of a
//! hard-linked file are made when its content is there.
//!
//! Everything is done relative to open directories, and no symbolic link is followed, so nothing is written
//! outside of the destination, whatever the repository says. A file gets its name when it is complete; so a
//! restore that was interrupted goes on when it is run again, and leaves what is there already.
//!
//! - [`options`]: what is asked for
//! - [`folder`]: a directory of the destination
//! - [`links`]: files of several names
//! - [`mod@write`]: an entry, and its content
//! - [`describe`]: owner, extended attributes, mode, times, inode flags
//! - [`refusals`]: what the system does not allow, said once

mod describe;
mod folder;
mod links;
mod options;
mod refusals;
mod write;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

pub use options::{Conflict, Options};

use crate::format::{Entry, Kind};
use crate::monitor::{Monitor, Progress};
use crate::reader::{self, Directory, FileReader, Listed, Reader};
use describe::Describe;
use folder::Folder;
use links::{Links, Role};
use options::Chosen;
use write::Written;

/// Files that the walk may be ahead of the workers.
const AHEAD: usize = 256;
/// Stack of the walk, which recurses into directories. Only what is used takes memory.
const WALK_STACK: usize = 256 << 20;

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
    from: &Listed,
    to: &Path,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let chosen = Chosen::of(options)?;
    let failed = |source| Error::Destination { path: to.to_owned(), source };
    let made = !to.is_dir();
    let top = if options.dry_run {
        folder::open_if_there(to).map_err(failed)?
    } else {
        fs::create_dir_all(to).map_err(failed)?;
        Some(folder::open_top(to).map_err(failed)?)
    };
    let wanted = from.directory().is_some() && chosen.is_everything();
    let run = Run {
        reader,
        options,
        chosen,
        monitor,
        stop,
        to,
        counts: Counts::default(),
        describe: Describe::new(options.numeric_owner),
        links: Links::default(),
        failed: Mutex::new(None),
    };
    let result = run.stages(from, Arc::new(Folder::top(from.clone(), top, made, wanted)));
    if let Some(error) = run.failed().take() {
        return Err(error);
    }
    result?;
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
    listed: Listed,
    folder: Arc<Folder>,
    path: PathBuf,
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
    /// The error that ended the work of a worker.
    failed: Mutex<Option<Error>>,
}

impl Run<'_> {
    /// Starts the workers and walks.
    fn stages(&self, from: &Listed, top: Arc<Folder>) -> Result<(), Error> {
        thread::scope(|threads| {
            let (jobs, queue) = bounded(AHEAD);
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                let queue = queue.clone();
                threads.spawn(move || self.work(&queue));
            }
            drop(queue);
            let below = top.clone();
            let walk = move || match from.directory() {
                Some(directory) => self.contents(&directory, &below, self.chosen.is_everything(), &jobs),
                None => self.one(from.clone(), &below, self.chosen.is_everything(), &jobs),
            };
            let walk = thread::Builder::new().name("walk".into()).stack_size(WALK_STACK).spawn_scoped(threads, walk);
            let failed = |source| Error::Destination { path: self.to.to_owned(), source };
            walk.map_err(failed)?.join().map_err(|_| failed(io::Error::other("the walk broke off")))?
        })?;
        self.links.finish(&top, &self.describe, |path, why| self.problem(path, why));
        self.leave(top);
        Ok(())
    }

    /// Everything in a directory. `wanted`: a pattern chose it, or one above it.
    fn contents(
        &self,
        directory: &Directory,
        into: &Arc<Folder>,
        wanted: bool,
        jobs: &Sender<Job>,
    ) -> Result<(), Error> {
        self.reader.each(directory, |listed| self.one(listed, into, wanted, jobs))
    }

    fn one(&self, listed: Listed, into: &Arc<Folder>, wanted: bool, jobs: &Sender<Job>) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) || self.failed().is_some() {
            return Err(Error::Interrupted);
        }
        let entry = listed.entry();
        let path = into.path().join(OsStr::from_bytes(&entry.name));
        let below = listed.directory();
        let Some(wanted) = self.chosen.choose(&path, below.is_some(), wanted) else { return Ok(()) };
        let Some(below) = below else {
            if !wanted {
                return Ok(());
            }
            let job = Job { role: Role::Alone, listed, folder: into.clone(), path };
            if self.options.dry_run {
                return self.would_write(&job);
            }
            if !self.make(into) {
                return Ok(());
            }
            return match self.links.assign(job) {
                // Workers only go away with an error of their own, which ends the run.
                Some(job) => jobs.send(job).map_err(|_| Error::Interrupted),
                None => Ok(()),
            };
        };
        let folder = Arc::new(Folder::below(into, listed, path, wanted));
        if wanted {
            self.counts.directories.fetch_add(1, Ordering::Relaxed);
            if !self.make(&folder) {
                return Ok(());
            }
        }
        let result = match self.contents(&below, &folder, wanted, jobs) {
            Err(Error::Reader(e)) => {
                self.problem(folder.path(), &format!("a part of this directory is not restored: {e}"));
                Ok(())
            }
            other => other,
        };
        self.leave(folder);
        result
    }

    /// Sees to it that a directory of the destination is there and open; otherwise that was reported.
    fn make(&self, folder: &Arc<Folder>) -> bool {
        if self.options.dry_run {
            return true;
        }
        let replace = matches!(self.options.conflict, Conflict::Overwrite | Conflict::Update);
        folder.make(replace, |path, why| self.problem(path, why)).is_some()
    }

    fn would_write(&self, job: &Job) -> Result<(), Error> {
        let entry = job.listed.entry();
        let there = job.folder.find().and_then(|directory| write::there(&directory, entry));
        match (there, self.options.conflict) {
            (Some(false), Conflict::Abort) => Err(Error::Conflict { path: self.to.join(&job.path) }),
            (Some(_), Conflict::Skip) | (Some(true), Conflict::Update | Conflict::Abort) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            _ => {
                self.counts.made(entry);
                self.monitor.entry(&job.path, "would restore");
                Ok(())
            }
        }
    }

    fn work(&self, jobs: &Receiver<Job>) {
        for job in jobs {
            if let Err(error) = self.write(job) {
                // The first error counts. The others stop because the walk does.
                self.failed().get_or_insert(error);
                break;
            }
        }
        // Emptied, so that the walk is not left waiting for room.
        if self.failed().is_some() {
            jobs.iter().for_each(drop);
        }
    }

    fn failed(&self) -> MutexGuard<'_, Option<Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an entry, and then those that waited for it.
    fn write(&self, job: Job) -> Result<(), Error> {
        let mut next = vec![job];
        while let Some(job) = next.pop() {
            let there = match &job.role {
                Role::Further(first) => self.link(&job, first)?,
                Role::First | Role::Alone => self.write_new(&job)?,
            };
            next.extend(self.links.done(&job, there));
            self.leave(job.folder);
        }
        Ok(())
    }

    /// Makes an entry. Returns whether its content is there now under its name.
    fn write_new(&self, job: &Job) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let Some(directory) = job.folder.fd() else { return Ok(false) };
        match write::entry(self.reader, &job.listed, directory, self.options.conflict, &self.describe) {
            Ok(Written::Skipped { same }) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                return Ok(same);
            }
            Ok(Written::Made { warning }) => {
                self.counts.made(entry);
                if let Some(warning) = warning {
                    self.problem(&job.path, &warning);
                }
                if entry.flags & Entry::CHANGED != 0 {
                    let path = self.to.join(&job.path);
                    self.monitor.note(&format!("{} changed while it was backed up", path.display()));
                }
                match entry.link {
                    Some(_) => self.links.forbid_later(&job.path, entry),
                    None => job.folder.forbid_later(entry),
                }
                self.monitor.entry(&job.path, "restored");
                let summary = self.counts.summary();
                let (files, bytes) = (summary.files, summary.bytes);
                self.monitor.progress(Progress { files, bytes, stored_bytes: 0 });
                return Ok(true);
            }
            Ok(Written::Refused) => {}
            Err(write::Error::Exists) => return Err(Error::Conflict { path: self.to.join(&job.path) }),
            Err(write::Error::Io(e)) if e.kind() == io::ErrorKind::StorageFull => {
                return Err(Error::Full { path: self.to.join(&job.path) });
            }
            Err(error) => self.problem(&job.path, &error.to_string()),
        }
        Ok(false)
    }

    /// Gives the file at `first` one more name. If it can't be linked, the name gets a file of its own.
    fn link(&self, job: &Job, first: &Path) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let Some(directory) = job.folder.fd() else { return Ok(false) };
        let linked =
            job.folder.open_beneath(first).map_err(write::Error::Io).and_then(|(folder, first)| {
                write::link((&folder, &first), directory, &entry.name, self.options.conflict)
            });
        match linked {
            Ok(write::Linked::Made) => {
                self.counts.others.fetch_add(1, Ordering::Relaxed);
            }
            Ok(write::Linked::There) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            }
            Err(write::Error::Exists) => return Err(Error::Conflict { path: self.to.join(&job.path) }),
            Err(error) => {
                self.write_new(job)?;
                let first = first.display();
                self.problem(&job.path, &format!("it is a file of its own and no link to {first}: {error}"));
            }
        }
        Ok(true)
    }

    /// Lets go of a directory. The last to do so gives it what belongs to it, and lets go of the one above.
    fn leave(&self, folder: Arc<Folder>) {
        if self.options.dry_run {
            return;
        }
        let mut next = Some(folder);
        while let Some(mut folder) = next.and_then(Arc::into_inner) {
            folder.finish(&self.describe, |path, why| self.problem(path, why));
            next = folder.above.take();
        }
    }

    fn problem(&self, path: &Path, why: &str) {
        self.counts.problems.fetch_add(1, Ordering::Relaxed);
        self.monitor.problem(&self.to.join(path), why);
    }
}

/// What tells the content of a file from another's.
fn content_of(listed: &Listed) -> Option<crate::format::Digest> {
    FileReader::new(listed.clone()).digest()
}
