//! The blocks that each snapshot uses, as [`spans`](super::spans).
//!
//! A recorded snapshot changes only the spans of blocks that it uses and the one before it does not, or the reverse. The
//! blocks of the newest recorded snapshot of each source are kept as a bitmap to find this difference. The bitmap is a
//! cache: without it, the spans are read.

use std::collections::{BTreeSet, HashMap};

use roaring::RoaringTreemap;
use rusqlite::{OptionalExtension, Row, params};

use super::database::Catalog;
use super::error::Error;
use super::snapshots::{RECORDED, SourceRow};
use super::spans::{GROUP, NewestUsage, Position, Span, decode, encode, group_of, place};
use super::sums::Sum;
use crate::format::id::SnapshotId;

/// Groups that are changed before a commit when usage is forgotten: until then SQLite keeps changed pages in memory.
const COMMIT_GROUPS: u32 = 4096;

/// The number of groups that are decoded at a time.
const PAGE: i64 = 256;

const GROUPS: &str = "SELECT id, spans FROM spans WHERE id > ?1 ORDER BY id LIMIT ?2";

impl Catalog {
    /// Records the blocks that a snapshot uses. Its row is added afterwards.
    pub(super) fn record_usage(&self, source: SourceRow, sequence: u64, used: &RoaringTreemap) -> Result<(), Error> {
        let SourceRow(source) = source;
        let (before, after) = self.recorded_neighbours(source, sequence)?;
        let position = Position { source, sequence, before, after };
        if after.is_some() {
            return self.place_all(position, used);
        }
        let newest = match before {
            Some(before) => self.take_newest(source, before)?,
            None => None,
        };
        match newest {
            // The open spans are those of the newest snapshot. An outdated bitmap is of another one, so it is not used.
            Some(NewestUsage { blocks, .. }) => self.place_changed(position, used, &(&blocks ^ used))?,
            None => self.place_all(position, used)?,
        }
        self.put_newest(NewestUsage { source, sequence, blocks: used.clone(), is_stored: false })
    }

    /// The blocks of a recorded snapshot.
    pub(super) fn recorded_blocks(&self, source: SourceRow, sequence: u64) -> Result<RoaringTreemap, Error> {
        let SourceRow(source) = source;
        if let Some(newest) = self.take_newest(source, sequence)? {
            let blocks = newest.blocks.clone();
            self.put_newest(newest)?;
            return Ok(blocks);
        }
        let mut blocks = RoaringTreemap::new();
        self.each_group(&mut |spans| {
            let used = spans.iter().filter(|span| span.source == source && span.contains(sequence));
            blocks.extend(used.map(|span| span.block));
        })?;
        Ok(blocks)
    }

    /// The blocks that at least one of these snapshots uses, and those in which lost ones are stored now. Fails if the blocks of
    /// one of the snapshots are unknown.
    pub fn live(&self, kept: &[u64]) -> Result<RoaringTreemap, Error> {
        let mut sources = Vec::with_capacity(kept.len());
        for sequence in kept {
            let source = self.source_of_recorded(*sequence)?;
            let source = source.ok_or_else(|| Error::UnknownUsage { path: self.path.clone(), sequence: *sequence })?;
            sources.push((source, *sequence));
        }
        let mut kept = Selection::new(sources);
        let mut live = RoaringTreemap::new();
        self.each_group(&mut |spans| {
            live.extend(spans.iter().filter(|span| kept.meets(span)).map(|span| span.block));
        })?;
        self.add_places(&mut live)?;
        Ok(live)
    }

    /// Pairs a snapshot with its base for [`Catalog::usage_changes`]. The base is left out if the catalog does not know its
    /// blocks. Returns `None` if it does not know those of the snapshot.
    pub fn usage_pair(&self, snapshot: SnapshotId, base: Option<SnapshotId>) -> Result<Option<UsagePair>, Error> {
        let Some((source, sequence)) = self.place_of_recorded(snapshot)? else { return Ok(None) };
        let base = match base {
            Some(base) => self.place_of_recorded(base)?.filter(|(of, _)| *of == source),
            None => None,
        };
        Ok(Some(UsagePair { source, base: base.map(|(_, sequence)| sequence), sequence }))
    }

