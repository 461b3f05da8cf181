//! Sealing blocks and filling packs.
//!
//! ```text
//! packer ─► sealers (compress, pad, encrypt, append to a pack) ─► storers (sync, link) ─► packer
//! ```
//!
//! All sealers append to the same open pack of each kind, so packs are full and their blocks lie nearly in the order of the
//! walk. While a storer waits for the target, the next pack is filled. There are as many storers as the target has lanes, so
//! packs can be finished in another order than that in which they were begun. All channels are bounded except the one back
//! to the packer, which never holds more than the blocks in flight. Only the sealers and the storers hold its senders.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded, unbounded};

use crate::backup::error::Error;
use crate::backup::limits::CHANNEL;
use crate::catalog::BlockId;
use crate::crypt::Sealer;
use crate::format::block::Encoder;
use crate::format::pack::PackKind;
use crate::format::{BLOCK_SIZE, SEALED_SIZE};
use crate::session::{FullPack, PackWriter, Packs, PlacedBlock, StoredPack};
use crate::storage::CutOff;
use crate::threads::{TooFew, start};

/// Bytes at which a pack is stored.
const PACK_SIZE: u64 = 16 << 20;

/// How long uploads may go on after an interrupt.
const LAST_UPLOADS: Duration = Duration::from_secs(1);
/// Time between two looks for an interrupt, in a thread that waits for others.
const LOOK: Duration = Duration::from_millis(100);

/// A block to be sealed.
pub(super) struct PlainBlock {
    pub(super) block: BlockId,
    pub(super) kind: PackKind,
    pub(super) bytes: Vec<u8>,
    /// Hide the exact length.
    pub(super) pad: bool,
}

/// A sealed block with its place in a pack.
#[derive(Debug, Clone, Copy)]
pub(super) struct SealedBlock {
    pub(super) block: BlockId,
    pub(super) kind: PackKind,
    pub(super) placed: PlacedBlock,
}

/// A message from the sealers or the storers.
pub(super) enum SealResult {
    Block(SealedBlock),
    Pack(StoredPack),
    /// The backup can't go on.
    Failed(Error),
}

/// The sealers and the storers, as the packer sees them. They end when this is dropped.
pub(in crate::backup) struct Sealing<'t> {
    plain: Sender<PlainBlock>,
    /// Empty buffers of sealed blocks.
    buffers: Receiver<Vec<u8>>,
    packs: Arc<OpenPacks<'t>>,
    results: Receiver<SealResult>,
}

/// Starts more sealers.
pub(in crate::backup) struct MoreSealers<'t> {
    plain: Receiver<PlainBlock>,
    buffers: Sender<Vec<u8>>,
    packs: Arc<OpenPacks<'t>>,
    results: Sender<SealResult>,
    /// `None` in an unencrypted repository.
    sealer: Option<Sealer>,
    level: i32,
}

