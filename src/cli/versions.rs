//! `brackfs versions`

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::common::{Global, READ_ONCE, ReaderArgs, end_on_signals};
use super::entry;
use super::show::{self, name_time, rfc3339, size};
use crate::format::name::SnapshotName;
use crate::format::{Digest, Kind};
use crate::history::{VersionSpan, versions};
use crate::reader::{EntryHandle, FileReader};

/// Show which versions of a file the snapshots have
///
/// PATH begins at the root of the snapshots, as in ls. Where that is the one directory that was backed up, the path that
/// the file has on the machine serves as well. Sources follow one another, and of each the newest version comes first.
///
/// A line shows the newest snapshot that has the version (the beginning of its id, for cat and restore, and its time),
/// the source, the file's size, the time at which it was last changed, the beginning of its BLAKE3 digest, and how many
/// snapshots in a row have it, since when. A version is another one if kind, size, time or content is; owners, modes and
/// attributes don't count. Snapshots that do not have the path, but have an older version behind them, are a line, too: it
/// is missing there. So the first line says whether the file was deleted, and since when. A version that came back is
/// shown again.
///
/// Of a directory, the digest is that of its tree, and it is another version if anything below it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs versions /etc/fstab --repo /backup --key owner.key
  brackfs versions alice/notes.txt --source home --repo /backup --key owner.key")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// The file or directory
    #[arg(value_name = "PATH")]
    path: OsString,
    /// Look only into snapshots of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Print one JSON object for each version
    ///
    /// It has message_type version, source, snapshots (how many have it), first_id, first_time, last_id and last_time (of
    /// the oldest and the newest of them), digest (null for an empty file, and for what has no content), and all that ls
    /// --json says of an entry. Where the path is missing, message_type is absence, and source, path and the fields on
    /// snapshots are all.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let monitor = global.monitor(args.json);
    let reader = args.reader.open(global, &monitor, READ_ONCE)?;
    end_on_signals()?;
    let path = args.path.as_bytes();
    // A line at a time: the next one may take long to be found.
    let mut out = std::io::stdout().lock();
    let mut print = |stretch: &VersionSpan| match args.json {
        true => writeln!(out, "{}", show::json(&as_json(stretch, path))),
        false => write_line(stretch, &mut out),
    };
    let problems = versions(&reader, path, args.source.as_deref(), &monitor, &mut print)?;
    Ok(if problems > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn write_line(stretch: &VersionSpan, out: &mut dyn Write) -> std::io::Result<()> {
    let VersionSpan { newest, oldest, snapshots, source, version } = stretch;
    let source = show::shown(source);
    write!(out, "{}  {}  {source:<12}  ", newest.id.short(), name_time(&newest.time))?;
    match version {
        Some(version) => {
            let entry = version.entry();
            let size = match entry.kind {
                Kind::File => size(entry.size),
                other => show::kind(other).to_owned(),
            };
            let digest = digest(version).map(|digest| digest.to_string()).unwrap_or_default();
            write!(out, "{size:>9}  {:<20}  {digest:<16.16}  ", rfc3339(entry.mtime))?;
        }
        None => write!(out, "{:>9}  {:<20}  {:<16}  ", "missing", "", "")?,
    }
    match snapshots {
        1 => write!(out, "1 snapshot")?,
        many => write!(out, "{many} snapshots since {} ({})", name_time(&oldest.time), oldest.id.short())?,
    }
    if let Some(version) = version {
        entry::write_behind(out, version.entry())?;
    }
    out.write_all(b"\n")
}

fn as_json(stretch: &VersionSpan, path: &[u8]) -> serde_json::Value {
    let id = |name: &SnapshotName| name.id.to_string();
    let VersionSpan { newest, oldest, snapshots, source, version } = stretch;
    let Some(version) = version else {
        return json!({
            "message_type": "absence",
            "source": source,
            "path": String::from_utf8_lossy(path),
            "snapshots": snapshots,
            "first_id": id(oldest),
            "first_time": name_time(&oldest.time),
            "last_id": id(newest),
            "last_time": name_time(&newest.time),
        });
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

/// Of a file, the digest of its bytes; of a directory, that of its tree.
fn digest(version: &EntryHandle) -> Option<Digest> {
    match version.directory() {
        Some(directory) => directory.node().map(|(_, chunk)| chunk.digest),
        None => FileReader::new(version.clone()).digest(),
    }
}
