//! The order of durability.
//!
//! Packs, then their sums and index, then the catalog, then, at the end of a run, the snapshot. Each step is taken only when
//! the previous one is on disk. After a kill or a power cut at any moment, older snapshots are complete, no snapshot
//! refers to missing data, and the catalog claims nothing that the repository does not have.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use roaring::RoaringTreemap;

use super::seal::{PlainBlock, SealResult, SealedBlock, Sealing};
use crate::backup::error::Error;
use crate::catalog::{BlockId, Catalog, PackRow, SnapshotRow};
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::index::{BlockRuns, Index, IndexedBlock, IndexedPack, PackKind, SnapshotBlocks};
use crate::format::name::SnapshotName;
use crate::format::snapshot::Snapshot;
use crate::format::{Digest, PackId};
use crate::monitor::Monitor;
use crate::session::{Session, StoredPack};

/// Chunks after which an index is written, so that the list of them stays small.
const INDEX_CHUNKS: usize = 16_000;
/// Chunks after which a commit is made early: until then SQLite keeps changed pages in memory.
const COMMIT_CHUNKS: usize = 100_000;

/// The counts of stored packs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::backup) struct StoredCounts {
    /// Bytes of blocks before compression.
    pub(in crate::backup) added_bytes: u64,
    pub(in crate::backup) data_packs: u64,
    pub(in crate::backup) tree_packs: u64,
    pub(in crate::backup) data_bytes: u64,
    pub(in crate::backup) tree_bytes: u64,
}

impl StoredCounts {
    /// Bytes of all packs.
    pub(in crate::backup) fn pack_bytes(&self) -> u64 {
        self.data_bytes + self.tree_bytes
    }
}

/// A pack with blocks that are in the catalog, and that is not stored yet.
struct PendingPack {
    row: PackRow,
    kind: PackKind,
    blocks: Vec<IndexedBlock>,
}

/// A snapshot that is ready to be written.
pub(in crate::backup) struct NewSnapshot {
    /// Its row in the catalog. The bytes stored are set when the last pack is.
    pub(in crate::backup) row: SnapshotRow,
    /// The blocks that it uses.
    pub(in crate::backup) used: RoaringTreemap,
    /// The snapshot before it, and the blocks of that.
    pub(in crate::backup) base: Option<(SnapshotName, RoaringTreemap)>,
}

/// Sends blocks to the sealers, notes in the catalog where they end up, and makes everything durable in order.
///
/// It alone commits: everyone else gets a shared reference to the catalog, which can't.
pub(in crate::backup) struct Publisher<'a> {
    session: &'a Session<'a>,
    catalog: Catalog,
    sealing: Sealing<'a>,
    monitor: &'a dyn Monitor,
    interval: Duration,
    pending: HashMap<PackId, PendingPack>,
    /// Packs that are stored and in no index yet, and how many chunks they have.
    finished: Vec<IndexedPack>,
    chunks_finished: usize,
    chunks_since_commit: usize,
    last_commit: Instant,
    counts: StoredCounts,
}

impl<'a> Publisher<'a> {
    /// A publisher that commits every `interval` at the earliest.
    pub(in crate::backup) fn new(
        session: &'a Session<'a>,
        catalog: Catalog,
        sealing: Sealing<'a>,
        interval: Duration,
        monitor: &'a dyn Monitor,
    ) -> Self {
        Publisher {
            session,
            catalog,
            sealing,
            monitor,
            interval,
            pending: HashMap::new(),
            finished: Vec::new(),
            chunks_finished: 0,
            chunks_since_commit: 0,
            last_commit: Instant::now(),
            counts: StoredCounts::default(),
        }
    }

    pub(in crate::backup) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(in crate::backup) fn counts(&self) -> StoredCounts {
        self.counts
    }

    /// Announces the run, before it stores anything or removes rows for good.
    pub(in crate::backup) fn announce(&mut self) -> Result<(), Error> {
        Ok(self.session.announce(&mut self.catalog)?)
    }

