//! This machine becomes the one that writes.
//!
//! It gets a new catalog id and writes a generation with it. The former writer finds that id in the last generation, and
//! is refused from then on. A machine that has the host key (its state was restored, or it is a clone) needs nothing
//! else. A new machine needs the owner's secret key once: it makes a host key of its own, and writes the documents that a
//! host must be able to read again for that key.
//!
//! A new machine trusts nobody at first use. It takes recipients and indexes from documents only if their signer was
//! named or is remembered, and it refuses if any document has another signer: such a document may name a recipient whom
//! the owner does not know, or blocks that are not what it says.

use std::collections::BTreeMap;
use std::path::Path;

use super::reconcile::Reconciled;
use super::{Error, Inventory, host_access};
use crate::catalog::Catalog;
use crate::crypt::{Certificate, Fingerprint, SecretKey, Signer};
use crate::format::generation::Generation;
use crate::format::id::{CatalogId, ObjectId, RunId};
use crate::format::name;
use crate::repository::{self, Writer};
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
    /// Whom backups are encrypted to from now on.
    pub recipients: Vec<Certificate>,
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
            check_recipients(&catalog.trust().recipients)?;
            catalog.set_id(catalog_id)?;
            let found = inventory.reconcile(&mut catalog)?;
            (catalog, found)
        }
        Err(error) if !error.is_lost() => return Err(error.into()),
        _ => {
            let trust = inventory.trust(&host.fingerprint(), catalog_id)?;
            check_recipients(&trust.recipients)?;
            let found = inventory.build(state, trust, |_| Ok(()))?;
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
    let lost = inventory.lost(&catalog, state, &host)?;
    inventory.put_back(lost, &catalog, &writer, &host)?;
    let recipients = catalog.trust().recipients.clone();
    Ok(Adopted { host: host.fingerprint(), generation: number, found, recipients })
}

/// Fails if nothing can be written for one of them, before anything is changed: a catalog with an id that no generation
/// has is nobody's writer.
fn check_recipients(recipients: &[Certificate]) -> Result<(), Error> {
    Ok(recipients.iter().try_for_each(Certificate::check_recipient)?)
}

/// Adopts without a host key. `inventory` has the access of an owner and trusts no signer at first use; the lock must be
/// held. `recipients`: whom to encrypt to, if the owner says so; then the documents must name the same ones.
pub fn adopt_with_owner_key(
    inventory: &Inventory<'_>,
    state: &RepositoryState,
    recipients: &[Certificate],
) -> Result<Adopted, Error> {
    let repository = inventory.repository;
    if state.host_key()?.is_some() {
        return Err(Error::HasHostKey { path: state.host_key_path() });
    }
    inventory.refuse_unknown_signers()?;
    let mut secrets = inventory.secrets()?;
    let named: Vec<_> = secrets.recipients.iter().map(|bytes| Certificate::parse(bytes)).collect::<Result<_, _>>()?;
    if !recipients.is_empty() && fingerprints(recipients) != fingerprints(&named) {
        return Err(Error::Recipients { found: fingerprints(&named), expected: fingerprints(recipients) });
    }
    // The owner may give renewed certificates.
    let renewed = |known: &Certificate| match recipients.iter().find(|given| given.fingerprint() == known.fingerprint())
    {
        Some(given) => known.merged_with(given),
        None => Ok(known.clone()),
    };
    let named: Vec<_> = named.iter().map(renewed).collect::<Result<_, _>>()?;
    secrets.recipients = named.iter().map(Certificate::to_bytes).collect::<Result<_, _>>()?;
    let key = SecretKey::generate_host(&named)?;
    let host = key.certificate();
    let writer = Writer::new(repository, Signer::new(key.clone())?, &host, &named)?;
    for id in inventory.indexes()? {
        inventory.check_interrupted()?;
        match inventory.access.index(repository, id) {
            Ok(index) => writer.put_index(ObjectId::random(), &index)?,
            Err(error) => inventory.monitor.problem(Path::new(&name::index(id)), &error.to_string()),
        }
    }
    for known in inventory.access.signers().iter().chain([&host]) {
        let bytes = known.to_bytes()?;
        if !secrets.hosts.contains(&bytes) {
            secrets.hosts.push(bytes);
        }
    }
    writer.put_secrets(ObjectId::random(), &secrets)?;
    repository.keys().put_host(&host)?;
    // The one that opened the repository, should it be lost there.
    let owners = repository.keys().owners()?.into_iter().filter_map(|(_, key)| key.ok());
    let owner = owners
        .filter(SecretKey::is_locked)
        .find(|key| named.iter().any(|recipient| recipient.fingerprint() == key.fingerprint()));
    if let Some(owner) = owner.filter(|_| matches!(state.owner_key(), Ok(None))) {
        state.put_owner_key(&owner.to_armored()?)?;
    }
    // Readers on this machine go on trusting the former host.
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

impl Inventory<'_> {
    /// Refuses a repository with documents that open but are signed by a key that is not trusted here.
    fn refuse_unknown_signers(&self) -> Result<(), Error> {
        let mut unknown: BTreeMap<String, (u64, String)> = BTreeMap::new();
        let mut look = |result: Result<(), repository::Error>| {
            if let Err(repository::Error::Stranger { object, signer }) = result {
                unknown.entry(signer).or_insert((0, object)).0 += 1;
            }
        };
        let (repository, access) = (self.repository, self.access);
        for name in repository.snapshots()? {
            self.check_interrupted()?;
            look(access.snapshot(repository, &name).map(drop));
        }
        for id in self.indexes()? {
            self.check_interrupted()?;
            look(access.index(repository, id).map(drop));
        }
        for object in repository.target().list(name::SECRETS)? {
            if let Some(Ok(id)) = object.name.strip_prefix(name::SECRETS).map(str::parse) {
                look(access.secrets(repository, id).map(drop));
            }
        }
        for object in repository.target().list(name::SOURCES)? {
            if let Some(Ok(id)) = object.name.strip_prefix(name::SOURCES).map(str::parse) {
                look(access.source(repository, id).map(drop));
            }
        }
        match unknown.is_empty() {
            true => Ok(()),
            false => {
                let say = |(signer, (count, object)): (&String, &(u64, String))| match count {
                    1 => format!("{signer} ({object})"),
                    more => format!("{signer} ({object} and {} more)", more - 1),
                };
                Err(Error::UnknownSigners { signers: unknown.iter().map(say).collect::<Vec<_>>().join(", ") })
            }
        }
    }
}

/// Fingerprints in order, for comparison and for people.
fn fingerprints(certificates: &[Certificate]) -> String {
    let mut names: Vec<_> = certificates.iter().map(|certificate| certificate.fingerprint().to_string()).collect();
    names.sort();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}
