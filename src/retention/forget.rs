//! Forgets snapshots, shows forgotten ones again, and holds and releases snapshots.
//!
//! Snapshots are chosen from the catalog, never from a listing. A run writes tombstones and removes no object. It needs no
//! secret key except this machine's host key.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::AtomicBool;

use super::error::ForgetError;
use super::plan::{Group, Grouping, LargeRemoval, Plan, select};
use super::policy::{Calendar, Decision, Policy, Snapshot, State};
use crate::archive::Selector;
use crate::catalog::{Catalog, Folder, Presence, SnapshotRow, View};
use crate::format::usage::Hold;
use crate::inventory::host_key;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::session::{self, Checks, LockWait, Priority, Session};
use crate::state::RepositoryState;

/// What a run works on.
pub struct Scene<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// This machine's state for it.
    pub state: &'a RepositoryState,
    /// How long to wait for another run that writes.
    pub wait_lock: LockWait,
    /// Receives messages.
    pub monitor: &'a dyn Monitor,
    /// When set, the run ends early.
    pub stop: &'a AtomicBool,
}

/// The snapshots to forget.
#[derive(Debug)]
pub enum Choice {
    /// Those that the user names.
    Named(Vec<Selector>),
    /// Those that a policy does not keep.
    Policy {
        /// The rules.
        policy: Policy,
        /// Only snapshots of these sources; all if there are none.
        sources: Vec<String>,
        /// Which snapshots form a group.
        grouping: Grouping,
        /// The current time and the time zone.
        calendar: Calendar,
    },
}

/// Whether a policy may remove more than half of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caution {
    /// A user watches the run, or asked for it.
    Watched,
    /// Such a removal is refused.
    Unattended,
}

/// The decisions about the chosen snapshots.
#[derive(Debug)]
pub struct Chosen {
    /// The decisions. If the user named snapshots, only those.
    pub plan: Plan,
    /// Sources that lose more than half of their snapshots to a policy.
    pub large: Vec<LargeRemoval>,
}

impl Chosen {
    fn new(choice: &Choice, catalog: &Catalog) -> Result<Self, ForgetError> {
        let rows = visible(catalog)?;
        match choice {
            Choice::Named(names) => Ok(Chosen { plan: named(names, &rows)?, large: Vec::new() }),
            Choice::Policy { policy, sources, grouping, calendar } => {
                let snapshots = select(rows.into_iter().map(Snapshot::from).collect(), sources)?;
                let plan = Plan::new(policy, snapshots, *grouping, calendar)?;
                let large = plan.large_removals(last_removal(catalog)?);
                Ok(Chosen { plan, large })
            }
        }
    }
}

