//! Indexes: the packs and blocks that a commit added to a repository, or a part of them.
//!
//! Readers do not need indexes, since trees refer to blocks directly. The host uses them to rebuild a lost catalog, and to
//! find the blocks used by a snapshot, so that old data can be deleted without the owner's key.

use super::cbor::{CborReader, CborWriter};
use super::document::{DocumentKind, Header};
use super::entry::read_digest;
use super::error::Error;
use super::id::{Digest, ObjectId, PackId, RepositoryId};
use super::name::{self, SnapshotName};
use super::source::is_source_name;

/// The kind of data in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackKind {
    /// File content.
    Data,
    /// Tree nodes.
    Tree,
}

impl PackKind {
    /// The kind's number in the format.
    pub fn code(self) -> u64 {
        match self {
            PackKind::Data => 0,
            PackKind::Tree => 1,
        }
    }

    /// Returns the kind with this number.
    pub fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(PackKind::Data),
            1 => Some(PackKind::Tree),
            _ => None,
        }
    }
}

/// A block in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedBlock {
    /// The stored size in bytes. Blocks are contiguous, so the sum of earlier lengths is a block's offset.
    pub length: u32,
    /// The block's chunks in order, with their lengths in bytes of plaintext.
    pub chunks: Vec<(Digest, u32)>,
}

/// A pack in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedPack {
    /// The pack's id.
    pub id: PackId,
    /// The kind of data in it.
    pub kind: PackKind,
    /// The digest of the stored pack.
    pub digest: Digest,
    /// All blocks of the pack in order.
    pub blocks: Vec<IndexedBlock>,
}

impl IndexedPack {
    /// The size of the pack in bytes.
    pub fn length(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.length)).fold(0, u64::saturating_add)
    }
}

/// Blocks of one pack, as runs of (index of the first block, number of blocks).
pub type BlockRuns = Vec<(u32, u32)>;

/// The blocks that a snapshot uses, as the difference to another snapshot, and its statistics. The host can read this, so
/// it contains nothing about the snapshot's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotBlocks {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The source's name.
    pub source: String,
    /// The number of regular files.
    pub files: u64,
    /// The total size of the files in bytes.
    pub bytes: u64,
    /// The number of bytes that the backup added to packs.
    pub stored_bytes: u64,
    /// The snapshot that the difference is relative to. If it is `None`, `added` lists all blocks.
    pub base: Option<SnapshotName>,
    /// The blocks used by this snapshot but not by the base.
    pub added: Vec<(PackId, BlockRuns)>,
    /// The blocks used by the base but not by this snapshot.
    pub removed: Vec<(PackId, BlockRuns)>,
}

/// An index document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// The new packs.
    pub packs: Vec<IndexedPack>,
    /// The finished snapshot; only in the last commit of a backup.
    pub snapshot: Option<SnapshotBlocks>,
}

