//! Restores a snapshot, or a part of it, to a directory.
//!
//! One walk over the snapshot creates directories and queues files for a pool of workers, in batches sorted by the
//! position of their content in packs. A directory gets its owner, mode and times after all its entries are written,
//! since writing them would change its times. Hard links are created after the content of their file is written.
//!
//! All operations are relative to open directories and follow no symlinks, so a malicious repository cannot write
//! outside of the destination. A file gets its name when it is complete. Running an interrupted restore again skips the
//! complete files.
//!
//! - [`options`]: options, and include and exclude patterns
//! - [`output_directory`]: a directory of the destination; [`open_output`]: its handle, and detection of name clashes
//! - [`mark`]: marks of unfinished directories; [`temporary`]: names of temporary files
//! - [`links`]: hard links
//! - [`order`]: sorts entries by the position of their content in packs
//! - [`worker`]: a worker's job; [`mod@write`]: writes an entry; [`draft`]: a file that has no final name yet
//! - [`entry_error`]: why an entry cannot be restored
//! - [`existing`]: compares an existing file with an entry
//! - [`metadata`]: owner, extended attributes, mode, times, inode flags
//! - [`mod@total`]: how much there is to do
//! - [`refusals`]: operations that the system refuses, reported once for each kind

mod draft;
mod entry_error;
mod existing;
mod links;
mod mark;
mod metadata;
mod open_output;
mod options;
mod order;
mod output_directory;
mod refusals;
mod temporary;
mod total;
mod worker;
mod write;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::bounded;

pub use options::{Conflict, Options};
pub use total::total;

use crate::archive::{self, Archive, EntryHandle, EntryRef, SnapshotDirectory, TreeWalk, WalkStep, first_names};
use crate::failure::{Failure, FailureKind};
use crate::format::Kind;
use crate::monitor::{Monitor, count};
use links::{HardLinks, LinkRole};
use mark::Marks;
use metadata::MetadataWriter;
use open_output::OpenOutput;
use options::PathFilter;
use order::JobQueue;
use output_directory::{CreateContext, OutputDirectory};

/// Counts of restored entries, or in a dry run of entries to restore.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Files written.
    pub files: u64,
    /// Directories, both created and existing.
    pub directories: u64,
    /// Symlinks, hard links and special files created.
    pub others: u64,
    /// Total size of the files written, holes included.
    pub bytes: u64,
    /// Existing entries that were left unchanged.
    pub skipped: u64,
    /// Entries that were not restored, or only partly.
    pub problems: u64,
}

impl Summary {
    /// Whether no entry was selected.
    pub fn is_empty(&self) -> bool {
        let Summary { files, directories, others, bytes: _, skipped, problems } = *self;
        files + directories + others + skipped + problems == 0
    }
}

/// An error that aborts a restore.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot cannot be read.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// A pattern is not valid.
    #[error(transparent)]
    Pattern(#[from] crate::source::Error),
    /// The destination cannot be created or opened.
    #[error("cannot restore to {path}: {source}")]
    Destination {
        /// The destination.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The disk or the quota is full, so further files would fail too.
    #[error(
        "cannot write {path}: no space left; the files restored so far are complete; free space and run again to continue"
    )]
    Full {
        /// The file being written.
        path: PathBuf,
    },
    /// The table of hard links cannot be written to its temporary file.
    #[error(transparent)]
    Names(#[from] archive::spill::Error),
    /// An existing file differs from the snapshot.
    #[error(
        "cannot restore {path}: it exists already and differs; use --conflict to skip, overwrite or update existing files"
    )]
    Conflict {
        /// The existing file.
        path: PathBuf,
    },
    /// The restore was interrupted.
    #[error("interrupted; the files restored so far are complete; run again to continue")]
    Interrupted,
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Archive(error) => error.kind(),
            Error::Pattern(error) => error.kind(),
            Error::Interrupted => FailureKind::Interrupted,
            Error::Destination { .. } | Error::Full { .. } | Error::Names(_) | Error::Conflict { .. } => {
                FailureKind::Failed
            }
        }
    }
}

