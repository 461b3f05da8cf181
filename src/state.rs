//! What this machine keeps beside the repositories: a folder for each, readable by its user only.
//!
//! ```text
//! <state>/<repository id>/host.key         the machine's own key for it (hosts only)
//! <state>/<repository id>/catalog.sqlite   the catalog (hosts only)
//! <state>/<repository id>/lock             held while a run writes; the kernel frees it with the process
//! <state>/<repository id>/signers          fingerprints of host keys that a reader believes
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::crypt::Fingerprint;
use crate::format::RepositoryId;

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
    #[error("another run of brackfs is writing to this repository (it holds {path}); try again when it is done")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file whose content makes no sense.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

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
            missing.iter().filter_map(|folder| folder.parent()).try_for_each(|above| File::open(above)?.sync_all())
        };
        make().map_err(|source| self.failed("create", &self.folder, source))
    }

    /// Where the catalog is.
    pub fn catalog_path(&self) -> PathBuf {
        self.folder.join("catalog.sqlite")
    }

    fn host_key_path(&self) -> PathBuf {
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
        let path = self.host_key_path();
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(armored)?;
            file.sync_all()?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| self.failed("write", &path, source))
    }

    /// Takes the lock, or says who holds it ([`Error::Locked`]).
    pub fn lock(&self) -> Result<Lock, Error> {
        let path = self.folder.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|source| self.failed("open", &path, source))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked { path }),
            Err(e) => Err(self.failed("lock", &path, e.into())),
        }
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
