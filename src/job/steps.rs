//! The steps of a run, in their order.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::tz::TimeZone;

use super::conditions::{self, obstacle};
use super::hooks::{self, Verdict};
use super::journal::Journal;
use super::outcome::{Counts, Failed, Outcome, Row, Step};
use crate::backup::{self, Options, Summary};
use crate::config::{Config, Hook, Moment, OnFailure, SourceConfig, TargetConfig};
use crate::failure::FailureKind;
use crate::monitor::{Monitor, count};
use crate::prune;
use crate::repository::Repository;
use crate::retention::{self, Calendar, Caution, Choice, Grouping};
use crate::session::EarlyRuns;
use crate::state::RepositoryState;
use crate::storage::{Ahead, Location};

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
}

/// What a run needs from the program.
pub trait Caller {
    /// Opens the repository of a target. The reads begin at once.
    fn open(&self, target: &TargetConfig, ahead: Vec<Ahead>) -> Result<Repository, Failed>;

    /// The location of a target, as it is opened.
    fn locate(&self, target: &TargetConfig) -> Location;

    /// Does the work of a step with a monitor, whose progress begins anew.
    fn watch(&self, work: &mut dyn FnMut(&dyn Monitor));

    /// Receives messages between steps.
    fn note(&self, message: &str);

    /// Receives each step when it has ended.
    fn ended(&self, row: &Row);

    /// Formats a size in bytes.
    fn size(&self, bytes: u64) -> String;
}

