//! Stores objects in a bucket of S3, Amazon's or a compatible one.
//!
//! An object is stored with one request, which takes effect as a whole or not at all, so nothing partial is ever visible and
//! a killed run leaves nothing. The server compares the object with its signed SHA-256.
//!
//! Existing objects are protected by the condition `If-None-Match: *`. Servers that lack it ignore or refuse it. Nothing
//! depends on it there: names of objects contain random ids or the id of the run that writes.
//!
//! - [`address`]: bucket and prefix; [`account`]: keys, region and endpoint
//! - [`signature`]: signs requests; [`requests`]: makes them; [`xml`]: documents in answers
//! - [`failure`]: why a request failed

mod account;
mod address;
mod failure;
mod requests;
mod signature;
mod xml;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use account::Account;
pub use account::parse_endpoint;
pub use address::Address;
use failure::Failure;
use requests::{Bucket, Content};

use super::contract::{Capabilities, Ended, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::http::{read_range, version};
use super::layout::MOST;
use super::parts::{JOINED, Parts};
use super::remote::Remote;
use super::removal::one_by_one;
use super::spool::{Spool, Spools};

/// Objects of a page of a listing, and of a request that removes some.
const PAGE: usize = 1000;
/// Pages of a listing. Pages of a hostile server might never end.
const MOST_PAGES: usize = 1_000_000;

/// A target that is a prefix in a bucket.
#[derive(Debug)]
pub struct S3Storage {
    bucket: Bucket,
    address: Address,
    spools: Spools,
    /// The server does not know conditions.
    unconditional: AtomicBool,
    /// The server does not remove several objects with one request.
    one_by_one: AtomicBool,
    /// The storage was made by `create`.
    is_new: bool,
}

impl S3Storage {
    /// Opens the target in a bucket. A missing bucket is [`ErrorKind::NotFound`].
    pub fn open(address: &Address, remote: &Remote) -> Result<Self, Error> {
        let storage = S3Storage::new(address, remote, "open")?;
        match storage.bucket.list(&address.key_of(""), None, 1) {
            Err(failure) if failure.code == "NoSuchBucket" => {
                Err(Failure { kind: ErrorKind::NotFound, ..failure }.into_error("open", &shown(address)))
            }
            // It is there, and will be waited for.
            Err(failure) if failure.kind == ErrorKind::Throttled => Ok(storage),
            Err(failure) => Err(failure.into_error("open", &shown(address))),
            Ok(_) => Ok(storage),
        }
    }

    fn new(address: &Address, remote: &Remote, action: &'static str) -> Result<Self, Error> {
        let variable = |name: &str| std::env::var(name).ok();
        let account = Account::find(remote, &variable);
        let account = account.map_err(|why| Error::new(ErrorKind::Refused, action, &shown(address), why))?;
        let bucket = Bucket::new(&address.bucket, account, remote);
        Ok(S3Storage {
            bucket: bucket.map_err(|failure| failure.into_error(action, &shown(address)))?,
            address: address.clone(),
            spools: remote.spools(),
            unconditional: AtomicBool::default(),
            one_by_one: AtomicBool::default(),
            is_new: false,
        })
    }

    /// Begins a target below a prefix that has no objects, or only leftovers of an interrupted `create`.
    pub(super) fn create(
        address: &Address,
        remote: &Remote,
        is_leftover: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut storage = S3Storage::new(address, remote, "create")?;
        storage.is_new = true;
        if storage.clear(is_leftover).map_err(|failure| failure.into_error("create", &shown(address)))? {
            return Ok(storage);
        }
        let why = "there are other objects below the location";
        Err(Error::new(ErrorKind::AlreadyExists, "create", &shown(address), why))
    }

    /// Calls `found` with the names of objects that begin with `prefix`, and their lengths.
    fn each(&self, prefix: &str, found: &mut dyn FnMut(&str, u64)) -> Result<(), Failure> {
        let root = self.address.key_of("");
        let (prefix, mut token): (_, Option<String>) = (self.address.key_of(prefix), None);
        for _ in 0..MOST_PAGES {
            let page = self.bucket.list(&prefix, token.as_deref(), PAGE)?;
            for (key, length) in &page.objects {
                let name = key.get(root.len()..).unwrap_or_default();
                // Programs that show folders store empty objects in their place.
                if !name.is_empty() && !name.ends_with('/') {
                    found(name, *length);
                }
            }
            match page.next {
                None => return Ok(()),
                next if next == token => {
                    return Err(Failure::new(ErrorKind::Other, "the server sends the same part of a list twice"));
                }
                next => token = next,
            }
        }
        Err(Failure::new(ErrorKind::Other, "the server's list does not end"))
    }

    /// Removes all objects if `may_go` accepts them all. Otherwise removes nothing and returns false.
    fn clear(&self, may_go: &dyn Fn(&str) -> bool) -> Result<bool, Failure> {
        let (mut names, mut may_all_go) = (Vec::new(), true);
        self.each("", &mut |name, _| {
            if may_all_go && names.len() < MOST && may_go(name) {
                names.push(name.to_owned());
            } else {
                may_all_go = false;
            }
        })?;
        if may_all_go {
            names.iter().try_for_each(|name| self.bucket.delete(&self.address.key_of(name)))?;
        }
        Ok(may_all_go)
    }

    /// Removes objects, at most a page, with one request. Returns the positions of those that are left to be removed one by
    /// one: the server does not know such requests, or does not tell enough about them.
    fn remove_page(&self, names: &[&str], ended: Ended<'_>) -> Result<Vec<usize>, Error> {
        let keys: Vec<_> = names.iter().map(|name| self.address.key_of(name)).collect();
        let failed =
            |at: usize, failure: Failure| failure.into_error("remove", names.get(at).copied().unwrap_or_default());
        let removals = match self.bucket.delete_all(&keys) {
            Ok(removals) => removals,
            Err(failure) if failure.kind.is_temporary() && failure.code != "NotImplemented" => {
                return Err(failed(0, failure));
            }
            // If the reason is another one, a single removal fails with it.
            Err(_) => {
                self.one_by_one.store(true, Ordering::Relaxed);
                return Ok((0..names.len()).collect());
            }
        };
        let mut left: HashMap<_, _> = keys.iter().enumerate().map(|(at, key)| (key.as_str(), at)).collect();
        let mut away = None;
        let mut unclear = Vec::new();
        for key in removals.removed {
            if let Some(at) = left.remove(key.as_str()) {
                ended(at, Ok(()));
            }
        }
        for (key, problem) in removals.kept {
            let Some(at) = left.remove(key.as_str()) else { continue };
            match Failure::of_key(problem) {
                Some(failure) if failure.kind.is_away() => _ = away.get_or_insert(failed(at, failure)),
                Some(failure) => ended(at, Err(failed(at, failure))),
                None => unclear.push(at),
            }
        }
        unclear.extend(left.into_values());
        away.map_or(Ok(unclear), Err)
    }

    /// The length of an object and the stamp of its content.
    fn object(&self, name: &str) -> Result<(u64, [u64; 3]), Failure> {
        let answer = self.bucket.look(&self.address.key_of(name))?;
        let unclear = || Failure::new(ErrorKind::Other, "the server does not tell its size");
        let length = answer.length().ok_or_else(unclear)?;
        let [tag, time] = ["etag", "last-modified"].map(|header| answer.header(header).unwrap_or_default());
        Ok((length, version(tag, time)))
    }

    fn read_range(&self, name: &str, parts: Parts<'_>) -> Result<(), Failure> {
        let length = || Ok(self.object(name)?.0);
        let read = |range: &str, parts: Parts<'_>| {
            Ok(self.bucket.get(&self.address.key_of(name), range)?.read_range(parts)?)
        };
        read_range(parts, length, read)
    }

    /// Reads a whole object in one request. `Err` with a length: it is larger than `limit`.
    fn read_all(&self, name: &str, limit: usize) -> Result<Result<Vec<u8>, u64>, Failure> {
        let mut answer = self.bucket.get_all(&self.address.key_of(name))?;
        let (length, read) = (answer.length(), answer.read_whole(limit)?);
        drop(answer);
        // Without a length, the end of the connection may be that of the object.
        if let (None, Ok(bytes)) = (length, &read)
            && self.object(name)?.0 != bytes.len() as u64
        {
            return Err(Failure::new(ErrorKind::Unavailable, "the server did not send the whole object"));
        }
        Ok(read)
    }

    fn upload(&self, spool: &Spool) -> Result<(), Failure> {
        let key = self.address.key_of(spool.object());
        let failed = |e: std::io::Error| {
            Failure::new(ErrorKind::Other, format!("the temporary file on this machine cannot be read: {e}"))
        };
        loop {
            let mut content = Content::new(spool.length(), spool.contents(), spool.upload()).map_err(failed)?;
            let only_new = !self.unconditional.load(Ordering::Relaxed);
            match self.bucket.put(&key, &mut content, only_new) {
                // The server does not know the condition.
                Err(failure) if only_new && failure.code == "NotImplemented" => {
                    self.unconditional.store(true, Ordering::Relaxed);
                }
                stored => return stored,
            }
        }
    }
}

