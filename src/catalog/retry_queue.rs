//! Files that were put off: each is looked at again before the snapshot is made.
//!
//! They wait here, and not in memory: there may be many.

use rusqlite::params;

use super::error::Context;
use super::{Catalog, DirectoryId, Error, Past};

/// A file that was put off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOff {
    /// The directory that it is in.
    pub directory: DirectoryId,
    /// Its name there.
    pub name: Vec<u8>,
    /// How often it was found changing.
    pub tries: u32,
    /// There was something of its name in the snapshot before.
    pub existed: bool,
    /// What its directory has of it so far.
    pub so_far: SoFar,
}

/// What was stored of a file that was put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoFar {
    /// Nothing: the directory has no such entry.
    Nothing,
    /// An entry that is marked as changed while it was read.
    Changed,
    /// An entry that may be out of date.
    Fresh,
}

impl SoFar {
    fn code(self) -> i64 {
        match self {
            SoFar::Nothing => 0,
            SoFar::Changed => 1,
            SoFar::Fresh => 2,
        }
    }

    fn from_code(code: i64) -> Self {
        match code {
            0 => SoFar::Nothing,
            1 => SoFar::Changed,
            _ => SoFar::Fresh,
        }
    }
}

impl Catalog {
    /// Puts a file off.
    pub fn put_off(&self, file: &PutOff) -> Result<(), Error> {
        let add = || {
            self.db.prepare_cached("INSERT OR REPLACE INTO put_off VALUES (?, ?, ?, ?, ?)")?.execute(params![
                file.directory.0,
                file.name,
                file.tries,
                file.existed,
                file.so_far.code()
            ])
        };
        add().map(drop).map_err(self.failed("put a file off"))
    }

    /// Says that a file is looked at now.
    pub fn take_up(&self, directory: DirectoryId, name: &[u8]) -> Result<(), Error> {
        let remove = || {
            self.db
                .prepare_cached("DELETE FROM put_off WHERE directory = ? AND name = ?")?
                .execute(params![directory.0, name])
        };
        remove().map(drop).map_err(self.failed("take a file up"))
    }

    /// Whether files wait.
    pub fn has_put_off(&self) -> Result<bool, Error> {
        let any = self.db.query_row("SELECT EXISTS (SELECT 1 FROM put_off)", [], |row| row.get(0));
        any.map_err(self.failed("look for files that were put off"))
    }

    /// Forgets what an earlier run put off: this one looks at everything anyway.
    pub fn forget_put_off(&self) -> Result<(), Error> {
        self.db.execute("DELETE FROM put_off", []).map(drop).map_err(self.failed("forget files that were put off"))
    }
}

impl Past {
    /// At most `most` of the files that were put off, in order, behind the one given.
    pub fn put_off(&self, after: Option<&PutOff>, most: usize) -> Result<Vec<PutOff>, Error> {
        let (directory, name) = after.map_or((i64::MIN, &[][..]), |file| (file.directory.0, &file.name));
        let find = || {
            self.db
                .prepare_cached(
                    "SELECT directory, name, tries, existed, so_far FROM put_off
                     WHERE (directory, name) > (?, ?) ORDER BY directory, name LIMIT ?",
                )?
                .query_map(params![directory, name, most as i64], |row| {
                    Ok(PutOff {
                        directory: DirectoryId(row.get(0)?),
                        name: row.get(1)?,
                        tries: row.get(2)?,
                        existed: row.get(3)?,
                        so_far: SoFar::from_code(row.get(4)?),
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
        let file = |directory, name: &str, so_far| PutOff {
            directory: DirectoryId(directory),
            name: name.into(),
            tries: 1,
            existed: true,
            so_far,
        };
        let files = [
            file(1, "b", SoFar::Nothing),
            file(1, "\u{fe}", SoFar::Changed),
            file(2, "", SoFar::Fresh),
            file(2, "a", SoFar::Fresh),
        ];
        assert!(!catalog.has_put_off().unwrap());
        files.iter().rev().for_each(|file| catalog.put_off(file).unwrap());
        let again = PutOff { tries: 2, ..files[0].clone() };
        catalog.put_off(&again).unwrap();
        catalog.commit().unwrap();
        let past = catalog.past().unwrap();
        assert_eq!(past.put_off(None, 2).unwrap(), [again, files[1].clone()]);
        assert_eq!(past.put_off(Some(&files[1]), 9).unwrap(), files[2..]);
        catalog.take_up(DirectoryId(1), b"b").unwrap();
        catalog.take_up(DirectoryId(1), b"none").unwrap();
        catalog.commit().unwrap();
        assert_eq!(past.put_off(None, 9).unwrap(), files[1..]);
        catalog.forget_put_off().unwrap();
        assert!(!catalog.has_put_off().unwrap());
    }
}
