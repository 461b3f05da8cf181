//! `brackfs dump`

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::exit::Usage;
use super::global::Global;
use super::output;
use super::reader_args::{DiskCacheArgs, DiskCaching, LARGE_CACHE, ReaderArgs, select};
use super::repository_arg::Use;
use super::show::size;
use crate::archive::Selector;
use crate::dump;
use crate::monitor::count;

/// Write files from a snapshot to standard output as a tar archive
///
/// The archive has the pax format. It keeps names of any length and any bytes, owners, times in nanoseconds, hard links,
/// devices, FIFOs, extended attributes, ACLs and holes. Sockets and chattr flags are left out, because tar cannot store them.
/// A directory is written with everything below it, under names that begin with ./, and a file as a single entry.
///
/// Only verified data is written. A small damaged file is left out and reported, and a damaged directory is written as far as
/// it can be read. Damage after the first 16 MiB of a file ends the archive in the middle of the file, and tar reports that.
/// In each case the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs dump latest:/etc --repo /backup --key owner.key | tar -xpf - --xattrs --acls -C /mnt
  brackfs dump home/latest --repo /backup --key owner.key | ssh host tar -xpf - -C /home
  brackfs dump latest --repo /backup --key owner.key | zstd > latest.tar.zst

As root, tar restores owners by name, or with --numeric-owner by number. GNU tar restores attributes outside of \
the user namespace, such as capabilities, only with --xattrs-include='*'. It warns about the unknown keyword \
'hdrcharset', which marks names that are not UTF-8, and extracts them correctly.")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// Write this snapshot, or this file or directory in it
    #[arg(value_name = "SNAP[:PATH]")]
    what: OsString,
    /// Also keep set-id bits, capabilities and devices from mounts that ignored them (nosuid, nodev)
    ///
    /// By default they are left out of such entries: an ordinary user of the machine that was backed up could have created
    /// them on their own mount, and they would take effect when root extracts the archive.
    #[arg(long)]
    trust_set_id: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        let why = "cannot write an archive to a terminal; redirect it to a file (> FILE) or to tar (| tar -x)";
        return Err(Usage(why.into()).into());
    }
    // std's Stdout is line-buffered, which costs time for binary data.
    let out = File::from(stdout.as_fd().try_clone_to_owned().context("cannot write to standard output")?);
    let monitor = global.monitor(false);
    let usage = if selector.is_root() { Use::Transfer } else { Use::Command };
    let archive = args.reader.open_archive(usage, global, &monitor, LARGE_CACHE, (&args.disk, DiskCaching::Read))?;
    let snapshot = select(&*archive, &selector, &monitor)?;
    let listed = archive.at_path(&snapshot, &selector.path)?;
    monitor.start();
    let result = dump::dump(&*archive, &listed, out, args.trust_set_id, &monitor);
    monitor.finish();
    let summary = result?;
    if global.shows_summary(false) {
        let (files, bytes) = (summary.files, size(summary.bytes));
        let (files, directories) =
            (count(files, "file", "files"), count(summary.directories, "directory", "directories"));
        output::message(format!("{files}, {directories}, {bytes} dumped"));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        1 => anyhow::bail!("1 entry is missing or incomplete in the archive; the others are complete"),
        problems => {
            anyhow::bail!("{problems} entries are missing or incomplete in the archive; the others are complete")
        }
    }
}
