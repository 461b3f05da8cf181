//! Updates a catalog from the repository.
//!
//! In one transaction: lists packs; condemns known packs that are missing or have another length; marks known snapshots
//! that are missing (they stay in the catalog, since they may reappear); adds unknown packs and snapshots from indexes.
//! One index and the blocks of one snapshot are in memory at a time.
//!
//! Listings can be incomplete, so a reconciled catalog is marked: see [`Catalog::set_learnt`].

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use super::context::Inventory;
use super::error::Error;
use super::tombstones::Tombstones;
use crate::catalog::{Catalog, Condemned, Folder, Presence, SnapshotRow};
use crate::crypt;
use crate::failure::{Failure, FailureKind};
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::name;
use crate::format::usage::SnapshotUsage;
use crate::monitor::count;
use crate::repository::{self, Access};
use crate::storage::ObjectInfo;

/// The differences that were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Packs of the catalog that are missing or have another length.
    pub condemned: Condemned,
    /// Packs that were added to the catalog.
    pub learnt_packs: u64,
    /// Packs in indexes, unknown to the catalog, that are missing or have another length.
    pub missing_packs: u64,
    /// Snapshots that were added to the catalog.
    pub learnt_snapshots: u64,
    /// Snapshots of the catalog that are missing.
    pub gone_snapshots: u64,
    /// Snapshots in the repository that are in no readable index.
    pub unknown_snapshots: u64,
    /// Indexes that could not be used.
    pub unusable_indexes: u64,
    /// Packs in the repository that are in no readable index.
    pub unknown_packs: u64,
    /// Something is back that was removed on purpose, and that the catalog has dropped: the repository was set back to before
    /// a prune. Only a new catalog can know it.
    pub is_outdated: bool,
}

impl Reconciled {
    /// One line for the user.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        let mut add = |number: u64, one: &str, many: &str, state: &str| {
            if number > 0 {
                parts.push(format!("{} {state}", count(number, one, many)));
            }
        };
        let missing = self.condemned.packs + self.missing_packs;
        let unread = "in no index that this machine can read";
        add(missing, "pack", "packs", "missing or truncated");
        add(self.learnt_packs, "pack", "packs", "added to the catalog");
        add(self.learnt_snapshots, "snapshot", "snapshots", "added to the catalog");
        add(self.gone_snapshots, "snapshot", "snapshots", "missing");
        add(self.unknown_snapshots, "snapshot", "snapshots", unread);
        add(self.unusable_indexes, "index", "indexes", "unusable");
        add(self.unknown_packs, "pack", "packs", &format!("{unread}, not removed"));
        if parts.is_empty() { "all packs and snapshots are present".to_owned() } else { parts.join(", ") }
    }
}

