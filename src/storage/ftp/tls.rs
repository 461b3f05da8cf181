//! TLS by OpenSSL. Data connections continue the session of their control connection, which many servers demand: it proves
//! that both have the same client.
//!
//! TLS 1.2 is used as long as the server has it: with TLS 1.3, vsftpd does not notice a command that arrives together with
//! the end of the handshake, and some servers fail transfers, since sessions are sent after the handshake there.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{
    ErrorCode, HandshakeError, ShutdownState, SslConnector, SslMethod, SslSession, SslStream, SslVersion,
};
use openssl::x509::{X509, X509VerifyResult, store::X509StoreBuilder};

use super::failure::Failure;
use super::socket::Socket;
use crate::storage::error::ErrorKind;
use crate::sys::bounded::{KEYS, read_file};

/// OpenSSL's code of the server's message that it does not have the version of TLS.
const PROTOCOL_VERSION: i32 = 1070;
/// OpenSSL's code of a connection that ended.
const UNEXPECTED_END: i32 = 294;

/// Makes connections with TLS.
pub(super) struct Tls {
    usual: SslConnector,
    newest: SslConnector,
    /// The server refused the usual version.
    needs_newest: AtomicBool,
}

/// A connection with TLS.
#[derive(Debug)]
pub(super) struct TlsStream {
    pub(super) ssl: SslStream<Socket>,
    /// It was made by the connector for the newest version.
    is_newest: bool,
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // OpenSSL lets no other connection continue the session of one that was dropped without a shutdown.
        self.ssl.set_shutdown(ShutdownState::SENT | ShutdownState::RECEIVED);
    }
}

/// The session of a connection, which others continue.
pub(super) struct TlsSession {
    session: SslSession,
    is_newest: bool,
}

impl TlsSession {
    /// With TLS 1.3, the server sends it after the handshake, before its first reply.
    pub(super) fn of(TlsStream { ssl, is_newest }: &TlsStream) -> Option<Self> {
        ssl.ssl().session().map(|session| TlsSession { session: session.to_owned(), is_newest: *is_newest })
    }
}

impl std::fmt::Debug for TlsSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSession").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Trusts the certificates in a file, or else the system's. The error is about the file.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, String> {
        let certificates = ca.map(read_certificates).transpose()?;
        let connector =
            |newest| connector(certificates.as_deref(), newest).map_err(|e| format!("TLS cannot be set up: {e}"));
        let (usual, newest) = (connector(SslVersion::TLS1_2)?, connector(SslVersion::TLS1_3)?);
        Ok(Tls { usual, newest, needs_newest: AtomicBool::default() })
    }

    /// Whether the server refused the version of TLS of the connections so far, which is another one from now on.
    pub(super) fn needs_newest(&self) -> bool {
        self.needs_newest.load(Ordering::Relaxed)
    }

    /// Makes a connection to `host`, and checks its certificate. Continues a session with the same version.
    pub(super) fn connect(
        &self,
        host: &str,
        socket: Socket,
        session: Option<&TlsSession>,
        stall: Duration,
    ) -> Result<TlsStream, Failure> {
        let failed = |e: &dyn std::fmt::Display| {
            Failure::Lost(ErrorKind::Refused, format!("no encrypted connection can be made to the server: {e}"))
        };
        let is_newest = self.needs_newest();
        let connector = if is_newest { &self.newest } else { &self.usual };
        let mut ssl = connector.configure().and_then(|configured| configured.into_ssl(host)).map_err(|e| failed(&e))?;
        if let Some(session) = session.filter(|session| session.is_newest == is_newest) {
            #[expect(
                unsafe_code,
                reason = "the session was made by the same connector, which is what the caller must ensure"
            )]
            // SAFETY: sessions are those of control connections of this `Tls`, which has one connector for each value of
            // `is_newest`.
            let continued = unsafe { ssl.set_session(&session.session) };
            continued.map_err(|e| failed(&e))?;
        }
        ssl.connect(socket).map(|ssl| TlsStream { ssl, is_newest }).map_err(|error| match error {
            HandshakeError::SetupFailure(error) => failed(&error),
            // The socket has a timeout.
            HandshakeError::WouldBlock(_) => Failure::io(&std::io::ErrorKind::WouldBlock.into(), stall),
            HandshakeError::Failure(stream) => {
                let verified = stream.ssl().verify_result();
                if verified != X509VerifyResult::OK {
                    let why = format!(
                        "the server's certificate is not trusted ({}); if that is the right server, give the certificate of \
                         its authority with --ca",
                        verified.error_string()
                    );
                    return Failure::Lost(ErrorKind::Refused, why);
                }
                let stack = stream.error().ssl_error().map(ErrorStack::errors).unwrap_or_default();
                if stack.iter().any(|error| error.reason_code() == PROTOCOL_VERSION) {
                    self.needs_newest.store(true, Ordering::Relaxed);
                }
                let has_ended = stream.error().code() == ErrorCode::SYSCALL
                    || stack.iter().any(|error| error.reason_code() == UNEXPECTED_END);
                match stream.error().io_error() {
                    Some(error) => Failure::io(error, stall),
                    None if has_ended => Failure::io(&std::io::ErrorKind::UnexpectedEof.into(), stall),
                    None => failed(stream.error()),
                }
            }
        })
    }
}

fn read_certificates(file: &Path) -> Result<Vec<X509>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot read the certificates in {}: {e}", file.display());
    let text = read_file(file, KEYS).map_err(|e| failed(&e))?;
    let certificates = X509::stack_from_pem(&text).map_err(|e| failed(&e))?;
    if certificates.is_empty() {
        return Err(failed(&"it has no certificate in PEM format"));
    }
    Ok(certificates)
}

/// Trusts these certificates, or else the system's.
fn connector(certificates: Option<&[X509]>, newest: SslVersion) -> Result<SslConnector, ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_max_proto_version(Some(newest))?;
    if let Some(certificates) = certificates {
        let mut store = X509StoreBuilder::new()?;
        certificates.iter().try_for_each(|certificate| store.add_cert(certificate.clone()))?;
        builder.set_cert_store(store.build());
    }
    Ok(builder.build())
}
