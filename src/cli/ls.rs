//! `brackfs ls`

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::common::{Global, ReaderArgs};
use super::exit::Usage;
use super::show;
use crate::format::entry::Content;
use crate::format::{Entry, Kind};
use crate::reader::{Listed, Reader, Selector};

/// List files in a snapshot
///
/// Of a directory, what is in it; of anything else, itself. Names are written as they are, each on a line, but to a
/// terminal with control characters escaped; --json is for names with newlines. Only the directories on the way are read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs ls latest --repo /backup --key owner.key
  brackfs ls -lR home/latest:alice --repo /backup --key owner.key")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// The snapshot, and a path in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: OsString,
    /// Show mode, number of names, owner, group, size in bytes, and time in UTC
    #[arg(short)]
    long: bool,
    /// List directories below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Print one JSON object for each entry
    ///
    /// It has message_type entry, and path, type, mode (a number), uid, gid, user, group (null if the name was not
    /// known), size, mtime, mtime_nanos, links, changed_while_read, xattrs (names), inode_flags; target for a symbolic link; path_hex for a path that is
    /// not UTF-8.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    let reader = args.reader.open(global, &global.monitor(false))?;
    let snapshot = reader.select(&selector)?;
    let listed = reader.at_path(&snapshot, &selector.path)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match listed.directory() {
        Some(_) => list(&reader, &listed, b"", args, &mut out)?,
        None => print(&listed, b"", args, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn list(reader: &Reader, listed: &Listed, above: &[u8], args: &Args, out: &mut dyn Write) -> Result<()> {
    let Some(directory) = listed.directory() else { return Ok(()) };
    reader.each(&directory, |child| {
        print(&child, above, args, out)?;
        if args.recursive && child.directory().is_some() {
            let path = [above, &child.entry().name, b"/"].concat();
            list(reader, &child, &path, args, out)?;
        }
        Ok(())
    })
}

fn print(listed: &Listed, above: &[u8], args: &Args, out: &mut dyn Write) -> Result<()> {
    let entry = listed.entry();
    let path = [above, &entry.name].concat();
    if args.json {
        writeln!(out, "{}", as_json(listed, &path))?;
        return Ok(());
    }
    if args.long {
        let owner = listed.user().map_or_else(|| entry.uid.to_string(), str::to_owned);
        let group = listed.group().map_or_else(|| entry.gid.to_string(), str::to_owned);
        let size = match entry.content {
            Content::Device(major, minor) => format!("{major},{minor}"),
            _ => entry.size.to_string(),
        };
        let mode = show::mode(entry.kind, entry.mode);
        let names = entry.link.map_or(1, |link| link.count);
        let time = show::rfc3339(entry.mtime);
        write!(out, "{mode} {names:>2} {owner:<8} {group:<8} {size:>12} {time} ")?;
    }
    write_name(out, &path)?;
    if args.long {
        if let Content::Target(target) = &entry.content {
            out.write_all(b" -> ")?;
            write_name(out, target)?;
        }
        if entry.flags & Entry::CHANGED != 0 {
            out.write_all(b"  (changed while it was read)")?;
        }
    } else if entry.kind == Kind::Directory {
        out.write_all(b"/")?;
    }
    out.write_all(b"\n")?;
    Ok(())
}

fn write_name(out: &mut dyn Write, name: &[u8]) -> std::io::Result<()> {
    match std::io::stdout().is_terminal() {
        true => out.write_all(show::printable(&String::from_utf8_lossy(name)).as_bytes()),
        false => out.write_all(name),
    }
}

fn as_json(listed: &Listed, path: &[u8]) -> serde_json::Value {
    let entry = listed.entry();
    let mut object = json!({
        "message_type": "entry",
        "path": String::from_utf8_lossy(path),
        "type": show::kind(entry.kind),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "user": listed.user(),
        "group": listed.group(),
        "size": entry.size,
        "mtime": show::rfc3339(entry.mtime),
        "mtime_nanos": entry.mtime.nanos,
        "links": entry.link.map_or(1, |link| link.count),
        "changed_while_read": entry.flags & Entry::CHANGED != 0,
        "xattrs": entry.xattrs.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect::<Vec<_>>(),
        "inode_flags": entry.inode_flags,
    });
    if let Some(map) = object.as_object_mut() {
        if str::from_utf8(path).is_err() {
            let hex: String = path.iter().map(|byte| format!("{byte:02x}")).collect();
            map.insert("path_hex".into(), hex.into());
        }
        if let Content::Target(target) = &entry.content {
            map.insert("target".into(), String::from_utf8_lossy(target).into());
        }
    }
    object
}