    /// How the blocks of snapshots differ from those of their bases, or from no blocks. Reads all spans once, and returns
    /// the results of the first pairs, as many as have at most `limit` blocks together; at least one.
    pub fn usage_changes(&self, pairs: &[UsagePair], limit: u64) -> Result<Vec<UsageChange>, Error> {
        let mut changes: Vec<_> = pairs.iter().map(|_| UsageChange::default()).collect();
        let mut total = 0;
        // The range of the last span, and the pairs that differ in its blocks. Neighbours are mostly of one range.
        let (mut range, mut differing) = ((0, 0, 0), Vec::new());
        self.each_group(&mut |spans| {
            for span in spans {
                if range != (span.source, span.first, span.last) {
                    range = (span.source, span.first, span.last);
                    differing.clear();
                    let pairs = pairs.iter().enumerate().filter(|(_, pair)| pair.source == span.source);
                    differing.extend(pairs.filter_map(|(at, pair)| {
                        let before = pair.base.is_some_and(|base| span.contains(base));
                        let after = span.contains(pair.sequence);
                        (before != after).then_some((at, after))
                    }));
                }
                for (at, is_added) in &differing {
                    let Some(UsageChange { added, removed }) = changes.get_mut(*at) else { continue };
                    let (to, from) = if *is_added { (added, removed) } else { (removed, added) };
                    // A block in two spans, one of each snapshot, does not differ.
                    if from.remove(span.block) {
                        total -= 1;
                    } else {
                        to.insert(span.block);
                        total += 1;
                    }
                }
                while total > limit && changes.len() > 1 {
                    total -= changes.pop().map_or(0, |last| last.added.len() + last.removed.len());
                }
            }
        })?;
        Ok(changes)
    }

    /// Forgets the blocks of these snapshots, whose objects are removed for good, and drops spans without a recorded
    /// snapshot. Returns the number of dropped spans. Commits several times; a call that was interrupted is finished by
    /// the next one.
    pub fn forget_usage(&mut self, sequences: &[u64]) -> Result<u64, Error> {
        for sequence in sequences {
            let set = self.db.execute("UPDATE snapshots SET usage = 0 WHERE sequence = ?", [*sequence as i64]);
            set.map_err(self.failed("forget the blocks of a snapshot"))?;
        }
        self.commit()?;
        let mut recorded = Selection::new(self.recorded()?);
        let (mut last, mut dropped, mut changed) = (i64::MIN, 0, 0);
        loop {
            let groups = self.groups_after(last)?;
            let Some((end, _)) = groups.last() else { break };
            last = *end;
            for (id, mut spans) in groups {
                let before = spans.len();
                spans.retain(|span| recorded.meets(span));
                if spans.len() < before {
                    dropped += (before - spans.len()) as u64;
                    changed += 1;
                    self.put_group(id as u64, &spans)?;
                }
            }
            if changed >= COMMIT_GROUPS {
                self.commit()?;
                changed = 0;
            }
        }
        self.commit()?;
        Ok(dropped)
    }

    /// Checks all spans, and counts blocks with spans that are not in `all`. Fails if spans are damaged.
    pub fn unknown_used_blocks(&self, all: &RoaringTreemap) -> Result<u64, Error> {
        let (mut unknown, mut last) = (0, None);
        self.each_group(&mut |spans| {
            for span in spans {
                if last != Some(span.block) {
                    unknown += u64::from(!all.contains(span.block));
                    last = Some(span.block);
                }
            }
        })?;
        Ok(unknown)
    }

    /// Stores the bitmap of the newest recorded snapshot, if it changed.
    pub(super) fn store_newest(&self) -> Result<(), Error> {
        let mut newest = self.newest.borrow_mut();
        let Some(NewestUsage { source, sequence, blocks, is_stored }) = newest.as_mut() else { return Ok(()) };
        if !*is_stored {
            let mut bytes = Vec::with_capacity(blocks.serialized_size() + 4);
            // Not optimized: differences of bitmaps with run-length encoding take ten times as long.
            blocks.serialize_into(&mut bytes).map_err(|e| self.damaged(e))?;
            let sum = newest_sum(*source, *sequence, &bytes);
            bytes.extend(sum);
            let insert = "INSERT OR REPLACE INTO newest_usages VALUES (?, ?, ?)";
            let stored = self.db.execute(insert, params![*source, *sequence as i64, bytes]);
            stored.map_err(self.failed("record the blocks of a snapshot"))?;
            *is_stored = true;
        }
        Ok(())
    }

