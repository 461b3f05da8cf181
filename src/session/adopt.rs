//! Adoption: makes this machine the writer of a repository.
//!
//! The machine gets a new catalog id and writes a generation with it. The former writer sees another id in the last
//! generation and is refused from then on. A machine that has the host key (its state was restored, or it is a clone)
//! needs nothing else. A new machine needs the owner's secret key once: it generates a host key and writes the
//! documents that a host must read again, encrypted to that key.
//!
//! A new machine does not trust on first use. It takes recipients and indexes from a document only if the signer was
//! given or is remembered, and it refuses to adopt if any document has another signer: such a document could add a
//! recipient unknown to the owner, or misstate the content of blocks.

use std::collections::BTreeMap;

use super::announce::{Rivals, announce};
use super::error::Error;
use super::handover::FormerDocuments;
use super::remover::Remover;
use crate::catalog::Catalog;
use crate::crypt::{Certificate, Fingerprint, SecretKey, Signer};
use crate::format::id::{CatalogId, ObjectId, RunId};
use crate::format::name;
use crate::format::secrets::DatedSigner;
use crate::inventory::{Generations, Inventory, Reconciled, host_access};
use crate::repository::{self, Writer};
use crate::state::Lock;

/// The result of an adoption.
#[derive(Debug)]
pub struct Adopted {
    /// The host key that signs from now on.
    pub host: Fingerprint,
    /// The generation that names the new catalog.
    pub generation: u64,
    /// Differences between catalog and repository.
    pub found: Reconciled,
    /// Backups are encrypted to these certificates from now on.
    pub recipients: Vec<Certificate>,
}

/// Adopts with an existing host key. An intact catalog is kept.
pub fn adopt_with_host_key(inventory: &Inventory<'_>, lock: &Lock, key: SecretKey) -> Result<Adopted, Error> {
    let generations = inventory.listed_generations(&[])?;
    become_writer(inventory, lock, key, generations, true)
}

fn become_writer(
    inventory: &Inventory<'_>,
    lock: &Lock,
    key: SecretKey,
    generations: Generations,
    is_same_host: bool,
) -> Result<Adopted, Error> {
    let (repository, state, host) = (inventory.repository, lock.state(), key.certificate());
    let (catalog_id, run) = (CatalogId::random(), RunId::random());
    let mut known = 0;
    let kept = match Catalog::open(&state.catalog_path(), repository.id()) {
        Ok(mut catalog) if catalog.trust().host == host.fingerprint() => {
            check_recipients(&catalog.trust().recipients)?;
            known = catalog.runs()?.0.number.max(catalog.last_sequence()?);
            catalog.set_id(catalog_id)?;
            let found = inventory.reconcile(&mut catalog)?;
            inventory.prove(&catalog, generations.last.first())?;
            (!found.is_outdated).then_some((catalog, found))
        }
        Err(error) if !error.is_lost() => return Err(error.into()),
        _ => None,
    };
    let (mut catalog, found) = match kept {
        Some(kept) => kept,
        None => {
            let trust = inventory.trust(&host.fingerprint(), catalog_id)?;
            check_recipients(&trust.recipients)?;
            let found = inventory.build(lock, trust, |catalog| match generations.last.first() {
                // The documents of a former host were copied, so none of its names are left.
                Some(last) if is_same_host => inventory.prove(catalog, Some(last)),
                _ => Ok(()),
            })?;
            (Catalog::open(&state.catalog_path(), repository.id())?, found)
        }
    };
    let number = generations.next(known.max(catalog.runs()?.0.number).max(catalog.last_sequence()?))?;
    repository.target().set_run(run.writer());
    let writer = Writer::new(repository, Signer::new(key)?, &host, &catalog.trust().recipients)?;
    let mut rivals = Rivals { repository, access: inventory.access, strange: generations.strange };
    announce(&mut catalog, &writer, &mut rivals, number, run)?;
    let lost = inventory.lost(&catalog, state, &host)?;
    inventory.put_back(lost, &catalog, &writer, &host)?;
    // Packs of unfinished runs stay: a reconciled catalog removes none.
    let runs: Vec<_> = catalog.unfinished()?.into_iter().chain(state.adoption()?).collect();
    Remover::after_announcement(repository.target()).remove_temporaries(&runs)?;
    catalog.set_finished()?;
    catalog.commit()?;
    state.end_adoption()?;
    let recipients = catalog.trust().recipients.clone();
    Ok(Adopted { host: host.fingerprint(), generation: number, found, recipients })
}

/// Fails if a recipient cannot be encrypted to. Called before any change: a catalog whose id is in no generation could
/// not write any more.
fn check_recipients(recipients: &[Certificate]) -> Result<(), Error> {
    Ok(recipients.iter().try_for_each(Certificate::check_recipient)?)
}

