//! A catalog learns what the repository has.
//!
//! In one transaction: packs are listed; those that the catalog knows and that are missing, or of another length, are
//! condemned; snapshots that are not listed are marked as such, and stay known, since they may turn up; indexes tell of
//! packs and snapshots that the catalog does not know. One index and one snapshot's blocks are held at a time.
//!
//! Listings can be incomplete. So a catalog that was reconciled is marked: see [`Catalog::set_learnt`].

use std::collections::HashSet;
use std::path::Path;

use super::{Error, Inventory};
use crate::catalog::{Catalog, Condemned, Presence, SnapshotRow};
use crate::crypt;
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::index::{Index, SnapshotBlocks};
use crate::format::name;
use crate::monitor::count;
use crate::repository;
use crate::storage::ObjectInfo;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Packs that the catalog knew, and that are missing or of another length.
    pub condemned: Condemned,
    /// Packs that it learnt of, and that are there.
    pub learnt_packs: u64,
    /// Packs that it learnt of, and that are missing or of another length.
    pub missing_packs: u64,
    /// Snapshots that it learnt of.
    pub learnt_snapshots: u64,
    /// Snapshots that it knew, and that are gone.
    pub gone_snapshots: u64,
    /// Snapshots that are there, and of which no index that can be read tells.
    pub unknown_snapshots: u64,
    /// Indexes that could not be used.
    pub unusable_indexes: u64,
    /// Packs that are there, and that no index names that can be read.
    pub unknown_packs: u64,
}

impl Reconciled {
    /// What came of it, for people.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        let mut say = |number: u64, one: &str, many: &str, what: &str| {
            if number > 0 {
                parts.push(format!("{} {what}", count(number, one, many)));
            }
        };
        let missing = self.condemned.packs + self.missing_packs;
        let unread = "in no index that this machine can read";
        say(missing, "pack is", "packs are", "missing or cut short");
        say(self.learnt_packs, "pack", "packs", "learnt of");
        say(self.learnt_snapshots, "snapshot", "snapshots", "learnt of");
        say(self.gone_snapshots, "snapshot is", "snapshots are", "gone");
        say(self.unknown_snapshots, "snapshot is", "snapshots are", unread);
        say(self.unusable_indexes, "index", "indexes", "can't be used");
        say(self.unknown_packs, "pack is", "packs are", &format!("{unread}, not removed"));
        match parts.is_empty() {
            true => "all packs and snapshots are there".to_owned(),
            false => parts.join(", "),
        }
    }
}

