//! Directories in segments: the last stat data of each entry, and the location of its content.
//!
//! The host cannot read its own trees. So a segment contains the bytes of its tree node: when one file changes,
//! the unchanged entries of the segment are taken from the catalog.

use std::path::{Path, PathBuf};

use roaring::RoaringTreemap;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::chunks::Stored;
use super::database::{Catalog, connect_to_read};
use super::error::Context;
use super::error::Error;
use super::ids::BlockId;
use super::numbers::{from_blocks, to_blocks};
use super::snapshots::SourceRow;
use super::stats::Stats;
use super::sums::Sum;
use crate::format::{Digest, Node, Timestamp};
use crate::source::Inode;

/// The id of a directory in this catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirectoryId(pub i64);

/// The place of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// Above the root directory of a source.
    Source(SourceRow),
    /// In another directory.
    Directory(DirectoryId),
    /// No place: another directory took it. The directory may still be found by its inode.
    Displaced,
}

impl Parent {
    /// The value of the column `parent`. Ids of directories are positive, so those of sources are stored negated.
    fn code(self) -> i64 {
        match self {
            Parent::Source(source) => -source.0,
            Parent::Directory(directory) => directory.0,
            Parent::Displaced => i64::MIN,
        }
    }

    fn from_code(code: i64) -> Self {
        match code {
            i64::MIN => Parent::Displaced,
            1.. => Parent::Directory(DirectoryId(code)),
            _ => Parent::Source(SourceRow(-code)),
        }
    }
}

/// The id of a segment in this catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentId(i64);

/// A directory in its last known state.
#[derive(Debug, Clone)]
pub struct DirectoryRow {
    /// The directory's id.
    pub id: DirectoryId,
    /// Whether it was looked up by its parent and name, and not by its inode.
    pub in_place: bool,
    /// The inode. For FUSE and network mounts, its device is a number that identifies the mounted file system.
    pub inode: Inode,
    /// Whether the parent's segment refers to this row's node.
    pub linked: bool,
    /// The number of entries below the directory, and its top node (`None`: empty directory). `None` if the directory
    /// is incomplete, because a run stopped in it.
    pub subtree: Option<(u64, Option<Stored>)>,
    /// The blocks of its index nodes.
    pub indexes: Vec<BlockId>,
}

/// The path of a directory in the catalog.
#[derive(Debug, Clone)]
pub struct DirectoryPlace {
    /// The source that it belongs to.
    pub source: SourceRow,
    /// The names on the path from the root to the directory.
    pub names: Vec<Vec<u8>>,
}

/// A segment in its last known state, without its node.
#[derive(Debug, Clone)]
pub struct SegmentRow {
    /// The segment's id.
    pub id: SegmentId,
    /// The first name of the segment's range, which ends before the next segment's first name.
    pub first: Vec<u8>,
    /// The number of entries in the segment.
    pub entries: u64,
    /// The number of entries including those below, as counted by a preorder walk.
    pub span: u64,
    /// The location of the segment's node.
    pub node: Stored,
    /// The blocks of the node's block table, in its order.
    pub blocks: Vec<BlockId>,
    /// The blocks below extent nodes that the node refers to.
    pub more: Vec<BlockId>,
    /// The stat data of the entries.
    pub stats: Stats,
}

/// A segment that is to be written.
#[derive(Debug)]
pub struct NewSegment {
    /// The directory that it is a part of.
    pub directory: DirectoryId,
    /// The segments that it takes the place of.
    pub replaces: Vec<SegmentId>,
    /// The name of its first entry.
    pub first: Vec<u8>,
    /// Entries of the directory in it.
    pub entries: u64,
    /// Places of a preorder walk that they take.
    pub span: u64,
    /// Where its node is stored.
    pub stored: Stored,
    /// The blocks of the node's table, in its order.
    pub blocks: Vec<BlockId>,
    /// Blocks below extent nodes that the node refers to.
    pub more: Vec<BlockId>,
    /// The identities of its entries.
    pub stats: Stats,
    /// The node's bytes.
    pub node: Vec<u8>,
}

/// A segment's entries.
#[derive(Debug, Clone)]
pub struct SegmentNode {
    /// The decoded tree node.
    pub node: Node,
    /// The blocks of the node's block table, in its order.
    pub blocks: Vec<BlockId>,
    /// The stat data of the entries.
    pub stats: Stats,
}

/// The committed state of a catalog, on a read-only connection of its own.
#[derive(Debug)]
pub struct Past {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
}

impl Catalog {
    /// Opens a second connection, which reads the committed state.
    pub fn past(&self) -> Result<Past, Error> {
        // If it reads the file without locks, so does this catalog, whose view notices changes.
        let (db, _) = connect_to_read(&self.path)?;
        Ok(Past { db, path: self.path.clone() })
    }
}

