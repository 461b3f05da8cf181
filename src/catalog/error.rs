//! What can be wrong with a catalog.

use std::io;
use std::path::{Path, PathBuf};

use crate::format::RepositoryId;

/// A catalog that is missing, damaged, foreign, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "this machine has no catalog for the repository ({path} is missing); on the machine that is backed up `brackfs catalog rebuild` makes one"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It belongs to another repository.
    #[error("the catalog {path} belongs to repository {found}, not to {expected}")]
    Foreign {
        /// The catalog.
        path: PathBuf,
        /// The repository it belongs to.
        found: RepositoryId,
        /// The repository that was opened.
        expected: RepositoryId,
    },
    /// Made by another version of the program.
    #[error("the catalog {path} {}, which this version of brackfs does not read", schema(*found))]
    Schema {
        /// The catalog.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// A row holds what no program of ours writes.
    #[error("the catalog {path} is damaged: {why}; `brackfs catalog rebuild` makes a new one from the repository")]
    Damaged {
        /// The catalog.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Another process writes to it.
    #[error("the catalog {path} is in use by another process")]
    Busy {
        /// The catalog.
        path: PathBuf,
    },
    /// There is no room for it.
    #[error("cannot {action} in {path}: the disk is full; make room and run again, nothing that was there is lost")]
    Full {
        /// What was tried.
        action: &'static str,
        /// The catalog.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("cannot {action} in {path}: {source}")]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// The catalog.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The file system failed.
    #[error("cannot open the catalog {path}: {source}")]
    File {
        /// The catalog.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a schema of this number.
fn schema(found: i64) -> String {
    match found {
        0 => "is empty".to_owned(),
        found => format!("has schema {found}"),
    }
}

impl Error {
    /// Whether there is no catalog of this version that can be read, so that a new one is no loss.
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
            // What is to be added contradicts what is there.
            Some(ConstraintViolation) => Error::Damaged { path, why: source.to_string() },
            Some(DatabaseBusy | DatabaseLocked) => Error::Busy { path },
            Some(DiskFull) => Error::Full { action, path },
            // No program of ours writes such a value.
            _ if matches!(
                source,
                FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..)
            ) =>
            {
                Error::Damaged { path, why: source.to_string() }
            }
            // The statements are right, so the tables are not.
            _ if matches!(source, SqlInputError { .. }) => Error::Damaged { path, why: one_line(&source) },
            // A table or a row that every catalog has.
            _ if matches!(source, rusqlite::Error::QueryReturnedNoRows) || misses(extended(&source)) => {
                Error::Damaged { path, why: source.to_string() }
            }
            // What it keeps beside the database could not be made as long as it should be.
            _ if extended(&source) == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => Error::Full { action, path },
            _ => Error::Sqlite { action, path, source },
        }
    }
}

/// What SQLite says, without the statement.
fn one_line(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    }
}

fn extended(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code)
}

/// Adds to a result of SQLite what was being done, and where.
pub(super) trait Context<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for rusqlite::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::sqlite(action, path, source))
    }
}
