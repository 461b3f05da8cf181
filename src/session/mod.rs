//! Runs that write to a repository.
//!
//! All writers of packs and snapshots go through a [`Session`], which holds the lock. It makes the catalog agree with the
//! repository before anything is written, announces the run, and checks that no other machine writes at the same time.
//!
//! - [`mod@open`]: opens a session, or looks at the catalog for a dry run
//! - [`early`]: reads of a session that begin while the repository is being opened
//! - [`mod@announce`]: announces a run that writes
//! - [`packs`]: the packs that a run writes
//! - [`mod@publish`]: the order of durability
//! - [`shards`]: where moved blocks and chunks that were stored again are
//! - [`orphans`]: removes packs and temporary files of runs that did not finish
//! - [`remover`]: the one way to remove objects from a repository
//! - [`reserve`]: space for commands that free space when the disk is full
//! - [`mod@check_part`]: checks the repository, and reads a part of its packs
//! - [`tombstones`]: forgotten, held and released snapshots
//! - [`adopt`]: makes this machine the writer

mod adopt;
mod announce;
mod check_part;
mod early;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod handover;
mod open;
mod orphans;
mod packs;
mod publish;
mod remover;
mod reserve;
mod shards;
mod tombstones;

use std::sync::atomic::AtomicBool;

pub use adopt::{Adopted, adopt_with_host_key, adopt_with_owner_key};
pub use check_part::{PartCheck, check_part};
pub use early::EarlyRuns;
pub use error::Error;
pub use open::{Checks, LOOK_AGAIN, Mend, NOTHING_YET, Session, look};
pub use packs::{FullPack, PackWriter, Packs, PlacedBlock, StoredPack};
pub use publish::{NewSnapshot, Publisher};
pub use remover::Remover;
pub use reserve::{keep_reserve, with_reserve};

use crate::monitor::Monitor;
use crate::state::{self, Lock, RepositoryState};
pub use crate::state::{LockWait, Priority};

/// Takes the lock that all runs on this machine need before they write. Waits for another run up to this time, after telling
/// the monitor.
pub fn lock(
    state: &RepositoryState,
    wait: LockWait,
    priority: Priority,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<Lock, state::Error> {
    state.lock(wait, priority, stop, |holder| {
        monitor.note(&format!("waiting for another run of brackfs that writes to this repository ({holder})"));
    })
}
