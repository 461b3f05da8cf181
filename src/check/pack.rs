//! Reads a pack once, and compares it with what indexes say about it. Threads may read several packs at the same time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::format::{BlockLocation, Check, Digest, PackId, SEALED_SIZE, name};
use crate::monitor::Progress;
use crate::reader::Reader;
use crate::storage::{self, ErrorKind, Parts};

/// Maximum number of bytes read at once where no block is listed.
const PIECE: u64 = 1 << 20;

/// A pack that is to be read.
pub(super) struct ListedPack {
    pub(super) id: PackId,
    /// The name of the index that lists it.
    pub(super) index: String,
    pub(super) length: u64,
    pub(super) digest: Option<Digest>,
    /// In the order of their offsets.
    pub(super) blocks: Vec<ListedBlock>,
}

/// A block in it.
pub(super) struct ListedBlock {
    pub(super) at: BlockLocation,
    pub(super) check: Check,
    /// Digests and lengths of the chunks in it; `None` if no index lists them.
    pub(super) chunks: Option<Vec<(Digest, u32)>>,
    /// The number of its first chunk.
    pub(super) first: u32,
}

/// Findings about a pack.
pub(super) struct Findings {
    pub(super) pack: PackId,
    /// Why not all of it was read.
    pub(super) read: Result<(), storage::Error>,
    /// The numbers of the chunks that verified.
    pub(super) verified: Vec<u32>,
    /// Flaws of its bytes.
    pub(super) flaws: Vec<String>,
    /// Flaws of the index.
    pub(super) problems: Vec<String>,
}

/// Reads packs.
#[derive(Clone, Copy)]
pub(super) struct PackReader<'a> {
    pub(super) reader: &'a Reader,
    pub(super) progress: &'a Progress,
    /// If it is set, no more is read.
    pub(super) stop: &'a AtomicBool,
}

/// A pack that is being read.
struct Reading<'a> {
    from: PackReader<'a>,
    pack: &'a ListedPack,
    object: String,
    hasher: blake3::Hasher,
    /// End of the bytes that were read.
    end: u64,
    bytes: Vec<u8>,
    /// Whether something was found that changes the digest.
    is_damaged: bool,
    found: Findings,
}

impl PackReader<'_> {
    /// Reads a pack: compares each block with its check, verifies its chunks, and compares the pack with its digest.
    pub(super) fn read(self, pack: &ListedPack) -> Findings {
        let object = name::pack(pack.id);
        self.progress.at(Path::new(&object));
        let found =
            Findings { pack: pack.id, read: Ok(()), verified: Vec::new(), flaws: Vec::new(), problems: Vec::new() };
        let (hasher, bytes) = (blake3::Hasher::new(), Vec::new());
        let mut reading = Reading { from: self, pack, object, hasher, end: 0, bytes, is_damaged: false, found };
        reading.found.read = reading.all();
        reading.found
    }
}

