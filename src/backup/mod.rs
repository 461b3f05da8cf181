//! The backup engine: from a live file system to a snapshot, in flat memory.
//!
//! ```text
//! helpers ─► walk ─► events ─────────────────► engine ─► sealers ─► storer ─► target
//!              └───► jobs ─► readers ─► content ─┘ ▲ ▲       └────────┴─ places ─┐
//!                                       catalog ───┘ └───────────────────────────┘
//! ```
//!
//! - [`options`], [`summary`], [`error`]: input and output of a backup
//! - [`session`]: takes the lock and makes the catalog agree with the repository before anything is written
//! - [`scope`]: the paths to back up; [`list`] reads lists of paths, [`selection`] holds them
//! - [`walk`]: lists directories, compares them with the catalog, and sends jobs to the readers
//! - [`readahead`], [`listing`]: helpers that look into directories before the walk gets there
//! - [`calls`]: calls to the source that do not return
//! - [`retry`]: files that changed while they were read are visited again at the end
//! - [`devices`]: devices with other numbers than in the last backup
//! - [`stdin`]: reads a pipe instead of walking a tree
//! - [`event`]: the messages from the walk to the engine
//! - [`read`]: several readers of small files, one of large files
//! - [`hard_links`]: files with several names are read once
//! - [`budget`]: bounds the memory of readahead; [`spill`] is a temporary file used instead
//! - [`preview`]: a dry run, which follows the walk instead of the engine
//! - [`path_stack`]: the path of the current directory, for messages
//! - [`entry`]: entries as the file system describes them
//! - [`engine`]: decides everything, in one thread
//! - [`store`]: chunks into blocks, without duplicates
//! - [`nodes`]: tree nodes that wait for the blocks that they refer to
//! - [`seal`]: compression, encryption, packs
//! - [`commit`]: the order of durability
//! - [`limits`]: upper bounds on memory

mod budget;
mod calls;
mod commit;
mod devices;
mod engine;
mod entry;
mod error;
mod event;
mod hard_links;
mod limits;
mod list;
mod listing;
mod nodes;
mod options;
mod path_stack;
mod preview;
mod read;
mod readahead;
mod retry;
mod rules;
mod scope;
mod seal;
mod selection;
mod session;
mod spill;
mod stdin;
mod store;
mod summary;
mod walk;

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use roaring::RoaringTreemap;

pub use error::Error;
pub use options::{
    CHUNK_SIZE, COMMIT_INTERVAL, COMPRESSION, MERGE_FILES_UNDER, Options, RETRIES, Reading, RunPolicy, SETTLE_MAX,
    Selection, Storing,
};
pub use summary::Summary;

use crate::catalog::stats::Stats;
use crate::catalog::{Catalog, DirectoryId, Labels, Presence, SnapshotRow, SourceRow};
use crate::format::entry::{Content, Subtree};
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::{self, SnapshotName};
use crate::format::snapshot::{Snapshot, Statistics};
use crate::format::source::Source;
use crate::format::{ChunkRef, Items, Node, Timestamp};
use crate::monitor::{Monitor, Total};
use crate::repository::Repository;
use crate::source::{Chunker, EntryMount, LastMount, MountTable, Tags, now};
use crate::threads::{TooFew, start};
use calls::Calls;
use devices::Devices;
use engine::{Engine, Outcome, Tally};
use entry::entry_of;
use hard_links::Seen;
use limits::{CHANNEL, Directories, EVENTS, HELPERS, Lanes, WALK_STACK, workers};
use path_stack::PathStack;
use preview::Preview;
use read::ReadSetup;
use readahead::Readahead;
use retry::Settling;
use rules::Rules;
use scope::{Origin, Scope, identify};
use seal::OpenPacks;
use session::{Session, look};
use walk::{Counts, Stop, Walk};

/// Items that an index node or a node of extents lists.
const NODE_ITEMS: usize = 1000;
/// Extents, or nodes of extents, that stand in an entry itself.
const INLINE_EXTENTS: usize = 100;

/// Makes a backup, or only says what it would do. `state` is the machine's state directory; `stop` ends the run early
/// when set.
pub fn run(
    repository: &Repository,
    state: &Path,
    options: &Options,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let calls = Arc::new(Calls::default());
    thread::scope(|threads| {
        // Without a thread to watch them the run goes on all the same.
        let _watch = thread::Builder::new().name("calls".into()).spawn_scoped(threads, || calls.watch(monitor, stop));
        let _end = EndCalls(&calls);
        run_watched(repository, state, options, (monitor, stop), &calls)
    })
}

