//! Reading files: many small ones at the same time, large ones one after the other.
//!
//! On a cold disk a small file costs a seek, so many are read at the same time, regardless of the number of cores. Neighbouring
//! small files are one job: waking a reader, and then the assembler, takes longer than reading one of them. The content of
//! each job goes to a channel of its own, so the assembler takes files in the order of the walk, however they arrive. The
//! memory of a small file is lent by the walk, in the order in which files are taken; that of a large file by its reader,
//! one chunk at a time.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::budget::{Budget, Loan};
use super::content::{FileContent, FileEnd};
use super::hard_links::{CachedFile, HardLinkCache};
use super::lanes::Lane;
use super::sink::{ContentSender, ReadStop, Sink};
use super::verdict::{Observation, Patience};
use crate::backup::calls::{Calls, NotedCall};
use crate::format::{ContentHasher, Digest, Kind, Timestamp};
use crate::source::{self, Chunker, Clock, Directory, Extended, MountTable, Piece, Stat, UncachedReader, now};

/// About how many bytes a file takes besides its content while it waits, including a few attributes.
pub(in crate::backup) const FILE_OVERHEAD: usize = 1 << 10;
/// Bytes of a piece of a file of unknown size.
const UNSIZED_PIECE: usize = 64 << 10;
/// Most bytes of such a file: a program may make up one without end.
const UNSIZED_MAX: u64 = 1 << 30;
/// How long to wait for a lease: longer than the kernel lets its holder keep it (45 s by default).
const LEASE_BREAK: Duration = Duration::from_secs(60);
/// Time between attempts to open a leased file.
const LEASE_POLL: Duration = Duration::from_millis(20);

/// Files to be read one after the other.
pub(in crate::backup) struct ReadJob {
    pub(in crate::backup) directory: Arc<Directory>,
    pub(in crate::backup) files: Vec<JobFile>,
    pub(in crate::backup) content: Sender<Vec<FileContent>>,
}

/// A file to be read.
pub(in crate::backup) struct JobFile {
    pub(in crate::backup) name: Vec<u8>,
    /// Its place in the order in which the assembler takes files.
    pub(in crate::backup) number: u64,
    /// The loan for a small file.
    pub(in crate::backup) loan: Option<Loan>,
    pub(in crate::backup) patience: Patience,
}

/// Shared by all readers of a run.
pub(in crate::backup) struct ReadSetup {
    pub(in crate::backup) chunker: Chunker,
    /// Files below this many bytes are one chunk.
    pub(in crate::backup) whole_below: u64,
    /// Lends memory for attributes. The assembler says which file it takes.
    pub(in crate::backup) attributes: Budget,
    pub(in crate::backup) hard_links: HardLinkCache,
    /// Tells whose clock stamps a file.
    pub(in crate::backup) mounts: MountTable,
    pub(in crate::backup) calls: Arc<Calls>,
}

/// Reads files until there are no more jobs.
pub(in crate::backup) fn read_files(jobs: &Receiver<ReadJob>, setup: &ReadSetup, lane: &Lane) {
    for ReadJob { directory, files, content } in jobs {
        let mut out = ContentSender::new(&content);
        // If the receiver is gone, the run has ended.
        let _ = files.into_iter().try_for_each(|file| match read_file(&directory, file, setup, lane, &mut out) {
            Err(ReadStop::Failed(why)) => out.send(FileContent::Failed(why)),
            Err(ReadStop::Broken(error)) => out.send(FileContent::Broken(error)),
            result => result,
        });
        let _ = out.flush();
    }
}

