//! `brackfs versions`

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::entry;
use super::exit;
use super::global::Global;
use super::output;
use super::reader_args::{DiskCacheArgs, DiskCaching, ReaderArgs, SMALL_CACHE};
use super::repository_arg::Use;
use super::show::{self, local, local_name_time, name_time, size};
use crate::archive::EntryHandle;
use crate::format::name::SnapshotName;
use crate::format::{Digest, Kind};
use crate::history::{VersionSpan, versions};

/// Show the versions of a file in the snapshots
///
/// PATH begins at the root of the snapshots, as in ls. If the root is a single directory that was backed up, the absolute path
/// of the file on the machine works too. Versions are listed by source, newest first.
///
/// A line has the newest snapshot with the version (the beginning of its id, for cat and restore, and its time), the source,
/// the file's size, its modification time, the beginning of its BLAKE3 digest, and the number of consecutive snapshots with
/// the version and the time of the first of them. A new version is a change of kind, size, time or content; owners, modes and
/// attributes do not count. If the path is missing from snapshots that are newer than a version, a line says so. So the first
/// line shows whether the file was deleted, and when. A version that reappears is listed again.
///
/// The digest of a directory is that of its tree. Any change below a directory makes a new version.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs versions /etc/fstab --repo /backup --key owner.key
  brackfs versions alice/notes.txt --source home --repo /backup --key owner.key")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// Show the versions of this file or directory
    #[arg(value_name = "PATH")]
    path: OsString,
    /// Search only snapshots of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Print one JSON object for each version
    ///
    /// It has message_type version, source, snapshots (their number), first_id, first_time, last_id and last_time (of the
    /// oldest and the newest of them), digest (null for an empty file, and for entries without content), and the fields of
    /// ls --json. If the path is missing, message_type is absence, and only source, path (and path_hex) and the fields of the
    /// snapshots are present.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let monitor = global.monitor(args.json);
    let archive =
        args.reader.open_archive(Use::Command, global, &monitor, SMALL_CACHE, (&args.disk, DiskCaching::Fill))?;
    let path = args.path.as_bytes();
    // Unbuffered, since the search for the next version can take long.
    let mut out = output::stdout();
    let mut print = |stretch: &VersionSpan| {
        if args.json { writeln!(out, "{}", show::json(&as_json(stretch, path))) } else { write_line(stretch, &mut out) }
    };
    let problems = versions(&*archive, path, args.source.as_deref(), &monitor, &mut print)?;
    exit::of_problems(problems)
}

fn write_line(stretch: &VersionSpan, out: &mut dyn Write) -> std::io::Result<()> {
    let VersionSpan { newest, oldest, snapshots, source, version } = stretch;
    let source = show::shown(source);
    write!(out, "{}  {}  {source:<12}  ", newest.id.short(), local_name_time(&newest.time))?;
    match version {
        Some(version) => {
            let entry = version.entry();
            let size = match entry.kind {
                Kind::File => size(entry.size),
                other => show::kind(other).to_owned(),
            };
            let digest = digest(version).map(|digest| digest.to_string()).unwrap_or_default();
            write!(out, "{size:>9}  {:<20}  {digest:<16.16}  ", local(entry.mtime))?;
        }
        None => write!(out, "{:>9}  {:<20}  {:<16}  ", "missing", "", "")?,
    }
    match snapshots {
        1 => write!(out, "1 snapshot")?,
        many => write!(out, "{many} snapshots since {} ({})", local_name_time(&oldest.time), oldest.id.short())?,
    }
    if let Some(version) = version {
        entry::write_suffix(out, &version.entry())?;
    }
    out.write_all(b"\n")
}

fn as_json(stretch: &VersionSpan, path: &[u8]) -> serde_json::Value {
    let id = |name: &SnapshotName| name.id.to_string();
    let VersionSpan { newest, oldest, snapshots, source, version } = stretch;
    let Some(version) = version else {
        let head = json!({
            "message_type": "absence",
            "source": source,
            "snapshots": snapshots,
            "first_id": id(oldest),
            "first_time": name_time(&oldest.time),
            "last_id": id(newest),
            "last_time": name_time(&newest.time),
        });
        return entry::at_path(head, path);
    };
    let head = json!({
        "message_type": "version",
        "source": source,
        "snapshots": snapshots,
        "first_id": id(oldest),
        "first_time": name_time(&oldest.time),
        "last_id": id(newest),
        "last_time": name_time(&newest.time),
        "digest": digest(version).map(|digest| digest.to_string()),
    });
    entry::object(head, version, path)
}

/// The digest of a file's bytes, or of a directory's tree.
fn digest(version: &EntryHandle) -> Option<Digest> {
    match version.directory() {
        Some(directory) => directory.digest,
        None => version.digest(),
    }
}
