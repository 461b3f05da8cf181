//! `brackfs umount`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::mount::unmount;

/// Unmount what mount mounted
///
/// Also what a mount left behind whose program is gone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs umount /mnt
  brackfs umount --lazy /mnt        detach it now, even if it is in use")]
pub(super) struct Args {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,
    /// Detach it even if it is in use; it goes when nobody uses it any more
    #[arg(short = 'z', long)]
    lazy: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    unmount(&args.mountpoint, args.lazy)?;
    Ok(ExitCode::SUCCESS)
}
