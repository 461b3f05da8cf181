//! The database of a catalog.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::error::{Context, Error};
use super::spans::NewestUsage;
use super::trust::Trust;
use crate::format::RepositoryId;
use crate::sys::owner::create_private;
use crate::sys::{byte_lock, folder_of};

/// The version of the schema, stored in SQLite's `user_version`. A database of another version is refused.
const SCHEMA: i64 = 12;

/// SQLite's page cache of the connection that writes, in KiB.
const CACHE_KIB: i64 = 6 << 10;
/// The page cache of connections that only read, in KiB: they mostly scan, so a larger one is of little use.
const READ_CACHE_KIB: i64 = 2 << 10;
/// How long a reader without write access waits for SQLite's log and its index, while another process makes or removes them.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two tries.
const RETRY: Duration = Duration::from_millis(20);
/// The byte of the log's index that each process with the database open has locked (`UNIX_SHM_DMS` in SQLite).
const IN_USE: i64 = 128;
/// Length of the header of an SQLite database, which has a change counter.
const HEADER: u64 = 100;

/// A catalog that is open to be read.
#[derive(Debug)]
pub struct View {
    catalog: Catalog,
    /// The file as it was before it was opened without locks.
    unlocked: Option<Stamp>,
}

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

    /// Opens the catalog of `repository` to read it, possibly while a run writes to it, and on a file system that is read-only.
    pub fn view(path: &Path, repository: RepositoryId) -> Result<View, Error> {
        view(path, repository, connect_to_read)
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

impl View {
    /// Reads the catalog. If another process changed the file meanwhile, and this one could not lock it, the result is
    /// [`Error::Changed`].
    pub fn read<T, E: From<Error>>(self, read: impl FnOnce(Catalog) -> Result<T, E>) -> Result<T, E> {
        let path = self.catalog.path.clone();
        let result = read(self.catalog);
        check_stamp(self.unlocked.as_ref(), &path)?;
        result
    }
}

/// The state of the database's file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    file: [u64; 3],
    times: [i64; 4],
    header: Vec<u8>,
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, Error> {
        let read = || {
            // On NFS, only opening the file shows its current state.
            let file = File::open(path)?;
            let found = file.metadata()?;
            let mut header = Vec::new();
            file.take(HEADER).read_to_end(&mut header)?;
            let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
            Ok(Stamp { file: [found.dev(), found.ino(), found.len()], times, header })
        };
        read().map_err(|source| Error::File { path: path.to_owned(), source })
    }
}

/// Fails if the file is not as it was before it was opened without locks.
fn check_stamp(unlocked: Option<&Stamp>, path: &Path) -> Result<(), Error> {
    match unlocked {
        Some(before) if Stamp::of(path)? != *before => Err(Error::Changed { path: path.to_owned() }),
        _ => Ok(()),
    }
}

/// Reads the trust of a catalog without a transaction; `None` if there is no catalog.
pub fn trust_of(path: &Path, repository: RepositoryId) -> Result<Option<Trust>, Error> {
    match Catalog::view(path, repository) {
        Err(Error::Missing { .. }) => Ok(None),
        view => view?.read(|catalog| Ok(Some(catalog.trust))),
    }
}

