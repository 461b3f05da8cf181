//! One backup from start to end.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use tracing::debug;

use super::calls::Calls;
use super::error::Error;
use super::glance::Glance;
use super::limits::{Directories, may_count_ahead, workers};
use super::options::{Options, RunPolicy};
use super::pipeline::{Follower, Pipeline, Readers, Watch};
use super::preview::Preview;
use super::read::hard_links::HardLinkCache;
use super::read::jobs::ReadSetup;
use super::read::lanes::Lanes;
use super::snapshot::{SnapshotMaker, SnapshotPlan, SnapshotSource};
use super::store::assembler::Assembler;
use super::store::blocks::BlockStore;
use super::store::nodes::Nodes;
use super::store::packer::Packer;
use super::store::seal::Sealing;
use super::summary::Summary;
use super::walk::event::Event;
use super::walk::readahead::Readahead;
use super::walk::retry::Settling;
use super::walk::rules::Rules;
use super::walk::scope::{Origin, Scope, identify};
use super::walk::tree::WalkCounts;
use crate::catalog::{Catalog, Parent, Past, SnapshotRow, SourceRow, View};
use crate::crypt::SecretKey;
use crate::failure::{Failure, FailureKind};
use crate::format::Timestamp;
use crate::format::id::SourceId;
use crate::format::source::Source;
use crate::inventory::host_key;
use crate::monitor::{Monitor, Silent, Total};
use crate::repository::Repository;
use crate::session::{self, Checks, LOOK_AGAIN, Mend, Priority, Publisher, Session, look};
use crate::source::{Chunker, Inode, MountTable, now};
use crate::state::{Lock, RepositoryState};

/// Makes a backup, or a dry run of one. `state` is the machine's state directory. `begins` receives the name of the source,
/// unless an argument is wrong. The run ends early when `stop` is set.
pub fn back_up(
    repository: &Repository,
    state: &Path,
    options: &Options,
    begins: impl FnOnce(&str),
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    with_calls(monitor, stop, |calls| {
        let local = repository.target().local_path();
        let invocation = Invocation::new(local.as_deref(), state, options, Watch { monitor, stop, calls })?;
        begins(&invocation.scope.name);
        invocation.make(repository)
    })
}

/// The same for a repository on a server, which is opened only if the source may have changed since its last snapshot, or if
/// the last search for lost documents at this target is older than a day.
pub fn back_up_if_changed<E: From<Error>>(
    open: impl FnOnce() -> Result<Repository, E>,
    state: &Path,
    options: &Options,
    begins: impl FnOnce(&str),
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Summary, E> {
    with_calls(monitor, stop, |calls| {
        // Lists of files may be pipes, so they are read only once.
        let invocation = Invocation::new(None, state, options, Watch { monitor, stop, calls })?;
        begins(&invocation.scope.name);
        match invocation.find_unchanged()? {
            Some(summary) => Ok(summary),
            None => Ok(invocation.make(&open()?)?),
        }
    })
}

/// Does `work`, whose calls to the source are watched, and notes its duration.
fn with_calls<E>(
    monitor: &dyn Monitor,
    stop: &AtomicBool,
    work: impl FnOnce(&Arc<Calls>) -> Result<Summary, E>,
) -> Result<Summary, E> {
    let begin = Instant::now();
    let calls = Arc::new(Calls::default());
    thread::scope(|threads| {
        // If the thread can't be started, calls that hang are not reported.
        let _watcher = thread::Builder::new().name("calls".into()).spawn_scoped(threads, || calls.watch(monitor, stop));
        let _close = CloseCalls(&calls);
        let summary = work(&calls)?;
        Ok(Summary { duration: begin.elapsed(), ..summary })
    })
}

/// Ends the thread that watches the calls.
struct CloseCalls<'c>(&'c Calls);

impl Drop for CloseCalls<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Wakes all threads that wait for memory or for work, also on unwinding.
struct CloseQueues<'a> {
    lanes: Option<&'a Lanes>,
    ahead: &'a Readahead,
}

impl Drop for CloseQueues<'_> {
    fn drop(&mut self) {
        self.ahead.close();
        if let Some(lanes) = self.lanes {
            lanes.close();
        }
    }
}

/// Ends the thread that counts ahead, when the backup ends.
struct EndOfCount<'c>(&'c AtomicBool);

impl Drop for EndOfCount<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The follower of a walk that only counts.
struct Count<'c>(&'c str);

impl Follower for Count<'_> {
    fn event(&mut self, _event: Event) -> Result<(), Error> {
        Ok(())
    }

    fn root_left(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn finish(self, counts: WalkCounts) -> Result<Summary, Error> {
        Ok(Summary::of_walk(self.0, &counts))
    }

    fn interrupt(self) -> Error {
        Error::Interrupted
    }
}

