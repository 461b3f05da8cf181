//! The documents of a former host, for a new one.
//!
//! A new host cannot read what the former one encrypted to itself, so it writes copies. From then on its own census counts
//! these, so a document that is missing now would never be missed, and data that only it needs would be removed as unused.
//! Therefore the last census of the former host is compared first.

use std::collections::HashSet;
use std::path::Path;

use super::error::Error;
use crate::format::census::{DatedName, Documents, KnownDocuments, are_counted_except_some};
use crate::format::forgotten::Forgotten;
use crate::format::generation::{Generation, NameSet};
use crate::format::id::ObjectId;
use crate::format::index::Index;
use crate::format::moved::Moved;
use crate::format::name::{self, SnapshotName};
use crate::format::usage::Holds;
use crate::inventory::Inventory;
use crate::repository::{self, Writer};

/// The documents that a former host signed and the owner can read.
pub(super) struct FormerDocuments {
    /// All of them, also those that cannot be opened.
    indexes: Vec<ObjectId>,
    shards: Vec<(u8, ObjectId)>,
    tombstones: Vec<ObjectId>,
    known: KnownDocuments,
    /// The documents that others replace. Copies of them would count again, since all copies have the same generation.
    replaced: HashSet<ObjectId>,
    /// The highest generation of the shards of each prefix, and of tombstones.
    last_shards: [u64; 256],
    last_tombstones: u64,
    holds: Holds,
    /// Snapshots in the repository and forgotten ones.
    snapshots: HashSet<SnapshotName>,
}

impl FormerDocuments {
    /// Reads all documents, except those that `own` signed: an adoption that was interrupted has made these.
    pub(super) fn read(inventory: &Inventory<'_>, own: Option<&str>) -> Result<Self, Error> {
        let (repository, access) = (inventory.repository, inventory.access);
        let mut former = FormerDocuments {
            indexes: Vec::new(),
            shards: Vec::new(),
            tombstones: Vec::new(),
            known: KnownDocuments::default(),
            replaced: HashSet::new(),
            last_shards: [0; 256],
            last_tombstones: 0,
            holds: Holds::default(),
            snapshots: repository.snapshots()?.into_iter().collect(),
        };
        let list = |folder| -> Result<Vec<String>, Error> {
            inventory.check_interrupted()?;
            Ok(repository.target().list(folder)?.into_iter().map(|object| object.name).collect())
        };
        // A document that cannot be opened is there, so it is not missing. It is reported when it is copied.
        let opened =
            |documents: &mut Documents, object: String, generation: Result<u64, repository::Error>| match generation {
                Err(error @ repository::Error::Target(_)) => Err(error),
                Err(repository::Error::UnknownSigner { signer, .. }) if own == Some(signer.as_str()) => Ok(false),
                generation => {
                    documents.add(object, generation.unwrap_or(0));
                    Ok(true)
                }
            };
        for object in list(name::INDEX)? {
            let Some(id) = name::parse_index(&object) else { continue };
            inventory.check_interrupted()?;
            let generation = access.index(repository, id).map(|index| {
                former.holds.add(index.generation, &index.holds);
                let names = index.replaces.iter().map(|id| name::index(*id));
                former.known.index.replace(names, index.generation);
                former.replaced.extend(index.replaces);
                index.generation
            });
            if opened(&mut former.known.index, object, generation)? {
                former.indexes.push(id);
            }
        }
        for object in list(name::MOVED)? {
            let Some((prefix, id)) = name::parse_moved(&object) else { continue };
            inventory.check_interrupted()?;
            let generation = access.moved(repository, prefix, id).map(|moved| {
                let last = &mut former.last_shards[usize::from(prefix)];
                *last = moved.generation.max(*last);
                let names = moved.replaces.iter().map(|id| name::moved(prefix, *id));
                former.known.moved.replace(names, moved.generation);
                former.replaced.extend(moved.replaces);
                moved.generation
            });
            if opened(&mut former.known.moved, object, generation)? {
                former.shards.push((prefix, id));
            }
        }
        let mut forgotten = Vec::new();
        for object in list(name::FORGOTTEN)? {
            let Some(id) = name::parse_forgotten(&object) else { continue };
            inventory.check_interrupted()?;
            let generation = access.forgotten(repository, id).map(|tombstones| {
                former.last_tombstones = tombstones.generation.max(former.last_tombstones);
                let names = tombstones.replaces.iter().map(|id| name::forgotten(*id));
                former.known.forgotten.replace(names, tombstones.generation);
                former.replaced.extend(tombstones.replaces);
                forgotten.push((tombstones.generation, tombstones.snapshots));
                tombstones.generation
            });
            if opened(&mut former.known.forgotten, object, generation)? {
                former.tombstones.push(id);
            }
        }
        forgotten.retain(|(generation, _)| *generation == former.last_tombstones);
        former.snapshots.extend(forgotten.into_iter().flat_map(|(_, snapshots)| snapshots));
        for object in list(name::SECRETS)? {
            let Some(id) = name::parse_secrets(&object) else { continue };
            let generation = access.secrets(repository, id).map(|secrets| secrets.generation);
            opened(&mut former.known.secrets, object, generation)?;
        }
        Ok(former)
    }

