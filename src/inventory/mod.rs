//! Brings catalog and repository into agreement.
//!
//! A catalog must never claim more than the repository has. Normally, reading the last generation is enough to show
//! that ([`Divergence`]). Otherwise packs are listed, missing ones are condemned, and unknown ones are added from
//! signed indexes ([`reconcile`]). For a lost catalog, [`rebuild()`] creates an empty one and reconciles it. All of
//! this needs only the host key.
//!
//! - [`mod@generations`]: the runs that wrote to the repository
//! - [`mod@divergence`]: whether the repository is as this catalog left it, and whether this catalog is its writer
//! - [`mod@census`]: proves that listings are complete
//! - [`reconcile`]: compares packs, blocks, chunks and snapshots with the repository
//! - [`tombstones`]: forgotten snapshots, and documents that a killed run left
//! - [`mod@rebuild`]: replaces a lost catalog
//! - [`recipients`]: renewed certificates of recipients
//! - [`mend`]: repairs a partly damaged catalog
//! - [`heal`]: new places for the chunks of lost packs
//! - [`recheck`]: checks a few packs in each run, to detect losses on disk
//! - [`upkeep`]: puts back small objects that must not be lost
//! - [`verify`]: checks all claims of the catalog without changing anything

mod census;
mod context;
mod copies;
mod divergence;
mod error;
mod generations;
mod heal;
mod mend;
mod rebuild;
mod recheck;
mod recipients;
mod reconcile;
mod tombstones;
mod upkeep;
mod verify;

pub use context::{Inventory, host_access, host_key};
pub use divergence::Divergence;
pub use error::Error;
pub use generations::{Generations, Strange};
pub use rebuild::rebuild;
pub use recheck::{READ_AGAIN, Rechecked};
pub use recipients::Renewed;
pub use reconcile::Reconciled;
pub use upkeep::LostObject;
pub use verify::Verified;
