//! Indexes: the packs and blocks that a commit added to a repository, and the blocks that snapshots use.
//!
//! Readers do not need indexes, since trees refer to blocks directly. The host uses them to rebuild a lost catalog, and to
//! find the blocks used by a snapshot, so that old data can be deleted without the owner's key. An index may replace
//! earlier ones, when packs were removed or many small indexes are joined.

use super::cbor::CborWriter;
use super::document::{DocumentKind, Header};
use super::error::Error;
use super::id::{ObjectId, RepositoryId};
use super::name;
use super::pack::{AnyPack, IndexedCarrier, IndexedPack};
use super::usage::{Hold, SnapshotUsage};

/// The maximum number of session keys of a commit. A run needs another one after 64 GiB.
const SESSION_KEYS: usize = 1 << 16;

/// An index document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// The generation of the run that wrote it.
    pub generation: u64,
    /// Packs with the blocks that were born in them.
    pub packs: Vec<IndexedPack>,
    /// Carriers.
    pub carriers: Vec<IndexedCarrier>,
    /// Finished snapshots: one in the last commit of a backup, several in a joined index.
    pub snapshots: Vec<SnapshotUsage>,
    /// Indexes that this one replaces, all of lower generations.
    pub replaces: Vec<ObjectId>,
    /// The PKESK packets of the session keys that seal the blocks and the snapshot of this commit, as they stand at the start
    /// of messages. They suffice to encrypt old session keys to another recipient.
    pub session_keys: Vec<Vec<u8>>,
    /// Snapshots that were held or released. The highest generation counts.
    pub holds: Vec<Hold>,
}

