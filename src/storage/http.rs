//! What targets over HTTP share: connections, TLS, timeouts, and errors of connections.
//!
//! TLS is OpenSSL's, which the OpenPGP library uses as well. It trusts the system's certificates, or those of
//! [`Remote::ca`] only. Redirects are not followed: a request and its credentials go to the configured server or nowhere.

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use openssl::sha::sha256;
use ureq::config::{Config, ConfigBuilder};
use ureq::http::{HeaderMap, Request};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::{Agent, Body, BodyReader, Proxy, SendBody};

use super::connect::Unreachable;
use super::error::ErrorKind;
use super::interrupt::Interrupt;
use super::parts::Parts;
use super::proxy;
use super::remote::{FEW, Remote};
use super::socket::{ServerResolver, SocketConnector, server_connector};
use crate::sys::bounded::{KEYS, read_file};

/// How long to wait for a connection at most. [`Remote::stall`] may be shorter.
const CONNECT: Duration = Duration::from_secs(30);
/// How long to wait for `100 Continue` before a body is sent all the same.
const CONTINUE: Duration = Duration::from_secs(1);
/// Bytes of headers of an answer.
const HEADERS: usize = 64 << 10;
/// Bytes of each buffer of a connection.
const BUFFER: usize = 64 << 10;
/// The longest wait that a server can ask for.
const LONGEST_WAIT: u64 = 600;
const CLOSED: &str = "the server closed the connection";

/// Makes requests over at most a number of connections.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    most: NonZeroUsize,
    /// How long a connection may be silent.
    stall: Duration,
    busy: Mutex<usize>,
    freed: Condvar,
}

/// A request that got no complete or no fitting answer. The server may have carried it out.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) kind: ErrorKind,
    pub(super) why: String,
}

impl Lost {
    /// The object ends before the bytes that were asked for.
    pub(super) fn short() -> Self {
        Lost { kind: ErrorKind::Truncated, why: "it is shorter than expected".to_owned() }
    }
}

/// The answer to a request. Holds the connection.
pub(super) struct Answer<'c> {
    pub(super) status: u16,
    headers: HeaderMap,
    body: BodyReader<'static>,
    client: &'c Client,
    _turn: Turn<'c>,
}

/// The right to make a request.
#[derive(Debug)]
struct Turn<'c>(&'c Client);

/// Makes requests to servers that are not targets. An interrupt ends all waits for them.
pub fn agent(config: Config, interrupt: &Interrupt) -> Agent {
    Agent::with_parts(config, server_connector(interrupt), ServerResolver { interrupt: interrupt.clone() })
}

impl Client {
    /// Connects to nothing yet. The error is about the file with certificates or the proxy.
    pub(super) fn new(remote: &Remote, connections: NonZeroUsize) -> Result<Self, Lost> {
        proxy::check_variables(|name| std::env::var(name).ok()).map_err(refused)?;
        let roots = match &remote.ca {
            None => RootCerts::PlatformVerifier,
            Some(file) => {
                let failed =
                    |why: String| refused(format!("cannot read the certificates in {}: {why}", file.display()));
                let text = read_file(file, KEYS).map_err(|e| failed(e.to_string()))?;
                let mut certificates: Vec<Certificate<'static>> = Vec::new();
                for item in parse_pem(&text) {
                    if let PemItem::Certificate(certificate) = item.map_err(|e| failed(e.to_string()))? {
                        certificates.push(certificate);
                    }
                }
                if certificates.is_empty() {
                    return Err(failed("it has no certificate in PEM format".to_owned()));
                }
                RootCerts::new_with_certs(&certificates)
            }
        };
        let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build();
        let config = settings(remote, connections).tls_config(tls).build();
        Ok(Client::with_agent(agent(config, &remote.interrupt), remote, connections))
    }

    /// Connects to a program on this machine through a socket.
    pub(super) fn on_socket(socket: PathBuf, remote: &Remote) -> Self {
        let connections = remote.connections(FEW);
        let config = settings(remote, connections).proxy(None).build();
        let connector = SocketConnector { path: socket, interrupt: remote.interrupt.clone() };
        let resolver = DefaultResolver::default();
        Client::with_agent(Agent::with_parts(config, connector, resolver), remote, connections)
    }

    fn with_agent(agent: Agent, remote: &Remote, most: NonZeroUsize) -> Self {
        Client { agent, most, stall: remote.stall, busy: Mutex::default(), freed: Condvar::new() }
    }

    /// The maximum number of connections.
    pub(super) fn most(&self) -> usize {
        self.most.get()
    }

    /// Whether requests to this server go straight to it, and not through a proxy.
    pub(super) fn is_direct(&self, server: &str) -> bool {
        let is_exempt = |proxy: &Proxy| server.parse().is_ok_and(|uri| proxy.is_no_proxy(&uri));
        self.agent.config().proxy().is_none_or(is_exempt)
    }

