//! Blocks that were moved to carriers.
//!
//! A block keeps its name, the birth pack and its ordinal there, wherever it lies. Its bytes are in its carrier, if it has
//! one, and in its birth pack otherwise. The shards of moves in the repository are written from these rows.

use std::collections::{HashMap, HashSet};

use roaring::RoaringTreemap;
use rusqlite::{OptionalExtension, Row, params};

use super::chunks::PackRow;
use super::database::Catalog;
use super::error::Error;
use super::ids::BlockId;
use super::lost::NewPlace;
use super::packs::CONDEMNED;
use super::sums::Sum;
use crate::format::moved::{Moved, MovedRange, RestoredChunk};
use crate::format::pack::{CARRIER, CarriedBlock, IndexedCarrier};
use crate::format::{BlockLocation, Check, Digest, PackId};
use crate::source::now;

/// A pack, and how much of it is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackLoad {
    /// The pack's row in the catalog.
    pub row: PackRow,
    /// The pack's id in the repository.
    pub id: PackId,
    /// Whether it holds tree nodes.
    pub is_tree: bool,
    /// The size of the pack in bytes.
    pub length: u64,
    /// The size of its live blocks in bytes.
    pub live: u64,
    /// Whether it is usable, as opposed to lost or damaged. All live blocks that were born in an unusable pack count in
    /// it, since it may reappear.
    pub is_usable: bool,
}

/// A block in a pack that is compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInPack {
    /// The block.
    pub block: BlockId,
    /// The offset of the block in this pack, in bytes.
    pub offset: u64,
    /// The block in a carrier.
    pub carried: CarriedBlock,
}