/// This machine's state, while this run alone may write.
struct Hold<'r> {
    repository: &'r Repository,
    key: SecretKey,
    lock: Lock,
}

/// The parameters of a backup, with its paths resolved.
struct Invocation<'a> {
    state: &'a Path,
    options: &'a Options,
    scope: Scope,
    mounts: MountTable,
    /// Directories that are never entered: the repository and this program's state.
    forbidden: HashSet<Inode>,
    watch: Watch<'a>,
    started: Timestamp,
}

impl<'a> Invocation<'a> {
    /// `local`: the directory of the repository, if it is on this machine.
    fn new(local: Option<&Path>, state: &'a Path, options: &'a Options, watch: Watch<'a>) -> Result<Self, Error> {
        options.check()?;
        let started = now();
        let mounts = MountTable::read()?;
        let scope = Scope::of(&options.selection, &mounts, watch.calls, watch.monitor)?;
        let own: Vec<_> =
            local.into_iter().chain([state]).map(|path| path.canonicalize().unwrap_or(path.into())).collect();
        let mapped = own.iter().map(|path| scope.map.place(path));
        let forbidden = own.iter().cloned().chain(mapped).filter_map(|path| identify(&path)).collect();
        scope.stay_out_of(&forbidden)?;
        let mounts = mounts.mapped(&scope.map);
        Ok(Invocation { state, options, scope, mounts, forbidden, watch, started })
    }

    fn rules(&self) -> Rules {
        let Options { selection, reading, storing, .. } = self.options;
        let large = storing.merge_files_under as u64;
        Rules::new(selection, reading, &self.scope, large, self.mounts.clone(), self.forbidden.clone())
    }

    /// Makes the backup, or the dry run.
    fn make(&self, repository: &Repository) -> Result<Summary, Error> {
        let is_dry_run = self.options.policy.dry_run;
        let mut summary = if is_dry_run { self.preview(repository)? } else { self.write_or_mend(repository)? };
        summary.problems += self.scope.missing;
        summary.lost_paths += self.scope.missing;
        Ok(summary)
    }

    /// Reports the files that a backup would read.
    fn preview(&self, repository: &Repository) -> Result<Summary, Error> {
        let Watch { monitor, stop, .. } = self.watch;
        look(repository, &self.repository_state(repository), monitor, stop, |catalog| self.compare(catalog))
    }

    /// Walks the source, and compares it with its last state in the catalog.
    fn compare(&self, catalog: Catalog) -> Result<Summary, Error> {
        let monitor = self.watch.monitor;
        let source = catalog.source(&self.scope.name)?.map(|(row, _)| row);
        expect_as_before(&catalog, source, monitor)?;
        let before = source.map(|source| catalog.latest_size(source)).transpose()?.flatten().map(|(files, _)| files);
        let guard = self.options.policy.guard.as_ref();
        let preview = Preview::new(&self.scope.name, self.scope.root(), before, guard, monitor);
        let past = catalog.past()?;
        // The walk has a connection of its own.
        drop(catalog);
        self.walk(self.watch, past, source, Directories::of_process(), preview)
    }

    /// Returns the result of a backup that finds the source as in its last snapshot, and has nothing else to do. `None` if a
    /// backup is needed to know that.
    fn find_unchanged(&self) -> Result<Option<Summary>, Error> {
        let Some(place) = &self.options.policy.daily_at else { return Ok(None) };
        let Some((repository, known)) = RepositoryState::looked_at(self.state, place, LOOK_AGAIN) else {
            return Ok(None);
        };
        let open = || Ok(Catalog::view(&known.catalog_path(), repository)?);
        match open().and_then(|view| view.read(|catalog| self.glance(catalog, open))) {
            Ok(summary) => Ok(Some(summary)),
            Err(error) if error.kind() == FailureKind::Interrupted => Err(error),
            Err(error) => {
                debug!(%error, "a backup is needed");
                Ok(None)
            }
        }
    }

    /// Fails with [`Error::Changed`] unless the source is as in its last snapshot.
    fn glance(&self, catalog: Catalog, open: impl Fn() -> Result<View, Error>) -> Result<Summary, Error> {
        let (source, last) = self.last_snapshot(&catalog)?;
        let compared = self.options.reading.identity;
        let glance = Glance { source: &self.scope.name, root: last.root, compared, depth: 0 };
        // A backup that follows reports everything.
        let watch = Watch { monitor: &Silent, ..self.watch };
        let past = catalog.past()?;
        drop(catalog);
        let summary = self.walk(watch, past, Some(source), Directories::of_process(), glance)?;
        // Another backup may have changed the catalog during the walk, and then failed.
        let (_, now) = open()?.read(|catalog| self.last_snapshot(&catalog))?;
        if now.name == last.name { Ok(summary) } else { Err(Error::Changed) }
    }

