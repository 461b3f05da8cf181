//! Checks the documents and keys that only writers need, and looks for files that do not belong to the repository.

use std::path::Path;

use super::{Checker, Error};
use crate::crypt::Certificate;
use crate::format::name;
use crate::format::secrets::Secrets;
use crate::monitor;
use crate::repository::{Access, Keys, reads_of_description};
use crate::storage::{Ahead, ObjectInfo};
use crate::{reader, repository};

impl Checker<'_> {
    /// Opens the documents that only writers need. Ignores objects whose names are not those of documents.
    pub(super) fn documents(&mut self) -> Result<(), Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        self.begin(&[name::SOURCES, name::SECRETS, name::KEYS, name::SUMS]);
        let sources = self.list(name::SOURCES)?;
        for ObjectInfo { name: object, .. } in repository.target().in_turn(&sources, Access::read_of_document) {
            self.check_interrupted()?;
            let Some(id) = name::parse_source(object) else { continue };
            if let Err(error) = access.source(repository, id) {
                self.unopened(Path::new(object), error.into())?;
            }
        }
        let mut last: Option<Secrets> = None;
        let listed = self.list(name::SECRETS)?;
        for ObjectInfo { name: object, .. } in repository.target().in_turn(&listed, Access::read_of_document) {
            self.check_interrupted()?;
            let Some(id) = name::parse_secrets(object) else { continue };
            match access.secrets(repository, id) {
                Ok(secrets) => {
                    self.known.secrets.add(object.clone(), secrets.generation);
                    if last.as_ref().is_none_or(|last| last.edition <= secrets.edition) {
                        last = Some(secrets);
                    }
                }
                Err(error) => {
                    self.known.secrets.is_incomplete = true;
                    self.unopened(Path::new(object), error.into())?;
                }
            }
        }
        match last {
            Some(last) => self.certificates(&last.recipients)?,
            // Damaged ones were reported.
            None if self.known.secrets.is_incomplete => {}
            None => {
                self.problem(Path::new(name::SECRETS), "the secrets document is missing; the next backup writes one");
            }
        }
        Ok(())
    }

    /// Checks that the certificates of recipients, and of hosts that signed snapshots, are present. Readers also find
    /// the latter in secrets documents, but users of other OpenPGP programs do not.
    fn certificates(&mut self, recipients: &[Vec<u8>]) -> Result<(), Error> {
        let keys = self.reader.repository().keys();
        let recipients = recipients.iter().filter_map(|bytes| Certificate::parse(bytes).ok());
        let mut objects: Vec<_> =
            recipients.map(|recipient| name::recipient(&recipient.fingerprint().to_string())).collect();
        objects.extend(self.signers.iter().map(|signer| name::host(&signer.to_string())));
        let listed = self.list(name::KEYS)?;
        objects.retain(|object| !listed.iter().any(|key| key.name == *object));
        // A listing may lag behind.
        for object in objects {
            if keys.is_missing(&object).map_err(reader::Error::from)? {
                self.problem(Path::new(&object), "it is missing; the next backup puts it back");
            }
        }
        Ok(())
    }

    /// Reports files that brackfs did not write, such as those of file managers: `found` and those in other folders.
    pub(super) fn foreign(&mut self, mut found: Vec<String>) -> Result<(), Error> {
        let folders: Vec<_> = name::FOLDERS.into_iter().filter(|folder| *folder != name::PACKS).collect();
        self.begin(&folders);
        for folder in folders {
            let names = self.list(folder)?.into_iter().map(|object| object.name);
            found.extend(names.filter(|object| !name::is_object(object)));
        }
        found.sort();
        if let Some(first) = found.first() {
            let files = monitor::count(found.len() as u64, "file in the repository does", "files in the repository do");
            self.report.note(format!("{files} not belong to it (such as {first}); this is harmless"));
        }
        Ok(())
    }

    /// Checks descriptions, and compares keys with the fingerprints in their names.
    pub(super) fn keys(&mut self) -> Result<(), Error> {
        let mut reads = reads_of_description();
        reads.push(Ahead::List(name::KEYS.to_owned()));
        self.reader.repository().target().begin(reads);
        for object in self.reader.repository().lost_descriptions().map_err(reader::Error::from)? {
            self.problem(Path::new(object), "it is missing or damaged; the next backup puts it back");
        }
        let (objects, repository) = (self.list(name::KEYS)?, self.reader.repository());
        for ObjectInfo { name: object, .. } in repository.target().in_turn(&objects, Keys::read_of) {
            self.check_interrupted()?;
            match repository.keys().check(object) {
                Ok(()) => {}
                Err(repository::Error::Target(error)) => self.unread(Path::new(object), error)?,
                Err(error) => self.problem(Path::new(object), &error.to_string()),
            }
        }
        Ok(())
    }
}
