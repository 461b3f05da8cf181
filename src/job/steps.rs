//! The steps of a run, in their order.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;

use super::conditions::obstacle;
use super::hooks::{self, Interrupt, Verdict};
use super::journal::{Begun, Journal, JournalError, Subject};
use super::outcome::{Counts, Ending, Failed, Outcome, Row, Step};
use super::priority::Lowered;
use super::snapshots::{self, Snapshots};
use crate::backup::{self, Options, Placed, SNAPSHOT_FOLDER, Summary};
use crate::config::{CheckConfig, Config, Hook, Moment, OnFailure, Priority, SourceConfig, TargetConfig};
use crate::failure::FailureKind;
use crate::format::RepositoryId;
use crate::monitor::{Monitor, count};
use crate::prune;
use crate::repository::Repository;
use crate::retention::{self, Calendar, Caution, Choice, ForgetError, Grouping};
use crate::session::{self, EarlyRuns, LockWait};
use crate::state::RepositoryState;
use crate::storage::{Ahead, Location};

/// How long a hook may run after an interrupt, since a service manager kills soon.
const AFTER_INTERRUPT: Duration = Duration::from_secs(15);

/// Which part of a configuration is run.
#[derive(Debug)]
pub struct Job<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The sources.
    pub sources: Vec<&'a SourceConfig>,
    /// The only kind of step; `None` for all.
    pub only: Option<Step>,
    /// Make snapshots of sources no matter how many files they lost.
    pub allow_shrink: bool,
    /// Let policies forget more than half of a source.
    pub force: bool,
    /// Change nothing.
    pub dry_run: bool,
}

/// What a run works with.
pub struct Environment<'a> {
    /// This machine's state directory.
    pub state: &'a Path,
    /// The record of steps, if it can be used.
    pub journal: Option<&'a Journal>,
    /// The program that runs it.
    pub caller: &'a dyn Caller,
    /// When set, the run ends early.
    pub stop: &'a AtomicBool,
    /// The repository that the step opened.
    opened: Cell<Option<RepositoryId>>,
}

impl<'a> Environment<'a> {
    /// An environment in which nothing was run yet.
    pub fn new(state: &'a Path, journal: Option<&'a Journal>, caller: &'a dyn Caller, stop: &'a AtomicBool) -> Self {
        Environment { state, journal, caller, stop, opened: Cell::default() }
    }

    fn open(&self, target: &TargetConfig, ahead: Vec<Ahead>) -> Result<Repository, Failed> {
        let repository = self.caller.open(target, ahead)?;
        self.opened.set(Some(repository.id()));
        Ok(repository)
    }
}

/// What a run needs from the program.
pub trait Caller {
    /// Opens the repository of a target. The reads begin at once.
    fn open(&self, target: &TargetConfig, ahead: Vec<Ahead>) -> Result<Repository, Failed>;

    /// The location of a target, as it is opened.
    fn locate(&self, target: &TargetConfig) -> Location;

    /// Does the work of a step with a monitor, whose progress starts from zero.
    fn watch(&self, work: &mut dyn FnMut(&dyn Monitor));

    /// Receives reports between steps.
    fn monitor(&self) -> &dyn Monitor;

    /// Receives each step when it has ended.
    fn ended(&self, row: &Row);

    /// Formats a size in bytes.
    fn size(&self, bytes: u64) -> String;

    /// A step as JSON.
    fn json(&self, row: &Row) -> String;

    /// The exit code after these steps.
    fn code(&self, rows: &[Row]) -> u8;
}

impl<'a> Job<'a> {
    /// Runs all steps. Returns their results.
    pub fn run(&'a self, environment: &'a Environment<'a>) -> Vec<Row> {
        let mut run = Run {
            job: self,
            environment,
            begun: Vec::new(),
            rows: Vec::new(),
            new: Vec::new(),
            unchanged: Vec::new(),
            away: Vec::new(),
            unrecorded: None,
        };
        run.all();
        run.rows
    }

    fn wants(&self, step: Step) -> bool {
        self.only.is_none_or(|only| only == step)
    }
}

