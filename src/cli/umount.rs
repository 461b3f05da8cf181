//! `brackfs umount`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::mount::unmount;

/// Unmount a mount of brackfs
///
/// Also cleans up a mount whose program was killed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs umount /mnt
  brackfs umount --lazy /mnt        # detach it now, even if it is in use")]
pub(super) struct Args {
    /// Unmount this directory
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Detach the mount even if it is in use; it ends after its last use
    #[arg(short = 'z', long)]
    lazy: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    unmount(&args.mountpoint, args.lazy)?;
    Ok(ExitCode::SUCCESS)
}
