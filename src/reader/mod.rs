//! Reading a repository: snapshot, tree, block. Every byte is verified before it is handed out.
//!
//! - [`Reader`]: a repository with the keys to read it; snapshots by name
//! - [`blocks`]: blocks fetched, opened and kept in a cache of bounded bytes; each is fetched once, however
//!   many wait for it
//! - [`buffers`]: what blocks are read, opened and decompressed into
//! - [`prefetch`]: threads that decode what will be wanted soon
//! - [`cache`]: that cache: least recently used, counted in bytes
//! - [`tree`]: directories: entries by name, by position and by rank
//! - [`walk`]: all that is below a directory, however deep
//! - [`mod@file`]: content of files
//! - [`first_names`]: which name of a file with several names came first; [`spill`]: tables that take little memory
//!
//! References are direct, so no index and no catalog is needed; what is held is the caches and what is being
//! decoded at the moment. Nothing here knows of FUSE.

mod blocks;
mod buffers;
mod cache;
mod error;
mod file;
pub mod first_names;
mod prefetch;
mod select;
pub mod spill;
mod tree;
mod walk;
mod when;

use std::sync::Arc;

pub use error::Error;
pub use file::{ExtentVisitor, FileReader, Seek};
pub use first_names::{FirstNames, LinkLookup};
pub use select::Selector;
pub use spill::SpillTable;
pub use tree::{ContentIdentity, EntryHandle, SnapshotDirectory};
pub use walk::{TreeWalk, WalkStep};

use crate::crypt::Fingerprint;
use crate::format::entry::Content;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::snapshot::{Snapshot, Statistics};
use crate::format::{BlockLocation, ChunkRef, Digest};
use crate::repository::{self, Access, Repository};
use blocks::Core;
use prefetch::{Prefetch, PrefetchRequest};

/// What to say of entries whose set-id bits, capabilities or devices were left out.
pub fn left_out(entries: u64) -> Option<String> {
    let of = match entries {
        0 => return None,
        1 => "1 entry".to_owned(),
        more => format!("{more} entries"),
    };
    Some(format!(
        "set-id bits, capabilities or devices of {of} were left out: the mount that was backed up ignored them (nosuid, \
         nodev); --trust-set-id keeps them"
    ))
}

/// Most snapshots that are opened to find the name of their source.
const NAME_TRIES: usize = 64;

/// A repository, and the keys to read it. Shared by threads.
pub struct Reader {
    core: Arc<Core>,
    ahead: Prefetch,
}

/// What a [`Reader`] takes at most, next to what the threads that call it need.
pub struct Needs {
    /// Prefetch threads. If they cannot be started, reads are slower.
    pub threads: usize,
    /// Bytes of memory: caches, buffers, and those of its threads.
    pub bytes: usize,
}

impl Reader {
    /// A reader whose caches hold at most `cache_size` bytes.
    pub fn new(repository: Repository, access: Access, cache_size: usize) -> Self {
        Reader { core: Arc::new(Core::new(repository, access, cache_size)), ahead: Prefetch::default() }
    }

    /// The memory and the threads that reading takes at most.
    pub fn needs(&self) -> Needs {
        let threads = prefetch::threads();
        Needs { threads, bytes: self.core.room().saturating_add(threads * buffers::IN_USE) }
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.core.repository
    }

    /// All snapshots by name, oldest first. None is opened.
    pub fn snapshots(&self) -> Result<Vec<SnapshotName>, Error> {
        Ok(self.core.repository.snapshots()?)
    }

    /// Opens a snapshot: decrypts it, and verifies that a known host signed it for this place.
    pub fn snapshot(&self, name: &SnapshotName) -> Result<(Arc<Snapshot>, Fingerprint), Error> {
        let (snapshot, signer) = self.core.access.snapshot(&self.core.repository, name)?;
        if snapshot.encrypted != self.core.repository.encrypted() {
            return Err(Error::Encryption { snapshot: name.object() });
        }
        check_extent(&snapshot)?;
        Ok((Arc::new(snapshot), signer))
    }

    /// Whether a snapshot that failed to open fails as long as its object is there: it is not the target or a person that
    /// was asked that failed.
    pub fn is_permanent(&self, error: &Error) -> bool {
        let Error::Repository(cause) = error else { return matches!(error, Error::Encryption { .. }) };
        match &**cause {
            repository::Error::Crypt { .. } if error.is_key_problem() => {
                self.access().opener().is_some_and(|opener| !opener.is_slow())
            }
            repository::Error::Crypt { .. } | repository::Error::Format { .. } | repository::Error::Stranger { .. } => {
                true
            }
            _ => false,
        }
    }

    /// The name of a source. If its document is lost, the newest snapshot of the source that verifies says it too.
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

    /// Reads a block, and verifies that it holds these chunks one after the other, and nothing else.
    pub fn verify_block(&self, location: &BlockLocation, chunks: &[(Digest, u32)]) -> Result<(), Error> {
        self.core.verify_block(location, chunks)
    }

    /// How many blocks were decoded so far: what is read in order decodes none twice.
    pub fn decoded_blocks(&self) -> u64 {
        self.core.decoded()
    }

    /// Has a block decoded that will be wanted soon.
    fn soon(&self, wanted: PrefetchRequest) {
        self.ahead.send(&self.core, wanted);
    }

    /// The keys that open documents, and the signers that are believed.
    pub fn access(&self) -> &Access {
        &self.core.access
    }
}

/// Checks that a snapshot does not hold more entries than it counts. Directories may share what is below them, so a few of
/// them can stand for more entries than any command comes to the end of. Each node is compared with the number of
/// entries above it, so this holds for all that a reader comes to.
fn check_extent(snapshot: &Snapshot) -> Result<(), Error> {
    let Some(Content::Directory(root)) = snapshot.root_entry().map(|root| &root.content) else { return Ok(()) };
    let Statistics { files, directories, others, .. } = snapshot.statistics;
    let counted = files.saturating_add(directories).saturating_add(others);
    match root.below < counted {
        true => Ok(()),
        false => Err(Error::Tree(format!(
            "the snapshot counts {counted} entries, and its root claims {} below it",
            root.below
        ))),
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Threads that decode ahead may hold the opener until the process ends, and then it is not dropped.
        if let Some(opener) = self.core.access.opener() {
            opener.keep();
        }
    }
}
