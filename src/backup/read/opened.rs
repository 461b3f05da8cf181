//! An open file. It is observed before and after it is read.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::jobs::ReadSetup;
use super::sink::{ReadStop, Sink};
use super::verdict::Patience;
use crate::backup::calls::NotedCall;
use crate::format::{ContentHasher, Digest, Kind, Timestamp};
use crate::source::{self, Clock, Directory, Piece, Stat, WholeReader};

/// Bytes of a piece of a file of unknown size.
const UNSIZED_PIECE: usize = 64 << 10;
/// Most bytes of such a file: a program may make up one without end.
const UNSIZED_MAX: u64 = 1 << 30;
/// How long to wait for a lease: longer than the kernel lets its holder keep it (45 s by default).
const LEASE_BREAK: Duration = Duration::from_secs(60);
/// Time between attempts to open a leased file.
const LEASE_POLL: Duration = Duration::from_millis(20);

/// Opens a file. Another process, such as a file server, may hold a lease on it, which the open breaks. Waits for that,
/// unless the file can be deferred.
pub(super) fn open(directory: &Directory, name: &OsStr, patience: Patience) -> Result<File, source::Error> {
    let end = Instant::now() + LEASE_BREAK;
    loop {
        match directory.open_file(name) {
            Err(e) if e.is_leased() && !patience.changed && Instant::now() < end => sleep(LEASE_POLL),
            opened => return opened,
        }
    }
}

/// A file that is open, as it was before it is read.
pub(super) struct OpenedFile {
    pub(super) file: File,
    pub(super) before: Stat,
    /// A time before the file was opened: stamps from then on are fresh.
    pub(super) opened: Timestamp,
    /// A process may be writing to it. One that opens it later leaves fresh stamps.
    pub(super) written_to: bool,
}

impl OpenedFile {
    /// Observes a file before it is read. `None`: it is to be deferred, because it is missing at the moment, leased, or not
    /// a file.
    pub(super) fn observe(
        file: Result<File, source::Error>,
        seen: &Stat,
        opened: Timestamp,
        patience: Patience,
    ) -> Result<Option<Self>, ReadStop> {
        match file.and_then(|file| OpenedFile::stat(file, seen, opened)) {
            Ok(file) if file.before.kind == Kind::File => Ok(Some(file)),
            Ok(_) if patience.changed => Ok(None),
            Err(e) if patience.changed && (e.is_vanished() || e.is_symlink() || e.is_leased()) => Ok(None),
            Ok(_) => Err(ReadStop::Failed("it was a file and is none any more".into())),
            Err(e) => Err(e.into()),
        }
    }

    fn stat(file: File, seen: &Stat, opened: Timestamp) -> Result<Self, source::Error> {
        let stat = || Stat::of_fd(&file).map_err(source::Error::Content);
        let old = if seen.is_young(opened) { None } else { Some(stat()?).filter(|stat| !stat.is_young(opened)) };
        let written_to = old.is_none() && source::is_open_for_writing(&file);
        source::have_changes_stamped(&file);
        let before = old.map_or_else(stat, Ok)?;
        Ok(OpenedFile { file, before, opened, written_to })
    }

    /// Whether the file has more bytes than its size says, as files that the kernel or FUSE programs make up. Elsewhere only
    /// files of size 0 are tried.
    pub(super) fn has_more(&self, setup: &ReadSetup) -> io::Result<bool> {
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
    pub(super) fn read_unsized(
        &self,
        sink: &mut Sink<'_, '_>,
        call: &NotedCall<'_>,
    ) -> Result<Option<Vec<u8>>, ReadStop> {
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
    pub(super) fn read_sized(
        &self,
        setup: &ReadSetup,
        whole: &mut WholeReader,
        sink: &mut Sink<'_, '_>,
        call: &NotedCall<'_>,
    ) -> Result<Option<Vec<u8>>, ReadStop> {
        let OpenedFile { file, before, .. } = self;
        let sparse = source::has_holes(file, before)?;
        if before.size < setup.whole_below && !sparse {
            return whole.read_one(file, before.size).map(Some).map_err(ReadStop::from);
        }
        setup.chunker.cut(file, before.size, sparse, &mut |piece| call.pause(|| sink.piece(piece)))?;
        Ok(None)
    }

    /// Whether the file looks as before. It may have been renamed or deleted, but not replaced by another file.
    pub(super) fn is_same(&self, directory: &Directory, name: &OsStr) -> io::Result<bool> {
        let before = &self.before;
        match directory.stat_child(name) {
            Ok(there) => Ok(there.inode() == before.inode() && before.same_content_as(&there)),
            Err(_) => Ok(before.same_content_as(&Stat::of_fd(&self.file)?)),
        }
    }

    /// Reads the content again and returns its digest.
    pub(super) fn digest(&self, setup: &ReadSetup, call: &NotedCall<'_>) -> Result<Digest, ReadStop> {
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
