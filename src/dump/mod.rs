//! Writes a snapshot, or a part of it, as a tar archive in the pax format (POSIX.1-2001).
//!
//! The archive contains the full metadata of each entry: names of any bytes and length, mode with set-id bits, owner
//! and group by id and name, mtime in nanoseconds (also before 1970 and after 2242), sizes above 8 GiB, symlinks,
//! FIFOs, devices, extended attributes (`SCHILY.xattr.`) and POSIX ACLs (`SCHILY.acl.`). Holes are preserved (GNU
//! sparse format 1.0). Further names of a file are hard links to its first name in the archive, unless content, owner,
//! mode or attributes differ; then they are written in full. Tar has no sockets, which are skipped with a note, and no
//! inode flags (`chattr`).
//!
//! Entries are in tree order, a directory before its content. The names of a dumped directory begin with `./`, like
//! those of `tar -C DIR .`: tar sets mode and mtime of `./` only after extracting all entries below it.
//!
//! Memory: that of the archive, and 5 MiB for the first names of hard-linked files. A tar archive has no index and
//! cannot be changed after it is written, so damage is handled as follows:
//!
//! - An unreadable directory, or part of one, is a problem; the other entries are written.
//! - The chunk list of a file and its first [`VERIFIED_FIRST`] bytes are verified before its header is written. If that
//!   fails, the file is skipped, which is a problem.
//! - A later failure is an error and ends the archive in the middle of the file. The end-of-archive mark is missing, so tar
//!   detects it. Unverified data is never written, nor replaced by zeros.
//!
//! Modules, in the order in which they process an entry:
//!
//! - `extents`: data extents of sparse files
//! - `header`: header block and pax records
//! - `acl`: ACLs as text
//! - `tar_output`: output in blocks

mod acl;
mod extents;
mod header;
mod tar_output;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::archive::{
    self, Archive, EntryHandle, EntryRef, FileContent, FileData, FirstNames, LinkLookup, TreeWalk, WalkStep,
};
use crate::failure::{Failure, FailureKind};
use crate::format::entry::Xattr;
use crate::format::{ContentHasher, Entry, Kind};
use crate::monitor::Monitor;
use extents::{DataExtent, DataExtents};
use header::{Body, Member};
use tar_output::TarOutput;

/// The number of bytes of a file that are verified before its header is written. They fit in a cache of normal size, so
/// they are fetched and decrypted only once.
pub const VERIFIED_FIRST: u64 = 16 << 20;

/// Counts of dumped entries.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Regular files, without further names of hard-linked files.
    pub files: u64,
    /// Directories, including the dumped one.
    pub directories: u64,
    /// Hard links, symlinks and special files.
    pub others: u64,
    /// Total size of the files, holes included.
    pub bytes: u64,
    /// Entries that are missing from the archive or incomplete.
    pub problems: u64,
}

/// An error that aborts a dump. The archive has no end-of-archive mark then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot cannot be read.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// The table of hard links cannot be written to its temporary file.
    #[error(transparent)]
    Names(#[from] archive::spill::Error),
    /// The archive cannot be written.
    #[error("cannot write the archive: {0}")]
    Write(#[from] io::Error),
    /// A file's header is written, but the rest of the file cannot be read.
    #[error(
        "cannot read {path} to its end: {source}; the archive ends in the middle of this file; use restore to get all \
         readable files"
    )]
    Cut {
        /// The file, as named in the archive.
        path: PathBuf,
        /// The cause.
        source: archive::Error,
    },
    /// A file's chunks do not match the size in its header.
    #[error("cannot dump {path}: its chunks do not add up to its size; the archive ends in the middle of this file")]
    Length {
        /// The file, as named in the archive.
        path: PathBuf,
    },
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Archive(error) | Error::Cut { source: error, .. } => error.kind(),
            Error::Names(_) | Error::Write(_) | Error::Length { .. } => FailureKind::Failed,
        }
    }
}

/// Writes `from`, and all entries below it, to `to` as a tar archive. With `trust_set_id`, set-id bits, capabilities
/// and devices are included even if the mount they were on ignored them.
pub fn dump(
    archive: &dyn Archive,
    from: &EntryHandle,
    to: impl Write,
    trust_set_id: bool,
    monitor: &dyn Monitor,
) -> Result<Summary, Error> {
    let mut run = Dumper {
        archive,
        monitor,
        output: TarOutput::new(to),
        links: FirstNames::default(),
        apart: 0,
        trust_set_id,
        left_out: 0,
        summary: Summary::default(),
    };
    match from.directory() {
        Some(_) => run.directory(from, b"./".to_vec())?,
        None => run.write_entry(from, from.entry().name)?,
    }
    run.output.finish()?;
    if let Some(note) = archive::first_names::apart(run.apart) {
        monitor.note(&note);
    }
    if let Some(note) = archive::left_out(run.left_out) {
        monitor.note(&note);
    }
    Ok(run.summary)
}

