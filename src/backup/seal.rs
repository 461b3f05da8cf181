//! Sealing blocks and filling packs.
//!
//! ```text
//! engine ─► sealers (compress, pad, encrypt) ─► packer (append, digest) ─► storer (sync, link) ─► engine
//! ```
//!
//! Sealers are as many as the machine has cores. One packer keeps one open pack of each kind, so that packs
//! are full and their blocks lie nearly in the order of the walk. While the storer waits for the disk, the
//! next pack is filled. All channels are bounded but the one back to the engine, which never holds more than
//! the blocks that are on their way.

use crossbeam_channel::{Receiver, Sender};

use super::Error;
use crate::catalog::BlockId;
use crate::crypt::Sealer;
use crate::format::block::Encoder;
use crate::format::index::PackKind;
use crate::format::{BlockLocation, Digest, PackId, name};
use crate::target::{Spool, Target};

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

/// What goes to the packer.
pub(super) enum Packing {
    /// A sealed block.
    Block { block: BlockId, kind: PackKind, bytes: Vec<u8> },
    /// Store what is there, however short the packs are.
    Flush,
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

/// Seals blocks until there are no more; `sealer` is none in an unencrypted repository.
pub(super) fn seal(
    plain: &Receiver<Plain>,
    sealer: Option<&Sealer>,
    level: i32,
    packing: &Sender<Packing>,
    done: &Sender<Done>,
) {
    let run = || -> Result<(), Error> {
        let mut encoder = Encoder::new(level)?;
        let mut frame = Vec::new();
        for Plain { block, kind, bytes, pad } in plain {
            encoder.encode(&bytes, pad, &mut frame)?;
            let bytes = match sealer {
                Some(sealer) => {
                    let mut sealed = Vec::with_capacity(frame.len() + 1024);
                    sealer.seal(&frame, &mut sealed)?;
                    sealed
                }
                None => frame.clone(),
            };
            if packing.send(Packing::Block { block, kind, bytes }).is_err() {
                break;
            }
        }
        Ok(())
    };
    report(run(), done);
}

/// Appends sealed blocks to packs until there are no more.
pub(super) fn pack(target: &Target, packing: &Receiver<Packing>, full: &Sender<Full>, done: &Sender<Done>) {
    let run = || -> Result<(), Error> {
        let (mut data, mut tree) = (None, None);
        for step in packing {
            match step {
                Packing::Block { block, kind, bytes } => {
                    let slot = match kind {
                        PackKind::Data => &mut data,
                        PackKind::Tree => &mut tree,
                    };
                    let open = match slot {
                        Some(open) => open,
                        None => slot.insert(Open::new(target)?),
                    };
                    let (ordinal, at) = open.append(&bytes)?;
                    if done.send(Done::Block { block, kind, ordinal, at }).is_err() {
                        break;
                    }
                    if open.spool.length() >= PACK_SIZE && !hand_over(slot.take(), full) {
                        break;
                    }
                }
                Packing::Flush => {
                    if !(hand_over(data.take(), full) && hand_over(tree.take(), full)) {
                        break;
                    }
                }
            }
        }
        Ok(())
    };
    report(run(), done);
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

fn hand_over(open: Option<Open>, full: &Sender<Full>) -> bool {
    match open {
        Some(Open { pack, spool, hasher, .. }) => {
            full.send(Full { pack, spool, digest: hasher.finalize().into() }).is_ok()
        }
        None => true,
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
    fn new(target: &Target) -> Result<Self, Error> {
        let pack = PackId::random();
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
