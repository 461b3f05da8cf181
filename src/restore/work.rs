//! What workers do: they make entries, and report what became of them.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::links::Role;
use super::write::{self, At, Linked, Writing, Written};
use super::{Error, Job, Run, is_full};
use crate::format::{Entry, Kind};

impl Run<'_> {
    /// Makes an entry that was handed out.
    pub(super) fn work(&self, job: Job) {
        // After an error the rest is only taken away, so that the walk does not wait for room for ever.
        let result = match self.is_over() {
            true => Ok(false),
            false => self.write(&job),
        };
        let done = self.links.done(&job, matches!(result, Ok(true)));
        if let Err(error) = result.and(done.map_err(Error::from)) {
            // The first error counts. The others stop because the walk does.
            self.failed().get_or_insert(error);
        }
        self.leave(job.folder);
    }

    /// Makes an entry. Returns whether its content is there now under its name.
    fn write(&self, job: &Job) -> Result<bool, Error> {
        let Some(opened) = job.folder.opened() else { return Ok(false) };
        let clash = |there| job.folder.clash(&job.listed.entry().name, job.had, there, self.reader);
        let at = At { opened, clash: &clash };
        let (reader, describe, progress) = (self.reader, &self.describe, self.monitor.progress());
        let writing = Writing { reader, conflict: self.options.conflict, describe, progress, stop: self.stop };
        progress.at(&job.path);
        match &job.role {
            Role::Further(first) => self.link(job, first, &at, &writing),
            Role::First | Role::Alone => self.write_new(job, &at, &writing),
        }
    }

    fn write_new(&self, job: &Job, at: &At<'_>, writing: &Writing<'_>) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let forbid_later = |inode| match entry.link {
            Some(_) => self.links.forbid_later(&job.path, entry, inode),
            None => {
                job.folder.forbid_later(entry, inode);
                Ok(())
            }
        };
        match writing.entry(&job.listed, at) {
            Ok(Written::Skipped(there)) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                self.passed(entry);
                // A run that was broken off may have left it so.
                if there.same {
                    forbid_later(there.inode)?;
                }
                return Ok(there.same);
            }
            Ok(Written::Made { warning, inode }) => {
                self.counts.made(entry);
                if let Some(warning) = warning {
                    self.problem(&job.path, &warning);
                }
                if entry.flags & Entry::CHANGED != 0 {
                    let path = self.to.join(&job.path);
                    self.monitor.note(&format!("{} changed while it was backed up", path.display()));
                }
                forbid_later(inode)?;
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

    /// Gives the file at `first` one more name. If it can't be linked, the name gets a file of its own.
    fn link(&self, job: &Job, first: &Path, at: &At<'_>, writing: &Writing<'_>) -> Result<bool, Error> {
        let entry = job.listed.entry();
        let linked = job.folder.open_beneath(first).map_err(write::Error::Io);
        match linked.and_then(|(folder, first)| writing.link((&folder, &first), at, &job.listed)) {
            Ok(Linked::Made) => {
                self.counts.others.fetch_add(1, Ordering::Relaxed);
                self.passed(entry);
                Ok(true)
            }
            Ok(Linked::There) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                self.passed(entry);
                Ok(true)
            }
            Err(write::Error::Io(e)) if !is_full(&e) => {
                let written = self.write_new(job, at, writing)?;
                if written {
                    self.problem(
                        &job.path,
                        &format!("it is a file of its own and no link to {}: {e}", first.display()),
                    );
                }
                Ok(written)
            }
            Err(error) => self.missed(&job.path, error).map(|()| false),
        }
    }

    /// An entry is not there: that ends the run, or is a problem.
    fn missed(&self, path: &Path, error: write::Error) -> Result<(), Error> {
        match error {
            write::Error::Exists => Err(Error::Conflict { path: self.to.join(path) }),
            write::Error::Io(e) if is_full(&e) => Err(Error::Full { path: self.to.join(path) }),
            write::Error::Stopped => Err(Error::Interrupted),
            error => {
                self.problem(path, &error.to_string());
                Ok(())
            }
        }
    }

    /// A file that is done without any work.
    fn passed(&self, entry: &Entry) {
        if entry.kind == Kind::File {
            self.monitor.progress().file();
            self.monitor.progress().bytes(entry.size);
        }
    }
}
