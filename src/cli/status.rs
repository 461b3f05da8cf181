//! `brackfs status`

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::exit::{self, Usage};
use super::global::Global;
use super::output;
use super::overview::{self, HISTORY, Style, ago};
use super::show;
use crate::config::SourceConfig;
use crate::format::Timestamp;
use crate::job::Entry;
use crate::monitor::count;
use crate::overview::{BackupState, Backups, Known, Overview, TargetOverview, Tries, Verdict, calendar, metrics};

/// Show whether all backups are fresh
///
/// Needs no key and opens no target, so targets may be offline. The configuration says which backups there should be; the
/// record of runs and the catalogs on this machine say which were made. Run it as the user who runs the backups. The state
/// directory may be read-only, since nothing is written there, except that changes of a run that was killed are recovered.
///
/// For each source on each target: its state, the age of the last completed backup, the number of snapshots, the size of
/// the source, and the bytes that the backups of these snapshots added to the repository. Below them, a mark for each of
/// the last 30 days (of the best backup on that local day), and a bar for each of the last 30 backups (the bytes that it
/// stored). For each target: the number of all snapshots, the size of the sources and of
/// the data stored for them, the last prune and the last check, and recipients whose certificates expire within 30 days.
///
/// A state is ok; problems (the last backup is fresh, but not complete); skipped (fresh, and skipped since then); LATE (older
/// than --max-age); FAILED (the last try failed); or never.
///
/// All steps of `brackfs run` are recorded. A backup, prune or check by hand is recorded if the repository is named as a
/// configured target (such as @nas). For a backup, the source must also be configured for this target, and there must be no
/// --time. Not recorded are steps that could not begin (wrong usage, a wrong key, no repository, or another run that is
/// writing to it), other commands, repositories given as a path or URL, other machines, and other users.
///
/// A step that was killed, or ended by a crash or a power failure, counts as failed. Its message is interrupted, and its time
/// is when it began.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs status
  brackfs status home --max-age 2d
  brackfs status --format nagios

The exit code is 2 if the last try of a backup, forget, prune or check failed; otherwise 1 if a backup is older than \
its maximum age; otherwise 3 if a backup was never completed; otherwise 0. A command that cannot tell prints nothing \
on standard output and has code 1, or code 64 for wrong usage or a mistake in the configuration; with --format nagios, \
it prints a line with UNKNOWN and has code 3.")]
pub(super) struct Args {
    /// Show only these sources [default: all]
    #[arg(value_name = "SOURCE")]
    sources: Vec<String>,
    /// Report a backup as late if it is older than DURATION [default: max-age of the source, or 36h]
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90m, 26h or 1d12h.
    #[arg(long, value_name = "DURATION", value_parser = parse_age)]
    max_age: Option<Duration>,
    /// Print the result in this form
    ///
    /// text is for people. nagios is a line for Nagios and compatible programs, with the age of each backup in seconds. prom are
    /// the metrics for Prometheus that brackfs-config(5) lists.
    ///
    /// json is an object with message_type summary, code (the exit code), last_run (time and code, or null), backups and
    /// targets. An object in backups has source, target, state, age_seconds, max_age_seconds, last_try and last_success (each
    /// null, or with time, outcome, message, seconds, and files, bytes, stored_bytes and problems or null), skipped (the reason
    /// or null), last_forget, snapshots, stored_bytes (that the backups of these snapshots added to the repository), and days
    /// (the outcomes of the last 30 days, null for days without a backup). An object in targets has name, snapshots, stored_bytes, last_prune, last_check, recipients (fingerprint, user_id, expires,
    /// problem), and problem. Unknown values are null.
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Form::Text)]
    format: Form,
    /// Print a JSON object, as --format json does
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// A form of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
    Prom,
    Nagios,
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let age = crate::quantity::parse_duration(text)?;
    if age.is_zero() { Err("must not be 0".to_owned()) } else { Ok(age) }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let form = if args.json { Form::Json } else { args.format };
    let overview = match (read(args, global), form) {
        (Err(error), Form::Nagios) => {
            output::result(format!("BRACKFS UNKNOWN - {}", in_a_line(&exit::text(&error))))?;
            return Ok(ExitCode::from(3));
        }
        (overview, _) => overview?,
    };
    let code = match overview.verdict() {
        Verdict::Fresh => 0,
        Verdict::Late => 1,
        Verdict::Failed => 2,
        Verdict::Never => 3,
    };
    match form {
        Form::Text => {
            let lines = overview::text(&overview, Style::of_output());
            lines.iter().try_for_each(output::result)?;
        }
        Form::Json => output::object(&as_json(&overview, code))?,
        Form::Prom => output::result(metrics(&overview).trim_end())?,
        Form::Nagios => output::result(nagios(&overview))?,
    }
    Ok(ExitCode::from(code))
}

fn read(args: &Args, global: &Global) -> Result<Overview> {
    let config = global.required_config()?;
    let mut sources: Vec<&SourceConfig> = match args.sources.is_empty() {
        true => config.sources.iter().collect(),
        false => args.sources.iter().map(|name| Ok(config.source(name)?)).collect::<Result<_>>()?,
    };
    let mut seen = BTreeSet::new();
    sources.retain(|source| seen.insert(source.name.clone()));
    if sources.is_empty() {
        return Err(Usage("the configuration has no source; write one, such as [source.home]".into()).into());
    }
    overview::read(&config, sources, args.max_age, HISTORY, global)
}

