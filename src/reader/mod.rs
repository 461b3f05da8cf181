//! Reads the native format: snapshots, trees and blocks of a repository. Every byte is verified before it is returned.
//!
//! - [`Reader`]: a repository with the keys to read it; snapshots by name
//! - [`native`]: the reader as an [`Archive`](crate::archive::Archive)
//! - [`tree`]: directories: entries by name, by position and by rank
//! - [`mod@file`]: content of files
//! - [`blocks`]: fetches, decrypts and caches blocks
//! - [`cache`]: LRU cache with a limit in bytes; concurrent requests for one key load it once
//! - [`buffers`]: a pool of buffers for reading, decrypting and decompressing blocks
//! - [`prefetch`]: threads that decode blocks before they are needed
//!
//! References point directly to blocks, so reading needs neither an index nor the catalog. Memory is bounded by the
//! caches and the blocks being decoded. The reader does not depend on FUSE.

mod blocks;
mod buffers;
mod cache;
mod error;
mod file;
mod native;
mod prefetch;
mod tree;

use std::sync::Arc;

pub use error::Error;
pub use file::{ExtentVisitor, FileReader};
pub use tree::{root_of, top_node};

use crate::archive::Needs;
use crate::crypt::Fingerprint;
use crate::format::entry::Content;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::snapshot::{Snapshot, Statistics};
use crate::format::{BlockLocation, ChunkRef, Digest};
use crate::repository::{Access, Repository};
use blocks::Core;
use prefetch::Prefetch;

/// Maximum number of snapshots opened to find the name of their source.
const NAME_TRIES: usize = 64;

/// A repository and the keys to read it. Threads share it.
pub struct Reader {
    core: Arc<Core>,
    prefetch: Arc<Prefetch>,
}

impl Reader {
    /// Creates a reader whose caches hold at most `cache_size` bytes.
    pub fn new(repository: Repository, access: Access, cache_size: usize) -> Self {
        Reader { core: Arc::new(Core::new(repository, access, cache_size)), prefetch: Arc::default() }
    }

    /// Returns the maximum memory and threads of this reader.
    fn resources(&self) -> Needs {
        let threads = prefetch::threads();
        Needs { threads, bytes: self.core.room().saturating_add(threads * buffers::IN_USE) }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.core.repository
    }

    /// Lists all snapshots, oldest first, without opening them.
    pub fn snapshots(&self) -> Result<Vec<SnapshotName>, Error> {
        Ok(self.core.repository.snapshots()?)
    }

    /// Decrypts a snapshot and verifies that a trusted host key signed it for this object name.
    pub fn snapshot(&self, name: &SnapshotName) -> Result<(Arc<Snapshot>, Fingerprint), Error> {
        let (snapshot, signer) = self.core.access.snapshot(&self.core.repository, name)?;
        if snapshot.encrypted != self.core.repository.encrypted() {
            return Err(Error::Encryption { snapshot: name.object() });
        }
        check_entry_count(&snapshot)?;
        Ok((Arc::new(snapshot), signer))
    }

    /// Returns the name of a source: from its document, or, if that cannot be read, from the newest snapshot of the
    /// source that verifies.
    pub fn source_name(&self, id: SourceId) -> Result<String, Error> {
        let error = match self.core.access.source(&self.core.repository, id) {
            Ok(source) => return Ok(source.name),
            Err(error) => error,
        };
        let names = self.snapshots()?.into_iter().rev().filter(|name| name.source == id).take(NAME_TRIES);
        let mut snapshots = names.filter_map(|name| self.snapshot(&name).ok());
        snapshots.next().map(|(snapshot, _)| snapshot.source.clone()).ok_or_else(|| error.into())
    }

    /// Reads a chunk and verifies it.
    pub fn verify(&self, location: &BlockLocation, chunk: &ChunkRef) -> Result<(), Error> {
        self.core.verify(location, chunk)
    }

    /// Reads a block and verifies that it consists of exactly these chunks, in this order.
    pub fn verify_block(&self, location: &BlockLocation, chunks: &[(Digest, u32)]) -> Result<(), Error> {
        self.core.verify_block(location, chunks)
    }

    /// Number of blocks decoded so far. A sequential read decodes each block once.
    pub fn decoded_blocks(&self) -> u64 {
        self.core.decoded()
    }

    /// The decryption keys and the trusted signers.
    pub fn access(&self) -> &Access {
        &self.core.access
    }
}

/// Checks that the root of a snapshot has no more entries below it than the snapshot counts.
///
/// Directories may share subtrees, so a small hostile tree can expand to more entries than any command could process.
/// Each node is also checked against the count in its parent, so the limit holds for the whole tree.
fn check_entry_count(snapshot: &Snapshot) -> Result<(), Error> {
    let Some(Content::Directory(root)) = snapshot.root_entry().map(|root| &root.content) else { return Ok(()) };
    let Statistics { files, directories, others, .. } = snapshot.statistics;
    let counted = files.saturating_add(directories).saturating_add(others);
    if root.below < counted {
        Ok(())
    } else {
        Err(Error::Tree(format!("the snapshot counts {counted} entries, and its root claims {} below it", root.below)))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Prefetch threads may hold the opener until the process exits; then its own `drop` does not run.
        if let Some(opener) = self.core.access.opener() {
            opener.save_session_keys();
        }
    }
}
