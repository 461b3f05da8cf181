//! `brackfs backup`

use std::cell::Cell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::exit::{self, Usage};
use super::global::Global;
use super::output;
use super::record::ByHand;
use super::repository_arg::{RepositoryArg, ResolvedRepository, Use, target_called};
use super::run::{Args as RunArgs, run as run_steps};
use super::show::{name_time, parse_time, rate, size};
use super::signals::stop_on_signals;
use super::systemd;
use crate::backup::{
    self, COMPRESSION, Guard, Options, Placed, RETRIES, Reading, RunPolicy, Selection, Storing, Stream, StreamSource,
    Summary,
};
use crate::catalog::stats::ComparedFields;
use crate::config::SourceConfig;
use crate::format::{Timestamp, name};
use crate::job::{Counts, Step, backup_outcome};
use crate::monitor::count;
use crate::quantity::{parse_duration, parse_percent, parse_size};
use crate::session::{EarlyRuns, LockWait};

// Headings of options in help and manual pages.
const CHOICE: &str = "What to back up";
const EXCLUSION: &str = "What to leave out";
const SNAPSHOT: &str = "The snapshot";
const CHANGES: &str = "Detection of changes";
const RESOURCES: &str = "Resources";
const OUTPUT: &str = "Output";

/// Back up files
///
/// Makes a snapshot of a source. No secret key is needed: data is encrypted to the recipients that were given to init, and
/// signed with this machine's host key. Only the machine that made the repository can write to it, until brackfs-adopt(1)
/// makes another machine the writer.
///
/// Files whose size, times and inode number are unchanged since the last backup are not opened, and data that the repository
/// already has is not stored again, even under another name. If a run is killed or the power fails, older snapshots stay
/// intact and no incomplete snapshot appears. The next run reuses all data that was stored up to the last commit
/// (--commit-interval), and removes leftovers.
///
/// If a file can't be read, vanishes, or keeps changing while it is read, the backup reports it, continues, and exits with
/// code 3. It does the same if one of several PATHs was not empty in the last backup and is now empty or entirely excluded, or
/// if it had a file system mounted on it that is now gone. If the source is empty, or lost most of its files, no snapshot is
/// made (--max-shrink).
///
/// At most 384 KiB of extended attributes are stored for each file. A file with more, or with more than the 64 KiB of
/// attribute names that Linux can list, is reported. A directory whose names take more than 1 GiB, or that is more than
/// 10,000 levels deep, is reported and stored as empty.
///
/// A path that does not answer for 30 seconds is reported. SIGINT, SIGTERM or SIGHUP ends the backup within a few seconds
/// with exit code 130; the data stored so far is kept.
///
/// A file that changes while it is read, or changed just before, is read again after the other files (--retries,
/// --settle-max). If its content may mix two states, the file is marked (ls and restore show the mark), and the next backup
/// reads it again in any case. Different files are still read at different times: if they must be consistent with each other,
/// back up a snapshot of the file system, or a dump made by the database.
///
/// This machine's catalog lists the content of the repository. If the catalog is lost or damaged, it is rebuilt. If the
/// repository or this machine's state was reset to an older copy, the catalog and the repository are compared first. A
/// rebuild and a comparison are reported on standard error. If another machine has become the writer, the backup fails; see
/// brackfs-adopt(1).
///
/// If packs of the repository are known to be lost or damaged (--recheck, brackfs-catalog-verify(1)), their data is stored again if
/// it is still at the source. Older snapshots can then read the content of these files, too.
///
/// The repository, brackfs's state directory and its mounts are always left out, except for a mount that is given as PATH.
///
/// On a terminal, a line shows the progress; ~ marks estimates. They are based on the source's last snapshot; in the first backup
/// of a source, files are counted ahead (not with --low-memory). On SIGUSR1 (kill -USR1),
/// the progress is printed to standard error, with or without a terminal. With -v, new and changed files and new directories
/// are listed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs backup /home --repo /backup
  brackfs backup @nas
  brackfs backup / --repo /backup --one-file-system --exclude /tmp --exclude '*.o'
  brackfs backup / --repo /backup -x --exclude /tmp --dry-run -v
  brackfs backup /etc /home /srv --repo /backup --source server
  brackfs backup /home/.snapshots/new --as /home --repo /backup
  find /srv -name '*.conf' -print0 | brackfs backup --files-from - --repo /backup
  brackfs backup --repo /backup --stdin-filename shop.sql --stdin-from-command -- pg_dump shop
  ssh nas cat db.sql | brackfs backup --stdin-filename db.sql --repo /backup

