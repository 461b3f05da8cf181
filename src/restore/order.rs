//! The order of the packs.
//!
//! Small files share blocks, and each backup puts those that had changed into blocks of its own. Neighbours in a
//! directory so come from as many blocks as there were backups, and in the order of the tree each block would be decoded
//! again and again, unless all of them stay in memory. So entries wait until there are many, and are handed out in the order in
//! which their content lies in packs.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::{Error, Job};

/// Entries that wait at most.
const ENTRIES: usize = 8192;
/// Directories that are held open for them at most.
const FOLDERS: usize = 512;
/// Bytes of decoded nodes that are held for them at most.
const NODES: usize = 16 << 20;

/// Entries that wait to be handed out. What still waits when this is dropped is not handed out.
pub(super) struct Ordered<'j> {
    jobs: &'j Sender<Job>,
    waiting: Vec<Job>,
    folders: usize,
    node_bytes: usize,
}

impl<'j> Ordered<'j> {
    pub(super) fn new(jobs: &'j Sender<Job>) -> Self {
        Ordered { jobs, waiting: Vec::new(), folders: 0, node_bytes: 0 }
    }

    /// Adds an entry. If there are enough, all are handed out.
    pub(super) fn add(&mut self, job: Job) -> Result<(), Error> {
        let last = self.waiting.last();
        if last.is_none_or(|last| !Arc::ptr_eq(&last.folder, &job.folder)) {
            self.folders += 1;
        }
        if last.is_none_or(|last| !last.listed.is_beside(&job.listed)) {
            self.node_bytes += job.listed.node_bytes();
        }
        self.waiting.push(job);
        match self.waiting.len() >= ENTRIES || self.folders >= FOLDERS || self.node_bytes >= NODES {
            true => self.hand_out(),
            false => Ok(()),
        }
    }

    /// Hands out all that wait.
    pub(super) fn hand_out(&mut self) -> Result<(), Error> {
        (self.folders, self.node_bytes) = (0, 0);
        // Of one block, in the order of the tree.
        self.waiting.sort_by_cached_key(|job| job.listed.first_block());
        // Workers only go away with an error of their own, which ends the run.
        self.waiting.drain(..).try_for_each(|job| self.jobs.send(job).map_err(|_| Error::Interrupted))
    }
}