    /// Moves the bitmap of a snapshot out of memory, or reads it from the database; `None` if neither has it. A damaged one
    /// counts as missing.
    fn take_newest(&self, source: i64, sequence: u64) -> Result<Option<NewestUsage>, Error> {
        let in_memory =
            self.newest.borrow_mut().take_if(|newest| newest.source == source && newest.sequence == sequence);
        if in_memory.is_some() {
            return Ok(in_memory);
        }
        let select = "SELECT blocks FROM newest_usages WHERE source = ? AND sequence = ?";
        let found = self.db.query_row(select, params![source, sequence as i64], |row| row.get(0)).optional();
        let found: Option<Vec<u8>> = found.map_err(self.failed("read the blocks of a snapshot"))?;
        Ok(found.and_then(|bytes| {
            let (bitmap, sum) = bytes.split_last_chunk()?;
            let is_whole = *sum == newest_sum(source, sequence, bitmap);
            let blocks = is_whole.then(|| RoaringTreemap::deserialize_from(bitmap).ok())??;
            Some(NewestUsage { source, sequence, blocks, is_stored: true })
        }))
    }

    fn put_newest(&self, newest: NewestUsage) -> Result<(), Error> {
        self.store_newest()?;
        *self.newest.borrow_mut() = Some(newest);
        Ok(())
    }

    /// The recorded snapshots of a source before and after this number.
    fn recorded_neighbours(&self, source: i64, sequence: u64) -> Result<(Option<u64>, Option<u64>), Error> {
        let find = |select| {
            let found = self.db.query_row(select, params![source, sequence as i64, RECORDED], |row| {
                Ok(row.get::<_, Option<i64>>(0)?.map(|sequence| sequence as u64))
            });
            found.map_err(self.failed("look up a snapshot"))
        };
        Ok((
            find("SELECT max(sequence) FROM snapshots WHERE source = ? AND sequence < ? AND usage = ?")?,
            find("SELECT min(sequence) FROM snapshots WHERE source = ? AND sequence > ? AND usage = ?")?,
        ))
    }

    /// The source of a snapshot; `None` if the snapshot or its blocks are unknown.
    fn source_of_recorded(&self, sequence: u64) -> Result<Option<i64>, Error> {
        let find = || {
            let select = "SELECT source FROM snapshots WHERE sequence = ? AND usage = ?";
            let mut statement = self.db.prepare_cached(select)?;
            statement.query_row(params![sequence as i64, RECORDED], |row| row.get(0)).optional()
        };
        find().map_err(self.failed("look up a snapshot"))
    }

