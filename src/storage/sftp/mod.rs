//! Stores objects as files in a directory on an SFTP server.
//!
//! Connections are made by the ssh program, so its configuration, keys, agent, jump hosts and known hosts all apply; this
//! module speaks SFTP over ssh's pipes.
//!
//! An object is written to a temporary file `.tmp-<run>-<uuid>` in its own folder, synced, and hard-linked to its name,
//! which fails if the name is taken. Then the folder is synced and the temporary name removed. So nothing partial ever has
//! an object's name. A killed run or a broken connection leaves only temporary files, which listings skip.
//!
//! Fallbacks for servers that lack some of this:
//! - no hard links: the temporary is renamed after a check that the name is free
//! - no `fsync@openssh.com`: the server decides when objects become durable
//!
//! From the wire up:
//!
//! - [`address`]: where the directory is
//! - [`wire`]: messages; [`failure`]: why a request failed
//! - [`ssh`]: starts ssh and interprets its messages
//! - [`connection`]: requests and replies over one ssh process
//! - [`session`]: operations on files over one connection
//! - [`pool`]: several connections
//! - [`store`]: storing an object

mod address;
mod connection;
mod failure;
mod pool;
mod session;
mod ssh;
mod store;
mod wire;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

pub use address::Address;
use failure::Failure;
use pool::{Lease, Pool};
use session::Session;
use ssh::Ssh;
use wire::{Attributes, FileKind, Mode, Request, Status};

