//! Commands and replies on the control connection, and connections with and without encryption.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use openssl::ssl::ShutdownState;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::failure::Failure;
use super::socket::Socket;
use super::tls::TlsStream;

/// Bytes of a line of a reply.
const LONGEST_LINE: usize = 8 << 10;
/// Bytes of a reply of several lines.
const LONGEST_REPLY: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Socket),
    Tls(TlsStream),
}

impl Stream {
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(socket) => &socket.stream,
            Stream::Tls(stream) => &stream.ssl.get_ref().stream,
        }
    }

    /// Whether nothing was sent that is not read yet, and the other side has not closed the connection.
    fn is_quiet(&self) -> bool {
        let mut socket = [PollFd::new(self.socket(), PollFlags::IN)];
        let arrived = poll(&mut socket, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let decrypted = match self {
            Stream::Plain(_) => 0,
            Stream::Tls(stream) => stream.ssl.ssl().pending(),
        };
        arrived == Ok(0) && decrypted == 0
    }

    /// Says that nothing more is sent.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if let Stream::Tls(TlsStream { ssl: stream, .. }) = self
            && !stream.get_shutdown().contains(ShutdownState::SENT)
        {
            // Without it, a server takes the end for an attack.
            stream.shutdown().map_err(io::Error::other)?;
        }
        self.socket().shutdown(std::net::Shutdown::Write)
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(bytes),
            Stream::Tls(stream) => stream.ssl.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(stream) => stream.ssl.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(stream) => stream.ssl.flush(),
        }
    }
}

/// A reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    /// Without the code; the lines of a long reply are separated by line feeds.
    pub(super) text: String,
}

/// The control connection.
#[derive(Debug)]
pub(super) struct Control {
    stream: Stream,
    /// Bytes that were received and not used.
    rest: Vec<u8>,
    stall: Duration,
}

impl Control {
    /// The connection may be silent for at most `stall`, which is the timeout of its socket.
    pub(super) fn new(stream: Stream, stall: Duration) -> Self {
        Control { stream, rest: Vec::new(), stall }
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// How long the connection may be silent.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// Whether no reply is due and none came unasked, such as that the server closes the connection.
    pub(super) fn is_in_step(&self) -> bool {
        self.rest.is_empty() && self.stream.is_quiet()
    }

    /// Changes the connection, such as to one with TLS on the same socket.
    pub(super) fn upgrade(self, change: impl FnOnce(Stream) -> Result<Stream, Failure>) -> Result<Self, Failure> {
        // What came before the encryption could come from an attacker.
        if !self.rest.is_empty() {
            return Err(Failure::malformed());
        }
        Ok(Control { stream: change(self.stream)?, ..self })
    }

    /// Sends a command.
    pub(super) fn send(&mut self, command: &str) -> Result<(), Failure> {
        if command.contains(['\r', '\n', '\0']) {
            return Err(Failure::malformed());
        }
        let sent = self.stream.write_all(format!("{command}\r\n").as_bytes());
        sent.map_err(|error| Failure::io(&error, self.stall))
    }

    /// Reads a reply.
    pub(super) fn receive(&mut self) -> Result<Reply, Failure> {
        let first = self.line()?;
        let (code, is_last, mut text) = parse_line(&first).ok_or_else(Failure::malformed)?;
        if is_last {
            return Ok(Reply { code, text });
        }
        loop {
            let line = self.line()?;
            let last = parse_line(&line).filter(|(other, is_last, _)| *is_last && *other == code);
            text.push('\n');
            text.push_str(last.as_ref().map_or(line.as_str(), |(.., text)| text));
            if text.len() > LONGEST_REPLY {
                return Err(Failure::malformed());
            }
            if last.is_some() {
                return Ok(Reply { code, text });
            }
        }
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.rest.iter().skip(searched).position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=searched + end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            searched = self.rest.len();
            if searched > LONGEST_LINE {
                return Err(Failure::malformed());
            }
            let mut bytes = [0; 4096];
            let read = self.stream.read(&mut bytes).and_then(|read| match read {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                read => Ok(read),
            });
            let read = read.map_err(|error| Failure::io(&error, self.stall))?;
            self.rest.extend_from_slice(bytes.get(..read).unwrap_or_default());
        }
    }
}

/// The code of a line of a reply, whether the reply ends with it, and its text.
fn parse_line(line: &str) -> Option<(u16, bool, String)> {
    let (code, text) = line.split_at_checked(3)?;
    let is_code = code.bytes().all(|byte| byte.is_ascii_digit()) && (b'1'..=b'6').contains(code.as_bytes().first()?);
    let code = code.parse().ok().filter(|_| is_code)?;
    match text.as_bytes().first() {
        None => Some((code, true, String::new())),
        Some(b' ') => Some((code, true, text.get(1..)?.to_owned())),
        Some(b'-') => Some((code, false, text.get(1..)?.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::storage::Interrupt;

    /// What a server is understood to reply when it sends these bytes and closes the connection.
    fn receive(bytes: &[u8], count: usize) -> Vec<Option<Reply>> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let bytes = bytes.to_owned();
        let writer = std::thread::spawn(move || server.write_all(&bytes).ok());
        let mut control =
            Control::new(Stream::Plain(Socket::new(client, &Interrupt::default()).unwrap()), Duration::from_secs(9));
        let replies = (0..count).map(|_| control.receive().ok()).collect();
        drop(control);
        writer.join().unwrap();
        replies
    }

    fn reply(code: u16, text: &str) -> Option<Reply> {
        Some(Reply { code, text: text.to_owned() })
    }

    #[test]
    fn replies_of_one_and_of_several_lines_are_read() {
        let bytes = b"220 Hi\r\n211-Features:\r\n SIZE\r\n211-MDTM\r\n226 x\r\n211 End\r\n226\n\xff";
        let features = "Features:\n SIZE\n211-MDTM\n226 x\nEnd";
        assert_eq!(receive(bytes, 4), [reply(220, "Hi"), reply(211, features), reply(226, ""), None]);
    }

    #[test]
    fn what_is_not_a_reply_is_refused_in_bounded_memory() {
        for bytes in [
            &b""[..],
            b"hello\r\n",
            b"22\r\n",
            b"2200 x\r\n",
            b"920 x\r\n",
            b"+20 x\r\n",
            b"\xe2\x82\xac x\r\n",
            b"220-a\r\n221 b\r\n",
            b"220",
            &b"x".repeat(1 << 20),
            &[&b"220-a\r\n"[..], &b"b\r\n".repeat(100_000)].concat(),
        ] {
            assert_eq!(receive(bytes, 1), [None], "{:?}", &bytes[..bytes.len().min(20)]);
        }
    }
}