    /// Returns the last snapshot of the source if the catalog has its tree, and no run is unfinished.
    fn last_snapshot(&self, catalog: &Catalog) -> Result<(SourceRow, SnapshotRow), Error> {
        let Some((source, _)) = catalog.source(&self.scope.name)? else { return Err(Error::Changed) };
        let Some(last) = catalog.latest_snapshot(source)? else { return Err(Error::Changed) };
        let is_base = catalog.newest_base(source)?.is_some_and(|(name, _)| name == last.name);
        let is_tree = matches!(self.scope.origin, Origin::Tree { .. });
        if is_base && is_tree && self.scope.missing == 0 && catalog.unfinished()?.is_empty() {
            Ok((source, last))
        } else {
            Err(Error::Changed)
        }
    }

    /// Walks with a follower that stores nothing.
    fn walk(
        &self,
        watch: Watch<'_>,
        past: Past,
        source: Option<SourceRow>,
        directories: Directories,
        follower: impl Follower,
    ) -> Result<Summary, Error> {
        let ahead = Readahead::default();
        thread::scope(|threads| {
            let _close = CloseQueues { lanes: None, ahead: &ahead };
            let pipeline = Pipeline {
                scope: &self.scope,
                source,
                past,
                rules: self.rules(),
                readers: None,
                directories: Arc::new(directories),
                started: self.started,
                watch,
                ahead: &ahead,
            };
            let (following, more) = pipeline.start(threads)?;
            more.start(threads);
            following.follow(follower)
        })
    }

    /// Makes the backup. If the catalog turns out to be damaged, mends it and begins again.
    fn write_or_mend(&self, repository: &Repository) -> Result<Summary, Error> {
        let Watch { monitor, stop, .. } = self.watch;
        let state = self.repository_state(repository);
        let key = host_key(&state).map_err(session::Error::from)?;
        let lock = session::lock(&state, self.options.policy.wait_lock, Priority::Normal, monitor, stop)
            .map_err(session::Error::from)?;
        let hold = Hold { repository, key, lock };
        // Packs that were found lost are reported once, also if the run begins again.
        let mut lost_packs = 0;
        let result = match self.write(&hold, Mend::No, &mut lost_packs) {
            Err(error) if error.is_damaged_catalog() => {
                monitor.note(&format!("{error}. The damaged parts are dropped now, and read again"));
                match self.scope.origin {
                    Origin::Tree { .. } => self.write(&hold, Mend::Yes, &mut lost_packs),
                    // The content of the pipe is gone: only mend the catalog.
                    Origin::Stream(_) => {
                        self.open_session(&hold, Mend::Yes, &mut lost_packs)?;
                        Err(error)
                    }
                }
            }
            result => result,
        };
        let mut summary = result?;
        summary.problems += lost_packs;
        session::keep_reserve(repository, &state);
        Ok(summary)
    }

    fn repository_state(&self, repository: &Repository) -> RepositoryState {
        RepositoryState::new(self.state, repository.id())
    }

