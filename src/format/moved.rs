//! Moves: where blocks lie whose birth pack was removed, or that were stored again.
//!
//! A shard has all moves of the packs whose ids begin with the same byte. If there are several shards of one prefix, the one
//! of the highest generation counts, so a move has one step, however often a block is moved.

use super::cbor::CborReader;
use super::document::{DocumentKind, Header};
use super::entry::read_digest;
use super::error::Error;
use super::id::{Digest, ObjectId, PackId, RepositoryId};
use super::index::write_ids;
use super::limits::SEALED_SIZE;
use super::name;
use super::node::BlockLocation;

/// A range of bytes of a pack, and its new location. It begins and ends at the boundaries of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovedRange {
    /// The offset in the birth pack.
    pub from: u64,
    /// The number of bytes.
    pub length: u64,
    /// The position of the carrier in [`Moved::carriers`].
    pub carrier: u32,
    /// The offset in the carrier.
    pub to: u64,
}

/// A chunk that was stored again because its block was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredChunk {
    /// The digest of the chunk.
    pub digest: Digest,
    /// The position of the carrier in [`Moved::carriers`].
    pub carrier: u32,
    /// The offset of the block in the carrier.
    pub offset: u64,
    /// The stored size of the block.
    pub stored: u32,
    /// The offset of the chunk in the decoded block.
    pub start: u32,
}

/// A shard of moves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moved {
    /// The generation of the run that wrote it.
    pub generation: u64,
    /// The packs that hold the blocks.
    pub carriers: Vec<PackId>,
    /// For each birth pack, in ascending order: the ranges that were moved, in ascending order.
    pub ranges: Vec<(PackId, Vec<MovedRange>)>,
    /// For each birth pack, in ascending order: the chunks that were stored again.
    pub restored: Vec<(PackId, Vec<RestoredChunk>)>,
    /// Shards of the same prefix that this one replaces.
    pub replaces: Vec<ObjectId>,
}

impl Moved {
    fn header(repository: RepositoryId, prefix: u8, id: ObjectId) -> Header {
        Header { repository, kind: DocumentKind::Moved, name: name::moved(prefix, id) }
    }

    /// Encodes the shard of packs whose ids begin with `prefix`.
    pub fn encode(&self, repository: RepositoryId, prefix: u8, id: ObjectId) -> Vec<u8> {
        let mut w = Moved::header(repository, prefix, id).begin(5);
        w.uint(3).uint(self.generation);
        w.uint(4).array(self.carriers.len());
        for carrier in &self.carriers {
            w.bytes(carrier.as_bytes());
        }
        w.uint(5).array(self.ranges.len());
        for (birth, ranges) in &self.ranges {
            w.array(1 + 4 * ranges.len()).bytes(birth.as_bytes());
            for MovedRange { from, length, carrier, to } in ranges {
                w.uint(*from).uint(*length).uint((*carrier).into()).uint(*to);
            }
        }
        w.uint(6).array(self.restored.len());
        for (birth, chunks) in &self.restored {
            w.array(1 + 5 * chunks.len()).bytes(birth.as_bytes());
            for RestoredChunk { digest, carrier, offset, stored, start } in chunks {
                w.bytes(&digest.0).uint((*carrier).into()).uint(*offset);
                w.uint((*stored).into()).uint((*start).into());
            }
        }
        write_ids(w.uint(7), &self.replaces);
        w.finish()
    }

