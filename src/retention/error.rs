//! Errors of retention policies.

use crate::failure::{Failure, FailureKind};

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
        FailureKind::Failed
    }
}
