//! Snapshots as commands use them, in any format.
//!
//! An [`Archive`] lists and opens snapshots, finds entries, and reads files. The native format implements it in
//! [`crate::reader`]; mounting, restoring, dumping and searching use only the trait.
//!
//! - [`snapshots`]: the trait, and open snapshots
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
mod snapshots;
pub mod spill;
mod walk;
mod when;

pub use content::{FileContent, FileData, Seek};
pub use entry::{ContentPosition, EntryHandle, EntryList, EntryRef, Page, SnapshotDirectory};
pub use error::Error;
pub use first_names::{FirstNames, LinkLookup};
pub use select::{Selected, Selector};
pub use snapshots::{Archive, Needs, OpenSnapshot};
pub use spill::SpillTable;
pub use walk::{TreeWalk, WalkStep};

pub use crate::storage::Stamp;

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
