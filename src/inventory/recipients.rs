//! Renewed certificates of recipients.
//!
//! Backups fail once a recipient's certificate has expired, so its owner renews it: the key stays the same, and new
//! signatures are added. The renewed certificate is accepted with the host key alone. It is merged with the known one,
//! so that nothing (such as a revocation) is lost, whichever of them is newer.
//!
//! The renewed certificate is written to a new document in `secrets/`, which rebuilt catalogs and new machines read,
//! then to `keys/`, for people, and finally to the catalog. If the command is interrupted, it can be repeated. This
//! machine need not be the writer, since becoming the writer requires valid certificates.

use super::context::Inventory;
use super::error::Error;
use crate::catalog::{Catalog, Folder, Trust};
use crate::crypt::{Certificate, SecretKey, Signer};
use crate::format::id::{ObjectId, RunId};
use crate::format::secrets::{DatedSigner, Secrets};
use crate::repository::Writer;
use crate::state::Lock;

/// The result for a renewed certificate.
#[derive(Debug)]
pub struct Renewed {
    /// The merged certificate.
    pub certificate: Certificate,
    /// Whether it differs from the one before.
    pub changed: bool,
}

impl Inventory<'_> {
    /// Merges renewed certificates into those of the recipients. `host` is the host key.
    pub fn renew(
        &self,
        catalog: &mut Catalog,
        _lock: &Lock,
        host: SecretKey,
        given: &[Certificate],
    ) -> Result<Vec<Renewed>, Error> {
        let trust = catalog.trust().clone();
        let mut recipients = trust.recipients.clone();
        let mut renewed = Vec::new();
        for given in given {
            let known = recipients.iter_mut().find(|known| known.fingerprint() == given.fingerprint());
            let known = known.ok_or_else(|| Error::NoRecipient { found: given.fingerprint() })?;
            let merged = known.merged_with(given)?;
            merged.check_recipient()?;
            let changed = merged.to_bytes()? != known.to_bytes()?;
            *known = merged.clone();
            renewed.push(Renewed { certificate: merged, changed });
        }
        if renewed.iter().any(|renewed| renewed.changed) {
            // Skip recipients whose certificates have expired too and are renewed later. The host reads these
            // documents.
            let readers: Vec<_> = recipients.iter().filter(|known| known.check_recipient().is_ok()).cloned().collect();
            let certificate = host.certificate();
            let writer = Writer::new(self.repository, Signer::new(host)?, &certificate, &readers)?;
            // If this is killed, the next run that announces itself removes the temporary files.
            let run = RunId::random();
            catalog.begin_run(run)?;
            catalog.commit()?;
            self.repository.target().set_run(run.writer());
            let trust = Trust { recipients: recipients.clone(), ..trust };
            self.put_secrets(catalog, &writer, &trust.secrets(&certificate)?)?;
            for renewed in renewed.iter().filter(|renewed| renewed.changed) {
                self.repository.keys().put_recipient(&renewed.certificate)?;
            }
            catalog.set_recipients(recipients)?;
            catalog.end_run(run)?;
            catalog.commit()?;
        }
        Ok(renewed)
    }

    /// Writes a secrets document of the next edition, and adds it to the catalog. Hosts and keepers are those of the last
    /// edition, and those in `secrets`.
    pub(super) fn put_secrets(&self, catalog: &Catalog, writer: &Writer<'_>, secrets: &Secrets) -> Result<(), Error> {
        let (id, mut secrets) = (ObjectId::random(), secrets.clone());
        // If the last one is lost, so are these.
        if let Ok(last) = self.secrets() {
            let add = |to: &mut Vec<DatedSigner>, from: Vec<DatedSigner>| {
                let new = from.into_iter().filter(|signer| to.iter().all(|to| to.certificate != signer.certificate));
                let new: Vec<_> = new.collect();
                to.extend(new);
            };
            add(&mut secrets.hosts, last.hosts);
            add(&mut secrets.keepers, last.keepers);
            secrets.edition = last.edition.saturating_add(1);
        }
        secrets.edition = secrets.edition.max(catalog.next_edition()?);
        let (known, _) = catalog.runs()?;
        secrets.generation = known.number;
        writer.put_secrets(id, &secrets)?;
        Ok(catalog.add_document(Folder::Secrets(secrets.edition), id, secrets.generation, &[])?)
    }
}
