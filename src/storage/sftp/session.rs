//! Operations on files over one connection, with several requests under way.

use std::collections::VecDeque;
use std::io::Read;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::connection::{Connection, Pending};
use super::failure::Failure;
use super::ssh::Ssh;
use super::wire::{Attributes, Entry, Extension, FileKind, FileSystem, Malformed, Mode, Reply, Request, Status};
use crate::storage::interrupt::Interrupt;

/// Bytes per read. Servers may return less; OpenSSH returns at most 255 KiB.
const READ: usize = 255 << 10;
/// Reads under way, for one operation.
const READS: usize = 16;
/// Bytes per write, which every server accepts. The replies to small writes show that a slow connection is alive.
const WRITE: usize = 32 << 10;
/// Writes under way, for one operation.
const WRITES: usize = 64;
/// Folders that are listed or synced at the same time.
const FOLDERS: usize = 32;

/// Files that are kept open for reading, so that the next read takes one round trip.
const FILES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);
/// How long a file is kept open. Another program may replace a damaged object.
const KEPT: Duration = Duration::from_secs(30);

/// A connection, and the files that are open on it.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    /// Whether the repository's path was a directory when the connection was made.
    root: Result<bool, Failure>,
    files: Mutex<LruCache<String, Arc<OpenFile>>>,
}

#[derive(Debug)]
struct OpenFile {
    handle: Vec<u8>,
    since: Instant,
}

/// A file or a folder in a listing.
#[derive(Debug)]
pub(super) struct Found<'f> {
    /// The number of the listed folder, in the order that was given.
    pub(super) folder: usize,
    pub(super) name: &'f str,
    pub(super) kind: FileKind,
    /// In bytes.
    pub(super) length: u64,
}

impl Session {
    /// Connects, and looks at the repository's path.
    pub(super) fn open(ssh: &Arc<Ssh>, stall: Duration, interrupt: &Interrupt) -> Result<Self, Failure> {
        let (connection, reply) = Connection::open(ssh, stall, interrupt, &Request::Stat { path: ssh.path() })?;
        let root = match reply {
            Reply::Attributes(found) => Ok(found.kind() == Some(FileKind::Directory)),
            other => Err(Failure::unexpected(other)),
        };
        Ok(Session { connection, root, files: Mutex::new(LruCache::new(FILES)) })
    }

    /// Whether the repository's path was a directory when the connection was made.
    pub(super) fn began_at_directory(&self) -> Result<bool, Failure> {
        self.root.clone()
    }

    pub(super) fn is_lost(&self) -> bool {
        self.connection.is_lost()
    }

    pub(super) fn has(&self, extension: Extension) -> bool {
        self.connection.has(extension)
    }

    /// Makes a request that returns nothing.
    pub(super) fn act(&self, request: &Request<'_>) -> Result<(), Failure> {
        done(self.connection.send(request)?)
    }

    /// Attributes of a file, not of the target of a link.
    pub(super) fn attributes(&self, path: &str) -> Result<Attributes, Failure> {
        attributes(self.connection.send(&Request::Lstat { path })?)
    }

    /// Attributes of a file, or of the target of a link.
    pub(super) fn attributes_behind(&self, path: &str) -> Result<Attributes, Failure> {
        attributes(self.connection.send(&Request::Stat { path })?)
    }

    /// The file system of a path; `None` if the server does not tell.
    pub(super) fn file_system(&self, path: &str) -> Option<FileSystem> {
        if !self.has(Extension::Statvfs) {
            return None;
        }
        match self.connection.ask(&Request::Statvfs { path }) {
            Ok(Reply::Extended(bytes)) => FileSystem::parse(&bytes).ok(),
            _ => None,
        }
    }

