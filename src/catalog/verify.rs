//! Checks the internal consistency of a catalog.

use roaring::RoaringTreemap;
use rusqlite::Row;

use super::database::Catalog;
use super::error::Error;
use super::packs::KnownPack;
use super::packs::{KNOWN_PACK, RawPack, known_pack};

/// The most findings of SQLite's integrity check that are reported.
const FINDINGS: u32 = 20;

impl Catalog {
    /// Runs SQLite's integrity check. Returns its findings; empty if there are none.
    pub fn integrity(&self) -> Result<Vec<String>, Error> {
        let find = || {
            let mut statement = self.db.prepare(&format!("PRAGMA integrity_check({FINDINGS})"))?;
            statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let found = find().map_err(self.failed("check the catalog"))?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    /// Calls `found` with each pack that is not condemned, and with the problem of its blocks, if there is one.
    pub fn each_pack(&self, found: &mut dyn FnMut(&KnownPack, Option<String>)) -> Result<(), Error> {
        let all = format!("{KNOWN_PACK} FROM packs WHERE condemned = 0 AND id > ?1 ORDER BY id LIMIT ?2");
        let read: fn(&Row<'_>) -> rusqlite::Result<RawPack> = known_pack;
        self.in_pages(&all, read, |raw| {
            let pack = self.checked(raw)?;
            found(&pack, self.check_layout(&pack)?);
            Ok(pack.row.0)
        })
    }

    /// Checks that the blocks of a pack cover it completely, without gaps or overlaps. A carrier may have gaps, since some of
    /// its blocks may have been moved again. Returns the problem, if any.
    fn check_layout(&self, pack: &KnownPack) -> Result<Option<String>, Error> {
        let add_up = || {
            let select = if pack.is_carrier {
                "SELECT moves.ordinal, moves.start, length FROM moves JOIN blocks ON blocks.id = block
                 WHERE carrier = ? ORDER BY 1"
            } else {
                "SELECT ordinal, start, length FROM blocks WHERE pack = ? ORDER BY ordinal"
            };
            let mut statement = self.db.prepare_cached(select)?;
            let mut rows = statement.query([pack.row.0])?;
            let (mut next, mut end) = (0, 0);
            while let Some(row) = rows.next()? {
                let (ordinal, start, length) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
                let is_next = if pack.is_carrier {
                    ordinal >= next && start >= end && start.saturating_add(length) <= pack.length as i64
                } else {
                    (ordinal, start) == (next, end)
                };
                if !is_next || length <= 0 {
                    return Ok(Some(format!("its block {ordinal} does not begin at the end of the previous one")));
                }
                (next, end) = (ordinal + 1, start.saturating_add(length));
            }
            Ok((end != pack.length as i64 && !pack.is_carrier)
                .then(|| format!("its blocks add up to {end} bytes, but it has {}", pack.length)))
        };
        add_up().map_err(self.failed("check blocks"))
    }

    /// The blocks of packs that are not condemned, and all blocks.
    pub fn block_sets(&self) -> Result<(RoaringTreemap, RoaringTreemap), Error> {
        let (mut usable, mut all) = (RoaringTreemap::new(), RoaringTreemap::new());
        let select = "SELECT blocks.id, coalesce(carriers.condemned, birth.condemned)
                      FROM blocks LEFT JOIN packs birth ON birth.id = pack
                      LEFT JOIN moves ON moves.block = blocks.id LEFT JOIN packs carriers ON carriers.id = carrier
                      WHERE blocks.id > ?1 ORDER BY blocks.id LIMIT ?2";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?));
        self.in_pages(select, read, |(id, condemned)| {
            all.insert(id as u64);
            if condemned == Some(0) {
                usable.insert(id as u64);
            }
            Ok(id)
        })?;
        Ok((usable, all))
    }

    /// Counts lost and damaged packs.
    pub fn lost_packs(&self) -> Result<u64, Error> {
        let count = self.db.query_row("SELECT count(*) FROM packs WHERE condemned = 1", [], |row| row.get::<_, i64>(0));
        Ok(count.map_err(self.failed("count packs"))? as u64)
    }

    /// Counts all chunks, and those whose block is not in `usable`.
    pub fn count_chunks(&self, usable: &RoaringTreemap) -> Result<(u64, u64), Error> {
        let (mut chunks, mut lost) = (0, 0);
        let all = "SELECT head, block FROM chunks WHERE head > ?1 ORDER BY head LIMIT ?2";
        self.in_pages(
            all,
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
            |(head, block)| {
                chunks += 1;
                lost += u64::from(!usable.contains(block as u64));
                Ok(head)
            },
        )?;
        Ok((chunks, lost))
    }

    /// Counts segments, directories and extent nodes that refer to blocks not in `usable`.
    pub fn count_lost_nodes(&self, usable: &RoaringTreemap) -> Result<u64, Error> {
        let mut lost = 0;
        let mut look = |blocks: &[Vec<u8>], block: Option<i64>| -> Result<(), Error> {
            let mut good = block.is_none_or(|block| usable.contains(block as u64));
            for list in blocks {
                good &= self.blocks(list)?.iter().all(|block| usable.contains(block.0));
            }
            lost += u64::from(!good);
            Ok(())
        };
        let segments = "SELECT id, block, blocks, more FROM segments WHERE id > ?1 ORDER BY id LIMIT ?2";
        let read = |row: &Row<'_>| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, [row.get(2)?, row.get::<_, Vec<u8>>(3)?]))
        };
        self.in_pages(segments, read, |(id, block, lists)| look(&lists, Some(block)).map(|()| id))?;
        let directories = "SELECT id, block, coalesce(indexes, x'') FROM directories WHERE id > ?1
                           AND sum IS NOT NULL ORDER BY id LIMIT ?2";
        let read =
            |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?, [row.get::<_, Vec<u8>>(2)?]));
        self.in_pages(directories, read, |(id, block, lists)| look(&lists, block).map(|()| id))?;
        let nodes = "SELECT id, blocks FROM extent_nodes WHERE id > ?1 ORDER BY id LIMIT ?2";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, [row.get::<_, Vec<u8>>(1)?]));
        self.in_pages(nodes, read, |(id, lists)| look(&lists, None).map(|()| id))?;
        Ok(lost)
    }
}
