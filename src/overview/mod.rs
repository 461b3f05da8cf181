//! The state of all configured backups, as far as this machine knows it: from the configuration, the journal and the catalogs.
//!
//! No target is opened, so a target that is away does not matter. A target's catalog is found by the repository that a run
//! opened last.
//!
//! - [`scope`]: what an overview is of; [`whole`]: reading it, and the verdict
//! - [`backup`]: the backups of a source on a target, and whether they are fresh
//! - [`target`]: a target: its last prune and check, its size and the certificates of its recipients
//! - [`mod@calendar`]: the backups of each day
//! - [`mod@metrics`]: an overview as metrics for Prometheus

mod backup;
mod calendar;
mod metrics;
mod scope;
mod target;
mod whole;

pub use backup::{BackupState, Backups};
pub use calendar::{Day, calendar};
pub use metrics::{metrics, write_metrics};
pub use scope::Scope;
pub use target::{KeptSnapshots, Known, Recipient, TargetOverview, Tries};
pub use whole::{Overview, Verdict};