impl<'a> Job<'a> {
    /// Makes all steps. Returns what came of them.
    pub fn run(&'a self, environment: &'a Environment<'a>) -> Vec<Row> {
        let mut run = Run { job: self, environment, rows: Vec::new(), new: Vec::new() };
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
    rows: Vec<Row>,
    /// The sources and targets of new snapshots.
    new: Vec<(String, String)>,
}

/// What the hooks before a backup want.
enum Gate {
    Open,
    Closed(Outcome),
}

impl<'a> Run<'a> {
    fn all(&mut self) {
        let gate = self.before(None);
        if self.job.wants(Step::Backup) {
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

    /// Makes a step, and notes what came of it.
    fn step(
        &mut self,
        step: Step,
        source: Option<&str>,
        target: Option<&str>,
        work: impl FnOnce(&dyn Monitor) -> Result<Outcome, Failed>,
    ) {
        let begun = Instant::now();
        let outcome = self.attempt(work);
        self.note(step, source, target, outcome, None, begun);
    }

    /// Does the work of a step, unless the run is to stop.
    fn attempt(&self, work: impl FnOnce(&dyn Monitor) -> Result<Outcome, Failed>) -> Outcome {
        let interrupted = Failed { kind: FailureKind::Interrupted, message: "interrupted before".into() };
        if self.is_stopped() {
            return Outcome::Failed(interrupted);
        }
        let (mut work, mut outcome) = (Some(work), Outcome::Failed(interrupted));
        self.environment.caller.watch(&mut |monitor| {
            if let Some(work) = work.take() {
                outcome = work(monitor).unwrap_or_else(Outcome::Failed);
            }
        });
        outcome
    }

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
        let row = Row { step, source, target, outcome, counts, duration: begun.elapsed() };
        if let Some(journal) = self.environment.journal.filter(|_| !self.job.dry_run)
            && let Err(error) = journal.add(&row)
        {
            self.environment.caller.note(&error.to_string());
        }
        self.environment.caller.ended(&row);
        self.rows.push(row);
    }

    /// Backs a source up to its targets.
    fn source(&mut self, source: &SourceConfig, gate: &Gate) {
        let first = self.rows.len();
        let obstacle = match gate {
            Gate::Closed(outcome) => Some(outcome.clone()),
            Gate::Open => obstacle(&source.conditions),
        };
        let is_begun = obstacle.is_none();
        let closed = obstacle.or_else(|| match self.before(Some(&source.name)) {
            Gate::Closed(outcome) => Some(outcome),
            Gate::Open => None,
        });
        for name in &source.to {
            let Ok(target) = self.job.config.target(name) else { continue };
            let (job, environment) = (self.job, self.environment);
            let (mut is_new, mut counts) = (false, None);
            let begun = Instant::now();
            let outcome = self.attempt(|monitor| {
                if let Some(outcome) = closed.clone().or_else(|| conditions::obstacle(&target.conditions)) {
                    return Ok(outcome);
                }
                if job.dry_run && source.options.selection.stream.is_some() {
                    return Ok(Outcome::Skipped("a dry run does not run the command".into()));
                }
                let summary = back_up(job, environment, source, target, monitor)?;
                counts = Some(Counts::from(&summary));
                is_new = summary.snapshot.is_some() || job.dry_run && !summary.shrunk;
                Ok(outcome_of(&summary, environment))
            });
            self.note(Step::Backup, Some(&source.name), Some(name), outcome, counts, begun);
            if is_new {
                self.new.push((source.name.clone(), name.clone()));
            }
        }
        if is_begun {
            self.after(Some(&source.name), first);
        }
    }

    /// Removes snapshots of a source by its policy.
    fn forget(&mut self, source: &SourceConfig) {
        let Some(policy) = source.keep.as_ref().filter(|_| self.job.wants(Step::Forget)) else { return };
        for name in &source.to {
            let Ok(target) = self.job.config.target(name) else { continue };
            let is_due = self.job.only == Some(Step::Forget) || self.has_new(&source.name, name);
            let (job, environment) = (self.job, self.environment);
            self.step(Step::Forget, Some(&source.name), Some(name), |monitor| {
                if !is_due {
                    return Ok(Outcome::Skipped("there is no new snapshot".into()));
                }
                if let Some(outcome) = obstacle(&target.conditions) {
                    return Ok(outcome);
                }
                let repository = environment.caller.open(target, Vec::new())?;
                let state = RepositoryState::new(environment.state, repository.id());
                let (stop, wait_lock) = (environment.stop, target.wait_lock);
                let forgetting = retention::Scene { repository: &repository, state: &state, wait_lock, monitor, stop };
                let choice = Choice::Policy {
                    policy: policy.clone(),
                    sources: vec![source.name.clone()],
                    grouping: Grouping::Source,
                    calendar: Calendar { now: jiff::Timestamp::now(), zone: TimeZone::system() },
                };
                let chosen = match job.dry_run {
                    true => forgetting.preview(&choice)?,
                    false => forgetting.forget(&choice, Caution::Unattended, &mut |_| {})?,
                };
                let all = chosen.plan.groups.iter().map(|group| group.decisions.len()).sum::<usize>();
                let removed = chosen.plan.removed().count();
                let snapshots = count(removed as u64, "snapshot", "snapshots");
                Ok(Outcome::Done(format!("{snapshots} forgotten, {} kept", all - removed)))
            });
        }
    }

    /// Whether the source got a new snapshot on the target in this run.
    fn has_new(&self, source: &str, target: &str) -> bool {
        self.new.iter().any(|(new, on)| new == source && on == target)
    }

    /// Removes data that no snapshot of a target needs, if it is time.
    fn prune(&mut self, target: &TargetConfig) {
        if !self.job.wants(Step::Prune) {
            return;
        }
        let (job, environment) = (self.job, self.environment);
        let of_target = |row: &&Row| row.target.as_deref() == Some(target.name.as_str());
        let before: Vec<_> = self.rows.iter().filter(of_target).map(|row| row.outcome.clone()).collect();
        let all_failed = !before.is_empty() && before.iter().all(|outcome| matches!(outcome, Outcome::Failed(_)));
        self.step(Step::Prune, None, Some(&target.name), |monitor| {
            if all_failed {
                return Ok(Outcome::Skipped("all steps before it failed".into()));
            }
            if let Some(outcome) = obstacle(&target.conditions) {
                return Ok(outcome);
            }
            if job.only != Some(Step::Prune)
                && let Some(journal) = environment.journal
                && journal.was_done(Step::Prune, &target.name, target.prune.every).unwrap_or(false)
            {
                return Ok(Outcome::Skipped("it is not due".into()));
            }
            let repository = environment.caller.open(target, Vec::new())?;
            let state = RepositoryState::new(environment.state, repository.id());
            let options = &target.prune.options;
            let summary = match job.dry_run {
                true => prune::predict(&repository, &state, options, monitor, environment.stop)?,
                false => prune::prune(&repository, &state, options, target.wait_lock, monitor, environment.stop)?,
            };
            let freed = environment.caller.size(summary.freed_bytes);
            let pending = environment.caller.size(summary.pending_bytes);
            let text = format!("{freed} freed, {pending} after the grace period");
            Ok(if summary.damaged_packs > 0 { Outcome::Partial(text) } else { Outcome::Done(text) })
        });
    }

    /// Runs the hooks before the backups of a source, or before all.
    fn before(&mut self, source: Option<&str>) -> Gate {
        let mut gate = Gate::Open;
        for hook in self.hooks(Moment::Before, source) {
            if let Gate::Open = gate {
                gate = self.hook(hook, source, &[], self.environment.stop);
            }
        }
        gate
    }

    /// Runs the hooks after the backups of a source, or after all. `first`: the first of their rows.
    fn after(&mut self, source: Option<&str>, first: usize) {
        let rows = self.rows.get(first..).unwrap_or_default();
        let kinds: Vec<_> = rows.iter().filter_map(|row| row.outcome.failure()).collect();
        let moment = match super::outcome::worst(kinds.iter().copied()) {
            None => Moment::Success,
            Some(FailureKind::Partial) => Moment::Warning,
            Some(_) => Moment::Failure,
        };
        let messages: Vec<_> = rows
            .iter()
            .filter(|row| row.outcome.failure().is_some())
            .map(|row| format!("{}: {}", row.step.name(), row.outcome))
            .collect();
        let word = match moment {
            Moment::Success => "success",
            Moment::Warning => "warning",
            _ => "failure",
        };
        let variables = [("BRACKFS_RESULT", word.to_owned()), ("BRACKFS_MESSAGE", messages.join("\n"))];
        // These also run after an interrupt, so that they can undo what those before did.
        let never = AtomicBool::new(false);
        for moment in [moment, Moment::Finally] {
            for hook in self.hooks(moment, source) {
                // Nothing comes after them that they could stop.
                let _gate = self.hook(hook, source, &variables, &never);
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

    /// Runs a hook.
    fn hook(&mut self, hook: &Hook, source: Option<&str>, variables: &[(&str, String)], stop: &AtomicBool) -> Gate {
        let begun = Instant::now();
        let of_source = source.map(|name| ("BRACKFS_SOURCE", name.to_owned()));
        let variables: Vec<_> = variables.iter().cloned().chain(of_source).collect();
        let program = hook.words.first().cloned().unwrap_or_default();
        let (outcome, gate) = match hooks::run(hook, &variables, stop) {
            Verdict::GoOn => (Outcome::Done(program), Gate::Open),
            Verdict::Skip => {
                let skipped = Outcome::Skipped(format!("{program} asked to skip the backup"));
                (skipped.clone(), Gate::Closed(skipped))
            }
            Verdict::Failed(failed) => match hook.on_failure {
                OnFailure::Ignore => (Outcome::Done(failed.message), Gate::Open),
                OnFailure::Warn => {
                    self.environment.caller.note(&failed.message);
                    (Outcome::Partial(failed.message), Gate::Open)
                }
                OnFailure::Abort => (Outcome::Failed(failed.clone()), Gate::Closed(Outcome::Failed(failed))),
            },
        };
        self.note(Step::Hook, source, None, outcome, None, begun);
        gate
    }
}

/// Backs a source up to a target.
fn back_up(
    job: &Job<'_>,
    environment: &Environment<'_>,
    source: &SourceConfig,
    target: &TargetConfig,
    monitor: &dyn Monitor,
) -> Result<Summary, Failed> {
    let mut options: Options = source.options.clone();
    let location = environment.caller.locate(target);
    options.policy.dry_run = job.dry_run;
    if job.allow_shrink {
        options.policy.guard = None;
    }
    options.policy.wait_lock = target.wait_lock;
    options.policy.daily_at = location.is_remote().then(|| location.identity());
    // A dry run opens no session.
    let identity = options.policy.daily_at.as_deref().filter(|_| !job.dry_run);
    options.policy.early = identity.and_then(|identity| EarlyRuns::at(environment.state, identity));
    let ahead = options.policy.early.map(|runs| runs.reads()).unwrap_or_default();
    let open = || environment.caller.open(target, ahead);
    let may_skip = options.policy.skip_if_unchanged && !job.dry_run && location.is_remote();
    match may_skip {
        true => backup::back_up_if_changed(open, environment.state, &options, monitor, environment.stop),
        false => Ok(backup::back_up(&open()?, environment.state, &options, monitor, environment.stop)?),
    }
}

fn outcome_of(summary: &Summary, environment: &Environment<'_>) -> Outcome {
    let files = count(summary.files, "file", "files");
    let (bytes, stored) =
        (environment.caller.size(summary.bytes), environment.caller.size(summary.data_bytes + summary.tree_bytes));
    let text = match (&summary.snapshot, summary.shrunk) {
        (_, true) => "the source lost most of its files, no snapshot was made".to_owned(),
        (Some(name), _) => format!("snapshot {}: {files}, {bytes}, {stored} stored", name.id.short()),
        (None, _) if summary.dry_run => format!("would read {}", count(summary.read_files, "file", "files")),
        (None, _) => format!("nothing changed in {files}"),
    };
    if summary.problems > 0 { Outcome::Partial(text) } else { Outcome::Done(text) }
}
