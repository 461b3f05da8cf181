//! What this machine keeps beside the repositories: a folder for each, readable by its user only.
//!
//! ```text
//! <state>/<repository id>/host.key         the machine's own key for it (hosts only)
//! <state>/<repository id>/owner.asc        a copy of the owner's locked key, if the repository keeps that (hosts only)
//! <state>/<repository id>/catalog.sqlite   the catalog (hosts only)
//! <state>/<repository id>/catalog.sqlite.old   the one before, if it was built anew
//! <state>/<repository id>/lock             held while a run writes; the kernel frees it with the process
//! <state>/<repository id>/signers          fingerprints of host keys that a reader believes
//! <state>/<repository id>/session-keys     session keys that gpg found out for a reader, sealed to the owner
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::crypt::{Fingerprint, KeyStore};
use crate::format::RepositoryId;
use crate::sys::sync_folder;

/// Something that failed in the state directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another run holds the lock.
    #[error(
        "another run of brackfs is writing to this repository ({holder} holds {path}); try again when it is done, or let --wait-lock wait for it"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as that is known.
        holder: String,
    },
    /// The wait for the lock was told to end.
    #[error("interrupted while waiting for another run of brackfs")]
    Interrupted,
    /// A file whose content makes no sense.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Time between two tries to get the lock.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Most bytes of a process id in a lock file.
const HOLDER_SIZE: u64 = 20;

/// What this machine keeps of one repository.
#[derive(Debug, Clone)]
pub struct RepositoryState {
    folder: PathBuf,
}

/// The lock of a run that writes. Freed when dropped, or with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl RepositoryState {
    /// The state of repository `id` below `state`. Nothing is touched yet.
    pub fn new(state: &Path, id: RepositoryId) -> Self {
        RepositoryState { folder: state.join(id.to_string()) }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder, for its user only, durably.
    pub fn create(&self) -> Result<(), Error> {
        let missing: Vec<_> = self.folder.ancestors().take_while(|folder| !folder.is_dir()).collect();
        let make = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            // A folder is durable once the one above it is synced.
            missing.iter().filter_map(|folder| folder.parent()).try_for_each(sync)
        };
        make().map_err(|source| self.failed("create", &self.folder, source))
    }

    /// Removes what `init` made of it, for a repository that came to nothing. Best effort.
    pub fn discard(&self) {
        for path in [self.host_key_path(), self.owner_key_path(), self.catalog_path()] {
            for suffix in ["", "-wal", "-shm", "-journal"] {
                let _ = self.remove(&with_suffix(&path, suffix));
            }
        }
        let _ = fs::remove_dir(&self.folder);
    }

    /// Where the catalog is.
    pub fn catalog_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite")
    }

    /// Where a new catalog is made, until it takes the place of the other.
    pub fn new_catalog_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite.new")
    }

    /// Where the catalog is kept that a new one replaced.
    pub fn old_catalog_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite.old")
    }

    /// Removes what there is of a new catalog.
    pub fn discard_new_catalog(&self) -> Result<(), Error> {
        ["", "-wal", "-shm", "-journal"]
            .iter()
            .try_for_each(|suffix| self.remove(&with_suffix(&self.new_catalog_path(), suffix)))
    }

    /// Puts the new catalog, closed, in the place of the catalog, and keeps that. If it breaks off halfway there is none,
    /// and one can be built.
    pub fn put_new_catalog(&self) -> Result<(), Error> {
        let (catalog, old) = (self.catalog_path(), self.old_catalog_path());
        // What SQLite keeps beside a database belongs to that one only.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let (from, to) = (with_suffix(&catalog, suffix), with_suffix(&old, suffix));
            self.remove(&to)?;
            match fs::rename(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|source| self.failed("move aside", &from, source))?,
            }
        }
        let sync = || sync(&self.folder);
        let put = sync().and_then(|()| fs::rename(self.new_catalog_path(), &catalog)).and_then(|()| sync());
        put.map_err(|source| self.failed("write", &catalog, source))
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| self.failed("remove", path, source)),
        }
    }

    /// Where the machine's own key is.
    pub fn host_key_path(&self) -> PathBuf {
        self.folder.join("host.key")
    }

    fn signers_path(&self) -> PathBuf {
        self.folder.join("signers")
    }

    /// The machine's own key; none if this machine is no host of the repository.
    pub fn host_key(&self) -> Result<Option<Vec<u8>>, Error> {
        self.read(&self.host_key_path())
    }

    /// Keeps the machine's own key. An older one is never replaced.
    pub fn put_host_key(&self, armored: &[u8]) -> Result<(), Error> {
        self.put_new(&self.host_key_path(), armored)
    }

    fn owner_key_path(&self) -> PathBuf {
        self.folder.join("owner.asc")
    }

    /// The copy of the owner's locked key; `None` if the repository keeps no such key, or this machine is not its host.
    pub fn owner_key(&self) -> Result<Option<Vec<u8>>, Error> {
        self.read(&self.owner_key_path())
    }

    /// Keeps a copy of the owner's locked key. An older one is never replaced.
    pub fn put_owner_key(&self, armored: &[u8]) -> Result<(), Error> {
        self.put_new(&self.owner_key_path(), armored)
    }

    fn put_new(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            sync(&self.folder)
        };
        write().map_err(|source| self.failed("write", path, source))
    }

    /// Takes the lock, or says who holds it ([`Error::Locked`]) if it isn't free within `wait`. Before it begins to wait it
    /// tells `waits` for whom; `stop` ends the wait.
    pub fn lock(&self, wait: Duration, stop: &AtomicBool, waits: impl FnOnce(&str)) -> Result<Lock, Error> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(|source| self.failed("open", &path, source))?;
        let (since, mut waits) = (Instant::now(), Some(waits));
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(e) => return Err(self.failed("lock", &path, e.into())),
            }
            if since.elapsed() >= wait {
                return Err(Error::Locked { holder: holder(&path), path });
            }
            if let Some(waits) = waits.take() {
                waits(&holder(&path));
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            sleep(TRY_AGAIN.min(wait.saturating_sub(since.elapsed())));
        }
        // For those who wait. Nothing depends on it, so a full disk does not matter here.
        let _ = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        Ok(Lock { _file: file })
    }

    /// Host keys that this machine's readers believe.
    pub fn signers(&self) -> Result<Vec<Fingerprint>, Error> {
        let path = self.signers_path();
        let bytes = self.read(&path)?.unwrap_or_default();
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let text = String::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| line.parse().map_err(|e: crate::crypt::Error| damaged(e.to_string()))).collect()
    }

    /// Remembers a host key as one to believe.
    pub fn remember_signer(&self, signer: &Fingerprint) -> Result<(), Error> {
        self.create()?;
        let path = self.signers_path();
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            file.write_all(format!("{signer}\n").as_bytes())
        };
        write().map_err(|source| self.failed("write", &path, source))
    }

    fn session_keys_path(&self) -> PathBuf {
        self.folder.join("session-keys")
    }

    /// Session keys that a reader kept, sealed; none if there are more than `limit` bytes of them.
    pub fn session_keys(&self, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let path = self.session_keys_path();
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes)) {
            Ok(size) => Ok((size <= limit).then_some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("read", &path, source)),
        }
    }

    /// Keeps session keys in the place of those that are there, all of them or none.
    pub fn put_session_keys(&self, sealed: &[u8]) -> Result<(), Error> {
        self.create()?;
        let path = self.session_keys_path();
        // Another process may write at the same time: whoever comes last wins.
        let new = with_suffix(&path, &format!(".{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(sealed)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync(&self.folder)
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&new);
            self.failed("write", &path, source)
        })
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("read", path, source)),
        }
    }

    fn failed(&self, action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { action, path: path.to_owned(), source }
    }
}