/// Lets the thread that watches the calls go, when it is dropped.
struct EndCalls<'c>(&'c Calls);

impl Drop for EndCalls<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A run whose calls to the source are watched.
fn run_watched(
    repository: &Repository,
    state: &Path,
    options: &Options,
    (monitor, stop): (&dyn Monitor, &AtomicBool),
    calls: &Arc<Calls>,
) -> Result<Summary, Error> {
    let started = (now(), Instant::now());
    let mounts = MountTable::read()?;
    let scope = Scope::of(&options.selection, &mounts, calls, monitor)?;
    let mut problems = scope.missing;
    let local = repository.target().local_path();
    let forbidden = local.into_iter().chain([state]).filter_map(identify).collect();
    scope.stay_out_of(&forbidden)?;
    let mut summary = if options.policy.dry_run {
        let preview = Preview { scope: &scope, monitor, stop, calls };
        preview.run(look(repository, state, monitor, stop)?, rules(&scope, options, (mounts, forbidden)))?
    } else {
        let attempt = Attempt { repository, state, scope: &scope, mounts: &mounts, forbidden: &forbidden, options };
        let watch = Watch { monitor, stop, calls, started: started.0 };
        match attempt.run(&watch, false, &mut problems) {
            Err(error) if error.is_damaged_catalog() => {
                monitor.note(&format!("{error}. What is damaged is left out now, and read again"));
                attempt.again(&watch, error, &mut problems)?
            }
            done => done?,
        }
    };
    summary.problems += problems;
    summary.duration = started.1.elapsed();
    Ok(summary)
}

/// A backup that writes, and may have to begin again.
struct Attempt<'a> {
    repository: &'a Repository,
    state: &'a Path,
    scope: &'a Scope,
    mounts: &'a MountTable,
    forbidden: &'a HashSet<(u64, u64)>,
    options: &'a Options,
}

/// Who watches a backup, and since when.
struct Watch<'a> {
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    calls: &'a Arc<Calls>,
    started: Timestamp,
}

impl Attempt<'_> {
    /// Makes the backup; `mend`: looks through the whole catalog before, and leaves out what is damaged.
    fn run(&self, watch: &Watch<'_>, mend: bool, problems: &mut u64) -> Result<Summary, Error> {
        let Attempt { repository, state, scope, options, .. } = *self;
        let Watch { monitor, stop, calls, started } = *watch;
        let (session, mut catalog) = Session::open(repository, state, &options.policy, mend, monitor, stop)?;
        *problems += session.lost_packs;
        let source = find_source(&session, &mut catalog, &scope.name)?;
        expect_as_before(&catalog, Some(source.0), monitor)?;
        let run = Run { session: &session, scope, source, options, monitor, stop, calls, started };
        run.stages(catalog, rules(scope, options, (self.mounts.clone(), self.forbidden.clone())))
    }

    /// Begins again with a catalog that is mended. What came through a pipe is gone, so then the first error stays.
    fn again(&self, watch: &Watch<'_>, error: Error, problems: &mut u64) -> Result<Summary, Error> {
        match self.scope.origin {
            Origin::Tree { .. } => self.run(watch, true, problems),
            Origin::Stdin(_) => {
                Session::open(self.repository, self.state, &self.options.policy, true, watch.monitor, watch.stop)?;
                Err(error)
            }
        }
    }
}

/// Lets go, when it is dropped, whoever waits for memory or for work: also if what comes before comes to grief.
struct End<'a> {
    lanes: &'a Lanes,
    ahead: &'a Readahead,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.lanes.close();
        self.ahead.close();
    }
}

fn find_source(session: &Session<'_>, catalog: &mut Catalog, name: &str) -> Result<(SourceRow, SourceId), Error> {
    if let Some(source) = catalog.source(name)? {
        return Ok(source);
    }
    let source = Source { id: SourceId::random(), name: name.to_owned() };
    session.announce(catalog)?;
    session.writer.put_source(&source)?;
    let row = catalog.add_source(source.id, name)?;
    catalog.commit()?;
    Ok((row, source.id))
}

