//! The order of durability.
//!
//! Packs, then their sums and index, then the catalog, then, at the end of a run, the snapshot. Each step is taken only when
//! the previous one is on disk. After a kill or a power cut at any moment, older snapshots are complete, no snapshot
//! refers to missing data, and the catalog claims nothing that the repository does not have.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use roaring::RoaringTreemap;
use tracing::{debug, debug_span};

use super::error::Error;
use super::open::Session;
use super::packs::{PlacedBlock, StoredPack};
use crate::catalog::{BlockId, Catalog, PackRow, SnapshotRow, SourceRow};
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::index::Index;
use crate::format::name::SnapshotName;
use crate::format::pack::{IndexedBlock, IndexedPack, PackKind};
use crate::format::snapshot::Snapshot;
use crate::format::usage::SnapshotUsage;
use crate::format::{Digest, PackId};
use crate::inventory::Inventory;
use crate::monitor::{Monitor, Silent};

/// Chunks after which an index is written, so that the list of them stays small.
const INDEX_CHUNKS: usize = 16_000;
/// Chunks after which a commit is made early: until then SQLite keeps changed pages in memory.
const COMMIT_CHUNKS: usize = 100_000;

/// A pack with blocks that are in the catalog, and that is not stored yet.
struct PendingPack {
    row: PackRow,
    kind: PackKind,
    blocks: Vec<IndexedBlock>,
}

/// A snapshot that is ready to be written.
pub struct NewSnapshot {
    /// Its row in the catalog. The bytes stored are set when the last pack is.
    pub row: SnapshotRow,
    /// The blocks that it uses.
    pub used: RoaringTreemap,
    /// The snapshot before it, and the blocks of that.
    pub base: Option<(SnapshotName, RoaringTreemap)>,
}

/// Records blocks and packs in the catalog, and publishes them in the order of durability.
///
/// It alone commits: other code gets a shared reference to the catalog, which cannot.
pub struct Publisher<'s> {
    session: &'s Session<'s>,
    catalog: Catalog,
    interval: Duration,
    pending: HashMap<PackId, PendingPack>,
    /// Packs that are stored and in no index yet, and how many chunks they have.
    finished: Vec<IndexedPack>,
    chunks_finished: usize,
    chunks_since_commit: usize,
    last_commit: Instant,
}

impl<'s> Publisher<'s> {
    /// A publisher that commits every `interval` at the earliest.
    pub fn new(session: &'s Session<'s>, catalog: Catalog, interval: Duration) -> Self {
        Publisher {
            session,
            catalog,
            interval,
            pending: HashMap::new(),
            finished: Vec::new(),
            chunks_finished: 0,
            chunks_since_commit: 0,
            last_commit: Instant::now(),
        }
    }

    /// The catalog, which cannot be committed through this reference.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Announces the run, before it stores anything or removes rows for good.
    pub fn announce(&mut self) -> Result<(), Error> {
        self.session.announce(&mut self.catalog)
    }

    /// Enters a block of a pack that is being filled, and the digests and lengths of its chunks, into the catalog.
    pub fn add_block(
        &mut self,
        block: BlockId,
        kind: PackKind,
        PlacedBlock { ordinal, at, check }: PlacedBlock,
        chunks: Vec<(Digest, u32)>,
    ) -> Result<(), Error> {
        let pack = match self.pending.entry(at.pack) {
            Entry::Occupied(pack) => pack.into_mut(),
            Entry::Vacant(none) => {
                let row = self.catalog.add_pack(at.pack, kind)?;
                none.insert(PendingPack { row, kind, blocks: Vec::new() })
            }
        };
        self.catalog.add_block(block, pack.row, ordinal, at, check)?;
        self.chunks_since_commit += chunks.len();
        pack.blocks.push(IndexedBlock { ordinal, offset: at.offset, length: at.length, check, chunks });
        Ok(())
    }

    /// Records that a pack is stored, and returns its kind. All its blocks must have been added.
    pub fn finish_pack(&mut self, StoredPack { pack: id, length, digest }: StoredPack) -> Result<PackKind, Error> {
        let PendingPack { row, kind, blocks } =
            self.pending.remove(&id).ok_or(Error::Internal("a pack was stored that is not pending"))?;
        self.catalog.finish_pack(row, (id, kind), length, &digest)?;
        debug!(pack = %id, ?kind, length, blocks = blocks.len(), "pack stored");
        self.chunks_finished += blocks.iter().map(|block| block.chunks.len()).sum::<usize>();
        let count = blocks.len() as u32;
        self.finished.push(IndexedPack { id, kind, digest: Some(digest), count, length, blocks });
        if self.chunks_finished >= INDEX_CHUNKS {
            self.write_index(None)?;
        }
        Ok(kind)
    }

