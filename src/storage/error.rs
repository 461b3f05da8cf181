//! Errors of targets.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::failure::{Failure, FailureKind};

/// The kinds of error that callers distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The object or the target does not exist.
    NotFound,
    /// The object's name belongs to something other than a regular file.
    NotAFile,
    /// The object exists already, or the location of a new target is in use.
    AlreadyExists,
    /// Permission was denied, or the file system is read-only.
    PermissionDenied,
    /// The object is shorter than expected.
    Truncated,
    /// The object exceeds a size limit.
    TooLarge,
    /// The disk is full, or a quota or the maximum file size is reached.
    Full,
    /// The storage cannot return the object's bytes, or they fail the storage's own checks.
    Damaged,
    /// The target cannot be reached: its disk is unplugged, or its server does not answer. Says nothing about objects.
    Unavailable,
    /// The target asks for fewer requests. Says nothing about objects.
    Throttled,
    /// The server refuses the login, or ssh does not trust it. Trying again is useless. Says nothing about objects.
    Refused,
    /// Any other error.
    Other,
}

impl ErrorKind {
    /// Whether the same operation may succeed later, although the object stays as it is.
    pub fn is_temporary(self) -> bool {
        match self {
            ErrorKind::Unavailable | ErrorKind::Throttled => true,
            ErrorKind::NotFound
            | ErrorKind::NotAFile
            | ErrorKind::AlreadyExists
            | ErrorKind::PermissionDenied
            | ErrorKind::Truncated
            | ErrorKind::TooLarge
            | ErrorKind::Full
            | ErrorKind::Damaged
            | ErrorKind::Refused
            | ErrorKind::Other => false,
        }
    }

    /// Whether the target cannot be used now, which says nothing about objects.
    pub fn is_away(self) -> bool {
        self.is_temporary() || self == ErrorKind::Refused
    }
}

/// A failed operation on a target.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}: {why}")]
pub struct Error {
    /// The kind of error.
    pub kind: ErrorKind,
    action: &'static str,
    object: String,
    why: String,
    retry_after: Option<Duration>,
    #[source]
    source: Option<io::Error>,
}

impl Error {
    /// An error whose message is `cannot ACTION OBJECT: WHY`.
    pub fn new(kind: ErrorKind, action: &'static str, object: &str, why: impl Into<String>) -> Self {
        Error { kind, action, object: object.to_owned(), why: why.into(), retry_after: None, source: None }
    }

    /// The same error, with the time after which the target wants to be asked again.
    #[must_use]
    pub fn with_retry_after(self, wait: Duration) -> Self {
        Error { retry_after: Some(wait), ..self }
    }

    /// See [`ErrorKind::is_temporary`].
    pub fn is_temporary(&self) -> bool {
        self.kind.is_temporary()
    }

    /// See [`ErrorKind::is_away`].
    pub fn is_away(&self) -> bool {
        self.kind.is_away()
    }

    /// The time after which the target wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The error of an object that ends too early.
    pub(super) fn truncated(object: &str) -> Self {
        Error::new(ErrorKind::Truncated, "read", object, "it is shorter than expected")
    }

    /// The error of a whole object that is longer than it may be.
    pub(super) fn too_large(object: &str, length: u64, limit: usize) -> Self {
        let why = format!("{length} bytes, more than the {limit} allowed");
        Error::new(ErrorKind::TooLarge, "read", object, why)
    }

    /// The same error, with the place where it occurred.
    pub(super) fn at(self, place: &str) -> Self {
        Error { why: format!("{place}: {}", self.why), ..self }
    }

    /// The same error of the kind [`ErrorKind::Unavailable`].
    pub(super) fn unavailable(self) -> Self {
        Error { kind: ErrorKind::Unavailable, ..self }
    }

    /// An error of the operating system.
    pub(super) fn io(action: &'static str, object: &str, error: io::Error) -> Self {
        let is_link = Errno::from_io_error(&error) == Some(Errno::LOOP);
        let kind = if is_link { ErrorKind::NotAFile } else { kind_of(&error) };
        let why = match kind {
            _ if is_link => {
                "it or a parent folder is a symbolic link, and links inside a repository are not followed; to keep a \
                 part of the repository on another disk, use a bind mount"
                    .to_owned()
            }
            _ if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                "it is on a read-only file system; remount that writable and run again".to_owned()
            }
            ErrorKind::Truncated => "it is shorter than expected".to_owned(),
            ErrorKind::Full => format!("{error}; free some space and run again, no stored data is lost"),
            _ => error.to_string(),
        };
        // These two messages replace the system's.
        let source = (!is_link && error.kind() != io::ErrorKind::ReadOnlyFilesystem).then_some(error);
        Error { kind, action, object: object.to_owned(), why, retry_after: None, source }
    }

    /// An error of the operating system while an object's bytes were read.
    pub(super) fn reading(object: &str, error: io::Error) -> Self {
        // EIO, and what some block devices and file systems return for a bad sector or a failed checksum.
        const DAMAGE: [Errno; 6] =
            [Errno::IO, Errno::BADMSG, Errno::UCLEAN, Errno::REMOTEIO, Errno::NODATA, Errno::ILSEQ];
        let is_damage = Errno::from_io_error(&error).is_some_and(|number| DAMAGE.contains(&number));
        let error = Error::io("read", object, error);
        if is_damage { Error { kind: ErrorKind::Damaged, ..error } } else { error }
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self.kind {
            ErrorKind::Full => FailureKind::Full,
            kind if kind.is_away() => FailureKind::Unavailable,
            _ => FailureKind::Failed,
        }
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::Full,
        io::ErrorKind::NotConnected
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::StaleNetworkFileHandle
        | io::ErrorKind::TimedOut => ErrorKind::Unavailable,
        _ => ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_have_kinds() {
        let of = |errno: Errno| Error::reading("packs/x", errno.into());
        for (errno, kind, is_temporary) in [
            (Errno::NOENT, ErrorKind::NotFound, false),
            (Errno::EXIST, ErrorKind::AlreadyExists, false),
            (Errno::ACCESS, ErrorKind::PermissionDenied, false),
            (Errno::ROFS, ErrorKind::PermissionDenied, false),
            (Errno::NOSPC, ErrorKind::Full, false),
            (Errno::LOOP, ErrorKind::NotAFile, false),
            (Errno::IO, ErrorKind::Damaged, false),
            (Errno::UCLEAN, ErrorKind::Damaged, false),
            (Errno::NOTCONN, ErrorKind::Unavailable, true),
            (Errno::STALE, ErrorKind::Unavailable, true),
            (Errno::MFILE, ErrorKind::Other, false),
        ] {
            let error = of(errno);
            assert_eq!((error.kind, error.is_temporary()), (kind, is_temporary), "{errno}");
        }
        // A write that fails says nothing about an object.
        assert_eq!(Error::io("store", "packs/x", Errno::IO.into()).kind, ErrorKind::Other);
    }

    #[test]
    fn a_throttled_error_carries_the_wait_that_the_target_asked_for() {
        let error = Error::new(ErrorKind::Throttled, "read", "x", "too many requests");
        assert!(error.is_temporary() && error.retry_after().is_none());
        let wait = Duration::from_secs(3);
        assert_eq!(error.with_retry_after(wait).retry_after(), Some(wait));
    }
}
