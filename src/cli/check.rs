//! `brackfs check`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::common::{Global, READ_ONCE, ReaderArgs, is_interactive, stop_soon_on_signals};
use super::say;
use crate::check;
use crate::monitor::count;

/// Check that everything is there that the snapshots need
///
/// Without --read-data the structure is checked: that every snapshot opens and is signed by a known host key, that every
/// directory verifies, that the data which files need lies within packs that are there and long enough, and that no
/// snapshot is missing from the chain in which each names the one before; and what only machines that write need:
/// indexes and the packs that they name, generations, sums, keys. With it, all data is read, too: every chunk
/// is verified, those that only an index leads to as well, and every pack that an index names is compared with its sum. A pack
/// of the wrong length is named and not read.
///
/// Each problem is named, and nothing is changed. What is shared by several snapshots is looked at once. If all that
/// matters is whether a disk kept what it got, b3sum does it without a key: cd REPO && find sums -type f -exec cat {} + |
/// b3sum --check. Whether the catalog of the machine that is backed up agrees with the repository is for brackfs-catalog-verify(1) to say.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs check --repo /backup --key owner.key
  brackfs check --repo /backup --key owner.key --read-data")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// Read and verify all data, too
    #[arg(long)]
    read_data: bool,
    /// Print the result, problems, and how far it is, as JSON, one object a line
    ///
    /// The result, the last line on standard output, has message_type summary, and snapshots, directories, files, chunks,
    /// packs, problems. A problem, on standard error, has message_type error, and path and message. Progress is told as by
    /// backup --json.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let monitor = global.monitor(args.json);
    let reader = args.reader.open(global, &monitor, READ_ONCE)?;
    let stop = stop_soon_on_signals()?;
    monitor.start();
    let result = check::check(&reader, args.read_data, &monitor, &stop);
    monitor.done();
    let summary = result?;
    if args.json {
        let object = json!({
            "message_type": "summary",
            "snapshots": summary.snapshots,
            "directories": summary.directories,
            "files": summary.files,
            "chunks": summary.chunks,
            "packs": summary.packs,
            "problems": summary.problems,
        });
        say::result(object)?;
    } else if !global.quiet && (is_interactive() || global.verbose) {
        let directories = count(summary.directories, "directory", "directories");
        let (files, chunks) = (count(summary.files, "file", "files"), count(summary.chunks, "chunk", "chunks"));
        say::aside(format!("{}, {directories}, {files}, {chunks}", count(summary.snapshots, "snapshot", "snapshots")));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => anyhow::bail!("{}", count(problems, "problem", "problems")),
    }
}