impl Past {
    /// Looks up the directory `name` in `parent`.
    pub fn directory(&self, parent: Parent, name: &[u8]) -> Result<Option<DirectoryRow>, Error> {
        self.find_directory(DIRECTORY_BY_NAME, params![parent.code(), name], true)
    }

    /// Looks up a directory by its inode, in any place.
    pub fn directory_by_inode(&self, inode: Inode) -> Result<Option<DirectoryRow>, Error> {
        self.find_directory(DIRECTORY_BY_INODE, params![inode.device as i64, inode.number as i64], false)
    }

    fn find_directory(
        &self,
        by: &'static str,
        values: &[&dyn ToSql],
        in_place: bool,
    ) -> Result<Option<DirectoryRow>, Error> {
        let find = || {
            let mut statement = self.db.prepare_cached(by)?;
            statement.query_row(values, |row| directory_row(row, in_place)).optional()
        };
        let row = find().during("look up a directory", &self.path)?;
        row.map(|row| row.checked(&self.path)).transpose()
    }

    /// The path of a directory; `None` if it is displaced.
    pub fn place(&self, id: DirectoryId) -> Result<Option<DirectoryPlace>, Error> {
        let parent = |id: DirectoryId| {
            self.db
                .prepare_cached("SELECT parent, name FROM directories WHERE id = ?")?
                .query_row([id.0], |row| Ok((Parent::from_code(row.get(0)?), row.get::<_, Vec<u8>>(1)?)))
                .optional()
        };
        let mut names = Vec::new();
        let mut at = id;
        loop {
            if names.len() > MAX_DEPTH {
                return Err(damaged(&self.path, "directories form a cycle"));
            }
            match parent(at).during("look up a directory", &self.path)? {
                Some((Parent::Directory(directory), name)) => {
                    names.push(name);
                    at = directory;
                }
                Some((Parent::Source(source), _)) => {
                    names.reverse();
                    return Ok(Some(DirectoryPlace { source, names }));
                }
                Some((Parent::Displaced, _)) | None => return Ok(None),
            }
        }
    }