/// Reads a file and sends its content.
fn read_file(
    directory: &Directory,
    job: JobFile,
    setup: &ReadSetup,
    lane: &Lane,
    out: &mut ContentSender<'_>,
) -> Result<(), ReadStop> {
    let name = OsStr::from_bytes(&job.name);
    let call = setup.calls.about_names(directory.shared_path(), [name]);
    let Some(file) = OpenedFile::open(directory, name, job.patience)? else {
        drop(call);
        return out.send(FileContent::Deferred { changed: true });
    };
    let mut sink = Sink::new(out, lane, file.before.size).with_loan(job.loan);
    let cached = find_cached(setup, &file.before, job.number, &mut sink);
    let is_unsized = cached.is_none() && file.has_more(setup)?;
    // A small file is delivered once it is known whether it is deferred.
    let held = match &cached {
        Some(cached) => call.pause(|| sink.repeat(cached)).map(|()| None)?,
        None if is_unsized => file.read_unsized(&mut sink, &call)?,
        None => file.read_sized(setup, &mut sink, &call)?,
    };
    let extended = Extended::of_fd(&file.file);
    let observed = Observation {
        same: file.is_same(directory, name)?,
        expected_size: file.before.size,
        size: sink.size() + held.as_ref().map_or(0, |bytes| bytes.len() as u64),
        is_unsized,
        fresh: file.before.fresh_for(file.opened, setup.mounts.of(&file.before).clock),
        written_to: file.written_to,
    };
    let verdict = observed.verdict(job.patience, || -> Result<bool, ReadStop> {
        let digest = match (&held, &cached) {
            (Some(bytes), _) => Digest::of(bytes),
            (None, Some(cached)) => cached.digest,
            (None, None) => sink.digest(),
        };
        Ok(file.digest(setup, &call)? != digest)
    })?;
    drop(call);
    match held {
        Some(_) if verdict.deferred => return out.send(FileContent::Deferred { changed: verdict.changed }),
        Some(bytes) => sink.chunk(bytes)?,
        None => {}
    }
    let digest = cached.map_or_else(|| sink.digest(), |cached| cached.digest);
    let is_certain = !verdict.changed && !verdict.doubtful && !verdict.wrong_size;
    if is_certain && let Some(pieces) = sink.take_pieces() {
        setup.hard_links.keep(CachedFile { number: job.number, stat: file.before.clone(), pieces, digest });
    }
    let size = sink.size();
    let lent = lend(&setup.attributes, extended.bytes(), job.number, sink.sender())?;
    out.send(FileContent::End(Box::new(FileEnd {
        stat: file.before,
        extended,
        size,
        digest,
        changed: verdict.changed,
        doubtful: verdict.doubtful,
        wrong_size: verdict.wrong_size,
        deferred: verdict.deferred,
        lent,
    })))
}

/// Finds the content of a file that was read under another name, or prepares to remember it.
fn find_cached(setup: &ReadSetup, before: &Stat, number: u64, sink: &mut Sink<'_, '_>) -> Option<CachedFile> {
    if !HardLinkCache::wants(before) {
        return None;
    }
    let cached = setup.hard_links.find(before, number);
    if cached.is_none() {
        sink.remember_pieces();
    }
    cached
}

/// Waits until there is room for this many bytes of attributes, unless the loan for the file covers them.
fn lend(attributes: &Budget, bytes: usize, number: u64, out: &mut ContentSender<'_>) -> Result<Option<Loan>, ReadStop> {
    if bytes <= FILE_OVERHEAD {
        return Ok(None);
    }
    if let Some(loan) = attributes.try_take(bytes) {
        return Ok(Some(loan));
    }
    // The assembler takes the files before this one first, and can do so only once they are sent.
    out.flush()?;
    attributes.take_for(number, bytes).map(Some).ok_or(ReadStop::Gone)
}

/// Opens a file. Another process, such as a file server, may hold a lease on it, which the open breaks. Waits for that,
/// unless the file can be deferred.
fn open(directory: &Directory, name: &OsStr, patience: Patience) -> Result<File, source::Error> {
    let end = Instant::now() + LEASE_BREAK;
    loop {
        match directory.open_file(name) {
            Err(e) if e.is_leased() && !patience.changed && Instant::now() < end => sleep(LEASE_POLL),
            opened => return opened,
        }
    }
}

/// A file that is open, as it was before it is read.
struct OpenedFile {
    file: File,
    before: Stat,
    /// A time before the file was opened: stamps from then on are fresh.
    opened: Timestamp,
    /// A process may be writing to it. One that opens it later leaves fresh stamps.
    written_to: bool,
}

