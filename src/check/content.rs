//! The content of files: every chunk lies where it should, and each part is checked once.
//!
//! A large file is a tree of nodes, and may name one of them any number of times, as may other files.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ChunkKey, chunk_key};
use crate::format::entry::NodeRef;
use crate::format::{BlockLocation, ChunkRef, PackId};
use crate::monitor::Progress;
use crate::reader::{Error, ExtentVisitor, FileReader, Reader};

/// A node of extents: with the bytes that it should cover, and the levels below it.
type ExtentNodeKey = (ChunkKey, u64, u8);

/// What was checked of files so far.
#[derive(Default)]
pub(super) struct CheckedContent {
    /// Chunks.
    pub(super) chunks: HashSet<ChunkKey>,
    parts: HashSet<ExtentNodeKey>,
    /// Packs that parts need and no index names.
    lacking: HashMap<ExtentNodeKey, BTreeSet<PackId>>,
}

/// A look at a file.
pub(super) struct FileCheck<'l> {
    pub(super) reader: &'l Reader,
    pub(super) checked: &'l mut CheckedContent,
    /// Packs that are there, and their lengths.
    pub(super) packs: &'l HashMap<PackId, u64>,
    /// Whether no index names a pack that is there.
    pub(super) is_unindexed: &'l dyn Fn(PackId) -> bool,
    pub(super) read_data: bool,
    pub(super) progress: &'l Progress,
    /// Once it is set, nothing more is entered or read.
    pub(super) stop: &'l AtomicBool,
    /// Chunks that were new.
    pub(super) chunks: u64,
    /// Packs that the file needs and no index names.
    pub(super) lacking: BTreeSet<PackId>,
    /// The parts that the look is in, with the packs that they need and no index names.
    pub(super) open: Vec<(ExtentNodeKey, BTreeSet<PackId>)>,
}

impl FileCheck<'_> {
    /// Looks at all of the file that is new.
    pub(super) fn check_file(&mut self, file: &FileReader) -> Result<(), Error> {
        let result = file.visit_extents(self.reader, self);
        // After an error: it is one of each file that has these parts.
        for (part, lacking) in std::mem::take(&mut self.open) {
            self.checked.parts.remove(&part);
            self.lacking.extend(lacking);
        }
        result
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Takes note of packs that the part at hand needs and no index names.
    fn lack(&mut self, packs: impl IntoIterator<Item = PackId>) {
        self.open.last_mut().map_or(&mut self.lacking, |(_, lacking)| lacking).extend(packs);
    }
}

impl ExtentVisitor for FileCheck<'_> {
    fn enter(&mut self, at: &BlockLocation, part: &NodeRef, depth: u8) -> bool {
        let key = (chunk_key(at, &part.node), part.covers, depth);
        if self.is_over() {
            return false;
        }
        if !self.checked.parts.insert(key) {
            if let Some(lacking) = self.checked.lacking.get(&key).cloned() {
                self.lack(lacking);
            }
            return false;
        }
        self.open.push((key, BTreeSet::new()));
        if (self.is_unindexed)(at.pack) {
            self.lack([at.pack]);
        }
        true
    }

    fn leave(&mut self) {
        let Some((part, lacking)) = self.open.pop() else { return };
        if !lacking.is_empty() {
            self.lack(lacking.iter().copied());
            self.checked.lacking.insert(part, lacking);
        }
    }

    fn chunk(&mut self, at: &BlockLocation, chunk: &ChunkRef) -> Result<(), Error> {
        if (self.is_unindexed)(at.pack) {
            self.lack([at.pack]);
        }
        if self.is_over() || !self.checked.chunks.insert(chunk_key(at, chunk)) {
            return Ok(());
        }
        self.chunks += 1;
        self.progress.bytes(chunk.length.into());
        placed(self.packs, at)?;
        if self.read_data {
            self.reader.verify(at, chunk)?;
            self.progress.read(chunk.length.into());
        }
        Ok(())
    }
}

/// Checks that a block lies within its pack.
fn placed(packs: &HashMap<PackId, u64>, at: &BlockLocation) -> Result<(), Error> {
    let wrong = |why: String| Error::Tree(format!("its data is lost: pack {} {why}", at.pack));
    let end = at.offset.saturating_add(at.length.into());
    match packs.get(&at.pack) {
        None => Err(wrong("is missing".into())),
        Some(length) if *length < end => Err(wrong(format!("has {length} bytes, and {end} are needed"))),
        Some(_) => Ok(()),
    }
}
