//! Requests to a WebDAV server.

use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::http::Request;

use super::address::Address;
use super::failure::Failure;
use super::login::Door;
use super::multistatus::{self, Entry};
use crate::storage::error::ErrorKind;
use crate::storage::http::{Answer, Client};
use crate::storage::netrc::Login;
use crate::storage::remote::{FEW, Remote};
use crate::storage::spool::Spool;
use crate::storage::url::encode;
use crate::storage::xml::{Malformed, Problem};

/// Bytes from which on the server is asked before a body is sent. An error then costs no upload, and its text arrives.
const ASK: u64 = 128 << 10;
/// Bytes of a listing of a folder: some million files.
const LONGEST_LISTING: u64 = 1 << 30;
/// Bytes of an answer whose text does not matter.
const LONGEST_TEXT: u64 = 64 << 10;
/// Tries of a request: without a login, with one, and with one for a new challenge.
const TRIES: usize = 3;

/// A server that can be reached.
#[derive(Debug)]
pub(super) struct Server {
    client: Client,
    door: Door,
    /// Such as `https://host:8443`.
    url: String,
    /// A proxy in front of the server changes its address, so destinations are sent without one.
    is_renamed: AtomicBool,
}

/// The body of a request.
#[derive(Debug, Clone, Copy)]
enum Content<'c> {
    None,
    Text(&'static str),
    Spool(&'c Spool),
}

/// The extent of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// A file or folder.
    Itself,
    /// A folder and its direct entries.
    Children,
}

impl Server {
    /// Connects to nothing yet.
    pub(super) fn new(address: &Address, login: Option<Login>, remote: &Remote) -> Result<Self, Failure> {
        let (client, url) = (Client::new(remote, remote.connections(FEW))?, address.server());
        let is_private = address.tls || (address.is_loopback() && client.is_direct(&url));
        Ok(Server { client, door: Door::new(login, is_private), url, is_renamed: AtomicBool::default() })
    }

    /// The maximum number of connections.
    pub(super) fn lanes(&self) -> usize {
        self.client.most()
    }

    /// Whether other users can read the file with the password.
    pub(super) fn is_exposed(&self) -> bool {
        self.door.is_exposed()
    }

    /// Makes a request for a path. An answer with an error is a failure.
    fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        content: Content<'_>,
    ) -> Result<Answer<'_>, Failure> {
        let target = encode(path, true);
        let failed = |e: ureq::http::Error| Failure::new(ErrorKind::Other, format!("cannot make the request: {e}"));
        let length = match content {
            Content::None => None,
            Content::Text(text) => Some(text.len() as u64),
            Content::Spool(spool) => Some(spool.length()),
        };
        let mut tries = 0;
        loop {
            let (authorization, round) = self.door.header(method, &target)?;
            let mut request = Request::builder().method(method).uri(format!("{}{target}", self.url));
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            if let Some(length) = length {
                request = request.header("content-length", length);
            }
            if length.is_some_and(|length| length >= ASK) {
                request = request.header("expect", "100-continue");
            }
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(()).map_err(failed)?;
            let mut answer = match content {
                Content::None => self.client.send(request)?,
                Content::Text(text) => self.client.send_body(request, &mut text.as_bytes())?,
                Content::Spool(spool) => self.client.send_body(request, &mut spool.upload())?,
            };
            tries += 1;
            match answer.status {
                401 => {
                    self.door.refused(round, &answer.headers("www-authenticate"))?;
                    if tries == TRIES {
                        return Err(Failure::new(ErrorKind::Refused, "the server refuses the login again and again"));
                    }
                    // Then the connection can be used again.
                    let _ = answer.read(LONGEST_TEXT, &mut Vec::new());
                }
                200..300 => {
                    self.door.accepted(round);
                    return Ok(answer);
                }
                _ => {
                    self.door.accepted(round);
                    return Err(Failure::of(method, &mut answer));
                }
            }
        }
    }

    /// The same for an answer whose text does not matter.
    fn act(&self, method: &str, path: &str, headers: &[(&str, &str)], content: Content<'_>) -> Result<(), Failure> {
        let mut answer = self.send(method, path, headers, content)?;
        // One of several statuses tells of an error in one of them.
        if answer.status == 207 {
            return Err(Failure::new(ErrorKind::Other, "the server could not do all of it"));
        }
        // The status has said it all. After this, the connection can be used again.
        let _ = answer.read(LONGEST_TEXT, &mut Vec::new());
        Ok(())
    }

    /// Stores a spool in a file. Existing content may be replaced.
    pub(super) fn put(&self, path: &str, spool: &Spool) -> Result<(), Failure> {
        self.act("PUT", path, &[("content-type", "application/octet-stream")], Content::Spool(spool))
    }

    /// Gives a file another name, unless that is taken.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let short = encode(to, true);
        let full = format!("{}{short}", self.url);
        let move_to = |to: &str| self.act("MOVE", from, &[("destination", to), ("overwrite", "F")], Content::None);
        if self.is_renamed.load(Ordering::Relaxed) {
            return move_to(&short);
        }
        match move_to(&full) {
            // The server may know itself by another address than this one, which a proxy has.
            Err(failure) if matches!(failure.status, Some(400 | 502)) => {
                move_to(&short).map_err(|_| failure)?;
                self.is_renamed.store(true, Ordering::Relaxed);
                Ok(())
            }
            moved => moved,
        }
    }

    /// Makes a folder.
    pub(super) fn make_folder(&self, path: &str) -> Result<(), Failure> {
        self.act("MKCOL", path, &[], Content::None)
    }

    /// Removes a file, or a folder with all that is in it.
    pub(super) fn delete(&self, path: &str) -> Result<(), Failure> {
        self.act("DELETE", path, &[], Content::None)
    }

    /// Asks for the bytes of a file, all or a range such as `bytes=0-1`.
    pub(super) fn get(&self, path: &str, range: Option<&str>) -> Result<Answer<'_>, Failure> {
        let range = range.map(|range| ("range", range));
        self.send("GET", path, range.as_slice(), Content::None)
    }

    /// Calls `take` with the entries that are listed at a path.
    pub(super) fn list(
        &self,
        path: &str,
        depth: Depth,
        take: &mut dyn FnMut(Entry) -> Result<(), Malformed>,
    ) -> Result<(), Failure> {
        let depth = if depth == Depth::Itself { "0" } else { "1" };
        let headers = [("depth", depth), ("content-type", "application/xml; charset=utf-8")];
        let mut answer = self.send("PROPFIND", path, &headers, Content::Text(multistatus::QUESTION))?;
        let not_a_list =
            || Failure::new(ErrorKind::Other, "the server sent a list that is not one of WebDAV; check the location");
        if answer.status != 207 {
            return Err(not_a_list());
        }
        let source = BufReader::new(answer.body().take(LONGEST_LISTING));
        match multistatus::each(source, take) {
            Ok(()) => {}
            Err(Problem::Malformed) => return Err(not_a_list()),
            Err(Problem::Source(error)) => return Err(answer.lost(error).into()),
        }
        // Then the connection can be used again.
        answer.read(LONGEST_TEXT, &mut Vec::new())?;
        Ok(())
    }
}
