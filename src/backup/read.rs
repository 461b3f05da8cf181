//! Reading files: many small ones at once, large ones one after the other.
//!
//! On a cold disk a small file costs a seek, so many are asked for at once, whatever the number of cores.
//! Each file's content goes to a channel of its own, so the engine takes files in the order of the walk
//! however they arrive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};

use super::event::{Content, End};
use super::seen::{Seen, SeenFile, SeenPiece};
use crate::format::{BLOCK_SIZE, Digest, Kind};
use crate::source::{self, Cutter, Directory, Extended, Piece, Stat, now};

/// A file to be read.
pub(super) struct Job {
    pub(super) directory: Arc<Directory>,
    pub(super) name: Vec<u8>,
    /// Its place in the order in which the engine takes files.
    pub(super) number: u64,
    pub(super) content: Sender<Content>,
}

/// How files are read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) cutter: Cutter,
    /// Files below this are one chunk.
    pub(super) whole_below: u64,
    /// Every chunk waits in an unnamed file, not in memory.
    pub(super) spool_all: bool,
    /// Files of several names that were read.
    pub(super) seen: Seen,
}

/// Why a file's content ended early.
pub(super) enum Stop {
    /// Nobody listens any more: the backup ended.
    Gone,
    /// The file failed.
    Failed(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Failed(error.to_string())
    }
}

impl From<source::Error> for Stop {
    fn from(error: source::Error) -> Self {
        Stop::Failed(error.to_string())
    }
}

/// Reads files until there are no more jobs.
pub(super) fn work(jobs: &Receiver<Job>, reading: &Reading) {
    for job in jobs {
        if let Err(Stop::Failed(why)) = read(&job, reading) {
            // If nobody listens any more, nobody needs to know.
            let _ = job.content.send(Content::Failed(why));
        }
    }
}

fn read(job: &Job, reading: &Reading) -> Result<(), Stop> {
    let name = OsStr::from_bytes(&job.name);
    let file = job.directory.open_file(name).map_err(|e| Stop::Failed(e.to_string()))?;
    let started = now();
    let before = Stat::of_fd(&file)?;
    if before.kind != Kind::File {
        return Err(Stop::Failed("it was a file and is none any more".into()));
    }
    let mut sink = Sink::new(&job.content);
    let seen = if Seen::wants(&before) { reading.seen.find(&before, job.number) } else { None };
    if seen.is_none() && Seen::wants(&before) {
        sink.pieces = Some(Vec::new());
    }
    if let Some(seen) = &seen {
        sink.again(seen)?;
    } else if before.size < reading.whole_below && !reading.spool_all {
        let bytes = read_whole(&file, before.size)?;
        sink.chunk(bytes)?;
    } else {
        cut(&file, &before, reading, &mut sink)?;
    }
    let extended = Extended::of_fd(&file);
    let after = Stat::of_fd(&file)?;
    let there = job.directory.stat_child(name);
    // Renamed or deleted meanwhile is no change of what was read; another file in its place is.
    let replaced = there.is_ok_and(|there| there.ino != before.ino || there.dev != before.dev);
    let changed = replaced || !before.same_content_as(&after) || sink.size != before.size;
    let digest = seen.map_or_else(|| sink.digest(), |seen| seen.digest);
    let fresh = before.is_fresh(started);
    if let (false, Some(pieces)) = (changed, sink.pieces.take()) {
        reading.seen.keep(SeenFile { number: job.number, stat: before.clone(), pieces, digest });
    }
    sink.send(Content::End(Box::new(End { stat: before, extended, size: sink.size, digest, changed, fresh })))
}

/// Reads a file of `size` bytes, and what it grew by meanwhile, up to a block.
fn read_whole(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size as usize + 1);
    let limit = BLOCK_SIZE as u64;
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn cut(file: &File, stat: &Stat, reading: &Reading, sink: &mut Sink<'_>) -> Result<(), Stop> {
    let sparse = stat.blocks.saturating_mul(512) < stat.size;
    reading.cutter.cut(file, stat.size, sparse, &mut |piece| sink.piece(piece, reading))?;
    Ok(())
}

/// Where a file's content goes, and what is counted on the way.
pub(super) struct Sink<'c> {
    content: &'c Sender<Content>,
    hasher: blake3::Hasher,
    pub(super) size: u64,
    chunks: u64,
    first: Option<Digest>,
    /// What was delivered, if that is wanted.
    pieces: Option<Vec<SeenPiece>>,
}

impl<'c> Sink<'c> {
    pub(super) fn new(content: &'c Sender<Content>) -> Self {
        Sink { content, hasher: blake3::Hasher::new(), size: 0, chunks: 0, first: None, pieces: None }
    }

    /// The digest of all bytes so far.
    pub(super) fn digest(&self) -> Digest {
        match self.first {
            Some(digest) if self.chunks == 1 => digest,
            _ => self.hasher.finalize().into(),
        }
    }

    /// Takes a piece in, as `reading` wants it.
    pub(super) fn piece(&mut self, piece: Piece, reading: &Reading) -> Result<(), Stop> {
        match piece {
            Piece::Hole(length) => self.hole(length),
            Piece::Data(bytes) if reading.spool_all => self.spool(&bytes),
            Piece::Data(bytes) => self.chunk(bytes),
        }
    }

    /// Delivers what was delivered before.
    fn again(&mut self, seen: &SeenFile) -> Result<(), Stop> {
        for piece in &seen.pieces {
            match *piece {
                SeenPiece::Hole(length) => self.hole(length)?,
                SeenPiece::Chunk(digest, length) => {
                    self.size += u64::from(length);
                    self.send(Content::Known(digest, length))?;
                }
            }
        }
        Ok(())
    }

    fn send(&self, content: Content) -> Result<(), Stop> {
        self.content.send(content).map_err(|_| Stop::Gone)
    }

    fn chunk(&mut self, bytes: Vec<u8>) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        let digest = Digest::of(&bytes);
        self.hasher.update(&bytes);
        self.count(bytes.len() as u64, digest);
        self.send(Content::Chunk(bytes, digest))
    }

    /// A chunk that waits in an unnamed temporary file instead of in memory.
    fn spool(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let folder = std::env::temp_dir();
        let write = || -> io::Result<File> {
            let mut file = tempfile::tempfile_in(&folder)?;
            file.write_all(bytes)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        };
        let file =
            write().map_err(|e| Stop::Failed(format!("cannot use a temporary file in {}: {e}", folder.display())))?;
        let digest = Digest::of(bytes);
        self.hasher.update(bytes);
        self.count(bytes.len() as u64, digest);
        self.send(Content::Spooled(file, digest, bytes.len() as u32))
    }

    fn hole(&mut self, length: u64) -> Result<(), Stop> {
        self.size += length;
        if let Some(pieces) = &mut self.pieces {
            pieces.push(SeenPiece::Hole(length));
        }
        self.send(Content::Hole(length))
    }

    fn count(&mut self, length: u64, digest: Digest) {
        self.size += length;
        self.chunks += 1;
        self.first.get_or_insert(digest);
        if let Some(pieces) = &mut self.pieces {
            // No chunk is larger than a block.
            pieces.push(SeenPiece::Chunk(digest, length as u32));
        }
    }
}
