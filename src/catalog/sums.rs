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

/// A sum that is being added up.
pub(super) struct Sum(blake3::Hasher);

impl Sum {
    /// Begins the sum of a row of `table`.
    pub(super) fn of(table: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(table.as_bytes());
        Sum(hasher)
    }

    /// Adds a number.
    pub(super) fn number(mut self, number: i64) -> Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    /// Adds bytes, and how many they are.
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        self
    }

    /// The sum as it stands in a column: 32 bits, which take five bytes.
    pub(super) fn value(self) -> RowSum {
        let [a, b, c, d, ..] = *self.0.finalize().as_bytes();
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
