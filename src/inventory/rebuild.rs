//! Replaces a lost catalog.
//!
//! The host key is the root of trust. The recipients come from `secrets/` documents that it signed, the writer from the
//! last generation, and packs and snapshots from indexes. The new catalog is built next to the old one and replaces it
//! when it is complete; the old one is kept.

use super::context::Inventory;
use super::error::Error;
use super::reconcile::Reconciled;
use crate::catalog::{Catalog, Trust};
use crate::crypt::{Certificate, Fingerprint};
use crate::failure::{Failure, FailureKind};
use crate::format::id::CatalogId;
use crate::format::name;
use crate::format::secrets::Secrets;
use crate::state::Lock;

/// Builds a catalog from the repository and opens it. It gets the catalog id of the last generation that verifies. An
/// existing catalog is kept under another name.
pub fn rebuild(inventory: &Inventory<'_>, lock: &Lock, host: &Fingerprint) -> Result<(Catalog, Reconciled), Error> {
    let last = inventory.listed_generations(&[])?.last;
    let last = last.first();
    let id = last.map_or_else(CatalogId::random, |last| last.catalog);
    let trust = inventory.trust(host, id)?;
    let made = inventory.build(lock, trust, |catalog| match last {
        Some(last) => {
            inventory.prove(catalog, Some(last))?;
            Ok(catalog.set_run(last.number, last.run)?)
        }
        None => Ok(()),
    })?;
    Ok((Catalog::open(&lock.state().catalog_path(), inventory.repository.id())?, made))
}

impl Inventory<'_> {
    /// Builds a catalog next to the existing one, then replaces that. `finish` is called before the new one is closed.
    pub fn build(
        &self,
        lock: &Lock,
        trust: Trust,
        finish: impl FnOnce(&mut Catalog) -> Result<(), Error>,
    ) -> Result<Reconciled, Error> {
        let state = lock.state();
        let path = state.new_catalog_path();
        state.discard_new_catalog()?;
        let make = || {
            let mut catalog = Catalog::create(&path, trust)?;
            let found = self.reconcile(&mut catalog)?;
            finish(&mut catalog)?;
            catalog.close()?;
            Ok(found)
        };
        match make() {
            Ok(found) => {
                state.put_new_catalog()?;
                Ok(found)
            }
            Err(error) => {
                // An incomplete catalog is useless. If this fails, the next call removes it.
                let _ = state.discard_new_catalog();
                Err(error)
            }
        }
    }

    /// The trust of a catalog with this id, from documents that the host signed.
    pub fn trust(&self, host: &Fingerprint, catalog: CatalogId) -> Result<Trust, Error> {
        let Secrets { seed, encrypted, recipients, .. } = self.secrets()?;
        let recipients = recipients.iter().map(|bytes| Certificate::parse(bytes)).collect::<Result<_, _>>()?;
        Ok(Trust { repository: self.repository.id(), catalog, encrypted, seed, host: host.clone(), recipients })
    }

    /// The trusted secrets document of the highest edition.
    pub fn secrets(&self) -> Result<Secrets, Error> {
        let mut found: Option<Secrets> = None;
        let mut failed = None;
        for object in self.repository.target().list(name::SECRETS)? {
            let Some(id) = name::parse_secrets(&object.name) else { continue };
            match self.access.secrets(self.repository, id) {
                Ok(secrets) if found.as_ref().is_some_and(|found| found.edition > secrets.edition) => {}
                Ok(secrets) => found = Some(secrets),
                // It may be the newest one.
                Err(error) if error.kind() == FailureKind::Unavailable => return Err(error.into()),
                Err(error) => failed = Some(error),
            }
        }
        match (found, failed) {
            (Some(secrets), _) => Ok(secrets),
            (None, Some(error)) if error.is_key_problem() => Err(error.into()),
            (None, failed) => {
                Err(Error::NoSecrets { why: failed.map(|error| format!(" ({error})")).unwrap_or_default() })
            }
        }
    }
}
