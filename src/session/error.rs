//! The errors of sessions.

use std::path::PathBuf;

use crate::crypt::Fingerprint;
use crate::failure::{Failure, FailureKind};
use crate::{catalog, crypt, inventory, repository, state, storage};

/// A run that writes could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The state directory failed, or another run holds the lock.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The catalog cannot be brought into agreement with the repository.
    #[error(transparent)]
    Inventory(#[from] inventory::Error),
    /// The storage failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// A key is unusable.
    #[error(transparent)]
    Crypt(#[from] crypt::Error),
    /// The target contradicts the catalog about whether blocks are encrypted.
    #[error(
        "brackfs.toml says that the repository is {found}, but it was created {expected}; the file was changed, and nothing was backed up"
    )]
    Encryption {
        /// The claim of the target.
        found: &'static str,
        /// The choice made at init.
        expected: &'static str,
    },
    /// The repository is encrypted to others than expected.
    #[error(
        "the repository is encrypted to {found}, but its recipients in the configuration are {expected}; nothing was backed up"
    )]
    OtherRecipients {
        /// The certificates of the repository.
        found: String,
        /// The expected ones.
        expected: String,
    },
    /// A certificate that the repository must be encrypted to cannot be read.
    #[error("cannot read the certificate {}: {why}", path.display())]
    BadRecipient {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The host key on disk is not that of the catalog.
    #[error("the host key of this machine is {found}, but the catalog was made for {expected}")]
    HostKey {
        /// The key on disk.
        found: Fingerprint,
        /// The key of the catalog.
        expected: Fingerprint,
    },
    /// Another machine started a run at the same time.
    #[error(
        "another machine with a copy of this machine's state started to write at the same time (generation {found}); run `brackfs adopt` on the one that is to go on"
    )]
    ConcurrentWriter {
        /// The generation of both.
        found: u64,
    },
    /// The generation that this run wrote is gone.
    #[error(
        "the repository was set back while this backup was writing to it (the object of generation {generation} is gone); the backup stopped. Run it again"
    )]
    SetBack {
        /// The generation of this run.
        generation: u64,
    },
    /// A snapshot may lack data, and was not removed.
    #[error(
        "{reason}. The other machine may have removed data of this backup, which could not be checked or withdrawn: {error}. Run `brackfs check`, and remove {object} from the repository if data is missing"
    )]
    NotWithdrawn {
        /// The object of the snapshot.
        object: String,
        /// Why it may lack data.
        reason: Box<Error>,
        /// The error of the search for its data, or of the removal.
        error: Box<Error>,
    },
    /// A dry run has no catalog to compare with.
    #[error("{source}. A backup rebuilds it; a dry run changes nothing, so it can't")]
    NothingToCompare {
        /// The error of the catalog.
        source: catalog::Error,
    },
    /// The owner's key was given, but this machine has a host key and can adopt with that.
    #[error("this machine already has a host key for the repository ({path}): run `brackfs adopt` without --key")]
    HasHostKey {
        /// The path of the host key.
        path: PathBuf,
    },
    /// Documents have unknown signers, and adoption does not trust on first use.
    #[error(
        "documents of this repository are signed by unknown host keys: {signers}. Nothing was written. Compare the keys with those printed on the former machine; pass the right ones with --signer, and remove the objects of all others"
    )]
    UnknownSigners {
        /// Fingerprints of the signers, each with one of its objects and the number of further ones.
        signers: String,
    },
    /// Documents are missing, and the machine that adopts could not notice that later.
    #[error(
        "{folder} has {known} of the objects that {generation} counts ({counted}), so some are missing or others were put there; nothing was written. A machine that adopts without them may later remove data that only they need. Put them back, or give up what is missing with --accept-missing"
    )]
    MissingDocuments {
        /// Their folder.
        folder: &'static str,
        /// The number of objects that are known.
        known: u64,
        /// The number of objects that the last run counted.
        counted: u64,
        /// The object of the last run's generation.
        generation: String,
    },
    /// No generation of the former machine can be read, so missing documents cannot be noticed.
    #[error(
        "{} has no object of a former machine that can be read, so missing documents cannot be noticed; nothing was written. Put the objects back, or give up what is missing with --accept-missing",
        crate::format::name::GENERATION
    )]
    NoCensus,
    /// The given recipients differ from those in the repository's secrets.
    #[error("the repository encrypts to {found}, but --recipient names {expected}; nothing was written")]
    Recipients {
        /// Fingerprints of the repository's recipients.
        found: String,
        /// Fingerprints of the given recipients.
        expected: String,
    },
    /// A condition that can't occur: a bug.
    #[error("internal error: {0}; please report this")]
    Internal(&'static str),
}

impl Error {
    /// Whether a part of the catalog is damaged.
    pub fn is_damaged_catalog(&self) -> bool {
        matches!(
            self,
            Error::Catalog(catalog::Error::Damaged { .. })
                | Error::Inventory(inventory::Error::Catalog(catalog::Error::Damaged { .. }))
        )
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Repository(error) => error.kind(),
            Error::Catalog(error) | Error::NothingToCompare { source: error } => error.kind(),
            Error::State(error) => error.kind(),
            Error::Inventory(error) => error.kind(),
            Error::Crypt(error) => error.kind(),
            Error::Target(error) => error.kind(),
            _ => FailureKind::Failed,
        }
    }
}
