//! `brackfs key`

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

use super::common::{Global, new_passphrase};
use super::say;
use crate::crypt::{Profile, Role, SecretKey};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make an owner's key: the secret key in FILE, its certificate in FILE.pub
    ///
    /// Keep FILE where backups are restored, and a copy of it in a safe place: without it nothing can be read.
    /// Give FILE.pub to the machines that are backed up. The key never expires. Files that are there are not overwritten.
    #[command(after_help = "\
Examples:
  brackfs key generate --output owner.key
  brackfs key generate --output owner.key --profile rfc4880     gpg 2.2 and 2.4 can read the backups")]
    Generate {
        /// Where the secret key goes; the certificate goes beside it, with .pub added
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// The standard that the key follows: rfc9580 (fast, authenticated) or rfc4880 (any gpg reads it)
        ///
        /// It decides how the repositories of the key are encrypted; see brackfs-security(7).
        #[arg(long, value_name = "PROFILE", default_value = "rfc9580")]
        profile: Profile,
        /// The name in the key
        #[arg(long, value_name = "NAME", default_value = "brackfs owner")]
        user_id: String,
        /// Do not protect the key with a passphrase
        #[arg(long)]
        no_passphrase: bool,
    },
}

pub(super) fn run(command: &KeyCommand, global: &Global) -> Result<ExitCode> {
    let KeyCommand::Generate { output, profile, user_id, no_passphrase } = command;
    let mut public = output.clone().into_os_string();
    public.push(".pub");
    let public = PathBuf::from(public);
    for path in [output, &public] {
        anyhow::ensure!(!path.exists(), "{} is there already; keys are never overwritten", path.display());
    }
    let passphrase = match no_passphrase {
        true => None,
        false => Some(new_passphrase("Passphrase for the new key: ")?),
    };
    let key = SecretKey::generate(*profile, user_id, Role::Owner, passphrase.as_ref())?;
    let certificate = key.certificate();
    write(output, 0o600, &key.to_armored()?)?;
    write(&public, 0o644, &certificate.to_armored()?)?;
    if !global.quiet {
        say::result(format!("secret key   {}", output.display()))?;
        say::result(format!("certificate  {}", public.display()))?;
        say::result(format!("fingerprint  {}", certificate.fingerprint()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
