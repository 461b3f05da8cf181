//! Files that were put off: each is looked at again before the snapshot is made.
//!
//! They wait here, and not in memory: there may be many.

use rusqlite::params;

use super::error::Context;
use super::{Catalog, DirectoryId, Error, Past};

/// A file that was put off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeferredFile {
    /// The directory that it is in.
    pub directory: DirectoryId,
    /// Its name there.
    pub name: Vec<u8>,
    /// How often it was found changing.
    pub tries: u32,
    /// There was something of its name in the snapshot before.
    pub existed: bool,
    /// What its directory has of it so far.
    pub stored: StoredState,
}

/// What was stored of a file that was put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredState {
    /// Nothing: the directory has no such entry.
    Nothing,
    /// An entry that is marked as changed while it was read.
    Changed,
    /// An entry that may be out of date.
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
    /// Puts a file off.
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
        add().map(drop).map_err(self.failed("put a file off"))
    }

    /// Says that a file is looked at now.
    pub fn remove_deferred(&self, directory: DirectoryId, name: &[u8]) -> Result<(), Error> {
        let remove = || {
            self.db
                .prepare_cached("DELETE FROM put_off WHERE directory = ? AND name = ?")?
                .execute(params![directory.0, name])
        };
        remove().map(drop).map_err(self.failed("take a file up"))
    }

    /// Whether files wait.
    pub fn has_deferred(&self) -> Result<bool, Error> {
        let any = self.db.query_row("SELECT EXISTS (SELECT 1 FROM put_off)", [], |row| row.get(0));
        any.map_err(self.failed("look for files that were put off"))
    }

    /// Forgets what an earlier run put off: this one looks at everything anyway.
    pub fn clear_deferred(&self) -> Result<(), Error> {
        self.db.execute("DELETE FROM put_off", []).map(drop).map_err(self.failed("forget files that were put off"))
    }
}

impl Past {
    /// At most `most` of the files that were put off, in order, behind the one given.
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
        find().during("read files that were put off", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::catalog;

    #[test]
    fn what_is_put_off_waits_in_order_until_it_is_taken_up() {
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