struct Dumper<'a, W: Write> {
    archive: &'a dyn Archive,
    monitor: &'a dyn Monitor,
    output: TarOutput<W>,
    /// The first names of hard-linked files.
    links: FirstNames,
    /// The number of names that became separate files, although another name has the same id.
    apart: u64,
    trust_set_id: bool,
    /// The number of entries written without privileges or not at all, because their mount ignored privileges.
    left_out: u64,
    summary: Summary,
}

impl<W: Write> Dumper<'_, W> {
    /// Writes a directory and all entries below it. `path` ends in a slash.
    fn directory(&mut self, listed: &EntryHandle, mut path: Vec<u8>) -> Result<(), Error> {
        self.write_entry(listed, &path)?;
        let Some(directory) = listed.directory() else { return Ok(()) };
        let mut walk = TreeWalk::new(self.archive, directory);
        while let Some(step) = walk.step() {
            match step {
                WalkStep::Entry(child) => {
                    let above = path.len();
                    path.extend_from_slice(child.entry().name);
                    match child.directory() {
                        Some(below) => {
                            path.push(b'/');
                            self.write_entry(&child, &path)?;
                            walk.enter(below);
                        }
                        None => {
                            self.write_entry(&child, &path)?;
                            path.truncate(above);
                        }
                    }
                }
                WalkStep::Failed(e) => {
                    self.problem(&path, &format!("cannot read all of this directory: {e}"));
                }
                WalkStep::Leave => {
                    path.pop();
                    path.truncate(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
                }
            }
        }
        Ok(())
    }

    fn write_entry(&mut self, listed: &EntryHandle, path: &[u8]) -> Result<(), Error> {
        let entry = listed.entry();
        if entry.kind == Kind::Socket {
            self.monitor
                .note(&format!("{}: skipped, since tar archives cannot contain sockets", shown(path).display()));
            return Ok(());
        }
        if entry.kind == Kind::Directory {
            self.header(listed, path, Body::None)?;
            self.summary.directories += 1;
            self.report(listed, path);
            return Ok(());
        }
        let known = match entry.link {
            Some(link) => self.links.find(link, listed.file_digest())?,
            None => LinkLookup::Nothing,
        };
        if let LinkLookup::Named(first) = known {
            self.header(listed, path, Body::Link(&first))?;
            self.summary.others += 1;
            self.report(listed, path);
            return Ok(());
        }
        self.apart += u64::from(known == LinkLookup::Other);
        let is_written = match entry.kind {
            Kind::File => self.file(listed, path)?,
            _ => self.special(listed, path)?,
        };
        if is_written {
            if let Some(link) = entry.link.filter(|_| known == LinkLookup::Nothing) {
                self.links.add(link.id, listed.file_digest(), link.count.saturating_sub(1), path)?;
            }
            self.report(listed, path);
        }
        Ok(())
    }

    /// Whether set-id bits, capabilities or device number of an entry are omitted because the mount it was on ignored
    /// them.
    fn is_left_out(&self, entry: &EntryRef<'_>) -> bool {
        !self.trust_set_id && entry.is_unprivileged()
    }

    /// Writes a symlink, FIFO or device. Returns false if it is skipped.
    fn special(&mut self, listed: &EntryHandle, path: &[u8]) -> Result<bool, Error> {
        let entry = listed.entry();
        if self.is_left_out(&entry) && matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            self.left_out += 1;
            return Ok(false);
        }
        if !header::fits(&entry) {
            self.problem(path, "skipped: its device number is too large for tar");
            return Ok(false);
        }
        self.header(listed, path, Body::None)?;
        self.summary.others += 1;
        Ok(true)
    }

    /// Writes a file. Returns false if it is skipped.
    fn file(&mut self, listed: &EntryHandle, path: &[u8]) -> Result<bool, Error> {
        self.monitor.progress().at(shown(path));
        let file = self.archive.content(listed)?;
        let file = &*file;
        let map = match verified(file) {
            Ok(map) => map,
            Err(e) => {
                self.problem(path, &format!("skipped: {e}"));
                return Ok(false);
            }
        };
        match &map {
            None => self.header(listed, path, Body::File { size: file.size() })?,
            Some(map) => {
                let stored = map.encoded().saturating_add(map.data);
                self.header(listed, path, Body::Sparse { size: file.size(), stored })?;
                self.write_map(file, path, map)?;
            }
        }
        self.content(file, path, map.as_ref())?;
        self.summary.files += 1;
        self.summary.bytes = self.summary.bytes.saturating_add(file.size());
        self.monitor.progress().file();
        Ok(true)
    }

    /// Writes the extent map of a sparse file, which precedes its data.
    fn write_map(&mut self, file: &dyn FileContent, path: &[u8], size: &extents::SparseMapSize) -> Result<(), Error> {
        let failed = |source| Error::Cut { path: shown(path).to_owned(), source };
        let output = &mut self.output;
        let mut extents = DataExtents::new(file.size());
        // A write error is kept apart from read errors.
        let mut result = output.write(size.heading().as_bytes());
        let mut put = |extent: &DataExtent| {
            if result.is_ok() {
                result = output.write(extent.line().as_bytes());
            }
        };
        file.stored_ranges(&mut |begins, length| {
            extents.push(begins, length).iter().for_each(&mut put);
            false
        })
        .map_err(failed)?;
        extents.finish().iter().for_each(&mut put);
        result?;
        Ok(self.output.pad()?)
    }

    /// Writes a file's content, or the extents of a sparse file. Each chunk is verified before it is written. A wrong
    /// digest of the whole file is only a problem, since every chunk is what was stored.
    fn content(
        &mut self,
        file: &dyn FileContent,
        path: &[u8],
        map: Option<&extents::SparseMapSize>,
    ) -> Result<(), Error> {
        let mut unverified = file.unverified_digest().map(|digest| (digest, ContentHasher::default()));
        let before = self.output.written();
        let (output, progress) = (&mut self.output, self.monitor.progress());
        let mut extents = DataExtents::new(file.size());
        // The position in the file, and the end of the last data written.
        let (mut at, mut end) = (0u64, 0u64);
        let result = file.each(|data| -> Result<(), Error> {
            let bytes = match data {
                FileData::Bytes(bytes) => bytes,
                FileData::Hole(hole) => {
                    if let Some((_, hasher)) = &mut unverified {
                        hasher.hole(hole);
                    }
                    progress.bytes(hole);
                    at = at.saturating_add(hole);
                    return Ok(());
                }
            };
            match extents.push(at, bytes.len() as u64) {
                // Pad the previous extent to whole blocks.
                Some(extent) => output.zeros(extent.end().saturating_sub(end))?,
                None if end > 0 => output.zeros(at - end)?,
                None => {}
            }
            if let Some((_, hasher)) = &mut unverified {
                hasher.data(bytes);
            }
            output.write(bytes)?;
            progress.bytes(bytes.len() as u64);
            at = at.saturating_add(bytes.len() as u64);
            end = at;
            Ok(())
        });
        match result {
            Err(Error::Archive(source)) => return Err(Error::Cut { path: shown(path).to_owned(), source }),
            other => other?,
        }
        if let Some(extent) = extents.finish().first().filter(|extent| extent.length > 0) {
            self.output.zeros(extent.end().saturating_sub(end))?;
        }
        let expected = map.map_or(file.size(), |map| map.data);
        if self.output.written() - before != expected {
            return Err(Error::Length { path: shown(path).to_owned() });
        }
        self.output.pad()?;
        if unverified.is_some_and(|(digest, hasher)| digest != hasher.finish()) {
            self.problem(path, "the digest of the whole file is wrong, although all its chunks are valid");
        }
        Ok(())
    }

    fn header(&mut self, listed: &EntryHandle, path: &[u8], body: Body<'_>) -> Result<(), Error> {
        let xattrs: Vec<Xattr>;
        let mut entry = listed.entry();
        if self.is_left_out(&entry) {
            xattrs = entry.xattrs.iter().filter(|(name, _)| name != Entry::CAPABILITIES).cloned().collect();
            entry = EntryRef { mode: entry.mode & !Entry::SET_ID, xattrs: &xattrs, ..entry };
            self.left_out += 1;
        }
        let member = Member { entry: &entry, path, user: listed.user(), group: listed.group(), body };
        Ok(self.output.write(&member.encode())?)
    }

    fn report(&self, listed: &EntryHandle, path: &[u8]) {
        let path = shown(path);
        if listed.entry().is_changed() {
            self.monitor.note(&format!("{} changed while it was backed up", path.display()));
        }
        self.monitor.entry(path, "dumped");
    }

    fn problem(&mut self, path: &[u8], why: &str) {
        self.summary.problems += 1;
        self.monitor.problem(shown(path), why);
    }
}

/// Reads the whole chunk list of a file and verifies the first [`VERIFIED_FIRST`] bytes. Returns the size of the extent
/// map if the file is sparse.
fn verified(file: &dyn FileContent) -> Result<Option<extents::SparseMapSize>, archive::Error> {
    let mut data = 0u64;
    let mut extents = DataExtents::new(file.size());
    let mut size = extents::SparseMapSize::default();
    file.stored_ranges(&mut |begins, length| {
        data += length;
        extents.push(begins, length).iter().for_each(|extent| size.add(extent));
        data <= VERIFIED_FIRST
    })?;
    extents.finish().iter().for_each(|extent| size.add(extent));
    Ok((data < file.size()).then_some(size))
}

fn shown(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