    /// Makes a request without a body. Waits while all connections are in use.
    pub(super) fn send(&self, request: Request<()>) -> Result<Answer<'_>, Lost> {
        self.check_proxy(&request)?;
        let turn = self.turn();
        self.answer(turn, self.agent.run(request))
    }

    /// Makes a request with a body, whose length the header Content-Length tells.
    pub(super) fn send_body(&self, request: Request<()>, mut body: &mut dyn Read) -> Result<Answer<'_>, Lost> {
        self.check_proxy(&request)?;
        let turn = self.turn();
        let request = request.map(|()| SendBody::from_reader(&mut body));
        self.answer(turn, self.agent.run(request))
    }

    fn check_proxy(&self, request: &Request<()>) -> Result<(), Lost> {
        proxy::check(self.agent.config().proxy(), request.uri()).map_err(refused)
    }

    fn answer<'c>(
        &'c self,
        turn: Turn<'c>,
        result: Result<ureq::http::Response<Body>, ureq::Error>,
    ) -> Result<Answer<'c>, Lost> {
        let (head, body) = result.map_err(|e| self.lost(e))?.into_parts();
        let status = head.status.as_u16();
        Ok(Answer { status, headers: head.headers, body: body.into_reader(), client: self, _turn: turn })
    }

    fn turn(&self) -> Turn<'_> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.freed.wait_while(busy, |busy| *busy >= self.most.get());
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(self)
    }

    /// Why a request got no answer.
    fn lost(&self, error: ureq::Error) -> Lost {
        let away = |why: String| Lost { kind: ErrorKind::Unavailable, why };
        match error {
            ureq::Error::Other(error) if error.is::<Unreachable>() => away(error.to_string()),
            // The server or the proxy accepted the connection before.
            ureq::Error::Timeout(ureq::Timeout::Connect) => {
                away("the server did not answer after it accepted the connection; check the port".to_owned())
            }
            ureq::Error::Timeout(_) => {
                away(format!("the server was silent for {} s", self.stall.as_secs_f64().round()))
            }
            ureq::Error::HostNotFound => away("the server's name is not known".to_owned()),
            ureq::Error::Io(error) => away(match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe => CLOSED.to_owned(),
                io::ErrorKind::ConnectionRefused => {
                    "the server cannot be reached: it refuses the connection".to_owned()
                }
                _ => format!("the connection failed: {error}"),
            }),
            ureq::Error::NativeTls(error) => lost_handshake(&error.to_string()),
            ureq::Error::ConnectProxyFailed(why) => away(format!("the proxy does not connect to the server: {why}")),
            ureq::Error::Protocol(error) => away(format!("the server sent something that is not HTTP: {error}")),
            error => Lost { kind: ErrorKind::Other, why: format!("the request failed: {error}") },
        }
    }
}

fn refused(why: String) -> Lost {
    Lost { kind: ErrorKind::Refused, why }
}

/// Why TLS failed, from OpenSSL's words.
fn lost_handshake(said: &str) -> Lost {
    let last = said.rsplit(": ").next().unwrap_or(said).trim();
    // OpenSSL says `unexpected EOF`, and since version 3 `unexpected eof while reading`.
    if said.to_ascii_lowercase().contains("unexpected eof") {
        Lost { kind: ErrorKind::Unavailable, why: CLOSED.to_owned() }
    } else if said.contains("certificate") {
        refused(format!(
            "the server's certificate is not trusted ({last}); if that is the right server, give the certificate of its \
             authority with --ca"
        ))
    } else {
        refused(format!("no encrypted connection can be made to the server: {said}"))
    }
}

/// The settings of all connections.
fn settings(remote: &Remote, connections: NonZeroUsize) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("brackfs/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .max_response_header_size(HEADERS)
        .input_buffer_size(BUFFER)
        .output_buffer_size(BUFFER)
        .max_idle_connections(connections.get())
        .max_idle_connections_per_host(connections.get())
        .timeout_resolve(Some(remote.stall))
        .timeout_connect(Some(remote.stall.min(CONNECT)))
        .timeout_await_100(Some(remote.stall.min(CONTINUE)))
        .timeout_per_read(Some(remote.stall))
        .timeout_per_write(Some(remote.stall))
}

