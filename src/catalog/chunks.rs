//! Stored packs, blocks and chunks, and their locations.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, params};

use super::database::Catalog;
use super::error::Error;
use super::ids::BlockId;
use super::sums::Sum;
use crate::format::pack::{IndexedPack, PackKind};
use crate::format::{BlockLocation, Check, Digest, PackId};
use crate::source::now;

/// The id of a pack in this catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackRow(pub i64);

/// The location of a chunk that is stored or about to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The digest of the chunk.
    pub digest: Digest,
    /// The block that contains the chunk.
    pub block: BlockId,
    /// The offset in the decoded block, in bytes.
    pub start: u32,
    /// The length in bytes.
    pub length: u32,
}

impl Catalog {
    /// Looks up a chunk by its digest.
    pub fn chunk(&self, digest: &Digest) -> Result<Option<Stored>, Error> {
        let find = || {
            self.db
                .prepare_cached("SELECT head, digest, block, start, length, sum FROM chunks WHERE head = ?")?
                .query_row([digest.head()], |row| {
                    if row.get_ref(1)?.as_blob()? != tail(digest) {
                        return Ok(None);
                    }
                    let stored = Stored {
                        digest: *digest,
                        block: BlockId(row.get::<_, i64>(2)? as u64),
                        start: row.get(3)?,
                        length: row.get(4)?,
                    };
                    Ok(Some((stored, chunk_is_whole(row)?)))
                })
                .optional()
        };
        match find().map_err(self.failed("look up a chunk"))?.flatten() {
            Some((_, false)) => Err(self.damaged("the location of a chunk does not match its checksum")),
            found => Ok(found.map(|(stored, _)| stored)),
        }
    }

    /// Adds the missing chunks of a pack whose blocks are in the catalog.
    pub fn restore_chunks(&self, pack: &IndexedPack) -> Result<(), Error> {
        self.restore_chunks_if(pack, |_| Ok(true))
    }

    /// Adds the missing chunks of a pack for which a condition holds.
    pub fn restore_chunks_if(
        &self,
        pack: &IndexedPack,
        is_wanted: impl Fn(&Digest) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let find = || {
            let select = "SELECT blocks.ordinal, blocks.id FROM packs birth JOIN blocks ON pack = birth.id
                 LEFT JOIN moves ON moves.block = blocks.id LEFT JOIN packs carriers ON carriers.id = carrier
                 WHERE birth.uuid = ? AND coalesce(carriers.condemned, birth.condemned) = 0";
            let mut statement = self.db.prepare_cached(select)?;
            let read = |row: &Row<'_>| Ok((row.get::<_, u32>(0)?, BlockId(row.get::<_, i64>(1)? as u64)));
            statement.query_map([pack.id.as_bytes()], read)?.collect::<rusqlite::Result<HashMap<_, _>>>()
        };
        let ids = find().map_err(self.failed("look up blocks"))?;
        for indexed in &pack.blocks {
            let Some(block) = ids.get(&indexed.ordinal) else { continue };
            let (mut start, mut wanted) = (0u32, Vec::new());
            for (digest, length) in &indexed.chunks {
                if is_wanted(digest)? {
                    wanted.push(Stored { digest: *digest, block: *block, start, length: *length });
                }
                start = start.saturating_add(*length);
            }
            self.add_chunks(wanted.into_iter())?;
        }
        Ok(())
    }

    /// Adds chunks; the caller adds their blocks. Ascending digests are fastest.
    pub fn add_chunks(&self, chunks: impl Iterator<Item = Stored>) -> Result<(), Error> {
        let add = || {
            let mut statement = self.db.prepare_cached("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?, ?)")?;
            for Stored { digest, block, start, length } in chunks {
                let (head, tail) = (digest.head(), tail(&digest));
                let sum = chunk_sum(head, tail, block.0 as i64, start.into(), length.into()).value();
                statement.execute(params![head, tail, block.0 as i64, start, length, sum])?;
            }
            Ok(())
        };
        add().map_err(self.failed("add chunks"))
    }

    /// The first block id that was never used.
    pub fn next_block(&self) -> Result<BlockId, Error> {
        // Both are needed: rows may be lost, and ids may have been used since the last commit.
        let select = "SELECT max(next_block, (SELECT coalesce(max(id), 0) + 1 FROM blocks)) FROM trust";
        let next = self.db.query_row(select, [], |row| row.get::<_, i64>(0));
        Ok(BlockId(next.map_err(self.failed("read the last block id"))? as u64))
    }

