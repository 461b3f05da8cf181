//! Sources, snapshots, and the blocks that each snapshot uses.

use roaring::RoaringTreemap;
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::database::Catalog;
use super::error::Error;
use super::stats::Stats;
use super::sums::Sum;
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::SnapshotName;
use crate::format::source::Source;
use crate::format::usage::{Hold, Labels};

/// `snapshots.usage` if the spans include the snapshot. Several bits differ from 0, so that no single flipped bit makes a
/// snapshot's blocks unknown.
pub(super) const RECORDED: i64 = 90;

/// `holds.held` of a held snapshot. All numbers but 0 count as held, so that no single flipped bit releases a snapshot.
const HELD: i64 = 90;

/// The id of a source in this catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRow(pub i64);

/// A snapshot in the catalog, which the host can read without the owner's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Source, number, time and id.
    pub name: SnapshotName,
    /// The name of the source.
    pub source: String,
    /// Host, paths and tags.
    pub labels: Labels,
    /// The number of regular files.
    pub files: u64,
    /// Their total size in bytes.
    pub bytes: u64,
    /// The number of bytes that were stored for this snapshot.
    pub stored_bytes: u64,
    /// Whether the snapshot is in the repository.
    pub presence: Presence,
    /// Whether it is held: then it cannot be forgotten.
    pub is_held: bool,
    /// The stat data of the root directory.
    pub root: Stats,
}

/// [`Labels`] as JSON in a column.
#[derive(Serialize, Deserialize)]
struct StoredLabels {
    host: String,
    paths: Vec<Vec<u8>>,
    tags: Vec<String>,
}

impl From<&Labels> for StoredLabels {
    fn from(labels: &Labels) -> Self {
        let Labels { host, paths, tags } = labels.clone();
        StoredLabels { host, paths, tags }
    }
}

impl From<StoredLabels> for Labels {
    fn from(StoredLabels { host, paths, tags }: StoredLabels) -> Self {
        Labels { host, paths, tags }
    }
}

/// The state of a snapshot's object in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The object was about to be written.
    Intended,
    /// The object is in the repository.
    There,
    /// The object was not found. It may reappear, since listings can be incomplete.
    NotFound,
    /// The object was about to be written, and the next run did not find it.
    NeverWritten,
    /// A tombstone names the snapshot. The object may still be in the repository.
    Forgotten,
    /// A tombstone names the snapshot, and the object was removed.
    Swept,
}

impl Presence {
    const ALL: [Presence; 6] = [
        Presence::Intended,
        Presence::There,
        Presence::NotFound,
        Presence::NeverWritten,
        Presence::Forgotten,
        Presence::Swept,
    ];

    /// Codes differ in at least two bits, so that no single flipped bit makes a snapshot look forgotten.
    fn code(self) -> i64 {
        match self {
            Presence::Intended => 0,
            Presence::There => 3,
            Presence::NotFound => 5,
            Presence::NeverWritten => 6,
            Presence::Forgotten => 9,
            Presence::Swept => 10,
        }
    }

    fn from_code(code: i64) -> Option<Self> {
        Presence::ALL.into_iter().find(|presence| presence.code() == code)
    }

    /// Whether a tombstone names the snapshot. Users do not see it then.
    pub fn is_forgotten(self) -> bool {
        matches!(self, Presence::Forgotten | Presence::Swept)
    }
}

impl Catalog {
    /// Looks up a source by its name.
    pub fn source(&self, name: &str) -> Result<Option<(SourceRow, SourceId)>, Error> {
        let found = self
            .db
            .query_row("SELECT id, uuid, name, sum FROM sources WHERE name = ? ORDER BY id LIMIT 1", [name], |row| {
                Ok((SourceRow(row.get(0)?), raw_source(row)?))
            })
            .optional()
            .map_err(self.failed("look up a source"))?;
        found.map(|(row, raw)| Ok((row, self.known_source(raw)?.id))).transpose()
    }

    /// Looks up a source by its id.
    pub fn source_by_id(&self, id: SourceId) -> Result<Option<SourceRow>, Error> {
        let found = self.db.query_row("SELECT id FROM sources WHERE uuid = ?", [id.as_bytes()], |row| row.get(0));
        Ok(found.optional().map_err(self.failed("look up a source"))?.map(SourceRow))
    }

