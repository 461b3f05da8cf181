//! This machine's state directory: a folder for each repository, readable by its user only. What root adds to the state
//! directory of another user belongs to that user.
//!
//! ```text
//! <state>/journal.sqlite                       the steps of configured runs
//! <state>/running                              locked by these steps while they run: a byte for each
//! <state>/snapshots/                           records of snapshots of file systems, and where LVM's are mounted
//! <state>/<repository id>/host.key             the host key of this machine (hosts only)
//! <state>/<repository id>/host.key.new         the host key of an unfinished adoption
//! <state>/<repository id>/owner.asc            a copy of the owner's locked key, if the repository has one (hosts only)
//! <state>/<repository id>/catalog.sqlite       the catalog (hosts only)
//! <state>/<repository id>/catalog.sqlite.old   the previous catalog, after a rebuild
//! <state>/<repository id>/adopting             the id under which an unfinished adoption writes
//! <state>/<repository id>/read-until           the pack that the last check of a part of the packs ended with
//! <state>/<repository id>/looked               the server where a backup looked for lost documents last, and when (its mtime)
//! <state>/<repository id>/lock                 locked while a run writes; the kernel unlocks it when the process ends
//! <state>/<repository id>/lock.waiting         locked by a run that waits for the lock
//! <state>/<repository id>/reserve              space for commands that free space when the disk is full (hosts only)
//! <state>/<repository id>/signers              fingerprints of host keys that readers trust
//! <state>/<repository id>/session-keys         session keys that gpg decrypted for readers, sealed to the owner
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tracing::debug;

use crate::crypt::{Fingerprint, KeyStore};
use crate::failure::{Failure, FailureKind};
use crate::format::id::RunId;
use crate::format::{PackId, RepositoryId};
use crate::sys::durable::{IfExists, sync_path, write_owned_file};
use crate::sys::owner::{follow_parent, open_private};

/// An error in the state directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file system operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The failed action, as a verb.
        action: &'static str,
        /// The affected file or folder.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// Another run holds the lock.
    #[error(
        "another run of brackfs is writing to this repository ({holder} holds {path}); try again later, or wait longer with {setting}"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that holds the lock, if known.
        holder: String,
        /// What says how long to wait: see [`LockWait::setting`].
        setting: &'static str,
    },
    /// The stop flag was set while waiting for the lock.
    #[error("interrupted while waiting for another run of brackfs")]
    Interrupted,
    /// A file has invalid content.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The kind of damage.
        why: String,
    },
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Locked { .. } => FailureKind::Locked,
            Error::Interrupted => FailureKind::Interrupted,
            Error::Io { source, .. } if is_full(source) => FailureKind::Full,
            Error::Io { .. } | Error::Damaged { .. } => FailureKind::Failed,
        }
    }
}

/// The interval between attempts to get the lock.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The longest process id that is read from a lock file, in bytes.
const HOLDER_SIZE: u64 = 20;

/// This machine's state for one repository.
#[derive(Debug, Clone)]
pub struct RepositoryState {
    folder: PathBuf,
}

/// How a run that waits for the lock is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Holders of a low priority give the lock up for it: see [`Lock::is_wanted`].
    Normal,
    /// Takes the lock only if no run of normal priority waits for it.
    Low,
}

/// How long a run waits for the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockWait {
    /// The longest time.
    pub longest: Duration,
    /// What the user sets it with, for messages.
    pub setting: &'static str,
}

impl LockWait {
    /// The option of a command.
    pub const fn option(longest: Duration) -> Self {
        LockWait { longest, setting: "--wait-lock" }
    }

    /// The key of a configured target.
    pub const fn configured(longest: Duration) -> Self {
        LockWait { longest, setting: "wait-lock in the configuration of the target" }
    }
}

/// The lock of a run that writes, and the state that it protects. Released on drop, or when the process ends.
#[derive(Debug)]
pub struct Lock {
    state: RepositoryState,
    _file: File,
}

impl Lock {
    /// The locked state.
    pub fn state(&self) -> &RepositoryState {
        &self.state
    }

    /// Whether a run of normal priority waits for this lock.
    pub fn is_wanted(&self) -> bool {
        self.state.is_lock_wanted()
    }
}

/// Creates a folder and those above it durably, accessible by their user only.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    let missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.is_dir()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // A new folder is durable once its parent is synced.
    missing.iter().filter_map(|folder| folder.parent()).try_for_each(sync_path)
}

