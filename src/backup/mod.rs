//! The backup engine: from a live file system to a snapshot, in flat memory.
//!
//! ```text
//! helpers ─► walk ─► events ─────────────────► engine ─► sealers ─► storer ─► target
//!              └───► jobs ─► readers ─► content ─┘ ▲ ▲       └────────┴─ places ─┐
//!                                       catalog ───┘ └───────────────────────────┘
//! ```
//!
//! - [`session`]: the lock, and a catalog that agrees with the repository, before anything is written
//! - [`scope`]: what is backed up; [`list`] reads lists of paths, [`selection`] holds them
//! - [`walk`]: lists, compares with the catalog, asks for what changed to be read
//! - [`ahead`], [`found`]: helpers look into directories before the walk gets there
//! - [`calls`]: calls to the source that do not return
//! - [`settle`]: files that do not keep still are looked at again in the end
//! - [`devices`]: devices that have other numbers than last time
//! - [`stdin`]: a pipe in the walk's place
//! - [`event`]: what the walk tells the engine
//! - [`read`]: many readers of small files, one of large files
//! - [`seen`]: files of several names, which are read once
//! - [`budget`]: the loan of memory for what was read ahead; [`parking`]: a temporary file in its place
//! - [`preview`]: a dry run, in the place of all that follows the walk
//! - [`trail`]: where the walk is, for messages
//! - [`engine`]: decides, in one thread
//! - [`store`]: chunks into blocks; what is known is not stored again
//! - [`nodes`]: tree nodes that wait for what they refer to
//! - [`seal`]: compression, encryption, packs
//! - [`commit`]: the order of durability
//! - [`limits`]: how much memory all of it takes

mod budget;
mod calls;
mod commit;
mod devices;
mod engine;
mod error;
mod event;
mod hard_links;
mod limits;
mod list;
mod listing;
mod nodes;
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
mod walk;

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use roaring::RoaringTreemap;

pub use error::Error;

use crate::catalog::stats::{ComparedFields, Stats};
use crate::catalog::{Catalog, DirectoryId, Labels, Presence, SnapshotRow, SourceRow};
use crate::format::entry::{Content, Entry, Subtree};
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::{self, SnapshotName};
use crate::format::snapshot::{Snapshot, Statistics};
use crate::format::source::Source;
use crate::format::{ChunkRef, Items, Node, Timestamp};
use crate::inventory::READ_AGAIN;
use crate::monitor::{Monitor, Total};
use crate::repository::Repository;
use crate::source::{Chunker, EntryMount, Extended, LastMount, MountTable, Stat, Tags, now, temporary_folder};
use crate::threads::{TooFew, start};
use calls::Calls;
use devices::Devices;
use engine::{Engine, Outcome, Tally};
use hard_links::Seen;
use limits::{CHANNEL, Directories, EVENTS, HELPERS, Lanes, WALK_STACK, workers};
use path_stack::PathStack;
use preview::Preview;
use read::Reading;
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

/// Average bytes of a chunk, unless asked otherwise.
pub const CHUNK_SIZE: usize = 512 << 10;
/// Files below this are gathered into composites, unless asked otherwise.
pub const MERGE_FILES_UNDER: usize = 512 << 10;
/// zstd's level, unless asked otherwise.
pub const COMPRESSION: i32 = 3;
/// Time between commits, unless asked otherwise.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(60);

/// How often a file that changes is read again, unless asked otherwise.
pub const RETRIES: u32 = 3;
/// How long files that changed just now are waited for, unless asked otherwise.
pub const SETTLE_MAX: Duration = Duration::from_secs(5);

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The source's name; none: the last name of the path or the name of standard input, `root` for several.
    pub source: Option<String>,
    /// What to back up. One directory is the snapshot's root; otherwise the root is `/`, with what leads to the paths. A
    /// symbolic link at the end of a path is followed only if a slash follows it.
    pub paths: Vec<PathBuf>,
    /// Files that list more paths, one a line or with a NUL behind each; `-` is standard input. With a list the
    /// root is always `/`. What is listed is taken with all below it, but a symbolic link stays one.
    pub files_from: Vec<PathBuf>,
    /// Instead of paths: standard input, as a file of this name. It is the only one in the snapshot.
    pub stdin: Option<OsString>,
    /// Words to find the snapshot by.
    pub tags: Vec<String>,
    /// Patterns of what to leave out, as in a `.gitignore` at the snapshot's root. Like all that is left out,
    /// it is on the way to a path, too, and what a list names.
    pub exclude: Vec<String>,
    /// Files of such patterns, which come before those in `exclude`: of several that match the last one counts.
    pub exclude_from: Vec<PathBuf>,
    /// Of directories with a valid `CACHEDIR.TAG` take nothing but that.
    pub exclude_caches: bool,
    /// Of directories that have an entry of one of these names take nothing but that entry.
    pub exclude_if_present: Vec<OsString>,
    /// Leave out what has the attribute `d` (`chattr +d`).
    pub exclude_nodump: bool,
    /// Leave mounts of other file systems below the paths empty. Each path counts for itself.
    pub one_file_system: bool,
    /// Average bytes of a chunk. From 1 MiB on files are cut at fixed offsets of 1 MiB.
    pub chunk_size: usize,
    /// Files, and tails of files, below this are gathered into composites.
    pub merge_files_under: usize,
    /// One worker, and chunks wait in unnamed temporary files.
    pub low_memory: bool,
    /// zstd's level.
    pub compression: i32,
    /// Time between commits. A run that is killed loses at most so much work.
    pub commit_interval: Duration,
    /// Make no snapshot if nothing changed.
    pub skip_if_unchanged: bool,
    /// What makes a file the same as before.
    pub identity: ComparedFields,
    /// Believe no identity: read every file.
    pub reread: bool,
    /// How often a file is read again that changes while it is read, before it is stored as it was read, and marked.
    pub retries: u32,
    /// How long to wait in all for files that changed just now.
    pub settle_max: Duration,
    /// Time to wait for another run that writes.
    pub wait_lock: Duration,
    /// Bytes of packs to read again, of those that were not looked at for long.
    pub recheck: u64,
    /// Only say what is new or changed. No file is opened, and nothing is written.
    pub dry_run: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            source: None,
            paths: Vec::new(),
            files_from: Vec::new(),
            stdin: None,
            tags: Vec::new(),
            exclude: Vec::new(),
            exclude_from: Vec::new(),
            exclude_caches: false,
            exclude_if_present: Vec::new(),
            exclude_nodump: false,
            one_file_system: false,
            chunk_size: CHUNK_SIZE,
            merge_files_under: MERGE_FILES_UNDER,
            low_memory: false,
            compression: COMPRESSION,
            commit_interval: COMMIT_INTERVAL,
            skip_if_unchanged: false,
            identity: ComparedFields::default(),
            reread: false,
            retries: RETRIES,
            settle_max: SETTLE_MAX,
            wait_lock: Duration::ZERO,
            recheck: READ_AGAIN,
            dry_run: false,
        }
    }
}

