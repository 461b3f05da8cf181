//! Indexes without removed packs and snapshots.

use std::collections::{HashMap, HashSet};

use super::bases::{Bases, NewBase, NewBases, Orphan};
use super::context::Pruner;
use super::error::Error;
use crate::catalog::{Catalog, Folder, KnownDocument};
use crate::format::PackId;
use crate::format::id::{ObjectId, SnapshotId};
use crate::format::index::Index;
use crate::format::name;
use crate::format::usage::{Holds, SnapshotUsage};
use crate::repository::Access;
use crate::storage::Ahead;

/// Chunks after which a successor ends, so that no index grows without bound.
const CHUNKS: usize = 64_000;
/// The same for runs of blocks in usages.
const RUNS: usize = 256_000;
/// Small indexes are joined if there are at least this many.
const SMALL_INDEXES: usize = 64;
/// Chunks below which an index is small.
const FEW_CHUNKS: usize = 4_000;
/// Chunks and runs of small indexes that are kept until they are joined, so that they are read only once.
const KEPT: usize = 32_000;

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
    /// Its content, if that is kept.
    index: Option<Index>,
    /// Its read, if it is small.
    read: Option<Ahead>,
    /// Kept snapshots in it whose base is removed, in their order.
    orphans: Vec<Orphan>,
}

/// The indexes that may be rewritten.
pub(super) struct Candidates<'a> {
    all: Vec<Candidate>,
    bases: Bases<'a>,
    last_holds: Holds,
}

/// Reads all indexes, and calls `found` with each.
pub(super) fn read<'a>(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    packs: &HashSet<PackId>,
    snapshots: &'a HashSet<SnapshotId>,
    mut found: impl FnMut(ObjectId, &Index),
) -> Result<Candidates<'a>, Error> {
    let (session, removals) = (pruner.session, Removals { packs, snapshots });
    // First of all, what a killed prune replaced: a successor names only the documents that it replaces itself.
    remove_replaced(pruner, catalog, |folder| folder == Folder::Index)?;
    let known = catalog.documents()?;
    let valid = known.iter().filter(|known| known.folder == Folder::Index && known.replaced.is_none());
    let valid: Vec<_> = valid.filter(|known| known.generation < session.generation()).map(|known| known.id).collect();
    let (bases, last_holds) = (Bases::new(snapshots), Holds::default());
    let mut candidates = Candidates { all: Vec::new(), bases, last_holds };
    let mut kept = 0;
    let target = session.repository().target();
    // The catalog does not know how large they are. Nothing is read ahead from a local target.
    let listed = if target.local_path().is_some() { Vec::new() } else { target.list(name::INDEX)? };
    let reads = listed.iter().filter_map(|index| Some((name::parse_index(&index.name)?, index)));
    let mut reads: HashMap<_, _> =
        reads.filter_map(|(id, index)| Some((id, Access::read_of_document(index)?))).collect();
    let ahead = valid.iter().filter_map(|id| reads.get(id).cloned()).collect();
    target.reading_ahead(ahead, || {
        for id in valid {
            pruner.inventory.check_interrupted()?;
            let index = session.access().index(session.repository(), id)?;
            found(id, &index);
            let orphans = candidates.bases.learn(&index.snapshots);
            let mut candidate = candidate(catalog, id, &index, &removals, orphans)?;
            candidate.read = reads.remove(&id);
            candidates.last_holds.add(index.generation, &index.holds);
            let size = 1 + chunks(&index) + index.snapshots.iter().map(runs).sum::<usize>();
            if kept + size <= KEPT {
                kept += size;
                candidate.index = Some(index);
            }
            candidates.all.push(candidate);
        }
        Ok(candidates)
    })
}

