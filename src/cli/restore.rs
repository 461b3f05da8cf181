//! `brackfs restore`

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

use super::exit::Usage;
use super::global::Global;
use super::output;
use super::reader_args::{DiskCacheArgs, DiskCaching, ReaderArgs, SMALL_CACHE, select};
use super::repository_arg::Use;
use super::show::size;
use super::signals::stop_soon_on_signals;
use crate::archive::Selector;
use crate::monitor::{Monitor, Total, count};
use crate::restore::{self, Conflict, Options};

/// Restore files from a snapshot
///
/// If PATH is a directory, its contents are restored into DIR; if it is a file, the file itself. A file appears under its
/// name once it is complete and verified. If some entries cannot be restored, they are reported, the others are restored, and
/// the exit code is 1.
///
/// To continue an interrupted restore, run it again. It also removes the unfinished files of the interrupted run. Their names
/// begin with .brackfs-restore-; a backup stores them like any other file.
///
/// Some file systems treat different names as equal, such as README and readme. Of such entries, only the first one is
/// restored. The others are skipped, and reported together with it.
///
/// Owners, modes, times, extended attributes, ACLs, inode flags (chattr) and holes are restored too. Only root restores
/// owners, set-id bits and device files; files restored by another user belong to that user and get no set-id bits.
/// Attributes that you may not set, or that the file system does not support, are reported once at the end. Symbolic links
/// below DIR are not followed. Access times are not restored.
///
/// After many files were removed from an ext4 file system, creating files there is slower for some minutes, for all programs.
///
/// DIR must not be in the repository. With --conflict abort or skip, existing directories keep their owner, mode, times and
/// attributes. With update or overwrite, they get those of the snapshot. The same holds for DIR unless it is empty.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs restore latest --repo /backup --key owner.key --to /mnt/new
  brackfs restore home/latest:alice/photos --repo /backup --key owner.key --to photos
  brackfs restore latest --repo /backup --to /mnt/new --include '*.conf' --dry-run -v")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// Restore this snapshot, or this file or directory in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: OsString,
    /// Restore into this directory, which is created if it does not exist
    #[arg(long, alias = "target", value_name = "DIR")]
    to: PathBuf,
    /// Restore only entries that match GLOB, as in a .gitignore in DIR, and entries below them (repeatable)
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Exclude entries that match GLOB, even if they are included (repeatable)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Handle existing files in this way
    #[arg(long, value_enum, default_value_t = OnConflict::Abort)]
    conflict: OnConflict,
    /// Restore owners by number, even if this machine has users and groups with their names
    #[arg(long)]
    numeric_owner: bool,
    /// Also restore set-id bits, capabilities and devices from mounts that ignored them (nosuid, nodev)
    ///
    /// By default they are left out of such entries: an ordinary user of the machine that was backed up could have created
    /// them on their own mount, and they would take effect when root restores them.
    #[arg(long)]
    trust_set_id: bool,
    /// Change nothing; with -v, list the entries that would be restored
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print the result, problems and progress as JSON, one object per line
    ///
    /// The result is the last line on standard output. It has message_type summary, and dry_run, files, directories, others,
    /// bytes, skipped, problems. Problems are written to standard error, with message_type error, path and message. Progress
    /// is written as by backup --json; with -v, action is restored, or would restore.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnConflict {
    /// Keep a file that looks the same (kind, size, time; target of a link); stop at any other
    Abort,
    /// Keep existing files
    Skip,
    /// Replace existing files
    Overwrite,
    /// Replace files that differ in kind, size, time or target
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
    /// Whether the whole snapshot is restored, so that its totals apply.
    fn is_whole(&self, selector: &Selector) -> bool {
        selector.is_root() && self.include.is_empty() && self.exclude.is_empty()
    }
}

/// Refuses to restore into the repository: files could replace its own.
fn refuse_inside(repository: &Path, to: &Path) -> Result<()> {
    let (Ok(repository), Ok(to)) = (repository.canonicalize(), std::path::absolute(to)) else { return Ok(()) };
    anyhow::ensure!(
        !resolved(&to).starts_with(&repository),
        "cannot restore to {}: it is in the repository; choose a directory outside of it",
        to.display()
    );
    Ok(())
}

/// An absolute path without symbolic links and `..`. Parts that do not exist will be directories.
fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = resolved.pop(),
            part => {
                resolved.push(part);
                resolved = resolved.canonicalize().unwrap_or(resolved);
            }
        }
    }
    resolved
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    if let Some(repository) = args.reader.repository.resolve(global)?.location.directory() {
        refuse_inside(repository, &args.to)?;
    }
    let monitor = global.monitor(args.json);
    let usage = if args.is_whole(&selector) { Use::Transfer } else { Use::Command };
    let archive = args.reader.open_archive(usage, global, &monitor, SMALL_CACHE, (&args.disk, DiskCaching::Read))?;
    let snapshot = select(&*archive, &selector, &monitor)?;
    let listed = archive.at_path(&snapshot, &selector.path)?;
    if args.is_whole(&selector) {
        let statistics = snapshot.statistics;
        // An estimate: existing files and further hard links are not written.
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
    let ended = AtomicBool::new(false);
    monitor.start();
    let result = thread::scope(|threads| {
        let is_shown = args.json || monitor.shows_progress();
        if is_shown && !args.dry_run && !args.is_whole(&selector) {
            let count = || {
                if let Some(total) = restore::total(&*archive, &listed, &options, &ended) {
                    monitor.progress().expect(total);
                }
            };
            // Without the thread, there is no percentage.
            let _ = thread::Builder::new().name("counting".into()).spawn_scoped(threads, count);
        }
        let result = restore::restore(&*archive, &listed, &args.to, &options, &monitor, &stop);
        ended.store(true, Ordering::Relaxed);
        result
    });
    monitor.finish();
    let summary = result?;
    if !args.include.is_empty() && summary.is_empty() {
        monitor.note("nothing in the snapshot matches --include, or all of it is excluded: no entry is restored");
    }
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
        output::object(&object)?;
    } else if global.shows_summary(args.dry_run) {
        let (files, bytes) = (summary.files, size(summary.bytes));
        let what = if args.dry_run { "would be restored" } else { "restored" };
        let (files, directories) =
            (count(files, "file", "files"), count(summary.directories, "directory", "directories"));
        output::message(format!("{files}, {directories}, {bytes} {what}; {} skipped", summary.skipped));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => {
            let entries = count(problems, "entry", "entries");
            match args.dry_run {
                true => anyhow::bail!("{entries} cannot be restored completely; the others can"),
                false => anyhow::bail!("{entries} could not be restored completely; the others are restored"),
            }
        }
    }
}
