//! `brackfs run`

use std::cell::Cell;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

use super::exit::{self, Usage};
use super::global::Global;
use super::output;
use super::record;
use super::repository_arg::{ResolvedRepository, Use};
use super::show;
use super::signals::{interrupt, stop_on_signals};
use super::{systemd, unit};
use crate::config::{SourceConfig, TargetConfig};
use crate::failure::FailureKind;
use crate::job::{Caller, Counts, Environment, Failed, Job, Journal, JournalError, Outcome, Row, Step, ping, worst};
use crate::monitor::{Monitor, count};
use crate::repository::Repository;
use crate::storage::{Ahead, Location};

/// Back up, forget, prune and check as configured
///
/// Each source is backed up to each of its targets. Then snapshots are forgotten by the policy of their source (keep), but only
/// on targets that got a new snapshot of it in this run, without missing or empty paths, or if nothing changed
/// (skip-if-unchanged) and the last attempt failed. Targets whose last prune is older than
/// prune.every are pruned. If the configuration has a table check, targets whose last check is older than check.every are
/// checked, and a part of their data is read; this needs no secret key, only this machine's host key. Hooks run before and
/// after. See brackfs-config(5).
///
/// If a step fails, the steps that need it are skipped, and all others are done. At the end a table shows each step. On a
/// terminal it is always printed, otherwise only if there was a failure or a problem. The journal of systemd gets a line about the
/// whole run, and one for each step with a failure or a problem, with their priorities.
///
/// All steps are recorded in the state directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs run
  brackfs run system photos --only backup
  brackfs run --dry-run

In a crontab:
  17 3 * * *  brackfs run

Exit codes are those of brackfs. If several steps fail, the code is that of the worst: 11, 3, 12, 10, 1, 2 and 130, in \
order of increasing severity.")]
pub(super) struct Args {
    /// Run only these sources [default: all]
    #[arg(value_name = "SOURCE")]
    sources: Vec<String>,
    /// Run only steps of this kind
    ///
    /// forget, prune and check then run even if they are not due. Hooks run only with backup.
    #[arg(long, value_name = "STEP")]
    only: Option<Only>,
    /// Make snapshots no matter how many files the sources lost
    #[arg(long)]
    pub(super) allow_shrink: bool,
    /// Let policies forget more than half of the snapshots of a source
    #[arg(long)]
    force: bool,
    /// Show what would be done, and change nothing
    ///
    /// No hook and no command runs. The numbers of snapshots do not include those that a run would make.
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Print one JSON object for each step, and one with the result
    ///
    /// An object of a step has message_type step, step (hook, backup, forget, prune or check), source and target (null if it has
    /// none), outcome (done, problems, skipped or failed), message, and seconds. The last object has
    /// message_type summary, dry_run, steps (their number) and code (the exit code). What hooks print, and what commands of
    /// sources print on standard error, is printed on standard error as objects with message_type program_output, program and
    /// text.
    #[arg(long)]
    pub(super) json: bool,
    /// The only target.
    #[arg(skip)]
    pub(super) target: Option<String>,
}

impl Args {
    /// The backups of these sources, and nothing else.
    pub(super) fn backups_of(sources: Vec<String>) -> Self {
        let only = Some(Only::Backup);
        Args { sources, only, allow_shrink: false, force: false, dry_run: false, json: false, target: None }
    }
}

/// A kind of step that can be chosen.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Only {
    Backup,
    Forget,
    Prune,
    Check,
}

impl From<Only> for Step {
    fn from(only: Only) -> Self {
        match only {
            Only::Backup => Step::Backup,
            Only::Forget => Step::Forget,
            Only::Prune => Step::Prune,
            Only::Check => Step::Check,
        }
    }
}

/// This program, as a run needs it.
struct Program<'a> {
    global: &'a Global,
    json: bool,
    monitor: &'a dyn Monitor,
}

