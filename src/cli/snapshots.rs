//! `brackfs snapshots`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::exit::{self, Usage};
use super::global::Global;
use super::output;
use super::reader_args::{FirstUse, ReaderArgs, SMALL_CACHE};
use super::repository_arg::Use;
use super::show::{self, local_name_time, name_time, size};
use crate::archive::Archive;
use crate::catalog::{Catalog, Presence, SnapshotRow};
use crate::failure::Failure;
use crate::format::snapshot::Snapshot;
use crate::format::usage::Labels;
use crate::history;
use crate::monitor::{Monitor, count};
use crate::reader::Reader;
use crate::repository::Repository;
use crate::state::RepositoryState;

/// List snapshots, oldest first
///
/// On the machine that is backed up, the snapshots are listed from the catalog, and no key is needed. With --key, and on other
/// machines, they are read from the repository and verified.
///
/// A line has the beginning of the id, the time at which the backup began (in the local time zone), the source, the number of
/// files, their size, the paths, the tags, and the word held if it is held. Which ones are held is known only on the machine
/// that is backed up, without --key. Snapshots are listed in the order in which they were made, even if the clock was wrong.
///
/// Other commands accept as SNAP: latest; the beginning of an id; or a time as listed here, or the beginning of one, such as
/// 2026-11-20, 2026-11-20T14:52 or 2026-11-20T15:52+01:00. A time without an offset is in UTC. With SOURCE/ in front, only
/// snapshots of that source count. If several snapshots match a time, the newest is used.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs snapshots --repo /backup
  brackfs snapshots --repo /backup --key owner.key --json")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    /// List only snapshots of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// List the forgotten snapshots that `brackfs forget --undo` would show again
    ///
    /// Only on the machine that is backed up, and without --key.
    #[arg(long)]
    forgotten: bool,
    /// Print a JSON array of objects
    ///
    /// Each object has id, time, source, host, paths, tags, files, bytes, stored_bytes, and held (null if the snapshots are
    /// read from the repository).
    #[arg(long)]
    json: bool,
}

/// A snapshot as it is listed.
struct ListedSnapshot {
    id: String,
    /// As in its name.
    time: String,
    source: String,
    labels: Labels,
    files: u64,
    bytes: u64,
    stored_bytes: u64,
    /// `None` if it is unknown.
    is_held: Option<bool>,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let monitor = global.monitor(args.json);
    let ahead = if args.reader.key.is_some() { Repository::reads_of_readers() } else { Vec::new() };
    let repository = args.reader.repository.resolve(global)?.open(Use::Command, global, ahead)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let mut problems = 0;
    let mut lines: Vec<ListedSnapshot> = if args.reader.key.is_none() && state.catalog_path().exists() {
        let rows = Catalog::view(&state.catalog_path(), repository.id())?.read(|catalog| catalog.snapshots())?;
        let listed = if args.forgotten { Presence::Forgotten } else { Presence::There };
        rows.into_iter().filter(|row| row.presence == listed).map(ListedSnapshot::from).collect()
    } else if args.forgotten {
        return Err(Usage(
            "--forgotten works only on the machine that is backed up, and without --key and BRACKFS_KEY_FILE".into(),
        )
        .into());
    } else {
        let reader = args.reader.open_in(repository, FirstUse::Trusted, global, &monitor, SMALL_CACHE)?;
        from_repository(&reader, &monitor, &mut problems)?
    };
    lines.retain(|line| args.source.as_ref().is_none_or(|source| *source == line.source));
    if let (true, Some(source)) = (lines.is_empty(), &args.source) {
        monitor.note(&history::Error::NoSource(source.clone()).to_string());
    }
    let mut out = output::stdout();
    if args.json {
        writeln!(out, "{}", show::json(&Value::Array(lines.iter().map(ListedSnapshot::json).collect())))?;
    } else {
        lines.iter().try_for_each(|line| writeln!(out, "{}", line.text()))?;
    }
    exit::of_problems(problems)
}

fn from_repository(reader: &Reader, monitor: &dyn Monitor, problems: &mut u64) -> Result<Vec<ListedSnapshot>> {
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    let names = reader.snapshots()?;
    for name in (reader as &dyn Archive).in_turn(&names) {
        match reader.snapshot(name) {
            Ok((snapshot, _)) => lines.push(ListedSnapshot::from(&*snapshot)),
            Err(error) => failed.push((name, error)),
        }
        let closed = || failed.iter().filter(|(_, error)| error.is_key_problem()).count();
        if lines.is_empty() && reader.is_hopeless(closed()) {
            break;
        }
    }
    // Report a wrong key only if it opens no snapshot: anyone with write access can add an object that it does not open.
    if lines.is_empty()
        && let Some(at) = failed.iter().position(|(_, error)| error.is_key_problem())
    {
        return Err(failed.swap_remove(at).1.into());
    }
    for (name, error) in &failed {
        *problems += 1;
        monitor.problem(name.object().as_ref(), &error.to_string());
    }
    Ok(lines)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl From<SnapshotRow> for ListedSnapshot {
    fn from(row: SnapshotRow) -> Self {
        ListedSnapshot {
            id: row.name.id.to_string(),
            time: row.name.time,
            source: row.source,
            labels: row.labels,
            files: row.files,
            bytes: row.bytes,
            stored_bytes: row.stored_bytes,
            is_held: Some(row.is_held),
        }
    }
}

impl From<&Snapshot> for ListedSnapshot {
    fn from(snapshot: &Snapshot) -> Self {
        ListedSnapshot {
            id: snapshot.name.id.to_string(),
            time: snapshot.name.time.clone(),
            source: snapshot.source.clone(),
            labels: Labels { host: snapshot.host.clone(), paths: snapshot.paths.clone(), tags: snapshot.tags.clone() },
            files: snapshot.statistics.files,
            bytes: snapshot.statistics.bytes,
            stored_bytes: snapshot.statistics.stored_bytes,
            is_held: None,
        }
    }
}

impl ListedSnapshot {
    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "time": name_time(&self.time),
            "source": self.source,
            "host": self.labels.host,
            "paths": self.labels.paths.iter().map(|path| text(path)).collect::<Vec<_>>(),
            "tags": self.labels.tags,
            "files": self.files,
            "bytes": self.bytes,
            "stored_bytes": self.stored_bytes,
            "held": self.is_held,
        })
    }

    fn text(&self) -> String {
        let short: String = self.id.chars().take(8).collect();
        let Labels { paths, tags, .. } = &self.labels;
        let tags = if tags.is_empty() { String::new() } else { format!("  [{}]", show::shown(&tags.join(", "))) };
        let paths = paths.iter().map(|path| text(path)).collect::<Vec<_>>().join(" ");
        let held = if self.is_held == Some(true) { "  [held]" } else { "" };
        let labels = format!("{}{tags}{held}", show::shown(&paths));
        format!(
            "{short}  {}  {:<12}  {:>15}  {:>9}  {labels}",
            local_name_time(&self.time),
            show::shown(&self.source),
            count(self.files, "file", "files"),
            size(self.bytes),
        )
    }
}
