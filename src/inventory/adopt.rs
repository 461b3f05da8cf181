//! This machine becomes the one that writes.
//!
//! It gets a new catalog id and writes a generation with it. Whoever was the writer before finds that id in the last
//! generation, and is refused from then on. A machine that has the host key (its state was brought back, or it is a clone)
//! needs nothing else. A new machine needs the owner's secret key once: it makes a host key of its own, and writes what a
//! host must be able to read again for that key. It signs nothing again that others signed: who reads believes both host
//! keys, or does not.

use std::path::Path;

use super::reconcile::{Reconciled, is_foreign};
use super::{Error, Inventory, host_access};
use crate::catalog::Catalog;
use crate::crypt::{Certificate, Fingerprint, SecretKey, Signer};
use crate::format::generation::Generation;
use crate::format::id::{CatalogId, ObjectId, RunId};
use crate::repository::Writer;
use crate::state::RepositoryState;

/// What came of it.
#[derive(Debug)]
pub struct Adopted {
    /// The host key that signs from now on.
    pub host: Fingerprint,
    /// The generation that says so.
    pub generation: u64,
    /// What the catalog learnt.
    pub found: Reconciled,
}

/// Adopts with the host key that is there; the lock must be held. The catalog is kept if it is good.
pub fn adopt_with_host_key(
    inventory: &Inventory<'_>,
    state: &RepositoryState,
    key: SecretKey,
) -> Result<Adopted, Error> {
    let (repository, host) = (inventory.repository, key.certificate());
    let generations = inventory.generations(&[])?;
    let number = generations.last.as_ref().map_or(0, |last| last.number);
    let (catalog_id, run) = (CatalogId::random(), RunId::random());
    let (mut catalog, found) = match Catalog::open(&state.catalog_path(), repository.id()) {
        Ok(mut catalog) if catalog.trust().host == host.fingerprint() => {
            catalog.set_id(catalog_id)?;
            let found = inventory.reconcile(&mut catalog)?;
            (catalog, found)
        }
        Err(error) if !error.is_lost() => return Err(error.into()),
        _ => {
            let found = inventory.build(state, inventory.trust(&host.fingerprint(), catalog_id)?, |_| Ok(()))?;
            (Catalog::open(&state.catalog_path(), repository.id())?, found)
        }
    };
    let number = generations.free_after(number.max(catalog.runs()?.0.number).max(catalog.last_sequence()?))?;
    catalog.intend_run(number, run)?;
    catalog.commit()?;
    let writer = Writer::new(repository, Signer::new(key)?, &host, &catalog.trust().recipients)?;
    writer.put_generation(&Generation { number, catalog: catalog_id, run })?;
    catalog.set_run(number, run)?;
    catalog.set_finished()?;
    catalog.commit()?;
    Ok(Adopted { host: host.fingerprint(), generation: number, found })
}

/// Adopts without a host key; `inventory` has the access of an owner, and the lock must be held.
pub fn adopt_with_owner_key(inventory: &Inventory<'_>, state: &RepositoryState) -> Result<Adopted, Error> {
    let repository = inventory.repository;
    if state.host_key()?.is_some() {
        return Err(Error::HasHostKey { path: state.host_key_path() });
    }
    let secrets = inventory.secrets()?;
    let recipients: Vec<_> =
        secrets.recipients.iter().map(|bytes| Certificate::parse(bytes)).collect::<Result<_, _>>()?;
    let key = SecretKey::generate_host(&recipients)?;
    let host = key.certificate();
    let writer = Writer::new(repository, Signer::new(key.clone())?, &host, &recipients)?;
    let mut strange = 0;
    for id in inventory.indexes()? {
        inventory.go_on()?;
        match inventory.access.index(repository, id) {
            Ok(index) => writer.put_index(ObjectId::random(), &index)?,
            // Of a host key that is not believed here; what it lists should stand in another one, too.
            Err(error) if is_foreign(&error) => strange += 1,
            Err(error) => inventory.monitor.problem(Path::new(&crate::format::name::index(id)), &error.to_string()),
        }
    }
    if strange > 0 {
        inventory.monitor.note(&format!(
            "{strange} indexes are signed by host keys that are not believed here (--signer), and were passed over"
        ));
    }
    writer.put_secrets(ObjectId::random(), &secrets)?;
    repository.keys().put_host(&host)?;
    // Readers on this machine go on to believe what the former host signed.
    let believed = state.signers()?;
    for signer in inventory.access.signers().iter().map(Certificate::fingerprint) {
        if !believed.contains(&signer) {
            state.remember_signer(&signer)?;
        }
    }
    // Last of all: until here this machine is no host, and can begin again.
    state.put_host_key(&key.to_armored()?)?;
    let access = host_access(&key)?;
    adopt_with_host_key(&Inventory { access: &access, ..*inventory }, state, key)
}
