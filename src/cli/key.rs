//! `brackfs key`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;

use super::global::Global;
use super::output;
use super::passphrase::new_passphrase;
use crate::crypt::{KeyPurpose, Profile, SecretKey};
use crate::sys::durable::{IfExists, write_file};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make an owner's key: the secret key in FILE, its certificate in FILE.pub
    ///
    /// Keep FILE on the machine where you restore, and a copy of it in a safe place: without it, no backup can be read. Copy
    /// FILE.pub to the machines that are backed up. The key never expires. Existing files are not overwritten.
    #[command(after_help = "\
Examples:
  brackfs key generate --output owner.key
  brackfs key generate --output owner.key --profile rfc4880     # gpg 2.2 and 2.4 can read the backups")]
    Generate {
        /// Write the secret key to FILE, and the certificate to FILE.pub
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Follow this standard: rfc9580 (fast, authenticated) or rfc4880 (readable by any gpg)
        ///
        /// The standard also decides how repositories for the key are encrypted; see brackfs-security(7).
        #[arg(long, value_name = "PROFILE", default_value = "rfc9580")]
        profile: Profile,
        /// Set the user ID of the key [default: brackfs owner, this machine's host name, and the date]
        #[arg(long, value_name = "NAME")]
        user_id: Option<String>,
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
        anyhow::ensure!(
            !path.exists(),
            "cannot write {}: it exists already, and keys are never overwritten; choose another name",
            path.display()
        );
    }
    let passphrase = if *no_passphrase { None } else { Some(new_passphrase("Passphrase for the new key: ")?) };
    let user_id = user_id.clone().unwrap_or_else(owner_id);
    let key = SecretKey::generate(*profile, &user_id, KeyPurpose::Owner, passphrase.as_ref())?;
    let certificate = key.certificate();
    write(output, 0o600, &key.to_armored()?)?;
    write(&public, 0o644, &certificate.to_armored()?)?;
    if !global.quiet {
        output::result(format!("secret key   {}", output.display()))?;
        output::result(format!("certificate  {}", public.display()))?;
        output::result(format!("fingerprint  {}", certificate.fingerprint()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The user id of an owner's key, which tells keys apart.
pub(super) fn owner_id() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d");
    format!("brackfs owner {host} {date}")
}

fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    write_file(path, bytes, mode, IfExists::Fail).with_context(|| format!("cannot write {}", path.display()))
}
