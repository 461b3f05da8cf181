//! Checksums of rows, which detect bit flips on disk or in memory before a row is used.
//!
//! SQLite does not verify its pages. A wrong block location or digest would end up in a signed snapshot, so the rows
//! that snapshots are made from have a checksum over their columns, which is compared when a row is used. It protects
//! against accidents, not against attackers with write access. If a row is looked up by number, the checksum covers the
//! number too, so that a damaged index cannot lead to another valid row.
//!
//! Data that may be wrong without harm has no checksum: stat data (a file is read once more), names and inodes of
//! directories (the directory is walked as a new one), and rows that are used in one run only.

use rusqlite::types::ToSqlOutput;
use rusqlite::{Row, ToSql};

/// The input of a row's checksum.
pub(super) struct Sum(Vec<u8>);

impl Sum {
    /// Begins the checksum of a row of `table`.
    pub(super) fn of(table: &str) -> Self {
        // Enough for most rows: a digest and some numbers.
        let mut bytes = Vec::with_capacity(192);
        bytes.extend_from_slice(table.as_bytes());
        Sum(bytes)
    }

    /// Adds a number.
    pub(super) fn number(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Adds bytes, preceded by their number.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// The checksum: the first 32 bits of a BLAKE3 digest, which take five bytes in a column.
    pub(super) fn value(self) -> RowSum {
        // One call over all bytes: the state of an incremental hasher is 2 KB, too much to set up for each row.
        let [a, b, c, d, ..] = *blake3::hash(&self.0).as_bytes();
        RowSum(u32::from_le_bytes([a, b, c, d]))
    }

    /// Whether column `at` has this checksum.
    pub(super) fn agrees(self, row: &Row<'_>, at: usize) -> rusqlite::Result<bool> {
        self.value().is_in(row, at)
    }
}

/// The checksum of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowSum(u32);

impl RowSum {
    /// The encoding of the checksum at the end of a blob.
    pub(super) fn bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    /// Whether column `at` has this checksum.
    pub(super) fn is_in(self, row: &Row<'_>, at: usize) -> rusqlite::Result<bool> {
        Ok(row.get::<_, Option<i64>>(at)? == Some(self.0.into()))
    }
}

impl ToSql for RowSum {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.into())
    }
}
