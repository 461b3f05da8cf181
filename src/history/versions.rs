//! The versions of one path.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use super::{Error, SnapshotScan, is_same, is_same_tree};
use crate::format::name::SnapshotName;
use crate::format::snapshot::Snapshot;
use crate::monitor::Monitor;
use crate::reader::{self, EntryHandle, Reader};

/// Snapshots of a source, one after the other, that have the same version of a path, or none of it.
pub struct VersionSpan {
    /// The source's name.
    pub source: String,
    /// What was there, from the newest of them; none if nothing was.
    pub version: Option<EntryHandle>,
    /// The last of these snapshots.
    pub newest: SnapshotName,
    /// The first of these snapshots.
    pub oldest: SnapshotName,
    /// How many they are.
    pub snapshots: u64,
}

/// Calls `found` with each version of `path`, newest first, source by source, and with each time between or after them
/// in which it was missing. A version that came back later is named twice. Of directories, that is another version in
/// which anything below is another.
///
/// The path begins at the root of a snapshot; if that is one directory of the machine, it may begin at the machine's
/// root as well. Returns how much could not be read; it was named.
pub fn versions(
    reader: &Reader,
    path: &[u8],
    source: Option<&str>,
    monitor: &dyn Monitor,
    found: &mut dyn FnMut(&VersionSpan) -> io::Result<()>,
) -> Result<u64, Error> {
    let mut look = SnapshotScan::new(reader, monitor);
    let mut seen = false;
    for lineage in look.lineages(source)? {
        let mut stretch: Option<VersionSpan> = None;
        for name in lineage {
            let Some(snapshot) = look.snapshot(&name)? else { continue };
            let version = match locate(reader, &snapshot, path) {
                Ok(version) => version,
                Err(error) => {
                    look.problem(name.object().as_ref(), error)?;
                    continue;
                }
            };
            match &mut stretch {
                Some(stretch) if continues(stretch.version.as_ref(), version.as_ref()) => {
                    stretch.oldest = name;
                    stretch.snapshots += 1;
                }
                _ => {
                    seen |= version.is_some();
                    let source = snapshot.source.clone();
                    let next = VersionSpan { source, version, newest: name.clone(), oldest: name, snapshots: 1 };
                    if let Some(done) = stretch.replace(next) {
                        found(&done)?;
                    }
                }
            }
        }
        // Before a path was there for the first time it is not missing.
        if let Some(last) = stretch.filter(|stretch| stretch.version.is_some()) {
            found(&last)?;
        }
    }
    match (seen, look.finish()?) {
        (false, 0) => Err(Error::Nowhere(String::from_utf8_lossy(path).into_owned())),
        (_, problems) => Ok(problems),
    }
}

fn continues(newer: Option<&EntryHandle>, older: Option<&EntryHandle>) -> bool {
    match (newer, older) {
        (None, None) => true,
        (Some(newer), Some(older)) => match (newer.directory(), older.directory()) {
            (Some(newer), Some(older)) => is_same_tree(&newer, &older),
            _ => is_same(newer, older),
        },
        _ => false,
    }
}

/// What is at `path` in a snapshot.
fn locate(reader: &Reader, snapshot: &Arc<Snapshot>, path: &[u8]) -> Result<Option<EntryHandle>, reader::Error> {
    for reading in readings(snapshot.root_path.as_deref(), path).into_iter().flatten() {
        match reader.at_path(snapshot, reading) {
            Ok(found) => return Ok(Some(found)),
            Err(reader::Error::NotFound(_) | reader::Error::NotADirectory(_)) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(None)
}

/// Returns what `path` may mean below a root that was at `root` on the machine: an absolute path there, or else a path in
/// the snapshot.
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
    fn a_path_of_the_machine_is_meant_below_the_one_that_was_backed_up() {
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
