//! Checks the content of files: the location of every chunk, and the tree of extent nodes.
//!
//! Large files, and several files, may refer to the same extent node any number of times; each is checked once.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::packs::{Located, PackTable};
use super::record::Claim;
use super::visited::{Flaw, Lacking, LooseKey, Visited};
use crate::failure::{Failure, FailureKind};
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
    /// Whether the progress counts chunks.
    pub(super) counts_chunks: bool,
    /// When set, nothing more is entered or read.
    pub(super) stop: &'l AtomicBool,
    /// The number of newly checked chunks.
    pub(super) chunks: u64,
    /// Packs that the file needs and that have a flaw.
    pub(super) lacking: Lacking,
    /// A location that the index of its pack does not have, and the number of the index.
    pub(super) differs: Option<(BlockLocation, u32)>,
    /// Packs that the file needs and that cannot be read, each with its first loss, unless an earlier file found it.
    pub(super) losses: BTreeMap<PackId, Loss>,
    /// The first of them.
    pub(super) first_loss: Option<Loss>,
    /// Whether an extent node cannot be read, so that it is not known what the file needs.
    pub(super) is_cut: bool,
    /// An error of the temporary file.
    pub(super) failed: Option<io::Error>,
    /// Extent nodes on the path of the walk.
    pub(super) open: Vec<OpenPart>,
}

/// A block that cannot be read.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    pub(super) error: Error,
    /// Whether its pack is missing or too short, so that it may have been removed on purpose.
    pub(super) is_missing: bool,
}

impl From<Error> for Loss {
    fn from(error: Error) -> Self {
        Loss { is_missing: error.is_absent(), error }
    }
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
        // After an error that ends the walk the open parts are not marked, so that each file that contains them reports it.
        for part in std::mem::take(&mut self.open) {
            self.lacking.extend(part.lacking);
        }
        result
    }

    /// Counts a chunk in the progress, whose total are the chunks in indexes.
    fn count_chunk(&self, located: Located) {
        if self.counts_chunks && matches!(located, Located::Listed(_)) {
            self.progress.file();
        }
    }

    fn is_over(&self) -> bool {
        self.failed.is_some() || self.stop.load(Ordering::Relaxed)
    }

    /// Packs with a flaw that the current part needs.
    fn part(&mut self) -> &mut Lacking {
        self.open.last_mut().map_or(&mut self.lacking, |part| &mut part.lacking)
    }

    /// Adds packs with a flaw that the current part needs.
    fn lack(&mut self, packs: impl IntoIterator<Item = (Flaw, PackId)>) {
        self.part().extend(packs);
    }

    /// Notes a block of the current part that cannot be read, so that the walk can go on. Other errors are returned.
    fn lose(&mut self, loss: Loss) -> Result<(), Error> {
        let Some(pack) = loss.error.lost_pack().filter(|_| loss.error.kind() != FailureKind::Unavailable) else {
            return Err(loss.error);
        };
        self.lack([(Flaw::Lost, pack)]);
        self.first_loss.get_or_insert_with(|| loss.clone());
        self.losses.entry(pack).or_insert(loss);
        Ok(())
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

    fn unreadable(&mut self, error: Error) -> Result<(), Error> {
        self.is_cut = true;
        self.lose(error.into())
    }

    fn leave(&mut self) {
        let Some(OpenPart { located, key, claim, lacking }) = self.open.pop() else { return };
        self.count_chunk(located);
        match located {
            // The node covers what its parent claims, or cannot be read.
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
            self.count_chunk(located);
        }
        // Each part is checked until a pack that it needs is found to be lost.
        if self.part().contains(&(Flaw::Lost, at.pack)) {
            return Ok(());
        }
        match self.check_chunk(at, chunk, located, is_new, is_verified) {
            Ok(()) => Ok(()),
            Err(loss) => self.lose(loss),
        }
    }
}

impl FileCheck<'_> {
    /// Checks that a chunk is in its pack or was moved, and with `read_data`, that it verifies.
    fn check_chunk(
        &mut self,
        at: &BlockLocation,
        chunk: &ChunkRef,
        located: Located,
        is_new: bool,
        is_verified: bool,
    ) -> Result<(), Loss> {
        if let Err(error) = check_location(self.packs, at) {
            // Without a copy in an index, a shard that names one is false.
            let is_copied = match located {
                Located::Listed(place) => self.packs.carried.has(place.number),
                Located::Differs(_) | Located::Unlisted => true,
            };
            let is_there = |place: &BlockLocation| is_copied && check_location(self.packs, place).is_ok();
            if self.reader.moved_to(at, chunk, is_there)?.is_none() {
                return Err(Loss { error, is_missing: true });
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
