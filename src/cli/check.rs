//! `brackfs check`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::common::{Global, ReaderArgs, is_interactive, stop_on_signals};
use super::say;
use crate::check;

/// Check that everything is there that the snapshots need
///
/// Without --read-data the structure is checked: snapshots, trees, that packs are there and long enough, and what
/// only machines that write need. With it, every byte is read and verified.
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
    /// Print the result, and problems, as JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let monitor = global.monitor(args.json);
    let reader = args.reader.open(global, &monitor)?;
    let stop = stop_on_signals()?;
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
        let (files, directories) = (summary.files, summary.directories);
        say::aside(format!(
            "{} snapshots, {directories} directories, {files} files, {} chunks",
            summary.snapshots, summary.chunks
        ));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => anyhow::bail!("{problems} problems"),
    }
}
