//! `brackfs forget`, `brackfs hold` and `brackfs release`

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::exit::Usage;
use super::global::Global;
use super::output;
use super::prune;
use super::repository_arg::RepositoryArg;
use super::show::{self, local_name_time, name_time, parse_time};
use super::signals::stop_on_signals;
use super::terminal::is_interactive;
use crate::archive::Selector;
use crate::catalog::SnapshotRow;
use crate::format::Timestamp;
use crate::monitor::count;
use crate::quantity::parse_duration;
use crate::retention::{
    Age, Calendar, Caution, Choice, Chosen, Count, Decision, Grouping, Period, Policy, Reason, Rule, Scene,
};
use crate::session::LockWait;
use crate::state::RepositoryState;

/// Forget snapshots, by name or by a policy
///
/// Runs on the machine that is backed up, and needs only its host key. Forgotten snapshots are no longer listed, mounted
/// or restored. Their data stays until it is pruned; until then, --undo shows them again.
///
/// Name the snapshots, or give a policy with one or more --keep options. If latest or a time fits snapshots of several
/// sources, it is refused; write SOURCE/latest or SOURCE/TIME. A policy is applied to each source on its own. A snapshot
/// stays if at least one rule keeps it; rules do not affect each other. Snapshots are in the order in which they were
/// made, regardless of their times. Days and weeks are those of the local time zone.
///
/// A rule with N periods keeps one snapshot of each of the N newest periods that have any: the one with the latest
/// time. As long as there are fewer than N, it also keeps the oldest snapshot. The --keep-within options count T back
/// from the newest snapshot of the source, not from now: if backups stop, the last ones stay.
///
/// A policy never forgets the newest snapshot, held ones (see brackfs-hold(1)), those dated more than an hour in the
/// future, or those that are missing from the repository. It is refused if it has no rule, keeps none of a source's
/// snapshots, or names a tag or source that does not exist.
///
/// At a terminal, a table of all snapshots is printed first, with the reasons why each one stays. Without a terminal,
/// as in a cron job, a policy that would forget more than half of a source, and more than one snapshot, is refused unless
/// --force is given. Snapshots made since the last forget do not count for this.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs forget --repo /backup --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run
  brackfs forget --repo /backup --source home --keep-within 30d --keep-monthly unlimited
  brackfs forget --repo /backup 2026-11-20T14:52 1a2b3c4d
  brackfs forget --repo /backup --undo")]
