//! Chunks on their way out of a reader.

use std::io;

use crossbeam_channel::Sender;

use super::budget::Loan;
use super::content::{ChunkBytes, FileContent};
use super::hard_links::{CachedFile, CachedPiece};
use super::lanes::Lane;
use crate::backup::error::Error;
use crate::format::{ContentHasher, Digest};
use crate::source::{self, Piece};

/// Messages, and bytes, that are sent together: waking the assembler takes longer than reading a small file.
const GATHER: usize = 64;
const GATHER_BYTES: usize = 128 << 10;

/// Why a file's content ends early.
pub(in crate::backup) enum ReadStop {
    /// The receiver is gone: the backup has ended.
    Gone,
    /// The file failed.
    Failed(String),
    /// The backup can't go on.
    Broken(Error),
}

impl From<io::Error> for ReadStop {
    fn from(error: io::Error) -> Self {
        ReadStop::Failed(error.to_string())
    }
}

impl From<source::Error> for ReadStop {
    fn from(error: source::Error) -> Self {
        ReadStop::Failed(error.to_string())
    }
}

/// Sends content, several messages at a time.
pub(in crate::backup) struct ContentSender<'c> {
    content: &'c Sender<Vec<FileContent>>,
    gathered: Vec<FileContent>,
    bytes: usize,
}

impl<'c> ContentSender<'c> {
    pub(in crate::backup) fn new(content: &'c Sender<Vec<FileContent>>) -> Self {
        ContentSender { content, gathered: Vec::new(), bytes: 0 }
    }

    pub(in crate::backup) fn send(&mut self, content: FileContent) -> Result<(), ReadStop> {
        self.bytes += match &content {
            FileContent::Chunk(bytes, _) => bytes.weight(),
            _ => 0,
        };
        self.gathered.push(content);
        let is_full = self.bytes >= GATHER_BYTES || self.gathered.len() >= GATHER;
        if is_full { self.flush() } else { Ok(()) }
    }

    pub(in crate::backup) fn flush(&mut self) -> Result<(), ReadStop> {
        self.bytes = 0;
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.is_empty() {
            return Ok(());
        }
        self.content.send(gathered).map_err(|_| ReadStop::Gone)
    }
}

/// Digests and delivers the content of one file.
pub(in crate::backup) struct Sink<'o, 'c> {
    out: &'o mut ContentSender<'c>,
    lane: &'o Lane,
    /// The loan for a small file's only chunk.
    loan: Option<Loan>,
    /// Bytes to come. If they come in one chunk, that is digested once.
    expected: u64,
    hasher: ContentHasher,
    size: u64,
    /// The first chunk and its length.
    first: Option<(Digest, u64)>,
    /// The pieces that were delivered, if they are to be remembered.
    pieces: Option<Vec<CachedPiece>>,
}

impl<'o, 'c> Sink<'o, 'c> {
    /// A sink for `expected` bytes. More than that is delivered too.
    pub(in crate::backup) fn new(out: &'o mut ContentSender<'c>, lane: &'o Lane, expected: u64) -> Self {
        let hasher = ContentHasher::default();
        Sink { out, lane, loan: None, expected, hasher, size: 0, first: None, pieces: None }
    }

    /// Uses a loan for the first chunk.
    pub(super) fn with_loan(self, loan: Option<Loan>) -> Self {
        Sink { loan, ..self }
    }

    /// Expects any number of bytes.
    pub(super) fn expect_any(&mut self) {
        self.expected = u64::MAX;
    }

    /// Remembers the pieces from here on.
    pub(super) fn remember_pieces(&mut self) {
        self.pieces = Some(Vec::new());
    }

    pub(super) fn take_pieces(&mut self) -> Option<Vec<CachedPiece>> {
        self.pieces.take()
    }

    /// Bytes delivered so far, holes included.
    pub(in crate::backup) fn size(&self) -> u64 {
        self.size
    }

    /// The digest of the content delivered so far.
    pub(in crate::backup) fn digest(&self) -> Digest {
        match self.first {
            Some((digest, length)) if length == self.size => digest,
            _ => self.hasher.finish(),
        }
    }

    pub(super) fn sender(&mut self) -> &mut ContentSender<'c> {
        self.out
    }

    pub(in crate::backup) fn piece(&mut self, piece: Piece) -> Result<(), ReadStop> {
        match piece {
            Piece::Hole(length) => self.hole(length),
            Piece::Data(bytes) => self.chunk(bytes),
        }
    }

    /// Delivers the content of a file that was delivered before.
    pub(super) fn repeat(&mut self, file: &CachedFile) -> Result<(), ReadStop> {
        for piece in &file.pieces {
            match *piece {
                CachedPiece::Hole(length) => self.hole(length)?,
                CachedPiece::Chunk(digest, length) => {
                    self.size += u64::from(length);
                    self.out.send(FileContent::Known(digest, length))?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn chunk(&mut self, bytes: Vec<u8>) -> Result<(), ReadStop> {
        if bytes.is_empty() {
            return Ok(());
        }
        let digest = Digest::of(&bytes);
        // The digest of a file's only chunk is that of the file.
        if (bytes.len() as u64) < self.expected {
            self.hasher.data(&bytes);
        }
        self.count(bytes.len() as u64, digest);
        let bytes = match (self.loan.take(), self.lane) {
            // If the file grew since the walk saw it, only its old size was lent.
            (_loan, Lane::Lent) => ChunkBytes::Memory { bytes, _loan },
            (_, Lane::Memory(budget)) => {
                let _loan = Some(budget.take(bytes.len()).ok_or(ReadStop::Gone)?);
                ChunkBytes::Memory { bytes, _loan }
            }
            (_, Lane::Spill(file)) => {
                let chunk = file.put(&bytes).map_err(ReadStop::Broken)?;
                ChunkBytes::Spilled(chunk.ok_or(ReadStop::Gone)?)
            }
        };
        self.out.send(FileContent::Chunk(bytes, digest))
    }

    fn hole(&mut self, length: u64) -> Result<(), ReadStop> {
        self.size += length;
        self.hasher.hole(length);
        if let Some(pieces) = &mut self.pieces {
            pieces.push(CachedPiece::Hole(length));
        }
        self.out.send(FileContent::Hole(length))
    }

    fn count(&mut self, length: u64, digest: Digest) {
        self.size += length;
        self.first.get_or_insert((digest, length));
        if let Some(pieces) = &mut self.pieces {
            // No chunk is larger than a block.
            pieces.push(CachedPiece::Chunk(digest, length as u32));
        }
    }
}
