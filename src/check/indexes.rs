//! Reads indexes and tombstones, and compares them with the listing of packs.

use std::collections::HashSet;
use std::path::Path;

use super::packs::Conflict;
use super::record::RecordHeader;
use super::{Checker, Error};
use crate::failure::Failure;
use crate::format::forgotten::{Forgotten, Newest};
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::name::{self, SnapshotName};
use crate::reader;
use crate::repository::Access;
use crate::storage::ObjectInfo;

impl Checker<'_> {
    /// Reads indexes. Those that another one replaces are ignored, and so are objects whose names are not those of
    /// indexes.
    pub(super) fn indexes(&mut self, objects: &[ObjectInfo]) -> Result<(), Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        let (mut unopened, mut replaced) = (Vec::new(), HashSet::<ObjectId>::new());
        for ObjectInfo { name: object, .. } in repository.target().in_turn(objects, Access::read_of_document) {
            let Some(id) = name::parse_index(object) else { continue };
            self.check_interrupted()?;
            let number = self.indexes.len() as u32;
            self.indexes.push(id);
            let index = match access.index(repository, id).map_err(reader::Error::from) {
                Ok(index) => index,
                Err(error) if error.is_key_problem() => {
                    self.unopened(Path::new(object), error)?;
                    self.known.index.is_incomplete = true;
                    continue;
                }
                // It may be replaced.
                Err(error) => {
                    unopened.push((id, error));
                    continue;
                }
            };
            self.known.index.add(object.clone(), index.generation);
            self.known.index.replace(index.replaces.iter().map(|id| name::index(*id)), index.generation);
            replaced.extend(&index.replaces);
            self.indexed_snapshots.extend(index.snapshots.iter().map(|usage| (usage.snapshot.clone(), number)));
            for pack in &index.packs {
                self.packs.add(number, pack)?;
            }
            for carrier in &index.carriers {
                self.packs.add_carrier(number, carrier)?;
            }
        }
        for (id, error) in unopened.into_iter().filter(|(id, _)| !replaced.contains(id)) {
            let object = name::index(id);
            self.known.index.is_incomplete = true;
            self.unopened(Path::new(&object), error)?;
            self.unreadable.get_or_insert(object);
        }
        let indexes = &self.indexes;
        let is_ignored = |number: u32| indexes.get(number as usize).is_none_or(|id| replaced.contains(id));
        self.indexed_snapshots.retain(|(_, number)| !is_ignored(*number));
        for Conflict { pack, indexes: [one, other] } in self.packs.finish(is_ignored)? {
            let (one, other) = (self.index_name(one), self.index_name(other));
            self.problem(Path::new(&name::pack(pack)), &format!("{one} and {other} differ about its blocks"));
        }
        Ok(())
    }

    /// Reads tombstones. Returns the forgotten snapshots. The census counts all documents; only the newest ones hide
    /// anything.
    pub(super) fn tombstones(&mut self, objects: &[ObjectInfo]) -> Result<Vec<SnapshotName>, Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        let mut newest = Newest::<(Vec<_>, Vec<_>)>::default();
        for ObjectInfo { name: object, .. } in repository.target().in_turn(objects, Access::read_of_document) {
            let Some(id) = name::parse_forgotten(object) else { continue };
            self.check_interrupted()?;
            match access.forgotten(repository, id) {
                Ok(Forgotten { generation, snapshots, packs, replaces }) => {
                    self.known.forgotten.add(object.clone(), generation);
                    self.known.forgotten.replace(replaces.into_iter().map(name::forgotten), generation);
                    if let Some((hidden, condemned)) = newest.of(generation) {
                        hidden.extend(snapshots);
                        condemned.extend(packs);
                    }
                }
                Err(error) => {
                    self.known.forgotten.is_incomplete = true;
                    self.unopened(Path::new(object), error.into())?;
                }
            }
        }
        let (mut snapshots, condemned) = newest.content;
        for pack in condemned {
            if let Some(row) = self.packs.find(pack) {
                self.packs.set_condemned(row);
            }
        }
        snapshots.sort_unstable();
        snapshots.dedup();
        Ok(snapshots)
    }

    /// Compares the lengths of packs in indexes with the actual lengths.
    pub(super) fn lengths(&mut self) -> Result<(), Error> {
        for row in 0..self.packs.len() {
            let (Some(pack), Some(header)) = (self.packs.id(row), self.packs.header(row)?) else { continue };
            let RecordHeader { index, digest, length, .. } = header;
            if digest.is_none() {
                self.packs.set_gone(row);
                continue;
            }
            let found = match self.packs.length(row) {
                Some(found) if found == length => continue,
                None if self.packs.is_condemned(row) => continue,
                Some(found) => format!("it has {found} bytes"),
                None => "it is missing".to_owned(),
            };
            let why = format!("{found}, but should have {length} bytes according to {}", self.index_name(index));
            match self.packs.length(row) {
                Some(_) => self.flaw(pack, why),
                None => self.lost.entry(pack).or_default().flaw = Some(why),
            }
            self.packs.set_misfit(row);
        }
        Ok(())
    }
}

/// The ids of snapshots.
pub(super) fn ids(snapshots: &[SnapshotName]) -> HashSet<SnapshotId> {
    snapshots.iter().map(|name| name.id).collect()
}
