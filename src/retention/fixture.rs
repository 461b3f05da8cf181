//! Snapshots for tests.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::policy::{Calendar, Snapshot, State};
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::{self, SnapshotName};

/// A snapshot with this number and time.
pub(super) fn snapshot(number: u64, time: &str) -> Snapshot {
    let time = name::time(time.parse::<Timestamp>().unwrap().as_second());
    Snapshot {
        name: SnapshotName { source: SourceId::random(), sequence: number, time, id: SnapshotId::random() },
        source: "home".into(),
        tags: Some(vec![]),
        is_held: false,
        state: State::There,
    }
}

/// The first day of 2028 in Berlin.
pub(super) fn calendar() -> Calendar {
    Calendar { now: "2028-01-01T12:00Z".parse().unwrap(), zone: TimeZone::get("Europe/Berlin").unwrap() }
}
