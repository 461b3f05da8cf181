//! Errors of repositories.

use crate::crypt::{self, Fingerprint};
use crate::failure::{Failure, FailureKind};
use crate::format::{self, RepositoryId};
use crate::storage;

/// An error of a repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no repository at the location.
    #[error("no repository at {location}: {why}; `brackfs init {location}` makes one{}", if *is_there { ", if it is empty" } else { "" })]
    Missing {
        /// The location as it was given.
        location: String,
        /// The reason.
        why: String,
        /// Whether there is a place for one.
        is_there: bool,
    },
    /// A new repository cannot be created, because there is one already.
    #[error("cannot create a repository at {location}: repository {id} already exists there")]
    Exists {
        /// The location as it was given.
        location: String,
        /// The id of the existing repository.
        id: RepositoryId,
    },
    /// A description cannot be parsed.
    #[error("{object} of the repository at {location} is damaged: {why}")]
    Description {
        /// The location of the repository.
        location: String,
        /// The name of the description or of its copy.
        object: &'static str,
        /// The reason.
        why: String,
    },
    /// The description and its copy are both valid but differ.
    #[error(
        "the descriptions of the repository at {location} disagree ({one}; {other}); move the changed one out of the \
         repository and keep the other"
    )]
    Disagreement {
        /// The location of the repository.
        location: String,
        /// The name of a description and its content.
        one: String,
        /// The same of the other description.
        other: String,
    },
    /// The format version is not supported.
    #[error(
        "cannot read format version {found} of the repository: this brackfs supports only version {known}; use a newer \
         brackfs",
        known = format::VERSION
    )]
    Version {
        /// The repository's format version.
        found: u32,
    },
    /// The target failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// An object cannot be opened or verified.
    #[error("{object}: {source}")]
    Crypt {
        /// The object's name.
        object: String,
        /// The error of OpenPGP.
        source: crypt::Error,
    },
    /// An object cannot be decoded.
    #[error("{object}: {source}")]
    Format {
        /// The object's name.
        object: String,
        /// The error of decoding.
        source: format::Error,
    },
    /// A secret key is needed, but none was given.
    #[error("cannot open {object}: it is encrypted, and no secret key was given; use --key or BRACKFS_KEY_FILE")]
    NoKey {
        /// The object's name.
        object: String,
    },
    /// An object is signed by an unknown key.
    #[error("{object} is signed by the unknown key {signer}; if you trust this key, give it with --signer")]
    UnknownSigner {
        /// The object's name.
        object: String,
        /// The fingerprint or key id that the signature claims.
        signer: String,
    },
    /// The certificate of a trusted host key is not in the repository.
    #[error(
        "cannot find the certificate of the host key {signer}: keys/host-{signer}.asc is missing or changed, and no \
         document in secrets/ that this key opens has it. Check the fingerprint; if it is correct, the next backup of \
         the host restores the file"
    )]
    NoCertificate {
        /// The fingerprint of the host key.
        signer: Fingerprint,
    },
    /// A key file contains another key than the one that it is named after.
    #[error("{object} contains another key, {found}: the file was replaced")]
    OtherKey {
        /// The name of the key file.
        object: String,
        /// The fingerprint of the key in it.
        found: Fingerprint,
    },
}

impl Error {
    /// Whether an object is missing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Target(error) if error.kind == storage::ErrorKind::NotFound)
    }

    /// Whether the bytes of an object are missing or cannot be returned, although the target is there.
    pub fn is_lost(&self) -> bool {
        use storage::ErrorKind::{Damaged, NotAFile, NotFound, Truncated};
        matches!(self, Error::Target(error) if matches!(error.kind, NotFound | NotAFile | Truncated | Damaged))
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Missing { .. } => FailureKind::NoRepository,
            Error::NoKey { .. } => FailureKind::Key,
            Error::Crypt { source, .. } => source.kind(),
            Error::Target(error) => error.kind(),
            _ => FailureKind::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::ErrorKind;

    #[test]
    fn errors_of_the_target_do_not_mean_that_an_object_is_lost() {
        for (kind, is_lost) in [
            (ErrorKind::NotFound, true),
            (ErrorKind::NotAFile, true),
            (ErrorKind::Truncated, true),
            (ErrorKind::Damaged, true),
            (ErrorKind::PermissionDenied, false),
            (ErrorKind::Unavailable, false),
            (ErrorKind::Throttled, false),
            (ErrorKind::Other, false),
        ] {
            assert_eq!(Error::from(storage::Error::new(kind, "read", "packs/x", "")).is_lost(), is_lost, "{kind:?}");
        }
    }
}
