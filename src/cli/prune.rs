//! `brackfs prune`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::exit;
use super::global::Global;
use super::output;
use super::record::ByHand;
use super::repository_arg::{RepositoryArg, Use};
use super::show::{parse_time, size};
use super::signals::stop_on_signals;
use crate::format::Timestamp;
use crate::job::{Step, prune_outcome};
use crate::monitor::count;
use crate::prune::{self, Options, Summary};
use crate::quantity::{parse_duration, parse_percent, parse_size};
use crate::session::LockWait;
use crate::state::RepositoryState;

/// Remove data that no snapshot needs any more
///
/// Runs on the machine that is backed up, and needs only its host key: the catalog knows which snapshot uses which data. Run
/// brackfs-forget(1) first.
///
/// Data is stored in packs. A pack that no snapshot needs is condemned. A later prune removes it after the grace
/// period; until then, `brackfs forget --undo` shows forgotten snapshots again, and open mounts can still read them.
/// Some packs are needed only in part. If they waste more than --max-waste in total, needed data is verified and copied
/// from them to new packs, without decryption, and the old packs are condemned.
///
/// Mounts, restores and checks can run at the same time: they find copied data at its new place. A prune can be
/// interrupted at any moment; the next one continues.
///
/// Nothing is removed unless all snapshots are known. After the catalog was rebuilt, or the repository was set back to
/// an older copy, the first prune fails and says why. A later one continues once the records in the repository prove
/// that no document is missing.
///
/// Damaged data is not copied. Its pack stays, and is reported here and by brackfs-check(1).
///
/// If another run waits for the lock, such as a backup with --wait-lock, a prune stops after the current batch of copies or
/// removals, and continues when that run has ended.
///
/// On a full disk, use --grace 0 --max-copy 0. Backups and prunes keep a file named reserve, of 4 MiB, in the state directory
/// and in a repository that is a directory. When the disk is full, prune and brackfs-forget(1) remove it to get space.
///
/// Some targets cannot remove objects, or only after some time. An object that cannot be removed stays, and the exit code
/// is 0. A later prune tries again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs forget --repo /backup --keep-daily 7 --keep-weekly 5 --keep-monthly 12
  brackfs prune --repo /backup
  brackfs prune --repo /backup --dry-run
  brackfs prune --repo /backup --grace 0 --max-copy 0     # free space at once, without copies")]
pub(super) struct Args {
    #[command(flatten)]
    repository: RepositoryArg,
    #[command(flatten)]
    limits: Limits,
    /// If another run is writing to the repository, wait up to DURATION, then exit with code 11
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90s, 10m or 1h30m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Print what would be done, and change nothing
    ///
    /// Takes no lock, so another run may be writing to the repository. Does not take --max-duration into account.
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print the result as a JSON object
    ///
    /// It has message_type summary, and dry_run, stored_bytes and live_bytes (before the prune), compacted_packs,
    /// copied_bytes, damaged_packs, condemned_packs, removed_snapshots, removed_packs, freed_bytes, retained_objects (which the
    /// target refused to remove), pending_bytes (condemned, and not removed yet). Status objects count packs as files.
    #[arg(long)]
    json: bool,
}

/// How far a prune goes.
#[derive(Debug, clap::Args)]
pub(super) struct Limits {
    /// Let packs waste up to this percentage of the size of needed data
    ///
    /// A lower percentage saves space, but copies more.
    #[arg(long, value_name = "PERCENT", default_value = "20%", value_parser = parse_waste)]
    max_waste: f64,
    /// Copy at most SIZE of needed data [default: no limit]
    ///
    /// With 0, only packs that are not needed at all are removed, which needs hardly any free space.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_copy: Option<u64>,
    /// Begin no copy after DURATION [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_duration: Option<Duration>,
    /// Keep unneeded data for DURATION after a prune condemned it
    ///
    /// With 0, data is removed in the same run, and open mounts of forgotten snapshots fail.
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_duration)]
    grace: Duration,
    /// Use this as the current time
    #[arg(long, value_name = "TIME", value_parser = parse_time, hide = true)]
    now: Option<Timestamp>,
}

