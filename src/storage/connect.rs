//! Connections over TCP. An interrupt ends the look-up of a server's name and the wait for its answer.
//!
//! A server with several addresses is tried at all of them, as RFC 8305 ("happy eyeballs") describes: an address without an
//! answer delays the next one only for a moment, and the first connection is used.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use thiserror::Error;

use super::interrupt::{Interrupt, Waits};
use crate::failure::worded;

/// Time between two looks for an interrupt.
const LOOK: Duration = Duration::from_millis(50);
/// Time from one address of a server to the next, as RFC 8305 recommends.
const STAGGER: Duration = Duration::from_millis(250);

/// Why a server cannot be reached, and what to check.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub(super) struct Unreachable(String);

/// The addresses of a host, without a port, or why they are unknown.
type Addresses = Result<Vec<SocketAddr>, Unreachable>;

/// A look-up that has no answer yet.
#[derive(Default)]
struct Question {
    answer: Mutex<Option<Addresses>>,
    answered: Condvar,
}

/// The look-ups without an answer, by host. getaddrinfo cannot be interrupted and may take minutes, so connections and retries
/// wait for the look-up that is under way instead of starting another one.
static ASKED: Mutex<BTreeMap<String, Arc<Question>>> = Mutex::new(BTreeMap::new());

/// Looks up the addresses of a host in another thread. After `time`, it returns even if that thread has no answer yet.
pub(super) fn look_up(host: &str, port: u16, time: Duration, interrupt: &Interrupt) -> Addresses {
    look_up_with(host, port, time, interrupt, ask)
}

fn look_up_with(host: &str, port: u16, time: Duration, interrupt: &Interrupt, ask: fn(&str) -> Addresses) -> Addresses {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = match question(host, ask) {
        // Without another thread, the look-up cannot be interrupted.
        None => ask(host),
        Some(question) => in_steps(time, interrupt, |step| {
            let wait = question.answered.wait_timeout_while(lock(&question.answer), step, |answer| answer.is_none());
            Ok(wait.unwrap_or_else(PoisonError::into_inner).0.clone())
        })
        .unwrap_or_else(|_| Err(no_name_server(host))),
    };
    let with_port = |mut address: SocketAddr| {
        address.set_port(port);
        address
    };
    Ok(found?.into_iter().map(with_port).collect())
}

/// The look-up of this host that is under way, or a new one; `None` if no thread can be started.
fn question(host: &str, ask: fn(&str) -> Addresses) -> Option<Arc<Question>> {
    let mut asked = lock(&ASKED);
    if let Some(question) = asked.get(host) {
        return Some(Arc::clone(question));
    }
    let (question, name) = (Arc::new(Question::default()), host.to_owned());
    let other = Arc::clone(&question);
    let answer = move || {
        let answer = ask(&name);
        lock(&ASKED).remove(&name);
        *lock(&other.answer) = Some(answer);
        other.answered.notify_all();
    };
    thread::Builder::new().name("look-up".into()).spawn(answer).ok()?;
    asked.insert(host.to_owned(), Arc::clone(&question));
    Some(question)
}

/// Asks the system for the addresses of a host, and waits for the answer.
fn ask(host: &str) -> Addresses {
    match (host, 0).to_socket_addrs() {
        Ok(found) => Ok(alternating(&found.collect::<Vec<_>>())),
        Err(error) => Err(unknown(host, &error.to_string())),
    }
}

/// The same addresses, but those of IPv4 and IPv6 in turn, so that a dead network costs little time.
fn alternating(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_first = |address: &SocketAddr| addresses.first().is_some_and(|first| first.is_ipv4() == address.is_ipv4());
    let (first, other): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses.iter().partition(|address| is_first(address));
    let mut all = Vec::with_capacity(addresses.len());
    for number in 0..first.len().max(other.len()) {
        all.extend(first.get(number).into_iter().chain(other.get(number)));
    }
    all
}

fn no_name_server(host: &str) -> Unreachable {
    Unreachable(format!("cannot look up {host}: no name server answers; check the network and /etc/resolv.conf"))
}

/// Why the system does not find a host. The words are those of glibc and musl.
fn unknown(host: &str, message: &str) -> Unreachable {
    match message.strip_prefix("failed to lookup address information: ").unwrap_or(message) {
        "Temporary failure in name resolution" | "Try again" => no_name_server(host),
        "Name or service not known"
        | "No address associated with hostname"
        | "Name does not resolve"
        | "Name has no usable address" => {
            Unreachable(format!("cannot look up {host}: the name is not known; check its spelling"))
        }
        other => Unreachable(format!("cannot look up {host}: {}; check the name and the network", worded(other))),
    }
}