    /// An empty buffer with room for a block.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.sealing.buffer()
    }

    /// Sends a block to the sealers. Blocks while they are busy.
    pub(super) fn seal(&mut self, block: PlainBlock) -> Result<(), Error> {
        self.announce()?;
        self.sealing.send(block)
    }

    /// Handles results of sealing that are available, up to the next block. `None`: no more are available.
    pub(super) fn poll(&mut self) -> Result<Option<SealedBlock>, Error> {
        while let Some(result) = self.sealing.try_next() {
            if let Some(block) = self.take(result)? {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Waits for a result of sealing and handles it. `None`: it was not about a block.
    pub(super) fn wait(&mut self) -> Result<Option<SealedBlock>, Error> {
        let result = self.sealing.next()?;
        self.take(result)
    }

    fn take(&mut self, result: SealResult) -> Result<Option<SealedBlock>, Error> {
        match result {
            SealResult::Failed(error) => Err(error),
            SealResult::Block(block) => Ok(Some(block)),
            SealResult::Pack(pack) => self.finish_pack(pack).map(|()| None),
        }
    }

    /// Enters a sealed block, and the digests and lengths of its chunks, into the catalog.
    pub(super) fn add_block(&mut self, sealed: &SealedBlock, chunks: Vec<(Digest, u32)>) -> Result<(), Error> {
        let SealedBlock { block, kind, ordinal, at } = *sealed;
        let row = match self.pending.get(&at.pack) {
            Some(pack) => pack.row,
            None => {
                let row = self.catalog.add_pack(at.pack, kind)?;
                self.pending.insert(at.pack, PendingPack { row, kind, blocks: Vec::new() });
                row
            }
        };
        self.counts.added_bytes += chunks.iter().map(|(_, length)| u64::from(*length)).sum::<u64>();
        self.monitor.progress().stored(at.length.into());
        self.catalog.add_block(block, row, ordinal, at)?;
        self.chunks_since_commit += chunks.len();
        if let Some(pack) = self.pending.get_mut(&at.pack) {
            pack.blocks.push(IndexedBlock { length: at.length, chunks });
        }
        Ok(())
    }

    fn finish_pack(&mut self, StoredPack { pack: id, length, digest }: StoredPack) -> Result<(), Error> {
        let PendingPack { row, kind, blocks } =
            self.pending.remove(&id).ok_or(Error::Internal("a pack was stored that is not pending"))?;
        self.catalog.finish_pack(row, (id, kind), length, &digest)?;
        match kind {
            PackKind::Data => {
                self.counts.data_packs += 1;
                self.counts.data_bytes += length;
            }
            PackKind::Tree => {
                self.counts.tree_packs += 1;
                self.counts.tree_bytes += length;
            }
        }
        self.chunks_finished += blocks.iter().map(|block| block.chunks.len()).sum::<usize>();
        self.finished.push(IndexedPack { id, kind, digest, blocks });
        if self.chunks_finished >= INDEX_CHUNKS { self.write_index(None) } else { Ok(()) }
    }

    /// Whether enough time has passed, or enough was stored, for the next commit.
    pub(super) fn is_commit_due(&self) -> bool {
        self.last_commit.elapsed() >= self.interval || self.chunks_since_commit >= COMMIT_CHUNKS
    }

    /// Makes all sealed blocks durable, and the catalog's rows about them. No block may be with the sealers.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        self.store_packs()?;
        self.write_index(None)?;
        self.commit_catalog()
    }

    /// Commits together with the blocks of a snapshot that is about to be written, and enters it into the catalog.
    pub(super) fn commit_snapshot(
        &mut self,
        snapshot: &NewSnapshot,
        source: crate::catalog::SourceRow,
    ) -> Result<(), Error> {
        let mut blocks = self.snapshot_blocks(snapshot)?;
        self.catalog.add_snapshot(&snapshot.row, source, Some(&snapshot.used))?;
        self.store_packs()?;
        // The last packs count too.
        blocks.stored_bytes = self.counts.pack_bytes();
        self.write_index(Some(blocks))?;
        self.commit_catalog()
    }

    /// Writes the snapshot itself, last of all, and notes that it exists.
    pub(in crate::backup) fn put_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.session.still_alone()?;
        self.session.writer().put_snapshot(snapshot)?;
        self.set_there(snapshot.name.id, snapshot.statistics.stored_bytes)
    }

    fn set_there(&mut self, id: SnapshotId, stored_bytes: u64) -> Result<(), Error> {
        self.catalog.set_there(id, Some(stored_bytes))?;
        self.catalog.set_finished()?;
        Ok(self.catalog.commit()?)
    }

    fn commit_catalog(&mut self) -> Result<(), Error> {
        self.catalog.commit()?;
        self.chunks_since_commit = 0;
        self.last_commit = Instant::now();
        Ok(())
    }

    /// Stores the packs that are being filled, however small they are, and waits for them.
    fn store_packs(&mut self) -> Result<(), Error> {
        self.sealing.flush()?;
        while !self.pending.is_empty() {
            if self.wait()?.is_some() {
                return Err(Error::Internal("a block was in flight during a commit"));
            }
        }
        Ok(())
    }

    /// Writes the sums and the index of the packs that are stored.
    fn write_index(&mut self, snapshot: Option<SnapshotBlocks>) -> Result<(), Error> {
        let packs = std::mem::take(&mut self.finished);
        self.chunks_finished = 0;
        if packs.is_empty() && snapshot.is_none() {
            return Ok(());
        }
        self.announce()?;
        self.session.still_alone()?;
        if !packs.is_empty() {
            let sums: Vec<_> = packs.iter().map(|pack| (pack.id, pack.digest)).collect();
            self.session.writer().put_sums(ObjectId::random(), &sums)?;
        }
        Ok(self.session.writer().put_index(ObjectId::random(), &Index { packs, snapshot })?)
    }

    /// The blocks of a snapshot for the index, as the difference to the snapshot before.
    fn snapshot_blocks(&self, NewSnapshot { row, used, base }: &NewSnapshot) -> Result<SnapshotBlocks, Error> {
        let none = RoaringTreemap::new();
        let before = base.as_ref().map_or(&none, |(_, blocks)| blocks);
        Ok(SnapshotBlocks {
            snapshot: row.name.clone(),
            source: row.source.clone(),
            files: row.files,
            bytes: row.bytes,
            stored_bytes: row.stored_bytes,
            base: base.as_ref().map(|(name, _)| name.clone()),
            added: self.runs(&(used - before))?,
            removed: self.runs(&(before - used))?,
        })
    }

    /// Blocks as runs within their packs.
    fn runs(&self, blocks: &RoaringTreemap) -> Result<Vec<(PackId, BlockRuns)>, Error> {
        let mut packs: BTreeMap<PackId, Vec<u32>> = BTreeMap::new();
        for block in blocks {
            let (pack, ordinal) = self.catalog.ordinal(BlockId(block))?;
            packs.entry(pack).or_default().push(ordinal);
        }
        Ok(packs.into_iter().map(|(pack, ordinals)| (pack, runs_of(ordinals))).collect())
    }
}