/// Parses a percentage, such as 20%.
fn parse_waste(text: &str) -> Result<f64, String> {
    parse_percent(text, 1000)
}

impl Default for Limits {
    /// The defaults of the command line.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Limits { max_waste: 0.2, max_copy: None, max_duration: None, grace: DAY, now: None }
    }
}

impl Limits {
    fn options(&self) -> Options {
        Options {
            max_waste: self.max_waste,
            max_copy: self.max_copy.unwrap_or(u64::MAX),
            max_duration: self.max_duration,
            grace: self.grace,
            now: self.now.map(|now| now.seconds),
        }
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let run = Run { wait_lock: LockWait::option(args.wait_lock), dry_run: args.dry_run, json: args.json };
    prune_as(&args.repository, &args.limits, &run, global)
}

/// How a prune is run and reported.
pub(super) struct Run {
    pub(super) wait_lock: LockWait,
    pub(super) dry_run: bool,
    pub(super) json: bool,
}

/// Prunes and prints the result.
pub(super) fn prune_as(repository: &RepositoryArg, limits: &Limits, args: &Run, global: &Global) -> Result<ExitCode> {
    let place = repository.resolve(global)?;
    let repository = place.open(Use::Command, global, Vec::new())?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let options = limits.options();
    let summary = if args.dry_run {
        prune::predict(&repository, &state, &options, &monitor, &stop)?
    } else {
        let id = Some(repository.id());
        let by_hand = ByHand::begin(Step::Prune, None, place.target.as_deref(), global, &monitor);
        monitor.start();
        let result = prune::prune(&repository, &state, &options, args.wait_lock, &monitor, &stop);
        monitor.finish();
        let result = result.map_err(anyhow::Error::from);
        match (by_hand, &result) {
            (Some(step), Ok(summary)) => step.end(id, prune_outcome(summary, size), None, &monitor),
            (Some(step), Err(error)) => step.fail(id, error, &monitor),
            (None, _) => {}
        }
        result?
    };
    if args.json {
        output::object(&json!({
            "message_type": "summary",
            "dry_run": args.dry_run,
            "stored_bytes": summary.stored_bytes,
            "live_bytes": summary.live_bytes,
            "compacted_packs": summary.compacted_packs,
            "copied_bytes": summary.copied_bytes,
            "damaged_packs": summary.damaged_packs,
            "condemned_packs": summary.condemned_packs,
            "removed_snapshots": summary.removed_snapshots,
            "removed_packs": summary.removed_packs,
            "freed_bytes": summary.freed_bytes,
            "retained_objects": summary.retained,
            "pending_bytes": summary.pending_bytes,
        }))?;
    } else if global.shows_summary(args.dry_run) {
        report(&summary, args.dry_run);
    }
    exit::partial(summary.damaged_packs)
}

fn report(summary: &Summary, dry_run: bool) {
    let packs = |number| count(number, "pack", "packs");
    let (removed, copied) = if dry_run { ("would be removed", "would be copied") } else { ("removed", "copied") };
    output::message(format!(
        "{} of {} are needed; {} in {} {removed}; {} out of {} {copied}",
        size(summary.live_bytes),
        size(summary.stored_bytes),
        size(summary.freed_bytes),
        packs(summary.removed_packs),
        size(summary.copied_bytes),
        packs(summary.compacted_packs),
    ));
    if summary.retained > 0 {
        output::warning(format!("the target refused to remove {}", count(summary.retained, "object", "objects")));
    }
    if summary.pending_bytes > 0 {
        let when = if summary.retained > 0 { "as soon as the target allows it" } else { "after the grace period" };
        output::message(format!("{} more are not needed, and will be removed {when}", size(summary.pending_bytes)));
    }
}
