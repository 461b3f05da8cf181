//! Checks snapshots and their trees.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::content::{FileCheck, Loss};
use super::packs::Located;
use super::record::Claim;
use super::visited::{Flaw, Lacking, LooseKey};
use super::{Checker, Error};
use crate::archive::{Archive, EntryHandle, SnapshotDirectory, TreeWalk, WalkStep};
use crate::failure::Failure;
use crate::format::id::SnapshotId;
use crate::format::name::SnapshotName;
use crate::format::{BlockLocation, PackId, name};
use crate::monitor;
use crate::reader::{self, FileReader, root_of, top_node};

/// A directory on the path of the walk.
struct OpenDirectory {
    key: Option<LooseKey>,
    /// Packs with a flaw that the directory and its entries so far need.
    lacking: Lacking,
}

/// Identifies a directory; `None` if it is empty.
fn key(directory: &SnapshotDirectory) -> Option<LooseKey> {
    let claim = Claim::directory(directory.below);
    top_node(directory).map(|(location, chunk)| LooseKey::new(&location, &chunk, claim))
}

impl Checker<'_> {
    /// Checks these snapshots. Those in `forgotten` may be missing.
    pub(super) fn snapshots(&mut self, names: &[SnapshotName], forgotten: &HashSet<SnapshotId>) -> Result<(), Error> {
        // Only snapshots that verify are counted as present: a copy under another name does not replace a missing one.
        let (mut there, mut chained) = (HashSet::new(), Vec::new());
        // Snapshots that the key does not open. The key is wrong only if it opens none at all.
        let mut closed = Vec::new();
        let reader = self.reader;
        for name in (reader as &dyn Archive).in_turn(names) {
            self.check_interrupted()?;
            self.summary.snapshots += 1;
            let object = PathBuf::from(name.object());
            let opened = self.reader.snapshot(name);
            if let Ok((snapshot, signer)) = &opened {
                there.insert(name.id);
                chained.extend(snapshot.previous.map(|previous| (object.clone(), previous)));
                self.signers.insert(signer.clone());
            }
            let root = match opened.and_then(|(snapshot, _)| root_of(&snapshot)) {
                Ok(root) => root,
                Err(error) if error.is_key_problem() && !self.opened => {
                    closed.push((object, error));
                    if self.reader.is_hopeless(closed.len()) {
                        break;
                    }
                    continue;
                }
                Err(error) => {
                    self.is_cut = true;
                    self.unopened(&object, error)?;
                    continue;
                }
            };
            self.opened = true;
            let source = self.reader.access().source(self.reader.repository(), name.source);
            if let Err(error) = source {
                self.failed(&object, &error.into())?;
            }
            let shown = self.reader.source_name(name.source).unwrap_or_else(|_| name.source.to_string());
            let lacking = self.tree(&root, PathBuf::from(shown).join(&name.time))?;
            self.lacks(&object, &lacking);
        }
        self.is_cut |= !closed.is_empty();
        for (object, error) in closed {
            self.unopened(&object, error)?;
        }
        let is_lost = |previous: &SnapshotId| !there.contains(previous) && !forgotten.contains(previous);
        for (object, previous) in chained.into_iter().filter(|(_, previous)| is_lost(previous)) {
            self.report.doubt(&object, format!("the previous snapshot ({previous}) is missing"));
        }
        Ok(())
    }

    /// Counts the lost packs that a snapshot needs, and reports those in no index.
    fn lacks(&mut self, object: &Path, lacking: &Lacking) {
        let with = |flaw| lacking.iter().filter(move |(of, _)| *of == flaw).map(|(_, pack)| *pack);
        for pack in with(Flaw::Lost) {
            self.lost.entry(pack).or_default().snapshots += 1;
        }
        let lacking: BTreeSet<_> = with(Flaw::Unindexed).collect();
        let Some(first) = lacking.first() else { return };
        let (count, first) = (lacking.len() as u64, name::pack(*first));
        let packs = monitor::count(count, "pack that it needs is", "packs that it needs are");
        let cause = match &self.unreadable {
            Some(index) => format!("{index} cannot be read"),
            None => format!("an object is missing from {}", name::INDEX),
        };
        let why = format!("{packs} in no index (such as {first}): {cause}; a rebuilt catalog will not know such packs");
        self.report.doubt(object, why);
        self.unindexed.extend(lacking);
    }

    /// Checks the tree below a root, except for subtrees that were checked before. Returns the packs with a flaw that the
    /// tree needs.
    fn tree(&mut self, root: &EntryHandle, mut path: PathBuf) -> Result<Lacking, Error> {
        let Some(top) = self.new_directory(root, &path)? else { return Ok(self.lacking_below(root)) };
        let mut open = vec![self.open_directory(&top)];
        let mut walk = TreeWalk::new(self.reader, top);
        let mut whole = Lacking::new();
        while let Some(step) = walk.step() {
            self.check_interrupted()?;
            match step {
                WalkStep::Entry(child) => {
                    path.push(OsStr::from_bytes(child.entry().name));
                    let lacking = match (child.directory().is_some(), self.new_directory(&child, &path)?) {
                        (true, Some(below)) => {
                            open.push(self.open_directory(&below));
                            walk.enter(below);
                            continue;
                        }
                        (true, None) => self.lacking_below(&child),
                        (false, _) => self.file(&child, &path)?,
                    };
                    path.pop();
                    if let Some(directory) = open.last_mut() {
                        directory.lacking.extend(lacking);
                    }
                }
                WalkStep::Failed(error) => match error.cause::<reader::Error>() {
                    Some(error) => {
                        self.is_cut = true;
                        if let Some(pack) = error.lost_pack() {
                            let lost = self.lost.entry(pack).or_default();
                            lost.directories += 1;
                            lost.is_damaged |= !error.is_absent();
                            open.last_mut().map_or(&mut whole, |open| &mut open.lacking).insert((Flaw::Lost, pack));
                        }
                        self.failed(&path, error)?;
                    }
                    None => {
                        self.is_cut = true;
                        self.problem(&path, &error.to_string());
                    }
                },
                WalkStep::Leave => {
                    path.pop();
                    let Some(OpenDirectory { key, lacking }) = open.pop() else { continue };
                    open.last_mut().map_or(&mut whole, |above| &mut above.lacking).extend(&lacking);
                    if let (Some(key), false) = (key, lacking.is_empty()) {
                        self.visited.lacking.insert(key, lacking);
                    }
                }
            }
        }
        Ok(whole)
    }

    /// Begins the check of a directory.
    fn open_directory(&self, directory: &SnapshotDirectory) -> OpenDirectory {
        let mut lacking = Lacking::new();
        // Skipped if possible, since it reads the index nodes of large directories a second time.
        if !self.all_indexed {
            // Ignore errors: the walk reports them.
            let _ = self.reader.each_node(directory, &mut |location| {
                lacking.extend(Some((Flaw::Unindexed, location.pack)).filter(|(_, pack)| self.is_unindexed(*pack)));
            });
        }
        OpenDirectory { key: key(directory), lacking }
    }

    /// The packs with a flaw that a directory needs which was checked before.
    fn lacking_below(&self, listed: &EntryHandle) -> Lacking {
        let key = listed.directory().and_then(|directory| key(&directory));
        key.and_then(|key| self.visited.lacking.get(&key)).cloned().unwrap_or_default()
    }

    /// Whether a pack is present and in no index. Missing packs are reported elsewhere.
    fn is_unindexed(&self, pack: PackId) -> bool {
        self.packs.find(pack).is_some_and(|row| !self.packs.is_indexed(row))
    }

    /// Returns the directory if it was not checked yet.
    fn new_directory(&mut self, listed: &EntryHandle, path: &Path) -> Result<Option<SnapshotDirectory>, Error> {
        let Some(directory) = listed.directory() else { return Ok(None) };
        let is_new = self.is_new(&directory, path)?;
        self.summary.directories += u64::from(is_new);
        Ok(is_new.then_some(directory))
    }

    /// Marks a directory as visited. Returns whether it was not visited before.
    ///
    /// A mark has the number of entries that the parent claims. The walk rejects a false number, but a visit with a false
    /// number must not spare the one with the right number, nor replace its mark.
    fn is_new(&mut self, directory: &SnapshotDirectory, path: &Path) -> Result<bool, Error> {
        let Some((at, chunk)) = top_node(directory) else { return Ok(true) };
        let claim = Claim::directory(directory.below);
        let located = self.packs.locate(&at, &chunk)?;
        let Located::Listed(place) = located else {
            let is_new = self.visited.loose.insert(LooseKey::new(&at, &chunk, claim));
            if let (Located::Differs(index), true) = (located, is_new) {
                self.differs(path, &at, index);
            }
            return Ok(is_new);
        };
        let marked = self.packs.claim(place)?;
        if marked == claim {
            return Ok(false);
        }
        if marked == Claim::NONE {
            self.count_chunk();
        }
        if marked == Claim::NONE || self.reader.has_below(directory) {
            self.packs.set_claim(place, claim)?;
        }
        Ok(true)
    }

    /// Reports a reference that the index of its pack does not have.
    fn differs(&mut self, path: &Path, at: &BlockLocation, index: u32) {
        let index = self.index_name(index);
        let why = format!("its reference to the block at {} of pack {} does not match {index}", at.offset, at.pack);
        self.problem(path, &why);
    }

    /// Checks a file. Returns the packs with a flaw that it needs.
    fn file(&mut self, listed: &EntryHandle, path: &Path) -> Result<Lacking, Error> {
        self.summary.files += 1;
        let progress = self.monitor.progress();
        progress.at(path);
        let file = FileReader::new(self.reader, listed)?;
        let mut check = FileCheck {
            reader: self.reader,
            packs: &mut self.packs,
            visited: &mut self.visited,
            read_data: self.read_data,
            progress,
            counts_chunks: self.counts_chunks,
            stop: self.stop,
            chunks: 0,
            lacking: Lacking::new(),
            differs: None,
            losses: BTreeMap::new(),
            first_loss: None,
            is_cut: false,
            failed: None,
            open: Vec::new(),
        };
        let result = check.check_file(&file);
        let FileCheck { chunks, lacking, differs, losses, first_loss, is_cut, failed, .. } = check;
        self.summary.chunks += chunks;
        if let Some(error) = failed {
            return Err(error.into());
        }
        self.check_interrupted()?;
        self.is_cut |= is_cut || result.is_err();
        for (pack, loss) in losses {
            let lost = self.lost.entry(pack).or_default();
            lost.is_damaged |= !loss.is_missing;
            lost.loss.get_or_insert(loss);
        }
        let mut loss = first_loss;
        for (_, pack) in lacking.iter().filter(|(flaw, _)| *flaw == Flaw::Lost) {
            let lost = self.lost.entry(*pack).or_default();
            lost.files += 1;
            // It is in a part that an earlier file shares.
            loss = loss.or_else(|| lost.loss.clone());
        }
        match loss {
            Some(Loss { error, is_missing: true }) => {
                self.report.doubt_of(error.lost_object(), path, error.to_string());
            }
            Some(Loss { error, .. }) => self.failed(path, &error)?,
            None => {}
        }
        if let Err(error) = result {
            self.failed(path, &error)?;
        }
        if let Some((at, index)) = differs {
            self.differs(path, &at, index);
        }
        Ok(lacking)
    }
}
