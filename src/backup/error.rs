//! What ends a backup.

use crate::crypt::Fingerprint;
use crate::{catalog, crypt, format, repository, source, state, target};

/// A backup that did not come to its end. What was committed before stays and is not stored again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// The state directory failed, or another run holds the lock.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// A source failed as a whole: a path that was given is not there.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A block could not be made.
    #[error("cannot make a block: {0}")]
    Format(#[from] format::Error),
    /// A block could not be sealed.
    #[error("cannot encrypt: {0}")]
    Crypt(#[from] crypt::Error),
    /// This machine can't write to the repository.
    #[error(
        "this machine has no host key for the repository ({path} is missing); a repository is written to by the machine that made it"
    )]
    NoHostKey {
        /// Where it should be.
        path: String,
    },
    /// The target shows other recipients than those that were agreed on.
    #[error(
        "the recipients' certificates in the repository are not those that this machine encrypts to ({found} instead of {expected}); somebody changed keys/, nothing was backed up"
    )]
    Recipients {
        /// What the target shows.
        found: String,
        /// What was fixed at init.
        expected: String,
    },
    /// The target says otherwise than agreed whether blocks are encrypted.
    #[error(
        "the repository says that it is {found}, but it was made {expected}; somebody changed brackfs.toml, nothing was backed up"
    )]
    Encryption {
        /// What the target says.
        found: &'static str,
        /// What was fixed at init.
        expected: &'static str,
    },
    /// The host key on disk is not the one that the catalog knows.
    #[error("the host key of this machine is {found}, but the catalog was made for {expected}")]
    HostKey {
        /// The key on disk.
        found: Fingerprint,
        /// The key that was fixed at init.
        expected: Fingerprint,
    },
    /// Somebody else wrote to the repository.
    #[error(
        "another machine or another catalog has written to this repository (generation {found}, this catalog knows {known}); one repository belongs to one machine"
    )]
    OtherWriter {
        /// The last generation at the target.
        found: u64,
        /// The last generation of this catalog.
        known: u64,
    },
    /// The repository lost what the catalog knows of.
    #[error(
        "the repository is older than this machine's catalog (generation {found}, this catalog knows {known}): it was set back or lost objects; nothing was backed up"
    )]
    SetBack {
        /// The last generation at the target.
        found: u64,
        /// The last generation of this catalog.
        known: u64,
    },
    /// There is nothing to back up.
    #[error("cannot back up {path}: {source}")]
    NoSource {
        /// The path that was given.
        path: String,
        /// Why it can't be looked at.
        source: std::io::Error,
    },
    /// Of several paths none is there.
    #[error("none of the paths to back up is there")]
    NothingThere,
    /// Standard input failed: how much of it is missing nobody knows.
    #[error("cannot read standard input: {0}; no snapshot was made")]
    Stdin(#[source] std::io::Error),
    /// Paths that can't be backed up together, or an option that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The run was told to stop.
    #[error("interrupted; what was stored so far is kept, and the next backup goes on from there")]
    Interrupted,
    /// A dry run was told to stop.
    #[error("interrupted; a dry run stores nothing")]
    PreviewInterrupted,
    /// A temporary file failed.
    #[error("cannot use a temporary file in {folder}: {source} (TMPDIR chooses another folder)")]
    Temporary {
        /// Where temporary files are made.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
    /// A thread ended without saying why: a defect.
    #[error("a part of the backup stopped unexpectedly ({0}); please report this")]
    Stopped(&'static str),
}

impl Error {
    /// Whether what was asked for makes no sense.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Usage(_) => true,
            Error::Source(error) => error.is_usage(),
            _ => false,
        }
    }
}