/// A line for Nagios: the status, what is wrong, and after a bar the ages.
fn nagios(overview: &Overview) -> String {
    let word = match overview.verdict() {
        Verdict::Fresh => "OK",
        Verdict::Late => "WARNING",
        Verdict::Failed => "CRITICAL",
        Verdict::Never => "UNKNOWN",
    };
    let name = |backups: &Backups| format!("{}/{}", backups.source, backups.target);
    let age = |backups: &Backups| backups.age(overview.now).map(ago).unwrap_or_default();
    let wrong = overview.backups.iter().filter_map(|it| match it.state(overview.now) {
        BackupState::Late => Some(format!("{} LATE ({})", name(it), age(it))),
        state @ (BackupState::Failed | BackupState::Never) => Some(format!("{} {}", name(it), state.name())),
        BackupState::Problems => Some(format!("{} has problems", name(it))),
        BackupState::Ok | BackupState::Skipped => None,
    });
    let failed = |tries: &Tries, step: &str, of: &str| tries.failure().map(|_| format!("{step} of {of} FAILED"));
    let forget = overview.backups.iter().filter_map(|it| failed(&it.forget, "forget", &name(it)));
    let of_targets = overview.targets.iter().flat_map(|it| {
        [failed(&it.prune, "prune", &it.name), failed(&it.check, "check", &it.name)].into_iter().flatten()
    });
    let mut parts: Vec<_> = wrong.chain(forget).chain(of_targets).collect();
    if parts.is_empty() {
        let oldest = overview.backups.iter().max_by_key(|it| it.age(overview.now));
        let backups = count(overview.backups.len() as u64, "backup", "backups");
        parts.push(format!("{backups}, the oldest {}", oldest.map(age).unwrap_or_default()));
    }
    let ages = overview.backups.iter().filter_map(|it| {
        let age = it.age(overview.now)?.as_secs();
        Some(format!("'{}'={age}s;{};;0", name(it), it.max_age.as_secs()))
    });
    in_a_line(&format!("BRACKFS {word} - {}", parts.join(", "))) + " | " + &ages.collect::<Vec<_>>().join(" ")
}

/// Text as a line without a bar, after which Nagios reads numbers.
fn in_a_line(text: &str) -> String {
    show::printable(&text.split_whitespace().collect::<Vec<_>>().join(" ")).replace('|', "/")
}

fn as_json(overview: &Overview, code: u8) -> Value {
    json!({
        "message_type": "summary",
        "code": code,
        "last_run": overview.last_run.map(|run| json!({ "time": time(run.ended), "code": run.code })),
        "backups": overview.backups.iter().map(|it| of_backups(it, overview.now)).collect::<Vec<_>>(),
        "targets": overview.targets.iter().map(of_target).collect::<Vec<_>>(),
    })
}

fn of_backups(backups: &Backups, now: i64) -> Value {
    let days = calendar(&backups.history, now, 30, &TimeZone::system());
    json!({
        "source": backups.source,
        "target": backups.target,
        "state": backups.state(now).name(),
        "age_seconds": backups.age(now).map(|age| age.as_secs()),
        "max_age_seconds": backups.max_age.as_secs(),
        "last_try": backups.tries.tried.as_ref().map(of_entry),
        "last_success": backups.tries.completed.as_ref().map(of_entry),
        "skipped": backups.skipped.as_ref().map(|entry| entry.message.as_str()),
        "last_forget": backups.forget.tried.as_ref().map(of_entry),
        "snapshots": backups.snapshots.map(|kept| kept.count),
        "stored_bytes": backups.snapshots.map(|kept| kept.stored_bytes),
        "days": days.iter().map(|day| day.ending.map(|ending| ending.name())).collect::<Vec<_>>(),
    })
}

fn of_target(target: &TargetOverview) -> Value {
    let recipients = target.known.iter().flat_map(|known| &known.recipients).map(|recipient| {
        json!({
            "fingerprint": recipient.fingerprint,
            "user_id": recipient.user_id,
            "expires": recipient.expires.map(time),
            "problem": recipient.problem,
        })
    });
    json!({
        "name": target.name,
        "snapshots": target.known.as_ref().map(Known::snapshots),
        "stored_bytes": target.known.as_ref().map(|known| known.stored_bytes),
        "last_prune": target.prune.tried.as_ref().map(of_entry),
        "last_check": target.check.tried.as_ref().map(of_entry),
        "recipients": recipients.collect::<Vec<_>>(),
        "problem": target.problem,
    })
}

fn of_entry(entry: &Entry) -> Value {
    let counts = entry.counts;
    json!({
        "time": time(entry.ended),
        "outcome": entry.ending.name(),
        "message": entry.message,
        "seconds": entry.seconds,
        "files": counts.map(|counts| counts.files),
        "bytes": counts.map(|counts| counts.bytes),
        "stored_bytes": counts.map(|counts| counts.stored_bytes),
        "problems": counts.map(|counts| counts.problems),
    })
}

fn time(seconds: i64) -> String {
    show::rfc3339(Timestamp { seconds, nanos: 0 })
}
