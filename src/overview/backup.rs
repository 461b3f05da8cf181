//! The backups of a source on a target, and whether they are fresh.

use std::time::Duration;

use super::scope::Scope;
use super::target::{KeptSnapshots, Known, Tries};
use crate::config::SourceConfig;
use crate::job::{Ending, Entry, JournalError, Step, Subject};

/// The backups of a source on a target.
#[derive(Debug)]
pub struct Backups {
    /// The name of the source.
    pub source: String,
    /// The name of the target.
    pub target: String,
    /// The age up to which a backup is fresh.
    pub max_age: Duration,
    /// The last backups.
    pub tries: Tries,
    /// Why the backup was skipped since the last one that was tried.
    pub skipped: Option<Entry>,
    /// The last removals of snapshots by the source's policy, if it has one.
    pub forget: Tries,
    /// All backups within the history, oldest first.
    pub history: Vec<Entry>,
    /// The kept snapshots, if they are known.
    pub snapshots: Option<KeptSnapshots>,
}

/// The state of the backups of a source on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupState {
    /// The last one is complete and fresh.
    Ok,
    /// The last one is fresh, but had problems.
    Problems,
    /// The last one is fresh; since then, backups were skipped.
    Skipped,
    /// The last completed one is too old.
    Late,
    /// The last one failed.
    Failed,
    /// None was ever completed.
    Never,
}

impl BackupState {
    /// One word for it. States that need attention are in capital letters.
    pub fn name(self) -> &'static str {
        match self {
            BackupState::Ok => "ok",
            BackupState::Problems => "problems",
            BackupState::Skipped => "skipped",
            BackupState::Late => "LATE",
            BackupState::Failed => "FAILED",
            BackupState::Never => "never",
        }
    }
}

impl Backups {
    pub(super) fn read(
        scope: &Scope<'_>,
        source: &SourceConfig,
        target: &str,
        known: Option<&Known>,
        now: i64,
    ) -> Result<Self, JournalError> {
        let of = |step| Subject { step, source: Some(&source.name), target: Some(target) };
        let from = now.saturating_sub(i64::try_from(scope.history.as_secs()).unwrap_or(i64::MAX));
        let tries = Tries::read(scope.journal, of(Step::Backup), now)?;
        let (mut skipped, mut history) = (None, Vec::new());
        if let Some(journal) = scope.journal {
            let last = journal.last(of(Step::Backup), &Ending::ALL, now)?;
            skipped = last.filter(|last| last.ending == Ending::Skipped);
            history = journal.between(of(Step::Backup), from, now)?;
        }
        Ok(Backups {
            source: source.name.clone(),
            target: target.to_owned(),
            max_age: scope.max_age.unwrap_or(source.max_age),
            tries,
            skipped,
            // Without a policy, no run tries again, so an old failure says nothing.
            forget: match source.keep {
                Some(_) => Tries::read(scope.journal, of(Step::Forget), now)?,
                None => Tries::default(),
            },
            history,
            snapshots: known.map(|known| known.sources.get(&source.name).copied().unwrap_or_default()),
        })
    }

    /// The time since the last completed backup.
    pub fn age(&self, now: i64) -> Option<Duration> {
        let completed = self.tries.completed.as_ref()?;
        Some(Duration::from_secs(now.saturating_sub(completed.ended).unsigned_abs()))
    }

    /// Its state at this time.
    pub fn state(&self, now: i64) -> BackupState {
        match (self.tries.failure(), self.age(now)) {
            (Some(_), _) => BackupState::Failed,
            (None, None) => BackupState::Never,
            (None, Some(age)) if age > self.max_age => BackupState::Late,
            _ if self.skipped.is_some() => BackupState::Skipped,
            _ if self.tries.completed.as_ref().is_some_and(|it| it.ending == Ending::Problems) => BackupState::Problems,
            _ => BackupState::Ok,
        }
    }
}
