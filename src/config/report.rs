//! Where a run is reported: `[report]`.

use std::path::PathBuf;

use super::secret::secret;
use super::settings::{Settings, Used, absolute};
use crate::secret::Secret;

/// Where a run is reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The file with metrics for the textfile collector of Prometheus.
    pub metrics: Option<PathBuf>,
    /// The URL that is told about the beginning and the end.
    pub ping: Option<Ping>,
    /// The settings of the file.
    pub used: Vec<Used>,
}

/// A URL that is told about the beginning and the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// The URL. Whoever has it can send pings, so it is a secret.
    pub url: Secret,
    /// Whether the end of a run is sent with a line for each step.
    pub send_log: bool,
}

impl Report {
    pub(super) fn read(mut settings: Settings<'_>) -> Self {
        let metrics = settings.parsed("metrics", absolute);
        let ping = settings.table("ping", |settings| {
            let url = secret(settings, "url")?;
            Some(Ping { url, send_log: settings.flag("send-log").unwrap_or(false) })
        });
        Report { metrics, ping: ping.flatten(), used: settings.end() }
    }
}