/// Connects to the first address of a server that answers.
pub(super) fn connect(
    host: &str,
    addresses: &[SocketAddr],
    time: Duration,
    interrupt: &Interrupt,
) -> Result<TcpStream, Unreachable> {
    let port = addresses.first().map_or(0, SocketAddr::port);
    let failed = |error: io::Error| {
        let why = match error.kind() {
            ErrorKind::TimedOut => "no answer; check that the server runs and no firewall is in between".to_owned(),
            ErrorKind::ConnectionRefused => {
                "it refuses the connection; check the port, and that the service runs".to_owned()
            }
            _ if is_unreachable(&error) => format!("{}; check the network", worded(&error.to_string())),
            _ => worded(&error.to_string()).into_owned(),
        };
        Unreachable(format!("cannot connect to {host}, port {port}: {why}"))
    };
    connect_to_any(addresses, time, interrupt).map_err(failed)
}

fn connect_to_any(addresses: &[SocketAddr], time: Duration, interrupt: &Interrupt) -> io::Result<TcpStream> {
    let mut attempts = Attempts { addresses: addresses.iter(), next: Instant::now(), sockets: Vec::new(), error: None };
    let socket = in_steps(time, interrupt, |step| attempts.wait(step));
    let stream = TcpStream::from(socket.map_err(|silent| attempts.failure(silent))?);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Attempts to connect to one server.
struct Attempts<'a> {
    /// Those that were not tried yet.
    addresses: slice::Iter<'a, SocketAddr>,
    /// When the next one is tried.
    next: Instant,
    /// Sockets that have no answer yet.
    sockets: Vec<OwnedFd>,
    /// The first error. "Unreachable" is kept only as long as there is no other one.
    error: Option<io::Error>,
}

impl Attempts<'_> {
    /// Waits until a socket is connected, for at most this long. If there is no hope left, returns the error.
    fn wait(&mut self, time: Duration) -> io::Result<Option<OwnedFd>> {
        while self.sockets.is_empty() || self.next <= Instant::now() {
            let Some(address) = self.addresses.next() else { break };
            match begin(address) {
                Ok(socket) => self.sockets.push(socket),
                Err(error) => {
                    self.note(error);
                    continue;
                }
            }
            self.next = Instant::now() + STAGGER;
        }
        if self.sockets.is_empty() {
            let nothing = io::Error::new(ErrorKind::NotFound, "its name has no address");
            return Err(self.failure(nothing));
        }
        let until_next = match self.addresses.len() {
            0 => time,
            _ => self.next.saturating_duration_since(Instant::now()),
        };
        let time = time.min(until_next);
        let time = Timespec::try_from(time).unwrap_or_default();
        let mut polled: Vec<_> = self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
        match poll(&mut polled, Some(&time)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let has_answer: Vec<_> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        for (number, _) in has_answer.iter().enumerate().rev().filter(|(_, has_answer)| **has_answer) {
            let socket = self.sockets.remove(number);
            match sockopt::socket_error(&socket).and_then(|answer| answer) {
                Ok(()) => return Ok(Some(socket)),
                Err(error) => {
                    self.note(error.into());
                    self.next = Instant::now();
                }
            }
        }
        Ok(None)
    }

    fn note(&mut self, error: io::Error) {
        if self.error.as_ref().is_none_or(|first| is_unreachable(first) && !is_unreachable(&error)) {
            self.error = Some(error);
        }
    }

    /// The error that says most: silence says more than that an address is unreachable.
    fn failure(&mut self, silent: io::Error) -> io::Error {
        match self.error.take() {
            Some(error) if self.sockets.is_empty() || !is_unreachable(&error) => error,
            _ => silent,
        }
    }
}

/// Whether no packet gets to the address, such as one of IPv6 from a machine that has none.
fn is_unreachable(error: &io::Error) -> bool {
    let no_family = error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
    let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable, ErrorKind::AddrNotAvailable];
    no_family || kinds.contains(&error.kind())
}

