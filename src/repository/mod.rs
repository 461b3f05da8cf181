//! Object names, and which keys are trusted to sign them.
//!
//! - [`Repository`]: a repository at a target, opened: its id, and whether its blocks are encrypted
//! - [`description`]: the plain description and its copy, which say both
//! - [`keys`]: the certificates and the owner's key that lie next to the data
//! - [`documents`]: signed documents: [`Writer`] signs and seals them, [`Access`] opens and verifies
//!
//! The format's bytes are [`crate::format`]'s, OpenPGP is [`crate::crypt`]'s, storage is
//! [`crate::storage`]'s; here they meet.

mod description;
mod documents;
mod error;
mod keys;
mod readme;

pub use crate::storage::Stamp;
pub use documents::{Access, Writer};
pub use error::Error;
pub use keys::Keys;
pub use readme::ForPeople;

use self::description::{DESCRIPTION_SIZE, Identity};
use crate::format::id::RepositoryId;
use crate::format::{SEALED_SIZE, name};
use crate::storage::{ErrorKind, ObjectInfo, Target};

/// A repository at a target.
#[derive(Debug)]
pub struct Repository {
    target: Target,
    id: RepositoryId,
    encrypted: bool,
}

impl Repository {
    /// Opens the repository at `location`.
    pub fn open(location: &str) -> Result<Self, Error> {
        let missing = |why: String| Error::Missing { location: location.to_owned(), why };
        let target = Target::open(location).map_err(|e| match e.kind {
            ErrorKind::NotFound => missing(e.to_string()),
            _ => Error::Target(e),
        })?;
        let Identity { id, encrypted } = description::read(&target)?;
        Ok(Repository { target, id, encrypted })
    }

    /// Stores an object whose content is known in place of a damaged one, or where there is none.
    fn replace(&self, object: &str, bytes: &[u8]) -> Result<(), Error> {
        match self.target.remove(object) {
            Err(e) if e.kind == ErrorKind::NotFound => {}
            other => other?,
        }
        Ok(self.target.put(object, bytes)?)
    }

    /// Makes the folder of a new repository, or takes one where an earlier try broke off. It is not a repository until
    /// [`Repository::finish`].
    pub fn create(location: &str, encrypted: bool) -> Result<Self, Error> {
        let target = Target::create(location, &name::precedes_description).map_err(|e| match e.kind {
            ErrorKind::AlreadyExists => match Repository::open(location) {
                Ok(there) => Error::Exists { location: location.to_owned(), id: there.id },
                Err(_) => Error::Target(e),
            },
            _ => Error::Target(e),
        })?;
        Ok(Repository { target, id: RepositoryId::random(), encrypted })
    }

    /// Writes the description, which makes a repository of what was prepared.
    pub fn finish(&self, keys: &ForPeople<'_>) -> Result<(), Error> {
        self.target.put(name::README, readme::text(self.encrypted, keys).as_bytes())?;
        self.target.put(name::FORMAT, readme::FORMAT.as_bytes())?;
        let text = self.description()?;
        self.target.put(name::DESCRIPTION, text.as_bytes())?;
        Ok(self.target.put(name::DESCRIPTION_COPY, text.as_bytes())?)
    }

    /// Removes what there is of a repository that could not be made. Returns whether nothing is left of it.
    pub fn abandon(&self) -> bool {
        let text = self.description().unwrap_or_default();
        for object in [name::DESCRIPTION, name::DESCRIPTION_COPY] {
            // Another run may have made a repository here meanwhile, and its description stays. If this one's does, so does all.
            if self.target.get(object, DESCRIPTION_SIZE).is_ok_and(|found| found == text.as_bytes()) {
                let _ = self.target.remove(object);
            }
        }
        self.target.abandon(&name::precedes_description)
    }

    /// Names the repository.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// Whether the target says that blocks are encrypted. Pinned by hosts, signed in snapshots.
    pub fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// Where it is, as it was given.
    pub fn location(&self) -> &str {
        self.target.location()
    }

    /// The target that holds it.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the target is there at this moment: a disk can be unplugged, and a network break.
    pub fn is_there(&self) -> bool {
        [name::DESCRIPTION, name::DESCRIPTION_COPY].iter().any(|object| self.target.length(object).is_ok())
    }

    /// The keys that lie in it.
    pub fn keys(&self) -> Keys<'_> {
        Keys::new(self)
    }

    /// Has `bytes` hold the stored bytes of a block, and nothing else.
    pub fn read_block(&self, block: &crate::format::BlockLocation, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let length = block.length as usize;
        debug_assert!(length <= SEALED_SIZE);
        Ok(self.target.read(&name::pack(block.pack), block.offset, length, bytes)?)
    }

    /// Says that nobody will want a block soon.
    pub fn forget_block(&self, block: &crate::format::BlockLocation) {
        self.target.forget(&name::pack(block.pack), block.offset, block.length as usize);
    }

    /// Numbers and lengths of all objects that are named as generations, ascending. Anyone who may create objects can have
    /// made them: see [`Access::generation`].
    pub fn generations(&self) -> Result<Vec<(u64, u64)>, Error> {
        let mut found = Vec::new();
        self.target.visit(name::GENERATION, &mut |ObjectInfo { name, length }| {
            found.extend(name::parse_generation(&name).map(|number| (number, length)));
        })?;
        found.sort_unstable();
        Ok(found)
    }

    /// All snapshots by name, oldest first, without opening any. Objects that are none are left out.
    pub fn snapshots(&self) -> Result<Vec<name::SnapshotName>, Error> {
        let mut names: Vec<_> = self
            .target
            .list(name::SNAPSHOTS)?
            .iter()
            .filter_map(|ObjectInfo { name, .. }| name::SnapshotName::parse(name).ok())
            .collect();
        names.sort_by_key(|name| (name.sequence, name.source, name.id));
        Ok(names)
    }
}

/// Whether a target answers so for a small object that is missing or is not what was stored; it does not itself fail.
fn is_damage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::TooLarge | ErrorKind::NotAFile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::SecretKey;

    #[test]
    fn a_repository_is_one_only_when_finished() {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("repo").display().to_string();
        let made = Repository::create(&location, true).unwrap();
        assert!(matches!(Repository::open(&location), Err(Error::Missing { .. })));
        let host = SecretKey::generate_host(&[]).unwrap().fingerprint();
        made.finish(&ForPeople { host: &host, owner: None }).unwrap();
        let opened = Repository::open(&location).unwrap();
        assert_eq!((opened.id(), opened.encrypted()), (made.id(), true));
        assert!(matches!(Repository::create(&location, true), Err(Error::Exists { .. })));
    }
}
