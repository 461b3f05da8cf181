//! Checks a repository without a secret key, and reads a part of its packs.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tracing::debug_span;

use super::error::Error;
use super::open::{Checks, Session};
use crate::catalog::Condemned;
use crate::inventory::{self, Inventory, Verified, host_access, host_key};
use crate::monitor::{Monitor, Total, Unit};
use crate::repository::Repository;
use crate::source::now;
use crate::state::{LockWait, Priority, RepositoryState};

/// What a check of a part found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartCheck {
    /// The comparison of the catalog with the repository.
    pub compared: Verified,
    /// Packs that were read.
    pub read_packs: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Problems, those of the comparison included; each was reported.
    pub problems: u64,
}

/// Compares all claims of the catalog with the repository, and reads packs: at least `part` of their bytes (from 0 to 1),
/// beginning where the last such check ended. So all packs are read in about 1 / `part` checks. Needs only the host key.
///
/// Waits up to `wait` for the lock. Gives it up for other runs that wait, and goes on after them.
pub fn check_part(
    repository: &Repository,
    state: &RepositoryState,
    part: f64,
    wait: LockWait,
    monitor: &dyn Monitor,
    stop: &AtomicBool,
) -> Result<PartCheck, Error> {
    let _span = debug_span!("check").entered();
    // The bytes that are left to read, and those of all packs at that time.
    let (mut whole, mut left): (PartCheck, Option<(u64, u64)>) = (PartCheck::default(), None);
    loop {
        let wait = if left.is_none() { wait } else { LockWait { longest: Duration::MAX, ..wait } };
        let lock = super::lock(state, wait, Priority::Low, monitor, stop)?;
        let key = host_key(state)?;
        let (host, access) = (key.certificate(), host_access(&key)?);
        let checks = Checks::default();
        let (_session, mut catalog) = Session::open(repository, &lock, key, checks, &mut 0, monitor, stop)?;
        let inventory = Inventory { repository, access: &access, monitor, stop };
        let bytes = match left {
            // Packs of other runs come in addition.
            Some((left, total)) => left + catalog.pack_bytes()?.saturating_sub(total),
            None => {
                let found = inventory.verify(&catalog, state, &host)?;
                whole.problems = found.problems;
                let bytes = (catalog.pack_bytes()? as f64 * part).ceil() as u64;
                monitor.progress().count(Unit::Packs);
                let files = (found.packs as f64 * part).ceil() as u64;
                monitor.progress().expect(Total { files, bytes, estimated: part < 1.0 });
                whole.compared = found;
                bytes
            }
        };
        let read = inventory.read_part(&mut catalog, state.read_until()?, bytes, now().seconds, |last| {
            state.note_read_until(last).map_err(inventory::Error::from)?;
            Ok(!lock.is_wanted())
        });
        let inventory::Rechecked { packs, bytes: read_bytes, unread, condemned: Condemned { packs: lost, .. } } = read?;
        whole.read_packs += packs;
        whole.read_bytes += read_bytes;
        whole.problems += unread + lost;
        whole.compared.packs = whole.compared.packs.saturating_sub(lost);
        whole.compared.lost_packs += lost;
        catalog.set_finished()?;
        catalog.commit()?;
        let rest = bytes.saturating_sub(read_bytes);
        if rest == 0 || packs == 0 || !lock.is_wanted() {
            return Ok(whole);
        }
        monitor.note("another run waits for the lock; the check goes on after it");
        left = Some((rest, catalog.pack_bytes()?));
    }
}
