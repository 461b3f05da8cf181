//! Condemned packs: packs that new snapshots must not refer to.
//!
//! The catalog may claim less than the repository has, which only costs space, but never more: a snapshot would refer
//! to missing data. So a missing or damaged pack is *condemned*: all claims on its blocks are dropped (chunks,
//! segments, directories and extent nodes), and the next backup reads and stores data again that still exists at the
//! source. The rows of the pack and its blocks stay, since older snapshots refer to them.

use roaring::{RoaringBitmap, RoaringTreemap};
use rusqlite::{OptionalExtension, Row, params};
use smallvec::smallvec;

use super::chunks::{PackRow, block_sum, check_number, chunk_sum, pack_sum, tail};
use super::database::Catalog;
use super::error::Error;
use super::ids::BlockId;
use crate::format::pack::{CARRIER, IndexedPack};
use crate::format::usage::{BlockRuns, add_to_runs, block_runs};
use crate::format::{Digest, PackId};
use crate::source::now;

/// The column `condemned` of a pack that is condemned for removal.
pub(super) const CONDEMNED: i64 = 3;
/// The column `condemned` of a pack that was removed on purpose.
pub(super) const GONE: i64 = 4;

/// The number of rows per page of a scan, which limits its memory.
const PAGE: usize = 512;

/// Newly condemned packs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condemned {
    /// The number of packs.
    pub packs: u64,
    /// Their total size in bytes.
    pub bytes: u64,
}

/// A pack in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPack {
    /// The pack's row in the catalog.
    pub row: PackRow,
    /// The pack's id in the repository.
    pub id: PackId,
    /// The size in bytes.
    pub length: u64,
    /// The digest of all bytes.
    pub digest: Digest,
    /// The time at which the pack was stored or last checked, in seconds since 1970.
    pub verified: i64,
    /// Whether its blocks were born in other packs.
    pub is_carrier: bool,
}

impl Catalog {
    /// Empties the list of packs in the repository.
    pub fn begin_listing(&self) -> Result<(), Error> {
        self.db.execute("DELETE FROM listing", []).map(drop).map_err(self.failed("list packs"))
    }

    /// Adds a pack to the list.
    pub fn note_listed(&self, pack: PackId, length: u64) -> Result<(), Error> {
        let add = || {
            let mut statement = self.db.prepare_cached("INSERT OR REPLACE INTO listing VALUES (?, ?)")?;
            statement.execute(params![pack.as_bytes(), length as i64])
        };
        add().map(drop).map_err(self.failed("list packs"))
    }

