//! Encodes and decodes repository format 1. Uses no files, network or keys.
//!
//! - [`id`]: digests and the identifiers of repositories, packs, sources and snapshots
//! - [`name`]: object names, which are the layout of a repository
//! - [`block`]: zstd frames, and padding that hides their exact length
//! - [`node`]: tree nodes, which directories and long extent lists consist of
//! - [`entry`]: one file, directory or link in a tree
//! - [`ContentHasher`]: the digest of a file
//! - [`document`]: the header of all signed documents
//! - [`snapshot`], [`index`], [`secrets`], [`generation`], [`source`]: the signed documents
//! - [`sums`]: lists of digests of packs, which anyone can check
//! - [`cbor`]: reading CBOR with limits, and writing it
//!
//! `man/brackfs-format.5` describes every byte. All input is untrusted: lengths are checked before memory is allocated,
//! nesting is limited by the grammar, and nothing panics.

pub mod block;
pub mod cbor;
mod content;
pub mod document;
pub mod entry;
mod error;
pub mod generation;
pub mod id;
pub mod index;
pub mod name;
pub mod node;
pub mod secrets;
pub mod snapshot;
pub mod source;
pub mod sums;

pub use content::ContentHasher;
pub use entry::{ChunkRef, Content, Entry, Extent, HardLink, Kind, NodeRef, Subtree, Timestamp};
pub use error::Error;
pub use id::{Digest, PackId, RepositoryId, SnapshotId, SourceId};
pub use node::{BlockLocation, Items, Node, Segment};

/// The only format version that this program writes and reads.
pub const VERSION: u32 = 1;

/// The largest plaintext of a block, and so of a chunk, in bytes. Changing it changes the format.
pub const BLOCK_SIZE: usize = 2 << 20;

/// The largest stored block in bytes: incompressible plaintext with its frame, padding and OpenPGP framing for many
/// recipients. Readers refuse larger blocks.
pub const SEALED_SIZE: usize = BLOCK_SIZE + BLOCK_SIZE / 4;

/// The largest signed document in bytes; the largest ones are indexes.
pub const DOCUMENT_SIZE: usize = 64 << 20;
