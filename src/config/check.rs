//! Regular checks of targets: `[check]`.

use std::time::Duration;

use super::settings::{Settings, Used};
use crate::quantity::{parse_duration, parse_percent};

/// How often targets are checked, and how thoroughly.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckConfig {
    /// The time from one check of a target to the next.
    pub every: Duration,
    /// The part of the packs that each check reads, from 0 to 1.
    pub read_data: f64,
    /// The settings of the file.
    pub used: Vec<Used>,
}

impl Default for CheckConfig {
    fn default() -> Self {
        CheckConfig { every: Duration::from_secs(7 * 24 * 60 * 60), read_data: 0.02, used: Vec::new() }
    }
}

impl CheckConfig {
    pub(super) fn read(mut settings: Settings<'_>) -> Self {
        let standard = CheckConfig::default();
        CheckConfig {
            every: settings.quantity("every", parse_duration).unwrap_or(standard.every),
            read_data: settings.parsed("read-data", |text| parse_percent(text, 100)).unwrap_or(standard.read_data),
            used: settings.end(),
        }
    }
}
