//! Runs of a configuration: backups of all sources to all targets, with hooks.
//!
//! ```text
//! hooks "before" ─► for each source: hooks, snapshots, backups ─► forget ─► prune ─► check ─► hooks "success" … "finally"
//! ```
//!
//! A failure skips what depends on it, and nothing else: another source and another target are still backed up. Snapshots of a
//! source are forgotten only on a target that got a complete new one in this run.
//!
//! - [`steps`]: the steps in their order
//! - [`outcome`]: the result of each step
//! - [`conditions`]: whether a source or a target is to be used now
//! - [`hooks`]: commands before and after backups
//! - [`priority`]: the priority of a step
//! - [`snapshots`]: snapshots of file systems, which exist during backups
//! - [`journal`]: the record of all steps; [`report`]: pings of a URL

mod conditions;
mod hooks;
mod journal;
mod outcome;
mod priority;
mod report;
mod snapshots;
mod steps;

pub use journal::{Begun, EndedRun, Entry, Journal, JournalError, Subject, Trouble};
pub use outcome::{Counts, Ending, Failed, Outcome, Row, Step, worst};
pub use report::ping;
pub use snapshots::snapshot_tops;
pub use steps::{Caller, Environment, Job, backup_outcome, prune_outcome};
