//! `brackfs cat`

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use anyhow::Result;

use super::exit::Usage;
use super::global::Global;
use super::output;
use super::reader_args::{DiskCacheArgs, DiskCaching, ReaderArgs, SMALL_CACHE, select};
use super::repository_arg::Use;
use super::show;
use crate::archive::{EntryRef, FileData, Selector};
use crate::format::Kind;

/// Written repeatedly for a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Write a file in a snapshot to standard output
///
/// Every chunk is verified before it is written. If data is damaged, the output ends there with an error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs cat latest:etc/fstab --repo /backup --key owner.key
  brackfs cat home/latest:alice/notes.txt --repo /backup --key owner.key | less")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    #[command(flatten)]
    disk: DiskCacheArgs,
    /// Write this file
    #[arg(value_name = "SNAP:PATH")]
    what: OsString,
}

/// Why an entry has no content to write.
fn refusal(selector: &Selector, entry: &EntryRef<'_>) -> Option<String> {
    match entry.kind {
        Kind::File => None,
        Kind::Directory if selector.path.is_empty() => {
            Some(format!("it is a whole snapshot; name a file in it, as {selector}:PATH"))
        }
        Kind::Directory => Some("it is a directory; `brackfs dump` writes it as a tar archive".to_owned()),
        Kind::Symlink => {
            Some(format!("it is a symbolic link to {}; name that file", String::from_utf8_lossy(entry.target)))
        }
        kind => Some(format!("it is a {}, which has no content", show::kind(kind))),
    }
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let selector = Selector::parse(args.what.as_bytes()).map_err(Usage)?;
    let monitor = global.monitor(false);
    let archive =
        args.reader.open_archive(Use::Command, global, &monitor, SMALL_CACHE, (&args.disk, DiskCaching::Fill))?;
    let snapshot = select(&*archive, &selector, &monitor)?;
    let listed = archive.at_path(&snapshot, &selector.path)?;
    if let Some(why) = refusal(&selector, &listed.entry()) {
        let path = String::from_utf8_lossy(&selector.path);
        let colon = if path.is_empty() { "" } else { ":" };
        anyhow::bail!("cannot write {selector}{colon}{path}: {why}");
    }
    let mut out = output::stdout();
    archive.content(&listed)?.each(|data| -> Result<()> {
        match data {
            FileData::Bytes(bytes) => out.write_all(bytes)?,
            FileData::Hole(mut hole) => {
                while hole > 0 {
                    let some = hole.min(ZEROS.len() as u64);
                    out.write_all(ZEROS.get(..some as usize).unwrap_or_default())?;
                    hole -= some;
                }
            }
        }
        Ok(())
    })?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
