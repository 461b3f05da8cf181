//! The catalog: what this machine knows of a repository it writes to. All SQL is here.
//!
//! It makes backups cheap (what is stored already, and where; what each file looked like last time), and it
//! holds what this machine trusts, so that nothing at the target has to be believed. It is never needed
//! for a restore.
//!
//! It may claim less than the repository has, and never more: see [`packs`]. Whether it does is for
//! [`crate::inventory`] to find out.
//!
//! - [`trust`]: repository, host key, recipients, encryption; fixed at init
//! - [`chunks`]: packs, blocks and chunks: what is stored, and where
//! - [`packs`]: which packs may be built upon, and what goes when one may not any more
//! - [`directories`]: directories in segments of about 1,000 entries, each with all that its tree node holds
//! - [`stats`]: the stat identity of a segment's entries, in a form that is compared as bytes
//! - [`put_off`]: files that a run looks at again before it makes its snapshot
//! - [`snapshots`]: sources, snapshots and the blocks that each uses
//! - [`sums`]: how a damaged row is noticed
//! - [`claims`]: rows that rest on blocks, and go when those are lost or they themselves are damaged
//! - [`verify`]: whether it agrees with itself
//! - [`numbers`]: lists of integers as small blobs
//!
//! One [`Catalog`] writes, in one transaction that spans all since the last [`Catalog::commit`]; a
//! [`Past`] on a second connection reads what was committed, while the first is busy.

mod chunks;
mod claims;
mod directories;
mod error;
mod numbers;
mod packs;
mod retry_queue;
mod snapshots;
pub mod stats;
mod sums;
mod trust;
mod verify;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

pub use chunks::{BlockId, PackRow, Stored};
pub use claims::Claims;
pub use directories::{DirectoryId, DirectoryRow, Past, SegmentId, SegmentNode, SegmentRow};
pub use error::Error;
pub use packs::{Condemned, KnownPack};
pub use retry_queue::{DeferredFile, StoredState};
pub use snapshots::{Labels, Presence, SnapshotRow, SourceRow};
pub use trust::{LastRun, Trust};

use crate::format::RepositoryId;
use error::Context;

/// The schema's number, in SQLite's `user_version`. There is no way from one to another yet: a catalog of
/// another number is refused.
const SCHEMA: i64 = 6;

/// Pages of SQLite's cache of what writes, in KiB. Lookups beyond it stay on disk.
const CACHE_KIB: i64 = 6 << 10;
/// The same of what only reads: it goes from one end to the other.
const READ_CACHE_KIB: i64 = 2 << 10;

/// The catalog, opened for writing. Everything since the last commit is one transaction.
#[derive(Debug)]
pub struct Catalog {
    db: Connection,
    path: PathBuf,
    trust: Trust,
}

impl Catalog {
    /// Makes the catalog of a new repository, readable by its user only.
    pub fn create(path: &Path, trust: Trust) -> Result<Self, Error> {
        // SQLite would make it readable by everyone.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|source| Error::File { path: path.to_owned(), source })?;
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.execute_batch(include_str!("schema.sql")).during("set up the catalog", path)?;
        db.pragma_update(None, "user_version", SCHEMA).during("set up the catalog", path)?;
        trust.insert(&db).during("set up the catalog", path)?;
        begin(&db, path)?;
        Ok(Catalog { db, path: path.to_owned(), trust })
    }

