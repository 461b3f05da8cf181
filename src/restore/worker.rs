//! A worker's job: writes an entry, and reports the result.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::entry_error::EntryError;
use super::links::LinkRole;
use super::write::{Destination, EntryWriter, Linked, Written};
use super::{Error, RestoreJob, Restorer, is_full};
use crate::archive::EntryRef;
use crate::format::Kind;

impl Restorer<'_> {
    /// Processes a job.
    pub(super) fn process(&self, job: RestoreJob) {
        job.read_next.iter().for_each(|file| self.archive.prefetch(file));
        // After a fatal error, drain the channel, so that the walk is not blocked.
        let result = if self.is_over() { Ok(false) } else { self.write(&job) };
        let done = self.links.finish_name(&job, matches!(result, Ok(true)));
        if let Err(error) = result.and(done.map_err(Error::from)) {
            // Only the first error is kept.
            self.failed().get_or_insert(error);
        }
        self.leave(job.folder);
    }

    /// Writes an entry. Returns whether its content exists under its name.
    fn write(&self, job: &RestoreJob) -> Result<bool, Error> {
        let Some(opened) = job.folder.opened() else { return Ok(false) };
        let clash = |there| job.folder.clash(job.listed.entry().name, job.had, there, self.archive);
        let at = Destination { opened, clash: &clash };
        let (archive, metadata, progress) = (self.archive, &self.metadata, self.monitor.progress());
        let writing = EntryWriter { archive, conflict: self.options.conflict, metadata, progress, stop: self.stop };
        progress.at(&job.path);
        match &job.role {
            LinkRole::Further(first) => self.link(job, first, &at, &writing),
            LinkRole::First | LinkRole::Alone => self.write_new(job, &at, &writing),
        }
    }

    fn write_new(&self, job: &RestoreJob, at: &Destination<'_>, writing: &EntryWriter<'_>) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let forbid_later = |inode| match entry.link {
            Some(_) => self.links.forbid_later(&job.path, &entry, inode),
            None => {
                job.folder.forbid_later(&entry, inode);
                Ok(())
            }
        };
        match writing.entry(&job.listed, at) {
            Ok(Written::Skipped(there)) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                self.passed(&entry);
                // An interrupted restore may have written it without its restrictive flags.
                if there.same {
                    forbid_later(there.inode)?;
                }
                return Ok(there.same);
            }
            Ok(Written::Made { warning, forbidden }) => {
                self.counts.made(&entry);
                if let Some(warning) = warning {
                    self.problem(&job.path, &warning);
                }
                if entry.is_changed() {
                    let path = self.to.join(&job.path);
                    self.monitor.note(&format!("{} changed while it was backed up", path.display()));
                }
                forbidden.map_or(Ok(()), forbid_later)?;
                self.monitor.entry(&job.path, "restored");
                if entry.kind == Kind::File {
                    self.monitor.progress().file();
                }
                return Ok(true);
            }
            Ok(Written::Refused) => {}
            Err(error) => self.missed(&job.path, error)?,
        }
        Ok(false)
    }

    /// Creates a hard link to the file at `first`. If that fails, writes a separate file.
    fn link(
        &self,
        job: &RestoreJob,
        first: &Path,
        at: &Destination<'_>,
        writing: &EntryWriter<'_>,
    ) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let linked = job.folder.open_beneath(first).map_err(EntryError::Io);
        match linked.and_then(|(folder, first)| writing.link((&folder, &first), at, &job.listed)) {
            Ok(Linked::Made) => {
                self.counts.others.fetch_add(1, Ordering::Relaxed);
                self.passed(&entry);
                Ok(true)
            }
            Ok(Linked::There) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                self.passed(&entry);
                Ok(true)
            }
            Err(EntryError::Io(e)) if !is_full(&e) => {
                let written = self.write_new(job, at, writing)?;
                if written {
                    self.problem(
                        &job.path,
                        &format!("cannot link it to {}: {e}; it is restored as a separate file", first.display()),
                    );
                }
                Ok(written)
            }
            Err(error) => self.missed(&job.path, error).map(|()| false),
        }
    }

    /// Handles a failed entry: returns a fatal error, or reports a problem.
    fn missed(&self, path: &Path, error: EntryError) -> Result<(), Error> {
        match error {
            EntryError::Exists => Err(Error::Conflict { path: self.to.join(path) }),
            EntryError::Io(e) if is_full(&e) => Err(Error::Full { path: self.to.join(path) }),
            EntryError::Stopped => Err(Error::Interrupted),
            error => {
                if let EntryError::Archive(error) = &error {
                    self.note_lost(error);
                }
                self.problem(path, &error.to_string());
                Ok(())
            }
        }
    }

    /// Advances the progress for a file that needed no writing.
    fn passed(&self, entry: &EntryRef<'_>) {
        if entry.kind == Kind::File {
            self.monitor.progress().file();
            self.monitor.progress().bytes(entry.size);
        }
    }
}
