//! Targets: the storage that a repository is kept on.
//!
//! A target holds immutable objects under names such as `packs/ab/…`. Creating an object is atomic and durable. Other
//! modules use [`Target`], which wraps an implementation of [`Storage`]. So far there is one, for directories.
//!
//! - [`directory`]: objects as files in a directory; [`place`]: opens files in it without following symbolic links
//! - [`spool`]: an object that is still being written, in an unnamed file

mod directory;
mod error;
mod place;
mod spool;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub use error::{Error, ErrorKind};
pub use spool::Spool;

use directory::DirectoryStorage;

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The name relative to the target, such as `packs/ab/…`.
    pub name: String,
    /// The size in bytes.
    pub length: u64,
}

/// Tells whether an object's file was replaced or rewritten between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    /// The ctime, in seconds and nanoseconds.
    changed: (i64, i64),
}

/// Bytes per read in [`Target::pieces`].
const PIECE: usize = 1 << 20;

/// Whether another writer may store an object under the same name at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rivals {
    /// No, because the name is random.
    None,
    /// Yes: at most one writer may succeed, on any file system.
    Possible,
}

/// An implementation of a target. Several threads may call all methods at the same time.
trait Storage: Send + Sync + fmt::Debug {
    /// Opens a spool for the object `name`.
    fn spool(&self, name: &str) -> Result<Spool, Error>;
    /// Stores the spooled bytes under `name`, atomically and durably. If the name is taken, the existing object stays
    /// unchanged and the error is [`ErrorKind::AlreadyExists`].
    fn store(&self, name: &str, spool: Spool, rivals: Rivals) -> Result<(), Error>;
    /// Replaces the content of `bytes` with `length` bytes of the object from `offset` on. A shorter object is
    /// [`ErrorKind::Truncated`].
    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error>;
    /// Hint that these bytes will not be read again soon; caches may drop them.
    fn forget(&self, name: &str, offset: u64, length: usize);
    /// Returns the object's size in bytes. A missing object is [`ErrorKind::NotFound`].
    fn length(&self, name: &str) -> Result<u64, Error>;
    /// Returns a stamp of the object's file. A missing object is [`ErrorKind::NotFound`].
    fn stamp(&self, name: &str) -> Result<Stamp, Error>;
    /// Lists the objects whose names begin with `prefix` (which ends in `/`), sorted by name. Temporary files are not
    /// listed.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Error>;
    /// Makes every object that a listing of these folders shows durable.
    fn sync(&self, folders: &[&str]) -> Result<(), Error>;
    /// Removes an object, durably. A missing object is [`ErrorKind::NotFound`].
    fn remove(&self, name: &str) -> Result<(), Error>;
    /// Removes temporary files of killed writers from these folders, durably. Returns the number of files removed.
    fn remove_temporaries(&self, folders: &[&str]) -> Result<u64, Error>;
    /// Calls `found` with each object below `prefix`, in any order, so that memory use does not grow with the listing.
    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error>;
    /// Describes the guarantees that the storage turned out to lack.
    fn shortcomings(&self) -> Vec<&'static str>;
    /// Undoes `create`: if the target holds only objects that `is_ours` accepts, removes them, and the root if `create`
    /// made it. Returns whether the target is now empty or gone.
    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool;
}

/// An open target.
#[derive(Debug)]
pub struct Target {
    storage: Box<dyn Storage>,
    location: String,
}

impl Target {
    /// Opens the target at the path `location`. A missing directory is [`ErrorKind::NotFound`].
    pub fn open(location: &str) -> Result<Self, Error> {
        let storage = DirectoryStorage::open(Path::new(path_of(location)?))?;
        Ok(Target { storage: Box::new(storage), location: location.to_owned() })
    }

    /// Creates an empty target at the path `location`, a new or an existing directory. Removes the objects and folders
    /// (`keys/`) in it that `is_leftover` accepts; anything else in it is [`ErrorKind::AlreadyExists`].
    pub fn create(location: &str, is_leftover: &dyn Fn(&str) -> bool) -> Result<Self, Error> {
        let storage = DirectoryStorage::create(Path::new(path_of(location)?), is_leftover)?;
        Ok(Target { storage: Box::new(storage), location: location.to_owned() })
    }

