//! `brackfs adopt`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::catalog::waiting;
use super::common::{FirstUse, Global, READ_ONCE, ReaderArgs, read_certificate, stop_on_signals};
use super::exit::Usage;
use super::say;
use super::show::{parse_duration, printable};
use crate::inventory::{Inventory, adopt_with_host_key, adopt_with_owner_key, host_access, host_key};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::state::RepositoryState;

/// Make this machine the one that writes to a repository
///
/// A repository is written to by one machine, and by one state directory of it. After this it is this one. Another state
/// directory with the same host key, such as that of a clone, is refused by its next backup. A machine with another host
/// key cannot verify what this one signs: its next backup says so and goes on, so switch its backups off. Nothing that was
/// stored is changed.
///
/// If the state directory has the machine's host key for the repository (host.key in the folder named by the repository's
/// id: brought back from a copy, or put there by hand, readable by its user only), no other key is needed.
///
/// Otherwise the owner's secret key is needed, this once. The machine then makes a host key of its own, and writes the
/// documents that only hosts read again for it; in a large repository that takes a while. Readers trust the new host key
/// when it is given to them with --signer; the old snapshots stay signed by the old one.
///
/// A new machine does not trust the repository at first use: a target that exchanged its documents could name recipients
/// of its own. So --signer must name the host keys of the machines before, unless this machine remembers them from an
/// earlier command. Documents of any other signer end the command, and nothing is written. All recipients are printed:
/// everyone who holds one of these keys can read the backups from now on.
///
/// A good catalog is kept; otherwise it is built again as by brackfs-catalog-rebuild(1).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs adopt --repo /backup                     a clone, or a state directory that was brought back
  brackfs adopt --repo /backup --key owner.key --signer 0123456789ABCDEF0123456789ABCDEF01234567")]
pub(super) struct Args {
    #[command(flatten)]
    reader: ReaderArgs,
    /// Wait so long for another run that writes, as in 90s, 10m or 1h30m
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Refuse unless the repository encrypts to exactly these certificates; may be repeated
    ///
    /// A file with an OpenPGP certificate, or a key of which the public part is used. For a new machine only.
    #[arg(short, long, value_name = "CERT")]
    recipient: Vec<PathBuf>,
    /// Print the result as a JSON object
    ///
    /// It has message_type adopted, and host_key (the fingerprint), new_host_key, recipients (fingerprints), generation,
    /// packs, snapshots, missing_packs.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let repository = Repository::open(&args.reader.repository.location)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let recipients = args.recipient.iter().map(|path| read_certificate(path)).collect::<Result<Vec<_>>>()?;
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let is_host = state.host_key()?.is_some();
    let lock = || state.lock(args.wait_lock, &stop, |holder| monitor.note(&waiting(holder)));
    let adopted = match is_host {
        true if !recipients.is_empty() => {
            let path = state.host_key_path();
            return Err(Usage(format!(
                "this machine has a host key for the repository ({}), which says who the recipients are; run adopt without --recipient",
                path.display()
            ))
            .into());
        }
        true => {
            let _lock = lock()?;
            let key = host_key(&state)?;
            let access = host_access(&key)?;
            let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
            adopt_with_host_key(&inventory, &state, key)?
        }
        false => {
            let reader = args.reader.open_trusting(FirstUse::Refused, global, &monitor, READ_ONCE)?;
            state.create()?;
            let _lock = lock()?;
            let access = reader.access();
            let inventory = Inventory { repository: &repository, access, monitor: &monitor, stop: &stop };
            adopt_with_owner_key(&inventory, &state, &recipients)?
        }
    };
    let found = &adopted.found;
    if args.json {
        say::result(json!({
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
        say::aside(format!("this machine is the writer of the repository now: {}", found.summary()));
        for recipient in &adopted.recipients {
            let user = recipient.user_id().map(|user| format!(" ({})", printable(&user))).unwrap_or_default();
            say::aside(format!("backups are encrypted to {}{user}", recipient.fingerprint()));
        }
        if adopted.recipients.is_empty() {
            say::aside("backups are not encrypted");
        }
        if !is_host {
            say::aside(format!("its new host key is {}; readers need it for --signer", adopted.host));
        }
    }
    Ok(ExitCode::SUCCESS)
}