/// Restores the content of the directory `from`, or a single entry `from` of another kind, into the directory `to`,
/// which is created if it is missing. A dry run only counts.
pub fn restore(
    archive: &dyn Archive,
    from: &EntryHandle,
    to: &Path,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let chosen = PathFilter::of(options)?;
    let failed = |source| Error::Destination { path: to.to_owned(), source };
    let marks = Marks::new(archive.id());
    let top = if options.dry_run {
        OpenOutput::open_for_dry_run(to)
    } else {
        // A single file does not change the metadata of the directory it is restored into.
        output_directory::make_top(to, from.directory().is_some(), &marks).map(Some)
    };
    let top = top.map_err(failed)?;
    let wanted = from.directory().is_some() && chosen.is_everything();
    let run = Restorer {
        archive,
        options,
        chosen,
        monitor,
        stop,
        to,
        counts: RestoreCounters::default(),
        metadata: MetadataWriter::new(options),
        links: HardLinks::default(),
        marks,
        leftovers: AtomicU64::new(0),
        lost: Mutex::default(),
        failed: Mutex::new(None),
    };
    let result = run.run_workers(from, Arc::new(OutputDirectory::top(from.clone(), top, wanted)));
    run.lost_objects();
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
    if let Some(note) = archive::left_out(run.metadata.left_out()) {
        monitor.note(&note);
    }
    for refusal in run.metadata.refusals.take() {
        if refusal.loses_an_entry {
            run.problem(Path::new(""), &refusal.to_string());
        } else {
            monitor.note(&refusal.to_string());
        }
    }
    Ok(run.counts.summary())
}

/// An entry to restore.
struct RestoreJob {
    role: LinkRole,
    listed: EntryHandle,
    folder: Arc<OutputDirectory>,
    path: PathBuf,
    /// Whether the output directory contained exactly this name before the restore.
    had: bool,
    /// Files whose content is read soon after this entry's.
    read_next: Vec<EntryHandle>,
}

#[derive(Default)]
struct RestoreCounters {
    files: AtomicU64,
    directories: AtomicU64,
    others: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    problems: AtomicU64,
}

impl RestoreCounters {
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

    fn made(&self, entry: &EntryRef<'_>) {
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

struct Restorer<'a> {
    archive: &'a dyn Archive,
    options: &'a Options,
    chosen: PathFilter,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    to: &'a Path,
    counts: RestoreCounters,
    metadata: MetadataWriter,
    links: HardLinks,
    marks: Marks,
    /// The number of temporary files of interrupted restores that this one removed.
    leftovers: AtomicU64,
    /// Objects that are lost or damaged, with the number of entries that need them.
    lost: Mutex<BTreeMap<String, u64>>,
    /// The first fatal error.
    failed: Mutex<Option<Error>>,
}

impl Restorer<'_> {
    /// Walks the snapshot while workers write the entries.
    fn run_workers(&self, from: &EntryHandle, top: Arc<OutputDirectory>) -> Result<(), Error> {
        thread::scope(|threads| {
            let (jobs, queue) = bounded(order::ahead());
            let wanted = thread::available_parallelism().map_or(1, usize::from);
            // If not all threads can be started, use fewer.
            let start = |_| {
                let queue = queue.clone();
                thread::Builder::new()
                    .spawn_scoped(threads, move || queue.iter().for_each(|job| self.process(job)))
                    .ok()
            };
            let workers = (0..wanted).map_while(start).count();
            drop(queue);
            let take = |job| match workers {
                0 => {
                    self.process(job);
                    Ok(())
                }
                // Workers end early only after a fatal error, which is already stored.
                _ => jobs.send(job).map_err(|_| Error::Interrupted),
            };
            let mut jobs = JobQueue::new(&take, self.archive.prefetch_limit(), &self.links);
            match self.walk(from, &top, &mut jobs) {
                Ok(()) => jobs.flush(),
                // Entries before the unreadable node are restored.
                Err(error @ Error::Archive(_)) => jobs.flush().and(Err(error)),
                Err(error) => {
                    // Set the error before the queue is dropped: directories of discarded entries must stay marked.
                    self.failed().get_or_insert(error);
                    Err(Error::Interrupted)
                }
            }
        })?;
        if self.is_over() {
            return Err(Error::Interrupted);
        }
        self.links.finish(&top, &self.metadata, |path, why| self.problem(path, why))?;
        self.leave(top);
        Ok(())
    }

