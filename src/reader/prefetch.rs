//! Blocks that will be wanted soon are decoded by threads of their own.
//!
//! Nothing is lost if that does not happen: who wants a block that nobody began with decodes it himself, and who wants
//! one that is being decoded waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::blocks::Core;
use crate::format::{BlockLocation, ChunkRef};

/// Blocks that are waited for at most; of more nobody is told.
const MOST: usize = 16;
/// Threads that decode ahead, at most.
const THREADS: usize = 4;

/// What is to be decoded.
pub(super) struct PrefetchRequest {
    /// A block.
    pub(super) block: BlockLocation,
    /// A chunk in it that will be wanted first.
    pub(super) chunk: Option<ChunkRef>,
    /// Until when it is wanted.
    pub(super) until: Until,
}

/// Until when something is wanted.
pub(super) enum Until {
    /// Until who reads a file has come to this place in it.
    Passed(Arc<AtomicU64>, u64),
    /// Nobody knows.
    Open,
}

impl Until {
    fn is_over(&self) -> bool {
        match self {
            Until::Passed(at, end) => at.load(Ordering::Relaxed) >= *end,
            Until::Open => false,
        }
    }
}

/// Threads that decode ahead, as soon as there is something for them to do.
#[derive(Default)]
pub(super) struct Prefetch {
    queue: OnceLock<Sender<PrefetchRequest>>,
}

impl Prefetch {
    /// Has a block decoded, and a chunk in it verified, if there is somebody who has time for it. What fails now fails
    /// again, with its reason, for who wants it.
    pub(super) fn send(&self, core: &Arc<Core>, wanted: PrefetchRequest) {
        if !core.has_block(&wanted.block) {
            let queue = self.queue.get_or_init(|| start(core));
            let _ = queue.try_send(wanted);
        }
    }
}

/// The number of prefetch threads.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS)
}

/// Starts the threads. They end when nobody can send anything any more.
fn start(core: &Arc<Core>) -> Sender<PrefetchRequest> {
    let (sender, wanted) = bounded::<PrefetchRequest>(MOST);
    for _ in 0..threads() {
        let (core, wanted) = (Arc::clone(core), wanted.clone());
        // Without them everything is only slower.
        let _ = thread::Builder::new().name("ahead".into()).spawn(move || work(&core, &wanted));
    }
    sender
}

fn work(core: &Core, wanted: &Receiver<PrefetchRequest>) {
    for PrefetchRequest { block, chunk, until } in wanted {
        match chunk {
            // It was decoded by who wanted it, and may be gone from the cache already.
            _ if until.is_over() => {}
            Some(chunk) => drop(core.verify(&block, &chunk)),
            None => drop(core.block(&block)),
        }
    }
}