use super::contract::{Capabilities, Ended, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::layout::{DEPTH, LOST_AND_FOUND, MOST, TEMPORARY, folder_of, is_beyond_files, temporary_beside, writer_of};
use super::remote::Remote;
use super::spool::{Spool, Spools};

/// Objects whose removal is under way at the same time. Servers allow at least as many open folders.
const REMOVALS: usize = 64;

/// If a write fails, the disk counts as full if it has less space than for the object and these bytes.
const MARGIN: u64 = 1 << 20;

/// Further connections are opened for reads of at least this many bytes.
const LARGE_READ: usize = 512 << 10;

/// An object of at most this many bytes shares a connection: a new one takes longer.
const SHORT: u64 = 256 << 10;

/// A target that is a directory on an SFTP server.
#[derive(Debug)]
pub struct SftpStorage {
    pool: Arc<Pool>,
    address: Address,
    spools: Spools,
    /// The directory had an entry, so it cannot be empty unless its disk was unmounted.
    seen: AtomicBool,
    /// A hard link was made, so a link that fails is not an unsupported one.
    links: AtomicBool,
    /// The server or its file system lacked hard links.
    unlinked: AtomicBool,
    /// The server could not sync files.
    unsynced: AtomicBool,
    /// The server could not sync folders.
    folders_unsynced: AtomicBool,
    /// Temporary files that stayed when a connection broke.
    left: Mutex<Vec<String>>,
    /// After `create`: whether it made the directory.
    making: Option<bool>,
}

impl SftpStorage {
    /// Opens the target in a directory on a server. A missing directory is [`ErrorKind::NotFound`].
    pub fn open(address: &Address, remote: &Remote) -> Result<Self, Error> {
        let storage = SftpStorage::new(address, remote);
        let failed = |failure: Failure| failure.into_error("open", &shown(address));
        let session = storage.pool.take().map_err(failed)?;
        if session.began_at_directory().map_err(failed)? {
            return Ok(storage);
        }
        Err(Error::new(ErrorKind::NotFound, "open", &shown(address), "it is not a directory"))
    }

    fn new(address: &Address, remote: &Remote) -> Self {
        SftpStorage {
            pool: Arc::new(Pool::new(Ssh::new(remote.ssh.clone(), address.clone()), remote)),
            address: address.clone(),
            spools: remote.spools(),
            seen: AtomicBool::default(),
            links: AtomicBool::default(),
            unlinked: AtomicBool::default(),
            unsynced: AtomicBool::default(),
            folders_unsynced: AtomicBool::default(),
            left: Mutex::default(),
            making: None,
        }
    }

    /// Creates the directory, or uses an existing one that holds only leftovers of an interrupted `create`.
    pub(super) fn create(
        address: &Address,
        remote: &Remote,
        is_leftover: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut storage = SftpStorage::new(address, remote);
        let path = &address.path;
        let failed = |failure: Failure| failure.into_error("create", &shown(address));
        let taken = |why| Error::new(ErrorKind::AlreadyExists, "create", &shown(address), why);
        {
            let session = storage.pool.take().map_err(failed)?;
            let new = match session.act(&Request::MkDir { path }) {
                Ok(()) => true,
                Err(failure) if failure.is_lost() => return Err(failed(failure)),
                // Version 3 has no code for a name that is taken.
                Err(failure) => match session.attributes_behind(path) {
                    Ok(found) if found.kind() == Some(FileKind::Directory) => false,
                    Ok(_) => return Err(taken("it is not a directory")),
                    Err(_) => return Err(storage.explain_write(&session, failure, "create", &shown(address), 0)),
                },
            };
            if !storage.clear(&session, is_leftover).map_err(failed)? {
                return Err(taken("the directory is not empty"));
            }
            // Needed for an existing directory as well: its creator may not have synced the parent.
            let above = path.rsplit_once('/').map_or(".", |(above, _)| above);
            let above = if above.is_empty() { "/" } else { above };
            storage.sync_folders(&session, &[above.to_owned()]).map_err(failed)?;
            storage.making = Some(new);
        }
        Ok(storage)
    }

    fn path(&self, name: &str) -> String {
        self.address.path_of(name)
    }

    /// A connection for an operation that transfers much.
    fn take(&self, action: &'static str, object: &str) -> Result<Lease, Error> {
        self.pool.take().map_err(|failure| failure.into_error(action, object))
    }

    /// A connection for a short operation.
    fn share(&self, action: &'static str, object: &str) -> Result<Lease, Error> {
        self.pool.share().map_err(|failure| failure.into_error(action, object))
    }

    /// The error of a failed operation on an object.
    fn explain(&self, session: &Session, failure: Failure, action: &'static str, object: &str) -> Error {
        // A server that is being stopped ends what it does with an error, and then the connection.
        if let Failure::Status(Status::Failure, _) = &failure
            && let Err(lost @ Failure::Lost(..)) = session.attributes_behind(&self.address.path)
        {
            return lost.into_error(action, object);
        }
        // If the server's disk is not mounted, that says nothing about the object.
        let is_away = failure.is_missing() && !self.is_there(session);
        let error = failure.into_error(action, object);
        if is_away { error.unavailable() } else { error }
    }

    /// The same for an operation that stores up to `length` bytes.
    fn explain_write(
        &self,
        session: &Session,
        failure: Failure,
        action: &'static str,
        object: &str,
        length: u64,
    ) -> Error {
        let Failure::Status(Status::Failure | Status::Other(_), _) = &failure else {
            return self.explain(session, failure, action, object);
        };
        // Version 3 has one code for all errors of a file system.
        let Some(system) = session.file_system(&self.address.path) else {
            return self.explain(session, failure, action, object);
        };
        if system.read_only {
            let why = "the server's file system is read-only; remount that writable and run again";
            return Error::new(ErrorKind::PermissionDenied, action, object, why);
        }
        if system.available < length.saturating_add(MARGIN) || !system.has_inodes {
            let why = "the server's disk is full; free some space and run again, no stored data is lost";
            return Error::new(ErrorKind::Full, action, object, why);
        }
        self.explain(session, failure, action, object)
    }

    /// Whether the directory can be listed, and is not the empty mount point of an unplugged disk.
    fn is_there(&self, session: &Session) -> bool {
        let mut is_empty = true;
        let listed = session.list(std::slice::from_ref(&self.address.path), &mut |_| is_empty = false);
        let is_listed = listed.is_ok_and(|exist| exist == [true]);
        is_listed && !(is_empty && self.seen.load(Ordering::Relaxed))
    }

    /// Notes that the directory has an entry.
    fn note_seen(&self) {
        if !self.seen.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    /// Attributes of an object, which must be a file. Returns its length, too.
    fn object(&self, name: &str) -> Result<(u64, Attributes), Error> {
        let session = self.share("read", name)?;
        let found = session.attributes(&self.path(name));
        let found = found.map_err(|failure| self.explain(&session, failure, "read", name))?;
        Ok((self.length_of(name, &found)?, found))
    }

    /// The length of an object, which must be a file.
    fn length_of(&self, name: &str, found: &Attributes) -> Result<u64, Error> {
        match (found.kind(), found.size) {
            (Some(FileKind::File) | None, Some(size)) => {
                self.note_seen();
                Ok(size)
            }
            (Some(FileKind::File) | None, None) => {
                Err(Error::new(ErrorKind::Other, "read", name, "the server does not tell its size"))
            }
            _ => Err(Error::new(ErrorKind::NotAFile, "read", name, "it is not a file")),
        }
    }

    /// Syncs folders, if the server can.
    fn sync_folders(&self, session: &Session, folders: &[String]) -> Result<(), Failure> {
        self.note_sync(session.sync_folders(folders)?);
        Ok(())
    }

    /// Notes whether the server could sync a folder.
    fn note_sync(&self, is_synced: bool) {
        if !is_synced {
            self.folders_unsynced.store(true, Ordering::Relaxed);
        }
    }

    /// Removes objects with all requests under way at the same time.
    fn remove_some(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        let shown = names.first().copied().unwrap_or_default();
        let (mut folders, mut files) = (Vec::new(), Vec::new());
        for name in names {
            let (path, folder) = (self.path(name), self.path(folder_of(name)));
            self.pool.forget(&path);
            let at = folders.iter().position(|known| *known == folder).unwrap_or(folders.len());
            if at == folders.len() {
                folders.push(folder);
            }
            files.push((path, at));
        }
        let session = self.take("remove", shown)?;
        let removed = session.remove_all(&folders, &files);
        let removed = removed.map_err(|failure| self.explain(&session, failure, "remove", shown))?;
        for ((at, name), removed) in names.iter().enumerate().zip(removed) {
            let removed = removed.map_err(|failure| self.explain(&session, failure, "remove", name));
            match removed.map(|is_synced| self.note_sync(is_synced)) {
                Err(error) if error.is_away() => return Err(error),
                removed => ended(at, removed),
            }
        }
        Ok(())
    }

    /// Calls `visit` with the entries of the folders (`packs/`), and of folders in them, at most `depth` levels down. The
    /// arguments are the entry's folder, its name, its kind and its length. Returns all folders, and whether each exists.
    fn walk(
        &self,
        session: &Session,
        folders: &[&str],
        depth: usize,
        visit: &mut dyn FnMut(&str, &str, FileKind, u64),
    ) -> Result<Vec<(String, bool)>, Failure> {
        let mut folders: Vec<String> = folders.iter().map(|&folder| folder.to_owned()).collect();
        let mut all = Vec::new();
        for level in 0..=depth {
            let paths: Vec<_> = folders.iter().map(|folder| self.path(folder)).collect();
            let (mut below, mut too_many) = (Vec::new(), false);
            let exist = session.list(&paths, &mut |found| {
                let folder = folders.get(found.folder).map(String::as_str).unwrap_or_default();
                if folder.is_empty() && found.name == LOST_AND_FOUND {
                    return;
                }
                if found.kind == FileKind::Directory && level < depth {
                    too_many |= below.len() == MOST;
                    if !too_many {
                        below.push(format!("{folder}{}/", found.name));
                    }
                }
                visit(folder, found.name, found.kind, found.length);
            })?;
            if too_many {
                return Err(Failure::Status(Status::Failure, "there are too many folders".to_owned()));
            }
            all.extend(folders.into_iter().zip(exist));
            folders = below;
        }
        Ok(all)
    }

    /// Removes all temporary files, all objects and folders that `may_go` accepts. `lost+found` does not count. If there is
    /// anything else, removes nothing and returns false.
    fn clear(&self, session: &Session, may_go: &dyn Fn(&str) -> bool) -> Result<bool, Failure> {
        let (mut files, mut folders, mut may_all_go) = (Vec::new(), Vec::new(), true);
        self.walk(session, &[""], 1, &mut |folder, name, kind, _| {
            let object = format!("{folder}{name}");
            match kind {
                _ if !may_all_go || files.len() == MOST => may_all_go = false,
                FileKind::File if writer_of(name).is_some() || may_go(&object) => files.push(object),
                FileKind::Directory if folder.is_empty() && may_go(&format!("{object}/")) => folders.push(object),
                _ => may_all_go = false,
            }
        })?;
        if !may_all_go {
            return Ok(false);
        }
        for file in &files {
            session.act(&Request::Remove { path: &self.path(file) })?;
        }
        for folder in &folders {
            session.act(&Request::RmDir { path: &self.path(folder) })?;
        }
        Ok(true)
    }
}

/// The directory and its server in errors.
fn shown(address: &Address) -> String {
    format!("{} on {}", address.path, address.host)
}

impl Storage for SftpStorage {
    fn capabilities(&self) -> Capabilities {
        let known = [
            (
                &self.unlinked,
                "the server does not support hard links, so brackfs checks that a name is free before it stores an object",
            ),
            (
                &self.unsynced,
                "the server does not sync files, so a crash of the server may lose the newest backup; older backups are \
                 safe",
            ),
            (
                &self.folders_unsynced,
                "the server does not sync directories, so a crash of the server may lose the newest backup; older \
                 backups are safe",
            ),
        ];
        let mut lacking: Vec<_> =
            known.iter().filter(|(lacks, _)| lacks.load(Ordering::Relaxed)).map(|(_, words)| *words).collect();
        // The one about files includes it.
        if self.unsynced.load(Ordering::Relaxed) {
            lacking.retain(|words| *words != known[2].1);
        }
        // While the server syncs and names some objects, the bytes of others fill the connections.
        let lanes = self.pool.most() + self.pool.most().div_ceil(2);
        Capabilities { lanes, shortcomings: lacking, ..Capabilities::default() }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.spools.open(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let is_short = spool.length() <= SHORT;
        let session = if is_short { self.share("store", spool.object())? } else { self.take("store", spool.object())? };
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        left.into_iter().for_each(|temporary| self.remove_temporary(&session, temporary));
        let name = spool.object();
        let temporary = self.path(&temporary_beside(name, spool.run()));
        let stored = self.store_over(&session, spool, &temporary);
        match &stored {
            Ok(()) => self.note_seen(),
            Err(_) => self.remove_temporary(&session, temporary),
        }
        stored
    }

    /// Reads share connections, since a further login takes longer. At most 2 MiB are under way in one ssh connection, so others
    /// are opened in the background for large reads.
    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        if is_beyond_files(offset, length) {
            return Err(Error::truncated(name));
        }
        let session = match length {
            LARGE_READ.. => self.pool.share_and_grow().map_err(|failure| failure.into_error("read", name))?,
            _ => self.share("read", name)?,
        };
        match session.read(&self.path(name), offset, length, bytes) {
            Ok(()) => {
                self.note_seen();
                Ok(())
            }
            Err(Failure::Status(Status::Eof, _)) => Err(Error::truncated(name)),
            Err(failure) => Err(self.explain(&session, failure, "read", name)),
        }
    }

    fn widen(&self) {
        self.pool.widen();
    }

    /// Asks for the length and opens the file at the same time: most such objects are small, and round trips take the time.
    fn get(&self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let (session, path) = (self.share("read", name)?, self.path(name));
        let failed = |failure| self.explain(&session, failure, "read", name);
        let look = session.look(&path).map_err(failed)?;
        let opening = session.begin(&path, Mode::Read).map_err(failed)?;
        let found = look.wait().map_err(failed).and_then(|found| self.length_of(name, &found));
        let length = found.and_then(|length| match usize::try_from(length) {
            Ok(length) if length <= limit => Ok(length),
            _ => Err(Error::too_large(name, length, limit)),
        });
        match length {
            Ok(length) => session.read_whole(opening, length).map_err(|failure| match failure {
                Failure::Status(Status::Eof, _) => Error::truncated(name),
                failure => failed(failure),
            }),
            Err(error) => {
                session.close_opening(opening);
                Err(error)
            }
        }
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        Ok(self.object(name)?.0)
    }

    /// The time has a resolution of a second, so two replacements within one second may have the same stamp.
    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let (length, found) = self.object(name)?;
        Ok(Stamp::new(length, [found.modified.unwrap_or_default().into(), 0, 0]))
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        let shown = if prefix.is_empty() { "the repository" } else { prefix };
        let session = self.share("list", shown)?;
        let depth = if prefix.is_empty() { DEPTH + 1 } else { DEPTH };
        let walked = self.walk(&session, &[prefix], depth, &mut |folder, name, kind, length| {
            self.note_seen();
            if kind == FileKind::File && !name.starts_with(TEMPORARY) {
                found(ObjectInfo { name: format!("{folder}{name}"), length });
            }
        });
        let folders = walked.map_err(|failure| self.explain(&session, failure, "list", shown))?;
        // A missing folder has no objects, but one of a disk that went missing may have.
        if folders.iter().any(|(_, exists)| !exists) && !self.is_there(&session) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "list",
                shown,
                "the repository's directory is empty or missing",
            ));
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        self.pool.forget(&path);
        let session = self.take("remove", name)?;
        let failed = |failure| self.explain(&session, failure, "remove", name);
        let folder = self.path(folder_of(name));
        let mut folder = session.open_folder(&folder).map_err(failed)?;
        session.act(&Request::Remove { path: &path }).map_err(failed)?;
        folder.wait().map_err(failed)?;
        self.note_sync(folder.sync().map_err(failed)?);
        Ok(())
    }

    fn remove_all(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        for first in (0..names.len()).step_by(REMOVALS) {
            let part = names.get(first..names.len().min(first + REMOVALS)).unwrap_or_default();
            self.remove_some(part, &mut |at, result| ended(first + at, result))?;
        }
        Ok(())
    }

    /// A killed writer may have linked objects without syncing their folders.
    fn settle(&self, prefixes: &[&str]) -> Result<(), Error> {
        let session = self.take("sync", &self.address.path)?;
        let failed = |failure| self.explain(&session, failure, "sync", &self.address.path);
        let mut folders = vec![self.address.path.clone()];
        let listed = self.walk(&session, prefixes, DEPTH, &mut |_, _, _, _| ()).map_err(failed)?;
        folders.extend(listed.iter().filter(|(_, exists)| *exists).map(|(folder, _)| self.path(folder)));
        self.sync_folders(&session, &folders).map_err(failed)
    }

    /// The remains are temporary files.
    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        const ACTION: &str = "remove temporary files in";
        let session = self.take(ACTION, &self.address.path)?;
        let failed = |failure| self.explain(&session, failure, ACTION, &self.address.path);
        let mut temporaries = Vec::new();
        self.walk(&session, prefixes, DEPTH, &mut |folder, name, _, _| {
            if temporaries.len() < MOST && writer_of(name).is_some_and(|run| runs.contains(&run)) {
                temporaries.push((folder.to_owned(), name.to_owned()));
            }
        })
        .map_err(failed)?;
        let mut folders = Vec::new();
        for (folder, name) in &temporaries {
            match session.act(&Request::Remove { path: &self.path(&format!("{folder}{name}")) }) {
                Err(failure) if failure.is_missing() => {}
                removed => removed.map_err(failed)?,
            }
            folders.push(self.path(folder));
        }
        folders.dedup();
        // After a crash of the server they would reappear, and later runs would not look for them.
        self.sync_folders(&session, &folders).map_err(failed)?;
        Ok(temporaries.len() as u64)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        let Some(new) = self.making else { return false };
        let Ok(session) = self.pool.take() else { return false };
        let cleared = self.clear(&session, is_ours).unwrap_or_default();
        if cleared && new {
            // Best effort: an empty directory does no harm.
            let _ = session.act(&Request::RmDir { path: &self.address.path });
        }
        cleared
    }
}
