//! Stores objects as files in a folder of a WebDAV server.
//!
//! An object is sent to a temporary file `.tmp-<run>-<uuid>` in its own folder. The server is asked for the length of the
//! file, which is then renamed to the object's name with the condition that the name is free. So nothing partial ever has an
//! object's name. A killed run or a broken connection leaves only temporary files, which listings skip.
//!
//! Servers check the condition, and then rename: of two writers that rename at the same moment, both may succeed. Nothing
//! depends on it: names of objects contain random ids or the id of the run that writes.
//!
//! - [`address`]: where the folder is
//! - [`login`]: logs in; [`requests`]: makes requests; [`multistatus`]: listings in answers
//! - [`failure`]: why a request failed

mod address;
mod failure;
mod login;
mod multistatus;
mod requests;

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, PoisonError};
use std::thread;

use uuid::Uuid;

pub use address::Address;
use failure::Failure;
use multistatus::Entry;
use requests::{Depth, Server};

use super::contract::{Capabilities, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::http::version;
use super::layout::{DEPTH, LOST_AND_FOUND, MOST, TEMPORARY, temporary_beside, writer_of};
use super::netrc::Login;
use super::parts::{JOINED, Parts};
use super::remote::Remote;
use super::spool::{Spool, Spools};
use super::xml::Malformed;

/// Entries of a listing that wait to be processed.
const QUEUE: usize = 1000;

/// A target that is a folder on a WebDAV server.
#[derive(Debug)]
pub struct WebdavStorage {
    server: Server,
    address: Address,
    spools: Spools,
    /// The folder had an entry, so it cannot be empty unless its disk was unmounted.
    seen: AtomicBool,
    /// Temporary files that stayed when a connection broke.
    left: Mutex<Vec<String>>,
    /// After `create`: whether it made the folder.
    making: Option<bool>,
}

/// A file or a folder in a listing.
#[derive(Debug)]
struct Found {
    /// The index of the folder among those that are listed.
    folder: usize,
    name: String,
    is_folder: bool,
    length: Option<u64>,
}

impl WebdavStorage {
    /// Opens the target in a folder on a server. A missing folder is [`ErrorKind::NotFound`].
    pub fn open(address: &Address, remote: &Remote) -> Result<Self, Error> {
        let storage = WebdavStorage::new(address, remote, "open")?;
        match storage.look("") {
            // It is there, and will be waited for.
            Err(failure) if failure.kind == ErrorKind::Throttled => Ok(storage),
            Err(failure) => Err(failure.into_error("open", &shown(address))),
            Ok(found) if found.is_folder => Ok(storage),
            Ok(_) => Err(Error::new(ErrorKind::NotFound, "open", &shown(address), "it is not a folder")),
        }
    }

    fn new(address: &Address, remote: &Remote, action: &'static str) -> Result<Self, Error> {
        let variable = |name: &str| std::env::var(name).ok();
        let login = Login::find(remote, "WEBDAV", &address.host, address.user.as_deref(), &variable);
        let login = login.map_err(|why| Error::new(ErrorKind::Refused, action, &shown(address), why))?;
        let server = Server::new(address, login, remote);
        Ok(WebdavStorage {
            server: server.map_err(|failure| failure.into_error(action, &shown(address)))?,
            address: address.clone(),
            spools: remote.spools(),
            seen: AtomicBool::default(),
            left: Mutex::default(),
            making: None,
        })
    }

    /// Makes the folder, or uses an existing one that holds only leftovers of an interrupted `create`.
    pub(super) fn create(
        address: &Address,
        remote: &Remote,
        is_leftover: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut storage = WebdavStorage::new(address, remote, "create")?;
        let failed = |failure: Failure| failure.into_error("create", &shown(address));
        let taken = |why| Error::new(ErrorKind::AlreadyExists, "create", &shown(address), why);
        let is_new = match storage.server.make_folder(&storage.path("")) {
            Ok(()) => true,
            Err(failure) if failure.status.is_none() || failure.kind.is_temporary() => return Err(failed(failure)),
            // Servers refuse to make an existing folder with different statuses.
            Err(failure) => match storage.look("") {
                Ok(found) if found.is_folder => false,
                Ok(_) => return Err(taken("it is not a folder")),
                Err(missing) if missing.kind == ErrorKind::NotFound && failure.kind == ErrorKind::NotFound => {
                    let why = "the folder above it does not exist on the server; create that, or correct the location";
                    return Err(failed(Failure { why: why.to_owned(), ..failure }));
                }
                Err(lost) if lost.kind.is_away() => return Err(failed(lost)),
                Err(_) => return Err(failed(failure)),
            },
        };
        if !storage.clear(is_leftover).map_err(failed)? {
            return Err(taken("the folder is not empty"));
        }
        storage.making = Some(is_new);
        Ok(storage)
    }

    fn path(&self, name: &str) -> String {
        self.address.path_of(name)
    }

    /// The error of a failed operation on an object.
    fn explain(&self, failure: Failure, action: &'static str, object: &str) -> Error {
        // If the server's disk is not mounted, that says nothing about the object.
        let is_away = failure.kind == ErrorKind::NotFound && !self.is_there();
        let error = failure.into_error(action, object);
        if is_away { error.unavailable() } else { error }
    }

    /// The same for an operation that stores the object.
    fn explain_store(&self, failure: Failure, object: &str) -> Error {
        match failure.kind {
            ErrorKind::NotFound if self.is_there() => {
                Failure { kind: ErrorKind::Other, ..failure }.into_error("store", object)
            }
            ErrorKind::NotFound => failure.into_error("store", object).unavailable(),
            _ => failure.into_error("store", object),
        }
    }

    /// Whether the folder can be listed, and is not the empty mount point of an unplugged disk.
    fn is_there(&self) -> bool {
        let mut is_empty = true;
        let listed = self.list("", &mut |_| is_empty = false);
        listed.is_ok_and(|exists| exists) && !(is_empty && self.seen.load(Ordering::Relaxed))
    }

    /// Notes that the folder has an entry.
    fn note_seen(&self) {
        if !self.seen.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    /// Looks at an object or a folder.
    fn look(&self, name: &str) -> Result<Entry, Failure> {
        let (path, mut found) = (self.path(name), None);
        self.server.list(&path, Depth::Itself, &mut |entry| {
            if entry.path != path.trim_end_matches('/') {
                return Err(Malformed);
            }
            found = Some(entry);
            Ok(())
        })?;
        match found {
            None => Err(Failure::new(ErrorKind::Other, "the server sent an empty list")),
            Some(found) if found.is_missing => Err(Failure::new(ErrorKind::NotFound, "the server has no such file")),
            Some(found) => Ok(found),
        }
    }

    /// Looks at an object, which must be a file. Returns its length, too.
    fn object(&self, name: &str) -> Result<(u64, Entry), Error> {
        let found = self.look(name).map_err(|failure| self.explain(failure, "read", name))?;
        if found.is_folder {
            return Err(Error::new(ErrorKind::NotAFile, "read", name, "it is not a file"));
        }
        let length = found.length;
        let length =
            length.ok_or_else(|| Error::new(ErrorKind::Other, "read", name, "the server does not tell its size"))?;
        self.note_seen();
        Ok((length, found))
    }

    /// Calls `visit` with the entries of a folder (`packs/`). Returns false if the folder does not exist.
    fn list(&self, folder: &str, visit: &mut dyn FnMut(Entry)) -> Result<bool, Failure> {
        let path = self.path(folder);
        let own = path.trim_end_matches('/');
        let (mut is_folder, mut is_missing, mut is_first) = (true, false, true);
        let listed = self.server.list(&path, Depth::Children, &mut |entry| {
            is_first = false;
            if entry.path == own {
                (is_folder, is_missing) = (entry.is_folder, entry.is_missing);
            }
            if entry.path == own || entry.is_missing {
                return Ok(());
            }
            let name = entry.path.strip_prefix(own).and_then(|rest| rest.strip_prefix('/'));
            let name = name.filter(|name| !name.contains('/') && !matches!(*name, "" | "." | ".."));
            let path = name.ok_or(Malformed)?.to_owned();
            visit(Entry { path, ..entry });
            Ok(())
        });
        match listed {
            Err(failure) if failure.kind == ErrorKind::NotFound => Ok(false),
            Err(failure) => Err(failure),
            Ok(()) if is_missing => Ok(false),
            Ok(()) if !is_folder => Err(Failure::new(ErrorKind::NotAFile, "it is not a folder")),
            Ok(()) if is_first => Err(Failure::new(ErrorKind::Other, "the server sent an empty list")),
            Ok(()) => Ok(true),
        }
    }

    /// Lists folders, several at the same time. Returns which of them exist.
    fn list_all(&self, folders: &[String], visit: &mut dyn FnMut(Found)) -> Result<Vec<bool>, Failure> {
        let found = |folder: usize, entry: Entry| Found {
            folder,
            name: entry.path,
            is_folder: entry.is_folder,
            length: entry.length,
        };
        if let [folder] = folders {
            return Ok(vec![self.list(folder, &mut |entry| visit(found(0, entry)))?]);
        }
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut exist = vec![false; folders.len()];
        thread::scope(|threads| {
            let (sender, receiver) = sync_channel(QUEUE);
            let workers: Vec<_> = (0..self.server.lanes().min(folders.len()))
                .map(|_| {
                    let (sender, next, failed) = (sender.clone(), &next, &failed);
                    threads.spawn(move || {
                        let mut exist = Vec::new();
                        while !failed.load(Ordering::Relaxed) {
                            let at = next.fetch_add(1, Ordering::Relaxed);
                            let Some(folder) = folders.get(at) else { break };
                            // The receiver lives as long as the threads.
                            let listed = self.list(folder, &mut |entry| drop(sender.send(found(at, entry))));
                            failed.fetch_or(listed.is_err(), Ordering::Relaxed);
                            exist.push((at, listed?));
                        }
                        Ok::<_, Failure>(exist)
                    })
                })
                .collect();
            drop(sender);
            receiver.iter().for_each(visit);
            for worker in workers {
                let there = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                for (at, exists) in there {
                    if let Some(folder) = exist.get_mut(at) {
                        *folder = exists;
                    }
                }
            }
            Ok(exist)
        })
    }

    /// Calls `visit` with the entries of the folders (`packs/`), and of folders in them, at most `depth` levels down. The
    /// first argument is the entry's folder. Returns whether no folder was missing.
    fn walk(
        &self,
        folders: &[&str],
        depth: usize,
        visit: &mut dyn FnMut(&str, &Found) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let mut folders: Vec<String> = folders.iter().map(|&folder| folder.to_owned()).collect();
        let (mut is_whole, mut result) = (true, Ok(()));
        for level in 0..=depth {
            if folders.is_empty() {
                break;
            }
            let mut below = Vec::new();
            let exist = self.list_all(&folders, &mut |found| {
                let folder = folders.get(found.folder).map(String::as_str).unwrap_or_default();
                if result.is_err() || (folder.is_empty() && found.name == LOST_AND_FOUND) {
                    return;
                }
                if found.is_folder && level < depth {
                    if below.len() == MOST {
                        result = Err(Failure::new(ErrorKind::Other, "there are too many folders"));
                        return;
                    }
                    below.push(format!("{folder}{}/", found.name));
                }
                result = visit(folder, &found);
            })?;
            std::mem::replace(&mut result, Ok(()))?;
            is_whole &= exist.iter().all(|exists| *exists);
            folders = below;
        }
        Ok(is_whole)
    }

    /// Makes the folder of an object, and those above it. The target's own folder must exist.
    fn make_folders(&self, name: &str) -> Result<(), Failure> {
        for (end, _) in name.match_indices('/') {
            let folder = name.get(..=end).unwrap_or_default();
            match self.server.make_folder(&self.path(folder)) {
                Ok(()) => {}
                Err(failure) if failure.status.is_none() => return Err(failure),
                // It exists, or another thread is making it.
                Err(failure) => match self.look(folder) {
                    Ok(found) if found.is_folder => {}
                    Err(lost) if lost.kind.is_away() => return Err(lost),
                    _ => return Err(failure),
                },
            }
        }
        Ok(())
    }

    /// Whether the folder of an object is missing, which nginx reports like errors of its own.
    fn lacks_folder(&self, name: &str, failure: &Failure) -> bool {
        let Some((folder, _)) = name.rsplit_once('/') else { return false };
        failure.status == Some(500)
            && self.look(&format!("{folder}/")).is_err_and(|missing| missing.kind == ErrorKind::NotFound)
    }

    /// Writes a spool to a new temporary file.
    fn upload(&self, spool: &Spool, temporary: &str) -> Result<(), Error> {
        let name = spool.object();
        let path = self.path(temporary);
        let stored = match self.server.put(&path, spool) {
            Err(failure) if failure.kind == ErrorKind::NotFound || self.lacks_folder(name, &failure) => {
                self.make_folders(name).and_then(|()| self.server.put(&path, spool))
            }
            stored => stored,
        };
        stored.map_err(|failure| self.explain_store(failure, name))?;
        let found = self.look(temporary).map_err(|failure| self.explain_store(failure, name))?;
        if found.length == Some(spool.length()) {
            return Ok(());
        }
        let stored = found.length.map_or("an unknown number".to_owned(), |length| length.to_string());
        let why = format!("the server has {stored} of {} bytes; run again", spool.length());
        Err(Error::new(ErrorKind::Other, "store", name, why))
    }

    /// Gives a temporary file the name of its object.
    fn publish(&self, spool: &Spool, temporary: &str) -> Result<(), Error> {
        let name = spool.object();
        let failure = match self.server.rename(&self.path(temporary), &self.path(name)) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        // The answer was lost, and perhaps the request was not. Only this run knows a random name.
        if failure.kind.is_temporary()
            && self.look(name).is_ok_and(|found| !found.is_folder && found.length == Some(spool.length()))
        {
            return Ok(());
        }
        Err(self.explain_store(failure, name))
    }

    /// Removes a temporary file that is not needed, now or with the next object.
    fn remove_temporary(&self, temporary: String) {
        let removed = self.server.delete(&self.path(&temporary));
        if removed.is_err_and(|failure| failure.kind.is_temporary()) {
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            if left.len() < MOST {
                left.push(temporary);
            }
        }
    }

    /// Removes a folder if it is empty: the request would also remove its content.
    fn remove_folder(&self, folder: &str) -> Result<bool, Failure> {
        let mut is_empty = true;
        let exists = self.list(folder, &mut |_| is_empty = false)?;
        if exists && is_empty {
            self.server.delete(&self.path(folder))?;
        }
        Ok(is_empty)
    }

    /// Removes all temporary files, all objects and folders that `may_go` accepts. `lost+found` does not count. If there is
    /// anything else, removes nothing and returns false.
    fn clear(&self, may_go: &dyn Fn(&str) -> bool) -> Result<bool, Failure> {
        let (mut files, mut folders, mut may_all_go) = (Vec::new(), Vec::new(), true);
        self.walk(&[""], 1, &mut |folder, found| {
            let object = format!("{folder}{}", found.name);
            match found.is_folder {
                _ if !may_all_go || files.len() == MOST => may_all_go = false,
                false if writer_of(&found.name).is_some() || may_go(&object) => files.push(object),
                true if folder.is_empty() && may_go(&format!("{object}/")) => folders.push(object),
                _ => may_all_go = false,
            }
            Ok(())
        })?;
        if !may_all_go {
            return Ok(false);
        }
        files.iter().try_for_each(|file| self.server.delete(&self.path(file)))?;
        for folder in &folders {
            may_all_go &= self.remove_folder(&format!("{folder}/"))?;
        }
        Ok(may_all_go)
    }

    fn read_range(&self, name: &str, mut parts: Parts<'_>) -> Result<(), Failure> {
        let short = || Failure::new(ErrorKind::Truncated, "it is shorter than expected");
        let range = parts.end().and_then(|_| parts.range()).ok_or_else(short)?;
        let mut answer = self.server.get(&self.path(name), Some(&range))?;
        if answer.status == 206 || answer.length_of_whole(parts.offset).is_some() {
            return Ok(answer.read_range(parts)?);
        }
        // The server sends all of it.
        if answer.length().is_some_and(|whole| parts.end().is_none_or(|end| whole < end)) {
            return Err(short());
        }
        let skipped = io::copy(&mut answer.body().take(parts.offset), &mut io::sink());
        if let Err(error) = skipped {
            return Err(answer.lost(error).into());
        }
        let read = parts.read_from(answer.body());
        match read.map_err(|error| answer.lost(error))? {
            true => Ok(()),
            // Without a length, the end of the connection may be that of the file.
            false => Err(Failure::new(ErrorKind::Unavailable, "the server did not send the whole range")),
        }
    }

    /// Reads a whole object. `Err` with a length: it is larger than `limit`.
    fn read_all(&self, name: &str, limit: usize) -> Result<Result<Vec<u8>, u64>, Failure> {
        let mut answer = self.server.get(&self.path(name), None)?;
        let (length, read) = (answer.length(), answer.read_whole(limit)?);
        drop(answer);
        // Without a length, the end of the connection may be that of the file.
        if let (None, Ok(bytes)) = (length, &read)
            && self.look(name)?.length != Some(bytes.len() as u64)
        {
            return Err(Failure::new(ErrorKind::Unavailable, "the server did not send the whole object"));
        }
        Ok(read)
    }
}

/// The location in errors.
fn shown(address: &Address) -> String {
    let scheme = if address.tls { "webdavs" } else { "webdav" };
    let server = address.server();
    let place = server.split_once("://").map_or(server.as_str(), |(_, place)| place);
    format!("{scheme}://{place}{}", address.path)
}

impl Storage for WebdavStorage {
    fn capabilities(&self) -> Capabilities {
        let exposed = "other users can read the file with the password; run chmod go= on it";
        let open = "the connection is not encrypted, so others on the network can see and change the stored objects; use webdavs://";
        let is_open = !self.address.tls && !self.address.is_loopback();
        let known = [(self.server.is_exposed(), exposed), (is_open, open)];
        Capabilities {
            lanes: self.server.lanes(),
            joined: JOINED,
            shortcomings: known.iter().filter(|(is_so, _)| *is_so).map(|(_, words)| *words).collect(),
            ..Capabilities::default()
        }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.spools.open(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        left.into_iter().for_each(|temporary| self.remove_temporary(temporary));
        let name = spool.object();
        let temporary = temporary_beside(name, spool.run());
        let stored = self.upload(spool, &temporary).and_then(|()| self.publish(spool, &temporary));
        match &stored {
            Ok(()) => self.note_seen(),
            Err(_) => self.remove_temporary(temporary),
        }
        stored
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.read_parts(name, Parts { offset, lengths: &[length], bytes, take: &mut |_| () })
    }

    fn read_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        if parts.length() == 0 {
            if self.object(name)?.0 >= parts.offset {
                parts.take_empty();
                return Ok(());
            }
            return Err(Error::truncated(name));
        }
        self.read_range(name, parts).map_err(|failure| self.explain(failure, "read", name))?;
        self.note_seen();
        Ok(())
    }

    fn get(&self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let read = self.read_all(name, limit).map_err(|failure| self.explain(failure, "read", name))?;
        self.note_seen();
        read.map_err(|length| Error::too_large(name, length, limit))
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        Ok(self.object(name)?.0)
    }

    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let (length, found) = self.object(name)?;
        Ok(Stamp::new(length, version(&found.tag, &found.modified)))
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        let shown = if prefix.is_empty() { "the repository" } else { prefix };
        let depth = if prefix.is_empty() { DEPTH + 1 } else { DEPTH };
        let walked = self.walk(&[prefix], depth, &mut |folder, entry| {
            self.note_seen();
            if !entry.is_folder && !entry.name.starts_with(TEMPORARY) {
                let unclear = || Failure::new(ErrorKind::Other, "the server does not tell the sizes of files");
                let length = entry.length.ok_or_else(unclear)?;
                found(ObjectInfo { name: format!("{folder}{}", entry.name), length });
            }
            Ok(())
        });
        let is_whole = walked.map_err(|failure| self.explain(failure, "list", shown))?;
        // A missing folder has no objects, but one of a disk that went missing may have.
        if !is_whole && !self.is_there() {
            let why = "the repository's folder is empty or missing";
            return Err(Error::new(ErrorKind::Unavailable, "list", shown, why));
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.server.delete(&self.path(name)).map_err(|failure| self.explain(failure, "remove", name))
    }

    /// Every object that the server has acknowledged is as durable as it gets.
    fn settle(&self, _prefixes: &[&str]) -> Result<(), Error> {
        Ok(())
    }

    /// The remains are temporary files.
    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        const ACTION: &str = "remove temporary files in";
        let failed = |failure| self.explain(failure, ACTION, &self.address.path);
        let mut temporaries = Vec::new();
        self.walk(prefixes, DEPTH, &mut |folder, entry| {
            if temporaries.len() < MOST && writer_of(&entry.name).is_some_and(|run| runs.contains(&run)) {
                temporaries.push(format!("{folder}{}", entry.name));
            }
            Ok(())
        })
        .map_err(failed)?;
        for temporary in &temporaries {
            match self.server.delete(&self.path(temporary)) {
                Err(failure) if failure.kind == ErrorKind::NotFound => {}
                removed => removed.map_err(failed)?,
            }
        }
        Ok(temporaries.len() as u64)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        let Some(is_new) = self.making else { return false };
        let cleared = self.clear(is_ours).unwrap_or_default();
        if cleared && is_new {
            // Best effort: an empty folder does no harm.
            let _ = self.remove_folder("");
        }
        cleared
    }
}
