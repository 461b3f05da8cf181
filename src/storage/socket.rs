//! Connections of [`http`](super::http): to servers, and over a Unix socket to a program on this machine. An interrupt ends
//! all waits for the other side.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NativeTlsConnector, NextTimeout,
    Transport,
};

use super::connect::{Unreachable, connect, look_up};
use super::interrupt::{Interrupt, Waits};

/// The longest wait if there is no limit.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The number of addresses that ureq has room for.
const MOST_ADDRESSES: usize = 16;

/// Connects to servers: through a proxy if one is set, and with TLS if the URL says so.
pub(super) fn server_connector(interrupt: &Interrupt) -> impl Connector<()> + use<> {
    let tcp = TcpConnector { interrupt: interrupt.clone() };
    ().chain(ConnectProxyConnector::default()).chain(tcp).chain(NativeTlsConnector::default())
}

/// Looks up the names of servers.
#[derive(Debug)]
pub(super) struct ServerResolver {
    pub(super) interrupt: Interrupt,
}

impl Resolver for ServerResolver {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let name = uri.scheme().zip(uri.authority());
        let name = name.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let name = name.as_deref().and_then(|name| name.rsplit_once(':'));
        let name = name.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = name.ok_or_else(|| Error::BadUri(uri.to_string()))?;
        let time = left(&timeout).unwrap_or(LONGEST);
        let found = look_up(without_brackets(host), port, time, &self.interrupt).map_err(unreachable)?;
        let mut addresses = self.empty();
        for address in found.into_iter().take(MOST_ADDRESSES) {
            addresses.push(address);
        }
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

/// Connects over TCP, unless there is a connection through a proxy.
#[derive(Debug)]
struct TcpConnector {
    interrupt: Interrupt,
}

impl<In: Transport> Connector<In> for TcpConnector {
    type Out = Either<In, SocketTransport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        if let Some(chained) = chained {
            return Ok(Some(Either::A(chained)));
        }
        let time = left(&details.timeout).unwrap_or(LONGEST);
        let host = details.uri.host().unwrap_or_default();
        let stream = connect(host, &details.addrs, time, &self.interrupt).map_err(unreachable)?;
        stream.set_nodelay(details.config.no_delay())?;
        // Sockets of both kinds have the same operations.
        let transport = SocketTransport::new(OwnedFd::from(stream).into(), details.config, &self.interrupt)?;
        Ok(Some(Either::B(transport)))
    }
}

/// Connects to one socket, whatever the URL says.
#[derive(Debug)]
pub(super) struct SocketConnector {
    pub(super) path: PathBuf,
    pub(super) interrupt: Interrupt,
}

impl Connector<()> for SocketConnector {
    type Out = SocketTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<SocketTransport>, Error> {
        let stream = UnixStream::connect(&self.path)?;
        Ok(Some(SocketTransport::new(stream, details.config, &self.interrupt)?))
    }
}

/// A connection.
pub(super) struct SocketTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
    waits: Arc<Waits>,
}

impl SocketTransport {
    fn new(stream: UnixStream, config: &Config, interrupt: &Interrupt) -> io::Result<Self> {
        let other = stream.try_clone()?;
        // An error means that it has ended.
        let waits = Waits::new(interrupt, move || _ = other.shutdown(Shutdown::Both));
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(SocketTransport { stream, buffers, waits })
    }
}

impl std::fmt::Debug for SocketTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketTransport").finish_non_exhaustive()
    }
}

/// The host of a URL, where an address of IPv6 is in brackets.
fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host)
}

fn unreachable(error: Unreachable) -> Error {
    Error::Other(Box::new(error))
}

/// The time that is left; `None` for any.
fn left(timeout: &NextTimeout) -> Option<Duration> {
    // Zero would mean any.
    timeout.not_zero().map(|left| (*left).max(Duration::from_millis(1)))
}

fn failed(error: io::Error, timeout: &NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for SocketTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(left(&timeout))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        self.waits.during(|| self.stream.write_all(output)).map_err(|error| failed(error, &timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.stream.set_read_timeout(left(&timeout))?;
        let read = loop {
            match self.waits.during(|| self.stream.read(self.buffers.input_append_buf())) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| failed(error, &timeout))?,
            }
        };
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        // Between requests, the other side sends nothing but the end.
        let is_quiet = self.stream.set_nonblocking(true).and_then(|()| match self.stream.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.set_nonblocking(false),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        });
        is_quiet.is_ok()
    }
}
