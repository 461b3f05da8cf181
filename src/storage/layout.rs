//! Names of files in storage that keeps objects as files in folders.

use uuid::Uuid;

/// The prefix of the names of temporary files. No object's name starts with it.
pub(super) const TEMPORARY: &str = ".tmp-";
/// The directory for recovered files in the root of an ext file system.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// The depth of folders below a listed folder: `packs/ab/` for packs, and one folder per source for snapshots.
pub(super) const DEPTH: usize = 1;

/// Files or folders of a listing that are remembered. The repository has far fewer; a hostile server may list any number.
pub(super) const MOST: usize = 100_000;

/// The folder of an object (`packs/ab/`), and thereby the prefix of the objects in it. Empty if the object is in none.
pub(super) fn folder_of(object: &str) -> &str {
    object.rfind('/').and_then(|end| object.get(..=end)).unwrap_or_default()
}

/// A new name for a temporary file of `run` in the folder of an object.
pub(super) fn temporary_beside(object: &str, run: Uuid) -> String {
    format!("{}{}", folder_of(object), temporary_name(run))
}

/// The name of a temporary file that `run` writes.
pub(super) fn temporary_name(run: Uuid) -> String {
    format!("{TEMPORARY}{run}-{}", Uuid::new_v4())
}

/// The run that wrote the temporary file of this name; `None` if this is not the name of a temporary file.
pub(super) fn writer_of(name: &str) -> Option<Uuid> {
    let ids = name.strip_prefix(TEMPORARY)?;
    let (run, id) = ids.split_at_checked(uuid::fmt::Hyphenated::LENGTH)?;
    Uuid::try_parse(id.strip_prefix('-')?).ok()?;
    Uuid::try_parse(run).ok()
}

/// Whether no file is so long that it has this range.
pub(super) fn is_beyond_files(offset: u64, length: usize) -> bool {
    offset.checked_add(length as u64).is_none_or(|end| i64::try_from(end).is_err())
}
