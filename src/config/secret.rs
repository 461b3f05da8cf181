//! Secrets, which are stored outside of the configuration.

use std::path::{Path, PathBuf};

use super::settings::Settings;

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// The first line of a file.
    File(PathBuf),
    /// The value of a variable of the environment.
    Variable(String),
    /// The first line that a command prints.
    Command(Vec<String>),
    /// A credential of the systemd unit: a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// Reads a secret: `{ file = … }`, `{ env = … }`, `{ command = […] }` or `{ credential = … }`.
pub(super) fn secret(settings: &mut Settings<'_>, key: &'static str) -> Option<Secret> {
    let place = settings.find(key)?.place.clone();
    let before = settings.mistakes();
    let found = settings.table(key, |settings| {
        let file = settings.text("file").map(|(path, place)| Secret::File(place.path(path)));
        let variable = settings.text("env").map(|(name, _)| Secret::Variable(name.to_owned()));
        let command = settings.command("command").map(Secret::Command);
        let credential = settings.parsed("credential", credential_name).map(Secret::Credential);
        [file, variable, command, credential].into_iter().flatten().collect::<Vec<_>>()
    })?;
    match <[Secret; 1]>::try_from(found) {
        Ok([secret]) => Some(secret),
        // A value of the wrong kind was reported already.
        Err(found) if found.is_empty() && settings.mistakes() > before => None,
        Err(_) => {
            settings.wrong(&place, key, "write one of file, env, command and credential");
            None
        }
    }
}

/// Where root keeps the credentials that the service gets.
pub const CREDENTIALS: &str = "/etc/brackfs/credentials";

/// The file with a credential: where systemd put it, or outside of a service where it takes it from.
pub fn credential_file(name: &str) -> PathBuf {
    let given = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    given.as_deref().unwrap_or(Path::new(CREDENTIALS)).join(name)
}

/// A credential is a file name.
fn credential_name(name: &str) -> Result<String, String> {
    match name.is_empty() || name.contains('/') || name.starts_with('.') {
        true => Err(format!("{name:?} is not the name of a credential")),
        false => Ok(name.to_owned()),
    }
}
