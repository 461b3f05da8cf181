//! `brackfs recipients`

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::exit;
use super::global::Global;
use super::output;
use super::repository_arg::RepositoryArg;
use super::show::{printable, rfc3339_of};
use super::signals::stop_on_signals;
use crate::catalog::Catalog;
use crate::crypt::{self, Certificate};
use crate::inventory::{Inventory, host_access, host_key};
use crate::quantity::parse_duration;
use crate::session::{self, LockWait, Priority};
use crate::state::RepositoryState;
use crate::sys::bounded::{KEYS, read_file};

#[derive(Debug, clap::Subcommand)]
pub(super) enum RecipientsCommand {
    List(ListArgs),
    Update(UpdateArgs),
}

/// List the certificates that backups are encrypted to
///
/// Runs on the machine that is backed up. Each line has the fingerprint of a recipient, the expiry of its certificate, and
/// its user ID. If a certificate cannot be used to encrypt now, the reason follows, the exit code is 1, and backups fail
/// until it is renewed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs recipients list --repo /backup")]
pub(super) struct ListArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    /// Print one JSON object per recipient
    ///
    /// It has message_type recipient, and fingerprint, user_id (or null), expires (a time, or null), and problem (the reason
    /// why nothing can be encrypted to it, or null).
    #[arg(long)]
    json: bool,
}

/// Update a recipient's certificate with a renewed one
///
/// Runs on the machine that is backed up; no secret key is needed. CERT must have the same primary key as the certificate of
/// a recipient. Its additions (a later expiry, another encryption key, a revocation) are merged into the known certificate
/// and used from the next backup on. Older backups do not change.
///
/// A certificate must be renewed before it expires, or backups fail. `backup` starts to warn 30 days before. With gpg: run
/// gpg --quick-set-expire FINGERPRINT 2y, then the same with '*' at the end to renew the subkeys (if they have expired, with
/// their fingerprints instead of '*'), then gpg --export FINGERPRINT > CERT.
///
/// Recipients cannot be added or removed yet; that needs a new repository.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs recipients update owner.asc --repo /backup")]
pub(super) struct UpdateArgs {
    /// Read the renewed certificate from the file CERT, armored or binary; of a secret key, the public part is used
    #[arg(value_name = "CERT", required = true)]
    certificates: Vec<PathBuf>,
    #[command(flatten)]
    repository: RepositoryArg,
    /// If another run is writing to the repository, wait up to DURATION, then exit with code 11
    ///
    /// DURATION is a number of seconds, or one with ms, s, m, h, d or w, such as 90s, 10m or 1h30m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    wait_lock: Duration,
    /// Print one JSON object per certificate
    ///
    /// It has message_type updated, and fingerprint, expires (a time, or null), and changed (whether CERT had additions).
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
    let repository = args.repository.open(global)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let view = Catalog::view(&state.catalog_path(), repository.id())?;
    let recipients = view.read(|catalog| anyhow::Ok(catalog.trust().recipients.clone()))?;
    let mut unfit = 0;
    for recipient in &recipients {
        let (fingerprint, problem) = (recipient.fingerprint().to_string(), recipient.check_recipient().err());
        unfit += u64::from(problem.is_some());
        let problem = problem.map(|problem| problem.to_string());
        if args.json {
            output::object(&json!({
                "message_type": "recipient",
                "fingerprint": fingerprint,
                "user_id": recipient.user_id(),
                "expires": recipient.expiry().map(rfc3339_of),
                "problem": problem,
            }))?;
        } else {
            let user_id = recipient.user_id().unwrap_or_default();
            output::result(printable(format!("{fingerprint}  {}  {user_id}", until(recipient)).trim_end()))?;
            if let Some(problem) = problem {
                output::error(format!("brackfs: {problem}"));
            }
        }
    }
    if recipients.is_empty() && !args.json && !global.quiet {
        output::message("the repository is not encrypted, so it has no recipients");
    }
    exit::of_problems(unfit)
}

fn update(args: &UpdateArgs, global: &Global) -> Result<ExitCode> {
    let certificates: Vec<_> = args.certificates.iter().map(|path| read_certificate(path)).collect::<Result<_>>()?;
    let repository = args.repository.open(global)?;
    let state = RepositoryState::new(&global.state()?, repository.id());
    let (monitor, stop) = (global.monitor(args.json), stop_on_signals()?);
    let key = host_key(&state)?;
    let lock = session::lock(&state, LockWait::option(args.wait_lock), Priority::Normal, &monitor, &stop)?;
    let access = host_access(&key)?;
    let inventory = Inventory { repository: &repository, access: &access, monitor: &monitor, stop: &stop };
    let mut catalog = Catalog::open(&state.catalog_path(), repository.id())?;
    for renewed in inventory.renew(&mut catalog, &lock, key, &certificates)? {
        let fingerprint = renewed.certificate.fingerprint();
        if args.json {
            output::object(&json!({
                "message_type": "updated",
                "fingerprint": fingerprint.to_string(),
                "expires": renewed.certificate.expiry().map(rfc3339_of),
                "changed": renewed.changed,
            }))?;
        } else if !global.quiet {
            let what = if renewed.changed { "renewed" } else { "nothing new" };
            output::message(format!("{fingerprint}: {what}; {}", until(&renewed.certificate)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The validity of a certificate in words.
fn until(certificate: &Certificate) -> String {
    match (certificate.check_recipient(), certificate.expiry()) {
        (Err(_), _) => "cannot be used".to_owned(),
        (Ok(()), None) => "does not expire".to_owned(),
        (Ok(()), Some(end)) => format!("expires {}", rfc3339_of(end)),
    }
}

/// Reads a certificate, or the public part of a key, from a file.
pub(super) fn read_certificate(path: &Path) -> Result<Certificate> {
    let shown = path.display();
    let bytes = read_file(path, KEYS).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "cannot read the certificate {shown}: there is no such file; to get it from gpg: gpg --export {shown} > FILE"
        ),
        _ => anyhow::Error::new(error).context(format!("cannot read the certificate {shown}")),
    })?;
    Certificate::parse(&bytes).map_err(|error| match error {
        crypt::Error::NotAKey { .. } => anyhow::anyhow!(
            "cannot use the certificate {shown}: it holds no OpenPGP certificate; give a file such as owner.key.pub"
        ),
        error => anyhow::Error::new(error).context(format!("cannot use the certificate {shown}")),
    })
}
