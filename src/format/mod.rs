//! Encodes and decodes repository format 1. Uses no files, network or keys.
//!
//! - [`id`]: digests and the identifiers of repositories, packs, sources and snapshots
//! - [`name`]: object names, which are the layout of a repository
//! - [`block`]: zstd frames, and padding that hides their exact length
//! - [`node`]: tree nodes, which directories and long extent lists consist of
//! - [`entry`]: one file, directory or link in a tree
//! - [`ContentHasher`]: the digest of a file
//! - [`document`]: the header of all signed documents
//! - [`snapshot`], [`index`], [`moved`], [`forgotten`], [`secrets`], [`generation`], [`source`]: the signed documents
//! - [`pack`], [`usage`]: the parts of an index: packs and their blocks, and the blocks that snapshots use
//! - [`census`]: whether documents are those that a census of a generation counts
//! - [`sums`]: lists of digests of packs, which anyone can check
//! - [`cbor`]: reading CBOR with limits, and writing it
//!
//! `man/brackfs-format.5` describes every byte. All input is untrusted: lengths are checked before memory is allocated,
//! nesting is limited by the grammar, and nothing panics.

pub mod block;
pub mod cbor;
pub mod census;
mod content;
pub mod document;
pub mod entry;
mod error;
pub mod forgotten;
pub mod generation;
pub mod id;
pub mod index;
mod limits;
pub mod moved;
pub mod name;
pub mod node;
pub mod pack;
pub mod secrets;
pub mod snapshot;
pub mod source;
pub mod sums;
pub mod usage;

pub use content::ContentHasher;
pub use entry::{ChunkRef, Content, Entry, Extent, HardLink, Kind, NodeRef, Subtree, Timestamp};
pub use error::Error;
pub use id::{Check, Digest, PackId, RepositoryId, SnapshotId, SourceId};
pub use limits::{BLOCK_SIZE, DOCUMENT_SIZE, SEALED_SIZE, VERSION};
pub use node::{BlockLocation, Items, Node, Segment};