pub(super) struct Args {
    /// Forget these snapshots
    #[arg(value_name = "SNAP", conflicts_with_all = POLICY)]
    snapshots: Vec<OsString>,
    #[command(flatten)]
    repository: RepositoryArg,
    /// Apply the policy only to this source (repeatable)
    #[arg(help_heading = POLICY_HEADING, long, value_name = "NAME")]
    source: Vec<String>,
    /// Apply the policy to each source (source), or to snapshots of a source with the same tags (source,tags)
    #[arg(help_heading = POLICY_HEADING, long, value_name = "GROUPS", default_value = "source")]
    group_by: Grouping,
    /// Keep the N newest snapshots; N is a number or unlimited
    #[arg(help_heading = POLICY_HEADING, long, value_name = "N")]
    keep_last: Option<Count>,
    /// Keep one snapshot of each of the N newest hours that have any
    #[arg(help_heading = POLICY_HEADING, long, value_name = "N")]
    keep_hourly: Option<Count>,
    /// Keep one snapshot of each of the N newest days that have any
    #[arg(help_heading = POLICY_HEADING, long, value_name = "N")]
    keep_daily: Option<Count>,
    /// Keep one snapshot of each of the N newest weeks that have any
    #[arg(help_heading = POLICY_HEADING, long, value_name = "N")]
    keep_weekly: Option<Count>,
    /// Keep one snapshot of each of the N newest months that have any
    #[arg(help_heading = POLICY_HEADING, long, value_name = "N")]
    keep_monthly: Option<Count>,
    /// Keep one snapshot of each of the N newest quarters that have any
    #[arg(help_heading = POLICY_HEADING, long, value_name = "N")]
    keep_quarterly: Option<Count>,
    /// Keep one snapshot of each of the N newest years that have any
    #[arg(help_heading = POLICY_HEADING, long, value_name = "N")]
    keep_yearly: Option<Count>,
    /// Keep all snapshots made less than T before the newest
    ///
    /// T is a number of years (y), months (m), weeks (w), days (d) or hours (h), or several, such as 1y6m.
    #[arg(help_heading = POLICY_HEADING, long, value_name = "T")]
    keep_within: Option<Age>,
    /// Keep one snapshot of each hour less than T before the newest
    #[arg(help_heading = POLICY_HEADING, long, value_name = "T")]
    keep_within_hourly: Option<Age>,
    /// Keep one snapshot of each day less than T before the newest
    #[arg(help_heading = POLICY_HEADING, long, value_name = "T")]
    keep_within_daily: Option<Age>,
    /// Keep one snapshot of each week less than T before the newest
    #[arg(help_heading = POLICY_HEADING, long, value_name = "T")]
    keep_within_weekly: Option<Age>,
    /// Keep one snapshot of each month less than T before the newest
    #[arg(help_heading = POLICY_HEADING, long, value_name = "T")]
    keep_within_monthly: Option<Age>,
    /// Keep one snapshot of each quarter less than T before the newest
    #[arg(help_heading = POLICY_HEADING, long, value_name = "T")]
    keep_within_quarterly: Option<Age>,
    /// Keep one snapshot of each year less than T before the newest
    #[arg(help_heading = POLICY_HEADING, long, value_name = "T")]
    keep_within_yearly: Option<Age>,
    /// Keep snapshots with this tag (repeatable)
    #[arg(help_heading = POLICY_HEADING, long, value_name = "TAG")]
    keep_tag: Vec<String>,
    /// Use days and weeks of UTC instead of the local time zone
    #[arg(help_heading = POLICY_HEADING, long)]
    utc: bool,
    /// Print the table; forget nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Let a policy forget more than half of a source even without a terminal
    #[arg(help_heading = POLICY_HEADING, long)]
    force: bool,
    /// Show all forgotten snapshots again that have not been pruned yet
    #[arg(long, conflicts_with = "snapshots", conflicts_with_all = POLICY)]
    undo: bool,
    /// Afterwards, prune as brackfs-prune(1) does with its default options
    #[arg(long, conflicts_with_all = ["undo", "dry_run"])]
    prune: bool,
    #[command(flatten)]
    run: RunArgs,
    #[arg(long, value_name = "TIME", hide = true, value_parser = parse_time)]
    now: Option<Timestamp>,
}

/// Heading of these options in help and manual pages.
const POLICY_HEADING: &str = "Policy";
/// The options that belong to a policy.
const POLICY: [&str; 17] = [
    "source",
    "group_by",
    "keep_last",
    "keep_hourly",
    "keep_daily",
    "keep_weekly",
    "keep_monthly",
    "keep_quarterly",
    "keep_yearly",
    "keep_within",
    "keep_within_hourly",
    "keep_within_daily",
    "keep_within_weekly",
    "keep_within_monthly",
    "keep_within_quarterly",
    "keep_within_yearly",
    "keep_tag",
];

/// Hold snapshots, so that they cannot be forgotten
///
/// Runs on the machine that is backed up, and needs only its host key. A held snapshot cannot be forgotten, by a policy
/// or by name, until brackfs-release(1) releases it. `brackfs snapshots` marks held snapshots. If latest or a time fits
/// snapshots of several sources, it is refused; write SOURCE/latest or SOURCE/TIME.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs hold home/latest --repo /backup")]
pub(super) struct HoldArgs {
    /// Hold these snapshots
    #[arg(value_name = "SNAP", required = true)]
    snapshots: Vec<OsString>,
    #[command(flatten)]
    repository: RepositoryArg,
    #[command(flatten)]
    run: RunArgs,
}