/// Adopts without a host key. `inventory` must have the owner's access without trust on first use. If `recipients` is not
/// empty, the documents must name the same recipients. Fails if documents are missing, unless `accept_missing` is true.
pub fn adopt_with_owner_key(
    inventory: &Inventory<'_>,
    lock: &Lock,
    recipients: &[Certificate],
    accept_missing: bool,
) -> Result<Adopted, Error> {
    let (repository, state) = (inventory.repository, lock.state());
    if state.host_key()?.is_some() {
        return Err(Error::HasHostKey { path: state.host_key_path() });
    }
    // An adoption that was interrupted has written documents with this key.
    let begun = state.new_host_key()?.and_then(|key| SecretKey::parse(&key).ok());
    let own = begun.as_ref().map(|key| key.fingerprint().to_string());
    refuse_unknown_signers(inventory, own.as_deref())?;
    // First of all: it fails if the key is a wrong one.
    let mut secrets = inventory.secrets()?;
    let generations = inventory.listed_generations(&[])?;
    let former = FormerDocuments::read(inventory, own.as_deref())?;
    if !accept_missing {
        former.require_all(inventory, generations.last.first())?;
    }
    let named: Vec<_> = secrets.recipients.iter().map(|bytes| Certificate::parse(bytes)).collect::<Result<_, _>>()?;
    if !recipients.is_empty() && fingerprints(recipients) != fingerprints(&named) {
        return Err(Error::Recipients { found: fingerprints(&named), expected: fingerprints(recipients) });
    }
    // The given certificates may be renewed ones.
    let renewed = |known: &Certificate| match recipients.iter().find(|given| given.fingerprint() == known.fingerprint())
    {
        Some(given) => known.merged_with(given),
        None => Ok(known.clone()),
    };
    let named: Vec<_> = named.iter().map(renewed).collect::<Result<_, _>>()?;
    secrets.recipients = named.iter().map(Certificate::to_bytes).collect::<Result<_, _>>()?;
    // No catalog can record this run yet.
    repository.target().set_run(state.begin_adoption()?.writer());
    let key = match begun {
        Some(key) => key,
        None => {
            let key = SecretKey::generate_host(&named)?;
            state.put_new_host_key(&key.to_armored()?)?;
            key
        }
    };
    let host = key.certificate();
    let writer = Writer::new(repository, Signer::new(key.clone())?, &host, &named)?;
    // The run of this adoption has a higher number.
    let number = generations.number();
    former.copy(inventory, &writer, number)?;
    for known in inventory.access.signers().iter().chain([&host]) {
        let bytes = known.to_bytes()?;
        if secrets.hosts.iter().all(|host| host.certificate != bytes) {
            secrets.hosts.push(DatedSigner::new(bytes));
        }
    }
    secrets.generation = number;
    secrets.edition = secrets.edition.saturating_add(1);
    writer.put_secrets(ObjectId::random(), &secrets)?;
    repository.keys().put_host(&host)?;
    // Keep a copy of the owner's locked key, in case the repository loses it.
    let owners = repository.keys().owners()?.into_iter().filter_map(|(_, key)| key.ok());
    let owner = owners
        .filter(SecretKey::is_locked)
        .find(|key| named.iter().any(|recipient| recipient.fingerprint() == key.fingerprint()));
    if let Some(owner) = owner.filter(|_| matches!(state.owner_key(), Ok(None))) {
        state.put_owner_key(&owner.to_armored()?)?;
    }
    // Readers on this machine continue to trust the former host.
    let trusted = state.signers()?;
    for signer in inventory.access.signers().iter().map(Certificate::fingerprint) {
        if !trusted.contains(&signer) {
            state.remember_signer(&signer)?;
        }
    }
    // Last, so that a failed adoption leaves this machine without a host key and can be repeated.
    state.put_host_key(&key.to_armored()?)?;
    let access = host_access(&key)?;
    become_writer(&Inventory { access: &access, ..*inventory }, lock, key, generations, false)
}

/// Refuses a repository with documents that open but are signed by an untrusted key other than `own`.
fn refuse_unknown_signers(inventory: &Inventory<'_>, own: Option<&str>) -> Result<(), Error> {
    let mut unknown: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut collect = |result: Result<(), repository::Error>| {
        if let Err(repository::Error::UnknownSigner { object, signer }) = result
            && own != Some(signer.as_str())
        {
            unknown.entry(signer).or_insert((0, object)).0 += 1;
        }
    };
    let (repository, access) = (inventory.repository, inventory.access);
    for name in repository.snapshots()? {
        inventory.check_interrupted()?;
        collect(access.snapshot(repository, &name).map(drop));
    }
    for id in inventory.indexes()? {
        inventory.check_interrupted()?;
        collect(access.index(repository, id).map(drop));
    }
    for object in repository.target().list(name::SECRETS)? {
        if let Some(id) = name::parse_secrets(&object.name) {
            collect(access.secrets(repository, id).map(drop));
        }
    }
    for object in repository.target().list(name::SOURCES)? {
        if let Some(id) = name::parse_source(&object.name) {
            collect(access.source(repository, id).map(drop));
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let describe = |(signer, (count, object)): (&String, &(u64, String))| match count {
        1 => format!("{signer} ({object})"),
        count => format!("{signer} ({object} and {} more)", count - 1),
    };
    Err(Error::UnknownSigners { signers: unknown.iter().map(describe).collect::<Vec<_>>().join(", ") })
}

/// Sorted fingerprints, for comparison and for messages.
fn fingerprints(certificates: &[Certificate]) -> String {
    let mut names: Vec<_> = certificates.iter().map(|certificate| certificate.fingerprint().to_string()).collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
