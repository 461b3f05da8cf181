//! Packs and their blocks in an index.
//!
//! A block has a name for life: the pack in which it was first stored (its birth pack) and its ordinal in that pack. It may
//! be moved later, into a carrier: a pack of blocks that were born in other packs, copied byte for byte.

use super::cbor::{CborReader, CborWriter};
use super::entry::read_digest;
use super::error::Error;
use super::id::{Check, Digest, PackId};

/// The kind of data in a birth pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackKind {
    /// File content.
    Data,
    /// Tree nodes.
    Tree,
}

/// The number of carriers in the format, in place of that of a [`PackKind`].
pub const CARRIER: u64 = 2;

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
    /// The number of the block in its pack.
    pub ordinal: u32,
    /// The offset in the pack, in bytes.
    pub offset: u64,
    /// The stored size in bytes.
    pub length: u32,
    /// The check of the stored bytes.
    pub check: Check,
    /// The block's chunks in order, with their lengths in bytes of plaintext.
    pub chunks: Vec<(Digest, u32)>,
}

/// A birth pack in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedPack {
    /// The pack's id.
    pub id: PackId,
    /// The kind of data in it.
    pub kind: PackKind,
    /// The digest of the stored pack; `None` if the pack was removed after its live blocks were moved.
    pub digest: Option<Digest>,
    /// The number of blocks that were stored in the pack.
    pub count: u32,
    /// The size of the pack when it was stored, in bytes.
    pub length: u64,
    /// Blocks of the pack in order. In a rewritten index, blocks that no snapshot used are missing.
    pub blocks: Vec<IndexedBlock>,
}

/// A block in a carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CarriedBlock {
    /// The stored size in bytes. Blocks are contiguous, so the sum of earlier lengths is a block's offset.
    pub length: u32,
    /// The check of the stored bytes.
    pub check: Check,
    /// The pack in which the block was first stored.
    pub birth: PackId,
    /// The number of the block in that pack.
    pub ordinal: u32,
}

/// A carrier in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedCarrier {
    /// The pack's id.
    pub id: PackId,
    /// The digest of the stored pack.
    pub digest: Digest,
    /// All blocks of the carrier in order.
    pub blocks: Vec<CarriedBlock>,
}

/// Consecutive blocks of a pack that are not listed.
struct Gap {
    blocks: u32,
    bytes: u64,
}

impl IndexedPack {
    pub(super) fn write(&self, w: &mut CborWriter) {
        w.map(4).uint(0).bytes(self.id.as_bytes()).uint(1).uint(self.kind.code());
        if let Some(digest) = &self.digest {
            w.uint(2).bytes(&digest.0);
        }
        let gaps = self.gaps();
        let count = self.blocks.len() + gaps.iter().flatten().count();
        w.uint(3).array(count);
        let mut blocks = self.blocks.iter();
        for gap in gaps {
            if let Some(Gap { blocks, bytes }) = gap {
                w.array(2).uint(blocks.into()).uint(bytes);
            }
            if let Some(block) = blocks.next() {
                block.write(w);
            }
        }
        if self.digest.is_none() {
            w.uint(4).uint(1);
        }
    }

    /// The gap before each block, and that after the last one.
    fn gaps(&self) -> Vec<Option<Gap>> {
        let (mut ordinal, mut offset) = (0, 0);
        let ends = self.blocks.iter().map(|block| (block.ordinal, block.offset, block.length));
        ends.chain([(self.count, self.length, 0)])
            .map(|(next, start, length)| {
                let gap = Gap { blocks: next - ordinal, bytes: start - offset };
                (ordinal, offset) = (next + 1, start + u64::from(length));
                (gap.blocks > 0).then_some(gap)
            })
            .collect()
    }
}

impl IndexedBlock {
    fn write(&self, w: &mut CborWriter) {
        w.array(2 + 2 * self.chunks.len()).uint(self.length.into()).bytes(&self.check.0);
        for (digest, length) in &self.chunks {
            w.bytes(&digest.0).uint((*length).into());
        }
    }
}