    /// Opens the catalog of `repository`.
    pub fn open(path: &Path, repository: RepositoryId) -> Result<Self, Error> {
        let (db, trust) = open(path, repository, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        begin(&db, path)?;
        Ok(Catalog { db, path: path.to_owned(), trust })
    }

    /// Opens the catalog of `repository` to look at it, beside a run that may be writing.
    pub fn view(path: &Path, repository: RepositoryId) -> Result<Self, Error> {
        let (db, trust) = open(path, repository, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(Catalog { db, path: path.to_owned(), trust })
    }

    /// What this machine trusts.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// A second connection, which reads what was committed.
    pub fn past(&self) -> Result<Past, Error> {
        let db = connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(Past::new(db, self.path.clone()))
    }

    /// Makes everything since the last commit durable, and begins anew.
    pub fn commit(&mut self) -> Result<(), Error> {
        let end =
            "UPDATE trust SET next_block = max(next_block, (SELECT coalesce(max(id), 0) + 1 FROM blocks)); COMMIT";
        self.db.execute_batch(end).during("commit", &self.path)?;
        begin(&self.db, &self.path)
    }

    /// Commits and closes it. Nothing is left beside the file, so it can be moved.
    pub fn close(self) -> Result<(), Error> {
        let end = || {
            self.db.execute_batch("COMMIT")?;
            self.db.pragma_update(None, "journal_mode", "delete")
        };
        end().during("close the catalog", &self.path)
    }

    /// An error in SQL that was run to do `action`.
    fn failed(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
        let path = self.path.clone();
        move |source| Error::sqlite(action, &path, source)
    }
}

/// What a catalog says to those who only look: no transaction is begun, and nothing is written.
pub fn trust_of(path: &Path, repository: RepositoryId) -> Result<Option<Trust>, Error> {
    match path.try_exists() {
        Ok(false) => Ok(None),
        Ok(true) => Ok(Some(open(path, repository, OpenFlags::SQLITE_OPEN_READ_ONLY)?.1)),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

fn open(path: &Path, repository: RepositoryId, flags: OpenFlags) -> Result<(Connection, Trust), Error> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::Missing { path: path.to_owned() }),
        Err(source) => return Err(Error::File { path: path.to_owned(), source }),
        Ok(_) => {}
    }
    let db = connect(path, flags)?;
    let schema: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).during("open the catalog", path)?;
    if schema != SCHEMA {
        return Err(Error::Schema { path: path.to_owned(), found: schema });
    }
    let trust = Trust::load(&db, path)?;
    if trust.repository != repository {
        return Err(Error::Foreign { path: path.to_owned(), found: trust.repository, expected: repository });
    }
    Ok((db, trust))
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let prepare = || -> rusqlite::Result<Connection> {
        let db = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        let writes = flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE);
        if writes {
            db.pragma_update(None, "journal_mode", "wal")?;
            // A commit that was reported must survive a power cut: others build on it.
            db.pragma_update(None, "synchronous", "full")?;
        }
        db.pragma_update(None, "cache_size", if writes { -CACHE_KIB } else { -READ_CACHE_KIB })?;
        // Otherwise a statement is planned anew for each value that it compares with.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        db.pragma_update(None, "temp_store", "memory")?;
        db.pragma_update(None, "trusted_schema", false)?;
        db.set_prepared_statement_cache_capacity(64);
        Ok(db)
    };
    prepare().during("open the catalog", path)
}

fn begin(db: &Connection, path: &Path) -> Result<(), Error> {
    db.execute_batch("BEGIN IMMEDIATE").during("begin a transaction", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::{Profile, Role, SecretKey};
    use crate::format::id::CatalogId;

    /// A new catalog in `folder`.
    pub(super) fn catalog(folder: &Path) -> Catalog {
        let host = SecretKey::generate(Profile::Rfc9580, "test", Role::Host, None).unwrap();
        let trust = Trust {
            repository: RepositoryId::random(),
            catalog: CatalogId::random(),
            encrypted: false,
            seed: 1,
            host: host.certificate().fingerprint(),
            recipients: Vec::new(),
        };
        Catalog::create(&folder.join("catalog.sqlite"), trust).unwrap()
    }

    #[test]
    fn a_closed_catalog_is_one_file_and_can_be_moved() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let repository = catalog.trust().repository;
        catalog.close().unwrap();
        let names: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["catalog.sqlite"]);
        let moved = folder.path().join("moved");
        std::fs::rename(folder.path().join("catalog.sqlite"), &moved).unwrap();
        assert_eq!(Catalog::open(&moved, repository).unwrap().integrity().unwrap(), Vec::<String>::new());
    }
}
