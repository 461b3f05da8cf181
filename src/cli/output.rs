//! Lines on standard output and standard error. Unlike the standard macros, these do not panic on a broken pipe.
//!
//! If standard error is the journal of systemd, each line there begins with its priority, which the journal removes.

use std::fmt::{self, Display, Formatter};
use std::io::{self, StdoutLock, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{show, systemd};

/// Whether lines on standard error are JSON objects, as with --json.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Sets whether lines on standard error are JSON objects.
pub(super) fn set_json(is_json: bool) {
    IS_JSON.store(is_json, Ordering::Relaxed);
}

/// Whether lines on standard error are JSON objects.
pub(super) fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

/// The priority of a message in the journal, as in syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Writes a line of the result to standard output. If the reader has closed it, the line is dropped: the exit code is still
/// that of the command.
pub(super) fn result(line: impl Display) -> io::Result<()> {
    match writeln!(stdout(), "{line}") {
        Err(error) if is_closed(&error) => Ok(()),
        written => written,
    }
}

/// Writes a JSON object as a line of the result.
pub(super) fn object(value: &Value) -> io::Result<()> {
    result(show::json(value))
}

/// Writes an ordinary message to standard error.
pub(super) fn message(line: impl Display) {
    write(Priority::Info, line);
}

/// Writes a warning to standard error.
pub(super) fn warning(line: impl Display) {
    write(Priority::Warning, line);
}

/// Writes an error to standard error.
pub(super) fn error(line: impl Display) {
    write(Priority::Error, line);
}

/// Writes the last line of a failed command with --json. Like restic's, it is on standard error.
pub(super) fn exit_error(code: u8, message: &str) {
    error(exit_error_object(code, message));
}

/// The same line, for a signal handler to write.
pub(super) fn exit_error_line(code: u8, message: &str) -> String {
    line(Priority::Error, &exit_error_object(code, message))
}

fn exit_error_object(code: u8, message: &str) -> String {
    show::json(&json!({ "message_type": "exit_error", "code": code, "message": message }))
}

/// A note as a line on standard error.
pub(super) fn note_line(message: &str) -> String {
    match is_json() {
        true => show::json(&json!({ "message_type": "note", "message": message })),
        false => show::printable(&format!("brackfs: {message}")).into_owned(),
    }
}

/// A line of another program as an object, with --json.
pub(super) fn program_line(program: &str, line: &str) -> String {
    show::json(&json!({ "message_type": "program_output", "program": program, "text": line }))
}

/// Writes a message to standard error. Errors are ignored: there is no other place to report them.
pub(super) fn write(priority: Priority, text: impl Display) {
    // One call, so that other programs with the same standard error do not write in between.
    let _ = io::stderr().write_all((line(priority, &text.to_string()) + "\n").as_bytes());
}

/// A message as it is written.
fn line(priority: Priority, text: &str) -> String {
    if systemd::has_journal() { prioritized(priority, text) } else { text.to_owned() }
}

/// The text with the priority in front of each line.
fn prioritized(priority: Priority, text: &str) -> String {
    let line = |line| format!("<{}>{line}", priority as u8);
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Standard output, locked. Its errors say that it is standard output that cannot be written.
pub(super) fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

/// See [`stdout`].
pub(super) struct Stdout(StdoutLock<'static>);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

/// An error of standard output.
#[derive(Debug)]
struct StdoutError(io::Error);

impl Display for StdoutError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for StdoutError {}

/// Whether an error says that the reader of standard output has closed it.
pub(super) fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe && error.get_ref().is_some_and(|inner| inner.is::<StdoutError>())
}

/// Names standard output in an error, and keeps its kind.
pub(super) fn named(error: io::Error) -> io::Error {
    match error.kind() {
        // The standard library tries again.
        io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, StdoutError(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_priority() {
        assert_eq!(prioritized(Priority::Error, "one\ntwo\n"), "<3>one\n<3>two");
        assert_eq!(prioritized(Priority::Info, "one"), "<6>one");
    }
}
