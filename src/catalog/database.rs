//! The database of a catalog.

use std::cell::RefCell;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::error::{Context, Error};
use super::spans::NewestUsage;
use super::trust::Trust;
use crate::format::RepositoryId;
use crate::sys::owner::create_private;

/// The schema version, in SQLite's `user_version`. There are no migrations: other versions are refused.
const SCHEMA: i64 = 11;

/// SQLite's page cache of the connection that writes, in KiB.
const CACHE_KIB: i64 = 6 << 10;
/// The page cache of connections that only read, in KiB: they mostly scan, so a larger one is of little use.
const READ_CACHE_KIB: i64 = 2 << 10;

/// The catalog, opened for writing. Everything since the last commit is one transaction.
#[derive(Debug)]
pub struct Catalog {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    pub(super) trust: Trust,
    /// The last bitmap that was used. It is stored before a commit.
    pub(super) newest: RefCell<Option<NewestUsage>>,
}

impl Catalog {
    /// Creates the catalog of a new repository, readable by its user only.
    pub fn create(path: &Path, trust: Trust) -> Result<Self, Error> {
        // SQLite would make the file readable by all users.
        let made = create_private(path);
        made.map_err(|source| Error::File { path: path.to_owned(), source })?;
        let db = connect(path)?;
        db.execute_batch(include_str!("schema.sql")).during("set up the catalog", path)?;
        db.pragma_update(None, "user_version", SCHEMA).during("set up the catalog", path)?;
        trust.insert(&db).during("set up the catalog", path)?;
        begin(&db, path)?;
        Ok(Catalog { db, path: path.to_owned(), trust, newest: RefCell::default() })
    }

    /// Opens the catalog of `repository`.
    pub fn open(path: &Path, repository: RepositoryId) -> Result<Self, Error> {
        let (db, trust) = open(path, repository, connect)?;
        begin(&db, path)?;
        Ok(Catalog { db, path: path.to_owned(), trust, newest: RefCell::default() })
    }

    /// Opens the catalog of `repository` read-only, possibly while a run writes to it, and on a file system that is read-only.
    pub fn view(path: &Path, repository: RepositoryId) -> Result<Self, Error> {
        let (db, trust) = open(path, repository, connect_to_read)?;
        Ok(Catalog { db, path: path.to_owned(), trust, newest: RefCell::default() })
    }

    /// The trusted keys and fixed properties of the repository.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Makes everything since the last commit durable, and begins a new transaction.
    pub fn commit(&mut self) -> Result<(), Error> {
        self.store_newest()?;
        let end =
            "UPDATE trust SET next_block = max(next_block, (SELECT coalesce(max(id), 0) + 1 FROM blocks)); COMMIT";
        self.db.execute_batch(end).during("commit", &self.path)?;
        begin(&self.db, &self.path)
    }

    /// Commits and closes the catalog. It is then a single file, so it can be moved.
    pub fn close(self) -> Result<(), Error> {
        self.store_newest()?;
        let end = || {
            self.db.execute_batch("COMMIT")?;
            self.db.pragma_update(None, "journal_mode", "delete")
        };
        end().during("close the catalog", &self.path)
    }

    /// Converts an error of SQL that was run to do `action`.
    pub(super) fn failed(&self, action: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
        let path = self.path.clone();
        move |source| Error::sqlite(action, &path, source)
    }
}

/// Reads the trust of a catalog without a transaction; `None` if there is no catalog.
pub fn trust_of(path: &Path, repository: RepositoryId) -> Result<Option<Trust>, Error> {
    match path.try_exists() {
        Ok(false) => Ok(None),
        Ok(true) => Ok(Some(open(path, repository, connect_to_read)?.1)),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

fn open(
    path: &Path,
    repository: RepositoryId,
    connect: impl FnOnce(&Path) -> Result<Connection, Error>,
) -> Result<(Connection, Trust), Error> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::Missing { path: path.to_owned() }),
        Err(source) => return Err(Error::File { path: path.to_owned(), source }),
        Ok(_) => {}
    }
    let db = connect(path)?;
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

fn connect(path: &Path) -> Result<Connection, Error> {
    let prepare = || {
        let db =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.pragma_update(None, "journal_mode", "wal")?;
        // A reported commit must survive a power cut: later writes to the repository depend on it.
        db.pragma_update(None, "synchronous", "full")?;
        configure(&db, CACHE_KIB)?;
        Ok(db)
    };
    prepare().during("open the catalog", path)
}

/// Opens the database to read it, possibly while another connection writes to it.
///
/// The first reader makes SQLite's log and the index of the log, which stay empty, and the last one removes them. If they cannot
/// be made, the file is read on its own.
pub(super) fn connect_to_read(path: &Path) -> Result<Connection, Error> {
    let shared = || -> rusqlite::Result<Connection> {
        // A read-only connection would leave the log behind.
        let db =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.pragma_update(None, "query_only", true)?;
        // The log is opened by the first read.
        db.pragma_query_value(None, "user_version", |_| Ok(()))?;
        Ok(db)
    };
    let connected = match shared() {
        Err(error) if matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)) => {
            alone(path)?.ok_or(error)
        }
        other => other,
    };
    let prepare = |db| configure(&db, READ_CACHE_KIB).map(|()| db);
    connected.and_then(prepare).during("open the catalog", path)
}

/// Opens the file of the database without a log or locks. `None` if this process could write to its folder: then others may
/// write to it. If one does so through another mount, this connection may fail.
fn alone(path: &Path) -> Result<Option<Connection>, Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    if accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS).is_ok() {
        return Ok(None);
    }
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    match std::fs::metadata(&log) {
        Ok(found) if found.len() > 0 => return Err(Error::Unfinished { path: path.to_owned() }),
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::File { path: log.into(), source });
        }
        _ => {}
    }
    let escaped: String = path.as_os_str().as_bytes().iter().map(|byte| format!("%{byte:02X}")).collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let open = || Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags);
    open().map(Some).during("open the catalog", path)
}

/// The settings of all connections.
fn configure(db: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    db.pragma_update(None, "cache_size", -cache_kib)?;
    // Otherwise SQLite plans a statement again for each bound value.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.pragma_update(None, "temp_store", "memory")?;
    db.pragma_update(None, "trusted_schema", false)?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn begin(db: &Connection, path: &Path) -> Result<(), Error> {
    db.execute_batch("BEGIN IMMEDIATE").during("begin a transaction", path)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::crypt::{KeyPurpose, Profile, SecretKey};
    use crate::format::id::CatalogId;

    /// A new catalog in `folder`.
    pub(in crate::catalog) fn catalog(folder: &Path) -> Catalog {
        let host = SecretKey::generate(Profile::Rfc9580, "test", KeyPurpose::Host, None).unwrap();
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
