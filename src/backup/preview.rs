//! A dry run: the same walk, followed by one who stores nothing.
//!
//! Directories are listed and compared with the catalog as in a backup, and no file is opened. Neither the lock nor a
//! transaction is taken, so a backup may run beside it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use roaring::RoaringTreemap;

use super::budget::Budget;
use super::calls::Calls;
use super::devices::Devices;
use super::entry::change;
use super::event::Event;
use super::limits::{ATTRIBUTES_AHEAD, Directories, EVENTS, HELPERS, WALK_STACK};
use super::path_stack::PathStack;
use super::readahead::Readahead;
use super::rules::Rules;
use super::scope::{Origin, Scope};
use super::walk::{Attempt, Counts, Stop, Walk};
use super::{Error, Summary};
use crate::catalog::{Catalog, DirectoryId, SourceRow};
use crate::format::Kind;
use crate::monitor::Monitor;
use crate::source::LastMount;
use crate::threads::{TooFew, start};

/// A parent that no directory has: the root of a source that does not exist yet is found by its inode at most, as in
/// a backup.
const NO_SOURCE: SourceRow = SourceRow(0);

/// What a dry run is made of.
pub(super) struct Preview<'a> {
    pub(super) scope: &'a Scope,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) stop: &'a AtomicBool,
    pub(super) calls: &'a Arc<Calls>,
}

impl Preview<'_> {
    /// Walks, and says what a backup would read.
    pub(super) fn run(&self, catalog: Catalog, rules: Rules) -> Result<Summary, Error> {
        let Origin::Tree { root, selection } = &self.scope.origin else {
            return Err(Error::Usage("a dry run can't tell what standard input will hold".into()));
        };
        let past = catalog.past()?;
        let source = catalog.source(&self.scope.name)?.map(|(row, _)| row);
        super::expect_as_before(&catalog, source, self.monitor)?;
        let above = DirectoryId::above(source.unwrap_or(NO_SOURCE));
        // The walk has a connection of its own.
        drop(catalog);
        let ahead = Readahead::default();

        thread::scope(|threads| {
            let (events_in, events) = bounded(EVENTS);
            let (jobs, unread) = bounded(EVENTS);
            let directories = Arc::new(Directories::of_process());
            start(threads, "passing over files", 1, || {
                let unread = unread.clone();
                move || unread.iter().for_each(drop)
            })?;
            drop(unread);
            let mounts = LastMount::of_table(&rules.mounts);
            let mut walk = Walk {
                past,
                rules: Arc::new(rules),
                calls: self.calls.clone(),
                directories: directories.clone(),
                events: events_in,
                batch: RefCell::default(),
                held: RefCell::default(),
                small: jobs.clone(),
                large: jobs,
                budget: None,
                attributes: Budget::new(ATTRIBUTES_AHEAD),
                monitor: self.monitor,
                stop: self.stop,
                ahead: ahead.clone(),
                root: None,
                counts: Counts::default(),
                files_sent: 0,
                devices: Devices::default(),
                mounts,
                entered: RoaringTreemap::new(),
                attempt: Attempt::default(),
            };
            let walk =
                thread::Builder::new().name("walk".into()).stack_size(WALK_STACK).spawn_scoped(threads, move || {
                    let result = walk.root(root, above, selection.root()).and_then(|()| walk.send_batch());
                    walk.counts.expect_if(result.is_ok(), walk.monitor);
                    (walk.counts, result)
                });
            let walk = walk.map_err(|source| TooFew { work: "the walk", source })?;
            // Not before: they wait until they are told to go. Without them everything is only slower.
            let helped = &ahead;
            let _ = start(threads, "looking ahead", HELPERS, || move || helped.help());
            let read_bytes = self.follow(&events, PathStack::new(root));
            if self.calls.are_abandoned() {
                self.calls.leave(self.monitor);
            }
            let walk = walk.join();
            ahead.close();
            match walk.map_err(|_| Error::Stopped("the walk"))? {
                (counts, Ok(())) => Ok(self.summary(counts, read_bytes)),
                (_, Err(Stop::Failed(Error::Interrupted))) => Err(Error::PreviewInterrupted),
                (_, Err(Stop::Failed(error))) => Err(error),
                (_, Err(Stop::Gone)) => Err(Error::Stopped("the walk")),
            }
        })
    }

    /// Follows the walk to its end, and names what is new or changed. Returns the bytes of files that would be read.
    fn follow(&self, events: &Receiver<Vec<Event>>, mut trail: PathStack) -> u64 {
        let progress = self.monitor.progress();
        let mut read_bytes = 0;
        for event in std::iter::from_fn(|| self.calls.receive(events)).flatten() {
            match event {
                Event::Enter(enter) => {
                    trail.enter(&enter.name);
                    progress.at(trail.path());
                    if enter.row.is_none() {
                        self.monitor.entry(trail.path(), change(false));
                    }
                }
                Event::Files(new) => {
                    for file in &new.files {
                        self.monitor.entry(&trail.child(&file.name), change(file.existed));
                        progress.file();
                        progress.bytes(file.size);
                        read_bytes += file.size;
                    }
                }
                Event::Plain(plain) => self.monitor.entry(&trail.child(&plain.entry.name), change(plain.existed)),
                Event::Reused(reused) if reused.stat.kind == Kind::File => {
                    progress.file();
                    progress.bytes(reused.stat.size);
                }
                Event::Leave { .. } => {
                    trail.leave();
                    progress.at(trail.path());
                }
                Event::Reused(_)
                | Event::Kept(_)
                | Event::Again { .. }
                | Event::OldSegment(_)
                | Event::NewSegment { .. }
                | Event::EndSegment => {}
            }
        }
        read_bytes
    }

    fn summary(&self, counts: Counts, read_bytes: u64) -> Summary {
        Summary {
            snapshot: None,
            source: self.scope.name.clone(),
            dry_run: true,
            new_files: counts.new,
            changed_files: counts.changed,
            unmodified_files: counts.unmodified,
            read_files: counts.new + counts.changed,
            files: counts.files,
            directories: counts.directories,
            others: counts.others,
            bytes: counts.bytes,
            read_bytes,
            added_bytes: 0,
            data_packs: 0,
            tree_packs: 0,
            data_bytes: 0,
            tree_bytes: 0,
            problems: counts.problems,
            duration: Duration::ZERO,
        }
    }
}