impl Catalog {
    /// The load of each pack that is not condemned, in no particular order.
    pub fn pack_loads(&self, live: &RoaringTreemap) -> Result<Vec<PackLoad>, Error> {
        let (mut bytes, mut born) = (HashMap::<i64, u64>::new(), HashMap::<i64, u64>::new());
        let blocks = "SELECT blocks.id, blocks.length, coalesce(carrier, pack), pack
             FROM blocks LEFT JOIN moves ON moves.block = blocks.id WHERE blocks.id > ?1 ORDER BY blocks.id LIMIT ?2";
        let unusable = self.unusable_packs()?;
        let mut trees = HashMap::<i64, i64>::new();
        let read = |row: &Row<'_>| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64, row.get::<_, i64>(2)?, row.get::<_, i64>(3)?))
        };
        self.in_pages(blocks, read, |(id, length, at, birth)| {
            if live.contains(id as u64) {
                *bytes.entry(at).or_default() += length;
                if at != birth {
                    if unusable.contains(&birth) {
                        *born.entry(birth).or_default() += length;
                    }
                    trees.entry(at).or_insert(birth);
                }
            }
            Ok(id)
        })?;
        let mut loads: Vec<PackLoad> = Vec::new();
        let packs = "SELECT id, uuid, kind, length, condemned FROM packs
             WHERE condemned < 3 AND id > ?1 ORDER BY id LIMIT ?2";
        let read = |row: &Row<'_>| {
            let (id, uuid): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            Ok((id, uuid, row.get::<_, i64>(2)?, row.get::<_, i64>(3)? as u64, row.get::<_, i64>(4)?))
        };
        let mut carriers = Vec::new();
        self.in_pages(packs, read, |(row, uuid, kind, length, condemned)| {
            let id = PackId::from_slice(&uuid).map_err(|e| self.damaged(e))?;
            if kind == CARRIER as i64 {
                carriers.push(loads.len());
            }
            let is_usable = condemned == 0;
            let live = |of: &HashMap<i64, u64>| of.get(&row).copied().unwrap_or_default();
            let (row, live) = (PackRow(row), live(&bytes) + live(&born));
            loads.push(PackLoad { row, id, is_tree: kind == 1, length, live, is_usable });
            Ok(row.0)
        })?;
        // A carrier holds blocks of one kind.
        for at in carriers {
            let Some(load) = loads.get_mut(at) else { continue };
            if let Some(birth) = trees.get(&load.row.0) {
                load.is_tree = self.kind_of(*birth)? == 1;
            }
        }
        Ok(loads)
    }

    /// Packs that are lost or damaged.
    fn unusable_packs(&self) -> Result<HashSet<i64>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT id FROM packs WHERE condemned = 1")?;
            statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()
        };
        find().map_err(self.failed("read packs"))
    }

    fn kind_of(&self, pack: i64) -> Result<i64, Error> {
        let mut find =
            self.db.prepare_cached("SELECT kind FROM packs WHERE id = ?").map_err(self.failed("read packs"))?;
        find.query_row([pack], |row| row.get(0)).map_err(self.failed("read packs"))
    }

    /// The blocks in a pack, in order of their offsets: those that were born in it and not moved, and those that it carries.
    pub fn blocks_in(&self, pack: PackRow) -> Result<Vec<BlockInPack>, Error> {
        let find = || {
            let born = "SELECT blocks.id, blocks.start, blocks.length, hash, uuid, blocks.ordinal
                 FROM blocks JOIN packs ON packs.id = pack
                 WHERE pack = ?1 AND NOT EXISTS (SELECT 1 FROM moves WHERE block = blocks.id)
                 UNION ALL SELECT blocks.id, moves.start, blocks.length, hash, uuid, blocks.ordinal
                 FROM moves JOIN blocks ON blocks.id = block JOIN packs ON packs.id = pack
                 WHERE carrier = ?1 ORDER BY 2";
            let mut statement = self.db.prepare_cached(born)?;
            let rows = statement.query_map([pack.0], |row| {
                let hash: i64 = row.get(3)?;
                let place = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64, row.get::<_, u32>(2)?);
                Ok((place, Check(hash.to_be_bytes()), row.get::<_, Vec<u8>>(4)?, row.get::<_, u32>(5)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = find().map_err(self.failed("look up the blocks of a pack"))?;
        rows.into_iter()
            .map(|((block, offset, length), check, birth, ordinal)| {
                let birth = PackId::from_slice(&birth).map_err(|e| self.damaged(e))?;
                Ok(BlockInPack {
                    block: BlockId(block),
                    offset,
                    carried: CarriedBlock { length, check, birth, ordinal },
                })
            })
            .collect()
    }

    /// Adds a carrier that was stored, and moves these blocks to it. They are in order, with their offsets.
    pub fn add_carrier(
        &self,
        id: PackId,
        length: u64,
        digest: &Digest,
        blocks: &[(BlockId, u64)],
    ) -> Result<(), Error> {
        let add = || {
            let row = self.insert_carrier(id, length, digest, true)?;
            for (ordinal, (block, start)) in (0..).zip(blocks) {
                self.insert_move(block.0 as i64, row, ordinal, *start as i64)?;
            }
            Ok(())
        };
        add().map_err(self.failed("add a carrier"))
    }

    /// Adds a carrier from an index, and moves its blocks there. If it is not in the repository, only blocks are moved that
    /// are in no other pack there: their carrier may reappear. The birth packs must be in the catalog.
    pub fn import_carrier(&self, carrier: &IndexedCarrier, there: bool) -> Result<(), Error> {
        let add = || {
            let row = self.insert_carrier(carrier.id, carrier.length(), &carrier.digest, there)?;
            let mut start = 0u64;
            for (ordinal, CarriedBlock { length, birth, ordinal: name, .. }) in (0..).zip(&carrier.blocks) {
                let find = "SELECT blocks.id,
                     condemned = 0 OR EXISTS (SELECT 1 FROM moves JOIN packs carriers ON carriers.id = carrier
                                              WHERE block = blocks.id AND carriers.condemned = 0)
                     FROM blocks JOIN packs ON packs.id = pack WHERE uuid = ? AND ordinal = ?";
                let mut find = self.db.prepare_cached(find)?;
                let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?));
                let found = find.query_row(params![birth.as_bytes(), name], read).optional()?;
                if let Some((block, _)) = found.filter(|(_, is_elsewhere)| there || !is_elsewhere) {
                    self.insert_move(block, row, ordinal, start as i64)?;
                }
                start = start.saturating_add(u64::from(*length));
            }
            Ok(())
        };
        add().map_err(self.failed("add a carrier"))
    }

    fn insert_carrier(&self, id: PackId, length: u64, digest: &Digest, there: bool) -> rusqlite::Result<i64> {
        let sum = carrier_sum(id, length, &digest.0).value();
        let insert =
            "INSERT INTO packs (uuid, kind, length, digest, verified, condemned, condemned_in, condemned_at, sum)
             VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?)";
        let mut statement = self.db.prepare_cached(insert)?;
        let (id, kind) = (id.as_bytes(), CARRIER as i64);
        statement.execute(params![id, kind, length as i64, digest.0, now().seconds, !there, sum])?;
        Ok(self.db.last_insert_rowid())
    }

    fn insert_move(&self, block: i64, carrier: i64, ordinal: u32, start: i64) -> rusqlite::Result<()> {
        let mut insert = self.db.prepare_cached("INSERT OR REPLACE INTO moves VALUES (?, ?, ?, ?, ?)")?;
        let sum = move_sum([block, carrier, ordinal.into(), start]).value();
        insert.execute(params![block, carrier, ordinal, start, sum])?;
        let mark = "INSERT OR IGNORE INTO dirty_shards
             SELECT substr(uuid, 1, 1) FROM blocks JOIN packs ON packs.id = pack WHERE blocks.id = ?";
        self.db.prepare_cached(mark)?.execute([block])?;
        self.mark_places_in(block)
    }

    /// Whether a block's carrier is lost or damaged.
    pub fn has_lost_moves(&self) -> Result<bool, Error> {
        let find = "SELECT EXISTS (SELECT 1 FROM packs JOIN moves ON carrier = packs.id WHERE condemned = 1)";
        self.db.query_row(find, [], |row| row.get(0)).map_err(self.failed("look for lost blocks"))
    }

    /// Takes back moves to lost or damaged carriers if the birth pack is on the list of packs.
    pub fn undo_lost_moves(&self) -> Result<(), Error> {
        let undo = || {
            let lost = format!(
                "SELECT block, birth.uuid FROM packs carriers JOIN moves ON carrier = carriers.id
                 JOIN blocks ON blocks.id = block JOIN packs birth ON birth.id = blocks.pack
                 JOIN listing ON listing.pack = birth.uuid AND listing.length = birth.length
                 WHERE carriers.condemned = 1 AND (birth.condemned = 0 OR birth.condemned = {CONDEMNED} AND NOT birth.lost)"
            );
            self.db.execute(
                &format!("INSERT OR IGNORE INTO dirty_shards SELECT DISTINCT substr(uuid, 1, 1) FROM ({lost})"),
                [],
            )?;
            self.db.execute(
                &format!(
                    "INSERT OR IGNORE INTO dirty_shards SELECT DISTINCT substr(uuid, 1, 1)
                     FROM lost_chunks JOIN blocks ON blocks.id = lost_block JOIN packs ON packs.id = pack
                     WHERE lost_chunks.block IN (SELECT block FROM ({lost}))"
                ),
                [],
            )?;
            self.db.execute(&format!("DELETE FROM moves WHERE block IN (SELECT block FROM ({lost}))"), [])
        };
        undo().map(drop).map_err(self.failed("look for lost blocks"))
    }

    /// Moves blocks whose carrier is lost or damaged to this one if it is on the list of packs.
    pub fn replace_lost_moves(&self, carrier: &IndexedCarrier) -> Result<(), Error> {
        if self.listed(carrier.id)? != Some(carrier.length()) {
            return Ok(());
        }
        let replace = || {
            let find = "SELECT id FROM packs WHERE uuid = ? AND (condemned = 0 OR condemned = ? AND NOT lost)";
            let find = self.db.query_row(find, params![carrier.id.as_bytes(), CONDEMNED], |row| row.get::<_, i64>(0));
            let Some(row) = find.optional()? else { return Ok(()) };
            let mut start = 0u64;
            for (ordinal, CarriedBlock { length, birth, ordinal: name, .. }) in (0..).zip(&carrier.blocks) {
                let find = "SELECT block FROM packs birth JOIN blocks ON pack = birth.id
                     JOIN moves ON block = blocks.id JOIN packs carriers ON carriers.id = carrier
                     WHERE birth.uuid = ? AND blocks.ordinal = ? AND carriers.condemned = 1";
                let mut find = self.db.prepare_cached(find)?;
                let lost = find.query_row(params![birth.as_bytes(), name], |row| row.get::<_, i64>(0)).optional()?;
                if let Some(block) = lost {
                    self.insert_move(block, row, ordinal, start as i64)?;
                }
                start = start.saturating_add(u64::from(*length));
            }
            Ok(())
        };
        replace().map_err(self.failed("look for lost blocks"))
    }

    /// The prefixes of shards that differ from those in the repository, ascending.
    pub fn dirty_shards(&self) -> Result<Vec<u8>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT prefix FROM dirty_shards ORDER BY prefix")?;
            statement.query_map([], |row| row.get::<_, Vec<u8>>(0))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        Ok(find().map_err(self.failed("read moves"))?.into_iter().flatten().collect())
    }

    /// Records that the shard of a prefix was written.
    pub fn set_shard_written(&self, prefix: u8) -> Result<(), Error> {
        let removed = self.db.execute("DELETE FROM dirty_shards WHERE prefix = ?", [[prefix].as_slice()]);
        removed.map(drop).map_err(self.failed("record moves"))
    }

    /// All moves of packs whose ids begin with `prefix`, and the new places of their chunks.
    pub fn shard(&self, prefix: u8) -> Result<Moved, Error> {
        let select = "SELECT birth.uuid, blocks.start, blocks.length, carriers.uuid, moves.start, moves.sum, block,
                 carrier, moves.ordinal
             FROM packs birth JOIN blocks ON blocks.pack = birth.id JOIN moves ON moves.block = blocks.id
             JOIN packs carriers ON carriers.id = carrier
             WHERE birth.uuid BETWEEN ?1 AND ?2 ORDER BY birth.uuid, blocks.start";
        let (mut first, mut last) = ([0; 16], [0xff; 16]);
        (first[0], last[0]) = (prefix, prefix);
        let mut moved = Moved::default();
        let mut numbers = CarrierNumbers::default();
        let mut read = || -> Result<(), rusqlite::Error> {
            let mut statement = self.db.prepare(select)?;
            let mut rows = statement.query([first, last])?;
            while let Some(row) = rows.next()? {
                let sum = move_sum([row.get(6)?, row.get(7)?, row.get(8)?, row.get(4)?]);
                let ids =
                    (PackId::from_slice(row.get_ref(0)?.as_blob()?), PackId::from_slice(row.get_ref(3)?.as_blob()?));
                let ((Ok(birth), Ok(carrier)), true) = (ids, sum.agrees(row, 5)?) else {
                    return Err(rusqlite::Error::InvalidQuery);
                };
                let number = numbers.of(carrier, &mut moved.carriers);
                let (from, to) = (row.get::<_, i64>(1)? as u64, row.get::<_, i64>(4)? as u64);
                let range = MovedRange { from, length: row.get::<_, i64>(2)? as u64, carrier: number, to };
                if moved.ranges.last().is_none_or(|(last, _)| *last != birth) {
                    moved.ranges.push((birth, Vec::new()));
                }
                let Some((_, ranges)) = moved.ranges.last_mut() else { continue };
                match ranges.last_mut() {
                    Some(last)
                        if last.carrier == number && last.from + last.length == from && last.to + last.length == to =>
                    {
                        last.length += range.length;
                    }
                    _ => ranges.push(range),
                }
            }
            Ok(())
        };
        match read() {
            Ok(()) => {}
            Err(rusqlite::Error::InvalidQuery) => {
                return Err(self.damaged("the place of a moved block does not match its checksum"));
            }
            Err(error) => return Err(self.failed("read moves")(error)),
        }
        for NewPlace { birth, digest, block, start } in self.new_places(prefix)? {
            let BlockLocation { pack, offset, length } = self.place(block)?;
            let carrier = numbers.of(pack, &mut moved.carriers);
            let chunk = RestoredChunk { digest, carrier, offset, stored: length, start };
            match moved.restored.last_mut() {
                Some((last, chunks)) if *last == birth => chunks.push(chunk),
                _ => moved.restored.push((birth, vec![chunk])),
            }
        }
        Ok(moved)
    }

    /// Where the bytes of a block lie now.
    pub fn place(&self, block: BlockId) -> Result<BlockLocation, Error> {
        let find = || {
            let select = "SELECT uuid, start FROM moves JOIN packs ON packs.id = carrier WHERE block = ?";
            let mut statement = self.db.prepare_cached(select)?;
            let read = |row: &Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)? as u64));
            statement.query_row([block.0 as i64], read).optional()
        };
        let born = self.location(block)?;
        Ok(match find().map_err(self.failed("look up a block"))? {
            Some((carrier, offset)) => {
                let pack = PackId::from_slice(&carrier).map_err(|e| self.damaged(e))?;
                BlockLocation { pack, offset, ..born }
            }
            None => born,
        })
    }
}

/// The positions of carriers in a shard's list.
#[derive(Default)]
struct CarrierNumbers(HashMap<PackId, u32>);

impl CarrierNumbers {
    /// The position of a carrier, which is added to the list if it is new.
    fn of(&mut self, carrier: PackId, list: &mut Vec<PackId>) -> u32 {
        let next = list.len() as u32;
        let number = *self.0.entry(carrier).or_insert(next);
        if number == next {
            list.push(carrier);
        }
        number
    }
}

/// The checksum of a carrier's row; like that of a pack.
fn carrier_sum(id: PackId, length: u64, digest: &[u8]) -> Sum {
    super::chunks::pack_sum(id, CARRIER, length, digest)
}

/// The checksum of a move: block, carrier, ordinal and start.
fn move_sum(numbers: [i64; 4]) -> Sum {
    numbers.into_iter().fold(Sum::of("moves"), Sum::number)
}
