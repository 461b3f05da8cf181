//! Reading a repository: snapshot, tree, block. Every byte is verified before it is handed out.
//!
//! - [`Reader`]: a repository with the keys to read it; snapshots by name
//! - [`blocks`]: blocks fetched, opened and kept in a cache of bounded bytes; each is fetched once, however
//!   many wait for it
//! - [`cache`]: that cache: least recently used, counted in bytes
//! - [`tree`]: directories: entries by name, by position and by rank
//! - [`walk`]: all that is below a directory, however deep
//! - [`mod@file`]: content of files
//!
//! References are direct, so no index and no catalog is needed; what is held is the caches and what is being
//! decoded at the moment. Nothing here knows of FUSE.

mod blocks;
mod cache;
mod error;
mod file;
mod select;
mod tree;
mod walk;

use std::sync::Arc;

pub use error::Error;
pub use file::{FileReader, Seek};
pub use select::Selector;
pub use tree::{Directory, Identity, Listed};
pub use walk::{Step, Walk};

use crate::crypt::Fingerprint;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::snapshot::Snapshot;
use crate::repository::{Access, Repository};
use blocks::Blocks;

/// A repository, and the keys to read it. Shared by threads.
pub struct Reader {
    repository: Repository,
    access: Access,
    blocks: Blocks,
}

impl Reader {
    /// A reader whose caches hold at most `cache_size` bytes.
    pub fn new(repository: Repository, access: Access, cache_size: usize) -> Self {
        Reader { repository, access, blocks: Blocks::new(cache_size) }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// All snapshots by name, oldest first. None is opened.
    pub fn snapshots(&self) -> Result<Vec<SnapshotName>, Error> {
        Ok(self.repository.snapshots()?)
    }

    /// Opens a snapshot: decrypts it, and verifies that a known host signed it for this place.
    pub fn snapshot(&self, name: &SnapshotName) -> Result<(Arc<Snapshot>, Fingerprint), Error> {
        let (snapshot, signer) = self.access.snapshot(&self.repository, name)?;
        if snapshot.encrypted != self.repository.encrypted() {
            return Err(Error::Encryption { snapshot: name.object() });
        }
        Ok((Arc::new(snapshot), signer))
    }

    /// The name of a source.
    pub fn source_name(&self, id: SourceId) -> Result<String, Error> {
        Ok(self.access.source(&self.repository, id)?.name)
    }

    /// The keys that open documents, and the signers that are believed.
    pub fn access(&self) -> &Access {
        &self.access
    }
}
