//! Errors of searches through the history.

use std::io;

use crate::archive;
use crate::failure::{Failure, FailureKind};

/// An error that ends a search. Unreadable snapshots do not; they are reported as problems.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository cannot be listed, or the key opens no snapshot.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// A pattern is not valid.
    #[error(transparent)]
    Pattern(#[from] crate::source::Error),
    /// The repository has no snapshot of this source.
    #[error("no snapshot of a source called {0}")]
    NoSource(String),
    /// No snapshot contains this path.
    #[error("no snapshot has {0}; `brackfs find` searches for names in all snapshots")]
    Nowhere(String),
    /// Neither of two snapshots contains this path.
    #[error("neither snapshot has {0}")]
    InNeither(String),
    /// The results cannot be written.
    #[error("cannot write the results")]
    Output(#[from] io::Error),
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Archive(error) => error.kind(),
            Error::Pattern(error) => error.kind(),
            _ => FailureKind::Failed,
        }
    }
}