    /// Whether packs with blocks in the catalog are not stored yet.
    pub fn has_pending_packs(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Forgets packs that are not stored, as the run ends early.
    pub fn drop_pending_packs(&mut self) -> Result<(), Error> {
        let rows: Vec<_> = self.pending.drain().map(|(_, pack)| pack.row).collect();
        debug!(packs = rows.len(), "dropping packs that are not stored");
        Ok(self.catalog.drop_unstored(&rows)?)
    }

    /// Whether enough time has passed, or enough was stored, for the next commit.
    pub fn is_commit_due(&self) -> bool {
        self.last_commit.elapsed() >= self.interval || self.chunks_since_commit >= COMMIT_CHUNKS
    }

    /// Makes all blocks durable, and the catalog's rows about them. No pack may be pending.
    pub fn commit(&mut self) -> Result<(), Error> {
        let _span = debug_span!("commit").entered();
        self.expect_stored()?;
        self.write_index(None)?;
        self.commit_catalog()
    }

    /// Commits together with the blocks of a snapshot that is about to be written, and enters it into the catalog. No pack
    /// may be pending; `stored_bytes` counts those of this run.
    pub fn commit_snapshot(
        &mut self,
        snapshot: &NewSnapshot,
        source: SourceRow,
        stored_bytes: u64,
    ) -> Result<(), Error> {
        let _span = debug_span!("publish", snapshot = %snapshot.row.name.id).entered();
        self.expect_stored()?;
        let usage = SnapshotUsage { stored_bytes, ..self.snapshot_usage(snapshot)? };
        self.catalog.add_snapshot(&snapshot.row, source, Some(&snapshot.used))?;
        self.write_index(Some(usage))?;
        self.commit_catalog()
    }

    /// Makes lost data that was stored again readable in older snapshots. Returns the number of chunks with a new place. No pack
    /// may be pending. The next commit completes it.
    pub fn heal(&mut self, monitor: &dyn Monitor, stop: &AtomicBool) -> Result<u64, Error> {
        self.expect_stored()?;
        let (repository, access) = (self.session.repository(), self.session.access());
        let inventory = Inventory { repository, access, monitor, stop };
        let placed = inventory.place_lost_chunks(&self.catalog)?;
        self.session.write_shards(&inventory, &mut self.catalog)?;
        Ok(placed)
    }

    fn expect_stored(&self) -> Result<(), Error> {
        if self.has_pending_packs() { Err(Error::Internal("a pack was not stored before a commit")) } else { Ok(()) }
    }

    /// Writes the snapshot itself, last of all.
    ///
    /// Fails if another run began in the meantime, and withdraws the snapshot then if that run has condemned or removed a
    /// pack that it uses. A prune lists documents after it is announced, but listings of some targets are late.
    pub fn put_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let _span = debug_span!("publish", snapshot = %snapshot.name.id).entered();
        self.session.still_alone()?;
        self.session.writer().put_snapshot(snapshot)?;
        match self.session.still_alone() {
            Err(error @ (Error::ConcurrentWriter { .. } | Error::SetBack { .. })) => {
                return Err(match self.has_all_packs(snapshot.name.id) {
                    Ok(true) => error,
                    Ok(false) => self.withdraw(&snapshot.name, error),
                    Err(unknown) => not_withdrawn(&snapshot.name, error, unknown),
                });
            }
            other => other?,
        }
        debug!("snapshot published");
        Ok(())
    }