impl Index {
    fn header(repository: RepositoryId, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Index, name: name::index(id) }
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId, id: ObjectId) -> Vec<u8> {
        let mut w = Index::header(repository, id).begin(6);
        w.uint(3).uint(self.generation);
        w.uint(4).array(self.packs.len() + self.carriers.len());
        self.packs.iter().for_each(|pack| pack.write(&mut w));
        self.carriers.iter().for_each(|carrier| carrier.write(&mut w));
        w.uint(5).array(self.snapshots.len());
        self.snapshots.iter().for_each(|usage| usage.write(&mut w));
        write_ids(w.uint(6), &self.replaces);
        w.uint(7).array(self.session_keys.len());
        for packets in &self.session_keys {
            w.bytes(packets);
        }
        w.uint(8).array(self.holds.len());
        self.holds.iter().for_each(|hold| hold.write(&mut w));
        w.finish()
    }

    /// Decodes the index with this `id`.
    pub fn decode(repository: RepositoryId, id: ObjectId, bytes: &[u8]) -> Result<Self, Error> {
        let mut index = Index::default();
        let mut generation = None;
        let r = Index::header(repository, id).read(bytes, |r, key| {
            match key {
                3 => generation = Some(r.uint()?),
                4 => {
                    for _ in 0..r.array()? {
                        match AnyPack::read(r)? {
                            AnyPack::Birth(pack) => index.packs.push(pack),
                            AnyPack::Carrier(carrier) => index.carriers.push(carrier),
                        }
                    }
                }
                5 => index.snapshots = (0..r.array()?).map(|_| SnapshotUsage::read(r)).collect::<Result<_, _>>()?,
                6 => index.replaces = r.ids(ObjectId::from_slice)?,
                7 => {
                    let count = r.array_up_to(SESSION_KEYS)?;
                    let packets = (0..count).map(|_| Ok(r.bytes()?.to_vec())).collect::<Result<_, Error>>();
                    index.session_keys = packets?;
                }
                8 => index.holds = (0..r.array()?).map(|_| Hold::read(r)).collect::<Result<_, _>>()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        index.generation = r.need("generation", generation)?;
        Ok(index)
    }
}

/// Writes an array of ids of documents.
pub(super) fn write_ids(w: &mut CborWriter, ids: &[ObjectId]) {
    w.array(ids.len());
    for id in ids {
        w.bytes(id.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::format::id::{Check, Digest, PackId, SnapshotId, SourceId};
    use crate::format::name::SnapshotName;
    use crate::format::pack::{CarriedBlock, IndexedBlock, PackKind};
    use crate::format::usage::Labels;

    fn block(ordinal: u32, offset: u64, length: u32) -> IndexedBlock {
        let chunks = vec![(Digest::of(b"x"), 5); ordinal as usize % 3];
        IndexedBlock { ordinal, offset, length, check: Check::of(&[ordinal as u8]), chunks }
    }

    fn pack(blocks: Vec<IndexedBlock>, count: u32, length: u64) -> IndexedPack {
        let digest = Some(Digest::of(b"pack"));
        IndexedPack { id: PackId::random(), kind: PackKind::Tree, digest, count, length, blocks }
    }

    fn example() -> Index {
        let name = SnapshotName {
            source: SourceId::random(),
            sequence: 7,
            time: "20261120T145201Z".into(),
            id: SnapshotId::random(),
        };
        let birth = PackId::random();
        let carried = |ordinal| CarriedBlock { length: 7, check: Check::of(b"c"), birth, ordinal };
        let carrier =
            IndexedCarrier { id: PackId::random(), digest: Digest::of(b"c"), blocks: vec![carried(4), carried(9)] };
        let usage = SnapshotUsage {
            snapshot: name.clone(),
            base: Some(name.clone()),
            added: vec![(birth, smallvec![(0, 2), (5, 1)])],
            removed: vec![],
            source: "home".into(),
            files: 3,
            bytes: 4,
            stored_bytes: 5,
            labels: Labels { host: "h".into(), paths: vec![b"/\xff".to_vec()], tags: vec!["t".into()] },
        };
        Index {
            generation: 9,
            packs: vec![
                pack(vec![block(0, 0, 10), block(1, 10, 11)], 2, 21),
                // Gaps at the start, in the middle and at the end.
                pack(vec![block(2, 30, 10), block(5, 70, 1)], 9, 100),
                IndexedPack { digest: None, ..pack(vec![], 3, 50) },
            ],
            carriers: vec![carrier],
            snapshots: vec![usage.clone(), SnapshotUsage { base: None, ..usage }],
            replaces: vec![ObjectId::random()],
            session_keys: vec![b"packets".to_vec()],
            holds: vec![Hold { snapshot: name, held: true }],
        }
    }

    #[test]
    fn round_trip() {
        let index = example();
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let bytes = index.encode(repository, id);
        assert_eq!(Index::decode(repository, id, &bytes).unwrap(), index);
        assert_eq!(index.carriers[0].length(), 14);
        let moved = Index::decode(repository, ObjectId::random(), &bytes);
        assert!(matches!(moved, Err(Error::Mismatch { field: "name", .. })));
        let foreign = Index::decode(RepositoryId::random(), id, &bytes);
        assert!(matches!(foreign, Err(Error::Mismatch { field: "repository", .. })));
    }

    /// The encoded items of a pack, with its other fields.
    fn decode_items(items: impl FnOnce(&mut CborWriter), digest: bool, gone: bool) -> Result<Index, Error> {
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let mut w = Index::header(repository, id).begin(2);
        w.uint(3).uint(1).uint(4).array(1);
        w.map(3 + usize::from(digest) + usize::from(gone)).uint(0).bytes(&[1; 16]).uint(1).uint(0);
        if digest {
            w.uint(2).bytes(&[2; 32]);
        }
        w.uint(3);
        items(&mut w);
        if gone {
            w.uint(4).uint(1);
        }
        Index::decode(repository, id, &w.finish())
    }

    #[test]
    fn impossible_packs_are_refused() {
        let none = |w: &mut CborWriter| _ = w.array(0);
        assert!(decode_items(none, true, false).is_ok());
        assert!(decode_items(none, false, true).is_ok());
        assert!(decode_items(none, true, true).is_err());
        assert!(decode_items(none, false, false).is_err());
        type Items = fn(&mut CborWriter);
        let bad: [Items; 5] = [
            |w| _ = w.array(1).array(2).uint(0).uint(5),
            |w| _ = w.array(1).array(1).uint(3),
            |w| _ = w.array(1).array(3).uint(3).bytes(&[0; 8]).bytes(&[0; 32]),
            |w| _ = w.array(1).array(2).uint(3).bytes(&[0; 7]),
            |w| _ = w.array(2).array(2).uint(u32::MAX.into()).uint(1).array(2).uint(1).uint(1),
        ];
        for (number, items) in bad.into_iter().enumerate() {
            assert!(decode_items(items, true, false).is_err(), "{number}");
        }
        let large = |w: &mut CborWriter| _ = w.array(2).array(2).uint(1).uint(u64::MAX).array(2).uint(1).uint(1);
        assert!(decode_items(large, true, false).is_err());
    }
}
