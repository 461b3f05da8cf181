//! Restoring: a part of a snapshot becomes files again.
//!
//! Two walks over the snapshot. The first makes directories and hands files to workers; the second, when all
//! content is there, makes the further names of hard-linked files and gives directories their owner, mode and
//! times, which files made in them would have changed again.
//!
//! Everything is done relative to open directories, and no symbolic link is followed, so nothing is written
//! outside of the destination, whatever the repository says. A file gets its name when it is complete.
//!
//! - [`mod@write`]: one entry: content, owner, mode, times

mod write;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::format::{Digest, Entry, Kind};
use crate::monitor::{Monitor, Progress};
use crate::reader::{self, Directory, FileReader, Listed, Reader, Step, Walk};
use write::{Written, open_directory};

/// Files that the walk may be ahead of the workers.
const AHEAD: usize = 256;

/// What to do with a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conflict {
    /// Stop at the first one.
    #[default]
    Abort,
    /// Leave it as it is.
    Skip,
    /// Replace it.
    Overwrite,
    /// Replace it if its size or time differs.
    Update,
}

/// What was restored.
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
    /// A file is there already.
    #[error("{path} is there already; choose with --conflict what to do with files that are (skip, overwrite, update)")]
    Conflict {
        /// The file.
        path: PathBuf,
    },
    /// The run was told to stop.
    #[error("interrupted; files that have their names are complete")]
    Interrupted,
}

/// Restores `from` (a directory: what is in it; anything else: itself) into the directory `to`, which is made
/// if it is missing.
pub fn restore(
    reader: &Reader,
    from: &Listed,
    to: &Path,
    conflict: Conflict,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let failed = |source| Error::Destination { path: to.to_owned(), source };
    fs::create_dir_all(to).map_err(failed)?;
    let top = Arc::new(open_directory(to).map_err(failed)?);
    let run = Run {
        reader,
        conflict,
        monitor,
        stop,
        counts: Counts::default(),
        top: top.clone(),
        to,
        privileged: rustix::process::geteuid().is_root(),
        failed: std::sync::Mutex::new(None),
    };
    let mut links = HashMap::new();
    thread::scope(|threads| {
        let (jobs, queue) = bounded(AHEAD);
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (queue, run) = (queue.clone(), &run);
            threads.spawn(move || run.work(&queue));
        }
        drop(queue);
        match from.directory() {
            Some(directory) => run.contents(directory, &jobs, &mut links),
            None => run.one(from, &top, Path::new(""), &jobs, &mut links).map(drop),
        }
    })?;
    if let Some(error) = run.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
        return Err(error);
    }
    if let Some(directory) = from.directory() {
        run.finish(directory, &links)?;
        run.describe_directory(from, &top, Path::new(""));
    }
    Ok(run.counts.summary())
}

/// Where the content of a hard-linked file is, below the destination, and which content that is.
type Links = HashMap<u64, (PathBuf, Option<Digest>)>;

/// A file to be written.
struct Job {
    listed: Listed,
    directory: Arc<OwnedFd>,
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
}

struct Run<'a> {
    reader: &'a Reader,
    conflict: Conflict,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    counts: Counts,
    top: Arc<OwnedFd>,
    to: &'a Path,
    privileged: bool,
    /// The error that ended the work of a worker.
    failed: std::sync::Mutex<Option<Error>>,
}