brackfs can't tell whether the program at the other end of a pipe succeeded: the snapshot holds the bytes that \
arrived. Use --stdin-from-command where possible: it makes no snapshot if the program failed.

Patterns are written as in .gitignore. A pattern with a / at the start or in the middle is relative to the \
snapshot's root; others match at any depth. A / at the end matches only directories. The last matching pattern \
decides. A pattern with ! in front includes its matches again, but nothing inside an excluded directory.

In a crontab:
  17 * * * *  brackfs backup /home --repo /backup")]
pub(super) struct Args {
    /// Back up these files and directories
    ///
    /// If PATH is a single directory, it becomes the root of the snapshot; with several paths, the root is /. A PATH that is
    /// a symbolic link is stored as a link; if it ends with a slash, the directory that it points to is backed up. Both
    /// cases are reported on standard error.
    ///
    /// Without PATH, the sources of the configuration are backed up, as by `brackfs run --only backup`. With --repo, only those of
    /// that target are. Then only --dry-run, --allow-shrink and --json can be used as well.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Back up the directory OLD under the path NEW (repeatable)
    ///
    /// For copies and file-system snapshots of a directory: the snapshot, patterns and the detection of changes see only the
    /// absolute path NEW, so unchanged files are not read again even if OLD is elsewhere at the next backup. With --as NEW, the
    /// only PATH is OLD.
    ///
    /// With several paths, the snapshot also has the directories above NEW. They are read from the directories above OLD if OLD
    /// ends with NEW, as in /home/me=/mnt/old/home/me, or if this machine has no such directories; otherwise from this machine.
    /// NEW cannot be above or below another path.
    #[arg(long = "as", value_name = "NEW=OLD")]
    placed: Vec<OsString>,
    /// Also back up the paths listed in FILE, one per line or NUL-terminated; - is standard input (repeatable)
    ///
    /// The paths are literal, without patterns or comments, and relative to the current directory. Directories are backed up
    /// with everything below them, symbolic links as links. Missing paths are reported, and the exit code is 3. Exclusions
    /// apply. The root of the snapshot is always /.
    #[arg(help_heading = CHOICE, long, value_name = "FILE")]
    files_from: Vec<PathBuf>,
    /// Back up standard input as the only file in the snapshot, with this name
    ///
    /// Only data that the repository does not have is stored. If reading fails, or if there is nothing to read, no snapshot is
    /// made.
    #[arg(help_heading = CHOICE, long, value_name = "NAME", conflicts_with_all = CHOOSING)]
    stdin_filename: Option<OsString>,
    /// Run the command after -- and back up its output instead of standard input
    ///
    /// If the command fails, or prints nothing, no snapshot is made, and the exit code is 1. Its standard error is shown. It has
    /// no terminal, so it cannot ask for a password. If brackfs is interrupted, the command and all processes that it started
    /// are terminated.
    #[arg(help_heading = CHOICE, long, requires = "stdin_filename")]
    stdin_from_command: bool,
    /// Make a snapshot even if standard input or the output of the command is empty
    #[arg(help_heading = CHOICE, long, requires = "stdin_filename")]
    allow_empty: bool,
    #[command(flatten)]
    repository: RepositoryArg,
    /// Set the name of the source [default: the last component of the path]
    ///
    /// For standard input, the default is the name given with --stdin-filename. For /, several paths or --files-from, it is
    /// root.
    #[arg(help_heading = SNAPSHOT, long, value_name = "NAME")]
    source: Option<String>,
    /// Exclude paths that match GLOB, as in a .gitignore at the snapshot's root (repeatable)
    ///
    /// A GLOB without a slash matches names at any depth ('*.o'); one with a slash at the start or in the middle matches
    /// paths from the snapshot's root ('/tmp', 'cache/*.db'). A GLOB with a slash at the end matches only directories, **
    /// matches any number of directories, and a leading ! undoes earlier exclusions. Excluded paths are not accessed, so a
    /// mount that does not answer can be excluded.
    #[arg(help_heading = EXCLUSION, short, long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Exclude paths that match a line of FILE, written like a .gitignore (repeatable)
    ///
    /// Lines that begin with # are comments; on the command line, # has no special meaning. These patterns come before those
    /// of --exclude, which can undo them.
    #[arg(help_heading = EXCLUSION, long, value_name = "FILE")]
    exclude_from: Vec<PathBuf>,
    /// Exclude the content of directories with a valid CACHEDIR.TAG, except for that file
    ///
    /// The tag counts only if it belongs to the directory's owner or to root. Other tags are reported.
    #[arg(help_heading = EXCLUSION, long)]
    exclude_caches: bool,
    /// Exclude the content of directories that have an entry NAME, except for that entry (repeatable)
    ///
    /// If the entry is a directory, it is backed up with its content. It counts only if it belongs to the directory's
    /// owner or to root. Other such entries are reported.
    #[arg(help_heading = EXCLUSION, long, value_name = "NAME")]
    exclude_if_present: Vec<OsString>,
    /// Exclude files and directories with the attribute d (chattr +d)
    #[arg(help_heading = EXCLUSION, long)]
    exclude_nodump: bool,
    /// Do not enter other file systems; store their mount points as empty directories
    ///
    /// With several paths, each path has its own file system. The mounts are not accessed, so a mount that does not answer
    /// is not a problem. A btrfs subvolume that is not a mount of its own belongs to its file system and is backed up; use
    /// --exclude for snapshots inside the file system.
    #[arg(help_heading = EXCLUSION, short = 'x', long)]
    one_file_system: bool,
    /// Add this tag to the snapshot (repeatable)
    #[arg(help_heading = SNAPSHOT, long, value_name = "T", value_parser = backup::check_tag)]
    tag: Vec<String>,
    /// Record the snapshot as made at this time
    ///
    /// For imports of older backups. TIME is a date, or a date and time such as 2026-11-20T14:52, in UTC unless it has an
    /// offset such as +01:00. Snapshots are listed in the order in which they were made, regardless of this.
    #[arg(help_heading = SNAPSHOT, long, value_name = "TIME", value_parser = parse_snapshot_time)]
    time: Option<Timestamp>,
    /// Record the snapshot as made on the machine NAME [default: this machine's host name]
    #[arg(help_heading = SNAPSHOT, long, value_name = "NAME", value_parser = parse_host)]
    host: Option<String>,
    /// Set the average chunk size, at least 16KiB; above 1MiB, files are split every 1MiB
    ///
    /// Smaller chunks deduplicate better and need more space in the catalog. After the size is changed, files that are read
    /// again are stored again.
    #[arg(help_heading = RESOURCES, long, value_name = "SIZE", default_value = "512KiB", value_parser = parse_size)]
    chunk_size: u64,
    /// Pack files smaller than SIZE together into blocks; at most 1MiB
    #[arg(help_heading = RESOURCES, long, value_name = "SIZE", default_value = "512KiB", value_parser = parse_size)]
    merge_files_under: u64,
    /// Use less memory: one worker, and chunks wait in unnamed temporary files
    ///
    /// The files take 32 MiB in $TMPDIR (default: /var/tmp). A backup takes about a fifth longer.
    #[arg(help_heading = RESOURCES, long)]
    low_memory: bool,
    /// Set the zstd compression level, from 1 (fast) to 19 (small)
    #[arg(help_heading = RESOURCES, long, value_name = "LEVEL", default_value_t = COMPRESSION, value_parser = clap::value_parser!(i32).range(1..=19))]
    compression: i32,
    /// Commit stored data this often; a killed run loses at most this much work
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w. Shorter intervals make more objects in the
    /// repository and more disk syncs.
    #[arg(help_heading = RESOURCES, long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    commit_interval: Duration,
    /// Make no snapshot if the source lost more than PERCENT of its files
    ///
    /// Such a source may be a file system that is not mounted. The backup reports the numbers of files before and now, and exits
    /// with code 3. Older snapshots stay. A source with fewer than 20 files in its last snapshot is refused only if it is empty.
    #[arg(help_heading = SNAPSHOT, long, value_name = "PERCENT", default_value = "90%", value_parser = parse_shrink)]
    max_shrink: f64,
    /// Make a snapshot no matter how many files the source lost
    #[arg(help_heading = SNAPSHOT, long, conflicts_with = "max_shrink")]
    allow_shrink: bool,
    /// Make no snapshot if nothing changed since the source's last snapshot
    ///
    /// Files are compared with the catalog. If the repository is on a server and nothing changed, the server is contacted only
    /// once in 24 hours. In between, a lost repository is not noticed, and no packs are checked again unless --recheck has
    /// another SIZE than its default.
    #[arg(help_heading = SNAPSHOT, long)]
    skip_if_unchanged: bool,
    /// Ignore inode numbers in the detection of changes
    ///
    /// For file systems without stable inode numbers. Also useful once after files were copied to another disk; the new
    /// numbers are remembered. Moved directories are not recognized, and their files are read.
    #[arg(help_heading = CHANGES, long)]
    ignore_inode: bool,
    /// Ignore change times (ctime) in the detection of changes
    ///
    /// For programs that update the ctime without changing the file. Also useful once after files were copied to another
    /// disk; the new times are remembered. Changes that keep size and mtime are missed, by later backups too.
    #[arg(help_heading = CHANGES, long)]
    ignore_ctime: bool,
    /// Read all files, even unchanged ones
    #[arg(help_heading = CHANGES, long)]
    reread: bool,
    /// Retry up to N times if a file changes while it is read
    ///
    /// Retries come after the other files. If the file still changes, it is stored and marked (ls and restore show the mark),
    /// and the exit code is 3.
    #[arg(help_heading = CHANGES, long, value_name = "N", default_value_t = RETRIES)]
    retries: u32,
    /// Wait up to DURATION in total for files that changed just before they were read
    ///
    /// If a file changes twice within one tick of the file system's clock, its times do not show the second change. So a
    /// file that changed within the last tick is read after the other files, once the tick is over. A file that changes all
    /// the time, such as a busy log, is stored anyway, and the next backup reads it again in any case.
    #[arg(help_heading = CHANGES, long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    settle_max: Duration,
    /// If another run is writing to the repository, wait up to DURATION, then exit with code 11
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90s, 10m or 1h30m.
    #[arg(help_heading = RESOURCES, long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Read and verify up to SIZE of packs that have not been checked for a month; 0 disables this
    ///
    /// Each run takes at most 16 packs that were stored or last checked 30 to 60 days ago. It checks that they exist, have
    /// the right length and, as far as SIZE allows, the right content. If a pack is lost, the run reports it, stores its
    /// data again if it is still at the source, and exits with code 3.
    #[arg(help_heading = RESOURCES, long, value_name = "SIZE", default_value = "32MiB", value_parser = parse_size)]
    recheck: u64,
    /// Store nothing; count new and changed files, and list them with -v
    ///
    /// Compares the files with the last backup, opens none of them, and modifies neither the repository nor this machine's
    /// state. The reported size is an upper bound: data already in the repository is not stored again. Unreadable files are
    /// not detected.
    #[arg(help_heading = OUTPUT, short = 'n', long, conflicts_with = "stdin_filename")]
    dry_run: bool,
    /// Print the result, problems and progress as JSON, one object per line
    ///
    /// The result is the last line on standard output. It has message_type summary and the fields dry_run, snapshot_id and
    /// time (both null if no snapshot was made), source, shrunk (whether the source lost so many files that no snapshot was
    /// made), files_new, files_changed, files_unmodified, files_read, files,
    /// directories, others, bytes, bytes_read, bytes_added (new data before compression), data_packs, data_bytes,
    /// tree_packs, tree_bytes, stored_bytes, problems, seconds. In a dry run, files_read and bytes_read count the files that
    /// a backup would read.
    ///
    /// Problems are written to standard error, with message_type error, path and message.
    ///
    /// Once a second, progress is written to standard output, with message_type status and the fields percent_done (from 0
    /// to 1), files_done, total_files, bytes_done, total_bytes, total_estimated (whether the totals are those of the last
    /// snapshot), bytes_read, stored_bytes, seconds_elapsed, seconds_remaining, path. Unknown values are null. On SIGUSR1, a
    /// status object is written to standard error.
    ///
    /// With -v, entries are written to standard output, with message_type verbose_status, action (new or changed) and item
    /// (the path).
    #[arg(help_heading = OUTPUT, long)]
    json: bool,
}

