//! What every storage does: the trait, and the types of its operations.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use super::error::Error;
use super::parts::Parts;
use super::removal::one_by_one;
use super::spool::Spool;

/// Removals between two looks at an interruption, where each takes a request.
const REMOVALS: usize = 64;

/// Is told that the removal of the object at this position ended.
pub type Ended<'e> = &'e mut dyn FnMut(usize, Result<(), Error>);

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// The name relative to the target, such as `packs/ab/…`.
    pub name: String,
    /// The size in bytes.
    pub length: u64,
}

/// A version of an object, like an ETag: it changes when the object is replaced or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    length: u64,
    version: [u64; 3],
}

impl Stamp {
    /// The stamp of an object of this size in bytes. The storage decides what `version` is.
    pub fn new(length: u64, version: [u64; 3]) -> Self {
        Stamp { length, version }
    }
}

/// What a storage can do, and what it turned out to lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The directory with the objects, if they are files on this machine.
    pub directory: Option<PathBuf>,
    /// How many objects to store at the same time; more gain nothing.
    pub lanes: usize,
    /// How many objects to remove with one call of [`Storage::remove_all`]; more gain nothing.
    pub removals: usize,
    /// How many bytes to read with one call of [`Storage::read_parts`], so that requests take little of the time; 0 if one
    /// request for several parts gains nothing.
    pub joined: usize,
    /// How long a listing may lack a new object or show a removed one.
    pub lag: Duration,
    /// Messages about missing guarantees, to print after the location. Complete only after an object was stored.
    pub shortcomings: Vec<&'static str>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities {
            directory: None,
            lanes: 1,
            removals: REMOVALS,
            joined: 0,
            lag: Duration::ZERO,
            shortcomings: Vec::new(),
        }
    }
}

/// A kind of storage. Several threads may call all methods at the same time.
///
/// Each method tries once and waits for nothing but the storage; [`RetryStorage`](super::RetryStorage) tries again. An
/// error of a temporary kind ([`is_temporary`](super::ErrorKind::is_temporary)) says nothing about the object.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Returns what the storage can do.
    fn capabilities(&self) -> Capabilities;

    /// Opens a spool for the object `name`, which `run` writes. Dropping the spool discards the object.
    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error>;

    /// Stores a spooled object, atomically and durably. No other run may store the same name at the same time: names of
    /// objects are random or contain the run. If the name is taken, the existing object stays unchanged and the error is
    /// [`AlreadyExists`](super::ErrorKind::AlreadyExists). After another error the object may exist, but only as a whole; the
    /// same spool can be stored again.
    fn store(&self, spool: &Spool) -> Result<(), Error>;

    /// Replaces the content of `bytes` with `length` bytes of the object from `offset` on. A shorter object is
    /// [`Truncated`](super::ErrorKind::Truncated).
    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error>;

    /// Reads parts of an object, if possible with one request. After an error, some parts may have been taken.
    fn read_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        parts.one_by_one(|offset, length, bytes| self.read(name, offset, length, bytes))
    }

    /// Reads a whole object of at most `limit` bytes. A larger one is [`TooLarge`](super::ErrorKind::TooLarge).
    fn get(&self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let length = self.length(name)?;
        match usize::try_from(length) {
            Ok(length) if length <= limit => {
                let mut bytes = Vec::new();
                self.read(name, 0, length, &mut bytes)?;
                Ok(bytes)
            }
            _ => Err(Error::too_large(name, length, limit)),
        }
    }

    /// Hint that these bytes will not be read again soon; caches may drop them. Reading them still works.
    fn evict(&self, _name: &str, _offset: u64, _length: usize) {}

    /// Hint that caches should keep this object longer than others: every access to what is stored needs it.
    fn prefer(&self, _name: &str) {}

    /// Hint that much will be transferred soon, so that connections may be opened meanwhile.
    fn widen(&self) {}

    /// Whether there is a copy of these bytes elsewhere than in the object, so that a read of just these is fast.
    fn has_copy(&self, _name: &str, _offset: u64, _length: usize) -> bool {
        false
    }

    /// Drops the copy of these bytes that is kept elsewhere than in the object, because they turned out to be wrong. Returns
    /// whether there was one, so that reading them again may help.
    fn drop_copy(&self, _name: &str, _offset: u64, _length: usize) -> bool {
        false
    }

    /// Returns the object's size in bytes. A missing object is [`NotFound`](super::ErrorKind::NotFound).
    fn length(&self, name: &str) -> Result<u64, Error>;

    /// Returns the object's stamp. A missing object is [`NotFound`](super::ErrorKind::NotFound).
    fn stamp(&self, name: &str) -> Result<Stamp, Error>;

    /// Calls `found` with each object whose name begins with `prefix`, in any order. Memory use does not grow with the
    /// listing. The prefix ends in `/`, or is empty for all objects. An incomplete listing is an error.
    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error>;

    /// Removes an object, durably. A missing object is [`NotFound`](super::ErrorKind::NotFound), unless the storage does not
    /// tell, and returns success.
    fn remove(&self, name: &str) -> Result<(), Error>;

    /// Removes objects, durably, and in any order. Calls `ended` once for each name, with its position in `names` and the result
    /// of its removal, as of [`Storage::remove`].
    ///
    /// An error of a target that is away ([`is_away`](super::ErrorKind::is_away)) ends the call. Names whose removal has not
    /// ended by then may be removed or not.
    fn remove_all(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        one_by_one(self.capabilities().lanes, names, &|name| self.remove(name), ended)
    }

    /// Makes every object that a listing of these prefixes shows durable, including those of killed writers.
    fn settle(&self, prefixes: &[&str]) -> Result<(), Error>;

    /// Removes what these runs left below the prefixes when they were killed and what no listing shows, such as partial
    /// uploads. None of the runs may be active. Returns the number of remains.
    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error>;

    /// Undoes the creation of a target: if it holds only objects that `is_ours` accepts, removes them and everything that
    /// was made for the target. Returns whether the target is now empty or gone.
    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool;
}