/// A run in progress.
struct Run<'a> {
    job: &'a Job<'a>,
    environment: &'a Environment<'a>,
    /// Steps that are in the journal, and have not ended.
    begun: Vec<(OwnedSubject, Begun)>,
    rows: Vec<Row>,
    /// The sources and targets of new snapshots.
    new: Vec<(String, String)>,
    /// Those without one, since nothing changed.
    unchanged: Vec<(String, String)>,
    /// Targets that did not answer. Each step would wait for them again.
    away: Vec<String>,
    /// Why a step was not recorded. The same reason is noted once.
    unrecorded: Option<String>,
}

/// A step, its source and its target.
type OwnedSubject = (Step, Option<String>, Option<String>);

/// What the hooks before a backup want.
enum Gate {
    Open,
    Closed(Outcome),
}

impl<'a> Run<'a> {
    fn all(&mut self) {
        if self.job.wants(Step::Backup) {
            // If the process is killed at any time, each backup that it did not finish has a record of that.
            let backups = self.job.sources.iter().flat_map(|source| source.to.iter().map(|to| (&source.name, to)));
            let of = |(source, target): (&'a String, &'a String)| Subject {
                step: Step::Backup,
                source: Some(source),
                target: Some(target),
            };
            self.begin(&backups.map(of).collect::<Vec<_>>());
        }
        let gate = self.before(Moment::Before, None);
        if self.job.wants(Step::Backup) {
            if !self.job.dry_run {
                let caller = self.environment.caller;
                snapshots::remove_leftovers(self.environment.state, &|message| caller.monitor().note(message));
            }
            for source in &self.job.sources {
                self.source(source, &gate);
            }
        }
        for source in &self.job.sources {
            self.forget(source);
        }
        for target in self.targets() {
            self.prune(target);
        }
        for target in self.targets() {
            self.check(target);
        }
        self.after(None, 0);
    }

