//! `brackfs diff`

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::entry;
use super::exit::{self, Usage};
use super::global::Global;
use super::output;
use super::reader_args::{DiskCacheArgs, DiskCaching, ReaderArgs, SMALL_CACHE, select};
use super::repository_arg::Use;
use super::show::{self, size};
use crate::archive::{EntryHandle, EntryRef, Selector};
use crate::format::Kind;
use crate::format::name::SnapshotName;
use crate::history::{Change, ChangeKind, ComparedTree, Counts, DiffSummary, Field, diff};
use crate::monitor::count;

/// List the differences between two snapshots
///
/// A line has a letter and a path: + if only B has the entry (added), - if only A has it (removed), M if its content differs
/// (size, bytes or holes of a file, target of a link, number of a device), T if its kind differs, such as a file that became a
/// directory, and U if only its metadata differs (mode, owner, group, modification time, extended attributes, inode flags,
/// number of hard links). -v adds the fields that differ. Lines are in order of names, directory by directory.
///
/// All entries below an added or removed directory are listed too. If entries of a directory were added, removed or replaced,
/// its own modification time differs as well, so it has a line with U; --content-only omits lines with U.
///
/// The last lines count the entries and the bytes of files. An entry whose kind differs counts as removed and as added. For a
/// file whose content differs, the bytes by which it grew or shrank count.
///
/// A and B are snapshots, or files or directories in them: SNAP or SNAP:PATH. They may be of different sources, and paths begin at
/// the directories named. Owners and groups differ if their numbers differ, or if both snapshots have a name for the number
/// and the names differ. Which names are hard links to the same file is not compared, only their number.
///
/// No content of files is read. Directories that are equal in both snapshots are skipped, as are equal parts of large
/// directories. So the time depends on the number of directories that differ, and memory does not grow with the snapshots.
///
/// The exit code is 0 even if there are differences, and 1 if something could not be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs diff 2026-11-20 latest --repo /backup --key owner.key
  brackfs diff -v home/2026-11 home/latest alice/mail --repo /backup --key owner.key
  brackfs diff machine/latest:home home/latest --repo /backup --key owner.key")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// Compare this snapshot, or this file or directory in it: SNAP or SNAP:PATH
    #[arg(value_name = "A")]
    before: OsString,
    /// The snapshot to compare it with, usually the newer one: SNAP or SNAP:PATH
    #[arg(value_name = "B")]
    after: OsString,
    /// List only differences at or below this path; it may be missing from A or B
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    /// Omit entries of which only metadata differs
    #[arg(long)]
    content_only: bool,
    /// Print one JSON object for each difference, and one with the counts
    ///
    /// The message_type of a difference is change. It has path (the name if A and B are files), modifier (the letter), fields
    /// (those that differ: type, size, content, target, device, mode, owner, group, mtime, xattrs, inode_flags, links), before
    /// and after (each with the fields of ls --json except path, or null); path_hex for a path that is not UTF-8. The last
    /// object has message_type statistics, before_id, after_id, added and removed (each with files, directories, others and
    /// bytes), changed_files, changed_others, metadata_changed, and problems.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let parse = |text: &OsString| Selector::parse(text.as_bytes()).map_err(Usage);
    let selectors = (parse(&args.before)?, parse(&args.after)?);
    let monitor = global.monitor(args.json);
    let archive =
        args.reader.open_archive(Use::Command, global, &monitor, SMALL_CACHE, (&args.disk, DiskCaching::Fill))?;
    let before = select(&*archive, &selectors.0, &monitor)?;
    let after = select(&*archive, &selectors.1, &monitor)?;
    let trees = (
        ComparedTree { snapshot: &before, path: &selectors.0.path },
        ComparedTree { snapshot: &after, path: &selectors.1.path },
    );
    let path = args.path.as_ref().map_or(b"".as_slice(), |path| path.as_bytes());
    let mut out = std::io::BufWriter::new(output::stdout());
    let mut print = |change: &Change<'_>| match change.kind() {
        ChangeKind::Metadata if args.content_only => Ok(()),
        _ if args.json => writeln!(out, "{}", show::json(&as_json(change))),
        _ => write_line(change, global.verbose, &mut out),
    };
    let summary = diff(&*archive, &trees.0, &trees.1, path, &monitor, &mut print)?;
    if args.json {
        writeln!(out, "{}", show::json(&statistics(&before.name, &after.name, &summary)))?;
    } else {
        write_summary(&summary, &mut out)?;
    }
    out.flush()?;
    exit::of_problems(summary.problems)
}

