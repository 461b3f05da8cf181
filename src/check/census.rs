//! Compares the documents in the repository with the census of the last run.
//!
//! Additional documents are only noted if the rest are exactly those of the census. They are signed, so a run wrote them. The
//! storage may have listed them late.

use std::collections::HashSet;
use std::path::Path;

use super::{Checker, Error, of_target};
use crate::format::census::{DatedName, Documents, KnownDocuments, are_counted_except_some};
use crate::format::generation::{Generation, NameSet};
use crate::format::name::{self, GenerationName, SnapshotName};
use crate::monitor;
use crate::repository::Access;
use crate::storage::ObjectInfo;

impl Checker<'_> {
    /// Opens these generations. Returns the last one that verifies.
    pub(super) fn generations(&mut self, objects: &[ObjectInfo]) -> Result<Option<Generation>, Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        let mut last: Option<Generation> = None;
        for ObjectInfo { name: object, .. } in repository.target().in_turn(objects, Access::read_of_document) {
            self.check_interrupted()?;
            let Some(name) = GenerationName::parse(object) else { continue };
            match access.generation(repository, name) {
                Ok(generation) if last.as_ref().is_some_and(|last| last.number > generation.number) => {}
                Ok(generation) => last = Some(generation),
                Err(error) => self.unopened(Path::new(object), error.into())?,
            }
        }
        Ok(last)
    }

    /// Compares documents with the census of the last generation: these snapshots, in the repository or forgotten, and the
    /// documents that were opened. Looks for snapshots that only indexes name.
    pub(super) fn census(
        &mut self,
        last: Option<&Generation>,
        snapshots: &[SnapshotName],
        forgotten: &[SnapshotName],
    ) -> Result<(), Error> {
        let known: HashSet<_> = snapshots.iter().chain(forgotten).collect();
        let mut unlisted = std::mem::take(&mut self.indexed_snapshots);
        unlisted.retain(|(snapshot, _)| !known.contains(snapshot));
        let mut lost = Vec::new();
        for (snapshot, index) in unlisted {
            if !self.exists(&snapshot)? {
                lost.push((snapshot, index));
            }
        }
        let mut unlisted = lost;
        unlisted.sort_unstable_by_key(|(snapshot, _)| snapshot.sequence);
        let is_counted = |snapshot: &SnapshotName| last.is_some_and(|last| snapshot.sequence < last.number);
        for (snapshot, index) in unlisted.iter().filter(|(snapshot, _)| !is_counted(snapshot)) {
            self.report.note(format!(
                "{} names {}, which is missing: that backup is not finished or was interrupted, or the snapshot was lost",
                self.index_name(*index),
                snapshot.object()
            ));
        }
        let Some(last) = last else { return Ok(()) };
        let number = last.number;
        let KnownDocuments { index, moved, forgotten: tombstones, secrets } = &self.known;
        let documents = [index, moved, tombstones, secrets].map(Documents::newest);
        if let Some(later) = documents.into_iter().max().filter(|later| *later > number) {
            let listed = self.list(name::GENERATION)?;
            let newest = listed.iter().filter_map(|object| GenerationName::parse(&object.name)).max();
            if newest.is_some_and(|newest| newest.number > number) {
                // A run that began meanwhile. An older one that does not verify was reported.
                return Ok(());
            }
            self.report.note(format!(
                "{} has no census of the run {later}, which wrote documents; whether documents are missing is not known",
                name::GENERATION
            ));
            return Ok(());
        }
        let mut counted: Vec<_> =
            known.iter().filter(|name| is_counted(name)).map(|name| (name.object(), name.sequence)).collect();
        unlisted.retain(|(snapshot, _)| is_counted(snapshot));
        for (folder, expected) in last.census.sets() {
            let Some(documents) = self.known.of(folder) else {
                if !self.known.forgotten.is_incomplete {
                    self.find_lost(expected, &mut counted, &unlisted);
                    let found = compare(folder, expected, std::mem::take(&mut counted), last, || false);
                    self.report_difference(folder, found);
                }
                continue;
            };
            if !documents.is_incomplete {
                let is_explained = || documents.are_counted_except_runs(expected, number);
                let found = compare(folder, expected, documents.counted(number), last, is_explained);
                self.report_difference(folder, found);
            }
        }
        Ok(())
    }

    /// Whether a snapshot is in the repository, although it was not listed.
    fn exists(&self, snapshot: &SnapshotName) -> Result<bool, Error> {
        match self.reader.repository().target().length(&snapshot.object()) {
            Err(error) if error.is_away() => Err(of_target(error)),
            length => Ok(length.is_ok()),
        }
    }

    /// Reports snapshots that indexes name if the census counted them, and adds them to `counted`. It did not count those of
    /// interrupted backups.
    fn find_lost(&mut self, expected: NameSet, counted: &mut Vec<DatedName>, unlisted: &[(SnapshotName, u32)]) {
        let all =
            counted.iter().map(|(object, _)| object.clone()).chain(unlisted.iter().map(|(name, _)| name.object()));
        if unlisted.is_empty() || NameSet::of(all.collect()) != expected {
            return;
        }
        if let number @ 2.. = unlisted.len() {
            let why = format!("{number} snapshots are missing: indexes name them, and later runs counted them");
            self.report.doubt(Path::new(name::SNAPSHOTS), why);
        }
        for (snapshot, index) in unlisted {
            let why = format!("it is missing: {} names it, and later runs counted it", self.index_name(*index));
            self.report.doubt(Path::new(&snapshot.object()), why);
            counted.push((snapshot.object(), snapshot.sequence));
        }
    }

    fn report_difference(&mut self, folder: &str, found: Option<Difference>) {
        match found {
            Some(Difference::Added(note)) => self.report.note(note),
            // A host does not count documents of another one, and their successors replace those that it counts.
            Some(Difference::Unclear(why)) if self.reader.access().trusts_several_hosts() => {
                self.report.note(format!("{folder}: {why}; several hosts wrote to this repository"));
            }
            Some(Difference::Missing(why) | Difference::Unclear(why)) => self.report.doubt(Path::new(folder), why),
            None => {}
        }
    }
}

/// A difference between a folder and a census, in words.
enum Difference {
    Added(String),
    Missing(String),
    /// Objects were added, and others may be missing.
    Unclear(String),
}

/// Compares names with a census. If objects were added, `is_explained` may find out that none is missing.
fn compare(
    folder: &str,
    expected: NameSet,
    mut names: Vec<DatedName>,
    last: &Generation,
    is_explained: impl FnOnce() -> bool,
) -> Option<Difference> {
    names.sort_unstable();
    names.dedup_by(|(one, _), (other, _)| one == other);
    let found = NameSet::of_sorted(names.iter().map(|(name, _)| name.as_str()));
    if found == expected {
        return None;
    }
    let counted = format!("{} counted {}", last.name().object(), expected.count);
    if are_counted_except_some(expected, &names) || is_explained() {
        return Some(Difference::Added(format!(
            "{folder} has objects that the last run did not know ({} are known, {counted}), such as those of a run that its machine forgot; this is harmless",
            found.count
        )));
    }
    let objects = |number| monitor::count(number, "object is", "objects are");
    Some(match (expected.count.saturating_sub(found.count), found.count.saturating_sub(expected.count)) {
        (0, 0) => Difference::Missing(format!("objects are missing, and as many were added: {counted}")),
        (0, more) => Difference::Unclear(format!(
            "{} there that the last run did not know, and some that it knew may be missing: {counted}",
            objects(more)
        )),
        (missing, _) => Difference::Missing(format!("{} missing: {counted}", objects(missing))),
    })
}
