//! A target: its last prune and check, its size and the certificates of its recipients.

use std::collections::BTreeMap;

use super::scope::{Scope, seconds};
use crate::catalog::{Catalog, Error, Presence};
use crate::crypt::Certificate;
use crate::format::RepositoryId;
use crate::job::{Ending, Entry, Journal, JournalError, Step, Subject};
use crate::state::RepositoryState;

/// A target.
#[derive(Debug)]
pub struct TargetOverview {
    /// Its name.
    pub name: String,
    /// The last prunes.
    pub prune: Tries,
    /// The last checks.
    pub check: Tries,
    /// What its catalog has; `None` if there is none on this machine.
    pub known: Option<Known>,
    /// Why its catalog could not be read.
    pub problem: Option<String>,
}

/// The last time that something was tried, and that it was completed.
#[derive(Debug, Default)]
pub struct Tries {
    /// When it was tried last. Skipped steps do not count.
    pub tried: Option<Entry>,
    /// When it was completed last.
    pub completed: Option<Entry>,
}

/// What a catalog has.
#[derive(Debug)]
pub struct Known {
    /// The size of all packs in bytes.
    pub stored_bytes: u64,
    /// The snapshots of each source.
    pub sources: BTreeMap<String, KeptSnapshots>,
    /// The recipients of the repository.
    pub recipients: Vec<Recipient>,
}

/// The snapshots of a source that are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptSnapshots {
    /// Their number.
    pub count: u64,
    /// The bytes that their backups added to the repository.
    pub stored_bytes: u64,
}

/// A recipient of a repository.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// The fingerprint of its certificate.
    pub fingerprint: String,
    /// Its user ID.
    pub user_id: Option<String>,
    /// When its certificate expires, in seconds since 1970.
    pub expires: Option<i64>,
    /// Why nothing can be encrypted to it.
    pub problem: Option<String>,
}

impl Tries {
    pub(super) fn read(journal: Option<&Journal>, of: Subject<'_>, now: i64) -> Result<Self, JournalError> {
        let Some(journal) = journal else { return Ok(Tries::default()) };
        let tried = journal.last(of, &Ending::TRIED, now)?;
        let completed = match &tried {
            Some(last) if last.ending == Ending::Failed => journal.last(of, &Ending::COMPLETED, now)?,
            last => last.clone(),
        };
        Ok(Tries { tried, completed })
    }

    /// The last try, if it failed.
    pub fn failure(&self) -> Option<&Entry> {
        self.tried.as_ref().filter(|tried| tried.ending == Ending::Failed)
    }
}

impl TargetOverview {
    pub(super) fn read(scope: &Scope<'_>, name: &str, now: i64) -> Result<Self, JournalError> {
        let of = |step| Subject { step, source: None, target: Some(name) };
        let repository = scope.journal.map(|journal| journal.repository(name)).transpose()?.flatten();
        let (known, problem) = match repository.map(|id| Known::read(&RepositoryState::new(scope.state, id), id)) {
            Some(Ok(known)) => (Some(known), None),
            None | Some(Err(Error::Missing { .. })) => (None, None),
            Some(Err(error)) => (None, Some(error.to_string())),
        };
        Ok(TargetOverview {
            name: name.to_owned(),
            prune: Tries::read(scope.journal, of(Step::Prune), now)?,
            check: Tries::read(scope.journal, of(Step::Check), now)?,
            known,
            problem,
        })
    }
}

impl Known {
    /// The number of all snapshots.
    pub fn snapshots(&self) -> u64 {
        self.sources.values().map(|kept| kept.count).sum()
    }

    fn read(state: &RepositoryState, id: RepositoryId) -> Result<Self, Error> {
        Catalog::view(&state.catalog_path(), id)?.read(|catalog| Known::of(&catalog))
    }

    fn of(catalog: &Catalog) -> Result<Self, Error> {
        let mut sources = BTreeMap::<_, KeptSnapshots>::new();
        for row in catalog.snapshots()?.into_iter().filter(|row| row.presence == Presence::There) {
            let kept = sources.entry(row.source).or_default();
            kept.count += 1;
            kept.stored_bytes = kept.stored_bytes.saturating_add(row.stored_bytes);
        }
        let recipients = catalog.trust().recipients.iter().map(Recipient::of).collect();
        Ok(Known { stored_bytes: catalog.stored_bytes()?, sources, recipients })
    }
}

impl Recipient {
    fn of(certificate: &Certificate) -> Self {
        Recipient {
            fingerprint: certificate.fingerprint().to_string(),
            user_id: certificate.user_id(),
            expires: certificate.expiry().map(seconds),
            problem: certificate.check_recipient().err().map(|problem| problem.to_string()),
        }
    }
}
