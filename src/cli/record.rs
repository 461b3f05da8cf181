//! The record of steps that are made by hand, and the metrics.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::exit;
use super::global::Global;
use crate::config::Config;
use crate::failure::FailureKind;
use crate::format::RepositoryId;
use crate::job::{Begun, Counts, Failed, Journal, Outcome, Row, Step, Subject};
use crate::monitor::Monitor;
use crate::overview::{self, Scope};

/// A step made by hand on a configured target. It is in the record from its beginning on.
pub(super) struct ByHand {
    step: Step,
    source: Option<String>,
    target: String,
    config: Config,
    state: PathBuf,
    journal: Journal,
    begun: Begun,
    since: Instant,
}

/// Notes that a step is not in the record. The step is made nevertheless.
fn unrecorded(error: &anyhow::Error, monitor: &dyn Monitor) {
    monitor.note(&format!("this is not recorded: {}", exit::text(error)));
}

impl ByHand {
    /// Begins a step on the target with this name. `None` if it is not recorded: only steps of configured targets and sources are.
    pub(super) fn begin(
        step: Step,
        source: Option<&str>,
        target: Option<&str>,
        global: &Global,
        monitor: &dyn Monitor,
    ) -> Option<Self> {
        ByHand::add(step, source, target?, global).unwrap_or_else(|error| {
            unrecorded(&error, monitor);
            None
        })
    }

    fn add(step: Step, source: Option<&str>, target: &str, global: &Global) -> anyhow::Result<Option<Self>> {
        let Some(config) = global.config()? else { return Ok(None) };
        if let Some(name) = source
            && !config.sources.iter().any(|source| source.name == name && source.to.iter().any(|to| to == target))
        {
            return Ok(None);
        }
        let state = global.state()?;
        let journal = Journal::open(&state)?;
        let begun = journal.begin(&[Subject { step, source, target: Some(target) }])?;
        let (source, target, since) = (source.map(str::to_owned), target.to_owned(), Instant::now());
        let by_hand = |begun| ByHand { step, source, target, config, state, journal, begun, since };
        Ok(begun.into_iter().next().map(by_hand))
    }

    /// Records the end of the step, and writes the metrics.
    pub(super) fn end(
        self,
        repository: Option<RepositoryId>,
        outcome: Outcome,
        counts: Option<Counts>,
        monitor: &dyn Monitor,
    ) {
        let ByHand { step, source, target, config, state, journal, begun, since } = self;
        let row = Row { step, source, target: Some(target), repository, outcome, counts, duration: since.elapsed() };
        match journal.end(begun, &row) {
            Ok(()) => write_metrics(&config, &state, &journal, monitor),
            Err(error) => unrecorded(&error.into(), monitor),
        }
    }

    /// Records that the step failed. If it could not begin, nothing is recorded: that says nothing about the backups.
    pub(super) fn fail(self, repository: Option<RepositoryId>, error: &anyhow::Error, monitor: &dyn Monitor) {
        match exit::kind(error) {
            FailureKind::Usage | FailureKind::NoRepository | FailureKind::Locked | FailureKind::Key => {
                if let Err(error) = self.journal.cancel(self.begun) {
                    unrecorded(&error.into(), monitor);
                }
            }
            kind => {
                let failed = Failed { kind, message: exit::text(error) };
                self.end(repository, Outcome::Failed(failed), None, monitor);
            }
        }
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
