//! Packs of indexes as they are kept in a temporary file.

use crate::format::pack::{CarriedBlock, IndexedCarrier, IndexedPack};
use crate::format::{BlockLocation, Check, ChunkRef, Digest, PackId};

/// What a tree claims about a node: its kind, and a number that the node itself adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    kind: u16,
    value: u64,
}

impl Claim {
    /// Of a chunk that was not visited as a node. It has the bytes 0.
    pub(super) const NONE: Claim = Claim { kind: 0, value: 0 };

    /// Of a directory with `below` entries below it.
    pub(super) fn directory(below: u64) -> Self {
        Claim { kind: 1, value: below }
    }

    /// Of an extent node that covers this many bytes and has `depth` levels of nodes below it.
    pub(super) fn extents(covers: u64, depth: u8) -> Self {
        Claim { kind: 2 + u16::from(depth), value: covers }
    }

    pub(super) fn encode(self) -> [u8; CLAIM] {
        let mut bytes = [0; CLAIM];
        let (kind, value) = bytes.split_at_mut(2);
        kind.copy_from_slice(&self.kind.to_le_bytes());
        value.copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}

/// Encoded size of a claim in bytes. It is at the end of its chunk.
const CLAIM: usize = 10;
/// Encoded size of a header in bytes.
pub(super) const HEADER: usize = 57;
const BLOCK: usize = 28;
const CHUNK: usize = 36 + CLAIM;
const CARRIED: usize = 32;

/// A block of a birth pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRecord {
    pub(super) ordinal: u32,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) check: Check,
    /// Position of its first chunk in the pack.
    pub(super) first: u32,
    chunks: u32,
}

/// A chunk of a birth pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkRecord {
    pub(super) digest: Digest,
    /// Offset in the decoded block.
    start: u32,
    pub(super) length: u32,
    pub(super) claim: Claim,
}

/// The beginning of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordHeader {
    /// The number of the index.
    pub(super) index: u32,
    /// The digest of the stored pack; `None` if the pack was removed on purpose.
    pub(super) digest: Option<Digest>,
    /// The size of the stored pack in bytes.
    pub(super) length: u64,
    /// Numbers of blocks, chunks, and blocks of a carrier.
    counts: [u32; 3],
}

impl RecordHeader {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.digest.is_some())];
        bytes.extend(self.digest.map_or([0; 32], |digest| digest.0));
        bytes.extend(self.length.to_le_bytes());
        [self.index].iter().chain(&self.counts).for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes
    }

    /// Decodes the first [`HEADER`] bytes of a record; `None` if this program did not encode them.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        let is_stored = bytes.u8()? == 1;
        let digest = Some(Digest(bytes.take()?)).filter(|_| is_stored);
        let (length, index) = (bytes.u64()?, bytes.u32()?);
        Some(RecordHeader { index, digest, length, counts: [bytes.u32()?, bytes.u32()?, bytes.u32()?] })
    }

    /// The size of the record without the header, in bytes.
    pub(super) fn size(&self) -> usize {
        let [blocks, chunks, carried] = self.counts.map(|count| count as usize);
        blocks * BLOCK + chunks * CHUNK + carried * CARRIED
    }
}

/// A pack of an index.
#[derive(Debug)]
pub(super) struct PackRecord {
    pub(super) header: RecordHeader,
    pub(super) blocks: Vec<BlockRecord>,
    pub(super) chunks: Vec<ChunkRecord>,
    /// The blocks of a carrier.
    pub(super) carried: Vec<CarriedBlock>,
}

impl PackRecord {
    /// Encodes a birth pack of the index with this number.
    pub(super) fn encode(index: u32, pack: &IndexedPack) -> Vec<u8> {
        let chunks = pack.blocks.iter().map(|block| block.chunks.len()).sum::<usize>();
        let counts = [pack.blocks.len() as u32, chunks as u32, 0];
        let header = RecordHeader { index, digest: pack.digest, length: pack.length, counts };
        let mut bytes = header.encode();
        bytes.reserve_exact(header.size());
        for block in &pack.blocks {
            bytes.extend(block.ordinal.to_le_bytes());
            bytes.extend(block.offset.to_le_bytes());
            bytes.extend(block.length.to_le_bytes());
            bytes.extend(block.check.0);
            bytes.extend((block.chunks.len() as u32).to_le_bytes());
        }
        for (digest, length) in pack.blocks.iter().flat_map(|block| &block.chunks) {
            bytes.extend(digest.0);
            bytes.extend(length.to_le_bytes());
            bytes.extend(Claim::NONE.encode());
        }
        bytes
    }

    /// Encodes a carrier of the index with this number.
    pub(super) fn encode_carrier(index: u32, carrier: &IndexedCarrier) -> Vec<u8> {
        let counts = [0, 0, carrier.blocks.len() as u32];
        let (digest, length) = (Some(carrier.digest), carrier.length());
        let mut bytes = RecordHeader { index, digest, length, counts }.encode();
        for block in &carrier.blocks {
            bytes.extend(block.length.to_le_bytes());
            bytes.extend(block.check.0);
            bytes.extend(block.birth.as_bytes());
            bytes.extend(block.ordinal.to_le_bytes());
        }
        bytes
    }

