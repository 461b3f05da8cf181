//! Signed requests to a bucket.

use std::io::Read;

use jiff::Timestamp;
use openssl::base64::encode_block;
use openssl::hash::MessageDigest;
use ureq::http::{Method, Request};

use super::account::Account;
use super::failure::Failure;
use super::signature::{Signed, hash};
use super::xml::{Page, Removals};
use crate::storage::error::ErrorKind;
use crate::storage::http::{Answer, Client};
use crate::storage::remote::{MANY, Remote};
use crate::storage::url::encode;

/// The hash of no bytes.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// Bytes from which on the server is asked before a body is sent. An error then costs no upload, and its text arrives.
const ASK: u64 = 128 << 10;
/// Bytes of a page of a listing: 1000 keys, encoded.
const LONGEST_PAGE: u64 = 8 << 20;

/// A bucket that can be reached.
#[derive(Debug)]
pub(super) struct Bucket {
    client: Client,
    account: Account,
    /// Such as `https://`.
    scheme: &'static str,
    host: String,
    /// What precedes a key in a path: `/`, or the bucket between slashes.
    root: String,
}

/// A body, and its length and hash, which are signed.
#[derive(Debug)]
pub(super) struct Content<R> {
    pub(super) body: R,
    pub(super) length: u64,
    pub(super) hash: String,
}

