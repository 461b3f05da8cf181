//! Space that is set aside for the commands that free space: a full disk must not prevent them.
//!
//! A directory repository and this machine's state have a reserve of a few MiB each. Backups and prunes make it
//! as soon as there is enough space.

use std::io;

use tracing::debug;

use crate::failure::{Failure, FailureKind};
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::state::RepositoryState;
use crate::sys::reserve::Reserve;

/// Runs `work`. If the disk is full, gives up the reserves and runs it again.
pub fn with_reserve<T, E: Failure>(
    repository: &Repository,
    state: &RepositoryState,
    monitor: &dyn Monitor,
    mut work: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    match work() {
        Err(error) if error.kind() == FailureKind::Full => {
            // All of them are given up.
            if reserves(repository, state).iter().filter(|reserve| reserve.give_up()).count() == 0 {
                return Err(error);
            }
            monitor.note("the disk is full; the space set aside for this is used now");
            let result = work();
            each(repository, state, Reserve::restore);
            result
        }
        other => other,
    }
}

/// Makes sure that the reserves are there, if there is enough space.
pub fn keep_reserve(repository: &Repository, state: &RepositoryState) {
    each(repository, state, Reserve::keep);
}

fn each(repository: &Repository, state: &RepositoryState, keep: fn(&Reserve) -> io::Result<()>) {
    for reserve in reserves(repository, state) {
        // Without it, everything works as long as the disk is not full.
        if let Err(error) = keep(&reserve) {
            debug!(%error, "no space is set aside");
        }
    }
}

fn reserves(repository: &Repository, state: &RepositoryState) -> Vec<Reserve> {
    let folders = repository.target().local_path().into_iter().chain([state.folder().to_owned()]);
    folders.map(|folder| Reserve::in_folder(&folder)).collect()
}
