//! The login for the server of a target: `credentials`.

use super::secret::{one_of, secret};
use super::settings::Settings;
use super::value::Kind;
use crate::secret::Secret;
use crate::storage::{Credentials, LocationKind};

const KEY: &str = "credentials";
/// The parts of a login.
const PARTS: [&str; 5] = ["access-key", "secret-key", "session-token", "user", "password"];

/// Reads `credentials`: the file with the login, a secret with what such a file has, or the parts of a login, which depend on
/// the kind of target. The kind is `None` if that is a mistake already.
pub(super) fn credentials(settings: &mut Settings<'_>, kind: Option<&LocationKind>) -> Option<Credentials> {
    let value = settings.find(KEY)?;
    if !matches!(value.kind, Kind::Table(_)) {
        return settings.text(KEY).map(|(path, place)| Credentials::in_file(place.path(path)));
    }
    let kind = kind?;
    let before = settings.mistakes();
    let (mut documents, login, has_parts) = settings.table(KEY, |settings| {
        let documents = one_of(settings);
        let login = match kind {
            LocationKind::S3(_) => access_key(settings),
            LocationKind::Webdav(_) | LocationKind::Ftp(_) => password(settings),
            _ => None,
        };
        (documents, login, !settings.nearest(&PARTS).is_empty())
    })?;
    match (documents.pop(), login) {
        // Reported already.
        _ if settings.mistakes() > before => None,
        (None, Some(login)) => Some(login),
        (Some(document), None) if documents.is_empty() && !has_parts => Some(Credentials::Document(document)),
        _ => {
            let or = match kind {
                LocationKind::S3(_) => ", or access-key and secret-key",
                LocationKind::Webdav(_) | LocationKind::Ftp(_) => ", or user and password",
                _ => "",
            };
            settings.wrong(&value.place, KEY, format!("write one of file, env, command and credential{or}"));
            None
        }
    }
}

fn access_key(settings: &mut Settings<'_>) -> Option<Credentials> {
    let id = name(settings, "access-key");
    let [secret, token] = ["secret-key", "session-token"].map(|key| secret(settings, key));
    Some(Credentials::AccessKey { id: id?, secret: secret?, token })
}

fn password(settings: &mut Settings<'_>) -> Option<Credentials> {
    let user = name(settings, "user");
    Some(Credentials::Password { user, password: secret(settings, "password")? })
}

/// A name: a text, or a secret.
fn name(settings: &mut Settings<'_>, key: &'static str) -> Option<Secret> {
    let value = settings.find(key)?;
    match &value.kind {
        Kind::Text(name) if !name.is_empty() => Some(Secret::Plain(name.clone())),
        Kind::Table(_) => secret(settings, key),
        _ => {
            settings.wrong(&value.place, key, "write a string in quotes, or a table such as { file = \"PATH\" }");
            None
        }
    }
}
