//! The state of all configured backups, and the verdict on it.

use std::time::SystemTime;

use super::backup::{BackupState, Backups};
use super::scope::{Scope, seconds};
use super::target::{TargetOverview, Tries};
use crate::job::{EndedRun, Journal, JournalError};

/// The state of all configured backups.
#[derive(Debug)]
pub struct Overview {
    /// The time that it is of, in seconds since 1970.
    pub now: i64,
    /// Each source on each of its targets.
    pub backups: Vec<Backups>,
    /// The targets of the sources.
    pub targets: Vec<TargetOverview>,
    /// The last run.
    pub last_run: Option<EndedRun>,
}

/// The verdict on all backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All are fresh.
    Fresh,
    /// The last try of something failed.
    Failed,
    /// A backup is too old.
    Late,
    /// A backup was never completed.
    Never,
}

impl Scope<'_> {
    /// Reads the overview.
    pub fn read(&self) -> Result<Overview, JournalError> {
        let now = seconds(SystemTime::now());
        let used = |name: &str| self.sources.iter().any(|source| source.to.iter().any(|to| to == name));
        let targets = self.config.targets.iter().filter(|target| used(&target.name));
        let targets =
            targets.map(|target| TargetOverview::read(self, &target.name, now)).collect::<Result<Vec<_>, _>>()?;
        let mut backups = Vec::new();
        for source in &self.sources {
            for name in &source.to {
                let known = targets.iter().find(|target| target.name == *name).and_then(|target| target.known.as_ref());
                backups.push(Backups::read(self, source, name, known, now)?);
            }
        }
        let last_run = self.journal.map(Journal::last_run).transpose()?.flatten();
        Ok(Overview { now, backups, targets, last_run })
    }
}

impl Overview {
    /// The verdict: a failure is worse than a backup that is too old, and that is worse than one that was never made.
    pub fn verdict(&self) -> Verdict {
        let has = |state| self.backups.iter().any(|backups| backups.state(self.now) == state);
        let is_failed = |tries: &Tries| tries.failure().is_some();
        let of_targets = self.targets.iter().flat_map(|target| [&target.prune, &target.check]);
        if has(BackupState::Failed) || self.backups.iter().map(|it| &it.forget).chain(of_targets).any(is_failed) {
            Verdict::Failed
        } else if has(BackupState::Late) {
            Verdict::Late
        } else if has(BackupState::Never) {
            Verdict::Never
        } else {
            Verdict::Fresh
        }
    }
}
