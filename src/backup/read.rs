//! ReadSetup files: many small ones at once, large ones one after the other.
//!
//! On a cold disk a small file costs a seek, so many are asked for at once, whatever the number of cores.
//! Small files that are neighbours are one job, since waking a reader, and then the engine, takes longer than reading
//! one of them. Each job's content goes to a channel of its own, so the engine takes files in the order of the walk
//! however they arrive. What is read ahead is lent: for a small file by the walk, in the order in which the engine
//! takes them, for a large one by its reader, a chunk at a time.
//!
//! That a file did not change is told by its stamps before and after. They are set when a call that writes begins, or a
//! mapped page is first written to, and what is written comes later: so a file whose stamps are of the last minute, and
//! that somebody may be writing to, is read twice, and not taken for known. What can't be seen is a single call that
//! goes on for longer than that.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::Error;
use super::budget::{Budget, Loan};
use super::calls::{Call, Calls};
use super::event::{Bytes, Content, End};
use super::hard_links::{Seen, SeenFile, SeenPiece};
use super::spill::Spill;
use crate::format::{ContentHasher, Digest, Kind};
use crate::source::{self, Chunker, Clock, Directory, Extended, MountTable, Piece, Stat, UncachedReader, now};

/// Pieces of content, and bytes, that go to the engine together.
const GATHER: usize = 64;
const GATHER_BYTES: usize = 128 << 10;
/// About what a file takes beside its bytes while it is read ahead, few attributes included.
pub(super) const FILE_OVERHEAD: usize = 1 << 10;
/// Bytes of a piece of a file whose size is not known.
const UNSIZED_PIECE: usize = 64 << 10;
/// Most bytes of such a file: a program may make up one without end.
const UNSIZED_MAX: u64 = 1 << 30;
/// How long to wait for a lease: longer than the kernel lets its holder keep it (45 s, unless set otherwise).
const LEASE_BREAK: Duration = Duration::from_secs(60);
/// Time between two looks whether a lease is gone.
const LEASE_LOOK: Duration = Duration::from_millis(20);

/// Files to be read, one behind the other.
pub(super) struct Job {
    pub(super) directory: Arc<Directory>,
    pub(super) files: Vec<JobFile>,
    pub(super) content: Sender<Vec<Content>>,
}

/// A file to be read.
pub(super) struct JobFile {
    pub(super) name: Vec<u8>,
    /// Its place in the order in which the engine takes files.
    pub(super) number: u64,
    /// What was lent for a small file.
    pub(super) loan: Option<Loan>,
    pub(super) patience: Patience,
}

/// How files are read.
pub(super) struct ReadSetup {
    pub(super) cutter: Chunker,
    /// Files below this are one chunk.
    pub(super) whole_below: u64,
    /// Lends memory for attributes; the engine says which file it takes.
    pub(super) attributes: Budget,
    /// Files of several names that were read.
    pub(super) seen: Seen,
    /// Tells whose clock stamps files.
    pub(super) mounts: MountTable,
    pub(super) calls: Arc<Calls>,
}

/// For what a file may be put off. None: for nothing.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Patience {
    /// It changed while it was read, or was gone or replaced before.
    pub(super) changed: bool,
    /// It is fresh, and will not be after at most so long.
    pub(super) fresh: Duration,
}

/// Where a reader's chunks wait.
pub(super) enum Lane {
    /// In memory that was lent with the job.
    Lent,
    /// In memory that is lent a chunk at a time.
    Memory(Budget),
    /// In a temporary file.
    Spill(Spill),
}