impl RepositoryState {
    /// The state of repository `id` in the state directory `state`. Does not access the file system.
    pub fn new(state: &Path, id: RepositoryId) -> Self {
        RepositoryState { folder: state.join(id.to_string()) }
    }

    /// The folder of this repository.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Creates the folder durably, accessible by its user only.
    pub fn create(&self) -> Result<(), Error> {
        let is_new = !self.folder.is_dir();
        create_folder(&self.folder).map_err(|source| self.failed("create", &self.folder, source))?;
        // Only this folder: root does not give a whole new state directory away.
        if is_new {
            follow_parent(&self.folder);
        }
        Ok(())
    }

    /// Removes the files that `init` creates, after it has failed. Best effort.
    pub fn discard(&self) {
        for path in [self.host_key_path(), self.owner_key_path(), self.catalog_path()] {
            for suffix in ["", "-wal", "-shm", "-journal"] {
                let _ = self.remove(&with_suffix(&path, suffix));
            }
        }
        let _ = fs::remove_dir(&self.folder);
    }

    /// The path of the catalog.
    pub fn catalog_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite")
    }

    /// The path of a catalog that is being built.
    pub fn new_catalog_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite.new")
    }

    /// The path of the previous catalog.
    pub fn old_catalog_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite.old")
    }

    /// Removes an unfinished new catalog.
    pub fn discard_new_catalog(&self) -> Result<(), Error> {
        ["", "-wal", "-shm", "-journal"]
            .iter()
            .try_for_each(|suffix| self.remove(&with_suffix(&self.new_catalog_path(), suffix)))
    }

    /// Replaces the catalog by the new one, which must be closed, and keeps the old one. If this is interrupted, there
    /// may be no catalog; then one must be built again.
    pub fn put_new_catalog(&self) -> Result<(), Error> {
        let (catalog, old) = (self.catalog_path(), self.old_catalog_path());
        // SQLite's auxiliary files belong to the old database.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let (from, to) = (with_suffix(&catalog, suffix), with_suffix(&old, suffix));
            self.remove(&to)?;
            match fs::rename(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(|source| self.failed("move aside", &from, source))?,
            }
        }
        let sync = || sync_path(&self.folder);
        let put = sync().and_then(|()| fs::rename(self.new_catalog_path(), &catalog)).and_then(|()| sync());
        put.map_err(|source| self.failed("write", &catalog, source))
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| self.failed("remove", path, source)),
        }
    }

    /// The path of the host key.
    pub fn host_key_path(&self) -> PathBuf {
        self.folder.join("host.key")
    }

    fn signers_path(&self) -> PathBuf {
        self.folder.join("signers")
    }

    /// The armored host key; `None` if this machine is not a host of the repository.
    pub fn host_key(&self) -> Result<Option<Vec<u8>>, Error> {
        self.read(&self.host_key_path())
    }

    /// Stores the host key. Fails if there is one already.
    pub fn put_host_key(&self, armored: &[u8]) -> Result<(), Error> {
        self.write(&self.host_key_path(), armored, IfExists::Fail)
    }

    fn new_host_key_path(&self) -> PathBuf {
        self.folder.join("host.key.new")
    }

    /// The armored host key of an unfinished adoption.
    pub fn new_host_key(&self) -> Result<Option<Vec<u8>>, Error> {
        self.read(&self.new_host_key_path())
    }

    /// Stores the host key of an adoption that begins.
    pub fn put_new_host_key(&self, armored: &[u8]) -> Result<(), Error> {
        self.write(&self.new_host_key_path(), armored, IfExists::Replace)
    }

    fn owner_key_path(&self) -> PathBuf {
        self.folder.join("owner.asc")
    }

    /// The copy of the owner's locked key; `None` if the repository has no such key, or this machine is not its host.
    pub fn owner_key(&self) -> Result<Option<Vec<u8>>, Error> {
        self.read(&self.owner_key_path())
    }

    /// Stores a copy of the owner's locked key. Fails if there is one already.
    pub fn put_owner_key(&self, armored: &[u8]) -> Result<(), Error> {
        self.write(&self.owner_key_path(), armored, IfExists::Fail)
    }

    fn adoption_path(&self) -> PathBuf {
        self.folder.join("adopting")
    }

    /// The id under which an unfinished adoption writes.
    pub fn adoption(&self) -> Result<Option<RunId>, Error> {
        let bytes = self.read(&self.adoption_path())?.unwrap_or_default();
        // Only temporary files depend on it, so a damaged one is replaced.
        Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()))
    }

    /// Returns the id under which an adoption writes. It stays the same until an adoption ends.
    pub fn begin_adoption(&self) -> Result<RunId, Error> {
        if let Some(run) = self.adoption()? {
            return Ok(run);
        }
        let run = RunId::random();
        self.write(&self.adoption_path(), format!("{run}\n").as_bytes(), IfExists::Replace)?;
        Ok(run)
    }

    /// Forgets the id and the new host key, at the end of an adoption.
    pub fn end_adoption(&self) -> Result<(), Error> {
        self.remove(&self.new_host_key_path())?;
        self.remove(&self.adoption_path())
    }

    fn read_until_path(&self) -> PathBuf {
        self.folder.join("read-until")
    }

    /// The pack that the last check of a part of the packs ended with. `None` if there was none, or if the note is damaged:
    /// the next check then begins with the first pack.
    pub fn read_until(&self) -> Result<Option<PackId>, Error> {
        let bytes = self.read(&self.read_until_path())?.unwrap_or_default();
        Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()))
    }

    /// Notes the pack that a check of a part of the packs ended with.
    pub fn note_read_until(&self, pack: PackId) -> Result<(), Error> {
        self.write(&self.read_until_path(), format!("{pack}\n").as_bytes(), IfExists::Replace)
    }

    fn looked_path(&self) -> PathBuf {
        self.folder.join("looked")
    }

    /// Notes that a backup has looked for lost documents at a target on a server. `place` is the identity of the target
    /// ([`Location::identity`](crate::storage::Location::identity)).
    pub fn note_look(&self, place: &str) -> Result<(), Error> {
        self.write(&self.looked_path(), place.as_bytes(), IfExists::Replace)
    }

    /// Whether a backup looked there within this time.
    pub fn has_looked(&self, place: &str, within: Duration) -> bool {
        let modified = || fs::metadata(self.looked_path()).and_then(|found| found.modified());
        self.looked_last_at(place) && modified().is_ok_and(|at| at.elapsed().is_ok_and(|ago| ago < within))
    }

    /// Whether the last look of a backup was there.
    fn looked_last_at(&self, place: &str) -> bool {
        fs::read(self.looked_path()).is_ok_and(|noted| noted == place.as_bytes())
    }

    /// The repository whose last backup with such a look was there, within this time. `None` if there is none, or if several
    /// repositories were there.
    pub fn looked_at(state: &Path, place: &str, within: Duration) -> Option<(RepositoryId, RepositoryState)> {
        let mut known = RepositoryState::all_looked_at(state, place);
        let first = known.next();
        first.filter(|(_, first)| known.next().is_none() && first.has_looked(place, within))
    }

    /// Forgets all looks at a place where a repository is made or adopted: there may have been another one.
    pub fn forget_looks(state: &Path, place: &str) {
        // Without the files, nothing is assumed about the place.
        RepositoryState::all_looked_at(state, place).for_each(|(_, known)| _ = fs::remove_file(known.looked_path()));
    }

    fn all_looked_at(state: &Path, place: &str) -> impl Iterator<Item = (RepositoryId, RepositoryState)> {
        let folders = fs::read_dir(state).into_iter().flatten().flatten();
        let ids = folders.filter_map(|folder| folder.file_name().to_str()?.parse().ok());
        let all = ids.map(|id| (id, RepositoryState::new(state, id)));
        all.filter(move |(_, known)| known.looked_last_at(place))
    }

    /// Writes a file that only its user can read, atomically and durably.
    fn write(&self, path: &Path, bytes: &[u8], if_exists: IfExists) -> Result<(), Error> {
        write_owned_file(path, bytes, 0o600, if_exists).map_err(|source| self.failed("write", path, source))
    }

    /// Takes the lock. Fails with [`Error::Locked`] if it is not free within this time, or when `stop` is set. If it has
    /// to wait, it first calls `waits` with a description of the holder.
    pub fn lock(
        &self,
        wait: LockWait,
        priority: Priority,
        stop: &AtomicBool,
        waits: impl FnOnce(&str),
    ) -> Result<Lock, Error> {
        let path = self.folder.join("lock");
        let mut file = open_lock(&path).map_err(|source| self.failed("open", &path, source))?;
        let (since, mut waits) = (Instant::now(), Some(waits));
        let mut waiting = None;
        loop {
            if priority == Priority::Normal || !self.is_lock_wanted() {
                match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => break,
                    Err(rustix::io::Errno::WOULDBLOCK) => {}
                    Err(e) => return Err(self.failed("lock", &path, e.into())),
                }
            }
            if since.elapsed() >= wait.longest {
                return Err(Error::Locked { holder: holder(&path), path, setting: wait.setting });
            }
            if priority == Priority::Normal && waiting.is_none() {
                waiting = self.want_lock();
            }
            if let Some(waits) = waits.take() {
                debug!("waiting for the lock");
                waits(&holder(&path));
            }
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            sleep(TRY_AGAIN.min(wait.longest.saturating_sub(since.elapsed())));
        }
        // Only for the messages of waiting processes, so errors (such as a full disk) are ignored.
        let _ = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        debug!(waited_ms = since.elapsed().as_millis(), "locked");
        Ok(Lock { state: self.clone(), _file: file })
    }

    fn waiting_path(&self) -> PathBuf {
        self.folder.join("lock.waiting")
    }

    /// Tells the holder that this run waits, until the file is closed. Returns nothing if another run says so already, or if
    /// the file cannot be locked.
    fn want_lock(&self) -> Option<File> {
        let file = open_lock(&self.waiting_path()).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(file)
    }

    fn is_lock_wanted(&self) -> bool {
        let Ok(file) = File::open(self.waiting_path()) else { return false };
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    /// The host keys that readers on this machine trust.
    pub fn signers(&self) -> Result<Vec<Fingerprint>, Error> {
        let path = self.signers_path();
        let bytes = self.read(&path)?.unwrap_or_default();
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let text = String::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(|line| line.parse().map_err(|e: crate::crypt::Error| damaged(e.to_string()))).collect()
    }

    /// Adds a host key to the trusted ones.
    pub fn remember_signer(&self, signer: &Fingerprint) -> Result<(), Error> {
        self.create()?;
        // Another process may add a key at the same time. Not all file systems have locks on directories.
        let folder = File::open(&self.folder).map_err(|source| self.failed("open", &self.folder, source))?;
        let _ = rustix::fs::flock(&folder, FlockOperation::LockExclusive);
        let path = self.signers_path();
        let mut list = self.read(&path)?.unwrap_or_default();
        if list.last().is_some_and(|last| *last != b'\n') {
            list.push(b'\n');
        }
        list.extend_from_slice(format!("{signer}\n").as_bytes());
        self.write(&path, &list, IfExists::Replace)
    }

    fn session_keys_path(&self) -> PathBuf {
        self.folder.join("session-keys")
    }

    /// The sealed session keys; `None` if there are none or they are longer than `limit` bytes.
    pub fn session_keys(&self, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let path = self.session_keys_path();
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes)) {
            Ok(size) => Ok((size <= limit).then_some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("read", &path, source)),
        }
    }

    /// Replaces the sealed session keys atomically.
    pub fn put_session_keys(&self, sealed: &[u8]) -> Result<(), Error> {
        self.create()?;
        self.write(&self.session_keys_path(), sealed, IfExists::Replace)
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

impl KeyStore for RepositoryState {
    fn read(&self, limit: usize) -> Option<Vec<u8>> {
        self.session_keys(limit).ok().flatten()
    }

    fn write(&self, sealed: &[u8]) {
        // Only a cache: readers must also work where the state directory is not writable.
        let _ = self.put_session_keys(sealed);
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    open_private(path, OpenOptions::new().read(true).write(true))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Describes the holder of a lock from the process id in the lock file.
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
    fn session_keys_are_replaced_atomically_and_private() {
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
    fn a_repository_is_found_by_the_last_look_unless_another_one_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| RepositoryId::random());
        let [state, other_state] = [one, other].map(|id| RepositoryState::new(folder.path(), id));
        let day = Duration::from_secs(24 * 60 * 60);
        let found = |place: &str, within| RepositoryState::looked_at(folder.path(), place, within).map(|(id, _)| id);
        [&state, &other_state].iter().for_each(|state| state.create().unwrap());
        assert_eq!(found("here", day), None);
        state.note_look("here").unwrap();
        other_state.note_look("there").unwrap();
        assert_eq!([found("here", day), found("there", day), found("nowhere", day)], [Some(one), Some(other), None]);
        assert_eq!(found("here", Duration::ZERO), None);
        other_state.note_look("here").unwrap();
        assert_eq!([found("here", day), found("there", day)], [None; 2]);
        RepositoryState::forget_looks(folder.path(), "here");
        state.note_look("here").unwrap();
        assert_eq!(found("here", day), Some(one));
        // A clock that was set back.
        let later = std::time::SystemTime::now() + day;
        File::options().write(true).open(state.looked_path()).unwrap().set_modified(later).unwrap();
        assert_eq!(found("here", day), None);
    }

    #[test]
    fn session_keys_that_cannot_be_kept_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = RepositoryState::new(folder.path(), RepositoryId::random());
        // A non-empty directory cannot be replaced by a file.
        fs::create_dir_all(state.session_keys_path().join("in use")).unwrap();
        assert!(matches!(state.session_keys(10), Err(Error::Io { action: "read", .. })));
        assert!(matches!(state.put_session_keys(b"sealed"), Err(Error::Io { action: "write", .. })));
        assert_eq!(fs::read_dir(state.folder()).unwrap().count(), 1);
        let store: &dyn KeyStore = &state;
        store.write(b"sealed");
        assert_eq!(store.read(10), None);
    }

    #[test]
    fn signers_are_added_to_the_list_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let state = RepositoryState::new(folder.path(), RepositoryId::random());
        let signers: Vec<Fingerprint> =
            ["a", "b", "c"].map(|digit| digit.repeat(64).parse().unwrap()).into_iter().collect();
        assert_eq!(state.signers().unwrap(), []);
        state.remember_signer(&signers[0]).unwrap();
        // As edited by hand, without a newline at the end.
        fs::write(state.signers_path(), format!("# by hand\n{}", signers[0])).unwrap();
        state.remember_signer(&signers[1]).unwrap();
        state.remember_signer(&signers[2]).unwrap();
        assert_eq!(state.signers().unwrap(), signers);
        assert!(fs::read_to_string(state.signers_path()).unwrap().starts_with("# by hand\n"));
    }

    #[test]
    fn a_second_lock_waits_until_the_time_limit_or_the_release() {
        let folder = tempfile::tempdir().unwrap();
        let state = RepositoryState::new(folder.path(), RepositoryId::random());
        state.create().unwrap();
        let stop = AtomicBool::new(false);
        let none = |_: &str| unreachable!("the lock is free");
        let held = state.lock(LockWait::option(Duration::ZERO), Priority::Normal, &stop, none).unwrap();
        let told = |wait, stop: &AtomicBool| {
            let mut said = None;
            let wait = LockWait::option(wait);
            let error = state.lock(wait, Priority::Normal, stop, |holder| said = Some(holder.to_owned())).map(drop);
            (error, said)
        };
        let own = format!("process {}", std::process::id());
        assert!(matches!(told(Duration::ZERO, &stop), (Err(Error::Locked { holder, .. }), None) if holder == own));
        let (error, said) = told(Duration::from_millis(250), &stop);
        assert!(matches!(error, Err(Error::Locked { .. })));
        assert_eq!(said, Some(own));
        assert!(matches!(told(Duration::MAX, &AtomicBool::new(true)).0, Err(Error::Interrupted)));
        std::thread::scope(|threads| {
            let (waits, waiting) = std::sync::mpsc::channel();
            let second = threads.spawn(|| {
                let wait = LockWait::option(Duration::from_secs(60));
                state.lock(wait, Priority::Normal, &stop, move |_| waits.send(()).unwrap()).is_ok()
            });
            waiting.recv().unwrap();
            drop(held);
            assert!(second.join().unwrap());
        });
    }

    #[test]
    fn a_run_of_low_priority_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let state = RepositoryState::new(folder.path(), RepositoryId::random());
        state.create().unwrap();
        let stop = AtomicBool::new(false);
        let lock = |wait, priority| state.lock(LockWait::option(wait), priority, &stop, |_| ());
        let held = lock(Duration::ZERO, Priority::Low).unwrap();
        assert!(!held.is_wanted());
        let long = Duration::from_secs(60);
        std::thread::scope(|threads| {
            let low = threads.spawn(|| lock(long, Priority::Low));
            let normal = threads.spawn(|| lock(long, Priority::Normal).map(|lock| lock.is_wanted()));
            while !held.is_wanted() {
                sleep(Duration::from_millis(1));
            }
            assert!(lock(Duration::ZERO, Priority::Low).is_err());
            drop(held);
            assert!(!normal.join().unwrap().unwrap());
            let low = low.join().unwrap().unwrap();
            assert!(!low.is_wanted());
            assert!(lock(Duration::ZERO, Priority::Normal).is_err());
            assert!(!low.is_wanted());
        });
    }
}
