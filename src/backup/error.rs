//! The errors that end a backup.

use crate::failure::{Failure, FailureKind};
use crate::threads::TooFew;
use crate::{catalog, crypt, format, repository, session, source, storage};

/// Why a backup failed. Everything committed before is kept, and is not stored again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// This machine cannot write to the repository, or not now.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// The source failed as a whole: a given path does not exist.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A block could not be made.
    #[error("cannot make a block: {0}")]
    Format(#[from] format::Error),
    /// A block could not be sealed.
    #[error("cannot encrypt: {0}")]
    Crypt(#[from] crypt::Error),
    /// The only path to back up can't be used.
    #[error("cannot back up {path}: {source}; check the path")]
    NoSource {
        /// The path as it was given.
        path: String,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// None of several paths exists.
    #[error("cannot back up: none of the paths exists; check them")]
    NothingThere,
    /// Standard input failed. How much of it is missing is unknown.
    #[error("cannot read standard input: {0}; no snapshot was made")]
    Stdin(#[source] std::io::Error),
    /// There was nothing to back up on standard input, or the command printed nothing.
    #[error("there were no bytes to back up, so no snapshot was made (if this is intended, use allow-empty)")]
    EmptyStream,
    /// The command whose output is backed up cannot be started.
    #[error("cannot run {command}: {source}; no snapshot was made")]
    CommandStart {
        /// The program.
        command: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The command whose output is backed up failed. How much of its output is missing is unknown.
    #[error("{command} failed ({status}); no snapshot was made")]
    CommandFailed {
        /// The program.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// Wrong usage: paths that can't be backed up, or an invalid option.
    #[error("{0}")]
    Usage(String),
    /// The run was interrupted.
    #[error("interrupted; stored content is kept, and the next backup continues from there")]
    Interrupted,
    /// A dry run was interrupted.
    #[error("interrupted; a dry run stores nothing")]
    PreviewInterrupted,
    /// The source may not be as in the last snapshot. Ends a glance at it, and is never shown.
    #[error("the source has changed since the last backup")]
    Changed,
    /// A temporary file failed.
    #[error("cannot use a temporary file in {folder}: {source} (TMPDIR chooses another folder)")]
    Temporary {
        /// The folder for temporary files.
        folder: String,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// The system allows too few threads.
    #[error(transparent)]
    Threads(#[from] TooFew),
    /// A thread ended without an error: a bug.
    #[error("a part of the backup stopped unexpectedly ({0}); please report this")]
    Stopped(&'static str),
    /// A condition that can't occur: a bug.
    #[error("internal error: {0}; please report this")]
    Internal(&'static str),
}

impl Error {
    /// Whether a part of the catalog is damaged.
    pub(super) fn is_damaged_catalog(&self) -> bool {
        match self {
            Error::Catalog(error) => matches!(error, catalog::Error::Damaged { .. }),
            Error::Session(error) => error.is_damaged_catalog(),
            _ => false,
        }
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Repository(error) => error.kind(),
            Error::Target(error) => error.kind(),
            Error::Catalog(error) => error.kind(),
            Error::Session(error) => error.kind(),
            Error::Source(error) => error.kind(),
            Error::Crypt(error) => error.kind(),
            Error::Usage(_) => FailureKind::Usage,
            Error::Interrupted | Error::PreviewInterrupted => FailureKind::Interrupted,
            _ => FailureKind::Failed,
        }
    }
}
