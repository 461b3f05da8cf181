//! Prefetch: threads that decode blocks before a reader needs them.
//!
//! Prefetching is best effort. A reader decodes a block itself if no thread has started on it, and otherwise waits for
//! that thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::blocks::Core;
use crate::format::{BlockLocation, ChunkRef};

/// Minimum size of files that are prefetched from the start, and whose ciphertext leaves the page cache after reading.
pub(super) const LARGE: u64 = 4 << 20;
/// Maximum length of the queue; requests beyond it are dropped.
const MAX_QUEUED: usize = 32;
/// Maximum number of threads that read from this machine.
const MAX_THREADS: usize = 4;
/// Number of threads that read from a server. They mostly wait for it.
const REMOTE_THREADS: usize = 10;

/// A block to decode.
pub(super) struct PrefetchRequest {
    pub(super) block: BlockLocation,
    /// The chunks in it to verify, too.
    pub(super) chunks: Vec<ChunkRef>,
    pub(super) until: Until,
}

/// When a request expires.
pub(super) enum Until {
    /// When the reader of the file, whose position is the first field, has reached this offset.
    Passed(Arc<AtomicU64>, u64),
    /// Never.
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

/// How much to prefetch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    threads: usize,
    /// Blocks of a file with several extents.
    pub(super) file: usize,
    /// Minimum size, in bytes, of files whose blocks are prefetched if all of the file is read.
    pub(super) whole_files_from: u64,
    /// Blocks of small files after one that is read.
    pub(super) next_files: usize,
    /// Blocks of small files that will be read soon.
    pub(super) announced_files: usize,
    /// Blocks with directories below one that is listed.
    pub(super) directories: usize,
}

/// The prefetch threads, started with the first request.
pub(super) struct Prefetch {
    queue: OnceLock<Sender<PrefetchRequest>>,
    pub(super) reach: Reach,
}

impl Reach {
    /// For a repository on this machine: decoding takes the time.
    pub(super) fn local() -> Reach {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Reach {
            threads,
            file: 4,
            whole_files_from: LARGE,
            next_files: 1,
            // Several threads read at the same time anyway.
            announced_files: 0,
            directories: 0,
        }
    }

    /// For a repository on a server: each read takes a round trip.
    pub(super) fn remote() -> Reach {
        Reach {
            threads: REMOTE_THREADS,
            file: 16,
            whole_files_from: 0,
            next_files: 8,
            announced_files: 8,
            directories: 8,
        }
    }
}

impl Prefetch {
    pub(super) fn new(reach: Reach) -> Prefetch {
        Prefetch { queue: OnceLock::new(), reach }
    }

    /// The number of threads.
    pub(super) fn threads(&self) -> usize {
        self.reach.threads
    }

    /// Queues a request unless the block is cached or the queue is full. Errors are dropped: the read that needs the block
    /// reports them.
    pub(super) fn send(&self, core: &Arc<Core>, request: PrefetchRequest) {
        if !core.has_block(&request.block) {
            let queue = self.queue.get_or_init(|| start(core, self.reach.threads));
            let _ = queue.try_send(request);
        }
    }
}

/// Starts the threads. They exit once the sender is dropped.
fn start(core: &Arc<Core>, threads: usize) -> Sender<PrefetchRequest> {
    let (sender, requests) = bounded::<PrefetchRequest>(MAX_QUEUED);
    for _ in 0..threads {
        let (core, requests) = (Arc::clone(core), requests.clone());
        // If no thread can be started, reads are only slower.
        let _ = thread::Builder::new().name("prefetch".into()).spawn(move || decode_queued(&core, &requests));
    }
    sender
}

fn decode_queued(core: &Core, requests: &Receiver<PrefetchRequest>) {
    for PrefetchRequest { block, chunks, until } in requests {
        match chunks.as_slice() {
            // The reader has passed the chunks; their block may already have left the cache.
            _ if until.is_over() => {}
            [] => drop(core.block(&block)),
            chunks => drop(chunks.iter().try_for_each(|chunk| core.verify(&block, chunk))),
        }
    }
}
