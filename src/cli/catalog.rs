//! `brackfs catalog`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::global::Global;
use super::output;
use super::repository_arg::RepositoryArg;
use super::show;
use super::signals::{stop_on_signals, stop_soon_on_signals};
use crate::catalog::Catalog;
use crate::inventory::{self, Inventory, Verified, host_access, host_key};
use crate::monitor::count;
use crate::quantity::parse_duration;
use crate::session::{self, LockWait, Priority};
use crate::state::RepositoryState;

#[derive(Debug, clap::Subcommand)]
pub(super) enum CatalogCommand {
    Rebuild(RebuildArgs),
    Verify(VerifyArgs),
}

/// Rebuild the catalog from the repository
///
/// Runs on the machine that is backed up, and needs only its host key. The recipients, packs, chunks and snapshots are read
/// from documents that the host key signed. Packs that are missing, or whose length differs from that in the indexes, are
/// left out. The old catalog is kept as catalog.sqlite.old.
///
/// A backup rebuilds a missing or damaged catalog automatically. A restore never needs it.
///
/// The next backup reads every file once, since the repository does not hold the files' inode numbers and change times; data
/// that is already stored is not stored again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs catalog rebuild --repo /backup")]
pub(super) struct RebuildArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    /// If another run is writing to the repository, wait up to DURATION, then exit with code 11
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90s, 10m or 1h30m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Print the result as a JSON object
    ///
    /// It has message_type summary, and packs and snapshots (the numbers found), missing_packs, unknown_snapshots
    /// (snapshots without an index), unusable_indexes.
    #[arg(long)]
    json: bool,
}

/// Compare the catalog with the repository
///
/// Runs on the machine that is backed up, and needs only its host key. Checks the catalog's file and its content: each pack
/// exists, has the recorded length, and has the same digest in an index and in a list of sums; its blocks are contiguous;
/// chunks and directories refer to existing blocks; snapshots exist and use known blocks. Packs are read only with
/// --read-data.
///
/// Problems are reported. If there are any, the exit code is 1. Without --read-data, nothing is changed; `brackfs catalog rebuild`
/// makes a catalog that agrees with the repository. While a backup is running, objects it is writing may be reported as missing.
///
/// With --read-data, lost and damaged packs are noted in the catalog. The next backup stores their data again if it is still at
/// the source.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs catalog verify --repo /backup
  brackfs catalog verify --repo /backup --read-data")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    /// Read all packs too, and note in the catalog which ones are lost or damaged
    ///
    /// This takes as long as reading the whole repository. Another run that needs to write goes first.
    #[arg(long)]
    read_data: bool,
    /// With --read-data: if another run is writing to the repository, wait up to DURATION, then exit with code 11
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90s, 10m or 1h30m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration, requires = "read_data")]
    wait_lock: Duration,
    /// Print the result and problems as JSON, one object per line
    ///
    /// The result has message_type summary, and packs, lost_packs (known to be lost, and no longer used), blocks, chunks,
    /// snapshots, read_packs and read_bytes (null without --read-data), problems. Problems are written to standard error, with
    /// message_type error, path and message. With --read-data, progress is written as by backup --json; status objects count
    /// packs as files.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &CatalogCommand, global: &Global) -> Result<ExitCode> {
    match command {
        CatalogCommand::Rebuild(args) => rebuild(args, global),
        CatalogCommand::Verify(args) => verify(args, global),
    }
}

fn rebuild(args: &RebuildArgs, global: &Global) -> Result<ExitCode> {
    let repository = args.repository.open(global)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let key = host_key(&state)?;
    let lock = session::lock(&state, LockWait::option(args.wait_lock), Priority::Normal, &monitor, &stop)?;
    let access = host_access(&key)?;
    let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
    let (_, found) = inventory::rebuild(&inventory, &lock, &key.fingerprint())?;
    if args.json {
        output::object(&json!({
            "message_type": "summary",
            "packs": found.learnt_packs,
            "snapshots": found.learnt_snapshots,
            "missing_packs": found.missing_packs,
            "unknown_snapshots": found.unknown_snapshots,
            "unusable_indexes": found.unusable_indexes,
        }))?;
    } else if !global.quiet {
        output::message(format!("the catalog was rebuilt: {}; the next backup reads every file once", found.summary()));
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &VerifyArgs, global: &Global) -> Result<ExitCode> {
    let repository = args.repository.open(global)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let monitor = global.monitor(args.json);
    let (found, read) = if args.read_data {
        let stop = stop_on_signals()?;
        monitor.start();
        let wait = LockWait::option(args.wait_lock);
        let result = session::check_part(&repository, &state, 1.0, wait, &monitor, &stop);
        monitor.finish();
        let found = result?;
        (Verified { problems: found.problems, ..found.compared }, Some((found.read_packs, found.read_bytes)))
    } else {
        let stop = stop_soon_on_signals()?;
        let key = host_key(&state)?;
        let access = host_access(&key)?;
        let view = Catalog::view(&state.catalog_path(), repository.id())?;
        let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
        (view.read(|catalog| inventory.verify(&catalog, &state, &key.certificate()))?, None)
    };
    if args.json {
        let (read_packs, read_bytes) = read.unzip();
        output::object(&json!({
            "message_type": "summary",
            "packs": found.packs,
            "lost_packs": found.lost_packs,
            "blocks": found.blocks,
            "chunks": found.chunks,
            "snapshots": found.snapshots,
            "read_packs": read_packs,
            "read_bytes": read_bytes,
            "problems": found.problems,
        }))?;
    } else if global.shows_summary(false) {
        let (packs, blocks) = (count(found.packs, "pack", "packs"), count(found.blocks, "block", "blocks"));
        let (chunks, snapshots) =
            (count(found.chunks, "chunk", "chunks"), count(found.snapshots, "snapshot", "snapshots"));
        output::message(format!("{packs}, {blocks}, {chunks}, {snapshots}"));
        if let Some((packs, bytes)) = read {
            output::message(format!("{} read ({})", count(packs, "pack was", "packs were"), show::size(bytes)));
        }
        if found.lost_packs > 0 {
            let lost = count(found.lost_packs, "more pack is", "more packs are");
            output::message(format!("{lost} lost and no longer used; older snapshots may need their data"));
        }
    }
    let remedy = match read {
        Some(_) => "the next backup",
        None => "run `brackfs catalog rebuild` for a catalog that agrees with the repository; the next backup",
    };
    match found.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => anyhow::bail!(
            "{}; {remedy} stores lost data again if it is still at the source",
            count(problems, "problem", "problems")
        ),
    }
}
