//! The blocks that each snapshot uses. The host can read this, so it contains nothing about the snapshot's content.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::cbor::{CborReader, CborWriter};
use super::error::Error;
use super::id::{PackId, SnapshotId};
use super::name::SnapshotName;
use super::snapshot::{PATHS, TAGS};
use super::source::is_source_name;

/// Blocks of one birth pack, as runs of (ordinal of the first block, number of blocks). Most packs have one run, and an index
/// may list hundreds of thousands of packs, so the first one takes no allocation.
pub type BlockRuns = SmallVec<[(u32, u32); 1]>;

/// The labels by which users select snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels {
    /// The host name of the machine.
    pub host: String,
    /// The paths that were backed up.
    pub paths: Vec<Vec<u8>>,
    /// The tags of the snapshot.
    pub tags: Vec<String>,
}

/// The blocks that a snapshot uses, as the difference to another snapshot, its statistics and labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The snapshot that the difference is relative to. If it is `None`, `added` lists all blocks.
    pub base: Option<SnapshotName>,
    /// The blocks used by this snapshot but not by the base.
    pub added: Vec<(PackId, BlockRuns)>,
    /// The blocks used by the base but not by this snapshot.
    pub removed: Vec<(PackId, BlockRuns)>,
    /// The source's name.
    pub source: String,
    /// The number of regular files.
    pub files: u64,
    /// The total size of the files in bytes.
    pub bytes: u64,
    /// The number of bytes that the backup added to packs.
    pub stored_bytes: u64,
    /// Host, paths and tags.
    pub labels: Labels,
}

/// Whether a snapshot is held: a held snapshot is not forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// Held, or released again.
    pub held: bool,
}

/// The last hold or release of each snapshot.
#[derive(Debug, Clone, Default)]
pub struct Holds(BTreeMap<SnapshotId, (u64, Hold)>);

impl Holds {
    /// Adds the holds of an index of `generation`. Of several of a snapshot, that of the highest generation counts.
    pub fn add(&mut self, generation: u64, holds: &[Hold]) {
        for hold in holds {
            let known = self.0.get(&hold.snapshot.id).map_or(0, |(generation, _)| *generation);
            if generation >= known {
                self.0.insert(hold.snapshot.id, (generation, hold.clone()));
            }
        }
    }

    /// One hold for each snapshot.
    pub fn to_vec(&self) -> Vec<Hold> {
        self.0.values().map(|(_, hold)| hold.clone()).collect()
    }
}

/// Ascending ordinals as runs.
pub fn block_runs(ordinals: impl IntoIterator<Item = u32>) -> BlockRuns {
    let mut runs = BlockRuns::new();
    ordinals.into_iter().for_each(|ordinal| add_to_runs(&mut runs, ordinal));
    runs
}

/// Adds an ordinal above those in the runs.
pub fn add_to_runs(runs: &mut BlockRuns, ordinal: u32) {
    match runs.last_mut() {
        Some((first, count)) if *first + *count == ordinal => *count += 1,
        _ => runs.push((ordinal, 1)),
    }
}

impl SnapshotUsage {
    pub(super) fn write(&self, w: &mut CborWriter) {
        let Labels { host, paths, tags } = &self.labels;
        w.map(10 + usize::from(self.base.is_some())).uint(0).text(&self.snapshot.object());
        if let Some(base) = &self.base {
            w.uint(1).text(&base.object());
        }
        for (key, runs) in [(2, &self.added), (3, &self.removed)] {
            w.uint(key);
            write_runs(w, runs);
        }
        w.uint(4).text(&self.source);
        w.uint(5).uint(self.files).uint(6).uint(self.bytes).uint(7).uint(self.stored_bytes);
        w.uint(8).text(host);
        w.uint(9).array(paths.len());
        for path in paths {
            w.bytes(path);
        }
        w.uint(10).array(tags.len());
        for tag in tags {
            w.text(tag);
        }
    }

    pub(super) fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        let (mut snapshot, mut base, mut source) = (None, None, None);
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        let [mut files, mut bytes, mut stored_bytes] = [None; 3];
        let mut labels = Labels::default();
        r.fields(|r, key| {
            match key {
                0 => snapshot = Some(SnapshotName::parse(r.text()?)?),
                1 => base = Some(SnapshotName::parse(r.text()?)?),
                2 => added = read_runs(r)?,
                3 => removed = read_runs(r)?,
                4 => source = Some(r.text()?.to_owned()),
                5 => files = Some(r.uint()?),
                6 => bytes = Some(r.uint()?),
                7 => stored_bytes = Some(r.uint()?),
                8 => labels.host = r.text()?.to_owned(),
                9 => {
                    let count = r.array_up_to(PATHS)?;
                    labels.paths = (0..count).map(|_| Ok(r.bytes()?.to_vec())).collect::<Result<_, Error>>()?;
                }
                10 => {
                    let count = r.array_up_to(TAGS)?;
                    labels.tags = (0..count).map(|_| Ok(r.text()?.to_owned())).collect::<Result<_, Error>>()?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let source = r.need("source", source)?;
        if !is_source_name(&source) {
            return Err(r.wrong(format!("invalid source name {source:?}")));
        }
        Ok(SnapshotUsage {
            snapshot: r.need("snapshot", snapshot)?,
            base,
            added,
            removed,
            source,
            files: r.need("number of files", files)?,
            bytes: r.need("size of files", bytes)?,
            stored_bytes: r.need("number of stored bytes", stored_bytes)?,
            labels,
        })
    }
}

impl Hold {
    pub(super) fn write(&self, w: &mut CborWriter) {
        w.map(2).uint(0).text(&self.snapshot.object()).uint(1).uint(self.held.into());
    }

    pub(super) fn read(r: &mut CborReader<'_>) -> Result<Self, Error> {
        let (mut snapshot, mut held) = (None, None);
        r.fields(|r, key| {
            match key {
                0 => snapshot = Some(SnapshotName::parse(r.text()?)?),
                1 => held = Some(r.uint()? != 0),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Hold { snapshot: r.need("snapshot", snapshot)?, held: r.need("state of a hold", held)? })
    }
}

fn write_runs(w: &mut CborWriter, packs: &[(PackId, BlockRuns)]) {
    w.array(packs.len());
    for (pack, runs) in packs {
        w.array(1 + 2 * runs.len()).bytes(pack.as_bytes());
        for (first, count) in runs {
            w.uint((*first).into()).uint((*count).into());
        }
    }
}

fn read_runs(r: &mut CborReader<'_>) -> Result<Vec<(PackId, BlockRuns)>, Error> {
    (0..r.array()?)
        .map(|_| {
            let items = r.array()?;
            if items % 2 == 0 {
                return Err(r.wrong("truncated run of blocks"));
            }
            let pack = PackId::from_slice(r.bytes()?)?;
            let runs = (0..items / 2).map(|_| read_run(r)).collect::<Result<_, _>>()?;
            Ok((pack, runs))
        })
        .collect()
}

fn read_run(r: &mut CborReader<'_>) -> Result<(u32, u32), Error> {
    let (first, count) = (r.u32()?, r.u32()?);
    if count == 0 || first.checked_add(count).is_none() {
        return Err(r.wrong("a run of blocks that is empty or too long"));
    }
    Ok((first, count))
}
