//! How much of the stored data each snapshot uses.

use std::collections::HashMap;

use rusqlite::params;

use super::database::Catalog;
use super::error::Error;
use super::snapshots::SnapshotRow;
use super::spans::{GROUP, Span};

/// The stored data that a set of snapshots uses, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsedSizes {
    /// Blocks that at least one of the snapshots uses.
    pub live: u64,
    /// For each source, by its name: blocks that at least one of its snapshots uses.
    pub by_source: HashMap<String, u64>,
    /// For each snapshot, by its number: blocks that no other of the snapshots uses.
    pub unique: HashMap<u64, u64>,
}

impl Catalog {
    /// Computes the stored data that these snapshots use. Reads all spans once; memory does not grow with blocks.
    pub fn used_sizes(&self, snapshots: &[SnapshotRow]) -> Result<UsedSizes, Error> {
        let mut numbers: HashMap<i64, Vec<u64>> = HashMap::new();
        let mut names: HashMap<i64, &str> = HashMap::new();
        for snapshot in snapshots {
            if let Some(source) = self.source_by_id(snapshot.name.source)? {
                numbers.entry(source.0).or_default().push(snapshot.name.sequence);
                names.insert(source.0, &snapshot.source);
            }
        }
        numbers.values_mut().for_each(|numbers| numbers.sort_unstable());
        let mut sizes = UsedSizes::default();
        let mut failed = Ok(());
        self.each_group(&mut |spans| {
            if failed.is_ok() {
                failed = self.add_sizes(spans, &numbers, &names, &mut sizes);
            }
        })?;
        failed.map(|()| sizes)
    }

    fn add_sizes(
        &self,
        spans: &[Span],
        numbers: &HashMap<i64, Vec<u64>>,
        names: &HashMap<i64, &str>,
        sizes: &mut UsedSizes,
    ) -> Result<(), Error> {
        let Some(first) = spans.first() else { return Ok(()) };
        let lengths = self.lengths(first.block / GROUP)?;
        for spans in spans.chunk_by(|one, next| one.block == next.block) {
            let length = spans.first().and_then(|span| lengths.get(&span.block)).copied().unwrap_or_default();
            let (mut users, mut only) = (0, 0);
            for spans in spans.chunk_by(|one, next| one.source == next.source) {
                let before = users;
                for span in spans {
                    let Some(numbers) = numbers.get(&span.source) else { continue };
                    let from = numbers.partition_point(|number| *number < span.first);
                    let to = numbers.partition_point(|number| *number <= span.last);
                    users += to.saturating_sub(from);
                    only = numbers.get(from).copied().unwrap_or(only);
                }
                let name = spans.first().and_then(|span| names.get(&span.source));
                if let Some(name) = name.filter(|_| users > before) {
                    *sizes.by_source.entry((*name).to_owned()).or_default() += length;
                }
            }
            if users > 0 {
                sizes.live += length;
            }
            if users == 1 {
                *sizes.unique.entry(only).or_default() += length;
            }
        }
        Ok(())
    }

    /// The stored sizes of the blocks of a group.
    fn lengths(&self, group: u64) -> Result<HashMap<u64, u64>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached("SELECT id, length FROM blocks WHERE id >= ? AND id < ?")?;
            let range = [group * GROUP, (group + 1) * GROUP].map(|id| id as i64);
            let rows = statement.query_map(params![range[0], range[1]], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))
            })?;
            rows.collect::<rusqlite::Result<_>>()
        };
        find().map_err(self.failed("look up blocks"))
    }

    /// The size of all packs that are in the repository, in bytes.
    pub fn stored_bytes(&self) -> Result<u64, Error> {
        let sum = "SELECT coalesce(sum(length), 0) FROM packs WHERE condemned IN (0, 3)";
        let sum = self.db.query_row(sum, [], |row| row.get::<_, i64>(0));
        Ok(sum.map_err(self.failed("add up packs"))? as u64)
    }
}
