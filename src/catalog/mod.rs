//! The catalog: this machine's database about a repository that it writes to. All SQL is in this module.
//!
//! The catalog makes backups cheap (stored chunks and their locations; the last state of each file), and it
//! records the trusted keys, so that nothing in the repository has to be trusted blindly. A restore never
//! needs it.
//!
//! A catalog may claim less than the repository has, but never more: see [`packs`]. [`crate::inventory`]
//! enforces this.
//!
//! - [`trust`]: repository, host key, recipients, encryption; fixed at init
//! - [`chunks`]: packs, blocks and chunks, and where they are stored
//! - [`moves`]: blocks in carriers
//! - [`doomed`]: snapshots and packs that are removed on purpose
//! - [`packs`]: condemned packs, and the removal of claims that depend on them
//! - [`documents`]: documents in the repository, and their census
//! - [`directories`]: directories in segments of about 1,000 entries, each with its encoded tree node
//! - [`stats`]: the stat data of a segment's entries, in a form that is compared bytewise
//! - [`retry_queue`]: files that a run reads again before it makes its snapshot
//! - [`snapshots`]: sources and snapshots
//! - [`usage`]: the blocks that each snapshot uses, as [`spans`]
//! - [`sizes`]: how much of the stored data each snapshot uses
//! - [`sums`]: checksums of rows
//! - [`claims`]: rows that depend on blocks; dropped if a block is lost or the row is damaged
//! - [`verify`]: internal consistency
//! - [`database`]: opens the database; [`ids`]: row ids; [`numbers`]: lists of integers as compact blobs
//!
//! One [`Catalog`] writes, in one transaction from each [`Catalog::commit`] to the next; a [`Past`] reads the
//! committed state on a second connection at the same time.

mod chunks;
mod claims;
mod database;
mod directories;
mod documents;
mod doomed;
mod error;
mod ids;
mod lost;
mod moves;
mod numbers;
mod packs;
mod retry_queue;
mod sizes;
mod snapshots;
mod spans;
pub mod stats;
mod sums;
mod trust;
mod usage;
mod verify;

pub use chunks::{PackRow, Stored};
pub use claims::Claims;
pub use database::{Catalog, View, trust_of};
pub use directories::{DirectoryId, DirectoryRow, NewSegment, Parent, Past, SegmentId, SegmentNode, SegmentRow};
pub use documents::{Folder, KnownDocument};
pub use doomed::{DoomedPack, RetainedPack};
pub use error::Error;
pub use ids::BlockId;
pub use moves::{BlockInPack, PackLoad};
pub use packs::{Condemned, KnownPack};
pub use retry_queue::{DeferredFile, StoredState};
pub use sizes::UsedSizes;
pub use snapshots::{Presence, SnapshotRow, SourceRow};
pub use trust::{LastRun, Trust};
pub use usage::{UsageChange, UsagePair};
