//! `brackfs catalog`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::common::{Global, RepositoryArg, is_interactive, stop_on_signals};
use super::say;
use super::show::parse_duration;
use crate::catalog::Catalog;
use crate::inventory::{self, Inventory, host_access, host_key};
use crate::monitor::{Monitor, count};
use crate::repository::Repository;
use crate::state::RepositoryState;

#[derive(Debug, clap::Subcommand)]
pub(super) enum CatalogCommand {
    Rebuild(RebuildArgs),
    Verify(VerifyArgs),
}

/// Build the catalog anew from the repository
///
/// On the machine that is backed up. It takes the host key and nothing else: from what that key signed, brackfs learns whom
/// to encrypt to, which packs and chunks there are, and which snapshots. Packs that are missing, or have another length
/// than the indexes say, are left out. The catalog that was there is kept as catalog.sqlite.old.
///
/// A backup does this by itself when the catalog is missing or broken. No restore ever needs it.
///
/// Afterwards the next backup reads every file once, since how files looked is not in the repository, and stores nothing
/// again that is there. Paths, tags and host of older snapshots are sealed to the owner: `brackfs snapshots` shows them
/// with the owner's key only.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs catalog rebuild --repo /backup")]
pub(super) struct RebuildArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    /// Wait so long for another run that writes, as in 90s, 10m or 1h30m
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Print the result as a JSON object
    ///
    /// It has message_type summary, and packs and snapshots (those that were found), missing_packs, unknown_snapshots
    /// (of which no index tells), unusable_indexes.
    #[arg(long)]
    json: bool,
}

/// Compare the catalog with the repository
///
/// On the machine that is backed up, with no key but its own. Looked at are the file itself, and all that it claims: that
/// each pack is there with its length and stands with the same digest in an index and in a list of sums, that its blocks
/// lie one after the other, that chunks and directories refer to blocks that are there, and that snapshots are there and
/// use blocks that are known. No pack is read: see brackfs-check(1) and b3sum for that.
///
/// Each problem is named, and nothing is changed. The exit code is 1 if there are any; `brackfs catalog rebuild` then makes
/// a catalog that agrees with the repository. Beside a backup that writes, what it is writing may be missed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs catalog verify --repo /backup
  brackfs catalog verify --repo /backup --json")]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    /// Print the result and problems as JSON, one object a line
    ///
    /// The result has message_type summary, and packs, lost_packs (known to be lost, and not built upon any more), blocks,
    /// chunks, snapshots, problems. A problem, on standard error,
    /// has message_type error, and path and message.
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
    let repository = Repository::open(&args.repository.location)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let key = host_key(&state)?;
    let _lock = state.lock(args.wait_lock, &stop, |holder| monitor.note(&waiting(holder)))?;
    let access = host_access(&key)?;
    let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
    let (_, found) = inventory::rebuild(&inventory, &state, &key.fingerprint())?;
    if args.json {
        say::result(json!({
            "message_type": "summary",
            "packs": found.learnt_packs,
            "snapshots": found.learnt_snapshots,
            "missing_packs": found.missing_packs,
            "unknown_snapshots": found.unknown_snapshots,
            "unusable_indexes": found.unusable_indexes,
        }))?;
    } else if !global.quiet {
        say::aside(format!("the catalog was built anew: {}; the next backup reads every file once", found.summary()));
    }
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &VerifyArgs, global: &Global) -> Result<ExitCode> {
    let repository = Repository::open(&args.repository.location)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let key = host_key(&state)?;
    let access = host_access(&key)?;
    let catalog = Catalog::view(&state.catalog_path(), repository.id())?;
    let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
    let found = inventory.verify(&catalog, &state, &key.certificate())?;
    if args.json {
        say::result(json!({
            "message_type": "summary",
            "packs": found.packs,
            "lost_packs": found.lost_packs,
            "blocks": found.blocks,
            "chunks": found.chunks,
            "snapshots": found.snapshots,
            "problems": found.problems,
        }))?;
    } else if !global.quiet && (is_interactive() || global.verbose) {
        let (packs, blocks) = (count(found.packs, "pack", "packs"), count(found.blocks, "block", "blocks"));
        let (chunks, snapshots) =
            (count(found.chunks, "chunk", "chunks"), count(found.snapshots, "snapshot", "snapshots"));
        say::aside(format!("{packs}, {blocks}, {chunks}, {snapshots}"));
        if found.lost_packs > 0 {
            let lost = count(found.lost_packs, "more pack is", "more packs are");
            say::aside(format!("{lost} lost, and not built upon any more; older snapshots may need what they held"));
        }
    }
    match found.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => anyhow::bail!(
            "{}; `brackfs catalog rebuild` makes a catalog that agrees with the repository, and the next backup stores what is lost as far as it is still at the source",
            count(problems, "problem", "problems")
        ),
    }
}

/// What is said by who waits for the lock.
pub(super) fn waiting(holder: &str) -> String {
    format!("waiting for another run of brackfs that writes to this repository ({holder})")
}