/// `given` returns the ids of the options on the command line.
pub(super) fn run(args: &Args, given: fn() -> Vec<String>, global: &Global) -> Result<ExitCode> {
    if args.paths.is_empty() && args.files_from.is_empty() && args.stdin_filename.is_none() && args.placed.is_empty() {
        return run_sources(args, &given(), global);
    }
    args.check_paths(global)?;
    let place = args.repository.resolve(global)?;
    let options = args.options(&place, global)?;
    let monitor = global.monitor(args.json);
    let stop = stop_on_signals()?;
    let state = global.state()?;
    let (mut by_hand, opened) = (None, Cell::new(None));
    // An import of an older backup does not make the source's backups fresh.
    let is_recorded = !args.dry_run && args.time.is_none();
    let target = place.target.as_deref().filter(|_| is_recorded);
    let begins = |source: &str| by_hand = ByHand::begin(Step::Backup, Some(source), target, global, &monitor);
    let open = || {
        let ahead = options.policy.early.map(|runs| runs.reads()).unwrap_or_default();
        let repository = place.open(Use::Command, global, ahead)?;
        opened.set(Some(repository.id()));
        monitor.start();
        anyhow::Ok(repository)
    };
    let result = if options.may_skip_opening() && place.location.is_remote() {
        backup::back_up_if_changed(open, &state, &options, begins, &monitor, &stop)
    } else {
        backup::back_up(&open()?, &state, &options, begins, &monitor, &stop).map_err(anyhow::Error::from)
    };
    monitor.finish();
    match (by_hand, &result) {
        (Some(step), Ok(summary)) => {
            step.end(opened.get(), backup_outcome(summary, size), Some(Counts::from(summary)), &monitor);
        }
        (Some(step), Err(error)) => step.fail(opened.get(), error, &monitor),
        (None, _) => {}
    }
    let summary = result?;
    if args.json {
        output::object(&as_json(&summary))?;
    } else if global.shows_summary(args.dry_run) {
        print_summary(&summary);
    }
    exit::partial(summary.problems)
}

