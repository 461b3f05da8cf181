//! Passphrases: from the environment, or asked for at the terminal.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Result;

use super::exit::NoSecret;
use crate::crypt::Passphrase;

/// The passphrase of an existing key.
pub(super) fn passphrase(prompt: &str) -> Result<Passphrase> {
    match from_environment()? {
        Some(passphrase) => Ok(passphrase),
        None => ask(prompt).map(Passphrase::from),
    }
}

/// The passphrase of a new key. At the terminal it is asked for twice.
pub(super) fn new_passphrase(prompt: &str) -> Result<Passphrase> {
    if let Some(passphrase) = from_environment()? {
        return Ok(passphrase);
    }
    let first = ask(prompt)?;
    if first.is_empty() {
        return Err(NoSecret("the passphrase is empty; an empty passphrase protects nothing".into()).into());
    }
    if ask("Repeat the passphrase: ")? != first {
        return Err(NoSecret("the two passphrases differ".into()).into());
    }
    Ok(Passphrase::from(first))
}

fn ask(prompt: &str) -> Result<String> {
    let missing = "cannot ask for the passphrase: there is no terminal; set BRACKFS_PASSPHRASE, \
                   BRACKFS_PASSPHRASE_FILE or BRACKFS_PASSPHRASE_COMMAND";
    rpassword::prompt_password(prompt).map_err(|_| NoSecret(missing.into()).into())
}

/// The first variable that is set and not empty decides.
fn from_environment() -> Result<Option<Passphrase>> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(value) = variable("BRACKFS_PASSPHRASE") {
        return from_bytes(value.into_encoded_bytes(), "BRACKFS_PASSPHRASE").map(Some);
    }
    if let Some(path) = variable("BRACKFS_PASSPHRASE_FILE") {
        let path = PathBuf::from(path);
        let bytes = std::fs::read(&path)
            .map_err(|e| NoSecret(format!("BRACKFS_PASSPHRASE_FILE: cannot read {}: {e}", path.display())))?;
        return from_bytes(bytes, "BRACKFS_PASSPHRASE_FILE").map(Some);
    }
    if let Some(command) = variable("BRACKFS_PASSPHRASE_COMMAND") {
        return from_command(&command).map(Some);
    }
    Ok(None)
}

fn from_command(command: &OsString) -> Result<Passphrase> {
    let name = "BRACKFS_PASSPHRASE_COMMAND";
    let output = Command::new("sh")
        .arg("-c")
        .arg(command)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| NoSecret(format!("{name}: cannot run sh: {e}")))?;
    if !output.status.success() {
        return Err(NoSecret(format!("{name} failed ({})", output.status)).into());
    }
    from_bytes(output.stdout, name)
}

/// Newlines at the end do not belong to the passphrase.
fn from_bytes(bytes: Vec<u8>, variable: &str) -> Result<Passphrase> {
    let text = String::from_utf8(bytes).map_err(|_| NoSecret(format!("the value of {variable} is not UTF-8")))?;
    Ok(Passphrase::from(text.trim_end_matches(['\n', '\r']).to_owned()))
}