/// Makes the names in a folder durable, as far as its file system can.
fn sync(folder: &Path) -> io::Result<()> {
    sync_folder(File::open(folder)?.as_fd()).map(drop)
}

impl KeyStore for RepositoryState {
    fn read(&self, limit: usize) -> Option<Vec<u8>> {
        self.session_keys(limit).ok().flatten()
    }

    fn write(&self, sealed: &[u8]) {
        // A reader works on machines where it may keep nothing, too.
        let _ = self.put_session_keys(sealed);
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Who holds a lock, by what it wrote into it.
fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(HOLDER_SIZE).read_to_string(&mut text));
    match (read, text.parse::<u32>()) {
        (Ok(_), Ok(process)) => format!("process {process}"),
        _ => "it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn session_keys_are_replaced_whole_and_only_their_user_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let state = RepositoryState::new(folder.path(), RepositoryId::random());
        assert_eq!(state.session_keys(10).unwrap(), None);
        for sealed in [b"first".as_slice(), b"then"] {
            state.put_session_keys(sealed).unwrap();
            assert_eq!(state.session_keys(sealed.len()).unwrap().unwrap(), sealed);
            assert_eq!(state.session_keys(sealed.len() - 1).unwrap(), None);
        }
        let files: Vec<_> = fs::read_dir(state.folder()).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn session_keys_that_cannot_be_kept_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = RepositoryState::new(folder.path(), RepositoryId::random());
        // Nothing takes the place of a directory in use.
        fs::create_dir_all(state.session_keys_path().join("in use")).unwrap();
        assert!(matches!(state.session_keys(10), Err(Error::Io { action: "read", .. })));
        assert!(matches!(state.put_session_keys(b"sealed"), Err(Error::Io { action: "write", .. })));
        assert_eq!(fs::read_dir(state.folder()).unwrap().count(), 1);
        let store: &dyn KeyStore = &state;
        store.write(b"sealed");
        assert_eq!(store.read(10), None);
    }

    #[test]
    fn one_holds_the_lock_and_another_waits_as_long_as_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let state = RepositoryState::new(folder.path(), RepositoryId::random());
        state.create().unwrap();
        let stop = AtomicBool::new(false);
        let none = |_: &str| unreachable!("nobody has to wait");
        let held = state.lock(Duration::ZERO, &stop, none).unwrap();
        let told = |wait, stop: &AtomicBool| {
            let mut said = None;
            let error = state.lock(wait, stop, |holder| said = Some(holder.to_owned())).map(drop);
            (error, said)
        };
        let own = format!("process {}", std::process::id());
        assert!(matches!(told(Duration::ZERO, &stop), (Err(Error::Locked { holder, .. }), None) if holder == own));
        let (error, said) = told(Duration::from_millis(250), &stop);
        assert!(matches!(error, Err(Error::Locked { .. })));
        assert_eq!(said, Some(own));
        assert!(matches!(told(Duration::MAX, &AtomicBool::new(true)).0, Err(Error::Interrupted)));
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| told(Duration::from_secs(60), &stop).0.is_ok());
            sleep(Duration::from_millis(50));
            drop(held);
            assert!(waits.join().unwrap());
        });
    }
}
