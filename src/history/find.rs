//! Finds entries by name, kind, time and size in all snapshots.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::{Error, SnapshotScan, is_same};
use crate::archive::{Archive, EntryHandle, EntryRef, OpenSnapshot, SnapshotDirectory, TreeWalk, WalkStep};
use crate::format::{Kind, Timestamp};
use crate::monitor::Monitor;
use crate::source::{Pattern, Patterns};

/// Conditions for entries. An entry must meet all of them.
pub struct Query {
    /// Patterns for the name or path, as in a `.gitignore` at the snapshot's root.
    pub patterns: Vec<String>,
    /// Whether patterns ignore case.
    pub ignore_case: bool,
    /// Accepted kinds; empty for any.
    pub kinds: Vec<Kind>,
    /// Minimum modification time, inclusive.
    pub newer: Option<Timestamp>,
    /// Maximum modification time, exclusive.
    pub older: Option<Timestamp>,
    /// Minimum size of files in bytes, exclusive.
    pub larger: Option<u64>,
    /// Maximum size of files in bytes, exclusive.
    pub smaller: Option<u64>,
}

/// The snapshots to search.
pub enum SearchScope {
    /// All snapshots, or those of the source with this name.
    All(Option<String>),
    /// One snapshot.
    One(Arc<OpenSnapshot>),
}

/// A matching entry.
pub struct Match<'f> {
    /// The newest snapshot with this version of the entry.
    pub snapshot: &'f OpenSnapshot,
    /// Path below the snapshot's root.
    pub path: &'f [u8],
    /// The entry.
    pub listed: &'f EntryHandle,
}

/// Calls `found` with each match: source by source, newest snapshot first, in order of paths within a snapshot. An entry
/// whose version (kind, time, content) is the same at the same path in the next newer snapshot is skipped. Problems go to
/// `monitor`; returns their number.
pub fn find(
    archive: &dyn Archive,
    within: SearchScope,
    query: &Query,
    monitor: &dyn Monitor,
    found: &mut dyn FnMut(&Match<'_>) -> io::Result<()>,
) -> Result<u64, Error> {
    let globs: Vec<_> = query.patterns.iter().map(Pattern::new).collect();
    let root = Path::new("/");
    let patterns =
        if query.ignore_case { Patterns::ignoring_case(root, &globs)? } else { Patterns::new(root, &globs)? };
    let scan = SnapshotScan::new(archive, monitor);
    let mut search = Search { scan, query, patterns, found };
    match within {
        SearchScope::One(snapshot) => {
            search.scan.opened = true;
            search.search_snapshot(&snapshot, None)?;
        }
        SearchScope::All(source) => search.search_lineages(source.as_deref())?,
    }
    search.scan.finish()
}

/// A search in progress.
struct Search<'s> {
    scan: SnapshotScan<'s>,
    query: &'s Query,
    patterns: Patterns,
    found: &'s mut dyn FnMut(&Match<'_>) -> io::Result<()>,
}

/// A directory on the path to the current entry.
struct PathLevel {
    /// Length of the path of its parent, in bytes.
    above: usize,
    /// The directory at the same path in the newer snapshot.
    newer: Option<SnapshotDirectory>,
}

impl Search<'_> {
    fn search_lineages(&mut self, source: Option<&str>) -> Result<(), Error> {
        for lineage in self.scan.lineages(source)? {
            let mut newer: Option<Arc<OpenSnapshot>> = None;
            let archive = self.scan.archive;
            for name in archive.in_turn(&lineage) {
                if let Some(snapshot) = self.scan.snapshot(name)? {
                    self.search_snapshot(&snapshot, newer.as_ref())?;
                    newer = Some(snapshot);
                }
            }
        }
        Ok(())
    }

    /// Searches a snapshot for entries that differ from those in `newer`, which was searched before.
    fn search_snapshot(
        &mut self,
        snapshot: &Arc<OpenSnapshot>,
        newer: Option<&Arc<OpenSnapshot>>,
    ) -> Result<(), Error> {
        let top = |snapshot: &Arc<OpenSnapshot>| snapshot.root.directory();
        let Some(root) = top(snapshot) else { return Ok(()) };
        let newer = newer.and_then(top);
        if newer.as_ref().is_some_and(|newer| root.has_same_tree(newer)) {
            return Ok(());
        }
        let archive = self.scan.archive;
        let mut walk = TreeWalk::new(archive, root);
        let mut path = Vec::new();
        let mut levels = vec![PathLevel { above: 0, newer }];
        while let Some(step) = walk.step() {
            let listed = match step {
                WalkStep::Entry(listed) => listed,
                WalkStep::Leave => {
                    path.truncate(levels.pop().map_or(0, |level| level.above));
                    continue;
                }
                WalkStep::Failed(error) => {
                    let place = format!("{}:{}", snapshot.name.id.short(), String::from_utf8_lossy(&path));
                    self.scan.problem(place.as_ref(), error)?;
                    continue;
                }
            };
            let above = path.len();
            path.extend_from_slice(listed.entry().name);
            let (fits, below) = (self.fits(&path, &listed.entry()), listed.directory());
            let newer = if fits || below.is_some() {
                levels.last().and_then(|level| counterpart(archive, level, listed.entry().name))
            } else {
                None
            };
            if fits && !newer.as_ref().is_some_and(|newer| is_same(newer, &listed)) {
                (self.found)(&Match { snapshot, path: &path, listed: &listed })?;
            }
            let newer = newer.and_then(|newer| newer.directory());
            match below.filter(|below| !newer.as_ref().is_some_and(|newer| below.has_same_tree(newer))) {
                Some(below) => {
                    path.push(b'/');
                    levels.push(PathLevel { above, newer });
                    walk.enter(below);
                }
                None => path.truncate(above),
            }
        }
        Ok(())
    }

    fn fits(&self, path: &[u8], entry: &EntryRef<'_>) -> bool {
        let query = self.query;
        let is_sized = query.larger.is_some() || query.smaller.is_some();
        (query.kinds.is_empty() || query.kinds.contains(&entry.kind))
            && query.newer.is_none_or(|time| entry.mtime >= time)
            && query.older.is_none_or(|time| entry.mtime < time)
            && (!is_sized || entry.kind == Kind::File)
            && query.larger.is_none_or(|size| entry.size > size)
            && query.smaller.is_none_or(|size| entry.size < size)
            && self.patterns.matches(Path::new(OsStr::from_bytes(path)), entry.kind == Kind::Directory)
    }
}

/// Returns the entry at the same path in the newer snapshot. Read errors are ignored here: they were reported when that
/// snapshot was searched.
fn counterpart(archive: &dyn Archive, level: &PathLevel, name: &[u8]) -> Option<EntryHandle> {
    archive.lookup(level.newer.as_ref()?, name).ok().flatten()
}