    /// Adds a pack that is being written.
    pub fn add_pack(&self, id: PackId, kind: PackKind) -> Result<PackRow, Error> {
        let added = self.db.execute(
            "INSERT INTO packs (uuid, kind, length, digest, verified, condemned, condemned_in, condemned_at, sum)
             VALUES (?, ?, 0, x'', ?, 0, 0, 0, ?)",
            params![id.as_bytes(), kind.code() as i64, now().seconds, pack_sum(id, kind.code(), 0, &[]).value()],
        );
        added.map_err(self.failed("add a pack"))?;
        Ok(PackRow(self.db.last_insert_rowid()))
    }

    /// Records length and digest of a pack that was stored.
    pub fn finish_pack(
        &self,
        pack: PackRow,
        (id, kind): (PackId, PackKind),
        length: u64,
        digest: &Digest,
    ) -> Result<(), Error> {
        let sum = pack_sum(id, kind.code(), length, &digest.0).value();
        let set = self.db.execute(
            "UPDATE packs SET length = ?, digest = ?, sum = ? WHERE id = ?",
            params![length as i64, digest.0, sum, pack.0],
        );
        set.map(drop).map_err(self.failed("finish a pack"))
    }

    /// The first eight bytes of the ids of all packs, ascending, and whether each is usable.
    pub fn pack_heads(&self) -> Result<Vec<(u64, bool)>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT uuid, condemned = 0 FROM packs")?;
            let heads = statement.query_map([], |row| {
                let head = row.get_ref(0)?.as_blob()?.first_chunk().copied();
                Ok((u64::from_be_bytes(head.unwrap_or_default()), row.get(1)?))
            })?;
            heads.collect::<rusqlite::Result<Vec<_>>>()
        };
        let mut heads = find().map_err(self.failed("read packs"))?;
        heads.sort_unstable();
        Ok(heads)
    }

    /// Adds a block.
    pub fn add_block(
        &self,
        id: BlockId,
        pack: PackRow,
        ordinal: u32,
        at: BlockLocation,
        check: Check,
    ) -> Result<(), Error> {
        let add = || {
            let (id, start, length, check) = (id.0 as i64, at.offset as i64, at.length, check_number(check));
            let sum = block_sum(id, at.pack.as_bytes(), [ordinal.into(), start, length.into(), check]).value();
            let mut statement = self.db.prepare_cached("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)")?;
            statement.execute(params![id, pack.0, ordinal, start, length, check, sum])
        };
        add().map(drop).map_err(self.failed("add a block"))
    }

    /// The location of a block.
    pub fn location(&self, id: BlockId) -> Result<BlockLocation, Error> {
        let (pack, _, offset, length) = self.find_block(id)?;
        Ok(BlockLocation { pack, offset, length })
    }

    /// The pack that contains a block, and the block's ordinal in it.
    pub fn ordinal(&self, id: BlockId) -> Result<(PackId, u32), Error> {
        let (pack, ordinal, _, _) = self.find_block(id)?;
        Ok((pack, ordinal))
    }

    fn find_block(&self, id: BlockId) -> Result<(PackId, u32, u64, u32), Error> {
        let find = || {
            self.db
                .prepare_cached(
                    "SELECT uuid, blocks.id, ordinal, start, blocks.length, hash, blocks.sum
                     FROM blocks JOIN packs ON packs.id = pack WHERE blocks.id = ?",
                )?
                .query_row([id.0 as i64], |row| {
                    let block = (row.get::<_, Vec<u8>>(0)?, row.get(2)?, row.get::<_, i64>(3)? as u64, row.get(4)?);
                    Ok((block, block_is_whole(row)?))
                })
                .optional()
        };
        let (block, whole) = find()
            .map_err(self.failed("look up a block"))?
            .ok_or_else(|| self.damaged(format!("block {} is in use but missing", id.0)))?;
        if !whole {
            return Err(self.damaged(format!("the location of block {} does not match its checksum", id.0)));
        }
        let (pack, ordinal, offset, length) = block;
        Ok((PackId::from_slice(&pack).map_err(|e| self.damaged(e))?, ordinal, offset, length))
    }

    /// Fails if any block's row does not match its checksum.
    pub fn check_blocks(&self) -> Result<(), Error> {
        let all = "SELECT uuid, blocks.id, ordinal, start, blocks.length, hash, blocks.sum
             FROM blocks LEFT JOIN packs ON packs.id = pack WHERE blocks.id > ?1 ORDER BY blocks.id LIMIT ?2";
        let read = |row: &Row<'_>| {
            let whole = row.get_ref(0)?.as_blob_or_null()?.is_some() && block_is_whole(row)?;
            Ok((row.get::<_, i64>(1)?, whole))
        };
        self.in_pages(all, read, |(id, whole)| {
            if whole {
                Ok(id)
            } else {
                Err(self.damaged(format!("the location of block {id} does not match its checksum")))
            }
        })
    }

    /// Records all blocks below an extent node of a large file.
    pub fn add_extent_node(&self, digest: &Digest, blocks: &[BlockId]) -> Result<(), Error> {
        let blocks = super::numbers::from_blocks(blocks);
        let add = || {
            self.db
                .prepare_cached("INSERT OR REPLACE INTO extent_nodes (digest, blocks, sum) VALUES (?, ?, ?)")?
                .execute(params![digest.0, blocks, extent_node_sum(&digest.0, &blocks).value()])
        };
        add().map(drop).map_err(self.failed("add an extent node"))
    }

    /// All blocks below an extent node; `None` if the node is not in the catalog.
    pub fn extent_node(&self, digest: &Digest) -> Result<Option<Vec<BlockId>>, Error> {
        let find = || {
            self.db
                .prepare_cached("SELECT id, digest, blocks, sum FROM extent_nodes WHERE digest = ?")?
                .query_row([digest.0], |row| Ok((row.get::<_, Vec<u8>>(2)?, extent_node_is_whole(row)?)))
                .optional()
        };
        match find().map_err(self.failed("look up an extent node"))? {
            Some((_, false)) => Err(self.damaged("the blocks of a large file do not match their checksum")),
            found => found.map(|(blob, _)| self.blocks(&blob)).transpose(),
        }
    }

    /// Whether an extent node is in the catalog.
    pub(super) fn has_extent_node(&self, digest: &Digest) -> Result<bool, Error> {
        let find = || {
            let mut statement =
                self.db.prepare_cached("SELECT EXISTS (SELECT 1 FROM extent_nodes WHERE digest = ?)")?;
            statement.query_row([digest.0], |row| row.get(0))
        };
        find().map_err(self.failed("look up an extent node"))
    }

    pub(super) fn blocks(&self, blob: &[u8]) -> Result<Vec<BlockId>, Error> {
        super::numbers::to_blocks(blob)
            .ok_or_else(|| Error::Damaged { path: self.path.clone(), why: "a list of blocks is truncated".into() })
    }
}

