//! `brackfs check`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::global::Global;
use super::output;
use super::reader_args::ReaderArgs;
use super::record::ByHand;
use super::signals::stop_soon_on_signals;
use crate::check;
use crate::job::{Failed, Outcome, Step};
use crate::monitor::count;

/// Default size of the cache in bytes. A check needs memory for all packs and chunks as well.
const CACHE: u64 = 16 << 20;

/// Check that the repository has all data that the snapshots need
///
/// Without --read-data, only the structure is checked. Every snapshot must open and be signed by a trusted host key;
/// every directory must verify; the data of every file must lie in an existing pack that is long enough; and no
/// snapshot may be missing from the chain in which each snapshot names the previous one. Objects that only writers need
/// are checked too: indexes and the packs they list, generations, sums and keys. References of snapshots are compared
/// with indexes. The indexes, snapshots and other documents in the repository are compared with the counts that the
/// last run recorded when it began, so missing ones are reported. Forgotten snapshots are not checked.
///
/// With --read-data, every pack in an index is read once: every block is compared with its check, every chunk is verified,
/// and the pack is compared with its sum. Packs of the wrong length are reported and not read.
///
/// Other runs may write to the repository at the same time. If an object is missing, and a run changed documents since
/// the check began, the structure is checked again: data that was removed on purpose is not reported. With --read-data,
/// data that a prune moves during the check may be left unread.
///
/// If an index names a snapshot that is missing, a note says so. It is an error once a later run has counted the snapshot;
/// until then, the backup may have been interrupted.
///
/// If data is lost or damaged, run `brackfs catalog verify --read-data` on the machine that is backed up, and then `brackfs
/// backup`. The backup stores the lost content of files again if it is still at the source. Older snapshots can then read it,
/// too. Lost directories are stored again for new snapshots only. From snapshots that stay damaged, all other files can still be
/// restored. After these are forgotten and pruned, check finds no problems.
///
/// If the lost or damaged data of a pack was stored again, and all snapshots can read it, a note replaces the problem.
///
/// A line shows the progress on a terminal, and SIGUSR1 prints it. Without --read-data, the percentage is an estimate:
/// indexes may list chunks that no snapshot needs.
///
/// Problems are reported, and nothing is changed. Data shared by several snapshots is checked once. A check needs a
/// temporary file of about 50 bytes per chunk in $TMPDIR, or else /var/tmp. To check without a key whether a disk kept
/// the packs intact, run b3sum: cd REPO && find sums -type f -exec cat {} + | b3sum --check. To compare the repository
/// with the catalog of the machine that is backed up, run brackfs-catalog-verify(1) there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs check --repo /backup --key owner.key
  brackfs check --repo /backup --key owner.key --read-data")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) reader: ReaderArgs,
    /// Read and verify all data
    #[arg(long)]
    read_data: bool,
    /// Print the result, problems and progress as JSON, one object per line
    ///
    /// The result is the last line on standard output. It has message_type summary, and snapshots, directories, files, chunks,
    /// packs, problems. Problems are written to standard error, with message_type error, path and message. Progress is
    /// written as by backup --json. Status objects count packs as files with --read-data, and otherwise chunks.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let monitor = global.monitor(args.json);
    let target = args.reader.repository.resolve(global)?.target;
    let reader = args.reader.open(global, &monitor, CACHE)?;
    let id = Some(reader.repository().id());
    let by_hand = ByHand::begin(Step::Check, None, target.as_deref(), global, &monitor);
    let stop = stop_soon_on_signals()?;
    monitor.start();
    let result = check::check(&reader, args.read_data, &monitor, &stop);
    monitor.finish();
    let result = result.map_err(anyhow::Error::from);
    match (by_hand, &result) {
        (Some(step), Ok(summary)) => {
            let outcome = match (summary.problems, args.read_data) {
                (0, true) => Outcome::Done("no problems; all data was read".into()),
                (0, false) => Outcome::Done("no problems; data was not read".into()),
                (problems, _) => Outcome::Failed(Failed::new(count(problems, "problem", "problems"))),
            };
            step.end(id, outcome, None, &monitor);
        }
        (Some(step), Err(error)) => step.fail(id, error, &monitor),
        (None, _) => {}
    }
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
        output::object(&object)?;
    } else if global.shows_summary(false) {
        let directories = count(summary.directories, "directory", "directories");
        let (files, chunks) = (count(summary.files, "file", "files"), count(summary.chunks, "chunk", "chunks"));
        output::message(format!(
            "{}, {directories}, {files}, {chunks}",
            count(summary.snapshots, "snapshot", "snapshots")
        ));
    }
    match summary.problems {
        0 => Ok(ExitCode::SUCCESS),
        problems => {
            anyhow::bail!("{}; `brackfs check --help` says what to do", count(problems, "problem", "problems"))
        }
    }
}