impl Index {
    fn header(repository: RepositoryId, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Index, name: name::index(id) }
    }

    /// Encodes the document.
    pub fn encode(&self, repository: RepositoryId, id: ObjectId) -> Vec<u8> {
        let mut w = Index::header(repository, id).begin(1 + usize::from(self.snapshot.is_some()));
        w.uint(3).array(self.packs.len());
        for pack in &self.packs {
            w.array(4).bytes(pack.id.as_bytes()).uint(pack.kind.code()).bytes(&pack.digest.0);
            w.array(pack.blocks.len());
            pack.blocks.iter().for_each(|block| block.write(&mut w));
        }
        if let Some(blocks) = &self.snapshot {
            w.uint(4).array(8).text(&blocks.snapshot.object());
            w.text(&blocks.base.as_ref().map(SnapshotName::object).unwrap_or_default());
            write_runs(&mut w, &blocks.added);
            write_runs(&mut w, &blocks.removed);
            w.text(&blocks.source);
            w.uint(blocks.files).uint(blocks.bytes).uint(blocks.stored_bytes);
        }
        w.finish()
    }

    /// Decodes the index with this `id`.
    pub fn decode(repository: RepositoryId, id: ObjectId, bytes: &[u8]) -> Result<Self, Error> {
        let mut index = Index::default();
        Index::header(repository, id).read(bytes, |r, key| {
            match key {
                3 => index.packs = (0..r.array()?).map(|_| read_pack(r)).collect::<Result<_, _>>()?,
                4 => {
                    r.array_of(8)?;
                    let snapshot = SnapshotName::parse(r.text()?)?;
                    let base = match r.text()? {
                        "" => None,
                        base => Some(SnapshotName::parse(base)?),
                    };
                    let (added, removed) = (read_runs(r)?, read_runs(r)?);
                    let source = r.text()?.to_owned();
                    if !is_source_name(&source) {
                        return Err(r.wrong(format!("invalid source name {source:?}")));
                    }
                    let (files, bytes, stored_bytes) = (r.uint()?, r.uint()?, r.uint()?);
                    let blocks = SnapshotBlocks { snapshot, source, files, bytes, stored_bytes, base, added, removed };
                    index.snapshot = Some(blocks);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(index)
    }
}

impl IndexedBlock {
    /// A block is an array of its length, and the digest and length of each chunk.
    fn write(&self, w: &mut CborWriter) {
        w.array(1 + 2 * self.chunks.len()).uint(self.length.into());
        for (digest, length) in &self.chunks {
            w.bytes(&digest.0).uint((*length).into());
        }
    }

    fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        let items = r.array()?;
        if items % 2 == 0 {
            return Err(r.wrong("truncated list of chunks"));
        }
        let length = r.u32()?;
        let chunks = (0..items / 2).map(|_| Ok((read_digest(r)?, r.u32()?))).collect::<Result<_, Error>>()?;
        Ok(IndexedBlock { length, chunks })
    }
}

fn read_pack(r: &mut CborReader<'_>) -> Result<IndexedPack, Error> {
    r.array_of(4)?;
    let id = PackId::from_slice(r.bytes()?)?;
    let kind = PackKind::from_code(r.uint()?);
    let kind = r.need("known kind of pack", kind)?;
    let digest = read_digest(r)?;
    let blocks = (0..r.array()?).map(|_| IndexedBlock::read(r)).collect::<Result<_, _>>()?;
    Ok(IndexedPack { id, kind, digest, blocks })
}

fn write_runs(w: &mut CborWriter, packs: &[(PackId, BlockRuns)]) {
    w.array(packs.len());
    for (pack, runs) in packs {
        w.array(1 + 2 * runs.len()).bytes(pack.as_bytes());
        for (first, count) in runs {
            w.uint((*first).into()).uint((*count).into());
        }
    }
}

fn read_runs(r: &mut CborReader<'_>) -> Result<Vec<(PackId, BlockRuns)>, Error> {
    (0..r.array()?)
        .map(|_| {
            let items = r.array()?;
            if items % 2 == 0 {
                return Err(r.wrong("truncated run of blocks"));
            }
            let pack = PackId::from_slice(r.bytes()?)?;
            let runs = (0..items / 2).map(|_| read_run(r)).collect::<Result<_, _>>()?;
            Ok((pack, runs))
        })
        .collect()
}

fn read_run(r: &mut CborReader<'_>) -> Result<(u32, u32), Error> {
    let (first, count) = (r.u32()?, r.u32()?);
    if count == 0 || first.checked_add(count).is_none() {
        return Err(r.wrong("a run of blocks that is empty or too long"));
    }
    Ok((first, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::{SnapshotId, SourceId};

    #[test]
    fn round_trip() {
        let digest = Digest::of(b"x");
        let name = SnapshotName {
            source: SourceId::random(),
            sequence: 7,
            time: "20261120T145201Z".into(),
            id: SnapshotId::random(),
        };
        let pack = PackId::random();
        let blocks = vec![
            IndexedBlock { length: 10, chunks: vec![(digest, 5), (digest, 6)] },
            IndexedBlock { length: 11, chunks: vec![(digest, 7)] },
        ];
        let index = Index {
            packs: vec![IndexedPack { id: pack, kind: PackKind::Tree, digest, blocks }],
            snapshot: Some(SnapshotBlocks {
                snapshot: name.clone(),
                source: "home".into(),
                files: 3,
                bytes: 4,
                stored_bytes: 5,
                base: Some(name),
                added: vec![(pack, vec![(0, 2), (5, 1)])],
                removed: vec![],
            }),
        };
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let bytes = index.encode(repository, id);
        assert_eq!(Index::decode(repository, id, &bytes).unwrap(), index);
        assert_eq!(index.packs[0].length(), 21);
        let moved = Index::decode(repository, ObjectId::random(), &bytes);
        assert!(matches!(moved, Err(Error::Mismatch { field: "name", .. })));
        let foreign = Index::decode(RepositoryId::random(), id, &bytes);
        assert!(matches!(foreign, Err(Error::Mismatch { field: "repository", .. })));
    }
}
