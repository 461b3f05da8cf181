//! How a run is reported, and how often targets are checked: `[report]` and `[check]`.

use std::path::PathBuf;
use std::time::Duration;

use super::absolute;
use super::secret::{Secret, secret};
use super::settings::Settings;
use crate::quantity::{parse_duration, parse_size};

/// Where a run is reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The file with metrics for the textfile collector of Prometheus.
    pub metrics: Option<PathBuf>,
    /// The URL that is told about the beginning and the end.
    pub ping: Option<Ping>,
}

/// A URL that is told about the beginning and the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// The URL. Whoever has it can send pings, so it is a secret.
    pub url: Secret,
    /// Whether the summary of the run is sent.
    pub send_summary: bool,
}

/// How often data of a target is read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The time from one check to the next.
    pub every: Duration,
    /// The bytes that each reads.
    pub read: u64,
}

impl Report {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        let metrics = settings.parsed("metrics", absolute);
        let ping = settings.table("ping", |settings| {
            let url = secret(settings, "url")?;
            Some(Ping { url, send_summary: settings.flag("send-summary").unwrap_or(false) })
        });
        Report { metrics, ping: ping.flatten() }
    }
}

impl Check {
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        let standard = Check::default();
        Check {
            every: settings.quantity("every", parse_duration).unwrap_or(standard.every),
            read: settings.quantity("read-data", parse_size).unwrap_or(standard.read),
        }
    }
}

impl Default for Check {
    fn default() -> Self {
        Check { every: Duration::from_secs(7 * 24 * 60 * 60), read: 1 << 30 }
    }
}
