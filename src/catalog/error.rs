//! Errors of the catalog.

use std::io;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, FailureKind};
use crate::format::RepositoryId;

/// A catalog that is missing, damaged, foreign, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The catalog does not exist.
    #[error(
        "this machine has no catalog for the repository ({path} is missing); to make one, run `brackfs catalog rebuild` on the machine that is backed up"
    )]
    Missing {
        /// The expected path of the catalog.
        path: PathBuf,
    },
    /// The catalog belongs to another repository.
    #[error("the catalog {path} belongs to repository {found}, not to {expected}")]
    Foreign {
        /// The catalog.
        path: PathBuf,
        /// The repository it belongs to.
        found: RepositoryId,
        /// The repository that was opened.
        expected: RepositoryId,
    },
    /// The catalog has the schema of another version of brackfs.
    #[error("the catalog {path} {}, which this version of brackfs does not read", schema(*found))]
    Schema {
        /// The catalog.
        path: PathBuf,
        /// Its schema version.
        found: i64,
    },
    /// The database is corrupt, or a row has content that brackfs never writes.
    #[error("the catalog {path} is damaged: {why}; `brackfs catalog rebuild` makes a new one from the repository")]
    Damaged {
        /// The catalog.
        path: PathBuf,
        /// The kind of damage.
        why: String,
    },
    /// The blocks of a snapshot are unknown, so it is unknown which blocks are in use.
    #[error(
        "the catalog {path} does not know which blocks the snapshot with number {sequence} uses; `brackfs catalog rebuild` may find them"
    )]
    UnknownUsage {
        /// The catalog.
        path: PathBuf,
        /// The number of the snapshot.
        sequence: u64,
    },
    /// Another process writes to the catalog.
    #[error("the catalog {path} is in use by another process")]
    Busy {
        /// The catalog.
        path: PathBuf,
    },
    /// The disk with the catalog is full.
    #[error("cannot {action} in {path}: the disk is full; free some space and run again, existing data is not lost")]
    Full {
        /// The failed action, a verb with its object.
        action: &'static str,
        /// The catalog.
        path: PathBuf,
    },
    /// Another error of SQLite.
    #[error("cannot {action} in {path}: {cause}")]
    Sqlite {
        /// The failed action, a verb with its object.
        action: &'static str,
        /// The catalog.
        path: PathBuf,
        /// The error of SQLite. Its own source has the same words, so it is not the source of this error.
        cause: rusqlite::Error,
    },
    /// SQLite's log has changes of a run that was killed, and cannot be used without writing to its folder.
    #[error(
        "cannot read the catalog {path}: a run was interrupted, and recovering its changes needs write access to its directory; \
         run the command once with write access"
    )]
    Unfinished {
        /// The catalog.
        path: PathBuf,
    },
    /// Another process changed the catalog, and this one could not lock it.
    #[error("the catalog {path} changed while it was read; run the command again")]
    Changed {
        /// The catalog.
        path: PathBuf,
    },
    /// The file could not be opened.
    #[error("cannot open the catalog {path}: {source}")]
    File {
        /// The catalog.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
}

/// Describes an unsupported schema version.
fn schema(found: i64) -> String {
    match found {
        0 => "is empty".to_owned(),
        found => format!("has schema {found}"),
    }
}

impl Error {
    /// Whether there is no readable catalog, so that building a new one loses nothing.
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::Missing { .. } | Error::Schema { .. } | Error::Damaged { .. })
    }

    pub(super) fn sqlite(action: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::Error::{
            FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, SqlInputError, Utf8Error,
        };
        use rusqlite::ErrorCode::{
            ConstraintViolation, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase,
        };
        let path = path.to_owned();
        let misses = |code| code == Some(rusqlite::ffi::SQLITE_ERROR) && source.to_string().starts_with("no such ");
        match source.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Error::Damaged { path, why: source.to_string() },
            // A new row contradicts the existing ones.
            Some(ConstraintViolation) => Error::Damaged { path, why: source.to_string() },
            Some(DatabaseBusy | DatabaseLocked) => Error::Busy { path },
            Some(DiskFull) => Error::Full { action, path },
            // brackfs never writes such a value.
            _ if matches!(
                source,
                FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..)
            ) =>
            {
                Error::Damaged { path, why: source.to_string() }
            }
            // The statements are correct, so the schema is damaged.
            _ if matches!(source, SqlInputError { .. }) => Error::Damaged { path, why: one_line(&source) },
            // A table or row is missing that every catalog has.
            _ if matches!(source, rusqlite::Error::QueryReturnedNoRows) || misses(extended(&source)) => {
                Error::Damaged { path, why: source.to_string() }
            }
            // The shared-memory file next to the database could not be extended.
            _ if extended(&source) == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => Error::Full { action, path },
            _ => Error::Sqlite { action, path, cause: source },
        }
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Busy { .. } => FailureKind::Locked,
            Error::Full { .. } => FailureKind::Full,
            _ => FailureKind::Failed,
        }
    }
}

/// The error message of SQLite, without the statement.
fn one_line(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    }
}

fn extended(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code)
}

/// Adds the failed action and the catalog's path to an error of SQLite.
pub(super) trait Context<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::sqlite(action, path, source))
    }
}
