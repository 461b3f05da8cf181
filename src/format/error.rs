//! What can be wrong with bytes.

/// Bytes that are not what the format says.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// CBOR that does not parse, or is not of the grammar.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// The structure being read.
        what: &'static str,
        /// What was found or missing.
        why: String,
    },
    /// A number above what the format allows; refused before memory is taken.
    #[error("{what} of {found} is above the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The value found.
        found: u64,
        /// The most that the format allows.
        limit: u64,
    },
    /// A zstd frame that does not decode to what it announces.
    #[error("block does not decompress: {0}")]
    Decompress(String),
    /// zstd refused to compress (out of memory, or a level it does not know).
    #[error("cannot compress a block: {0}")]
    Compress(std::io::Error),
    /// A signed document that speaks of another place than where it was found.
    #[error("the document says {field} {found}, but {expected} was expected: it was moved, renamed or forged")]
    Mismatch {
        /// The field that differs.
        field: &'static str,
        /// What the document says.
        found: String,
        /// What its place says.
        expected: String,
    },
}

impl Error {
    /// A [`Error::Malformed`] in few words.
    pub(super) fn malformed(what: &'static str, why: impl ToString) -> Self {
        Error::Malformed { what, why: why.to_string() }
    }
}
