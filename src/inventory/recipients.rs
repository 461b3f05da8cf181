//! Renewed certificates of recipients.
//!
//! A certificate that expires ends backups, so its owner renews it: the key stays, and new signatures are added. This
//! machine then takes the renewed certificate, with no key but its own. It is merged with the one that is known, so that
//! nothing is lost (a revocation, for example) whichever of the two is newer.
//!
//! The renewed certificate goes into a further document in `secrets/`, from which a lost catalog or a new machine learns
//! it, then to `keys/`, where people find it, and last into the catalog. A run that is killed in between is run again. This
//! machine need not be the writer: to become the writer takes certificates that are valid.

use super::{Error, Inventory};
use crate::catalog::{Catalog, Trust};
use crate::crypt::{Certificate, Fingerprint, SecretKey, Signer};
use crate::format::id::ObjectId;
use crate::format::secrets::Secrets;
use crate::repository::Writer;

/// A certificate that was given as a renewed one.
#[derive(Debug)]
pub struct Renewed {
    /// What the repository has of it now.
    pub certificate: Certificate,
    /// Whether it brought anything new.
    pub changed: bool,
}

impl Inventory<'_> {
    /// Takes renewed certificates of recipients; `host` is this machine's key, and the lock must be held.
    pub fn renew(&self, catalog: &mut Catalog, host: SecretKey, given: &[Certificate]) -> Result<Vec<Renewed>, Error> {
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
            // Another recipient's certificate may have expired, too, and is renewed later. The host reads these documents.
            let readers: Vec<_> = recipients.iter().filter(|known| known.check_recipient().is_ok()).cloned().collect();
            let certificate = host.certificate();
            let writer = Writer::new(self.repository, Signer::new(host)?, &certificate, &readers)?;
            let trust = Trust { recipients: recipients.clone(), ..trust };
            writer.put_secrets(ObjectId::random(), &trust.secrets(std::slice::from_ref(&certificate))?)?;
            for renewed in renewed.iter().filter(|renewed| renewed.changed) {
                self.repository.keys().put_recipient(&renewed.certificate)?;
            }
            catalog.set_recipients(recipients)?;
            catalog.commit()?;
        }
        Ok(renewed)
    }
}

/// Merges what two documents in `secrets/` say. They may differ in how new the recipients' certificates are, and in which
/// hosts they name, since later ones hold those of earlier ones; their names are in no order.
pub(super) fn merge_secrets(one: Secrets, other: &Secrets) -> Result<Secrets, Error> {
    let parse = |secrets: &Secrets| -> Result<Vec<Certificate>, Error> {
        Ok(secrets.recipients.iter().map(|bytes| Certificate::parse(bytes)).collect::<Result<_, _>>()?)
    };
    let (mut recipients, others) = (parse(&one)?, parse(other)?);
    if (one.seed, one.encrypted) != (other.seed, other.encrypted) || names(&recipients) != names(&others) {
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

fn names(certificates: &[Certificate]) -> Vec<Fingerprint> {
    let mut names: Vec<_> = certificates.iter().map(Certificate::fingerprint).collect();
    names.sort();
    names
}
