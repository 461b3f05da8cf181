//! What an inventory works on.

use std::sync::atomic::{AtomicBool, Ordering};

use super::error::Error;
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
        Some(key) => SecretKey::parse(&key).map_err(|source| Error::BadHostKey { path: state.host_key_path(), source }),
        None => Err(Error::NoHostKey { path: state.host_key_path() }),
    }
}

/// Access with the host key, which is also the only trusted signer.
pub fn host_access(key: &SecretKey) -> Result<Access, Error> {
    Ok(Access::new(Some(Opener::new(key.clone())?), vec![key.certificate()]))
}