    /// The location as it was given to `open` or `create`.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The path of the target's directory; `None` if the target is not a directory.
    pub fn local_path(&self) -> Option<&Path> {
        path_of(&self.location).ok().map(Path::new)
    }

    /// Opens a spool for the object `name`, to be passed to [`Target::store`]. Dropping the spool discards the object.
    pub fn spool(&self, name: &str) -> Result<Spool, Error> {
        self.storage.spool(name)
    }

    /// Stores the spooled bytes under `name`, atomically and durably. If the name is taken, the existing object stays
    /// unchanged and the error is [`ErrorKind::AlreadyExists`].
    pub fn store(&self, name: &str, spool: Spool) -> Result<(), Error> {
        self.storage.store(name, spool, Rivals::None)
    }

    /// Stores `bytes` under `name`, with the guarantees of [`Target::store`].
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut spool = self.spool(name)?;
        spool.append(bytes)?;
        self.store(name, spool)
    }

    /// Like [`Target::put`], for a name that another writer may store at the same time: only one of the two succeeds, on
    /// any file system.
    pub fn claim(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut spool = self.spool(name)?;
        spool.append(bytes)?;
        self.storage.store(name, spool, Rivals::Possible)
    }

    /// Replaces the content of `bytes` with `length` bytes of the object from `offset` on. A shorter object is
    /// [`ErrorKind::Truncated`].
    pub fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.storage.read(name, offset, length, bytes)
    }

    /// Hint that these bytes will not be read again soon; caches may drop them. Reading them still works.
    pub fn forget(&self, name: &str, offset: u64, length: usize) {
        self.storage.forget(name, offset, length);
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
        let length = self.length(name)?;
        match usize::try_from(length) {
            Ok(length) if length <= limit => {
                let mut bytes = Vec::new();
                self.read(name, 0, length, &mut bytes)?;
                Ok(bytes)
            }
            _ => Err(Error::new(
                ErrorKind::TooLarge,
                "read",
                name,
                format!("{length} bytes, more than the {limit} allowed"),
            )),
        }
    }

    /// Returns the object's size in bytes. A missing object is [`ErrorKind::NotFound`].
    pub fn length(&self, name: &str) -> Result<u64, Error> {
        self.storage.length(name)
    }

    /// Returns a stamp of the object's file. A missing object is [`ErrorKind::NotFound`].
    pub fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        self.storage.stamp(name)
    }

    /// Lists the objects whose names begin with `prefix` (which ends in `/`), sorted by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Error> {
        self.storage.list(prefix)
    }

    /// Makes every object that a listing of these folders shows durable. A killed writer may have stored objects without
    /// syncing their folders.
    pub fn sync(&self, folders: &[&str]) -> Result<(), Error> {
        self.storage.sync(folders)
    }

    /// Removes an object, durably. A missing object is [`ErrorKind::NotFound`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.storage.remove(name)
    }

    /// Removes temporary files of killed writers from these folders, durably. No other writer may be active. Returns the
    /// number of files removed.
    pub fn remove_temporaries(&self, folders: &[&str]) -> Result<u64, Error> {
        self.storage.remove_temporaries(folders)
    }

    /// Calls `found` with each object whose name begins with `prefix`, in any order.
    pub fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        self.storage.visit(prefix, found)
    }

    /// Describes the guarantees that the storage turned out to lack. Each text is a message to print after the location.
    /// Complete only after an object was stored.
    pub fn shortcomings(&self) -> Vec<&'static str> {
        self.storage.shortcomings()
    }

    /// Undoes [`Target::create`]: if the target holds only objects that `is_ours` accepts, removes them, and the root if
    /// `create` made it. Returns whether the target is now empty or gone.
    pub fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        self.storage.abandon(is_ours)
    }
}

/// Returns the path in a location, which is a path or a `file://` URL.
fn path_of(location: &str) -> Result<&str, Error> {
    if let Some((scheme, rest)) = location.split_once("://") {
        if scheme == "file" {
            return Ok(rest);
        }
        let why = format!("targets of the kind {scheme}:// are not supported; give a path");
        return Err(Error::new(ErrorKind::Unsupported, "open", location, why));
    }
    match location {
        "" => Err(Error::new(ErrorKind::NotFound, "open", location, "the location is empty")),
        path => Ok(path),
    }
}
