//! Parts that store, for tests.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use super::blocks::BlockStore;
use super::nodes::Nodes;
use super::packer::Packer;
use super::seal::Sealing;
use crate::monitor::Silent;
use crate::session::Publisher;
pub(super) use crate::session::fixture::Site;

/// For runs that are not to stop.
pub(super) static GO_ON: AtomicBool = AtomicBool::new(false);
/// Chunks of files below this many bytes are gathered.
pub(super) const MERGE_UNDER: usize = 1000;

impl Site {
    /// Runs a test with a packer that never commits by itself.
    pub(super) fn with_packer<T>(&self, test: impl FnOnce(Packer<'_>) -> T) -> T {
        self.with_session(|session, catalog| {
            thread::scope(|threads| {
                let (sealing, _more) = Sealing::start(threads, session.packs(), None, 1, &GO_ON).unwrap();
                test(Packer::new(Publisher::new(session, catalog, Duration::MAX), sealing, &Silent))
            })
        })
    }

    pub(super) fn with_blocks<T>(&self, test: impl FnOnce(BlockStore<'_>) -> T) -> T {
        self.with_packer(|packer| test(BlockStore::new(packer, MERGE_UNDER).unwrap()))
    }

    pub(super) fn with_nodes<T>(&self, test: impl FnOnce(Nodes<'_>) -> T) -> T {
        self.with_blocks(|blocks| test(Nodes::new(blocks)))
    }
}
