//! Prefetch: threads that decode blocks before a reader needs them.
//!
//! Prefetching is best effort. A reader decodes a block itself if no thread has started on it, and otherwise waits for
//! that thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::blocks::Core;
use crate::format::{BlockLocation, ChunkRef, PackId};

/// Minimum size of files that are prefetched from the start, and whose ciphertext leaves the page cache after reading.
pub(super) const LARGE: u64 = 4 << 20;
/// Maximum length of the queue; requests beyond it are dropped.
const MAX_QUEUED: usize = 128;
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

/// Blocks that follow each other in a pack, to be read with one request.
type Neighbours = Vec<PrefetchRequest>;

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
    /// How many bytes to read with one request, so that requests take little of the time.
    pub(super) joined: usize,
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
    queue: OnceLock<Sender<Neighbours>>,
    pub(super) reach: Reach,
}

impl Reach {
    /// For a repository on this machine: decoding takes the time.
    pub(super) fn local() -> Reach {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Reach {
            threads,
            joined: 0,
            file: 4,
            whole_files_from: LARGE,
            next_files: 1,
            // Several threads read at the same time anyway.
            announced_files: 0,
            directories: 0,
        }
    }

    /// For a repository on a server: each read takes a round trip. Reads of neighbours are joined, up to so many bytes.
    pub(super) fn remote(joined: usize) -> Reach {
        Reach {
            threads: REMOTE_THREADS,
            joined,
            file: 64,
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

    /// Queues requests, except for blocks that are cached, as far as the queue has room. Neighbours are joined. Errors are
    /// dropped: the read that needs a block reports them.
    pub(super) fn send(&self, core: &Arc<Core>, mut requests: Vec<PrefetchRequest>) {
        requests.retain(|request| !core.has_block(&request.block));
        if requests.is_empty() {
            return;
        }
        let queue = self.queue.get_or_init(|| start(core, self.reach.threads));
        // Copies on disk do not wait for blocks of the server.
        let (near, far): (Vec<_>, _) =
            requests.into_iter().partition(|request| core.repository.has_copy(&request.block));
        for neighbours in joined(near, 0).into_iter().chain(joined(far, self.reach.joined)) {
            let _ = queue.try_send(neighbours);
        }
    }
}

/// Joins requests for blocks that follow each other in a pack, up to `most` bytes. Packs stay in the order of their first
/// requests.
fn joined(mut requests: Vec<PrefetchRequest>, most: usize) -> Vec<Neighbours> {
    let packs: Vec<_> = requests.iter().map(|request| request.block.pack).collect();
    let first = |pack: PackId| packs.iter().position(|other| *other == pack);
    requests.sort_by_cached_key(|request| (first(request.block.pack), request.block.offset));
    let (mut runs, mut bytes): (Vec<Neighbours>, u64) = (Vec::new(), 0);
    for request in requests {
        let BlockLocation { pack, offset, length } = request.block;
        let length = u64::from(length);
        let follows = |PrefetchRequest { block, .. }: &PrefetchRequest| {
            block.pack == pack && block.offset.checked_add(block.length.into()) == Some(offset)
        };
        match runs.last_mut() {
            Some(run) if bytes + length <= most as u64 && run.last().is_some_and(follows) => {
                bytes += length;
                run.push(request);
            }
            _ => {
                bytes = length;
                runs.push(vec![request]);
            }
        }
    }
    runs
}

/// Starts the threads. They exit once the sender is dropped.
fn start(core: &Arc<Core>, threads: usize) -> Sender<Neighbours> {
    let (sender, requests) = bounded(MAX_QUEUED);
    for _ in 0..threads {
        let (core, requests) = (Arc::clone(core), requests.clone());
        // If no thread can be started, reads are only slower.
        let _ = thread::Builder::new().name("prefetch".into()).spawn(move || decode_queued(&core, &requests));
    }
    sender
}

fn decode_queued(core: &Core, queue: &Receiver<Neighbours>) {
    for mut requests in queue {
        // The reader has passed the chunks; their block may already have left the cache.
        requests.retain(|request| !request.until.is_over());
        if requests.len() > 1 {
            let wanted: Vec<_> = requests.iter().map(|request| (request.block, request.chunks.as_slice())).collect();
            let loaded = core.load_neighbours(&wanted);
            requests.retain(|request| !loaded.contains(&request.block));
        }
        // Neighbours that could not be read together are read one by one.
        requests.iter().filter(|request| !request.until.is_over()).for_each(|request| request.verify(core));
    }
}

impl PrefetchRequest {
    /// Verifies the chunks, or decodes the block if there are none.
    fn verify(&self, core: &Core) {
        match self.chunks.as_slice() {
            [] => drop(core.block(&self.block)),
            chunks => drop(chunks.iter().try_for_each(|chunk| core.verify(&self.block, chunk))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_a_pack_are_joined_up_to_a_number_of_bytes() {
        let [one, other] = [PackId::random(), PackId::random()];
        let runs = |blocks: &[(PackId, u64, u32)], most| {
            let request = |(pack, offset, length): &(PackId, u64, u32)| PrefetchRequest {
                block: BlockLocation { pack: *pack, offset: *offset, length: *length },
                chunks: Vec::new(),
                until: Until::Open,
            };
            let runs = joined(blocks.iter().map(request).collect(), most);
            let offsets = |run: &Neighbours| run.iter().map(|one| one.block.offset).collect::<Vec<_>>();
            runs.iter().map(offsets).collect::<Vec<_>>()
        };
        let blocks = [(one, 30, 10), (one, 10, 20), (other, 40, 5), (one, 40, 10), (one, 51, 1), (other, 0, 40)];
        assert_eq!(runs(&blocks, 100), [vec![10, 30, 40], vec![51], vec![0, 40]]);
        assert_eq!(runs(&blocks, 30), [vec![10, 30], vec![40], vec![51], vec![0], vec![40]]);
        assert_eq!(runs(&blocks, 0), [[10], [30], [40], [51], [0], [40]]);
        assert_eq!(runs(&[(one, u64::MAX, 7), (one, 6, 1)], 100), [[6], [u64::MAX]]);
        assert!(runs(&[], 100).is_empty());
    }
}
