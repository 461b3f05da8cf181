//! The bytes of a backup that has no files: standard input, or the output of a command.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::backup::error::Error;
use crate::backup::options::StreamSource;
use crate::sys::end_with_parent;

/// How often a wait checks whether the run is to stop, in nanoseconds.
const STOP_POLL: i64 = 100_000_000;
/// How often a command that has closed its output is asked whether it has ended.
const END_POLL: Duration = Duration::from_millis(5);
/// The time that a command has to end after SIGTERM.
const ENDING: Duration = Duration::from_secs(5);

/// The bytes, until they end or the run is to stop.
pub(super) struct Input<'s> {
    file: File,
    running: Option<Running>,
    stop: &'s AtomicBool,
}

impl<'s> Input<'s> {
    /// Opens standard input, or starts the command. The command ends with this thread.
    pub(super) fn open(source: &StreamSource, stop: &'s AtomicBool) -> Result<Self, Error> {
        match source {
            StreamSource::StandardInput => {
                let stdin = rustix::stdio::stdin().try_clone_to_owned().map_err(Error::Stdin)?;
                Ok(Input { file: File::from(stdin), running: None, stop })
            }
            StreamSource::Command(words) => {
                let (running, output) = Running::start(words)?;
                Ok(Input { file: File::from(output), running: Some(running), stop })
            }
        }
    }

    /// Waits for the end of the command. Fails unless it succeeded, and if the run is to stop.
    pub(super) fn finish(self) -> Result<(), Error> {
        // A command that still writes must not wait for its reader.
        drop(self.file);
        if let Some(running) = self.running {
            running.wait(self.stop)?;
        }
        // An interrupt also ends the program that fills a pipe, so the end of the pipe proves nothing then.
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: STOP_POLL };
            match poll(&mut [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(room),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// A command and all processes in its group. Dropping it ends them.
struct Running {
    child: Child,
    name: String,
}

impl Running {
    fn start(words: &[OsString]) -> Result<(Self, OwnedFd), Error> {
        let Some((program, arguments)) = words.split_first() else {
            return Err(Error::Usage("no command is given; write it after --".into()));
        };
        let name = program.to_string_lossy().into_owned();
        let failed = |source: io::Error| Error::CommandStart { command: name.clone(), source };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        end_with_parent(&mut command);
        let mut child = command.spawn().map_err(failed)?;
        match child.stdout.take() {
            Some(output) => Ok((Running { child, name }, output.into())),
            None => Err(Error::Internal("a command has no output")),
        }
    }

    /// The number of the process and of its group.
    fn id(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Whether it has ended. It is not reaped, so that no other process gets its number.
    fn has_ended(&self) -> bool {
        let Some(id) = self.id() else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(id), options), Ok(None) | Err(Errno::INTR))
    }

    /// Waits until it ends. Fails unless it succeeds, and if the run is to stop.
    fn wait(mut self, stop: &AtomicBool) -> Result<(), Error> {
        while !self.has_ended() {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            thread::sleep(END_POLL);
        }
        self.signal(Signal::KILL);
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            // The interrupt may have reached it first.
            Ok(_) if stop.load(Ordering::Relaxed) => Err(Error::Interrupted),
            Ok(status) => Err(Error::CommandFailed { command: self.name.clone(), status }),
            Err(source) => Err(Error::CommandStart { command: self.name.clone(), source }),
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.id() {
            // It may be gone already.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After it was reaped, its number may be that of another process.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let begun = Instant::now();
        self.signal(Signal::TERM);
        while !self.has_ended() && begun.elapsed() < ENDING {
            thread::sleep(END_POLL);
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}
