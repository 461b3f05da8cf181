//! Chunks of lost and damaged packs, and where they are stored now.
//!
//! A snapshot names the pack in which a chunk was first stored, and never changes. If that pack is lost, and the chunk is
//! stored again from the source or is in another pack as well, shards of moves lead older snapshots to the new place. The
//! shards in the repository are written from these rows. The chunks of a lost pack are known from indexes, which are read
//! once for each loss.
//!
//! The new place is live as long as a snapshot uses the lost block: see [`Catalog::live`].

use std::collections::HashMap;

use roaring::RoaringTreemap;
use rusqlite::{Row, params, params_from_iter};

use super::chunks::{PackRow, tail};
use super::database::Catalog;
use super::error::Error;
use super::ids::BlockId;
use super::sums::{RowSum, Sum};
use crate::format::pack::IndexedPack;
use crate::format::{Digest, PackId};

/// The new place of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewPlace {
    /// The pack in which it was first stored.
    pub(super) birth: PackId,
    pub(super) digest: Digest,
    pub(super) block: BlockId,
    /// The offset in the decoded block.
    pub(super) start: u32,
}

/// A row: a lost chunk, and its new place.
struct LostChunk {
    /// The lost block.
    lost: i64,
    digest: Digest,
    place: Option<(BlockId, u32)>,
}

/// The columns that [`LostChunk::read`] reads.
const COLUMNS: &str =
    "lost_block, lost_chunks.head, lost_chunks.digest, lost_chunks.block, lost_chunks.start, lost_chunks.sum";

impl LostChunk {
    /// `None` if the row does not match its checksum.
    fn read(row: &Row<'_>) -> rusqlite::Result<Option<Self>> {
        let bytes = [&row.get::<_, i64>(1)?.to_be_bytes(), row.get_ref(2)?.as_blob()?].concat();
        let place = row.get::<_, Option<i64>>(3)?.zip(row.get(4)?).map(|(block, start)| (BlockId(block as u64), start));
        let Some(digest) = Digest::from_slice(&bytes) else { return Ok(None) };
        let chunk = LostChunk { lost: row.get(0)?, digest, place };
        Ok(if chunk.sum().is_in(row, 5)? { Some(chunk) } else { None })
    }

    fn sum(&self) -> RowSum {
        let (block, start) = self.place.map_or((-1, -1), |(BlockId(block), start)| (block as i64, start.into()));
        Sum::of("lost_chunks").number(self.lost).bytes(&self.digest.0).number(block).number(start).value()
    }
}

