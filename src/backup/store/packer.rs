//! Packs of sealed blocks, on their way into the repository.

use std::sync::atomic::AtomicBool;

use super::seal::{PlainBlock, SealResult, SealedBlock, Sealing};
use crate::backup::error::Error;
use crate::catalog::{Catalog, SourceRow};
use crate::format::Digest;
use crate::format::pack::PackKind;
use crate::format::snapshot::Snapshot;
use crate::monitor::Monitor;
use crate::session::{NewSnapshot, Publisher, StoredPack};

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

/// Sends blocks to the sealers, and tells the publisher where they end up.
pub(in crate::backup) struct Packer<'a> {
    publisher: Publisher<'a>,
    sealing: Sealing<'a>,
    monitor: &'a dyn Monitor,
    counts: StoredCounts,
}

impl<'a> Packer<'a> {
    pub(in crate::backup) fn new(publisher: Publisher<'a>, sealing: Sealing<'a>, monitor: &'a dyn Monitor) -> Self {
        Packer { publisher, sealing, monitor, counts: StoredCounts::default() }
    }

    pub(in crate::backup) fn catalog(&self) -> &Catalog {
        self.publisher.catalog()
    }

    pub(in crate::backup) fn counts(&self) -> StoredCounts {
        self.counts
    }

    /// Announces the run, before it stores anything or removes rows for good.
    pub(in crate::backup) fn announce(&mut self) -> Result<(), Error> {
        Ok(self.publisher.announce()?)
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
            // An upload that is given up fails.
            SealResult::Failed(error) => Err(if self.sealing.is_cut_off() { Error::Interrupted } else { error }),
            SealResult::Block(block) => Ok(Some(block)),
            SealResult::Pack(pack) => self.finish_pack(pack).map(|()| None),
        }
    }

    /// Enters a sealed block, and the digests and lengths of its chunks, into the catalog.
    pub(super) fn add_block(&mut self, sealed: &SealedBlock, chunks: Vec<(Digest, u32)>) -> Result<(), Error> {
        let SealedBlock { block, kind, placed } = *sealed;
        self.counts.added_bytes += chunks.iter().map(|(_, length)| u64::from(*length)).sum::<u64>();
        self.monitor.progress().stored(placed.at.length.into());
        Ok(self.publisher.add_block(block, kind, placed, chunks)?)
    }

    fn finish_pack(&mut self, pack: StoredPack) -> Result<(), Error> {
        match self.publisher.finish_pack(pack)? {
            PackKind::Data => {
                self.counts.data_packs += 1;
                self.counts.data_bytes += pack.length;
            }
            PackKind::Tree => {
                self.counts.tree_packs += 1;
                self.counts.tree_bytes += pack.length;
            }
        }
        Ok(())
    }

    /// Whether enough time has passed, or enough was stored, for the next commit.
    pub(super) fn is_commit_due(&self) -> bool {
        self.publisher.is_commit_due()
    }

    /// Ends a run without a snapshot: commits the stored packs. After an interrupt, the others are dropped within seconds. The run
    /// then counts as unfinished, so the next one removes its temporary files. No block may be with the sealers.
    pub(super) fn keep_stored(&mut self) -> Result<(), Error> {
        match self.store_packs() {
            Ok(()) => self.catalog().set_finished()?,
            Err(Error::Interrupted) => self.publisher.drop_pending_packs()?,
            Err(error) => return Err(error),
        }
        Ok(self.publisher.commit()?)
    }

    /// Makes all sealed blocks durable, and the catalog's rows about them. No block may be with the sealers.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        self.store_packs()?;
        Ok(self.publisher.commit()?)
    }

    /// Makes lost data that was stored again readable in older snapshots: see [`Publisher::heal`].
    pub(in crate::backup) fn heal(&mut self, stop: &AtomicBool) -> Result<u64, Error> {
        Ok(self.publisher.heal(self.monitor, stop)?)
    }

    /// Commits together with the blocks of a snapshot that is about to be written, and enters it into the catalog.
    pub(super) fn commit_snapshot(&mut self, snapshot: &NewSnapshot, source: SourceRow) -> Result<(), Error> {
        self.store_packs()?;
        Ok(self.publisher.commit_snapshot(snapshot, source, self.counts.pack_bytes())?)
    }

    /// Writes the snapshot itself, last of all.
    pub(in crate::backup) fn put_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        Ok(self.publisher.put_snapshot(snapshot)?)
    }

    /// Notes that a snapshot exists which was put, and that the run is done.
    pub(in crate::backup) fn finish_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        Ok(self.publisher.finish_snapshot(snapshot)?)
    }

    /// Stores the packs that are being filled, however small they are, and waits for them.
    fn store_packs(&mut self) -> Result<(), Error> {
        self.sealing.flush()?;
        while self.publisher.has_pending_packs() {
            if self.wait()?.is_some() {
                return Err(Error::Internal("a block was in flight during a commit"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::fixture::Site;
    use crate::catalog::BlockId;
    use crate::format::name;

    fn block(number: u64) -> PlainBlock {
        PlainBlock { block: BlockId(number), kind: PackKind::Data, bytes: vec![number as u8; 5000], pad: false }
    }

    /// Seals a block and enters it into the catalog.
    fn store(packer: &mut Packer<'_>, number: u64) {
        let block = block(number);
        let chunks = vec![(Digest::of(&block.bytes), block.bytes.len() as u32)];
        packer.seal(block).unwrap();
        let sealed = packer.wait().unwrap().expect("a sealed block");
        packer.add_block(&sealed, chunks).unwrap();
    }

    #[test]
    fn a_run_that_stores_nothing_writes_nothing() {
        let site = Site::new();
        site.with_packer(|mut packer| packer.commit().unwrap());
        assert_eq!([name::PACKS, name::INDEX, name::SUMS, name::GENERATION].map(|folder| site.count(folder)), [0; 4]);
    }

    #[test]
    fn a_commit_stores_packs_and_then_lists_them() {
        let site = Site::new();
        let counts = site.with_packer(|mut packer| {
            (1..=3).for_each(|number| store(&mut packer, number));
            // The run is announced before its first block is sealed.
            assert_eq!([name::GENERATION, name::PACKS].map(|folder| site.count(folder)), [1, 0]);
            packer.commit().unwrap();
            assert!(!packer.publisher.has_pending_packs());
            packer.counts()
        });
        assert_eq!((counts.added_bytes, counts.data_packs, counts.tree_packs), (15_000, 1, 0));
        assert_eq!([name::PACKS, name::INDEX, name::SUMS].map(|folder| site.count(folder)), [1, 1, 1]);
        site.with_packer(|packer| {
            let places = [1, 2, 3].map(|number| packer.catalog().location(BlockId(number)).unwrap());
            assert!(places.windows(2).all(|two| two[0].pack == two[1].pack && two[0].offset < two[1].offset));
        });
    }

    #[test]
    fn without_a_commit_the_next_run_knows_of_no_block() {
        let site = Site::new();
        site.with_packer(|mut packer| store(&mut packer, 1));
        site.with_packer(|packer| assert!(packer.catalog().location(BlockId(1)).is_err()));
        assert_eq!(site.count(name::INDEX), 0);
    }
}
