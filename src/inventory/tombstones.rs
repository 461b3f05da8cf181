//! Takes documents into the catalog that other runs wrote: tombstones, and what a killed run left.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use roaring::RoaringTreemap;

use super::census::CENSUS_FOLDERS;
use super::context::Inventory;
use super::error::Error;
use super::reconcile::is_foreign;
use crate::catalog::{Catalog, Folder, Presence, SnapshotRow};
use crate::failure::{Failure, FailureKind};
use crate::format::PackId;
use crate::format::forgotten::{Forgotten, Newest};
use crate::format::id::SnapshotId;
use crate::format::name::{self, SnapshotName};
use crate::format::usage::Labels;
use crate::repository::{self, Access};
use crate::storage::ErrorKind;

/// The tombstones of a repository, from the documents that count.
pub(super) struct Tombstones {
    /// The snapshots that they name.
    names: BTreeMap<SnapshotId, SnapshotName>,
    /// The condemned packs.
    packs: Vec<PackId>,
    /// The generation of the documents.
    generation: u64,
    /// Every document that counts was read, so that they name no other snapshot.
    is_complete: bool,
}

impl Tombstones {
    /// Whether a tombstone names this snapshot.
    pub(super) fn names(&self, id: SnapshotId) -> bool {
        self.names.contains_key(&id)
    }

    /// The state of a snapshot that had the state `before`. `is_there`: whether its object is in the repository.
    pub(super) fn presence(&self, id: SnapshotId, before: Presence, is_there: bool) -> Presence {
        match (self.names(id), before) {
            (true, Presence::Forgotten) => Presence::Forgotten,
            (true, _) if is_there => Presence::Forgotten,
            (true, _) => Presence::Swept,
            (false, Presence::Forgotten | Presence::Swept) if !self.is_complete => before,
            (false, _) if is_there => Presence::There,
            (false, Presence::Intended) => Presence::NeverWritten,
            (false, Presence::There | Presence::Forgotten) => Presence::NotFound,
            (false, _) => before,
        }
    }
}

