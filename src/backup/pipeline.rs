//! The walk and the readers, and the loop that hands their events to a follower.
//!
//! ```text
//! helpers ─► walk ─► events ─────────────────► follower
//!              └───► jobs ─► readers ─► content ─┘
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, Builder, ScopedJoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::calls::Calls;
use super::error::Error;
use super::limits::{ATTRIBUTES_AHEAD, Directories, EVENTS, HELPERS, WALK_STACK};
use super::read::budget::Budget;
use super::read::files::read_files;
use super::read::jobs::{ReadJob, ReadSetup};
use super::read::lanes::Lanes;
use super::summary::Summary;
use super::walk::event::Event;
use super::walk::outbox::{Outbox, ReaderQueues};
use super::walk::pipe::PipeWalk;
use super::walk::readahead::Readahead;
use super::walk::retry::{Retry, Settling};
use super::walk::rules::Rules;
use super::walk::scope::{Origin, Scope};
use super::walk::stop::WalkStop;
use super::walk::tree::{SourceWalk, WalkCounts, WalkSetup};
use crate::catalog::{Past, SourceRow};
use crate::format::Timestamp;
use crate::monitor::{Monitor, Total};
use crate::threads::{TooFew, start};

/// Follows a walk: takes its events, and makes a summary of them.
pub(super) trait Follower {
    /// Handles an event.
    fn event(&mut self, event: Event) -> Result<(), Error>;

    /// The walk has left the root of the tree. Returns whether it should visit deferred files; everything that it sent is
    /// committed then.
    fn root_left(&mut self) -> Result<bool, Error>;

    /// Ends a run whose walk is complete.
    fn finish(self, counts: WalkCounts) -> Result<Summary, Error>;

    /// Ends a run that was interrupted: keeps the stored content, and returns the error to report.
    fn interrupt(self) -> Error;
}

/// How a run watches the source, and is watched itself.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    pub(super) monitor: &'a dyn Monitor,
    /// Ends the run when it is set.
    pub(super) stop: &'a AtomicBool,
    pub(super) calls: &'a Arc<Calls>,
}

/// The readers of a run. A dry run has none.
#[derive(Clone, Copy)]
pub(super) struct Readers<'a> {
    pub(super) lanes: &'a Lanes,
    pub(super) setup: &'a ReadSetup,
    pub(super) settling: Settling,
}

/// Everything that a walk needs.
pub(super) struct Pipeline<'a> {
    pub(super) scope: &'a Scope,
    /// The source, if the catalog has it.
    pub(super) source: Option<SourceRow>,
    pub(super) past: Past,
    pub(super) rules: Rules,
    pub(super) readers: Option<Readers<'a>>,
    /// How many directories may be open.
    pub(super) directories: Arc<Directories>,
    pub(super) started: Timestamp,
    pub(super) watch: Watch<'a>,
    pub(super) ahead: &'a Readahead,
}

/// A walk that has begun.
pub(super) struct Following<'scope, 'a> {
    events: Receiver<Vec<Event>>,
    /// Tells the walk to visit deferred files.
    go: Sender<()>,
    walk: ScopedJoinHandle<'scope, (WalkCounts, Result<(), WalkStop>)>,
    watch: Watch<'a>,
}

/// Starts the threads that make a walk faster.
pub(super) struct MoreThreads<'a> {
    readers: Option<(Readers<'a>, Receiver<ReadJob>)>,
    ahead: &'a Readahead,
}

