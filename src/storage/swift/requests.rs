//! Requests to a container, with a token that is renewed.

use std::fmt;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use openssl::hash::{Hasher, MessageDigest};
use serde::Deserialize;
use ureq::http::{Method, Request};

use super::account::Account;
use super::failure::Failure;
use super::login::Token;
use crate::storage::error::ErrorKind;
use crate::storage::http::{Answer, Client};
use crate::storage::remote::{MANY, Remote};
use crate::storage::spool::Spool;
use crate::storage::url::{Authority, encode, is_loopback};

/// Bytes from which on the server is asked before a body is sent. An error then costs no upload.
const ASK: u64 = 128 << 10;
/// Bytes of a page of a listing.
const LONGEST_PAGE: u64 = 8 << 20;
/// The longest name of an object.
const LONGEST_NAME: usize = 1024;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;
/// Bytes of an answer whose text does not matter.
const LONGEST_TEXT: u64 = 64 << 10;

/// A container that can be reached.
pub(super) struct Container {
    client: Client,
    account: Account,
    /// Encoded, with a slash before it.
    name: String,
    token: Mutex<Option<Token>>,
}

/// An entry of a listing, which is an object unless it has no name.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    bytes: Option<u64>,
}

/// The body of a request.
#[derive(Clone, Copy)]
enum Content<'c> {
    None,
    Spool(&'c Spool),
}

impl Container {
    /// Connects to nothing yet.
    pub(super) fn new(name: &str, account: Account, remote: &Remote) -> Result<Self, Failure> {
        let name = format!("/{}", encode(name, false));
        Ok(Container { client: Client::new(remote, remote.connections(MANY))?, account, name, token: Mutex::default() })
    }

    /// The maximum number of connections.
    pub(super) fn lanes(&self) -> usize {
        self.client.most()
    }

    /// Whether other users can read the file with the secret.
    pub(super) fn is_exposed(&self) -> bool {
        self.account.is_exposed
    }

    /// Whether the secret or the token goes over connections that are not encrypted.
    pub(super) fn is_open(&self) -> bool {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let urls = [Some(self.account.url.as_str()), token.as_ref().map(|token| token.url.as_str())];
        urls.into_iter().flatten().any(|url| url.starts_with("http://") && !is_here(url))
    }

