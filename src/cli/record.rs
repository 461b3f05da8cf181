//! The record of steps that are made by hand, and the metrics.

use std::path::Path;
use std::time::{Duration, Instant};

use super::exit;
use super::global::Global;
use crate::config::Config;
use crate::format::RepositoryId;
use crate::job::{Counts, Journal, Outcome, Row, Step};
use crate::monitor::Monitor;
use crate::overview::{self, Scope};

/// A step made by hand on a configured target.
pub(super) struct ByHand<'a> {
    pub(super) step: Step,
    /// The source of a backup.
    pub(super) source: Option<&'a str>,
    /// The name of the target; `None` if the repository is not a configured target.
    pub(super) target: Option<&'a str>,
    pub(super) repository: Option<RepositoryId>,
    pub(super) outcome: Outcome,
    pub(super) counts: Option<Counts>,
    pub(super) begun: Instant,
}

impl ByHand<'_> {
    /// Adds the step to the record, and writes the metrics. Only steps of configured targets and sources are recorded. If this
    /// fails, the step is done nevertheless, so it is only a note.
    pub(super) fn record(self, global: &Global, monitor: &dyn Monitor) {
        if let Err(error) = self.add(global, monitor) {
            monitor.note(&format!("this is not recorded: {}", exit::text(&error)));
        }
    }

    fn add(self, global: &Global, monitor: &dyn Monitor) -> anyhow::Result<()> {
        let Some(target) = self.target else { return Ok(()) };
        let Some(config) = global.config()? else { return Ok(()) };
        if let Some(name) = self.source
            && !config.sources.iter().any(|source| source.name == name && source.to.iter().any(|to| to == target))
        {
            return Ok(());
        }
        let state = global.state()?;
        let journal = Journal::open(&state)?;
        journal.add(&Row {
            step: self.step,
            source: self.source.map(str::to_owned),
            target: Some(target.to_owned()),
            repository: self.repository,
            outcome: self.outcome,
            counts: self.counts,
            duration: self.begun.elapsed(),
        })?;
        write_metrics(&config, &state, &journal, monitor);
        Ok(())
    }
}

/// Writes the metrics of all sources and targets to the configured file. A failure is only a note.
pub(super) fn write_metrics(config: &Config, state: &Path, journal: &Journal, monitor: &dyn Monitor) {
    let Some(path) = &config.report.metrics else { return };
    let sources = config.sources.iter().collect();
    let scope = Scope { config, sources, state, journal: Some(journal), max_age: None, history: Duration::ZERO };
    let overview = scope.read().map_err(anyhow::Error::from);
    if let Err(error) = overview.and_then(|overview| Ok(overview::write_metrics(path, &overview)?)) {
        monitor.note(&format!("cannot write metrics to {}: {}", path.display(), exit::text(&error)));
    }
}