    /// Decodes a pack from the bytes after its header; `None` if this program did not encode them.
    pub(super) fn decode(header: &RecordHeader, bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        let [blocks, chunks, carried] = header.counts;
        let mut first = 0u32;
        let blocks = (0..blocks).map(|_| {
            let (ordinal, offset, length) = (bytes.u32()?, bytes.u64()?, bytes.u32()?);
            let (check, chunks) = (Check(bytes.take()?), bytes.u32()?);
            let block = BlockRecord { ordinal, offset, length, check, first, chunks };
            first = first.checked_add(chunks)?;
            Some(block)
        });
        let blocks = blocks.collect::<Option<Vec<BlockRecord>>>()?;
        let mut of_chunks = Vec::with_capacity(chunks as usize);
        for block in &blocks {
            let mut start = 0u32;
            for _ in 0..block.chunks {
                let (digest, length) = (Digest(bytes.take()?), bytes.u32()?);
                let claim = Claim { kind: bytes.u16()?, value: bytes.u64()? };
                of_chunks.push(ChunkRecord { digest, start, length, claim });
                // The decoded block is shorter than this in any case.
                start = start.saturating_add(length);
            }
        }
        let chunks = of_chunks;
        let carried = (0..carried).map(|_| {
            let (length, check) = (bytes.u32()?, Check(bytes.take()?));
            let birth = PackId::from_slice(&bytes.take::<16>()?).ok()?;
            Some(CarriedBlock { length, check, birth, ordinal: bytes.u32()? })
        });
        let carried = carried.collect::<Option<_>>()?;
        Some(PackRecord { header: *header, blocks, chunks, carried })
    }

    /// Whether another index has other blocks or chunks of the pack, or another digest.
    pub(super) fn has_other_blocks(&self, other: &PackRecord) -> bool {
        let block = |block: &BlockRecord| (block.ordinal, block.offset, block.length, block.check, block.chunks);
        let chunk = |chunk: &ChunkRecord| (chunk.digest, chunk.length);
        (self.header.digest, self.header.length) != (other.header.digest, other.header.length)
            || !self.blocks.iter().map(block).eq(other.blocks.iter().map(block))
            || !self.chunks.iter().map(chunk).eq(other.chunks.iter().map(chunk))
            || self.carried != other.carried
    }

    /// Position of a chunk's claim in the encoded pack.
    pub(super) fn claim_at(&self, chunk: u32) -> u64 {
        (HEADER + self.blocks.len() * BLOCK + chunk as usize * CHUNK + CHUNK - CLAIM) as u64
    }

    /// Memory that it uses, in bytes.
    pub(super) fn weight(&self) -> usize {
        size_of_val(self.blocks.as_slice())
            + size_of_val(self.chunks.as_slice())
            + size_of_val(self.carried.as_slice())
            + 256
    }

    /// The digests and lengths of a block's chunks, in order.
    pub(super) fn content(&self, block: &BlockRecord) -> Vec<(Digest, u32)> {
        self.chunks_of(block).1.iter().map(|chunk| (chunk.digest, chunk.length)).collect()
    }

    /// The chunks of a block in order, with the position of the first one in the pack.
    pub(super) fn chunks_of(&self, block: &BlockRecord) -> (u32, &[ChunkRecord]) {
        let first = block.first as usize;
        (block.first, self.chunks.get(first..first + block.chunks as usize).unwrap_or_default())
    }

    /// Returns the block with this ordinal.
    pub(super) fn block(&self, ordinal: u32) -> Option<&BlockRecord> {
        self.blocks.binary_search_by_key(&ordinal, |block| block.ordinal).ok().and_then(|at| self.blocks.get(at))
    }

    /// Returns the block at this location.
    pub(super) fn block_at(&self, at: &BlockLocation) -> Option<&BlockRecord> {
        let found = self.blocks.binary_search_by_key(&at.offset, |block| block.offset).ok()?;
        self.blocks.get(found).filter(|block| block.length == at.length)
    }

    /// Returns the position of exactly this chunk in the pack.
    pub(super) fn find(&self, at: &BlockLocation, chunk: &ChunkRef) -> Option<u32> {
        let (first, chunks) = self.chunks_of(self.block_at(at)?);
        // Empty chunks have the start of the next one.
        let position = chunks.partition_point(|found| found.start <= chunk.start).checked_sub(1)?;
        let found = chunks.get(position)?;
        let is_same = (found.start, found.length, found.digest) == (chunk.start, chunk.length, chunk.digest);
        is_same.then_some(first + position as u32)
    }

    /// Returns the block of a carrier at this offset.
    pub(super) fn carried_at(&self, offset: u64) -> Option<&CarriedBlock> {
        let mut start = 0;
        self.carried.iter().find(|block| {
            let is_here = start == offset;
            start += u64::from(block.length);
            is_here
        })
    }
}

/// Decodes numbers in little endian.
struct Bytes<'b>(&'b [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}
