//! Operations on files over one control connection, one after the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::address::{Address, Security};
use super::failure::{Failure, explain, shown};
use super::listing::{Entry, Kind, parse_machine, parse_unix};
use super::socket::Socket;
use super::tls::{Tls, TlsSession};
use super::wire::{Control, Reply, Stream};
use crate::storage::connect::{connect, look_up};
use crate::storage::error::ErrorKind;
use crate::storage::interrupt::Interrupt;
use crate::storage::netrc::Login;

/// How long to wait for a connection at most. [`Server::stall`] may be shorter.
const CONNECT: Duration = Duration::from_secs(30);
/// How long to wait for a reply that only explains a failure, and for the end of a connection.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long an unused session may be used again. Firewalls forget connections, and servers close them.
const IDLE: Duration = Duration::from_secs(45);
/// Bytes per read or write of a data connection.
const PIECE: usize = 64 << 10;
/// Bytes of a line of a listing.
const LONGEST_LINE: u64 = 8 << 10;
/// Bytes of a listing of a folder: some million files.
const LONGEST_LISTING: u64 = 1 << 30;
/// Bytes that are read from a server that should only receive, such as messages of TLS.
const LONGEST_REST: u64 = 64 << 10;

/// How to open sessions on a server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) login: Login,
    /// `None` without encryption.
    pub(super) tls: Option<Tls>,
    /// How long a connection may be silent while something is due.
    pub(super) stall: Duration,
    /// Ends waits for the server.
    pub(super) interrupt: Interrupt,
}

/// A session: a control connection after the login.
#[derive(Debug)]
pub(super) struct Session {
    server: Arc<Server>,
    /// `None` once it cannot be used.
    control: Option<Control>,
    /// Where data connections go, without the port.
    peer: IpAddr,
    /// The TLS session, which data connections continue.
    tls: Option<TlsSession>,
    /// The directory with the repository, as an absolute path.
    root: String,
    /// The server has the command for listings that programs can read.
    lists: bool,
    /// The server does not know the command for passive mode that IPv6 needs.
    is_old: bool,
    used: Instant,
}

/// Why a file could not be written.
#[derive(Debug)]
pub(super) enum WriteError {
    Failed(Failure),
    /// The temporary file on this machine cannot be read.
    Spool(io::Error),
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        WriteError::Failed(failure)
    }
}

impl Session {
    /// Connects and logs in.
    pub(super) fn open(server: &Arc<Server>) -> Result<Self, Failure> {
        let needed_newest = server.tls.as_ref().is_some_and(Tls::needs_newest);
        match Session::open_once(server) {
            Err(_) if !needed_newest && server.tls.as_ref().is_some_and(Tls::needs_newest) => {
                Session::open_once(server)
            }
            opened => opened,
        }
    }

