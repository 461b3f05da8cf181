//! Reading the live file system: directory listings, stats, attributes, and content as chunks.
//!
//! Everything below the root is opened relative to an open directory, one name at a time. So a tree may be deeper than
//! the longest path, and replacing a directory by a symlink during the walk cannot redirect it. Decisions about what to
//! back up are made elsewhere.
//!
//! - [`directory`]: an open directory
//! - [`listing`]: the sorted names in a directory
//! - `sort`: external merge sort for long listings
//! - [`path_map`]: paths that are read in another place
//! - [`shared_path`]: paths that share their prefixes
//! - [`stat`]: stat fields, and change detection by them
//! - [`extended`]: extended attributes and inode flags
//! - [`patterns`]: include and exclude patterns
//! - [`tags`]: tag files (`CACHEDIR.TAG`) that exclude the content of a directory
//! - [`mount`]: the properties of one mount; [`mounts`]: the mount table
//! - [`owners`]: names of users and groups
//! - [`chunker`]: splits content into chunks
//! - [`page_cache`]: reading without evicting other programs' data from the page cache
//! - [`writers`]: detection of concurrent writers
//! - `holes`: data extents of sparse files
//!
//! Memory is bounded for any tree; each module states its bound.

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
pub mod path_map;
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
pub use page_cache::WholeReader;
pub use path_map::PathMap;
pub use patterns::{Pattern, Patterns};
pub use shared_path::SharedPath;
pub use sort::temporary_folder;
pub use stat::{Clock, Inode, Stat, now};
pub use tags::{FoundTags, Tags};
pub use writers::{have_changes_stamped, is_open_for_writing};
