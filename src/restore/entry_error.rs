//! Errors that prevent an entry from being restored.

use std::io;

use rustix::io::Errno;

use super::open_output::Clash;
use crate::archive;

/// An error that prevents an entry from being restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("cannot restore it: {0}")]
    Archive(#[from] archive::Error),
    #[error("cannot write it: {}", describe_io(.0))]
    Io(#[from] io::Error),
    #[error("it exists already")]
    Exists,
    #[error("cannot restore it: {0}")]
    Clash(Clash),
    #[error("cannot restore it: a directory with its name exists")]
    Directory,
    #[error("interrupted")]
    Stopped,
}

fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::FileTooLarge => {
            "it exceeds the maximum file size of the file system or of the process (ulimit -f)".to_owned()
        }
        _ => error.to_string(),
    }
}

impl From<Errno> for EntryError {
    fn from(errno: Errno) -> Self {
        EntryError::Io(errno.into())
    }
}
