//! Errors of the reader.

use std::sync::Arc;

use crate::failure::{Failure, FailureKind};
use crate::format::{self, BlockLocation};
use crate::{archive, crypt, repository};

/// An object that cannot be read or does not verify.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The repository or one of its documents cannot be read.
    #[error(transparent)]
    Repository(Arc<repository::Error>),
    /// A block cannot be fetched, decrypted or decompressed.
    #[error("cannot {} the block at {offset} of pack {pack}: {why}", .why.step())]
    Block {
        /// The pack with the block.
        pack: format::PackId,
        /// Offset of the block in the pack, in bytes.
        offset: u64,
        /// The cause.
        why: Arc<BlockProblem>,
    },
    /// The digest of a chunk differs from the one in its reference.
    #[error("the chunk at {start} of the block at {offset} of pack {pack} is damaged: its digest differs")]
    Chunk {
        /// The pack with the block.
        pack: format::PackId,
        /// Offset of the block in the pack, in bytes.
        offset: u64,
        /// Offset of the chunk in the decoded block, in bytes.
        start: u32,
    },
    /// The pack of a chunk is missing or too short, according to a listing.
    #[error("its data is lost: pack {pack} {why}")]
    Pack {
        /// The pack.
        pack: format::PackId,
        /// What is wrong, without a subject.
        why: String,
    },
    /// A tree node that verified is malformed or contradicts its parent.
    #[error("a tree node is not valid: {0}")]
    Tree(String),
    /// The snapshot and the repository disagree whether blocks are encrypted.
    #[error("{snapshot} and brackfs.toml disagree whether the repository is encrypted; brackfs.toml was changed")]
    Encryption {
        /// Object name of the snapshot.
        snapshot: String,
    },
}

/// Why a block cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlockProblem {
    /// Fetching it failed.
    #[error("{0}")]
    Read(repository::Error),
    /// Decryption failed.
    #[error("{0}")]
    Open(crypt::Error),
    /// The repository is encrypted and the reader has no secret key.
    #[error("no secret key is available; give one with --key or BRACKFS_KEY_FILE")]
    NoKey,
    /// Decompression failed.
    #[error("it is damaged: {0}")]
    Decode(format::Error),
}

impl BlockProblem {
    /// The step that failed, as a verb for the message.
    fn step(&self) -> &'static str {
        match self {
            BlockProblem::Read(_) => "read",
            BlockProblem::Open(_) | BlockProblem::NoKey => "decrypt",
            BlockProblem::Decode(_) => "decode",
        }
    }
}

impl Error {
    pub(super) fn block(at: &BlockLocation, why: BlockProblem) -> Self {
        Error::Block { pack: at.pack, offset: at.offset, why: Arc::new(why) }
    }

    /// Whether data is gone, short or wrong where it was read, so that another copy of it helps. Not if the target is
    /// unavailable, or if the key is missing.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Error::Chunk { .. } => true,
            Error::Block { why, .. } => match &**why {
                BlockProblem::Read(error) => error.is_lost(),
                // The ids of recipients in the message may be damaged.
                BlockProblem::Open(error) => matches!(error, crypt::Error::NoKey { .. }) || !error.is_key_problem(),
                BlockProblem::Decode(_) => true,
                BlockProblem::NoKey => false,
            },
            _ => false,
        }
    }

    /// Returns the pack that is lost or damaged, if that is the error.
    pub fn lost_pack(&self) -> Option<format::PackId> {
        match self {
            Error::Block { pack, .. } | Error::Chunk { pack, .. } if self.is_lost() => Some(*pack),
            Error::Pack { pack, .. } => Some(*pack),
            _ => None,
        }
    }

    /// The message, for one that names the block already.
    pub fn without_place(&self) -> String {
        match self {
            Error::Block { why, .. } => format!("cannot {} it: {why}", why.step()),
            Error::Chunk { start, .. } => format!("the digest of its chunk at {start} differs"),
            other => other.to_string(),
        }
    }

    /// Whether an object is missing: a document, or the pack of a block.
    pub fn is_absent(&self) -> bool {
        match self {
            Error::Block { why, .. } => matches!(&**why, BlockProblem::Read(error) if error.is_missing()),
            _ => self.is_missing(),
        }
    }

    /// Whether an object other than a pack is missing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Repository(error) if error.is_missing())
    }
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Repository(error) => error.kind(),
            Error::Block { why, .. } => match &**why {
                BlockProblem::NoKey => FailureKind::Key,
                BlockProblem::Open(error) => error.kind(),
                BlockProblem::Read(error) => error.kind(),
                BlockProblem::Decode(_) => FailureKind::Failed,
            },
            _ => FailureKind::Failed,
        }
    }

    fn lost_object(&self) -> Option<String> {
        self.lost_pack().map(format::name::pack)
    }
}

impl From<repository::Error> for Error {
    fn from(error: repository::Error) -> Self {
        Error::Repository(Arc::new(error))
    }
}

impl From<Error> for archive::Error {
    fn from(error: Error) -> Self {
        let is_missing = error.is_missing();
        let cause = Arc::new(error);
        if is_missing { archive::Error::Missing(cause) } else { archive::Error::Unreadable(cause) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_lost_only_if_it_is_known_to_be_wrong() {
        let at = BlockLocation { pack: format::PackId::random(), offset: 0, length: 0 };
        let open = |error| Error::block(&at, BlockProblem::Open(error));
        assert!(Error::Chunk { pack: at.pack, offset: 0, start: 0 }.is_lost());
        assert!(open(crypt::Error::Damaged { what: "it is too short" }).is_lost());
        assert!(open(crypt::Error::NoKey { key: String::new(), recipients: String::new() }).is_lost());
        assert!(!open(crypt::Error::GpgCancelled).is_lost());
        assert!(!Error::block(&at, BlockProblem::NoKey).is_lost());
        assert!(!Error::Tree(String::new()).is_lost());
    }

    #[test]
    fn only_a_block_that_needs_another_key_is_a_key_problem() {
        let at = BlockLocation { pack: format::PackId::random(), offset: 0, length: 0 };
        assert!(Error::block(&at, BlockProblem::NoKey).is_key_problem());
        assert!(Error::block(&at, BlockProblem::Open(crypt::Error::GpgCancelled)).is_key_problem());
        let damaged = format::Error::Malformed { what: "block", why: "it is too short".into() };
        assert!(!Error::block(&at, BlockProblem::Decode(damaged)).is_key_problem());
    }
}