    fn open_once(server: &Arc<Server>) -> Result<Self, Failure> {
        let Address { security, host, port, path, .. } = &server.address;
        let socket = connect_to(&look_up(host, *port, server.stall, &server.interrupt)?, server)?;
        let peer = socket.stream.peer_addr().map_err(|error| Failure::io(&error, server.stall))?.ip();
        let encrypt = |stream: Stream| match (&server.tls, stream) {
            (Some(tls), Stream::Plain(socket)) => Ok(Stream::Tls(tls.connect(host, socket, None, server.stall)?)),
            (_, stream) => Ok(stream),
        };
        let mut stream = Stream::Plain(socket);
        if *security == Security::Implicit {
            stream = encrypt(stream)?;
        }
        let mut session = Session {
            server: server.clone(),
            control: Some(Control::new(stream, server.stall)),
            peer,
            tls: None,
            root: path.clone(),
            lists: false,
            is_old: false,
            used: Instant::now(),
        };
        match session.receive()? {
            Reply { code: 220, .. } => {}
            // It will be ready in some minutes.
            reply if reply.code == 120 => {
                let why = format!("the server is not ready ({})", shown(&reply));
                return Err(Failure::Lost(ErrorKind::Unavailable, why));
            }
            reply => return Err(lost(reply)),
        }
        if *security == Security::Explicit {
            let reply = session.ask("AUTH TLS")?;
            if reply.code != 234 {
                let why = format!(
                    "the server does not offer TLS ({}); only ftp://, without encryption, may work",
                    shown(&reply)
                );
                return Err(Failure::Lost(ErrorKind::Refused, why));
            }
            let control = session.control.take().map(|control| control.upgrade(encrypt)).transpose()?;
            session.control = control;
        }
        session.log_in()?;
        if server.tls.is_some() {
            session.expect("PBSZ 0", &[200]).map_err(refused)?;
            session.expect("PROT P", &[200]).map_err(refused)?;
            if let Some(Stream::Tls(stream)) = session.control.as_ref().map(Control::stream) {
                session.tls = TlsSession::of(stream);
            }
        }
        session.expect("TYPE I", &[200]).map_err(refused)?;
        let features = session.ask("FEAT")?.text.to_ascii_uppercase();
        session.lists = features.lines().any(|line| line.trim_start().starts_with("MLST"));
        if !path.is_ascii() && features.lines().any(|line| line.trim() == "UTF8") {
            // Servers that always use UTF-8 may refuse it.
            session.ask("OPTS UTF8 ON")?;
        }
        if !path.starts_with('/') {
            let home = session.expect("PWD", &[257]).map_err(refused)?;
            let home = parse_quoted(&home.text).filter(|home| home.starts_with('/')).ok_or_else(Failure::malformed)?;
            session.root = match path.as_str() {
                "." => home,
                path => format!("{}/{path}", home.trim_end_matches('/')),
            };
        }
        debug!(lists = session.lists, "connected");
        Ok(session)
    }

    fn log_in(&mut self) -> Result<(), Failure> {
        let server = self.server.clone();
        let Login { user, password, .. } = &server.login;
        let mut reply = self.ask(&format!("USER {user}"))?;
        if reply.code == 331 {
            reply = self.ask(&format!("PASS {password}"))?;
        }
        if matches!(reply.code, 230 | 202) {
            return Ok(());
        }
        // A server could repeat the password.
        if reply.text.contains(password.as_str()) {
            reply.text.clear();
        }
        Err(lost(reply))
    }