/// The location in errors.
fn shown(address: &Address) -> String {
    format!("s3://{}/{}", address.bucket, address.prefix)
}

impl Storage for S3Storage {
    fn capabilities(&self) -> Capabilities {
        let exposed = "other users can read the file with the secret key; run chmod go= on it";
        Capabilities {
            lanes: self.bucket.lanes(),
            joined: JOINED,
            removals: if self.one_by_one.load(Ordering::Relaxed) { Capabilities::default().removals } else { PAGE },
            shortcomings: self.bucket.is_exposed().then_some(exposed).into_iter().collect(),
            ..Capabilities::default()
        }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.spools.open(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        self.upload(spool).map_err(|failure| failure.into_error("store", spool.object()))
    }

    fn read(&self, name: &str, offset: u64, length: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        self.read_parts(name, Parts { offset, lengths: &[length], bytes, take: &mut |_| () })
    }

    fn read_parts(&self, name: &str, parts: Parts<'_>) -> Result<(), Error> {
        self.read_range(name, parts).map_err(|failure| failure.into_error("read", name))
    }

    fn get(&self, name: &str, limit: usize) -> Result<Vec<u8>, Error> {
        let read = self.read_all(name, limit).map_err(|failure| failure.into_error("read", name))?;
        read.map_err(|length| Error::too_large(name, length, limit))
    }

    fn length(&self, name: &str) -> Result<u64, Error> {
        Ok(self.object(name).map_err(|failure| failure.into_error("read", name))?.0)
    }

    fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let (length, version) = self.object(name).map_err(|failure| failure.into_error("read", name))?;
        Ok(Stamp::new(length, version))
    }