/// Begins to connect.
fn begin(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&socket, address) {
        // After a signal, the connection is made all the same.
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Waits for a result in steps of less than a second. If there is none in time, or an interrupt ends the wait, the error is
/// that the time is over.
fn in_steps<T>(
    time: Duration,
    interrupt: &Interrupt,
    mut step: impl FnMut(Duration) -> io::Result<Option<T>>,
) -> io::Result<T> {
    let is_ended = Arc::new(AtomicBool::new(false));
    let set = is_ended.clone();
    let waits = Waits::new(interrupt, move || set.store(true, Ordering::Relaxed));
    let begun = Instant::now();
    waits.during(|| {
        loop {
            if let Some(result) = step(LOOK.min(time.saturating_sub(begun.elapsed())))? {
                return Ok(result);
            }
            if begun.elapsed() >= time || is_ended.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"));
            }
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// A server that answers no more connections: others wait to be accepted.
    fn silent() -> (OwnedFd, SocketAddr, Vec<TcpStream>) {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
        let short = Duration::from_millis(500);
        let waiting = std::iter::from_fn(|| TcpStream::connect_timeout(&address, short).ok());
        let waiting = waiting.collect();
        (socket, address, waiting)
    }

    /// An address whose port is taken, where no server listens.
    fn refusing() -> (OwnedFd, SocketAddr) {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
        (socket, address)
    }

    /// An address of IPv6 that cannot be reached: one of a group.
    fn unreachable() -> SocketAddr {
        "[ff02::1]:9".parse().unwrap()
    }

    #[test]
    fn an_interrupt_ends_the_wait_for_a_connection() {
        let (_server, address, _waiting) = silent();
        let interrupt = Interrupt::default();
        let begun = Instant::now();
        let error = connect_to_any(&[address], Duration::from_millis(300), &interrupt).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        thread::scope(|threads| {
            let connecting = threads.spawn(|| connect_to_any(&[address, address], LONG, &interrupt));
            thread::sleep(Duration::from_millis(100));
            interrupt.set();
            interrupt.end_silence(Duration::from_secs(3));
            assert_eq!(connecting.join().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
        });
        assert!(begun.elapsed() < LONG / 2);
    }

    #[test]
    fn the_first_address_that_answers_is_used() {
        let (interrupt, listener) = (Interrupt::default(), TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let ((_server, silent, _waiting), (_bound, refused)) = (silent(), refusing());
        let address = listener.local_addr().unwrap();
        let mut stream = connect_to_any(&[unreachable(), refused, silent, silent, address], LONG, &interrupt).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        // The stream waits for bytes.
        let server = thread::spawn(move || {
            let mut accepted = listener.accept().unwrap().0;
            thread::sleep(Duration::from_millis(100));
            accepted.write_all(b"x").unwrap();
        });
        assert_eq!(stream.read(&mut [0]).unwrap(), 1);
        server.join().unwrap();
    }

    #[test]
    fn the_error_is_the_first_other_than_an_unreachable_address() {
        let interrupt = Interrupt::default();
        let ((_server, silent, _waiting), (_bound, refused)) = (silent(), refusing());
        let kind = |addresses: &[SocketAddr]| {
            connect_to_any(addresses, Duration::from_millis(600), &interrupt).unwrap_err().kind()
        };
        assert_eq!(kind(&[]), ErrorKind::NotFound);
        assert_eq!(kind(&[unreachable(), refused]), ErrorKind::ConnectionRefused);
        assert_eq!(kind(&[refused, unreachable()]), ErrorKind::ConnectionRefused);
        assert_eq!(kind(&[silent, unreachable()]), ErrorKind::TimedOut);
        assert_eq!(kind(&[silent, refused]), ErrorKind::ConnectionRefused);
        for (address, words) in [
            (refused, "it refuses the connection; check the port, and that the service runs"),
            (silent, "no answer; check that the server runs and no firewall is in between"),
        ] {
            let error = connect("nas.example", &[address], Duration::from_millis(100), &interrupt).unwrap_err();
            assert_eq!(error.to_string(), format!("cannot connect to nas.example, port {}: {words}", address.port()));
        }
        let error = connect("nas.example", &[unreachable()], LONG, &interrupt).unwrap_err().to_string();
        assert!(error.ends_with("; check the network") && !error.contains("os error"), "{error}");
    }

    #[test]
    fn addresses_of_both_kinds_are_tried_in_turn() {
        let address = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let all = ["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"].map(address);
        assert_eq!(alternating(&all), ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"].map(address));
        assert!(alternating(&[]).is_empty());
    }

    #[test]
    fn names_are_looked_up_and_addresses_are_not() {
        let interrupt = Interrupt::default();
        let never = |host: &str| -> Addresses { panic!("{host} was looked up") };
        for address in ["127.0.0.1", "::1"] {
            let expected = SocketAddr::new(address.parse().unwrap(), 9);
            assert_eq!(look_up_with(address, 9, LONG, &interrupt, never), Ok(vec![expected]));
        }
        let found = look_up("localhost", 9, LONG, &interrupt).unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 9), "{found:?}");
        for (message, words) in [
            ("Temporary failure in name resolution", "no name server answers; "),
            ("Name or service not known", "the name is not known; check its spelling"),
            ("Too many open files (os error 24)", "Too many open files; "),
        ] {
            let error = unknown("nas", &format!("failed to lookup address information: {message}")).to_string();
            assert!(error.starts_with(&format!("cannot look up nas: {words}")), "{error}");
        }
    }

    #[test]
    fn look_ups_of_one_name_share_a_thread() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static MAY_ANSWER: AtomicBool = AtomicBool::new(false);
        fn slow(host: &str) -> Addresses {
            CALLS.fetch_add(1, Ordering::Relaxed);
            while !MAY_ANSWER.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
            }
            Err(unknown(host, "Name or service not known"))
        }
        let interrupt = Interrupt::default();
        let look_up = |time| look_up_with("shared.test", 9, time, &interrupt, slow).unwrap_err().to_string();
        for _ in 0..3 {
            let error = look_up(Duration::from_millis(20));
            assert!(error.contains("no name server answers"), "{error}");
        }
        thread::scope(|threads| {
            let waiting = [(); 3].map(|()| threads.spawn(|| look_up(LONG)));
            thread::sleep(Duration::from_millis(50));
            MAY_ANSWER.store(true, Ordering::Relaxed);
            for waiting in waiting {
                assert!(waiting.join().unwrap().contains("is not known"));
            }
        });
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        // The answer is not kept.
        assert!(look_up(LONG).contains("is not known"));
        assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    }
}