/// Numbers as runs of (first, count).
fn runs_of(mut numbers: Vec<u32>) -> BlockRuns {
    numbers.sort_unstable();
    let mut runs: BlockRuns = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::fixture::Site;
    use crate::format::name;

    fn block(number: u64) -> PlainBlock {
        PlainBlock { block: BlockId(number), kind: PackKind::Data, bytes: vec![number as u8; 5000], pad: false }
    }

    /// Seals a block and enters it into the catalog.
    fn store(publisher: &mut Publisher<'_>, number: u64) {
        let block = block(number);
        let chunks = vec![(Digest::of(&block.bytes), block.bytes.len() as u32)];
        publisher.seal(block).unwrap();
        let sealed = publisher.wait().unwrap().expect("a sealed block");
        publisher.add_block(&sealed, chunks).unwrap();
    }

    #[test]
    fn a_run_that_stores_nothing_writes_nothing() {
        let site = Site::new();
        site.with_publisher(|mut publisher| publisher.commit().unwrap());
        assert_eq!([name::PACKS, name::INDEX, name::SUMS, name::GENERATION].map(|folder| site.count(folder)), [0; 4]);
    }

    #[test]
    fn a_commit_stores_packs_and_then_lists_them() {
        let site = Site::new();
        let counts = site.with_publisher(|mut publisher| {
            (1..=3).for_each(|number| store(&mut publisher, number));
            // The run is announced before its first block is sealed.
            assert_eq!([name::GENERATION, name::PACKS].map(|folder| site.count(folder)), [1, 0]);
            publisher.commit().unwrap();
            assert!(publisher.pending.is_empty() && publisher.finished.is_empty());
            publisher.counts()
        });
        assert_eq!((counts.added_bytes, counts.data_packs, counts.tree_packs), (15_000, 1, 0));
        assert_eq!([name::PACKS, name::INDEX, name::SUMS].map(|folder| site.count(folder)), [1, 1, 1]);
        site.with_publisher(|publisher| {
            let places = [1, 2, 3].map(|number| publisher.catalog().location(BlockId(number)).unwrap());
            assert!(places.windows(2).all(|two| two[0].pack == two[1].pack && two[0].offset < two[1].offset));
        });
    }

    #[test]
    fn without_a_commit_the_next_run_knows_of_no_block() {
        let site = Site::new();
        site.with_publisher(|mut publisher| store(&mut publisher, 1));
        site.with_publisher(|publisher| assert!(publisher.catalog().location(BlockId(1)).is_err()));
        assert_eq!(site.count(name::INDEX), 0);
    }

    #[test]
    fn a_commit_is_due_after_the_interval_or_many_chunks() {
        Site::new().with_publisher(|mut publisher| {
            assert!(!publisher.is_commit_due());
            publisher.chunks_since_commit = COMMIT_CHUNKS;
            assert!(publisher.is_commit_due());
            publisher.commit().unwrap();
            assert!(!publisher.is_commit_due());
            publisher.interval = Duration::ZERO;
            assert!(publisher.is_commit_due());
        });
    }

    #[test]
    fn neighbouring_blocks_join_in_a_run() {
        assert_eq!(runs_of(vec![]), []);
        assert_eq!(runs_of(vec![3, 1, 2, 7, 9, 8]), [(1, 3), (7, 3)]);
    }
}