impl Run<'_> {
    /// First walk: makes the directories, hands out the files.
    fn contents(&self, top: Directory, jobs: &Sender<Job>, links: &mut Links) -> Result<(), Error> {
        let mut walk = Walk::new(self.reader, top);
        let mut path = PathBuf::new();
        let mut made = vec![self.top.clone()];
        while let (Some(step), Some(into)) = (walk.step(), made.last()) {
            match step {
                Step::Entry(listed) => {
                    if let Some((below, directory)) = self.one(&listed, into, &path, jobs, links)? {
                        walk.enter(below);
                        made.push(directory);
                        path.push(OsStr::from_bytes(&listed.entry().name));
                    }
                }
                Step::Failed(error) if walk.depth() == 1 => return Err(error.into()),
                Step::Failed(error) => {
                    self.problem(&path, &format!("a part of this directory is not restored: {error}"));
                }
                Step::Leave => {
                    made.pop();
                    path.pop();
                }
            }
        }
        Ok(())
    }

    /// One entry. A directory is made, and handed back to be entered.
    fn one(
        &self,
        listed: &Listed,
        into: &Arc<OwnedFd>,
        path: &Path,
        jobs: &Sender<Job>,
        links: &mut Links,
    ) -> Result<Option<(Directory, Arc<OwnedFd>)>, Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let entry = listed.entry();
        let path = path.join(OsStr::from_bytes(&entry.name));
        if let Some(below) = listed.directory() {
            self.counts.directories.fetch_add(1, Ordering::Relaxed);
            return match write::make_directory(into, &entry.name) {
                Ok(made) => Ok(Some((below, Arc::new(made)))),
                Err(e) => {
                    self.problem(&path, &format!("cannot make the directory: {e}"));
                    Ok(None)
                }
            };
        }
        if let Some(link) = &entry.link {
            if links.contains_key(&link.id) {
                return Ok(None);
            }
            links.insert(link.id, (path.clone(), FileReader::new(listed.clone()).digest()));
        }
        let job = Job { listed: listed.clone(), directory: into.clone(), path };
        // Workers only go away with an error of their own, which ends the run.
        jobs.send(job).map(|()| None).map_err(|_| Error::Interrupted)
    }

    fn work(&self, jobs: &Receiver<Job>) {
        for job in jobs {
            if let Err(error) = self.write(&job) {
                // The first error counts. The others stop because the walk does.
                self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                break;
            }
        }
        // Emptied, so that the walk is not left waiting for room.
        let over = self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some();
        if over {
            jobs.iter().for_each(drop);
        }
    }

    fn write(&self, job: &Job) -> Result<(), Error> {
        let entry = job.listed.entry();
        match write::entry(self.reader, &job.listed, &job.directory, self.conflict, self.privileged) {
            Ok(Written::Skipped) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Written::Made { warning }) => {
                match entry.kind {
                    Kind::File => self.counts.files.fetch_add(1, Ordering::Relaxed),
                    _ => self.counts.others.fetch_add(1, Ordering::Relaxed),
                };
                if entry.kind == Kind::File {
                    self.counts.bytes.fetch_add(entry.size, Ordering::Relaxed);
                }
                if let Some(warning) = warning {
                    self.problem(&job.path, &warning);
                }
                if entry.flags & Entry::CHANGED != 0 {
                    let path = self.to.join(&job.path);
                    self.monitor.note(&format!("{} changed while it was backed up", path.display()));
                }
                self.monitor.entry(&job.path, "restored");
                let summary = self.counts.summary();
                let (files, bytes) = (summary.files, summary.bytes);
                self.monitor.progress(Progress { files, bytes, stored_bytes: 0 });
            }
            Err(write::Error::Exists) => return Err(Error::Conflict { path: self.to.join(&job.path) }),
            Err(write::Error::Io(e)) if e.kind() == io::ErrorKind::StorageFull => {
                return Err(Error::Full { path: self.to.join(&job.path) });
            }
            Err(error) => self.problem(&job.path, &error.to_string()),
        }
        Ok(())
    }

    /// Second walk: further names of files, and what belongs to directories.
    fn finish(&self, top: Directory, links: &Links) -> Result<(), Error> {
        let mut walk = Walk::new(self.reader, top);
        let mut path = PathBuf::new();
        let mut made = vec![self.top.clone()];
        while let (Some(step), Some(into)) = (walk.step(), made.last()) {
            match step {
                Step::Entry(listed) => match listed.directory() {
                    Some(below) => {
                        // What could not be made was reported in the first walk.
                        if let Ok(directory) = write::make_directory(into, &listed.entry().name) {
                            walk.enter(below);
                            made.push(Arc::new(directory));
                            path.push(OsStr::from_bytes(&listed.entry().name));
                        }
                    }
                    None => self.further_name(listed, into, &path, links)?,
                },
                // Reported in the first walk.
                Step::Failed(_) => {}
                Step::Leave => {
                    // Its entry is looked up again: held on every level, nodes could take any memory.
                    if let (Some(above), Some(name)) = (walk.directory(), path.file_name()) {
                        match self.reader.lookup(above, name.as_bytes()) {
                            Ok(Some(listed)) => self.describe_directory(&listed, into, &path),
                            Ok(None) => {}
                            Err(e) => self.problem(&path, &format!("cannot set owner, mode or times: {e}")),
                        }
                    }
                    made.pop();
                    path.pop();
                }
            }
        }
        Ok(())
    }

    fn further_name(&self, listed: Listed, into: &Arc<OwnedFd>, path: &Path, links: &Links) -> Result<(), Error> {
        let entry = listed.entry();
        let path = path.join(OsStr::from_bytes(&entry.name));
        match entry.link.as_ref().and_then(|link| links.get(&link.id)) {
            Some((first, _)) if *first == path => Ok(()),
            Some((first, digest)) if *digest == FileReader::new(listed.clone()).digest() => {
                self.link(first, into, &entry.name, &path);
                Ok(())
            }
            // The file changed while its names were backed up one after the other.
            Some(_) => self.write(&Job { listed, directory: into.clone(), path }),
            None => Ok(()),
        }
    }

    fn describe_directory(&self, listed: &Listed, directory: &OwnedFd, path: &Path) {
        if let Err(e) = write::describe(directory, listed.entry(), self.privileged) {
            self.problem(path, &format!("cannot set owner, mode or times: {e}"));
        }
    }

    fn link(&self, first: &Path, into: &OwnedFd, name: &[u8], path: &Path) {
        match write::link(&self.top, first, into, name, self.conflict) {
            Ok(()) => {
                self.counts.others.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => self.problem(path, &format!("cannot link it to {}: {e}", first.display())),
        }
    }

    fn problem(&self, path: &Path, why: &str) {
        self.counts.problems.fetch_add(1, Ordering::Relaxed);
        self.monitor.problem(&self.to.join(path), why);
    }
}
