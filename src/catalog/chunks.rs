//! Packs, blocks and chunks: what is stored, and where.

use rusqlite::{OptionalExtension, params};

use super::{Catalog, Error};
use crate::format::index::PackKind;
use crate::format::{BlockLocation, Digest, PackId};
use crate::source::now;

/// Names a block in this catalog. Given out in order, never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);

/// Names a pack in this catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackRow(pub i64);

/// A chunk that is stored, or about to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The digest of its bytes.
    pub digest: Digest,
    /// The block that holds it.
    pub block: BlockId,
    /// Where in the block it begins.
    pub start: u32,
    /// Its bytes.
    pub length: u32,
}

impl Catalog {
    /// A chunk with this digest, if it is stored.
    pub fn chunk(&self, digest: &Digest) -> Result<Option<Stored>, Error> {
        let find = || {
            self.db
                .prepare_cached("SELECT digest, block, start, length FROM chunks WHERE head = ?")?
                .query_row([digest.head()], |row| {
                    let same = row.get_ref(0)?.as_blob()? == digest.0;
                    let stored = Stored {
                        digest: *digest,
                        block: BlockId(row.get::<_, i64>(1)? as u64),
                        start: row.get(2)?,
                        length: row.get(3)?,
                    };
                    Ok(same.then_some(stored))
                })
                .optional()
        };
        Ok(find().map_err(self.failed("look up a chunk"))?.flatten())
    }

    /// Adds chunks whose blocks are added too. In order of their digests it goes fastest.
    pub fn add_chunks(&self, chunks: impl Iterator<Item = Stored>) -> Result<(), Error> {
        let add = || {
            let mut statement = self.db.prepare_cached("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?)")?;
            for chunk in chunks {
                statement.execute(params![
                    chunk.digest.head(),
                    chunk.digest.0,
                    chunk.block.0 as i64,
                    chunk.start,
                    chunk.length
                ])?;
            }
            Ok(())
        };
        add().map_err(self.failed("add chunks"))
    }

    /// The first block id that was never given out.
    pub fn next_block(&self) -> Result<BlockId, Error> {
        let last = self.db.query_row("SELECT coalesce(max(id), 0) FROM blocks", [], |row| row.get::<_, i64>(0));
        Ok(BlockId(last.map_err(self.failed("read the last block"))? as u64 + 1))
    }

    /// Adds a pack that is being filled.
    pub fn add_pack(&self, id: PackId, kind: PackKind) -> Result<PackRow, Error> {
        let added = self.db.execute(
            "INSERT INTO packs (uuid, kind, length, digest, verified, condemned) VALUES (?, ?, 0, x'', ?, 0)",
            params![id.as_bytes(), kind.code() as i64, now().seconds],
        );
        added.map_err(self.failed("add a pack"))?;
        Ok(PackRow(self.db.last_insert_rowid()))
    }

    /// Notes length and digest of a pack that is stored.
    pub fn finish_pack(&self, pack: PackRow, length: u64, digest: &Digest) -> Result<(), Error> {
        let set = self
            .db
            .execute("UPDATE packs SET length = ?, digest = ? WHERE id = ?", params![length as i64, digest.0, pack.0]);
        set.map(drop).map_err(self.failed("finish a pack"))
    }

    /// The first eight bytes of the ids of all packs, ascending.
    pub fn pack_heads(&self) -> Result<Vec<u64>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT uuid FROM packs")?;
            let heads = statement.query_map([], |row| {
                let head = row.get_ref(0)?.as_blob()?.first_chunk().copied();
                Ok(u64::from_be_bytes(head.unwrap_or_default()))
            })?;
            heads.collect::<rusqlite::Result<Vec<_>>>()
        };
        let mut heads = find().map_err(self.failed("read packs"))?;
        heads.sort_unstable();
        Ok(heads)
    }

    /// Adds a block.
    pub fn add_block(&self, id: BlockId, pack: PackRow, ordinal: u32, at: BlockLocation) -> Result<(), Error> {
        let add = || {
            self.db.prepare_cached("INSERT INTO blocks VALUES (?, ?, ?, ?, ?)")?.execute(params![
                id.0 as i64,
                pack.0,
                ordinal,
                at.offset as i64,
                at.length
            ])
        };
        add().map(drop).map_err(self.failed("add a block"))
    }

    /// Where a block lies.
    pub fn location(&self, id: BlockId) -> Result<BlockLocation, Error> {
        let (pack, _, offset, length) = self.place(id)?;
        Ok(BlockLocation { pack, offset, length })
    }

    /// The pack that a block lies in, and which of its blocks it is.
    pub fn ordinal(&self, id: BlockId) -> Result<(PackId, u32), Error> {
        let (pack, ordinal, _, _) = self.place(id)?;
        Ok((pack, ordinal))
    }

    fn place(&self, id: BlockId) -> Result<(PackId, u32, u64, u32), Error> {
        let find = || {
            self.db
                .prepare_cached(
                    "SELECT uuid, ordinal, start, blocks.length FROM blocks JOIN packs ON packs.id = pack
                     WHERE blocks.id = ?",
                )?
                .query_row([id.0 as i64], |row| {
                    Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get::<_, i64>(2)? as u64, row.get(3)?))
                })
                .optional()
        };
        let damaged = |why: String| Error::Damaged { path: self.path.clone(), why };
        let (pack, ordinal, offset, length) = find()
            .map_err(self.failed("look up a block"))?
            .ok_or_else(|| damaged(format!("block {} is referred to, and is not there", id.0)))?;
        Ok((PackId::from_slice(&pack).map_err(|e| damaged(e.to_string()))?, ordinal, offset, length))
    }

    /// Notes all blocks below a node of a long extent list.
    pub fn add_extent_node(&self, digest: &Digest, blocks: &[BlockId]) -> Result<(), Error> {
        let add = || {
            self.db
                .prepare_cached("INSERT OR REPLACE INTO extent_nodes (digest, blocks) VALUES (?, ?)")?
                .execute(params![digest.0, super::numbers::from_blocks(blocks)])
        };
        add().map(drop).map_err(self.failed("add an extent node"))
    }

    /// All blocks below a node of a long extent list; none if it is not known.
    pub fn extent_node(&self, digest: &Digest) -> Result<Option<Vec<BlockId>>, Error> {
        let find = || {
            self.db
                .prepare_cached("SELECT blocks FROM extent_nodes WHERE digest = ?")?
                .query_row([digest.0], |row| row.get::<_, Vec<u8>>(0))
                .optional()
        };
        let blob = find().map_err(self.failed("look up an extent node"))?;
        blob.map(|blob| self.blocks(&blob)).transpose()
    }

    pub(super) fn blocks(&self, blob: &[u8]) -> Result<Vec<BlockId>, Error> {
        super::numbers::to_blocks(blob)
            .ok_or_else(|| Error::Damaged { path: self.path.clone(), why: "a list of blocks is cut off".into() })
    }
}
