//! Errors of the inventory.

use std::path::PathBuf;

use crate::crypt::Fingerprint;
use crate::failure::{Failure, FailureKind};
use crate::{catalog, crypt, repository, state, storage};

/// Catalog and repository could not be compared or brought into agreement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object of the repository could not be read or written.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The catalog could not be read or written.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The state directory failed, or another run holds the lock.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The storage failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// A key is unusable.
    #[error(transparent)]
    Crypt(#[from] crypt::Error),
    /// This machine has no host key, so it cannot write to the repository.
    #[error(
        "this machine cannot write to the repository: it has no host key ({path} is missing). Use the machine that made the repository, or make this one its writer with `brackfs adopt`"
    )]
    NoHostKey {
        /// The expected path of the host key.
        path: PathBuf,
    },
    /// This machine's host key cannot be used.
    #[error(
        "cannot use the host key {path}: {source}. Restore the file from a copy, or move it away and make this machine the writer again with `brackfs adopt`"
    )]
    BadHostKey {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        source: crypt::Error,
    },
    /// Another catalog is the repository's writer.
    #[error(
        "another machine or state directory is the writer of this repository (generation {found}, this catalog knows {known}); nothing was written. To make this machine the writer instead, run `brackfs adopt`"
    )]
    OtherWriter {
        /// The last generation in the repository.
        found: u64,
        /// The last generation of this catalog.
        known: u64,
    },
    /// All generation numbers are in use. Only objects that brackfs did not write can cause this.
    #[error("cannot begin a run: {folder} has no free number; remove the objects there that brackfs did not write")]
    NoNumber {
        /// The folder of generations.
        folder: &'static str,
    },
    /// A machine of a kind that this version does not know wrote to the repository.
    #[error(
        "{object} is the record of a run with the role {role}, which this brackfs does not know; nothing was written. Use the version of brackfs that made it, or a newer one"
    )]
    UnknownRole {
        /// The name of the generation.
        object: String,
        /// The number of the role.
        role: u64,
    },
    /// Generations are unchanged, but all packs are missing.
    #[error(
        "none of the packs in the catalog were found: is the disk at packs/ not mounted? Nothing was changed. If the packs are lost, run `brackfs catalog rebuild`; the next backup then stores everything again"
    )]
    NoPacks,
    /// The host key opens no trusted secrets document.
    #[error(
        "cannot build the catalog: no document in secrets/ can be opened with this machine's host key and is signed by it{why}"
    )]
    NoSecrets {
        /// The error of one of the documents, in parentheses, or empty if there are none.
        why: String,
    },
    /// The certificate of a key that is not a recipient.
    #[error(
        "{found} is not a recipient of this repository (see `brackfs recipients list`), and recipients cannot be added \
         yet; to encrypt to another key, make a new repository"
    )]
    NoRecipient {
        /// The certificate's fingerprint.
        found: Fingerprint,
    },
    /// The operating system returned no random bytes.
    #[error("cannot get random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The stop flag was set.
    #[error("interrupted; the findings so far are discarded")]
    Interrupted,
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Repository(error) => error.kind(),
            Error::Catalog(error) => error.kind(),
            Error::State(error) => error.kind(),
            Error::Crypt(error) | Error::BadHostKey { source: error, .. } => error.kind(),
            Error::Interrupted => FailureKind::Interrupted,
            Error::Target(error) => error.kind(),
            _ => FailureKind::Failed,
        }
    }
}
