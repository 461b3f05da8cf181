//! Sums of rows: a bit that flipped on the disk or in memory is noticed before anything rests on it.
//!
//! SQLite does not check what its pages hold. A wrong place of a block, or a wrong digest, would end up in a signed
//! snapshot, so rows that snapshots are made from carry a sum over their columns, and it is compared when they are used.
//! It guards against accidents, not against someone who can write to the catalog. Where a row is found by its number, the
//! sum covers the number too, so that a damaged index does not lead to another good row.
//!
//! Left without a sum is what does no harm when it is wrong: stat identities (a file is read once more), names and inodes
//! of directories (it is walked as a new one), and rows that last for one run.

use rusqlite::types::ToSqlOutput;
use rusqlite::{Row, ToSql};

/// A sum over the columns of a row: the bytes that it is made of.
pub(super) struct Sum(Vec<u8>);

impl Sum {
    /// Begins the sum of a row of `table`.
    pub(super) fn of(table: &str) -> Self {
        // Room for most rows: a digest and some numbers.
        let mut bytes = Vec::with_capacity(192);
        bytes.extend_from_slice(table.as_bytes());
        Sum(bytes)
    }

    /// Adds a number.
    pub(super) fn number(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Adds bytes, and their count.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// The sum as a column holds it: the first 32 bits of a BLAKE3 digest, which take five bytes.
    pub(super) fn value(self) -> RowSum {
        // One call over all bytes: the state of an incremental hasher is 2 KB, too much to set up for each row.
        let [a, b, c, d, ..] = *blake3::hash(&self.0).as_bytes();
        RowSum(u32::from_le_bytes([a, b, c, d]))
    }

    /// Whether column `at` holds this sum.
    pub(super) fn agrees(self, row: &Row<'_>, at: usize) -> rusqlite::Result<bool> {
        self.value().is_in(row, at)
    }
}

/// The sum of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowSum(u32);

impl RowSum {
    /// The sum as it stands at the end of a blob.
    pub(super) fn bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    /// Whether column `at` holds this sum.
    pub(super) fn is_in(self, row: &Row<'_>, at: usize) -> rusqlite::Result<bool> {
        Ok(row.get::<_, Option<i64>>(at)? == Some(self.0.into()))
    }
}

impl ToSql for RowSum {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.into())
    }
}
