//! Errors of reading a source.

use std::io;
use std::path::PathBuf;

use super::shared_path::SharedPath;
use crate::failure::{Failure, FailureKind};

/// A failure to read a source, or an invalid pattern.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The failed action, as a verb phrase after "cannot".
        action: &'static str,
        /// The object of the action.
        path: SharedPath,
        /// The cause.
        source: io::Error,
    },
    /// Reading a file's content failed. The caller knows the path.
    #[error("cannot read the content: {0}")]
    Content(#[source] io::Error),
    /// A temporary file for sorting a long directory failed.
    #[error(
        "cannot sort the names in {path} with a temporary file in {}: {source}; set TMPDIR to use another directory",
        folder.display()
    )]
    Temporary {
        /// The directory being listed.
        path: SharedPath,
        /// The directory of the temporary file.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A directory is too deep for the limit of open files.
    #[error(
        "cannot open the directory {path}: it is more than {levels} levels deep; it is left empty; raise the limit of open files (ulimit -n)"
    )]
    TooDeep {
        /// The directory.
        path: SharedPath,
        /// The maximum number of levels.
        levels: usize,
    },
    /// A pattern is not valid.
    #[error("the pattern {pattern:?}{place} is not valid: {why}")]
    Pattern {
        /// The pattern as given by the user.
        pattern: String,
        /// " in FILE, line N,", or empty.
        place: String,
        /// The cause.
        why: String,
    },
    /// A file of patterns cannot be read.
    #[error("cannot read patterns from {}: {why}", path.display())]
    PatternFile {
        /// The file of patterns.
        path: PathBuf,
        /// The cause.
        why: String,
    },
}

impl Error {
    pub(super) fn io(action: &'static str, path: impl Into<SharedPath>, source: impl Into<io::Error>) -> Self {
        Error::Io { action, path: path.into(), source: source.into() }
    }

    /// Whether opening would have blocked: another process holds a lease on the file and has been asked to release it.
    pub fn is_leased(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the name is a symlink.
    pub fn is_symlink(&self) -> bool {
        let Error::Io { source, .. } = self else { return false };
        source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
    }

    /// Whether the file does not exist, or no longer exists.
    pub fn is_vanished(&self) -> bool {
        let (Error::Io { source, .. } | Error::Content(source)) = self else { return false };
        // A network file system reports a file that was deleted on the server as stale.
        matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Pattern { .. } | Error::PatternFile { .. } => FailureKind::Usage,
            _ => FailureKind::Failed,
        }
    }
}

/// Keeps the [`io::ErrorKind`] of the cause.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } | Error::Content(source) | Error::Temporary { source, .. } => source.kind(),
            Error::TooDeep { .. } => io::ErrorKind::Other,
            Error::Pattern { .. } | Error::PatternFile { .. } => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn message_names_action_path_and_cause() {
        let error = Error::io("open", Path::new("/a/b"), io::Error::from_raw_os_error(13));
        assert_eq!(error.to_string(), "cannot open /a/b: Permission denied (os error 13)");
        assert!(!error.is_vanished());
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn missing_and_stale_files_are_vanished() {
        for errno in [rustix::io::Errno::NOENT, rustix::io::Errno::STALE] {
            assert!(Error::io("open", Path::new("x"), errno).is_vanished());
            assert!(Error::Content(errno.into()).is_vanished());
        }
        let pattern = Error::Pattern { pattern: "[".into(), place: String::new(), why: "no".into() };
        assert!(!pattern.is_vanished());
        assert_eq!(pattern.kind(), FailureKind::Usage);
    }
}