impl<'t> Sealing<'t> {
    /// Starts one sealer and the storers of `packs`. `sealer` is `None` in an unencrypted repository; `level` is
    /// that of zstd. Soon after `stop` is set, uploads are given up, and waits end with [`Error::Interrupted`].
    pub(in crate::backup) fn start<'scope>(
        threads: &'scope Scope<'scope, '_>,
        packs: Packs<'t>,
        sealer: Option<Sealer>,
        level: i32,
        stop: &'t AtomicBool,
    ) -> Result<(Self, MoreSealers<'t>), TooFew>
    where
        't: 'scope,
    {
        let (plain, plain_out) = bounded(CHANNEL);
        let (buffers_in, buffers) = bounded(CHANNEL);
        let (full, full_out) = bounded::<FullPack>(1);
        let (results_in, results) = unbounded();
        let open = Arc::new(OpenPacks::new(packs, full, stop));
        let more = MoreSealers {
            plain: plain_out,
            buffers: buffers_in,
            packs: open.clone(),
            results: results_in.clone(),
            sealer,
            level,
        };
        more.try_start(threads, 1)?;
        // With fewer of them the backup is only slower.
        start(threads, "storing", packs.lanes(), || {
            let (full, results, cut_off) = (full_out.clone(), results_in.clone(), open.cut_off.clone());
            move || report("storing packs", &results, || store_packs(packs, &full, &cut_off, &results))
        })?;
        Ok((Sealing { plain, buffers, packs: open, results }, more))
    }

    /// An empty buffer with room for a block.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.buffers.try_recv().unwrap_or_else(|_| Vec::with_capacity(BLOCK_SIZE))
    }

    /// Sends a block to the sealers. Waits while they are busy.
    pub(super) fn send(&self, mut block: PlainBlock) -> Result<(), Error> {
        loop {
            block = match self.plain.send_timeout(block, LOOK) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Timeout(_)) if self.is_cut_off() => return Err(Error::Interrupted),
                Err(SendTimeoutError::Timeout(block)) => block,
                Err(SendTimeoutError::Disconnected(_)) => return Err(self.why_stopped("sealing")),
            }
        }
    }

    /// The next result, if one is available.
    pub(super) fn try_next(&self) -> Option<SealResult> {
        self.results.try_recv().ok()
    }

    /// Waits for the next result.
    pub(super) fn next(&self) -> Result<SealResult, Error> {
        loop {
            match self.results.recv_timeout(LOOK) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) if self.is_cut_off() => return Err(Error::Interrupted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Stopped("sealing")),
            }
        }
    }

    /// Whether the run was interrupted, and its time for uploads is over.
    pub(super) fn is_cut_off(&self) -> bool {
        self.packs.is_cut_off()
    }

    /// Sends the open packs to the storers, however short they are.
    pub(super) fn flush(&self) -> Result<(), Error> {
        match self.packs.flush() {
            true => Ok(()),
            false if self.is_cut_off() => Err(Error::Interrupted),
            false => Err(self.why_stopped("storing packs")),
        }
    }

    /// The error of the stage that stopped. A stage sends its error before it closes its channel.
    fn why_stopped(&self, stage: &'static str) -> Error {
        let failed = |result| match result {
            SealResult::Failed(error) => Some(error),
            _ => None,
        };
        self.results.try_iter().find_map(failed).unwrap_or(Error::Stopped(stage))
    }
}

impl<'t> MoreSealers<'t> {
    /// Starts up to `count` sealers. Without them the backup is only slower.
    pub(in crate::backup) fn start<'scope>(self, threads: &'scope Scope<'scope, '_>, count: usize)
    where
        't: 'scope,
    {
        let _ = self.try_start(threads, count);
    }

    fn try_start<'scope>(&self, threads: &'scope Scope<'scope, '_>, count: usize) -> Result<usize, TooFew>
    where
        't: 'scope,
    {
        let level = self.level;
        start(threads, "sealing", count, || {
            let (plain, buffers) = (self.plain.clone(), self.buffers.clone());
            let (packs, results, sealer) = (self.packs.clone(), self.results.clone(), self.sealer.clone());
            move || {
                report("sealing", &results, || seal_blocks(&plain, sealer.as_ref(), level, &packs, &buffers, &results))
            }
        })
    }
}

