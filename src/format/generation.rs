//! Generations: one object for each writing run.
//!
//! A catalog records the number and id of its last run. If the last generation in the repository is a different one, then
//! the repository or this machine was reverted to an older state, a clone of this machine wrote to the repository, or
//! another machine took over (its catalog has another id). Its census shows whether listings are complete.

use super::cbor::{CborReader, CborWriter};
use super::document::{DocumentKind, Header};
use super::entry::read_digest;
use super::error::Error;
use super::id::{CatalogId, Digest, RepositoryId, RunId};
use super::name::GenerationName;

/// A writing run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// The number of the run: above that of every earlier run. Runs with the same number exist after a revert, or if two
    /// begin at once.
    pub number: u64,
    /// The id of the run.
    pub run: RunId,
    /// The catalog of the run.
    pub catalog: CatalogId,
    /// The kind of machine that runs.
    pub role: Role,
    /// The objects that existed when the run began.
    pub census: Census,
}

/// The kind of machine that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The machine that backs up, and also forgets and prunes.
    Host,
    /// Any other role. A writer must stop, since it does not know what the run did.
    Other(u64),
}

impl Role {
    fn code(self) -> u64 {
        match self {
            Role::Host => 0,
            Role::Other(code) => code,
        }
    }
}

/// Counts and digests of the names of all documents that a run relied on when it began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Indexes that no other index replaced.
    pub index: NameSet,
    /// Snapshots that existed or were forgotten.
    pub snapshots: NameSet,
    /// Shards of moves that no other shard replaced.
    pub moved: NameSet,
    /// Documents of tombstones that no other one replaced.
    pub forgotten: NameSet,
    /// Secrets documents.
    pub secrets: NameSet,
}

/// The number of names, and the BLAKE3 digest of the sorted names, each followed by a line feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameSet {
    /// The number of names.
    pub count: u64,
    /// The digest of the names.
    pub digest: Digest,
}

impl Default for NameSet {
    fn default() -> Self {
        NameSet::of(Vec::new())
    }
}

impl NameSet {
    /// Counts and digests names of objects.
    pub fn of(mut names: Vec<String>) -> Self {
        names.sort_unstable();
        names.dedup();
        NameSet::of_sorted(names.iter().map(String::as_str))
    }

    /// Counts and digests names of objects that are in order, without duplicates.
    pub fn of_sorted<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let (mut hasher, mut count) = (blake3::Hasher::new(), 0);
        for name in names {
            hasher.update(name.as_bytes()).update(b"\n");
            count += 1;
        }
        NameSet { count, digest: hasher.finalize().into() }
    }
}

impl Census {
    /// The sets, in the order of their keys, with the folder that each is about.
    pub fn sets(&self) -> [(&'static str, NameSet); 5] {
        use super::name::{FORGOTTEN, INDEX, MOVED, SECRETS, SNAPSHOTS};
        let Census { index, snapshots, moved, forgotten, secrets } = *self;
        [(INDEX, index), (SNAPSHOTS, snapshots), (MOVED, moved), (FORGOTTEN, forgotten), (SECRETS, secrets)]
    }

    /// The census alone, in CBOR, for databases.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = CborWriter::default();
        self.write(&mut w);
        w.finish()
    }

    /// Decodes the output of [`Census::encode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Census::read(&mut CborReader::new("census", bytes))
    }

    fn write(&self, w: &mut CborWriter) {
        let sets = self.sets();
        w.map(sets.len());
        for (key, (_, NameSet { count, digest })) in sets.into_iter().enumerate() {
            w.uint(key as u64).array(2).uint(count).bytes(&digest.0);
        }
    }

    fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        let mut sets = [None; 5];
        r.fields(|r, key| {
            let Some(set) = usize::try_from(key).ok().and_then(|key| sets.get_mut(key)) else { return Ok(false) };
            r.array_of(2)?;
            *set = Some(NameSet { count: r.uint()?, digest: read_digest(r)? });
            Ok(true)
        })?;
        let [Some(index), Some(snapshots), Some(moved), Some(forgotten), Some(secrets)] = sets else {
            return Err(r.wrong("an incomplete census"));
        };
        Ok(Census { index, snapshots, moved, forgotten, secrets })
    }
}

impl Generation {
    fn header(repository: RepositoryId, name: GenerationName) -> Header {
        Header { repository, kind: DocumentKind::Generation, name: name.object() }
    }

    /// The name of the object.
    pub fn name(&self) -> GenerationName {
        GenerationName::of_run(self.number, self.run)
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId) -> Vec<u8> {
        let mut w = Generation::header(repository, self.name()).begin(5);
        w.uint(3).uint(self.number);
        w.uint(4).bytes(self.catalog.as_bytes());
        w.uint(5).bytes(self.run.as_bytes());
        w.uint(6).uint(self.role.code());
        self.census.write(w.uint(7));
        w.finish()
    }

    /// Decodes the generation with this name.
    pub fn decode(repository: RepositoryId, name: GenerationName, bytes: &[u8]) -> Result<Self, Error> {
        let (mut number, mut catalog, mut run, mut role, mut census) = (None, None, None, None, None);
        let r = Generation::header(repository, name).read(bytes, |r, key| {
            match key {
                3 => number = Some(r.uint()?),
                4 => catalog = Some(CatalogId::from_slice(r.bytes()?)?),
                5 => run = Some(RunId::from_slice(r.bytes()?)?),
                6 => role = Some(r.uint()?),
                7 => census = Some(Census::read(r)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let (number, run) = (r.need("number", number)?, r.need("run", run)?);
        if GenerationName::of_run(number, run) != name {
            return Err(r.wrong("the number or the run differs from the object's name"));
        }
        let role = match r.need("role", role)? {
            0 => Role::Host,
            other => Role::Other(other),
        };
        let (catalog, census) = (r.need("catalog", catalog)?, r.need("census", census)?);
        Ok(Generation { number, run, catalog, role, census })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let set = |names: &[&str]| NameSet::of(names.iter().map(|name| (*name).to_owned()).collect());
        let census = Census {
            index: set(&["index/a"]),
            snapshots: set(&["b", "c"]),
            moved: set(&[]),
            forgotten: set(&["d"]),
            secrets: set(&["e", "f", "g"]),
        };
        for role in [Role::Host, Role::Other(7)] {
            let (run, catalog) = (RunId::random(), CatalogId::random());
            assert_eq!(Census::decode(&census.encode()).unwrap(), census);
            let generation = Generation { number: 12, run, catalog, role, census: census.clone() };
            let name = generation.name();
            let repository = RepositoryId::random();
            let bytes = generation.encode(repository);
            assert_eq!(Generation::decode(repository, name, &bytes).unwrap(), generation);
            let other = GenerationName::of_run(12, RunId::random());
            assert!(Generation::decode(repository, other, &bytes).is_err());
        }
    }

    /// As `ls | sort | b3sum` prints it.
    #[test]
    fn a_set_of_names_does_not_depend_on_their_order() {
        let names = |names: [&str; 2]| NameSet::of(names.map(str::to_owned).to_vec());
        assert_eq!(names(["b", "a"]), names(["a", "b"]));
        assert_eq!(names(["a", "b"]).digest, Digest::of(b"a\nb\n"));
        assert_ne!(names(["ab", ""]), names(["a", "b"]));
        assert_eq!(NameSet::default().digest, Digest::of(b""));
    }
}
