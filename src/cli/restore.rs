//! `brackfs restore`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

use super::common::{Global, ReaderArgs, is_interactive, stop_on_signals};
use super::exit::Usage;
use super::say;
use super::show::size;
use crate::reader::Selector;
use crate::restore::{self, Conflict};

/// Restore files from a snapshot
///
/// Of a directory, what is in it is restored into DIR; of a file, the file itself. A file gets its name when it is
/// complete and verified. What can't be restored is named, the rest is restored, and the exit code is 1 then.
///
/// Root restores owners, set-id bits and device files; for others, files are theirs, and set-id bits are left out. No
/// symbolic link below DIR is followed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs restore latest --repo /backup --key owner.key --to /mnt/new
  brackfs restore home/latest:alice/photos --repo /backup --key owner.key --to photos")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// The snapshot, and a path in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: OsString,
    /// The directory to restore into; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// What to do with files that are there already
    #[arg(long, value_enum, default_value_t = OnConflict::Abort)]
    conflict: OnConflict,
    /// Print the result, and problems, as JSON, one object a line
    ///
    /// The result, on standard output, has message_type summary, and files, directories, others, bytes, skipped,
    /// problems. A problem, on standard error, has message_type error, and path and message.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnConflict {
    /// Stop
    Abort,
    /// Leave them
    Skip,
    /// Replace them
    Overwrite,
    /// Replace those whose size or time differs
    Update,
}

impl From<OnConflict> for Conflict {
    fn from(chosen: OnConflict) -> Self {
        match chosen {
            OnConflict::Abort => Conflict::Abort,
            OnConflict::Skip => Conflict::Skip,
            OnConflict::Overwrite => Conflict::Overwrite,
            OnConflict::Update => Conflict::Update,
        }
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    let monitor = global.monitor(args.json);
    let reader = args.reader.open(global, &monitor)?;
    let snapshot = reader.select(&selector)?;
    let listed = reader.at_path(&snapshot, &selector.path)?;
    let stop = stop_on_signals()?;
    let result = restore::restore(&reader, &listed, &args.to, args.conflict.into(), &monitor, &stop);
    monitor.done();
    let summary = result?;
    if args.json {
        let object = json!({
            "message_type": "summary",
            "files": summary.files,
            "directories": summary.directories,
            "others": summary.others,
            "bytes": summary.bytes,
            "skipped": summary.skipped,
            "problems": summary.problems,
        });
        say::result(object)?;
    } else if !global.quiet && (is_interactive() || global.verbose) {
        let (files, bytes) = (summary.files, size(summary.bytes));
        say::aside(format!(
            "{files} files, {} directories, {bytes} restored; {} left as they were",
            summary.directories, summary.skipped
        ));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => anyhow::bail!("{problems} entries could not be restored, or not entirely; the rest is restored"),
    }
}