    /// The absolute path of an object or a folder.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{}", self.root.trim_end_matches('/'), name.trim_end_matches('/'))
    }

    /// The path of the directory with the repository.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(super) fn is_lost(&self) -> bool {
        self.control.is_none()
    }

    /// Moves the session to another owner. This one is lost.
    pub(super) fn hand_over(&mut self) -> Session {
        Session {
            server: self.server.clone(),
            control: self.control.take(),
            tls: self.tls.take(),
            root: std::mem::take(&mut self.root),
            ..*self
        }
    }

    /// Whether an unused session can be used again.
    pub(super) fn is_usable(&self) -> bool {
        self.used.elapsed() < IDLE && self.control.as_ref().is_some_and(Control::is_in_step)
    }

    /// Ends the session if its connection cannot be used after this failure.
    fn note<T>(&mut self, result: Result<T, Failure>) -> Result<T, Failure> {
        self.used = Instant::now();
        if result.as_ref().is_err_and(Failure::is_lost) {
            self.control = None;
        }
        result
    }

    fn control(&mut self) -> Result<&mut Control, Failure> {
        let closed = || Failure::Lost(ErrorKind::Unavailable, "the connection is closed".to_owned());
        self.control.as_mut().ok_or_else(closed)
    }

    fn send(&mut self, command: &str) -> Result<(), Failure> {
        let sent = self.control().and_then(|control| {
            // An unexpected reply would otherwise be taken for the reply to this command.
            if control.is_in_step() { control.send(command) } else { Err(control.receive().map_or_else(|e| e, lost)) }
        });
        self.note(sent)
    }

    /// Receives a reply. Code 421, with which the server closes the connection, ends the session.
    fn receive(&mut self) -> Result<Reply, Failure> {
        let received = self.control().and_then(|control| match control.receive()? {
            reply if reply.code == 421 => Err(lost(reply)),
            reply => Ok(reply),
        });
        self.note(received)
    }

    fn ask(&mut self, command: &str) -> Result<Reply, Failure> {
        self.send(command)?;
        self.receive()
    }

    /// Makes a command. Another reply than those with these codes is a failure.
    fn expect(&mut self, command: &str, codes: &[u16]) -> Result<Reply, Failure> {
        let reply = self.ask(command)?;
        if codes.contains(&reply.code) { Ok(reply) } else { Err(Failure::Reply(reply)) }
    }

    /// The size of a file; `None` if the server has none for this path.
    pub(super) fn size(&mut self, path: &str) -> Result<Option<u64>, Failure> {
        match self.expect(&format!("SIZE {path}"), &[213]) {
            Ok(reply) => {
                let size = reply.text.trim().parse().map_err(|_| Failure::malformed());
                self.note(size).map(Some)
            }
            Err(failure) if failure.may_be_missing() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The time of the last change of a file, as the server writes it; empty if it does not tell.
    pub(super) fn changed(&mut self, path: &str) -> Result<String, Failure> {
        match self.expect(&format!("MDTM {path}"), &[213]) {
            Ok(reply) => Ok(reply.text),
            Err(Failure::Reply(_)) => Ok(String::new()),
            Err(failure) => Err(failure),
        }
    }

    pub(super) fn remove(&mut self, path: &str) -> Result<(), Failure> {
        self.expect(&format!("DELE {path}"), &[250, 200]).map(drop)
    }

    pub(super) fn make_folder(&mut self, path: &str) -> Result<(), Failure> {
        self.expect(&format!("MKD {path}"), &[257, 250]).map(drop)
    }

    pub(super) fn remove_folder(&mut self, path: &str) -> Result<(), Failure> {
        self.expect(&format!("RMD {path}"), &[250, 200]).map(drop)
    }

    /// Gives a file another name. Servers replace an existing file.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), Failure> {
        self.expect(&format!("RNFR {from}"), &[350])?;
        self.expect(&format!("RNTO {to}"), &[250, 200]).map(drop)
    }

    /// Whether a folder exists and can be entered.
    fn enters(&mut self, path: &str) -> Result<bool, Failure> {
        match self.expect(&format!("CWD {path}"), &[250, 200]) {
            Ok(_) => Ok(true),
            Err(failure) if failure.may_be_missing() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Opens a connection for data. It goes to the same machine, whatever the server says.
    fn connect(&mut self) -> Result<Socket, Failure> {
        let port = if self.is_old {
            None
        } else {
            match self.expect("EPSV", &[229]) {
                Ok(reply) => Some(parse_extended(&reply.text)),
                Err(Failure::Reply(Reply { code: 500..=504 | 522, .. })) => {
                    self.is_old = true;
                    None
                }
                Err(failure) => return Err(failure),
            }
        };
        let port = match port {
            Some(port) => port,
            None => parse_passive(&self.expect("PASV", &[227])?.text),
        };
        let server = &self.server;
        let socket = port.ok_or_else(Failure::malformed).and_then(|port| {
            let address = SocketAddr::new(self.peer, port);
            connect_to(&[address], server).map_err(|failure| match failure {
                Failure::Lost(kind, why) => Failure::Lost(kind, format!("no data connection can be made: {why}")),
                failure => failure,
            })
        });
        self.note(socket)
    }

    /// Begins a transfer.
    fn begin(&mut self, command: &str, offset: u64) -> Result<Stream, Failure> {
        let socket = self.connect()?;
        if offset > 0 {
            self.expect(&format!("REST {offset}"), &[350])?;
        }
        self.expect(command, &[125, 150])?;
        let server = self.server.clone();
        let Some(tls) = &server.tls else { return Ok(Stream::Plain(socket)) };
        let stream = tls.connect(&server.address.host, socket, self.tls.as_ref(), server.stall);
        stream.map(Stream::Tls).map_err(|failure| self.end_with(failure))
    }

    /// The failure of a transfer whose data connection failed: the server's own words, if it has some.
    fn end_with(&mut self, failure: Failure) -> Failure {
        let replied = self.control().and_then(|control| {
            let stall = control.stall();
            let _ = control.stream().socket().set_read_timeout(Some(LAST_WORDS.min(stall)));
            let reply = control.receive()?;
            let reset = control.stream().socket().set_read_timeout(Some(stall));
            reset.map(|()| reply).map_err(|error| Failure::io(&error, stall))
        });
        match replied {
            Ok(reply) if reply.code == 421 => {
                self.control = None;
                lost(reply)
            }
            Ok(reply) if reply.code >= 400 => Failure::Reply(reply),
            // The server takes the transfer for complete.
            Ok(_) => match failure {
                Failure::Lost(kind, why) => Failure::Wrong(kind, why),
                failure => failure,
            },
            Err(_) => {
                self.control = None;
                failure
            }
        }
    }

    /// Receives the reply to the end of a transfer.
    fn complete(&mut self) -> Result<Reply, Failure> {
        match self.receive()? {
            reply if matches!(reply.code, 226 | 250) => Ok(reply),
            reply => Err(Failure::Reply(reply)),
        }
    }

    /// Reads a range of a file into `bytes`. Returns how many bytes there are before the end of the file.
    pub(super) fn read(&mut self, path: &str, offset: u64, bytes: &mut [u8]) -> Result<usize, Failure> {
        let mut data = self.begin(&format!("RETR {path}"), offset)?;
        let mut filled = 0;
        loop {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            // A byte more shows whether the file ends there.
            let (is_full, mut more) = (rest.is_empty(), [0]);
            match data.read(if is_full { &mut more } else { rest }) {
                Ok(0) => {
                    // Best effort: the server has sent everything.
                    let _ = data.end();
                    drop(data);
                    return self.complete().map(|_| filled);
                }
                Ok(_) if is_full => {
                    self.abort(data);
                    return Ok(filled);
                }
                Ok(read) => filled += read,
                Err(error) => {
                    drop(data);
                    let failure = Failure::io(&error, self.server.stall);
                    return Err(self.end_with(failure));
                }
            }
        }
    }

    /// Ends a transfer from the server before its end. Servers reply twice: to the transfer and to the command. If they do
    /// not, the session ends.
    fn abort(&mut self, data: Stream) {
        let aborted = self.control().and_then(|control| {
            control.send("ABOR")?;
            drop(data);
            let _ = control.stream().socket().set_read_timeout(Some(LAST_WORDS.min(control.stall())));
            let replies = [control.receive()?, control.receive()?];
            let is_as_usual =
                matches!(replies.each_ref().map(|reply| reply.code), [226 | 250 | 425 | 426 | 451, 225 | 226]);
            let reset = control.stream().socket().set_read_timeout(Some(control.stall()));
            if is_as_usual && reset.is_ok() { Ok(()) } else { Err(Failure::malformed()) }
        });
        if let Err(failure) = aborted {
            debug!(?failure, "a transfer could not be aborted");
            self.control = None;
        }
    }

    /// Creates a file with this content.
    pub(super) fn write(&mut self, path: &str, content: &mut dyn Read) -> Result<(), WriteError> {
        let mut data = self.begin(&format!("STOR {path}"), 0)?;
        let mut piece = vec![0; PIECE];
        let sent = loop {
            let read = match content.read(&mut piece) {
                Ok(0) => break data.end(),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    // The server would take the end of the connection for the end of the file.
                    self.control = None;
                    return Err(WriteError::Spool(error));
                }
            };
            if let Err(error) = data.write_all(piece.get(..read).unwrap_or_default()) {
                break Err(error);
            }
        };
        if let Err(error) = sent {
            drop(data);
            let failure = Failure::io(&error, self.server.stall);
            return Err(self.end_with(failure).into());
        }
        // A socket that is closed with unread bytes, such as those of TLS, resets the connection.
        let _ = data.socket().set_read_timeout(Some(LAST_WORDS.min(self.server.stall)));
        let _ = io::copy(&mut (&mut data).take(LONGEST_REST), &mut io::sink());
        drop(data);
        self.complete()?;
        Ok(())
    }

    /// Calls `found` with all entries of a folder, without `.` and `..`. Returns false if it is missing or cannot be entered.
    pub(super) fn list(&mut self, path: &str, found: &mut dyn FnMut(Entry<'_>)) -> Result<bool, Failure> {
        let command = if self.lists {
            format!("MLSD {path}")
        } else if self.enters(path)? {
            // Given a path that cannot be opened, some servers list its entry in the parent. Without `-a`, they hide temporary
            // files.
            "LIST -a".to_owned()
        } else {
            return Ok(false);
        };
        let data = match self.begin(&command, 0) {
            Err(failure) if failure.may_be_missing() => return Ok(false),
            data => data?,
        };
        let mut data = BufReader::with_capacity(PIECE, data);
        let (mut line, mut exists, mut length) = (Vec::new(), false, 0);
        loop {
            line.clear();
            match (&mut data).take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(read) if line.ends_with(b"\n") && length < LONGEST_LISTING => length += read as u64,
                // The rest of a line that is cut off or too long, or a list that is too long.
                Ok(_) => return Err(self.end_with(Failure::malformed())),
                Err(error) => {
                    let failure = Failure::io(&error, self.server.stall);
                    return Err(self.end_with(failure));
                }
            }
            // A name that is not UTF-8 belongs to no object.
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            let parsed = if self.lists { parse_machine(text) } else { parse_unix(text) };
            match parsed {
                Err(_) => {
                    let why = "the server's list of files has an unknown format; brackfs needs the command MLSD, or a list \
                               like that of `ls -l`";
                    return Err(self.end_with(Failure::Wrong(ErrorKind::Other, why.to_owned())));
                }
                Ok(None) => {}
                Ok(Some(entry)) => {
                    exists = true;
                    // A name with a slash comes only from a server that is broken or hostile.
                    if entry.kind != Kind::Listed && !entry.name.contains(['/', '\0']) && !entry.name.is_empty() {
                        found(entry);
                    }
                }
            }
        }
        // Best effort: the server has sent everything.
        let _ = data.get_mut().end();
        drop(data);
        let reply = match self.complete() {
            Err(failure) if failure.may_be_missing() => return Ok(false),
            reply => reply?,
        };
        let text = without_paths(&reply.text, path);
        // Servers cut off long lists, and say so only here.
        if text.contains("truncated") {
            let why = "the server cuts off its lists of files; its limit must be raised";
            return Err(Failure::Wrong(ErrorKind::Other, why.to_owned()));
        }
        // An empty list may be that of a missing folder.
        let is_there = exists || !self.lists || self.enters(path)?;
        if is_there && ["failed", "denied"].iter().any(|word| text.contains(word)) {
            let why = format!("the server does not list {path} ({})", shown(&reply));
            return Err(Failure::Wrong(ErrorKind::PermissionDenied, why));
        }
        Ok(is_there)
    }
}

/// A reply in lower case, without the path of the folder and without text in quotes. Servers repeat the path, which may
/// contain any words.
fn without_paths(text: &str, path: &str) -> String {
    let unquoted = text.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words = if path.is_empty() { unquoted } else { unquoted.replace(path, " ") };
    words.to_ascii_lowercase()
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(control) = &mut self.control {
            // Best effort: the server notices the end of the connection as well.
            let _ = control.send("QUIT");
            let _ = control.stream().socket().shutdown(Shutdown::Write);
        }
    }
}

