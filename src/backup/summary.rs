//! The result of a backup.

use std::time::Duration;

use super::walk::tree::WalkCounts;
use crate::format::name::SnapshotName;

/// The result of a backup.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The new snapshot. `None`: a dry run, nothing changed and no snapshot was wanted then, or the source has shrunk.
    pub snapshot: Option<SnapshotName>,
    /// The source's name.
    pub source: String,
    /// The source has lost so many files that no snapshot was made.
    pub shrunk: bool,
    /// Nothing was stored; a backup would read `read_files` and `read_bytes`.
    pub dry_run: bool,
    /// Files that the last backup does not have.
    pub new_files: u64,
    /// Files that look different.
    pub changed_files: u64,
    /// Files that look unchanged and were not opened.
    pub unmodified_files: u64,
    /// Files that were opened and read.
    pub read_files: u64,
    /// All files.
    pub files: u64,
    /// All directories.
    pub directories: u64,
    /// Links and special files.
    pub others: u64,
    /// The sum of all file sizes.
    pub bytes: u64,
    /// Bytes that were read, holes not counted.
    pub read_bytes: u64,
    /// Bytes of file content and tree nodes that the repository did not have yet, before compression.
    pub added_bytes: u64,
    /// Stored packs of file content.
    pub data_packs: u64,
    /// Stored packs of tree nodes.
    pub tree_packs: u64,
    /// Bytes of those data packs.
    pub data_bytes: u64,
    /// Bytes of those tree packs.
    pub tree_bytes: u64,
    /// Files and directories that could not be read in full, and packs that were found missing or damaged.
    pub problems: u64,
    /// Given paths that are missing, that became empty, or whose file system is gone. They are problems, too.
    pub lost_paths: u64,
    /// Time from start to end.
    pub duration: Duration,
}

impl Summary {
    /// The result of a run that stored nothing.
    pub(super) fn of_walk(source: &str, counts: &WalkCounts) -> Summary {
        Summary {
            snapshot: None,
            source: source.to_owned(),
            shrunk: false,
            dry_run: false,
            new_files: counts.new,
            changed_files: counts.changed,
            unmodified_files: counts.unmodified,
            read_files: 0,
            files: counts.files,
            directories: counts.directories,
            others: counts.others,
            bytes: counts.bytes,
            read_bytes: 0,
            added_bytes: 0,
            data_packs: 0,
            tree_packs: 0,
            data_bytes: 0,
            tree_bytes: 0,
            problems: counts.problems,
            lost_paths: counts.lost_paths,
            duration: Duration::ZERO,
        }
    }
}
