//! Targets: where bytes rest. The seam between brackfs and storage.
//!
//! A target holds objects, each under a name such as `packs/ab/…`. Objects are created whole or not at
//! all, never rewritten. [`Target`] is what everyone uses; behind it stands a [`Storage`], of which there is
//! one for directories so far.
//!
//! - [`directory`]: objects as files below a directory; [`place`]: how what is below it is opened
//! - [`spool`]: an object on its way, in a file without a name

mod directory;
mod error;
mod place;
mod spool;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

pub use error::{Error, ErrorKind};
pub use spool::Spool;

use directory::Directory;

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub length: u64,
}

/// Bytes that are read at once of an object that is only passed through.
const PIECE: usize = 1 << 20;

/// Whether another writer may choose the same name for an object at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rivals {
    /// No: the name is random.
    None,
    /// Yes: at most one of them may succeed, on any file system.
    Possible,
}

/// What a kind of storage must do. All methods may be called from several threads.
trait Storage: Send + Sync + fmt::Debug {
    /// Opens a spool for an object that will go under `name`.
    fn spool(&self, name: &str) -> Result<Spool, Error>;
    /// Stores the spooled bytes under `name`: all of them, durably, or nothing. An existing object is
    /// left as it is and is [`ErrorKind::AlreadyExists`].
    fn store(&self, name: &str, spool: Spool, rivals: Rivals) -> Result<(), Error>;
    /// Has `bytes` hold `length` bytes from `offset` on, and nothing else. Fewer bytes there are
    /// [`ErrorKind::Truncated`].
    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error>;
    /// Nobody will want these bytes soon: what keeps them at hand can be used better.
    fn forget(&self, name: &str, offset: u64, length: usize);
    /// The object's bytes. An absent name is [`ErrorKind::NotFound`].
    fn length(&self, name: &str) -> Result<u64, Error>;
    /// Objects whose names begin with `prefix` (which ends in `/`), sorted by name. Temporary files are
    /// not objects.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Error>;
    /// Makes durable that all objects in these folders are there which a listing shows.
    fn sync(&self, folders: &[&str]) -> Result<(), Error>;
    /// Removes an object, durably. An absent name is [`ErrorKind::NotFound`].
    fn remove(&self, name: &str) -> Result<(), Error>;
    /// Removes, durably, what a writer left in these folders that was killed in the midst of an object. Returns how many
    /// files that were.
    fn remove_temporaries(&self, folders: &[&str]) -> Result<u64, Error>;
    /// Calls `found` with each object below `prefix`, in no order, so that a long listing needs no memory.
    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error>;
    /// What the storage turned out not to guarantee, in words.
    fn shortcomings(&self) -> Vec<&'static str>;
    /// Removes a target that was created and holds nothing but what `is_ours` accepts. Returns whether it is empty or gone
    /// now.
    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool;
}

/// An open target.
#[derive(Debug)]
pub struct Target {
    storage: Box<dyn Storage>,
    location: String,
}

impl Target {
    /// Opens the target at `location`, a path, to read from it and to add to it.
    /// A missing directory is [`ErrorKind::NotFound`].
    pub fn open(location: &str) -> Result<Self, Error> {
        let storage = Directory::open(Path::new(path_of(location)?))?;
        Ok(Target { storage: Box::new(storage), location: location.to_owned() })
    }

    /// Makes an empty target at `location`, a path: a new directory, or one that is there. Objects and folders (`keys/`) in
    /// it for which `is_leftover` holds are removed; if there is anything else, that is [`ErrorKind::AlreadyExists`].
    pub fn create(location: &str, is_leftover: &dyn Fn(&str) -> bool) -> Result<Self, Error> {
        let storage = Directory::create(Path::new(path_of(location)?), is_leftover)?;
        Ok(Target { storage: Box::new(storage), location: location.to_owned() })
    }

    /// Where it is, as it was given.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The directory of a target that is one.
    pub fn local_path(&self) -> Option<&Path> {
        path_of(&self.location).ok().map(Path::new)
    }

    /// Opens a spool for the object `name`, to be handed to [`Target::store`]. Dropped, it leaves nothing.
    pub fn spool(&self, name: &str) -> Result<Spool, Error> {
        self.storage.spool(name)
    }

    /// Stores the spooled bytes under `name`: all of them, durably, or nothing. An existing object is left
    /// as it is and is [`ErrorKind::AlreadyExists`].
    pub fn store(&self, name: &str, spool: Spool) -> Result<(), Error> {
        self.storage.store(name, spool, Rivals::None)
    }

    /// Stores `bytes` under `name`, with the promises of [`Target::store`].
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut spool = self.spool(name)?;
        spool.append(bytes)?;
        self.store(name, spool)
    }

    /// The same for a name that another writer may choose at the same moment: one of the two succeeds, on any file system.
    pub fn claim(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut spool = self.spool(name)?;
        spool.append(bytes)?;
        self.storage.store(name, spool, Rivals::Possible)
    }

    /// Has `bytes` hold `length` bytes of an object from `offset` on, and nothing else. Fewer bytes there are
    /// [`ErrorKind::Truncated`].
    pub fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.storage.read(name, offset, length, bytes)
    }

    /// Says that nobody will want these bytes soon, so that no memory needs to keep them. If they are wanted all the same,
    /// they are there.
    pub fn forget(&self, name: &str, offset: u64, length: usize) {
        self.storage.forget(name, offset, length);
    }

    /// Hands the first `length` bytes of an object to `take`, a piece after the other. Returns whether it came to the end
    /// before it was told to `stop`.
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

    /// The object's bytes. An absent name is [`ErrorKind::NotFound`].
    pub fn length(&self, name: &str) -> Result<u64, Error> {
        self.storage.length(name)
    }

    /// Objects whose names begin with `prefix` (which ends in `/`), sorted by name.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Error> {
        self.storage.list(prefix)
    }

    /// Makes durable that all objects in these folders are there which a listing shows: a writer that was killed may
    /// not have come to that.
    pub fn sync(&self, folders: &[&str]) -> Result<(), Error> {
        self.storage.sync(folders)
    }

    /// Removes an object, durably. An absent name is [`ErrorKind::NotFound`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.storage.remove(name)
    }

    /// Removes what a writer left in these folders that was killed in the midst of an object; nobody else may be
    /// writing. Returns how many files that were.
    pub fn remove_temporaries(&self, folders: &[&str]) -> Result<u64, Error> {
        self.storage.remove_temporaries(folders)
    }

    /// Calls `found` with each object whose name begins with `prefix`, in no order.
    pub fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        self.storage.visit(prefix, found)
    }

    /// What the storage turned out not to guarantee, in words that follow the location; known once something was stored.
    pub fn shortcomings(&self) -> Vec<&'static str> {
        self.storage.shortcomings()
    }

    /// Removes a target that was just created, as long as it holds nothing but what `is_ours` accepts. Returns whether it is
    /// empty or gone now.
    pub fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        self.storage.abandon(is_ours)
    }
}

/// The path that a location stands for.
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
