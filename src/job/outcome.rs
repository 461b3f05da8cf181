//! What came of the steps of a run.

use std::fmt;
use std::time::Duration;

use crate::backup::Summary;
use crate::failure::{Failure, FailureKind, worded};
use crate::format::RepositoryId;

/// A kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A command of the configuration.
    Hook,
    /// A backup of a source to a target.
    Backup,
    /// The removal of snapshots of a source from a target, by its policy.
    Forget,
    /// The removal of data that no snapshot of a target needs.
    Prune,
    /// The verification of a target.
    Check,
}

impl Step {
    /// Its name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Step::Hook => "hook",
            Step::Backup => "backup",
            Step::Forget => "forget",
            Step::Prune => "prune",
            Step::Check => "check",
        }
    }
}

/// A step that was made, skipped or failed.
#[derive(Debug, Clone)]
pub struct Row {
    /// What it was.
    pub step: Step,
    /// The source, if it was of one.
    pub source: Option<String>,
    /// The target, if it was on one.
    pub target: Option<String>,
    /// The repository of the target, if it was opened.
    pub repository: Option<RepositoryId>,
    /// What came of it.
    pub outcome: Outcome,
    /// What a backup found and stored.
    pub counts: Option<Counts>,
    /// How long it took.
    pub duration: Duration,
}

/// What a backup found and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The files of the source.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// The bytes that were stored.
    pub stored_bytes: u64,
    /// What could not be backed up completely.
    pub problems: u64,
}

impl From<&Summary> for Counts {
    fn from(summary: &Summary) -> Self {
        let Summary { files, bytes, data_bytes, tree_bytes, problems, .. } = *summary;
        Counts { files, bytes, stored_bytes: data_bytes + tree_bytes, problems }
    }
}

/// What came of a step.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is done, as the text says.
    Done(String),
    /// It is done, but with problems, which were reported.
    Partial(String),
    /// It was not wanted now.
    Skipped(String),
    /// It was not begun, because the run was interrupted or its target is away. Whether it was due is not known.
    NotBegun(Failed),
    /// It failed, or could not begin because of a failure.
    Failed(Failed),
}

/// How a step ended, as the journal keeps it. A later one tells more about what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It was not wanted.
    Skipped,
    /// It failed.
    Failed,
    /// It is done, but with problems.
    Problems,
    /// It is done.
    Done,
}

impl Ending {
    /// All of them.
    pub const ALL: [Ending; 4] = [Ending::Skipped, Ending::Failed, Ending::Problems, Ending::Done];
    /// Those of steps that were made.
    pub const TRIED: [Ending; 3] = [Ending::Failed, Ending::Problems, Ending::Done];
    /// Those of steps that are done.
    pub const COMPLETED: [Ending; 2] = [Ending::Problems, Ending::Done];

    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::Problems => "problems",
            Ending::Skipped => "skipped",
            Ending::Failed => "failed",
        }
    }

    /// The ending of this name. An unknown name is a failure.
    pub(super) fn named(name: &str) -> Self {
        Ending::ALL.into_iter().find(|ending| ending.name() == name).unwrap_or(Ending::Failed)
    }
}

/// Why a step failed.
#[derive(Debug, Clone)]
pub struct Failed {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The reason.
    pub message: String,
}

impl Failed {
    /// A failure for this reason.
    pub fn new(message: impl Into<String>) -> Self {
        Failed { kind: FailureKind::Failed, message: message.into() }
    }

    /// Damage that was found. The step fails, so that it stands out, but the work is done.
    pub fn damaged(message: impl Into<String>) -> Self {
        Failed { kind: FailureKind::Partial, message: message.into() }
    }
}

/// The message has those causes that the error's own message does not contain.
impl<E: Failure + 'static> From<E> for Failed {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            let text = next.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = next.source();
        }
        Failed { kind: error.kind(), message: worded(&message).into_owned() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(text) | Outcome::Partial(text) | Outcome::Skipped(text) => f.write_str(text),
            Outcome::NotBegun(failed) | Outcome::Failed(failed) => f.write_str(&failed.message),
        }
    }
}

impl Outcome {
    /// How it ended.
    pub fn ending(&self) -> Ending {
        match self {
            Outcome::Done(_) => Ending::Done,
            Outcome::Partial(_) => Ending::Problems,
            Outcome::Skipped(_) | Outcome::NotBegun(_) => Ending::Skipped,
            Outcome::Failed(_) => Ending::Failed,
        }
    }

    /// The kind of its failure, or of the one that kept it from beginning; `None` if all is well.
    pub fn failure(&self) -> Option<FailureKind> {
        match self {
            Outcome::Done(_) | Outcome::Skipped(_) => None,
            Outcome::Partial(_) => Some(FailureKind::Partial),
            Outcome::NotBegun(failed) | Outcome::Failed(failed) => Some(failed.kind),
        }
    }
}

/// The worst of several failures. Units and cron take a lock for success, so it must not hide another failure.
pub fn worst(kinds: impl IntoIterator<Item = FailureKind>) -> Option<FailureKind> {
    kinds.into_iter().max_by_key(|kind| match kind {
        FailureKind::Locked => 1,
        FailureKind::Partial => 2,
        FailureKind::Key => 3,
        FailureKind::NoRepository => 4,
        FailureKind::Failed | FailureKind::Full | FailureKind::Unavailable => 5,
        FailureKind::Usage => 6,
        FailureKind::Interrupted => 7,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup;

    #[test]
    fn the_worst_failure_decides() {
        use FailureKind::{Failed, Interrupted, Key, Locked, NoRepository, Partial, Unavailable, Usage};
        let order = [Locked, Partial, Key, NoRepository, Failed, Usage, Interrupted];
        for pair in order.windows(2) {
            assert_eq!(worst([pair[0], pair[1]]), Some(pair[1]));
            assert_eq!(worst([pair[1], pair[0]]), Some(pair[1]));
        }
        assert_eq!(worst([Unavailable, Partial]), Some(Unavailable));
        assert_eq!(worst([]), None);
    }

    #[test]
    fn a_failure_has_its_kind_and_each_cause_once() {
        let error = backup::Error::Interrupted;
        let failed = super::Failed::from(error);
        assert_eq!(failed.kind, FailureKind::Interrupted);
        assert_eq!(failed.message.matches("interrupted").count(), 1, "{}", failed.message);
        let source = std::io::Error::other("no such thing");
        let failed = super::Failed::from(backup::Error::NoSource { path: "/x".into(), source });
        assert_eq!(failed.message, "cannot back up /x: no such thing; check the path");
    }
}