/// Why a file's content ended early.
pub(super) enum Stop {
    /// Nobody listens any more: the backup ended.
    Gone,
    /// The file failed.
    Failed(String),
    /// Something failed without which there is no backup.
    Broken(Error),
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
pub(super) fn work(jobs: &Receiver<Job>, reading: &ReadSetup, lane: &Lane) {
    for Job { directory, files, content } in jobs {
        let mut out = Out::new(&content);
        // If nobody listens any more, nobody needs to know why.
        let _ = files.into_iter().try_for_each(|file| match read(&directory, file, reading, lane, &mut out) {
            Err(Stop::Failed(why)) => out.send(Content::Failed(why)),
            Err(Stop::Broken(error)) => out.send(Content::Broken(error)),
            result => result,
        });
        let _ = out.flush();
    }
}

fn read(directory: &Directory, job: JobFile, reading: &ReadSetup, lane: &Lane, out: &mut Out<'_>) -> Result<(), Stop> {
    let name = OsStr::from_bytes(&job.name);
    let patience = job.patience;
    let call = reading.calls.about_names(directory.shared_path(), [name]);
    // All that is stamped from here on is fresh.
    let started = now();
    let opened = open(directory, name, patience).and_then(|file| {
        let look = || Stat::of_fd(&file).map_err(source::Error::Content);
        let stat = look()?;
        let young = stat.is_young(started);
        // Who opens it later leaves stamps that are fresh.
        let written_to = young && source::is_open_for_writing(&file);
        source::have_changes_stamped(&file);
        Ok((if young { look()? } else { stat }, written_to, file))
    });
    let (before, written_to, file) = match opened {
        Ok(opened) if opened.0.kind == Kind::File => opened,
        // Something else has its name by now, or will have it in a moment.
        Ok(_) if patience.changed => {
            drop(call);
            return out.send(Content::PutOff { changed: true });
        }
        Err(e) if patience.changed && (e.is_vanished() || e.is_symlink() || e.is_leased()) => {
            drop(call);
            return out.send(Content::PutOff { changed: true });
        }
        Ok(_) => return Err(Stop::Failed("it was a file and is none any more".into())),
        Err(e) => return Err(Stop::Failed(e.to_string())),
    };
    let mut sink = Sink::new(out, lane, before.size);
    sink.loan = job.loan;
    let seen = if Seen::wants(&before) { reading.seen.find(&before, job.number) } else { None };
    if seen.is_none() && Seen::wants(&before) {
        sink.pieces = Some(Vec::new());
    }
    // A small file is not delivered before it is known whether it is put off.
    let mut held = None;
    let unsized_file = seen.is_none() && has_more(&file, &before, reading)?;
    if let Some(seen) = &seen {
        call.pause(|| sink.again(seen))?;
    } else if unsized_file {
        sink.expected = u64::MAX;
        held = read_unsized(&file, &mut sink, &call)?;
    } else {
        let sparse = source::has_holes(&file, &before)?;
        if before.size < reading.whole_below && !sparse {
            held = Some(read_whole(&file, before.size)?);
        } else {
            reading.cutter.cut(&file, before.size, sparse, &mut |piece| call.pause(|| sink.piece(piece)))?;
        }
    }
    let extended = Extended::of_fd(&file);
    // Renamed or deleted meanwhile is no change of what was read; another file in its place is.
    let same = match directory.stat_child(name) {
        Ok(there) => (there.ino, there.dev) == (before.ino, before.dev) && before.same_content_as(&there),
        Err(_) => before.same_content_as(&Stat::of_fd(&file)?),
    };
    let size = sink.size + held.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let fresh = before.fresh_for(started, reading.mounts.of(&before).clock);
    // A change of the size shows in the stamps, unless they are too fresh. Where neither changed the size was wrong.
    let wrong_size = size != before.size && (unsized_file || fresh.is_none() && !written_to);
    let mut changed = !same || size != before.size && !wrong_size;
    let too_fresh = !changed && !wrong_size && fresh.is_some_and(|left| left <= patience.fresh);
    let doubtful = fresh.is_some() || written_to;
    // If somebody wrote all the while, a second look shows it: what is the same twice was so in between.
    if doubtful && !changed && !too_fresh && !wrong_size && size > 0 {
        let digest = match (&held, &seen) {
            (Some(bytes), _) => Digest::of(bytes),
            (None, Some(seen)) => seen.digest,
            (None, None) => sink.digest(),
        };
        changed = digest_of(&file, &before, reading, &call)? != digest;
    }
    drop(call);
    let put_off = if changed { patience.changed } else { too_fresh };
    match held {
        Some(_) if put_off => return sink.out.send(Content::PutOff { changed }),
        Some(bytes) => sink.chunk(bytes)?,
        None => {}
    }
    let digest = seen.as_ref().map_or_else(|| sink.digest(), |seen| seen.digest);
    if let (false, false, Some(pieces)) = (changed, doubtful || wrong_size, sink.pieces.take()) {
        reading.seen.keep(SeenFile { number: job.number, stat: before.clone(), pieces, digest });
    }
    let size = sink.size;
    let lent = lend(&reading.attributes, extended.bytes(), job.number, sink.out)?;
    let end = End { stat: before, extended, size, digest, changed, doubtful, wrong_size, put_off, lent };
    sink.out.send(Content::End(Box::new(end)))
}

/// Waits until there is room for so many bytes of attributes, unless the loan for the file covers them.
fn lend(attributes: &Budget, bytes: usize, number: u64, out: &mut Out<'_>) -> Result<Option<Loan>, Stop> {
    if bytes <= FILE_OVERHEAD {
        return Ok(None);
    }
    if let Some(loan) = attributes.try_take(bytes) {
        return Ok(Some(loan));
    }
    // The engine takes what comes before this file first, and can't do so before it is sent.
    out.flush()?;
    attributes.take_for(number, bytes).map(Some).ok_or(Stop::Gone)
}

/// Opens a file. Another process may have a lease on it, as file servers do, and the open asks it to give that up. If the
/// file can't be put off meanwhile, this waits for it.
fn open(directory: &Directory, name: &OsStr, patience: Patience) -> Result<File, source::Error> {
    let end = Instant::now() + LEASE_BREAK;
    loop {
        match directory.open_file(name) {
            Err(e) if e.is_leased() && !patience.changed && Instant::now() < end => sleep(LEASE_LOOK),
            opened => return opened,
        }
    }
}

/// Reads a file's content and returns its digest.
fn digest_of(file: &File, stat: &Stat, reading: &ReadSetup, call: &Call<'_>) -> Result<Digest, Stop> {
    let mut hasher = ContentHasher::default();
    let sparse = source::has_holes(file, stat)?;
    reading.cutter.cut(file, stat.size, sparse, &mut |piece| -> Result<(), Stop> {
        call.pause(|| match piece {
            Piece::Data(bytes) => hasher.data(&bytes),
            Piece::Hole(length) => hasher.hole(length),
        });
        Ok(())
    })?;
    Ok(hasher.finish())
}

/// Whether there is more in a file than its size: the kernel and FUSE programs make up files. Elsewhere only a file of no
/// size is asked.
fn has_more(file: &File, stat: &Stat, reading: &ReadSetup) -> io::Result<bool> {
    if stat.size > 0 && reading.mounts.of(stat).clock == Clock::Ours {
        return Ok(false);
    }
    loop {
        match file.read_at(&mut [0], stat.size) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => return Ok(read? > 0),
        }
    }
}

