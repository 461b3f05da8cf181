//! The bytes of repository format 1. Pure: no files, no network, no keys.
//!
//! - [`id`]: digests and the identifiers of repositories, packs, sources and snapshots
//! - [`name`]: object names, that is, what lies where in a repository
//! - [`block`]: zstd frames and the padding that hides their exact length
//! - [`node`]: trees, the nodes that directories and long extent lists are made of
//! - [`entry`]: one file, directory or link in a tree
//! - [`ContentHasher`]: the digest of a file
//! - [`document`]: what all signed documents share
//! - [`snapshot`], [`index`], [`secrets`], [`generation`], [`source`]: the signed documents
//! - [`cbor`]: bounded reading and plain writing of CBOR
//!
//! `man/brackfs-format.5` describes every byte. Whatever is parsed here came from outside: a length is
//! checked before memory is taken for it, nesting is fixed by the grammar, and nothing panics.

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

pub use content::ContentHasher;
pub use entry::{ChunkRef, Content, Entry, Extent, HardLink, Kind, NodeRef, Subtree, Timestamp};
pub use error::Error;
pub use id::{Digest, PackId, RepositoryId, SnapshotId, SourceId};
pub use node::{BlockLocation, Items, Node, Segment};

/// The format version that this program writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Most bytes of plaintext in one block, and so of a chunk. Changing it is a change of format.
pub const BLOCK_SIZE: usize = 2 << 20;

/// Most bytes of one stored block: a plaintext that does not compress, its frame, padding and OpenPGP
/// framing for many recipients. Readers refuse to fetch more.
pub const SEALED_SIZE: usize = BLOCK_SIZE + BLOCK_SIZE / 4;

/// Most bytes of a signed document (an index is the largest).
pub const DOCUMENT_SIZE: usize = 64 << 20;