    /// Ids and names of all sources.
    pub fn sources(&self) -> Result<Vec<Source>, Error> {
        let find = || {
            let mut statement = self.db.prepare("SELECT id, uuid, name, sum FROM sources ORDER BY id")?;
            statement.query_map([], raw_source)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        find().map_err(self.failed("read sources"))?.into_iter().map(|raw| self.known_source(raw)).collect()
    }

    fn known_source(&self, raw: Option<(Vec<u8>, String)>) -> Result<Source, Error> {
        let (uuid, name) = raw.ok_or_else(|| self.damaged("a source does not match its checksum"))?;
        Ok(Source { id: SourceId::from_slice(&uuid).map_err(|e| self.damaged(e))?, name })
    }

    /// Adds a source.
    pub fn add_source(&self, id: SourceId, name: &str) -> Result<SourceRow, Error> {
        let sum = source_sum(id.as_bytes(), name).value();
        let insert = "INSERT INTO sources (uuid, name, sum) VALUES (?, ?, ?)";
        let added = self.db.execute(insert, params![id.as_bytes(), name, sum]);
        added.map_err(self.failed("add a source"))?;
        Ok(SourceRow(self.db.last_insert_rowid()))
    }

    /// Adds a snapshot that is about to be written, or was found in an index, with the blocks that it uses, if known.
    pub fn add_snapshot(
        &self,
        snapshot: &SnapshotRow,
        source: SourceRow,
        blocks: Option<&RoaringTreemap>,
    ) -> Result<(), Error> {
        let labels = serde_json::to_vec(&StoredLabels::from(&snapshot.labels)).map_err(|e| self.damaged(e))?;
        let columns = Columns {
            numbers: [snapshot.name.sequence, source.0 as u64, snapshot.files, snapshot.bytes],
            id: &snapshot.name.id.0,
            time: &snapshot.name.time,
            blobs: [&labels, &snapshot.root.0],
        };
        let sum = columns.sum().value();
        if let Some(blocks) = blocks {
            self.record_usage(source, snapshot.name.sequence, blocks)?;
        }
        let added = self.db.execute(
            "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                snapshot.name.sequence as i64,
                snapshot.name.id.0,
                source.0,
                snapshot.name.time,
                labels,
                snapshot.files as i64,
                snapshot.bytes as i64,
                snapshot.stored_bytes as i64,
                snapshot.presence.code(),
                if blocks.is_some() { RECORDED } else { 0 },
                snapshot.root.0,
                sum
            ],
        );
        added.map(drop).map_err(self.failed("add a snapshot"))
    }

    /// Records that a snapshot is in the repository, and the number of bytes stored for it, if known.
    pub fn set_there(&self, id: SnapshotId, stored_bytes: Option<u64>) -> Result<(), Error> {
        let set = self.db.execute(
            "UPDATE snapshots SET presence = ?, stored = coalesce(?, stored) WHERE uuid = ?",
            params![Presence::There.code(), stored_bytes.map(|bytes| bytes as i64), id.0],
        );
        set.map(drop).map_err(self.failed("update a snapshot"))
    }

