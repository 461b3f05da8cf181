//! An open repository.

use std::path::PathBuf;

use super::description::{self, DESCRIPTION_SIZE, RepositoryIdentity};
use super::error::Error;
use super::keys::Keys;
use super::readme::{self, ReadmeKeys};
use crate::format::id::RepositoryId;
use crate::format::name::GenerationName;
use crate::format::{SEALED_SIZE, name};
use crate::storage::{Ahead, DiskCache, ErrorKind, Location, ObjectInfo, Parts, Storage, Target};

/// An open repository.
#[derive(Debug)]
pub struct Repository {
    pub(super) target: Target,
    pub(super) id: RepositoryId,
    pub(super) encrypted: bool,
}

impl Repository {
    /// Opens the repository at `location`.
    pub fn open(location: &Location) -> Result<Self, Error> {
        Repository::open_wrapped(location, Vec::new(), |storage| storage)
    }

    /// Opens the repository at `location` with its storage in a wrapper, such as
    /// [`RetryStorage`](crate::storage::RetryStorage). The reads `ahead` begin at once: see [`Target::begin`].
    pub fn open_wrapped(
        location: &Location,
        ahead: Vec<Ahead>,
        wrap: impl FnOnce(Box<dyn Storage>) -> Box<dyn Storage>,
    ) -> Result<Self, Error> {
        let missing = |why: String| Error::Missing { location: location.to_string(), why, is_there: false };
        let target = Target::open(location).map_err(|e| match e.kind {
            ErrorKind::NotFound if location.is_remote() => missing(e.to_string()),
            ErrorKind::NotFound => missing("there is no such directory (is its disk mounted?)".to_owned()),
            _ => Error::Target(e),
        })?;
        let target = target.wrapped(wrap);
        // First what is needed first.
        target.begin(description::reads());
        target.begin(ahead);
        Repository::at(target)
    }

    /// Opens the repository at a target.
    pub fn at(target: Target) -> Result<Self, Error> {
        let reads = description::reads();
        let RepositoryIdentity { id, encrypted } = target.reading_ahead(reads, || description::read(&target))?;
        Ok(Repository { target, id, encrypted })
    }

    /// Reads blocks through a cache on disk, of at most `limit` bytes in `directory`, which is for this repository only. Unless
    /// it `fills`, the cache is only read.
    #[must_use]
    pub fn with_disk_cache(self, directory: PathBuf, limit: u64, fills: bool) -> Self {
        let wrap =
            |storage| -> Box<dyn Storage> { Box::new(DiskCache::new(storage, directory, name::PACKS, limit, fills)) };
        Repository { target: self.target.wrapped(wrap), ..self }
    }

    /// Stores an object. Replaces an existing one, which is damaged.
    #[expect(clippy::disallowed_methods, reason = "the object is unusable, and a correct one follows")]
    pub(super) fn replace(&self, object: &str, bytes: &[u8]) -> Result<(), Error> {
        match self.target.remove(object) {
            Err(e) if e.kind == ErrorKind::NotFound => {}
            other => other?,
        }
        Ok(self.target.put(object, bytes)?)
    }

    /// Creates the directory of a new repository, or reuses that of an interrupted `init`. It becomes a repository only
    /// with [`Repository::finish`].
    pub fn create(location: &Location, encrypted: bool) -> Result<Self, Error> {
        let target = Target::create(location, &name::precedes_description).map_err(|e| match e.kind {
            ErrorKind::AlreadyExists => match Repository::open(location) {
                Ok(there) => Error::Exists { location: location.to_string(), id: there.id },
                Err(_) => Error::Target(e),
            },
            _ => Error::Target(e),
        })?;
        Ok(Repository::new_at(target, encrypted))
    }

    /// Begins a new repository at an empty target. It becomes a repository only with [`Repository::finish`].
    pub fn new_at(target: Target, encrypted: bool) -> Self {
        Repository { target, id: RepositoryId::random(), encrypted }
    }

    /// Writes the description, which completes the repository.
    pub fn finish(&self, keys: &ReadmeKeys<'_>) -> Result<(), Error> {
        self.target.put(name::README, readme::text(self.encrypted, keys).as_bytes())?;
        self.target.put(name::FORMAT, readme::FORMAT.as_bytes())?;
        let text = self.description()?;
        self.target.put(name::DESCRIPTION, text.as_bytes())?;
        Ok(self.target.put(name::DESCRIPTION_COPY, text.as_bytes())?)
    }

