//! Writes tombstones and holds.
//!
//! One document has all tombstones, and replaces those of earlier runs. The catalog is committed after it is written: if the
//! run is killed in between, the next one finds the document.

use super::error::Error;
use super::open::Session;
use crate::catalog::{Catalog, Folder, Presence};
use crate::format::forgotten::Forgotten;
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::index::Index;
use crate::format::usage::Hold;

impl Session<'_> {
    /// Writes the tombstones of all snapshots that are forgotten, and all packs that are condemned, in the catalog, and
    /// commits.
    ///
    /// The run must be announced before rows change: the announcement commits the catalog.
    pub fn put_tombstones(&self, catalog: &mut Catalog) -> Result<(), Error> {
        if !self.is_announced() {
            return Err(Error::Internal("tombstones were changed before the run was announced"));
        }
        let rows = catalog.snapshots()?.into_iter().filter(|row| row.presence.is_forgotten());
        let mut snapshots: Vec<_> = rows.map(|row| row.name).collect();
        snapshots.sort_unstable();
        let retained = catalog.retained_packs()?;
        let packs =
            catalog.doomed_packs()?.iter().map(|pack| pack.id).chain(retained.iter().map(|pack| pack.id)).collect();
        let generation = self.generation();
        // A document replaces only those of earlier runs.
        let earlier = catalog.documents()?.into_iter().filter(|document| {
            document.folder == Folder::Forgotten && document.replaced.is_none() && document.generation < generation
        });
        let replaces = earlier.map(|document| document.id).collect();
        let (id, forgotten) = (ObjectId::random(), Forgotten { generation, snapshots, packs, replaces });
        self.still_alone()?;
        self.writer().put_forgotten(id, &forgotten)?;
        catalog.add_document(Folder::Forgotten, id, generation, &forgotten.replaces)?;
        catalog.set_tombstones_written(generation)?;
        Ok(catalog.commit()?)
    }

    /// Forgets snapshots that are not in the repository, and commits.
    ///
    /// Their tombstones are written before a run is announced whose census counts them: snapshots that are counted, and have
    /// neither an object nor a tombstone, are lost.
    pub fn forget_missing(&mut self, catalog: &mut Catalog, snapshots: &[SnapshotId]) -> Result<(), Error> {
        if snapshots.is_empty() {
            return Ok(());
        }
        self.announce(catalog)?;
        snapshots.iter().try_for_each(|id| catalog.set_missing(*id, Presence::Forgotten))?;
        self.put_tombstones(catalog)?;
        self.announce_again(catalog)
    }

    /// Holds or releases snapshots, and commits.
    pub fn put_holds(&self, catalog: &mut Catalog, holds: Vec<Hold>) -> Result<(), Error> {
        self.announce(catalog)?;
        self.still_alone()?;
        let (id, index) = (ObjectId::random(), Index { generation: self.generation(), holds, ..Index::default() });
        self.writer().put_index(id, &index)?;
        catalog.add_index(id, &index)?;
        Ok(catalog.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::SnapshotRow;
    use crate::format::id::SourceId;
    use crate::format::name::{self, SnapshotName};
    use crate::session::fixture::Site;

    fn row(sequence: u64, presence: Presence) -> SnapshotRow {
        let (source, id) = (SourceId::random(), SnapshotId::random());
        SnapshotRow {
            name: SnapshotName { source, sequence, time: "20261120T145201Z".into(), id },
            source: "home".into(),
            labels: Default::default(),
            files: 0,
            bytes: 0,
            stored_bytes: 0,
            presence,
            is_held: false,
            root: Default::default(),
        }
    }

    #[test]
    fn a_document_has_all_tombstones_and_replaces_those_of_earlier_runs() {
        let site = Site::new();
        let put = |rows: &[SnapshotRow]| {
            site.with_session(|session, mut catalog| {
                session.announce(&mut catalog).unwrap();
                for row in rows {
                    let source = catalog.add_source(row.name.source, "home").unwrap();
                    catalog.add_snapshot(row, source, None).unwrap();
                }
                session.put_tombstones(&mut catalog).unwrap();
                session.put_tombstones(&mut catalog).unwrap();
                catalog.set_finished().unwrap();
                catalog.commit().unwrap();
                let mut documents = catalog.documents().unwrap();
                documents.retain(|document| document.folder == Folder::Forgotten);
                let read = |id| session.access().forgotten(session.repository(), id).unwrap();
                documents.into_iter().map(|document| (document, read(document.id))).collect::<Vec<_>>()
            })
        };
        let [swept, forgotten, there, more] = [
            row(1, Presence::Swept),
            row(2, Presence::Forgotten),
            row(3, Presence::There),
            row(4, Presence::Forgotten),
        ];
        let first = put(&[swept.clone(), forgotten.clone(), there]);
        let mut named = vec![swept.name, forgotten.name];
        named.sort();
        assert_eq!(first.len(), 2);
        assert!(first.iter().all(|(document, read)| {
            (document.replaced, document.generation, &read.snapshots, read.replaces.len()) == (None, 1, &named, 0)
        }));
        named.push(more.name.clone());
        named.sort();
        let second = put(&[more]);
        let replaced: Vec<_> = second.iter().filter(|(document, _)| document.replaced.is_some()).collect();
        assert_eq!((second.len(), replaced.len()), (4, 2));
        let current: Vec<_> = second.iter().filter(|(document, _)| document.replaced.is_none()).collect();
        assert!(current.iter().all(|(_, read)| read.snapshots == named));
        assert_eq!(current.iter().map(|(_, read)| read.replaces.len()).sum::<usize>(), 2);
        assert_eq!(site.count(name::FORGOTTEN), 4);
    }

    #[test]
    fn tombstones_need_an_announcement() {
        let site = Site::new();
        site.with_session(|session, mut catalog| {
            assert!(matches!(session.put_tombstones(&mut catalog), Err(Error::Internal(_))));
        });
        assert_eq!(site.count(name::FORGOTTEN), 0);
    }
}
