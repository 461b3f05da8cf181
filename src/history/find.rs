//! Names, looked for in many snapshots.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::{Error, SnapshotScan, is_same, is_same_tree};
use crate::format::snapshot::Snapshot;
use crate::format::{Entry, Kind, Timestamp};
use crate::monitor::Monitor;
use crate::reader::{EntryHandle, Reader, SnapshotDirectory, TreeWalk, WalkStep};
use crate::source::{Pattern, Patterns};

/// What is looked for: all of it must be so.
pub struct Query {
    /// The name or the path matches: patterns as in a `.gitignore` at the snapshot's root.
    pub patterns: Vec<String>,
    /// In patterns, upper and lower case are one.
    pub ignore_case: bool,
    /// It is one of these; none: it may be anything.
    pub kinds: Vec<Kind>,
    /// It was last changed then or later.
    pub newer: Option<Timestamp>,
    /// It was last changed before that.
    pub older: Option<Timestamp>,
    /// It is a file of more bytes.
    pub larger: Option<u64>,
    /// It is a file of fewer bytes.
    pub smaller: Option<u64>,
}

/// Where it is looked for.
pub enum SearchScope {
    /// In every snapshot, or those of the source that is called so.
    All(Option<String>),
    /// In one snapshot.
    One(Arc<Snapshot>),
}

/// Something that was found.
pub struct Match<'f> {
    /// The newest snapshot that has it as it is here.
    pub snapshot: &'f Snapshot,
    /// Its path below the snapshot's root.
    pub path: &'f [u8],
    /// What it is.
    pub listed: &'f EntryHandle,
}

/// Calls `found` with all that is wanted, source by source, newest snapshot first, and within a snapshot in order of
/// paths. What a snapshot has just as the one after it (kind, time, content), at the same path, is not named again.
/// Returns how much could not be read; it was named.
pub fn find(
    reader: &Reader,
    within: SearchScope,
    wanted: &Query,
    monitor: &dyn Monitor,
    found: &mut dyn FnMut(&Match<'_>) -> io::Result<()>,
) -> Result<u64, Error> {
    let globs: Vec<_> = wanted.patterns.iter().map(Pattern::new).collect();
    let patterns = match wanted.ignore_case {
        true => Patterns::ignoring_case(Path::new("/"), &globs)?,
        false => Patterns::new(Path::new("/"), &globs)?,
    };
    let look = SnapshotScan::new(reader, monitor);
    let mut search = Search { look, wanted, patterns, found };
    match within {
        SearchScope::One(snapshot) => {
            search.look.opened = true;
            search.one(&snapshot, None)?;
        }
        SearchScope::All(source) => search.all(source.as_deref())?,
    }
    search.look.finish()
}

/// A search that is under way.
struct Search<'s> {
    look: SnapshotScan<'s>,
    wanted: &'s Query,
    patterns: Patterns,
    found: &'s mut dyn FnMut(&Match<'_>) -> io::Result<()>,
}

/// A directory on the way to where a walk is.
struct PathLevel {
    /// Bytes of the path above it.
    above: usize,
    /// What is at its place in the newer snapshot, if that is a directory.
    newer: Option<SnapshotDirectory>,
}

impl Search<'_> {
    fn all(&mut self, source: Option<&str>) -> Result<(), Error> {
        for lineage in self.look.lineages(source)? {
            let mut newer: Option<Arc<Snapshot>> = None;
            for name in lineage {
                if let Some(snapshot) = self.look.snapshot(&name)? {
                    self.one(&snapshot, newer.as_ref())?;
                    newer = Some(snapshot);
                }
            }
        }
        Ok(())
    }

    /// Searches a snapshot for what is not the same in a `newer` one, which was searched already.
    fn one(&mut self, snapshot: &Arc<Snapshot>, newer: Option<&Arc<Snapshot>>) -> Result<(), Error> {
        let top = |snapshot: &Arc<Snapshot>| EntryHandle::root(snapshot.clone()).ok()?.directory();
        let Some(root) = top(snapshot) else { return Ok(()) };
        let newer = newer.and_then(top);
        if newer.as_ref().is_some_and(|newer| is_same_tree(&root, newer)) {
            return Ok(());
        }
        let reader = self.look.reader;
        let mut walk = TreeWalk::new(reader, root);
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
                    self.look.problem(place.as_ref(), error)?;
                    continue;
                }
            };
            let above = path.len();
            path.extend_from_slice(&listed.entry().name);
            let (fits, below) = (self.fits(&path, listed.entry()), listed.directory());
            let newer = match fits || below.is_some() {
                true => levels.last().and_then(|level| counterpart(reader, level, &listed.entry().name)),
                false => None,
            };
            if fits && !newer.as_ref().is_some_and(|newer| is_same(newer, &listed)) {
                (self.found)(&Match { snapshot, path: &path, listed: &listed })?;
            }
            let newer = newer.and_then(|newer| newer.directory());
            match below.filter(|below| !newer.as_ref().is_some_and(|newer| is_same_tree(below, newer))) {
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

    fn fits(&self, path: &[u8], entry: &Entry) -> bool {
        let wanted = self.wanted;
        let is_sized = wanted.larger.is_some() || wanted.smaller.is_some();
        (wanted.kinds.is_empty() || wanted.kinds.contains(&entry.kind))
            && wanted.newer.is_none_or(|time| entry.mtime >= time)
            && wanted.older.is_none_or(|time| entry.mtime < time)
            && (!is_sized || entry.kind == Kind::File)
            && wanted.larger.is_none_or(|size| entry.size > size)
            && wanted.smaller.is_none_or(|size| entry.size < size)
            && self.patterns.matches(Path::new(OsStr::from_bytes(path)), entry.kind == Kind::Directory)
    }
}

/// What the newer snapshot has at the same path. What can't be read there was named when that one was searched.
fn counterpart(reader: &Reader, level: &PathLevel, name: &[u8]) -> Option<EntryHandle> {
    reader.lookup(level.newer.as_ref()?, name).ok().flatten()
}
