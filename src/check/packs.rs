//! All packs, in little memory: per pack a row, per chunk a few bits. The blocks of indexes are in a temporary file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use lru::LruCache;

use super::record::{Claim, HEADER, PackRecord, RecordHeader};
use crate::format::pack::{IndexedCarrier, IndexedPack};
use crate::format::{BlockLocation, ChunkRef, PackId};
use crate::source::temporary_folder;

/// Maximum size of the decoded packs in memory, in bytes.
const DECODED: usize = 4 << 20;
/// The length of a pack that is not in the repository.
const MISSING: u64 = u64::MAX;
/// The position of a pack that is in no index.
const NOWHERE: u64 = u64::MAX;

/// A pack.
#[derive(Debug, Clone, Copy)]
struct PackRow {
    id: PackId,
    /// Length according to the listing, or [`MISSING`].
    length: u64,
    /// Position in the temporary file, or [`NOWHERE`] if the pack is in no index.
    at: u64,
    /// Number of the first chunk.
    first: u32,
    state: u8,
}

/// The length differs from the index.
const MISFIT: u8 = 1;
/// A tombstone names the pack: it may be missing.
const CONDEMNED: u8 = 2;
/// Removed on purpose: its blocks were moved.
const GONE: u8 = 4;
/// A list of sums has the pack.
const SUMMED: u8 = 8;
/// Holds blocks that were born in other packs.
const CARRIER: u8 = 16;

/// A pack in an index.
#[derive(Debug, Clone, Copy)]
struct IndexedVersion {
    id: PackId,
    at: u64,
    index: u32,
    chunks: u32,
    state: u8,
}

/// A set of numbers.
#[derive(Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    fn with_room(count: u32) -> Self {
        Bits(vec![0; count as usize / 64 + 1])
    }

    /// Adds a number. Returns whether it is new.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        let Some(word) = self.0.get_mut(number as usize / 64) else { return true };
        let bit = 1 << (number % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub(super) fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }
}

/// A chunk in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) row: usize,
    /// Position in the pack.
    position: u32,
    /// Number among all chunks.
    pub(super) number: u32,
}

/// Result of a comparison of a reference with the indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Located {
    /// An index has exactly this chunk at this place.
    Listed(Place),
    /// The pack's index has another block or chunk there, or none; its number.
    Differs(u32),
    /// The pack is in no index.
    Unlisted,
}

/// Two indexes differ about a pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conflict {
    pub(super) pack: PackId,
    pub(super) indexes: [u32; 2],
}

/// All packs, sorted by id.
pub(super) struct PackTable {
    rows: Vec<PackRow>,
    versions: Vec<IndexedVersion>,
    spill: File,
    spilled: u64,
    decoded: LruCache<usize, Rc<PackRecord>>,
    bytes: usize,
    /// The row that was found last.
    last: usize,
    /// The number of chunks in indexes.
    chunks: u32,
    /// Chunks that trees refer to.
    pub(super) referenced: Bits,
    /// Chunks that were read and verified.
    pub(super) verified: Bits,
    /// Chunks that are stored again outside of their birth pack.
    pub(super) carried: Bits,
}

impl PackTable {
    /// Creates a table of the packs in a listing, with their lengths in bytes.
    pub(super) fn new(listing: Vec<(PackId, u64)>) -> io::Result<Self> {
        let row = |(id, length)| PackRow { id, length, at: NOWHERE, first: 0, state: 0 };
        let mut rows: Vec<_> = listing.into_iter().map(row).collect();
        rows.sort_unstable_by_key(|row| row.id);
        Ok(PackTable {
            rows,
            versions: Vec::new(),
            spill: tempfile::tempfile_in(temporary_folder())?,
            spilled: 0,
            decoded: LruCache::unbounded(),
            bytes: 0,
            last: 0,
            chunks: 0,
            referenced: Bits::default(),
            verified: Bits::default(),
            carried: Bits::default(),
        })
    }

    /// Adds a pack of an index.
    pub(super) fn add(&mut self, index: u32, pack: &IndexedPack) -> io::Result<()> {
        let chunks: usize = pack.blocks.iter().map(|block| block.chunks.len()).sum();
        let chunks = u32::try_from(chunks).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let at = self.spill(&PackRecord::encode(index, pack))?;
        self.versions.push(IndexedVersion { id: pack.id, at, index, chunks, state: 0 });
        Ok(())
    }

