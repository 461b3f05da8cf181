//! Errors of archives.

use std::sync::Arc;

use crate::failure::{Failure, FailureKind};

/// An error of a format, kept with its kind.
type Cause = Arc<dyn Failure + Send + Sync>;

/// Why an archive, or a part of it, cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No snapshot, source or entry matches.
    #[error("{0}")]
    NotFound(String),
    /// A component of the path is not a directory.
    #[error("{0} is not a directory")]
    NotADirectory(String),
    /// A document of the archive is missing.
    #[error(transparent)]
    Missing(Cause),
    /// The archive cannot be read, or is damaged.
    #[error(transparent)]
    Unreadable(Cause),
}

impl Error {
    /// Returns the format's own error, if it is of type `E`.
    pub fn cause<E: Failure + 'static>(&self) -> Option<&E> {
        let (Error::Missing(cause) | Error::Unreadable(cause)) = self else { return None };
        let cause: &(dyn std::error::Error + 'static) = &**cause;
        cause.downcast_ref()
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Missing(cause) | Error::Unreadable(cause) => cause.kind(),
            Error::NotFound(_) | Error::NotADirectory(_) => FailureKind::Failed,
        }
    }

    fn lost_object(&self) -> Option<String> {
        match self {
            Error::Missing(cause) | Error::Unreadable(cause) => cause.lost_object(),
            Error::NotFound(_) | Error::NotADirectory(_) => None,
        }
    }
}
