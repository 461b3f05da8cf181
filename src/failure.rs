//! The kinds of failure that exit codes tell apart, and the words of failures.

use std::borrow::Cow;

/// A kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Any failure that is not of another kind.
    Failed,
    /// An argument or an option is wrong.
    Usage,
    /// The command completed, but some files could not be read consistently, or the repository has lost data.
    Partial,
    /// The location has no repository.
    NoRepository,
    /// Another process holds the lock or the catalog.
    Locked,
    /// A key or a passphrase is wrong or missing.
    Key,
    /// A signal stopped the command.
    Interrupted,
    /// The disk with the repository or the state is full.
    Full,
    /// The target is away, which says nothing about the data. For exit codes, it is a failure.
    Unavailable,
}

/// An error that knows its kind. An error that wraps another one has the kind of the wrapped one, unless its variant
/// determines the kind.
pub trait Failure: std::error::Error {
    /// The kind of this failure.
    fn kind(&self) -> FailureKind;

    /// The object of the repository that is lost or damaged, if that is the cause.
    fn lost_object(&self) -> Option<String> {
        None
    }

    /// Whether the cause is a missing or wrong key or passphrase.
    fn is_key_problem(&self) -> bool {
        self.kind() == FailureKind::Key
    }
}

/// Removes the numbers that the standard library appends to system errors.
pub fn worded(message: &str) -> Cow<'_, str> {
    const BEFORE: &str = " (os error ";
    let (mut text, mut rest) = (String::new(), message);
    while let Some((before, after)) = rest.split_once(BEFORE) {
        text.push_str(before);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        rest = match after.get(digits..).and_then(|after| after.strip_prefix(')')) {
            Some(after) if digits > 0 => after,
            _ => {
                text.push_str(BEFORE);
                after
            }
        };
    }
    if text.is_empty() { message.into() } else { (text + rest).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_error_numbers() {
        let error = std::io::Error::from_raw_os_error(28);
        assert_eq!(
            worded(&format!("cannot write x: {error} (TMPDIR)")),
            "cannot write x: No space left on device (TMPDIR)"
        );
        assert_eq!(worded(&format!("{error}; {error}")), "No space left on device; No space left on device");
        for kept in ["plain", "", "a (os error )", "a (os error 2", "a (os error x)"] {
            assert_eq!(worded(kept), kept);
        }
    }
}
