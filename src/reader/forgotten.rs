//! Forgotten snapshots: those that tombstones name. Readers hide them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::crypt::Opener;
use crate::failure::Failure;
use crate::format::forgotten::Forgotten;
use crate::format::id::{ObjectId, SnapshotId, SourceId};
use crate::format::name::{self, SnapshotName};
use crate::repository::{self, Access, Repository};

/// The tombstones read so far. Each document is read once.
#[derive(Default)]
pub(super) struct Tombstones {
    state: Mutex<TombstoneState>,
}

#[derive(Default)]
struct TombstoneState {
    documents: HashMap<ObjectId, Tombstone>,
    /// Documents that do not open or verify.
    ignored: HashSet<ObjectId>,
    /// The snapshots in all documents that no other one replaces.
    hidden: HashSet<SnapshotKey>,
}

struct Tombstone {
    generation: u64,
    /// Empty once another document replaces this one.
    snapshots: Vec<SnapshotKey>,
    replaces: Vec<ObjectId>,
}

/// A snapshot's name in little memory. The number determines the time.
type SnapshotKey = (SourceId, u64, SnapshotId);

fn key(name: &SnapshotName) -> SnapshotKey {
    (name.source, name.sequence, name.id)
}

impl Tombstones {
    /// Lists the documents and opens new ones. Skips those that do not open or verify.
    ///
    /// A document that is no longer listed counts until another one replaces it: an incomplete listing must not bring
    /// snapshots back.
    pub(super) fn refresh(&self, repository: &Repository, access: &Access) -> Result<(), repository::Error> {
        let mut listed = HashSet::new();
        repository.target().visit(name::FORGOTTEN, &mut |object| listed.extend(name::parse_forgotten(&object.name)))?;
        let unknown: Vec<_> = {
            let mut state = self.state();
            state.ignored.retain(|id| listed.contains(id));
            let is_new = |id: &&ObjectId| !state.documents.contains_key(*id) && !state.ignored.contains(*id);
            listed.iter().filter(is_new).copied().collect()
        };
        // Not locked: reading may wait for the target.
        let (mut found, mut ignored) = (Vec::new(), Vec::new());
        for id in &unknown {
            match access.forgotten(repository, *id) {
                Ok(forgotten) => found.push((*id, forgotten)),
                Err(repository::Error::Target(error)) if error.is_temporary() => return Err(error.into()),
                // Such as a document that was just removed.
                Err(repository::Error::Target(_)) => {}
                Err(error) if error.is_key_problem() && access.opener().is_some_and(Opener::is_slow) => {
                    // Do not ask for a card or a passphrase again for each document.
                    ignored.extend_from_slice(&unknown);
                    break;
                }
                Err(_) => ignored.push(*id),
            }
        }
        self.state().update(found, ignored, &listed);
        Ok(())
    }

    /// Whether a tombstone names the snapshot, as of the last refresh.
    pub(super) fn contains(&self, name: &SnapshotName) -> bool {
        self.state().hidden.contains(&key(name))
    }

    /// Returns a forgotten snapshot whose id begins with `prefix`.
    pub(super) fn with_id(&self, prefix: &str) -> Option<SnapshotId> {
        let state = self.state();
        state.hidden.iter().map(|(_, _, id)| *id).find(|id| id.to_string().starts_with(prefix))
    }

    fn state(&self) -> MutexGuard<'_, TombstoneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TombstoneState {
    fn update(&mut self, found: Vec<(ObjectId, Forgotten)>, ignored: Vec<ObjectId>, listed: &HashSet<ObjectId>) {
        for (id, Forgotten { generation, snapshots, replaces, .. }) in found {
            let snapshots = snapshots.iter().map(key).collect();
            self.documents.insert(id, Tombstone { generation, snapshots, replaces });
        }
        self.ignored.extend(ignored);
        self.ignored.retain(|id| !self.documents.contains_key(id));
        let is_later = |id: &ObjectId, generation: u64| {
            self.documents.get(id).is_some_and(|replaced| replaced.generation < generation)
        };
        let replaced: HashSet<ObjectId> = self
            .documents
            .values()
            .flat_map(|by| by.replaces.iter().filter(|id| is_later(id, by.generation)).copied())
            .collect();
        // A replaced document stays known while it is listed, so that it is not opened again.
        self.documents.retain(|id, _| listed.contains(id) || !replaced.contains(id));
        for (id, document) in &mut self.documents {
            if replaced.contains(id) {
                document.snapshots = Vec::new();
            }
        }
        self.hidden = self.documents.values().flat_map(|document| document.snapshots.iter().copied()).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(sequence: u64) -> SnapshotName {
        let (source, id) = (SourceId::from_slice(&[1; 16]).unwrap(), SnapshotId(sequence.to_be_bytes()));
        SnapshotName { source, sequence, time: "20261120T145201Z".into(), id }
    }

    fn document(generation: u64, sequences: &[u64], replaces: &[ObjectId]) -> Forgotten {
        let snapshots = sequences.iter().map(|sequence| name(*sequence)).collect();
        Forgotten { generation, snapshots, packs: Vec::new(), replaces: replaces.to_vec() }
    }

    fn hidden(state: &TombstoneState) -> Vec<u64> {
        (0..10).filter(|sequence| state.hidden.contains(&key(&name(*sequence)))).collect()
    }

    #[test]
    fn a_document_counts_until_a_later_one_replaces_it() {
        let ids: [ObjectId; 4] = std::array::from_fn(|_| ObjectId::random());
        let mut state = TombstoneState::default();
        let all = HashSet::from(ids);
        state.update(vec![(ids[0], document(3, &[1, 2], &[])), (ids[1], document(4, &[3], &[]))], Vec::new(), &all);
        assert_eq!(hidden(&state), [1, 2, 3]);
        // Missing from a listing without a replacement.
        state.update(Vec::new(), Vec::new(), &HashSet::new());
        assert_eq!(hidden(&state), [1, 2, 3]);
        // It does not replace a document of its own generation.
        state.update(vec![(ids[2], document(4, &[1], &[ids[0], ids[1]]))], Vec::new(), &all);
        assert_eq!(hidden(&state), [1, 3]);
        assert_eq!(state.documents.len(), 3);
        let left = HashSet::from([ids[3]]);
        state.update(vec![(ids[3], document(5, &[4], &ids[..3]))], Vec::new(), &left);
        assert_eq!(hidden(&state), [4]);
        assert_eq!(state.documents.len(), 1);
    }
}