impl IndexedCarrier {
    /// The size of the pack in bytes.
    pub fn length(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.length)).sum()
    }

    pub(super) fn write(&self, w: &mut CborWriter) {
        w.map(4).uint(0).bytes(self.id.as_bytes()).uint(1).uint(CARRIER);
        w.uint(2).bytes(&self.digest.0).uint(3).array(self.blocks.len());
        for CarriedBlock { length, check, birth, ordinal } in &self.blocks {
            w.array(4).uint((*length).into()).bytes(&check.0).bytes(birth.as_bytes()).uint((*ordinal).into());
        }
    }
}

/// A pack of any kind.
pub(super) enum AnyPack {
    Birth(IndexedPack),
    Carrier(IndexedCarrier),
}

impl AnyPack {
    pub(super) fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        let (mut id, mut kind, mut digest, mut gone) = (None, None, None, false);
        let (mut items, mut carried) = (None, Vec::new());
        r.fields(|r, key| {
            match key {
                0 => id = Some(PackId::from_slice(r.bytes()?)?),
                1 => kind = Some(r.uint()?),
                2 => digest = Some(read_digest(r)?),
                3 if kind == Some(CARRIER) => {
                    carried = (0..r.array()?).map(|_| CarriedBlock::read(r)).collect::<Result<_, _>>()?;
                    total(r, carried.iter().map(|block| u64::from(block.length)))?;
                }
                3 => items = Some(Items::read(r)?),
                4 => gone = r.uint()? != 0,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let (id, kind) = (r.need("pack id", id)?, r.need("kind of pack", kind)?);
        if gone == digest.is_some() {
            return Err(r.wrong("a pack needs a digest, unless it is gone"));
        }
        if kind == CARRIER {
            return Ok(AnyPack::Carrier(IndexedCarrier { id, digest: r.need("digest", digest)?, blocks: carried }));
        }
        let kind = r.need("known kind of pack", PackKind::from_code(kind))?;
        let Items { count, length, blocks } = r.need("blocks", items)?;
        Ok(AnyPack::Birth(IndexedPack { id, kind, digest, count, length, blocks }))
    }
}

/// The blocks and gaps of a pack.
#[derive(Default)]
struct Items {
    count: u32,
    length: u64,
    blocks: Vec<IndexedBlock>,
}

impl Items {
    fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        let mut items = Items::default();
        for _ in 0..r.array()? {
            let fields = r.array()?;
            if fields < 2 || fields % 2 == 1 {
                return Err(r.wrong("a truncated block"));
            }
            let first = r.u32()?;
            let (blocks, bytes) = if r.at_integer() {
                if fields != 2 || first == 0 {
                    return Err(r.wrong("a gap without blocks"));
                }
                (first, r.uint()?)
            } else {
                let check = read_check(r)?;
                let chunks =
                    (1..fields / 2).map(|_| Ok((read_digest(r)?, r.u32()?))).collect::<Result<Vec<_>, Error>>()?;
                let (ordinal, offset) = (items.count, items.length);
                items.blocks.push(IndexedBlock { ordinal, offset, length: first, check, chunks });
                (1, first.into())
            };
            let ends = items.count.checked_add(blocks).zip(items.length.checked_add(bytes));
            (items.count, items.length) = r.need("possible size of a pack", ends)?;
        }
        Ok(items)
    }
}

impl CarriedBlock {
    fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        r.array_of(4)?;
        let (length, check) = (r.u32()?, read_check(r)?);
        Ok(CarriedBlock { length, check, birth: PackId::from_slice(r.bytes()?)?, ordinal: r.u32()? })
    }
}

fn read_check(r: &mut CborReader<'_>) -> Result<Check, Error> {
    let check = r.bytes()?.try_into().ok().map(Check);
    r.need("check of eight bytes", check)
}

/// Adds up lengths.
fn total(r: &CborReader<'_>, mut lengths: impl Iterator<Item = u64>) -> Result<u64, Error> {
    let sum = lengths.try_fold(0u64, |sum, length| sum.checked_add(length));
    r.need("possible size of a pack", sum)
}
