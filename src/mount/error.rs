//! Why the file system can't answer as hoped.

use crate::reader;

/// Why the file system can't answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing.
    #[error("not there")]
    NotFound,
    /// There is no such thing, and never will be.
    #[error("not there")]
    NeverThere,
    /// No name is as long.
    #[error("name too long")]
    NameTooLong,
    /// It has no entries.
    #[error("not a directory")]
    NotADirectory,
    /// It has entries and no content.
    #[error("a directory")]
    IsADirectory,
    /// It has no target.
    #[error("not a symbolic link")]
    NotALink,
    /// It has no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// It is no file.
    #[error("not a file")]
    NotAFile,
    /// It can't be changed.
    #[error("read only")]
    ReadOnly,
    /// Nothing of the kind comes after this place in the file.
    #[error("beyond the end")]
    Beyond,
    /// It could not be read a short while ago, which was reported then.
    #[error("it could not be read a short while ago")]
    Unreadable,
    /// It can't be read, or is not what was written.
    #[error(transparent)]
    Reader(#[from] reader::Error),
}
