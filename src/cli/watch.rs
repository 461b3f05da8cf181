//! Looks at a run now and then, and whenever a signal asks how far it is.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use signal_hook::SigId;
use signal_hook::consts::SIGUSR1;
use signal_hook::low_level::{pipe, unregister};

/// Why to look.
pub(super) enum Why {
    /// It is time to.
    Time,
    /// SIGUSR1 came.
    Asked,
}

/// A thread that looks, until it is told to end.
pub(super) struct Watch {
    signal: SigId,
    /// Its end of life: what the signal writes to.
    wake: UnixStream,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Begins to look: `every` so often, if that is wanted, and when asked.
    pub(super) fn begin(every: Option<Duration>, look: impl Fn(Why) + Send + 'static) -> io::Result<Self> {
        let (mut waiting, wake) = UnixStream::pair()?;
        waiting.set_read_timeout(every)?;
        let signal = pipe::register(SIGUSR1, wake.try_clone()?)?;
        let watch = move || {
            // Who asks several times before there is an answer gets one.
            let mut asked = [0; 64];
            loop {
                match waiting.read(&mut asked) {
                    Ok(0) => return,
                    Ok(_) => look(Why::Asked),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => look(Why::Time),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        };
        let thread =
            thread::Builder::new().name("watch".into()).spawn(watch).inspect_err(|_| _ = unregister(signal))?;
        Ok(Watch { signal, wake, thread })
    }

    /// Looks no more. Who asked before gets the answer still.
    pub(super) fn end(self) {
        unregister(self.signal);
        // There is nobody to tell that the thread was gone already.
        let _ = self.wake.shutdown(Shutdown::Both);
        let _ = self.thread.join();
    }
}
