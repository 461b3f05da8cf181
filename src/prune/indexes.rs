//! Indexes without removed packs, and with the differences of removed snapshots folded into the next ones.

use std::collections::{BTreeMap, HashMap, HashSet};

use roaring::RoaringBitmap;

use super::context::Pruner;
use super::error::Error;
use crate::catalog::{Catalog, Folder};
use crate::format::PackId;
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::index::Index;
use crate::format::name::SnapshotName;
use crate::format::usage::{BlockRuns, Holds, SnapshotUsage, block_runs};

/// Chunks after which a successor ends, so that no index grows without bound.
const CHUNKS: usize = 64_000;
/// The same for runs of blocks in usages.
const RUNS: usize = 256_000;
/// Small indexes are joined if there are at least this many.
const SMALL_INDEXES: usize = 64;
/// Chunks below which an index is small.
const FEW_CHUNKS: usize = 4_000;

/// What a rewrite removes.
pub(super) struct Removals<'a> {
    /// Packs that are about to be removed.
    pub(super) packs: &'a HashSet<PackId>,
    /// Snapshots whose objects were removed.
    pub(super) snapshots: &'a HashSet<SnapshotId>,
}

/// An index that may be rewritten.
struct Candidate {
    id: ObjectId,
    /// The lowest number of a snapshot in it: neighbours are joined.
    sequence: u64,
    must: bool,
    is_small: bool,
    has_holds: bool,
}

/// Writes successors of the indexes that name what is removed, then removes these indexes. Many small ones are joined.
pub(super) fn rewrite(pruner: &Pruner<'_>, catalog: &mut Catalog, removals: &Removals<'_>) -> Result<(), Error> {
    let session = pruner.session;
    // First of all, what a killed prune replaced: a successor names only the documents that it replaces itself.
    remove_replaced(pruner, catalog, |folder| folder == Folder::Index)?;
    let known = catalog.documents()?;
    let valid = known.iter().filter(|known| known.folder == Folder::Index && known.replaced.is_none());
    let valid = valid.filter(|known| known.generation < session.generation());
    let mut candidates = Vec::new();
    let mut removed = HashMap::new();
    let mut last_holds = Holds::default();
    for known in valid {
        pruner.inventory.check_interrupted()?;
        let index = session.access().index(session.repository(), known.id)?;
        candidates.push(candidate(catalog, known.id, &index, removals)?);
        last_holds.add(index.generation, &index.holds);
        let usages = index.snapshots.iter().filter(|usage| removals.snapshots.contains(&usage.snapshot.id));
        removed.extend(usages.map(|usage| (usage.snapshot.id, Difference::of(usage))));
    }
    let join = candidates.iter().filter(|candidate| candidate.is_small).count() >= SMALL_INDEXES;
    let holds =
        candidates.iter().any(|candidate| candidate.has_holds && (candidate.must || (join && candidate.is_small)));
    candidates.retain(|candidate| candidate.must || (join && candidate.is_small) || (holds && candidate.has_holds));
    candidates.sort_by_key(|candidate| candidate.sequence);
    let mut successor = Successor::new(pruner, removals, removed);
    if holds {
        // In the first successor: each one replaces only its own indexes, and the run may be killed in between.
        successor.index.holds = last_holds.to_vec();
        successor.index.holds.retain(|hold| !removals.snapshots.contains(&hold.snapshot.id));
    }
    for candidate in candidates {
        pruner.inventory.check_interrupted()?;
        let index = session.access().index(session.repository(), candidate.id)?;
        successor.add(catalog, candidate.id, index)?;
    }
    successor.finish(catalog)
}

/// Removes documents that others replaced.
pub(super) fn remove_replaced(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    is_meant: impl Fn(Folder) -> bool,
) -> Result<(), Error> {
    let known = catalog.documents()?.into_iter().filter(|known| is_meant(known.folder));
    let mut replaced: Vec<_> = known.filter_map(|known| Some((known.replaced?, known))).collect();
    // A document that replaced others is removed after them: without it, they would be valid again.
    replaced.sort_unstable_by_key(|(replaced, _)| *replaced);
    for (replaced, known) in replaced {
        if !known.is_removed {
            let remover = pruner.session.remover(catalog)?;
            if !pruner.remove(&remover, &known.object())? {
                break;
            }
            catalog.set_document_removed(&known)?;
        }
        // Until then, the census of the last generation counts it.
        if replaced < pruner.clock.before {
            catalog.remove_document(&known)?;
        }
    }
    Ok(catalog.commit()?)
}