impl Inventory<'_> {
    /// Updates the catalog from the repository, in one transaction.
    pub fn reconcile(&self, catalog: &mut Catalog) -> Result<Reconciled, Error> {
        // Objects of a killed run may be visible but not durable yet, and the catalog relies on them from now on.
        self.repository.target().settle(&name::FOLDERS)?;
        catalog.set_learnt()?;
        // Before packs are listed: another run that prunes removes packs, and then replaces the tombstones that name them.
        self.find_documents(catalog)?;
        let tombstones = self.learn_tombstones(catalog)?;
        self.list_packs(catalog)?;
        let condemned = catalog.condemn_unlisted(&mut |pack, found| {
            let state = if found.is_some() { "of another length" } else { "missing" };
            self.monitor.entry(Path::new(&name::pack(pack.id)), state);
        })?;
        let mut found = Reconciled { condemned, ..Reconciled::default() };
        let there: HashSet<_> = self.repository.snapshots()?.into_iter().map(|name| name.id).collect();
        let known = self.update_snapshots(catalog, &tombstones, &there, &mut found)?;
        let unknown = self.learn_packs(catalog, &mut found)?;
        self.learn_snapshots(catalog, unknown, &tombstones, &there, &mut found)?;
        self.learn_swept(catalog, &tombstones, &there)?;
        found.unknown_snapshots = (there.len() as u64).saturating_sub(known + found.learnt_snapshots);
        self.learn_secrets(catalog)?;
        self.learn_shards(catalog)?;
        self.learn_condemned(catalog, &tombstones)?;
        found.unknown_packs = catalog.unknown_listed()?;
        catalog.begin_listing()?;
        catalog.commit()?;
        Ok(found)
    }

    pub(super) fn list_packs(&self, catalog: &Catalog) -> Result<(), Error> {
        catalog.begin_listing()?;
        let mut noted = Ok(());
        self.repository.target().visit(name::PACKS, &mut |ObjectInfo { name, length }| {
            if let (Ok(()), Some(pack)) = (&noted, name::parse_pack(&name)) {
                noted = self.check_interrupted().and_then(|()| Ok(catalog.note_listed(pack, length)?));
            }
        })?;
        noted
    }

    /// Lists the ids of all indexes.
    pub fn indexes(&self) -> Result<Vec<ObjectId>, Error> {
        let objects = self.repository.target().list(name::INDEX)?;
        Ok(objects.iter().filter_map(|object| name::parse_index(&object.name)).collect())
    }

    /// Marks documents in the repository as valid until those that replace them are read. Secrets are not replaced.
    fn find_documents(&self, catalog: &Catalog) -> Result<(), Error> {
        let mut found = Vec::new();
        for folder in [name::INDEX, name::MOVED, name::FORGOTTEN] {
            found.extend(self.repository.target().list(folder)?.into_iter().filter_map(|object| {
                let moved = || name::parse_moved(&object.name).map(|(prefix, id)| (Folder::Moved(prefix), id));
                let index = || name::parse_index(&object.name).map(|id| (Folder::Index, id));
                moved().or_else(index).or_else(|| name::parse_forgotten(&object.name).map(|id| (Folder::Forgotten, id)))
            }));
        }
        Ok(catalog.set_documents_valid(&found)?)
    }

    /// Adds packs of indexes to the catalog. Returns the indexes of unknown snapshots, ordered by snapshot.
    fn learn_packs(&self, catalog: &Catalog, found: &mut Reconciled) -> Result<Vec<ObjectId>, Error> {
        let mut unknown = Vec::new();
        let (mut carriers, mut gone) = (Vec::new(), Vec::new());
        let mut foreign = 0;
        let target = self.repository.target();
        let listed = target.list(name::INDEX)?;
        for object in target.in_turn(&listed, Access::read_of_document) {
            let Some(id) = name::parse_index(&object.name) else { continue };
            self.check_interrupted()?;
            let index = match self.access.index(self.repository, id) {
                Ok(index) => index,
                Err(error) if error.kind() == FailureKind::Unavailable => return Err(error.into()),
                Err(error) => {
                    found.unusable_indexes += 1;
                    if is_foreign(&error) {
                        foreign += 1;
                    } else {
                        self.monitor.note(&format!("cannot use an index: {error}"));
                    }
                    continue;
                }
            };
            catalog.add_index(id, &index)?;
            for pack in &index.packs {
                found.is_outdated |= pack.digest.is_some()
                    && (catalog.is_gone(pack.id)? == Some(true) || catalog.is_retained(pack.id)?)
                    && catalog.listed(pack.id)? == Some(pack.length);
                if catalog.pack(pack.id)?.is_some() {
                    // Its blocks may lie in carriers that are unknown so far.
                    gone.extend(pack.digest.is_none().then_some(id));
                    continue;
                }
                let there = catalog.listed(pack.id)? == Some(pack.length);
                catalog.import_pack(pack, there)?;
                match pack.digest {
                    None => gone.push(id),
                    Some(_) if there => found.learnt_packs += 1,
                    Some(_) => found.missing_packs += 1,
                }
            }
            if !index.carriers.is_empty() {
                carriers.push((index.generation, id));
            }
            for SnapshotUsage { snapshot, .. } in &index.snapshots {
                if !catalog.has_snapshot(snapshot.id)? {
                    unknown.push((snapshot.sequence, id));
                }
            }
        }
        self.learn_carriers(catalog, carriers, found)?;
        gone.dedup();
        for id in gone {
            // The blocks of removed packs are usable if their carriers are there.
            let index = self.access.index(self.repository, id)?;
            index
                .packs
                .iter()
                .filter(|pack| pack.digest.is_none())
                .try_for_each(|pack| catalog.restore_chunks(pack))?;
        }
        if foreign > 0 {
            self.monitor.note(&format!(
                "{} of another host key, and cannot be used here",
                count(foreign, "index is", "indexes are")
            ));
        }
        unknown.sort_unstable();
        let mut indexes: Vec<_> = unknown.into_iter().map(|(_, id)| id).collect();
        indexes.dedup();
        Ok(indexes)
    }

    /// Adds the carriers of these indexes, the oldest generation first: a block lies where it was moved last.
    fn learn_carriers(
        &self,
        catalog: &Catalog,
        mut indexes: Vec<(u64, ObjectId)>,
        found: &mut Reconciled,
    ) -> Result<(), Error> {
        indexes.sort_unstable();
        for (_, id) in indexes {
            self.check_interrupted()?;
            for carrier in &self.access.index(self.repository, id)?.carriers {
                if catalog.pack(carrier.id)?.is_some() {
                    continue;
                }
                let there = catalog.listed(carrier.id)? == Some(carrier.length());
                catalog.import_carrier(carrier, there)?;
                *if there { &mut found.learnt_packs } else { &mut found.missing_packs } += 1;
            }
        }
        Ok(())
    }

    /// Adds the snapshots of these indexes, in order: a snapshot's blocks may be given relative to an earlier one.
    fn learn_snapshots(
        &self,
        catalog: &Catalog,
        indexes: Vec<ObjectId>,
        tombstones: &Tombstones,
        there: &HashSet<SnapshotId>,
        found: &mut Reconciled,
    ) -> Result<(), Error> {
        for id in indexes {
            self.check_interrupted()?;
            // `learn_packs` could read it, so an error is unexpected here.
            for usage in self.access.index(self.repository, id)?.snapshots {
                self.learn_snapshot(catalog, usage, tombstones, there, found)?;
            }
        }
        Ok(())
    }

    fn learn_snapshot(
        &self,
        catalog: &Catalog,
        usage: SnapshotUsage,
        tombstones: &Tombstones,
        there: &HashSet<SnapshotId>,
        found: &mut Reconciled,
    ) -> Result<(), Error> {
        let name = usage.snapshot;
        // The catalog may have another snapshot with this number, from before the repository was set back.
        catalog.forget_not_found(name.sequence)?;
        if catalog.has_snapshot(name.id)? || catalog.has_sequence(name.sequence)? {
            return Ok(());
        }
        let is_there = there.contains(&name.id);
        let source = match catalog.source_by_id(name.source)? {
            Some(source) => source,
            None => catalog.add_source(name.source, &usage.source)?,
        };
        let base = match &usage.base {
            Some(base) => catalog.snapshot_blocks(base.id)?,
            None => Some(Default::default()),
        };
        let used = match base {
            Some(mut used) => {
                let known = catalog.apply_runs(&mut used, &usage.removed, false)?;
                let all = catalog.apply_runs(&mut used, &usage.added, true)?;
                (known && all).then_some(used)
            }
            None => None,
        };
        let presence = tombstones.presence(name.id, Presence::NotFound, is_there);
        let row = SnapshotRow {
            name,
            source: usage.source,
            labels: usage.labels,
            files: usage.files,
            bytes: usage.bytes,
            stored_bytes: usage.stored_bytes,
            presence,
            is_held: false,
            root: Default::default(),
        };
        catalog.add_snapshot(&row, source, used.as_ref())?;
        found.learnt_snapshots += u64::from(is_there);
        Ok(())
    }

    /// Adds shards of moves to the catalog. Where blocks lie is in the indexes. Packs and carriers that had lost chunks are read,
    /// and condemned if they are damaged: the catalog must not rely on them again.
    fn learn_shards(&self, catalog: &Catalog) -> Result<(), Error> {
        let mut doubtful = BTreeSet::new();
        for object in self.repository.target().list(name::MOVED)? {
            let Some((prefix, id)) = name::parse_moved(&object.name) else { continue };
            self.check_interrupted()?;
            if let Ok(moved) = self.access.moved(self.repository, prefix, id) {
                catalog.add_document(Folder::Moved(prefix), id, moved.generation, &moved.replaces)?;
                for (birth, _) in &moved.restored {
                    doubtful.insert(*birth);
                    let ranges = moved.ranges.iter().filter(|(of, _)| of == birth).flat_map(|(_, ranges)| ranges);
                    doubtful.extend(ranges.filter_map(|range| moved.carriers.get(range.carrier as usize)));
                }
            }
        }
        self.condemn_damaged(catalog, doubtful)
    }

    /// Adds secrets documents to the catalog.
    fn learn_secrets(&self, catalog: &Catalog) -> Result<(), Error> {
        for object in self.repository.target().list(name::SECRETS)? {
            let Some(id) = name::parse_secrets(&object.name) else { continue };
            // A damaged one is reported when it is needed.
            if let Ok(secrets) = self.access.secrets(self.repository, id) {
                catalog.add_document(Folder::Secrets(secrets.edition), id, secrets.generation, &[])?;
            }
        }
        Ok(())
    }

    /// Updates the presence of known snapshots from the listing. Returns the number of those present.
    fn update_snapshots(
        &self,
        catalog: &Catalog,
        tombstones: &Tombstones,
        there: &HashSet<SnapshotId>,
        found: &mut Reconciled,
    ) -> Result<u64, Error> {
        let mut known = 0;
        for SnapshotRow { name, source, presence: before, .. } in catalog.snapshots()? {
            let is_there = there.contains(&name.id);
            known += u64::from(is_there);
            found.is_outdated |= before == Presence::Swept && is_there;
            match tombstones.presence(name.id, before, is_there) {
                same if same == before => {}
                Presence::There => catalog.set_there(name.id, None)?,
                presence => catalog.set_missing(name.id, presence)?,
            }
            if before == Presence::There && !is_there && !tombstones.names(name.id) {
                found.gone_snapshots += 1;
                let (short, time) = (name.id.short(), &name.time);
                self.monitor.note(&format!("the snapshot {short} of {source} ({time}) is missing"));
            }
        }
        Ok(known)
    }
}

/// Whether an object could not be opened only because it belongs to another host.
pub(super) fn is_foreign(error: &repository::Error) -> bool {
    matches!(
        error,
        repository::Error::UnknownSigner { .. } | repository::Error::Crypt { source: crypt::Error::NoKey { .. }, .. }
    )
}
