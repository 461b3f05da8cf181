//! Packs that a run writes.

use super::open::Session;
use crate::format::id::RunId;
use crate::format::{BlockLocation, Check, Digest, PackId, name};
use crate::storage::{CutOff, Error, Spool, Target};

/// Begins and stores packs of a run. Their names contain the run's mark, so that orphans can be told from packs of other runs.
#[derive(Debug, Clone, Copy)]
pub struct Packs<'s> {
    target: &'s Target,
    run: RunId,
}

impl<'r> Session<'r> {
    /// The packs of this run.
    pub fn packs(&self) -> Packs<'r> {
        Packs { target: self.repository().target(), run: self.run() }
    }
}

impl Packs<'_> {
    /// Begins a pack.
    pub fn begin(&self) -> Result<PackWriter, Error> {
        let pack = PackId::of_run(self.run);
        let spool = self.target.spool(&name::pack(pack))?;
        Ok(PackWriter { pack, spool, hasher: blake3::Hasher::new(), blocks: 0 })
    }

    /// How many packs to store at the same time; more gain nothing.
    pub fn lanes(&self) -> usize {
        self.target.capabilities().lanes.max(1)
    }

    /// Stores a pack, atomically and durably.
    pub fn store(&self, FullPack { pack, spool, digest }: FullPack) -> Result<StoredPack, Error> {
        let length = spool.length();
        self.target.store(&spool)?;
        Ok(StoredPack { pack, length, digest })
    }
}

/// A sealed block in a pack.
#[derive(Debug, Clone, Copy)]
pub struct PlacedBlock {
    /// The number of the block in its pack.
    pub ordinal: u32,
    /// The place of the block.
    pub at: BlockLocation,
    /// The check of its bytes.
    pub check: Check,
}

/// A pack that is being filled. It is discarded on drop.
pub struct PackWriter {
    pack: PackId,
    spool: Spool,
    hasher: blake3::Hasher,
    blocks: u32,
}

impl PackWriter {
    /// The same, given up at this time if it is being stored then.
    #[must_use]
    pub fn until(mut self, cut_off: &CutOff) -> Self {
        self.spool.set_cut_off(cut_off);
        self
    }

    /// Appends a sealed block.
    pub fn append(&mut self, sealed: &[u8]) -> Result<PlacedBlock, Error> {
        let offset = self.spool.length();
        self.spool.append(sealed)?;
        self.hasher.update(sealed);
        let ordinal = self.blocks;
        self.blocks += 1;
        let at = BlockLocation { pack: self.pack, offset, length: sealed.len() as u32 };
        Ok(PlacedBlock { ordinal, at, check: Check::of(sealed) })
    }

    /// The bytes of all blocks.
    pub fn length(&self) -> u64 {
        self.spool.length()
    }

    /// Ends the pack. It is not stored yet.
    pub fn finish(self) -> FullPack {
        FullPack { pack: self.pack, spool: self.spool, digest: self.hasher.finalize().into() }
    }
}

/// A pack that is ready to be stored. It is discarded on drop.
pub struct FullPack {
    pack: PackId,
    spool: Spool,
    digest: Digest,
}

/// A pack that is stored and in no index yet.
#[derive(Debug, Clone, Copy)]
pub struct StoredPack {
    /// The name of the pack.
    pub pack: PackId,
    /// Its size in bytes.
    pub length: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}