    /// Records that a snapshot is missing, was never written, or is forgotten. If it was the newest one of its source, the
    /// present root directory may be in no other snapshot, so the next run must not take it for unchanged.
    pub fn set_missing(&self, id: SnapshotId, presence: Presence) -> Result<(), Error> {
        let unlink = "UPDATE directories SET linked = 0 WHERE parent = (
             SELECT -source FROM snapshots gone WHERE uuid = ? AND NOT EXISTS (
                 SELECT 1 FROM snapshots newer
                 WHERE newer.source = gone.source AND newer.sequence > gone.sequence AND newer.presence = ?))";
        let unlink = self.db.execute(unlink, params![id.0, Presence::There.code()]);
        unlink.map_err(self.failed("update a snapshot"))?;
        let set = "UPDATE snapshots SET presence = ? WHERE uuid = ?";
        let set = self.db.execute(set, params![presence.code(), id.0]);
        set.map_err(self.failed("update a snapshot"))?;
        if presence.is_forgotten() { self.set_tombstones_stale() } else { Ok(()) }
    }

    /// Records that a run of this generation held or released a snapshot, which may be unknown. Of several, the highest
    /// generation counts.
    pub fn set_hold(&self, hold: &Hold, generation: u64) -> Result<(), Error> {
        let set = "INSERT INTO holds VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET held = ?2, generation = ?3 WHERE generation <= ?3";
        let held = if hold.held { HELD } else { 0 };
        let set = self.db.execute(set, params![hold.snapshot.id.0, held, generation as i64]);
        set.map(drop).map_err(self.failed("hold a snapshot"))
    }

    /// Removes the snapshot with this number from the catalog if it is not in the repository and no tombstone names it.
    pub fn forget_not_found(&self, sequence: u64) -> Result<(), Error> {
        // Its spans stay until they are forgotten, or a snapshot of the source is recorded that contradicts them.
        let remove = "DELETE FROM snapshots WHERE sequence = ? AND presence IN (?, ?)";
        let values = [sequence as i64, Presence::NotFound.code(), Presence::NeverWritten.code()];
        let removed = self.db.execute(remove, values);
        removed.map(drop).map_err(self.failed("remove a snapshot"))
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRow>, Error> {
        let find = || {
            self.db
                .prepare(&format!("{SNAPSHOT} ORDER BY sequence"))?
                .query_map([], raw_snapshot)?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = find().map_err(self.failed("read snapshots"))?;
        rows.into_iter().map(|raw| self.snapshot(raw)).collect()
    }

    /// The start time of the newest snapshot, in the format of object names; `None` if there are no snapshots.
    pub fn newest_time(&self) -> Result<Option<String>, Error> {
        let select = "SELECT time FROM snapshots ORDER BY sequence DESC LIMIT 1";
        let newest = self.db.query_row(select, [], |row| row.get(0)).optional();
        newest.map_err(self.failed("read the last snapshot"))
    }

    /// The newest snapshot of a source that users see.
    pub fn latest_snapshot(&self, source: SourceRow) -> Result<Option<SnapshotRow>, Error> {
        let latest = self.newest_with(source, [Presence::There, Presence::There])?;
        Ok(latest.map(|(row, _)| row))
    }

    /// The newest snapshot of a source whose object was not removed, forgotten or not, and its blocks, if known. The next
    /// snapshot is recorded as the difference to it.
    pub fn newest_base(&self, source: SourceRow) -> Result<Option<(SnapshotName, Option<RoaringTreemap>)>, Error> {
        let newest = self.newest_with(source, [Presence::There, Presence::Forgotten])?;
        let Some((SnapshotRow { name, .. }, usage)) = newest else { return Ok(None) };
        let blocks = (usage == RECORDED).then(|| self.recorded_blocks(source, name.sequence)).transpose()?;
        Ok(Some((name, blocks)))
    }

    /// The newest snapshot of a source with one of these states, and the state of its usage.
    fn newest_with(&self, source: SourceRow, states: [Presence; 2]) -> Result<Option<(SnapshotRow, i64)>, Error> {
        let find = || {
            let select = format!("{SNAPSHOT} WHERE source = ? AND presence IN (?, ?) ORDER BY sequence DESC LIMIT 1");
            let [one, other] = states.map(Presence::code);
            self.db.query_row(&select, [source.0, one, other], |row| Ok((raw_snapshot(row)?, row.get(13)?))).optional()
        };
        let found = find().map_err(self.failed("read the last snapshot"))?;
        found.map(|(raw, usage)| Ok((self.snapshot(raw)?, usage))).transpose()
    }

    /// The blocks that a snapshot uses; `None` if the snapshot or its blocks are unknown. Reads all spans, unless the
    /// snapshot is the newest recorded one of its source.
    pub fn snapshot_blocks(&self, id: SnapshotId) -> Result<Option<RoaringTreemap>, Error> {
        let found = self.place_of_recorded(id)?;
        found.map(|(source, sequence)| self.recorded_blocks(SourceRow(source), sequence)).transpose()
    }

    /// Whether a snapshot is in the catalog.
    pub fn has_snapshot(&self, id: SnapshotId) -> Result<bool, Error> {
        let found = self.db.query_row("SELECT 1 FROM snapshots WHERE uuid = ?", [id.0], |_| Ok(()));
        Ok(found.optional().map_err(self.failed("read a snapshot"))?.is_some())
    }

    /// The number of the newest snapshot; 0 if there are no snapshots.
    pub fn last_sequence(&self) -> Result<u64, Error> {
        let last =
            self.db.query_row("SELECT coalesce(max(sequence), 0) FROM snapshots", [], |row| row.get::<_, i64>(0));
        Ok(last.map_err(self.failed("read the last snapshot"))? as u64)
    }

    /// Whether there is a snapshot with this number.
    pub fn has_sequence(&self, sequence: u64) -> Result<bool, Error> {
        let select = "SELECT 1 FROM snapshots WHERE sequence = ?";
        let found = self.db.query_row(select, [sequence as i64], |_| Ok(()));
        Ok(found.optional().map_err(self.failed("read a snapshot"))?.is_some())
    }

    /// The snapshots that the census of a run of `generation` counts.
    pub(super) fn counted_snapshots(&self, generation: u64) -> Result<Vec<SnapshotName>, Error> {
        let is_known = |presence: Presence| presence == Presence::There || presence.is_forgotten();
        let counted = |row: &SnapshotRow| is_known(row.presence) && row.name.sequence < generation;
        Ok(self.snapshots()?.into_iter().filter(counted).map(|row| row.name).collect())
    }

    /// Number of files and total bytes of the newest snapshot of a source that is in the repository.
    pub fn latest_size(&self, source: SourceRow) -> Result<Option<(u64, u64)>, Error> {
        let size = self.db.query_row(
            "SELECT files, bytes FROM snapshots WHERE source = ? AND presence = ? ORDER BY sequence DESC LIMIT 1",
            [source.0, Presence::There.code()],
            |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)),
        );
        size.optional().map_err(self.failed("read the last snapshot"))
    }

    fn snapshot(&self, raw: RawSnapshot) -> Result<SnapshotRow, Error> {
        if !raw.whole {
            return Err(self.damaged("a snapshot's row does not match its checksum"));
        }
        let source = SourceId::from_slice(&raw.source_id).map_err(|e| self.damaged(e))?;
        let id = SnapshotId::from_slice(&raw.id).map_err(|e| self.damaged(e))?;
        Ok(SnapshotRow {
            name: SnapshotName { source, sequence: raw.sequence as u64, time: raw.time, id },
            source: raw.source,
            labels: serde_json::from_slice::<StoredLabels>(&raw.labels).map_err(|e| self.damaged(e))?.into(),
            files: raw.files as u64,
            bytes: raw.bytes as u64,
            stored_bytes: raw.stored_bytes as u64,
            presence: Presence::from_code(raw.presence).ok_or_else(|| self.damaged("a snapshot's state is invalid"))?,
            is_held: raw.is_held,
            root: Stats(raw.root),
        })
    }

    /// An error for damage in the catalog.
    pub fn damaged(&self, why: impl ToString) -> Error {
        Error::Damaged { path: self.path.clone(), why: why.to_string() }
    }
}

