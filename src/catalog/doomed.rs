//! Snapshots and packs that are removed on purpose.
//!
//! A condemned pack stays for a while. A pack that was removed stays in the catalog as long as blocks that were born in it
//! lie in carriers.

use std::collections::HashSet;

use roaring::RoaringTreemap;
use rusqlite::{OptionalExtension, Row, params};

use super::chunks::PackRow;
use super::database::Catalog;
use super::error::Error;
use super::packs::{CONDEMNED, GONE};
use crate::format::PackId;
use crate::source::now;

/// A pack that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoomedPack {
    /// The pack's row in the catalog.
    pub row: PackRow,
    /// The pack's id in the repository.
    pub id: PackId,
    /// The size of the pack in bytes.
    pub length: u64,
    /// The generation in which it was condemned; 0 if no tombstone in the repository names it yet.
    pub generation: u64,
    /// The time at which it was condemned, in seconds since 1970.
    pub at: i64,
}

/// A pack that was to be removed, but the target refused. No document names it any more, except tombstones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetainedPack {
    /// The pack's id in the repository.
    pub id: PackId,
    /// The size of the pack in bytes.
    pub length: u64,
}

impl Catalog {
    /// Notes the generation and time at which a prune saw that a snapshot is forgotten. Only the first note counts.
    pub fn note_forgotten(&self, sequence: u64, generation: u64, at: i64) -> Result<(), Error> {
        let insert = "INSERT OR IGNORE INTO seen_forgotten VALUES (?, ?, ?)";
        let noted = self.db.execute(insert, params![sequence as i64, generation as i64, at]);
        noted.map(drop).map_err(self.failed("record a forgotten snapshot"))
    }

