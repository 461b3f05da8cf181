//! A dry run: the same walk as in a backup, with a follower that stores nothing.
//!
//! Directories are listed and compared with the catalog as in a backup, and no file is opened. Neither the lock nor a
//! transaction is taken, so a backup may run at the same time.

use std::path::Path;

use super::entry::change;
use super::error::Error;
use super::pipeline::Follower;
use super::shrink::Guard;
use super::summary::Summary;
use super::walk::event::Event;
use super::walk::path_stack::PathStack;
use super::walk::tree::WalkCounts;
use crate::format::Kind;
use crate::monitor::Monitor;

/// Reports the entries that a backup would store.
pub(super) struct Preview<'a> {
    monitor: &'a dyn Monitor,
    /// The source's name.
    source: &'a str,
    path: PathStack,
    /// The number of files in the last snapshot.
    before: Option<u64>,
    guard: Option<&'a Guard>,
    root: &'a Path,
    /// Bytes of files that would be read.
    read_bytes: u64,
}

impl<'a> Preview<'a> {
    /// A preview of the tree at `root`.
    pub(super) fn new(
        source: &'a str,
        root: &'a Path,
        before: Option<u64>,
        guard: Option<&'a Guard>,
        monitor: &'a dyn Monitor,
    ) -> Self {
        Preview { monitor, source, path: PathStack::new(root), before, guard, root, read_bytes: 0 }
    }
}

impl Follower for Preview<'_> {
    fn event(&mut self, event: Event) -> Result<(), Error> {
        let progress = self.monitor.progress();
        match event {
            Event::Enter(enter) => {
                self.path.enter(&enter.name);
                progress.at(self.path.path());
                if enter.row.is_none() {
                    self.monitor.entry(self.path.path(), change(false));
                }
            }
            Event::Files(new) => {
                for file in &new.files {
                    self.monitor.entry(&self.path.child(&file.name), change(file.existed));
                    progress.file();
                    progress.bytes(file.size);
                    self.read_bytes += file.size;
                }
            }
            Event::Plain(plain) => {
                self.monitor.entry(&self.path.child(&plain.entry.name), change(plain.existed));
            }
            Event::Reused(reused) if reused.stat.kind == Kind::File => {
                progress.file();
                progress.bytes(reused.stat.size);
            }
            Event::Leave { .. } => {
                self.path.leave();
                progress.at(self.path.path());
            }
            Event::Reused(_)
            | Event::Kept(_)
            | Event::Again { .. }
            | Event::OldSegment(_)
            | Event::NewSegment { .. }
            | Event::EndSegment => {}
        }
        Ok(())
    }

    fn root_left(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn finish(self, mut counts: WalkCounts) -> Result<Summary, Error> {
        let refusal = self.guard.and_then(|guard| guard.refusal(self.before, counts.files, counts.others));
        if let Some(why) = &refusal {
            self.monitor.main_problem(self.root, why);
            counts.problems += 1;
        }
        Ok(Summary {
            shrunk: refusal.is_some(),
            dry_run: true,
            read_files: counts.new + counts.changed,
            read_bytes: self.read_bytes,
            ..Summary::of_walk(self.source, &counts)
        })
    }

    fn interrupt(self) -> Error {
        Error::PreviewInterrupted
    }
}
