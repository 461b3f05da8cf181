//! The trait that a format implements, and its open snapshots.

use std::sync::Arc;
use std::time::Duration;

use super::content::FileContent;
use super::entry::{EntryHandle, Page, SnapshotDirectory};
use super::error::Error;
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::SnapshotName;
use crate::format::snapshot::Statistics;
use crate::storage::{InTurn, Stamp};

/// Maximum number of snapshots tried with a key that opens none of them, if each try is slow.
const SLOW_TRIES: usize = 64;

/// Snapshots that can be read. Threads share it.
///
/// Handles and directories have a meaning only for the archive that made them.
pub trait Archive: Send + Sync {
    /// Identifies the archive, for marks of unfinished restores.
    fn id(&self) -> String;

    /// Lists all snapshots that are not forgotten, oldest first, without opening them.
    fn snapshots(&self) -> Result<Vec<SnapshotName>, Error>;

    /// Returns a forgotten snapshot whose id begins with `prefix`, as of the last listing.
    fn forgotten_with_id(&self, _prefix: &str) -> Option<SnapshotId> {
        None
    }

    /// Whether the error means that data is gone, and the snapshot is forgotten by now.
    fn is_forgotten(&self, _name: &SnapshotName, _error: &Error) -> bool {
        false
    }

    /// A hint that a few snapshots will be opened soon, and names of sources be read: they may be fetched at the same time.
    fn begin(&self, _snapshots: &[SnapshotName], _sources: &[SourceId]) {}

    /// A hint that these snapshots will not be opened, as [`Archive::begin`] said.
    fn forget_begun(&self, _snapshots: &[SnapshotName]) {}

    /// Opens a snapshot and verifies it.
    fn open(&self, name: &SnapshotName) -> Result<Arc<OpenSnapshot>, Error>;

    /// Returns the name of a source.
    fn source_name(&self, id: SourceId) -> Result<String, Error>;

    /// Returns a value that changes when the snapshot's file is replaced, or `None` if the file cannot be read.
    fn stamp(&self, name: &SnapshotName) -> Option<Stamp>;

    /// Finds an entry of a directory by name.
    fn lookup(&self, directory: &SnapshotDirectory, name: &[u8]) -> Result<Option<EntryHandle>, Error>;

    /// Finds the entry of a directory that has the absolute rank `rank` or contains the entry with it.
    fn by_rank(&self, directory: &SnapshotDirectory, rank: u64) -> Result<Option<EntryHandle>, Error>;

    /// Returns entries from position `from` on: those of one list, so that memory stays bounded. Empty at the end.
    fn list(&self, directory: &SnapshotDirectory, from: u64) -> Result<Page, Error>;

    /// Returns how many blocks with small files may be passed to [`Archive::prefetch`] before they are read; 0 if prefetching
    /// does not help.
    fn prefetch_limit(&self) -> usize {
        0
    }

    /// A hint that the content of a file will be read soon.
    fn prefetch(&self, _file: &EntryHandle) {}

    /// A hint that a directory is about to be listed, and the directories after it later.
    fn prefetch_after(&self, _directory: &EntryHandle) {}

    /// Returns the number of entries from these positions on that are the same in both directories, with everything below
    /// them, as far as the archive knows it without reading them. 0 if it does not know.
    fn shared_entries(&self, _a: (&SnapshotDirectory, u64), _b: (&SnapshotDirectory, u64)) -> Result<u64, Error> {
        Ok(0)
    }

    /// Returns the content of a file. Reads nothing; entries of other kinds have no content.
    fn content(&self, file: &EntryHandle) -> Result<Arc<dyn FileContent>, Error>;

    /// Whether the archive can be accessed now: its disk may be unplugged.
    fn is_available(&self) -> bool;

    /// Returns how long this thread has waited for a storage that was unavailable, in total.
    fn waited(&self) -> Duration;

    /// Whether opening the snapshot or reading the name of the source fails again for as long as the object exists. Failures
    /// of the storage and of a passphrase prompt are not permanent.
    fn is_permanent(&self, error: &Error) -> bool;

    /// Whether each try to open a snapshot is slow, such as with a smart card.
    fn is_slow_to_open(&self) -> bool;

    /// Returns the maximum memory and threads of the archive.
    fn needs(&self) -> Needs;

    /// Whether to give up on a key that failed to open `closed` snapshots and opened none. `false` if tries are cheap.
    fn is_hopeless(&self, closed: usize) -> bool {
        closed >= SLOW_TRIES && self.is_slow_to_open()
    }

    /// Returns the entry at `path` below the snapshot's root. Symbolic links are not followed.
    fn at_path(&self, snapshot: &OpenSnapshot, path: &[u8]) -> Result<EntryHandle, Error> {
        let mut at = snapshot.root.clone();
        let mut walked = String::new();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let Some(directory) = at.directory() else { return Err(Error::NotADirectory(walked)) };
            walked = format!("{walked}/{}", String::from_utf8_lossy(name));
            let found = self.lookup(&directory, name)?;
            at = found.ok_or_else(|| {
                Error::NotFound(format!("the snapshot has no {walked}; `brackfs ls SNAP` lists its content"))
            })?;
        }
        Ok(at)
    }

    /// Returns the entry of a snapshot with this rank.
    fn at_rank(&self, snapshot: &OpenSnapshot, rank: u64) -> Result<EntryHandle, Error> {
        let mut at = snapshot.root.clone();
        while at.rank != rank {
            let next = match at.directory() {
                Some(directory) => self.by_rank(&directory, rank)?,
                None => None,
            };
            at = next.ok_or_else(|| Error::NotFound(format!("no entry with rank {rank} in the snapshot")))?;
        }
        Ok(at)
    }
}

impl dyn Archive + '_ {
    /// Goes through snapshots that are opened one after the other, and begins to fetch those that come next.
    pub fn in_turn<'n>(&'n self, names: &'n [SnapshotName]) -> impl Iterator<Item = &'n SnapshotName> {
        InTurn::new(names, |next| self.begin(next, &[]), |passed| self.forget_begun(passed))
    }
}

/// A verified snapshot.
pub struct OpenSnapshot {
    /// Its name, with source, time and id.
    pub name: SnapshotName,
    /// The source's name.
    pub source: String,
    /// The path of the snapshot's root on the machine; `None` if the content is not from a directory.
    pub root_path: Option<Vec<u8>>,
    /// The tags given on the command line.
    pub tags: Vec<String>,
    /// The counts of files and bytes.
    pub statistics: Statistics,
    /// The root directory.
    pub root: EntryHandle,
}

/// The maximum resources of an archive, in addition to those of the threads that call it.
pub struct Needs {
    /// Threads for prefetch and for reads ahead. If they cannot be started, reads are slower.
    pub threads: usize,
    /// Memory in bytes: caches, free buffers, the buffers of the prefetch threads, and results of reads ahead.
    pub bytes: usize,
}