impl<'a> Pipeline<'a> {
    /// Starts the walk and one reader of each kind.
    pub(super) fn start<'scope>(
        self,
        threads: &'scope thread::Scope<'scope, '_>,
    ) -> Result<(Following<'scope, 'a>, MoreThreads<'a>), Error>
    where
        'a: 'scope,
    {
        let Pipeline { readers, watch, ahead, .. } = self;
        let jobs_at_once = self.directories.jobs;
        let (events_in, events) = bounded(EVENTS);
        let (go, go_out) = bounded(1);
        let (queues, more) = match readers {
            Some(readers) => {
                let (queues, jobs) = start_readers(threads, readers, jobs_at_once)?;
                (queues, Some((readers, jobs)))
            }
            None => (skip_files(threads)?, None),
        };
        let (budget, attributes) = match readers {
            Some(Readers { lanes, .. }) => (lanes.budget.clone(), lanes.attributes.clone()),
            None => (None, Budget::new(ATTRIBUTES_AHEAD)),
        };
        let outbox = Outbox::new(events_in, queues, budget, attributes);
        let body = self.walk_body(outbox, go_out)?;
        let walk = Builder::new().name("walk".into()).stack_size(WALK_STACK).spawn_scoped(threads, move || {
            let (counts, result) = body();
            if result.is_ok() {
                let total = Total { files: counts.files, bytes: counts.bytes, estimated: false };
                watch.monitor.progress().expect(total);
            }
            (counts, result)
        });
        let walk = walk.map_err(|source| TooFew { work: "the walk", source })?;
        Ok((Following { events, go, walk, watch }, MoreThreads { readers: more, ahead }))
    }

    fn walk_body<'scope>(self, outbox: Outbox, go: Receiver<()>) -> Result<WalkBody<'scope>, Error>
    where
        'a: 'scope,
    {
        let Pipeline { scope, source, past, rules, readers, started, watch, ahead, directories } = self;
        let Watch { monitor, stop, calls } = watch;
        Ok(match (&scope.origin, readers, source) {
            (Origin::Tree { root, selection }, _, _) => {
                let settling = readers.map(|readers| readers.settling).unwrap_or_default();
                let (calls, ahead, attempt) = (calls.clone(), ahead.clone(), settling.first());
                let rules = Arc::new(rules);
                let mut walk = SourceWalk::new(WalkSetup {
                    past,
                    source,
                    rules,
                    calls,
                    directories,
                    outbox,
                    ahead,
                    attempt,
                    monitor,
                    stop,
                });
                Box::new(move || {
                    let result = walk.root(root, selection.root()).and_then(|()| walk.flush());
                    let result = result.and_then(|()| {
                        let retry = Retry::new(&mut walk, settling, selection.root());
                        retry.settle(&go, root)
                    });
                    (walk.counts(), result.and_then(|()| walk.flush()))
                })
            }
            (Origin::Stream(stream), Some(readers), Some(source)) => {
                let (chunker, lane) = (&readers.setup.chunker, &readers.lanes.large);
                let mut walk = PipeWalk { past, source, outbox, chunker, lane, started, monitor, stop };
                Box::new(move || match walk.send(stream) {
                    Ok(counts) => (counts, Ok(())),
                    Err(stop) => (WalkCounts::default(), Err(stop)),
                })
            }
            (Origin::Stream(_), _, _) => {
                return Err(Error::Usage("a dry run can't tell what standard input or a command will hold".into()));
            }
        })
    }
}

/// The body of the walk's thread. Returns the counts so far, also if the walk ends early.
type WalkBody<'scope> = Box<dyn FnOnce() -> (WalkCounts, Result<(), WalkStop>) + Send + 'scope>;

/// Starts one reader of each kind. Returns their queues, and the jobs of small files for more readers.
fn start_readers<'scope, 'a: 'scope>(
    threads: &'scope thread::Scope<'scope, '_>,
    readers: Readers<'a>,
    length: usize,
) -> Result<(ReaderQueues, Receiver<ReadJob>), TooFew> {
    let (small, small_out) = bounded(length);
    let (large, large_out) = bounded(length);
    start(threads, "reading small files", 1, || small_reader(readers, &small_out))?;
    start(threads, "reading large files", 1, || {
        let jobs = large_out.clone();
        move || read_files(&jobs, readers.setup, &readers.lanes.large)
    })?;
    Ok((ReaderQueues { small, large }, small_out))
}

/// The body of a reader of small files.
fn small_reader<'a>(readers: Readers<'a>, jobs: &Receiver<ReadJob>) -> impl FnOnce() + Send + use<'a> {
    let jobs = jobs.clone();
    move || read_files(&jobs, readers.setup, &readers.lanes.small)
}

/// Queues whose jobs are dropped unread.
fn skip_files<'scope>(threads: &'scope thread::Scope<'scope, '_>) -> Result<ReaderQueues, TooFew> {
    let (jobs, unread) = bounded::<ReadJob>(EVENTS);
    start(threads, "passing over files", 1, || {
        let unread = unread.clone();
        move || unread.iter().for_each(drop)
    })?;
    Ok(ReaderQueues { small: jobs.clone(), large: jobs })
}

impl<'a> MoreThreads<'a> {
    /// Starts as many threads as the system allows. Without them the walk is only slower.
    pub(super) fn start<'scope>(self, threads: &'scope thread::Scope<'scope, '_>)
    where
        'a: 'scope,
    {
        let MoreThreads { readers, ahead } = self;
        if let Some((readers, jobs)) = readers {
            let more = readers.lanes.reading.readers - 1;
            let _ = start(threads, "reading small files", more, || small_reader(readers, &jobs));
        }
        let _ = start(threads, "looking ahead", HELPERS, || move || ahead.help());
    }
}

