//! Logins and keys, in files or as they are given.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::remote::Remote;
use crate::secret::{Patience, Secret};
use crate::sys::bounded::{SECRET, read_file};

/// How long a command may take that prints a secret: it may have to ask for a passphrase in a window.
const PATIENCE: Duration = Duration::from_secs(60);

/// The login for a server. It is then looked for nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A document in the form that the kind of target has for it, such as that of `~/.aws/credentials`.
    Document(Secret),
    /// The access key of an account of S3.
    AccessKey {
        /// Its id.
        id: Secret,
        /// The secret key.
        secret: Secret,
        /// The token of a session.
        token: Option<Secret>,
    },
    /// A user and a password.
    Password {
        /// The user; `None` for that of the location.
        user: Option<Secret>,
        /// The password.
        password: Secret,
    },
}

/// A document with logins or keys.
#[derive(Default)]
pub(super) struct Document {
    /// Its name in messages.
    pub(super) name: String,
    pub(super) text: String,
    /// Other users can read its file.
    pub(super) is_exposed: bool,
}

impl Credentials {
    /// The document in a file.
    pub fn in_file(file: impl Into<PathBuf>) -> Self {
        Credentials::Document(Secret::File(file.into()))
    }

    /// The file with the document.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Credentials::Document(secret) => secret.file(),
            Credentials::AccessKey { .. } | Credentials::Password { .. } => None,
        }
    }

    /// The user or the id of the key, which choose the account; `None` if a document has them.
    pub(super) fn account(&self) -> Option<&Secret> {
        match self {
            Credentials::Document(_) => None,
            Credentials::AccessKey { id, .. } => Some(id),
            Credentials::Password { user, .. } => user.as_ref(),
        }
    }

    /// The secrets that it consists of.
    pub fn secrets(&self) -> Vec<&Secret> {
        match self {
            Credentials::Document(secret) => vec![secret],
            Credentials::AccessKey { id, secret, token } => [id, secret].into_iter().chain(token).collect(),
            Credentials::Password { user, password } => user.iter().chain([password]).collect(),
        }
    }
}

impl Document {
    /// Reads the document that is given. For errors, see [`Secret::text`].
    pub(super) fn given(secret: &Secret, remote: &Remote) -> Result<Document, String> {
        if let Some(file) = secret.file() {
            return Ok(Document::in_file(&file, true)?.unwrap_or_default());
        }
        Ok(Document {
            name: secret.name(),
            text: secret.text(patience(&|| remote.interrupt.is_set()))?,
            is_exposed: false,
        })
    }

    /// Reads a file. `None` if it is missing, unless it is `required`. The error has nothing of its content.
    pub(super) fn in_file(file: &Path, required: bool) -> Result<Option<Document>, String> {
        let name = file.display().to_string();
        let failed = |why: String| format!("cannot read {name}: {why}");
        let found = match fs::metadata(file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !required => return Ok(None),
            found => found.map_err(|e| failed(e.to_string()))?,
        };
        if !found.is_file() {
            return Err(failed("it is not a file".to_owned()));
        }
        let bytes = read_file(file, SECRET).map_err(|e| failed(e.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))?;
        let is_exposed = found.permissions().mode() & 0o077 != 0;
        Ok(Some(Document { name, text, is_exposed }))
    }
}

/// Whether other users can read the file that has a secret.
pub(super) fn is_exposed(secret: &Secret) -> bool {
    secret.file().is_some_and(|file| fs::metadata(file).is_ok_and(|found| found.permissions().mode() & 0o077 != 0))
}

/// Reads a part of [`Remote::credentials`]. For errors, see [`Secret::line`].
pub(super) fn reveal(secret: &Secret, remote: &Remote) -> Result<String, String> {
    secret.line(patience(&|| remote.interrupt.is_set()))
}

/// Why credentials of one form do not fit a kind of target.
pub(super) const UNFIT: &str = "the credentials are those of another kind of target; see brackfs-targets(7)";

fn patience(is_interrupted: &dyn Fn() -> bool) -> Patience<'_> {
    Patience { time: PATIENCE, is_interrupted }
}
