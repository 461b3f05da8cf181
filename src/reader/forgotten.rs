//! Forgotten snapshots: those that tombstones name. Readers hide them.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::crypt::Opener;
use crate::failure::Failure;
use crate::format::forgotten::{Forgotten, Newest};
use crate::format::id::{ObjectId, SnapshotId, SourceId};
use crate::format::name::{self, SnapshotName};
use crate::repository::{self, Access, ObjectInfo, Repository};

/// The tombstones read so far. Each document is read once.
#[derive(Default)]
pub(super) struct Tombstones {
    state: Mutex<TombstoneState>,
}

#[derive(Default)]
struct TombstoneState {
    /// Listed documents that were read, or that do not open or verify.
    known: HashSet<ObjectId>,
    /// The snapshots in the documents that count.
    hidden: Newest<HashSet<SnapshotKey>>,
}

/// A snapshot's name in little memory. The number determines the time.
type SnapshotKey = (SourceId, u64, SnapshotId);

fn key(name: &SnapshotName) -> SnapshotKey {
    (name.source, name.sequence, name.id)
}

impl Tombstones {
    /// Lists the documents and opens new ones. Skips those that do not open or verify.
    ///
    /// A listing may be incomplete. So a document that is no longer listed still counts, until one of a higher generation is
    /// found. Otherwise forgotten snapshots would be shown, or those that were shown again would be hidden.
    pub(super) fn refresh(&self, repository: &Repository, access: &Access) -> Result<(), repository::Error> {
        let mut objects = repository.target().list(name::FORGOTTEN)?;
        let id_of = |object: &ObjectInfo| name::parse_forgotten(&object.name);
        let listed: HashSet<_> = objects.iter().filter_map(id_of).collect();
        {
            let mut state = self.state();
            state.known.retain(|id| listed.contains(id));
            objects.retain(|object| id_of(object).is_some_and(|id| !state.known.contains(&id)));
        }
        // Not locked: reading may wait for the target.
        let (mut found, mut ignored) = (Vec::new(), Vec::new());
        for object in repository.target().in_turn(&objects, Access::read_of_document) {
            let Some(id) = id_of(object) else { continue };
            match access.forgotten(repository, id) {
                Ok(forgotten) => found.push((id, forgotten)),
                Err(repository::Error::Target(error)) if error.is_away() => return Err(error.into()),
                // Such as a document that was just removed.
                Err(repository::Error::Target(_)) => {}
                Err(error) if error.is_key_problem() && access.opener().is_some_and(Opener::is_slow) => {
                    // Do not ask for a card or a passphrase again for each document.
                    ignored.extend(objects.iter().filter_map(id_of));
                    break;
                }
                Err(_) => ignored.push(id),
            }
        }
        self.state().add(found, ignored);
        Ok(())
    }

    /// Whether a tombstone names the snapshot, as of the last refresh.
    pub(super) fn contains(&self, name: &SnapshotName) -> bool {
        self.state().hidden.content.contains(&key(name))
    }

    /// Returns a forgotten snapshot whose id begins with `prefix`.
    pub(super) fn with_id(&self, prefix: &str) -> Option<SnapshotId> {
        let state = self.state();
        state.hidden.content.iter().map(|(_, _, id)| *id).find(|id| id.to_string().starts_with(prefix))
    }

    fn state(&self) -> MutexGuard<'_, TombstoneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TombstoneState {
    fn add(&mut self, found: Vec<(ObjectId, Forgotten)>, ignored: Vec<ObjectId>) {
        for (id, Forgotten { generation, snapshots, .. }) in found {
            self.known.insert(id);
            if let Some(hidden) = self.hidden.of(generation) {
                hidden.extend(snapshots.iter().map(key));
            }
        }
        self.known.extend(ignored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(sequence: u64) -> SnapshotName {
        let (source, id) = (SourceId::from_slice(&[1; 16]).unwrap(), SnapshotId(sequence.to_be_bytes()));
        SnapshotName { source, sequence, time: "20261120T145201Z".into(), id }
    }

    fn document(generation: u64, sequences: &[u64]) -> (ObjectId, Forgotten) {
        let snapshots = sequences.iter().map(|sequence| name(*sequence)).collect();
        (ObjectId::random(), Forgotten { generation, snapshots, ..Forgotten::default() })
    }

    #[test]
    fn a_document_counts_until_one_of_a_higher_generation_is_known() {
        let mut state = TombstoneState::default();
        let mut hidden_after = |found: &[(ObjectId, Forgotten)]| -> Vec<u64> {
            state.add(found.to_vec(), Vec::new());
            (0..10).filter(|sequence| state.hidden.content.contains(&key(&name(*sequence)))).collect()
        };
        let first = document(3, &[1, 2]);
        assert_eq!(hidden_after(std::slice::from_ref(&first)), [1, 2]);
        assert_eq!(hidden_after(&[document(4, &[3])]), [3]);
        // It counts too, but does not replace a document of its own generation.
        assert_eq!(hidden_after(&[document(4, &[1])]), [1, 3]);
        assert_eq!(hidden_after(&[document(6, &[5]), document(5, &[4])]), [5]);
        assert_eq!(hidden_after(&[document(7, &[])]), [0; 0]);
        // An old document that is there again.
        assert_eq!(hidden_after(&[first]), [0; 0]);
    }
}
