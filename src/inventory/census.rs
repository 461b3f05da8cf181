//! Proves that listings are complete.
//!
//! Each generation has a census: counts and digests of the names of all documents that its run relied on. If the catalog
//! agrees with the census of the last generation, and the listings with the catalog, then no index, snapshot, move,
//! tombstone or secrets document is missing, so what no index names is not needed, and what no snapshot uses is dead.

use std::collections::HashSet;

use super::context::Inventory;
use super::error::Error;
use crate::catalog::{Catalog, Presence};
use crate::format::generation::Generation;
use crate::format::name::{self, SnapshotName};
use crate::repository::Ahead;

/// What an object is that no known run wrote, and what to do.
const UNKNOWN: &str = "is not in the catalog. If this machine wrote it, run `brackfs catalog rebuild`";

/// The folders whose documents a census counts.
pub(super) const CENSUS_FOLDERS: [&str; 4] = [name::INDEX, name::MOVED, name::FORGOTTEN, name::SECRETS];

impl Inventory<'_> {
    /// Compares a catalog that was rebuilt or reconciled with the census of the last generation. If they do not agree, the
    /// catalog remembers the census: later generations count only what is known by then.
    ///
    /// Drops documents that were written later than this generation, or in another course of events, and are not listed: the
    /// repository was set back.
    pub fn prove(&self, catalog: &Catalog, last: Option<&Generation>) -> Result<(), Error> {
        let mut listed = HashSet::new();
        for folder in CENSUS_FOLDERS {
            listed.extend(self.repository.target().list(folder)?.into_iter().map(|object| object.name));
        }
        let mut unlisted = catalog.documents()?;
        unlisted.retain(|document| document.replaced.is_none() && !listed.contains(&document.object()));
        let number = last.map_or(0, |last| last.number);
        let (later, earlier): (Vec<_>, Vec<_>) =
            unlisted.into_iter().partition(|document| document.generation >= number);
        later.iter().try_for_each(|document| catalog.remove_document(document))?;
        let Some(last) = last else { return Ok(()) };
        if catalog.census(number)? == last.census {
            return Ok(());
        }
        earlier.iter().try_for_each(|document| catalog.remove_document(document))?;
        if catalog.census(number)? != last.census {
            for document in earlier {
                catalog.add_document(document.folder, document.id, document.generation, &[])?;
            }
            catalog.set_unproved(number, &last.census)?;
        }
        Ok(())
    }

    /// Compares the catalog with the census of the last generation, and listings with the catalog. Returns a reason to doubt
    /// that all documents are known and present, if there is one.
    pub fn doubt_of_listings(&self, catalog: &Catalog, last: &Generation) -> Result<Option<String>, Error> {
        if let Some(generation) = catalog.unproved()? {
            return Ok(Some(format!(
                "documents of generation {generation} were missing when the catalog was rebuilt or compared with the repository. Put them back, back up, and run `brackfs catalog rebuild`"
            )));
        }
        let known = catalog.census(last.number)?;
        for ((folder, found), (_, expected)) in known.sets().into_iter().zip(last.census.sets()) {
            if found != expected {
                return Ok(Some(format!(
                    "{folder} does not have the objects that {} counts ({} are known, {} are expected)",
                    last.name().object(),
                    found.count,
                    expected.count
                )));
            }
        }
        self.doubt_of_documents(catalog)
    }

    /// Compares listings with the catalog. Returns a reason to doubt that all documents are known and present, if there is
    /// one.
    pub fn doubt_of_documents(&self, catalog: &Catalog) -> Result<Option<String>, Error> {
        let folders = CENSUS_FOLDERS.into_iter().chain([name::SNAPSHOTS]);
        let reads = folders.map(|folder| Ahead::List(folder.to_owned())).collect();
        self.repository.target().reading_ahead(reads, || self.compare_documents(catalog))
    }

    fn compare_documents(&self, catalog: &Catalog) -> Result<Option<String>, Error> {
        let documents = catalog.documents()?;
        let known: HashSet<String> = documents.iter().map(|document| document.object()).collect();
        let mut listed = HashSet::new();
        for folder in CENSUS_FOLDERS {
            self.check_interrupted()?;
            for object in self.repository.target().list(folder)?.into_iter().map(|object| object.name) {
                if name::is_object(&object) {
                    if !known.contains(&object) {
                        return Ok(Some(format!("{object} {UNKNOWN}")));
                    }
                    listed.insert(object);
                }
            }
        }
        let valid = documents.iter().filter(|document| document.replaced.is_none());
        if let Some(missing) = valid.map(|document| document.object()).find(|object| !listed.contains(object)) {
            return Ok(Some(format!("{missing} is not listed")));
        }
        self.doubt_of_snapshots(catalog)
    }

    fn doubt_of_snapshots(&self, catalog: &Catalog) -> Result<Option<String>, Error> {
        let listed: HashSet<_> = self.repository.snapshots()?.into_iter().collect();
        let rows = catalog.snapshots()?;
        let known: HashSet<&SnapshotName> = rows.iter().map(|row| &row.name).collect();
        if let Some(unknown) = listed.iter().find(|name| !known.contains(name)) {
            return Ok(Some(format!("{} {UNKNOWN}", unknown.object())));
        }
        let there = rows.iter().filter(|row| row.presence == Presence::There);
        let missing = there.map(|row| &row.name).find(|name| !listed.contains(name));
        Ok(missing.map(|missing| format!("{} is not listed", missing.object())))
    }
}