    fn visit(&self, prefix: &str, found: &mut dyn FnMut(ObjectInfo)) -> Result<(), Error> {
        let shown = if prefix.is_empty() { "the repository" } else { prefix };
        self.each(prefix, &mut |name, length| found(ObjectInfo { name: name.to_owned(), length }))
            .map_err(|failure| failure.into_error("list", shown))
    }

    /// Most servers do not tell whether they had the object.
    fn remove(&self, name: &str) -> Result<(), Error> {
        self.bucket.delete(&self.address.key_of(name)).map_err(|failure| failure.into_error("remove", name))
    }

    fn remove_all(&self, names: &[&str], ended: Ended<'_>) -> Result<(), Error> {
        for first in (0..names.len()).step_by(PAGE) {
            let page = names.get(first..names.len().min(first + PAGE)).unwrap_or_default();
            let mut end = |at: usize, result| ended(first + at, result);
            let left = match self.one_by_one.load(Ordering::Relaxed) {
                true => (0..page.len()).collect(),
                false => self.remove_page(page, &mut end)?,
            };
            let singles: Vec<_> = left.iter().filter_map(|at| page.get(*at).copied()).collect();
            one_by_one(self.bucket.lanes(), &singles, &|name| self.remove(name), &mut |at, result| {
                end(left.get(at).copied().unwrap_or_default(), result);
            })?;
        }
        Ok(())
    }

    /// Every object that the server has acknowledged is as durable as it gets.
    fn settle(&self, _prefixes: &[&str]) -> Result<(), Error> {
        Ok(())
    }

    /// A killed run leaves nothing but whole objects.
    fn discard(&self, _prefixes: &[&str], _runs: &[Uuid]) -> Result<u64, Error> {
        Ok(0)
    }

    fn abandon(&self, is_ours: &dyn Fn(&str) -> bool) -> bool {
        self.is_new && self.clear(is_ours).unwrap_or_default()
    }
}
