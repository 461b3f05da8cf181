//! An open target.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::ahead::{AT_ONCE, Ahead, InTurn, SMALL, UnderWay};
use super::contract::{Capabilities, Ended, ObjectInfo, Stamp, Storage};
use super::directory::DirectoryStorage;
use super::error::Error;
use super::ftp::FtpStorage;
use super::location::{Location, LocationKind};
use super::log::logged;
use super::parts::Parts;
use super::rclone::RcloneStorage;
use super::s3::S3Storage;
use super::sftp::SftpStorage;
use super::spool::Spool;
use super::swift::SwiftStorage;
use super::webdav::WebdavStorage;
use super::wrapper::{Call, Try, Wrapper};

/// Bytes per read in [`Target::pieces`].
const PIECE: usize = 1 << 20;

/// An open target.
#[derive(Debug)]
pub struct Target {
    storage: Arc<dyn Storage>,
    location: String,
    /// The run that writes.
    run: Mutex<Uuid>,
    ahead: UnderWay,
}

impl Target {
    /// Opens the target at `location`. A missing directory or bucket is [`ErrorKind::NotFound`](super::ErrorKind::NotFound).
    pub fn open(location: &Location) -> Result<Self, Error> {
        let storage: Box<dyn Storage> = match location.kind() {
            LocationKind::Directory(path) => Box::new(DirectoryStorage::open(path)?),
            LocationKind::Ftp(address) => Box::new(FtpStorage::open(address, location.remote())?),
            LocationKind::Rclone(address) => Box::new(RcloneStorage::open(address, location.remote())?),
            LocationKind::Sftp(address) => Box::new(SftpStorage::open(address, location.remote())?),
            LocationKind::S3(address) => Box::new(S3Storage::open(address, location.remote())?),
            LocationKind::Swift(address) => Box::new(SwiftStorage::open(address, location.remote())?),
            LocationKind::Webdav(address) => Box::new(WebdavStorage::open(address, location.remote())?),
        };
        Ok(Target::new(storage, location.to_string()))
    }

    /// Creates an empty target at `location`, a new or an existing directory. Removes the objects and folders (`keys/`) in
    /// it that `is_leftover` accepts; anything else in it is [`ErrorKind::AlreadyExists`](super::ErrorKind::AlreadyExists).
    pub fn create(location: &Location, is_leftover: &dyn Fn(&str) -> bool) -> Result<Self, Error> {
        let storage: Box<dyn Storage> = match location.kind() {
            LocationKind::Directory(path) => Box::new(DirectoryStorage::create(path, is_leftover)?),
            LocationKind::Ftp(address) => Box::new(FtpStorage::create(address, location.remote(), is_leftover)?),
            LocationKind::Rclone(address) => Box::new(RcloneStorage::create(address, location.remote(), is_leftover)?),
            LocationKind::Sftp(address) => Box::new(SftpStorage::create(address, location.remote(), is_leftover)?),
            LocationKind::S3(address) => Box::new(S3Storage::create(address, location.remote(), is_leftover)?),
            LocationKind::Swift(address) => Box::new(SwiftStorage::create(address, location.remote(), is_leftover)?),
            LocationKind::Webdav(address) => Box::new(WebdavStorage::create(address, location.remote(), is_leftover)?),
        };
        Ok(Target::new(storage, location.to_string()))
    }

    /// A target on `storage`. Messages name it by `location`.
    pub fn new(storage: Box<dyn Storage>, location: String) -> Self {
        let storage = Arc::from(logged(storage));
        Target { storage, location, run: Mutex::new(Uuid::new_v4()), ahead: UnderWay::default() }
    }

    /// The same target with its storage in a wrapper, such as [`RetryStorage`](super::RetryStorage).
    #[must_use]
    pub fn wrapped(self, wrap: impl FnOnce(Box<dyn Storage>) -> Box<dyn Storage>) -> Self {
        Target { storage: Arc::from(wrap(Box::new(Shared(self.storage)))), ..self }
    }

    /// The location as it was given.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The path of the target's directory; `None` if the target is not a directory.
    pub fn local_path(&self) -> Option<PathBuf> {
        self.capabilities().directory
    }

    /// Returns what the target can do.
    pub fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    /// Sets the run that writes from now on, so that its remains can be told from those of others. Before that it is a random
    /// one.
    pub fn set_run(&self, run: Uuid) {
        *self.run() = run;
    }

    fn run(&self) -> MutexGuard<'_, Uuid> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a spool for the object `name`, to be passed to [`Target::store`]. Dropping the spool discards the object.
    pub fn spool(&self, name: &str) -> Result<Spool, Error> {
        let run = *self.run();
        self.storage.spool(name, run)
    }

    /// Stores a spooled object, atomically and durably. If the name is taken, the existing object stays unchanged and the
    /// error is [`ErrorKind::AlreadyExists`](super::ErrorKind::AlreadyExists).
    pub fn store(&self, spool: &Spool) -> Result<(), Error> {
        self.storage.store(spool)
    }