    /// Begins to make a folder and those above it, down from `root`, and to open the folders that hold their names.
    pub(super) fn begin_folders(&self, root: &str, folder: &str) -> Result<NewFolders<'_>, Failure> {
        let mut new = NewFolders { above: Vec::new(), made: Vec::new() };
        let mut path = root.trim_end_matches('/').to_owned();
        for name in folder.split('/') {
            new.above.push(self.open_folder(if path.is_empty() { "/" } else { &path })?);
            path = format!("{path}/{name}");
            new.made.push(self.connection.send(&Request::MkDir { path: &path })?);
        }
        Ok(new)
    }

    /// Reads a range of a file into `bytes`, which is replaced. The end of the file is [`Status::Eof`].
    pub(super) fn read(&self, path: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        let (file, is_kept) = self.file(path)?;
        let read = self.read_open(&file, offset, length, bytes);
        match &read {
            Ok(()) => {}
            Err(failure) if failure.is_lost() => {}
            Err(_) => self.forget(path),
        }
        self.close_unused(file);
        match read {
            // The server may have closed a file that was open for long.
            Err(Failure::Status(status, _)) if is_kept && status != Status::Eof => {
                let (file, _) = self.file(path)?;
                let read = self.read_open(&file, offset, length, bytes);
                self.close_unused(file);
                read
            }
            read => read,
        }
    }

    /// Reads a whole file of this length that is being opened.
    pub(super) fn read_whole(&self, opening: Opening<'_>, length: usize) -> Result<Vec<u8>, Failure> {
        let file = OpenFile { handle: handle(opening.0)?, since: Instant::now() };
        let mut bytes = Vec::new();
        let read = self.read_open(&file, 0, length, &mut bytes);
        self.close(&file.handle);
        read.map(|()| bytes)
    }

    fn read_open(&self, file: &OpenFile, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        bytes.clear();
        bytes.resize(length, 0);
        let send = |start: usize, length: usize| {
            let offset = offset.saturating_add(start as u64);
            let request = Request::Read { handle: &file.handle, offset, length: length as u32 };
            Ok::<_, Failure>((start, length, self.connection.send(&request)?))
        };
        let mut under_way = VecDeque::new();
        let mut next = 0;
        loop {
            while next < length && under_way.len() < READS {
                let part = READ.min(length - next);
                under_way.push_back(send(next, part)?);
                next += part;
            }
            let Some((start, wanted, pending)) = under_way.pop_front() else { return Ok(()) };
            let data = match pending.wait()? {
                Reply::Data(data) if (1..=wanted).contains(&data.len()) => data,
                Reply::Data(_) => return Err(Malformed.into()),
                other => return Err(Failure::unexpected(other)),
            };
            if let Some(place) = bytes.get_mut(start..start + data.len()) {
                place.copy_from_slice(&data);
            }
            if data.len() < wanted {
                under_way.push_front(send(start + data.len(), wanted - data.len())?);
            }
        }
    }

    /// Opens a file for reading, or takes one that is open. Returns whether it was open.
    fn file(&self, path: &str) -> Result<(Arc<OpenFile>, bool), Failure> {
        if let Some(file) = self.files().get(path).filter(|file| file.since.elapsed() < KEPT) {
            return Ok((file.clone(), true));
        }
        let handle = handle(self.connection.send(&Request::Open { path, mode: Mode::Read })?)?;
        let file = Arc::new(OpenFile { handle, since: Instant::now() });
        let replaced = self.files().push(path.to_owned(), file.clone());
        if let Some((_, file)) = replaced {
            self.close_unused(file);
        }
        Ok((file, false))
    }

    /// Forgets that a file is open.
    pub(super) fn forget(&self, path: &str) {
        let file = self.files().pop(path);
        if let Some(file) = file {
            self.close_unused(file);
        }
    }

    /// Closes a file, unless another thread reads it, which then closes it.
    fn close_unused(&self, file: Arc<OpenFile>) {
        if let Some(file) = Arc::into_inner(file) {
            self.close(&file.handle);
        }
    }

    /// Closes a handle without waiting for the reply.
    fn close(&self, handle: &[u8]) {
        // Best effort: handles end with the connection.
        let _ = self.connection.send(&Request::Close { handle });
    }

    fn files(&self) -> MutexGuard<'_, LruCache<String, Arc<OpenFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the content of a new file, which is `length` bytes long, and syncs it if the server can.
    pub(super) fn write(&self, file: &NewFile, content: &mut dyn Read, length: u64) -> Result<(), WriteError> {
        self.write_open(&file.0, content, length).inspect_err(|_| self.close(&file.0))
    }

    fn write_open(&self, handle: &[u8], content: &mut dyn Read, length: u64) -> Result<(), WriteError> {
        let mut under_way = VecDeque::new();
        let mut piece = vec![0; WRITE];
        let mut offset = 0;
        while offset < length {
            let part = WRITE.min(usize::try_from(length - offset).unwrap_or(WRITE));
            let bytes = piece.get_mut(..part).unwrap_or_default();
            content.read_exact(bytes).map_err(WriteError::Spool)?;
            if under_way.len() == WRITES
                && let Some(oldest) = under_way.pop_front()
            {
                done(oldest)?;
            }
            under_way.push_back(self.connection.send(&Request::Write { handle, offset, bytes })?);
            offset += part as u64;
        }
        let synced = match self.has(Extension::Fsync) {
            true => Some(self.connection.send(&Request::Fsync { handle })?),
            false => None,
        };
        let found = self.connection.send(&Request::Fstat { handle })?;
        let closed = self.connection.send(&Request::Close { handle })?;
        under_way.into_iter().chain(synced).try_for_each(done)?;
        let found = attributes(found)?;
        done(closed)?;
        match found.size {
            Some(size) if size != length => Err(WriteError::Short { stored: size }),
            _ => Ok(()),
        }
    }

    /// Begins to open a file, for reading or to create it. The request is under way when this returns.
    pub(super) fn begin(&self, path: &str, mode: Mode) -> Result<Opening<'_>, Failure> {
        Ok(Opening(self.connection.send(&Request::Open { path, mode })?))
    }

    /// Closes a file that is not needed.
    pub(super) fn close_opening(&self, opening: Opening<'_>) {
        // Best effort, as it may not have been opened.
        if let Ok(handle) = handle(opening.0) {
            self.close(&handle);
        }
    }

    /// Begins a request for attributes, not of the target of a link.
    pub(super) fn look(&self, path: &str) -> Result<Look<'_>, Failure> {
        Ok(Look(self.connection.send(&Request::Lstat { path })?))
    }

    /// Makes a request that returns nothing, another one whose result does not matter, and syncs a folder, in one round trip.
    /// Returns the result of the first, and whether the folder is synced after it: servers carry out requests in the order
    /// in which they arrive, or as if they did (draft-ietf-secsh-filexfer-02, section 6).
    pub(super) fn act_and_sync(
        &self,
        first: &Request<'_>,
        second: &Request<'_>,
        folder: &Folder<'_>,
    ) -> Result<(Result<(), Failure>, bool), Failure> {
        let first = self.connection.send(first)?;
        let second = self.connection.send(second)?;
        let sync = folder.begin_sync()?;
        let result = done(first);
        let is_synced = match sync {
            Some(sync) if result.is_ok() => is_synced(sync)?,
            _ => false,
        };
        // Its result is waited for, so that it is done when this returns.
        if let Err(failure) = done(second)
            && failure.is_lost()
        {
            return Err(failure);
        }
        Ok((result, is_synced))
    }

    /// Begins to open a folder, to be synced later.
    pub(super) fn open_folder(&self, path: &str) -> Result<Folder<'_>, Failure> {
        let opening = match self.has(Extension::Fsync) {
            // OpenSSH opens a folder like a file, which is all that syncing needs.
            true => Some(self.connection.send(&Request::Open { path, mode: Mode::Read })?),
            false => None,
        };
        Ok(Folder { session: self, opening, handle: None })
    }

    /// Syncs folders, so that the names in them are durable. Returns false if the server cannot. A missing folder counts as
    /// synced.
    pub(super) fn sync_folders(&self, folders: &[String]) -> Result<bool, Failure> {
        if !self.has(Extension::Fsync) {
            return Ok(false);
        }
        let mut synced = true;
        for folders in folders.chunks(FOLDERS) {
            let open = |path: &String| self.connection.send(&Request::Open { path, mode: Mode::Read });
            let opened = folders.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let mut syncs = Vec::new();
            for pending in opened {
                match handle(pending) {
                    Ok(handle) => {
                        syncs.push(self.connection.send(&Request::Fsync { handle: &handle })?);
                        self.close(&handle);
                    }
                    Err(failure) if failure.is_lost() => return Err(failure),
                    Err(failure) if failure.is_missing() => {}
                    Err(_) => synced = false,
                }
            }
            for pending in syncs {
                synced &= is_synced(pending)?;
            }
        }
        Ok(synced)
    }

    /// Removes files in these folders, each given with the position of its folder, and syncs the folders, in two round trips.
    /// Returns the result for each file: whether its folder is synced, too.
    pub(super) fn remove_all(
        &self,
        folders: &[String],
        files: &[(String, usize)],
    ) -> Result<Vec<Result<bool, Failure>>, Failure> {
        let open = |folder: &String| self.open_folder(folder);
        let mut opened = folders.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let remove = |(path, _): &(String, usize)| self.connection.send(&Request::Remove { path });
        let pending = files.iter().map(remove).collect::<Result<Vec<_>, _>>()?;
        let removed: Vec<_> = pending.into_iter().map(done).collect();
        for folder in &mut opened {
            folder.wait()?;
        }
        let begun = opened.iter().map(Folder::begin_sync).collect::<Result<Vec<_>, _>>()?;
        let synced: Vec<_> = begun.into_iter().map(|sync| sync.map_or(Ok(false), is_synced)).collect();
        let result = |(removed, (_, folder)): (Result<(), Failure>, &(String, usize))| {
            removed.and_then(|()| synced.get(*folder).cloned().unwrap_or(Ok(false)))
        };
        Ok(removed.into_iter().zip(files).map(result).collect())
    }

    /// Calls `found` with all entries of these folders, without `.` and `..`. Returns for each folder whether it exists.
    pub(super) fn list(&self, folders: &[String], found: &mut dyn FnMut(Found<'_>)) -> Result<Vec<bool>, Failure> {
        let mut exist = vec![true; folders.len()];
        for first in (0..folders.len()).step_by(FOLDERS) {
            let part = first..folders.len().min(first + FOLDERS);
            let open = |path: &String| self.connection.send(&Request::OpenDir { path });
            let paths = folders.get(part.clone()).unwrap_or_default();
            let opened = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let mut open = Vec::new();
            for (at, pending) in part.zip(opened) {
                match handle(pending) {
                    Ok(handle) => open.push((at, handle)),
                    Err(failure) if failure.is_missing() => {
                        if let Some(exists) = exist.get_mut(at) {
                            *exists = false;
                        }
                    }
                    Err(failure) => return Err(failure),
                }
            }
            while !open.is_empty() {
                let read = |handle: &[u8]| self.connection.send(&Request::ReadDir { handle });
                // Most folders end with the second reply.
                let twice = |(_, handle): &(usize, Vec<u8>)| Ok::<_, Failure>([read(handle)?, read(handle)?]);
                let pending = open.iter().map(twice).collect::<Result<Vec<_>, _>>()?;
                let mut left = Vec::new();
                for ((at, handle), pending) in open.into_iter().zip(pending) {
                    let folder = folders.get(at).map(String::as_str).unwrap_or_default();
                    if self.tell_all(at, folder, pending, found)? {
                        self.close(&handle);
                    } else {
                        left.push((at, handle));
                    }
                }
                open = left;
            }
        }
        Ok(exist)
    }

    /// Calls `found` with the entries in replies about a folder. Returns whether they are all.
    fn tell_all(
        &self,
        at: usize,
        folder: &str,
        replies: [Pending<'_>; 2],
        found: &mut dyn FnMut(Found<'_>),
    ) -> Result<bool, Failure> {
        for reply in replies {
            match reply.wait()? {
                Reply::Names(entries) => {
                    for entry in entries {
                        self.tell(at, folder, entry, found)?;
                    }
                }
                Reply::Status(Status::Eof, _) => return Ok(true),
                other => return Err(Failure::unexpected(other)),
            }
        }
        Ok(false)
    }

    /// Calls `found` with an entry of a folder.
    fn tell(&self, at: usize, folder: &str, entry: Entry, found: &mut dyn FnMut(Found<'_>)) -> Result<(), Failure> {
        let Entry { name, mut attributes } = entry;
        // A name that is not UTF-8 belongs to no object.
        let name = name.as_deref().unwrap_or("?");
        // The last two come only from a server that is broken or hostile.
        if matches!(name, "." | ".." | "") || name.contains(['/', '\0']) {
            return Ok(());
        }
        if attributes.mode.is_none() || attributes.size.is_none() {
            attributes = match self.attributes(&format!("{folder}/{name}")) {
                // Removed during the listing.
                Err(failure) if failure.is_missing() => return Ok(()),
                found => found?,
            };
        }
        let kind = attributes.kind().ok_or(Malformed)?;
        found(Found { folder: at, name, kind, length: attributes.size.unwrap_or_default() });
        Ok(())
    }
}

/// A file that is being opened.
#[derive(Debug)]
pub(super) struct Opening<'c>(Pending<'c>);

impl Opening<'_> {
    /// Waits until the file is open, to be written.
    pub(super) fn wait(self) -> Result<NewFile, Failure> {
        handle(self.0).map(NewFile)
    }
}

/// A file that is open, to be written.
#[derive(Debug)]
pub(super) struct NewFile(Vec<u8>);

/// Folders that are being made, each in the one before.
#[derive(Debug)]
pub(super) struct NewFolders<'c> {
    above: Vec<Folder<'c>>,
    made: Vec<Pending<'c>>,
}

