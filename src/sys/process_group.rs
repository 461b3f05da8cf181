//! Programs that run in a process group of their own, so that everything they start can be ended with them.

use std::cell::RefCell;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::{end_with_parent, without_terminal};

/// How often it is looked at whether a program has ended.
pub(crate) const POLL: Duration = Duration::from_millis(5);
/// Longer lines are divided, in bytes.
const LINE: usize = 64 << 10;
/// Bytes that are taken at once: as many as a pipe holds. A program that writes without end must not keep its reader.
const PIPE: usize = 64 << 10;
/// The time that processes have to end after SIGTERM.
const ENDING: Duration = Duration::from_secs(5);

/// A program and the processes in its group. If it is dropped before the program ends, all are ended: by SIGTERM, and after
/// five seconds by SIGKILL.
#[derive(Debug)]
pub(crate) struct ProcessGroup(Child);

impl ProcessGroup {
    /// Starts the program, without a terminal. It is killed when this thread ends.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        without_terminal(command);
        end_with_parent(command);
        command.spawn().map(ProcessGroup)
    }

    /// The pipe with its output, once.
    pub(crate) fn take_output(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// Waits until the program ends. `None` if `gives_up` returned true before.
    pub(crate) fn wait(mut self, gives_up: impl Fn() -> bool) -> io::Result<Option<ExitStatus>> {
        while !self.has_ended() {
            if gives_up() {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
        self.0.wait().map(Some)
    }

    fn id(&self) -> Option<Pid> {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw)
    }

    /// Whether the program has ended. It stays a zombie, so that no other process gets its number.
    fn has_ended(&self) -> bool {
        let Some(id) = self.id() else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(id), options), Ok(None) | Err(Errno::INTR))
    }
}

/// A pipe for the output of a program, up to a maximum length. It is taken without waiting: a process in the background may
/// keep the pipe open.
#[derive(Debug)]
pub(crate) struct OutputPipe {
    pipe: PipeReader,
    most: usize,
    output: RefCell<Vec<u8>>,
}

impl OutputPipe {
    /// Makes a pipe for at most this many bytes. Returns its end for the program as well.
    pub(crate) fn new(most: usize) -> io::Result<(Self, PipeWriter)> {
        let (pipe, end) = pipe()?;
        Ok((OutputPipe { pipe, most, output: RefCell::default() }, end))
    }

    /// Takes the output that is in the pipe. Returns whether it was longer than the maximum so far: then the program waits for
    /// ever and should be ended.
    pub(crate) fn is_full(&self) -> bool {
        let mut output = self.output.borrow_mut();
        let room = self.most.saturating_add(1).saturating_sub(output.len());
        // An error means that the pipe is empty. What was read before it is kept.
        let _ = (&self.pipe).take(room as u64).read_to_end(&mut output);
        output.len() > self.most
    }

    /// All output, after the program has ended. The error has the maximum.
    pub(crate) fn end(self) -> io::Result<Vec<u8>> {
        match self.is_full() {
            true => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it printed more than {} MiB", self.most >> 20),
            )),
            false => Ok(self.output.into_inner()),
        }
    }
}

/// A pipe that is read without waiting.
fn pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (pipe, end) = io::pipe()?;
    rustix::io::ioctl_fionbio(&pipe, true)?;
    Ok((pipe, end))
}

/// A pipe for the lines that a program writes, which are taken without waiting: a process in the background may keep it open.
#[derive(Debug)]
pub(crate) struct LinePipe {
    pipe: PipeReader,
    /// The beginning of a line.
    begun: Vec<u8>,
}

impl LinePipe {
    /// Makes a pipe. Returns its end for the program as well.
    pub(crate) fn new() -> io::Result<(Self, PipeWriter)> {
        let (pipe, end) = pipe()?;
        Ok((LinePipe { pipe, begun: Vec::new() }, end))
    }

    /// Takes the whole lines that are in the pipe.
    pub(crate) fn take(&mut self, line: &dyn Fn(&str)) {
        let (mut bytes, mut room) = ([0; 4096], PIPE);
        // The others: it is empty, or all have closed it.
        while room > 0
            && let Ok(length @ 1..) = self.pipe.read(&mut bytes)
        {
            room = room.saturating_sub(length);
            self.begun.extend_from_slice(bytes.get(..length).unwrap_or_default());
            let mut parts: Vec<_> = self.begun.split(|byte| *byte == b'\n').collect();
            // What follows the last newline is not a whole line.
            let rest = parts.pop().unwrap_or_default();
            parts.into_iter().for_each(|part| line(&String::from_utf8_lossy(part)));
            self.begun = rest.to_vec();
            if self.begun.len() >= LINE {
                self.flush(line);
            }
        }
    }

