//! Lines on standard output and standard error. Unlike the standard macros, these do not panic on a broken pipe.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes a line of the result to standard output.
pub(super) fn result(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// Writes a message to standard error. Errors are ignored: there is no other place to report them.
pub(super) fn message(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
