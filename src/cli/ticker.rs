//! A thread that reports the progress of a run, at intervals and on SIGUSR1.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use signal_hook::SigId;
use signal_hook::consts::SIGUSR1;
use signal_hook::low_level::{pipe, unregister};

/// The reason for a report.
pub(super) enum Tick {
    Interval,
    Signal,
}

/// A running reporter thread.
pub(super) struct Ticker {
    signal: SigId,
    /// The signal handler writes to it; shutting it down ends the thread.
    wake: UnixStream,
    thread: JoinHandle<()>,
}

impl Ticker {
    /// Starts the thread. It calls `report` on SIGUSR1 and, if there is an interval, at each of its ends.
    pub(super) fn start(interval: Option<Duration>, report: impl Fn(Tick) + Send + 'static) -> io::Result<Self> {
        let (mut waiting, wake) = UnixStream::pair()?;
        waiting.set_read_timeout(interval)?;
        let signal = pipe::register(SIGUSR1, wake.try_clone()?)?;
        let run = move || {
            // Signals that arrive before the report share one.
            let mut signals = [0; 64];
            loop {
                match waiting.read(&mut signals) {
                    Ok(0) => return,
                    Ok(_) => report(Tick::Signal),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => report(Tick::Interval),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        };
        let thread = thread::Builder::new().name("ticker".into()).spawn(run).inspect_err(|_| _ = unregister(signal))?;
        Ok(Ticker { signal, wake, thread })
    }

    /// Stops the thread, after a last report if a signal is pending.
    pub(super) fn stop(self) {
        unregister(self.signal);
        // Both fail only if the thread has ended already.
        let _ = self.wake.shutdown(Shutdown::Both);
        let _ = self.thread.join();
    }
}
