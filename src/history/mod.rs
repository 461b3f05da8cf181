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
use std::path::Path;

pub use error::Error;
pub use find::{Found, Wanted, Within, find};
pub use versions::{Stretch, versions};

use crate::format::entry::Content;
use crate::format::id::SourceId;
use crate::format::name::SnapshotName;
use crate::monitor::Monitor;
use crate::reader::{Directory, Listed, Reader};

/// The snapshots of one source, newest first.
type Lineage = Vec<SnapshotName>;

/// A look at many snapshots, of which some may be damaged.
struct Look<'l> {
    reader: &'l Reader,
    monitor: &'l dyn Monitor,
    /// What could not be read; each was named.
    problems: u64,
}

impl Look<'_> {
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

    /// Names what could not be read, and goes on; but without the right key there is nothing to go on with.
    fn problem(&mut self, what: &Path, error: crate::reader::Error) -> Result<(), Error> {
        if error.is_key_problem() {
            return Err(error.into());
        }
        self.problems += 1;
        self.monitor.problem(what, &error.to_string());
        Ok(())
    }
}

/// Whether two entries are the same version of what they stand for: same kind, time and content. Owners, modes and
/// attributes don't count, and of directories what is in them doesn't either.
fn is_same(a: &Listed, b: &Listed) -> bool {
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
fn is_same_tree(a: &Directory, b: &Directory) -> bool {
    let digest = |directory: &Directory| directory.node().map(|(_, chunk)| chunk.digest);
    a.below() == b.below() && digest(a) == digest(b)
}
