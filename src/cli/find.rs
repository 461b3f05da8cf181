//! `brackfs find`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::NonEmptyStringValueParser;
use serde_json::json;

use super::entry;
use super::exit::{self, Usage};
use super::global::Global;
use super::output;
use super::reader_args::{DiskCacheArgs, DiskCaching, ReaderArgs, SMALL_CACHE, select};
use super::repository_arg::Use;
use super::show;
use crate::archive::Selector;
use crate::format::{Kind, Timestamp};
use crate::history::{Match, Query, SearchScope, find};
use crate::quantity::parse_size;

/// Find files by name in all snapshots
///
/// Patterns are written as in .gitignore. Without a /, a pattern matches names in any directory; with a / at the start or in
/// the middle, it matches paths from the snapshot's root. * and ? do not match a /, ** does, and {a,b} matches a or b. A / at
/// the end matches only directories. With several patterns, an entry is printed if any of them matches; a pattern with ! in
/// front excludes entries that earlier ones match.
///
/// Each line is SNAP:PATH, which cat, restore and mount accept, with the newest snapshot of each source first. Use --json for
/// names with newlines. An entry of an older snapshot is not printed if a newer one has the same path with the same kind, time
/// and content; brackfs versions shows which snapshots have the same version. Directories that are unchanged in the next newer
/// snapshot are not read, so a search in all snapshots takes little longer than in one, and memory does not grow with their
/// number.
///
/// The exit code is 0 even if nothing is found, and 1 if something could not be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs find '*.odt' --repo /backup --key owner.key
  brackfs find -l --type f --larger 100M '*' --snapshot home/latest --repo /backup
  brackfs find '/etc/**/*.conf' --newer 2026-11-01 --source machine --repo /backup")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// Find names or paths that match this pattern
    #[arg(value_name = "PATTERN", required = true, value_parser = NonEmptyStringValueParser::new())]
    patterns: Vec<String>,
    /// Ignore case in patterns
    #[arg(short, long)]
    ignore_case: bool,
    /// Search only snapshots of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Search only this snapshot
    #[arg(long, value_name = "SNAP", conflicts_with = "source")]
    snapshot: Option<String>,
    /// Print only entries of this kind (repeatable)
    #[arg(long = "type", value_enum, value_name = "KIND")]
    kinds: Vec<Type>,
    /// Print only entries modified at TIME or later: a date or a time such as 2026-11-20T14:52, in UTC
    #[arg(long, value_name = "TIME", value_parser = show::parse_time)]
    newer: Option<Timestamp>,
    /// Print only entries modified before TIME
    #[arg(long, value_name = "TIME", value_parser = show::parse_time)]
    older: Option<Timestamp>,
    /// Print only files of more than SIZE bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    larger: Option<u64>,
    /// Print only files of less than SIZE bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    smaller: Option<u64>,
    /// Print mode, link count, owner, group, size in bytes, and modification time in the local time zone
    #[arg(short)]
    long: bool,
    /// Print one JSON object for each entry
    ///
    /// It has message_type found, snapshot (the id), time (of the snapshot), source, and the fields of ls --json; path begins
    /// at the snapshot's root.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    /// A file
    F,
    /// A directory
    D,
    /// A symbolic link
    L,
    /// A named pipe
    P,
    /// A socket
    S,
    /// A character device
    C,
    /// A block device
    B,
}

impl From<Type> for Kind {
    fn from(given: Type) -> Self {
        match given {
            Type::F => Kind::File,
            Type::D => Kind::Directory,
            Type::L => Kind::Symlink,
            Type::P => Kind::Fifo,
            Type::S => Kind::Socket,
            Type::C => Kind::CharDevice,
            Type::B => Kind::BlockDevice,
        }
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = args.snapshot.as_ref().map(|text| Selector::parse(text.as_bytes())).transpose().map_err(Usage)?;
    if selector.as_ref().is_some_and(|selector| !selector.path.is_empty()) {
        return Err(Usage("--snapshot does not accept a path; put the path into the pattern".into()).into());
    }
    let monitor = global.monitor(args.json);
    let archive =
        args.reader.open_archive(Use::Command, global, &monitor, SMALL_CACHE, (&args.disk, DiskCaching::Fill))?;
    let within = match selector {
        Some(selector) => SearchScope::One(select(&*archive, &selector, &monitor)?),
        None => SearchScope::All(args.source.clone()),
    };
    let wanted = Query {
        patterns: args.patterns.clone(),
        ignore_case: args.ignore_case,
        kinds: args.kinds.iter().copied().map(Kind::from).collect(),
        newer: args.newer,
        older: args.older,
        larger: args.larger,
        smaller: args.smaller,
    };
    // Unbuffered, since the search for the next entry can take long.
    let mut out = output::stdout();
    let problems = find(&*archive, within, &wanted, &monitor, &mut |found| print(found, args, &mut out))?;
    exit::of_problems(problems)
}

fn print(found: &Match<'_>, args: &Args, out: &mut dyn Write) -> std::io::Result<()> {
    let (snapshot, listed) = (found.snapshot, found.listed);
    if args.json {
        let head = json!({
            "message_type": "found",
            "snapshot": snapshot.name.id.to_string(),
            "time": show::name_time(&snapshot.name.time),
            "source": snapshot.source,
        });
        return writeln!(out, "{}", show::json(&entry::object(head, listed, found.path)));
    }
    if args.long {
        entry::write_details(out, listed)?;
    }
    write!(out, "{}:", snapshot.name.id.short())?;
    entry::write_name(out, found.path)?;
    if args.long {
        entry::write_suffix(out, &listed.entry())?;
    } else if listed.entry().kind == Kind::Directory {
        out.write_all(b"/")?;
    }
    out.write_all(b"\n")
}
