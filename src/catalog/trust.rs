//! The trusted keys and properties of a repository. Fixed at init, except that recipients' certificates can be renewed.

use std::path::Path;

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::database::Catalog;
use super::error::Context;
use super::error::Error;
use super::sums::{RowSum, Sum};
use crate::crypt::{self, Certificate, Fingerprint};
use crate::format::RepositoryId;
use crate::format::id::{CatalogId, RunId};
use crate::format::name::GenerationName;
use crate::format::secrets::{DatedSigner, Secrets};

/// The trusted keys and properties of a repository. The repository's own copies are only compared with these.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The repository's id.
    pub repository: RepositoryId,
    /// This catalog's id.
    pub catalog: CatalogId,
    /// Whether blocks are encrypted.
    pub encrypted: bool,
    /// The seed for chunking files.
    pub seed: u64,
    /// The host key.
    pub host: Fingerprint,
    /// Blocks are encrypted to these certificates.
    pub recipients: Vec<Certificate>,
}

/// The run in a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRun {
    /// The generation's number; 0 if there was no run.
    pub number: u64,
    /// The run's id.
    pub run: Option<RunId>,
}

impl Trust {
    /// The content of a repository's first secrets document. `host` is the host's certificate.
    pub fn secrets(&self, host: &Certificate) -> Result<Secrets, crypt::Error> {
        let recipients = self.recipients.iter().map(Certificate::to_bytes).collect::<Result<_, _>>()?;
        Ok(Secrets {
            generation: 0,
            edition: 0,
            seed: self.seed,
            encrypted: self.encrypted,
            recipients,
            hosts: vec![DatedSigner::new(host.to_bytes()?)],
            keepers: Vec::new(),
        })
    }

    pub(super) fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute(
            "INSERT INTO trust VALUES (?, ?, ?, ?, ?, 0, NULL, 0, NULL, 0, 0, 1, 0)",
            params![
                self.repository.as_bytes(),
                self.catalog.as_bytes(),
                self.encrypted,
                self.seed as i64,
                self.host.to_string()
            ],
        )?;
        insert_recipients(&self.recipients, db)?;
        set_sum(db)
    }

    pub(super) fn load(db: &Connection, path: &Path) -> Result<Self, Error> {
        type TrustRow = (Vec<u8>, Vec<u8>, bool, i64, String);
        let row: rusqlite::Result<TrustRow> =
            db.query_row("SELECT repository, catalog, encrypted, seed, host FROM trust", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            });
        let (repository, catalog, encrypted, seed, host) = row.during("read trusted keys", path)?;
        let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
        if let (_, false) = sum(db).during("read trusted keys", path)? {
            return Err(damaged("the trusted keys do not match their checksum".into()));
        }
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

/// The checksum of trust and recipients, and whether the stored one is equal.
fn sum(db: &Connection) -> rusqlite::Result<(RowSum, bool)> {
    let mut recipients = Sum::of("recipients");
    let mut statement = db.prepare("SELECT certificate FROM recipients ORDER BY rowid")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        recipients = recipients.bytes(row.get_ref(0)?.as_blob()?);
    }
    db.query_row("SELECT repository, catalog, encrypted, seed, host, sum FROM trust", [], |row| {
        let sum = recipients.bytes(row.get_ref(0)?.as_blob()?).bytes(row.get_ref(1)?.as_blob()?);
        let sum = sum.number(row.get(2)?).number(row.get(3)?).bytes(row.get_ref(4)?.as_bytes()?).value();
        Ok((sum, sum.is_in(row, 5)?))
    })
}

/// Updates the stored checksum of trust and recipients.
fn set_sum(db: &Connection) -> rusqlite::Result<()> {
    let (sum, _) = sum(db)?;
    db.execute("UPDATE trust SET sum = ?", [sum]).map(drop)
}

fn insert_recipients(recipients: &[Certificate], db: &Connection) -> rusqlite::Result<()> {
    for recipient in recipients {
        let bytes = recipient.to_bytes().map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
        db.execute("INSERT INTO recipients VALUES (?)", [bytes])?;
    }
    Ok(())
}

impl Catalog {
    /// Replaces the recipients' certificates with renewed ones of the same keys.
    pub fn set_recipients(&mut self, recipients: Vec<Certificate>) -> Result<(), Error> {
        let set = || {
            self.db.execute("DELETE FROM recipients", [])?;
            insert_recipients(&recipients, &self.db)?;
            set_sum(&self.db)
        };
        set().map_err(self.failed("record renewed certificates"))?;
        self.trust.recipients = recipients;
        Ok(())
    }

