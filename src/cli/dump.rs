//! `brackfs dump`

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::common::{Global, READ_OFTEN, ReaderArgs, end_on_signals, is_interactive, select};
use super::exit::Usage;
use super::say;
use super::show::size;
use crate::dump;
use crate::monitor::count;
use crate::reader::Selector;

/// Write files from a snapshot to standard output as a tar archive
///
/// The archive is in the pax format: names of any bytes and length, owners, times to the nanosecond, hard links,
/// devices, FIFOs, extended attributes, ACLs and holes are in it. Sockets and the flags of chattr are not: tar has none. Of a directory, all that
/// is in it is written, with names that begin with ./; of a file, the file itself.
///
/// What can't be verified is not written: a small file that is damaged is left out and named, and of a directory what
/// can be read is written. Damage behind the first 16 MiB of a file ends the archive in the middle of it, and tar will
/// say so. In each case the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs dump latest:/etc --repo /backup --key owner.key | tar -xpf - --xattrs --acls -C /mnt
  brackfs dump home/latest --repo /backup --key owner.key | ssh host tar -xpf - -C /home
  brackfs dump latest --repo /backup --key owner.key | zstd > latest.tar.zst

tar as root gives files their owners; with --numeric-owner by number, not by name. GNU tar sets attributes \
other than those of users (capabilities, for one) only with --xattrs-include='*'. It warns that it does not \
know 'hdrcharset', which stands by names that are no UTF-8; it reads them all the same.")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// The snapshot, and a path in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: OsString,
    /// Keep set-id bits, capabilities and devices also from mounts that ignored them (nosuid, nodev)
    ///
    /// Without this option they are left out of such entries: a user of the machine that was backed up could have made
    /// them, on a mount of their own, and root's tar would bring them to life.
    #[arg(long)]
    trust_set_id: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        let why = "an archive is not for a terminal; send it to a file (> FILE) or to tar (| tar -x)";
        return Err(Usage(why.into()).into());
    }
    // Not through the library's buffer, which looks for lines.
    let out = File::from(stdout.as_fd().try_clone_to_owned().context("cannot write to standard output")?);
    let monitor = global.monitor(false);
    let reader = args.reader.open(global, &monitor, READ_OFTEN)?;
    end_on_signals()?;
    let snapshot = select(&reader, &selector, &monitor)?;
    let listed = reader.at_path(&snapshot, &selector.path)?;
    monitor.start();
    let result = dump::dump(&reader, &listed, out, args.trust_set_id, &monitor);
    monitor.done();
    let summary = result?;
    if !global.quiet && (is_interactive() || global.verbose) {
        let (files, bytes) = (summary.files, size(summary.bytes));
        let (files, directories) =
            (count(files, "file", "files"), count(summary.directories, "directory", "directories"));
        say::aside(format!("{files}, {directories}, {bytes} dumped"));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        1 => anyhow::bail!("1 entry is missing in the archive, or not entirely there; the rest is"),
        problems => anyhow::bail!("{problems} entries are missing in the archive, or not entirely there; the rest is"),
    }
}
