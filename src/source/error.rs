//! What can go wrong with a source.

use std::io;
use std::path::PathBuf;

use super::SharedPath;

/// Something that could not be read, or a rule that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done, to be read after "cannot".
        action: &'static str,
        /// To what.
        path: SharedPath,
        /// Why it failed.
        source: io::Error,
    },
    /// Reading a file's content failed. Whoever opened the file knows its path.
    #[error("cannot read the content: {0}")]
    Content(#[source] io::Error),
    /// A temporary file failed, without which a long directory can't be sorted.
    #[error(
        "cannot sort the names in {path} by way of a temporary file in {}: {source} (TMPDIR chooses another folder)",
        folder.display()
    )]
    Temporary {
        /// The directory.
        path: SharedPath,
        /// Where temporary files are made.
        folder: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A directory is deeper than the walk can go.
    #[error(
        "cannot open the directory {path}: it is more than {levels} levels deep; it is left empty (a higher limit of open files, ulimit -n, may help)"
    )]
    TooDeep {
        /// The directory.
        path: SharedPath,
        /// As many levels as it can go.
        levels: usize,
    },
    /// A pattern that says what to exclude is none.
    #[error("the pattern {pattern:?}{place} is not valid: {why}")]
    Pattern {
        /// The pattern as it was given.
        pattern: String,
        /// The file and line it stands in, as part of the sentence; or nothing.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of patterns can't be read.
    #[error("cannot read patterns from {}: {why}", path.display())]
    PatternFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    pub(super) fn io(action: &'static str, path: impl Into<SharedPath>, source: impl Into<io::Error>) -> Self {
        Error::Io { action, path: path.into(), source: source.into() }
    }

    /// Whether a rule that was given makes no sense.
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Pattern { .. } | Error::PatternFile { .. })
    }

    /// Whether it would have had to wait: another process has a lease on the file, and is asked to give it up.
    pub fn is_leased(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether it failed because a symlink has the name.
    pub fn is_symlink(&self) -> bool {
        let Error::Io { source, .. } = self else { return false };
        source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
    }

    /// Whether it failed because what was named is not there (any more).
    pub fn is_vanished(&self) -> bool {
        let (Error::Io { source, .. } | Error::Content(source)) = self else { return false };
        // A file that was deleted on the server is "stale" and not "not found" on a network file system.
        matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
    }
}

/// For those who pass content on through [`io`]: the kind stays.
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
    fn message_names_deed_path_and_cause() {
        let error = Error::io("open", Path::new("/a/b"), io::Error::from_raw_os_error(13));
        assert_eq!(error.to_string(), "cannot open /a/b: Permission denied (os error 13)");
        assert!(!error.is_vanished());
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn what_is_not_there_is_vanished() {
        for errno in [rustix::io::Errno::NOENT, rustix::io::Errno::STALE] {
            assert!(Error::io("open", Path::new("x"), errno).is_vanished());
            assert!(Error::Content(errno.into()).is_vanished());
        }
        assert!(!Error::Pattern { pattern: "[".into(), place: String::new(), why: "no".into() }.is_vanished());
    }
}