impl Catalog {
    /// Lost and damaged packs whose chunks were not looked for in indexes.
    pub fn unsearched_losses(&self) -> Result<Vec<PackRow>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT id FROM packs WHERE condemned = 1 AND NOT searched")?;
            statement.query_map([], |row| Ok(PackRow(row.get(0)?)))?.collect::<rusqlite::Result<_>>()
        };
        find().map_err(self.failed("look for lost packs"))
    }

    /// Notes the chunks of a pack in an index whose blocks are lost or damaged.
    pub fn note_lost_chunks(&self, pack: &IndexedPack) -> Result<(), Error> {
        let note = || {
            let select = "SELECT blocks.ordinal, blocks.id FROM packs birth JOIN blocks ON pack = birth.id
                 LEFT JOIN moves ON moves.block = blocks.id LEFT JOIN packs carriers ON carriers.id = carrier
                 WHERE birth.uuid = ? AND coalesce(carriers.condemned, birth.condemned) = 1";
            let mut statement = self.db.prepare_cached(select)?;
            let read = |row: &Row<'_>| Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?));
            let lost = statement.query_map([pack.id.as_bytes()], read)?.collect::<rusqlite::Result<HashMap<_, _>>>()?;
            let insert = "INSERT OR IGNORE INTO lost_chunks VALUES (?, ?, ?, NULL, NULL, ?)";
            let mut insert = self.db.prepare_cached(insert)?;
            for block in &pack.blocks {
                let Some(lost) = lost.get(&block.ordinal) else { continue };
                for (digest, _) in &block.chunks {
                    let chunk = LostChunk { lost: *lost, digest: *digest, place: None };
                    insert.execute(params![lost, digest.head(), tail(digest), chunk.sum()])?;
                }
            }
            Ok(())
        };
        note().map_err(self.failed("note lost chunks"))
    }

    /// Records that the chunks of these packs were looked for in all indexes.
    pub fn set_searched(&self, packs: &[PackRow]) -> Result<(), Error> {
        for pack in packs {
            let set = self.db.execute("UPDATE packs SET searched = 1 WHERE id = ?", [pack.0]);
            set.map_err(self.failed("note lost chunks"))?;
        }
        Ok(())
    }

    /// Looks for lost chunks among those that can be used, whose packs must be stored. Returns how many were found that had no
    /// place before.
    pub fn place_lost_chunks(&self) -> Result<u64, Error> {
        let (mut found, mut head) = (0, i64::MIN);
        loop {
            // Rows with places are not found again, so those with the last head of a page are complete on the next one.
            let page = self.lost_chunks(
                "JOIN chunks ON chunks.head = lost_chunks.head AND chunks.digest = lost_chunks.digest
                 WHERE lost_chunks.block IS NULL AND lost_chunks.head >= ? ORDER BY lost_chunks.head LIMIT 512",
                head,
            )?;
            let Some(last) = page.last() else { return Ok(found) };
            head = last.digest.head();
            found += page.len() as u64;
            for chunk in page {
                let stored = self.chunk(&chunk.digest)?.ok_or_else(|| self.wrong_row())?;
                self.set_place(LostChunk { place: Some((stored.block, stored.start)), ..chunk })?;
            }
        }
    }

    /// Drops places in blocks that are lost.
    pub(super) fn drop_places(&self, lost: &RoaringTreemap) -> Result<(), Error> {
        if !self.has_lost_chunks()? {
            return Ok(());
        }
        for block in lost {
            let places = self.lost_chunks("WHERE block = ?", block as i64)?;
            places.into_iter().try_for_each(|chunk| self.set_place(LostChunk { place: None, ..chunk }))?;
        }
        Ok(())
    }

    /// Drops the chunks of blocks that are removed, and places in them.
    pub(super) fn drop_lost_chunks(&self, removed: &RoaringTreemap) -> Result<(), Error> {
        if !self.has_lost_chunks()? {
            return Ok(());
        }
        self.drop_places(removed)?;
        for block in removed {
            let drop =
                || self.db.prepare_cached("DELETE FROM lost_chunks WHERE lost_block = ?")?.execute([block as i64]);
            drop().map_err(self.failed("drop lost chunks"))?;
        }
        Ok(())
    }

    fn has_lost_chunks(&self) -> Result<bool, Error> {
        let found = self.db.query_row("SELECT EXISTS (SELECT 1 FROM lost_chunks)", [], |row| row.get(0));
        found.map_err(self.failed("look up lost chunks"))
    }

    /// The rows for which a condition with one value holds.
    fn lost_chunks(&self, condition: &str, value: i64) -> Result<Vec<LostChunk>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached(&format!("SELECT {COLUMNS} FROM lost_chunks {condition}"))?;
            statement.query_map([value], LostChunk::read)?.collect::<rusqlite::Result<Option<Vec<_>>>>()
        };
        find().map_err(self.failed("look up lost chunks"))?.ok_or_else(|| self.wrong_row())
    }

    /// Whether a chunk is lost, and has no new place.
    pub fn is_lost(&self, digest: &Digest) -> Result<bool, Error> {
        let find = || {
            let find = "SELECT EXISTS (SELECT 1 FROM lost_chunks WHERE head = ? AND digest = ? AND block IS NULL)";
            self.db.prepare_cached(find)?.query_row(params![digest.head(), tail(digest)], |row| row.get(0))
        };
        find().map_err(self.failed("look up lost chunks"))
    }

    /// Records the place of a chunk, or that it has none.
    fn set_place(&self, chunk: LostChunk) -> Result<(), Error> {
        let set = || {
            let (block, start) = chunk.place.map(|(BlockId(block), start)| (block as i64, start)).unzip();
            let (head, tail) = (chunk.digest.head(), tail(&chunk.digest));
            let update =
                "UPDATE lost_chunks SET block = ?, start = ?, sum = ? WHERE lost_block = ? AND head = ? AND digest = ?";
            self.db.prepare_cached(update)?.execute(params![block, start, chunk.sum(), chunk.lost, head, tail])?;
            let mark = "INSERT OR IGNORE INTO dirty_shards
                 SELECT substr(uuid, 1, 1) FROM blocks JOIN packs ON packs.id = pack WHERE blocks.id = ?";
            self.db.prepare_cached(mark)?.execute([chunk.lost])
        };
        set().map(drop).map_err(self.failed("record the place of a lost chunk"))
    }

    /// Marks the shards that name this block as the new place of chunks.
    pub(super) fn mark_places_in(&self, block: i64) -> rusqlite::Result<()> {
        let mark = "INSERT OR IGNORE INTO dirty_shards
             SELECT substr(uuid, 1, 1) FROM lost_chunks JOIN blocks ON blocks.id = lost_block JOIN packs ON packs.id = pack
             WHERE lost_chunks.block = ?";
        self.db.prepare_cached(mark)?.execute([block]).map(drop)
    }

    /// Adds the new places of the chunks of lost blocks in `live`.
    pub(super) fn add_places(&self, live: &mut RoaringTreemap) -> Result<(), Error> {
        self.each_lost_chunk("WHERE block IS NOT NULL", &[], &mut |LostChunk { lost, place, .. }| {
            if let Some((block, _)) = place.filter(|_| live.contains(lost as u64)) {
                live.insert(block.0);
            }
        })
    }

    /// The new places of chunks of packs whose ids begin with `prefix`, by pack and digest. Of several places of a chunk in one
    /// pack, there is one.
    pub(super) fn new_places(&self, prefix: u8) -> Result<Vec<NewPlace>, Error> {
        let mut found = Vec::new();
        if !self.has_lost_chunks()? {
            return Ok(found);
        }
        let (mut first, mut last) = ([0; 16], [0xff; 16]);
        (first[0], last[0]) = (prefix, prefix);
        let mut chunks = Vec::new();
        let of_prefix = "WHERE block IS NOT NULL AND lost_block IN
             (SELECT blocks.id FROM packs JOIN blocks ON pack = packs.id WHERE uuid BETWEEN ? AND ?)";
        self.each_lost_chunk(of_prefix, &[first, last], &mut |chunk| chunks.push(chunk))?;
        for LostChunk { lost, digest, place } in chunks {
            let Some((block, start)) = place else { continue };
            found.push(NewPlace { birth: self.location(BlockId(lost as u64))?.pack, digest, block, start });
        }
        found.sort_unstable_by_key(|place| (place.birth, place.digest.0));
        found.dedup_by_key(|place| (place.birth, place.digest.0));
        Ok(found)
    }

    /// Calls `found` with each row for which a condition holds.
    fn each_lost_chunk(
        &self,
        condition: &str,
        values: &[[u8; 16]],
        found: &mut dyn FnMut(LostChunk),
    ) -> Result<(), Error> {
        let mut read = || -> rusqlite::Result<bool> {
            let mut statement = self.db.prepare_cached(&format!("SELECT {COLUMNS} FROM lost_chunks {condition}"))?;
            let mut rows = statement.query(params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                match LostChunk::read(row)? {
                    Some(chunk) => found(chunk),
                    None => return Ok(false),
                }
            }
            Ok(true)
        };
        match read().map_err(self.failed("look up lost chunks"))? {
            true => Ok(()),
            false => Err(self.wrong_row()),
        }
    }

    fn wrong_row(&self) -> Error {
        self.damaged("a lost chunk does not match its checksum")
    }

    /// Fails if a row is damaged.
    pub fn check_lost_chunks(&self) -> Result<(), Error> {
        self.each_lost_chunk("", &[], &mut |_| ())
    }

    /// Forgets all rows if one of them is damaged. They are found in indexes again.
    pub(super) fn mend_lost_chunks(&self) -> Result<(), Error> {
        match self.check_lost_chunks() {
            Err(Error::Damaged { .. }) => {
                for sql in ["DELETE FROM lost_chunks", "UPDATE packs SET searched = 0"] {
                    self.db.execute(sql, []).map_err(self.failed("drop lost chunks"))?;
                }
                Ok(())
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::database::tests::catalog;
    use crate::catalog::packs::tests::{block_of, pack};

    #[test]
    fn chunks_of_a_lost_pack_get_places_in_other_packs_until_these_are_lost_too() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let (first, other) = (pack(0..3), pack(3..6));
        catalog.import_pack(&first, true).unwrap();
        catalog.import_pack(&other, true).unwrap();
        let lost = [0, 1, 2].map(|i| block_of(&catalog, i));
        let row = catalog.pack(first.id).unwrap().unwrap();
        assert_eq!(catalog.unsearched_losses().unwrap(), []);
        catalog.condemn(&[row]).unwrap();
        assert_eq!(catalog.unsearched_losses().unwrap(), [row]);
        [&first, &other].iter().for_each(|pack| catalog.note_lost_chunks(pack).unwrap());
        catalog.set_searched(&[row]).unwrap();
        assert_eq!(catalog.unsearched_losses().unwrap(), []);
        assert_eq!(catalog.place_lost_chunks().unwrap(), 0);
        assert!(catalog.dirty_shards().unwrap().is_empty());

        let again = pack(0..2);
        catalog.import_pack(&again, true).unwrap();
        assert_eq!((catalog.place_lost_chunks().unwrap(), catalog.place_lost_chunks().unwrap()), (2, 0));
        let prefix = first.id.as_bytes()[0];
        assert_eq!(catalog.dirty_shards().unwrap(), [prefix]);
        let shard = catalog.shard(prefix).unwrap();
        for i in 0..3 {
            let place = shard.restored_chunk(first.id, &first.blocks[i].chunks[0].0);
            let expected = (i < 2).then(|| (catalog.place(block_of(&catalog, i as u32)).unwrap(), 0));
            assert_eq!(place, expected, "{i}");
        }
        // A new place is live if the lost block is.
        let mut live = RoaringTreemap::from_iter([lost[1].0, lost[2].0]);
        catalog.add_places(&mut live).unwrap();
        assert_eq!(live.into_iter().collect::<Vec<_>>(), [lost[1].0, lost[2].0, block_of(&catalog, 1).0]);

        catalog.set_shard_written(prefix).unwrap();
        let row = catalog.pack(again.id).unwrap().unwrap();
        catalog.condemn(&[row]).unwrap();
        assert_eq!(catalog.dirty_shards().unwrap(), [prefix]);
        assert!(catalog.shard(prefix).unwrap().restored.is_empty());
        assert_eq!((catalog.unsearched_losses().unwrap(), catalog.place_lost_chunks().unwrap()), (vec![row], 0));
    }

    #[test]
    fn damaged_rows_are_an_error_until_they_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let (first, again) = (pack(0..3), pack(0..3));
        catalog.import_pack(&first, true).unwrap();
        let row = catalog.pack(first.id).unwrap().unwrap();
        catalog.condemn(&[row]).unwrap();
        catalog.note_lost_chunks(&first).unwrap();
        catalog.set_searched(&[row]).unwrap();
        catalog.import_pack(&again, true).unwrap();
        catalog.place_lost_chunks().unwrap();
        catalog.mend_lost_chunks().unwrap();
        assert_eq!(catalog.unsearched_losses().unwrap(), []);
        catalog.db.execute("UPDATE lost_chunks SET block = block + 1 WHERE lost_block = 1", []).unwrap();
        let mut live = RoaringTreemap::new();
        assert!(matches!(catalog.add_places(&mut live), Err(Error::Damaged { .. })));
        assert!(catalog.shard(first.id.as_bytes()[0]).is_err());
        catalog.mend_lost_chunks().unwrap();
        catalog.add_places(&mut live).unwrap();
        assert_eq!(catalog.unsearched_losses().unwrap(), [row]);
    }
}
