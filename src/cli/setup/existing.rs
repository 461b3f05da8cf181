//! What is there already.

use std::path::Path;

use anyhow::Result;

use super::super::exit;
use super::super::global::Global;
use super::super::repository_arg::{ResolvedRepository, Use};
use crate::config::{Config, SourceConfig, TargetConfig};
use crate::failure::FailureKind;
use crate::format::RepositoryId;
use crate::job::{Ending, Journal, Step, Subject};
use crate::state::RepositoryState;

/// The repository of a target, if this machine writes to it. `None` if there is none.
pub(super) fn repository_of(target: &TargetConfig, state: &Path, global: &Global) -> Result<Option<RepositoryId>> {
    let repository = match ResolvedRepository::of(target, global).open(Use::Command, global, Vec::new()) {
        Ok(repository) => repository,
        Err(error) if exit::kind(&error) == FailureKind::NoRepository => return Ok(None),
        Err(error) => return Err(error),
    };
    let (id, location) = (repository.id(), &target.location);
    match RepositoryState::new(state, id).host_key()? {
        Some(_) => Ok(Some(id)),
        None => anyhow::bail!(
            "there is a repository at {location} that this machine does not write to; choose another place, or take it over with \
             `brackfs adopt`"
        ),
    }
}

/// The sources that lack a backup on one of their targets. `new`: the targets whose repositories are to be made.
pub(super) fn without_backup(config: &Config, new: &[TargetConfig], state: &Path) -> Vec<String> {
    // Without a record, all are made.
    let journal = Journal::view(state).ok().flatten();
    let is_made = |source: &str, target: &str| {
        if new.iter().any(|new| new.name == target) {
            return false;
        }
        let of = Subject { step: Step::Backup, source: Some(source), target: Some(target) };
        journal.as_ref().is_some_and(|journal| matches!(journal.last(of, &Ending::COMPLETED, i64::MAX), Ok(Some(_))))
    };
    let lacks = |source: &&SourceConfig| !source.to.iter().all(|target| is_made(&source.name, target));
    config.sources.iter().filter(lacks).map(|source| source.name.clone()).collect()
}