/// The part of a digest after its head, as stored in a chunk's row.
pub(super) fn tail(digest: &Digest) -> &[u8] {
    digest.0.get(8..).unwrap_or_default()
}

/// The checksum of a chunk's row.
pub(super) fn chunk_sum(head: i64, tail: &[u8], block: i64, start: i64, length: i64) -> Sum {
    Sum::of("chunks").number(head).bytes(tail).number(block).number(start).number(length)
}

/// Whether a row of head, digest, block, start, length and sum matches its checksum.
pub(super) fn chunk_is_whole(row: &Row<'_>) -> rusqlite::Result<bool> {
    let sum = chunk_sum(row.get(0)?, row.get_ref(1)?.as_blob()?, row.get(2)?, row.get(3)?, row.get(4)?);
    sum.agrees(row, 5)
}

/// The checksum of the row of a pack of this kind, in the numbers of the format.
pub(super) fn pack_sum(id: PackId, kind: u64, length: u64, digest: &[u8]) -> Sum {
    Sum::of("packs").bytes(id.as_bytes()).number(kind as i64).number(length as i64).bytes(digest)
}

/// A check as a number of a row.
pub(super) fn check_number(Check(bytes): Check) -> i64 {
    i64::from_be_bytes(bytes)
}

/// The checksum of a block's row and its pack's id. `numbers`: ordinal, start, length and check.
pub(super) fn block_sum(id: i64, pack: &[u8], numbers: [i64; 4]) -> Sum {
    numbers.into_iter().fold(Sum::of("blocks").number(id).bytes(pack), Sum::number)
}

/// Whether a row of a pack's id and a block's id, ordinal, start, length, check and sum matches its checksum.
fn block_is_whole(row: &Row<'_>) -> rusqlite::Result<bool> {
    let numbers = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?];
    block_sum(row.get(1)?, row.get_ref(0)?.as_blob()?, numbers).agrees(row, 6)
}

fn extent_node_sum(digest: &[u8], blocks: &[u8]) -> Sum {
    Sum::of("extent_nodes").bytes(digest).bytes(blocks)
}

/// Whether a row of id, digest, blocks and sum matches its checksum.
pub(super) fn extent_node_is_whole(row: &Row<'_>) -> rusqlite::Result<bool> {
    extent_node_sum(row.get_ref(1)?.as_blob()?, row.get_ref(2)?.as_blob()?).agrees(row, 3)
}