    /// Source and number of a snapshot; `None` if it or its blocks are unknown.
    pub(super) fn place_of_recorded(&self, id: SnapshotId) -> Result<Option<(i64, u64)>, Error> {
        let select = "SELECT source, sequence FROM snapshots WHERE uuid = ? AND usage = ?";
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64));
        let found = self.db.query_row(select, params![id.0, RECORDED], read).optional();
        found.map_err(self.failed("read a snapshot"))
    }

    /// Whether the blocks of the snapshot with this number are known.
    pub fn is_recorded(&self, sequence: u64) -> Result<bool, Error> {
        Ok(self.source_of_recorded(sequence)?.is_some())
    }

    /// Source and number of all recorded snapshots.
    fn recorded(&self) -> Result<Vec<(i64, u64)>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT source, sequence FROM snapshots WHERE usage = ?")?;
            let rows = statement.query_map([RECORDED], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        find().map_err(self.failed("read snapshots"))
    }

    /// Updates the spans of `changed` blocks.
    fn place_changed(&self, position: Position, used: &RoaringTreemap, changed: &RoaringTreemap) -> Result<(), Error> {
        let mut changed = changed.iter().peekable();
        while let Some(first) = changed.peek().copied() {
            let group = group_of(first);
            let mut spans = self.group(group)?;
            while let Some(block) = changed.next_if(|block| group_of(*block) == group) {
                place(&mut spans, position, block, used.contains(block));
            }
            self.put_group(group, &spans)?;
        }
        Ok(())
    }

    /// Updates the spans of all blocks.
    fn place_all(&self, position: Position, used: &RoaringTreemap) -> Result<(), Error> {
        self.place_changed(position, used, used)?;
        let unused = |span: &&Span| span.source == position.source && !used.contains(span.block);
        self.in_pages(GROUPS, raw_group, |(id, bytes)| {
            let mut spans = self.decoded(id, &bytes)?;
            let blocks: BTreeSet<_> = spans.iter().filter(unused).map(|span| span.block).collect();
            let before = if blocks.is_empty() { Vec::new() } else { spans.clone() };
            blocks.iter().for_each(|block| place(&mut spans, position, *block, false));
            if !blocks.is_empty() && spans != before {
                self.put_group(id as u64, &spans)?;
            }
            Ok(id)
        })
    }

    fn group(&self, group: u64) -> Result<Vec<Span>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached("SELECT spans FROM spans WHERE id = ?")?;
            statement.query_row([group as i64], |row| row.get::<_, Vec<u8>>(0)).optional()
        };
        match find().map_err(self.failed("read the blocks of snapshots"))? {
            Some(bytes) => self.decoded(group as i64, &bytes),
            None => Ok(Vec::new()),
        }
    }

    fn put_group(&self, group: u64, spans: &[Span]) -> Result<(), Error> {
        let put = || {
            if spans.is_empty() {
                return self.db.prepare_cached("DELETE FROM spans WHERE id = ?")?.execute([group as i64]);
            }
            let mut statement = self.db.prepare_cached("INSERT OR REPLACE INTO spans VALUES (?, ?)")?;
            statement.execute(params![group as i64, encode(group, spans)])
        };
        put().map(drop).map_err(self.failed("record the blocks of a snapshot"))
    }

    /// The next groups with ids above `last`, in order.
    fn groups_after(&self, last: i64) -> Result<Vec<(i64, Vec<Span>)>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached(GROUPS)?;
            statement.query_map(params![last, PAGE], raw_group)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let groups = find().map_err(self.failed("read the blocks of snapshots"))?;
        groups.into_iter().map(|(id, bytes)| Ok((id, self.decoded(id, &bytes)?))).collect()
    }

    /// Calls `found` with the spans of each group, in order.
    pub(super) fn each_group(&self, found: &mut dyn FnMut(&[Span])) -> Result<(), Error> {
        let mut spans = Vec::new();
        self.in_pages(GROUPS, raw_group, |(id, bytes)| {
            decode(id as u64, &bytes, &mut spans).ok_or_else(|| self.damaged_group(id))?;
            found(&spans);
            Ok(id)
        })
    }

    fn decoded(&self, id: i64, bytes: &[u8]) -> Result<Vec<Span>, Error> {
        let mut spans = Vec::new();
        decode(id as u64, bytes, &mut spans).ok_or_else(|| self.damaged_group(id))?;
        Ok(spans)
    }

    fn damaged_group(&self, id: i64) -> Error {
        let first = (id as u64).saturating_mul(GROUP);
        self.damaged(format!(
            "the record of snapshots that use block {first} and the next {} does not match its checksum",
            GROUP - 1
        ))
    }
}

/// A snapshot and its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsagePair {
    source: i64,
    base: Option<u64>,
    sequence: u64,
}

impl UsagePair {
    /// Whether the blocks of the base are known.
    pub fn has_base(&self) -> bool {
        self.base.is_some()
    }
}

/// How the blocks of a snapshot differ from those of its base.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UsageChange {
    /// The blocks that the base does not use.
    pub added: RoaringTreemap,
    /// The blocks that only the base uses.
    pub removed: RoaringTreemap,
}

/// Snapshots of which a span may include one or none.
struct Selection {
    /// The numbers of each source's snapshots, ascending.
    by_source: HashMap<i64, Vec<u64>>,
    /// Source and first snapshot of the last span, and the first selected snapshot from there on. Neighbouring spans mostly
    /// begin at the same snapshot.
    last: ((i64, u64), Option<u64>),
}