/// What a backup did.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The snapshot; none if nothing changed and none was wanted then.
    pub snapshot: Option<SnapshotName>,
    /// The source's name.
    pub source: String,
    /// Nothing was done: what is said to be read is what would have been.
    pub dry_run: bool,
    /// Files that were not there before.
    pub new_files: u64,
    /// Files that look different.
    pub changed_files: u64,
    /// Files that look as before, and were not opened.
    pub unmodified_files: u64,
    /// Files that were opened and read.
    pub read_files: u64,
    /// All files.
    pub files: u64,
    /// All directories.
    pub directories: u64,
    /// Links and special files.
    pub others: u64,
    /// Sizes of all files added up.
    pub bytes: u64,
    /// Bytes of files that were read, holes left out.
    pub read_bytes: u64,
    /// Bytes that the repository did not have, of files and of directories, before they were compressed.
    pub added_bytes: u64,
    /// Packs of file content that were stored.
    pub data_packs: u64,
    /// Packs of tree nodes that were stored.
    pub tree_packs: u64,
    /// Bytes of those data packs.
    pub data_bytes: u64,
    /// Bytes of those tree packs.
    pub tree_bytes: u64,
    /// Files and directories that could not be read as they were, and packs that were found to be lost.
    pub problems: u64,
    /// Time from start to end.
    pub duration: Duration,
}

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
    let scope = Scope::of(options, &mounts, calls, monitor)?;
    let mut problems = scope.missing;
    let local = repository.target().local_path();
    let forbidden = local.into_iter().chain([state]).filter_map(identify).collect();
    scope.stay_out_of(&forbidden)?;
    let mut summary = if options.dry_run {
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
        let (session, mut catalog) = Session::open(repository, state, options, mend, monitor, stop)?;
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
                Session::open(self.repository, self.state, self.options, true, watch.monitor, watch.stop)?;
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
        tags: Tags { caches: options.exclude_caches, names: options.exclude_if_present.clone() },
        exclude_nodump: options.exclude_nodump,
        identity: options.identity,
        one_file_system: options.one_file_system,
        reread: options.reread,
        large: options.merge_files_under as u64,
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

/// What is said of an entry that a snapshot gets anew.
fn change(existed: bool) -> &'static str {
    if existed { "changed" } else { "new" }
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
        let workers = match self.options.low_memory {
            true => 1,
            false => workers(self.options.compression),
        };
        let target = self.session.repository.target();
        let sealer = self.session.writer.block_sealer();
        let rules = Arc::new(rules);
        let past = catalog.past()?;
        catalog.clear_deferred()?;
        let lanes = &Lanes::new(self.options.low_memory)?;
        let reading = Reading {
            cutter: Chunker::new(self.session.trust.seed, self.options.chunk_size),
            whole_below: rules.large,
            attributes: lanes.attributes.clone(),
            seen: Seen::default(),
            mounts: rules.mounts.clone(),
            calls: self.calls.clone(),
        };
        let reading = &reading;
        let ahead = Readahead::default();
        let settling = Settling { retries: self.options.retries, longest: self.options.settle_max };

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
            let level = self.options.compression;
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
                let as_before = |(row, _): &(SnapshotRow, _)| now.same_as(&row.root, self.options.identity);
                !root.changed && previous.as_ref().is_some_and(as_before)
            }
        };
        if self.options.skip_if_unchanged && same && previous.is_some() {
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
            tags: self.options.tags.clone(),
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

/// An entry with what the file system says of it.
fn entry_of(name: Vec<u8>, stat: &Stat, extended: Extended, content: Content) -> Entry {
    let size = match &content {
        Content::Target(target) => target.len() as u64,
        _ => 0,
    };
    Entry {
        name,
        kind: stat.kind,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.mtime,
        size,
        content,
        link: None,
        xattrs: extended.xattrs,
        flags: 0,
        inode_flags: extended.inode_flags,
    }
}

/// A temporary file that failed.
fn temporary(source: std::io::Error) -> Error {
    Error::Temporary { folder: temporary_folder().display().to_string(), source }
}