/// The options of a backup of configured sources.
const OF_SOURCES: [&str; 4] = ["location", "dry_run", "allow_shrink", "json"];

/// Backs up the sources of the configuration.
fn run_sources(args: &Args, given: &[String], global: &Global) -> Result<ExitCode> {
    if let Some(option) = given.iter().find(|option| !OF_SOURCES.contains(&option.as_str())) {
        let option = option.replace('_', "-");
        let why = "without one, the sources of the configuration are backed up as they are configured";
        return Err(Usage(format!("--{option} needs a PATH; {why}")).into());
    }
    let no_config = || Usage("no PATH is given, and there is no configuration; run `brackfs backup PATH`".into());
    let config = global.config()?.ok_or_else(no_config)?;
    let target = match args.repository.given() {
        None => None,
        Some(given) => match target_called(given, global)? {
            Some(target) => Some(target.name),
            None => {
                let why = format!("no PATH is given, and {given} is not a target of the configuration");
                return Err(Usage(format!("{why}; run `brackfs backup PATH`")).into());
            }
        },
    };
    let is_wanted = |source: &&SourceConfig| target.as_ref().is_none_or(|target| source.to.contains(target));
    let sources = config.sources.iter().filter(is_wanted).map(|source| source.name.clone()).collect::<Vec<_>>();
    if let (Some(target), true) = (&target, sources.is_empty()) {
        return Err(Usage(format!("no source of the configuration is backed up to {target}")).into());
    }
    let mut steps = RunArgs::backups_of(sources);
    (steps.dry_run, steps.allow_shrink, steps.json, steps.target) =
        (args.dry_run, args.allow_shrink, args.json, target);
    run_steps(&steps, global)
}

