//! What made a source grow: the directories with the most bytes in new and changed files.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::diff::{ChangeKind, ComparedTree, diff};
use super::error::Error;
use crate::archive::{Archive, EntryHandle, OpenSnapshot};
use crate::format::Kind;
use crate::monitor::Monitor;

/// Directories deeper than this count for the one above them.
const DEPTH: usize = 3;
/// Maximum number of directories in memory.
const MOST: usize = 50_000;

/// A directory, and the size of the new and changed files in it and below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// The path from the snapshot's root; empty for the root itself.
    pub path: Vec<u8>,
    /// The size of the files.
    pub bytes: u64,
}

/// Returns the `count` directories with the most bytes in files that are new or changed in `after`, largest first. Files are
/// counted once, in a directory at most three levels deep. Problems go to `monitor`.
pub fn growth(
    archive: &dyn Archive,
    before: &Arc<OpenSnapshot>,
    after: &Arc<OpenSnapshot>,
    count: usize,
    monitor: &dyn Monitor,
) -> Result<Vec<Growth>, Error> {
    let mut sizes = BTreeMap::new();
    let [before, after] = [before, after].map(|snapshot| ComparedTree { snapshot, path: b"" });
    diff(archive, &before, &after, b"", monitor, &mut |change| {
        let is_new = matches!(change.kind(), ChangeKind::Added | ChangeKind::Content | ChangeKind::Kind);
        if let Some(entry) = change.after.filter(|_| is_new).map(EntryHandle::entry)
            && entry.kind == Kind::File
        {
            let size: &mut u64 = sizes.entry(directory(change.path)).or_default();
            *size = size.saturating_add(entry.size);
            if sizes.len() > MOST {
                sizes =
                    largest(std::mem::take(&mut sizes), MOST / 2).into_iter().map(|it| (it.path, it.bytes)).collect();
            }
        }
        Ok(())
    })?;
    Ok(largest(sizes, count))
}

/// The directory that a file counts for.
fn directory(path: &[u8]) -> Vec<u8> {
    let names: Vec<_> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let above = names.len().saturating_sub(1).min(DEPTH);
    names.get(..above).unwrap_or_default().join(&b'/')
}

fn largest(sizes: BTreeMap<Vec<u8>, u64>, count: usize) -> Vec<Growth> {
    let mut all: Vec<_> = sizes.into_iter().map(|(path, bytes)| Growth { path, bytes }).collect();
    all.sort_by_key(|growth| std::cmp::Reverse(growth.bytes));
    all.truncate(count);
    all.retain(|growth| growth.bytes > 0);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_for_directories_near_the_root() {
        let of = |path: &str| String::from_utf8(directory(path.as_bytes())).unwrap();
        assert_eq!(["a", "a/b", "a/b/c/d", "a/b/c/d/e/f"].map(of), ["", "a", "a/b/c", "a/b/c"]);
        let sizes = [(b"a".to_vec(), 1), (b"b".to_vec(), 3), (b"c".to_vec(), 0), (b"d".to_vec(), 2)];
        let bytes: Vec<_> = largest(sizes.into(), 3).iter().map(|growth| growth.bytes).collect();
        assert_eq!(bytes, [3, 2, 1]);
    }
}
