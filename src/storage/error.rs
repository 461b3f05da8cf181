//! Errors of targets.

use std::io;

use rustix::io::Errno;

/// The kinds of error that callers distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// The object exceeds the caller's size limit.
    TooLarge,
    /// The disk is full, or a quota or the maximum file size is reached.
    Full,
    /// This version does not support this kind of target.
    Unsupported,
    /// Any other error.
    Other,
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
    #[source]
    source: Option<io::Error>,
}

impl Error {
    pub(super) fn new(kind: ErrorKind, action: &'static str, object: &str, why: impl Into<String>) -> Self {
        Error { kind, action, object: object.to_owned(), why: why.into(), source: None }
    }

    /// An error of the operating system.
    pub(super) fn io(action: &'static str, object: &str, error: io::Error) -> Self {
        let is_link = Errno::from_io_error(&error) == Some(Errno::LOOP);
        let kind = match error.kind() {
            _ if is_link => ErrorKind::NotAFile,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
            io::ErrorKind::UnexpectedEof => ErrorKind::Truncated,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => ErrorKind::Full,
            _ => ErrorKind::Other,
        };
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
        Error { kind, action, object: object.to_owned(), why, source }
    }
}
