//! What this machine trusts, fixed when the repository was made.

use std::path::Path;

use rusqlite::{Connection, params};

use super::error::Context;
use super::{Catalog, Error};
use crate::crypt::{Certificate, Fingerprint};
use crate::format::RepositoryId;
use crate::format::id::CatalogId;

/// What this machine trusts of a repository. The target's copies are only compared with it.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The repository.
    pub repository: RepositoryId,
    /// This catalog.
    pub catalog: CatalogId,
    /// Whether blocks are encrypted.
    pub encrypted: bool,
    /// Seeds the cutting of files.
    pub seed: u64,
    /// The host key.
    pub host: Fingerprint,
    /// Whom blocks are encrypted to.
    pub recipients: Vec<Certificate>,
}

impl Trust {
    pub(super) fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute(
            "INSERT INTO trust VALUES (?, ?, ?, ?, ?, 0, 0)",
            params![
                self.repository.as_bytes(),
                self.catalog.as_bytes(),
                self.encrypted,
                self.seed as i64,
                self.host.to_string()
            ],
        )?;
        for recipient in &self.recipients {
            let bytes = recipient.to_bytes().map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            db.execute("INSERT INTO recipients VALUES (?)", [bytes])?;
        }
        Ok(())
    }

    pub(super) fn load(db: &Connection, path: &Path) -> Result<Self, Error> {
        type Row = (Vec<u8>, Vec<u8>, bool, i64, String);
        let row: rusqlite::Result<Row> =
            db.query_row("SELECT repository, catalog, encrypted, seed, host FROM trust", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            });
        let (repository, catalog, encrypted, seed, host) = row.during("read what is trusted", path)?;
        let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
        let mut statement = db.prepare("SELECT certificate FROM recipients").during("read recipients", path)?;
        let certificates: Vec<Vec<u8>> =
            statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).during("read recipients", path)?;
        let recipients = certificates.iter().map(|bytes| Certificate::parse(bytes)).collect::<Result<_, _>>();
        Ok(Trust {
            repository: RepositoryId::from_slice(&repository).map_err(|e| damaged(e.to_string()))?,
            catalog: CatalogId::from_slice(&catalog).map_err(|e| damaged(e.to_string()))?,
            encrypted,
            seed: seed as u64,
            host: host.parse().map_err(|e: crate::crypt::Error| damaged(e.to_string()))?,
            recipients: recipients.map_err(|e| damaged(e.to_string()))?,
        })
    }
}

impl Catalog {
    /// The number of the last generation that this catalog wrote, and the one that a run was about to
    /// write (equal, unless that run was killed).
    pub fn generation(&self) -> Result<(u64, u64), Error> {
        self.db
            .query_row("SELECT generation, intended FROM trust", [], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))
            })
            .map_err(self.failed("read the generation"))
    }

    /// Says that generation `number` is about to be written, by a run that is unfinished from now on.
    pub fn intend_generation(&self, number: u64) -> Result<(), Error> {
        let set = || {
            self.db.execute("UPDATE trust SET intended = ?", [number as i64])?;
            self.db.execute("INSERT OR IGNORE INTO unfinished VALUES (?)", [number as i64])
        };
        set().map(drop).map_err(self.failed("note the generation"))
    }

    /// Whether a run that wrote did not come to its end.
    pub fn is_unfinished(&self) -> Result<bool, Error> {
        let found = self.db.query_row("SELECT EXISTS (SELECT 1 FROM unfinished)", [], |row| row.get(0));
        found.map_err(self.failed("read whether the last run came to its end"))
    }

    /// Says that the run came to its end, and that those before it left nothing behind.
    pub fn set_finished(&self) -> Result<(), Error> {
        let set = self.db.execute("DELETE FROM unfinished", []);
        set.map(drop).map_err(self.failed("note the end of a run"))
    }

    /// Says that generation `number` is written.
    pub fn set_generation(&self, number: u64) -> Result<(), Error> {
        let set = self.db.execute("UPDATE trust SET generation = ?1, intended = ?1", [number as i64]);
        set.map(drop).map_err(self.failed("note the generation"))
    }
}
