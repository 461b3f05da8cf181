//! Storage that adds something to another storage: one method around all operations.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;

use uuid::Uuid;

use super::contract::{Capabilities, Ended, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::layout::folder_of;
use super::listing::Listing;
use super::parts::Parts;
use super::spool::Spool;

/// The kinds of operation on a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Storage::spool`]
    Spool,
    /// [`Storage::store`]
    Store,
    /// [`Storage::read`], [`Storage::read_parts`] and [`Storage::get`]
    Read,
    /// [`Storage::length`] and [`Storage::stamp`]
    Length,
    /// [`Storage::visit`]
    List,
    /// [`Storage::remove`] and [`Storage::remove_all`]
    Remove,
    /// [`Storage::settle`]
    Settle,
    /// [`Storage::discard`]
    Discard,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    /// The object or the prefix; empty if there are several.
    pub(super) name: &'a str,
    /// For [`Operation::Store`].
    pub(super) spool: Option<&'a Spool>,
    /// Set by a try that failed after a part of it took effect.
    pub(super) progress: Option<&'a Cell<bool>>,
}

impl<'a> Call<'a> {
    fn new(operation: Operation, name: &'a str) -> Self {
        Call { operation, name, spool: None, progress: None }
    }
}

/// Makes an operation. Each call is one try, and returns the number of bytes of objects that it transferred.
pub(super) type Try<'t> = &'t mut dyn FnMut() -> Result<u64, Error>;

/// A storage around another one. Hints and capabilities are those of the inner one.
pub(super) trait Wrapper: Send + Sync + fmt::Debug {
    /// Whether `around` may try several times.
    const REPEATS: bool = false;

    /// The wrapped storage.
    fn inner(&self) -> &dyn Storage;

    /// Makes an operation on the inner storage by calling `attempt`, once or more. On success the operation took effect.
    fn around(&self, call: Call<'_>, attempt: Try<'_>) -> Result<(), Error>;

    /// Makes [`Storage::remove_all`] on the inner storage. Each try is for the names whose removal has not ended.
    fn around_removals(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        let (mut left, mut tries): (Vec<usize>, _) = ((0..names.len()).collect(), 0);
        let progress = Cell::new(false);
        let call = Call { progress: Some(&progress), ..Call::new(Operation::Remove, "") };
        self.around(call, &mut || {
            tries += 1;
            let tried: Vec<_> = left.iter().filter_map(|at| names.get(*at).copied()).collect();
            let (mut has_ended, mut gone) = (vec![false; tried.len()], Vec::new());
            let mut end = |at: usize, result| {
                if let (Some(has_ended), Some(position)) = (has_ended.get_mut(at), left.get(at)) {
                    *has_ended = true;
                    ended(*position, result);
                }
            };
            let result = self.inner().remove_all(&tried, &mut |at, result| match result {
                // An earlier try removed it, and may have failed before that was durable.
                Err(error) if tries > 1 && error.kind == ErrorKind::NotFound => gone.push(at),
                result => end(at, result),
            });
            let folders: BTreeSet<_> = gone.iter().filter_map(|at| Some(folder_of(tried.get(*at)?))).collect();
            let settled = match folders.len() {
                0 => Ok(()),
                _ => self.inner().settle(&Vec::from_iter(folders)),
            };
            if settled.is_ok() {
                gone.into_iter().for_each(|at| end(at, Ok(())));
            }
            progress.set(has_ended.contains(&true));
            let mut has_ended = has_ended.into_iter();
            left.retain(|_| has_ended.next() == Some(false));
            result.and(settled).map(|()| 0)
        })
    }

