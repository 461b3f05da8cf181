//! Session keys that were sealed again for recipients who were added later.

use tracing::debug;

use super::error::Error;
use super::open::Repository;
use crate::crypt::{self, Fingerprint, Opener, RewrappedKeys};
use crate::format::id::ObjectId;
use crate::format::{SEALED_SIZE, name};

/// The maximum number of objects that are read for one recipient.
const MAX_OBJECTS: usize = 4096;

impl Repository {
    /// Stores a table for `recipient`, as returned by [`Opener::rewrap`]. Returns the object's name.
    pub fn put_rewrapped(&self, recipient: &Fingerprint, sealed: &[u8]) -> Result<String, Error> {
        let object = name::rewrapped(&recipient.to_string(), ObjectId::random());
        self.target.put(&object, sealed)?;
        Ok(object)
    }

    /// Appends the content of a sealed block to `out`. On error, `out` is unchanged.
    pub fn open_block(&self, opener: &Opener, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), crypt::Error> {
        self.open_with(opener, sealed, || opener.open(sealed, SEALED_SIZE, out))
    }

    /// Opens `message` with `open`. If it is encrypted to other keys, but the repository has its session key sealed again
    /// for a key of the opener, opens it with that.
    pub(super) fn open_with<T>(
        &self,
        opener: &Opener,
        message: &[u8],
        mut open: impl FnMut() -> Result<T, crypt::Error>,
    ) -> Result<T, crypt::Error> {
        match open() {
            Err(error) if error.is_other_key() && opener.find_rewrapped(message, self) => open(),
            other => other,
        }
    }
}

impl RewrappedKeys for Repository {
    fn visit(
        &self,
        recipients: &[Fingerprint],
        limit: usize,
        found: &mut dyn FnMut(&[u8]) -> Result<(), crypt::Error>,
    ) -> bool {
        for recipient in recipients {
            let folder = format!("{}{recipient}/", name::REWRAPPED);
            let objects = match self.target.list(&folder) {
                Ok(objects) => objects,
                Err(error) => {
                    debug!(folder, kind = ?error.kind, "tables of session keys cannot be listed");
                    return false;
                }
            };
            let objects = objects.iter().filter(|object| name::parse_rewrapped(&object.name).is_some());
            for object in objects.take(MAX_OBJECTS) {
                match self.target.get(&object.name, limit).map(|sealed| found(&sealed)) {
                    Ok(Ok(())) => debug!(object = object.name, "table of session keys loaded"),
                    Ok(Err(_)) => debug!(object = object.name, "unusable table of session keys skipped"),
                    Err(error) => {
                        debug!(object = object.name, kind = ?error.kind, "unreadable table of session keys skipped")
                    }
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::{KeyPurpose, Profile, SecretKey};
    use crate::storage::Target;
    use crate::storage::testing::Memory;

    #[test]
    fn only_tables_of_the_recipient_are_visited() {
        let repository = Repository::new_at(Target::new(Box::new(Memory::default()), "memory".into()), true);
        let key = || SecretKey::generate(Profile::Rfc9580, "owner", KeyPurpose::Owner, None).unwrap().fingerprint();
        let (one, other) = (key(), key());
        repository.put_rewrapped(&one, b"first").unwrap();
        repository.put_rewrapped(&one, b"second").unwrap();
        repository.put_rewrapped(&one, b"too long").unwrap();
        repository.put_rewrapped(&other, b"other").unwrap();
        repository.target.put(&format!("{}{one}/notes", name::REWRAPPED), b"notes").unwrap();
        let mut seen = Vec::new();
        let mut add = |sealed: &[u8]| {
            seen.push(sealed.to_vec());
            Err(crypt::Error::Damaged { what: "an error ends nothing" })
        };
        assert!(repository.visit(&[one], 6, &mut add));
        seen.sort();
        assert_eq!(seen, [b"first".to_vec(), b"second".to_vec()]);
    }
}