/// The failure of a connection that a reply ends.
fn lost(reply: Reply) -> Failure {
    let (kind, why) = explain(&reply);
    Failure::Lost(kind, why)
}

/// A command that every session needs was refused.
fn refused(failure: Failure) -> Failure {
    match failure {
        Failure::Reply(reply) => lost(reply),
        lost => lost,
    }
}

/// Connects to one of the addresses of a server.
fn connect_to(addresses: &[SocketAddr], server: &Server) -> Result<Socket, Failure> {
    let Server { address, stall, interrupt, .. } = server;
    let socket = connect(&address.host, addresses, (*stall).min(CONNECT), interrupt)?;
    let prepared = || {
        socket.set_read_timeout(Some(*stall))?;
        socket.set_write_timeout(Some(*stall))?;
        socket.set_nodelay(true)?;
        Socket::new(socket, interrupt)
    };
    prepared().map_err(|error: io::Error| Failure::io(&error, *stall))
}

/// The port in `Entering Extended Passive Mode (|||12345|)`.
fn parse_extended(text: &str) -> Option<u16> {
    let (_, inner) = text.split_once('(')?;
    let mark = inner.chars().next().filter(|mark| !mark.is_ascii_digit())?;
    let mut parts = inner.split(mark);
    parts.nth(3)?.parse().ok().filter(|port| *port != 0)
}