fn rules(scope: &Scope, options: &Options, (mounts, forbidden): (MountTable, HashSet<(u64, u64)>)) -> Rules {
    Rules {
        exclude: scope.exclude.clone(),
        tags: Tags { caches: options.selection.exclude_caches, names: options.selection.exclude_if_present.clone() },
        exclude_nodump: options.selection.exclude_nodump,
        identity: options.reading.identity,
        one_file_system: options.selection.one_file_system,
        reread: options.reading.reread,
        large: options.storing.merge_files_under as u64,
        mounts,
        forbidden,
    }
}

/// Tells those who watch how much there was the last time: until the walk is done nobody knows better.
fn expect_as_before(catalog: &Catalog, source: Option<SourceRow>, monitor: &dyn Monitor) -> Result<(), Error> {
    if let Some(source) = source
        && let Some((files, bytes)) = catalog.latest_size(source)?
    {
        monitor.progress().expect(Total { files, bytes, estimated: true });
    }
    Ok(())
}

/// What one run is made of.
struct Run<'a> {
    session: &'a Session<'a>,
    scope: &'a Scope,
    source: (SourceRow, SourceId),
    options: &'a Options,
    monitor: &'a dyn Monitor,
    stop: &'a AtomicBool,
    calls: &'a Arc<Calls>,
    started: Timestamp,
}

