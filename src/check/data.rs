//! Reads all packs, each once.

use std::path::Path;

use super::record::PackRecord;
use super::{Checker, Error};
use crate::archive::Archive;
use crate::failure::Failure;
use crate::format::name::SnapshotName;
use crate::format::{BlockLocation, Check, Digest, PackId, SEALED_SIZE, name};
use crate::monitor::{Total, Unit};
use crate::storage::{self, ErrorKind};

/// Maximum number of bytes read at once where no block is listed.
const PIECE: u64 = 1 << 20;

/// A block that is to be read.
struct StoredBlock {
    at: BlockLocation,
    check: Check,
    /// Digests and lengths of the chunks in it; `None` if no index lists them.
    chunks: Option<Vec<(Digest, u32)>>,
    /// The number of its first chunk.
    first: u32,
}

/// A pack that is being read.
struct PackReading {
    object: String,
    hasher: blake3::Hasher,
    /// End of the bytes that were read.
    end: u64,
    bytes: Vec<u8>,
    /// Whether something was reported that changes the digest.
    is_damaged: bool,
}

impl Checker<'_> {
    /// Reads the packs of indexes: compares each block with its check, verifies its chunks, and compares the pack with
    /// its digest. Packs of another length were reported before and are not read, since they may be huge. Reads nothing if
    /// the key opens none of the snapshots, which is reported with them.
    pub(super) fn data(&mut self, snapshots: &[SnapshotName]) -> Result<(), Error> {
        if !self.is_key_right(snapshots) {
            return Ok(());
        }
        let lengths = (0..self.packs.len()).filter_map(|row| self.readable_length(row));
        let (files, bytes) = lengths.fold((0, 0), |(packs, bytes), length| (packs + 1, bytes + length));
        let progress = self.monitor.progress();
        progress.count(Unit::Packs);
        progress.expect(Total { files, bytes, estimated: false });
        for row in 0..self.packs.len() {
            let (Some(pack), Some(_)) = (self.packs.id(row), self.readable_length(row)) else { continue };
            self.check_interrupted()?;
            if let Some(record) = self.packs.load(row)? {
                self.pack(row, pack, &record)?;
            }
            progress.file();
        }
        Ok(())
    }

    /// The length of a pack that is read: it is in an index and has the right length.
    fn readable_length(&self, row: usize) -> Option<u64> {
        let is_read = self.packs.is_indexed(row) && !self.packs.is_misfit(row) && !self.packs.is_gone(row);
        self.packs.length(row).filter(|_| is_read)
    }

    fn is_key_right(&self, snapshots: &[SnapshotName]) -> bool {
        for (tried, name) in snapshots.iter().rev().enumerate() {
            match self.reader.snapshot(name) {
                Err(error) if error.is_key_problem() && !self.reader.is_hopeless(tried + 1) => {}
                Err(error) if error.is_key_problem() => return false,
                _ => return true,
            }
        }
        snapshots.is_empty()
    }

    fn pack(&mut self, row: usize, pack: PackId, record: &PackRecord) -> Result<(), Error> {
        let index = record.header.index;
        let blocks = self.stored_blocks(row, pack, record)?;
        let object = name::pack(pack);
        self.monitor.progress().at(Path::new(&object));
        let (hasher, bytes) = (blake3::Hasher::new(), Vec::new());
        let mut reading = PackReading { object, hasher, end: 0, bytes, is_damaged: false };
        let mut read = Ok(());
        for block in &blocks {
            self.check_interrupted()?;
            if block.at.length as usize > SEALED_SIZE {
                // It is read as bytes that are not listed.
                let why =
                    format!("{} has a block of {} bytes, which is too large", self.index_name(index), block.at.length);
                self.problem(Path::new(&reading.object), &why);
                continue;
            }
            read = self.unlisted(&mut reading, block.at.offset);
            if read.is_ok() {
                read = self.read(&mut reading, u64::from(block.at.length));
            }
            match &read {
                Ok(()) => self.block(&mut reading, block, index),
                // The rest of the pack may be readable.
                Err(error) if !is_over(error) => {
                    reading.is_damaged = true;
                    reading.end = block.at.offset + u64::from(block.at.length);
                    self.flaw(pack, format!("cannot read the block at {}: {error}", block.at.offset));
                }
                Err(_) => break,
            }
        }
        if !read.as_ref().is_err_and(is_over) {
            read = self.unlisted(&mut reading, record.header.length);
        }
        self.check_interrupted()?;
        match read {
            Err(error) if error.kind == ErrorKind::NotFound => {
                self.report.doubt(Path::new(&reading.object), error.to_string());
                return Ok(());
            }
            Err(error) => self.unread(Path::new(&reading.object), error)?,
            Ok(()) => {
                let digest = Some(Digest::from(reading.hasher.finalize()));
                if !reading.is_damaged && digest != record.header.digest {
                    let index = self.index_name(index);
                    self.flaw(pack, format!("its bytes are not those that were stored: its sum differs from {index}"));
                }
            }
        }
        self.summary.packs += 1;
        Ok(())
    }

    /// The blocks in a pack. Those in a carrier have the chunks of the block in its birth pack.
    fn stored_blocks(&mut self, row: usize, pack: PackId, record: &PackRecord) -> Result<Vec<StoredBlock>, Error> {
        let own = record.blocks.iter().map(|block| StoredBlock {
            at: BlockLocation { pack, offset: block.offset, length: block.length },
            check: block.check,
            chunks: Some(record.content(block)),
            first: self.packs.first_chunk(row) + block.first,
        });
        let mut blocks: Vec<_> = own.collect();
        let mut offset = 0;
        for carried in &record.carried {
            let (mut chunks, mut first) = (None, 0);
            if let Some(row) = self.packs.find(carried.birth)
                && let Some(birth) = self.packs.record(row)?
                && let Some(block) = birth.block(carried.ordinal)
            {
                chunks = Some(birth.content(block));
                first = self.packs.first_chunk(row) + block.first;
            }
            let at = BlockLocation { pack, offset, length: carried.length };
            blocks.push(StoredBlock { at, check: carried.check, chunks, first });
            offset += u64::from(carried.length);
        }
        Ok(blocks)
    }

    /// Verifies the block that was read last.
    fn block(&mut self, reading: &mut PackReading, block: &StoredBlock, index: u32) {
        let offset = block.at.offset;
        let is_stored = Check::of(&reading.bytes) == block.check;
        let chunks = block.chunks.as_deref();
        let verified = chunks.map_or(Ok(()), |chunks| self.reader.verify_stored(&block.at, &reading.bytes, chunks));
        let why = match verified {
            Ok(()) => {
                for number in (block.first..).take(chunks.map_or(0, <[_]>::len)) {
                    self.packs.verified.insert(number);
                }
                if is_stored {
                    return;
                }
                format!("the check of the block at {offset} does not match {}", self.index_name(index))
            }
            Err(error) if is_stored => {
                format!("the block at {offset} does not match {}: {}", self.index_name(index), error.without_place())
            }
            Err(error) => format!("the block at {offset} is not the one that was stored: {}", error.without_place()),
        };
        reading.is_damaged = true;
        self.flaw(block.at.pack, why);
    }

    /// Reads the bytes up to `end`, where no block is listed.
    fn unlisted(&self, reading: &mut PackReading, end: u64) -> Result<(), storage::Error> {
        while reading.end < end && self.check_interrupted().is_ok() {
            self.read(reading, PIECE.min(end - reading.end))?;
        }
        Ok(())
    }

    fn read(&self, reading: &mut PackReading, length: u64) -> Result<(), storage::Error> {
        let PackReading { object, hasher, end, bytes, .. } = reading;
        self.reader.repository().target().read(object, *end, usize::try_from(length).unwrap_or(usize::MAX), bytes)?;
        hasher.update(bytes);
        *end += length;
        self.monitor.progress().read(length);
        self.monitor.progress().bytes(length);
        Ok(())
    }
}

/// Whether no more of an object can be read after this error.
fn is_over(error: &storage::Error) -> bool {
    error.is_away() || matches!(error.kind, ErrorKind::NotFound | ErrorKind::Truncated)
}