/// The port in `Entering Passive Mode (127,0,0,1,48,57)`. The address is not used: behind a router it is the wrong one.
fn parse_passive(text: &str) -> Option<u16> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let numbers = text.get(start..)?.split(|c: char| !c.is_ascii_digit()).take(6);
    let numbers: Vec<u8> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [_, _, _, _, high, low] = numbers.try_into().ok()?;
    Some(u16::from_be_bytes([high, low])).filter(|port| *port != 0)
}

/// The path in `"/home/me" is the current directory`; quotation marks in it are doubled.
fn parse_quoted(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?;
    let mut path = String::new();
    let mut chars = inner.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if chars.next_if_eq(&'"').is_some() => path.push('"'),
            '"' => return Some(path),
            c if c.is_control() => return None,
            c => path.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_replies_say_nothing() {
        let path = "failed/repo";
        for text in ["Successfully transferred \"/srv/failed disks/failed/repo\"", "Done with failed/repo"] {
            assert!(!without_paths(text, path).contains("failed"), "{text}");
        }
        assert_eq!(
            without_paths("Transfer done, but FAILED to open directory", ""),
            "transfer done, but failed to open directory"
        );
    }

    #[test]
    fn ports_and_paths_in_replies_are_parsed() {
        for (text, port) in [
            ("Entering Extended Passive Mode (|||12345|)", Some(12345)),
            ("Entering Extended Passive Mode (!!!1!).", Some(1)),
            ("(|1|10.0.0.1|99|)", Some(99)),
            ("(|||0|)", None),
            ("(|||70000|)", None),
            ("(1111)", None),
            ("()", None),
            ("|||1|", None),
        ] {
            assert_eq!(parse_extended(text), port, "{text}");
        }
        for (text, port) in [
            ("Entering Passive Mode (127,0,0,1,48,57).", Some(48 * 256 + 57)),
            ("Entering Passive Mode 10,0,0,1,0,21", Some(21)),
            ("(127,0,0,1,256,1)", None),
            ("(127,0,0,1,0,0)", None),
            ("(127,0,0,1,1)", None),
            ("no", None),
        ] {
            assert_eq!(parse_passive(text), port, "{text}");
        }
        for (text, path) in [
            ("\"/home/me\" is the current directory", Some("/home/me")),
            ("\"/a\"\"b\"", Some("/a\"b")),
            ("\"/open", None),
            ("\"/a\u{7}\"", None),
            ("/home", None),
        ] {
            assert_eq!(parse_quoted(text).as_deref(), path, "{text}");
        }
    }
}
