//! `brackfs restore`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

use super::common::{Global, READ_ONCE, ReaderArgs, is_interactive, select, stop_soon_on_signals};
use super::exit::Usage;
use super::say;
use super::show::size;
use crate::monitor::{Monitor, Total, count};
use crate::reader::Selector;
use crate::restore::{self, Conflict, Options};

/// Restore files from a snapshot
///
/// If PATH is a directory, its contents are restored into DIR; if it is a file, the file itself. A file gets its name
/// when it is complete and verified. Entries that cannot be restored are named, the others are restored, and the exit
/// code is 1.
///
/// A restore that was interrupted goes on when it is run again, and removes the unfinished files of the interrupted one.
/// Their names begin with .brackfs-restore-; a backup stores them like any other file.
///
/// Some file systems take different names for the same: README and readme, for example. Of such entries the one that
/// comes first is restored. The others are left out, and named together with it.
///
/// Owners, modes, times, extended attributes, ACLs, inode flags (chattr) and holes are restored too. Root restores
/// owners, set-id bits and device files; for other users, files belong to them, and set-id bits are left out. What you
/// may not set here, or the file system does not have, is said once at the end. No symbolic link below DIR is followed.
///
/// Directories that are there already, DIR too unless it is empty, keep their owner, mode, times and attributes with
/// --conflict abort or skip, and get those of the snapshot with update or overwrite. When files were last read is not
/// restored.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs restore latest --repo /backup --key owner.key --to /mnt/new
  brackfs restore home/latest:alice/photos --repo /backup --key owner.key --to photos
  brackfs restore latest --repo /backup --to /mnt/new --include '*.conf' --dry-run -v")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// The snapshot, and a path in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: OsString,
    /// The directory to restore into; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Restore only what matches, and what is below it: a pattern as in a .gitignore in DIR. May be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leave out what matches, also of what is included. May be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// What to do with files that are there already
    #[arg(long, value_enum, default_value_t = OnConflict::Abort)]
    conflict: OnConflict,
    /// Take owners by number, even if this machine has users and groups of their names
    #[arg(long)]
    numeric_owner: bool,
    /// Restore set-id bits, capabilities and devices also from mounts that ignored them (nosuid, nodev)
    ///
    /// Without this option they are left out of such entries: a user of the machine that was backed up could have made
    /// them, on a mount of their own, and a restore by root would bring them to life.
    #[arg(long)]
    trust_set_id: bool,
    /// Change nothing; with -v, name what would be restored
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print the result, problems, and how far it is, as JSON, one object a line
    ///
    /// The result, the last line on standard output, has message_type summary, and dry_run, files, directories, others,
    /// bytes, skipped, problems. A problem, on standard error, has message_type error, and path and message. Progress
    /// is told as by backup --json; with -v, action is restored, or would restore.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnConflict {
    /// Leave those that look the same (kind, size, time; target of a link); stop at any other
    Abort,
    /// Leave them
    Skip,
    /// Replace them
    Overwrite,
    /// Replace those whose kind, size, time or target differs
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

impl Args {
    /// Whether all of a snapshot is restored, so that it says how much that is.
    fn is_whole(&self, selector: &Selector) -> bool {
        let named = selector.path.iter().any(|byte| !b"/.".contains(byte));
        !named && self.include.is_empty() && self.exclude.is_empty()
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    let monitor = global.monitor(args.json);
    let reader = args.reader.open(global, &monitor, READ_ONCE)?;
    let snapshot = select(&reader, &selector, &monitor)?;
    let listed = reader.at_path(&snapshot, &selector.path)?;
    if args.is_whole(&selector) {
        let statistics = snapshot.statistics;
        // Files that are there already, and further names, are no work.
        let (files, bytes) = (statistics.files, statistics.bytes);
        monitor.progress().expect(Total { files, bytes, estimated: true });
    }
    let stop = stop_soon_on_signals()?;
    let options = Options {
        conflict: args.conflict.into(),
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        numeric_owner: args.numeric_owner,
        trust_set_id: args.trust_set_id,
        dry_run: args.dry_run,
    };
    monitor.start();
    let result = restore::restore(&reader, &listed, &args.to, &options, &monitor, &stop);
    monitor.done();
    let summary = result?;
    if args.json {
        let object = json!({
            "message_type": "summary",
            "dry_run": args.dry_run,
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
        let what = if args.dry_run { "would be restored" } else { "restored" };
        let (files, directories) =
            (count(files, "file", "files"), count(summary.directories, "directory", "directories"));
        say::aside(format!("{files}, {directories}, {bytes} {what}; {} left alone", summary.skipped));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => {
            let entries = count(problems, "entry", "entries");
            anyhow::bail!("{entries} could not be restored, or not entirely; the rest is restored")
        }
    }
}