/// Seals blocks until the channel is closed. Buffers of blocks go back through `buffers`.
fn seal_blocks(
    plain: &Receiver<PlainBlock>,
    sealer: Option<&Sealer>,
    level: i32,
    packs: &OpenPacks<'_>,
    buffers: &Sender<Vec<u8>>,
    results: &Sender<SealResult>,
) -> Result<(), Error> {
    let mut encoder = Encoder::new(level)?;
    let mut frame = Vec::with_capacity(SEALED_SIZE);
    let mut sealed = Vec::with_capacity(SEALED_SIZE);
    for PlainBlock { block, kind, mut bytes, pad } in plain {
        encoder.encode(&bytes, pad, &mut frame)?;
        bytes.clear();
        if bytes.capacity() >= BLOCK_SIZE {
            // If the channel is full, there are enough buffers.
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
        if !packs.append(block, kind, stored, results)? {
            break;
        }
    }
    Ok(())
}

/// Stores full packs until the channel is closed, or the run is cut off.
fn store_packs(
    packs: Packs<'_>,
    full: &Receiver<FullPack>,
    cut_off: &CutOff,
    results: &Sender<SealResult>,
) -> Result<(), Error> {
    for pack in full.iter().take_while(|_| !cut_off.has_passed()) {
        if results.send(SealResult::Pack(packs.store(pack)?)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Does the work of a stage, and reports its error or panic: the packer may be waiting for one of the stage's blocks.
fn report(stage: &'static str, results: &Sender<SealResult>, work: impl FnOnce() -> Result<(), Error>) {
    let mut end = End { results, result: Err(Error::Stopped(stage)) };
    end.result = work();
}

/// The end of a stage. On drop, including unwinding, sends the error if there is one.
struct End<'r> {
    results: &'r Sender<SealResult>,
    result: Result<(), Error>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if let Err(error) = std::mem::replace(&mut self.result, Ok(())) {
            // If the packer is gone, the run has failed with an error of its own.
            let _ = self.results.send(SealResult::Failed(error));
        }
    }
}

/// The packs that are being filled, one of each kind.
struct OpenPacks<'t> {
    packs: Packs<'t>,
    data: Mutex<Option<PackWriter>>,
    tree: Mutex<Option<PackWriter>>,
    full: Sender<FullPack>,
    /// The run is to stop.
    stop: &'t AtomicBool,
    cut_off: CutOff,
}

impl<'t> OpenPacks<'t> {
    fn new(packs: Packs<'t>, full: Sender<FullPack>, stop: &'t AtomicBool) -> Self {
        let [data, tree] = [Mutex::default(), Mutex::default()];
        OpenPacks { packs, data, tree, full, stop, cut_off: CutOff::default() }
    }

    /// Whether the run was interrupted, and its time for uploads is over. That begins when a waiting thread first notices the
    /// interrupt.
    fn is_cut_off(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) {
            self.cut_off.set(LAST_UPLOADS);
        }
        self.cut_off.has_passed()
    }

    fn lock(&self, kind: PackKind) -> MutexGuard<'_, Option<PackWriter>> {
        let pack = match kind {
            PackKind::Data => &self.data,
            PackKind::Tree => &self.tree,
        };
        pack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a sealed block, and sends its place. Returns false if the packer or the storers are gone.
    fn append(
        &self,
        block: BlockId,
        kind: PackKind,
        bytes: &[u8],
        results: &Sender<SealResult>,
    ) -> Result<bool, Error> {
        // Locked to the end: the packer must learn of a block before it learns of the block's pack.
        let mut slot = self.lock(kind);
        let open = match &mut *slot {
            Some(open) => open,
            none => none.insert(self.packs.begin()?.until(&self.cut_off)),
        };
        let placed = open.append(bytes)?;
        if results.send(SealResult::Block(SealedBlock { block, kind, placed })).is_err() {
            return Ok(false);
        }
        Ok(open.length() < PACK_SIZE || self.hand_over(slot.take()))
    }

    /// Sends both packs to the storers. Returns false if those are gone.
    fn flush(&self) -> bool {
        [PackKind::Data, PackKind::Tree].into_iter().all(|kind| {
            let open = self.lock(kind).take();
            self.hand_over(open)
        })
    }

    /// Sends a pack to the storers. Waits while they are busy. Returns false if they are gone or the run is cut off.
    fn hand_over(&self, open: Option<PackWriter>) -> bool {
        let Some(mut full) = open.map(PackWriter::finish) else { return true };
        loop {
            full = match self.full.send_timeout(full, LOOK) {
                Ok(()) => return true,
                Err(SendTimeoutError::Timeout(full)) if !self.is_cut_off() => full,
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread::scope;

    use super::*;
    use crate::backup::store::fixture::{GO_ON, Site};

    /// A sealer that ends as `work` does, while another one is waiting for blocks. Returns the result for the packer.
    fn result_of(work: impl FnOnce() -> Result<(), Error> + Send) -> Result<SealResult, Error> {
        Site::new().with_session(|session, _| {
            let mut found = Err(Error::Internal("nothing was found"));
            // The scope passes on the panic of a thread.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                scope(|threads| {
                    let (sealing, more) = Sealing::start(threads, session.packs(), None, 1, &GO_ON).unwrap();
                    let results = more.results.clone();
                    drop(more);
                    threads.spawn(move || report("sealing", &results, work));
                    found = sealing.next();
                });
            }));
            found
        })
    }

    #[test]
    fn a_sealer_that_panics_or_fails_ends_the_backup() {
        let panics = result_of(|| panic!("the test wants a sealer to panic"));
        assert!(matches!(panics, Ok(SealResult::Failed(Error::Stopped("sealing")))));
        let fails = result_of(|| Err(Error::NothingThere));
        assert!(matches!(fails, Ok(SealResult::Failed(Error::NothingThere))));
    }
}
