//! Compares the documents in the repository with the census of the last run.
//!
//! Additional documents are only noted: they are signed, so a run wrote them. The storage may have listed them late.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::{Checker, Error};
use crate::format::generation::{Generation, NameSet};
use crate::format::name::{self, GenerationName, SnapshotName};
use crate::monitor;

/// The documents of a folder.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// Names and generations of those that were opened.
    opened: HashMap<String, u64>,
    /// Names of those that others replace, with the lowest generation of these.
    replaced: HashMap<String, u64>,
    /// Whether a document could not be opened.
    pub(super) is_incomplete: bool,
}

/// The documents that a census counts, apart from snapshots.
#[derive(Debug, Default)]
pub(super) struct KnownDocuments {
    pub(super) index: Documents,
    pub(super) moved: Documents,
    pub(super) forgotten: Documents,
    pub(super) secrets: Documents,
}

impl Documents {
    pub(super) fn add(&mut self, object: String, generation: u64) {
        self.opened.insert(object, generation);
    }

    pub(super) fn replace(&mut self, objects: impl Iterator<Item = String>, generation: u64) {
        for object in objects {
            let replaced = self.replaced.entry(object).or_insert(generation);
            *replaced = generation.min(*replaced);
        }
    }

    /// The highest generation of the documents that were opened.
    fn newest(&self) -> u64 {
        self.opened.values().copied().max().unwrap_or(0)
    }

    /// The names of the documents on which a run of `generation` relied when it began. Documents that were replaced since
    /// then may have been removed.
    fn counted(&self, generation: u64) -> Vec<String> {
        let is_replaced = |object: &String| self.replaced.get(object).is_some_and(|replaced| *replaced < generation);
        let opened = self.opened.iter().filter(|(object, written)| **written < generation && !is_replaced(object));
        let removed = self.replaced.keys().filter(|object| !self.opened.contains_key(*object) && !is_replaced(object));
        opened.map(|(object, _)| object).chain(removed).cloned().collect()
    }
}

impl Checker<'_> {
    /// Opens these generations. Returns the last one that verifies.
    pub(super) fn generations(&mut self, objects: &[String]) -> Result<Option<Generation>, Error> {
        let (access, repository) = (self.reader.access(), self.reader.repository());
        let mut last = None;
        for object in objects {
            self.check_interrupted()?;
            let Some(name) = GenerationName::parse(object) else { continue };
            match access.generation(repository, name) {
                Ok(generation) => last = Some(generation),
                Err(error) => self.unopened(Path::new(object), error.into())?,
            }
        }
        Ok(last)
    }

    /// Compares documents with the census of the last generation: these snapshots, in the repository or forgotten, and the
    /// documents that were opened.
    pub(super) fn census(
        &mut self,
        last: &Generation,
        snapshots: &[SnapshotName],
        forgotten: &[SnapshotName],
    ) -> Result<(), Error> {
        let newest = self.list(name::GENERATION)?.iter().filter_map(|object| GenerationName::parse(object)).max();
        if newest.is_some_and(|newest| newest.number > last.number) {
            // A run that began meanwhile may have removed documents. An older one that does not verify was reported.
            return Ok(());
        }
        let number = last.number;
        let KnownDocuments { index, moved, forgotten: tombstones, secrets } = &self.known;
        let documents = [index, moved, tombstones, secrets].map(Documents::newest);
        if let Some(later) = documents.into_iter().max().filter(|later| *later > number) {
            self.monitor.note(&format!(
                "{} has no census of the run {later}, which wrote documents; whether documents are missing is not known",
                name::GENERATION
            ));
            return Ok(());
        }
        let both = snapshots.iter().chain(forgotten).filter(|name| name.sequence < number);
        let snapshots: HashSet<_> = both.map(SnapshotName::object).collect();
        for (folder, expected) in last.census.sets() {
            let documents = match folder {
                name::INDEX => &self.known.index,
                name::MOVED => &self.known.moved,
                name::FORGOTTEN => &self.known.forgotten,
                name::SECRETS => &self.known.secrets,
                _ if self.known.forgotten.is_incomplete => continue,
                _ => {
                    self.compare(folder, expected, snapshots.iter().cloned().collect(), last);
                    continue;
                }
            };
            if !documents.is_incomplete {
                self.compare(folder, expected, documents.counted(number), last);
            }
        }
        Ok(())
    }

    fn compare(&mut self, folder: &str, expected: NameSet, names: Vec<String>, last: &Generation) {
        let found = NameSet::of(names);
        if found == expected {
            return;
        }
        let counted = format!("{} counted {}", last.name().object(), expected.count);
        if found.count > expected.count {
            let added = monitor::count(found.count - expected.count, "object", "objects");
            self.monitor.note(&format!(
                "{folder} has {added} that the last run did not know ({counted}), such as those of a run that its machine forgot; this is harmless"
            ));
            return;
        }
        let why = match expected.count - found.count {
            0 => "objects are missing, and as many were added".to_owned(),
            missing => format!("{} missing", monitor::count(missing, "object is", "objects are")),
        };
        self.problem(Path::new(folder), &format!("{why}: {counted}"));
    }
}
