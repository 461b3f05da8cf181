//! What ends a backup.

use crate::crypt::Fingerprint;
use crate::threads::TooFew;
use crate::{catalog, crypt, format, inventory, repository, source, state, storage};

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
    /// Catalog and repository can't be made to agree.
    #[error(transparent)]
    Inventory(#[from] inventory::Error),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] storage::Error),
    /// A source failed as a whole: a path that was given is not there.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A block could not be made.
    #[error("cannot make a block: {0}")]
    Format(#[from] format::Error),
    /// A block could not be sealed.
    #[error("cannot encrypt: {0}")]
    Crypt(#[from] crypt::Error),
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
    /// Another machine began a run at the same moment.
    #[error(
        "another machine that uses a copy of this machine's state began to write at the same moment (generation {found}); run `brackfs adopt` on the one that shall go on"
    )]
    AtOnce {
        /// The generation that both wanted.
        found: u64,
    },
    /// What this run wrote first is gone.
    #[error(
        "the repository was set back while this backup was writing to it (the object of generation {generation} is gone); nothing more was written. Run the backup again"
    )]
    SetBack {
        /// The generation of this run.
        generation: u64,
    },
    /// A dry run has nothing to compare with.
    #[error("{source}. A backup builds it anew by itself; a dry run changes nothing, so it can't")]
    NothingToCompare {
        /// What is wrong with the catalog.
        source: catalog::Error,
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
    /// The system allows too few threads.
    #[error(transparent)]
    Threads(#[from] TooFew),
    /// A thread ended without saying why: a defect.
    #[error("a part of the backup stopped unexpectedly ({0}); please report this")]
    Stopped(&'static str),
}

impl Error {
    /// Whether a part of the catalog turned out to be damaged.
    pub(super) fn is_damaged_catalog(&self) -> bool {
        matches!(
            self,
            Error::Catalog(catalog::Error::Damaged { .. })
                | Error::Inventory(inventory::Error::Catalog(catalog::Error::Damaged { .. }))
        )
    }

    /// Whether what was asked for makes no sense.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Usage(_) => true,
            Error::Source(error) => error.is_usage(),
            _ => false,
        }
    }
}