    /// Fails if documents or snapshots are missing that the last run of the former host counted.
    pub(super) fn require_all(&self, inventory: &Inventory<'_>, last: Option<&Generation>) -> Result<(), Error> {
        let Some(last) = last else { return Err(Error::NoCensus) };
        for (folder, expected) in last.census.sets() {
            let (mut names, is_explained) = match self.known.of(folder) {
                Some(documents) => {
                    (documents.counted(last.number), documents.are_counted_except_runs(expected, last.number))
                }
                None => {
                    let counted = self.snapshots.iter().filter(|snapshot| snapshot.sequence < last.number);
                    (counted.map(|snapshot| (snapshot.object(), snapshot.sequence)).collect(), false)
                }
            };
            names.sort_unstable();
            names.dedup_by(|(one, _), (other, _)| one == other);
            if !is_explained && !has_all(&names, expected, inventory.access.trusts_several_hosts()) {
                let (known, counted) = (names.len() as u64, expected.count);
                return Err(Error::MissingDocuments { folder, known, counted, generation: last.name().object() });
            }
        }
        Ok(())
    }

    /// Writes copies for a new host. `generation` is the last one of the former host.
    pub(super) fn copy(&self, inventory: &Inventory<'_>, writer: &Writer<'_>, generation: u64) -> Result<(), Error> {
        let (repository, access) = (inventory.repository, inventory.access);
        let with = |replaces: &[ObjectId], id: &ObjectId| [replaces, &[*id]].concat();
        let is_valid = |id: &&ObjectId| !self.replaced.contains(id);
        for id in self.indexes.iter().filter(is_valid) {
            let copied = access.index(repository, *id).and_then(|index| {
                let replaces = with(&index.replaces, id);
                // All copies have the same generation, so each has the last ones.
                let holds = if index.holds.is_empty() { Vec::new() } else { self.holds.to_vec() };
                writer.put_index(ObjectId::random(), &Index { generation, replaces, holds, ..index })
            });
            report(inventory, &name::index(*id), copied)?;
        }
        for (prefix, id) in self.shards.iter().filter(|(_, id)| is_valid(&id)) {
            let copied = access.moved(repository, *prefix, *id).and_then(|moved| {
                if moved.generation < self.last_shards[usize::from(*prefix)] {
                    return Ok(());
                }
                let replaces = with(&moved.replaces, id);
                writer.put_moved(*prefix, ObjectId::random(), &Moved { generation, replaces, ..moved })
            });
            report(inventory, &name::moved(*prefix, *id), copied)?;
        }
        for id in self.tombstones.iter().filter(is_valid) {
            let copied = access.forgotten(repository, *id).and_then(|forgotten| {
                if forgotten.generation < self.last_tombstones {
                    return Ok(());
                }
                let replaces = with(&forgotten.replaces, id);
                writer.put_forgotten(ObjectId::random(), &Forgotten { generation, replaces, ..forgotten })
            });
            report(inventory, &name::forgotten(*id), copied)?;
        }
        Ok(())
    }
}

/// Reports a document that could not be copied.
fn report(inventory: &Inventory<'_>, object: &str, copied: Result<(), repository::Error>) -> Result<(), Error> {
    inventory.check_interrupted()?;
    match copied {
        Err(error @ repository::Error::Target(_)) => return Err(error.into()),
        Err(error) => inventory.monitor.problem(Path::new(object), &error.to_string()),
        Ok(()) => {}
    }
    Ok(())
}

/// Whether these names, in order, include all that a census counts. A host does not count documents of another one, so with
/// several hosts only the number tells.
fn has_all(names: &[DatedName], expected: NameSet, has_several_hosts: bool) -> bool {
    NameSet::of_sorted(names.iter().map(|(name, _)| name.as_str())) == expected
        || are_counted_except_some(expected, names)
        || (has_several_hosts && names.len() as u64 > expected.count)
}
