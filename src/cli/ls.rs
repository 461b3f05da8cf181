//! `brackfs ls`

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::entry;
use super::exit::{self, Usage};
use super::global::Global;
use super::output;
use super::reader_args::{DiskCacheArgs, DiskCaching, ReaderArgs, SMALL_CACHE, select};
use super::repository_arg::Use;
use super::show;
use crate::archive::{Archive, EntryHandle, Selector, SnapshotDirectory, TreeWalk, WalkStep};
use crate::failure::{Failure, FailureKind};
use crate::format::Kind;
use crate::monitor::Monitor;

/// List files in a snapshot
///
/// For a directory, its entries are listed; anything else is listed as a single entry. Each line has one name, unchanged
/// except for control characters, which are escaped on a terminal. Use --json for names with newlines. Only the directories
/// on the path are read. With -R, a subdirectory that cannot be read is reported, the others are listed, and the exit code
/// is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs ls latest --repo /backup --key owner.key
  brackfs ls -lR home/latest:alice --repo /backup --key owner.key")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// List this snapshot, or this file or directory in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: OsString,
    /// Print mode, link count, owner, group, size in bytes, and modification time in the local time zone
    #[arg(short)]
    long: bool,
    /// List subdirectories recursively
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Print one JSON object for each entry
    ///
    /// It has message_type entry, and path, type, mode (a number), uid, gid, user, group (null if the name is
    /// unknown), size, mtime, mtime_nanos, links, changed_while_read, unprivileged (the source's mount ignored its set-id
    /// bits, capabilities or device number), xattrs (names), inode_flags; target for a symbolic link; path_hex for a
    /// path that is not UTF-8.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    let monitor = global.monitor(args.json);
    let archive =
        args.reader.open_archive(Use::Command, global, &monitor, SMALL_CACHE, (&args.disk, DiskCaching::Fill))?;
    let snapshot = select(&*archive, &selector, &monitor)?;
    let listed = archive.at_path(&snapshot, &selector.path)?;
    let mut out = std::io::BufWriter::new(output::stdout());
    let problems = match listed.directory() {
        Some(top) => list(&*archive, top, args, &monitor, &mut out)?,
        None => print(&listed, b"", args, &mut out).map(|()| 0)?,
    };
    out.flush()?;
    exit::of_problems(problems)
}

/// Lists a directory. Returns the number of subdirectories that cannot be read, which are reported.
fn list(
    archive: &dyn Archive,
    top: SnapshotDirectory,
    args: &Args,
    monitor: &dyn Monitor,
    out: &mut dyn Write,
) -> Result<u64> {
    let mut problems = 0;
    let mut walk = TreeWalk::new(archive, top);
    // The path of the current directory, and the start of each name on it.
    let (mut path, mut begins) = (Vec::new(), Vec::new());
    while let Some(step) = walk.step() {
        match step {
            WalkStep::Entry(child) => {
                print(&child, &path, args, out)?;
                if let Some(below) = child.directory().filter(|_| args.recursive) {
                    begins.push(path.len());
                    path.extend_from_slice(child.entry().name);
                    path.push(b'/');
                    walk.enter(below);
                }
            }
            // If the target is away, the others cannot be read either.
            WalkStep::Failed(error) if walk.depth() == 1 || error.kind() == FailureKind::Unavailable => {
                return Err(error.into());
            }
            WalkStep::Failed(error) => {
                let place = Path::new(OsStr::from_bytes(&path));
                monitor.problem(place, &format!("cannot list all of this directory: {error}"));
                problems += 1;
            }
            WalkStep::Leave => path.truncate(begins.pop().unwrap_or_default()),
        }
    }
    Ok(problems)
}

fn print(listed: &EntryHandle, above: &[u8], args: &Args, out: &mut dyn Write) -> Result<()> {
    let entry = listed.entry();
    let path = [above, entry.name].concat();
    if args.json {
        writeln!(out, "{}", show::json(&entry::object(json!({ "message_type": "entry" }), listed, &path)))?;
        return Ok(());
    }
    if args.long {
        entry::write_details(out, listed)?;
    }
    entry::write_name(out, &path)?;
    if args.long {
        entry::write_suffix(out, &entry)?;
    } else if entry.kind == Kind::Directory {
        out.write_all(b"/")?;
    }
    out.write_all(b"\n")?;
    Ok(())
}