/// Options that select files, and conflict with --stdin-filename.
const CHOOSING: [&str; 8] = [
    "placed",
    "files_from",
    "exclude",
    "exclude_from",
    "exclude_caches",
    "exclude_if_present",
    "exclude_nodump",
    "one_file_system",
];

/// Parses the part of its files that a source may lose.
fn parse_shrink(text: &str) -> Result<f64, String> {
    parse_percent(text, 100)
}

/// Parses a time that the name of a snapshot can have.
fn parse_snapshot_time(text: &str) -> Result<Timestamp, String> {
    let time = parse_time(text)?;
    match name::parse_time(&name::time(time.seconds)) {
        Some(seconds) if seconds == time.seconds => Ok(time),
        _ => Err("the year must be from 0 to 9999".into()),
    }
}

/// Maximum length of a host name in bytes.
const HOST_SIZE: usize = 255;

fn parse_host(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a host name can't be empty".into()),
        _ if text.len() > HOST_SIZE => Err(format!("a host name has at most {HOST_SIZE} bytes")),
        _ if text.contains(char::is_control) => Err("a host name is one line of text".into()),
        _ => Ok(text.to_owned()),
    }
}

impl Args {
    /// Refuses a path that is `@` and the name of a target, unless there is a file of that name.
    fn check_paths(&self, global: &Global) -> Result<()> {
        // Otherwise they are the words of a command.
        for path in self.paths.iter().filter(|_| self.stdin_filename.is_none()) {
            if let Some(name) = path.to_str().and_then(|path| path.strip_prefix('@'))
                && path.symlink_metadata().is_err()
                && global.config()?.is_some_and(|config| config.targets.iter().any(|target| target.name == name))
            {
                return Err(
                    Usage(format!("the target goes directly after the command: brackfs backup @{name} PATH")).into()
                );
            }
        }
        Ok(())
    }