    /// The generation and time at which a prune saw that a snapshot is forgotten.
    pub fn seen_forgotten(&self, sequence: u64) -> Result<Option<(u64, i64)>, Error> {
        let find = || {
            let mut statement =
                self.db.prepare_cached("SELECT generation, at FROM seen_forgotten WHERE sequence = ?")?;
            let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?));
            statement.query_row([sequence as i64], read).optional()
        };
        find().map_err(self.failed("look up a forgotten snapshot"))
    }

    /// Drops notes about snapshots that are not forgotten, or are removed. A snapshot that is taken back and forgotten again
    /// has its whole grace.
    pub fn drop_notes(&self, forgotten: &HashSet<u64>) -> Result<(), Error> {
        let notes = || {
            let mut statement = self.db.prepare("SELECT sequence FROM seen_forgotten")?;
            statement.query_map([], |row| Ok(row.get::<_, i64>(0)? as u64))?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let notes = notes().map_err(self.failed("read forgotten snapshots"))?;
        for sequence in notes.into_iter().filter(|sequence| !forgotten.contains(sequence)) {
            let removed = self.db.execute("DELETE FROM seen_forgotten WHERE sequence = ?", [sequence as i64]);
            removed.map_err(self.failed("drop a note"))?;
        }
        Ok(())
    }

    /// Condemns packs for removal: no new snapshot refers to blocks in them any more. Nothing in them may be live.
    pub fn condemn_for_removal(&self, packs: &[PackRow], at: i64) -> Result<(), Error> {
        let mut lost = RoaringTreemap::new();
        for pack in packs {
            lost.extend(self.blocks_in(*pack)?.iter().map(|block| block.block.0));
            let set = self.db.execute(
                "UPDATE packs SET lost = condemned = 1, condemned = ?1, condemned_in = 0, condemned_at = ?2
                 WHERE id = ?3 AND condemned <> ?1",
                params![CONDEMNED, at, pack.0],
            );
            set.map_err(self.failed("condemn packs"))?;
        }
        if !packs.is_empty() {
            self.set_tombstones_stale()?;
        }
        self.drop_claims_on(&lost)
    }

    /// Condemns the packs that a tombstone of `generation` names and that are in the catalog, except those that are gone:
    /// the tombstone may be older than their removal.
    pub fn learn_condemned(&self, packs: &[PackId], generation: u64) -> Result<(), Error> {
        let mut rows = Vec::new();
        for pack in packs {
            if self.is_gone(*pack)? == Some(false) {
                rows.extend(self.pack(*pack)?);
            }
        }
        let doomed: HashSet<_> = self.doomed_packs()?.into_iter().map(|pack| pack.row).collect();
        rows.retain(|row| !doomed.contains(row));
        self.condemn_for_removal(&rows, now().seconds)?;
        rows.iter().try_for_each(|row| {
            let set =
                self.db.execute("UPDATE packs SET condemned_in = ? WHERE id = ?", params![generation as i64, row.0]);
            set.map(drop).map_err(self.failed("condemn packs"))
        })
    }

    /// Records packs as retained that a tombstone names and the repository still has, except for packs in which the catalog
    /// still locates data. The data of the others was copied to carriers or is not needed.
    pub fn learn_retained(&self, packs: &[PackId]) -> Result<(), Error> {
        for id in packs {
            if self.is_gone(*id)? != Some(false)
                && let Some(length) = self.listed(*id)?
            {
                self.retain_pack(RetainedPack { id: *id, length })?;
            }
        }
        Ok(())
    }

    /// Remembers a pack whose removal was refused.
    pub fn retain_pack(&self, pack: RetainedPack) -> Result<(), Error> {
        let insert = "INSERT OR REPLACE INTO retained VALUES (?, ?)";
        let inserted = self.db.execute(insert, params![pack.id.as_bytes(), pack.length as i64]);
        inserted.map(drop).map_err(self.failed("remember a pack"))
    }

    /// The packs whose removal was refused.
    pub fn retained_packs(&self) -> Result<Vec<RetainedPack>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached("SELECT pack, length FROM retained")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = find().map_err(self.failed("read packs"))?;
        rows.into_iter()
            .map(|(id, length)| {
                Ok(RetainedPack { id: PackId::from_slice(&id).map_err(|e| self.damaged(e))?, length: length as u64 })
            })
            .collect()
    }

    /// Whether the removal of a pack was refused.
    pub fn is_retained(&self, pack: PackId) -> Result<bool, Error> {
        let find = "SELECT EXISTS (SELECT 1 FROM retained WHERE pack = ?)";
        self.db.query_row(find, [pack.as_bytes()], |row| row.get(0)).map_err(self.failed("look up a pack"))
    }

    /// Records that a retained pack is gone.
    pub fn drop_retained(&self, pack: PackId) -> Result<(), Error> {
        let dropped = self.db.execute("DELETE FROM retained WHERE pack = ?", [pack.as_bytes()]);
        dropped.map_err(self.failed("remove a pack"))?;
        self.set_tombstones_stale()
    }

    /// Records that a tombstone of `generation` names all condemned packs.
    pub fn set_tombstones_written(&self, generation: u64) -> Result<(), Error> {
        let set = self.db.execute(
            "UPDATE packs SET condemned_in = ? WHERE condemned = ? AND condemned_in = 0",
            params![generation as i64, CONDEMNED],
        );
        let set = set.and_then(|_| self.db.execute("UPDATE trust SET stale_tombstones = 0", []));
        set.map(drop).map_err(self.failed("record tombstones"))
    }

    /// Records that the tombstones in the repository differ from the catalog until they are written again.
    pub(super) fn set_tombstones_stale(&self) -> Result<(), Error> {
        let set = self.db.execute("UPDATE trust SET stale_tombstones = 1", []);
        set.map(drop).map_err(self.failed("record tombstones"))
    }

    /// Whether the tombstones in the repository differ from the catalog.
    pub fn has_stale_tombstones(&self) -> Result<bool, Error> {
        let found = self.db.query_row("SELECT stale_tombstones <> 0 FROM trust", [], |row| row.get(0));
        found.map_err(self.failed("read whether tombstones are written"))
    }

    /// Packs that are condemned for removal.
    pub fn doomed_packs(&self) -> Result<Vec<DoomedPack>, Error> {
        let mut packs = Vec::new();
        let mut find = || -> rusqlite::Result<Result<(), String>> {
            let select =
                "SELECT id, uuid, length, condemned_in, condemned_at FROM packs WHERE condemned = ? ORDER BY id";
            let mut statement = self.db.prepare_cached(select)?;
            let mut rows = statement.query([CONDEMNED])?;
            // There may be many, so they are not collected as they were read.
            while let Some(row) = rows.next()? {
                let id = match PackId::from_slice(row.get_ref(1)?.as_blob()?) {
                    Ok(id) => id,
                    Err(error) => return Ok(Err(error.to_string())),
                };
                let [length, generation] = [row.get::<_, i64>(2)? as u64, row.get::<_, i64>(3)? as u64];
                packs.push(DoomedPack { row: PackRow(row.get(0)?), id, length, generation, at: row.get(4)? });
            }
            Ok(Ok(()))
        };
        let found = find().map_err(self.failed("read condemned packs"))?;
        found.map_err(|e| self.damaged(e))?;
        Ok(packs)
    }

    /// Whether a pack is condemned for removal.
    pub fn has_doomed_packs(&self) -> Result<bool, Error> {
        let find = "SELECT EXISTS (SELECT 1 FROM packs WHERE condemned = ?)";
        let found = self.db.query_row(find, [CONDEMNED], |row| row.get(0));
        found.map_err(self.failed("read condemned packs"))
    }

    /// The size of all packs that are condemned for removal, in bytes.
    pub fn doomed_bytes(&self) -> Result<u64, Error> {
        let find = "SELECT coalesce(sum(length), 0) FROM packs WHERE condemned = ?";
        let found = self.db.query_row(find, [CONDEMNED], |row| Ok(row.get::<_, i64>(0)? as u64));
        found.map_err(self.failed("read condemned packs"))
    }

    /// Takes back a condemned pack that has live blocks again. If it was lost or damaged before, it still is.
    pub fn take_back(&self, pack: PackRow) -> Result<(), Error> {
        let set = self.db.execute(
            "UPDATE packs SET condemned = lost, condemned_in = 0 WHERE id = ? AND condemned = ?",
            params![pack.0, CONDEMNED],
        );
        set.map_err(self.failed("take back a pack"))?;
        self.set_tombstones_stale()
    }

    /// Records that a condemned pack was removed from the repository. Drops the blocks that were only in it; a pack without
    /// blocks is dropped too.
    pub fn remove_pack(&self, pack: PackRow) -> Result<(), Error> {
        // Born in it and not moved, or carried by it. A block that is carried also lies in its birth pack, unless that is gone.
        let removed = || {
            let mut statement = self.db.prepare_cached(
                "SELECT id FROM blocks WHERE pack = ?1 AND NOT EXISTS (SELECT 1 FROM moves WHERE block = blocks.id)
                 UNION ALL SELECT block FROM moves JOIN blocks ON blocks.id = block JOIN packs ON packs.id = pack
                 WHERE carrier = ?1 AND condemned = ?2",
            )?;
            let rows = statement.query_map(params![pack.0, GONE], |row| Ok(row.get::<_, i64>(0)? as u64))?;
            rows.collect::<rusqlite::Result<RoaringTreemap>>()
        };
        let removed = removed().map_err(self.failed("remove a pack"))?;
        self.drop_lost_chunks(&removed)?;
        let remove = || {
            // Former birth packs whose last block may be in this one.
            let births = "SELECT DISTINCT packs.id FROM moves JOIN blocks ON blocks.id = block
                 JOIN packs ON packs.id = pack WHERE carrier = ? AND condemned = ?";
            let mut births = self.db.prepare_cached(births)?;
            let births = births.query_map(params![pack.0, GONE], |row| row.get(0))?;
            let births = births.collect::<rusqlite::Result<Vec<i64>>>()?;
            let execute = |sql: &str, id: i64| self.db.prepare_cached(sql)?.execute([id]).map(drop);
            execute("DELETE FROM moves WHERE carrier = ?", pack.0)?;
            removed.iter().try_for_each(|block| execute("DELETE FROM blocks WHERE id = ?", block as i64))?;
            let gone = "UPDATE packs SET condemned = ? WHERE id = ?";
            self.db.prepare_cached(gone)?.execute(params![GONE, pack.0])?;
            let empty = "DELETE FROM packs WHERE id = ? AND NOT EXISTS (SELECT 1 FROM blocks WHERE pack = packs.id)";
            births.into_iter().chain([pack.0]).try_for_each(|birth| execute(empty, birth))
        };
        remove().map_err(self.failed("remove a pack"))?;
        self.set_tombstones_stale()
    }

    /// The ordinals of a birth pack's blocks in carriers, except those in `removed` packs.
    pub fn moved_ordinals_of(&self, pack: PackId, removed: &HashSet<PackId>) -> Result<HashSet<u32>, Error> {
        let find = || {
            let select = "SELECT blocks.ordinal, carriers.uuid FROM packs birth JOIN blocks ON pack = birth.id
                 JOIN moves ON block = blocks.id JOIN packs carriers ON carriers.id = carrier WHERE birth.uuid = ?";
            let mut statement = self.db.prepare_cached(select)?;
            let rows =
                statement.query_map([pack.as_bytes()], |row| Ok((row.get::<_, u32>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let mut moved = HashSet::new();
        for (ordinal, carrier) in find().map_err(self.failed("look up the blocks of a pack"))? {
            let carrier = PackId::from_slice(&carrier).map_err(|e| self.damaged(e))?;
            moved.extend((!removed.contains(&carrier)).then_some(ordinal));
        }
        Ok(moved)
    }

    /// The state of a pack: whether it is gone on purpose; `None` if it is not in the catalog.
    pub fn is_gone(&self, pack: PackId) -> Result<Option<bool>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached("SELECT condemned FROM packs WHERE uuid = ?")?;
            statement.query_row([pack.as_bytes()], |row| Ok(row.get::<_, i64>(0)? == GONE)).optional()
        };
        find().map_err(self.failed("look up a pack"))
    }
}