    /// Decodes the shard with this `id` of packs whose ids begin with `prefix`.
    pub fn decode(repository: RepositoryId, prefix: u8, id: ObjectId, bytes: &[u8]) -> Result<Self, Error> {
        let mut moved = Moved::default();
        let mut generation = None;
        let r = Moved::header(repository, prefix, id).read(bytes, |r, key| {
            match key {
                3 => generation = Some(r.uint()?),
                4 => moved.carriers = r.ids(PackId::from_slice)?,
                5 => moved.ranges = by_birth(r, prefix, 4, read_range)?,
                6 => moved.restored = by_birth(r, prefix, 5, read_chunk)?,
                7 => moved.replaces = r.ids(ObjectId::from_slice)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        moved.generation = r.need("generation", generation)?;
        let carriers = moved.carriers.len();
        let ranges = moved.ranges.iter().flat_map(|(_, ranges)| ranges).map(|range| range.carrier);
        let chunks = moved.restored.iter().flat_map(|(_, chunks)| chunks).map(|chunk| chunk.carrier);
        if ranges.chain(chunks).any(|carrier| carrier as usize >= carriers) {
            return Err(r.wrong("a position that is in no list of carriers"));
        }
        if moved.restored.iter().flat_map(|(_, chunks)| chunks).any(|chunk| chunk.stored as usize > SEALED_SIZE) {
            return Err(r.wrong("a block that is too large"));
        }
        for (_, ranges) in &moved.ranges {
            let mut end = 0;
            for range in ranges {
                if range.from < end || range.length == 0 {
                    return Err(r.wrong("moved ranges that are empty, overlap or are out of order"));
                }
                end = r.need("possible range", range.from.checked_add(range.length))?;
                r.need("possible range", range.to.checked_add(range.length))?;
            }
        }
        Ok(moved)
    }

    /// The new location of a block; `None` if it was not moved.
    pub fn location(&self, block: &BlockLocation) -> Option<BlockLocation> {
        let at = self.ranges.binary_search_by_key(&block.pack, |(birth, _)| *birth).ok()?;
        let (_, ranges) = self.ranges.get(at)?;
        let before = ranges.partition_point(|range| range.from <= block.offset).checked_sub(1)?;
        let MovedRange { from, length, carrier, to } = *ranges.get(before)?;
        let start = block.offset - from;
        let pack = *self.carriers.get(carrier as usize)?;
        let is_within = start.checked_add(block.length.into())? <= length;
        is_within.then(|| BlockLocation { pack, offset: to + start, length: block.length })
    }

    /// The block that holds a chunk of a lost block, and the offset of the chunk in the decoded block; `None` if the chunk was
    /// not stored again.
    pub fn restored_chunk(&self, birth: PackId, digest: &Digest) -> Option<(BlockLocation, u32)> {
        let at = self.restored.binary_search_by_key(&birth, |(birth, _)| *birth).ok()?;
        let (_, chunks) = self.restored.get(at)?;
        let RestoredChunk { carrier, offset, stored, start, .. } =
            *chunks.iter().find(|chunk| chunk.digest == *digest)?;
        let pack = *self.carriers.get(carrier as usize)?;
        Some((BlockLocation { pack, offset, length: stored }, start))
    }
}

/// Reads lists of `fields` items each, by birth pack in ascending order.
fn by_birth<T>(
    r: &mut CborReader<'_>,
    prefix: u8,
    fields: usize,
    read: impl Fn(&mut CborReader<'_>) -> Result<T, Error>,
) -> Result<Vec<(PackId, Vec<T>)>, Error> {
    let mut found: Vec<(PackId, Vec<T>)> = Vec::new();
    for _ in 0..r.array()? {
        let items = r.array()?;
        if items % fields != 1 {
            return Err(r.wrong("a truncated move"));
        }
        let birth = PackId::from_slice(r.bytes()?)?;
        if birth.as_bytes()[0] != prefix || found.last().is_some_and(|(last, _)| *last >= birth) {
            return Err(r.wrong("a pack that belongs to another shard, is repeated or out of order"));
        }
        found.push((birth, (0..items / fields).map(|_| read(r)).collect::<Result<_, _>>()?));
    }
    Ok(found)
}

fn read_range(r: &mut CborReader<'_>) -> Result<MovedRange, Error> {
    Ok(MovedRange { from: r.uint()?, length: r.uint()?, carrier: r.u32()?, to: r.uint()? })
}

fn read_chunk(r: &mut CborReader<'_>) -> Result<RestoredChunk, Error> {
    let (digest, carrier) = (read_digest(r)?, r.u32()?);
    Ok(RestoredChunk { digest, carrier, offset: r.uint()?, stored: r.u32()?, start: r.u32()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (u8, Moved) {
        let (birth, other) =
            (PackId::from_slice(&[7; 16]).unwrap(), PackId::from_slice(&[[7].as_slice(), &[9; 15]].concat()).unwrap());
        let carriers = vec![PackId::random(), PackId::random()];
        let range = |from, length, carrier, to| MovedRange { from, length, carrier, to };
        let ranges = vec![(birth, vec![range(10, 20, 0, 0), range(30, 5, 1, 100)]), (other, vec![range(0, 1, 0, 20)])];
        let chunk = RestoredChunk { digest: Digest::of(b"c"), carrier: 1, offset: 5, stored: 6, start: 7 };
        let restored = vec![(other, vec![chunk])];
        (7, Moved { generation: 3, carriers, ranges, restored, replaces: vec![ObjectId::random()] })
    }

    #[test]
    fn round_trip() {
        let (prefix, moved) = example();
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let bytes = moved.encode(repository, prefix, id);
        assert_eq!(Moved::decode(repository, prefix, id, &bytes).unwrap(), moved);
        assert!(matches!(Moved::decode(repository, 8, id, &bytes), Err(Error::Mismatch { field: "name", .. })));
    }

    #[test]
    fn a_block_is_found_only_within_a_range() {
        let (_, moved) = example();
        let [(birth, _), (other, _)] = &moved.ranges[..] else { unreachable!("two packs") };
        let found = |pack, offset, length| {
            let place = moved.location(&BlockLocation { pack, offset, length })?;
            assert_eq!(place.length, length);
            Some((place.pack, place.offset))
        };
        let [first, second] = moved.carriers[..] else { unreachable!("two carriers") };
        assert_eq!(found(*birth, 10, 20), Some((first, 0)));
        assert_eq!(found(*birth, 15, 15), Some((first, 5)));
        assert_eq!(found(*birth, 30, 5), Some((second, 100)));
        assert_eq!(found(*other, 0, 1), Some((first, 20)));
        for (pack, offset, length) in
            [(*birth, 9, 1), (*birth, 15, 16), (*birth, 35, 1), (*other, 1, 1), (first, 10, 1)]
        {
            assert_eq!(found(pack, offset, length), None, "{offset} {length}");
        }
        assert_eq!(found(*birth, u64::MAX, 1), None);
        let chunk = moved.restored_chunk(*other, &Digest::of(b"c")).unwrap();
        assert_eq!(chunk, (BlockLocation { pack: second, offset: 5, length: 6 }, 7));
        assert_eq!(moved.restored_chunk(*birth, &Digest::of(b"c")), None);
        assert_eq!(moved.restored_chunk(*other, &Digest::of(b"d")), None);
    }

    #[test]
    fn impossible_moves_are_refused() {
        let (repository, id) = (RepositoryId::random(), ObjectId::random());
        let refused = |change: &dyn Fn(&mut Moved)| {
            let (prefix, mut moved) = example();
            change(&mut moved);
            Moved::decode(repository, prefix, id, &moved.encode(repository, prefix, id)).is_err()
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|moved| moved.carriers.truncate(1)));
        assert!(refused(&|moved| moved.ranges.reverse()));
        assert!(refused(&|moved| moved.ranges[0].1.reverse()));
        assert!(refused(&|moved| moved.ranges[0].1[0].length = 21));
        assert!(refused(&|moved| moved.ranges[0].1[0].length = 0));
        assert!(refused(&|moved| moved.ranges[0].1[1].to = u64::MAX));
        assert!(refused(&|moved| moved.ranges[0].1[1].length = u64::MAX));
        assert!(refused(&|moved| moved.restored[0].1[0].stored = SEALED_SIZE as u32 + 1));
        assert!(refused(&|moved| moved.restored[0].0 = PackId::from_slice(&[8; 16]).unwrap()));
        assert!(refused(&|moved| moved.ranges[1].0 = moved.ranges[0].0));
    }
}
