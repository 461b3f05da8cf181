//! `brackfs backup`

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::common::{Global, RepositoryArg, is_interactive, stop_on_signals};
use super::exit::{PARTIAL, Usage};
use super::say;
use super::show::{name_time, parse_duration, parse_size, rate, size};
use crate::backup::{self, COMPRESSION, Options, RETRIES, Reading, RunPolicy, Selection, Storing, Summary};
use crate::catalog::stats::ComparedFields;
use crate::format::snapshot::{PATHS, TAGS};
use crate::monitor::count;
use crate::repository::Repository;

/// Back up files
///
/// Makes a snapshot of a source. No secret key is needed: what is stored is encrypted to the recipients that were given
/// to init, and signed by this machine's own key. Only the machine that made the repository can write to it.
///
/// Files that look as they did last time (size, times, inode number) are not opened, and what is in the repository
/// already is not stored again, whatever its name. A run can be killed at any moment, and the power may fail: older
/// snapshots stay as they are, there is no half snapshot, what it stored until a minute before (--commit-interval) is
/// not stored again, and the next run removes what it left behind.
///
/// A file that can't be read, vanishes, or keeps changing while it is read is named, and the backup goes on; the exit
/// code is 3 then. So it is if the source, or one of several PATHs, is empty and was not in the last backup, or if
/// another file system was mounted there: the snapshot is made all the same.
///
/// Of a file's extended attributes 384 KiB are stored; what is more is named. So is a file whose attributes' names take more
/// than the 64 KiB that Linux lists. A directory is left empty, and named, if its names take more than 1 GiB, or if it is
/// more than 10,000 levels deep.
///
/// A path that does not answer for 30 seconds is named. SIGINT, SIGTERM or SIGHUP ends the backup within some seconds, with
/// exit code 130; what was stored so far is kept.
///
/// A file that changes while it is read, or did so just now, is read again after the others (--retries, --settle-max).
/// What is recorded is what was read: if that may be of two moments the file is marked (ls and restore say so), and the
/// next backup reads it again, whatever it looks like. Different files are of different moments all the same: back up a
/// snapshot of the file system, or a database's own dump, if they belong together.
///
/// This machine's catalog says what the repository has. If it is lost or broken, it is built anew; if the repository, or
/// this machine's state, was set back to an older copy, the two are compared first. Both are said on standard error. What
/// the repository has lost is stored again as far as it is still at the source. Another machine that has become the
/// writer is not overruled: see brackfs-adopt(1).
///
/// The repository, brackfs's own state and its mounts are never backed up on the way; a mount that is named as PATH
/// is.
///
/// On a terminal a line shows how far it is; ~ means that it is judged by the source's last snapshot. On SIGUSR1 (kill
/// -USR1) it is said on standard error, terminal or not. With -v, what is new or changed is named; unchanged files, and
/// directories that are not new, are not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs backup /home --repo /backup
  brackfs backup / --repo /backup --one-file-system --exclude /tmp --exclude '*.o'
  brackfs backup / --repo /backup -x --exclude /tmp --dry-run -v
  brackfs backup /etc /home /srv --repo /backup --source server
  find /srv -name '*.conf' -print0 | brackfs backup --files-from - --repo /backup
  pg_dump shop | brackfs backup --stdin-filename shop.sql --repo /backup

A pipe does not tell whether the program that fills it failed or had nothing to say: the snapshot then holds
what came, which may be nothing. Begin such a script with `set -o pipefail`, or look at the exit code of that
program, and do not take the snapshot for a backup if it failed.

Patterns are those of .gitignore. With a / at the start or inside they count from the snapshot's
root, otherwise anywhere; a / at the end means directories. The last one that matches wins, and
with a ! in front it takes back what others left out, but for what is in a directory left out.

In a crontab:
  17 * * * *  brackfs backup /home --repo /backup")]
