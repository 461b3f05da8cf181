//! Errors of encoding and decoding.

/// Data that does not conform to the format, or cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not valid CBOR or do not follow the grammar.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// The structure being read.
        what: &'static str,
        /// The reason.
        why: String,
    },
    /// A number exceeds a limit of the format. Reported before memory is allocated.
    #[error("{what} of {found} is above the limit of {limit}")]
    TooLarge {
        /// The quantity.
        what: &'static str,
        /// The value found.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The block is not a single zstd frame of the announced size.
    #[error("cannot decompress the block: {0}")]
    Decompress(String),
    /// zstd failed to compress (out of memory, or an unknown level).
    #[error("cannot compress a block: {0}")]
    Compress(std::io::Error),
    /// A signed document belongs to another repository or another object.
    #[error("the document has {field} {found}, but {expected} was expected: it was moved, renamed or forged")]
    Mismatch {
        /// The field that differs.
        field: &'static str,
        /// Its value in the document.
        found: String,
        /// The value expected from the object's name and repository.
        expected: String,
    },
}

impl Error {
    /// Makes an [`Error::Malformed`].
    pub(super) fn malformed(what: &'static str, why: impl ToString) -> Self {
        Error::Malformed { what, why: why.to_string() }
    }
}