    /// The targets of the sources, in the order of the configuration.
    fn targets(&self) -> Vec<&'a TargetConfig> {
        let is_used = |target: &&TargetConfig| self.job.sources.iter().any(|source| source.to.contains(&target.name));
        self.job.config.targets.iter().filter(is_used).collect()
    }

    fn is_stopped(&self) -> bool {
        self.environment.stop.load(Ordering::Relaxed)
    }

    /// Runs a step, and records its result.
    fn step(
        &mut self,
        step: Step,
        source: Option<&str>,
        target: Option<&str>,
        work: impl FnOnce(&dyn Monitor) -> Result<Outcome, Failed>,
    ) {
        let begun = Instant::now();
        self.begin(&[Subject { step, source, target }]);
        let of_source = source.and_then(|name| self.job.config.source(name).ok()).map(|source| source.priority);
        let outcome = self.attempt(step, target, of_source.unwrap_or(self.job.config.priority), work);
        self.note(step, source, target, outcome, None, begun);
    }

    /// Does the work of a step, unless the run is to stop or the target is away.
    fn attempt(
        &mut self,
        step: Step,
        target: Option<&str>,
        priority: Priority,
        work: impl FnOnce(&dyn Monitor) -> Result<Outcome, Failed>,
    ) -> Outcome {
        let message = "the run was interrupted before this step".to_owned();
        let interrupted = Failed { kind: FailureKind::Interrupted, message };
        let before = match self.is_stopped() {
            true => Some(interrupted.clone()),
            false => target.and_then(|target| self.absence(target)),
        };
        if let Some(failed) = before {
            // A backup is always due. Other steps may not be tried again for days, and must not count as failed until then.
            return if step == Step::Backup { Outcome::Failed(failed) } else { Outcome::NotBegun(failed) };
        }
        let (mut work, mut outcome) = (Some(work), Outcome::Failed(interrupted));
        self.environment.caller.watch(&mut |monitor| {
            if let Some(work) = work.take() {
                let _lowered = Lowered::to(priority, |message| monitor.note(message));
                outcome = work(monitor).unwrap_or_else(|failed| Outcome::Failed(self.interruption(failed)));
            }
        });
        if let (Some(FailureKind::Unavailable), Some(target)) = (outcome.failure(), target) {
            self.away.push(target.to_owned());
        }
        outcome
    }

    /// The failure of a step, as an interruption if a signal ended a wait for the target.
    fn interruption(&self, failed: Failed) -> Failed {
        match failed.kind {
            FailureKind::Unavailable if self.is_stopped() => {
                Failed { kind: FailureKind::Interrupted, message: format!("interrupted: {}", failed.message) }
            }
            _ => failed,
        }
    }

    /// Why a step on a target that did not answer is not begun.
    fn absence(&self, target: &str) -> Option<Failed> {
        let message = "the target did not answer earlier in this run".to_owned();
        let failed = Failed { kind: FailureKind::Unavailable, message };
        self.away.iter().any(|away| away == target).then_some(failed)
    }

    /// Why a target is not used now, if it is not.
    fn target_obstacle(&self, target: &TargetConfig) -> Option<Outcome> {
        self.absence(&target.name).map(Outcome::Failed).or_else(|| obstacle(&target.conditions))
    }

    /// Adds steps that begin to the journal.
    fn begin(&mut self, subjects: &[Subject<'_>]) {
        let Some(journal) = self.environment.journal.filter(|_| !self.job.dry_run) else { return };
        match journal.begin(subjects) {
            Ok(begun) => {
                let owned = |name: Option<&str>| name.map(str::to_owned);
                let subjects = subjects.iter().map(|it| (it.step, owned(it.source), owned(it.target)));
                self.begun.extend(subjects.zip(begun));
            }
            Err(error) => self.note_unrecorded(&error),
        }
    }

    fn note_unrecorded(&mut self, error: &JournalError) {
        let why = Some(error.to_string());
        if self.unrecorded != why {
            self.unrecorded = why;
            self.environment.caller.monitor().note(self.unrecorded.as_deref().unwrap_or_default());
        }
    }

    /// Records the result of a step.
    fn note(
        &mut self,
        step: Step,
        source: Option<&str>,
        target: Option<&str>,
        outcome: Outcome,
        counts: Option<Counts>,
        begun: Instant,
    ) {
        let [source, target] = [source, target].map(|name| name.map(str::to_owned));
        let repository = self.environment.opened.take();
        let row = Row { step, source, target, repository, outcome, counts, duration: begun.elapsed() };
        if let Some(journal) = self.environment.journal.filter(|_| !self.job.dry_run) {
            let is_it =
                |(step, source, target): &OwnedSubject| (step, source, target) == (&row.step, &row.source, &row.target);
            let found = self.begun.iter().position(|(subject, _)| is_it(subject));
            let written = match found.map(|at| self.begun.swap_remove(at)) {
                Some((_, begun)) => journal.end(begun, &row),
                None => journal.add(&row),
            };
            if let Err(error) = written {
                self.note_unrecorded(&error);
            }
        }
        self.environment.caller.ended(&row);
        self.rows.push(row);
    }

    /// Backs a source up to its targets.
    fn source(&mut self, source: &SourceConfig, gate: &Gate) {
        let first = self.rows.len();
        let mut closed = match gate {
            Gate::Closed(outcome) => Some(outcome.clone()),
            Gate::Open => obstacle(&source.conditions),
        };
        let targets: Vec<_> = source.to.iter().filter_map(|name| self.job.config.target(name).ok()).collect();
        let obstacles: Vec<_> = targets.iter().map(|target| self.target_obstacle(target)).collect();
        let is_begun = closed.is_none() && obstacles.iter().any(Option::is_none);
        if is_begun && let Gate::Closed(outcome) = self.before(Moment::Before, Some(&source.name)) {
            closed = Some(outcome);
        }
        let caller = self.environment.caller;
        let note = |message: &str| caller.monitor().note(message);
        let snapshots = match &closed {
            None if is_begun => self.snapshots(source, &note).unwrap_or_else(|outcome| {
                closed = Some(outcome);
                None
            }),
            _ => None,
        };
        let read_from = snapshots.as_ref().map(|snapshots| snapshots.read_from.as_slice()).unwrap_or_default();
        for (target, before) in targets.into_iter().zip(obstacles) {
            let name = &target.name;
            let (job, environment) = (self.job, self.environment);
            let (mut is_new, mut is_unchanged, mut counts) = (false, false, None);
            let begun = Instant::now();
            let outcome = self.attempt(Step::Backup, Some(name), source.priority, |monitor| {
                // Without hooks and snapshots, a target that can be used by now must wait for the next run.
                let before = before.filter(|_| !is_begun);
                if let Some(outcome) = closed.clone().or(before).or_else(|| obstacle(&target.conditions)) {
                    return Ok(outcome);
                }
                if job.dry_run && source.options.selection.stream.is_some() {
                    return Ok(Outcome::Skipped("a dry run does not run the command".into()));
                }
                let summary = back_up(job, environment, source, read_from, target, monitor)?;
                counts = Some(Counts::from(&summary));
                let is_made = summary.snapshot.is_some() || job.dry_run && !summary.shrunk;
                is_new = is_made && summary.lost_paths == 0;
                is_unchanged = !is_made && !summary.shrunk && summary.problems == 0;
                Ok(backup_outcome(&summary, |bytes| environment.caller.size(bytes)))
            });
            self.note(Step::Backup, Some(&source.name), Some(name), outcome, counts, begun);
            if is_new {
                self.new.push((source.name.clone(), name.clone()));
            }
            if is_unchanged {
                self.unchanged.push((source.name.clone(), name.clone()));
            }
        }
        drop(snapshots);
        if is_begun {
            self.after(Some(&source.name), first);
        }
    }

    /// Makes the snapshots of file systems that a source wants, and runs the hooks after that.
    fn snapshots<'n>(&mut self, source: &SourceConfig, note: &'n dyn Fn(&str)) -> Result<Option<Snapshots<'n>>, Outcome>
    where
        'a: 'n,
    {
        let Some(wanted) = source.snapshot.as_ref().filter(|_| !self.job.dry_run && !self.is_stopped()) else {
            return Ok(None);
        };
        let Environment { state, stop, .. } = *self.environment;
        let made = Snapshots::make(wanted, &source.options.selection.paths, state, stop, note);
        let made = made.map_err(Outcome::Failed)?;
        if made.is_empty() {
            return Ok(None);
        }
        match self.before(Moment::Snapshot, Some(&source.name)) {
            Gate::Open => Ok(Some(made)),
            Gate::Closed(outcome) => Err(outcome),
        }
    }

    /// Removes snapshots of a source by its policy.
    fn forget(&mut self, source: &SourceConfig) {
        let Some(policy) = source.keep.as_ref().filter(|_| self.job.wants(Step::Forget)) else { return };
        for name in &source.to {
            let Ok(target) = self.job.config.target(name) else { continue };
            let is_due = self.job.only == Some(Step::Forget)
                || contains(&self.new, &source.name, name)
                || contains(&self.unchanged, &source.name, name) && self.has_failed_to_forget(&source.name, name);
            let (job, environment) = (self.job, self.environment);
            self.step(Step::Forget, Some(&source.name), Some(name), |monitor| {
                if !is_due {
                    return Ok(Outcome::Skipped("there is no new snapshot of all paths".into()));
                }
                if let Some(outcome) = obstacle(&target.conditions) {
                    return Ok(outcome);
                }
                let repository = environment.open(target, Vec::new())?;
                let state = RepositoryState::new(environment.state, repository.id());
                let (stop, wait_lock) = (environment.stop, LockWait::configured(target.wait_lock));
                let forgetting = retention::Scene { repository: &repository, state: &state, wait_lock, monitor, stop };
                let choice = Choice::Policy {
                    policy: policy.clone(),
                    sources: vec![source.name.clone()],
                    grouping: Grouping::Source,
                    calendar: Calendar { now: jiff::Timestamp::now(), zone: TimeZone::system() },
                };
                let chosen = match job.dry_run {
                    true => match forgetting.preview(&choice) {
                        // The run would make the first one.
                        Err(ForgetError::Policy(retention::Error::NoSource(_))) if job.only.is_none() => {
                            return Ok(Outcome::Skipped("there is no snapshot yet".into()));
                        }
                        chosen => chosen?,
                    },
                    false => {
                        let caution = if job.force { Caution::Watched } else { Caution::Unattended };
                        forgetting.forget(&choice, caution, &mut |_| {})?
                    }
                };
                if let Some(large) = chosen.large.first().filter(|_| job.dry_run && !job.force) {
                    return Err(ForgetError::TooMany(large.clone()).into());
                }
                let all = chosen.plan.groups.iter().map(|group| group.decisions.len()).sum::<usize>();
                let removed = chosen.plan.removed().count();
                let snapshots = count(removed as u64, "snapshot", "snapshots");
                Ok(Outcome::Done(format!("{snapshots} forgotten, {} kept", all - removed)))
            });
        }
    }

    /// Whether the last removal of snapshots of the source from the target failed. If the source never changes again, only
    /// another try can end this failure.
    fn has_failed_to_forget(&self, source: &str, target: &str) -> bool {
        let of = Subject { step: Step::Forget, source: Some(source), target: Some(target) };
        let last = self.environment.journal.map(|journal| journal.last(of, &Ending::TRIED, i64::MAX));
        matches!(last, Some(Ok(Some(last))) if last.ending == Ending::Failed)
    }

    /// Removes data that no snapshot of a target needs, if it is time.
    fn prune(&mut self, target: &TargetConfig) {
        if !self.job.wants(Step::Prune) {
            return;
        }
        let (job, environment) = (self.job, self.environment);
        let is_backup = |row: &&Row| row.step == Step::Backup && row.target.as_deref() == Some(target.name.as_str());
        let is_made = |row: &Row| matches!(row.outcome, Outcome::Done(_) | Outcome::Partial(_));
        let has_backup = self.rows.iter().filter(is_backup).any(is_made);
        self.step(Step::Prune, None, Some(&target.name), |monitor| {
            if job.only.is_none() && !has_backup {
                return Ok(Outcome::Skipped("nothing was backed up to it in this run".into()));
            }
            if let Some(outcome) = obstacle(&target.conditions) {
                return Ok(outcome);
            }
            if job.only != Some(Step::Prune)
                && let Some(outcome) = not_due(job, environment, Step::Prune, &target.name, target.prune.every)?
            {
                return Ok(outcome);
            }
            let repository = environment.open(target, Vec::new())?;
            let state = RepositoryState::new(environment.state, repository.id());
            let options = &target.prune.options;
            let summary = match job.dry_run {
                true => match prune::predict(&repository, &state, options, monitor, environment.stop) {
                    Err(prune::Error::NothingYet) if job.only.is_none() => {
                        return Ok(Outcome::Skipped("nothing was backed up yet".into()));
                    }
                    summary => summary?,
                },
                false => {
                    let wait = LockWait::configured(target.wait_lock);
                    prune::prune(&repository, &state, options, wait, monitor, environment.stop)?
                }
            };
            Ok(prune_outcome(&summary, |bytes| environment.caller.size(bytes)))
        });
    }

    /// Checks a target, and reads a part of its data, if it is time.
    fn check(&mut self, target: &TargetConfig) {
        if !self.job.wants(Step::Check) || self.job.only.is_none() && self.job.config.check.is_none() {
            return;
        }
        let (job, environment) = (self.job, self.environment);
        let CheckConfig { every, read_data, .. } = job.config.check.clone().unwrap_or_default();
        self.step(Step::Check, None, Some(&target.name), |monitor| {
            if let Some(outcome) = obstacle(&target.conditions) {
                return Ok(outcome);
            }
            if job.only.is_none()
                && let Some(outcome) = not_due(job, environment, Step::Check, &target.name, every)?
            {
                return Ok(outcome);
            }
            if job.dry_run {
                return Ok(Outcome::Skipped("a dry run checks nothing".into()));
            }
            let repository = environment.open(target, Vec::new())?;
            let state = RepositoryState::new(environment.state, repository.id());
            let wait = LockWait::configured(target.wait_lock);
            let found = session::check_part(&repository, &state, read_data, wait, monitor, environment.stop)?;
            let (packs, size) =
                (count(found.compared.packs, "pack", "packs"), environment.caller.size(found.read_bytes));
            let text = format!("{packs} compared, {} of them read ({size})", found.read_packs);
            match found.problems {
                0 => Ok(Outcome::Done(text)),
                problems => Err(Failed::damaged(format!("{}; {text}", count(problems, "problem", "problems")))),
            }
        });
    }

    /// Runs the hooks of a moment before the backups of a source, or before all.
    fn before(&mut self, moment: Moment, source: Option<&str>) -> Gate {
        let mut gate = Gate::Open;
        for hook in self.hooks(moment, source) {
            if let Gate::Open = gate {
                gate = self.hook(hook, moment, source, &[], Duration::ZERO);
            }
        }
        gate
    }

    /// Runs the hooks after the backups of a source, or after all. `first`: the first of their rows.
    fn after(&mut self, source: Option<&str>, first: usize) {
        let rows = self.rows.get(first..).unwrap_or_default();
        let is_backed_up = rows.iter().any(|row| row.step == Step::Backup && matches!(row.outcome, Outcome::Done(_)));
        let has_problems = rows.iter().any(|row| row.outcome.ending() == Ending::Problems);
        let has_failed = |row: &Row| matches!(row.outcome, Outcome::Failed(_) | Outcome::NotBegun(_));
        let (word, moment) = match rows.iter().any(has_failed) {
            true => ("failure", Some(Moment::Failure)),
            false if has_problems => ("warning", Some(Moment::Warning)),
            false if is_backed_up => ("success", Some(Moment::Success)),
            false => ("skipped", None),
        };
        let caller = self.environment.caller;
        let variables = [
            ("BRACKFS_RESULT", word.to_owned()),
            ("BRACKFS_EXIT", caller.code(rows).to_string()),
            ("BRACKFS_MESSAGE", hooks::messages(rows)),
            ("BRACKFS_SUMMARY_JSON", hooks::summary(rows, |row| caller.json(row))),
        ];
        for moment in moment.into_iter().chain([Moment::Finally]) {
            for hook in self.hooks(moment, source) {
                // These also run after an interrupt, so that they can undo what those before did.
                // Nothing comes after them that they could stop.
                let _gate = self.hook(hook, moment, source, &variables, AFTER_INTERRUPT);
            }
        }
    }

    /// The hooks of a moment: those for a source, or those for the whole run.
    fn hooks(&self, moment: Moment, source: Option<&str>) -> Vec<&'a Hook> {
        let belongs = |hook: &&Hook| match source {
            None => hook.sources.is_empty(),
            Some(name) => hook.sources.iter().any(|source| source == name),
        };
        // A dry run changes nothing, and other steps than backups need no preparation.
        let is_wanted = !self.job.dry_run && self.job.wants(Step::Backup);
        let hooks = self.job.config.hooks.iter().filter(|hook| is_wanted && hook.on.contains(&moment));
        hooks.filter(belongs).collect()
    }

    /// Runs a hook, which may go on for a while after an interrupt.
    fn hook(
        &mut self,
        hook: &Hook,
        moment: Moment,
        source: Option<&str>,
        variables: &[(&str, String)],
        grace: Duration,
    ) -> Gate {
        let begun = Instant::now();
        let of_source = source.map(|name| {
            let targets = self.job.sources.iter().find(|source| source.name == name).map(|source| source.to.join(" "));
            [("BRACKFS_SOURCE", name.to_owned()), ("BRACKFS_TARGET", targets.unwrap_or_default())]
        });
        let variables: Vec<_> = variables.iter().cloned().chain(of_source.into_iter().flatten()).collect();
        let program = hook.words.first().cloned().unwrap_or_default();
        let interrupt = Interrupt { stop: self.environment.stop, grace };
        let monitor = self.environment.caller.monitor();
        let (outcome, gate) = match hooks::run(hook, moment, &variables, monitor, interrupt) {
            Verdict::GoOn => (Outcome::Done(program), Gate::Open),
            Verdict::Skip => {
                let skipped = Outcome::Skipped(format!("{program} asked to skip the backup"));
                (skipped.clone(), Gate::Closed(skipped))
            }
            Verdict::Failed(failed) => match hook.on_failure {
                OnFailure::Ignore => (Outcome::Done(failed.message), Gate::Open),
                OnFailure::Warn => {
                    self.environment.caller.monitor().note(&failed.message);
                    (Outcome::Partial(failed.message), Gate::Open)
                }
                OnFailure::Abort => (Outcome::Failed(failed.clone()), Gate::Closed(Outcome::Failed(failed))),
            },
        };
        self.note(Step::Hook, source, None, outcome, None, begun);
        gate
    }
}

