//! Puts back small objects whose loss would make a repository or its content inaccessible.
//!
//! The writer has a copy of all of them: its own certificate, those of the recipients, the owner's locked key, the
//! description, the secrets and the names of sources. Each run that writes puts back the missing and damaged ones, and
//! [`Inventory::verify`] reports them.

use std::collections::HashSet;

use super::context::Inventory;
use super::error::Error;
use crate::catalog::Catalog;
use crate::crypt::{Certificate, SecretKey};
use crate::format::name;
use crate::format::source::Source;
use crate::repository::{self, Keys, Writer};
use crate::state::RepositoryState;
use crate::storage::Ahead;

/// A missing or damaged object that the writer can restore.
pub struct LostObject {
    /// The object's name, or its folder if any name in it will do.
    pub object: String,
    replacement: Replacement,
}

enum Replacement {
    Description(&'static str),
    Host(Certificate),
    Recipient(Certificate),
    Owner(SecretKey),
    Secrets,
    Source(Source),
}

impl LostObject {
    /// A message for the user: the problem and how it is solved.
    pub fn message(&self) -> &'static str {
        match self.replacement {
            Replacement::Secrets => "the secrets document is missing; the next backup writes one",
            _ => "it is missing or damaged; the next backup puts it back",
        }
    }
}

impl Inventory<'_> {
    /// The reads of [`Inventory::lost`] and [`Inventory::report_unknown_recipients`].
    pub fn reads_for_upkeep(&self, recipients: &[Certificate], host: &Certificate) -> Vec<Ahead> {
        let recipients = recipients.iter().map(|recipient| name::recipient(&recipient.fingerprint().to_string()));
        let keys = recipients.chain([name::host(&host.fingerprint().to_string())]);
        let folders = [name::KEYS, name::SECRETS, name::SOURCES].map(|folder| Ahead::List(folder.to_owned()));
        repository::reads_of_description().into_iter().chain(keys.map(Keys::read)).chain(folders).collect()
    }

    /// Finds missing and damaged objects. `host` is this machine's certificate.
    pub fn lost(
        &self,
        catalog: &Catalog,
        state: &RepositoryState,
        host: &Certificate,
    ) -> Result<Vec<LostObject>, Error> {
        let (repository, keys) = (self.repository, self.repository.keys());
        let mut lost = Vec::new();
        let mut add = |object: String, replacement| lost.push(LostObject { object, replacement });
        for object in repository.lost_descriptions()? {
            add(object.to_owned(), Replacement::Description(object));
        }
        if !keys.has_host(host)? {
            add(name::host(&host.fingerprint().to_string()), Replacement::Host(host.clone()));
        }
        for recipient in &catalog.trust().recipients {
            if !keys.has_recipient(recipient)? {
                add(name::recipient(&recipient.fingerprint().to_string()), Replacement::Recipient(recipient.clone()));
            }
        }
        // A copy that cannot be parsed is useless.
        if let Some(owner) = state.owner_key()?.and_then(|bytes| SecretKey::parse(&bytes).ok())
            && !keys.has_owner(&owner)?
        {
            add(name::owner(&owner.fingerprint().to_string()), Replacement::Owner(owner));
        }
        // An empty object is as good as none.
        let names = |folder: &str| -> Result<Vec<String>, Error> {
            let objects = repository.target().list(folder)?;
            Ok(objects.into_iter().filter(|object| object.length > 0).map(|object| object.name).collect())
        };
        if !names(name::SECRETS)?.iter().any(|name| name::parse_secrets(name).is_some()) {
            add(name::SECRETS.to_owned(), Replacement::Secrets);
        }
        let there: HashSet<_> = names(name::SOURCES)?.iter().filter_map(|name| name::parse_source(name)).collect();
        for source in catalog.sources()? {
            if !there.contains(&source.id) {
                add(name::source(source.id), Replacement::Source(source));
            }
        }
        Ok(lost)
    }

    /// Takes lost secrets documents out of the census of the run of `generation`, which is not announced yet and writes
    /// another one. Otherwise a check would miss them. Returns whether there are any.
    pub fn accept_loss(&self, lost: &[LostObject], catalog: &Catalog, generation: u64) -> Result<bool, Error> {
        let is_lost = lost.iter().any(|lost| matches!(lost.replacement, Replacement::Secrets));
        if is_lost {
            catalog.lose_secrets(generation)?;
        }
        Ok(is_lost)
    }

    /// Puts objects back. If the storage refuses one, this is only reported, since the object was missing before.
    pub fn put_back(
        &self,
        lost: Vec<LostObject>,
        catalog: &Catalog,
        writer: &Writer<'_>,
        host: &Certificate,
    ) -> Result<(), Error> {
        let keys = self.repository.keys();
        for LostObject { object, replacement } in lost {
            let put = match replacement {
                Replacement::Description(object) => self.repository.put_description(object),
                Replacement::Host(certificate) => keys.put_host(&certificate),
                Replacement::Recipient(certificate) => keys.put_recipient(&certificate),
                Replacement::Owner(key) => keys.put_owner(&key),
                Replacement::Secrets => match self.put_secrets(catalog, writer, &catalog.trust().secrets(host)?) {
                    Err(Error::Repository(error)) => Err(error),
                    other => Ok(other?),
                },
                Replacement::Source(source) => writer.put_source(&source),
            };
            self.monitor.note(&match put {
                Ok(()) => format!("{object} was missing or damaged; it was put back"),
                Err(repository::Error::Target(error)) => {
                    format!("{object} is missing or damaged and cannot be put back: {error}")
                }
                Err(error) => return Err(error.into()),
            });
        }
        Ok(())
    }

    /// Reports certificates in `keys/` that are named like those of recipients but belong to other keys.
    pub fn report_unknown_recipients(&self, recipients: &[Certificate]) -> Result<(), Error> {
        let known: HashSet<_> = recipients.iter().map(|known| known.fingerprint().to_string()).collect();
        for object in self.repository.target().list(name::KEYS)? {
            let Some(("recipient", fingerprint)) = name::parse_key(&object.name) else { continue };
            if !known.contains(fingerprint) {
                self.monitor.note(&format!(
                    "{} is not the certificate of a recipient; nothing is encrypted to it",
                    object.name
                ));
            }
        }
        Ok(())
    }
}
