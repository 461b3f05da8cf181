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
use crate::catalog::{Catalog, Trust};
use crate::crypt::{Certificate, Fingerprint, SecretKey, Signer};
use crate::format::id::{ObjectId, RunId};
use crate::format::secrets::Secrets;
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
            writer.put_secrets(ObjectId::random(), &trust.secrets(std::slice::from_ref(&certificate))?)?;
            for renewed in renewed.iter().filter(|renewed| renewed.changed) {
                self.repository.keys().put_recipient(&renewed.certificate)?;
            }
            catalog.set_recipients(recipients)?;
            catalog.end_run(run)?;
            catalog.commit()?;
        }
        Ok(renewed)
    }
}

/// Merges two documents of `secrets/`. They may have newer or older certificates of the same recipients, and more or
/// fewer hosts, since later documents include the hosts of earlier ones; object names do not show which is newer.
pub(super) fn merge_secrets(one: Secrets, other: &Secrets) -> Result<Secrets, Error> {
    let parse = |secrets: &Secrets| -> Result<Vec<Certificate>, Error> {
        Ok(secrets.recipients.iter().map(|bytes| Certificate::parse(bytes)).collect::<Result<_, _>>()?)
    };
    let (mut recipients, others) = (parse(&one)?, parse(other)?);
    if (one.seed, one.encrypted) != (other.seed, other.encrypted) || sorted(&recipients) != sorted(&others) {
        return Err(Error::SecretsDiffer);
    }
    for recipient in &mut recipients {
        let fingerprint = recipient.fingerprint();
        for other in others.iter().filter(|other| other.fingerprint() == fingerprint) {
            *recipient = recipient.merged_with(other)?;
        }
    }
    let recipients = recipients.iter().map(Certificate::to_bytes).collect::<Result<_, _>>()?;
    let mut hosts = one.hosts;
    for host in &other.hosts {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    Ok(Secrets { recipients, hosts, ..one })
}

fn sorted(certificates: &[Certificate]) -> Vec<Fingerprint> {
    let mut fingerprints: Vec<_> = certificates.iter().map(Certificate::fingerprint).collect();
    fingerprints.sort();
    fingerprints
}