    /// Notes that a snapshot exists which was put, and that the run is done.
    pub fn finish_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.set_there(snapshot.name.id, snapshot.statistics.stored_bytes)
    }

    /// Whether the repository has all packs that a snapshot of the catalog uses.
    fn has_all_packs(&self, snapshot: SnapshotId) -> Result<bool, Error> {
        let used = self.catalog.snapshot_blocks(snapshot)?.unwrap_or_default();
        let (repository, access) = (self.session.repository(), self.session.access());
        let inventory = Inventory { repository, access, monitor: &Silent, stop: &AtomicBool::new(false) };
        Ok(inventory.has_all_packs(&self.catalog, &used)?)
    }

    /// Removes the snapshot of this run. Returns the error that ends the run.
    fn withdraw(&mut self, snapshot: &SnapshotName, reason: Error) -> Error {
        let removed = self
            .session
            .remover(&mut self.catalog)
            .and_then(|remover| Ok(remover.remove_if_there(&snapshot.object())?));
        match removed {
            Ok(()) => reason,
            Err(error) => not_withdrawn(snapshot, reason, error),
        }
    }

    fn set_there(&mut self, id: SnapshotId, stored_bytes: u64) -> Result<(), Error> {
        self.catalog.set_there(id, Some(stored_bytes))?;
        self.catalog.set_finished()?;
        Ok(self.catalog.commit()?)
    }

    fn commit_catalog(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        self.catalog.commit()?;
        debug!(chunks = self.chunks_since_commit, micros = start.elapsed().as_micros(), "catalog committed");
        self.chunks_since_commit = 0;
        self.last_commit = Instant::now();
        Ok(())
    }

    /// Writes the sums and the index of the packs that are stored.
    fn write_index(&mut self, snapshot: Option<SnapshotUsage>) -> Result<(), Error> {
        let packs = std::mem::take(&mut self.finished);
        self.chunks_finished = 0;
        if packs.is_empty() && snapshot.is_none() {
            return Ok(());
        }
        self.announce()?;
        let id = ObjectId::random();
        debug!(index = %id, packs = packs.len(), "writing an index");
        if !packs.is_empty() {
            // Another run may have removed packs that are in no index yet.
            self.session.still_alone()?;
            let sums: Vec<_> = packs.iter().filter_map(|pack| Some((pack.id, pack.digest?))).collect();
            // With the same id, so that a prune need not read them.
            self.session.writer().put_sums(id, &sums)?;
        }
        let index = Index {
            generation: self.session.generation(),
            packs,
            snapshots: snapshot.into_iter().collect(),
            session_keys: self.session.writer().session_keys(),
            ..Index::default()
        };
        if !index.snapshots.is_empty() {
            // The next step is to look for other runs. This may be while the index is stored, since a run that begins later is
            // found after the snapshot is written.
            self.session.begin_to_look();
        }
        self.session.writer().put_index(id, &index)?;
        Ok(self.catalog.add_index(id, &index)?)
    }

    /// The blocks of a snapshot for the index, as the difference to the snapshot before.
    fn snapshot_usage(&self, NewSnapshot { row, used, base }: &NewSnapshot) -> Result<SnapshotUsage, Error> {
        let none = RoaringTreemap::new();
        let before = base.as_ref().map_or(&none, |(_, blocks)| blocks);
        Ok(SnapshotUsage {
            snapshot: row.name.clone(),
            source: row.source.clone(),
            files: row.files,
            bytes: row.bytes,
            stored_bytes: row.stored_bytes,
            base: base.as_ref().map(|(name, _)| name.clone()),
            added: self.catalog.block_runs(&(used - before))?,
            removed: self.catalog.block_runs(&(before - used))?,
            labels: row.labels.clone(),
        })
    }
}

