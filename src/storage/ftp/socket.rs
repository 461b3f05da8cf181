//! A socket whose reads and writes go on after a signal, until an interrupt ends them. The system interrupts those of a socket
//! with a timeout, and OpenSSL gives up a connection for that.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use crate::storage::interrupt::{Interrupt, Waits};

#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: TcpStream,
    waits: Arc<Waits>,
}

impl Socket {
    /// A socket whose waits an interrupt ends.
    pub(super) fn new(stream: TcpStream, interrupt: &Interrupt) -> io::Result<Self> {
        let other = stream.try_clone()?;
        // An error means that it has ended.
        let waits = Waits::new(interrupt, move || _ = other.shutdown(Shutdown::Both));
        Ok(Socket { stream, waits })
    }
}

/// Tries again while a signal interrupts.
fn uninterrupted<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.waits.during(|| uninterrupted(|| self.stream.read(bytes)))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waits.during(|| uninterrupted(|| self.stream.write(bytes)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_does_not_end_a_read() {
        let mut tries = 0;
        let read = uninterrupted(|| {
            tries += 1;
            if tries < 3 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(tries) }
        });
        assert_eq!(read.unwrap(), 3);
        let failed = uninterrupted(|| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
