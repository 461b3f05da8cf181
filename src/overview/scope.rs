//! What an overview is of.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::config::{Config, SourceConfig};
use crate::job::Journal;

/// What an overview is of.
#[derive(Debug)]
pub struct Scope<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The sources.
    pub sources: Vec<&'a SourceConfig>,
    /// This machine's state directory.
    pub state: &'a Path,
    /// The record of steps; `None` if nothing was run yet.
    pub journal: Option<&'a Journal>,
    /// The age up to which backups are fresh, instead of that of each source.
    pub max_age: Option<Duration>,
    /// How far back single backups are listed.
    pub history: Duration,
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
