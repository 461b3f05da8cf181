//! What readers are asked to do.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::budget::{Budget, Loan};
use super::content::FileContent;
use super::hard_links::HardLinkCache;
use super::verdict::Patience;
use crate::backup::calls::Calls;
use crate::source::{Chunker, Directory, MountTable, Stat};

/// Bytes of a waiting file besides its content: its name, its stat and a few attributes.
pub(in crate::backup) const FILE_OVERHEAD: usize = 1 << 10;

/// Files to be read one after the other.
pub(in crate::backup) struct ReadJob {
    pub(in crate::backup) directory: Arc<Directory>,
    pub(in crate::backup) files: Vec<JobFile>,
    pub(in crate::backup) content: Sender<Vec<FileContent>>,
}

/// A file to be read.
pub(in crate::backup) struct JobFile {
    pub(in crate::backup) name: Vec<u8>,
    /// Its place in the order in which the assembler takes files.
    pub(in crate::backup) number: u64,
    /// The loan for a small file.
    pub(in crate::backup) loan: Option<Loan>,
    pub(in crate::backup) patience: Patience,
    /// Its stat when the walk came by.
    pub(in crate::backup) seen: Stat,
}

/// Shared by all readers of a run.
pub(in crate::backup) struct ReadSetup {
    pub(in crate::backup) chunker: Chunker,
    /// Most files that a reader has open at once.
    pub(in crate::backup) files_at_once: usize,
    /// Files below this many bytes are one chunk.
    pub(in crate::backup) whole_below: u64,
    /// Lends memory for attributes. The assembler says which file it takes.
    pub(in crate::backup) attributes: Budget,
    pub(in crate::backup) hard_links: HardLinkCache,
    /// Tells whose clock stamps a file.
    pub(in crate::backup) mounts: MountTable,
    pub(in crate::backup) calls: Arc<Calls>,
}
