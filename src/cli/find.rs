//! `brackfs find`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::json;

use super::common::{Global, READ_ONCE, ReaderArgs, end_on_signals, select};
use super::entry;
use super::exit::Usage;
use super::show;
use crate::format::{Kind, Timestamp};
use crate::history::{Match, Query, SearchScope, find};
use crate::reader::Selector;

/// Find files by name in all snapshots
///
/// Patterns are those of .gitignore. Without a / they match names, in any directory; with a / at the start or inside
/// they match paths from the snapshot's root on. * and ? stop at a /, ** does not, and {a,b} is a choice. A / at the
/// end matches directories only. Of several patterns one has to match.
///
/// Each line is SNAP:PATH, as cat, restore and mount take it, beginning with the newest snapshot of a source. What an
/// older snapshot has at the same path with the same kind, time and content is not listed again: brackfs versions tells
/// in which snapshots a path is the same. Directories that are the same as in the next newer snapshot are not even
/// read, so all snapshots take little longer than one, and memory doesn't grow with their number.
///
/// The exit code is 0 also if nothing is found, and 1 if something could not be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs find '*.odt' --repo /backup --key owner.key
  brackfs find -l --type f --larger 100M '*' --snapshot home/latest --repo /backup
  brackfs find '/etc/**/*.conf' --newer 2026-11-01 --source machine --repo /backup")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// A name, or a path, with wildcards
    #[arg(value_name = "PATTERN", required = true)]
    patterns: Vec<String>,
    /// Take upper and lower case in patterns as one
    #[arg(short, long)]
    ignore_case: bool,
    /// Look only into snapshots of this source
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Look only into this snapshot
    #[arg(long, value_name = "SNAP", conflicts_with = "source")]
    snapshot: Option<String>,
    /// Only what is of this kind; may be repeated
    #[arg(long = "type", value_enum, value_name = "KIND")]
    kinds: Vec<Type>,
    /// Only what was last changed then or later: a date or a time such as 2026-11-20T14:52, in UTC
    #[arg(long, value_name = "TIME", value_parser = show::parse_time)]
    newer: Option<Timestamp>,
    /// Only what was last changed before
    #[arg(long, value_name = "TIME", value_parser = show::parse_time)]
    older: Option<Timestamp>,
    /// Only files of more bytes
    #[arg(long, value_name = "SIZE", value_parser = show::parse_size)]
    larger: Option<u64>,
    /// Only files of fewer bytes
    #[arg(long, value_name = "SIZE", value_parser = show::parse_size)]
    smaller: Option<u64>,
    /// Show mode, number of names, owner, group, size in bytes, and time in UTC
    #[arg(short)]
    long: bool,
    /// Print one JSON object for each entry
    ///
    /// It has message_type found, snapshot (the id), time (of the snapshot) and source, and all that ls --json says of
    /// an entry; path begins at the snapshot's root.
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
        return Err(Usage("--snapshot takes no path; put it into the pattern".into()).into());
    }
    let monitor = global.monitor(args.json);
    let reader = args.reader.open(global, &monitor, READ_ONCE)?;
    end_on_signals()?;
    let within = match selector {
        Some(selector) => SearchScope::One(select(&reader, &selector, &monitor)?),
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
    // A line at a time: the next one may take long to be found.
    let mut out = std::io::stdout().lock();
    let problems = find(&reader, within, &wanted, &monitor, &mut |found| print(found, args, &mut out))?;
    Ok(if problems > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
        entry::write_behind(out, listed.entry())?;
    } else if listed.entry().kind == Kind::Directory {
        out.write_all(b"/")?;
    }
    out.write_all(b"\n")
}
