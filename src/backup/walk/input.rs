//! The bytes of a backup that has no files: standard input, or the output of a command.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::backup::error::Error;
use crate::backup::options::StreamSource;
use crate::monitor::Monitor;
use crate::sys::process_group::{LinePipe, ProcessGroup};

/// How often a wait checks whether the run is to stop, in nanoseconds.
const STOP_POLL: i64 = 100_000_000;

/// The bytes, until they end or the run is to stop.
pub(super) struct Input<'s> {
    file: File,
    running: Option<Running>,
    monitor: &'s dyn Monitor,
    stop: &'s AtomicBool,
}

impl<'s> Input<'s> {
    /// Opens standard input, or starts the command. The command ends with this thread.
    pub(super) fn open(source: &StreamSource, monitor: &'s dyn Monitor, stop: &'s AtomicBool) -> Result<Self, Error> {
        match source {
            StreamSource::StandardInput => {
                let stdin = rustix::stdio::stdin().try_clone_to_owned().map_err(Error::Stdin)?;
                Ok(Input { file: File::from(stdin), running: None, monitor, stop })
            }
            StreamSource::Command(words) => {
                let (running, output) = start(words, monitor.takes_output())?;
                Ok(Input { file: File::from(output), running: Some(running), monitor, stop })
            }
        }
    }

    /// Waits for the end of the command. Fails unless it succeeded, and if the run is to stop.
    pub(super) fn finish(self) -> Result<(), Error> {
        // A command that still writes must not wait for its reader.
        drop(self.file);
        let is_stopped = || self.stop.load(Ordering::Relaxed);
        let monitor = self.monitor;
        let ended = self.running.map(|Running { command, group, lines }| {
            let (lines, output) = (RefCell::new(lines), |line: &str| monitor.output(&command, line));
            let status = group.wait(|| {
                lines.borrow_mut().iter_mut().for_each(|lines| lines.take(&output));
                is_stopped()
            });
            lines.into_inner().into_iter().for_each(|lines| lines.end(&output));
            (command, status)
        });
        // An interrupt also ends the program that fills a pipe, so the end of the pipe proves nothing then.
        match ended {
            _ if is_stopped() => Err(Error::Interrupted),
            None | Some((_, Ok(None))) => Ok(()),
            Some((_, Ok(Some(status)))) if status.success() => Ok(()),
            Some((command, Ok(Some(status)))) => Err(Error::CommandFailed { command, status }),
            Some((command, Err(source))) => Err(Error::CommandStart { command, source }),
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted"));
            }
            // The command must not wait for a reader of its messages.
            if let Some(Running { command, lines: Some(lines), .. }) = &mut self.running {
                lines.take(&|line| self.monitor.output(command, line));
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

/// A command whose output is read.
struct Running {
    command: String,
    group: ProcessGroup,
    /// Its standard error, if the monitor takes it.
    lines: Option<LinePipe>,
}

/// Starts a command, which ends with this thread.
fn start(words: &[OsString], takes_output: bool) -> Result<(Running, OwnedFd), Error> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Error::Usage("no command is given; write it after --".into()));
    };
    let name = program.to_string_lossy().into_owned();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut start = || {
        let mut lines = None;
        if takes_output {
            let (pipe, end) = LinePipe::new()?;
            command.stderr(end);
            lines = Some(pipe);
        }
        Ok((ProcessGroup::start(&mut command)?, lines))
    };
    match start() {
        Ok((mut group, lines)) => {
            let output = group.take_output().ok_or(Error::Internal("a command has no output"))?;
            Ok((Running { command: name, group, lines }, output.into()))
        }
        Err(source) => Err(Error::CommandStart { command: name, source }),
    }
}
