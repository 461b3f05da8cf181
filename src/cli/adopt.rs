//! `brackfs adopt`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::exit::Usage;
use super::global::Global;
use super::output;
use super::reader_args::{FirstUse, ReaderArgs, SMALL_CACHE};
use super::recipients::read_certificate;
use super::repository_arg::Use;
use super::show::printable;
use super::signals::stop_on_signals;
use crate::inventory::{Inventory, host_access, host_key};
use crate::quantity::parse_duration;
use crate::session::{self, LockWait, Priority, adopt_with_host_key, adopt_with_owner_key};
use crate::state::RepositoryState;

/// Make this machine the writer of a repository
///
/// One machine, with one state directory, writes to a repository. After this command, the writer is this machine with this
/// state directory. The next backup from another state directory with the same host key, such as a clone's, is refused. A
/// machine with another host key cannot verify the documents that this one signs: its next backup reports this and goes on,
/// so disable its backups. Stored data is not changed.
///
/// If the state directory has the machine's host key for the repository, no other key is needed. The key is host.key in the
/// folder named by the repository's id; it can be restored from a copy and must be readable only by its user.
///
/// Otherwise the owner's secret key is needed once. The machine then makes a host key, and writes new copies, for this key,
/// of the documents that only hosts read; this takes a while for a large repository. Readers trust the new host key if it is
/// given with --signer. Old snapshots keep the signature of the old key.
///
/// A new machine does not trust the repository on first use, because an attacker with write access could have replaced its
/// documents to add recipients. So --signer must name the host keys of the previous machines, unless this machine remembers
/// them from an earlier command. If a document has another signer, the command fails and writes nothing. All recipients are
/// printed: the holder of any of these keys can read the backups made from now on.
///
/// A valid catalog is kept. Otherwise it is rebuilt as by brackfs-catalog-rebuild(1).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs adopt --repo /backup                     # on a clone, or after the state directory was restored
  brackfs adopt --repo /backup --key owner.key --signer 0123456789ABCDEF0123456789ABCDEF01234567")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// If another run is writing to the repository, wait up to DURATION, then exit with code 11
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90s, 10m or 1h30m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Fail unless the repository is encrypted to exactly these certificates (repeatable)
    ///
    /// CERT is a file with one OpenPGP certificate or secret key; only the public part of a key is used. Only for a new
    /// machine.
    #[arg(long, value_name = "CERT")]
    recipient: Vec<PathBuf>,
    /// Adopt even if documents are missing that the former machine knew
    ///
    /// A new machine compares the documents in the repository with those that the last run counted, because it cannot notice
    /// later that some are missing, and prunes would remove the data that only these need. Give this option only if they are
    /// lost. Only for a new machine.
    #[arg(long)]
    accept_missing: bool,
    /// Print the result as a JSON object
    ///
    /// It has message_type adopted, and host_key (the fingerprint), new_host_key, recipients (fingerprints), generation,
    /// packs, snapshots, missing_packs.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let place = args.reader.repository.resolve(global)?;
    let repository = place.open(Use::Command, global, Vec::new())?;
    RepositoryState::forget_looks(&global.state()?, &place.location.identity());
    let state = RepositoryState::new(&global.state()?, repository.id());
    let recipients = args.recipient.iter().map(|path| read_certificate(path)).collect::<Result<Vec<_>>>()?;
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let is_host = state.host_key()?.is_some();
    let lock = || session::lock(&state, LockWait::option(args.wait_lock), Priority::Normal, &monitor, &stop);
    if is_host && !recipients.is_empty() {
        let path = state.host_key_path();
        return Err(Usage(format!(
            "--recipient is only for a new machine, and this one has a host key for the repository ({}); run adopt without --recipient",
            path.display()
        ))
        .into());
    }
    let adopted = if is_host {
        let lock = lock()?;
        let key = host_key(&state)?;
        let access = host_access(&key)?;
        let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
        adopt_with_host_key(&inventory, &lock, key)?
    } else {
        let reader = args.reader.open_in(repository, FirstUse::Refused, global, &monitor, SMALL_CACHE)?;
        state.create()?;
        let lock = lock()?;
        let (repository, access) = (reader.repository(), reader.access());
        let inventory = Inventory { repository, access, monitor: &monitor, stop: &stop };
        adopt_with_owner_key(&inventory, &lock, &recipients, args.accept_missing)?
    };
    let found = &adopted.found;
    if args.json {
        output::object(&json!({
            "message_type": "adopted",
            "host_key": adopted.host.to_string(),
            "new_host_key": !is_host,
            "recipients": adopted.recipients.iter().map(|key| key.fingerprint().to_string()).collect::<Vec<_>>(),
            "generation": adopted.generation,
            "packs": found.learnt_packs,
            "snapshots": found.learnt_snapshots,
            "missing_packs": found.condemned.packs + found.missing_packs,
        }))?;
    } else if !global.quiet {
        output::message(format!("this machine is now the writer of the repository: {}", found.summary()));
        for recipient in &adopted.recipients {
            let user = recipient.user_id().map(|user| format!(" ({})", printable(&user))).unwrap_or_default();
            output::message(format!("backups are encrypted to {}{user}", recipient.fingerprint()));
        }
        if adopted.recipients.is_empty() {
            output::message("backups are not encrypted");
        }
        if !is_host {
            output::message(format!("its new host key is {}; readers need it for --signer", adopted.host));
        }
    }
    Ok(ExitCode::SUCCESS)
}