impl Following<'_, '_> {
    /// Hands the events of the walk to `follower` until the walk is over, and ends both.
    pub(super) fn follow<F: Follower>(self, mut follower: F) -> Result<Summary, Error> {
        let Following { events, go, walk, watch } = self;
        let is_interrupted = match follow_events(&events, go, watch.calls, &mut follower) {
            Err(Error::Interrupted) => true,
            followed => followed.map(|()| false)?,
        };
        // The walk notices the interrupt by itself. Until it ends, its events are discarded.
        while is_interrupted && watch.calls.receive(&events).is_some() {}
        if watch.calls.are_abandoned() {
            // The walk, or a thread that it waits for, may never end.
            let interrupted = follower.interrupt();
            watch.calls.leave(watch.monitor);
            return Err(interrupted);
        }
        match walk.join().map_err(|_| Error::Stopped("the walk"))? {
            _ if is_interrupted => Err(follower.interrupt()),
            (counts, Ok(())) => follower.finish(counts),
            (_, Err(WalkStop::Failed(Error::Interrupted))) => Err(follower.interrupt()),
            (_, Err(WalkStop::Failed(error))) => Err(error),
            (_, Err(WalkStop::Gone)) => Err(Error::Stopped("the walk")),
        }
    }
}

/// Hands events to `follower` until there are no more, or calls to the source are abandoned.
fn follow_events(
    events: &Receiver<Vec<Event>>,
    go: Sender<()>,
    calls: &Calls,
    follower: &mut impl Follower,
) -> Result<(), Error> {
    // Dropped when no file is deferred any more: the walk ends then.
    let mut go = Some(go);
    let mut depth = 0u64;
    while let Some(batch) = calls.receive(events) {
        for event in batch {
            if calls.are_abandoned() {
                return Ok(());
            }
            match &event {
                Event::Enter(_) => depth += 1,
                Event::Leave { .. } => depth = depth.saturating_sub(1),
                _ => {}
            }
            let is_root_left = depth == 0 && matches!(event, Event::Leave { .. });
            follower.event(event)?;
            if is_root_left {
                // If the walk has ended, it has reported the files that are left.
                go = if follower.root_left()? { go.filter(|go| go.send(()).is_ok()) } else { None };
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::walk::event::EnterDirectory;
    use crate::source::{Extended, Stat};

    /// Wants deferred files to be visited a number of times.
    struct Counting {
        retries: usize,
        left: usize,
        events: usize,
    }

    impl Follower for Counting {
        fn event(&mut self, _event: Event) -> Result<(), Error> {
            self.events += 1;
            Ok(())
        }

        fn root_left(&mut self) -> Result<bool, Error> {
            self.left += 1;
            Ok(self.left <= self.retries)
        }

        fn finish(self, _counts: WalkCounts) -> Result<Summary, Error> {
            Err(Error::NothingThere)
        }

        fn interrupt(self) -> Error {
            Error::Interrupted
        }
    }

    fn pass() -> Vec<Event> {
        let folder = tempfile::tempdir().unwrap();
        let stat = Stat::of_fd(std::fs::File::open(folder.path()).unwrap()).unwrap();
        let enter = || {
            Event::Enter(Box::new(EnterDirectory {
                name: Vec::new(),
                stat: stat.clone(),
                device: 0,
                extended: Extended::default(),
                untrusted: false,
                row: None,
                again: false,
                lent: None,
            }))
        };
        let leave = || Event::Leave { removed: Vec::new() };
        vec![enter(), enter(), leave(), leave()]
    }

    fn follow(retries: usize) -> (Counting, usize) {
        let (events_in, events) = bounded(9);
        let (go, go_out) = bounded(1);
        let mut follower = Counting { retries, left: 0, events: 0 };
        let walk = std::thread::spawn(move || {
            let mut passes = 0;
            loop {
                passes += 1;
                events_in.send(pass()).unwrap();
                if go_out.recv().is_err() {
                    return passes;
                }
            }
        });
        follow_events(&events, go, &Calls::default(), &mut follower).unwrap();
        (follower, walk.join().unwrap())
    }

    #[test]
    fn the_walk_goes_on_while_files_are_deferred() {
        for retries in 0..3 {
            let (follower, passes) = follow(retries);
            assert_eq!((follower.left, passes), (retries + 1, retries + 1));
            assert_eq!(follower.events, 4 * passes);
        }
    }
}
