//! Sealing blocks and filling packs.
//!
//! ```text
//! engine ─► sealers (compress, pad, encrypt, append to a pack) ─► storer (sync, link) ─► engine
//! ```
//!
//! All sealers append to the same open pack of each kind, so that packs are full and their blocks lie nearly in the
//! order of the walk. While the storer waits for the disk, the next pack is filled. All channels are bounded but the
//! one back to the engine, which never holds more than the blocks that are on their way.

use std::sync::{Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};

use super::Error;
use crate::catalog::BlockId;
use crate::crypt::Sealer;
use crate::format::block::Encoder;
use crate::format::id::RunId;
use crate::format::index::PackKind;
use crate::format::{BLOCK_SIZE, BlockLocation, Digest, PackId, SEALED_SIZE, name};
use crate::storage::{Spool, Target};

/// A pack is stored when it has this many bytes.
const PACK_SIZE: u64 = 16 << 20;

/// A block to be sealed.
pub(super) struct Plain {
    pub(super) block: BlockId,
    pub(super) kind: PackKind,
    pub(super) bytes: Vec<u8>,
    /// Hide the exact length.
    pub(super) pad: bool,
}

/// A pack that is full.
pub(super) struct Full {
    pack: PackId,
    spool: Spool,
    digest: Digest,
}

/// What comes back to the engine.
pub(super) enum Done {
    /// A block has its place.
    Block { block: BlockId, kind: PackKind, ordinal: u32, at: BlockLocation },
    /// A pack is stored, durably.
    Pack { pack: PackId, length: u64, digest: Digest },
    /// Something failed, and the backup can't go on.
    Failed(Error),
}

/// Seals blocks until there are no more; `sealer` is none in an unencrypted repository. Buffers of blocks go back
/// through `buffers`.
pub(super) fn seal(
    plain: &Receiver<Plain>,
    sealer: Option<&Sealer>,
    level: i32,
    packs: &OpenPacks<'_>,
    buffers: &Sender<Vec<u8>>,
) {
    let run = || -> Result<(), Error> {
        let mut encoder = Encoder::new(level)?;
        let mut frame = Vec::with_capacity(SEALED_SIZE);
        let mut sealed = Vec::with_capacity(SEALED_SIZE);
        for Plain { block, kind, mut bytes, pad } in plain {
            encoder.encode(&bytes, pad, &mut frame)?;
            bytes.clear();
            if bytes.capacity() >= BLOCK_SIZE {
                // If nobody wants it, there are enough.
                let _ = buffers.try_send(bytes);
            }
            let stored = match sealer {
                Some(sealer) => {
                    sealed.clear();
                    sealer.seal(&frame, &mut sealed)?;
                    &sealed
                }
                None => &frame,
            };
            if !packs.append(block, kind, stored)? {
                break;
            }
        }
        Ok(())
    };
    report(run(), &packs.done);
}

/// The packs that are being filled, one of each kind.
pub(super) struct OpenPacks<'t> {
    target: &'t Target,
    run: RunId,
    data: Mutex<Option<Open>>,
    tree: Mutex<Option<Open>>,
    full: Sender<Full>,
    done: Sender<Done>,
}

impl<'t> OpenPacks<'t> {
    /// None are open yet. Packs of `run` that are full go to `full`; `done` hears of blocks.
    pub(super) fn new(target: &'t Target, run: RunId, full: Sender<Full>, done: Sender<Done>) -> Self {
        OpenPacks { target, run, data: Mutex::default(), tree: Mutex::default(), full, done }
    }

    fn slot(&self, kind: PackKind) -> &Mutex<Option<Open>> {
        match kind {
            PackKind::Data => &self.data,
            PackKind::Tree => &self.tree,
        }
    }

    /// Appends a sealed block. False if nobody listens any more.
    fn append(&self, block: BlockId, kind: PackKind, bytes: &[u8]) -> Result<bool, Error> {
        // Held to the end: the engine must hear of a block before it hears of its pack.
        let mut slot = self.slot(kind).lock().unwrap_or_else(PoisonError::into_inner);
        let open = match &mut *slot {
            Some(open) => open,
            none => none.insert(Open::new(self.target, self.run)?),
        };
        let (ordinal, at) = open.append(bytes)?;
        if self.done.send(Done::Block { block, kind, ordinal, at }).is_err() {
            return Ok(false);
        }
        Ok(open.spool.length() < PACK_SIZE || self.hand_over(slot.take()))
    }

    /// Has what is there stored, however short the packs are. False if the storer is gone.
    pub(super) fn flush(&self) -> bool {
        [PackKind::Data, PackKind::Tree].into_iter().all(|kind| {
            let open = self.slot(kind).lock().unwrap_or_else(PoisonError::into_inner).take();
            self.hand_over(open)
        })
    }

    fn hand_over(&self, open: Option<Open>) -> bool {
        match open {
            Some(Open { pack, spool, hasher, .. }) => {
                self.full.send(Full { pack, spool, digest: hasher.finalize().into() }).is_ok()
            }
            None => true,
        }
    }
}

/// Stores full packs until there are no more.
pub(super) fn store(target: &Target, full: &Receiver<Full>, done: &Sender<Done>) {
    let run = || -> Result<(), Error> {
        for Full { pack, spool, digest } in full {
            let length = spool.length();
            target.store(&name::pack(pack), spool)?;
            if done.send(Done::Pack { pack, length, digest }).is_err() {
                break;
            }
        }
        Ok(())
    };
    report(run(), done);
}

fn report(result: Result<(), Error>, done: &Sender<Done>) {
    if let Err(error) = result {
        // If the engine is gone, it has an error of its own to tell.
        let _ = done.send(Done::Failed(error));
    }
}

/// A pack that is being filled.
struct Open {
    pack: PackId,
    spool: Spool,
    hasher: blake3::Hasher,
    blocks: u32,
}

impl Open {
    fn new(target: &Target, run: RunId) -> Result<Self, Error> {
        let pack = PackId::of_run(run);
        Ok(Open { pack, spool: target.spool(&name::pack(pack))?, hasher: blake3::Hasher::new(), blocks: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(u32, BlockLocation), Error> {
        let offset = self.spool.length();
        self.spool.append(bytes)?;
        self.hasher.update(bytes);
        let ordinal = self.blocks;
        self.blocks += 1;
        Ok((ordinal, BlockLocation { pack: self.pack, offset, length: bytes.len() as u32 }))
    }
}