impl<'c> NewFolders<'c> {
    /// Waits for the server. Returns the folders to be synced, so that the new names are durable, and whether the last folder
    /// was made: if not, it may exist.
    pub(super) fn wait(self) -> Result<(Vec<Folder<'c>>, Result<(), Failure>), Failure> {
        let NewFolders { mut above, made } = self;
        let mut last = Ok(());
        for pending in made {
            last = done(pending);
            if let Err(failure) = &last
                && failure.is_lost()
            {
                return Err(failure.clone());
            }
        }
        for folder in &mut above {
            folder.wait()?;
        }
        Ok((above, last))
    }
}

/// A folder to be synced. Closed on drop.
#[derive(Debug)]
pub(super) struct Folder<'c> {
    session: &'c Session,
    /// The request to open it, until its answer is there.
    opening: Option<Pending<'c>>,
    /// `None` if it cannot be synced.
    handle: Option<Vec<u8>>,
}

impl Folder<'_> {
    /// Waits until it is open, so that it can be synced. Returns false if it is missing.
    pub(super) fn wait(&mut self) -> Result<bool, Failure> {
        match self.opening.take().map(handle) {
            Some(Ok(handle)) => self.handle = Some(handle),
            Some(Err(failure)) if failure.is_lost() => return Err(failure),
            Some(Err(failure)) if failure.is_missing() => return Ok(false),
            Some(Err(_)) | None => {}
        }
        Ok(true)
    }

    /// Syncs it. Returns false if the server cannot.
    pub(super) fn sync(&self) -> Result<bool, Failure> {
        self.begin_sync()?.map_or(Ok(false), is_synced)
    }

    pub(super) fn begin_sync(&self) -> Result<Option<Pending<'_>>, Failure> {
        let begin = |handle| self.session.connection.send(&Request::Fsync { handle });
        self.handle.as_deref().map(begin).transpose()
    }
}

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        // Best effort: the server closes everything with the connection.
        let _ = self.wait();
        if let Some(handle) = &self.handle {
            self.session.close(handle);
        }
    }
}