const SNAPSHOT: &str =
    "SELECT sequence, snapshots.uuid, sources.uuid, sources.name, time, labels, files, bytes, stored,
     presence, root, source, snapshots.sum, usage, coalesce(held, 0) <> 0
     FROM snapshots JOIN sources ON sources.id = source LEFT JOIN holds ON holds.snapshot = snapshots.uuid";

fn source_sum(uuid: &[u8], name: &str) -> Sum {
    Sum::of("sources").bytes(uuid).bytes(name.as_bytes())
}

/// Id and name of a source, from a row of id, uuid, name and sum; `None` if the row does not match its checksum.
fn raw_source(row: &Row<'_>) -> rusqlite::Result<Option<(Vec<u8>, String)>> {
    let (uuid, name): (Vec<u8>, String) = (row.get(1)?, row.get(2)?);
    let whole = source_sum(&uuid, &name).agrees(row, 3)?;
    Ok(whole.then_some((uuid, name)))
}

/// The columns of a snapshot that are in its checksum.
struct Columns<'a> {
    numbers: [u64; 4],
    id: &'a [u8],
    time: &'a str,
    blobs: [&'a [u8]; 2],
}

impl Columns<'_> {
    fn sum(&self) -> Sum {
        let sum = Sum::of("snapshots").bytes(self.id).bytes(self.time.as_bytes());
        let sum = self.numbers.iter().fold(sum, |sum, number| sum.number(*number as i64));
        self.blobs.iter().fold(sum, |sum, blob| sum.bytes(blob))
    }
}

struct RawSnapshot {
    sequence: i64,
    id: Vec<u8>,
    source_id: Vec<u8>,
    source: String,
    time: String,
    labels: Vec<u8>,
    files: i64,
    bytes: i64,
    stored_bytes: i64,
    presence: i64,
    root: Vec<u8>,
    is_held: bool,
    /// Whether the row matches its checksum.
    whole: bool,
}

fn raw_snapshot(row: &Row<'_>) -> rusqlite::Result<RawSnapshot> {
    let number = |at| row.get::<_, i64>(at).map(|number| number as u64);
    let columns = Columns {
        numbers: [number(0)?, number(11)?, number(6)?, number(7)?],
        id: row.get_ref(1)?.as_blob()?,
        time: row.get_ref(4)?.as_str()?,
        blobs: [row.get_ref(5)?.as_blob()?, row.get_ref(10)?.as_blob()?],
    };
    Ok(RawSnapshot {
        whole: columns.sum().agrees(row, 12)?,
        sequence: row.get(0)?,
        id: row.get(1)?,
        source_id: row.get(2)?,
        source: row.get(3)?,
        time: row.get(4)?,
        labels: row.get(5)?,
        files: row.get(6)?,
        bytes: row.get(7)?,
        stored_bytes: row.get(8)?,
        presence: row.get(9)?,
        root: row.get(10)?,
        is_held: row.get(14)?,
    })
}