/// Whether a list has a source on a target.
fn contains(list: &[(String, String)], source: &str, target: &str) -> bool {
    list.iter().any(|(one, on)| one == source && on == target)
}

/// Returns why a step is not due on a target, if it is not.
fn not_due(
    job: &Job<'_>,
    environment: &Environment<'_>,
    step: Step,
    target: &str,
    every: Duration,
) -> Result<Option<Outcome>, Failed> {
    match environment.journal.map(|journal| journal.is_due(step, target, every)) {
        Some(Ok(true)) => Ok(None),
        Some(Ok(false)) => Ok(Some(Outcome::Skipped("it is not due".into()))),
        Some(Err(error)) => Err(Failed::new(error.to_string())),
        // There is nothing yet that a dry run could read.
        None if job.dry_run => Ok(None),
        // As a skipped step, this could stay unnoticed until the disk is full.
        None => Err(Failed::new("it is not known whether it is due, since the record of runs cannot be used")),
    }
}

/// Backs a source up to a target.
fn back_up(
    job: &Job<'_>,
    environment: &Environment<'_>,
    source: &SourceConfig,
    read_from: &[Placed],
    target: &TargetConfig,
    monitor: &dyn Monitor,
) -> Result<Summary, Failed> {
    let mut options: Options = source.options.clone();
    if !read_from.is_empty() {
        options.selection.read_from = read_from.to_vec();
        options.selection.exclude.push(format!("{SNAPSHOT_FOLDER}/"));
    }
    let location = environment.caller.locate(target);
    options.policy.dry_run = job.dry_run;
    options.policy.recipients = target.recipients.clone();
    if job.allow_shrink {
        options.policy.guard = None;
    }
    options.policy.wait_lock = LockWait::configured(target.wait_lock);
    options.policy.daily_at = location.is_remote().then(|| location.identity());
    // A dry run opens no session.
    let identity = options.policy.daily_at.as_deref().filter(|_| !job.dry_run);
    options.policy.early = identity.and_then(|identity| EarlyRuns::at(environment.state, identity));
    let ahead = options.policy.early.map(|runs| runs.reads()).unwrap_or_default();
    let open = || environment.open(target, ahead);
    match options.may_skip_opening() && location.is_remote() {
        true => backup::back_up_if_changed(open, environment.state, &options, |_| (), monitor, environment.stop),
        false => Ok(backup::back_up(&open()?, environment.state, &options, |_| (), monitor, environment.stop)?),
    }
}

