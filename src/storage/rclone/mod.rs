//! Stores objects as files on a remote of rclone, such as Backblaze B2, Google Drive or SMB.
//!
//! brackfs starts the user's `rclone`, with its configuration and environment, and speaks with it through sockets in a folder
//! of its own. rclone ends with brackfs, also when that is killed.
//!
//! If the remote shows files while they are stored, such as a local directory or an SFTP server, an object is stored under a
//! temporary name `.tmp-<run>-<uuid>` in its own folder, and renamed when the remote tells its right size. Other remotes store
//! a file as a whole or not at all, so an object gets its name at once; renaming there would copy it. The size is checked
//! afterwards all the same.
//!
//! Files are replaced silently, so whether a name is free is only looked up. Nothing depends on it: names of objects contain
//! random ids or the id of the run that writes.
//!
//! - [`address`]: where the directory is
//! - [`process`]: the rclone process; [`requests`]: what it is asked; [`failure`]: why a request failed

mod address;
mod failure;
mod process;
mod requests;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

pub use address::Address;
use failure::Failure;
use requests::{Features, Item, Rclone};

use super::contract::{Capabilities, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::http::{Lost, read_range, version};
use super::layout::{LOST_AND_FOUND, MOST, TEMPORARY, temporary_beside, writer_of};
use super::parts::{JOINED, Parts};
use super::remote::Remote;
use super::spool::{Spool, Spools};

/// A target that is a directory on a remote of rclone.
#[derive(Debug)]
pub struct RcloneStorage {
    rclone: Rclone,
    address: Address,
    spools: Spools,
    /// The directory had an entry, so it cannot be empty unless its disk was unmounted.
    seen: AtomicBool,
    features: OnceLock<Features>,
    /// After `create`: whether it made the directory.
    making: Option<bool>,
}

impl RcloneStorage {
    /// Opens the target in a directory on a remote. A missing directory is [`ErrorKind::NotFound`].
    pub fn open(address: &Address, remote: &Remote) -> Result<Self, Error> {
        let storage = RcloneStorage::new(address, remote, "open")?;
        let failed = |failure: Failure| failure.into_error("open", &shown(address));
        match storage.rclone.list("", false, &mut |_| ()) {
            Err(failure) if failure.kind == ErrorKind::NotFound => {
                if storage.features().map_err(failed)?.keeps_empty_folders {
                    let why = format!("the remote has no such directory ({})", failure.why);
                    return Err(failed(Failure { why, ..failure }));
                }
            }
            listed => listed.map_err(failed)?,
        }
        Ok(storage)
    }

    fn new(address: &Address, remote: &Remote, action: &'static str) -> Result<Self, Error> {
        let rclone = Rclone::new(&address.remote, remote);
        Ok(RcloneStorage {
            rclone: rclone.map_err(|failure| failure.into_error(action, &shown(address)))?,
            address: address.clone(),
            spools: remote.spools(),
            seen: AtomicBool::default(),
            features: OnceLock::new(),
            making: None,
        })
    }

    /// Creates the directory, or uses an existing one that holds only leftovers of an interrupted `create`.
    pub(super) fn create(
        address: &Address,
        remote: &Remote,
        is_leftover: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut storage = RcloneStorage::new(address, remote, "create")?;
        let failed = |failure: Failure| failure.into_error("create", &shown(address));
        let exists = match storage.rclone.list("", false, &mut |_| ()) {
            Err(failure) if failure.kind == ErrorKind::NotFound => false,
            listed => listed.map(|()| true).map_err(failed)?,
        };
        if !exists {
            storage.rclone.make_root().map_err(failed)?;
        } else if !storage.clear(is_leftover).map_err(failed)? {
            let why = "the directory is not empty";
            return Err(Error::new(ErrorKind::AlreadyExists, "create", &shown(address), why));
        }
        storage.making = Some(!exists);
        Ok(storage)
    }

    /// Notes that the directory has an entry.
    fn note_seen(&self) {
        if !self.seen.load(Ordering::Relaxed) {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    /// Fails if the directory is missing, or is the empty mount point of an unplugged disk: then an object may not be
    /// missing. Returns whether the directory exists: one of a remote without folders does not before the first object.
    fn make_sure_of_root(&self) -> Result<bool, Failure> {
        let (mut is_empty, seen) = (true, self.seen.load(Ordering::Relaxed));
        let exists = match self.rclone.list("", false, &mut |_| is_empty = false) {
            Err(failure) if failure.kind == ErrorKind::NotFound => false,
            listed => listed.map(|()| true)?,
        };
        if (is_empty && seen) || (!exists && self.features()?.keeps_empty_folders) {
            return Err(Failure::new(ErrorKind::Unavailable, "the repository's directory is empty or missing"));
        }
        Ok(exists)
    }

    /// The file of an object; `None` if it is missing or not a file.
    fn find(&self, name: &str) -> Result<Option<Item>, Failure> {
        let found = self.rclone.file(name)?;
        if found.is_some() {
            self.note_seen();
        }
        Ok(found)
    }

    /// The file of an object.
    fn object(&self, name: &str) -> Result<Item, Failure> {
        if let Some(item) = self.find(name)? {
            return Ok(item);
        }
        self.make_sure_of_root()?;
        match self.rclone.entry(name)? {
            Some(item) if item.is_dir => Err(Failure::new(ErrorKind::NotAFile, "it is not a file")),
            Some(item) => Ok(item),
            None => Err(Failure::new(ErrorKind::NotFound, "the remote has no such file")),
        }
    }

    /// Calls `found` with all entries of a folder (`packs/`) and of folders in it. A missing folder has none.
    fn each(&self, folder: &str, found: &mut dyn FnMut(Item)) -> Result<(), Failure> {
        let (folder, mut is_empty) = (folder.trim_end_matches('/'), true);
        let listed = self.rclone.list(folder, true, &mut |item| {
            is_empty = false;
            found(item);
        });
        let missing = match listed {
            Err(failure) if failure.kind == ErrorKind::NotFound => Some(failure),
            listed => listed.map(|()| None)?,
        };
        // A missing folder has no objects, but one of a missing disk may have.
        if is_empty || missing.is_some() {
            let has_root = self.make_sure_of_root()?;
            if let Some(failure) = missing
                && has_root
                && (folder.is_empty() || self.rclone.entry(folder)?.is_some())
            {
                return Err(Failure { kind: ErrorKind::Unavailable, ..failure });
            }
        }
        Ok(())
    }

    fn read_range(&self, name: &str, parts: Parts<'_>) -> Result<(), Failure> {
        let length = || self.object(name)?.length();
        read_range(parts, length, |range, parts| self.read_full_range(name, range, parts))
    }

    fn read_full_range(&self, name: &str, range: &str, mut parts: Parts<'_>) -> Result<(), Failure> {
        let end = parts.end();
        let reaches = |length: u64| end.is_some_and(|end| length >= end);
        let mut answer = self.rclone.get(name, range)?;
        if answer.length_of_whole(parts.offset).is_some_and(reaches) {
            if answer.read_parts(&mut parts)? {
                self.note_seen();
                return Ok(());
            }
            return Err(Failure::new(ErrorKind::Unavailable, "rclone did not send the whole range"));
        }
        let status = answer.status;
        // The connection ends with an answer that was not read.
        drop(answer);
        // The status does not tell why.
        if !reaches(self.object(name)?.length()?) {
            return Err(Lost::short().into());
        }
        Err(Failure::new(ErrorKind::Unavailable, format!("rclone cannot read it now (status {status})")))
    }

    fn features(&self) -> Result<Features, Failure> {
        if let Some(known) = self.features.get() {
            return Ok(*known);
        }
        let features = self.rclone.features()?;
        Ok(*self.features.get_or_init(|| features))
    }

    /// Whether objects are stored under temporary names first.
    fn renames(&self) -> Result<bool, Failure> {
        let features = self.features()?;
        Ok(features.shows_partial_files && features.renames)
    }

    /// Stores a spool. Returns false if the name is taken.
    fn upload(&self, spool: &Spool) -> Result<bool, Failure> {
        let name = spool.object();
        if self.find(name)?.is_some() {
            return Ok(false);
        }
        let (features, renames) = (self.features()?, self.renames()?);
        // rclone makes missing folders, also the repository's own, such as on a disk that is not mounted.
        if features.keeps_empty_folders {
            self.make_sure_of_root()?;
        }
        let temporary = temporary_beside(name, spool.run());
        let path = if renames { temporary.as_str() } else { name };
        let mut may_be_ours = features.shows_partial_files;
        let stored = self.rclone.store(path, spool.length(), &mut spool.upload()).and_then(|()| {
            let stored = self.rclone.file(path)?.map(|item| item.length()).transpose()?;
            if stored != Some(spool.length()) {
                may_be_ours = true;
                let why = format!("the remote has {} of {} bytes", stored.unwrap_or_default(), spool.length());
                return Err(Failure::new(ErrorKind::Unavailable, why));
            }
            if renames {
                self.rclone.rename(&temporary, name)?;
            }
            Ok(true)
        });
        match &stored {
            Ok(true) => self.note_seen(),
            // Best effort: listings skip a temporary file.
            Ok(false) => drop(self.rclone.remove(&temporary)),
            Err(_) if renames => drop(self.rclone.remove(&temporary)),
            Err(_) if may_be_ours => self.remove_short(name, spool.length()),
            // The remote stores a file as a whole or not at all: one of another size is another writer's.
            Err(_) => {}
        }
        stored
    }

    /// Removes an object that was not stored as a whole.
    fn remove_short(&self, name: &str, length: u64) {
        let is_short = |item: Item| item.length().is_ok_and(|stored| stored != length);
        if self.find(name).is_ok_and(|found| found.is_some_and(is_short)) {
            // Best effort: the next try finds it, too.
            let _ = self.rclone.remove(name);
        }
    }

    /// Removes all files and folders that `may_go` accepts. `lost+found` does not count. If there is anything else, removes
    /// nothing and returns false.
    fn clear(&self, may_go: &dyn Fn(&str) -> bool) -> Result<bool, Failure> {
        let (mut files, mut may_all_go) = (Vec::new(), true);
        self.each("", &mut |item| {
            if item.path == LOST_AND_FOUND || !may_all_go {
                return;
            }
            let base = item.path.rsplit('/').next().unwrap_or_default();
            let goes = match item.is_dir {
                true => !item.path.contains('/') && may_go(&format!("{}/", item.path)),
                false => writer_of(base).is_some() || may_go(&item.path),
            };
            may_all_go = goes && files.len() < MOST;
            if goes && !item.is_dir {
                files.push(item.path);
            }
        })?;
        if may_all_go {
            files.iter().try_for_each(|file| self.rclone.remove(file))?;
            self.rclone.remove_empty_folders(true)?;
        }
        Ok(may_all_go)
    }
}

/// The remote and the path in errors.
fn shown(address: &Address) -> String {
    address.remote.clone()
}

impl Storage for RcloneStorage {
    fn capabilities(&self) -> Capabilities {
        let is_partial = |features: &Features| features.shows_partial_files && !features.renames;
        let partial = "the remote cannot rename files, so a killed backup may leave a partial object under its name, which is \
                       reported as damaged";
        let shortcomings = self.features.get().filter(|features| is_partial(features)).map(|_| partial);
        Capabilities {
            lanes: self.rclone.lanes(),
            joined: JOINED,
            shortcomings: shortcomings.into_iter().collect(),
            ..Capabilities::default()
        }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.spools.open(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let name = spool.object();
        match self.upload(spool) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(ErrorKind::AlreadyExists, "store", name, "the object exists")),
            // It is a part of the remote that is missing, and not the object.
            Err(failure) if failure.kind == ErrorKind::NotFound => {
                let away = self.make_sure_of_root().err();
                let failure = away.unwrap_or(Failure { kind: ErrorKind::Other, ..failure });
                Err(failure.into_error("store", name))
            }
            Err(failure) => Err(failure.into_error("store", name)),
        }
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.read_parts(name, Parts { offset, lengths: &[length], bytes, take: &mut |_| () })
    }

    fn read_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        self.read_range(name, parts).map_err(|failure| failure.into_error("read", name))
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        self.object(name).and_then(|item| item.length()).map_err(|failure| failure.into_error("read", name))
    }

    /// Some remotes tell times in seconds, or not at all.
    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let failed = |failure: Failure| failure.into_error("read", name);
        let item = self.object(name).map_err(failed)?;
        let length = item.length().map_err(failed)?;
        Ok(Stamp::new(length, version("", &item.mod_time)))
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        let shown = if prefix.is_empty() { "the repository" } else { prefix };
        let failed = |failure: Failure| failure.into_error("list", shown);
        let mut problem = None;
        let listed = self.each(prefix, &mut |item| {
            self.note_seen();
            let base = item.path.rsplit('/').next().unwrap_or_default();
            if item.is_dir || base.starts_with(TEMPORARY) || !item.path.starts_with(prefix) {
                return;
            }
            match item.length() {
                Ok(length) => found(ObjectInfo { name: item.path, length }),
                Err(failure) => problem = Some(failure),
            }
        });
        listed.and_then(|()| problem.map_or(Ok(()), Err)).map_err(failed)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let removed = self.rclone.remove(name).map_err(|failure| match failure.kind {
            ErrorKind::NotFound => self.object(name).err().unwrap_or(failure),
            _ => failure,
        });
        removed.map_err(|failure| failure.into_error("remove", name))
    }

    /// rclone has no command for it.
    fn settle(&self, _prefixes: &[&str]) -> Result<(), Error> {
        Ok(())
    }

    /// The remains are temporary files.
    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        let shown = shown(&self.address);
        let failed = |failure: Failure| failure.into_error("remove temporary files in", &shown);
        if !self.renames().map_err(failed)? {
            return Ok(0);
        }
        let mut temporaries = Vec::new();
        for prefix in prefixes {
            let listed = self.each(prefix, &mut |item| {
                let base = item.path.rsplit('/').next().unwrap_or_default();
                let is_left = !item.is_dir && writer_of(base).is_some_and(|run| runs.contains(&run));
                if is_left && temporaries.len() < MOST {
                    temporaries.push(item.path);
                }
            });
            listed.map_err(failed)?;
        }
        for temporary in &temporaries {
            match self.rclone.remove(temporary) {
                Err(failure) if failure.kind == ErrorKind::NotFound => {}
                removed => removed.map_err(failed)?,
            }
        }
        Ok(temporaries.len() as u64)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        let Some(new) = self.making else { return false };
        let cleared = self.clear(is_ours).unwrap_or_default();
        if cleared && new {
            // Best effort: an empty directory does no harm.
            let _ = self.rclone.remove_empty_folders(false);
        }
        cleared
    }
}