    /// Takes the rest, after the program has ended.
    pub(crate) fn end(mut self, line: &dyn Fn(&str)) {
        self.take(line);
        self.flush(line);
    }

    fn flush(&mut self, line: &dyn Fn(&str)) {
        if !self.begun.is_empty() {
            line(&String::from_utf8_lossy(&std::mem::take(&mut self.begun)));
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // After it was waited for, its number may be that of another process. `has_ended` would fail and return true.
        let Some(id) = self.id().filter(|_| matches!(self.0.try_wait(), Ok(None))) else { return };
        let begun = Instant::now();
        // They may end in the meantime.
        let _ = kill_process_group(id, Signal::TERM);
        while !self.has_ended() && begun.elapsed() < ENDING {
            thread::sleep(POLL);
        }
        let _ = kill_process_group(id, Signal::KILL);
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> ProcessGroup {
        let mut command = Command::new("sh");
        ProcessGroup::start(command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped())).unwrap()
    }

    #[test]
    fn the_exit_code_is_returned() {
        assert_eq!(shell("sleep 0.1; exit 7").wait(|| false).unwrap().unwrap().code(), Some(7));
        assert!(shell("sleep 1000").wait(|| true).unwrap().is_none());
    }

    #[test]
    fn lines_are_taken_without_waiting_for_processes_in_the_background() {
        let (mut pipe, end) = LinePipe::new().unwrap();
        let lines = std::cell::RefCell::new(Vec::new());
        let line = |line: &str| lines.borrow_mut().push(line.to_owned());
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo one; echo; printf '\\377two\\nrest'"]).stdin(Stdio::null()).stdout(end);
        let mut group = ProcessGroup::start(&mut command).unwrap();
        drop(command);
        while !group.has_ended() {
            pipe.take(&line);
        }
        pipe.end(&line);
        // The process in the background is in the group.
        let _ = kill_process_group(group.id().unwrap(), Signal::KILL);
        group.0.wait().unwrap();
        assert_eq!(lines.into_inner(), ["one", "", "\u{fffd}two", "rest"]);
    }

    #[test]
    fn a_program_that_writes_without_end_does_not_keep_the_reader() {
        let (lines, end) = LinePipe::new().unwrap();
        let (lines, count) = (std::cell::RefCell::new(lines), std::cell::Cell::new(0));
        let line = |_: &str| count.set(count.get() + 1);
        let group = ProcessGroup::start(Command::new("yes").stdin(Stdio::null()).stdout(end)).unwrap();
        let ended = group.wait(|| {
            lines.borrow_mut().take(&line);
            count.get() > 0
        });
        assert!(ended.unwrap().is_none());
    }

    #[test]
    fn output_is_taken_up_to_a_maximum() {
        let taken = |most: usize, script: &str| {
            let (output, end) = OutputPipe::new(most).unwrap();
            let mut command = Command::new("sh");
            let group = ProcessGroup::start(command.args(["-c", script]).stdin(Stdio::null()).stdout(end)).unwrap();
            let ended = group.wait(|| output.is_full()).unwrap();
            let length = output.output.borrow().len();
            (ended.is_some(), length, output.end().map(|bytes| bytes.len()).map_err(|error| error.to_string()))
        };
        // More than a pipe holds, and a process in the background.
        let script = "sleep 1000 & head -c 1048575 /dev/zero; echo; kill $!";
        assert_eq!(taken(1 << 20, script).2, Ok(1 << 20));
        let too_much = Err("it printed more than 1 MiB".to_owned());
        assert_eq!(taken(1 << 20, &format!("{script}; echo")).2, too_much);
        // No more is read, even if the program ignores that it should end.
        let begun = Instant::now();
        assert_eq!(taken(1 << 20, "trap '' TERM; cat /dev/zero; cat /dev/zero"), (false, (1 << 20) + 1, too_much));
        assert!(begun.elapsed() >= ENDING);
    }

    #[test]
    fn a_program_has_no_terminal() {
        let status = shell("true < /dev/tty").wait(|| false).unwrap().unwrap();
        assert!(!status.success());
    }

    #[test]
    fn dropping_ends_all_processes() {
        for trap in ["", "trap '' TERM;"] {
            let begun = Instant::now();
            let mut group = shell(&format!("{trap} sleep 1000 & echo begun; wait; sleep 1000"));
            let mut output = group.take_output().unwrap();
            output.read_exact(&mut [0; 6]).unwrap();
            drop(group);
            // Ends once no process has the pipe open any more.
            assert_eq!(output.read(&mut [0]).unwrap(), 0);
            assert_eq!(begun.elapsed() >= ENDING, !trap.is_empty(), "{trap}");
        }
    }
}