    /// What is backed up instead of paths.
    fn stream(&self) -> Result<Option<Stream>> {
        let Some(filename) = self.stdin_filename.clone() else { return Ok(None) };
        let words: Vec<_> = self.paths.iter().map(|path| path.clone().into_os_string()).collect();
        let source = match (self.stdin_from_command, words.is_empty()) {
            (false, true) => StreamSource::StandardInput,
            (false, false) => return Err(Usage("a PATH cannot be used with --stdin-filename".into()).into()),
            (true, true) => return Err(Usage("--stdin-from-command needs a command after --".into()).into()),
            (true, false) => StreamSource::Command(words),
        };
        Ok(Some(Stream { filename, source, allow_empty: self.allow_empty }))
    }

    fn options(&self, place: &ResolvedRepository, global: &Global) -> Result<Options> {
        let location = &place.location;
        let daily_at = location.is_remote().then(|| location.identity());
        // A dry run opens no session.
        let identity = daily_at.as_deref().filter(|_| !self.dry_run);
        let early = identity.and_then(|identity| EarlyRuns::at(&global.state().ok()?, identity));
        let within = |name: &str, value: u64, least: u64, most: u64| {
            let why = || Usage(format!("--{name} must be from {} to {}", size(least), size(most)));
            if (least..=most).contains(&value) { Ok(value as usize) } else { Err(why()) }
        };
        let stream = self.stream()?;
        let mut paths = if stream.is_some() { Vec::new() } else { self.paths.clone() };
        let placed = Placed::parse_all(&self.placed, &mut paths).map_err(|why| Usage(format!("--as: {why}")))?;
        Ok(Options {
            selection: Selection {
                source: self.source.clone(),
                paths,
                placed,
                read_from: Vec::new(),
                files_from: self.files_from.clone(),
                stream,
                exclude: self.exclude.clone(),
                exclude_from: self.exclude_from.clone(),
                exclude_caches: self.exclude_caches,
                exclude_if_present: self.exclude_if_present.clone(),
                exclude_nodump: self.exclude_nodump,
                one_file_system: self.one_file_system,
            },
            reading: Reading {
                identity: ComparedFields { inode: !self.ignore_inode, ctime: !self.ignore_ctime },
                reread: self.reread,
                retries: self.retries,
                settle_max: self.settle_max,
            },
            storing: Storing {
                chunk_size: within("chunk-size", self.chunk_size, 16 << 10, 1 << 40)?,
                merge_files_under: within("merge-files-under", self.merge_files_under, 0, 1 << 20)?,
                compression: self.compression,
            },
            policy: RunPolicy {
                tags: self.tag.clone(),
                time: self.time,
                host: self.host.clone(),
                guard: (!self.allow_shrink).then_some(Guard { max_shrink: self.max_shrink, ..Guard::default() }),
                skip_if_unchanged: self.skip_if_unchanged,
                daily_at,
                early,
                recipients: place.recipients.clone(),
                dry_run: self.dry_run,
                low_memory: self.low_memory,
                commit_interval: self.commit_interval,
                wait_lock: LockWait::option(self.wait_lock),
                recheck: self.recheck,
            },
        })
    }
}