    /// Removes the parts of a repository that could not be created. Returns whether all of them are gone.
    #[expect(clippy::disallowed_methods, reason = "no run has written to the repository yet")]
    pub fn abandon(&self) -> bool {
        let text = self.description().unwrap_or_default();
        for object in [name::DESCRIPTION, name::DESCRIPTION_COPY] {
            // Keep the description of another run, which may have created a repository here in the meantime. If this
            // run's description cannot be removed, `Target::abandon` below removes nothing.
            if self.target.get(object, DESCRIPTION_SIZE).is_ok_and(|found| found == text.as_bytes()) {
                let _ = self.target.remove(object);
            }
        }
        self.target.abandon(&name::precedes_description)
    }

    /// The repository's id.
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// Whether blocks are encrypted, according to the description, which is not trusted. Hosts pin the value, and snapshots
    /// have it signed.
    pub fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// The location as it was given.
    pub fn location(&self) -> &str {
        self.target.location()
    }

    /// The repository's target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether the target is available now. It may be an unplugged disk or on a broken network.
    pub fn is_there(&self) -> bool {
        [name::DESCRIPTION, name::DESCRIPTION_COPY].iter().any(|object| self.target.length(object).is_ok())
    }

    /// The keys in the repository.
    pub fn keys(&self) -> Keys<'_> {
        Keys::new(self)
    }

    /// Replaces the content of `bytes` with the stored bytes of a block.
    pub fn read_block(&self, block: &crate::format::BlockLocation, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let length = block.length as usize;
        debug_assert!(length <= SEALED_SIZE);
        Ok(self.target.read(&name::pack(block.pack), block.offset, length, bytes)?)
    }

    /// Reads blocks that follow each other in a pack, if possible with one request. Calls `take` with the stored bytes of each, in
    /// this buffer. After an error, some may have been taken.
    pub fn read_neighbours(
        &self,
        blocks: &[crate::format::BlockLocation],
        bytes: &mut Vec<u8>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Error> {
        let Some(first) = blocks.first() else { return Ok(()) };
        let lengths: Vec<_> = blocks.iter().map(|block| block.length as usize).collect();
        let parts = Parts { offset: first.offset, lengths: &lengths, bytes, take };
        Ok(self.target.read_parts(&name::pack(first.pack), parts)?)
    }

    /// Whether a cache on disk has a copy of a block.
    pub fn has_copy(&self, block: &crate::format::BlockLocation) -> bool {
        self.target.has_copy(&name::pack(block.pack), block.offset, block.length as usize)
    }

    /// Drops the copy of a block in a cache on disk, because it turned out to be wrong. Returns whether there was one.
    pub fn drop_copy(&self, block: &crate::format::BlockLocation) -> bool {
        self.target.drop_copy(&name::pack(block.pack), block.offset, block.length as usize)
    }

    /// Hint that a block has a node of a tree. Caches keep its pack longer than others, which have content of files.
    pub fn prefer_block(&self, block: &crate::format::BlockLocation) {
        self.target.prefer(&name::pack(block.pack));
    }

    /// Hint that a block will not be read again soon; caches may drop it.
    pub fn forget_block(&self, block: &crate::format::BlockLocation) {
        self.target.evict(&name::pack(block.pack), block.offset, block.length as usize);
    }

    /// Returns the names and sizes (bytes) of all objects named as generations, in ascending order. The objects are not
    /// verified: see [`Access::generation`](super::Access::generation).
    pub fn generations(&self) -> Result<Vec<(GenerationName, u64)>, Error> {
        let objects = self.target.list(name::GENERATION)?;
        let names = objects.iter().map(|object| Some((GenerationName::parse(&object.name)?, object.length)));
        let mut found: Vec<_> = names.flatten().collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The listings that commands need which read snapshots, for [`Repository::open_wrapped`].
    pub fn reads_of_readers() -> Vec<Ahead> {
        [name::SNAPSHOTS, name::KEYS, name::FORGOTTEN].map(|folder| Ahead::List(folder.to_owned())).into()
    }

    /// Returns the names of all snapshots, oldest first, without opening them. Skips other objects.
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

/// Whether an error means that a small object is missing or damaged, rather than that the target failed.
pub(super) fn is_damage(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::TooLarge | ErrorKind::NotAFile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::SecretKey;

    #[test]
    fn a_repository_can_be_opened_only_after_finish() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::from(&*dir.path().join("repo"));
        let made = Repository::create(&location, true).unwrap();
        assert!(matches!(Repository::open(&location), Err(Error::Missing { .. })));
        let host = SecretKey::generate_host(&[]).unwrap().fingerprint();
        made.finish(&ReadmeKeys { host: &host, owner: None }).unwrap();
        let opened = Repository::open(&location).unwrap();
        assert_eq!((opened.id(), opened.encrypted()), (made.id(), true));
        assert!(matches!(Repository::create(&location, true), Err(Error::Exists { .. })));
    }
}
