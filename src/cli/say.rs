//! Lines for people and programs. Unlike the standard macros, a reader who went away is an error and no panic.

use std::fmt::Display;
use std::io::{self, Write};

/// A line of the result, to standard output.
pub(super) fn result(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// A line for whoever watches, to standard error. If that is gone, there is nobody to tell.
pub(super) fn aside(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
