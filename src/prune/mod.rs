//! Removes data that no kept snapshot needs, with the host key alone.
//!
//! The catalog knows which snapshot uses which blocks, so no tree is read and no owner's key is needed. Names of blocks never
//! change: compaction copies live blocks, byte for byte, into carriers, and writes where they lie in shards of moves.
//!
//! ```text
//! mark ─► sweep ─► compact ─► condemn          with a grace of zero: mark ─► compact ─► condemn ─► sweep
//! ```
//!
//! - [`mod@mark`]: how much of each pack is live
//! - [`compact`]: copies live blocks out of packs that waste much space, and verifies each block
//! - [`condemn`]: tombstones; from then on no backup builds on these packs
//! - [`sweep`]: removes what was condemned in an earlier generation
//! - [`indexes`], [`mod@sums`]: successors of documents that name removed packs
//! - [`bases`]: new bases for usages whose base is removed
//!
//! ## What holds
//!
//! - Nothing is removed unless the census of the last generation proves that all snapshots and indexes are known.
//! - A pack is removed only if a tombstone named it in an earlier generation, and nothing in it has become live since. All
//!   runs of the writer are serial, so no run is left that could have relied on the pack.
//! - A pack stays as long as a forgotten snapshot that uses it can be taken back.
//! - If a carrier is lost or damaged, its blocks are looked for in the packs that they were copied from, before any is removed.
//! - A block whose check fails is not copied, and its pack stays: a copy never hides damage.
//! - Order of a sweep: snapshots, sums, indexes (successors first), shards of moves, packs, generations. Objects of one kind are
//!   removed in any order, many at a time; the next kind follows when all of them are gone or refused. After a kill at any moment, documents
//!   name no data that is gone, except what tombstones name.
//! - Between two batches of removals, the run ends if it is interrupted; between two of packs, also if another run waits.
//! - Readers need no lock. A block that a reader does not find in its birth pack is found through the shard of moves.

mod bases;
mod compact;
mod condemn;
mod context;
mod error;
mod indexes;
mod mark;
mod run;
mod sums;
mod sweep;

pub use context::{Options, Summary};
pub use error::Error;
pub use run::{predict, prune};