impl Reading<'_> {
    fn all(&mut self) -> Result<(), storage::Error> {
        let pack = self.pack;
        let joined = self.from.reader.repository().target().capabilities().joined;
        let mut left = pack.blocks.as_slice();
        while let Some((block, others)) = left.split_first() {
            if self.is_stopped() {
                return Ok(());
            }
            if block.at.length as usize > SEALED_SIZE {
                // It is read as bytes that are not listed.
                let (index, length) = (&pack.index, block.at.length);
                self.found.problems.push(format!("{index} has a block of {length} bytes, which is too large"));
                left = others;
                continue;
            }
            self.unlisted(block.at.offset)?;
            if self.is_stopped() {
                return Ok(());
            }
            let (run, others) = left.split_at(neighbours(left, joined));
            if !self.run(run) {
                // The rest of the pack may be readable.
                let end = self.end;
                run.iter().skip_while(|block| block.at.offset < end).try_for_each(|block| self.block(block))?;
            }
            left = others;
        }
        self.unlisted(pack.length)?;
        let is_same = || Some(Digest::from(self.hasher.finalize())) == pack.digest;
        if !self.is_stopped() && !self.is_damaged && !is_same() {
            let index = &pack.index;
            self.found.flaws.push(format!("its bytes are not those that were stored: its sum differs from {index}"));
        }
        Ok(())
    }

    /// Reads several blocks with one request. Returns false if some are left.
    fn run(&mut self, blocks: &[ListedBlock]) -> bool {
        if blocks.len() < 2 {
            return false;
        }
        let lengths: Vec<_> = blocks.iter().map(|block| block.at.length as usize).collect();
        // Verifying may wait for other reads, so it begins when the connection is free.
        let mut stored = Vec::new();
        let mut collect = |bytes: &[u8]| stored.extend_from_slice(bytes);
        let parts = Parts { offset: self.end, lengths: &lengths, bytes: &mut self.bytes, take: &mut collect };
        let read = self.from.reader.repository().target().read_parts(&self.object, parts);
        let mut rest = stored.as_slice();
        for (block, length) in blocks.iter().zip(lengths) {
            let Some((bytes, after)) = rest.split_at_checked(length) else { break };
            self.count(bytes);
            self.verify(block, bytes);
            rest = after;
        }
        read.is_ok()
    }

    /// Reads a block. Returns an error if no more of the pack can be read.
    fn block(&mut self, block: &ListedBlock) -> Result<(), storage::Error> {
        if self.is_stopped() {
            return Ok(());
        }
        match self.read(block.at.length.into()) {
            Ok(()) => {
                let bytes = std::mem::take(&mut self.bytes);
                self.verify(block, &bytes);
                self.bytes = bytes;
            }
            Err(error) if is_over(&error) => return Err(error),
            Err(error) => {
                self.is_damaged = true;
                self.end = block.at.offset.saturating_add(block.at.length.into());
                self.found.flaws.push(format!("cannot read the block at {}: {error}", block.at.offset));
            }
        }
        Ok(())
    }

    fn verify(&mut self, block: &ListedBlock, bytes: &[u8]) {
        let (offset, index) = (block.at.offset, &self.pack.index);
        let is_stored = Check::of(bytes) == block.check;
        let chunks = block.chunks.as_deref();
        let verified = chunks.map_or(Ok(()), |chunks| self.from.reader.verify_stored(&block.at, bytes, chunks));
        let why = match verified {
            Ok(()) => {
                self.found.verified.extend((block.first..).take(chunks.map_or(0, <[_]>::len)));
                if is_stored {
                    return;
                }
                format!("the check of the block at {offset} does not match {index}")
            }
            Err(error) if is_stored => {
                format!("the block at {offset} does not match {index}: {}", error.without_place())
            }
            Err(error) => format!("the block at {offset} is not the one that was stored: {}", error.without_place()),
        };
        self.is_damaged = true;
        self.found.flaws.push(why);
    }

    /// Reads the bytes up to `end`, where no block is listed.
    fn unlisted(&mut self, end: u64) -> Result<(), storage::Error> {
        while self.end < end && !self.is_stopped() {
            self.read(PIECE.min(end - self.end))?;
        }
        Ok(())
    }

    fn read(&mut self, length: u64) -> Result<(), storage::Error> {
        let target = self.from.reader.repository().target();
        target.read(&self.object, self.end, usize::try_from(length).unwrap_or(usize::MAX), &mut self.bytes)?;
        let bytes = std::mem::take(&mut self.bytes);
        self.count(&bytes);
        self.bytes = bytes;
        Ok(())
    }

    /// Counts bytes that were read.
    fn count(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        let length = bytes.len() as u64;
        self.end += length;
        self.from.progress.read(length);
        self.from.progress.bytes(length);
    }

    fn is_stopped(&self) -> bool {
        self.from.stop.load(Ordering::Relaxed)
    }
}

/// The number of the first blocks that follow each other and have at most `most` bytes; at least 1.
fn neighbours(blocks: &[ListedBlock], most: usize) -> usize {
    let (mut end, mut bytes) = (None, 0usize);
    let run = blocks.iter().take_while(|ListedBlock { at, .. }| {
        let follows = end.is_none_or(|end| end == at.offset);
        let length = at.length as usize;
        end = at.offset.checked_add(at.length.into());
        bytes = bytes.saturating_add(length);
        follows && bytes <= most && length <= SEALED_SIZE
    });
    run.count().max(1)
}

/// Whether no more of an object can be read after this error.
fn is_over(error: &storage::Error) -> bool {
    error.is_away() || matches!(error.kind, ErrorKind::NotFound | ErrorKind::Truncated)
}