    /// The next segments of a directory, at most `most`, whose first name is after `after`.
    pub fn segments(
        &self,
        directory: DirectoryId,
        after: Option<&[u8]>,
        most: usize,
    ) -> Result<Vec<SegmentRow>, Error> {
        let find = || {
            self.db
                .prepare_cached(&format!(
                    "{SEGMENT}, sum, id, stats FROM segments
                     WHERE directory = ? AND first > ? ORDER BY first LIMIT ?"
                ))?
                .query_map(params![directory.0, after.unwrap_or_default(), most as i64], |row| {
                    Ok((
                        stored(row, 0)?.filter(|_| segment_is_whole(row, directory.0) == Ok(true)),
                        SegmentId(row.get(11)?),
                        row.get(4)?,
                        row.get::<_, i64>(5)? as u64,
                        row.get::<_, i64>(6)? as u64,
                        to_blocks(row.get_ref(7)?.as_blob()?),
                        to_blocks(row.get_ref(8)?.as_blob()?),
                        Stats(row.get(12)?),
                    ))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = find().during("read segments", &self.path)?;
        rows.into_iter()
            .map(|(node, id, first, entries, span, blocks, more, stats)| match (node, blocks, more) {
                (Some(node), Some(blocks), Some(more)) => {
                    Ok(SegmentRow { id, first, entries, span, node, blocks, more, stats })
                }
                _ => Err(damaged(&self.path, SEGMENT_DAMAGED)),
            })
            .collect()
    }

    /// The ids of all segments of a directory.
    pub fn segment_ids(&self, directory: DirectoryId) -> Result<Vec<SegmentId>, Error> {
        let find = || {
            self.db
                .prepare_cached("SELECT id FROM segments WHERE directory = ? ORDER BY first")?
                .query_map([directory.0], |row| Ok(SegmentId(row.get(0)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        find().during("read segments", &self.path)
    }

    /// The entries of a segment; `None` if a commit has replaced it.
    pub fn segment_node(&self, segment: SegmentId) -> Result<Option<SegmentNode>, Error> {
        segment_node(&self.db, &self.path, segment)
    }
}

impl Catalog {
    /// The entries of a segment.
    pub fn segment_node(&self, segment: SegmentId) -> Result<SegmentNode, Error> {
        segment_node(&self.db, &self.path, segment)?.ok_or_else(|| damaged(&self.path, "a segment is missing"))
    }

    /// Adds a directory that is being read. Displaces a directory that had this parent and name.
    pub fn enter_directory(&self, parent: Parent, name: &[u8], inode: Inode) -> Result<DirectoryId, Error> {
        let enter = || {
            self.displace(parent, name)?;
            self.db
                .prepare_cached("INSERT INTO directories (parent, name, dev, ino, linked) VALUES (?, ?, ?, ?, 0)")?
                .execute(params![parent.code(), name, inode.device as i64, inode.number as i64])?;
            Ok(DirectoryId(self.db.last_insert_rowid()))
        };
        enter().map_err(self.failed("enter a directory"))
    }

    /// Updates the inode of a directory.
    pub fn renumber_directory(&self, id: DirectoryId, inode: Inode) -> Result<(), Error> {
        let update = || {
            self.db.prepare_cached("UPDATE directories SET dev = ?, ino = ? WHERE id = ?")?.execute(params![
                inode.device as i64,
                inode.number as i64,
                id.0
            ])
        };
        update().map(drop).map_err(self.failed("renumber a directory"))
    }

    /// Moves a directory, with all below it. Displaces a directory that had this parent and name.
    pub fn move_directory(&self, id: DirectoryId, parent: Parent, name: &[u8]) -> Result<(), Error> {
        let update = || {
            self.displace(parent, name)?;
            self.db
                .prepare_cached("UPDATE directories SET parent = ?, name = ?, linked = 0 WHERE id = ?")?
                .execute(params![parent.code(), name, id.0])
        };
        update().map(drop).map_err(self.failed("move a directory"))
    }

    /// Displaces a directory: it has no path any more, but may still be found by its inode.
    fn displace(&self, parent: Parent, name: &[u8]) -> rusqlite::Result<()> {
        self.db
            .prepare_cached("UPDATE directories SET parent = ?, name = CAST(id AS BLOB) WHERE parent = ? AND name = ?")?
            .execute(params![Parent::Displaced.code(), parent.code(), name])
            .map(drop)
    }

    /// Removes all displaced directories.
    pub fn remove_displaced(&self) -> Result<(), Error> {
        self.remove("parent = ?1", params![Parent::Displaced.code()])
    }

    /// Records the top node of a directory whose segments are complete.
    pub fn finish_directory(
        &self,
        id: DirectoryId,
        below: u64,
        node: Option<&Stored>,
        indexes: &[BlockId],
    ) -> Result<(), Error> {
        let indexes = from_blocks(indexes);
        let sum = directory_sum(id.0, below as i64, node, &indexes).value();
        let finish = || {
            self.db
                .prepare_cached(
                    "UPDATE directories SET linked = 0, below = ?, digest = ?, block = ?,
                     start = ?, length = ?, indexes = ?, sum = ? WHERE id = ?",
                )?
                .execute(params![
                    below as i64,
                    node.map(|node| node.digest.0),
                    node.map(|node| node.block.0 as i64),
                    node.map(|node| node.start),
                    node.map(|node| node.length),
                    indexes,
                    sum,
                    id.0
                ])
        };
        finish().map(drop).map_err(self.failed("finish a directory"))
    }

    /// The number of entries below a complete directory, and its top node.
    pub fn subtree(&self, id: DirectoryId) -> Result<(u64, Option<Stored>), Error> {
        let find = || {
            self.db
                .prepare_cached(
                    "SELECT digest, block, start, length, id, below, indexes, sum FROM directories
                     WHERE id = ? AND sum IS NOT NULL",
                )?
                .query_row([id.0], |row| {
                    Ok(((row.get::<_, i64>(5)? as u64, stored(row, 0)?), directory_is_whole(row)?))
                })
        };
        match find().map_err(self.failed("read a directory"))? {
            (subtree, true) => Ok(subtree),
            (_, false) => Err(self.damaged(DIRECTORY_DAMAGED)),
        }
    }

    /// Records that the parents' segments refer to the nodes of these directories.
    pub fn link_directories(&self, ids: &[DirectoryId]) -> Result<(), Error> {
        let link = || {
            let mut statement = self.db.prepare_cached("UPDATE directories SET linked = ? WHERE id = ?")?;
            ids.iter().try_for_each(|id| statement.execute([LINKED, id.0]).map(drop))
        };
        link().map_err(self.failed("link directories"))
    }

    /// Adds a segment that replaces others. The directory is incomplete from now on, since its node does not match
    /// its segments until the run has finished the directory.
    pub fn put_segment(&self, segment: &NewSegment) -> Result<(), Error> {
        let NewSegment { directory, replaces, first, entries, span, stored, blocks, more, stats, node } = segment;
        let (blocks, more) = (from_blocks(blocks), from_blocks(more));
        let counts = (*entries as i64, *span as i64);
        let sum = segment_sum(directory.0, first, counts, stored, (&blocks, &more)).value();
        let put = || -> rusqlite::Result<()> {
            self.change_segments(*directory, replaces)?;
            // A split segment may have begun with this name, and its first part, which removes it, may be stored later.
            self.db
                .prepare_cached(
                    "INSERT OR REPLACE INTO segments (directory, first, entries, span, digest, block, start, length,
                     blocks, more, sum, stats, node) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    directory.0,
                    first,
                    counts.0,
                    counts.1,
                    stored.digest.0,
                    stored.block.0 as i64,
                    stored.start,
                    stored.length,
                    blocks,
                    more,
                    sum,
                    stats.0,
                    node
                ])?;
            Ok(())
        };
        put().map_err(self.failed("write a segment"))
    }

    /// Updates the stat data of a segment whose node did not change.
    pub fn renew_stats(&self, segment: SegmentId, stats: &Stats) -> Result<(), Error> {
        let update = || {
            self.db.prepare_cached("UPDATE segments SET stats = ? WHERE id = ?")?.execute(params![stats.0, segment.0])
        };
        update().map(drop).map_err(self.failed("update a segment"))
    }

    /// Removes segments whose entries were all deleted. The directory is incomplete from now on.
    pub fn remove_segments(&self, directory: DirectoryId, ids: &[SegmentId]) -> Result<(), Error> {
        if ids.is_empty() {
            return Ok(());
        }
        self.change_segments(directory, ids).map_err(self.failed("remove segments"))
    }

    fn change_segments(&self, directory: DirectoryId, removed: &[SegmentId]) -> rusqlite::Result<()> {
        let mut delete = self.db.prepare_cached("DELETE FROM segments WHERE id = ?")?;
        removed.iter().try_for_each(|id| delete.execute([id.0]).map(drop))?;
        let mut incomplete =
            self.db.prepare_cached("UPDATE directories SET sum = NULL WHERE id = ? AND sum IS NOT NULL")?;
        incomplete.execute([directory.0]).map(drop)
    }

    /// Names and ids of the directories in `parent` whose ids are not in `except`, sorted by name.
    pub fn children_except(
        &self,
        parent: DirectoryId,
        except: &RoaringTreemap,
    ) -> Result<Vec<(Vec<u8>, DirectoryId)>, Error> {
        let find = || {
            let mut statement =
                self.db.prepare_cached("SELECT name, id FROM directories WHERE parent = ? ORDER BY name")?;
            let (mut rows, mut found) = (statement.query([parent.0])?, Vec::new());
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(1)?;
                if !except.contains(id.cast_unsigned()) {
                    found.push((row.get(0)?, DirectoryId(id)));
                }
            }
            Ok(found)
        };
        find().map_err(self.failed("read directories"))
    }

    /// All blocks that a directory and its descendants use. After an interrupted run, a few unused blocks may be
    /// included.
    pub fn blocks_below(&self, id: DirectoryId) -> Result<RoaringTreemap, Error> {
        let find = || {
            let below = "WITH RECURSIVE below (id) AS (
                 SELECT ?1 UNION ALL SELECT directories.id FROM directories JOIN below ON directories.parent = below.id)";
            let mut used = RoaringTreemap::new();
            let mut whole = true;
            let mut add = |blob: &[u8]| match to_blocks(blob) {
                Some(blocks) => used.extend(blocks.iter().map(|block| block.0)),
                None => whole = false,
            };
            let mut indexes = self.db.prepare_cached(&format!(
                "{below} SELECT indexes FROM directories WHERE id IN (SELECT id FROM below) AND indexes IS NOT NULL"
            ))?;
            let mut rows = indexes.query([id.0])?;
            while let Some(row) = rows.next()? {
                add(row.get_ref(0)?.as_blob()?);
            }
            let mut segments = self.db.prepare_cached(&format!(
                "{below} SELECT blocks, more, block FROM segments WHERE directory IN (SELECT id FROM below)"
            ))?;
            let mut rows = segments.query([id.0])?;
            while let Some(row) = rows.next()? {
                add(row.get_ref(0)?.as_blob()?);
                add(row.get_ref(1)?.as_blob()?);
                add(&from_blocks(&[BlockId(row.get::<_, i64>(2)? as u64)]));
            }
            Ok(whole.then_some(used))
        };
        find()
            .map_err(self.failed("read the blocks of a directory"))?
            .ok_or_else(|| damaged(&self.path, "a list of blocks is truncated"))
    }

    /// Removes the directory `id` and all below it, unless it was moved away from `name` in `parent`.
    pub fn remove_directory(&self, parent: Parent, name: &[u8], id: DirectoryId) -> Result<(), Error> {
        self.remove("id = ?1 AND parent = ?2 AND name = ?3", params![id.0, parent.code(), name])
    }

    /// Removes the directories that match the SQL condition, and all below them.
    fn remove(&self, condition: &str, values: &[&dyn ToSql]) -> Result<(), Error> {
        let remove = || {
            self.db.execute_batch("CREATE TEMP TABLE IF NOT EXISTS gone (id INTEGER PRIMARY KEY)")?;
            let find = format!(
                "INSERT OR IGNORE INTO gone
                 WITH RECURSIVE below (id) AS (
                     SELECT id FROM directories WHERE {condition}
                     UNION SELECT directories.id FROM directories JOIN below ON directories.parent = below.id)
                 SELECT id FROM below"
            );
            self.db.prepare_cached(&find)?.execute(values)?;
            self.db.execute_batch(
                "DELETE FROM segments WHERE directory IN (SELECT id FROM gone);
                 DELETE FROM directories WHERE id IN (SELECT id FROM gone);
                 DELETE FROM gone;",
            )
        };
        remove().map_err(self.failed("remove a directory"))
    }

    /// The link id of the file with this inode, which all its names share. The change time distinguishes the file from
    /// an earlier one with the same inode; `content` (a digest) distinguishes it from another file that claims the same
    /// inode, and from its own state before a write. Without `by_ctime`, the change time is updated, not compared.
    pub fn hard_link(&self, inode: Inode, ctime: Timestamp, content: &Digest, by_ctime: bool) -> Result<u64, Error> {
        let find = || {
            let found = self
                .db
                .prepare_cached("SELECT id, seconds, nanos, content FROM links WHERE dev = ? AND ino = ?")?
                .query_row(params![inode.device as i64, inode.number as i64], |row| {
                    let then = Timestamp { seconds: row.get(1)?, nanos: row.get(2)? };
                    let same = Digest::from_slice(row.get_ref(3)?.as_blob()?).as_ref() == Some(content);
                    Ok((row.get::<_, i64>(0)?, same, then))
                })
                .optional()?;
            if let Some((id, true, then)) = found
                && (then == ctime || !by_ctime)
            {
                if then != ctime {
                    self.db
                        .prepare_cached("UPDATE links SET seconds = ?, nanos = ? WHERE id = ?")?
                        .execute(params![ctime.seconds, ctime.nanos, id])?;
                }
                return Ok(id as u64);
            }
            self.db
                .prepare_cached(
                    "INSERT OR REPLACE INTO links (dev, ino, seconds, nanos, content) VALUES (?, ?, ?, ?, ?)",
                )?
                .execute(params![inode.device as i64, inode.number as i64, ctime.seconds, ctime.nanos, content.0])?;
            Ok(self.db.last_insert_rowid() as u64)
        };
        find().map_err(self.failed("look up a hard link"))
    }
}

/// More levels than any tree has.
const MAX_DEPTH: usize = 1 << 20;

/// The value for yes in the column `linked`.
const LINKED: i64 = 90;

const DIRECTORY_DAMAGED: &str = "a directory does not match its checksum";
const SEGMENT_DAMAGED: &str = "a part of a directory does not match its checksum";

const DIRECTORY_BY_NAME: &str = "SELECT digest, block, start, length, id, below, indexes, sum, linked, dev, ino
     FROM directories WHERE parent = ? AND name = ?";
const DIRECTORY_BY_INODE: &str = "SELECT digest, block, start, length, id, below, indexes, sum, linked, dev, ino
     FROM directories WHERE dev = ? AND ino = ? LIMIT 1";

/// The columns of a segment that are in its checksum.
const SEGMENT: &str = "SELECT digest, block, start, length, first, entries, span, blocks, more, directory";

/// The checksum of a segment's row.
fn segment_sum(
    directory: i64,
    first: &[u8],
    (entries, span): (i64, i64),
    node: &Stored,
    (blocks, more): (&[u8], &[u8]),
) -> Sum {
    stored_sum(Sum::of("segments").number(directory).bytes(first).number(entries).number(span), node)
        .bytes(blocks)
        .bytes(more)
}

/// Whether a row of the columns in [`SEGMENT`] and the sum is a part of `directory` and matches its checksum.
pub(super) fn segment_is_whole(row: &Row<'_>, directory: i64) -> rusqlite::Result<bool> {
    let (Some(node), true) = (stored(row, 0)?, row.get::<_, i64>(9)? == directory) else { return Ok(false) };
    let lists = (row.get_ref(7)?.as_blob()?, row.get_ref(8)?.as_blob()?);
    let counts = (row.get(5)?, row.get(6)?);
    segment_sum(directory, row.get_ref(4)?.as_blob()?, counts, &node, lists).agrees(row, 10)
}

/// The checksum of a directory's row. It does not cover path and inode.
fn directory_sum(id: i64, below: i64, node: Option<&Stored>, indexes: &[u8]) -> Sum {
    let sum = Sum::of("directories").number(id).number(below);
    match node {
        Some(node) => stored_sum(sum, node),
        None => sum,
    }
    .bytes(indexes)
}

/// Whether a row of digest, block, start, length, id, below, indexes and sum matches its checksum.
pub(super) fn directory_is_whole(row: &Row<'_>) -> rusqlite::Result<bool> {
    let node = stored(row, 0)?;
    let indexes = row.get_ref(6)?.as_blob_or_null()?.unwrap_or_default();
    let (id, below) = (row.get(4)?, row.get::<_, Option<i64>>(5)?.unwrap_or_default());
    directory_sum(id, below, node.as_ref(), indexes).agrees(row, 7)
}

fn stored_sum(sum: Sum, Stored { digest, block, start, length }: &Stored) -> Sum {
    sum.bytes(&digest.0).number(block.0 as i64).number((*start).into()).number((*length).into())
}

/// A directory's row as it was read, not yet validated.
struct RawDirectory {
    row: DirectoryRow,
    indexes: Option<Vec<BlockId>>,
    /// Whether the row matches its checksum, or is of an incomplete directory.
    whole: bool,
}

impl RawDirectory {
    fn checked(mut self, path: &Path) -> Result<DirectoryRow, Error> {
        self.row.indexes = self.indexes.filter(|_| self.whole).ok_or_else(|| damaged(path, DIRECTORY_DAMAGED))?;
        Ok(self.row)
    }
}

fn directory_row(row: &Row<'_>, in_place: bool) -> rusqlite::Result<RawDirectory> {
    let complete = row.get_ref(7)?.data_type() != rusqlite::types::Type::Null;
    let subtree =
        if complete { Some((row.get::<_, Option<i64>>(5)?.unwrap_or_default() as u64, stored(row, 0)?)) } else { None };
    Ok(RawDirectory {
        row: DirectoryRow {
            id: DirectoryId(row.get(4)?),
            in_place,
            inode: Inode { device: row.get::<_, i64>(9)? as u64, number: row.get::<_, i64>(10)? as u64 },
            linked: row.get::<_, i64>(8)? == LINKED,
            subtree,
            indexes: Vec::new(),
        },
        indexes: to_blocks(row.get_ref(6)?.as_blob_or_null()?.unwrap_or_default()),
        whole: !complete || directory_is_whole(row)?,
    })
}

/// Reads the location of a chunk from the four columns from `at` on; `None` if they are null.
fn stored(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Stored>> {
    let Some(digest) = row.get_ref(at)?.as_blob_or_null()?.and_then(Digest::from_slice) else {
        return Ok(None);
    };
    Ok(Some(Stored {
        digest,
        block: BlockId(row.get::<_, i64>(at + 1)? as u64),
        start: row.get(at + 2)?,
        length: row.get(at + 3)?,
    }))
}

fn segment_node(db: &Connection, path: &Path, segment: SegmentId) -> Result<Option<SegmentNode>, Error> {
    let find = || {
        let mut statement = db.prepare_cached(&format!("{SEGMENT}, sum, stats, node FROM segments WHERE id = ?"))?;
        let found = statement.query_row([segment.0], |row| {
            let bytes = row.get_ref(12)?.as_blob()?;
            let digest = stored(row, 0)?.map(|node| node.digest);
            // The node's unchanged entries will be stored again, so the node must be intact, too.
            let whole = segment_is_whole(row, row.get(9)?)? && digest == Some(Digest::of(bytes));
            Ok((to_blocks(row.get_ref(7)?.as_blob()?), Stats(row.get(11)?), whole.then(|| Node::decode(bytes))))
        });
        found.optional()
    };
    match find().during("read a segment", path)? {
        None => Ok(None),
        Some((Some(blocks), stats, Some(Ok(node)))) if blocks.len() == node.blocks.len() => {
            Ok(Some(SegmentNode { node, blocks, stats }))
        }
        Some((_, _, Some(Err(e)))) => Err(damaged(path, e)),
        Some((_, _, None)) => Err(damaged(path, SEGMENT_DAMAGED)),
        Some(_) => Err(damaged(path, "a segment's blocks do not match its node")),
    }
}

fn damaged(path: &Path, why: impl ToString) -> Error {
    Error::Damaged { path: path.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::catalog::database::tests::catalog;
    use crate::format::Check;
    use crate::format::pack::PackKind;
    use crate::format::{BlockLocation, Items, PackId};

    const ABOVE: Parent = Parent::Source(SourceRow(1));

    fn inode(device: u64, number: u64) -> Inode {
        Inode { device, number }
    }

    fn put(catalog: &Catalog, directory: DirectoryId, replaced: &[SegmentId], first: &[u8]) {
        let node =
            Node { blocks: vec![], items: Items::Entries(vec![]), users: BTreeMap::new(), groups: BTreeMap::new() };
        let (stats, node) = (Stats::default(), node.encode());
        let stored = Stored { digest: Digest::of(&node), block: BlockId(1), start: 0, length: 1 };
        let segment = NewSegment {
            directory,
            replaces: replaced.to_vec(),
            first: first.to_vec(),
            entries: 1,
            span: 1,
            stored,
            blocks: vec![],
            more: vec![],
            stats,
            node,
        };
        catalog.put_segment(&segment).unwrap();
    }

    /// A run may stop at a commit between a new segment and the node above it. The old node must not be taken for that
    /// of the new segments.
    #[test]
    fn a_directory_is_incomplete_after_a_change_of_its_segments() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = catalog(folder.path());
        let above = ABOVE;
        let id = catalog.enter_directory(above, b"d", inode(1, 2)).unwrap();
        put(&catalog, id, &[], b"a");
        put(&catalog, id, &[], b"m");
        catalog.finish_directory(id, 2, None, &[]).unwrap();
        catalog.commit().unwrap();
        let past = catalog.past().unwrap();
        let row = || past.directory(above, b"d").unwrap().unwrap();
        assert_eq!(row().subtree, Some((2, None)));

        let segments = past.segment_ids(id).unwrap();
        put(&catalog, id, &[segments[0]], b"b");
        catalog.commit().unwrap();
        assert_eq!(row().subtree, None);
        let firsts = |after: Option<&[u8]>, most| {
            let rows = past.segments(id, after, most).unwrap();
            rows.into_iter().map(|row| String::from_utf8(row.first).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(firsts(None, 9), ["b", "m"]);
        assert_eq!((firsts(None, 1), firsts(Some(b"b"), 9)), (vec!["b".to_owned()], vec!["m".to_owned()]));

        catalog.finish_directory(id, 2, None, &[]).unwrap();
        catalog.remove_segments(id, &[segments[1]]).unwrap();
        catalog.commit().unwrap();
        assert_eq!(row().subtree, None);
    }

    /// When a segment is split, the second part may be stored first, and may begin where the whole segment began.
    #[test]
    fn a_segment_replaces_one_that_begins_with_the_same_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = catalog(folder.path());
        let id = catalog.enter_directory(ABOVE, b"d", inode(1, 2)).unwrap();
        put(&catalog, id, &[], b"m");
        catalog.commit().unwrap();
        let past = catalog.past().unwrap();
        let whole = past.segments(id, None, 9).unwrap();
        put(&catalog, id, &[], b"m");
        put(&catalog, id, &[whole[0].id], b"a");
        catalog.commit().unwrap();
        let parts = past.segments(id, None, 9).unwrap();
        assert_eq!(parts.iter().map(|part| part.first.clone()).collect::<Vec<_>>(), [b"a", b"m"]);
        // The old id returns no segment, in particular not another one.
        assert!(past.segment_node(whole[0].id).unwrap().is_none());
        assert!(past.segment_node(parts[0].id).unwrap().is_some());
    }

    #[test]
    fn a_directory_is_found_by_its_inode_and_removed_with_all_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = catalog(folder.path());
        let above = ABOVE;
        let id = catalog.enter_directory(above, b"old", inode(1, 2)).unwrap();
        let below = catalog.enter_directory(Parent::Directory(id), b"below", inode(1, 3)).unwrap();
        put(&catalog, below, &[], b"x");
        catalog.commit().unwrap();
        let past = catalog.past().unwrap();
        let found = past.directory_by_inode(inode(1, 2)).unwrap().unwrap();
        assert_eq!((found.id, found.in_place), (id, false));
        assert!(past.directory_by_inode(inode(9, 2)).unwrap().is_none());
        assert!(past.directory(above, b"new").unwrap().is_none());
        let there = past.directory(above, b"old").unwrap().unwrap();
        assert_eq!((there.id, there.in_place, there.inode), (id, true, inode(1, 2)));
        // Another directory has the name by now: nothing goes.
        catalog.remove_directory(above, b"other", id).unwrap();
        assert_eq!(catalog.children_except(id, &RoaringTreemap::new()).unwrap(), [(b"below".to_vec(), below)]);
        catalog.remove_directory(above, b"old", id).unwrap();
        catalog.commit().unwrap();
        assert!(past.directory_by_inode(inode(1, 2)).unwrap().is_none());
        assert!(past.segment_ids(below).unwrap().is_empty());
    }

    #[test]
    fn a_directory_is_moved_with_all_below_it_and_displaces_another() {
        let folder = tempfile::tempdir().unwrap();
        let mut catalog = catalog(folder.path());
        let above = ABOVE;
        let root = catalog.enter_directory(above, b"", inode(1, 1)).unwrap();
        let [a, b, c] = [(b"a", 2), (b"b", 3), (b"c", 4)].map(|(name, ino)| {
            let id = catalog.enter_directory(Parent::Directory(root), name, inode(1, ino)).unwrap();
            let below = catalog.enter_directory(Parent::Directory(id), b"below", inode(1, ino + 10)).unwrap();
            put(&catalog, below, &[], b"x");
            id
        });
        catalog.link_directories(&[a, b, c]).unwrap();
        catalog.commit().unwrap();
        let past = catalog.past().unwrap();
        let place = |id| past.place(id).unwrap().map(|place| (place.source, place.names.concat()));
        let below = |id| catalog.children_except(id, &RoaringTreemap::new()).unwrap()[0].1;
        assert_eq!(place(below(b)), Some((SourceRow(1), b"bbelow".to_vec())));
        assert_eq!(place(root), Some((SourceRow(1), Vec::new())));

        // a and b change places, and d is new where c was.
        catalog.move_directory(b, Parent::Directory(root), b"a").unwrap();
        catalog.move_directory(a, Parent::Directory(root), b"b").unwrap();
        let d = catalog.enter_directory(Parent::Directory(root), b"c", inode(1, 5)).unwrap();
        assert_eq!(
            catalog.children_except(root, &RoaringTreemap::new()).unwrap(),
            [(b"a".to_vec(), b), (b"b".to_vec(), a), (b"c".to_vec(), d)]
        );
        let [a_below, b_below, c_below] = [a, b, c].map(below);
        catalog.db.execute_batch("COMMIT; BEGIN IMMEDIATE").unwrap();
        assert_eq!(place(b_below), Some((SourceRow(1), b"abelow".to_vec())));
        assert_eq!((place(c), place(c_below)), (None, None));
        let row = past.directory(Parent::Directory(root), b"b").unwrap().unwrap();
        assert_eq!((row.id, row.in_place, row.linked), (a, true, false));

        catalog.remove_displaced().unwrap();
        catalog.commit().unwrap();
        assert_eq!([a_below, b_below, c_below].map(|id| past.segment_ids(id).unwrap().len()), [1, 1, 0]);
        assert!(past.directory_by_inode(inode(1, 4)).unwrap().is_none());
    }

    #[test]
    fn a_file_keeps_its_link_id_and_a_later_one_with_its_inode_gets_another() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let at = |seconds| Timestamp { seconds, nanos: 0 };
        let [one, other] = [b"one", b"two"].map(|content| Digest::of(content));
        let link = |seconds, content| catalog.hard_link(inode(1, 7), at(seconds), content, true).unwrap();
        let first = link(10, &one);
        assert_eq!(link(10, &one), first);
        let second = link(20, &one);
        assert_ne!(second, first);
        assert_ne!(link(10, &one), first);
        // The content differs: another file claims the inode number, or the file was written to.
        let third = link(20, &one);
        let fourth = link(20, &other);
        assert_ne!(fourth, third);
        // Where change times say nothing, contents still do, and the new time is learnt.
        let lax = |seconds, content| catalog.hard_link(inode(1, 7), at(seconds), content, false).unwrap();
        assert_eq!(lax(30, &other), fourth);
        assert_eq!(link(30, &other), fourth);
        assert_ne!(lax(30, &one), fourth);
    }

    #[test]
    fn chunks_are_found_by_their_whole_digest() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = catalog(folder.path());
        let id = PackId::random();
        let pack = catalog.add_pack(id, PackKind::Data).unwrap();
        let at = BlockLocation { pack: id, offset: 5, length: 9 };
        catalog.add_block(BlockId(1), pack, 0, at, Check::of(b"")).unwrap();
        let stored = Stored { digest: Digest::of(b"x"), block: BlockId(1), start: 3, length: 4 };
        let mut same_head = stored;
        same_head.digest.0[31] ^= 1;
        catalog.add_chunks([stored, same_head].into_iter()).unwrap();
        assert_eq!(catalog.chunk(&stored.digest).unwrap(), Some(stored));
        assert_eq!(catalog.chunk(&same_head.digest).unwrap(), None);
        assert_eq!(catalog.location(BlockId(1)).unwrap().offset, 5);
        assert!(catalog.location(BlockId(2)).is_err());
        assert_eq!(catalog.next_block().unwrap(), BlockId(2));
    }
}
