//! What can be wrong with a catalog.

use std::io;
use std::path::{Path, PathBuf};

use crate::format::RepositoryId;

/// A catalog that is missing, damaged, foreign, or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error(
        "this machine has no catalog for the repository ({path} is missing); it is made by init, on the machine that is backed up"
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
    #[error("the catalog {path} has schema {found}, which this version of brackfs does not read")]
    Schema {
        /// The catalog.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// A row holds what no program of ours writes.
    #[error("the catalog {path} is damaged: {why}")]
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

impl Error {
    pub(super) fn sqlite(action: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, NotADatabase};
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Error::Damaged { path, why: source.to_string() },
            Some(DatabaseBusy | DatabaseLocked) => Error::Busy { path },
            _ => Error::Sqlite { action, path, source },
        }
    }
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
