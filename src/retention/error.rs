//! Errors of retention policies.

use super::plan::LargeRemoval;
use crate::failure::{Failure, FailureKind};
use crate::{catalog, session};

/// Why a policy is refused. No snapshot is removed then.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The policy has no rule, or only rules that keep 0 snapshots.
    #[error("the policy keeps no snapshots; use at least one --keep option, with a number above 0")]
    Empty,
    /// The repository has no snapshot of this source.
    #[error("no snapshot of a source called {0}")]
    NoSource(String),
    /// A rule keeps snapshots with this tag, but no snapshot has it.
    #[error("no snapshot has the tag {0}; `brackfs snapshots` lists the tags")]
    NoTag(String),
    /// The policy depends on tags, and this catalog does not have them.
    #[error(
        "cannot apply a policy to tags: those of {snapshots} snapshots of {source_name} are unknown on this machine"
    )]
    UnknownTags {
        /// The source.
        source_name: String,
        /// The number of its snapshots whose tags are unknown.
        snapshots: usize,
    },
    /// No rule keeps a snapshot of this group.
    #[error("the policy would keep no snapshots of {0}; add --keep-last, or leave this source out")]
    NothingLeft(String),
}

impl Failure for Error {
    fn kind(&self) -> FailureKind {
        match self {
            Error::Empty => FailureKind::Usage,
            Error::NoSource(_) | Error::NoTag(_) | Error::UnknownTags { .. } | Error::NothingLeft(_) => {
                FailureKind::Failed
            }
        }
    }
}

/// Snapshots could not be forgotten, shown again, held or released. Nothing was changed, except after errors of the
/// repository or the catalog.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The policy is refused.
    #[error(transparent)]
    Policy(#[from] Error),
    /// The run could not begin, or failed.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    /// No snapshot fits a name; the message.
    #[error("{0}")]
    NoSnapshot(String),
    /// A name fits several snapshots; the message.
    #[error("{0}")]
    Ambiguous(String),
    /// A named snapshot is held.
    #[error(
        "cannot forget the snapshot {snapshot} of {source_name}: it is held; run `brackfs release {snapshot}` first"
    )]
    Held {
        /// The short id of the snapshot.
        snapshot: String,
        /// The name of its source.
        source_name: String,
    },
    /// A policy would remove more than half of a source, and no user watches.
    #[error("the policy would forget {0}; check it with --dry-run, then add --force")]
    TooMany(LargeRemoval),
}

impl Failure for ForgetError {
    fn kind(&self) -> FailureKind {
        match self {
            ForgetError::Policy(error) => error.kind(),
            ForgetError::Session(error) => error.kind(),
            ForgetError::Catalog(error) => error.kind(),
            _ => FailureKind::Failed,
        }
    }
}