/// Release held snapshots, so that they can be forgotten
///
/// Runs on the machine that is backed up, and needs only its host key. See brackfs-hold(1).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs release 1a2b3c4d --repo /backup")]
pub(super) struct ReleaseArgs {
    /// Release these snapshots
    #[arg(value_name = "SNAP", required = true)]
    snapshots: Vec<OsString>,
    #[command(flatten)]
    repository: RepositoryArg,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// If another run is writing to the repository, wait up to DURATION, then exit with code 11
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90s, 10m or 1h30m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Print one JSON object for each snapshot, and one with the result
    ///
    /// An object of a snapshot has message_type snapshot, action (keep, forget, show, hold or release), id, time, source, tags,
    /// held and reasons (why it stays). The last object has message_type summary, dry_run, and changed and kept (numbers of
    /// snapshots).
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let choice = if args.undo { None } else { Some(args.choice()?) };
    let shown = |chosen: &Chosen| print_chosen(chosen, args.run.json);
    with_scene(&args.repository, &args.run, global, |scene| {
        let Some(choice) = &choice else {
            let rows = if args.dry_run { scene.preview_undo()? } else { scene.undo()? };
            let actions = ["snapshot is shown again", "snapshots are shown again"];
            return report(&rows, "show", actions, args.dry_run, &args.run, global);
        };
        let chosen = if args.dry_run {
            let chosen = scene.preview(choice)?;
            shown(&chosen)?;
            for large in &chosen.large {
                scene.monitor.note(&format!("{large} would be forgotten; without a terminal, this needs --force"));
            }
            chosen
        } else {
            let is_by_hand = is_interactive() && io::stdin().is_terminal();
            let caution = if is_by_hand || args.force { Caution::Watched } else { Caution::Unattended };
            let is_shown = args.run.json || !global.quiet && (is_by_hand || global.verbose);
            let mut printed = Ok(());
            let chosen = scene.forget(choice, caution, &mut |chosen| {
                if is_shown {
                    printed = shown(chosen);
                }
            })?;
            printed?;
            chosen
        };
        let total = chosen.plan.groups.iter().map(|group| group.decisions.len()).sum::<usize>();
        let forgotten = chosen.plan.removed().count();
        summarize(forgotten, total - forgotten, ["snapshot is forgotten", "snapshots are forgotten"], args, global)
    })?;
    if !args.prune {
        return Ok(ExitCode::SUCCESS);
    }
    let run = prune::Run { wait_lock: LockWait::option(args.run.wait_lock), dry_run: false, json: args.run.json };
    prune::prune_as(&args.repository, &prune::Limits::default(), &run, global)
}

fn summarize(changed: usize, kept: usize, [one, many]: [&str; 2], args: &Args, global: &Global) -> Result<()> {
    if args.run.json {
        return print_summary(args.dry_run, changed, kept);
    }
    if global.shows_summary(args.dry_run) {
        let dry = if args.dry_run { "dry run, nothing is changed: " } else { "" };
        let kept = if args.snapshots.is_empty() { format!(", {kept} kept") } else { String::new() };
        output::message(format!("{dry}{}{kept}", count(changed as u64, one, many)));
    }
    Ok(())
}

pub(super) fn hold(args: &HoldArgs, global: &Global) -> Result<ExitCode> {
    let names = selectors(&args.snapshots)?;
    with_scene(&args.repository, &args.run, global, |scene| {
        let rows = scene.hold(&names, true)?;
        report(&rows, "hold", ["snapshot is held now", "snapshots are held now"], false, &args.run, global)
    })
}

pub(super) fn release(args: &ReleaseArgs, global: &Global) -> Result<ExitCode> {
    let names = selectors(&args.snapshots)?;
    with_scene(&args.repository, &args.run, global, |scene| {
        let rows = scene.hold(&names, false)?;
        report(&rows, "release", ["snapshot is released", "snapshots are released"], false, &args.run, global)
    })
}

