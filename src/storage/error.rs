//! What can go wrong at a target.

use std::io;

use rustix::io::Errno;

/// The cases that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such object or no such target.
    NotFound,
    /// Something that is no file lies in the object's place.
    NotAFile,
    /// The object is there already, or the place for a new target is taken.
    AlreadyExists,
    /// Not allowed.
    PermissionDenied,
    /// The object is shorter than it should be.
    Truncated,
    /// The object is larger than it may be.
    TooLarge,
    /// The disk or the quota is full.
    Full,
    /// A kind of target that this version does not know.
    Unsupported,
    /// Anything else.
    Other,
}

/// Something that failed at a target: what was done, to which object, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}: {why}")]
pub struct Error {
    /// Which case it is.
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
                "it or a folder above it is a symbolic link, and links inside a repository are not followed; to have a \
                 part of it on another disk, bind-mount that"
                    .to_owned()
            }
            _ if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                "it is on a read-only file system; make that writable and run again".to_owned()
            }
            ErrorKind::Truncated => "it is shorter than it should be".to_owned(),
            ErrorKind::Full => format!("{error}; make room and run again, nothing that was there is lost"),
            _ => error.to_string(),
        };
        // Words of our own take the place of the system's.
        let source = (!is_link && error.kind() != io::ErrorKind::ReadOnlyFilesystem).then_some(error);
        Error { kind, action, object: object.to_owned(), why, source }
    }
}
