//! The kinds of failure that exit codes tell apart.

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

    /// Whether the cause is a missing or wrong key or passphrase.
    fn is_key_problem(&self) -> bool {
        self.kind() == FailureKind::Key
    }
}