fn as_json(summary: &Summary) -> serde_json::Value {
    json!({
        "message_type": "summary",
        "dry_run": summary.dry_run,
        "snapshot_id": summary.snapshot.as_ref().map(|name| name.id.to_string()),
        "time": summary.snapshot.as_ref().map(|name| name_time(&name.time)),
        "source": summary.source,
        "shrunk": summary.shrunk,
        "files_new": summary.new_files,
        "files_changed": summary.changed_files,
        "files_unmodified": summary.unmodified_files,
        "files_read": summary.read_files,
        "files": summary.files,
        "directories": summary.directories,
        "others": summary.others,
        "bytes": summary.bytes,
        "bytes_read": summary.read_bytes,
        "bytes_added": summary.added_bytes,
        "data_packs": summary.data_packs,
        "data_bytes": summary.data_bytes,
        "tree_packs": summary.tree_packs,
        "tree_bytes": summary.tree_bytes,
        "stored_bytes": summary.data_bytes + summary.tree_bytes,
        "problems": summary.problems,
        "seconds": summary.duration.as_secs_f64(),
    })
}

fn print_summary(summary: &Summary) {
    let lines = summary_lines(summary);
    match systemd::has_journal() {
        true => output::message(lines.join("; ")),
        false => lines.iter().for_each(output::message),
    }
}

fn summary_lines(summary: &Summary) -> Vec<String> {
    let mut lines = vec![match &summary.snapshot {
        _ if summary.dry_run => format!("dry run of {}: nothing is stored", summary.source),
        Some(name) => format!("snapshot {} of {}", name.id.short(), summary.source),
        None if summary.shrunk => format!("no snapshot of {} was made", summary.source),
        None => format!("nothing changed in {}, no snapshot was made", summary.source),
    }];
    lines.push(format!(
        "{} ({} new, {} changed, {} unmodified), {}, {}",
        count(summary.files, "file", "files"),
        summary.new_files,
        summary.changed_files,
        summary.unmodified_files,
        count(summary.directories, "directory", "directories"),
        size(summary.bytes)
    ));
    lines.push(match summary.dry_run {
        true => format!(
            "would read {}, {}. The size is an upper bound: data already in the repository is not stored again",
            count(summary.read_files, "file", "files"),
            size(summary.read_bytes)
        ),
        false => transfer(summary),
    });
    if summary.problems > 0 {
        lines.push(format!("{}: see above", count(summary.problems, "problem", "problems")));
    }
    lines
}

/// Bytes read and stored, the ratio of compression, and the rate.
fn transfer(summary: &Summary) -> String {
    let (read, added) = (summary.read_bytes, summary.added_bytes);
    let stored = summary.data_bytes + summary.tree_bytes;
    let mut text = format!("{} read, {} new, {} stored", size(read), size(added), size(stored));
    // Encryption can make a small amount of data larger; a ratio below 1 is not printed.
    if stored > 0 && added >= stored {
        text += &format!(" ({:.1}:1)", added as f64 / stored as f64);
    }
    text += &format!(" in {:.1} s", summary.duration.as_secs_f64());
    if read > 0 {
        text += &format!(" ({})", rate(read, summary.duration));
    }
    text
}
