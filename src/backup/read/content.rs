//! The messages that carry the content of files.

use std::vec;

use crossbeam_channel::Receiver;

use super::budget::Loan;
use super::spill::SpilledChunk;
use super::verdict::Verdict;
use crate::backup::calls::Calls;
use crate::backup::error::Error;
use crate::format::Digest;
use crate::source::{Extended, Stat};

/// A piece of a file's content. Pieces come in order.
pub(in crate::backup) enum FileContent {
    /// A chunk.
    Chunk(ChunkBytes, Digest),
    /// A chunk of this digest and length that came before.
    Known(Digest, u32),
    /// Zeros that are not stored.
    Hole(u64),
    /// The file was read to its end.
    End(Box<FileEnd>),
    /// The file is to be read again later, and nothing of it was sent. It `changed`, or was missing; otherwise it has
    /// only just been changed.
    Deferred { changed: bool },
    /// The file could not be read.
    Failed(String),
    /// The backup can't go on.
    Broken(Error),
    /// The whole backup breaks off; the sender reports why.
    BrokenOff,
}

/// The bytes of a chunk on its way to the assembler.
pub(in crate::backup) enum ChunkBytes {
    /// In memory that was lent.
    Memory { bytes: Vec<u8>, _loan: Option<Loan> },
    /// In a temporary file.
    Spilled(SpilledChunk),
}

impl ChunkBytes {
    pub(in crate::backup) fn len(&self) -> usize {
        match self {
            ChunkBytes::Memory { bytes, .. } => bytes.len(),
            ChunkBytes::Spilled(chunk) => chunk.len(),
        }
    }

    /// Returns which part of the room for waiting chunks it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        match self {
            ChunkBytes::Memory { bytes, .. } => bytes.len(),
            ChunkBytes::Spilled(chunk) => chunk.weight(),
        }
    }

    /// Returns the bytes, and gives back the loan: from here on they count as part of a block.
    pub(in crate::backup) fn take(self) -> Result<Vec<u8>, Error> {
        match self {
            ChunkBytes::Memory { bytes, .. } => Ok(bytes),
            ChunkBytes::Spilled(chunk) => chunk.take(),
        }
    }
}

/// The result of reading a file to its end.
pub(in crate::backup) struct FileEnd {
    /// Its stat before the first byte was read.
    pub(in crate::backup) stat: Stat,
    pub(in crate::backup) extended: Extended,
    /// Bytes that were delivered, holes included.
    pub(in crate::backup) size: u64,
    /// The digest of the content.
    pub(in crate::backup) digest: Digest,
    pub(in crate::backup) verdict: Verdict,
    /// The loan for its attributes.
    pub(in crate::backup) lent: Option<Loan>,
}

/// Receives the content of the files of a job, one file after the other.
pub(in crate::backup) struct Arriving<'c> {
    content: Receiver<Vec<FileContent>>,
    ready: vec::IntoIter<FileContent>,
    calls: &'c Calls,
}

impl<'c> Arriving<'c> {
    /// Content that breaks off once `calls` are abandoned.
    pub(in crate::backup) fn new(content: Receiver<Vec<FileContent>>, calls: &'c Calls) -> Self {
        Arriving { content, ready: Vec::new().into_iter(), calls }
    }
}

impl Iterator for Arriving<'_> {
    type Item = FileContent;

    /// Waits for the next piece.
    fn next(&mut self) -> Option<FileContent> {
        loop {
            if let Some(content) = self.ready.next() {
                return Some(content);
            }
            match self.calls.receive(&self.content) {
                Some(content) => self.ready = content.into_iter(),
                None if self.calls.are_abandoned() => return Some(FileContent::BrokenOff),
                None => return None,
            }
        }
    }
}
