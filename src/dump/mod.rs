//! Dumping: a snapshot, or a part of it, as a tar archive in the pax format (POSIX.1-2001), written as it is read.
//!
//! What an entry holds is in the archive: a name of any bytes and length, mode with set-id bits, owner and group as
//! numbers and names, the time of change to the nanosecond before 1970 and after 2242, sizes beyond 8 GiB, symbolic
//! links, FIFOs, devices, extended attributes (`SCHILY.xattr.`) and POSIX ACLs (`SCHILY.acl.`). Holes stay holes
//! (GNU sparse format 1.0). Further names of a file are hard links to the first one in the archive, unless the snapshot
//! has another content, owner, mode or attributes for them: then they are written in full. Sockets are left out, with a note: tar has none.
//! Nor has it inode flags (those of `chattr`), which restore gives back.
//!
//! Entries come in the order of the tree, a directory before what is in it. Of a directory, names begin with `./`,
//! as those of `tar -C DIR .` do: tar gives `./` its time and mode only after all that begins with it.
//!
//! Memory is that of the reader, and 5 MiB for the first names of hard-linked files. An archive has no index and can't be
//! changed once it is written, which decides what becomes of damage:
//!
//! - A directory that can't be read, wholly or in part, is a problem; all else is written.
//! - Of a file, its map and its first [`VERIFIED_FIRST`] bytes are verified before its header is written; if that
//!   fails, the file is left out, which is a problem.
//! - What fails further on ends the archive there, in the middle of the file: an error. It has no mark of the end,
//!   so tar notices too. What can't be verified is never written, nor zeros in its place.
//!
//! Files, in the order in which an entry meets them:
//!
//! - [`mod@islands`]: where the data of a sparse file is
//! - [`mod@header`]: an entry's header and its pax records
//! - [`mod@acl`]: access control lists as text
//! - [`mod@archive`]: headers and data into blocks

mod acl;
mod archive;
mod extents;
mod header;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::format::entry::Content;
use crate::format::{ContentHasher, Entry, Kind};
use crate::monitor::Monitor;
use crate::reader::{self, EntryHandle, FileReader, FirstNames, LinkLookup, Reader, TreeWalk, WalkStep};
use archive::Archive;
use extents::{DataExtents, Island};
use header::{Body, Member};

/// Bytes of a file that are verified before its header is written. They fit into the reader's cache several times
/// unless it was made small, so that they are fetched and decrypted once.
pub const VERIFIED_FIRST: u64 = 16 << 20;

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Files, hard links not counted.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Hard links, symbolic links and special files.
    pub others: u64,
    /// Bytes of files; holes count.
    pub bytes: u64,
    /// Entries that are missing in the archive, or not as they should be.
    pub problems: u64,
}

/// What ends a dump. The archive then has no mark of its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes of a file can't be read; said with the file's name.
    #[error(transparent)]
    Reader(#[from] reader::Error),
    /// There is no room to remember files of several names.
    #[error(transparent)]
    Names(#[from] reader::spill::Error),
    /// The archive can't be written.
    #[error("cannot write the archive: {0}")]
    Write(#[from] io::Error),
    /// A file's header is written, but the rest of the file can't be read.
    #[error(
        "{path}: cannot be read to its end: {source}; the archive ends in the middle of it, since what follows in a \
         tar archive can't be found behind a gap; restore gives all that can be read"
    )]
    Cut {
        /// The file.
        path: PathBuf,
        /// Why.
        source: reader::Error,
    },
    /// A file has not as many bytes as its header says.
    #[error("{path}: its stored parts are not as long as the file; the archive ends here")]
    Length {
        /// The file.
        path: PathBuf,
    },
}

/// Writes `from` (a directory: with all that is in it) to `to` as a tar archive. `trust_set_id`: with set-id bits,
/// capabilities and devices also of entries that lay on a mount that ignored them.
pub fn dump(
    reader: &Reader,
    from: &EntryHandle,
    to: impl Write,
    trust_set_id: bool,
    monitor: &dyn Monitor,
) -> Result<Summary, Error> {
    let archive = Archive::new(to);
    let mut run = Run {
        reader,
        monitor,
        archive,
        links: FirstNames::default(),
        apart: 0,
        trust_set_id,
        left_out: 0,
        summary: Summary::default(),
    };
    match from.directory() {
        Some(_) => run.directory(from, b"./".to_vec())?,
        None => run.one(from, &from.entry().name)?,
    }
    run.archive.finish()?;
    if let Some(note) = reader::first_names::apart(run.apart) {
        monitor.note(&note);
    }
    if let Some(note) = reader::left_out(run.left_out) {
        monitor.note(&note);
    }
    Ok(run.summary)
}