fn view(
    path: &Path,
    repository: RepositoryId,
    connect: impl FnOnce(&Path) -> Result<(Connection, Option<Stamp>), Error>,
) -> Result<View, Error> {
    let mut unlocked = None;
    let opened = open(path, repository, |path| {
        let (db, stamp) = connect(path)?;
        unlocked = stamp;
        Ok(db)
    });
    check_stamp(unlocked.as_ref(), path)?;
    let (db, trust) = opened?;
    let catalog = Catalog { db, path: path.to_owned(), trust, newest: RefCell::default() };
    Ok(View { catalog, unlocked })
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
/// The first reader makes SQLite's log and the index of the log, which stay empty, and the last one removes them. It also
/// recovers what a killed run left in the log. If this process may not write there and nothing is left in the log, the file is
/// read on its own, and the result has its state before that.
pub(super) fn connect_to_read(path: &Path) -> Result<(Connection, Option<Stamp>), Error> {
    let begun = Instant::now();
    let (db, unlocked) = loop {
        match shared(path) {
            Err(error)
                if matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
                    && !is_writable(path) =>
            {
                // Another process may be making or removing them.
                let has_log = ["-wal", "-shm"].iter().any(|suffix| companion(path, suffix).exists());
                if !has_log || begun.elapsed() >= PATIENCE {
                    break alone(path)?;
                }
                thread::sleep(RETRY);
            }
            other => break (other.during("open the catalog", path)?, None),
        }
    };
    configure(&db, READ_CACHE_KIB).during("open the catalog", path)?;
    Ok((db, unlocked))
}

/// Opens the database with its log and the locks of SQLite.
fn shared(path: &Path) -> rusqlite::Result<Connection> {
    // A read-only connection would leave the log behind.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.pragma_update(None, "query_only", true)?;
    // The log is opened by the first read.
    db.pragma_query_value(None, "user_version", |_| Ok(()))?;
    Ok(db)
}

/// Opens the file of the database without its log and without locks: a process that can write there may change it.
fn alone(path: &Path) -> Result<(Connection, Option<Stamp>), Error> {
    let stamp = Stamp::of(path)?;
    if File::open(companion(path, "-shm")).is_ok_and(|index| byte_lock::is_held(&index, IN_USE)) {
        return Err(Error::Busy { path: path.to_owned() });
    }
    let log = companion(path, "-wal");
    match std::fs::metadata(&log) {
        Ok(found) if found.len() > 0 => return Err(Error::Unfinished { path: path.to_owned() }),
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(Error::File { path: log, source }),
        _ => {}
    }
    let escaped: String = path.as_os_str().as_bytes().iter().map(|byte| format!("%{byte:02X}")).collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let open = || Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags);
    Ok((open().during("open the catalog", path)?, Some(stamp)))
}

/// Whether this process may write to the folder of a file.
fn is_writable(path: &Path) -> bool {
    accessat(CWD, folder_of(path), Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// The file that SQLite keeps next to a database under the same name with this suffix.
fn companion(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
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

    #[test]
    fn a_change_of_a_file_that_is_read_without_locks_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let (path, repository) = (catalog.path.clone(), catalog.trust.repository);
        catalog.close().unwrap();
        let change = || {
            let catalog = Catalog::open(&path, repository).unwrap();
            catalog.db.execute_batch("CREATE TABLE more (id); DROP TABLE more").unwrap();
            catalog.close().unwrap();
        };
        let read = |meanwhile: &dyn Fn()| {
            view(&path, repository, alone)?.read(|catalog| {
                meanwhile();
                catalog.snapshots()
            })
        };
        read(&|| {}).unwrap();
        let is_noticed = |result| matches!(result, Err(Error::Changed { .. }));
        assert!(is_noticed(read(&change)));
        // The reader finds parts of two states, which is not damage.
        let whole = std::fs::read(&path).unwrap();
        assert!(is_noticed(read(&|| std::fs::write(&path, vec![7; whole.len()]).unwrap())));
        assert!(matches!(read(&|| {}), Err(Error::Damaged { .. })));
        std::fs::write(&path, whole).unwrap();
        let opened = view(&path, repository, |path| {
            let alone = alone(path);
            change();
            alone
        });
        assert!(is_noticed(opened.map(|_| Vec::new())));
        // A file with the locks of SQLite is not changed below its readers.
        let result = view(&path, repository, connect_to_read).unwrap().read(|catalog| {
            let before = catalog.snapshots()?;
            let writer = Catalog::open(&path, repository)?;
            drop(writer);
            Ok::<_, Error>(before)
        });
        result.unwrap();
    }

    #[test]
    fn a_catalog_in_use_is_not_read_without_locks() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = catalog(folder.path());
        catalog.commit().unwrap();
        let path = catalog.path.clone();
        assert!(matches!(alone(&path), Err(Error::Busy { .. })));
        connect_to_read(&path).unwrap();
    }
}
