//! Stores objects as files in a directory on an FTP server, over TLS or in the clear.
//!
//! An object is written to a temporary file `.tmp-<run>-<uuid>` in its own folder. When the server has acknowledged it and
//! tells its size, it is renamed to its name. So nothing partial ever has an object's name. A killed run or a broken
//! connection leaves only temporary files, which listings skip.
//!
//! FTP has no way to create a name exclusively: a rename replaces an existing file. Whether a name is free is only looked up,
//! so of two writers of one name the last one may win. Nothing depends on it: names of objects contain random ids or the id
//! of the run that writes. Nor is there a way to sync a file: an acknowledged object is as safe as the server makes it.
//!
//! Servers use one code (550) for missing files, missing folders and missing permissions, so an object counts as missing only
//! if a listing of its folder agrees.
//!
//! From the wire up:
//!
//! - [`address`]: where the directory is
//! - [`socket`]: connections without encryption; [`tls`]: encrypted ones
//! - [`wire`]: commands and replies; [`failure`]: why a command failed
//! - [`session`]: operations on files over one control connection; [`listing`]: lines of listings
//! - [`pool`]: several sessions

mod address;
mod failure;
mod listing;
mod pool;
mod session;
mod socket;
mod tls;
mod wire;

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

pub use address::{Address, Security};
use failure::Failure;
use listing::{Entry, Kind};
use pool::{Lease, Pool};
use session::{Server, Session, WriteError};
use tls::Tls;
use wire::Reply;

use super::contract::{Capabilities, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::layout::{DEPTH, LOST_AND_FOUND, MOST, TEMPORARY, temporary_beside, writer_of};
use super::netrc::Login;
use super::remote::{FEW, Remote};
use super::spool::{Spool, Spools};

/// Bytes of a file that shows whether a disk is full.
const PROBE: u64 = 64 << 10;

/// A target that is a directory on an FTP server.
#[derive(Debug)]
pub struct FtpStorage {
    pool: Pool,
    spools: Spools,
    /// The directory had an entry, so it cannot be empty unless its disk was unmounted.
    seen: AtomicBool,
    /// Temporary files that stayed when a connection broke.
    left: Mutex<Vec<String>>,
    /// After `create`: whether it made the directory.
    making: Option<bool>,
}

/// Where an object's name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Object,
    /// A folder, or anything else that is not a file.
    NotAFile,
    Missing,
    /// The repository's directory is missing, or is the empty mount point of an unplugged disk.
    Away,
}

impl FtpStorage {
    /// Opens the target in a directory on a server. A missing directory is [`ErrorKind::NotFound`].
    pub fn open(address: &Address, remote: &Remote) -> Result<Self, Error> {
        let storage = FtpStorage::new(address, remote, "open")?;
        let failed = |failure: Failure| failure.into_error("open", &shown(address));
        let mut session = storage.pool.take().map_err(failed)?;
        let root = session.root().to_owned();
        let exists = session.list(&root, &mut |_| ()).map_err(failed)?;
        drop(session);
        if exists {
            return Ok(storage);
        }
        let why = "the server has no such directory, or denies access to it";
        Err(Error::new(ErrorKind::NotFound, "open", &shown(address), why))
    }

    fn new(address: &Address, remote: &Remote, action: &'static str) -> Result<Self, Error> {
        let failed = |why: String| Error::new(ErrorKind::Refused, action, &shown(address), why);
        let variable = |name: &str| std::env::var(name).ok();
        let login = Login::find(remote, "FTP", &address.host, address.user.as_deref(), &variable);
        let missing = || {
            failed(
                "no login found; set FTP_USER and FTP_PASSWORD, or write it to ~/.netrc or to a file for --credentials"
                    .to_owned(),
            )
        };
        let login = login.map_err(failed)?.ok_or_else(missing)?;
        let tls = match address.security {
            Security::None => None,
            Security::Explicit | Security::Implicit => Some(Tls::new(remote.ca.as_deref()).map_err(failed)?),
        };
        let server =
            Server { address: address.clone(), login, tls, stall: remote.stall, interrupt: remote.interrupt.clone() };
        Ok(FtpStorage {
            pool: Pool::new(server, remote.connections(FEW)),
            spools: remote.spools(),
            seen: AtomicBool::default(),
            left: Mutex::default(),
            making: None,
        })
    }

