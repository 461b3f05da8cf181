//! Where secrets are, which do not belong in the configuration.

use super::settings::Settings;
use super::value::Kind;
use crate::secret::Secret;

/// Reads a secret: `{ file = … }`, `{ env = … }`, `{ command = […] }` or `{ credential = … }`.
pub(super) fn secret(settings: &mut Settings<'_>, key: &'static str) -> Option<Secret> {
    let value = settings.find(key)?;
    if let Kind::Text(_) = value.kind {
        let why = "secrets do not belong in this file; write where it is, such as { file = \"PATH\" }";
        settings.wrong(&value.place, key, why);
        return None;
    }
    let before = settings.mistakes();
    let found = settings.table(key, one_of)?;
    match <[Secret; 1]>::try_from(found) {
        Ok([secret]) => Some(secret),
        // A value of the wrong kind was reported already.
        Err(found) if found.is_empty() && settings.mistakes() > before => None,
        Err(_) => {
            settings.wrong(&value.place, key, "write one of file, env, command and credential");
            None
        }
    }
}

/// Reads the keys that say where a secret is.
pub(super) fn one_of(settings: &mut Settings<'_>) -> Vec<Secret> {
    let file = settings.text("file").map(|(path, place)| Secret::File(place.path(path)));
    let variable = settings.text("env").map(|(name, _)| Secret::Variable(name.to_owned()));
    let command = settings.command("command").map(Secret::Command);
    let credential = settings.parsed("credential", credential_name).map(Secret::Credential);
    [file, variable, command, credential].into_iter().flatten().collect()
}

/// A credential is a file name.
fn credential_name(name: &str) -> Result<String, String> {
    match name.is_empty() || name.contains('/') || name.starts_with('.') {
        true => Err(format!("{name:?} is not the name of a credential")),
        false => Ok(name.to_owned()),
    }
}
