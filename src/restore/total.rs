//! How much a restore has to do, if the snapshot does not say it: for a part of it, or with patterns.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::options::{Options, PathFilter};
use crate::archive::{Archive, EntryHandle, EntryRef, TreeWalk, WalkStep};
use crate::format::Kind;
use crate::monitor::Total;

/// Counts the files that a restore of `from` comes by, and their bytes. `None` if it is stopped, or if something cannot be
/// read, which the restore reports.
///
/// The result is an estimate: existing files and further names of a file are not written.
pub fn total(archive: &dyn Archive, from: &EntryHandle, options: &Options, stop: &AtomicBool) -> Option<Total> {
    let chosen = PathFilter::of(options).ok()?;
    let mut total = Total { files: 0, bytes: 0, estimated: true };
    let mut add = |entry: &EntryRef<'_>| {
        if entry.kind == Kind::File {
            total.files += 1;
            total.bytes += entry.size;
        }
    };
    let Some(directory) = from.directory() else {
        add(&from.entry());
        return Some(total);
    };
    let mut walk = TreeWalk::new(archive, directory);
    let mut path = PathBuf::new();
    let mut wanted = vec![chosen.is_everything()];
    while let (Some(step), Some(above)) = (walk.step(), wanted.last().copied()) {
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        match step {
            WalkStep::Entry(listed) => {
                let entry = listed.entry();
                let below = listed.directory();
                path.push(OsStr::from_bytes(entry.name));
                match (chosen.choose(&path, below.is_some(), above), below) {
                    (Some(is_wanted), Some(below)) => {
                        walk.enter(below);
                        wanted.push(is_wanted);
                        continue;
                    }
                    (Some(true), None) => add(&entry),
                    _ => {}
                }
                path.pop();
            }
            WalkStep::Failed(_) => return None,
            WalkStep::Leave => {
                path.pop();
                wanted.pop();
            }
        }
    }
    Some(total)
}