fn candidate(catalog: &Catalog, id: ObjectId, index: &Index, removals: &Removals<'_>) -> Result<Candidate, Error> {
    let removed = |pack: &PackId| removals.packs.contains(pack);
    let mut must = index.packs.iter().any(|pack| removed(&pack.id) && pack.digest.is_some());
    must |= index.carriers.iter().any(|carrier| removed(&carrier.id));
    let is_removed = |id: SnapshotId| removals.snapshots.contains(&id);
    must |= index
        .snapshots
        .iter()
        .any(|usage| is_removed(usage.snapshot.id) || usage.base.as_ref().is_some_and(|base| is_removed(base.id)));
    // The last block of a former pack may be dead by now.
    for pack in index.packs.iter().filter(|pack| pack.digest.is_none()) {
        must |= catalog.is_gone(pack.id)?.is_none();
    }
    Ok(Candidate {
        id,
        sequence: index.snapshots.iter().map(|usage| usage.snapshot.sequence).min().unwrap_or_default(),
        must,
        is_small: chunks(index) < FEW_CHUNKS,
        has_holds: !index.holds.is_empty(),
    })
}

fn chunks(index: &Index) -> usize {
    let packs: usize = index.packs.iter().flat_map(|pack| &pack.blocks).map(|block| block.chunks.len()).sum();
    packs + index.carriers.iter().map(|carrier| carrier.blocks.len()).sum::<usize>()
}

/// Collects the contents of indexes, and writes them as few new ones.
struct Successor<'p, 's> {
    pruner: &'p Pruner<'s>,
    removals: &'p Removals<'p>,
    index: Index,
    chunks: usize,
    runs: usize,
    /// Differences of removed snapshots.
    removed: HashMap<SnapshotId, Difference>,
}

/// The blocks that a snapshot has and its base does not have, and the reverse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Difference {
    base: Option<SnapshotName>,
    added: Blocks,
    removed: Blocks,
}

type Blocks = BTreeMap<PackId, RoaringBitmap>;

impl<'p, 's> Successor<'p, 's> {
    fn new(pruner: &'p Pruner<'s>, removals: &'p Removals<'p>, removed: HashMap<SnapshotId, Difference>) -> Self {
        Successor { pruner, removals, index: Index::default(), chunks: 0, runs: 0, removed }
    }

    fn add(&mut self, catalog: &mut Catalog, id: ObjectId, index: Index) -> Result<(), Error> {
        self.chunks += chunks(&index);
        let Index { packs, carriers, snapshots, session_keys, .. } = index;
        self.index.replaces.push(id);
        for mut pack in packs {
            if !self.removals.packs.contains(&pack.id) && pack.digest.is_some() {
                self.index.packs.push(pack);
                continue;
            }
            // The names of these blocks stay: they lie in carriers from now on.
            let moved = catalog.moved_ordinals_of(pack.id, self.removals.packs)?;
            pack.blocks.retain(|block| moved.contains(&block.ordinal));
            pack.digest = None;
            if !pack.blocks.is_empty() {
                self.index.packs.push(pack);
            }
        }
        self.index.carriers.extend(carriers.into_iter().filter(|carrier| !self.removals.packs.contains(&carrier.id)));
        for usage in snapshots {
            self.add_usage(catalog, usage)?;
        }
        for keys in session_keys {
            if !self.index.session_keys.contains(&keys) {
                self.index.session_keys.push(keys);
            }
        }
        if self.chunks >= CHUNKS || self.runs >= RUNS {
            self.write(catalog)?;
        }
        Ok(())
    }

    fn add_usage(&mut self, catalog: &Catalog, mut usage: SnapshotUsage) -> Result<(), Error> {
        if self.removals.snapshots.contains(&usage.snapshot.id) {
            return Ok(());
        }
        while let Some(before) = usage.base.as_ref().and_then(|base| self.removed.get(&base.id)) {
            let mut difference = Difference::of(&usage);
            difference.fold(before);
            usage.base = difference.base;
            (usage.added, usage.removed) = (runs_of(&difference.added), runs_of(&difference.removed));
        }
        // A prune that was killed has dropped the base, but did not reach this usage.
        if usage.base.as_ref().is_some_and(|base| self.removals.snapshots.contains(&base.id))
            && let Some(blocks) = catalog.snapshot_blocks(usage.snapshot.id)?
        {
            usage.base = None;
            (usage.added, usage.removed) = (catalog.block_runs(&blocks)?, Vec::new());
        }
        self.runs += usage.added.iter().chain(&usage.removed).map(|(_, runs)| 1 + runs.len()).sum::<usize>();
        self.index.snapshots.push(usage);
        Ok(())
    }

