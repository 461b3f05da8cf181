//! Reading the live file system: what is there, what it is, and its bytes in pieces.
//!
//! Everything below the root is reached through open directories and single names, never through a path,
//! so a tree may be deeper than paths are long, and a directory that is swapped for a symlink meanwhile
//! leads nowhere else. Nothing here decides what a backup does about what it sees.
//!
//! - [`directory`]: an open directory, and the way to what is in it
//! - [`listing`]: the names in a directory, sorted
//! - [`shared_path`]: paths that share their beginnings
//! - `sort`: sorting them outside of RAM
//! - [`stat`]: what a file is, and whether it is the one that was read before
//! - [`extended`]: extended attributes and inode flags
//! - [`patterns`]: which paths the user means or does not want
//! - [`tags`]: directories whose owners do not want their content kept
//! - [`mount`]: whose a mount is, and which privileges it ignores; [`mounts`]: where mounts are, and what is on which
//! - [`owners`]: names of users and groups
//! - [`cut`]: content, cut into chunks
//! - [`page_cache`]: reading without pushing out what others use
//! - [`writers`]: others who may write to a file while it is read
//! - `holes`: where a sparse file has data
//!
//! Memory is bounded whatever the tree looks like: each file says by how much.

pub mod chunker;
pub mod directory;
mod error;
pub mod extended;
mod holes;
pub mod listing;
pub mod mount;
pub mod mounts;
pub mod owners;
pub mod page_cache;
pub mod patterns;
pub mod shared_path;
mod sort;
pub mod stat;
pub mod tags;
pub mod writers;

pub use chunker::{Chunker, PIECE_MAX, Piece};
pub use directory::Directory;
pub use error::Error;
pub use extended::Extended;
pub use holes::has_holes;
pub use listing::{ListedName, Listing};
pub use mount::{EntryMount, Mount, is_foreign};
pub use mounts::{LastMount, MountPlace, MountTable};
pub use owners::Owners;
pub use page_cache::UncachedReader;
pub use patterns::{Pattern, Patterns};
pub use shared_path::SharedPath;
pub use sort::temporary_folder;
pub use stat::{Clock, Stat, now};
pub use tags::{FoundTags, Tags};
pub use writers::{have_changes_stamped, is_open_for_writing};
