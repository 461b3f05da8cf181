//! Why something can't be read.

use std::sync::Arc;

use crate::format::{self, BlockLocation};
use crate::{crypt, repository};

/// Something that can't be read, or that is not what was written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The repository, or an object in it.
    #[error(transparent)]
    Repository(Arc<repository::Error>),
    /// A block can't be fetched, opened or decompressed.
    #[error("the block at {offset} of pack {pack} {why}")]
    Block {
        /// The pack.
        pack: format::PackId,
        /// Where in it the block begins.
        offset: u64,
        /// What is wrong.
        why: Arc<BlockProblem>,
    },
    /// A chunk's bytes are not those that were stored.
    #[error("the chunk at {start} of the block at {offset} of pack {pack} is not what was stored: its digest differs")]
    Chunk {
        /// The pack.
        pack: format::PackId,
        /// Where in it the block begins.
        offset: u64,
        /// Where in the block the chunk begins.
        start: u32,
    },
    /// A tree node verified, but makes no sense.
    #[error("a tree node makes no sense: {0}")]
    Tree(String),
    /// The snapshot says otherwise than the repository whether blocks are encrypted.
    #[error(
        "{snapshot} and brackfs.toml do not agree whether the repository is encrypted; somebody changed brackfs.toml"
    )]
    Encryption {
        /// The snapshot.
        snapshot: String,
    },
    /// Nothing has this name.
    #[error("{0}")]
    NotFound(String),
    /// A component of the path is no directory.
    #[error("{0} is not a directory")]
    NotADirectory(String),
}

/// What can be wrong with a block.
#[derive(Debug, thiserror::Error)]
pub enum BlockProblem {
    /// It can't be fetched.
    #[error("cannot be read: {0}")]
    Read(repository::Error),
    /// It can't be decrypted.
    #[error("cannot be decrypted: {0}")]
    Open(crypt::Error),
    /// There is no key to decrypt it with.
    #[error("is encrypted, and there is no secret key to open it with; give one with --key or BRACKFS_KEY_FILE")]
    NoKey,
    /// It can't be decompressed.
    #[error("is damaged: {0}")]
    Decode(format::Error),
}

impl Error {
    pub(super) fn block(at: &BlockLocation, why: BlockProblem) -> Self {
        Error::Block { pack: at.pack, offset: at.offset, why: Arc::new(why) }
    }

    /// Whether an object is missing; packs excepted.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Repository(error) if error.is_missing())
    }

    /// Whether it is the key or passphrase that is missing or wrong.
    pub fn is_key_problem(&self) -> bool {
        match self {
            Error::Repository(error) => error.is_key_problem(),
            Error::Block { why, .. } => match &**why {
                BlockProblem::NoKey => true,
                BlockProblem::Open(error) => error.is_key_problem(),
                BlockProblem::Read(_) | BlockProblem::Decode(_) => false,
            },
            _ => false,
        }
    }
}

impl From<repository::Error> for Error {
    fn from(error: repository::Error) -> Self {
        Error::Repository(Arc::new(error))
    }
}