    /// The last run of this catalog, and the last intended one. They differ if that was killed before it was recorded.
    pub fn runs(&self) -> Result<(LastRun, LastRun), Error> {
        let read = |row: &rusqlite::Row<'_>, at: usize| -> rusqlite::Result<(u64, Option<Vec<u8>>)> {
            Ok((row.get::<_, i64>(at)? as u64, row.get(at + 1)?))
        };
        let select = "SELECT generation, run, intended, intended_run FROM trust";
        let rows = self.db.query_row(select, [], |row| Ok((read(row, 0)?, read(row, 2)?)));
        let (last, intended) = rows.map_err(self.failed("read the generation"))?;
        let last_run = |(number, run): (u64, Option<Vec<u8>>)| {
            let run = run.map(|run| RunId::from_slice(&run)).transpose().map_err(|e| self.damaged(e))?;
            Ok(LastRun { number, run })
        };
        Ok((last_run(last)?, last_run(intended)?))
    }

    /// Gives the catalog a new id, which is in no generation yet.
    pub fn set_id(&mut self, id: CatalogId) -> Result<(), Error> {
        let set = || {
            self.db.execute("UPDATE trust SET catalog = ?", [id.as_bytes()])?;
            set_sum(&self.db)
        };
        set().map_err(self.failed("record the catalog's id"))?;
        self.trust.catalog = id;
        Ok(())
    }

    /// Records that a run is about to write its generation, and then packs. It counts as unfinished from now on.
    pub fn intend_run(&self, number: u64, run: RunId) -> Result<(), Error> {
        let values = params![number as i64, run.as_bytes()];
        let set = self.db.execute("UPDATE trust SET intended = ?, intended_run = ?", values);
        set.map_err(self.failed("record the generation"))?;
        self.begin_run(run)
    }

    /// Records that a run is about to write. It counts as unfinished from now on.
    pub fn begin_run(&self, run: RunId) -> Result<(), Error> {
        let add = self.db.execute("INSERT OR IGNORE INTO unfinished VALUES (?)", [run.as_bytes()]);
        add.map(drop).map_err(self.failed("record the start of a run"))
    }

    /// Records the end of a run that cleaned up after no other run.
    pub fn end_run(&self, run: RunId) -> Result<(), Error> {
        let remove = self.db.execute("DELETE FROM unfinished WHERE run = ?", [run.as_bytes()]);
        remove.map(drop).map_err(self.failed("record the end of a run"))
    }

    /// Runs that began to write and did not finish.
    pub fn unfinished(&self) -> Result<Vec<RunId>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT run FROM unfinished")?;
            statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<Vec<u8>>>>()
        };
        let runs = find().map_err(self.failed("read unfinished runs"))?;
        runs.iter().map(|run| RunId::from_slice(run).map_err(|e| self.damaged(e))).collect()
    }

    /// Records that some of the catalog comes from listings of the repository. Listings may be incomplete, so from now
    /// on this catalog is not evidence that an object may be removed.
    pub fn set_learnt(&self) -> Result<(), Error> {
        let set = self.db.execute("UPDATE trust SET learnt = 1", []);
        set.map(drop).map_err(self.failed("record that the catalog was reconciled"))
    }

    /// Records that listings proved to be complete, so the catalog is evidence again.
    pub fn set_proved(&self) -> Result<(), Error> {
        let set = self.db.execute("UPDATE trust SET learnt = 0", []);
        let set = set.and_then(|_| self.db.execute("DELETE FROM unproved", []));
        set.map(drop).map_err(self.failed("record that the catalog is complete"))
    }

    /// Whether some of the catalog comes from listings.
    pub fn is_learnt(&self) -> Result<bool, Error> {
        let found = self.db.query_row("SELECT learnt <> 0 FROM trust", [], |row| row.get(0));
        found.map_err(self.failed("read whether the catalog was reconciled"))
    }

    /// Names and lengths of generation objects that did not verify, ascending.
    pub fn strange_generations(&self) -> Result<Vec<(GenerationName, u64)>, Error> {
        let find = || {
            let select = "SELECT number, writer, length FROM strange_generations ORDER BY number, writer";
            let mut statement = self.db.prepare(select)?;
            let rows = statement.query_map([], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)? as u64))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = find().map_err(self.failed("read generations"))?;
        let named = |(number, writer, length): (u64, Vec<u8>, u64)| {
            let writer = Uuid::from_slice(&writer).map_err(|e| self.damaged(e))?;
            Ok((GenerationName { number, writer }, length))
        };
        rows.into_iter().map(named).collect()
    }

    /// Remembers generation objects that did not verify.
    pub fn note_strange_generations(&self, objects: &[(GenerationName, u64)]) -> Result<(), Error> {
        let add = || {
            let mut statement =
                self.db.prepare_cached("INSERT OR REPLACE INTO strange_generations VALUES (?, ?, ?)")?;
            objects.iter().try_for_each(|(GenerationName { number, writer }, length)| {
                statement.execute(params![*number as i64, writer.as_bytes(), *length as i64]).map(drop)
            })
        };
        add().map_err(self.failed("record generations"))
    }

    /// Records that the run finished, and that it cleaned up after the unfinished runs before it.
    pub fn set_finished(&self) -> Result<(), Error> {
        let set = self.db.execute("DELETE FROM unfinished", []);
        set.map(drop).map_err(self.failed("record the end of a run"))
    }

    /// Records that a run has written its generation.
    pub fn set_run(&self, number: u64, run: RunId) -> Result<(), Error> {
        let set = self.db.execute(
            "UPDATE trust SET generation = ?1, run = ?2, intended = ?1, intended_run = ?2",
            params![number as i64, run.as_bytes()],
        );
        set.map(drop).map_err(self.failed("record the generation"))
    }
}
