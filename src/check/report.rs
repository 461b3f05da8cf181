//! Problems, and doubts about missing objects.
//!
//! Another run may remove an object after the check listed it, such as a pack that a prune no longer needs. Such a run first
//! writes documents that explain the removal. So a missing object is only a doubt until the documents are listed again. If
//! they are unchanged, doubts are problems. Otherwise there is another pass: all documents are listed and read again, and the
//! structure is checked again. Objects that are still missing are reported.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use blake3::Hash;

use crate::format::generation::NameSet;
use crate::format::name;
use crate::monitor::Monitor;
use crate::repository::Repository;
use crate::storage::{self, Ahead};

/// Maximum number of passes. Doubts of the last one are problems.
const PASSES: u32 = 3;
/// Maximum number of doubts in memory.
const MAX_DOUBTS: usize = 1000;
/// The folders whose listings show that a run removed something, or is about to.
const WATCHED: [&str; 5] = [name::GENERATION, name::INDEX, name::MOVED, name::FORGOTTEN, name::SUMS];

/// Reports problems, each once, and notes.
pub(super) struct Report<'a> {
    repository: &'a Repository,
    monitor: &'a dyn Monitor,
    /// Digests of the problems that were reported.
    reported: HashSet<Hash>,
    /// The number of this pass.
    pass: u32,
    /// The first listing of each folder in this pass.
    listed: Vec<(&'static str, NameSet)>,
    doubts: Vec<Doubt>,
    /// Documents were changed during this pass, and something seemed to be missing. The next pass finds it again.
    is_outdated: bool,
    /// Printed at the end of the last pass.
    notes: Vec<String>,
    /// The target was away when documents had to be listed again.
    away: Option<storage::Error>,
}

/// An object or entry that seems to be missing.
struct Doubt {
    /// The lost object that is the cause, if it is reported as well.
    object: Option<String>,
    path: PathBuf,
    why: String,
}

impl<'a> Report<'a> {
    pub(super) fn new(repository: &'a Repository, monitor: &'a dyn Monitor) -> Self {
        Report {
            repository,
            monitor,
            reported: HashSet::new(),
            pass: 1,
            listed: Vec::new(),
            doubts: Vec::new(),
            is_outdated: false,
            notes: Vec::new(),
            away: None,
        }
    }

    /// The number of problems so far.
    pub(super) fn problems(&self) -> u64 {
        self.reported.len() as u64
    }

    /// Reports a problem, unless an earlier pass did.
    pub(super) fn problem(&mut self, path: &Path, why: &str) {
        self.problem_of(None, path, why);
    }

    /// The same for an entry that needs a lost object, which is reported as well.
    pub(super) fn problem_of(&mut self, object: Option<&str>, path: &Path, why: &str) {
        let digest = blake3::Hasher::new()
            .update(path.as_os_str().as_encoded_bytes())
            .update(&[0])
            .update(why.as_bytes())
            .finalize();
        if self.reported.insert(digest) {
            match object {
                _ if is_document(path) => self.monitor.main_problem(path, why),
                Some(object) => self.monitor.problem_of(object, path, why),
                None => self.monitor.problem(path, why),
            }
        }
    }

    /// Reports a problem that is none if another run removed the object on purpose.
    pub(super) fn doubt(&mut self, path: &Path, why: String) {
        self.doubt_of(None, path, why);
    }

    /// The same for an entry that needs a lost object, which is reported as well.
    pub(super) fn doubt_of(&mut self, object: Option<String>, path: &Path, why: String) {
        if self.is_outdated {
            return;
        }
        self.doubts.push(Doubt { object, path: path.to_owned(), why });
        if self.doubts.len() >= MAX_DOUBTS {
            self.settle();
        }
    }

    /// Prints a note at the end of the check.
    pub(super) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Remembers the first listing of a folder in this pass.
    pub(super) fn listed(&mut self, folder: &str, names: &[String]) {
        let Some(folder) = WATCHED.into_iter().find(|watched| *watched == folder) else { return };
        if self.listed.iter().all(|(known, _)| *known != folder) {
            self.listed.push((folder, set_of(names)));
        }
    }

    /// Reports the doubts so far, unless documents were changed.
    pub(super) fn settle(&mut self) {
        let doubts = std::mem::take(&mut self.doubts);
        if doubts.is_empty() || self.is_outdated || self.away.is_some() {
            return;
        }
        match self.is_changed() {
            Ok(is_changed) => self.is_outdated = self.pass < PASSES && is_changed,
            Err(error) => self.away = Some(error),
        }
        if !self.is_outdated && self.away.is_none() {
            // A lost folder comes before its documents, and documents come before what needs them.
            let mut doubts = doubts;
            doubts.sort_by_key(|doubt| (!is_folder(&doubt.path), !is_document(&doubt.path)));
            for Doubt { object, path, why } in doubts {
                self.problem_of(object.as_deref(), &path, &why);
            }
        }
    }

    /// Ends a pass. Returns whether another one is needed. Fails if the target was away.
    pub(super) fn end_pass(&mut self) -> Result<bool, storage::Error> {
        self.settle();
        if let Some(away) = self.away.take() {
            return Err(away);
        }
        let notes = std::mem::take(&mut self.notes);
        if !self.is_outdated {
            notes.iter().for_each(|note| self.monitor.note(note));
            return Ok(false);
        }
        self.is_outdated = false;
        self.listed.clear();
        self.pass += 1;
        Ok(true)
    }

    /// Whether documents were added or removed since they were listed. If they cannot be listed now, they count as unchanged,
    /// unless the target is away.
    fn is_changed(&self) -> Result<bool, storage::Error> {
        let target = self.repository.target();
        let listed: Vec<_> = self.listed.iter().collect();
        for (folder, before) in target.in_turn(&listed, |(folder, _)| Some(Ahead::List(folder.to_string()))) {
            match target.list(folder) {
                Ok(objects) => {
                    let names: Vec<_> = objects.into_iter().map(|object| object.name).collect();
                    if set_of(&names) != *before {
                        return Ok(true);
                    }
                }
                Err(error) if error.is_away() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(false)
    }
}

/// Whether this is a folder of the repository.
fn is_folder(path: &Path) -> bool {
    path.to_str().is_some_and(|path| name::FOLDERS.contains(&path))
}

/// Whether this is a folder, or an object other than a pack. There may be many packs and entries of snapshots.
fn is_document(path: &Path) -> bool {
    let is_document = |object: &str| name::is_object(object) && name::parse_pack(object).is_none();
    is_folder(path) || path.to_str().is_some_and(|path| !path.contains('/') || is_document(path))
}

fn set_of(names: &[String]) -> NameSet {
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    NameSet::of_sorted(names.into_iter())
}