    /// Makes [`Storage::read_parts`] on the inner storage. Each try is for the parts that are not taken yet.
    fn around_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        let Parts { mut offset, mut lengths, bytes, take } = parts;
        let progress = Cell::new(false);
        let call = Call { progress: Some(&progress), ..Call::new(Operation::Read, name) };
        self.around(call, &mut || {
            let (mut taken, mut read) = (0, 0);
            let mut count = |part: &[u8]| {
                (taken, read) = (taken + 1, read + part.len() as u64);
                take(part);
            };
            let result = self.inner().read_parts(name, Parts { offset, lengths, bytes, take: &mut count });
            progress.set(taken > 0);
            lengths = lengths.get(taken..).unwrap_or_default();
            offset += read;
            // What the server did after the last part does not matter.
            if lengths.is_empty() { Ok(read) } else { result.map(|()| read) }
        })
    }
}

impl<W: Wrapper> Storage for W {
    fn capabilities(&self) -> Capabilities {
        self.inner().capabilities()
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        let mut spool = None;
        self.around(Call::new(Operation::Spool, name), &mut || {
            spool = Some(self.inner().spool(name, run)?);
            Ok(0)
        })?;
        spool.ok_or_else(|| Error::new(ErrorKind::Other, "write", name, "the storage did not open a temporary file"))
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let call = Call { spool: Some(spool), ..Call::new(Operation::Store, spool.object()) };
        self.around(call, &mut || self.inner().store(spool).map(|()| spool.length()))
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.around(Call::new(Operation::Read, name), &mut || {
            self.inner().read(name, offset, length, bytes).map(|()| length as u64)
        })
    }

    fn read_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        self.around_parts(name, parts)
    }

    fn get(&self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.around(Call::new(Operation::Read, name), &mut || {
            bytes = self.inner().get(name, limit)?;
            Ok(bytes.len() as u64)
        })?;
        Ok(bytes)
    }

    fn evict(&self, name: &str, offset: u64, length: usize) {
        self.inner().evict(name, offset, length);
    }

    fn prefer(&self, name: &str) {
        self.inner().prefer(name);
    }

    fn widen(&self) {
        self.inner().widen();
    }

    fn has_copy(&self, name: &str, offset: u64, length: usize) -> bool {
        self.inner().has_copy(name, offset, length)
    }

    fn drop_copy(&self, name: &str, offset: u64, length: usize) -> bool {
        self.inner().drop_copy(name, offset, length)
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        let mut length = 0;
        self.around(Call::new(Operation::Length, name), &mut || {
            length = self.inner().length(name)?;
            Ok(0)
        })?;
        Ok(length)
    }

    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let mut stamp = None;
        self.around(Call::new(Operation::Length, name), &mut || {
            stamp = Some(self.inner().stamp(name)?);
            Ok(0)
        })?;
        stamp.ok_or_else(|| Error::new(ErrorKind::Other, "read", name, "the storage did not look at it"))
    }

    /// A wrapper that repeats keeps the listing until it is complete: a second try lists everything again.
    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        let call = Call::new(Operation::List, prefix);
        if !W::REPEATS {
            return self.around(call, &mut || self.inner().visit(prefix, found).map(|()| 0));
        }
        let mut listing = Listing::new();
        self.around(call, &mut || {
            listing = Listing::new();
            self.inner().visit(prefix, &mut |object| listing.push(&object))?;
            Ok(0)
        })?;
        listing.each(found).map_err(|error| {
            let why = format!("cannot use a temporary file: {error}; set TMPDIR to a directory with more free space");
            Error::new(ErrorKind::Other, "list", prefix, why)
        })
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.around(Call::new(Operation::Remove, name), &mut || self.inner().remove(name).map(|()| 0))
    }

    fn remove_all(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        self.around_removals(names, ended)
    }

    fn settle(&self, prefixes: &[&str]) -> Result<(), Error> {
        self.around(Call::new(Operation::Settle, ""), &mut || self.inner().settle(prefixes).map(|()| 0))
    }

    fn discard(&self, prefixes: &[&str], runs: &[Uuid]) -> Result<u64, Error> {
        let mut removed = 0;
        self.around(Call::new(Operation::Discard, ""), &mut || {
            removed += self.inner().discard(prefixes, runs)?;
            Ok(0)
        })?;
        Ok(removed)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        self.inner().abandon(is_ours)
    }
}