impl Run<'_> {
    /// Starts all stages, follows the walk with the engine, and makes the snapshot.
    fn stages(&self, catalog: Catalog, rules: Rules) -> Result<Summary, Error> {
        let workers = match self.options.policy.low_memory {
            true => 1,
            false => workers(self.options.storing.compression),
        };
        let target = self.session.repository.target();
        let sealer = self.session.writer.block_sealer();
        let rules = Arc::new(rules);
        let past = catalog.past()?;
        catalog.clear_deferred()?;
        let lanes = &Lanes::new(self.options.policy.low_memory)?;
        let reading = ReadSetup {
            cutter: Chunker::new(self.session.trust.seed, self.options.storing.chunk_size),
            whole_below: rules.large,
            attributes: lanes.attributes.clone(),
            seen: Seen::default(),
            mounts: rules.mounts.clone(),
            calls: self.calls.clone(),
        };
        let reading = &reading;
        let ahead = Readahead::default();
        let settling = Settling { retries: self.options.reading.retries, longest: self.options.reading.settle_max };

        thread::scope(|threads| {
            let (events_in, events) = bounded(EVENTS);
            let (plain, plain_out) = bounded(CHANNEL);
            let (buffers_in, buffers) = bounded(CHANNEL);
            let (full, full_out) = bounded(1);
            let (done_in, done) = unbounded();
            let directories = Arc::new(Directories::of_process());
            let (small, small_out) = bounded(directories.jobs);
            let (large, large_out) = bounded(directories.jobs);

            let packs = Arc::new(OpenPacks::new(target, self.session.run, full, done_in.clone()));
            let level = self.options.storing.compression;
            let make_sealer = {
                let packs = packs.clone();
                move || {
                    let (plain, buffers) = (plain_out.clone(), buffers_in.clone());
                    let (packs, sealer) = (packs.clone(), sealer.clone());
                    move || seal::seal(&plain, sealer.as_ref(), level, &packs, &buffers)
                }
            };
            let make_reader = move || {
                let jobs = small_out.clone();
                move || read::work(&jobs, reading, &lanes.small)
            };
            start(threads, "sealing", 1, &make_sealer)?;
            start(threads, "storing", 1, || {
                let (full, done) = (full_out.clone(), done_in.clone());
                move || seal::store(target, &full, &done)
            })?;
            start(threads, "reading small files", 1, &make_reader)?;
            start(threads, "reading large files", 1, || {
                let jobs = large_out.clone();
                move || read::work(&jobs, reading, &lanes.large)
            })?;
            // A channel ends when its last holder is gone.
            drop((full_out, done_in, large_out));

            let mounts = LastMount::of_table(&rules.mounts);
            let mut walk = Walk {
                past,
                rules,
                calls: self.calls.clone(),
                directories: directories.clone(),
                events: events_in,
                batch: RefCell::default(),
                held: RefCell::default(),
                small,
                large,
                budget: lanes.budget.clone(),
                attributes: lanes.attributes.clone(),
                monitor: self.monitor,
                stop: self.stop,
                ahead: ahead.clone(),
                root: None,
                counts: Counts::default(),
                files_sent: 0,
                devices: Devices::default(),
                mounts,
                entered: RoaringTreemap::new(),
                attempt: settling.first(),
            };
            let (go_in, go) = bounded(1);
            let (above, trail) = (DirectoryId::above(self.source.0), PathStack::new(self.scope.root()));
            let walk =
                thread::Builder::new().name("walk".into()).stack_size(WALK_STACK).spawn_scoped(threads, move || {
                    let result = match &self.scope.origin {
                        Origin::Tree { root, selection } => walk
                            .root(root, above, selection.root())
                            .and_then(|()| walk.send_batch())
                            .and_then(|()| walk.settle(settling, &go, root, selection.root())),
                        Origin::Stdin(name) => walk.stdin(name, above, (reading, &lanes.large), self.started),
                    };
                    let result = result.and_then(|()| walk.send_batch());
                    walk.counts.expect_if(result.is_ok(), walk.monitor);
                    (walk.counts, result)
                });
            let walk = walk.map_err(|source| TooFew { work: "the walk", source })?;
            // From here on a thread that cannot be had costs time only.
            let _ = start(threads, "sealing", workers.saturating_sub(1), &make_sealer);
            let _ = start(threads, "reading small files", lanes.small_readers().saturating_sub(1), &make_reader);
            drop((make_sealer, make_reader));
            // Not before: they wait until they are told to go.
            let helped = &ahead;
            let _ = start(threads, "looking ahead", HELPERS, || move || helped.help());

            let follow = || {
                let (stages, place) = ((plain, buffers, packs, done), (above, trail, reading));
                let events = (events, self.calls.as_ref());
                let mut engine = Engine::new(self.session, catalog, self.options, self.monitor, events, stages, place)?;
                let root = engine.follow_all(go_in)?;
                if self.calls.are_abandoned() {
                    // The walk, or a thread that it waits for, may never end.
                    let interrupted = break_off(&mut engine);
                    self.calls.leave(self.monitor);
                    return interrupted;
                }
                match (walk.join().map_err(|_| Error::Stopped("the walk"))?, root) {
                    ((counts, Ok(())), Some(root)) => self.finish(&mut engine, &root, counts),
                    ((_, Err(Stop::Failed(Error::Interrupted))), _) => break_off(&mut engine),
                    ((_, Err(Stop::Failed(error))), _) => Err(error),
                    _ => Err(Error::Stopped("the walk")),
                }
            };
            // The engine goes with its channels; only who waits for memory or for work would not notice.
            let _end = End { lanes, ahead: &ahead };
            follow()
        })
    }

    /// Makes the snapshot: commits, writes it last of all, and notes that it is there.
    fn finish(&self, engine: &mut Engine<'_>, root: &Outcome, counts: Counts) -> Result<Summary, Error> {
        engine.settle()?;
        // An interrupt that ended what fills a pipe may look like its end at first.
        if self.stop.load(Ordering::Relaxed) {
            return break_off(engine);
        }
        let previous = engine.catalog.latest_snapshot(self.source.0)?;
        // A pipe's file is always written anew, with another time.
        let same = match self.scope.origin {
            Origin::Stdin(_) => counts.unmodified == 1 || !root.changed,
            Origin::Tree { .. } => {
                let now = self.identity(root, false);
                let as_before = |(row, _): &(SnapshotRow, _)| now.same_as(&row.root, self.options.reading.identity);
                !root.changed && previous.as_ref().is_some_and(as_before)
            }
        };
        if self.options.policy.skip_if_unchanged && same && previous.is_some() {
            engine.catalog.link_directories(&[root.id])?;
            engine.catalog.set_finished()?;
            engine.commit(None)?;
            return Ok(self.summary(None, counts, engine.tally));
        }
        self.session.announce(&mut engine.catalog)?;
        for (parent, name, id) in std::mem::take(&mut engine.vanished) {
            engine.catalog.remove_directory(parent, &name, id)?;
        }
        engine.catalog.remove_displaced()?;
        if engine.repeated {
            engine.used = engine.catalog.blocks_below(root.id)?;
        }
        // Not equal: of a run that broke off there may be directories that have vanished since.
        debug_assert!(engine.used.is_subset(&engine.catalog.blocks_below(root.id)?));
        let (previous, base) = match previous {
            Some((row, blocks)) => (Some(row.name.id), blocks.map(|blocks| (row.name, blocks))),
            None => (None, None),
        };
        let name = SnapshotName {
            source: self.source.1,
            sequence: self.session.generation,
            time: name::time(self.started.seconds),
            id: SnapshotId::random(),
        };
        let (identity, root) = (self.identity(root, root.untrusted), self.root_node(engine, root)?);
        let row = self.row(&name, identity, counts, engine.tally);
        let blocks = engine.snapshot_blocks(&row, base)?;
        engine.catalog.add_snapshot(&row, self.source.0, Some(&engine.used))?;
        engine.commit(Some(blocks))?;
        self.session.still_alone()?;
        // Packs were counted as they were stored, the last of them just now.
        let statistics = statistics(counts, engine.tally);
        let Labels { host, paths, tags } = self.labels();
        let snapshot = Snapshot {
            name: name.clone(),
            source: row.source.clone(),
            host,
            started: self.started,
            finished: now(),
            paths,
            root_path: self.scope.root_path(),
            tags,
            encrypted: self.session.trust.encrypted,
            previous,
            statistics,
            program: concat!("brackfs ", env!("CARGO_PKG_VERSION")).into(),
            root,
        };
        self.session.writer.put_snapshot(&snapshot)?;
        engine.catalog.set_there(name.id, Some(statistics.stored_bytes))?;
        engine.catalog.set_finished()?;
        engine.catalog.commit()?;
        Ok(self.summary(Some(name), counts, engine.tally))
    }

    /// The node that stands in the snapshot: the root directory's entry.
    fn root_node(&self, engine: &mut Engine<'_>, root: &Outcome) -> Result<Node, Error> {
        let mut blocks = Vec::new();
        let (below, stored) = engine.catalog.subtree(root.id)?;
        let mut node = None;
        if let Some(stored) = stored {
            blocks.push(engine.location(stored.block)?);
            let (digest, start, length) = (stored.digest, stored.start, stored.length);
            node = Some(ChunkRef { digest, block: 0, start, length });
        }
        engine.catalog.link_directories(&[root.id])?;
        let content = Content::Directory(Subtree { below, node });
        let items = Items::Entries(vec![entry_of(Vec::new(), &root.stat, root.extended.clone(), content)]);
        let mut node = Node { blocks, items, users: Default::default(), groups: Default::default() };
        engine.name_owners(&mut node);
        Ok(node)
    }

    /// What a root directory is known again by.
    fn identity(&self, root: &Outcome, untrusted: bool) -> Stats {
        let mut stats = Stats::default();
        match untrusted {
            true => stats.push_untrusted(b""),
            false => stats.push(b"", &root.stat, EntryMount::default()),
        }
        stats
    }

    /// What the snapshot is to be found by.
    fn labels(&self) -> Labels {
        Labels {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            paths: self.scope.paths.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect(),
            tags: self.options.policy.tags.clone(),
        }
    }

    fn row(&self, name: &SnapshotName, root: Stats, counts: Counts, tally: Tally) -> SnapshotRow {
        let statistics = statistics(counts, tally);
        SnapshotRow {
            name: name.clone(),
            source: self.scope.name.clone(),
            labels: Some(self.labels()),
            files: statistics.files,
            bytes: statistics.bytes,
            stored_bytes: statistics.stored_bytes,
            presence: Presence::Intended,
            root,
        }
    }

    fn summary(&self, snapshot: Option<SnapshotName>, counts: Counts, tally: Tally) -> Summary {
        let statistics = statistics(counts, tally);
        Summary {
            snapshot,
            source: self.scope.name.clone(),
            dry_run: false,
            new_files: counts.new,
            changed_files: counts.changed,
            unmodified_files: counts.unmodified,
            read_files: tally.read_files,
            files: statistics.files,
            directories: statistics.directories,
            others: statistics.others,
            bytes: statistics.bytes,
            read_bytes: tally.read_bytes,
            added_bytes: tally.added_bytes,
            data_packs: tally.data_packs,
            tree_packs: tally.tree_packs,
            data_bytes: tally.data_bytes,
            tree_bytes: tally.tree_bytes,
            problems: counts.problems + tally.problems,
            duration: Duration::ZERO,
        }
    }
}

/// Ends a run that was told to stop: what was stored is kept, and nothing else is left.
fn break_off(engine: &mut Engine<'_>) -> Result<Summary, Error> {
    engine.catalog.set_finished()?;
    engine.commit(None)?;
    Err(Error::Interrupted)
}

fn statistics(counts: Counts, tally: Tally) -> Statistics {
    Statistics {
        files: counts.files.saturating_sub(tally.missing_files),
        directories: counts.directories,
        others: counts.others,
        bytes: counts.bytes,
        stored_bytes: tally.data_bytes + tally.tree_bytes,
    }
}
