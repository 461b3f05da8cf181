//! Searches across the snapshots of a repository.
//!
//! - [`mod@diff`]: the differences between two snapshots
//! - [`mod@versions`]: the versions of one path
//! - [`mod@growth`]: the directories with the most new data
//! - [`mod@find`]: finds entries by name and other conditions
//!
//! The snapshots of a source are read from newest to oldest, and each is compared only with the one read before it.
//! Unchanged subtrees share a node and are skipped. So only the names of snapshots are held in memory, and results are
//! returned as they are found.

mod diff;
mod error;
mod find;
mod growth;
mod versions;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use diff::{Change, ChangeKind, ComparedTree, Counts, DiffSummary, Field, diff};
pub use error::Error;
pub use find::{Match, Query, SearchScope, find};
pub use growth::{Growth, growth};
pub use versions::{VersionSpan, versions};

use crate::archive::{self, Archive, EntryHandle, OpenSnapshot};
use crate::failure::Failure;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::monitor::Monitor;

/// The snapshots of one source, newest first.
type Lineage = Vec<SnapshotName>;

/// Reads many snapshots, of which some may be damaged.
struct SnapshotScan<'l> {
    archive: &'l dyn Archive,
    monitor: &'l dyn Monitor,
    /// Number of problems reported to the monitor.
    problems: u64,
    /// Whether the key has opened an object.
    opened: bool,
    /// Key errors not reported yet because the key has opened nothing so far.
    closed: Vec<(PathBuf, archive::Error)>,
}

impl<'l> SnapshotScan<'l> {
    fn new(archive: &'l dyn Archive, monitor: &'l dyn Monitor) -> Self {
        SnapshotScan { archive, monitor, problems: 0, opened: false, closed: Vec::new() }
    }

    /// Opens a snapshot. If it cannot be read, reports a problem and returns `None`.
    fn snapshot(&mut self, name: &SnapshotName) -> Result<Option<Arc<OpenSnapshot>>, Error> {
        match self.archive.open(name) {
            Ok(snapshot) => {
                self.opened = true;
                for (path, error) in std::mem::take(&mut self.closed) {
                    self.report(&path, &error);
                }
                Ok(Some(snapshot))
            }
            Err(error) => self.problem(name.object().as_ref(), error).map(|()| None),
        }
    }

    /// Returns the number of problems, or the first key error if the key opened nothing.
    fn finish(self) -> Result<u64, Error> {
        match self.closed.into_iter().next() {
            Some((_, error)) => Err(error.into()),
            None => Ok(self.problems),
        }
    }

    fn report(&mut self, path: &Path, error: &archive::Error) {
        self.problems += 1;
        self.monitor.problem(path, &error.to_string());
    }

    /// Returns the snapshots of each source, or of the sources called `source`; the most recently backed up source first.
    fn lineages(&mut self, source: Option<&str>) -> Result<Vec<Lineage>, Error> {
        let mut lineages: Vec<(SourceId, Lineage)> = Vec::new();
        let mut places = HashMap::new();
        for name in self.archive.snapshots()?.into_iter().rev() {
            let at = *places.entry(name.source).or_insert(lineages.len());
            match lineages.get_mut(at) {
                Some((_, lineage)) => lineage.push(name),
                None => lineages.push((name.source, vec![name])),
            }
        }
        let Some(wanted) = source else {
            return Ok(lineages.into_iter().map(|(_, lineage)| lineage).collect());
        };
        let ids: Vec<_> = lineages.iter().map(|(id, _)| *id).collect();
        self.archive.begin(&[], &ids);
        let mut called = Vec::new();
        for (id, lineage) in lineages {
            match self.archive.source_name(id) {
                Ok(name) if name == wanted => called.push(lineage),
                Ok(_) => {}
                Err(error) => self.problem(format!("source {id}").as_ref(), error)?,
            }
        }
        if called.is_empty() { Err(Error::NoSource(wanted.to_owned())) } else { Ok(called) }
    }

    /// Reports an object or path that cannot be read. Key errors are held back until the key has opened an object: it may
    /// be the wrong key.
    fn problem(&mut self, path: &Path, error: archive::Error) -> Result<(), Error> {
        if self.opened || !error.is_key_problem() {
            self.report(path, &error);
        } else if self.archive.is_hopeless(self.closed.len()) {
            return Err(error.into());
        } else {
            self.closed.push((path.to_owned(), error));
        }
        Ok(())
    }
}

/// Whether two entries are the same version: same kind, time and content. Owners, modes, attributes and the contents of
/// directories are not compared.
fn is_same(a: &EntryHandle, b: &EntryHandle) -> bool {
    let version = |of: &EntryHandle| {
        let entry = of.entry();
        // The size is part of it because an empty file has no digest.
        (entry.kind, entry.size, entry.mtime, entry.device, of.digest())
    };
    version(a) == version(b) && a.entry().target == b.entry().target
}