    fn open_session<'s>(
        &'s self,
        Hold { repository, key, lock }: &'s Hold<'_>,
        mend: Mend,
        lost_packs: &mut u64,
    ) -> Result<(Session<'s>, Catalog), Error> {
        let Watch { monitor, stop, .. } = self.watch;
        let RunPolicy { recheck, daily_at, early, recipients, .. } = &self.options.policy;
        let (daily_at, recipients) = (daily_at.as_deref(), recipients.as_deref());
        let checks = Checks { mend, recheck: *recheck, daily_at, early: *early, recipients };
        Ok(Session::open(repository, lock, key.clone(), checks, lost_packs, monitor, stop)?)
    }

    /// Makes the backup.
    fn write(&self, hold: &Hold<'_>, mend: Mend, lost_packs: &mut u64) -> Result<Summary, Error> {
        let (session, mut catalog) = self.open_session(hold, mend, lost_packs)?;
        let source = find_source(&session, &mut catalog, &self.scope.name)?;
        expect_as_before(&catalog, Some(source.row), self.watch.monitor)?;
        let is_new = catalog.latest_size(source.row)?.is_none();
        let is_watched = self.watch.monitor.shows_progress() && !self.options.policy.low_memory;
        let is_counted = is_new && is_watched && may_count_ahead();
        let past = is_counted.then(|| catalog.past()).transpose()?;
        let is_over = AtomicBool::new(false);
        thread::scope(|threads| {
            let _end = EndOfCount(&is_over);
            if let Some(past) = past {
                let count = || self.count(past, &is_over);
                // If the thread can't be started, the total is unknown until the walk is done.
                let _counter = thread::Builder::new().name("count".into()).spawn_scoped(threads, count);
            }
            self.run_stages(&session, catalog, source)
        })
    }

    /// Counts the files of a new source ahead, as an estimate of the total. Errors are those of the backup, which reports them.
    fn count(&self, past: Past, stop: &AtomicBool) {
        let watch = Watch { monitor: &Silent, stop, ..self.watch };
        if let (Origin::Tree { .. }, Ok(counted)) =
            (&self.scope.origin, self.walk(watch, past, None, Directories::of_count(), Count(&self.scope.name)))
        {
            let Summary { files, bytes, .. } = counted;
            self.watch.monitor.progress().expect(Total { files, bytes, estimated: true });
        }
    }

    /// Starts all stages, follows the walk, and makes the snapshot.
    fn run_stages(&self, session: &Session<'_>, catalog: Catalog, source: SnapshotSource) -> Result<Summary, Error> {
        let Options { reading, storing, policy, .. } = self.options;
        let Watch { monitor, stop, calls } = self.watch;
        let past = catalog.past()?;
        catalog.clear_deferred()?;
        let lanes = Lanes::new(policy.low_memory)?;
        let setup = ReadSetup {
            chunker: Chunker::new(session.trust().seed, storing.chunk_size),
            files_at_once: lanes.reading.files_at_once,
            whole_below: storing.merge_files_under as u64,
            attributes: lanes.attributes.clone(),
            hard_links: HardLinkCache::default(),
            mounts: self.mounts.clone(),
            calls: calls.clone(),
        };
        let settling = Settling { retries: reading.retries, longest: reading.settle_max };
        let ahead = Readahead::default();
        thread::scope(|threads| {
            let _close = CloseQueues { lanes: Some(&lanes), ahead: &ahead };
            let sealer = session.writer().block_sealer();
            // First one thread of each kind, which a backup can't do without.
            let (sealing, more_sealers) = Sealing::start(threads, session.packs(), sealer, storing.compression, stop)?;
            let pipeline = Pipeline {
                scope: &self.scope,
                source: Some(source.row),
                past,
                rules: self.rules(),
                readers: Some(Readers { lanes: &lanes, setup: &setup, settling }),
                directories: Arc::new(Directories::of_process()),
                started: self.started,
                watch: self.watch,
                ahead: &ahead,
            };
            let (following, more_threads) = pipeline.start(threads)?;
            let sealers = if policy.low_memory { 1 } else { workers(storing.compression) };
            more_sealers.start(threads, sealers - 1);
            more_threads.start(threads);

            let publisher = Publisher::new(session, catalog, policy.commit_interval);
            let packer = Packer::new(publisher, sealing, monitor);
            let nodes = Nodes::new(BlockStore::new(packer, storing.merge_files_under)?);
            let root = Parent::Source(source.row);
            let by_ctime = reading.identity.ctime;
            let assembler = Assembler::new(nodes, root, self.scope.root(), &setup, by_ctime, monitor);
            let plan = SnapshotPlan {
                session,
                scope: &self.scope,
                source,
                reading,
                policy,
                started: self.started,
                monitor,
                stop,
            };
            following.follow(SnapshotMaker::new(plan, assembler))
        })
    }
}

/// Finds the source of this name, or makes a new one.
fn find_source(session: &Session<'_>, catalog: &mut Catalog, name: &str) -> Result<SnapshotSource, Error> {
    if let Some((row, id)) = catalog.source(name)? {
        return Ok(SnapshotSource { row, id });
    }
    let source = Source { id: SourceId::random(), name: name.to_owned() };
    session.announce(catalog)?;
    session.writer().put_source(&source)?;
    let row = catalog.add_source(source.id, name)?;
    catalog.commit()?;
    Ok(SnapshotSource { row, id: source.id })
}

/// Tells the monitor the size of the last backup, as an estimate until the walk is done.
fn expect_as_before(catalog: &Catalog, source: Option<SourceRow>, monitor: &dyn Monitor) -> Result<(), Error> {
    if let Some(source) = source
        && let Some((files, bytes)) = catalog.latest_size(source)?
    {
        monitor.progress().expect(Total { files, bytes, estimated: true });
    }
    Ok(())
}
