//! Why a look at the history ends before its end.

use std::io;

use crate::reader;

/// What ends a look at many snapshots.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository can't be listed, or the key is not the right one.
    #[error(transparent)]
    Reader(#[from] reader::Error),
    /// A pattern is not valid.
    #[error(transparent)]
    Pattern(#[from] crate::source::Error),
    /// No snapshot is of this source.
    #[error("no snapshot is of a source called {0}")]
    NoSource(String),
    /// No snapshot has the path.
    #[error("no snapshot has {0}")]
    Nowhere(String),
    /// What was found could not be handed on.
    #[error("cannot write what was found")]
    Output(#[from] io::Error),
}