impl Bucket {
    /// Connects to nothing yet.
    pub(super) fn new(bucket: &str, account: Account, remote: &Remote) -> Result<Self, Failure> {
        let client = Client::new(remote, remote.connections(MANY))?;
        let (scheme, host, root) = match &account.endpoint {
            Some(url) => match url.strip_prefix("https://") {
                Some(host) => ("https://", host.to_owned(), format!("/{bucket}/")),
                None => ("http://", url.trim_start_matches("http://").to_owned(), format!("/{bucket}/")),
            },
            // Amazon's certificates have no names with further dots.
            None if bucket.contains(['.', '_']) || bucket.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                ("https://", format!("s3.{}.{}", account.region, domain(&account.region)), format!("/{bucket}/"))
            }
            None => {
                let host = format!("{bucket}.s3.{}.{}", account.region, domain(&account.region));
                ("https://", host, "/".to_owned())
            }
        };
        Ok(Bucket { client, account, scheme, host, root })
    }

    /// The maximum number of connections.
    pub(super) fn lanes(&self) -> usize {
        self.client.most()
    }

    /// Whether other users can read the file with the secret key.
    pub(super) fn is_exposed(&self) -> bool {
        self.account.is_exposed
    }

    /// The signed head of a request.
    fn head(
        &self,
        method: Method,
        key: &str,
        query: &str,
        hash: &str,
        headers: &[(&str, &str)],
    ) -> Result<Request<()>, Failure> {
        let failed = |why: String| Failure::new(ErrorKind::Other, why);
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let path = match key {
            "" if self.root != "/" => self.root.trim_end_matches('/').to_owned(),
            key => format!("{}{}", self.root, encode(key, true)),
        };
        let signed = Signed { method: method.as_str(), host: &self.host, path: &path, query, hash, time: &time };
        let key = &self.account.key;
        let authorization = key.authorization(&self.account.region, &signed);
        let authorization = authorization.map_err(|e| failed(format!("cannot sign the request: {e}")))?;
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{}{path}{mark}{query}", self.scheme, self.host))
            .header("authorization", authorization)
            .header("x-amz-content-sha256", hash)
            .header("x-amz-date", time);
        if let Some(token) = &key.token {
            request = request.header("x-amz-security-token", token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).map_err(|e| failed(format!("cannot make the request: {e}")))
    }

    fn send(&self, method: Method, key: &str, query: &str, headers: &[(&str, &str)]) -> Result<Answer<'_>, Failure> {
        let mut answer = self.client.send(self.head(method, key, query, NOTHING, headers)?)?;
        if (200..300).contains(&answer.status) { Ok(answer) } else { Err(Failure::of(&mut answer)) }
    }

    /// Asks for all bytes of an object.
    pub(super) fn get_all(&self, key: &str) -> Result<Answer<'_>, Failure> {
        self.send(Method::GET, key, "", &[])
    }

    /// Asks for bytes of an object.
    pub(super) fn get(&self, key: &str, range: &str) -> Result<Answer<'_>, Failure> {
        self.send(Method::GET, key, "", &[("range", range)])
    }

    /// Asks for the headers of an object.
    pub(super) fn look(&self, key: &str) -> Result<Answer<'_>, Failure> {
        match self.send(Method::HEAD, key, "", &[]) {
            // Such an answer has no text, and does not tell a missing object from a missing bucket.
            Err(failure) if failure.code.is_empty() && !failure.kind.is_temporary() => {
                // An empty object has no such range.
                match self.get(key, "bytes=0-0") {
                    Err(failure) if failure.kind != ErrorKind::Truncated => Err(failure),
                    _ => Err(Failure::new(ErrorKind::Unavailable, "the object appeared in this moment")),
                }
            }
            answer => answer,
        }
    }

    /// Removes an object, or does nothing if it is missing.
    pub(super) fn delete(&self, key: &str) -> Result<(), Failure> {
        let mut answer = self.send(Method::DELETE, key, "", &[])?;
        answer.read(0, &mut Vec::new())?;
        Ok(())
    }

    /// Removes objects with one request. Missing ones count as removed.
    pub(super) fn delete_all(&self, keys: &[String]) -> Result<Removals, Failure> {
        let text = Removals::request(keys);
        let failed =
            |why: &dyn std::fmt::Display| Failure::new(ErrorKind::Other, format!("cannot make the request: {why}"));
        // Servers require it, although the signature covers the body.
        let sum = openssl::hash::hash(MessageDigest::md5(), text.as_bytes()).map_err(|e| failed(&e))?;
        let content = Content::new(text.len() as u64, text.as_bytes(), text.as_bytes());
        let Content { mut body, length, hash } = content.map_err(|e| failed(&e))?;
        let (length, sum) = (length.to_string(), encode_block(&sum));
        let headers = [("content-length", length.as_str()), ("content-md5", &sum), ("content-type", "application/xml")];
        let head = self.head(Method::POST, "", "delete=", &hash, &headers)?;
        let mut answer = self.client.send_body(head, &mut body)?;
        if !(200..300).contains(&answer.status) {
            return Err(Failure::of(&mut answer));
        }
        let mut text = Vec::new();
        answer.read(LONGEST_PAGE, &mut text)?;
        Ok(Removals::parse(&text)?)
    }

    /// Stores an object in one request. With `only_new`, an existing object stays as it is, if the server can do that.
    pub(super) fn put<R: Read>(&self, key: &str, content: &mut Content<R>, only_new: bool) -> Result<(), Failure> {
        let length = content.length.to_string();
        let mut headers = vec![("content-length", length.as_str())];
        if content.length >= ASK {
            headers.push(("expect", "100-continue"));
        }
        if only_new {
            headers.push(("if-none-match", "*"));
        }
        let head = self.head(Method::PUT, key, "", &content.hash, &headers)?;
        let mut answer = self.client.send_body(head, &mut content.body)?;
        if !(200..300).contains(&answer.status) {
            return Err(Failure::of(&mut answer));
        }
        answer.read(LONGEST_PAGE, &mut Vec::new())?;
        Ok(())
    }

    /// A page of the objects whose keys begin with `prefix`, of at most `most` objects.
    pub(super) fn list(&self, prefix: &str, after: Option<&str>, most: usize) -> Result<Page, Failure> {
        let token = after.map(|token| format!("continuation-token={}&", encode(token, false))).unwrap_or_default();
        let prefix_shown = encode(prefix, false);
        let query = format!("{token}encoding-type=url&list-type=2&max-keys={most}&prefix={prefix_shown}");
        let mut answer = self.send(Method::GET, "", &query, &[])?;
        let mut text = Vec::new();
        let is_all = answer.read(LONGEST_PAGE, &mut text)?;
        if !is_all {
            return Err(Failure::new(ErrorKind::Other, "the server sent a list that is too long"));
        }
        Ok(Page::parse(&text, prefix)?)
    }
}

impl<R: Read> Content<R> {
    /// Reads the body once for its hash.
    pub(super) fn new(length: u64, mut once: impl Read, body: R) -> std::io::Result<Self> {
        Ok(Content { body, length, hash: hash(&mut once)? })
    }
}

/// The domain of a region of Amazon.
fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}