    /// Creates the directory, or uses an existing one that holds only leftovers of an interrupted `create`.
    pub(super) fn create(
        address: &Address,
        remote: &Remote,
        is_leftover: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut storage = FtpStorage::new(address, remote, "create")?;
        let failed = |failure: Failure| failure.into_error("create", &shown(address));
        let new = {
            let mut session = storage.pool.take().map_err(failed)?;
            let root = session.root().to_owned();
            let new = match session.make_folder(&root) {
                Ok(()) => true,
                Err(failure) if failure.is_lost() => return Err(failed(failure)),
                // There is no code of its own for a name that is taken.
                Err(failure) => match session.list(&root, &mut |_| ()).map_err(failed)? {
                    true => false,
                    false => return Err(failed(failure)),
                },
            };
            if !storage.clear(&mut session, is_leftover).map_err(failed)? {
                let why = "the directory is not empty";
                return Err(Error::new(ErrorKind::AlreadyExists, "create", &shown(address), why));
            }
            new
        };
        storage.making = Some(new);
        Ok(storage)
    }

    fn take(&self, action: &'static str, object: &str) -> Result<Lease<'_>, Error> {
        self.pool.take().map_err(|failure| failure.into_error(action, object))
    }

    /// The error of a failed operation on an object.
    fn explain(&self, session: &mut Session, failure: Failure, action: &'static str, object: &str) -> Error {
        if !failure.may_be_missing() {
            return failure.into_error(action, object);
        }
        match self.find(session, object) {
            Ok(Place::Object) => failure.into_error(action, object),
            Ok(Place::NotAFile) => Error::new(ErrorKind::NotAFile, action, object, "it is not a file"),
            Ok(Place::Missing) => Error::new(ErrorKind::NotFound, action, object, "the server has no such file"),
            Ok(Place::Away) => away(action, object),
            Err(failure) => failure.into_error(action, object),
        }
    }

    /// Looks for an object in listings, from the repository's directory down.
    fn find(&self, session: &mut Session, object: &str) -> Result<Place, Failure> {
        let (mut folder, mut parts) = (String::new(), object.split('/').peekable());
        while let Some(part) = parts.next() {
            let (mut found, mut is_empty) = (None, true);
            let path = session.path(&folder);
            let exists = session.list(&path, &mut |entry| {
                is_empty = false;
                if entry.name == part {
                    found = Some(entry.kind);
                }
            })?;
            if !exists && !folder.is_empty() {
                return Err(Failure::Wrong(ErrorKind::PermissionDenied, format!("the server does not list {folder}")));
            }
            if folder.is_empty() && (!exists || (is_empty && self.seen.load(Ordering::Relaxed))) {
                return Ok(Place::Away);
            }
            let is_last = parts.peek().is_none();
            match found {
                None => return Ok(Place::Missing),
                Some(Kind::File) if is_last => return Ok(Place::Object),
                Some(_) if is_last => return Ok(Place::NotAFile),
                // An entry of another kind may be a link to a folder.
                Some(Kind::Folder | Kind::Other) => folder = format!("{folder}{part}/"),
                Some(_) => return Ok(Place::Missing),
            }
        }
        Ok(Place::NotAFile)
    }

    /// Notes that the directory has an entry.
    fn note_seen(&self) {
        if !self.seen.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    /// The length of an object.
    fn object(&self, session: &mut Session, name: &str) -> Result<u64, Error> {
        let path = session.path(name);
        let size = session.size(&path).map_err(|failure| self.explain(session, failure, "read", name))?;
        if let Some(size) = size {
            self.note_seen();
            return Ok(size);
        }
        match self.find(session, name).map_err(|failure| failure.into_error("read", name))? {
            Place::Object => Err(Error::new(ErrorKind::Other, "read", name, "the server does not tell its size")),
            Place::NotAFile => Err(Error::new(ErrorKind::NotAFile, "read", name, "it is not a file")),
            Place::Missing => Err(Error::new(ErrorKind::NotFound, "read", name, "the server has no such file")),
            Place::Away => Err(away("read", name)),
        }
    }

    /// Makes the folder of an object.
    fn make_folders(session: &mut Session, name: &str) -> Result<(), Failure> {
        let Some((folder, _)) = name.rsplit_once('/') else { return Ok(()) };
        for (end, _) in folder.match_indices('/').chain([(folder.len(), "")]) {
            let path = session.path(folder.get(..end).unwrap_or_default());
            match session.make_folder(&path) {
                Err(failure) if failure.is_lost() => return Err(failure),
                // It may exist. If it does not, the next command fails.
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a spool to a new temporary file, and gives it its name. Returns false if the name is taken.
    fn upload(session: &mut Session, spool: &Spool, temporary: &str) -> Result<bool, WriteError> {
        let object = session.path(spool.object());
        if session.size(&object)?.is_some() {
            return Ok(false);
        }
        match session.write(temporary, &mut spool.upload()) {
            Err(WriteError::Failed(failure)) if failure.may_be_missing() && spool.object().contains('/') => {
                Self::make_folders(session, spool.object())?;
                session.write(temporary, &mut spool.upload())?;
            }
            written => written?,
        }
        let stored = session.size(temporary)?;
        if stored != Some(spool.length()) {
            let stored = stored.unwrap_or_default();
            let why = format!("the server has {stored} of {} bytes", spool.length());
            return Err(Failure::Wrong(ErrorKind::Unavailable, why).into());
        }
        match session.rename(temporary, &object) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_lost() => Err(failure.into()),
            // Some servers refuse it.
            Err(failure) => {
                if session.size(&object)?.is_some() {
                    Ok(false)
                } else {
                    Err(failure.into())
                }
            }
        }
    }

    /// Whether the server can write an empty file, but no small one. Many report a full disk only as a transfer that was
    /// aborted, as they do all transfers while they are busy.
    fn is_full(session: &mut Session, spool: &Spool, probes: [&str; 2]) -> bool {
        let [empty, small] = probes;
        let is_full = session.write(empty, &mut io::empty()).is_ok() && {
            let written = session.write(small, &mut spool.contents().take(PROBE));
            matches!(written, Err(WriteError::Failed(Failure::Reply(Reply { code: 426 | 451 | 452 | 552, .. }))))
        };
        // Best effort, like that of the temporary file.
        probes.iter().for_each(|probe| drop(session.remove(probe)));
        is_full
    }

    /// Removes a temporary file that is not needed, now or with the next object.
    fn remove_temporary(&self, session: &mut Session, temporary: String) {
        let removed = session.remove(&temporary);
        if removed.is_err_and(|failure| failure.is_lost()) {
            self.left.lock().unwrap_or_else(PoisonError::into_inner).push(temporary);
        }
    }

    /// Calls `visit` with the entries of the folders (`packs/`), and of folders in them, at most `depth` levels down. The
    /// first argument is the entry's folder.
    fn walk(
        &self,
        session: &mut Session,
        folders: &[&str],
        depth: usize,
        visit: &mut dyn FnMut(&str, Entry<'_>),
    ) -> Result<(), Failure> {
        let mut folders: Vec<String> = folders.iter().map(|&folder| folder.to_owned()).collect();
        for level in 0..=depth {
            let (mut below, mut too_many) = (Vec::new(), false);
            for folder in &folders {
                let path = session.path(folder);
                let exists = session.list(&path, &mut |entry| {
                    if folder.is_empty() && entry.name == LOST_AND_FOUND {
                        return;
                    }
                    if entry.kind == Kind::Folder && level < depth {
                        too_many |= below.len() == MOST;
                        if !too_many {
                            below.push(format!("{folder}{}/", entry.name));
                        }
                    }
                    visit(folder, entry);
                })?;
                if !exists {
                    self.is_missing(session, folder)?;
                }
            }
            if too_many {
                return Err(Failure::Wrong(ErrorKind::Other, "there are too many folders".to_owned()));
            }
            folders = below;
        }
        Ok(())
    }

    /// Makes sure that a folder that cannot be listed is missing. A missing folder has no objects, but one of a missing disk,
    /// or one without permission, may have.
    fn is_missing(&self, session: &mut Session, folder: &str) -> Result<(), Failure> {
        let folder = folder.trim_end_matches('/');
        let place = if folder.is_empty() { Place::Away } else { self.find(session, folder)? };
        match place {
            Place::Missing => Ok(()),
            Place::Away => Err(Failure::Wrong(ErrorKind::Unavailable, AWAY.to_owned())),
            Place::Object | Place::NotAFile => {
                Err(Failure::Wrong(ErrorKind::PermissionDenied, format!("the server does not list {folder}")))
            }
        }
    }

    /// Removes all temporary files, all objects and folders that `may_go` accepts. `lost+found` does not count. If there is
    /// anything else, removes nothing and returns false.
    fn clear(&self, session: &mut Session, may_go: &dyn Fn(&str) -> bool) -> Result<bool, Failure> {
        let (mut files, mut folders, mut may_all_go) = (Vec::new(), Vec::new(), true);
        self.walk(session, &[""], 1, &mut |folder, entry| {
            let object = format!("{folder}{}", entry.name);
            match entry.kind {
                _ if !may_all_go || files.len() == MOST => may_all_go = false,
                Kind::File if writer_of(entry.name).is_some() || may_go(&object) => files.push(object),
                Kind::Folder if folder.is_empty() && may_go(&format!("{object}/")) => folders.push(object),
                _ => may_all_go = false,
            }
        })?;
        if !may_all_go {
            return Ok(false);
        }
        for file in &files {
            let path = session.path(file);
            session.remove(&path)?;
        }
        for folder in &folders {
            let path = session.path(folder);
            session.remove_folder(&path)?;
        }
        Ok(true)
    }

    fn read_range(
        &self,
        session: &mut Session,
        name: &str,
        range: (u64, usize),
        bytes: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let short = || Error::truncated(name);
        let (offset, length) = range;
        let end = offset.checked_add(length as u64);
        bytes.clear();
        bytes.resize(length, 0);
        if length > 0 && end.is_some_and(|end| i64::try_from(end).is_ok()) {
            let path = session.path(name);
            match session.read(&path, offset, bytes) {
                Ok(read) if read == length => {
                    self.note_seen();
                    return Ok(());
                }
                Err(failure) if failure.is_lost() => return Err(failure.into_error("read", name)),
                // The file ends earlier, or a server refuses an offset beyond its end.
                Ok(_) => {}
                Err(failure) => {
                    let size = self.object(session, name)?;
                    return Err(if end.is_some_and(|end| size < end) {
                        short()
                    } else {
                        failure.into_error("read", name)
                    });
                }
            }
        }
        let size = self.object(session, name)?;
        match end {
            Some(end) if length == 0 && size >= end => Ok(()),
            Some(end) if length > 0 && size >= end => {
                Err(Error::new(ErrorKind::Unavailable, "read", name, "the server did not send all bytes"))
            }
            _ => Err(short()),
        }
    }
}

const AWAY: &str = "the repository's directory is empty or missing";

fn away(action: &'static str, object: &str) -> Error {
    Error::new(ErrorKind::Unavailable, action, object, AWAY)
}

/// The directory and its server in errors.
fn shown(address: &Address) -> String {
    format!("{} on {}", address.path, address.host)
}

impl Storage for FtpStorage {
    fn capabilities(&self) -> Capabilities {
        let server = self.pool.server();
        let known = [
            (
                server.tls.is_none(),
                "the password and the names of objects are sent unencrypted, so others on the network can read them; use ftps:// \
                 if the server offers TLS",
            ),
            (server.login.is_exposed, "other users can read the file with the password; run chmod go= on it"),
            (
                true,
                "FTP cannot sync files, so a crash of the server may lose the newest backup; older backups are safe",
            ),
        ];
        Capabilities {
            lanes: self.pool.most(),
            shortcomings: known.into_iter().filter(|(is_so, _)| *is_so).map(|(_, words)| words).collect(),
            ..Capabilities::default()
        }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.spools.open(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let name = spool.object();
        let mut session = self.take("store", name)?;
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        left.into_iter().for_each(|temporary| self.remove_temporary(&mut session, temporary));
        let temporary = session.path(&temporary_beside(name, spool.run()));
        let stored = Self::upload(&mut session, spool, &temporary);
        if let Ok(true) = stored {
            self.note_seen();
            return Ok(());
        }
        // The temporary file still takes its room.
        let is_full = match &stored {
            Err(WriteError::Failed(Failure::Reply(Reply { code: 426 | 451, .. }))) => {
                let probes = [(); 2].map(|()| session.path(&temporary_beside(name, spool.run())));
                Self::is_full(&mut session, spool, probes.each_ref().map(String::as_str))
            }
            _ => false,
        };
        self.remove_temporary(&mut session, temporary);
        Err(match stored {
            Err(WriteError::Failed(_)) if is_full => {
                let why = "the server has no more room, not even for a small file; free some and run again, no stored data is lost";
                Error::new(ErrorKind::Full, "store", name, why)
            }
            Err(WriteError::Failed(failure)) => failure.into_error("store", name),
            Err(WriteError::Spool(error)) => Error::io("read the temporary file of", name, error),
            Ok(_) => Error::new(ErrorKind::AlreadyExists, "store", name, "the object exists"),
        })
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let mut session = self.take("read", name)?;
        self.read_range(&mut session, name, (offset, length), bytes)
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        let mut session = self.take("read", name)?;
        self.object(&mut session, name)
    }

    /// The time has a resolution of a second, so two replacements within one second may have the same stamp.
    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let mut session = self.take("read", name)?;
        let length = self.object(&mut session, name)?;
        let path = session.path(name);
        let changed = session.changed(&path).map_err(|failure| failure.into_error("read", name))?;
        let digits: String = changed.chars().filter(char::is_ascii_digit).take(19).collect();
        Ok(Stamp::new(length, [digits.parse().unwrap_or_default(), 0, 0]))
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        let shown = if prefix.is_empty() { "the repository" } else { prefix };
        let mut session = self.take("list", shown)?;
        let depth = if prefix.is_empty() { DEPTH + 1 } else { DEPTH };
        let mut is_empty = true;
        let walked = self.walk(&mut session, &[prefix], depth, &mut |folder, entry| {
            is_empty = false;
            self.note_seen();
            if entry.kind == Kind::File && !entry.name.starts_with(TEMPORARY) {
                found(ObjectInfo { name: format!("{folder}{}", entry.name), length: entry.length });
            }
        });
        walked.map_err(|failure| failure.into_error("list", shown))?;
        if prefix.is_empty() && is_empty && self.seen.load(Ordering::Relaxed) {
            return Err(away("list", shown));
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let mut session = self.take("remove", name)?;
        let path = session.path(name);
        session.remove(&path).map_err(|failure| self.explain(&mut session, failure, "remove", name))
    }

    /// FTP has no command for it.
    fn settle(&self, _prefixes: &[&str]) -> Result<(), Error> {
        Ok(())
    }

    /// The remains are temporary files.
    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        const ACTION: &str = "remove temporary files in";
        let shown = shown(&self.pool.server().address);
        let mut session = self.take(ACTION, &shown)?;
        let mut temporaries = Vec::new();
        self.walk(&mut session, prefixes, DEPTH, &mut |folder, entry| {
            if temporaries.len() < MOST && writer_of(entry.name).is_some_and(|run| runs.contains(&run)) {
                temporaries.push(format!("{folder}{}", entry.name));
            }
        })
        .map_err(|failure| failure.into_error(ACTION, &shown))?;
        for name in &temporaries {
            let path = session.path(name);
            if let Err(failure) = session.remove(&path) {
                match self.explain(&mut session, failure, "remove", name) {
                    error if error.kind == ErrorKind::NotFound => {}
                    error => return Err(error),
                }
            }
        }
        Ok(temporaries.len() as u64)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        let Some(new) = self.making else { return false };
        let Ok(mut session) = self.pool.take() else { return false };
        let cleared = self.clear(&mut session, is_ours).unwrap_or_default();
        if cleared && new {
            // Best effort: an empty directory does no harm.
            let root = session.root().to_owned();
            let _ = session.remove_folder(&root);
        }
        cleared
    }
}