impl Answer<'_> {
    /// A header; `None` if it is missing or not text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All headers of this name.
    pub(super) fn headers(&self, name: &str) -> Vec<String> {
        let all = self.headers.get_all(name).iter();
        all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }

    /// The length of the body in bytes. The answer to HEAD has no body, but the length of the one to GET.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The length of the object, if this is the answer to a request for a range of it that begins at `offset`. Its status is 206,
    /// but 200 with some servers.
    pub(super) fn length_of_whole(&self, offset: u64) -> Option<u64> {
        let (range, whole) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, _) = range.split_once('-')?;
        whole.parse().ok().filter(|_| first.parse() == Ok(offset))
    }

    /// The time after which the server wants to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds: u64 = self.header("retry-after")?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds.min(LONGEST_WAIT)))
    }

    /// Appends at most `limit` bytes of the body to `bytes`. Returns whether the body ends there, in which case the connection
    /// can be used again.
    pub(super) fn read(&mut self, limit: u64, bytes: &mut Vec<u8>) -> Result<bool, Lost> {
        let failed = |e: io::Error| self.client.lost(ureq::Error::from(e));
        let body = self.body.by_ref();
        body.by_ref().take(limit).read_to_end(bytes).map_err(failed)?;
        Ok(body.read(&mut [0]).map_err(failed)? == 0)
    }

    /// Reads the parts of an object, whose range was asked for.
    pub(super) fn read_range(&mut self, mut parts: Parts<'_>) -> Result<(), Lost> {
        let lost = |kind, why: &str| Err(Lost { kind, why: why.to_owned() });
        let Some(whole) = self.length_of_whole(parts.offset) else {
            return lost(ErrorKind::Other, "the server did not send the range that was asked for");
        };
        if parts.end().is_none_or(|end| whole < end) {
            return Err(Lost::short());
        }
        if !self.read_parts(&mut parts)? {
            return lost(ErrorKind::Unavailable, "the server did not send the whole range");
        }
        Ok(())
    }

    /// Reads parts from the body. Returns whether they are all of it.
    pub(super) fn read_parts(&mut self, parts: &mut Parts<'_>) -> Result<bool, Lost> {
        let failed = |e: io::Error| self.client.lost(ureq::Error::from(e));
        Ok(parts.read_from(&mut self.body).map_err(failed)? && self.body.read(&mut [0]).map_err(failed)? == 0)
    }

    /// Reads a whole object. `Err` with a length: it is larger than `limit`.
    pub(super) fn read_whole(&mut self, limit: usize) -> Result<Result<Vec<u8>, u64>, Lost> {
        if let Some(length) = self.length().filter(|length| *length > limit as u64) {
            return Ok(Err(length));
        }
        let mut bytes = Vec::new();
        let is_all = self.read(limit as u64, &mut bytes)?;
        Ok(if is_all { Ok(bytes) } else { Err(limit as u64 + 1) })
    }

    /// The body, to be read piece by piece.
    pub(super) fn body(&mut self) -> &mut dyn Read {
        &mut self.body
    }

    /// Why the body cannot be read.
    pub(super) fn lost(&self, error: io::Error) -> Lost {
        self.client.lost(ureq::Error::from(error))
    }
}

/// Reads parts of an object with `read`, which gets their range as a header has it. HTTP has no empty ranges: for these,
/// `length` finds out whether the object is long enough.
pub(super) fn read_range<E: From<Lost>>(
    parts: Parts<'_>,
    length: impl FnOnce() -> Result<u64, E>,
    read: impl FnOnce(&str, Parts<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let end = parts.end().ok_or_else(Lost::short)?;
    match parts.range() {
        Some(range) => read(&range, parts),
        None if length()? < end => Err(Lost::short().into()),
        None => {
            parts.take_empty();
            Ok(())
        }
    }
}

/// What distinguishes this version of an object from others: a hash of its tag and time.
pub(super) fn version(tag: &str, time: &str) -> [u64; 3] {
    let digest = sha256(format!("{tag}\n{time}").as_bytes());
    let mut version = [0; 3];
    for (number, bytes) in version.iter_mut().zip(digest.chunks_exact(8)) {
        *number = bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    version
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.busy.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    /// Why a request over TLS fails if the server sends these bytes and closes the connection, or is silent.
    fn handshake(answer: Option<&'static [u8]>) -> Lost {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            match answer {
                Some(bytes) => stream.write_all(bytes).unwrap(),
                None => _ = stream.read(&mut [0]),
            }
        });
        let client =
            Client::new(&Remote { stall: Duration::from_secs(1), ..Remote::default() }, NonZeroUsize::MIN).unwrap();
        let lost = client.send(Request::get(url).body(()).unwrap()).err().unwrap();
        server.join().unwrap();
        lost
    }

    #[test]
    fn a_server_that_ends_a_handshake_is_away_and_one_without_tls_is_refused() {
        for (answer, kind, words) in [
            (Some(&b""[..]), ErrorKind::Unavailable, "closed the connection"),
            (None, ErrorKind::Unavailable, ""),
            (Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ErrorKind::Refused, "no encrypted connection"),
        ] {
            let lost = handshake(answer);
            assert!(lost.kind == kind && lost.why.contains(words), "{answer:?}: {lost:?}");
        }
    }
}