    /// Adds a carrier of an index.
    pub(super) fn add_carrier(&mut self, index: u32, carrier: &IndexedCarrier) -> io::Result<()> {
        let at = self.spill(&PackRecord::encode_carrier(index, carrier))?;
        self.versions.push(IndexedVersion { id: carrier.id, at, index, chunks: 0, state: CARRIER });
        Ok(())
    }

    /// Appends a record to the temporary file. Returns its position.
    fn spill(&mut self, record: &[u8]) -> io::Result<u64> {
        let at = self.spilled;
        self.spill.write_all_at(record, at)?;
        self.spilled += record.len() as u64;
        Ok(at)
    }

    /// Finishes the table after the last index. Packs of ignored indexes are left out. Returns the packs about which two
    /// indexes differ.
    pub(super) fn finish(&mut self, is_ignored: impl Fn(u32) -> bool) -> io::Result<Vec<Conflict>> {
        let mut versions = std::mem::take(&mut self.versions);
        versions.retain(|version| !is_ignored(version.index));
        versions.sort_unstable_by_key(|version| (version.id, version.at));
        let (mut conflicts, mut missing) = (Vec::new(), Vec::new());
        for versions in versions.chunk_by(|one, next| one.id == next.id) {
            let [version, others @ ..] = versions else { continue };
            for other in others {
                if self.load_at(version.at)?.has_other_blocks(&self.load_at(other.at)?) {
                    conflicts.push(Conflict { pack: version.id, indexes: [version.index, other.index] });
                }
            }
            // For the moment, `first` is the number of chunks.
            let IndexedVersion { id, at, chunks, state, .. } = *version;
            let row = PackRow { id, length: MISSING, at, first: chunks, state };
            match self.rows.binary_search_by_key(&id, |row| row.id) {
                Ok(found) => {
                    if let Some(found) = self.rows.get_mut(found) {
                        *found = PackRow { length: found.length, ..row };
                    }
                }
                Err(_) => missing.push(row),
            }
        }
        drop(versions);
        if !missing.is_empty() {
            self.rows.append(&mut missing);
            self.rows.sort_unstable_by_key(|row| row.id);
        }
        let mut end = 0u32;
        for row in &mut self.rows {
            let next = end.checked_add(row.first).ok_or(io::ErrorKind::FileTooLarge)?;
            row.first = end;
            end = next;
        }
        self.chunks = end;
        self.referenced = Bits::with_room(end);
        self.verified = Bits::with_room(end);
        self.carried = Bits::with_room(end);
        Ok(conflicts)
    }

