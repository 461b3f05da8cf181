//! `brackfs stats`

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::global::Global;
use super::output;
use super::repository_arg::RepositoryArg;
use super::show::{self, local_name_time, name_time, size};
use crate::catalog::{Catalog, Presence, SnapshotRow, UsedSizes};
use crate::history;
use crate::monitor::Monitor;
use crate::state::RepositoryState;

/// Show how much space snapshots take
///
/// Runs on the machine that is backed up, and needs no key: everything is in its catalog. For each snapshot: the size of
/// its files, the size that its backup added to the repository, and the size that only this snapshot uses; forgetting
/// it alone makes that much waste. For each source: the size that its snapshots use together. For the repository: the
/// size of all packs, how much of it snapshots use, and the waste, which brackfs-prune(1) can free.
///
/// Sizes in the repository are those after compression and encryption. They are counted in blocks: a block with many small
/// files counts as long as any of them is used.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs stats --repo /backup
  brackfs stats --repo /backup --source home --json")]
pub(super) struct Args {
    #[command(flatten)]
    repository: RepositoryArg,
    /// List only snapshots of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Print a JSON object
    ///
    /// It has message_type summary; stored_bytes, live_bytes, waste_bytes, file_bytes (of all snapshots); sources (name,
    /// live_bytes); and snapshots (id, time, source, files, bytes, added_bytes, unique_bytes).
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let repository = args.repository.open(global)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let view = Catalog::view(&state.catalog_path(), repository.id())?;
    let (mut rows, sizes, stored) = view.read(|catalog| {
        let mut rows = catalog.snapshots()?;
        rows.retain(|row| row.presence == Presence::There);
        let (sizes, stored) = (catalog.used_sizes(&rows)?, catalog.stored_bytes()?);
        anyhow::Ok((rows, sizes, stored))
    })?;
    let wanted = |source: &str| args.source.as_ref().is_none_or(|wanted| wanted == source);
    let total = rows.iter().map(|row| row.bytes).fold(0, u64::saturating_add);
    rows.retain(|row| wanted(&row.source));
    if let (true, Some(source)) = (rows.is_empty(), &args.source) {
        global.monitor(args.json).note(&history::Error::NoSource(source.clone()).to_string());
    }
    let sources: BTreeMap<_, _> = sizes.by_source.iter().filter(|(source, _)| wanted(source)).collect();
    let mut out = output::stdout();
    if args.json {
        let object = json!({
            "message_type": "summary",
            "stored_bytes": stored,
            "live_bytes": sizes.live,
            "waste_bytes": stored.saturating_sub(sizes.live),
            "file_bytes": total,
            "sources": sources.iter().map(|(name, live)| json!({"name": name, "live_bytes": live})).collect::<Vec<_>>(),
            "snapshots": rows.iter().map(|row| snapshot(row, &sizes)).collect::<Vec<_>>(),
        });
        writeln!(out, "{}", show::json(&object))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !rows.is_empty() {
        let width = rows.first().map_or(0, |row| local_name_time(&row.name.time).len());
        writeln!(out, "snapshot  {:<width$}  source              files      added     unique", "time")?;
    }
    for row in &rows {
        writeln!(
            out,
            "{}  {}  {:<12}  {:>10}  {:>9}  {:>9}",
            row.name.id.short(),
            local_name_time(&row.name.time),
            show::shown(&row.source),
            size(row.bytes),
            size(row.stored_bytes),
            size(unique(row, &sizes))
        )?;
    }
    for (source, live) in &sources {
        writeln!(out, "source {}: {} in the repository", show::shown(source), size(**live))?;
    }
    let ratio = if stored > 0 { total as f64 / stored as f64 } else { 0.0 };
    writeln!(
        out,
        "repository: {} stored, {} used, {} waste; files of all snapshots: {}, {ratio:.1} times as much",
        size(stored),
        size(sizes.live),
        size(stored.saturating_sub(sizes.live)),
        size(total)
    )?;
    Ok(ExitCode::SUCCESS)
}

fn unique(row: &SnapshotRow, sizes: &UsedSizes) -> u64 {
    sizes.unique.get(&row.name.sequence).copied().unwrap_or_default()
}

fn snapshot(row: &SnapshotRow, sizes: &UsedSizes) -> Value {
    json!({
        "id": row.name.id.to_string(),
        "time": name_time(&row.name.time),
        "source": row.source,
        "files": row.files,
        "bytes": row.bytes,
        "added_bytes": row.stored_bytes,
        "unique_bytes": unique(row, sizes),
    })
}
