//! Reads the native format: snapshots, trees and blocks of a repository. Every byte is verified before it is returned.
//!
//! - [`Reader`]: a repository with the keys to read it; snapshots by name
//! - [`native`]: the reader as an [`Archive`](crate::archive::Archive)
//! - [`tree`]: directories: entries by name, by position and by rank
//! - [`mod@file`]: content of files
//! - [`blocks`]: fetches, decrypts and caches blocks
//! - [`cache`]: LRU cache with a limit in bytes; concurrent requests for one key load it once
//! - [`moves`]: where to read blocks whose packs are gone or damaged
//! - [`forgotten`]: snapshots that tombstones name
//! - [`buffers`]: a pool of buffers for reading, decrypting and decompressing blocks
//! - [`look_ahead`]: the next blocks of a file that is read as a whole
//! - [`prefetch`]: threads that decode blocks before they are needed
//! - [`starts`]: offsets of items in a file or a directory
//!
//! References point directly to blocks, so reading needs neither an index nor the catalog. Only for a block that is not
//! where it was first stored, its new location is looked up. Memory is bounded by the
//! caches and the blocks being decoded. The reader does not depend on FUSE.

mod blocks;
mod buffers;
mod cache;
mod error;
mod file;
mod forgotten;
mod look_ahead;
mod moves;
mod native;
mod open;
mod prefetch;
mod starts;
mod tree;

pub use error::Error;
pub use file::{ExtentVisitor, FileReader};
pub use open::Reader;
pub use tree::{root_of, top_node};
