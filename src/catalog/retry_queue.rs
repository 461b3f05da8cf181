//! The retry queue: files that changed while they were read, or just before. They are read again before the snapshot is
//! made.
//!
//! The queue is in the catalog and not in memory, because it may be long.

use rusqlite::params;

use super::database::Catalog;
use super::directories::{DirectoryId, Past};
use super::error::Context;
use super::error::Error;

/// A file in the retry queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeferredFile {
    /// The directory that contains the file.
    pub directory: DirectoryId,
    /// The file's name in the directory.
    pub name: Vec<u8>,
    /// The number of reads during which the file changed.
    pub tries: u32,
    /// Whether the previous snapshot has an entry with this name.
    pub existed: bool,
    /// The file's entry in its directory so far.
    pub stored: StoredState,
}

/// The entry of a deferred file in its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredState {
    /// The directory has no entry for the file.
    Nothing,
    /// The entry is marked as changed while it was read.
    Changed,
    /// The entry may be outdated, since the file had been changed just before it was read.
    Fresh,
}

impl StoredState {
    fn code(self) -> i64 {
        match self {
            StoredState::Nothing => 0,
            StoredState::Changed => 1,
            StoredState::Fresh => 2,
        }
    }

    fn from_code(code: i64) -> Self {
        match code {
            0 => StoredState::Nothing,
            1 => StoredState::Changed,
            _ => StoredState::Fresh,
        }
    }
}

impl Catalog {
    /// Adds a file to the retry queue.
    pub fn defer(&self, file: &DeferredFile) -> Result<(), Error> {
        let add = || {
            self.db.prepare_cached("INSERT OR REPLACE INTO put_off VALUES (?, ?, ?, ?, ?)")?.execute(params![
                file.directory.0,
                file.name,
                file.tries,
                file.existed,
                file.stored.code()
            ])
        };
        add().map(drop).map_err(self.failed("add a file to the retry queue"))
    }

    /// Removes a file from the retry queue.
    pub fn remove_deferred(&self, directory: DirectoryId, name: &[u8]) -> Result<(), Error> {
        let remove = || {
            self.db
                .prepare_cached("DELETE FROM put_off WHERE directory = ? AND name = ?")?
                .execute(params![directory.0, name])
        };
        remove().map(drop).map_err(self.failed("remove a file from the retry queue"))
    }

    /// Whether the retry queue has any files.
    pub fn has_deferred(&self) -> Result<bool, Error> {
        let any = self.db.query_row("SELECT EXISTS (SELECT 1 FROM put_off)", [], |row| row.get(0));
        any.map_err(self.failed("read the retry queue"))
    }

    /// Empties the retry queue at the start of a run, which reads all changed files anyway.
    pub fn clear_deferred(&self) -> Result<(), Error> {
        self.db.execute("DELETE FROM put_off", []).map(drop).map_err(self.failed("empty the retry queue"))
    }
}

impl Past {
    /// The next files of the retry queue after `after`, at most `most`, ordered by directory and name.
    pub fn deferred(&self, after: Option<&DeferredFile>, most: usize) -> Result<Vec<DeferredFile>, Error> {
        let (directory, name) = after.map_or((i64::MIN, &[][..]), |file| (file.directory.0, &file.name));
        let find = || {
            self.db
                .prepare_cached(
                    "SELECT directory, name, tries, existed, so_far FROM put_off
                     WHERE (directory, name) > (?, ?) ORDER BY directory, name LIMIT ?",
                )?
                .query_map(params![directory, name, most as i64], |row| {
                    Ok(DeferredFile {
                        directory: DirectoryId(row.get(0)?),
                        name: row.get(1)?,
                        tries: row.get(2)?,
                        existed: row.get(3)?,
                        stored: StoredState::from_code(row.get(4)?),
                    })
                })?
                .collect::<rusqlite::Result<_>>()
        };
        find().during("read the retry queue", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::database::tests::catalog;

    #[test]
    fn deferred_files_are_returned_in_order_until_they_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = catalog(folder.path());
        let file = |directory, name: &str, stored| DeferredFile {
            directory: DirectoryId(directory),
            name: name.into(),
            tries: 1,
            existed: true,
            stored,
        };
        let files = [
            file(1, "b", StoredState::Nothing),
            file(1, "\u{fe}", StoredState::Changed),
            file(2, "", StoredState::Fresh),
            file(2, "a", StoredState::Fresh),
        ];
        assert!(!catalog.has_deferred().unwrap());
        files.iter().rev().for_each(|file| catalog.defer(file).unwrap());
        let again = DeferredFile { tries: 2, ..files[0].clone() };
        catalog.defer(&again).unwrap();
        catalog.commit().unwrap();
        let past = catalog.past().unwrap();
        assert_eq!(past.deferred(None, 2).unwrap(), [again, files[1].clone()]);
        assert_eq!(past.deferred(Some(&files[1]), 9).unwrap(), files[2..]);
        catalog.remove_deferred(DirectoryId(1), b"b").unwrap();
        catalog.remove_deferred(DirectoryId(1), b"none").unwrap();
        catalog.commit().unwrap();
        assert_eq!(past.deferred(None, 9).unwrap(), files[1..]);
        catalog.clear_deferred().unwrap();
        assert!(!catalog.has_deferred().unwrap());
    }
}
