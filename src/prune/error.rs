//! Errors of a prune.

use crate::failure::{Failure, FailureKind};
use crate::session::NOTHING_YET;
use crate::{catalog, inventory, repository, session, storage};

/// An error that ends a prune. Nothing that a kept snapshot needs is ever removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The session failed.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The catalog could not be read or written.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// Catalog and repository could not be compared.
    #[error(transparent)]
    Inventory(#[from] inventory::Error),
    /// A document could not be read or written.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The storage failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// It is not certain that all snapshots are known.
    #[error("nothing was removed: {0}")]
    Doubt(String),
    /// There are no snapshots yet.
    #[error("nothing was removed: {NOTHING_YET}")]
    NothingYet,
    /// Another run waits for the lock. The work so far is done, and the rest can be done later.
    #[error("another run waits for the lock")]
    Wanted,
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Session(error) => error.kind(),
            Error::Catalog(error) => error.kind(),
            Error::Inventory(error) => error.kind(),
            Error::Repository(error) => error.kind(),
            Error::Target(error) => error.kind(),
            Error::Doubt(_) | Error::NothingYet | Error::Wanted => FailureKind::Failed,
        }
    }
}
