//! Claims: rows that refer to blocks. A claim is dropped if one of its blocks is lost, or if the row is damaged.
//!
//! A dropped claim only means that files are read again; they are stored again only if their chunks are not stored
//! elsewhere. Rows of packs, blocks and snapshots are not claims: if these are damaged, the catalog must be rebuilt.

use roaring::RoaringTreemap;
use rusqlite::Row;

use super::chunks::{chunk_is_whole, extent_node_is_whole};
use super::database::Catalog;
use super::directories::{directory_is_whole, segment_is_whole};
use super::error::Error;
use crate::format::{Content, Digest, Items, Node};

/// A row that refers to blocks.
enum Claim {
    Chunk(i64),
    ExtentNode(i64),
    Segment { id: i64, directory: i64 },
    Directory(i64),
}

/// Numbers of claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claims {
    /// Locations of chunks.
    pub chunks: u64,
    /// Segments of directories, directories, and extent nodes of large files.
    pub nodes: u64,
}

impl Claims {
    fn add(&mut self, claim: &Claim) {
        match claim {
            Claim::Chunk(_) => self.chunks += 1,
            _ => self.nodes += 1,
        }
    }
}

impl Catalog {
    /// Drops claims that are damaged or refer to a missing block. Fails if the database, or a row of a pack, block or
    /// snapshot, is damaged: then the catalog must be rebuilt.
    pub fn mend(&self) -> Result<Claims, Error> {
        if let Some(finding) = self.integrity()?.into_iter().next() {
            return Err(self.damaged(finding));
        }
        let mut wrong = None;
        self.each_pack(&mut |pack, why| {
            if let Some(why) = why {
                wrong.get_or_insert(format!("pack {}: {why}", pack.id));
            }
        })?;
        if let Some(why) = wrong {
            return Err(self.damaged(why));
        }
        self.check_blocks()?;
        self.mend_lost_chunks()?;
        self.sources()?;
        self.snapshots()?;
        let (usable, all) = self.block_sets()?;
        self.unknown_used_blocks(&all)?;
        self.drop_claims(&|block| !usable.contains(block))
    }

    /// Counts damaged claims.
    pub fn damaged_claims(&self) -> Result<Claims, Error> {
        let mut found = Claims::default();
        self.bad_claims(&|_| false, &mut |claim| {
            found.add(&claim);
            Ok(())
        })?;
        Ok(found)
    }

    /// Drops claims that are damaged or refer to a lost block.
    pub(super) fn drop_claims(&self, lost: &dyn Fn(u64) -> bool) -> Result<Claims, Error> {
        let mut dropped = Claims::default();
        self.bad_claims(lost, &mut |claim| {
            dropped.add(&claim);
            match claim {
                Claim::Chunk(head) => self.execute("DELETE FROM chunks WHERE head = ?", head),
                Claim::ExtentNode(id) => self.execute("DELETE FROM extent_nodes WHERE id = ?", id),
                // The next run takes neither its directory nor the directories above for unchanged.
                Claim::Segment { id, directory } => {
                    self.execute("DELETE FROM segments WHERE id = ?", id)?;
                    self.execute("UPDATE directories SET sum = NULL WHERE id = ?", directory)
                }
                // The directory's segments may still be intact.
                Claim::Directory(id) => self.execute("UPDATE directories SET sum = NULL WHERE id = ?", id),
            }
        })?;
        Ok(dropped)
    }

    /// Drops claims that are damaged or refer to one of these blocks.
    pub(super) fn drop_claims_on(&self, lost: &RoaringTreemap) -> Result<(), Error> {
        if lost.is_empty() {
            return Ok(());
        }
        self.drop_claims(&|block| lost.contains(block)).map(drop)
    }

    fn bad_claims(
        &self,
        lost: &dyn Fn(u64) -> bool,
        found: &mut dyn FnMut(Claim) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut look = |good: bool, lists: &[Vec<u8>], claim: Claim| -> Result<(), Error> {
            // Lists of a damaged row may not be decodable.
            let mut bad = !good;
            for list in lists.iter().filter(|_| good) {
                bad |= self.blocks(list)?.iter().any(|block| lost(block.0));
            }
            if bad { found(claim) } else { Ok(()) }
        };
        let chunks =
            "SELECT head, digest, block, start, length, sum FROM chunks WHERE head > ?1 ORDER BY head LIMIT ?2";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(2)? as u64, chunk_is_whole(row)?));
        self.in_pages(chunks, read, |(head, block, good)| {
            look(good && !lost(block), &[], Claim::Chunk(head)).map(|()| head)
        })?;
        let nodes = "SELECT id, digest, blocks, sum FROM extent_nodes WHERE id > ?1 ORDER BY id LIMIT ?2";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(2)?, extent_node_is_whole(row)?));
        self.in_pages(nodes, read, |(id, blocks, good)| look(good, &[blocks], Claim::ExtentNode(id)).map(|()| id))?;
        let segments =
            "SELECT digest, block, start, length, first, entries, span, blocks, more, directory, sum, id, node
             FROM segments WHERE id > ?1 ORDER BY id LIMIT ?2";
        let read = |row: &Row<'_>| {
            let (bytes, digest) = (row.get_ref(12)?.as_blob()?, row.get_ref(0)?.as_blob()?);
            let good = segment_is_whole(row, row.get(9)?)? && digest == Digest::of(bytes).0;
            let lists = [row.get::<_, Vec<u8>>(7)?, row.get(8)?];
            let large = if lists[1].is_empty() { Vec::new() } else { extent_nodes_of(bytes) };
            let (id, directory) = (row.get::<_, i64>(11)?, row.get::<_, i64>(9)?);
            Ok(((id, directory, row.get::<_, i64>(1)? as u64), lists, large, good))
        };
        self.in_pages(segments, read, |((id, directory, block), lists, large, mut good)| {
            for digest in large {
                good &= self.has_extent_node(&digest)?;
            }
            look(good && !lost(block), &lists, Claim::Segment { id, directory }).map(|()| id)
        })?;
        let directories = "SELECT digest, block, start, length, id, below, indexes, sum FROM directories
             WHERE id > ?1 AND sum IS NOT NULL ORDER BY id LIMIT ?2";
        let read = |row: &Row<'_>| {
            let block = row.get::<_, Option<i64>>(1)?.map(|block| block as u64);
            let indexes = [row.get::<_, Option<Vec<u8>>>(6)?.unwrap_or_default()];
            Ok((row.get::<_, i64>(4)?, block, indexes, directory_is_whole(row)?))
        };
        self.in_pages(directories, read, |(id, block, indexes, good)| {
            look(good && !block.is_some_and(lost), &indexes, Claim::Directory(id)).map(|()| id)
        })
    }

    fn execute(&self, sql: &'static str, id: i64) -> Result<(), Error> {
        let run = || self.db.prepare_cached(sql)?.execute([id]);
        run().map(drop).map_err(self.failed("drop claims on lost blocks"))
    }
}

/// The extent nodes that an encoded directory node refers to.
fn extent_nodes_of(node: &[u8]) -> Vec<Digest> {
    let Ok(Node { items: Items::Entries(entries), .. }) = Node::decode(node) else { return Vec::new() };
    let nodes = entries.iter().flat_map(|entry| match &entry.content {
        Content::Nodes { nodes, .. } => nodes.as_slice(),
        _ => &[],
    });
    nodes.map(|node| node.node.digest).collect()
}
