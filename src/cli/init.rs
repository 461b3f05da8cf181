//! `brackfs init`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::global::Global;
use super::key::owner_id;
use super::output;
use super::passphrase::new_passphrase;
use super::recipients::read_certificate;
use super::repository_arg::{LocationParser, TargetArgs, target_called};
use crate::init::{Made, Owner, init};
use crate::job::Journal;
use crate::monitor::Monitor;
use crate::state::RepositoryState;
use crate::storage::Location;

/// Make a repository that this machine writes to
///
/// With --recipient, backups are encrypted to the given certificates. With --no-encryption, they are only signed, and
/// anyone who can read the repository can read them. With neither option, init asks for a passphrase, makes a key,
/// locks it with the passphrase, and stores it in the repository. Backups need no secret key and no passphrase.
/// Restores of encrypted backups need the key.
///
/// init also makes a key for this machine, the host key, which signs the backups and stays in the state directory. Its
/// fingerprint is printed. Write it down: on another machine, it proves that a snapshot is yours.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs init /backup --recipient owner.key.pub
  brackfs init /backup --recipient alice.asc --recipient escrow.asc
  brackfs init /backup                              # asks for a passphrase
  brackfs init sftp://me@host/srv/backup -r owner.key.pub
  brackfs init ftps://me@host/backup -r owner.key.pub
  brackfs init s3://bucket/prefix -r owner.key.pub
  brackfs init swift://container/prefix -r owner.key.pub
  brackfs init webdavs://host/folder -r owner.key.pub
  brackfs init rclone:b2:bucket/prefix -r owner.key.pub
  brackfs init /backup --no-encryption              # signed, but not encrypted")]
pub(super) struct Args {
    /// Make the repository in REPO, which must be an empty directory or not exist yet (lost+found does not count)
    ///
    /// REPO is a directory on this machine, a directory on a server (sftp://USER@HOST/PATH, ftps://USER@HOST/PATH,
    /// webdavs://HOST/PATH), a prefix in an existing bucket or container (s3://BUCKET/PREFIX, swift://CONTAINER/PREFIX), or a
    /// directory on a remote of rclone (rclone:REMOTE:PATH). See brackfs-targets(7).
    ///
    /// REPO may also be the name of a target in the configuration, or @NAME; see brackfs-config(5).
    ///
    /// A directory that an interrupted init left is accepted too. File systems that lack hard links (exFAT, a mount of
    /// rclone) or cannot sync directories (CIFS) work too; init prints which guarantees they do not give.
    #[arg(
        value_name = "REPO",
        env = "BRACKFS_REPOSITORY",
        hide_env_values = true,
        value_hint = clap::ValueHint::DirPath,
        value_parser = LocationParser
    )]
    repository: Location,
    #[command(flatten)]
    target: TargetArgs,
    /// Encrypt to this certificate (repeatable); the key of any recipient can decrypt
    ///
    /// CERT is a file, armored or binary, with one OpenPGP certificate or secret key; only the public part of a key is used.
    #[arg(short, long, value_name = "CERT", conflicts_with = "no_encryption")]
    recipient: Vec<PathBuf>,
    /// Do not encrypt
    #[arg(long)]
    no_encryption: bool,
    /// Print the result as a JSON object
    ///
    /// It has message_type initialized, and id, host_key, and recipients, an array of fingerprints.
    #[arg(long)]
    json: bool,
}

/// Deletes the records of a target, which are about its former repository.
pub(super) fn forget_former(state: &Path, target: &str, monitor: &dyn Monitor) {
    let forgotten = Journal::open(state).and_then(|journal| journal.forget_target(target));
    forgotten.unwrap_or_else(|error| monitor.note(&error.to_string()));
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let owner = match (args.no_encryption, args.recipient.as_slice()) {
        (true, _) => Owner::Unencrypted,
        (false, []) => Owner::Passphrase {
            passphrase: new_passphrase("Passphrase for the new repository: ")?,
            user_id: owner_id(),
        },
        (false, paths) => Owner::Recipients(paths.iter().map(|path| read_certificate(path)).collect::<Result<_>>()?),
    };
    let target = target_called(&args.repository, global)?;
    let given = target.as_ref().map_or(&args.repository, |target| &target.location);
    let location = args.target.locate(given, global);
    let state = global.state()?;
    let Made { id, host, recipients, shortcomings } = init(&location, &state, owner)?;
    RepositoryState::forget_looks(&state, &location.identity());
    let monitor = global.monitor(args.json);
    if let Some(target) = &target {
        forget_former(&state, &target.name, &monitor);
    }
    shortcomings.iter().for_each(|why| monitor.note(&format!("{location}: {why}")));
    if args.json {
        let recipients: Vec<_> = recipients.iter().map(ToString::to_string).collect();
        let made = json!({
            "message_type": "initialized",
            "id": id.to_string(),
            "host_key": host.to_string(),
            "recipients": recipients,
        });
        output::object(&made)?;
    } else if !global.quiet {
        output::result(format!("repository  {id} at {location}"))?;
        output::result(format!("host key    {host}"))?;
        if recipients.is_empty() {
            output::result("recipients  none: it is not encrypted")?;
        }
        recipients.iter().try_for_each(|recipient| output::result(format!("recipient   {recipient}")))?;
    }
    Ok(ExitCode::SUCCESS)
}