impl Selection {
    fn new(mut snapshots: Vec<(i64, u64)>) -> Self {
        snapshots.sort_unstable();
        let mut by_source: HashMap<i64, Vec<u64>> = HashMap::new();
        for (source, sequence) in snapshots {
            by_source.entry(source).or_default().push(sequence);
        }
        Selection { by_source, last: ((0, 0), None) }
    }

    /// Whether a selected snapshot is in the range of the span.
    fn meets(&mut self, span: &Span) -> bool {
        let begin = (span.source, span.first);
        if self.last.0 != begin {
            let from = |selected: &Vec<u64>| {
                selected.get(selected.partition_point(|sequence| *sequence < span.first)).copied()
            };
            self.last = (begin, self.by_source.get(&span.source).and_then(from));
        }
        self.last.1.is_some_and(|next| next <= span.last)
    }
}

fn raw_group(row: &Row<'_>) -> rusqlite::Result<(i64, Vec<u8>)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn newest_sum(source: i64, sequence: u64, bitmap: &[u8]) -> [u8; 4] {
    Sum::of("newest usages").number(source).number(sequence as i64).bytes(bitmap).value().bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::catalog::database::tests::catalog;
    use crate::catalog::{Presence, SnapshotRow};
    use crate::format::id::SourceId;
    use crate::format::name::SnapshotName;
    use crate::format::usage::Labels;

    /// Blocks in several groups, the last of which is incomplete.
    const BLOCKS: u64 = 5 * GROUP + 7;

    fn below(random: &mut u64, limit: u64) -> u64 {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33) % limit
    }

    /// A catalog, and the blocks of each recorded snapshot by source and number.
    struct Model {
        catalog: Catalog,
        path: std::path::PathBuf,
        sources: Vec<(SourceRow, SourceId)>,
        used: BTreeMap<(usize, u64), (SnapshotId, RoaringTreemap)>,
        random: u64,
    }

    impl Model {
        fn new(folder: &Path, seed: u64) -> Self {
            let catalog = catalog(folder);
            let sources = (0..3).map(|number| {
                let id = SourceId::random();
                (catalog.add_source(id, &format!("source {number}")).unwrap(), id)
            });
            let sources = sources.collect();
            Model { catalog, path: folder.join("catalog.sqlite"), sources, used: BTreeMap::new(), random: seed }
        }

        /// Blocks that differ a little from those of a random snapshot of the source.
        fn blocks(&mut self, source: usize) -> RoaringTreemap {
            let others: Vec<_> = self.used.range((source, 0)..(source + 1, 0)).map(|(_, (_, blocks))| blocks).collect();
            let mut blocks = if others.is_empty() {
                (0..BLOCKS).filter(|block| block % 3 != source as u64).collect()
            } else {
                others[below(&mut self.random, others.len() as u64) as usize].clone()
            };
            for _ in 0..below(&mut self.random, 40) {
                let block = below(&mut self.random, BLOCKS);
                if !blocks.remove(block) {
                    blocks.insert(block);
                }
            }
            let first = below(&mut self.random, BLOCKS);
            let range = first..first + below(&mut self.random, 200);
            match below(&mut self.random, 4) {
                0 => drop(blocks.insert_range(range)),
                1 => drop(blocks.remove_range(range)),
                2 => blocks.clear(),
                _ => {}
            }
            blocks
        }

        fn add(&mut self, source: usize, sequence: u64, presence: Presence) {
            let blocks = self.blocks(source);
            let id = SnapshotId::random();
            self.catalog
                .add_snapshot(&self.row(source, sequence, id, presence), self.sources[source].0, Some(&blocks))
                .unwrap();
            self.used.insert((source, sequence), (id, blocks));
        }

        fn row(&self, source: usize, sequence: u64, id: SnapshotId, presence: Presence) -> SnapshotRow {
            SnapshotRow {
                name: SnapshotName { source: self.sources[source].1, sequence, time: "20261120T145201Z".into(), id },
                source: format!("source {source}"),
                labels: Labels::default(),
                files: 0,
                bytes: 0,
                stored_bytes: 0,
                presence,
                is_held: false,
                root: Default::default(),
            }
        }

        fn reopen(self) -> Self {
            let Model { catalog, path, .. } = self;
            let repository = catalog.trust().repository;
            catalog.close().unwrap();
            Model { catalog: Catalog::open(&path, repository).unwrap(), path, ..self }
        }

        fn step(mut self) -> Self {
            let used: Vec<_> = self.used.keys().copied().collect();
            let newest = self.catalog.last_sequence().unwrap();
            let any = used.get(below(&mut self.random, used.len().max(1) as u64) as usize).copied();
            let source = below(&mut self.random, 3) as usize;
            match (below(&mut self.random, 12), any) {
                // An older snapshot, such as one from an index that was not listed before.
                (0..2, _) => {
                    let sequence = 1 + below(&mut self.random, newest + 1);
                    if !self.catalog.has_sequence(sequence).unwrap() {
                        self.add(source, sequence, Presence::There);
                    }
                }
                // Another snapshot with the number of a missing one, perhaps of another source.
                (2, Some((old, sequence))) => {
                    self.catalog.set_missing(self.used[&(old, sequence)].0, Presence::NotFound).unwrap();
                    self.catalog.forget_not_found(sequence).unwrap();
                    self.used.remove(&(old, sequence));
                    if below(&mut self.random, 2) == 0 {
                        self.add(source, sequence, Presence::There);
                    }
                }
                (3, Some(_)) => {
                    let gone: Vec<_> = used.into_iter().filter(|_| below(&mut self.random, 3) == 0).collect();
                    let sequences: Vec<_> = gone.iter().map(|(_, sequence)| *sequence).collect();
                    self.catalog.forget_usage(&sequences).unwrap();
                    gone.iter().for_each(|key| drop(self.used.remove(key)));
                    self.catalog
                        .each_group(&mut |spans| {
                            for span in spans {
                                let source = self.sources.iter().position(|(row, _)| row.0 == span.source).unwrap();
                                let some = self.used.range((source, span.first)..=(source, span.last)).next();
                                assert!(some.is_some(), "{span:?} includes no recorded snapshot");
                            }
                        })
                        .unwrap();
                }
                (4, _) => return self.reopen(),
                // The bitmaps are only a cache.
                (5, _) => {
                    self.catalog.commit().unwrap();
                    *self.catalog.newest.borrow_mut() = None;
                    self.catalog.db.execute("DELETE FROM newest_usages", []).unwrap();
                }
                (6, _) => {
                    let id = SnapshotId::random();
                    let row = self.row(source, newest + 1, id, Presence::There);
                    self.catalog.add_snapshot(&row, self.sources[source].0, None).unwrap();
                    assert_eq!(self.catalog.snapshot_blocks(id).unwrap(), None);
                    assert!(matches!(
                        self.catalog.live(&[newest + 1]),
                        Err(Error::UnknownUsage { sequence, .. }) if sequence == newest + 1
                    ));
                }
                _ => {
                    let sequence = newest + 1 + below(&mut self.random, 3);
                    self.add(source, sequence, Presence::Intended);
                }
            }
            self
        }

        /// Differences of random pairs of snapshots, all or only the first of them.
        fn check_changes(&mut self) {
            let used: Vec<_> = self.used.iter().map(|((source, _), (id, blocks))| (*source, *id, blocks)).collect();
            let (mut pairs, mut expected) = (Vec::new(), Vec::new());
            for (source, id, blocks) in &used {
                let (of, base, before) = &used[below(&mut self.random, used.len() as u64) as usize];
                let pair = self.catalog.usage_pair(*id, Some(*base)).unwrap().unwrap();
                assert_eq!(pair.has_base(), of == source);
                pairs.push(pair);
                let before = if of == source { (*before).clone() } else { RoaringTreemap::new() };
                expected.push(UsageChange { added: *blocks - &before, removed: &before - *blocks });
            }
            let limit = below(&mut self.random, 6000);
            let found = self.catalog.usage_changes(&pairs, limit).unwrap();
            let size = |change: &UsageChange| change.added.len() + change.removed.len();
            let mut total = 0;
            let fitting = expected.iter().take_while(|change| {
                total += size(change);
                total <= limit
            });
            // Blocks that turned out not to differ may have counted.
            assert!(found.len() >= pairs.len().min(1) && found.len() <= fitting.count().max(1), "{limit} blocks");
            assert_eq!(found, expected[..found.len()]);
        }

        fn check(&mut self) {
            for ((_, sequence), (id, blocks)) in &self.used {
                assert_eq!(self.catalog.snapshot_blocks(*id).unwrap().as_ref(), Some(blocks), "snapshot {sequence}");
            }
            self.check_changes();
            let kept: Vec<_> = self.used.iter().filter(|_| below(&mut self.random, 2) == 0).collect();
            let live = kept.iter().fold(RoaringTreemap::new(), |live, (_, (_, blocks))| live | blocks);
            let sequences: Vec<_> = kept.iter().rev().map(|((_, sequence), _)| *sequence).collect();
            assert_eq!(self.catalog.live(&sequences).unwrap(), live);
            self.catalog
                .each_group(&mut |spans| {
                    for pair in spans.windows(2) {
                        let (one, next) = (pair[0], pair[1]);
                        assert!(
                            (one.block, one.source) < (next.block, next.source) || one.last < next.first,
                            "{pair:?}"
                        );
                    }
                })
                .unwrap();
        }
    }

    #[test]
    fn spans_equal_a_set_of_blocks_per_snapshot() {
        for seed in 1..=8 {
            let folder = tempfile::tempdir().unwrap();
            let mut model = Model::new(folder.path(), seed);
            for _ in 0..40 {
                model = model.step();
                model.check();
            }
        }
    }

    #[test]
    fn a_usual_backup_changes_only_the_groups_of_changed_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Model::new(folder.path(), 1);
        let row = |model: &Model, sequence| model.row(0, sequence, SnapshotId::random(), Presence::There);
        let source = model.sources[0].0;
        let mut blocks: RoaringTreemap = (0..BLOCKS).collect();
        model.catalog.add_snapshot(&row(&model, 1), source, Some(&blocks)).unwrap();
        model.catalog.commit().unwrap();
        blocks.remove(GROUP);
        blocks.insert(BLOCKS);
        let before = model.catalog.db.total_changes();
        model.catalog.add_snapshot(&row(&model, 2), source, Some(&blocks)).unwrap();
        // Two groups and the snapshot.
        assert_eq!(model.catalog.db.total_changes() - before, 3);
        model.catalog.commit().unwrap();
        assert_eq!(model.catalog.live(&[2]).unwrap(), blocks);
    }

    #[test]
    fn damaged_spans_are_reported_and_a_damaged_bitmap_is_read_from_spans() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = Model::new(folder.path(), 1);
        for sequence in 1..4 {
            model.add(0, sequence, Presence::There);
        }
        model = model.reopen();
        let (id, blocks) = model.used[&(0, 3)].clone();
        let damage = "UPDATE newest_usages SET blocks = CAST(substr(blocks, 1, length(blocks) - 1) || x'07' AS BLOB)";
        assert_eq!(model.catalog.db.execute(damage, []).unwrap(), 1);
        assert_eq!(model.catalog.snapshot_blocks(id).unwrap(), Some(blocks));
        let all = (0..BLOCKS).collect();
        assert_eq!(model.catalog.unknown_used_blocks(&all).unwrap(), 0);
        let used = model.catalog.live(&[1, 2, 3]).unwrap();
        assert_eq!(model.catalog.unknown_used_blocks(&RoaringTreemap::new()).unwrap(), used.len());
        // A row in the place of another.
        let moved = "UPDATE spans SET spans = (SELECT spans FROM spans WHERE id = 1) WHERE id = 2";
        assert_eq!(model.catalog.db.execute(moved, []).unwrap(), 1);
        for result in [model.catalog.live(&[1]).map(drop), model.catalog.unknown_used_blocks(&all).map(drop)] {
            assert!(matches!(result, Err(Error::Damaged { .. })), "{result:?}");
        }
        assert!(matches!(model.catalog.forget_usage(&[1]), Err(Error::Damaged { .. })));
    }
}