impl Inventory<'_> {
    /// Adds the documents of tombstones in the repository to the catalog, and returns the tombstones that count.
    pub(super) fn learn_tombstones(&self, catalog: &Catalog) -> Result<Tombstones, Error> {
        let mut newest = Newest::<(BTreeMap<_, _>, Vec<_>)>::default();
        let mut read = HashSet::new();
        let listed = self.repository.target().list(name::FORGOTTEN)?;
        for object in self.repository.target().in_turn(&listed, Access::read_of_document) {
            let Some(id) = name::parse_forgotten(&object.name) else { continue };
            self.check_interrupted()?;
            match self.access.forgotten(self.repository, id) {
                Ok(Forgotten { generation, snapshots, packs, replaces }) => {
                    catalog.add_document(Folder::Forgotten, id, generation, &replaces)?;
                    read.insert(id);
                    if let Some((names, condemned)) = newest.of(generation) {
                        names.extend(snapshots.into_iter().map(|name| (name.id, name)));
                        condemned.extend(packs);
                    }
                }
                Err(error) if error.kind() == FailureKind::Unavailable => return Err(error.into()),
                Err(error @ repository::Error::Target(_)) if !self.repository.is_there() => return Err(error.into()),
                Err(error) if is_foreign(&error) => {}
                Err(error) => self.monitor.problem(Path::new(&object.name), &error.to_string()),
            }
        }
        let mut is_complete = true;
        for document in catalog.documents()? {
            // If a later document cannot be read, earlier ones do not count instead.
            let is_unread = document.replaced.is_none() && !read.contains(&document.id);
            if document.folder == Folder::Forgotten && is_unread && newest.of(document.generation).is_some() {
                is_complete = false;
            }
        }
        let Newest { generation, content: (names, packs) } = newest;
        Ok(Tombstones { names, packs, generation, is_complete })
    }

    /// Condemns the packs that tombstones name, and that are in the catalog.
    pub(super) fn learn_condemned(&self, catalog: &Catalog, tombstones: &Tombstones) -> Result<(), Error> {
        catalog.learn_condemned(&tombstones.packs, tombstones.generation)?;
        Ok(catalog.learn_retained(&tombstones.packs)?)
    }

    /// Whether the packs of all these blocks are in the repository, and no tombstone names one of them.
    pub fn has_all_packs(&self, catalog: &Catalog, blocks: &RoaringTreemap) -> Result<bool, Error> {
        // In this order: see `reconcile`.
        let condemned: HashSet<_> = self.learn_tombstones(catalog)?.packs.into_iter().collect();
        self.list_packs(catalog)?;
        for (pack, _) in catalog.block_runs(blocks)? {
            if condemned.contains(&pack) {
                return Ok(false);
            }
            if catalog.listed(pack)?.is_none() {
                // The listing may be late.
                match self.repository.target().length(&name::pack(pack)) {
                    Err(error) if error.kind == ErrorKind::NotFound => return Ok(false),
                    other => _ = other?,
                }
            }
        }
        Ok(true)
    }

    /// Adds snapshots that only tombstones name: their objects and their usage were removed.
    pub(super) fn learn_swept(
        &self,
        catalog: &Catalog,
        tombstones: &Tombstones,
        there: &HashSet<SnapshotId>,
    ) -> Result<(), Error> {
        for name in tombstones.names.values() {
            if catalog.has_snapshot(name.id)? || catalog.has_sequence(name.sequence)? {
                continue;
            }
            let known = catalog.source_by_id(name.source)?;
            let source = match known {
                Some(source) => source,
                None => {
                    let document = self.access.source(self.repository, name.source);
                    catalog
                        .add_source(name.source, &document.map_or_else(|_| name.source.to_string(), |read| read.name))?
                }
            };
            let row = SnapshotRow {
                name: name.clone(),
                source: String::new(),
                labels: Labels::default(),
                files: 0,
                bytes: 0,
                stored_bytes: 0,
                presence: tombstones.presence(name.id, Presence::Swept, there.contains(&name.id)),
                is_held: false,
                root: Default::default(),
            };
            catalog.add_snapshot(&row, source, None)?;
        }
        Ok(())
    }

    /// Adds documents that a killed run wrote and the catalog does not know: indexes with holds, tombstones, shards of moves
    /// and secrets. Packs and snapshots in them are not added.
    pub fn learn_new_documents(&self, catalog: &Catalog) -> Result<(), Error> {
        let known: HashSet<_> = catalog.documents()?.into_iter().map(|document| document.object()).collect();
        let mut has_tombstones = false;
        for folder in CENSUS_FOLDERS {
            for object in self.repository.target().list(folder)?.into_iter().map(|object| object.name) {
                self.check_interrupted()?;
                if known.contains(&object) {
                    continue;
                }
                // Documents that cannot be read are reported when the repository is compared with the catalog.
                if let Some(id) = name::parse_index(&object) {
                    if let Ok(index) = self.access.index(self.repository, id) {
                        catalog.add_index(id, &index)?;
                    }
                } else if let Some((prefix, id)) = name::parse_moved(&object) {
                    if let Ok(moved) = self.access.moved(self.repository, prefix, id) {
                        catalog.add_document(Folder::Moved(prefix), id, moved.generation, &moved.replaces)?;
                    }
                } else if let Some(id) = name::parse_secrets(&object) {
                    if let Ok(secrets) = self.access.secrets(self.repository, id) {
                        catalog.add_document(Folder::Secrets(secrets.edition), id, secrets.generation, &[])?;
                    }
                } else {
                    has_tombstones |= name::parse_forgotten(&object).is_some();
                }
            }
        }
        if !has_tombstones {
            return Ok(());
        }
        let tombstones = self.learn_tombstones(catalog)?;
        self.learn_condemned(catalog, &tombstones)?;
        for SnapshotRow { name, presence, .. } in catalog.snapshots()? {
            let is_there = matches!(presence, Presence::There | Presence::Forgotten);
            let now = tombstones.presence(name.id, presence, is_there);
            if now != presence && (now.is_forgotten() || presence.is_forgotten()) {
                match now {
                    Presence::There => catalog.set_there(name.id, None)?,
                    now => catalog.set_missing(name.id, now)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::SourceId;

    #[test]
    fn tombstones_and_the_object_decide_the_state_of_a_snapshot() {
        use Presence::{Forgotten, Intended, NeverWritten, NotFound, Swept, There};
        let [named, other] = [SnapshotId::random(), SnapshotId::random()];
        let name = SnapshotName { source: SourceId::random(), sequence: 1, time: "20261120T145201Z".into(), id: named };
        let all =
            Tombstones { names: BTreeMap::from([(named, name)]), packs: Vec::new(), generation: 0, is_complete: true };
        let before = [Intended, There, NotFound, NeverWritten, Forgotten, Swept];
        let after = |of: &Tombstones, id, is_there| before.map(|before| of.presence(id, before, is_there));
        assert_eq!(after(&all, named, true), [Forgotten; 6]);
        assert_eq!(after(&all, named, false), [Swept, Swept, Swept, Swept, Forgotten, Swept]);
        assert_eq!(after(&all, other, true), [There; 6]);
        assert_eq!(after(&all, other, false), [NeverWritten, NotFound, NotFound, NeverWritten, NotFound, Swept]);
        let some = Tombstones { is_complete: false, ..all };
        assert_eq!(after(&some, named, true), [Forgotten; 6]);
        assert_eq!(after(&some, other, true), [There, There, There, There, Forgotten, Swept]);
        assert_eq!(after(&some, other, false), [NeverWritten, NotFound, NotFound, NeverWritten, Forgotten, Swept]);
    }
}
