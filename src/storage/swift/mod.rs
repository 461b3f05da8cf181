//! Stores objects in a container of OpenStack Swift.
//!
//! An object is stored with one request, which takes effect as a whole or not at all, so nothing partial is ever visible and
//! a killed run leaves nothing. The server compares the object with its MD5.
//!
//! Existing objects are protected by the condition `If-None-Match: *`. Servers check it before the upload, so of two writers
//! that store one object at the same moment, both may succeed. Nothing depends on it: names of objects contain random ids or
//! the id of the run that writes.
//!
//! A listing may lack new objects for a while, and show removed ones; see [`Capabilities::lag`].
//!
//! - [`address`]: container and prefix; [`account`]: the login
//! - [`login`]: logs in; [`requests`]: makes requests
//! - [`failure`]: why a request failed

mod account;
mod address;
mod failure;
mod login;
mod requests;

use std::time::Duration;

use uuid::Uuid;

use account::Account;
pub use address::Address;
use failure::Failure;
use requests::Container;

use super::contract::{Capabilities, ObjectInfo, Stamp, Storage};
use super::error::{Error, ErrorKind};
use super::http::{Lost, read_range, version};
use super::layout::MOST;
use super::parts::{JOINED, Parts};
use super::remote::Remote;
use super::spool::{Spool, Spools};

/// Objects of a page of a listing.
const PAGE: usize = 2000;

/// A target that is a prefix in a container.
#[derive(Debug)]
pub struct SwiftStorage {
    container: Container,
    address: Address,
    spools: Spools,
    lag: Duration,
    /// The storage was made by `create`.
    is_new: bool,
}

impl SwiftStorage {
    /// Opens the target in a container. A missing container is [`ErrorKind::NotFound`].
    pub fn open(address: &Address, remote: &Remote) -> Result<Self, Error> {
        let storage = SwiftStorage::new(address, remote, "open")?;
        match storage.container.list(&address.name_of(""), "", 1) {
            // It is there, and will be waited for.
            Err(failure) if failure.kind == ErrorKind::Throttled => Ok(storage),
            Err(failure) if failure.kind == ErrorKind::NotFound => {
                let why = "the container does not exist; create it, or correct the location";
                Err(Error::new(ErrorKind::NotFound, "open", &shown(address), why))
            }
            Err(failure) => Err(failure.into_error("open", &shown(address))),
            Ok(_) => Ok(storage),
        }
    }

    fn new(address: &Address, remote: &Remote, action: &'static str) -> Result<Self, Error> {
        let variable = |name: &str| std::env::var(name).ok();
        let account = Account::find(remote, &variable);
        let account = account.map_err(|why| Error::new(ErrorKind::Refused, action, &shown(address), why))?;
        let container = Container::new(&address.container, account, remote);
        Ok(SwiftStorage {
            container: container.map_err(|failure| failure.into_error(action, &shown(address)))?,
            address: address.clone(),
            spools: remote.spools(),
            lag: remote.lag,
            is_new: false,
        })
    }

    /// Begins a target below a prefix that has no objects, or only leftovers of an interrupted `create`.
    pub(super) fn create(
        address: &Address,
        remote: &Remote,
        is_leftover: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut storage = SwiftStorage::new(address, remote, "create")?;
        let failed = |failure: Failure| failure.into_error("create", &shown(address));
        storage.is_new = true;
        storage.container.exists().map_err(failed)?;
        if storage.clear(is_leftover).map_err(failed)? {
            return Ok(storage);
        }
        let why = "there are other objects below the location";
        Err(Error::new(ErrorKind::AlreadyExists, "create", &shown(address), why))
    }

    /// Calls `found` with the names of objects that begin with `prefix`, and their lengths.
    fn each(&self, prefix: &str, found: &mut dyn FnMut(&str, u64)) -> Result<(), Failure> {
        let root = self.address.name_of("");
        let (prefix, mut after) = (self.address.name_of(prefix), String::new());
        loop {
            let page = match self.container.list(&prefix, &after, PAGE) {
                Err(failure) if failure.kind == ErrorKind::NotFound => {
                    let why = "the container does not exist any more";
                    return Err(Failure { kind: ErrorKind::Refused, why: why.to_owned(), ..failure });
                }
                page => page?,
            };
            // A server may send less than was asked for before the end.
            let Some((last, _)) = page.last() else { return Ok(()) };
            after.clone_from(last);
            for (name, length) in &page {
                let name = name.get(root.len()..).unwrap_or_default();
                // Programs that show folders store empty objects in their place.
                if !name.is_empty() && !name.ends_with('/') {
                    found(name, *length);
                }
            }
        }
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
            for name in &names {
                match self.container.delete(&self.address.name_of(name)) {
                    // The listing was an old one.
                    Err(failure) if failure.kind == ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        Ok(may_all_go)
    }

    /// The length of an object and the stamp of its content.
    fn object(&self, name: &str) -> Result<(u64, [u64; 3]), Failure> {
        let answer = self.container.look(&self.address.name_of(name))?;
        let unclear = || Failure::new(ErrorKind::Other, "the server does not tell its size");
        let length = answer.length().ok_or_else(unclear)?;
        let [tag, time] = ["etag", "x-timestamp"].map(|header| answer.header(header).unwrap_or_default());
        Ok((length, version(tag, time)))
    }

    fn read_range(&self, name: &str, parts: Parts<'_>) -> Result<(), Failure> {
        let length = || Ok(self.object(name)?.0);
        let read = |range: &str, parts: Parts<'_>| {
            let mut answer = self.container.get(&self.address.name_of(name), Some(range))?;
            // An empty object has no ranges.
            if answer.status == 200 && answer.length() == Some(0) {
                return Err(Lost::short().into());
            }
            Ok(answer.read_range(parts)?)
        };
        read_range(parts, length, read)
    }

    /// Reads a whole object in one request. `Err` with a length: it is larger than `limit`.
    fn read_all(&self, name: &str, limit: usize) -> Result<Result<Vec<u8>, u64>, Failure> {
        let mut answer = self.container.get(&self.address.name_of(name), None)?;
        if answer.length().is_none() {
            return Err(Failure::new(ErrorKind::Other, "the server does not tell its size"));
        }
        Ok(answer.read_whole(limit)?)
    }
}

/// The location in errors.
fn shown(address: &Address) -> String {
    format!("swift://{}/{}", address.container, address.prefix)
}

impl Storage for SwiftStorage {
    fn capabilities(&self) -> Capabilities {
        let exposed = "other users can read the file with the secret; run chmod go= on it";
        let open = "the login or its token is sent unencrypted, so others on the network can use it; use https:// in ST_AUTH or \
                    OS_AUTH_URL, or choose another endpoint";
        let known = [(self.container.is_exposed(), exposed), (self.container.is_open(), open)];
        Capabilities {
            lanes: self.container.lanes(),
            joined: JOINED,
            lag: self.lag,
            shortcomings: known.iter().filter(|(is_so, _)| *is_so).map(|(_, words)| *words).collect(),
            ..Capabilities::default()
        }
    }

    fn spool(&self, name: &str, run: Uuid) -> Result<Spool, Error> {
        self.spools.open(name, run)
    }

    fn store(&self, spool: &Spool) -> Result<(), Error> {
        let stored = self.container.put(&self.address.name_of(spool.object()), spool);
        stored.map_err(|failure| failure.into_error("store", spool.object()))
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

    fn remove(&self, name: &str) -> Result<(), Error> {
        self.container.delete(&self.address.name_of(name)).map_err(|failure| failure.into_error("remove", name))
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
