//! Which snapshots stay, and which are forgotten.
//!
//! - [`mod@forget`]: forgets snapshots, shows them again, holds and releases them
//!
//! Policies use no files, network or clock:
//!
//! - [`Policy`]: rules, and the decision about each snapshot of a group
//! - [`Plan`]: the decisions about all groups of a repository
//! - [`Age`]: a span of years, months, weeks, days and hours, such as `1y2m3d4h`
//! - [`Period`]: hours, days, weeks, months, quarters and years of a time zone
//!
//! ## Order
//!
//! Snapshots are ordered by their numbers, never by their times: a clock can be wrong. The *newest* snapshot of a group is
//! the one with the highest number, the *oldest* the one with the lowest. Times only determine the period that a snapshot
//! belongs to and how old it is. Periods, too, are ordered by the newest snapshot in them.
//!
//! ## Rules
//!
//! A snapshot stays if at least one rule keeps it. Each rule looks at all counted snapshots, regardless of other rules.
//!
//! - *last N*: the N newest snapshots.
//! - *hourly, daily, weekly, monthly, quarterly, yearly N*: one snapshot of each of the N newest periods that have any. It is
//!   the one with the latest time; of equal times, the newest.
//! - *within T*: the snapshots made less than T before the newest. Months and days are subtracted from the local time of the
//!   newest snapshot; 31 March less a month is the last day of February.
//! - *hourly … yearly within T*: one snapshot of each period, as above, if it was made less than T before the newest.
//! - *tag*: the snapshots that have the tag.
//!
//! As long as fewer than N periods have snapshots, a rule with N periods also keeps the oldest snapshot. As long as the
//! oldest snapshot is within T, a rule with periods within T keeps it too. Otherwise `yearly 5` would keep only the last
//! snapshot of a year, and the first year of backups would shrink to days.
//!
//! Periods are those of the time zone: days from midnight, weeks from Monday (ISO 8601), quarters from January, April, July
//! and October. When clocks go back, an hour that occurs twice is two hours.
//!
//! ## Snapshots that are not counted
//!
//! Rules neither count nor remove:
//!
//! - snapshots dated more than [`FUTURE_TOLERANCE`] after now, so that a wrong clock does not displace others;
//! - snapshots whose names have an impossible date;
//! - lost snapshots, which may reappear, and snapshots that were never written. Counted, they would displace readable ones.
//!
//! They can only be forgotten by name.
//!
//! ## Safeguards
//!
//! - Held snapshots are counted, but not removed. So a hold affects no other snapshot, and neither does its release.
//! - The newest counted snapshot of a group always stays.
//! - A policy whose rules keep nothing in a group is refused, even if a hold keeps a snapshot there.
//! - So are empty policies, tags that no snapshot has, and policies about tags if some tags are unknown.
//! - [`Plan::large_removals`] names sources that would lose more than half of their snapshots.

mod age;
mod error;
#[cfg(test)]
mod fixture;
mod forget;
mod period;
mod plan;
mod policy;

pub use age::Age;
pub use error::{Error, ForgetError};
pub use forget::{Caution, Choice, Chosen, Scene};
pub use period::Period;
pub use plan::{Group, Grouping, LargeRemoval, Plan, select};
pub use policy::{Calendar, Count, Decision, FUTURE_TOLERANCE, Policy, Reason, Rule, Snapshot, State};
