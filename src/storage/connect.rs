//! Connections over TCP. An interrupt ends the look-up of a server's name and the wait for its answer.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

use super::interrupt::{Interrupt, Waits};

/// Time between two looks for an interrupt.
const LOOK: Duration = Duration::from_millis(50);

/// Looks up the addresses of a server. The thread that asks is left behind if there is no answer in time.
pub(super) fn look_up<A>(name: A, time: Duration, interrupt: &Interrupt) -> io::Result<Vec<SocketAddr>>
where
    A: ToSocketAddrs + Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let ask = move || {
        // The other side may have given up.
        let _ = sender.send(name.to_socket_addrs().map(Vec::from_iter));
    };
    thread::Builder::new().name("look-up".into()).spawn(ask)?;
    in_steps(time, interrupt, |step| match receiver.recv_timeout(step) {
        Ok(found) => found.map(Some),
        Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread that asks has ended")),
    })
}

/// Connects to the first of a server's addresses that answers. They share the time.
pub(super) fn connect(addresses: &[SocketAddr], time: Duration, interrupt: &Interrupt) -> io::Result<TcpStream> {
    let end = Instant::now().checked_add(time);
    let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "the server's name has no address"));
    for (number, address) in addresses.iter().enumerate() {
        let left = end.map_or(time, |end| end.saturating_duration_since(Instant::now()));
        let others = u32::try_from(addresses.len() - number).unwrap_or(u32::MAX);
        result = connect_to(address, left / others, interrupt);
        match &result {
            Err(error) if error.kind() != io::ErrorKind::TimedOut || !interrupt.is_set() => {}
            _ => break,
        }
    }
    result
}

fn connect_to(address: &SocketAddr, time: Duration, interrupt: &Interrupt) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match rustix::net::connect(&socket, address) {
        // After a signal, the connection is made all the same.
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    in_steps(time, interrupt, |step| is_connected(&socket, step).map(|connected| connected.then_some(())))?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Waits until a socket is connected, for at most this long.
fn is_connected(socket: &OwnedFd, time: Duration) -> io::Result<bool> {
    let time = Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() };
    match poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&time)) {
        Ok(0) | Err(Errno::INTR) => Ok(false),
        Ok(_) => Ok(sockopt::socket_error(socket)?.map(|()| true)?),
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

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

    #[test]
    fn an_interrupt_ends_the_wait_for_a_connection() {
        let (_server, address, _waiting) = silent();
        let interrupt = Interrupt::default();
        let begun = Instant::now();
        let error = connect(&[address], Duration::from_millis(300), &interrupt).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        thread::scope(|threads| {
            let connecting = threads.spawn(|| connect(&[address, address], LONG, &interrupt));
            thread::sleep(Duration::from_millis(100));
            interrupt.set();
            interrupt.end_silence(Duration::from_secs(3));
            assert_eq!(connecting.join().unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        });
        assert!(begun.elapsed() < LONG / 2);
    }

    #[test]
    fn an_address_that_answers_is_used() {
        let (interrupt, listener) = (Interrupt::default(), TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let (_server, silent, _waiting) = silent();
        let refused = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let address = listener.local_addr().unwrap();
        let error = connect(&[refused], LONG, &interrupt).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&[], LONG, &interrupt).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut stream = connect(&[refused, silent, address], Duration::from_secs(2), &interrupt).unwrap();
        // The stream waits for bytes.
        let server = thread::spawn(move || {
            let mut accepted = listener.accept().unwrap().0;
            thread::sleep(Duration::from_millis(100));
            accepted.write_all(b"x").unwrap();
        });
        assert_eq!(stream.read(&mut [0]).unwrap(), 1);
        server.join().unwrap();
        let found = look_up((String::from("127.0.0.1"), address.port()), LONG, &interrupt).unwrap();
        assert_eq!(found, [address]);
    }
}
