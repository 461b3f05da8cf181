//! A table with bounded memory.
//!
//! Up to [`MEMORY`] bytes of values are held in memory. Above that, all of them move to an unnamed SQLite database in the
//! directory `TMPDIR`, or else `/var/tmp`. It is not encrypted.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension};

/// Maximum size of the values in memory, in bytes, including [`OVERHEAD`].
const MEMORY: usize = 4 << 20;
/// Bytes per value in addition to its own: its slot in the map.
const OVERHEAD: usize = 64;

/// An error of the temporary file.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use a temporary file for names of hard-linked files: {0}; set TMPDIR to a directory with more free space"
)]
pub struct Error(#[from] rusqlite::Error);

/// A map from numbers to values.
#[derive(Default)]
pub struct SpillTable {
    near: HashMap<u64, Vec<u8>>,
    bytes: usize,
    far: Option<Connection>,
}

impl SpillTable {
    /// Stores a value. The key must not be in use.
    pub fn put(&mut self, key: u64, value: Vec<u8>) -> Result<(), Error> {
        self.bytes += value.len() + OVERHEAD;
        if let Some(old) = self.near.insert(key, value) {
            self.bytes -= old.len() + OVERHEAD;
        }
        if self.bytes < MEMORY {
            return Ok(());
        }
        let far = match &mut self.far {
            Some(far) => far,
            far => far.insert(open()?),
        };
        let transaction = far.transaction()?;
        let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO spilled (key, value) VALUES (?1, ?2)")?;
        for (key, value) in self.near.drain() {
            insert.execute((key.cast_signed(), value))?;
        }
        drop(insert);
        transaction.commit()?;
        self.bytes = 0;
        Ok(())
    }

    /// Removes and returns a value.
    pub fn take(&mut self, key: u64) -> Result<Option<Vec<u8>>, Error> {
        if let Some(value) = self.near.remove(&key) {
            self.bytes -= value.len() + OVERHEAD;
            return Ok(Some(value));
        }
        let Some(far) = &self.far else { return Ok(None) };
        let mut delete = far.prepare_cached("DELETE FROM spilled WHERE key = ?1 RETURNING value")?;
        Ok(delete.query_row([key.cast_signed()], |row| row.get(0)).optional()?)
    }

    /// Removes all values and calls `each` with them, in any order.
    pub fn drain(&mut self, mut each: impl FnMut(Vec<u8>)) -> Result<(), Error> {
        self.bytes = 0;
        self.near.drain().for_each(|(_, value)| each(value));
        let Some(far) = self.far.take() else { return Ok(()) };
        let mut values = far.prepare("SELECT value FROM spilled")?;
        let mut rows = values.query(())?;
        while let Some(row) = rows.next()? {
            each(row.get(0)?);
        }
        Ok(())
    }
}

/// Opens an empty table in a temporary file that is deleted when it is closed. It need not survive a crash, so it is
/// neither journaled nor synced.
fn open() -> Result<Connection, Error> {
    let far = Connection::open("")?;
    far.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1024;
         CREATE TABLE spilled (key INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    )?;
    Ok(far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_memory_and_in_the_file() {
        let mut table = SpillTable::default();
        let value = |key: u64| vec![key as u8; 100];
        let count = 3 * MEMORY as u64 / 100;
        for key in 0..count {
            table.put(key.wrapping_mul(u64::MAX / 7), value(key)).unwrap();
        }
        assert!(table.near.len() < count as usize / 2 && table.far.is_some());
        for key in (0..count).step_by(3) {
            assert_eq!(table.take(key.wrapping_mul(u64::MAX / 7)).unwrap(), Some(value(key)), "{key}");
            assert_eq!(table.take(key.wrapping_mul(u64::MAX / 7)).unwrap(), None, "{key}");
        }
        // A removed value can be stored again.
        table.put(0, value(9)).unwrap();
        let mut left = 0;
        table.drain(|_| left += 1).unwrap();
        assert_eq!(left, count - count.div_ceil(3) + 1);
        assert_eq!(table.take(u64::MAX / 7).unwrap(), None);
    }
}
