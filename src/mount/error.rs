//! Errors of the file system.

use crate::archive;

/// Why a request of the kernel fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The entry does not exist now.
    #[error("no such file or directory")]
    NotFound,
    /// The entry does not exist and never will: its directory is in a snapshot.
    #[error("no such file or directory")]
    NeverThere,
    /// The name is longer than 255 bytes.
    #[error("name too long")]
    NameTooLong,
    /// The inode is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// The inode is a directory.
    #[error("is a directory")]
    IsADirectory,
    /// The inode is not a symbolic link.
    #[error("not a symbolic link")]
    NotALink,
    /// The inode does not have this extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The inode is not a regular file.
    #[error("not a regular file")]
    NotAFile,
    /// The request would change the file system.
    #[error("read-only file system")]
    ReadOnly,
    /// The file has no data or hole at or after the offset.
    #[error("offset beyond the end of the file")]
    Beyond,
    /// Reading failed recently; the error was reported then.
    #[error("reading it failed a short while ago")]
    Unreadable,
    /// The archive cannot be read or is damaged.
    #[error(transparent)]
    Archive(#[from] archive::Error),
}
