//! Brings catalog and repository into agreement.
//!
//! A catalog must never claim more than the repository has. Normally, reading the last generation is enough to show
//! that ([`Divergence`]). Otherwise packs are listed, missing ones are condemned, and unknown ones are added from
//! signed indexes ([`reconcile`]). For a lost catalog, [`rebuild()`] creates an empty one and reconciles it. All of
//! this needs only the host key.
//!
//! - [`mod@generations`]: the runs that wrote to the repository
//! - [`mod@divergence`]: whether the repository is as this catalog left it, and whether this catalog is its writer
//! - [`reconcile`]: compares packs, blocks, chunks and snapshots with the repository
//! - [`mod@rebuild`]: replaces a lost catalog
//! - [`recipients`]: renewed certificates of recipients
//! - [`mend`]: repairs a partly damaged catalog
//! - [`recheck`]: checks a few packs in each run, to detect losses on disk
//! - [`upkeep`]: puts back small objects that must not be lost
//! - [`verify`]: checks all claims of the catalog without changing anything

mod divergence;
mod error;
mod generations;
mod mend;
mod rebuild;
mod recheck;
mod recipients;
mod reconcile;
mod upkeep;
mod verify;

use std::sync::atomic::{AtomicBool, Ordering};

pub use divergence::Divergence;
pub use error::Error;
pub use generations::Generations;
pub use rebuild::rebuild;
pub use recheck::{READ_AGAIN, Rechecked};
pub use recipients::Renewed;
pub use reconcile::Reconciled;
pub use upkeep::LostObject;
pub use verify::Verified;

use crate::crypt::{Opener, SecretKey};
use crate::monitor::Monitor;
use crate::repository::{Access, Repository};
use crate::state::RepositoryState;

/// Compares a catalog with its repository.
pub struct Inventory<'a> {
    /// The repository to compare with.
    pub repository: &'a Repository,
    /// Opens indexes and generations.
    pub access: &'a Access,
    /// Receives findings.
    pub monitor: &'a dyn Monitor,
    /// When set, operations end early with [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
}

impl Inventory<'_> {
    /// Fails if the stop flag is set.
    pub fn check_interrupted(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// This machine's host key for the repository.
pub fn host_key(state: &RepositoryState) -> Result<SecretKey, Error> {
    match state.host_key()? {
        Some(key) => Ok(SecretKey::parse(&key)?),
        None => Err(Error::NoHostKey { path: state.host_key_path() }),
    }
}

/// Access with the host key, which is also the only trusted signer.
pub fn host_access(key: &SecretKey) -> Result<Access, Error> {
    Ok(Access::new(Some(Opener::new(key.clone())?), vec![key.certificate()]))
}
