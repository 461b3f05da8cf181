//! `brackfs init`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::common::{Global, new_passphrase, parse_location, read_certificate};
use super::say;
use crate::init::{Made, Owner, init};
use crate::monitor::Monitor;

/// Make a repository, with this machine as the one that writes to it
///
/// With --recipient, it is encrypted to keys that exist. Without, a passphrase is asked for, a key is made, and
/// kept in the repository under the passphrase. Backups need neither; restores do. With --no-encryption whoever gets at
/// the repository reads the backups; they are signed all the same.
///
/// The machine gets a key of its own, the host key, which signs the backups and stays in the state directory. Its
/// fingerprint is shown: note it, since whoever restores elsewhere can tell by it that a snapshot is yours.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  brackfs init /backup --recipient owner.key.pub
  brackfs init /backup --recipient alice.asc --recipient escrow.asc
  brackfs init /backup                              asks for a passphrase
  brackfs init /backup --no-encryption              signed, but readable by everyone")]
pub(super) struct Args {
    /// Where to make it: a path that does not exist yet, or an empty directory
    ///
    /// A directory in which an earlier init was killed serves too. File systems without hard links (exFAT, a mount of rclone)
    /// or without a sync of directories (CIFS) will do; init says once what that means.
    #[arg(value_name = "REPO", env = "BRACKFS_REPOSITORY", value_hint = clap::ValueHint::DirPath)]
    #[arg(value_parser = parse_location)]
    repository: String,
    /// Encrypt to this certificate; may be repeated, and each of them alone can read then
    ///
    /// A file, armored or binary, with one OpenPGP certificate. Of a secret key's file the public part is used.
    #[arg(short, long, value_name = "CERT", conflicts_with = "no_encryption")]
    recipient: Vec<PathBuf>,
    /// Do not encrypt
    #[arg(long)]
    no_encryption: bool,
    /// Print the result as JSON
    ///
    /// One object with message_type initialized, and id, host_key, and recipients, an array of fingerprints.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<ExitCode> {
    let owner = match (args.no_encryption, args.recipient.as_slice()) {
        (true, _) => Owner::Unencrypted,
        (false, []) => Owner::Passphrase(new_passphrase("Passphrase for the new repository: ")?),
        (false, paths) => Owner::Recipients(paths.iter().map(|path| read_certificate(path)).collect::<Result<_>>()?),
    };
    let Made { id, host, recipients, shortcomings } = init(&args.repository, &global.state()?, owner)?;
    let monitor = global.monitor(args.json);
    shortcomings.iter().for_each(|why| monitor.note(&format!("{}: {why}", args.repository)));
    if args.json {
        let recipients: Vec<_> = recipients.iter().map(ToString::to_string).collect();
        let made = json!({
            "message_type": "initialized",
            "id": id.to_string(),
            "host_key": host.to_string(),
            "recipients": recipients,
        });
        say::result(made)?;
    } else if !global.quiet {
        say::result(format!("repository  {id} at {}", args.repository))?;
        say::result(format!("host key    {host}"))?;
        match recipients.is_empty() {
            true => say::result("recipients  none: it is not encrypted")?,
            false => {
                recipients.iter().try_for_each(|recipient| say::result(format!("recipient   {recipient}")))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
