//! Snapshots as commands use them, in any format.
//!
//! An [`Archive`] lists and opens snapshots, finds entries, and reads files. The native format implements it in
//! [`crate::reader`]; mounting, restoring, dumping and searching use only the trait.
//!
//! - [`mod@entry`]: entries, and handles to them
//! - [`content`]: content of files
//! - [`select`]: snapshots as users name them; [`when`]: times in such names
//! - [`walk`]: walks a subtree of any depth
//! - [`first_names`]: the first path of each hard-linked file; [`spill`]: a table with bounded memory
//! - `error`: errors
//! - `memory`: an archive in memory, for tests

pub mod content;
pub mod entry;
mod error;
pub mod first_names;
#[cfg(test)]
pub(crate) mod memory;
mod select;
pub mod spill;
mod walk;
mod when;

use std::sync::Arc;

pub use content::{FileContent, FileData, Seek};
pub use entry::{ContentPosition, EntryHandle, EntryList, EntryRef, Page, SnapshotDirectory};
pub use error::Error;
pub use first_names::{FirstNames, LinkLookup};
pub use select::Selector;
pub use spill::SpillTable;
pub use walk::{TreeWalk, WalkStep};

pub use crate::storage::Stamp;

use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::snapshot::Statistics;

/// Maximum number of snapshots tried with a key that opens none of them, if each try is slow.
const SLOW_TRIES: usize = 64;

/// Snapshots that can be read. Threads share it.
///
/// Handles and directories have a meaning only for the archive that made them.
pub trait Archive: Send + Sync {
    /// Identifies the archive, for marks of unfinished restores.
    fn id(&self) -> String;

    /// Lists all snapshots, oldest first, without opening them.
    fn snapshots(&self) -> Result<Vec<SnapshotName>, Error>;

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

    /// Returns the content of a file. Reads nothing; entries of other kinds have no content.
    fn content(&self, file: &EntryHandle) -> Result<Arc<dyn FileContent>, Error>;

    /// Whether the archive can be accessed now: its disk may be unplugged.
    fn is_available(&self) -> bool;

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
            at = found.ok_or_else(|| Error::NotFound(format!("no {walked} in the snapshot")))?;
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
    /// Prefetch threads. If they cannot be started, reads are slower.
    pub threads: usize,
    /// Memory in bytes: caches, free buffers, and the buffers of the prefetch threads.
    pub bytes: usize,
}

/// Returns a message about entries whose set-id bits, capabilities or devices were left out; `None` for 0 entries.
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