struct Run<'a, W: Write> {
    reader: &'a Reader,
    monitor: &'a dyn Monitor,
    archive: Archive<W>,
    /// The first names of files that have several.
    links: FirstNames,
    /// Names that became files of their own, though another name has the same id.
    apart: u64,
    trust_set_id: bool,
    /// Entries whose set-id bits, capabilities or devices are left out.
    left_out: u64,
    summary: Summary,
}

impl<W: Write> Run<'_, W> {
    /// A directory and all below it. `path` ends in a slash.
    fn directory(&mut self, listed: &EntryHandle, mut path: Vec<u8>) -> Result<(), Error> {
        self.one(listed, &path)?;
        let Some(directory) = listed.directory() else { return Ok(()) };
        let mut walk = TreeWalk::new(self.reader, directory);
        while let Some(step) = walk.step() {
            match step {
                WalkStep::Entry(child) => {
                    let above = path.len();
                    path.extend_from_slice(&child.entry().name);
                    match child.directory() {
                        Some(below) => {
                            path.push(b'/');
                            self.one(&child, &path)?;
                            walk.enter(below);
                        }
                        None => {
                            self.one(&child, &path)?;
                            path.truncate(above);
                        }
                    }
                }
                WalkStep::Failed(e) => {
                    self.problem(&path, &format!("a part of this directory is missing in the archive: {e}"));
                }
                WalkStep::Leave => {
                    path.pop();
                    path.truncate(path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1));
                }
            }
        }
        Ok(())
    }

    /// One entry.
    fn one(&mut self, listed: &EntryHandle, path: &[u8]) -> Result<(), Error> {
        let entry = listed.entry();
        if entry.kind == Kind::Socket {
            self.monitor.note(&format!("{}: a socket is left out, since tar has none", shown(path).display()));
            return Ok(());
        }
        if entry.kind == Kind::Directory {
            self.header(listed, path, Body::None)?;
            self.summary.directories += 1;
            self.told(listed, path);
            return Ok(());
        }
        let known = match entry.link {
            Some(link) => self.links.find(link, entry.file_digest())?,
            None => LinkLookup::Nothing,
        };
        if let LinkLookup::Named(first) = known {
            self.header(listed, path, Body::Link(&first))?;
            self.summary.others += 1;
            self.told(listed, path);
            return Ok(());
        }
        self.apart += u64::from(known == LinkLookup::Other);
        let is_written = match entry.kind {
            Kind::File => self.file(&FileReader::new(listed.clone()), path)?,
            _ => self.special(listed, path)?,
        };
        if is_written {
            if let Some(link) = entry.link.filter(|_| known == LinkLookup::Nothing) {
                self.links.add(link.id, entry.file_digest(), link.count.saturating_sub(1), path)?;
            }
            self.told(listed, path);
        }
        Ok(())
    }

    /// Whether set-id bits, capabilities or the device of an entry are left out because they had no effect where it lay.
    fn is_left_out(&self, entry: &Entry) -> bool {
        !self.trust_set_id && entry.flags & Entry::UNPRIVILEGED != 0
    }

    /// A symbolic link, FIFO or device. Whether it is in the archive.
    fn special(&mut self, listed: &EntryHandle, path: &[u8]) -> Result<bool, Error> {
        if self.is_left_out(listed.entry()) && matches!(listed.entry().content, Content::Device(..)) {
            self.left_out += 1;
            return Ok(false);
        }
        if !header::fits(listed.entry()) {
            self.problem(path, "left out: tar has no room for its device number");
            return Ok(false);
        }
        self.header(listed, path, Body::None)?;
        self.summary.others += 1;
        Ok(true)
    }

    /// A file. Whether it is in the archive.
    fn file(&mut self, file: &FileReader, path: &[u8]) -> Result<bool, Error> {
        self.monitor.progress().at(shown(path));
        let map = match self.verified(file) {
            Ok(map) => map,
            Err(e) => {
                self.problem(path, &format!("left out: {e}"));
                return Ok(false);
            }
        };
        match &map {
            None => self.header(file.file(), path, Body::File { size: file.size() })?,
            Some(map) => {
                let stored = map.encoded().saturating_add(map.data);
                self.header(file.file(), path, Body::Sparse { size: file.size(), stored })?;
                self.map(file, path, map)?;
            }
        }
        self.content(file, path, map.as_ref())?;
        self.summary.files += 1;
        self.summary.bytes = self.summary.bytes.saturating_add(file.size());
        self.monitor.progress().file();
        Ok(true)
    }

    /// Looks at all of a file's map, and verifies what lies at its beginning. Of a sparse file, how large the map is.
    fn verified(&self, file: &FileReader) -> Result<Option<extents::Size>, reader::Error> {
        let mut data = 0u64;
        let mut islands = DataExtents::new(file.size());
        let mut size = extents::Size::default();
        file.each_chunk(self.reader, |begins, at, chunk| {
            data += u64::from(chunk.length);
            islands.push(begins, chunk.length.into()).iter().for_each(|island| size.add(island));
            match data <= VERIFIED_FIRST {
                true => self.reader.verify(at, chunk),
                false => Ok(()),
            }
        })?;
        islands.finish().iter().for_each(|island| size.add(island));
        Ok((data < file.size()).then_some(size))
    }

    /// The map of a sparse file, which comes before its data.
    fn map(&mut self, file: &FileReader, path: &[u8], size: &extents::Size) -> Result<(), Error> {
        let failed = |source| Error::Cut { path: shown(path).to_owned(), source };
        let archive = &mut self.archive;
        let mut islands = DataExtents::new(file.size());
        // What can't be written must not be taken for what can't be read.
        let mut result = archive.write(size.heading().as_bytes());
        let mut put = |island: &Island| {
            if result.is_ok() {
                result = archive.write(island.line().as_bytes());
            }
        };
        file.each_chunk(self.reader, |begins, _, chunk| {
            islands.push(begins, chunk.length.into()).iter().for_each(&mut put);
            Ok(())
        })
        .map_err(failed)?;
        islands.finish().iter().for_each(&mut put);
        result?;
        Ok(self.archive.pad()?)
    }

    /// A file's bytes: all, or of a sparse file its islands. Chunks are verified before they are written. A digest
    /// of the whole that differs all the same is a problem: every piece of it is what was stored.
    fn content(&mut self, file: &FileReader, path: &[u8], map: Option<&extents::Size>) -> Result<(), Error> {
        // The digest of a single chunk is that of the file, and is compared anyway.
        let is_one_chunk = matches!(file.file().entry().content, Content::Chunk(_));
        let mut hasher = (!is_one_chunk).then(ContentHasher::default);
        let before = self.archive.written();
        let (archive, progress) = (&mut self.archive, self.monitor.progress());
        let mut islands = DataExtents::new(file.size());
        // Where in the file it is, and where what was written ends.
        let (mut at, mut end) = (0u64, 0u64);
        let result = file.each(self.reader, |stretch| -> Result<(), Error> {
            let bytes = match stretch {
                Ok(bytes) => bytes,
                Err(hole) => {
                    if let Some(hasher) = &mut hasher {
                        hasher.hole(hole);
                    }
                    progress.bytes(hole);
                    at = at.saturating_add(hole);
                    return Ok(());
                }
            };
            match islands.push(at, bytes.len() as u64) {
                // Zeros up to whole blocks belong to the island.
                Some(island) => archive.zeros(island.end().saturating_sub(end))?,
                None if end > 0 => archive.zeros(at - end)?,
                None => {}
            }
            if let Some(hasher) = &mut hasher {
                hasher.data(bytes);
            }
            archive.write(bytes)?;
            progress.bytes(bytes.len() as u64);
            at = at.saturating_add(bytes.len() as u64);
            end = at;
            Ok(())
        });
        match result {
            Err(Error::Reader(source)) => return Err(Error::Cut { path: shown(path).to_owned(), source }),
            other => other?,
        }
        if let Some(island) = islands.finish().first().filter(|island| island.length > 0) {
            self.archive.zeros(island.end().saturating_sub(end))?;
        }
        let expected = map.map_or(file.size(), |map| map.data);
        if self.archive.written() - before != expected {
            return Err(Error::Length { path: shown(path).to_owned() });
        }
        self.archive.pad()?;
        let differs = |hasher: ContentHasher| file.digest().is_some_and(|digest| digest != hasher.finish());
        if hasher.is_some_and(differs) {
            self.problem(path, "all of its chunks are right, but not its digest as a whole");
        }
        Ok(())
    }

    fn header(&mut self, listed: &EntryHandle, path: &[u8], body: Body<'_>) -> Result<(), Error> {
        let plain;
        let mut entry = listed.entry();
        if self.is_left_out(entry) {
            plain = unprivileged(entry);
            entry = &plain;
            self.left_out += 1;
        }
        let member = Member { entry, path, user: listed.user(), group: listed.group(), body };
        Ok(self.archive.write(&member.encode())?)
    }

    fn told(&self, listed: &EntryHandle, path: &[u8]) {
        let path = shown(path);
        if listed.entry().flags & Entry::CHANGED != 0 {
            self.monitor.note(&format!("{} changed while it was backed up", path.display()));
        }
        self.monitor.entry(path, "dumped");
    }

    fn problem(&mut self, path: &[u8], why: &str) {
        self.summary.problems += 1;
        self.monitor.problem(shown(path), why);
    }
}

/// An entry without set-id bits and capabilities.
fn unprivileged(entry: &Entry) -> Entry {
    let mut plain = entry.clone();
    plain.mode &= !Entry::SET_ID;
    plain.xattrs.retain(|(name, _)| name != Entry::CAPABILITIES);
    plain
}

fn shown(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