fn with_scene(
    repository: &RepositoryArg,
    run: &RunArgs,
    global: &Global,
    work: impl FnOnce(&Scene<'_>) -> Result<()>,
) -> Result<ExitCode> {
    let repository = repository.open(global)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let (monitor, stop) = (global.monitor(run.json), stop_on_signals()?);
    let (repository, state, monitor, wait_lock) = (&repository, &state, &monitor, LockWait::option(run.wait_lock));
    work(&Scene { repository, state, wait_lock, monitor, stop: &stop })?;
    Ok(ExitCode::SUCCESS)
}

/// Parses names of snapshots, without paths.
fn selectors(names: &[OsString]) -> Result<Vec<Selector>> {
    let parse = |name: &OsString| {
        let selector = Selector::parse(name.as_bytes()).map_err(Usage)?;
        if selector.path.is_empty() {
            return Ok(selector);
        }
        let shown = name.to_string_lossy();
        Err(Usage(format!("{shown} is a path in a snapshot; name a snapshot, such as {selector}")).into())
    };
    names.iter().map(parse).collect()
}

impl Args {
    fn choice(&self) -> Result<Choice> {
        if !self.snapshots.is_empty() {
            return Ok(Choice::Named(selectors(&self.snapshots)?));
        }
        let now = match self.now {
            Some(now) => jiff::Timestamp::from_second(now.seconds).context("cannot use this time")?,
            None => jiff::Timestamp::now(),
        };
        let zone = if self.utc { TimeZone::UTC } else { TimeZone::system() };
        Ok(Choice::Policy {
            policy: Policy::new(self.rules())?,
            sources: self.source.clone(),
            grouping: self.group_by,
            calendar: Calendar { now, zone },
        })
    }

    fn rules(&self) -> Vec<Rule> {
        let counts = [
            (Period::Hour, self.keep_hourly),
            (Period::Day, self.keep_daily),
            (Period::Week, self.keep_weekly),
            (Period::Month, self.keep_monthly),
            (Period::Quarter, self.keep_quarterly),
            (Period::Year, self.keep_yearly),
        ];
        let ages = [
            (Period::Hour, self.keep_within_hourly),
            (Period::Day, self.keep_within_daily),
            (Period::Week, self.keep_within_weekly),
            (Period::Month, self.keep_within_monthly),
            (Period::Quarter, self.keep_within_quarterly),
            (Period::Year, self.keep_within_yearly),
        ];
        let mut rules: Vec<_> = self.keep_last.map(Rule::Last).into_iter().collect();
        rules.extend(counts.into_iter().filter_map(|(period, count)| Some(Rule::Each(period, count?))));
        rules.extend(self.keep_within.map(Rule::Within));
        rules.extend(ages.into_iter().filter_map(|(period, age)| Some(Rule::EachWithin(period, age?))));
        rules.extend(self.keep_tag.iter().cloned().map(Rule::Tag));
        rules
    }
}

/// Prints the decisions about all snapshots.
fn print_chosen(chosen: &Chosen, json: bool) -> Result<()> {
    for group in &chosen.plan.groups {
        if !json {
            let tags = group.tags.as_ref().map(|tags| format!("  [{}]", tags.join(", "))).unwrap_or_default();
            output::result(show::printable(&format!("{}{tags}", group.source)))?;
        }
        for decision in &group.decisions {
            if json {
                output::object(&as_json(decision))?;
            } else {
                output::result(show::printable(as_line(decision).trim_end()))?;
            }
        }
    }
    Ok(())
}

fn action(decision: &Decision) -> &'static str {
    if decision.is_removal() { "forget" } else { "keep" }
}

fn as_line(decision: &Decision) -> String {
    let Decision { snapshot, reasons } = decision;
    let reasons = reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join(", ");
    let (short, time) = (snapshot.name.id.short(), local_name_time(&snapshot.name.time));
    format!("  {:<6}  {short}  {time}  {reasons}", action(decision))
}

fn as_json(decision: &Decision) -> Value {
    let Decision { snapshot, reasons } = decision;
    json!({
        "message_type": "snapshot",
        "action": action(decision),
        "id": snapshot.name.id.to_string(),
        "time": name_time(&snapshot.name.time),
        "source": snapshot.source,
        "tags": snapshot.tags,
        "held": snapshot.is_held,
        "reasons": reasons.iter().map(Reason::to_string).collect::<Vec<_>>(),
    })
}

/// Prints the snapshots that were changed.
fn report(
    rows: &[SnapshotRow],
    action: &str,
    [one, many]: [&str; 2],
    dry_run: bool,
    run: &RunArgs,
    global: &Global,
) -> Result<()> {
    if run.json {
        for row in rows {
            output::object(&json!({
                "message_type": "snapshot",
                "action": action,
                "id": row.name.id.to_string(),
                "time": name_time(&row.name.time),
                "source": row.source,
                "tags": row.labels.tags,
                "held": if matches!(action, "hold" | "release") { action == "hold" } else { row.is_held },
                "reasons": [],
            }))?;
        }
        return print_summary(dry_run, rows.len(), 0);
    }
    let is_shown = global.shows_summary(dry_run);
    if is_shown {
        for row in rows {
            let (short, time) = (row.name.id.short(), local_name_time(&row.name.time));
            output::result(show::printable(&format!("{action:<7}  {short}  {time}  {}", row.source)))?;
        }
        let dry = if dry_run { "dry run, nothing is changed: " } else { "" };
        output::message(format!("{dry}{}", count(rows.len() as u64, one, many)));
    }
    Ok(())
}

fn print_summary(dry_run: bool, changed: usize, kept: usize) -> Result<()> {
    let summary = json!({ "message_type": "summary", "dry_run": dry_run, "changed": changed, "kept": kept });
    Ok(output::object(&summary)?)
}