    /// Stores `bytes` under `name`, with the guarantees of [`Target::store`].
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut spool = self.spool(name)?;
        spool.append(bytes)?;
        self.store(&spool)
    }

    /// Replaces the content of `bytes` with `length` bytes of the object from `offset` on. A shorter object is
    /// [`ErrorKind::Truncated`](super::ErrorKind::Truncated).
    pub fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.storage.read(name, offset, length, bytes)
    }

    /// Reads parts of an object, if possible with one request. After an error, some parts may have been taken.
    pub fn read_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        self.storage.read_parts(name, parts)
    }

    /// Hint that these bytes will not be read again soon; caches may drop them. Reading them still works.
    pub fn evict(&self, name: &str, offset: u64, length: usize) {
        self.storage.evict(name, offset, length);
    }

    /// Hint that caches should keep this object longer than others: every access to what is stored needs it.
    pub fn prefer(&self, name: &str) {
        self.storage.prefer(name);
    }

    /// Whether a cache on disk has a copy of these bytes.
    pub fn has_copy(&self, name: &str, offset: u64, length: usize) -> bool {
        self.storage.has_copy(name, offset, length)
    }

    /// Drops the copy of these bytes in a cache on disk, because they turned out to be wrong. Returns whether there was one.
    pub fn drop_copy(&self, name: &str, offset: u64, length: usize) -> bool {
        self.storage.drop_copy(name, offset, length)
    }

    /// Reads the first `length` bytes of an object and calls `take` with each piece in turn. Returns false if `stop` was
    /// set before the end.
    pub fn pieces(
        &self,
        name: &str,
        length: u64,
        stop: &AtomicBool,
        mut take: impl FnMut(&[u8]),
    ) -> Result<bool, Error> {
        let (mut at, mut bytes) = (0, Vec::new());
        while at < length {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            self.read(name, at, PIECE.min(usize::try_from(length - at).unwrap_or(PIECE)), &mut bytes)?;
            at += bytes.len() as u64;
            take(&bytes);
        }
        Ok(true)
    }

    /// Reads a whole object of at most `limit` bytes.
    pub fn get(&self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        self.ahead.bytes(&self.storage, name, limit).map_or_else(|| self.storage.get(name, limit), Ok)
    }

    /// Says that much will be transferred soon; see [`Storage::widen`].
    pub fn widen(&self) {
        self.storage.widen();
    }

    /// Begins reads whose results will be needed soon, over a network. The next read of the same object or prefix takes the
    /// result, unless the read failed or ended too long ago. A read that was begun earlier and not taken is kept, so a result
    /// may be some seconds older than this call. Of many reads, some are made at a time, in this order.
    pub fn begin(&self, reads: Vec<Ahead>) {
        if !reads.is_empty() && self.local_path().is_none() {
            self.ahead.begin(&self.storage, reads);
        }
    }

    /// Drops the results of these reads, which were begun.
    pub fn forget_begun(&self, reads: &[Ahead]) {
        self.ahead.forget(reads);
    }

    /// Goes through `items` in order. Before each, begins its read and those of the next ones, unless `read` returns `None`,
    /// as it should for large objects: see [`Ahead::of`].
    pub fn in_turn<'t, I>(
        &'t self,
        items: &'t [I],
        read: impl Fn(&I) -> Option<Ahead> + Copy + 't,
    ) -> impl Iterator<Item = &'t I> {
        let reads = move |items: &[I]| items.iter().filter_map(read).collect::<Vec<_>>();
        InTurn::new(items, move |next| self.begin(reads(next)), move |passed| self.forget_begun(&reads(passed)))
    }

    /// Returns the maximum number of threads that read ahead, and the bytes of their results.
    pub fn read_ahead(&self) -> (usize, usize) {
        if self.local_path().is_some() { (0, 0) } else { (AT_ONCE, AT_ONCE * SMALL) }
    }

    /// Runs `work`, which makes these reads. They begin with it; results that it did not use are dropped.
    pub fn reading_ahead<T>(&self, reads: Vec<Ahead>, work: impl FnOnce() -> T) -> T {
        self.begin(reads.clone());
        let result = work();
        self.forget_begun(&reads);
        result
    }

    /// Returns the object's size in bytes. A missing object is [`ErrorKind::NotFound`](super::ErrorKind::NotFound).
    pub fn length(&self, name: &str) -> Result<u64, Error> {
        self.storage.length(name)
    }

    /// Returns the object's stamp, which changes when the object is replaced or rewritten. A missing object is
    /// [`ErrorKind::NotFound`](super::ErrorKind::NotFound).
    pub fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        self.storage.stamp(name)
    }

    /// Lists the objects whose names begin with `prefix` (which ends in `/`), sorted by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Error> {
        let mut objects = match self.ahead.objects(&self.storage, prefix) {
            Some(objects) => objects,
            None => {
                let mut objects = Vec::new();
                self.visit(prefix, &mut |object| objects.push(object))?;
                objects
            }
        };
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    /// Calls `found` with each object whose name begins with `prefix`, in any order.
    pub fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        self.storage.visit(prefix, found)
    }

    /// Makes every object that a listing of these prefixes shows durable, including those of killed writers.
    pub fn settle(&self, prefixes: &[&str]) -> Result<(), Error> {
        self.storage.settle(prefixes)
    }

    /// Removes an object, durably. A missing object is [`ErrorKind::NotFound`](super::ErrorKind::NotFound), unless the target
    /// does not tell.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.storage.remove(name)
    }

    /// Removes objects, durably, and in any order; see [`Storage::remove_all`].
    pub fn remove_all(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        self.storage.remove_all(names, ended)
    }

    /// Removes what these runs left below the prefixes when they were killed and what no listing shows. None of the runs
    /// may be active. Returns the number of remains.
    pub fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        self.storage.discard(prefixes, runs)
    }

    /// Undoes [`Target::create`]: if the target holds only objects that `is_ours` accepts, removes them, and everything
    /// that `create` made. Returns whether the target is now empty or gone.
    pub fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        self.storage.abandon(is_ours)
    }
}

#[cfg(test)]
impl Target {
    pub(super) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }
}

/// A storage that reads under way may outlive.
#[derive(Debug)]
struct Shared(Arc<dyn Storage>);

impl Wrapper for Shared {
    fn inner(&self) -> &dyn Storage {
        &*self.0
    }

    fn around(&self, _: Call<'_>, attempt: Try<'_>) -> Result<(), Error> {
        attempt().map(drop)
    }
}
