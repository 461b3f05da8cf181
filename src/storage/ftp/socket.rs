//! A socket whose reads and writes go on after a signal. The system interrupts those of a socket with a timeout, and OpenSSL
//! gives up a connection for that.

use std::io::{self, Read, Write};
use std::net::TcpStream;

#[derive(Debug)]
pub(super) struct Socket(pub(super) TcpStream);

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
        uninterrupted(|| self.0.read(bytes))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
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
