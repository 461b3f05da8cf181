//! A proxy in front of an HTTP server that counts requests, and fails as it is told.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, sleep};
use std::time::Duration;

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Flaw {
    /// This answer is sent, and the server never sees the request.
    Answer(String),
    /// The connection is cut after so many bytes of the request's body, which the server sees.
    CutRequest(u64),
    /// The connection is cut after so many bytes of the answer's body.
    CutAnswer(u64),
    /// The connection is cut when the server has answered. The client gets nothing.
    LoseAnswer,
    /// No byte of the answer is sent until the connection ends. The server sees the request.
    Stall,
    /// The same after so many bytes of the answer's body.
    StallAnswer(u64),
}

/// A flaw for the next requests with this method and this text in the target.
#[derive(Debug)]
struct Rule {
    method: &'static str,
    part: String,
    times: usize,
    flaw: Flaw,
}

#[derive(Debug, Default)]
struct State {
    /// The port of the server.
    server: AtomicU16,
    rules: Mutex<Vec<Rule>>,
    /// Methods and targets.
    seen: Mutex<Vec<String>>,
    /// Heads of requests.
    heads: Mutex<Vec<String>>,
    /// By number: those of a connection share one.
    open: Mutex<Vec<(usize, TcpStream)>>,
    /// Methods and targets of requests that the server is receiving, by the number of their connection.
    received: Mutex<HashMap<usize, String>>,
    is_down: AtomicBool,
    ended: AtomicBool,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Listens on a free port and passes requests on to another port.
    pub fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("address").port();
        let state = Arc::new(State { server: server.into(), ..State::default() });
        let shared = state.clone();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                if shared.is_down.load(Ordering::Relaxed) {
                    continue;
                }
                lock(&shared.open).push((number, stream.try_clone().expect("stream")));
                let shared = shared.clone();
                thread::spawn(move || {
                    // A connection that ends is no failure of the test.
                    let _ = serve(&shared, number, &stream);
                    // The last handle goes with the stream: a client that is sending then finds the connection reset.
                    lock(&shared.open).retain(|(other, _)| *other != number);
                    lock(&shared.received).remove(&number);
                });
            }
        });
        Proxy { port, state }
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets the next `times` requests with this method and this text in the target fail.
    pub fn fail(&self, method: &'static str, part: &str, times: usize, flaw: Flaw) {
        lock(&self.state.rules).push(Rule { method, part: part.to_owned(), times, flaw });
    }

    /// The failures that have not happened yet.
    pub fn failures_left(&self) -> usize {
        lock(&self.state.rules).iter().map(|rule| rule.times).sum()
    }

    /// Lets all requests succeed again.
    pub fn forgive(&self) {
        lock(&self.state.rules).clear();
    }

    /// The methods and targets of requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state.seen))
    }

    /// Whether the server is receiving the body of a request with this method and this text in the target.
    pub fn is_receiving(&self, method: &str, part: &str) -> bool {
        lock(&self.state.received).values().any(|request| request.starts_with(method) && request.contains(part))
    }

    /// The heads of requests since the last call.
    pub fn heads(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state.heads))
    }

    /// Cuts all connections, and all new ones until [`Proxy::start_again`].
    pub fn stop(&self) {
        self.state.is_down.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// Lets requests through again.
    pub fn start_again(&self) {
        self.state.is_down.store(false, Ordering::Relaxed);
    }

    /// Cuts all connections. New ones lead to the server at another port.
    pub fn lead_to(&self, server: u16) {
        self.state.server.store(server, Ordering::Relaxed);
        self.cut();
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        for (_, stream) in lock(&self.state.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("lock")
}

/// A head with its empty line; `None` at the end of the connection.
fn head(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if from.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head.get(before..) == Some("\r\n") {
            return Ok(Some(head));
        }
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn length(head: &str) -> u64 {
    header(head, "content-length").map_or(0, |length| length.parse().expect("length"))
}

/// The body of an answer as it is on the wire, in chunks or of a known length; at most `most` bytes of it. Returns whether
/// that was all.
fn copy_body(
    answer: &str,
    is_empty: bool,
    from: &mut impl BufRead,
    to: &mut impl Write,
    most: u64,
) -> io::Result<bool> {
    let is_chunked = header(answer, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
    if is_empty || !is_chunked {
        let body = if is_empty { 0 } else { length(answer) };
        io::copy(&mut from.take(body.min(most)), to)?;
        return Ok(body <= most);
    }
    let mut left = most;
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size =
            u64::from_str_radix(line.trim_end().split(';').next().unwrap_or_default(), 16).expect("size of a chunk");
        if left <= size {
            to.write_all(line.as_bytes())?;
            io::copy(&mut from.take(left), to)?;
            return Ok(false);
        }
        left -= size;
        to.write_all(line.as_bytes())?;
        // With the line end after it; the last chunk has no content.
        io::copy(&mut from.take(size + 2), to)?;
        if size == 0 {
            return Ok(true);
        }
    }
}

fn cut() -> io::Error {
    io::Error::other("cut as told")
}

/// Waits until the other side ends the connection.
fn wait_for_end(state: &State, mut client: &TcpStream) {
    client.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    loop {
        match client.read(&mut [0; 1024]) {
            Ok(0) => return,
            Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return,
            _ if state.ended.load(Ordering::Relaxed) => return,
            _ => sleep(Duration::from_millis(5)),
        }
    }
}

fn serve(state: &State, number: usize, client: &TcpStream) -> io::Result<()> {
    let upstream = TcpStream::connect(("127.0.0.1", state.server.load(Ordering::Relaxed)))?;
    lock(&state.open).push((number, upstream.try_clone()?));
    let (mut requests, mut answers) = (BufReader::new(client), BufReader::new(&upstream));
    let (mut to_client, mut to_server) = (client, &upstream);
    while let Some(request) = head(&mut requests)? {
        let mut words = request.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        lock(&state.seen).push(format!("{method} {target}"));
        lock(&state.heads).push(request.clone());
        let flaw = {
            let mut rules = lock(&state.rules);
            let found = rules.iter_mut().find(|rule| {
                rule.times > 0 && (rule.method.is_empty() || rule.method == method) && target.contains(&rule.part)
            });
            found.map(|rule| {
                rule.times -= 1;
                rule.flaw.clone()
            })
        };
        if let Some(Flaw::Answer(answer)) = &flaw {
            to_client.write_all(answer.as_bytes())?;
            if length(&request) > 0 {
                return Ok(());
            }
            continue;
        }
        if header(&request, "expect").is_some() {
            to_client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let lines = request.split_inclusive("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("expect:"));
        to_server.write_all(lines.collect::<String>().as_bytes())?;
        let body = length(&request);
        if let Some(Flaw::CutRequest(bytes)) = flaw {
            io::copy(&mut requests.by_ref().take(bytes.min(body)), &mut to_server)?;
            let _ = upstream.shutdown(Shutdown::Both);
            return Err(cut());
        }
        lock(&state.received).insert(number, format!("{method} {target}"));
        if io::copy(&mut requests.by_ref().take(body), &mut to_server)? < body {
            // The client has ended.
            return Ok(());
        }
        lock(&state.received).remove(&number);
        let Some(answer) = head(&mut answers)? else { return Ok(()) };
        let is_empty =
            method == "HEAD" || answer.split(' ').nth(1).is_some_and(|status| matches!(status, "204" | "304"));
        let all = u64::MAX;
        match flaw {
            Some(Flaw::Stall) => {
                copy_body(&answer, is_empty, &mut answers, &mut io::sink(), all)?;
                wait_for_end(state, client);
                return Ok(());
            }
            Some(Flaw::LoseAnswer) => return Err(cut()),
            Some(Flaw::CutAnswer(bytes) | Flaw::StallAnswer(bytes)) => {
                let mut part = answer.clone().into_bytes();
                if !copy_body(&answer, is_empty, &mut answers, &mut part, bytes)? {
                    to_client.write_all(&part)?;
                    if matches!(flaw, Some(Flaw::StallAnswer(_))) {
                        wait_for_end(state, client);
                    }
                }
                let _ = upstream.shutdown(Shutdown::Both);
                return Err(cut());
            }
            _ => {}
        }
        to_client.write_all(answer.as_bytes())?;
        copy_body(&answer, is_empty, &mut answers, &mut to_client, all)?;
    }
    Ok(())
}