    fn read(&self, at: u64, size: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        self.spill.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn header_at(&self, at: u64) -> io::Result<RecordHeader> {
        RecordHeader::decode(&self.read(at, HEADER)?).ok_or_else(changed)
    }

    fn load_at(&self, at: u64) -> io::Result<PackRecord> {
        let header = self.header_at(at)?;
        PackRecord::decode(&header, &self.read(at + HEADER as u64, header.size())?).ok_or_else(changed)
    }

    /// The position of a pack in the temporary file; `None` if it is in no index.
    fn position(&self, row: usize) -> Option<u64> {
        self.rows.get(row).map(|row| row.at).filter(|at| *at != NOWHERE)
    }

    /// The number of packs in the listing and in indexes.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The number of chunks in indexes, also of packs that were removed on purpose.
    pub(super) fn chunks(&self) -> u32 {
        self.chunks
    }

    /// The row of a pack.
    pub(super) fn find(&self, pack: PackId) -> Option<usize> {
        if self.rows.get(self.last).is_some_and(|row| row.id == pack) {
            return Some(self.last);
        }
        self.rows.binary_search_by_key(&pack, |row| row.id).ok()
    }

    /// The pack in a row.
    pub(super) fn id(&self, row: usize) -> Option<PackId> {
        self.rows.get(row).map(|row| row.id)
    }

    /// Whether an index has the pack.
    pub(super) fn is_indexed(&self, row: usize) -> bool {
        self.position(row).is_some()
    }

    /// The length of a pack in the listing; `None` if the pack is missing.
    pub(super) fn length(&self, row: usize) -> Option<u64> {
        self.rows.get(row).map(|row| row.length).filter(|length| *length != MISSING)
    }

    /// The number of a pack's first chunk.
    pub(super) fn first_chunk(&self, row: usize) -> u32 {
        self.rows.get(row).map_or(0, |row| row.first)
    }

    fn set(&mut self, row: usize, flag: u8) {
        if let Some(row) = self.rows.get_mut(row) {
            row.state |= flag;
        }
    }

    fn is(&self, row: usize, flag: u8) -> bool {
        self.rows.get(row).is_some_and(|row| row.state & flag != 0)
    }

    pub(super) fn set_misfit(&mut self, row: usize) {
        self.set(row, MISFIT);
    }

    /// Whether the pack is missing or has another length than its index says.
    pub(super) fn is_misfit(&self, row: usize) -> bool {
        self.is(row, MISFIT)
    }

    /// Notes that a tombstone names the pack.
    pub(super) fn set_condemned(&mut self, row: usize) {
        self.set(row, CONDEMNED);
    }

    pub(super) fn is_condemned(&self, row: usize) -> bool {
        self.is(row, CONDEMNED)
    }

    /// Notes that the pack was removed on purpose.
    pub(super) fn set_gone(&mut self, row: usize) {
        self.set(row, GONE);
    }

    pub(super) fn is_gone(&self, row: usize) -> bool {
        self.is(row, GONE)
    }

    /// Notes that a list of sums has the pack.
    pub(super) fn set_summed(&mut self, row: usize) {
        self.set(row, SUMMED);
    }

    pub(super) fn is_summed(&self, row: usize) -> bool {
        self.is(row, SUMMED)
    }

    /// Returns a pack as its index lists it; `None` if it is in no index.
    pub(super) fn record(&mut self, row: usize) -> io::Result<Option<Rc<PackRecord>>> {
        if let Some(record) = self.decoded.get(&row) {
            return Ok(Some(record.clone()));
        }
        let Some(record) = self.load(row)?.map(Rc::new) else { return Ok(None) };
        self.bytes += record.weight();
        self.decoded.push(row, record.clone());
        while self.bytes > DECODED && self.decoded.len() > 1 {
            if let Some((_, old)) = self.decoded.pop_lru() {
                self.bytes -= old.weight();
            }
        }
        Ok(Some(record))
    }

    /// Like [`PackTable::record`], for a pack that is needed once.
    pub(super) fn load(&self, row: usize) -> io::Result<Option<PackRecord>> {
        self.position(row).map(|at| self.load_at(at)).transpose()
    }

    /// Like [`PackTable::load`]; `None` if it is not a carrier.
    pub(super) fn load_carrier(&self, row: usize) -> io::Result<Option<PackRecord>> {
        if self.is(row, CARRIER) { self.load(row) } else { Ok(None) }
    }

    /// The header of a pack's record; `None` if the pack is in no index.
    pub(super) fn header(&self, row: usize) -> io::Result<Option<RecordHeader>> {
        self.position(row).map(|at| self.header_at(at)).transpose()
    }

    /// Compares a reference with the indexes.
    pub(super) fn locate(&mut self, at: &BlockLocation, chunk: &ChunkRef) -> io::Result<Located> {
        let Some(row) = self.find(at.pack) else { return Ok(Located::Unlisted) };
        self.last = row;
        let Some(record) = self.record(row)? else { return Ok(Located::Unlisted) };
        Ok(match record.find(at, chunk) {
            Some(position) => Located::Listed(Place { row, position, number: self.first_chunk(row) + position }),
            None => Located::Differs(record.header.index),
        })
    }

    /// The claim under which a chunk was visited.
    pub(super) fn claim(&mut self, place: Place) -> io::Result<Claim> {
        let record = self.record(place.row)?;
        Ok(record.and_then(|record| Some(record.chunks.get(place.position as usize)?.claim)).unwrap_or(Claim::NONE))
    }

    /// Notes the claim under which a chunk was visited.
    pub(super) fn set_claim(&mut self, place: Place, claim: Claim) -> io::Result<()> {
        let (Some(mut record), Some(row)) = (self.record(place.row)?, self.rows.get(place.row)) else { return Ok(()) };
        self.spill.write_all_at(&claim.encode(), row.at + record.claim_at(place.position))?;
        // This releases the cached one, so that it is changed in place.
        self.decoded.pop(&place.row);
        match Rc::get_mut(&mut record).map(|record| record.chunks.get_mut(place.position as usize)) {
            Some(chunk) => {
                if let Some(chunk) = chunk {
                    chunk.claim = claim;
                }
                self.decoded.push(place.row, record);
            }
            None => self.bytes -= record.weight(),
        }
        Ok(())
    }
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it was changed")
}
