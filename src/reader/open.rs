//! A repository that is open for reading.

use std::sync::Arc;

use super::blocks::Core;
use super::buffers;
use super::error::Error;
use super::forgotten::Tombstones;
use super::prefetch::{Prefetch, Reach};
use crate::archive::Needs;
use crate::crypt::Fingerprint;
use crate::format::entry::Content;
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::{self, SnapshotName};
use crate::format::snapshot::{Snapshot, Statistics};
use crate::format::{BlockLocation, ChunkRef, Digest};
use crate::repository::{Access, Ahead, Repository};

/// Maximum number of snapshots opened to find the name of their source.
const NAME_TRIES: usize = 64;

/// A repository and the keys to read it. Threads share it.
pub struct Reader {
    pub(super) core: Arc<Core>,
    pub(super) prefetch: Arc<Prefetch>,
    tombstones: Tombstones,
}

impl Reader {
    /// Creates a reader whose caches hold at most `cache_size` bytes.
    pub fn new(repository: Repository, access: Access, cache_size: usize) -> Self {
        let target = repository.target().capabilities();
        let reach = if target.directory.is_some() { Reach::local() } else { Reach::remote(target.joined) };
        let core = Arc::new(Core::new(repository, access, cache_size));
        Reader { core, prefetch: Arc::new(Prefetch::new(reach)), tombstones: Tombstones::default() }
    }

    /// Returns the maximum memory and threads of this reader.
    pub(super) fn resources(&self) -> Needs {
        let prefetch = self.prefetch.threads();
        let (ahead, results) = self.core.repository.target().read_ahead();
        let bytes = self.core.room().saturating_add(prefetch * buffers::IN_USE + results);
        Needs { threads: prefetch + ahead, bytes }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.core.repository
    }

    /// Lists all snapshots that are not forgotten, oldest first, without opening them.
    pub fn snapshots(&self) -> Result<Vec<SnapshotName>, Error> {
        let repository = &self.core.repository;
        let folders = [name::SNAPSHOTS, name::FORGOTTEN].map(|folder| Ahead::List(folder.to_owned()));
        let mut names = repository.target().reading_ahead(folders.into(), || {
            let names = repository.snapshots()?;
            self.tombstones.refresh(repository, &self.core.access)?;
            Ok::<_, Error>(names)
        })?;
        names.retain(|name| !self.tombstones.contains(name));
        Ok(names)
    }

    /// Begins to read documents that will be opened soon.
    pub(super) fn begin(&self, snapshots: &[SnapshotName], sources: &[SourceId]) {
        let snapshots = snapshots.iter().map(Access::read_of_snapshot);
        let sources = sources.iter().copied().map(Access::read_of_source);
        self.core.repository.target().begin(snapshots.chain(sources).collect());
    }

    /// Drops snapshots that were begun and will not be opened.
    pub(super) fn forget_begun(&self, snapshots: &[SnapshotName]) {
        let reads: Vec<_> = snapshots.iter().map(Access::read_of_snapshot).collect();
        self.core.repository.target().forget_begun(&reads);
    }

    /// Returns a forgotten snapshot whose id begins with `prefix`, as of the last call of [`Reader::snapshots`].
    pub fn forgotten_with_id(&self, prefix: &str) -> Option<SnapshotId> {
        self.tombstones.with_id(prefix)
    }

    /// Whether the snapshot is forgotten by now.
    pub fn is_forgotten(&self, name: &SnapshotName) -> bool {
        // If the target is unavailable, the tombstones known so far count.
        let _ = self.tombstones.refresh(&self.core.repository, &self.core.access);
        self.tombstones.contains(name)
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

    /// Returns a location outside its pack at which a chunk may be read, and which `is_there` accepts; `None` if the chunk was
    /// neither moved nor stored again.
    pub fn moved_to(
        &self,
        location: &BlockLocation,
        chunk: &ChunkRef,
        is_there: impl Fn(&BlockLocation) -> bool,
    ) -> Result<Option<BlockLocation>, Error> {
        self.core.moved_to(location, chunk, is_there)
    }

    /// Verifies that a stored block, which was read from this location, consists of exactly these chunks, in this order.
    pub fn verify_stored(
        &self,
        location: &BlockLocation,
        stored: &[u8],
        chunks: &[(Digest, u32)],
    ) -> Result<(), Error> {
        self.core.verify_stored(location, stored, chunks)
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