    /// Walks the snapshot: creates directories and queues the other entries.
    fn walk(&self, from: &EntryHandle, top: &Arc<OutputDirectory>, jobs: &mut JobQueue<'_>) -> Result<(), Error> {
        let wanted = self.chosen.is_everything();
        let mut path = PathBuf::new();
        let Some(directory) = from.directory() else {
            return self.visit_entry(from.clone(), None, (top, wanted), &mut path, jobs).map(drop);
        };
        let mut walk = TreeWalk::new(self.archive, directory);
        let mut folders = vec![(top.clone(), wanted)];
        while let (Some(step), Some((into, wanted))) = (walk.step(), folders.last()) {
            match step {
                WalkStep::Entry(listed) => {
                    let below = listed.directory();
                    let entered = self.visit_entry(listed, walk.directory(), (into, *wanted), &mut path, jobs)?;
                    if let (Some(below), Some(entered)) = (below, entered) {
                        walk.enter(below);
                        folders.push(entered);
                    }
                }
                WalkStep::Failed(error) if walk.depth() == 1 => return Err(error.into()),
                WalkStep::Failed(error) => {
                    self.note_lost(&error);
                    self.problem(&path, &format!("cannot restore all of this directory: {error}"));
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

    /// Queues an entry of the directory at `path`. If the entry is a directory to walk, appends its name to `path` and
    /// returns it. `wanted`: the parent directory is selected by the patterns.
    fn visit_entry(
        &self,
        listed: EntryHandle,
        above: Option<&SnapshotDirectory>,
        (into, wanted): (&Arc<OutputDirectory>, bool),
        path: &mut PathBuf,
        jobs: &mut JobQueue<'_>,
    ) -> Result<Option<(Arc<OutputDirectory>, bool)>, Error> {
        if self.is_over() {
            return Err(Error::Interrupted);
        }
        let entry = listed.entry();
        path.push(OsStr::from_bytes(entry.name));
        let is_directory = entry.kind == Kind::Directory;
        let entered = match (self.chosen.choose(path, is_directory, wanted), above) {
            (None, _) => None,
            (Some(wanted), Some(above)) if is_directory => {
                let folder = Arc::new(OutputDirectory::below(into, *above, entry.name, wanted));
                self.counts.directories.fetch_add(wanted.into(), Ordering::Relaxed);
                (!wanted || self.make(&folder)?).then_some((folder, wanted))
            }
            (Some(wanted), _) => {
                if wanted {
                    self.hand_out(
                        RestoreJob {
                            role: LinkRole::Alone,
                            listed,
                            folder: into.clone(),
                            path: path.clone(),
                            had: false,
                            read_next: Vec::new(),
                        },
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

    fn hand_out(&self, mut job: RestoreJob, jobs: &mut JobQueue<'_>) -> Result<(), Error> {
        if self.options.dry_run {
            // Without workers there is no first name to wait for.
            self.links.assign(&mut job)?;
            let there = self.would_write(&job)?;
            return Ok(self.links.finish_name(&job, there)?);
        }
        if !self.make(&job.folder)? {
            return Ok(());
        }
        job.had = job.folder.had(job.listed.entry().name, &self.making());
        jobs.add(job)
    }

    /// Creates and opens an output directory. Returns whether it is open; if not, the problem has been reported.
    fn make(&self, folder: &OutputDirectory) -> Result<bool, Error> {
        let failed = if !self.options.dry_run {
            match folder.make(&self.making()) {
                Ok(open) => return Ok(open),
                Err((path, e)) if is_full(&e) => return Err(Error::Full { path: self.to.join(path) }),
                Err(failed) => failed,
            }
        } else if self.replace() || !folder.is_blocked() {
            return Ok(true);
        } else {
            (folder.path(), output_directory::blocked())
        };
        let (path, why) = failed;
        self.problem(&path, &format!("cannot create the directory: {why}"));
        Ok(false)
    }

    fn making(&self) -> CreateContext<'_> {
        let (archive, marks, replace) = (self.archive, &self.marks, self.replace());
        CreateContext { archive, marks, replace, leftovers: &self.leftovers }
    }

    /// Whether existing files are replaced.
    fn replace(&self) -> bool {
        matches!(self.options.conflict, Conflict::Overwrite | Conflict::Update)
    }

    /// Counts an entry in a dry run. Returns whether its content would exist after a restore.
    fn would_write(&self, job: &RestoreJob) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let there = job.folder.find().and_then(|directory| existing::find(&directory, &entry));
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
                self.problem(&job.path, &entry_error::EntryError::Directory.to_string());
                return Ok(false);
            }
            _ => {}
        }
        match job.role {
            LinkRole::Further(_) => {
                self.counts.others.fetch_add(1, Ordering::Relaxed);
            }
            LinkRole::First | LinkRole::Alone => self.counts.made(&entry),
        }
        self.monitor.entry(&job.path, "would restore");
        Ok(true)
    }

    /// Whether the restore is interrupted or has failed.
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.failed().is_some()
    }

    fn failed(&self) -> MutexGuard<'_, Option<Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases a reference to a directory. The last release sets its metadata and releases the parent directory.
    fn leave(&self, folder: Arc<OutputDirectory>) {
        // An incomplete directory must keep its mark, so that a later restore continues it.
        let over = self.options.dry_run || self.is_over();
        let mut next = Some(folder).filter(|_| !over);
        while let Some(mut folder) = next.and_then(Arc::into_inner) {
            folder
                .finish(self.archive, &self.metadata, &self.marks, self.replace(), |path, why| self.problem(path, why));
            next = folder.above.take();
        }
    }

    /// Counts an entry that needs a lost object.
    fn note_lost(&self, error: &archive::Error) {
        if let Some(object) = error.lost_object() {
            *self.lost.lock().unwrap_or_else(PoisonError::into_inner).entry(object).or_default() += 1;
        }
    }

    /// Reports the lost objects.
    fn lost_objects(&self) {
        for (object, entries) in std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner)) {
            let entries = count(entries, "entry is", "entries are");
            self.monitor.note(&format!("{object} is missing or damaged: {entries} not restored completely"));
        }
    }

    fn problem(&self, path: &Path, why: &str) {
        self.counts.problems.fetch_add(1, Ordering::Relaxed);
        // Joining an empty path would add a slash.
        let is_top = path.as_os_str().is_empty();
        self.monitor.problem(&if is_top { self.to.to_owned() } else { self.to.join(path) }, why);
    }
}

/// Whether the disk or the quota is full.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::memory::{MemoryArchive, MemoryEntry};
    use crate::format::entry::HardLink;
    use crate::monitor::Silent;

    #[test]
    fn an_archive_of_another_format_is_restored() {
        let file = |name| MemoryEntry { link: Some(HardLink { id: 3, count: 2 }), ..MemoryEntry::file(name, b"text") };
        let damaged = MemoryEntry { is_damaged: true, ..MemoryEntry::directory("lost", Vec::new()) };
        let folder =
            MemoryEntry::directory("folder", vec![file("first"), file("second"), MemoryEntry::file("third", b"")]);
        let archive = MemoryArchive::new(vec![vec![folder, MemoryEntry::symlink("link", "folder"), damaged]]);
        let name = archive.snapshots().unwrap().remove(0);
        let to = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let root = archive.open(&name).unwrap().root.clone();
        let summary = restore(&archive, &root, to.path(), &Options::default(), &Silent, &stop).unwrap();
        let Summary { files, directories, others, bytes, problems, .. } = summary;
        assert_eq!((files, directories, others, bytes, problems), (2, 2, 2, 4, 1));
        let number = |path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(to.path().join(path)).unwrap());
        assert_eq!(std::fs::read(to.path().join("link/second")).unwrap(), b"text");
        assert_eq!(number("folder/first"), number("folder/second"));
        assert_eq!(std::fs::metadata(to.path().join("folder/third")).unwrap().len(), 0);
    }
}
