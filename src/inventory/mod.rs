//! The inventory: catalog and repository are made to agree.
//!
//! A catalog must never claim more than the repository has. While nothing unexpected happens the last generation shows that
//! with one look ([`Divergence`]). When it shows anything else, packs are listed, what is missing is condemned, and what the
//! catalog does not know is learnt from signed indexes ([`reconcile`]). A lost catalog is one that knows nothing:
//! [`rebuild()`] makes an empty one and reconciles it. All of this takes the host key and no other.
//!
//! - [`mod@generations`]: which runs are known to have written to it
//! - [`standing`]: is the repository as this catalog left it, and whose is it?
//! - [`reconcile`]: packs, blocks, chunks and snapshots as the repository has them
//! - [`mod@rebuild`]: a new catalog in the place of one that was lost
//! - [`recipients`]: renewed certificates of recipients
//! - [`adopt`]: this machine becomes the one that writes
//! - [`mend`]: a catalog of which a part is damaged
//! - [`recheck`]: a few packs each run, so that what a disk lost does not stay unknown
//! - [`upkeep`]: small objects that must not be lost are put back
//! - [`verify`]: everything that the catalog claims, without changing anything
//! - [`removal`]: what may be removed from a repository, and the only place that removes anything

mod adopt;
mod divergence;
mod error;
mod generations;
mod mend;
mod rebuild;
mod recheck;
mod recipients;
mod reconcile;
mod removal;
mod upkeep;
mod verify;

use std::sync::atomic::{AtomicBool, Ordering};

pub use adopt::{Adopted, adopt_with_host_key, adopt_with_owner_key};
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

/// What it takes to compare a catalog with its repository.
pub struct Inventory<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Opens indexes and generations.
    pub access: &'a Access,
    /// Hears what is found.
    pub monitor: &'a dyn Monitor,
    /// Ends it early when set.
    pub stop: &'a AtomicBool,
}

impl Inventory<'_> {
    fn check_interrupted(&self) -> Result<(), Error> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }
}

/// This machine's own key for the repository.
pub fn host_key(state: &RepositoryState) -> Result<SecretKey, Error> {
    match state.host_key()? {
        Some(key) => Ok(SecretKey::parse(&key)?),
        None => Err(Error::NoHostKey { path: state.host_key_path() }),
    }
}

/// What the host key opens, believing only itself.
pub fn host_access(key: &SecretKey) -> Result<Access, Error> {
    Ok(Access::new(Some(Opener::new(key.clone())?), vec![key.certificate()]))
}