impl Caller for Program<'_> {
    fn open(&self, target: &TargetConfig, ahead: Vec<Ahead>) -> Result<Repository, Failed> {
        let opened = ResolvedRepository::of(target, self.global).open(Use::Command, self.global, ahead);
        opened.map_err(|error| Failed { kind: exit::kind(&error), message: exit::text(&error) })
    }

    fn locate(&self, target: &TargetConfig) -> Location {
        ResolvedRepository::of(target, self.global).location
    }

    fn watch(&self, work: &mut dyn FnMut(&dyn Monitor)) {
        let monitor = self.global.monitor(self.json);
        monitor.start();
        work(&monitor);
        monitor.finish();
    }

    fn monitor(&self) -> &dyn Monitor {
        self.monitor
    }

    fn ended(&self, row: &Row) {
        if self.json {
            // If standard output is closed, the result at the end fails as well.
            let _ = output::object(&as_json(row));
        }
    }

    fn size(&self, bytes: u64) -> String {
        show::size(bytes)
    }

    fn json(&self, row: &Row) -> String {
        as_json(row).to_string()
    }

    fn code(&self, rows: &[Row]) -> u8 {
        code(rows)
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut config = global.required_config()?;
    if let Some(target) = &args.target {
        config.sources.iter_mut().for_each(|source| source.to.retain(|name| name == target));
    }
    let mut sources: Vec<_> = match args.sources.is_empty() {
        true => config.sources.iter().collect(),
        false => args.sources.iter().map(|name| Ok(config.source(name)?)).collect::<Result<Vec<_>>>()?,
    };
    let mut seen = BTreeSet::new();
    sources.retain(|source: &&SourceConfig| seen.insert(source.name.clone()));
    if sources.is_empty() {
        return Err(Usage("the configuration has no source; write one, such as [source.home]".into()).into());
    }
    let (monitor, stop, state) = (global.monitor(args.json), stop_on_signals()?, global.state()?);
    let opened = if args.dry_run { Journal::view(&state) } else { Journal::open(&state).map(Some) };
    let journal = opened.unwrap_or_else(|error| {
        monitor.note(&error.to_string());
        None
    });
    let program = Program { global, json: args.json, monitor: &monitor };
    let environment = Environment::new(&state, journal.as_ref(), &program, &stop);
    let job = Job {
        config: &config,
        sources,
        only: args.only.map(Step::from),
        allow_shrink: args.allow_shrink,
        force: args.force,
        dry_run: args.dry_run,
    };
    let is_unreachable = Cell::new(false);
    let tell = |end: &str, body: Option<&str>| {
        if let Some(url) = config.report.ping.as_ref().map(|ping| &ping.url).filter(|_| !args.dry_run)
            && let Err(why) = ping(url, end, body, interrupt())
            // Once is enough.
            && !is_unreachable.replace(true)
        {
            monitor.note(&format!("cannot ping the URL of the report: {why}"));
        }
    };
    let noted = |error: JournalError| monitor.note(&error.to_string());
    let recorded = journal.as_ref().filter(|_| !args.dry_run);
    let run = recorded.and_then(|journal| journal.begin_run().map_err(noted).ok());
    tell("start", None);
    let rows = job.run(&environment);
    let (worst, code) = (worst_of(&rows), code(&rows));
    if let Some(journal) = recorded {
        run.into_iter().for_each(|run| journal.end_run(run, code).unwrap_or_else(noted));
        record::write_metrics(&config, &state, journal, &monitor);
    }
    let summary = config.report.ping.as_ref().is_some_and(|ping| ping.send_log).then(|| lines(&rows).join("\n"));
    tell(&code.to_string(), summary.as_deref());
    if args.json {
        output::object(&json!({
            "message_type": "summary",
            "dry_run": args.dry_run,
            "steps": rows.len(),
            "code": code,
        }))?;
    } else if systemd::has_journal() {
        report_to_journal(&rows, begun.elapsed(), global.quiet);
    } else if code != 0 || global.shows_summary(args.dry_run) {
        lines(&rows).iter().for_each(output::message);
    }
    if let Some(why) = worst.and_then(|_| unit::shortcoming(&config)) {
        monitor.note(&why);
    }
    systemd::set_status(&in_one_line(&rows, begun.elapsed()));
    exit::of_steps(worst)
}

fn worst_of(rows: &[Row]) -> Option<FailureKind> {
    worst(rows.iter().filter_map(|row| row.outcome.failure()))
}

fn code(rows: &[Row]) -> u8 {
    worst_of(rows).map_or(0, exit::code)
}

/// Writes the steps that did not go well, and one line about all of them.
fn report_to_journal(rows: &[Row], duration: Duration, quiet: bool) {
    for (row, line) in rows.iter().zip(lines(rows)) {
        match row.outcome {
            // Someone stopped the service, or the machine shuts down.
            _ if row.outcome.failure() == Some(FailureKind::Interrupted) => output::warning(line),
            Outcome::Failed(_) => output::error(line),
            Outcome::Partial(_) | Outcome::NotBegun(_) => output::warning(line),
            Outcome::Done(_) | Outcome::Skipped(_) => {}
        }
    }
    if !quiet {
        output::message(in_one_line(rows, duration));
    }
}

/// The steps of a run, and what its backups found and stored.
fn in_one_line(rows: &[Row], duration: Duration) -> String {
    let number = |word: &str| rows.iter().filter(|row| row.outcome.ending().name() == word).count();
    let counts = ["problems", "skipped", "failed"].map(|word| (word, number(word))).into_iter();
    let done = format!("{} of {} done", number("done"), count(rows.len() as u64, "step", "steps"));
    let others = counts.filter(|(_, number)| *number > 0).map(|(word, number)| match word {
        "problems" => format!("{number} with problems"),
        word => format!("{number} {word}"),
    });
    let steps = std::iter::once(done).chain(others).collect::<Vec<_>>().join(", ");
    let sum = |counter: fn(&Counts) -> u64| rows.iter().filter_map(|row| row.counts.as_ref()).map(counter).sum::<u64>();
    let (files, bytes, stored) = (sum(|it| it.files), sum(|it| it.bytes), sum(|it| it.stored_bytes));
    let files = count(files, "file", "files");
    let (bytes, stored) = (show::size(bytes), show::size(stored));
    format!("{steps}; {files}, {bytes}, {stored} stored in {}", show::clock(duration))
}

fn as_json(row: &Row) -> serde_json::Value {
    json!({
        "message_type": "step",
        "step": row.step.name(),
        "source": row.source,
        "target": row.target,
        "outcome": row.outcome.ending().name(),
        "message": row.outcome.to_string(),
        "seconds": row.duration.as_secs_f64(),
    })
}

/// A line for each step.
fn lines(rows: &[Row]) -> Vec<String> {
    let what = |row: &Row| match (&row.source, &row.target) {
        (Some(source), Some(target)) => format!("{source} to {target}"),
        (Some(name), None) | (None, Some(name)) => name.clone(),
        (None, None) => String::new(),
    };
    let width = rows.iter().map(|row| what(row).chars().count()).max().unwrap_or(0);
    let line = |row: &Row| {
        let (step, what, word) = (row.step.name(), what(row), row.outcome.ending().name());
        let line = format!("{word:<8}  {step:<6}  {what:<width$}  {}", row.outcome);
        show::printable(line.trim_end()).into_owned()
    };
    rows.iter().map(line).collect()
}