impl Inventory<'_> {
    /// Makes the catalog agree with the repository.
    pub fn reconcile(&self, catalog: &mut Catalog) -> Result<Reconciled, Error> {
        // What a killed run left in sight may not be on disk yet, and is relied on from here on.
        self.repository.target().sync(&name::FOLDERS)?;
        catalog.set_learnt()?;
        self.list_packs(catalog)?;
        let condemned = catalog.condemn_unlisted(&mut |pack, found| {
            let what = if found.is_some() { "of another length" } else { "missing" };
            self.monitor.entry(Path::new(&name::pack(pack.id)), what);
        })?;
        let mut found = Reconciled { condemned, ..Reconciled::default() };
        let there: HashSet<_> = self.repository.snapshots()?.into_iter().map(|name| name.id).collect();
        let known = self.look_for_snapshots(catalog, &there, &mut found)?;
        let unknown = self.learn_packs(catalog, &mut found)?;
        self.learn_snapshots(catalog, unknown, &there, &mut found)?;
        found.unknown_snapshots = (there.len() as u64).saturating_sub(known + found.learnt_snapshots);
        if found.learnt_snapshots > 0 {
            self.monitor.note(
                "indexes do not hold host, paths and tags of the snapshots that the catalog learnt of: without the owner's key these are shown as unknown",
            );
        }
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

    /// The ids of all indexes.
    pub(super) fn indexes(&self) -> Result<Vec<ObjectId>, Error> {
        let objects = self.repository.target().list(name::INDEX)?;
        Ok(objects.iter().filter_map(|object| object.name.strip_prefix(name::INDEX)?.parse().ok()).collect())
    }

    /// Adds packs that only indexes know. Returns the indexes that tell of unknown snapshots, in the order of these.
    fn learn_packs(&self, catalog: &Catalog, found: &mut Reconciled) -> Result<Vec<ObjectId>, Error> {
        let mut unknown = Vec::new();
        let mut foreign = 0;
        for id in self.indexes()? {
            self.check_interrupted()?;
            let index = match self.access.index(self.repository, id) {
                Ok(index) => index,
                Err(error) => {
                    found.unusable_indexes += 1;
                    match is_foreign(&error) {
                        true => foreign += 1,
                        false => self.monitor.note(&format!("an index can't be used: {error}")),
                    }
                    continue;
                }
            };
            for pack in &index.packs {
                if catalog.pack(pack.id)?.is_some() {
                    continue;
                }
                let there = catalog.listed(pack.id)? == Some(pack.length());
                catalog.import_pack(pack, there)?;
                match there {
                    true => found.learnt_packs += 1,
                    false => found.missing_packs += 1,
                }
            }
            if let Some(SnapshotBlocks { snapshot, .. }) = &index.snapshot
                && !catalog.has_snapshot(snapshot.id)?
            {
                unknown.push((snapshot.sequence, id));
            }
        }
        if foreign > 0 {
            self.monitor.note(&format!(
                "{} of another host key, and can't be used here",
                count(foreign, "index is", "indexes are")
            ));
        }
        unknown.sort_unstable();
        Ok(unknown.into_iter().map(|(_, id)| id).collect())
    }

    /// Adds snapshots, those that others begin from first.
    fn learn_snapshots(
        &self,
        catalog: &Catalog,
        indexes: Vec<ObjectId>,
        there: &HashSet<SnapshotId>,
        found: &mut Reconciled,
    ) -> Result<(), Error> {
        for id in indexes {
            self.check_interrupted()?;
            // It was read a moment ago.
            let Index { snapshot: Some(blocks), .. } = self.access.index(self.repository, id)? else { continue };
            let name = &blocks.snapshot;
            // Of two histories of the repository, the one that is there counts.
            catalog.forget_not_found(name.sequence)?;
            if catalog.has_snapshot(name.id)? || catalog.has_sequence(name.sequence)? {
                continue;
            }
            let is_there = there.contains(&name.id);
            let source = match catalog.source_by_id(name.source)? {
                Some(source) => source,
                None => catalog.add_source(name.source, &blocks.source)?,
            };
            let row = SnapshotRow {
                name: name.clone(),
                source: blocks.source.clone(),
                labels: None,
                files: blocks.files,
                bytes: blocks.bytes,
                stored_bytes: blocks.stored_bytes,
                presence: if is_there { Presence::There } else { Presence::NotFound },
                root: Default::default(),
            };
            let base = match &blocks.base {
                Some(base) => catalog.snapshot_blocks(base.id)?,
                None => Some(Default::default()),
            };
            let used = match base {
                Some(mut used) => {
                    let known = catalog.apply_runs(&mut used, &blocks.removed, false)?;
                    let all = catalog.apply_runs(&mut used, &blocks.added, true)?;
                    (known && all).then_some(used)
                }
                None => None,
            };
            catalog.add_snapshot(&row, source, used.as_ref())?;
            found.learnt_snapshots += u64::from(is_there);
        }
        Ok(())
    }

    /// Compares the snapshots that the catalog knows with those that are listed. Returns how many of them are there.
    fn look_for_snapshots(
        &self,
        catalog: &Catalog,
        there: &HashSet<SnapshotId>,
        found: &mut Reconciled,
    ) -> Result<u64, Error> {
        let mut known = 0;
        for SnapshotRow { name, source, presence, .. } in catalog.snapshots()? {
            match (there.contains(&name.id), presence) {
                (true, presence) => {
                    known += 1;
                    if presence != Presence::There {
                        catalog.set_there(name.id, None)?;
                    }
                }
                (false, Presence::NotFound) => {}
                (false, presence) => {
                    catalog.set_not_found(name.id)?;
                    if presence == Presence::There {
                        found.gone_snapshots += 1;
                        self.monitor.note(&format!(
                            "the snapshot {} of {source} ({}) is gone",
                            name.id.short(),
                            name.time
                        ));
                    }
                }
            }
        }
        Ok(known)
    }
}

/// Whether an object is that of another host, and as good as it should be.
pub(super) fn is_foreign(error: &repository::Error) -> bool {
    matches!(
        error,
        repository::Error::Stranger { .. } | repository::Error::Crypt { source: crypt::Error::NoKey { .. }, .. }
    )
}