pub(super) struct Args {
    /// What to back up. Of one directory the snapshot's root is that directory, of several paths it is /
    ///
    /// A PATH that is a symbolic link is stored as a link. With a slash at its end, the directory that it leads to is
    /// backed up. Both are said on standard error.
    #[arg(required_unless_present_any = ["files_from", "stdin_filename"], value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Back up what FILE lists, too: a path a line, or with a NUL behind each; - is standard input. May be
    /// repeated
    ///
    /// Paths stand as they are, without patterns or comments, and are relative to the current directory. A
    /// directory is taken with all below it, a symbolic link as a link. What is not there is reported, and the
    /// rest is backed up (exit code 3). What is excluded stays so. The snapshot's root is /, however few paths
    /// there are.
    #[arg(long, value_name = "FILE")]
    files_from: Vec<PathBuf>,
    /// Back up standard input, as a file of this name, which is alone in the snapshot
    ///
    /// Parts that the repository has are not stored again. If reading fails no snapshot is made.
    #[arg(long, value_name = "NAME", conflicts_with_all = CHOOSING)]
    stdin_filename: Option<OsString>,
    #[command(flatten)]
    repository: RepositoryArg,
    /// The source's name [default: the path's last name or that of --stdin-filename; root for /, for
    /// several paths and for lists]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Leave out what matches, as in a .gitignore at the snapshot's root; may be repeated
    ///
    /// A GLOB without a slash matches names at any depth ('*.o'), one with a slash paths from the snapshot's root
    /// ('/tmp', 'cache/*.db'). One that ends in a slash matches directories only, ** stands for any directories, and one
    /// that begins with ! takes back what those before it said. Nothing is asked of what is left out, so a
    /// mount that does not answer can be excluded.
    #[arg(short, long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Leave out what matches a line of FILE, written like a .gitignore; may be repeated. They come before those
    /// of --exclude, which can take back what they leave out
    #[arg(long, value_name = "FILE")]
    exclude_from: Vec<PathBuf>,
    /// Of directories with a valid CACHEDIR.TAG take only the directory and that file
    ///
    /// Only a tag that belongs to the directory's owner or to root counts. Others are named.
    #[arg(long)]
    exclude_caches: bool,
    /// Of directories that hold an entry NAME take only the directory and that entry (if that is a directory, all
    /// in it); may be repeated
    ///
    /// Only an entry that belongs to the directory's owner or to root counts. Others are named.
    #[arg(long, value_name = "NAME")]
    exclude_if_present: Vec<OsString>,
    /// Leave out files and directories with the attribute d (chattr +d)
    #[arg(long)]
    exclude_nodump: bool,
    /// Leave mounts of other file systems empty; with several paths each one's own file system counts
    ///
    /// Nothing is asked of such a mount, so it need not answer. A btrfs subvolume that is not mounted by itself belongs to the
    /// file system and is backed up; to leave out such snapshots of it, exclude them.
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// A word to find the snapshot by; may be repeated
    #[arg(long, value_name = "T", value_parser = parse_tag)]
    tag: Vec<String>,
    /// How large chunks are on average, from 16KiB on; above 1MiB, files are cut at fixed offsets
    ///
    /// Smaller chunks find more that is there already, and cost more space in the catalog. Another size than last time
    /// stores files again when they are read again.
    #[arg(long, value_name = "SIZE", default_value = "512KiB", value_parser = parse_size)]
    chunk_size: u64,
    /// Store smaller files gathered, several to a block; at most 1MiB
    #[arg(long, value_name = "SIZE", default_value = "512KiB", value_parser = parse_size)]
    merge_files_under: u64,
    /// Use less memory: one worker at a time, and chunks wait in unnamed temporary files
    ///
    /// They take 32 MiB in $TMPDIR, or else in /var/tmp. A backup takes a fifth longer.
    #[arg(long)]
    low_memory: bool,
    /// zstd's level, 1 (fast) to 19 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = COMPRESSION, value_parser = clap::value_parser!(i32).range(1..=19))]
    compression: i32,
    /// How often what was stored so far is made final; a run that is killed loses at most so much work
    ///
    /// A number with ms, s, m or h. More often means more objects in the repository, and more waiting for disks.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    commit_interval: Duration,
    /// Make no snapshot if nothing changed since the source's last one
    #[arg(long)]
    skip_if_unchanged: bool,
    /// Ignore inode numbers when looking for changes
    ///
    /// For file systems that make them up, and once after files were copied to another disk: the new numbers are
    /// remembered. A directory that was moved is not recognized, and its files are read.
    #[arg(long)]
    ignore_inode: bool,
    /// Ignore change times (ctime) when looking for changes
    ///
    /// For programs that touch files without changing them, and once after files were copied to another disk: the new
    /// times are remembered. A change that left size and mtime as they were is missed, also by later backups.
    #[arg(long)]
    ignore_ctime: bool,
    /// Read all files, whatever they look like
    #[arg(long)]
    reread: bool,
    /// How often a file is read again that changes while it is read
    ///
    /// It is read again after the others. If it still changes then, it is stored as it was read, and marked: ls and restore
    /// say so, and the exit code is 3.
    #[arg(long, value_name = "N", default_value_t = RETRIES)]
    retries: u32,
    /// How long to wait in all for files that changed just now
    ///
    /// A file that was changed within a tick of the clock could be changed once more without its times showing it. It is
    /// read after the others, as soon as that is over. One that is never over, such as a busy log, is stored all the same,
    /// and read again by the next backup whatever it looks like.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    settle_max: Duration,
    /// Wait so long for another run that writes to the repository, as in 90s, 10m or 1h30m; without it the exit code is 11
    /// at once
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// How much of the repository to read again, of packs that nobody looked at for a month or longer; 0 for none
    ///
    /// Each run looks at a few packs (16 at most) that were stored or looked at 30 to 60 days ago: whether they are there,
    /// and with their length, and, as far as this allows, whether their bytes are what was stored. A pack that is lost is
    /// named, what is still at the source is stored again by the same run, and the exit code is 3.
    #[arg(long, value_name = "SIZE", default_value = "32MiB", value_parser = parse_size)]
    recheck: u64,
    /// Store nothing; say what is new or changed. With -v, name it
    ///
    /// Compares all there is with what was backed up last, opens no file, and changes neither the repository nor this
    /// machine's state. At most what would be read would be stored: what the repository has already is not stored again.
    /// That a file can't be read is not found out.
    #[arg(short = 'n', long, conflicts_with = "stdin_filename")]
    dry_run: bool,
    /// Print the result, problems, and how far it is, as JSON, one object a line
    ///
    /// The result, the last line on standard output, has message_type summary, and dry_run, snapshot_id and time (null if
    /// no snapshot was made), source, files_new, files_changed, files_unmodified, files_read, files, directories, others,
    /// bytes, bytes_read, bytes_added (what the repository did not have, before compression), data_packs, data_bytes,
    /// tree_packs, tree_bytes, stored_bytes, problems, seconds. Of a dry run, files_read and bytes_read are what would be
    /// read.
    ///
    /// A problem, on standard error, has message_type error, and path and message.
    ///
    /// Of a run that takes longer, each second a line on standard output has message_type status, and percent_done (from 0
    /// to 1), files_done, total_files, bytes_done, total_bytes, total_estimated (the totals are those of the last
    /// snapshot), bytes_read, stored_bytes, seconds_elapsed, seconds_remaining, path. What is not known is null. SIGUSR1
    /// is answered with such a line on standard error.
    ///
    /// With -v, lines on standard output have message_type verbose_status, and action (new or changed) and item, a path.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let options = args.options()?;
    for (count, limit, what) in
        [(options.policy.tags.len(), TAGS, "tags"), (options.selection.paths.len(), PATHS, "paths")]
    {
        if count > limit {
            return Err(Usage(format!("{count} {what} are more than the {limit} that a snapshot can have")).into());
        }
    }
    let repository = Repository::open(&args.repository.location)?;
    let monitor = global.monitor(args.json);
    let stop = stop_on_signals()?;
    monitor.start();
    let result = backup::run(&repository, &global.state()?, &options, &monitor, &stop);
    monitor.done();
    let summary = result?;
    if args.json {
        say::result(as_json(&summary))?;
    } else if !global.quiet && (is_interactive() || global.verbose || args.dry_run) {
        say(&summary);
    }
    Ok(if summary.problems > 0 { ExitCode::from(PARTIAL) } else { ExitCode::SUCCESS })
}