impl OpenedFile {
    /// Opens a file. `None`: it is to be deferred, because it is missing at the moment, leased, or not a file.
    fn open(directory: &Directory, name: &OsStr, patience: Patience) -> Result<Option<Self>, ReadStop> {
        let opened = now();
        let observed = open(directory, name, patience).and_then(|file| OpenedFile::observe(file, opened));
        match observed {
            Ok(file) if file.before.kind == Kind::File => Ok(Some(file)),
            Ok(_) if patience.changed => Ok(None),
            Err(e) if patience.changed && (e.is_vanished() || e.is_symlink() || e.is_leased()) => Ok(None),
            Ok(_) => Err(ReadStop::Failed("it was a file and is none any more".into())),
            Err(e) => Err(e.into()),
        }
    }

    fn observe(file: File, opened: Timestamp) -> Result<Self, source::Error> {
        let stat = || Stat::of_fd(&file).map_err(source::Error::Content);
        let before = stat()?;
        let is_young = before.is_young(opened);
        let written_to = is_young && source::is_open_for_writing(&file);
        source::have_changes_stamped(&file);
        let before = if is_young { stat()? } else { before };
        Ok(OpenedFile { file, before, opened, written_to })
    }

    /// Whether the file has more bytes than its size says, as files that the kernel or FUSE programs make up. Elsewhere only
    /// files of size 0 are tried.
    fn has_more(&self, setup: &ReadSetup) -> io::Result<bool> {
        let size = self.before.size;
        if size > 0 && setup.mounts.of(&self.before).clock == Clock::Ours {
            return Ok(false);
        }
        loop {
            match self.file.read_at(&mut [0], size) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => return Ok(read? > 0),
            }
        }
    }

    /// Reads a file to its end, regardless of its size. Returns the content of a short one; delivers a longer one in
    /// pieces.
    fn read_unsized(&self, sink: &mut Sink<'_, '_>, call: &NotedCall<'_>) -> Result<Option<Vec<u8>>, ReadStop> {
        sink.expect_any();
        let mut file = &self.file;
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
            if sink.size() > UNSIZED_MAX {
                let most = UNSIZED_MAX >> 30;
                return Err(ReadStop::Failed(format!(
                    "its size is not known, and it has no end after {most} GiB; it is left out"
                )));
            }
            call.pause(|| sink.chunk(piece))?;
            piece = read()?;
        }
        Ok(None)
    }

    /// Reads a file of known size. Returns the content of a small one; delivers a larger one in chunks.
    fn read_sized(
        &self,
        setup: &ReadSetup,
        sink: &mut Sink<'_, '_>,
        call: &NotedCall<'_>,
    ) -> Result<Option<Vec<u8>>, ReadStop> {
        let OpenedFile { file, before, .. } = self;
        let sparse = source::has_holes(file, before)?;
        if before.size < setup.whole_below && !sparse {
            return Ok(Some(read_whole(file, before.size)?));
        }
        setup.chunker.cut(file, before.size, sparse, &mut |piece| call.pause(|| sink.piece(piece)))?;
        Ok(None)
    }

    /// Whether the file looks as before. It may have been renamed or deleted, but not replaced by another file.
    fn is_same(&self, directory: &Directory, name: &OsStr) -> io::Result<bool> {
        let before = &self.before;
        match directory.stat_child(name) {
            Ok(there) => Ok(there.inode() == before.inode() && before.same_content_as(&there)),
            Err(_) => Ok(before.same_content_as(&Stat::of_fd(&self.file)?)),
        }
    }

    /// Reads the content again and returns its digest.
    fn digest(&self, setup: &ReadSetup, call: &NotedCall<'_>) -> Result<Digest, ReadStop> {
        let OpenedFile { file, before, .. } = self;
        let mut hasher = ContentHasher::default();
        let sparse = source::has_holes(file, before)?;
        setup.chunker.cut(file, before.size, sparse, &mut |piece| -> Result<(), ReadStop> {
            call.pause(|| match piece {
                Piece::Data(bytes) => hasher.data(&bytes),
                Piece::Hole(length) => hasher.hole(length),
            });
            Ok(())
        })?;
        Ok(hasher.finish())
    }
}

/// Reads `size` bytes of a file, or fewer if it is shorter.
fn read_whole(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    let (mut reader, mut filled) = (UncachedReader::new(file), 0);
    while filled < bytes.len() {
        match reader.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