    /// The token, after a login if there is none, or if it is `old` or expires soon.
    fn token(&self, old: Option<&str>) -> Result<Token, Failure> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = token.as_ref().filter(|token| Instant::now() < token.until && old != Some(&token.text)) {
            return Ok(token.clone());
        }
        *token = None;
        Ok(token.insert(Token::get(&self.client, &self.account)?).clone())
    }

    /// Makes a request for an object, or for the container if the name is empty. An answer with an error is a failure.
    fn send(
        &self,
        method: Method,
        name: &str,
        query: &str,
        headers: &[(&str, &str)],
        content: Content<'_>,
    ) -> Result<Answer<'_>, Failure> {
        let slash = if name.is_empty() { "" } else { "/" };
        let path = format!("{}{slash}{}{query}", self.name, encode(name, true));
        let mut old: Option<String> = None;
        loop {
            let token = self.token(old.as_deref())?;
            let mut request = Request::builder()
                .method(method.clone())
                .uri(format!("{}{path}", token.url))
                .header("x-auth-token", &token.text);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.body(());
            let request =
                request.map_err(|e| Failure::new(ErrorKind::Other, format!("cannot make the request: {e}")))?;
            let mut answer = match content {
                Content::None => self.client.send(request)?,
                Content::Spool(spool) => self.client.send_body(request, &mut spool.upload())?,
            };
            match answer.status {
                200..300 => return Ok(answer),
                // The token has expired or was revoked. Once, since a new one may not help.
                401 if old.is_none() => {
                    let _ = answer.read(LONGEST_TEXT, &mut Vec::new());
                    old = Some(token.text);
                }
                _ => return Err(Failure::of(&mut answer)),
            }
        }
    }

    /// The same for an object: if the container is missing, that is not the object's fault.
    fn act(
        &self,
        method: Method,
        name: &str,
        headers: &[(&str, &str)],
        content: Content<'_>,
    ) -> Result<Answer<'_>, Failure> {
        match self.send(method, name, "", headers, content) {
            Err(failure) if failure.kind == ErrorKind::NotFound => {
                self.exists()?;
                Err(failure)
            }
            answer => answer,
        }
    }

    /// Fails if the container does not exist.
    pub(super) fn exists(&self) -> Result<(), Failure> {
        match self.send(Method::HEAD, "", "", &[], Content::None) {
            Err(failure) if failure.kind == ErrorKind::NotFound => {
                let why = "the container does not exist; create it, or correct the location";
                Err(Failure::new(ErrorKind::Refused, why))
            }
            answer => answer.map(drop),
        }
    }

    /// Asks for all bytes of an object, or for a range such as `bytes=0-1`.
    pub(super) fn get(&self, name: &str, range: Option<&str>) -> Result<Answer<'_>, Failure> {
        self.act(Method::GET, name, range.map(|range| ("range", range)).as_slice(), Content::None)
    }

    /// Asks for the headers of an object.
    pub(super) fn look(&self, name: &str) -> Result<Answer<'_>, Failure> {
        self.act(Method::HEAD, name, &[], Content::None)
    }

    /// Removes an object.
    pub(super) fn delete(&self, name: &str) -> Result<(), Failure> {
        // The status has said it all. After this, the connection can be used again.
        let _ = self.act(Method::DELETE, name, &[], Content::None)?.read(LONGEST_TEXT, &mut Vec::new());
        Ok(())
    }

    /// Stores an object in one request, unless there is one with this name.
    pub(super) fn put(&self, name: &str, spool: &Spool) -> Result<(), Failure> {
        let failed = |e: io::Error| {
            Failure::new(ErrorKind::Other, format!("the temporary file on this machine cannot be read: {e}"))
        };
        let (length, sum) = (spool.length().to_string(), md5(&mut spool.contents()).map_err(failed)?);
        let mut headers = vec![
            ("content-length", length.as_str()),
            ("content-type", "application/octet-stream"),
            ("if-none-match", "*"),
        ];
        // The server compares it with what it gets.
        headers.extend(sum.as_deref().map(|sum| ("etag", sum)));
        if spool.length() >= ASK {
            headers.push(("expect", "100-continue"));
        }
        match self.send(Method::PUT, name, "", &headers, Content::Spool(spool)) {
            Err(failure) if failure.kind == ErrorKind::NotFound => {
                self.exists()?;
                Err(Failure { kind: ErrorKind::Throttled, why: "the container was missing".to_owned(), ..failure })
            }
            Err(failure) => Err(failure),
            Ok(mut answer) => {
                let _ = answer.read(LONGEST_TEXT, &mut Vec::new());
                Ok(())
            }
        }
    }

    /// A page of the objects whose names begin with `prefix`, in order, after the name `after`. An empty page is the end.
    pub(super) fn list(&self, prefix: &str, after: &str, most: usize) -> Result<Vec<(String, u64)>, Failure> {
        let [marker, prefix_shown] = [after, prefix].map(|text| encode(text, false));
        let query = format!("?format=json&limit={most}&marker={marker}&prefix={prefix_shown}");
        let mut answer = self.send(Method::GET, "", &query, &[], Content::None)?;
        let mut text = Vec::new();
        let is_all = answer.read(LONGEST_PAGE, &mut text)?;
        let page = if answer.status == 204 { Some(Vec::new()) } else { parse(&text, prefix, after, most) };
        let wrong = || Failure::new(ErrorKind::Other, "the server sent a list that is not one of Swift");
        page.filter(|_| is_all).ok_or_else(wrong)
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Parses a page of a listing; `None` if it is not valid.
fn parse(text: &[u8], prefix: &str, after: &str, most: usize) -> Option<Vec<(String, u64)>> {
    let entries: Vec<Entry> = serde_json::from_slice(text).ok()?;
    let (mut page, mut last) = (Vec::with_capacity(entries.len().min(most)), after.to_owned());
    for Entry { name, bytes } in entries {
        let (name, bytes) = (name?, bytes?);
        // Otherwise a listing might never end.
        if name.len() > LONGEST_NAME || !name.starts_with(prefix) || name <= last || page.len() == most {
            return None;
        }
        last.clone_from(&name);
        page.push((name, bytes));
    }
    Some(page)
}

/// The MD5 of a body; `None` on machines whose policy forbids it.
fn md5(body: &mut impl Read) -> io::Result<Option<String>> {
    let Ok(mut hasher) = Hasher::new(MessageDigest::md5()) else { return Ok(None) };
    let mut piece = vec![0; PIECE];
    loop {
        match body.read(&mut piece)? {
            0 => break,
            read => hasher.update(piece.get(..read).unwrap_or_default())?,
        }
    }
    Ok(Some(hasher.finish()?.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Whether a URL is that of this machine.
fn is_here(url: &str) -> bool {
    let place = url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    Authority::parse(place, "", "").is_ok_and(|authority| is_loopback(&authority.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_parsed() {
        let text = br#"[{"hash":"x","bytes":5,"name":"a/x \u00e9"},{"name":"a/y","bytes":0,"content_type":"t"}]"#;
        let expected = vec![("a/x é".to_owned(), 5), ("a/y".to_owned(), 0)];
        assert_eq!(parse(text, "a/", "", 2), Some(expected));
        assert_eq!(parse(b"[]", "a/", "a/y", 2), Some(Vec::new()));
    }

    #[test]
    fn hostile_pages_are_refused() {
        let long = format!(r#"[{{"name":"a/{}","bytes":1}}]"#, "x".repeat(1023));
        let many =
            format!("[{}]", (0..3).map(|at| format!(r#"{{"name":"a/{at}","bytes":1}}"#)).collect::<Vec<_>>().join(","));
        for text in [
            "",
            "{}",
            "[",
            "<html/>",
            "\0",
            r#"[{"name":"b/x","bytes":1}]"#,
            r#"[{"name":"a/a","bytes":1}]"#,
            r#"[{"name":"a/y","bytes":1},{"name":"a/y","bytes":1}]"#,
            r#"[{"name":"a/y","bytes":1},{"name":"a/x","bytes":1}]"#,
            r#"[{"name":"a/x","bytes":-1}]"#,
            r#"[{"name":"a/x","bytes":99999999999999999999}]"#,
            r#"[{"name":"a/x"}]"#,
            r#"[{"subdir":"a/x"}]"#,
            &long,
            &many,
            &"[".repeat(100_000),
        ] {
            assert_eq!(parse(text.as_bytes(), "a/", "a/a", 2), None, "{}", text.get(..50).unwrap_or(text));
        }
        assert_eq!(parse(b"[\"\xff\"]", "", "", 2), None);
    }

    #[test]
    fn sums_are_those_of_other_programs() {
        assert_eq!(md5(&mut &b"hello\n"[..]).unwrap().unwrap(), "b1946ac92492d2347c6235b4d2611184");
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for (url, is) in [
            ("http://localhost:80/v1", true),
            ("http://127.0.0.1", true),
            ("http://127.1.2.3:80", true),
            ("http://[::1]:8080/v1", true),
            ("http://localhost.example/v1", false),
            ("http://127.0.0.1.example/v1", false),
        ] {
            assert_eq!(is_here(url), is, "{url}");
        }
    }
}