impl Scene<'_> {
    /// Chooses snapshots as [`Scene::forget`] does, without a lock. Changes nothing.
    pub fn preview(&self, choice: &Choice) -> Result<Chosen, ForgetError> {
        self.view()?.read(|catalog| Chosen::new(choice, &catalog))
    }

    /// Forgets snapshots, after `show` has seen them.
    pub fn forget(
        &self,
        choice: &Choice,
        caution: Caution,
        show: &mut dyn FnMut(&Chosen),
    ) -> Result<Chosen, ForgetError> {
        let mut is_shown = false;
        self.run(|session, catalog| {
            let chosen = Chosen::new(choice, catalog)?;
            if !std::mem::replace(&mut is_shown, true) {
                show(&chosen);
            }
            if let (Caution::Unattended, Some(large)) = (caution, chosen.large.first()) {
                return Err(ForgetError::TooMany(large.clone()));
            }
            let (there, missing): (Vec<_>, Vec<_>) =
                chosen.plan.removed().partition(|snapshot| snapshot.state == State::There);
            let missing: Vec<_> = missing.iter().map(|snapshot| snapshot.name.id).collect();
            session.forget_missing(catalog, &missing)?;
            if !there.is_empty() {
                session.announce(catalog)?;
                there.iter().try_for_each(|one| catalog.set_missing(one.name.id, Presence::Forgotten))?;
                session.put_tombstones(catalog)?;
            }
            Ok(chosen)
        })
    }

    /// The snapshots that [`Scene::undo`] would show again.
    pub fn preview_undo(&self) -> Result<Vec<SnapshotRow>, ForgetError> {
        self.view()?.read(|catalog| self.hidden(&catalog))
    }

    /// Shows all forgotten snapshots again whose objects were not removed. Returns them.
    pub fn undo(&self) -> Result<Vec<SnapshotRow>, ForgetError> {
        self.run(|session, catalog| {
            let hidden = self.hidden(catalog)?;
            if !hidden.is_empty() {
                session.announce(catalog)?;
                hidden.iter().try_for_each(|row| catalog.set_there(row.name.id, None))?;
                // If they are forgotten again, they have their whole grace period.
                let rows = catalog.snapshots()?.into_iter().filter(|row| row.presence == Presence::Forgotten);
                catalog.drop_notes(&rows.map(|row| row.name.sequence).collect())?;
                session.put_tombstones(catalog)?;
            }
            Ok(hidden)
        })
    }

    /// Holds these snapshots, or releases them. Returns the ones that changed.
    pub fn hold(&self, names: &[Selector], held: bool) -> Result<Vec<SnapshotRow>, ForgetError> {
        self.run(|session, catalog| {
            let rows = visible(catalog)?;
            let mut changed: Vec<SnapshotRow> = Vec::new();
            for selector in names {
                let row = named_row(selector, &rows)?;
                if row.is_held != held && changed.iter().all(|other| other.name != row.name) {
                    changed.push(row.clone());
                }
            }
            if !changed.is_empty() {
                let hold = |row: &SnapshotRow| Hold { snapshot: row.name.clone(), held };
                session.put_holds(catalog, changed.iter().map(hold).collect())?;
            }
            Ok(changed)
        })
    }

    fn view(&self) -> Result<View, ForgetError> {
        Ok(Catalog::view(&self.state.catalog_path(), self.repository.id())?)
    }

    /// Runs `work` in a session; once more with the reserve if the disk is full.
    fn run<T>(
        &self,
        mut work: impl FnMut(&mut Session<'_>, &mut Catalog) -> Result<T, ForgetError>,
    ) -> Result<T, ForgetError> {
        session::with_reserve(self.repository, self.state, self.monitor, || self.run_once(&mut work))
    }

    fn run_once<T>(
        &self,
        work: &mut dyn FnMut(&mut Session<'_>, &mut Catalog) -> Result<T, ForgetError>,
    ) -> Result<T, ForgetError> {
        let Scene { repository, state, wait_lock, monitor, stop } = *self;
        let key = host_key(state).map_err(session::Error::from)?;
        let lock = session::lock(state, wait_lock, Priority::Normal, monitor, stop).map_err(session::Error::from)?;
        let checks = Checks::default();
        let (mut session, mut catalog) = Session::open(repository, &lock, key, checks, &mut 0, monitor, stop)?;
        let done = work(&mut session, &mut catalog)?;
        catalog.set_finished()?;
        catalog.commit()?;
        Ok(done)
    }

    /// The forgotten snapshots whose objects are still in the repository.
    fn hidden(&self, catalog: &Catalog) -> Result<Vec<SnapshotRow>, ForgetError> {
        let mut hidden = catalog.snapshots()?;
        hidden.retain(|row| row.presence == Presence::Forgotten);
        if !hidden.is_empty() {
            let there: HashSet<_> = self.repository.snapshots().map_err(session::Error::from)?.into_iter().collect();
            hidden.retain(|row| there.contains(&row.name));
        }
        Ok(hidden)
    }
}

/// The snapshots that users see, oldest first.
fn visible(catalog: &Catalog) -> Result<Vec<SnapshotRow>, ForgetError> {
    let mut rows = catalog.snapshots()?;
    rows.retain(|row| !row.presence.is_forgotten());
    Ok(rows)
}

/// Snapshots with numbers below this existed when snapshots were last forgotten. If none were, it is above all numbers.
fn last_removal(catalog: &Catalog) -> Result<u64, ForgetError> {
    let documents = catalog.documents()?.into_iter().filter(|document| document.folder == Folder::Forgotten);
    Ok(documents.map(|document| document.generation).max().unwrap_or(u64::MAX))
}

/// The removal of the named snapshots, by source.
fn named(names: &[Selector], rows: &[SnapshotRow]) -> Result<Plan, ForgetError> {
    let mut sources: BTreeMap<String, BTreeMap<u64, Snapshot>> = BTreeMap::new();
    for selector in names {
        let row = named_row(selector, rows)?;
        if row.is_held {
            return Err(ForgetError::Held { snapshot: row.name.id.short(), source_name: row.source.clone() });
        }
        sources.entry(row.source.clone()).or_default().insert(row.name.sequence, row.clone().into());
    }
    let groups = sources.into_iter().map(|(source, snapshots)| {
        let decision = |snapshot| Decision { snapshot, reasons: Vec::new() };
        Group { source, tags: None, decisions: snapshots.into_values().map(decision).collect() }
    });
    Ok(Plan { groups: groups.collect() })
}

/// The snapshot that the user names: the only one with this id prefix, or the newest in the repository that fits. `latest`
/// or a time must not fit snapshots of several sources: one of another source than meant would be forgotten.
fn named_row<'r>(selector: &Selector, rows: &'r [SnapshotRow]) -> Result<&'r SnapshotRow, ForgetError> {
    let of_source = || rows.iter().filter(|row| selector.source.as_ref().is_none_or(|source| *source == row.source));
    let with_id: Vec<_> = of_source().filter(|row| selector.is_id_of(&row.name)).collect();
    let fits = |row: &&SnapshotRow| row.presence == Presence::There && selector.means(&row.name);
    match with_id.as_slice() {
        [] => {
            let sources: BTreeSet<_> = of_source().filter(fits).map(|row| &row.source).collect();
            if sources.len() > 1 {
                let count = sources.len();
                let why = format!(
                    "{selector} fits snapshots of {count} sources; write SOURCE/{selector}, or the beginning of an id"
                );
                return Err(ForgetError::Ambiguous(why));
            }
            of_source().rfind(fits).ok_or_else(|| ForgetError::NoSnapshot(selector.not_found()))
        }
        [one] => Ok(one),
        several => {
            let names: Vec<_> = several.iter().map(|row| &row.name).collect();
            Err(ForgetError::Ambiguous(selector.ambiguous(&names)))
        }
    }
}

impl From<SnapshotRow> for Snapshot {
    fn from(row: SnapshotRow) -> Self {
        let state = match row.presence {
            Presence::There => State::There,
            Presence::Intended | Presence::NeverWritten => State::NeverWritten,
            Presence::NotFound | Presence::Forgotten | Presence::Swept => State::Lost,
        };
        Snapshot { name: row.name, source: row.source, tags: Some(row.labels.tags), is_held: row.is_held, state }
    }
}