/// A request for attributes under way.
#[derive(Debug)]
pub(super) struct Look<'c>(Pending<'c>);

impl Look<'_> {
    /// The attributes.
    pub(super) fn wait(self) -> Result<Attributes, Failure> {
        attributes(self.0)
    }
}

/// Why a file could not be written.
#[derive(Debug)]
pub(super) enum WriteError {
    Failed(Failure),
    /// The temporary file on this machine cannot be read.
    Spool(std::io::Error),
    /// The server has fewer or more bytes than were sent.
    Short {
        stored: u64,
    },
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        WriteError::Failed(failure)
    }
}

/// Whether a folder was synced. A file system that cannot sync folders is not a failure; a broken disk is.
pub(super) fn is_synced(pending: Pending<'_>) -> Result<bool, Failure> {
    match done(pending) {
        Ok(()) => Ok(true),
        Err(Failure::Status(Status::Unsupported | Status::Other(_), _)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

fn done(pending: Pending<'_>) -> Result<(), Failure> {
    match pending.wait()? {
        Reply::Status(Status::Ok, _) => Ok(()),
        other => Err(Failure::unexpected(other)),
    }
}

fn handle(pending: Pending<'_>) -> Result<Vec<u8>, Failure> {
    match pending.wait()? {
        Reply::Handle(handle) => Ok(handle),
        other => Err(Failure::unexpected(other)),
    }
}

fn attributes(pending: Pending<'_>) -> Result<Attributes, Failure> {
    match pending.wait()? {
        Reply::Attributes(attributes) => Ok(attributes),
        other => Err(Failure::unexpected(other)),
    }
}