/// Writes successors of the indexes that name what is removed, then removes these indexes. Many small ones are joined.
pub(super) fn rewrite(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    candidates: Candidates<'_>,
    removals: &Removals<'_>,
) -> Result<(), Error> {
    let session = pruner.session;
    let Candidates { all: mut candidates, bases, last_holds } = candidates;
    let join = candidates.iter().filter(|candidate| candidate.is_small).count() >= SMALL_INDEXES;
    let holds =
        candidates.iter().any(|candidate| candidate.has_holds && (candidate.must || (join && candidate.is_small)));
    candidates.retain(|candidate| candidate.must || (join && candidate.is_small) || (holds && candidate.has_holds));
    candidates.sort_by_key(|candidate| candidate.sequence);
    let orphans = candidates.iter().flat_map(|candidate| candidate.orphans.iter().cloned()).collect();
    let mut successor = Successor::new(pruner, removals, NewBases::new(catalog, &bases, orphans)?);
    if holds {
        // In the first successor: each one replaces only its own indexes, and the run may be killed in between.
        successor.index.holds = last_holds.to_vec();
        successor.index.holds.retain(|hold| !removals.snapshots.contains(&hold.snapshot.id));
    }
    let unread = candidates.iter().filter(|candidate| candidate.index.is_none());
    let reads = unread.filter_map(|candidate| candidate.read.clone()).collect();
    session.repository().target().reading_ahead(reads, || {
        for candidate in candidates {
            pruner.inventory.check_interrupted()?;
            // The usage of a snapshot without a base may take as much memory as a whole index.
            if !candidate.orphans.is_empty() && successor.chunks > CHUNKS / 4 {
                successor.write(catalog)?;
            }
            let index = match candidate.index {
                Some(index) => index,
                None => session.access().index(session.repository(), candidate.id)?,
            };
            successor.add(catalog, candidate.id, index)?;
        }
        successor.finish(catalog)
    })
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
    for documents in replaced.chunk_by(|(one, _), (next, _)| one == next) {
        if !remove_documents(pruner, catalog, documents)? {
            break;
        }
    }
    Ok(catalog.commit()?)
}

/// Removes documents that were replaced by the same generation. Returns whether all are gone.
fn remove_documents(
    pruner: &Pruner<'_>,
    catalog: &mut Catalog,
    documents: &[(u64, KnownDocument)],
) -> Result<bool, Error> {
    let there: Vec<_> = documents.iter().map(|(_, known)| known).filter(|known| !known.is_removed).collect();
    let mut refused = HashSet::new();
    if !there.is_empty() {
        let remover = pruner.remover(catalog)?;
        let objects: Vec<_> = there.iter().map(|known| known.object()).collect();
        for (known, is_gone) in there.into_iter().zip(pruner.remove_all(&remover, &objects)?) {
            if is_gone {
                catalog.set_document_removed(known)?;
            } else {
                refused.insert(known.id);
            }
        }
    }
    for (replaced, known) in documents {
        // Until then, the census of the last generation counts it.
        if *replaced < pruner.clock.before && !refused.contains(&known.id) {
            catalog.remove_document(known)?;
        }
    }
    Ok(refused.is_empty())
}

fn candidate(
    catalog: &Catalog,
    id: ObjectId,
    index: &Index,
    removals: &Removals<'_>,
    orphans: Vec<Orphan>,
) -> Result<Candidate, Error> {
    let removed = |pack: &PackId| removals.packs.contains(pack);
    let mut must = index.packs.iter().any(|pack| removed(&pack.id) && pack.digest.is_some());
    must |= index.carriers.iter().any(|carrier| removed(&carrier.id));
    must |= !orphans.is_empty();
    must |= index.snapshots.iter().any(|usage| removals.snapshots.contains(&usage.snapshot.id));
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
        index: None,
        read: None,
        orphans,
    })
}

fn chunks(index: &Index) -> usize {
    let packs: usize = index.packs.iter().flat_map(|pack| &pack.blocks).map(|block| block.chunks.len()).sum();
    packs + index.carriers.iter().map(|carrier| carrier.blocks.len()).sum::<usize>()
}

/// The number of packs and of runs of blocks in a usage.
fn runs(usage: &SnapshotUsage) -> usize {
    usage.added.iter().chain(&usage.removed).map(|(_, runs)| 1 + runs.len()).sum()
}

/// Collects the contents of indexes, and writes them as few new ones.
struct Successor<'p, 's> {
    pruner: &'p Pruner<'s>,
    removals: &'p Removals<'p>,
    index: Index,
    chunks: usize,
    runs: usize,
    /// For usages of snapshots whose base is removed, in the order in which they are added.
    bases: NewBases,
}

impl<'p, 's> Successor<'p, 's> {
    fn new(pruner: &'p Pruner<'s>, removals: &'p Removals<'p>, bases: NewBases) -> Self {
        Successor { pruner, removals, index: Index::default(), chunks: 0, runs: 0, bases }
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
        if let Some(NewBase { base, change }) = self.bases.next(catalog, usage.snapshot.id)? {
            usage.base = base;
            (usage.added, usage.removed) = (catalog.block_runs(&change.added)?, catalog.block_runs(&change.removed)?);
        }
        self.runs += runs(&usage);
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
