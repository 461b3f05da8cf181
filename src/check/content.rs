//! Checks the content of files: the location of every chunk, and the tree of extent nodes.
//!
//! Large files, and several files, may refer to the same extent node any number of times; each is checked once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::packs::{Located, PackTable};
use super::record::Claim;
use super::visited::{Flaw, Lacking, LooseKey, Visited};
use crate::format::entry::NodeRef;
use crate::format::{BlockLocation, ChunkRef, PackId};
use crate::monitor::Progress;
use crate::reader::{Error, ExtentVisitor, FileReader, Reader};

/// The check of a file's content.
pub(super) struct FileCheck<'l> {
    pub(super) reader: &'l Reader,
    pub(super) packs: &'l mut PackTable,
    pub(super) visited: &'l mut Visited,
    pub(super) read_data: bool,
    pub(super) progress: &'l Progress,
    /// When set, nothing more is entered or read.
    pub(super) stop: &'l AtomicBool,
    /// The number of newly checked chunks.
    pub(super) chunks: u64,
    /// Packs that the file needs and that have a flaw.
    pub(super) lacking: Lacking,
    /// A location that the index of its pack does not have, and the number of the index.
    pub(super) differs: Option<(BlockLocation, u32)>,
    /// The pack of a chunk is missing or too short, and no other place has the chunk.
    pub(super) is_lost: bool,
    /// An error of the temporary file.
    pub(super) failed: Option<io::Error>,
    /// Extent nodes on the path of the walk.
    pub(super) open: Vec<OpenPart>,
}

/// An extent node on the path of the walk.
pub(super) struct OpenPart {
    located: Located,
    key: LooseKey,
    claim: Claim,
    /// Packs needed so far that have a flaw.
    lacking: Lacking,
}

impl FileCheck<'_> {
    /// Checks the parts of the file that were not checked yet.
    pub(super) fn check_file(&mut self, file: &FileReader) -> Result<(), Error> {
        let result = file.visit_extents(self);
        // After an error the open parts are not marked, so that the error is reported for each file that contains them.
        for part in std::mem::take(&mut self.open) {
            self.lacking.extend(part.lacking);
        }
        result
    }

    fn is_over(&self) -> bool {
        self.failed.is_some() || self.stop.load(Ordering::Relaxed)
    }

    /// Adds packs with a flaw that the current part needs.
    fn lack(&mut self, packs: impl IntoIterator<Item = (Flaw, PackId)>) {
        self.open.last_mut().map_or(&mut self.lacking, |part| &mut part.lacking).extend(packs);
    }

    /// Compares a reference with the indexes; `None` after an error.
    fn locate(&mut self, at: &BlockLocation, chunk: &ChunkRef) -> Option<Located> {
        let located = self.packs.locate(at, chunk);
        self.tried(located)
    }

    fn tried<T>(&mut self, result: io::Result<T>) -> Option<T> {
        result.map_err(|error| self.failed = Some(error)).ok()
    }

    /// Notes a reference that differs from an index, or a pack in no index.
    fn note(&mut self, at: &BlockLocation, located: Located) {
        match located {
            Located::Differs(index) => _ = self.differs.get_or_insert((*at, index)),
            Located::Unlisted if self.packs.find(at.pack).is_some() => self.lack([(Flaw::Unindexed, at.pack)]),
            Located::Unlisted | Located::Listed(_) => {}
        }
    }
}

impl ExtentVisitor for FileCheck<'_> {
    fn enter(&mut self, at: &BlockLocation, part: &NodeRef, depth: u8) -> bool {
        if self.is_over() {
            return false;
        }
        let claim = Claim::extents(part.covers, depth);
        let key = LooseKey::new(at, &part.node, claim);
        let Some(located) = self.locate(at, &part.node) else { return false };
        let seen = match located {
            Located::Listed(place) => {
                let claimed = self.packs.claim(place);
                self.tried(claimed).is_none_or(|claimed| claimed == claim)
            }
            Located::Differs(_) | Located::Unlisted => self.visited.loose.contains(&key),
        };
        if seen {
            if let Some(lacking) = self.visited.lacking.get(&key).cloned() {
                self.lack(lacking);
            }
            return false;
        }
        self.open.push(OpenPart { located, key, claim, lacking: Lacking::new() });
        self.note(at, located);
        true
    }

    fn leave(&mut self) {
        let Some(OpenPart { located, key, claim, lacking }) = self.open.pop() else { return };
        match located {
            // The node was read: it covers what its parent claims.
            Located::Listed(place) => {
                let marked = self.packs.set_claim(place, claim);
                self.tried(marked);
            }
            Located::Differs(_) | Located::Unlisted => _ = self.visited.loose.insert(key),
        }
        if !lacking.is_empty() {
            self.lack(lacking.iter().copied());
            self.visited.lacking.insert(key, lacking);
        }
    }

    fn chunk(&mut self, at: &BlockLocation, chunk: &ChunkRef) -> Result<(), Error> {
        if self.is_over() {
            return Ok(());
        }
        let Some(located) = self.locate(at, chunk) else { return Ok(()) };
        self.note(at, located);
        let (is_new, is_verified) = match located {
            Located::Listed(place) => {
                (self.packs.referenced.insert(place.number), self.packs.verified.has(place.number))
            }
            Located::Differs(_) | Located::Unlisted => {
                (self.visited.loose.insert(LooseKey::new(at, chunk, Claim::NONE)), false)
            }
        };
        if is_new {
            self.chunks += 1;
            // With --read-data, progress is that of the packs.
            if !self.read_data {
                self.progress.bytes(chunk.length.into());
            }
        }
        if let Err(lost) = check_location(self.packs, at) {
            // Without a copy in an index, a shard that names one is false.
            let is_copied = match located {
                Located::Listed(place) => !self.packs.is_gone(place.row) || self.packs.carried.has(place.number),
                Located::Differs(_) | Located::Unlisted => true,
            };
            let is_there = |place: &BlockLocation| is_copied && check_location(self.packs, place).is_ok();
            if self.reader.moved_to(at, chunk, is_there)?.is_none() {
                self.is_lost = true;
                return Err(lost);
            }
        }
        if self.read_data && !is_verified && (is_new || matches!(located, Located::Listed(_))) {
            self.reader.verify(at, chunk)?;
            self.progress.read(chunk.length.into());
            if let Located::Listed(place) = located {
                self.packs.verified.insert(place.number);
            }
        }
        Ok(())
    }
}

/// Checks that a block is within its pack.
pub(super) fn check_location(packs: &PackTable, at: &BlockLocation) -> Result<(), Error> {
    let wrong = |why: String| Error::Pack { pack: at.pack, why };
    let end = at.offset.saturating_add(at.length.into());
    match packs.find(at.pack).and_then(|row| packs.length(row)) {
        None => Err(wrong("is missing".into())),
        Some(length) if length < end => Err(wrong(format!("has {length} bytes, but {end} are needed"))),
        Some(_) => Ok(()),
    }
}