/// Reads a file to its end, whatever its size is said to be. Returns the content of a short one, and delivers a longer one
/// in pieces.
fn read_unsized(file: &File, sink: &mut Sink<'_, '_>, call: &Call<'_>) -> Result<Option<Vec<u8>>, Stop> {
    let mut file = file;
    let mut read = || -> io::Result<Vec<u8>> {
        let mut piece = Vec::new();
        Read::by_ref(&mut file).take(UNSIZED_PIECE as u64).read_to_end(&mut piece)?;
        Ok(piece)
    };
    let mut piece = read()?;
    if piece.len() < UNSIZED_PIECE {
        return Ok(Some(piece));
    }
    while !piece.is_empty() {
        if sink.size > UNSIZED_MAX {
            let most = UNSIZED_MAX >> 30;
            return Err(Stop::Failed(format!(
                "its size is not known, and it has no end after {most} GiB; it is left out"
            )));
        }
        call.pause(|| sink.chunk(piece))?;
        piece = read()?;
    }
    Ok(None)
}

/// Reads a file of `size` bytes. What it grew by meanwhile is left out.
fn read_whole(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    let (mut passing, mut filled) = (UncachedReader::new(file), 0);
    while filled < bytes.len() {
        match passing.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Where content goes: as much at once as is worth waking the engine.
pub(super) struct Out<'c> {
    content: &'c Sender<Vec<Content>>,
    gathered: Vec<Content>,
    bytes: usize,
}

impl<'c> Out<'c> {
    pub(super) fn new(content: &'c Sender<Vec<Content>>) -> Self {
        Out { content, gathered: Vec::new(), bytes: 0 }
    }

    pub(super) fn send(&mut self, content: Content) -> Result<(), Stop> {
        self.bytes += match &content {
            Content::Chunk(bytes, _) => bytes.weight(),
            _ => 0,
        };
        self.gathered.push(content);
        match self.bytes >= GATHER_BYTES || self.gathered.len() >= GATHER {
            true => self.flush(),
            false => Ok(()),
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), Stop> {
        self.bytes = 0;
        match std::mem::take(&mut self.gathered) {
            nothing if nothing.is_empty() => Ok(()),
            some => self.content.send(some).map_err(|_| Stop::Gone),
        }
    }
}

/// What is made of a file's content on its way out.
pub(super) struct Sink<'o, 'c> {
    pub(super) out: &'o mut Out<'c>,
    lane: &'o Lane,
    /// What was lent for a small file's only chunk.
    loan: Option<Loan>,
    /// Bytes that are to come: none of them are digested twice if they come at once.
    expected: u64,
    hasher: ContentHasher,
    pub(super) size: u64,
    /// The first chunk and its length.
    first: Option<(Digest, u64)>,
    /// What was delivered, if that is wanted.
    pieces: Option<Vec<SeenPiece>>,
}

impl<'o, 'c> Sink<'o, 'c> {
    pub(super) fn new(out: &'o mut Out<'c>, lane: &'o Lane, expected: u64) -> Self {
        let hasher = ContentHasher::default();
        Sink { out, lane, loan: None, expected, hasher, size: 0, first: None, pieces: None }
    }

    /// Returns the digest of everything so far.
    pub(super) fn digest(&self) -> Digest {
        match self.first {
            Some((digest, length)) if length == self.size => digest,
            _ => self.hasher.finish(),
        }
    }

    /// Takes a piece in.
    pub(super) fn piece(&mut self, piece: Piece) -> Result<(), Stop> {
        match piece {
            Piece::Hole(length) => self.hole(length),
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
                    self.out.send(Content::Known(digest, length))?;
                }
            }
        }
        Ok(())
    }

    fn chunk(&mut self, bytes: Vec<u8>) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        let digest = Digest::of(&bytes);
        // The only chunk's digest is the file's.
        if (bytes.len() as u64) < self.expected {
            self.hasher.data(&bytes);
        }
        self.count(bytes.len() as u64, digest);
        let bytes = match (self.loan.take(), self.lane) {
            // Of a file that grew since it was looked at, only the beginning was lent.
            (_loan, Lane::Lent) => Bytes::Memory { bytes, _loan },
            (_, Lane::Memory(budget)) => {
                let _loan = Some(budget.take(bytes.len()).ok_or(Stop::Gone)?);
                Bytes::Memory { bytes, _loan }
            }
            (_, Lane::Spill(parking)) => {
                let parked = parking.put(&bytes).map_err(Stop::Broken)?;
                Bytes::Parked(parked.ok_or(Stop::Gone)?)
            }
        };
        self.out.send(Content::Chunk(bytes, digest))
    }

    fn hole(&mut self, length: u64) -> Result<(), Stop> {
        self.size += length;
        self.hasher.hole(length);
        if let Some(pieces) = &mut self.pieces {
            pieces.push(SeenPiece::Hole(length));
        }
        self.out.send(Content::Hole(length))
    }

    fn count(&mut self, length: u64, digest: Digest) {
        self.size += length;
        self.first.get_or_insert((digest, length));
        if let Some(pieces) = &mut self.pieces {
            // No chunk is larger than a block.
            pieces.push(SeenPiece::Chunk(digest, length as u32));
        }
    }
}
