//! Checks the content of files: the location of every chunk, and the tree of extent nodes.
//!
//! Large files, and several files, may refer to the same extent node any number of times; each is checked once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ChunkKey, chunk_key};
use crate::format::entry::NodeRef;
use crate::format::{BlockLocation, ChunkRef, PackId};
use crate::monitor::Progress;
use crate::reader::{Error, ExtentVisitor, FileReader, Reader};

/// Identifies an extent node together with the bytes that it should cover and the number of levels below it.
type ExtentNodeKey = (ChunkKey, u64, u8);

/// Content of files that was checked so far.
#[derive(Default)]
pub(super) struct CheckedContent {
    pub(super) chunks: HashSet<ChunkKey>,
    parts: HashSet<ExtentNodeKey>,
    /// Packs in no index that extent nodes need.
    lacking: HashMap<ExtentNodeKey, BTreeSet<PackId>>,
}

/// The check of a file's content.
pub(super) struct FileCheck<'l> {
    pub(super) reader: &'l Reader,
    pub(super) checked: &'l mut CheckedContent,
    /// Lengths of all packs in the repository.
    pub(super) packs: &'l HashMap<PackId, u64>,
    /// Whether a pack is present but in no index.
    pub(super) is_unindexed: &'l dyn Fn(PackId) -> bool,
    pub(super) read_data: bool,
    pub(super) progress: &'l Progress,
    /// When set, nothing more is entered or read.
    pub(super) stop: &'l AtomicBool,
    /// The number of newly checked chunks.
    pub(super) chunks: u64,
    /// Packs in no index that the file needs.
    pub(super) lacking: BTreeSet<PackId>,
    /// Extent nodes on the path of the walk, with the packs in no index that they need so far.
    pub(super) open: Vec<(ExtentNodeKey, BTreeSet<PackId>)>,
}

impl FileCheck<'_> {
    /// Checks the parts of the file that were not checked yet.
    pub(super) fn check_file(&mut self, file: &FileReader) -> Result<(), Error> {
        let result = file.visit_extents(self);
        // After an error, forget the open parts, so that the error is reported for each file that contains them.
        for (part, lacking) in std::mem::take(&mut self.open) {
            self.checked.parts.remove(&part);
            self.lacking.extend(lacking);
        }
        result
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Adds packs in no index that the current part needs.
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
        check_location(self.packs, at).or_else(|lost| {
            let is_there = |place: &BlockLocation| check_location(self.packs, place).is_ok();
            self.reader.moved_to(at, chunk, is_there)?.map(drop).ok_or(lost)
        })?;
        if self.read_data {
            self.reader.verify(at, chunk)?;
            self.progress.read(chunk.length.into());
        }
        Ok(())
    }
}

/// Checks that a block is within its pack.
fn check_location(packs: &HashMap<PackId, u64>, at: &BlockLocation) -> Result<(), Error> {
    let wrong = |why: String| Error::Tree(format!("its data is lost: pack {} {why}", at.pack));
    let end = at.offset.saturating_add(at.length.into());
    match packs.get(&at.pack) {
        None => Err(wrong("is missing".into())),
        Some(length) if *length < end => Err(wrong(format!("has {length} bytes, but {end} are needed"))),
        Some(_) => Ok(()),
    }
}