/// What came of a backup. `size` formats a size in bytes.
pub fn backup_outcome(summary: &Summary, size: impl Fn(u64) -> String) -> Outcome {
    if summary.shrunk {
        let message = "the source lost most of its files, so no snapshot was made".to_owned();
        return Outcome::Failed(Failed { kind: FailureKind::Partial, message });
    }
    let files = count(summary.files, "file", "files");
    let text = match &summary.snapshot {
        Some(name) => {
            let (bytes, stored) = (size(summary.bytes), size(summary.data_bytes + summary.tree_bytes));
            format!("snapshot {}: {files}, {bytes}, {stored} stored", name.id.short())
        }
        None if summary.dry_run => format!("would read {}", count(summary.read_files, "file", "files")),
        None => format!("nothing changed in {files}"),
    };
    if summary.problems > 0 { Outcome::Partial(text) } else { Outcome::Done(text) }
}

/// What came of a prune. `size` formats a size in bytes.
pub fn prune_outcome(summary: &prune::Summary, size: impl Fn(u64) -> String) -> Outcome {
    let (freed, pending) = (size(summary.freed_bytes), size(summary.pending_bytes));
    let text = format!("{freed} freed, {pending} after the grace period");
    match summary.damaged_packs {
        0 => Outcome::Done(text),
        packs => Outcome::Failed(Failed::damaged(format!("{}; {text}", count(packs, "damaged pack", "damaged packs")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prune_that_finds_damage_fails() {
        let outcome = |damaged_packs| {
            let summary = prune::Summary { damaged_packs, ..prune::Summary::default() };
            prune_outcome(&summary, |bytes| bytes.to_string())
        };
        assert_eq!(outcome(0).ending(), Ending::Done);
        let damaged = outcome(2);
        assert_eq!((damaged.ending(), damaged.failure()), (Ending::Failed, Some(FailureKind::Partial)));
        assert_eq!(damaged.to_string(), "2 damaged packs; 0 freed, 0 after the grace period");
    }
}