    fn finish(mut self, catalog: &mut Catalog) -> Result<(), Error> {
        if self.index.replaces.is_empty() { Ok(()) } else { self.write(catalog) }
    }

    fn write(&mut self, catalog: &mut Catalog) -> Result<(), Error> {
        let session = self.pruner.session;
        session.still_alone()?;
        (self.chunks, self.runs) = (0, 0);
        let index = Index { generation: session.generation(), ..std::mem::take(&mut self.index) };
        let id = ObjectId::random();
        session.writer().put_index(id, &index)?;
        catalog.add_index(id, &index)?;
        catalog.commit()?;
        // At once, so that an almost full disk has space for the next one.
        remove_replaced(self.pruner, catalog, |folder| folder == Folder::Index)
    }
}

impl Difference {
    fn of(usage: &SnapshotUsage) -> Self {
        let blocks = |runs: &[(PackId, BlockRuns)]| {
            let mut blocks = Blocks::new();
            for (pack, runs) in runs {
                let set = blocks.entry(*pack).or_default();
                for (first, count) in runs {
                    set.insert_range(*first..first.saturating_add(*count));
                }
            }
            blocks
        };
        Difference { base: usage.base.clone(), added: blocks(&usage.added), removed: blocks(&usage.removed) }
    }

    /// Makes the difference relative to the base of `before`, which is that of the present base.
    fn fold(&mut self, before: &Difference) {
        let (mut added, mut removed) = (before.added.clone(), before.removed.clone());
        subtract(&mut added, &self.removed);
        subtract(&mut removed, &self.added);
        let (mut own_added, mut own_removed) = (std::mem::take(&mut self.added), std::mem::take(&mut self.removed));
        subtract(&mut own_added, &before.removed);
        subtract(&mut own_removed, &before.added);
        unite(&mut added, own_added);
        unite(&mut removed, own_removed);
        self.base.clone_from(&before.base);
        if self.base.is_none() {
            removed.clear();
        }
        (self.added, self.removed) = (added, removed);
    }
}

fn subtract(from: &mut Blocks, blocks: &Blocks) {
    for (pack, blocks) in blocks {
        if let Some(set) = from.get_mut(pack) {
            *set -= blocks;
        }
    }
    from.retain(|_, set| !set.is_empty());
}

fn unite(into: &mut Blocks, blocks: Blocks) {
    for (pack, blocks) in blocks {
        *into.entry(pack).or_default() |= blocks;
    }
}

fn runs_of(blocks: &Blocks) -> Vec<(PackId, BlockRuns)> {
    blocks.iter().filter(|(_, set)| !set.is_empty()).map(|(pack, set)| (*pack, block_runs(set))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::SourceId;

    fn set(ordinals: &[u32]) -> RoaringBitmap {
        ordinals.iter().copied().collect()
    }

    /// Three snapshots in a row over random sets of blocks: the difference of the last to the first does not need the second.
    #[test]
    fn a_folded_difference_leads_to_the_same_blocks() {
        let pack = PackId::random();
        let blocks = |set: RoaringBitmap| Blocks::from([(pack, set)]);
        let name = |sequence| SnapshotName {
            source: SourceId::random(),
            sequence,
            time: "20261120T145201Z".into(),
            id: SnapshotId::random(),
        };
        let mut random = 7u64;
        for round in 0..500 {
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                set(&(0..12).filter(|bit| random >> (40 + bit) & 1 == 1).collect::<Vec<_>>())
            };
            let [first, second, third] = [(); 3].map(|()| next());
            let has_base = round % 2 == 0;
            let first = if has_base { first } else { RoaringBitmap::new() };
            let before = Difference {
                base: has_base.then(|| name(1)),
                added: blocks(&second - &first),
                removed: blocks(&first - &second),
            };
            let mut difference =
                Difference { base: Some(name(2)), added: blocks(&third - &second), removed: blocks(&second - &third) };
            difference.fold(&before);
            assert_eq!(difference.base, before.base);
            let of = |blocks: &Blocks| blocks.get(&pack).cloned().unwrap_or_default();
            assert_eq!((&first - of(&difference.removed)) | of(&difference.added), third, "round {round}");
            assert!((&of(&difference.added) & &first).is_empty());
            assert!(of(&difference.removed).is_subset(&first));
        }
    }

    #[test]
    fn runs_and_differences_agree() {
        let pack = PackId::random();
        let runs = runs_of(&Blocks::from([(pack, set(&[1, 2, 3, 7, 9, 10])), (PackId::random(), set(&[]))]));
        assert_eq!(runs, [(pack, vec![(1, 3), (7, 1), (9, 2)])]);
    }
}
