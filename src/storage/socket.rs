//! Connections of [`http`](super::http): those to servers, whose waits an interrupt ends, and those over a Unix socket to a
//! program on this machine.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};

use super::interrupt::{Interrupt, Waits};

/// Connects as usual. An interrupt ends waits for the server.
#[derive(Debug)]
pub(super) struct ServerConnector {
    usual: DefaultConnector,
    interrupt: Interrupt,
}

impl ServerConnector {
    pub(super) fn new(interrupt: &Interrupt) -> Self {
        ServerConnector { usual: DefaultConnector::new(), interrupt: interrupt.clone() }
    }
}

impl Connector<()> for ServerConnector {
    type Out = ServerTransport;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<ServerTransport>, Error> {
        let handles: Arc<Mutex<Vec<Weak<dyn ShutdownHandle>>>> = Arc::default();
        let ended = handles.clone();
        let waits = Waits::new(&self.interrupt, move || {
            let handles = ended.lock().unwrap_or_else(PoisonError::into_inner);
            handles.iter().filter_map(Weak::upgrade).for_each(|handle| handle.shutdown());
        });
        let register = details.register_shutdown.clone();
        let details = ConnectionDetails {
            uri: details.uri,
            addrs: details.addrs.clone(),
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: Arc::new(move |handle| {
                handles.lock().unwrap_or_else(PoisonError::into_inner).push(handle.clone());
                register(handle)
            }),
        };
        // With the greetings of TLS.
        let transport = waits.during(|| self.usual.connect(&details, None))?;
        Ok(transport.map(|transport| ServerTransport { transport, waits }))
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct ServerTransport {
    transport: Box<dyn Transport>,
    waits: Arc<Waits>,
}

impl Transport for ServerTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.transport.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.waits.during(|| self.transport.transmit_output(amount, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.waits.during(|| self.transport.await_input(timeout))
    }

    fn is_open(&mut self) -> bool {
        self.transport.is_open()
    }

    fn is_tls(&self) -> bool {
        self.transport.is_tls()
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
        let other = stream.try_clone()?;
        // An error means that it has ended.
        let waits = Waits::new(&self.interrupt, move || _ = other.shutdown(Shutdown::Both));
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(SocketTransport { stream, buffers, waits }))
    }
}

/// A connection.
pub(super) struct SocketTransport {
    stream: UnixStream,
    buffers: LazyBuffers,
    waits: Arc<Waits>,
}

impl std::fmt::Debug for SocketTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SocketTransport").finish_non_exhaustive()
    }
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