fn write_line(change: &Change<'_>, with_fields: bool, out: &mut dyn Write) -> std::io::Result<()> {
    write!(out, "{} ", letter(change.kind()))?;
    let (path, is_directory) = shown_path(change);
    entry::write_name(out, path)?;
    if is_directory {
        out.write_all(b"/")?;
    }
    if with_fields && !change.fields.is_empty() {
        write!(out, "  ({})", words(change).join(", "))?;
    }
    out.write_all(b"\n")
}

/// The path to show, and whether it is that of a directory. Two files that were named have no path below them, so their name
/// is shown.
fn shown_path<'c>(change: &'c Change<'_>) -> (&'c [u8], bool) {
    let shown = change.after.or(change.before).map_or(EntryRef::EMPTY, EntryHandle::entry);
    let is_directory = shown.kind == Kind::Directory;
    (if change.path.is_empty() && !is_directory { shown.name } else { change.path }, is_directory)
}

fn write_summary(summary: &DiffSummary, out: &mut dyn Write) -> std::io::Result<()> {
    let DiffSummary { added, removed, changed_files, changed_others, metadata, problems: _ } = summary;
    let counts = |of: &Counts| {
        let (files, directories) =
            (count(of.files, "file", "files"), count(of.directories, "directory", "directories"));
        format!("{files}, {directories}, {}, {}", others(of.others), size(of.bytes))
    };
    let changed = format!("{}, {}", count(*changed_files, "file", "files"), others(*changed_others));
    writeln!(out, "added: {}", counts(added))?;
    writeln!(out, "removed: {}", counts(removed))?;
    writeln!(out, "changed: {changed}; only the metadata of {}", count(*metadata, "entry", "entries"))
}

fn others(number: u64) -> String {
    count(number, "other entry", "other entries")
}

fn as_json(change: &Change<'_>) -> Value {
    let head = json!({
        "message_type": "change",
        "modifier": letter(change.kind()),
        "fields": words(change),
        "before": change.before.map(entry::metadata),
        "after": change.after.map(entry::metadata),
    });
    entry::at_path(head, shown_path(change).0)
}

fn statistics(before: &SnapshotName, after: &SnapshotName, summary: &DiffSummary) -> Value {
    let counts = |of: &Counts| json!({ "files": of.files, "directories": of.directories, "others": of.others, "bytes": of.bytes });
    json!({
        "message_type": "statistics",
        "before_id": before.id.to_string(),
        "after_id": after.id.to_string(),
        "added": counts(&summary.added),
        "removed": counts(&summary.removed),
        "changed_files": summary.changed_files,
        "changed_others": summary.changed_others,
        "metadata_changed": summary.metadata,
        "problems": summary.problems,
    })
}

fn letter(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "+",
        ChangeKind::Removed => "-",
        ChangeKind::Content => "M",
        ChangeKind::Kind => "T",
        ChangeKind::Metadata => "U",
    }
}

fn words(change: &Change<'_>) -> Vec<&'static str> {
    let word = |field: &Field| match field {
        Field::Kind => "type",
        Field::Size => "size",
        Field::Content => "content",
        Field::Target => "target",
        Field::Device => "device",
        Field::Mode => "mode",
        Field::Owner => "owner",
        Field::Group => "group",
        Field::Mtime => "mtime",
        Field::Xattrs => "xattrs",
        Field::InodeFlags => "inode_flags",
        Field::Links => "links",
    };
    change.fields.iter().map(word).collect()
}
