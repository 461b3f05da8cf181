//! The versions of one path.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::{Error, SnapshotScan, is_same};
use crate::archive::{self, Archive, EntryHandle, OpenSnapshot};
use crate::format::name::SnapshotName;
use crate::monitor::Monitor;

/// Consecutive snapshots of a source with the same version of a path, or without the path.
pub struct VersionSpan {
    /// Name of the source.
    pub source: String,
    /// The entry in the newest of these snapshots; `None` if the path does not exist in them.
    pub version: Option<EntryHandle>,
    /// The newest of these snapshots.
    pub newest: SnapshotName,
    /// The oldest of these snapshots.
    pub oldest: SnapshotName,
    /// Number of these snapshots.
    pub snapshots: u64,
}

/// Calls `found` with each version of `path`, source by source and newest first, and with each span between or after
/// versions in which the path is missing. A version that reappears is returned again. Any change below a directory makes
/// a new version of it.
///
/// The path is relative to the root of the snapshot; if that was a directory other than `/`, an absolute path on the
/// machine that was backed up works, too. Problems go to `monitor`; returns their number.
pub fn versions(
    archive: &dyn Archive,
    path: &[u8],
    source: Option<&str>,
    monitor: &dyn Monitor,
    found: &mut dyn FnMut(&VersionSpan) -> io::Result<()>,
) -> Result<u64, Error> {
    let mut scan = SnapshotScan::new(archive, monitor);
    let mut seen = false;
    for lineage in scan.lineages(source)? {
        let mut stretch: Option<VersionSpan> = None;
        for name in archive.in_turn(&lineage) {
            let Some(snapshot) = scan.snapshot(name)? else { continue };
            let version = match locate(archive, &snapshot, path) {
                Ok(version) => version,
                Err(error) => {
                    scan.problem(name.object().as_ref(), error)?;
                    continue;
                }
            };
            match &mut stretch {
                Some(stretch) if continues(stretch.version.as_ref(), version.as_ref()) => {
                    stretch.oldest = name.clone();
                    stretch.snapshots += 1;
                }
                _ => {
                    seen |= version.is_some();
                    let source = snapshot.source.clone();
                    let next =
                        VersionSpan { source, version, newest: name.clone(), oldest: name.clone(), snapshots: 1 };
                    if let Some(done) = stretch.replace(next) {
                        found(&done)?;
                    }
                }
            }
        }
        // The span before the path first existed is not reported.
        if let Some(last) = stretch.filter(|stretch| stretch.version.is_some()) {
            found(&last)?;
        }
    }
    match (seen, scan.finish()?) {
        (false, 0) => Err(Error::Nowhere(String::from_utf8_lossy(path).into_owned())),
        (_, problems) => Ok(problems),
    }
}

fn continues(newer: Option<&EntryHandle>, older: Option<&EntryHandle>) -> bool {
    match (newer, older) {
        (None, None) => true,
        (Some(newer), Some(older)) => match (newer.directory(), older.directory()) {
            (Some(newer), Some(older)) => newer.has_same_tree(&older),
            _ => is_same(newer, older),
        },
        _ => false,
    }
}

/// Finds the entry at `path` in a snapshot.
fn locate(
    archive: &dyn Archive,
    snapshot: &Arc<OpenSnapshot>,
    path: &[u8],
) -> Result<Option<EntryHandle>, archive::Error> {
    for reading in readings(snapshot.root_path.as_deref(), path).into_iter().flatten() {
        match archive.at_path(snapshot, reading) {
            Ok(found) => return Ok(Some(found)),
            Err(archive::Error::NotFound(_) | archive::Error::NotADirectory(_)) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}

/// Returns the possible meanings of `path` in a snapshot of the directory `root`, in order: an absolute path on the
/// machine, then a path in the snapshot.
fn readings<'p>(root: Option<&[u8]>, path: &'p [u8]) -> [Option<&'p [u8]>; 2] {
    let below = root.filter(|_| path.starts_with(b"/")).and_then(|root| {
        let below = Path::new(OsStr::from_bytes(path)).strip_prefix(OsStr::from_bytes(root)).ok()?;
        Some(below.as_os_str().as_bytes())
    });
    [below, Some(path)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_path_is_resolved_below_the_backed_up_directory() {
        let of = |root: Option<&str>, path: &'static str| {
            readings(root.map(str::as_bytes), path.as_bytes())
                .map(|reading| reading.map(|it| str::from_utf8(it).unwrap()))
        };
        assert_eq!(of(Some("/home/me"), "/home/me/d/f"), [Some("d/f"), Some("/home/me/d/f")]);
        assert_eq!(of(Some("/home/me"), "/home//me/d/f/"), [Some("d/f"), Some("/home//me/d/f/")]);
        assert_eq!(of(Some("/home/me"), "/home/me"), [Some(""), Some("/home/me")]);
        assert_eq!(of(Some("/home/me"), "d/f"), [None, Some("d/f")]);
        assert_eq!(of(Some("/home/me"), "/home/meadow"), [None, Some("/home/meadow")]);
        assert_eq!(of(Some("/"), "/etc/hosts"), [Some("etc/hosts"), Some("/etc/hosts")]);
        assert_eq!(of(None, "pipe"), [None, Some("pipe")]);
    }
}