/// Flags that choose among files, and mean nothing when there is only standard input.
const CHOOSING: [&str; 8] = [
    "paths",
    "files_from",
    "exclude",
    "exclude_from",
    "exclude_caches",
    "exclude_if_present",
    "exclude_nodump",
    "one_file_system",
];

/// Most bytes of a tag.
const TAG_SIZE: usize = 255;

/// A tag. Commas stand between tags where several are shown, so a tag has none.
fn parse_tag(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a tag can't be empty".into()),
        _ if text.trim() != text => Err("a tag can't begin or end with a blank".into()),
        _ if text.len() > TAG_SIZE => Err(format!("a tag has at most {TAG_SIZE} bytes")),
        _ if text.contains(',') => Err("a tag can't have a comma; give --tag once for each tag".into()),
        _ if text.contains(char::is_control) => Err("a tag is one line of text".into()),
        _ => Ok(text.to_owned()),
    }
}

impl Args {
    /// The tags, each once.
    fn tags(&self) -> Vec<String> {
        let mut tags: Vec<String> = Vec::new();
        for tag in &self.tag {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        tags
    }

    fn options(&self) -> Result<Options> {
        let within = |name: &str, value: u64, least: u64, most: u64| match (least..=most).contains(&value) {
            true => Ok(value as usize),
            false => Err(Usage(format!("--{name} must be from {} to {}", size(least), size(most)))),
        };
        Ok(Options {
            selection: Selection {
                source: self.source.clone(),
                paths: self.paths.clone(),
                files_from: self.files_from.clone(),
                stdin: self.stdin_filename.clone(),
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
                tags: self.tags(),
                skip_if_unchanged: self.skip_if_unchanged,
                dry_run: self.dry_run,
                low_memory: self.low_memory,
                commit_interval: self.commit_interval,
                wait_lock: self.wait_lock,
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

fn say(summary: &Summary) {
    match &summary.snapshot {
        _ if summary.dry_run => say::aside(format!("dry run of {}: nothing is stored", summary.source)),
        Some(name) => say::aside(format!("snapshot {} of {}", name.id.short(), summary.source)),
        None => say::aside(format!("nothing changed in {}, no snapshot was made", summary.source)),
    }
    say::aside(format!(
        "{} ({} new, {} changed, {} unmodified), {}, {}",
        count(summary.files, "file", "files"),
        summary.new_files,
        summary.changed_files,
        summary.unmodified_files,
        count(summary.directories, "directory", "directories"),
        size(summary.bytes)
    ));
    match summary.dry_run {
        true => say::aside(format!(
            "would read {}, {}. The size is an upper bound: data already in the repository is not stored again",
            count(summary.read_files, "file", "files"),
            size(summary.read_bytes)
        )),
        false => say::aside(work(summary)),
    }
    if summary.problems > 0 {
        say::aside(format!("{}: see above", count(summary.problems, "problem", "problems")));
    }
}

/// What was read and stored, and how fast.
fn work(summary: &Summary) -> String {
    let (read, added) = (summary.read_bytes, summary.added_bytes);
    let stored = summary.data_bytes + summary.tree_bytes;
    let mut text = format!("{} read, {} new, {} stored", size(read), size(added), size(stored));
    // Of a little, encryption makes more.
    if stored > 0 && added >= stored {
        text += &format!(" ({:.1}:1)", added as f64 / stored as f64);
    }
    text += &format!(" in {:.1} s", summary.duration.as_secs_f64());
    if read > 0 {
        text += &format!(" ({})", rate(read, summary.duration));
    }
    text
}
