//! What became of files over the snapshots of a repository.
//!
//! - [`mod@versions`]: what was at one path, and from when to when
//! - [`mod@find`]: where names are found
//!
//! The snapshots of a source are taken from the newest to the oldest, and each is compared with the one that was
//! looked at before it and no other: what did not change in between is the same node, and is passed over. So nothing
//! is kept but the names of snapshots, and what was found goes out at once.

mod error;
mod find;
mod versions;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::Error;
pub use find::{Match, Query, SearchScope, find};
pub use versions::{VersionSpan, versions};

use crate::format::entry::Content;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::format::snapshot::Snapshot;
use crate::monitor::Monitor;
use crate::reader::{self, EntryHandle, Reader, SnapshotDirectory};

/// The snapshots of one source, newest first.
type Lineage = Vec<SnapshotName>;

/// A look at many snapshots, of which some may be damaged.
struct SnapshotScan<'l> {
    reader: &'l Reader,
    monitor: &'l dyn Monitor,
    /// Problems so far; each was named.
    problems: u64,
    /// Whether the key opened something.
    opened: bool,
    /// Objects that the key did not open before it opened any.
    closed: Vec<(PathBuf, reader::Error)>,
}

impl<'l> SnapshotScan<'l> {
    fn new(reader: &'l Reader, monitor: &'l dyn Monitor) -> Self {
        SnapshotScan { reader, monitor, problems: 0, opened: false, closed: Vec::new() }
    }

    /// A snapshot, unless it cannot be read, which is a problem.
    fn snapshot(&mut self, name: &SnapshotName) -> Result<Option<Arc<Snapshot>>, Error> {
        match self.reader.snapshot(name) {
            Ok((snapshot, _)) => {
                self.opened = true;
                Ok(Some(snapshot))
            }
            Err(error) => self.problem(name.object().as_ref(), error).map(|()| None),
        }
    }

    /// The number of problems. If the key opened nothing at all, it is the wrong one.
    fn finish(mut self) -> Result<u64, Error> {
        let mut closed = std::mem::take(&mut self.closed);
        if !self.opened && !closed.is_empty() {
            return Err(closed.swap_remove(0).1.into());
        }
        for (what, error) in closed {
            self.name(&what, &error);
        }
        Ok(self.problems)
    }

    fn name(&mut self, what: &Path, error: &reader::Error) {
        self.problems += 1;
        self.monitor.problem(what, &error.to_string());
    }

    /// The snapshots of each source, or of those that are called `source`. The source that was backed up last
    /// comes first.
    fn lineages(&mut self, source: Option<&str>) -> Result<Vec<Lineage>, Error> {
        let mut lineages: Vec<(SourceId, Lineage)> = Vec::new();
        let mut places = HashMap::new();
        for name in self.reader.snapshots()?.into_iter().rev() {
            let at = *places.entry(name.source).or_insert(lineages.len());
            match lineages.get_mut(at) {
                Some((_, lineage)) => lineage.push(name),
                None => lineages.push((name.source, vec![name])),
            }
        }
        let Some(wanted) = source else {
            return Ok(lineages.into_iter().map(|(_, lineage)| lineage).collect());
        };
        let mut called = Vec::new();
        for (id, lineage) in lineages {
            match self.reader.source_name(id) {
                Ok(name) if name == wanted => called.push(lineage),
                Ok(_) => {}
                Err(error) => self.problem(format!("source {id}").as_ref(), error)?,
            }
        }
        match called.is_empty() {
            true => Err(Error::NoSource(wanted.to_owned())),
            false => Ok(called),
        }
    }

    /// Names an object or a path that cannot be read. If the key does not open it, it may be the wrong key, so that waits
    /// until it is known.
    fn problem(&mut self, what: &Path, error: reader::Error) -> Result<(), Error> {
        match error.is_key_problem() && !self.opened {
            true if self.reader.is_hopeless(self.closed.len()) => return Err(error.into()),
            true => self.closed.push((what.to_owned(), error)),
            false => self.name(what, &error),
        }
        Ok(())
    }
}

/// Whether two entries are the same version of what they stand for: same kind, time and content. Owners, modes and
/// attributes don't count, and of directories what is in them doesn't either.
fn is_same(a: &EntryHandle, b: &EntryHandle) -> bool {
    let (one, other) = (a.entry(), b.entry());
    let same = match (&one.content, &other.content) {
        (Content::Target(one), Content::Target(other)) => one == other,
        (Content::Device(..), Content::Device(..)) => one.content == other.content,
        // Of files, the identity knows.
        _ => true,
    };
    same && one.mtime == other.mtime && a.identity() == b.identity()
}

/// Whether all is the same below two directories. (Where the node lies, and in which place of a table that stands, does
/// not matter.)
fn is_same_tree(a: &SnapshotDirectory, b: &SnapshotDirectory) -> bool {
    let digest = |directory: &SnapshotDirectory| directory.node().map(|(_, chunk)| chunk.digest);
    a.below() == b.below() && digest(a) == digest(b)
}
