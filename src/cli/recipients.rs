//! `brackfs recipients`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::catalog::waiting;
use super::common::{Global, RepositoryArg, read_certificate, stop_on_signals};
use super::say;
use super::show::{parse_duration, rfc3339_of};
use crate::catalog::Catalog;
use crate::crypt::Certificate;
use crate::inventory::{Inventory, host_access, host_key};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::state::RepositoryState;

#[derive(Debug, clap::Subcommand)]
pub(super) enum RecipientsCommand {
    List(ListArgs),
    Update(UpdateArgs),
}

/// List the certificates that backups are encrypted to
///
/// On the machine that is backed up. One line per recipient: the fingerprint, until when its certificate can be used, and
/// its user ID. If nothing can be encrypted to it now, the reason follows, and the exit code is 1: backups fail then.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs recipients list --repo /backup")]
pub(super) struct ListArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    /// Print one JSON object per recipient
    ///
    /// It has message_type recipient, and fingerprint, user_id (or null), expires (a time, or null), and problem (why
    /// nothing can be encrypted to it, or null).
    #[arg(long)]
    json: bool,
}

/// Take the renewed certificate of a recipient
///
/// On the machine that is backed up; no secret key is needed. CERT must have the same primary key as a recipient's
/// certificate; what is new in it (a later end, another encryption key, a revocation) is added to the known certificate,
/// and the next backup uses it. Older backups stay as they are.
///
/// A certificate with an expiry date has to be renewed before that date, or backups fail; backup warns from 30 days before.
/// In gpg: gpg --quick-set-expire FINGERPRINT 2y; the same again with '*' at its end, which renews the subkeys (if they have
/// expired, with their fingerprints instead of '*'); then gpg --export FINGERPRINT > CERT.
///
/// Recipients cannot be added or removed yet; that takes a new repository.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs recipients update owner.asc --repo /backup")]
pub(super) struct UpdateArgs {
    /// The renewed certificate: a file, armored or binary; of a secret key's file the public part is used
    #[arg(value_name = "CERT", required = true)]
    certificates: Vec<PathBuf>,
    #[command(flatten)]
    repository: RepositoryArg,
    /// Wait so long for another run that writes, as in 90s, 10m or 1h30m
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Print one JSON object per certificate
    ///
    /// It has message_type updated, and fingerprint, expires (a time, or null), and changed (whether anything in it was
    /// new).
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &RecipientsCommand, global: &Global) -> Result<ExitCode> {
    match command {
        RecipientsCommand::List(args) => list(args, global),
        RecipientsCommand::Update(args) => update(args, global),
    }
}

fn list(args: &ListArgs, global: &Global) -> Result<ExitCode> {
    let repository = Repository::open(&args.repository.location)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let catalog = Catalog::view(&state.catalog_path(), repository.id())?;
    let mut is_fit = true;
    for recipient in &catalog.trust().recipients {
        let (fingerprint, problem) = (recipient.fingerprint().to_string(), recipient.check_recipient().err());
        is_fit &= problem.is_none();
        let problem = problem.map(|problem| problem.to_string());
        if args.json {
            say::result(json!({
                "message_type": "recipient",
                "fingerprint": fingerprint,
                "user_id": recipient.user_id(),
                "expires": recipient.expiry().map(rfc3339_of),
                "problem": problem,
            }))?;
        } else {
            let user_id = recipient.user_id().unwrap_or_default();
            say::result(format!("{fingerprint}  {}  {user_id}", until(recipient)).trim_end())?;
            if let Some(problem) = problem {
                say::aside(format!("brackfs: {problem}"));
            }
        }
    }
    if catalog.trust().recipients.is_empty() && !args.json && !global.quiet {
        say::aside("the repository is not encrypted, so it has no recipients");
    }
    Ok(if is_fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn update(args: &UpdateArgs, global: &Global) -> Result<ExitCode> {
    let certificates: Vec<_> = args.certificates.iter().map(|path| read_certificate(path)).collect::<Result<_>>()?;
    let repository = Repository::open(&args.repository.location)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let key = host_key(&state)?;
    let _lock = state.lock(args.wait_lock, &stop, |holder| monitor.note(&waiting(holder)))?;
    let access = host_access(&key)?;
    let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
    let mut catalog = Catalog::open(&state.catalog_path(), repository.id())?;
    for renewed in inventory.renew(&mut catalog, key, &certificates)? {
        let fingerprint = renewed.certificate.fingerprint();
        if args.json {
            say::result(json!({
                "message_type": "updated",
                "fingerprint": fingerprint.to_string(),
                "expires": renewed.certificate.expiry().map(rfc3339_of),
                "changed": renewed.changed,
            }))?;
        } else if !global.quiet {
            let what = if renewed.changed { "renewed" } else { "nothing new" };
            say::aside(format!("{fingerprint}: {what}; {}", until(&renewed.certificate)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Until when a certificate can be used.
fn until(certificate: &Certificate) -> String {
    match (certificate.check_recipient(), certificate.expiry()) {
        (Err(_), _) => "cannot be used".to_owned(),
        (Ok(()), None) => "does not expire".to_owned(),
        (Ok(()), Some(end)) => format!("expires {}", rfc3339_of(end)),
    }
}