fn not_withdrawn(snapshot: &SnapshotName, reason: Error, error: Error) -> Error {
    Error::NotWithdrawn { object: snapshot.object(), reason: reason.into(), error: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::forgotten::Forgotten;
    use crate::format::name;
    use crate::session::fixture::Site;
    use crate::storage::Storage;

    #[test]
    fn a_commit_is_due_after_the_interval_or_many_chunks() {
        Site::new().with_session(|session, catalog| {
            let mut publisher = Publisher::new(session, catalog, Duration::MAX);
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
    fn blocks_are_committed_only_after_their_pack_is_stored() {
        let site = Site::new();
        site.with_session(|session, catalog| {
            let mut publisher = Publisher::new(session, catalog, Duration::MAX);
            publisher.announce().unwrap();
            let mut pack = session.packs().begin().unwrap();
            for number in 0..2 {
                let placed = pack.append(&[number; 100]).unwrap();
                assert_eq!((placed.ordinal, placed.at.offset), (number.into(), u64::from(number) * 100));
                let chunks = vec![(Digest::of(&[number]), 1)];
                publisher.add_block(BlockId(u64::from(number) + 1), PackKind::Data, placed, chunks).unwrap();
            }
            assert!(publisher.has_pending_packs());
            assert!(matches!(publisher.commit(), Err(Error::Internal(_))));
            assert_eq!([name::PACKS, name::INDEX, name::SUMS].map(|folder| site.count(folder)), [0; 3]);
            let stored = session.packs().store(pack.finish()).unwrap();
            assert_eq!(stored.length, 200);
            publisher.finish_pack(stored).unwrap();
            publisher.commit().unwrap();
            assert_eq!([name::PACKS, name::INDEX, name::SUMS].map(|folder| site.count(folder)), [1; 3]);
        });
    }

    #[test]
    fn of_a_run_that_ends_early_only_stored_packs_are_committed() {
        let site = Site::new();
        site.with_session(|session, catalog| {
            let mut publisher = Publisher::new(session, catalog, Duration::MAX);
            publisher.announce().unwrap();
            let packs: Vec<_> = (1..=2)
                .map(|number| {
                    let mut pack = session.packs().begin().unwrap();
                    let placed = pack.append(&[number; 100]).unwrap();
                    let (block, digest) = (BlockId(number.into()), Digest::of(&[number]));
                    publisher.add_block(block, PackKind::Data, placed, vec![(digest, 1)]).unwrap();
                    let stored = crate::catalog::Stored { digest, block, start: 0, length: 1 };
                    publisher.catalog().add_chunks(std::iter::once(stored)).unwrap();
                    pack.finish()
                })
                .collect();
            let [first, second] = <[_; 2]>::try_from(packs).ok().unwrap();
            publisher.finish_pack(session.packs().store(first).unwrap()).unwrap();
            drop(second);
            publisher.drop_pending_packs().unwrap();
            publisher.commit().unwrap();
        });
        site.with_session(|_, catalog| {
            let known = [1, 2].map(|number| catalog.chunk(&Digest::of(&[number])).unwrap().is_some());
            assert_eq!(known, [true, false]);
            assert!(catalog.location(BlockId(1)).is_ok() && catalog.location(BlockId(2)).is_err());
            catalog.check_blocks().unwrap();
        });
        assert_eq!([name::PACKS, name::INDEX, name::SUMS].map(|folder| site.count(folder)), [1; 3]);
    }

    #[test]
    fn a_pack_that_is_dropped_is_not_stored() {
        let site = Site::new();
        site.with_session(|session, _| {
            let mut pack = session.packs().begin().unwrap();
            pack.append(&[1; 100]).unwrap();
            drop(pack.finish());
        });
        assert_eq!(site.count(name::PACKS), 0);
    }

    #[test]
    fn a_pack_is_there_unless_its_object_is_gone_or_a_tombstone_names_it() {
        let (site, memory) = Site::in_memory();
        site.with_session(|session, catalog| {
            let mut publisher = Publisher::new(session, catalog, Duration::MAX);
            publisher.announce().unwrap();
            memory.set_late(true);
            let mut pack = session.packs().begin().unwrap();
            let placed = pack.append(&[1; 100]).unwrap();
            let id = placed.at.pack;
            publisher.add_block(BlockId(1), PackKind::Data, placed, vec![(Digest::of(&[1]), 1)]).unwrap();
            publisher.finish_pack(session.packs().store(pack.finish()).unwrap()).unwrap();
            publisher.commit().unwrap();

            let (repository, access) = (session.repository(), session.access());
            let inventory = Inventory { repository, access, monitor: &Silent, stop: &AtomicBool::new(false) };
            let used = RoaringTreemap::from_iter([1]);
            let is_there = |publisher: &Publisher<'_>| inventory.has_all_packs(publisher.catalog(), &used).unwrap();
            assert!(is_there(&publisher), "although no listing shows it");
            memory.set_late(false);
            assert!(is_there(&publisher));
            let tombstone = Forgotten { generation: session.generation(), packs: vec![id], ..Forgotten::default() };
            session.writer().put_forgotten(ObjectId::random(), &tombstone).unwrap();
            assert!(!is_there(&publisher));
            for object in memory.names().iter().filter(|object| object.starts_with(name::FORGOTTEN)) {
                memory.remove(object).unwrap();
            }
            assert!(is_there(&publisher));
            memory.remove(&name::pack(id)).unwrap();
            assert!(!is_there(&publisher));
        });
    }
}
