//! Indexes: what a commit added to a repository, or a part of it.
//!
//! No reader needs them: references in trees are direct. They let the host rebuild a lost catalog, and
//! say which blocks a snapshot uses, so that old data can be deleted without the owner's key.

use super::Error;
use super::cbor::{Reader, Writer};
use super::document::{DocumentKind, Header};
use super::entry::read_digest;
use super::id::{Digest, ObjectId, PackId, RepositoryId};
use super::name::{self, SnapshotName};
use super::source::is_source_name;

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackKind {
    /// Content of files.
    Data,
    /// Nodes of trees.
    Tree,
}

impl PackKind {
    /// The number that stands for it in the format.
    pub fn code(self) -> u64 {
        match self {
            PackKind::Data => 0,
            PackKind::Tree => 1,
        }
    }

    /// The kind that a number stands for.
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
    /// Bytes as stored. Blocks lie one after the other, so offsets are sums of lengths.
    pub length: u32,
    /// The chunks that it holds, one after the other, with their lengths.
    pub chunks: Vec<(Digest, u32)>,
}

/// A pack in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedPack {
    /// Its id.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// The digest of the pack as stored.
    pub digest: Digest,
    /// All of its blocks in order.
    pub blocks: Vec<IndexedBlock>,
}

impl IndexedPack {
    /// Bytes of the pack.
    pub fn length(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.length)).fold(0, u64::saturating_add)
    }
}

/// Blocks of one pack, as runs of (first, count).
pub type BlockRuns = Vec<(u32, u32)>;

/// A snapshot, as far as the host needs to know it, and the blocks that it uses as the difference to another one. Of what
/// it holds nothing is said here: that is for the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotBlocks {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// Its source's name.
    pub source: String,
    /// Its files.
    pub files: u64,
    /// Their sizes added up.
    pub bytes: u64,
    /// Bytes that it added.
    pub stored_bytes: u64,
    /// The snapshot that the difference starts from; none: from nothing.
    pub base: Option<SnapshotName>,
    /// Blocks that it uses beside the base's.
    pub added: Vec<(PackId, BlockRuns)>,
    /// Blocks of the base that it does not use.
    pub removed: Vec<(PackId, BlockRuns)>,
}

/// What a commit added, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// New packs.
    pub packs: Vec<IndexedPack>,
    /// The snapshot that the commit was made for, if it is the last of a backup.
    pub snapshot: Option<SnapshotBlocks>,
}

impl Index {
    fn header(repository: RepositoryId, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Index, name: name::index(id) }
    }

    /// The document's bytes.
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

    /// Reads the index found under `id`.
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
                        return Err(r.wrong(format!("the source name {source:?}")));
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
    /// A block is its length, then digest and length of each chunk.
    fn write(&self, w: &mut Writer) {
        w.array(1 + 2 * self.chunks.len()).uint(self.length.into());
        for (digest, length) in &self.chunks {
            w.bytes(&digest.0).uint((*length).into());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        let items = r.array()?;
        if items % 2 == 0 {
            return Err(r.wrong("a list of chunks that is cut off"));
        }
        let length = r.u32()?;
        let chunks = (0..items / 2).map(|_| Ok((read_digest(r)?, r.u32()?))).collect::<Result<_, Error>>()?;
        Ok(IndexedBlock { length, chunks })
    }
}

fn read_pack(r: &mut Reader<'_>) -> Result<IndexedPack, Error> {
    r.array_of(4)?;
    let id = PackId::from_slice(r.bytes()?)?;
    let kind = PackKind::from_code(r.uint()?);
    let kind = r.need("known kind of pack", kind)?;
    let digest = read_digest(r)?;
    let blocks = (0..r.array()?).map(|_| IndexedBlock::read(r)).collect::<Result<_, _>>()?;
    Ok(IndexedPack { id, kind, digest, blocks })
}

fn write_runs(w: &mut Writer, packs: &[(PackId, BlockRuns)]) {
    w.array(packs.len());
    for (pack, runs) in packs {
        w.array(1 + 2 * runs.len()).bytes(pack.as_bytes());
        for (first, count) in runs {
            w.uint((*first).into()).uint((*count).into());
        }
    }
}

fn read_runs(r: &mut Reader<'_>) -> Result<Vec<(PackId, BlockRuns)>, Error> {
    (0..r.array()?)
        .map(|_| {
            let items = r.array()?;
            if items % 2 == 0 {
                return Err(r.wrong("a run of blocks that is cut off"));
            }
            let pack = PackId::from_slice(r.bytes()?)?;
            let runs = (0..items / 2).map(|_| read_run(r)).collect::<Result<_, _>>()?;
            Ok((pack, runs))
        })
        .collect()
}

fn read_run(r: &mut Reader<'_>) -> Result<(u32, u32), Error> {
    let (first, count) = (r.u32()?, r.u32()?);
    match count > 0 && first.checked_add(count).is_some() {
        true => Ok((first, count)),
        false => Err(r.wrong("a run of no blocks, or of more than there can be")),
    }
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