    /// The length of a pack on the list, in bytes.
    pub fn listed(&self, pack: PackId) -> Result<Option<u64>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached("SELECT length FROM listing WHERE pack = ?")?;
            statement.query_row([pack.as_bytes()], |row| Ok(row.get::<_, i64>(0)? as u64)).optional()
        };
        find().map_err(self.failed("list packs"))
    }

    /// Counts packs on the list that are not in the catalog.
    pub fn unknown_listed(&self) -> Result<u64, Error> {
        let count =
            "SELECT count(*) FROM listing WHERE pack NOT IN (SELECT uuid FROM packs UNION SELECT pack FROM retained)";
        let found = self.db.query_row(count, [], |row| row.get::<_, i64>(0));
        Ok(found.map_err(self.failed("list packs"))? as u64)
    }

    /// Whether any pack that is not condemned is on the list.
    pub fn any_listed(&self) -> Result<bool, Error> {
        let any = "SELECT EXISTS (SELECT 1 FROM packs JOIN listing ON listing.pack = uuid WHERE condemned = 0)";
        self.db.query_row(any, [], |row| row.get(0)).map_err(self.failed("list packs"))
    }

    /// Condemns packs that are not on the list, or have another length there. Calls `found` with each of them and with
    /// its length on the list, if any.
    pub fn condemn_unlisted(&self, found: &mut dyn FnMut(&KnownPack, Option<u64>)) -> Result<Condemned, Error> {
        let unlisted = format!(
            "{KNOWN_PACK}, listing.length FROM packs LEFT JOIN listing ON listing.pack = uuid
             WHERE condemned = 0 AND listing.length IS NOT packs.length AND id > ?1 ORDER BY id LIMIT ?2"
        );
        self.in_pages(
            &unlisted,
            |row| Ok((known_pack(row)?, row.get::<_, Option<i64>>(7)?)),
            |(pack, length)| {
                let pack = self.checked(pack)?;
                found(&pack, length.map(|length| length as u64));
                self.mark(pack.row)?;
                Ok(pack.row.0)
            },
        )?;
        self.drop_marked()
    }

    /// Condemns these packs.
    pub fn condemn(&self, packs: &[PackRow]) -> Result<Condemned, Error> {
        packs.iter().try_for_each(|pack| self.mark(*pack))?;
        self.drop_marked()
    }

    /// Drops packs that were added and will not be stored, with their blocks and all claims on these.
    pub fn drop_unstored(&self, packs: &[PackRow]) -> Result<(), Error> {
        self.condemn(packs)?;
        for pack in packs {
            for sql in ["DELETE FROM blocks WHERE pack = ?", "DELETE FROM packs WHERE id = ?"] {
                self.db.execute(sql, [pack.0]).map_err(self.failed("drop a pack"))?;
            }
        }
        Ok(())
    }

    fn mark(&self, pack: PackRow) -> Result<(), Error> {
        let set = self.db.execute("UPDATE packs SET condemned = 2 WHERE id = ? AND condemned = 0", [pack.0]);
        set.map(drop).map_err(self.failed("condemn packs"))
    }

    /// Drops all claims on marked packs, and condemns them.
    fn drop_marked(&self) -> Result<Condemned, Error> {
        let count = || {
            let count = "SELECT count(*), coalesce(sum(length), 0) FROM packs WHERE condemned = 2";
            let (packs, bytes) =
                self.db.query_row(count, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
            let mut statement = self.db.prepare(
                "SELECT blocks.id FROM packs JOIN blocks ON pack = packs.id
                 WHERE condemned = 2 AND NOT EXISTS (SELECT 1 FROM moves WHERE block = blocks.id)
                 UNION ALL SELECT block FROM packs JOIN moves ON carrier = packs.id WHERE condemned = 2",
            )?;
            let mut rows = statement.query([])?;
            // A bitmap, as for a snapshot's blocks: the ids of a pack's blocks are consecutive.
            let mut gone = RoaringTreemap::new();
            while let Some(row) = rows.next()? {
                gone.insert(row.get::<_, i64>(0)? as u64);
            }
            Ok((Condemned { packs: packs as u64, bytes: bytes as u64 }, gone))
        };
        let (condemned, gone) = count().map_err(self.failed("condemn packs"))?;
        if condemned.packs > 0 {
            self.drop_claims_on(&gone)?;
            self.drop_places(&gone)?;
            let done = self.db.execute("UPDATE packs SET condemned = 1 WHERE condemned = 2", []);
            done.map_err(self.failed("condemn packs"))?;
        }
        Ok(condemned)
    }

    /// Scans the rows of `select`, which must return rows with keys above ?1 in ascending order, at most ?2 of them.
    /// `handle` returns the key of its row, and may delete rows.
    pub(super) fn in_pages<T>(
        &self,
        select: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        mut handle: impl FnMut(T) -> Result<i64, Error>,
    ) -> Result<(), Error> {
        let mut last = i64::MIN;
        loop {
            let page = || {
                let mut statement = self.db.prepare_cached(select)?;
                statement.query_map(params![last, PAGE as i64], &read)?.collect::<rusqlite::Result<Vec<_>>>()
            };
            let page = page().map_err(self.failed("scan the catalog"))?;
            let full = page.len() == PAGE;
            for row in page {
                last = handle(row)?;
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// The row of a pack, if it is in the catalog.
    pub fn pack(&self, id: PackId) -> Result<Option<PackRow>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached("SELECT id FROM packs WHERE uuid = ?")?;
            statement.query_row([id.as_bytes()], |row| Ok(PackRow(row.get(0)?))).optional()
        };
        find().map_err(self.failed("look up a pack"))
    }

    /// The pack with this id, unless it is not in the catalog.
    pub fn known_pack(&self, id: PackId) -> Result<Option<KnownPack>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached(&format!("{KNOWN_PACK} FROM packs WHERE uuid = ?"))?;
            statement.query_row([id.as_bytes()], known_pack).optional()
        };
        find().map_err(self.failed("look up a pack"))?.map(|pack| self.checked(pack)).transpose()
    }

    /// The pack with this id if new snapshots may refer to it.
    pub fn usable_pack(&self, id: PackId) -> Result<Option<KnownPack>, Error> {
        let find = || {
            let select = format!("{KNOWN_PACK} FROM packs WHERE uuid = ? AND condemned = 0");
            self.db.prepare_cached(&select)?.query_row([id.as_bytes()], known_pack).optional()
        };
        find().map_err(self.failed("look up a pack"))?.map(|pack| self.checked(pack)).transpose()
    }

    /// Adds a pack from an index. If it is not `there`, it is condemned from the start: only existing snapshots may
    /// refer to its blocks.
    pub fn import_pack(&self, pack: &IndexedPack, there: bool) -> Result<(), Error> {
        let mut block = self.next_block()?;
        let mut add = || -> rusqlite::Result<()> {
            let mut statement = self.db.prepare_cached(
                "INSERT INTO packs (uuid, kind, length, digest, verified, condemned, condemned_in, condemned_at, sum)
                 VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?)",
            )?;
            let digest = pack.digest.map(|digest| digest.0.to_vec()).unwrap_or_default();
            let sum = pack_sum(pack.id, pack.kind.code(), pack.length, &digest).value();
            let condemned = match (pack.digest, there) {
                (None, _) => GONE,
                (Some(_), there) => i64::from(!there),
            };
            let (id, kind, length) = (pack.id.as_bytes(), pack.kind.code() as i64, pack.length as i64);
            statement.execute(params![id, kind, length, digest, now().seconds, condemned, sum])?;
            let row = self.db.last_insert_rowid();
            let mut add_block = self.db.prepare_cached("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)")?;
            let mut chunks = Vec::new();
            for indexed in &pack.blocks {
                let BlockId(id) = block;
                let (number, hash) = (id as i64, check_number(indexed.check));
                let place = [indexed.ordinal.into(), indexed.offset as i64, indexed.length.into()];
                let [ordinal, start, length] = place;
                let sum = block_sum(number, pack.id.as_bytes(), [ordinal, start, length, hash]).value();
                add_block.execute(params![number, row, ordinal, start, length, hash, sum])?;
                let mut start = 0u64;
                for (digest, length) in &indexed.chunks {
                    chunks.push((digest.head(), *digest, id, start, *length));
                    start += u64::from(*length);
                }
                block = BlockId(id + 1);
            }
            if condemned == 0 {
                chunks.sort_unstable_by_key(|(head, ..)| *head);
                let mut add_chunk = self.db.prepare_cached("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?, ?)")?;
                for (head, digest, block, start, length) in chunks {
                    let (block, start) = (block as i64, start as i64);
                    let sum = chunk_sum(head, tail(&digest), block, start, length.into()).value();
                    add_chunk.execute(params![head, tail(&digest), block, start, length, sum])?;
                }
            }
            Ok(())
        };
        add().map_err(self.failed("add a pack"))
    }

    /// Adds runs of packs' blocks to `blocks`, or removes them. Returns false if not all of them are in the catalog.
    pub fn apply_runs(
        &self,
        blocks: &mut RoaringTreemap,
        runs: &[(PackId, BlockRuns)],
        add: bool,
    ) -> Result<bool, Error> {
        let mut all = true;
        for (pack, runs) in runs {
            let Some(pack) = self.pack(*pack)? else {
                all = false;
                continue;
            };
            for (first, count) in runs {
                let (from, to) = (i64::from(*first), i64::from(*first) + i64::from(*count));
                let mut find = || {
                    let select = "SELECT id FROM blocks WHERE pack = ? AND ordinal >= ? AND ordinal < ?";
                    let mut statement = self.db.prepare_cached(select)?;
                    let mut rows = statement.query(params![pack.0, from, to])?;
                    let mut found = 0;
                    while let Some(row) = rows.next()? {
                        let id = row.get::<_, i64>(0)? as u64;
                        if add {
                            blocks.insert(id)
                        } else {
                            blocks.remove(id)
                        };
                        found += 1;
                    }
                    Ok(found == *count)
                };
                all &= find().map_err(self.failed("look up blocks"))?;
            }
        }
        Ok(all)
    }

    /// Blocks as runs of ordinals within their birth packs.
    pub fn block_runs(&self, blocks: &RoaringTreemap) -> Result<Vec<(PackId, BlockRuns)>, Error> {
        // Blocks of a pack mostly have consecutive ids, so this list is as small as its result.
        let mut packs: Vec<(PackId, BlockRuns)> = Vec::new();
        for block in blocks {
            let (pack, ordinal) = self.ordinal(BlockId(block))?;
            match packs.last_mut() {
                Some((last, runs)) if *last == pack && end_of(runs) <= ordinal => add_to_runs(runs, ordinal),
                _ => packs.push((pack, smallvec![(ordinal, 1)])),
            }
        }
        packs.sort_by_key(|(pack, _)| *pack);
        packs.dedup_by(|(next, more), (pack, runs)| {
            let is_same = next == pack;
            if is_same {
                let ordinals: RoaringBitmap =
                    runs.drain(..).chain(more.drain(..)).flat_map(|(first, count)| first..first + count).collect();
                *runs = block_runs(ordinals);
            }
            is_same
        });
        Ok(packs)
    }

    /// Packs last checked before a time (seconds since 1970), in ascending order of that time; at most `most`.
    pub fn longest_unverified(&self, before: i64, most: usize) -> Result<Vec<KnownPack>, Error> {
        let find = || {
            self.db
                .prepare_cached(&format!(
                    "{KNOWN_PACK} FROM packs WHERE condemned = 0 AND verified < ? ORDER BY verified LIMIT ?"
                ))?
                .query_map(params![before, most as i64], known_pack)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        find().map_err(self.failed("look up packs"))?.into_iter().map(|pack| self.checked(pack)).collect()
    }

    /// Usable packs whose ids are above this one, in ascending order of their ids; at most `most`.
    pub fn packs_after(&self, id: Option<PackId>, most: usize) -> Result<Vec<KnownPack>, Error> {
        let after = id.as_ref().map(|id| id.as_bytes().as_slice()).unwrap_or_default();
        let find = || {
            self.db
                .prepare_cached(&format!(
                    "{KNOWN_PACK} FROM packs WHERE condemned = 0 AND uuid > ? ORDER BY uuid LIMIT ?"
                ))?
                .query_map(params![after, most as i64], known_pack)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        find().map_err(self.failed("look up packs"))?.into_iter().map(|pack| self.checked(pack)).collect()
    }

    /// The total length of all usable packs in bytes.
    pub fn pack_bytes(&self) -> Result<u64, Error> {
        let sum = "SELECT coalesce(sum(length), 0) FROM packs WHERE condemned = 0";
        let bytes: i64 = self.db.query_row(sum, [], |row| row.get(0)).map_err(self.failed("add up packs"))?;
        Ok(bytes.unsigned_abs())
    }

    /// Records the time at which a pack was checked, in seconds since 1970.
    pub fn set_verified(&self, pack: PackRow, at: i64) -> Result<(), Error> {
        let set = self.db.execute("UPDATE packs SET verified = ? WHERE id = ?", [at, pack.0]);
        set.map(drop).map_err(self.failed("record a checked pack"))
    }

    pub(super) fn checked(&self, raw: RawPack) -> Result<KnownPack, Error> {
        let RawPack { row, uuid, length, digest, verified, is_carrier, whole } = raw;
        if !whole {
            return Err(self.damaged("a pack's row does not match its checksum"));
        }
        let id = PackId::from_slice(&uuid).map_err(|e| self.damaged(e))?;
        let digest = Digest::from_slice(&digest).ok_or_else(|| self.damaged("a pack's digest is truncated"))?;
        Ok(KnownPack { row, id, length, digest, verified, is_carrier })
    }
}

/// The ordinal after the last run.
fn end_of(runs: &BlockRuns) -> u32 {
    runs.last().map_or(0, |(first, count)| first + count)
}

pub(super) const KNOWN_PACK: &str = "SELECT id, uuid, packs.length, digest, verified, kind, sum";

/// A pack's row as it was read, not yet validated.
pub(super) struct RawPack {
    row: PackRow,
    uuid: Vec<u8>,
    length: u64,
    digest: Vec<u8>,
    verified: i64,
    is_carrier: bool,
    /// Whether the row matches its checksum.
    whole: bool,
}

pub(super) fn known_pack(row: &Row<'_>) -> rusqlite::Result<RawPack> {
    let (uuid, length, digest): (Vec<u8>, i64, Vec<u8>) = (row.get(1)?, row.get(2)?, row.get(3)?);
    let kind = row.get::<_, i64>(5)?;
    let sum = PackId::from_slice(&uuid).ok().map(|id| pack_sum(id, kind as u64, length as u64, &digest));
    let whole = sum.map(|sum| sum.agrees(row, 6)).transpose()?.unwrap_or_default();
    let (row, verified) = (PackRow(row.get(0)?), row.get(4)?);
    let is_carrier = kind == CARRIER as i64;
    Ok(RawPack { row, uuid, length: length as u64, digest, verified, is_carrier, whole })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::catalog::database::tests::catalog;
    use crate::catalog::stats::Stats;
    use crate::catalog::{DirectoryId, NewSegment, Parent, Past, SourceRow, Stored};
    use crate::format::Check;
    use crate::format::pack::{IndexedBlock, PackKind};
    use crate::source::Inode;

    const ABOVE: Parent = Parent::Source(SourceRow(1));

    /// A pack with a block of one chunk for each of these numbers.
    pub(in crate::catalog) fn pack(chunks: std::ops::Range<u32>) -> IndexedPack {
        let count = chunks.len() as u32;
        let block = |(ordinal, i): (u32, u32)| IndexedBlock {
            ordinal,
            offset: u64::from(ordinal) * 10,
            length: 10,
            check: Check::of(&i.to_be_bytes()),
            chunks: vec![(digest(i), 5)],
        };
        IndexedPack {
            id: PackId::random(),
            kind: PackKind::Data,
            digest: Some(Digest::of(b"pack")),
            count,
            length: u64::from(count) * 10,
            blocks: (0..).zip(chunks).map(block).collect(),
        }
    }

    fn digest(i: u32) -> Digest {
        Digest::of(&i.to_be_bytes())
    }

    pub(in crate::catalog) fn block_of(catalog: &Catalog, i: u32) -> BlockId {
        catalog.chunk(&digest(i)).unwrap().expect("a known chunk").block
    }

    /// Adds a directory with a single segment, whose node is stored in block `node` and refers to these blocks.
    fn directory(catalog: &Catalog, name: &[u8], node: BlockId, blocks: &[BlockId], more: &[BlockId]) -> DirectoryId {
        let id = catalog.enter_directory(ABOVE, name, Inode { device: 1, number: name.len() as u64 }).unwrap();
        let stored = Stored { digest: Digest::of(b""), block: node, start: 0, length: 1 };
        let segment = NewSegment {
            directory: id,
            replaces: vec![],
            first: b"a".to_vec(),
            entries: 1,
            span: 1,
            stored,
            blocks: blocks.to_vec(),
            more: more.to_vec(),
            stats: Stats::default(),
            node: vec![],
        };
        catalog.put_segment(&segment).unwrap();
        catalog.finish_directory(id, 1, Some(&stored), &[]).unwrap();
        id
    }

    fn is_complete(past: &Past, name: &[u8]) -> bool {
        let row = past.directory(ABOVE, name).unwrap();
        row.expect("a directory").subtree.is_some()
    }

    #[test]
    fn exactly_the_claims_on_a_condemned_pack_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = catalog(folder.path());
        // More than one page of rows of each kind.
        let many = 3 * PAGE as u32 / 2;
        let (good, bad) = (pack(0..many), pack(many..2 * many));
        for pack in [&good, &bad] {
            catalog.import_pack(pack, true).unwrap();
        }
        let (g, b) = (block_of(&catalog, 0), block_of(&catalog, many));
        type Case<'a> = (&'a [u8], BlockId, &'a [BlockId], &'a [BlockId], bool);
        let cases: [Case<'_>; 5] = [
            (b"good", g, &[g, g], &[g], true),
            (b"node", b, &[g], &[], false),
            (b"content", g, &[g, b], &[], false),
            (b"long file", g, &[g], &[g, b], false),
            (b"nothing in it", g, &[], &[], true),
        ];
        for (name, node, blocks, more, _) in cases {
            directory(&catalog, name, node, blocks, more);
        }
        // A long directory: its segments are intact, but its index nodes are lost.
        let indexed = directory(&catalog, b"indexed", g, &[g], &[]);
        let stored = Stored { digest: Digest::of(b"i"), block: g, start: 0, length: 1 };
        catalog.finish_directory(indexed, 2, Some(&stored), &[g, b]).unwrap();
        for i in 0..many {
            let bad = i % 2 == 1;
            catalog.add_extent_node(&digest(i), &[g, if bad { b } else { g }]).unwrap();
            directory(&catalog, format!("many {i}").as_bytes(), if bad { b } else { g }, &[], &[]);
        }
        catalog.commit().unwrap();
        let next = catalog.next_block().unwrap();
        let row = catalog.pack(bad.id).unwrap().unwrap();
        let condemned = catalog.condemn(&[row]).unwrap();
        catalog.commit().unwrap();

        assert_eq!(condemned, Condemned { packs: 1, bytes: bad.length });
        for i in 0..2 * many {
            assert_eq!(catalog.chunk(&digest(i)).unwrap().is_some(), i < many, "chunk {i}");
        }
        let past = catalog.past().unwrap();
        for (name, .., whole) in cases {
            assert_eq!(is_complete(&past, name), whole, "{}", String::from_utf8_lossy(name));
        }
        assert!(!is_complete(&past, b"indexed"));
        assert_eq!(past.segments(indexed, None, 9).unwrap().len(), 1);
        for i in 0..many {
            assert_eq!(catalog.extent_node(&digest(i)).unwrap().is_some(), i % 2 == 0, "{i}");
            assert_eq!(is_complete(&past, format!("many {i}").as_bytes()), i % 2 == 0, "{i}");
        }
        let (usable, all) = catalog.block_sets().unwrap();
        assert_eq!((usable.len(), all.len()), (u64::from(many), 2 * u64::from(many)));
        assert_eq!(catalog.count_chunks(&usable).unwrap(), (u64::from(many), 0));
        assert_eq!(catalog.count_lost_nodes(&usable).unwrap(), 0);
        // Snapshots may still refer to the blocks, so their ids remain valid.
        assert_eq!(catalog.ordinal(b).unwrap(), (bad.id, 0));
        assert_eq!(catalog.next_block().unwrap(), next);
        // A chunk that is stored again is found again.
        catalog.import_pack(&pack(many..2 * many), true).unwrap();
        assert_ne!(block_of(&catalog, many), b);
        assert_eq!(catalog.condemn(&[row]).unwrap(), Condemned::default());
    }

    #[test]
    fn packs_that_are_not_listed_or_have_another_length_are_condemned() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let packs = [pack(0..3), pack(3..6), pack(6..9)];
        for pack in &packs {
            catalog.import_pack(pack, true).unwrap();
        }
        catalog.begin_listing().unwrap();
        catalog.note_listed(packs[0].id, 30).unwrap();
        catalog.note_listed(packs[1].id, 29).unwrap();
        catalog.note_listed(PackId::random(), 30).unwrap();
        let mut seen = Vec::new();
        let condemned = catalog.condemn_unlisted(&mut |pack, length| seen.push((pack.id, length))).unwrap();
        assert_eq!(seen, [(packs[1].id, Some(29)), (packs[2].id, None)]);
        assert_eq!(condemned, Condemned { packs: 2, bytes: 60 });
        assert!(catalog.chunk(&digest(0)).unwrap().is_some() && catalog.chunk(&digest(3)).unwrap().is_none());
        // A second call is a no-op.
        let again = catalog.condemn_unlisted(&mut |_, _| unreachable!("condemned already")).unwrap();
        assert_eq!(again, Condemned::default());
    }

    #[test]
    fn a_missing_pack_from_an_index_has_blocks_but_no_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let (there, missing) = (pack(0..4), pack(2..8));
        catalog.import_pack(&missing, false).unwrap();
        catalog.import_pack(&there, true).unwrap();
        assert!(catalog.chunk(&digest(7)).unwrap().is_none());
        // The chunk is in both packs; only the existing pack counts.
        assert_eq!(catalog.location(block_of(&catalog, 2)).unwrap().pack, there.id);
        let mut used = RoaringTreemap::new();
        assert!(
            catalog
                .apply_runs(&mut used, &[(missing.id, smallvec![(0, 2), (5, 1)]), (there.id, smallvec![(0, 4)])], true)
                .unwrap()
        );
        assert_eq!(used.len(), 7);
        assert!(catalog.apply_runs(&mut used, &[(there.id, smallvec![(1, 3)])], false).unwrap());
        assert_eq!(used.len(), 4);
        assert!(!catalog.apply_runs(&mut used, &[(there.id, smallvec![(3, 2)])], true).unwrap());
        assert!(!catalog.apply_runs(&mut used, &[(PackId::random(), smallvec![(0, 1)])], true).unwrap());
    }

    #[test]
    fn the_least_recently_checked_packs_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let packs: Vec<_> = (0..5).map(|i| pack(i..i + 1)).collect();
        for (pack, verified) in packs.iter().zip([50, 10, 40, 20, 30]) {
            catalog.import_pack(pack, true).unwrap();
            catalog.set_verified(catalog.pack(pack.id).unwrap().unwrap(), verified).unwrap();
        }
        catalog.condemn(&[catalog.pack(packs[3].id).unwrap().unwrap()]).unwrap();
        let found = |before, most| {
            let packs = catalog.longest_unverified(before, most).unwrap();
            packs.iter().map(|pack| pack.verified).collect::<Vec<_>>()
        };
        assert_eq!(found(50, 9), [10, 30, 40]);
        assert_eq!(found(50, 2), [10, 30]);
        assert_eq!(found(10, 9), Vec::<i64>::new());
    }
}
