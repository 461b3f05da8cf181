//! What can be wrong with a repository.

use crate::crypt::{self, Fingerprint};
use crate::format::{self, RepositoryId};
use crate::storage;

/// A repository that is not there, not ours, or not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no repository.
    #[error("no repository at {location}: {why}")]
    Missing {
        /// Where it was looked for.
        location: String,
        /// What is missing.
        why: String,
    },
    /// There is a repository where a new one should be made.
    #[error("there is a repository at {location} already ({id})")]
    Exists {
        /// Where it is.
        location: String,
        /// Which it is.
        id: RepositoryId,
    },
    /// A plain description does not parse.
    #[error("{object} of the repository at {location} is damaged: {why}")]
    Description {
        /// Where the repository is.
        location: String,
        /// The description, or its copy.
        object: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The description and its copy are both valid, and differ.
    #[error(
        "the descriptions of the repository at {location} disagree: {one}; {other}. Move the one that was changed out of the repository, and keep the other"
    )]
    Disagreement {
        /// Where the repository is.
        location: String,
        /// A description and what it says.
        one: String,
        /// The other one.
        other: String,
    },
    /// A format that this program does not know.
    #[error("the repository has format version {found}, and this program reads version {known} only; a newer brackfs may read it", known = format::VERSION)]
    Version {
        /// Its version.
        found: u32,
    },
    /// The target failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// OpenPGP failed on an object.
    #[error("{object}: {source}")]
    Crypt {
        /// The object.
        object: String,
        /// What failed.
        source: crypt::Error,
    },
    /// An object's bytes are not what they should be.
    #[error("{object}: {source}")]
    Format {
        /// The object.
        object: String,
        /// What is wrong.
        source: format::Error,
    },
    /// No key was given where one is needed.
    #[error(
        "{object} is encrypted, and there is no secret key to open it with; give one with --key or BRACKFS_KEY_FILE"
    )]
    NoKey {
        /// The object.
        object: String,
    },
    /// Signed by a key that this machine does not know.
    #[error(
        "{object} is signed by {signer}, whom this machine does not know; if you trust that key, give --signer {signer}"
    )]
    Stranger {
        /// The object.
        object: String,
        /// Who signed, as the signature says.
        signer: String,
    },
    /// Signed, but the signer's certificate is not in the repository.
    #[error(
        "the repository has no certificate of the host key {signer}: keys/host-{signer}.asc is missing or altered, and no document in secrets/ that this key opens has it. Compare the fingerprint; if it is right, the next backup of the host puts the file back"
    )]
    NoCertificate {
        /// Who should have signed.
        signer: Fingerprint,
    },
    /// A key file under the name of another key.
    #[error("{object} holds another key, {found}: somebody exchanged it")]
    OtherKey {
        /// The key file.
        object: String,
        /// The key in it.
        found: Fingerprint,
    },
}

impl Error {
    /// Whether an object is missing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Target(error) if error.kind == storage::ErrorKind::NotFound)
    }

    /// Whether it is the key or passphrase that is missing or wrong.
    pub fn is_key_problem(&self) -> bool {
        match self {
            Error::NoKey { .. } => true,
            Error::Crypt { source, .. } => source.is_key_problem(),
            _ => false,
        }
    }
}
