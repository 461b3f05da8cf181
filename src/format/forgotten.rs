//! Tombstones: the snapshots and packs that were given up on purpose.
//!
//! Readers hide forgotten snapshots. Their objects, and packs that no other snapshot needs, are removed later; what a
//! tombstone names may be missing. Only the documents of the highest generation count: see [`Newest`].

use super::cbor::CborReader;
use super::document::{DocumentKind, Header};
use super::error::Error;
use super::id::{ObjectId, PackId, RepositoryId, SnapshotId, SourceId};
use super::index::write_ids;
use super::name::{self, LAST_NUMBER, SnapshotName};

/// A document of tombstones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// The generation of the run that wrote it.
    pub generation: u64,
    /// The forgotten snapshots, sorted.
    pub snapshots: Vec<SnapshotName>,
    /// The condemned packs: no new snapshot refers to them.
    pub packs: Vec<PackId>,
    /// Documents of tombstones that this one replaces.
    pub replaces: Vec<ObjectId>,
}

impl Forgotten {
    fn header(repository: RepositoryId, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Forgotten, name: name::forgotten(id) }
    }

    /// Encodes the document. The snapshots must be sorted.
    pub fn encode(&self, repository: RepositoryId, id: ObjectId) -> Vec<u8> {
        let mut w = Forgotten::header(repository, id).begin(4);
        w.uint(3).uint(self.generation);
        let sources: Vec<_> = self.snapshots.chunk_by(|one, next| one.source == next.source).collect();
        w.uint(4).array(sources.len());
        for snapshots in sources {
            w.array(1 + 3 * snapshots.len());
            for (number, SnapshotName { source, sequence, time, id }) in snapshots.iter().enumerate() {
                if number == 0 {
                    w.bytes(source.as_bytes());
                }
                w.uint(*sequence).text(time).bytes(&id.0);
            }
        }
        w.uint(5).array(self.packs.len());
        for pack in &self.packs {
            w.bytes(pack.as_bytes());
        }
        write_ids(w.uint(6), &self.replaces);
        w.finish()
    }

    /// Decodes the document with this `id`.
    pub fn decode(repository: RepositoryId, id: ObjectId, bytes: &[u8]) -> Result<Self, Error> {
        let mut forgotten = Forgotten::default();
        let mut generation = None;
        let r = Forgotten::header(repository, id).read(bytes, |r, key| {
            match key {
                3 => generation = Some(r.uint()?),
                4 => {
                    for _ in 0..r.array()? {
                        read_source(r, &mut forgotten.snapshots)?;
                    }
                }
                5 => forgotten.packs = r.ids(PackId::from_slice)?,
                6 => forgotten.replaces = r.ids(ObjectId::from_slice)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        forgotten.generation = r.need("generation", generation)?;
        Ok(forgotten)
    }
}

/// Collects the content of the documents that count: those of the highest generation.
///
/// Each document is complete. If earlier ones counted too, an attacker with a copy of one could hide snapshots again that
/// were shown since.
#[derive(Debug, Default)]
pub struct Newest<T> {
    /// The highest generation of a document so far.
    pub generation: u64,
    /// The content of the documents of this generation.
    pub content: T,
}

impl<T: Default> Newest<T> {
    /// Returns the collection to which the content of a document of `generation` is added, or `None` if a later document is
    /// known.
    pub fn of(&mut self, generation: u64) -> Option<&mut T> {
        if generation > self.generation {
            *self = Newest { generation, content: T::default() };
        }
        (generation == self.generation).then_some(&mut self.content)
    }
}

fn read_source(r: &mut CborReader<'_>, snapshots: &mut Vec<SnapshotName>) -> Result<(), Error> {
    let items = r.array()?;
    if items % 3 != 1 {
        return Err(r.wrong("a truncated tombstone"));
    }
    let source = SourceId::from_slice(r.bytes()?)?;
    for _ in 0..items / 3 {
        let sequence = r.uint()?;
        let (time, id) = (r.text()?.to_owned(), SnapshotId::from_slice(r.bytes()?)?);
        if sequence > LAST_NUMBER || !name::is_time(&time) {
            return Err(r.wrong("a tombstone of an impossible snapshot"));
        }
        snapshots.push(SnapshotName { source, sequence, time, id });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Forgotten {
        let [one, other] = [SourceId::random(), SourceId::random()];
        let name = |source, sequence| SnapshotName {
            source,
            sequence,
            time: "20261120T145201Z".into(),
            id: SnapshotId::random(),
        };
        let mut snapshots = vec![name(one, 1), name(other, 2), name(one, LAST_NUMBER)];
        snapshots.sort();
        let (packs, replaces) = (vec![PackId::random(); 2], vec![ObjectId::random()]);
        Forgotten { generation: 4, snapshots, packs, replaces }
    }

    #[test]
    fn round_trip() {
        let forgotten = example();
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let bytes = forgotten.encode(repository, id);
        assert_eq!(Forgotten::decode(repository, id, &bytes).unwrap(), forgotten);
        for name in &forgotten.snapshots {
            assert_eq!(SnapshotName::parse(&name.object()).unwrap(), *name);
        }
    }

    #[test]
    fn impossible_snapshots_are_refused() {
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let refused = |change: &dyn Fn(&mut SnapshotName)| {
            let mut forgotten = example();
            change(&mut forgotten.snapshots[0]);
            Forgotten::decode(repository, id, &forgotten.encode(repository, id)).is_err()
        };
        assert!(refused(&|name| name.sequence = LAST_NUMBER + 1));
        assert!(refused(&|name| name.time = "today".into()));
    }

    #[test]
    fn only_documents_of_the_highest_generation_count() {
        let mut newest = Newest::<Vec<u64>>::default();
        for generation in [0, 3, 2, 3, 5, 4, 5, 3] {
            if let Some(content) = newest.of(generation) {
                content.push(generation);
            }
        }
        assert_eq!((newest.generation, newest.content), (5, vec![5, 5]));
    }
}
