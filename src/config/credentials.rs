//! The login for the server of a target: `credentials`.

use super::secret::{one_of, secret};
use super::settings::Settings;
use super::value::Kind;
use crate::secret::Secret;
use crate::storage::{Credentials, LocationKind};

const KEY: &str = "credentials";

/// Reads `credentials`: the file with the login, a secret with what such a file has, or the parts of a login, which depend on
/// the kind of target. The kind is `None` if that is a mistake already.
pub(super) fn credentials(settings: &mut Settings<'_>, kind: Option<&LocationKind>) -> Option<Credentials> {
    let value = settings.find(KEY)?;
    if !matches!(value.kind, Kind::Table(_)) {
        return settings.text(KEY).map(|(path, place)| Credentials::in_file(place.path(path)));
    }
    let kind = kind?;
    let before = settings.mistakes();
    let (mut documents, login) = settings.table(KEY, |settings| {
        let documents = one_of(settings);
        let login = match kind {
            LocationKind::S3(_) => access_key(settings),
            LocationKind::Webdav(_) | LocationKind::Ftp(_) => password(settings),
            _ => None,
        };
        (documents, login)
    })?;
    match (documents.pop(), login) {
        (None, Some(login)) => Some(login),
        (Some(document), None) if documents.is_empty() => Some(Credentials::Document(document)),
        // Reported already.
        (None, None) if settings.mistakes() > before => None,
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

/// A name, as text or where it is.
fn name(settings: &mut Settings<'_>, key: &'static str) -> Option<Secret> {
    match settings.find(key)?.kind {
        Kind::Text(_) => settings.text(key).map(|(name, _)| Secret::Here(name.to_owned())),
        _ => secret(settings, key),
    }
}
