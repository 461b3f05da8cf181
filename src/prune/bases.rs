//! New bases for the usages of kept snapshots whose base is removed.
//!
//! Their blocks are in the catalog, so the differences to the new bases are computed from it, some at a time: those of a
//! long series of removed snapshots would not fit in memory.

use std::collections::{HashMap, HashSet, VecDeque};

use super::error::Error;
use crate::catalog::{Catalog, UsageChange, UsagePair};
use crate::format::id::SnapshotId;
use crate::format::name::SnapshotName;
use crate::format::usage::SnapshotUsage;

/// The number of differences that are computed at a time, and the blocks in them.
const PAIRS: usize = 64;
const BLOCKS: u64 = 1 << 20;

/// A kept snapshot whose base is removed.
#[derive(Debug, Clone)]
pub(super) struct Orphan {
    snapshot: SnapshotId,
    base: SnapshotName,
}

/// The bases of removed snapshots.
pub(super) struct Bases<'a> {
    removed: &'a HashSet<SnapshotId>,
    known: HashMap<SnapshotId, Option<SnapshotName>>,
}

impl<'a> Bases<'a> {
    pub(super) fn new(removed: &'a HashSet<SnapshotId>) -> Self {
        Bases { removed, known: HashMap::new() }
    }

    /// Notes the bases of removed snapshots. Returns the kept ones whose base is removed, in order.
    pub(super) fn learn(&mut self, usages: &[SnapshotUsage]) -> Vec<Orphan> {
        let mut orphans = Vec::new();
        for SnapshotUsage { snapshot, base, .. } in usages {
            if self.removed.contains(&snapshot.id) {
                self.known.insert(snapshot.id, base.clone());
            } else if let Some(base) = base
                && self.removed.contains(&base.id)
            {
                orphans.push(Orphan { snapshot: snapshot.id, base: base.clone() });
            }
        }
        orphans
    }

    /// The kept snapshot that a series of removed ones begins with, if there is one. If a prune was killed, the usages of
    /// removed snapshots may be gone.
    fn kept_before<'s>(&'s self, removed: &'s SnapshotName) -> Option<&'s SnapshotName> {
        let mut before = removed;
        while self.removed.contains(&before.id) {
            let base = self.known.get(&before.id)?.as_ref()?;
            // So that no series is endless.
            before = Some(base).filter(|base| base.sequence < before.sequence)?;
        }
        Some(before)
    }
}

/// A snapshot with its new base.
struct Waiting {
    snapshot: SnapshotId,
    base: Option<SnapshotName>,
    pair: UsagePair,
}

/// A new base, and the difference to it.
pub(super) struct NewBase {
    pub(super) base: Option<SnapshotName>,
    pub(super) change: UsageChange,
}

/// Computes new bases of snapshots in a given order.
pub(super) struct NewBases {
    waiting: VecDeque<Waiting>,
    ready: VecDeque<(SnapshotId, NewBase)>,
}

impl NewBases {
    /// Those of `orphans`. Snapshots whose blocks the catalog does not know are left out.
    pub(super) fn new(catalog: &Catalog, bases: &Bases<'_>, orphans: Vec<Orphan>) -> Result<Self, Error> {
        let mut waiting = VecDeque::new();
        for Orphan { snapshot, base } in orphans {
            let base = bases.kept_before(&base);
            if let Some(pair) = catalog.usage_pair(snapshot, base.map(|base| base.id))? {
                waiting.push_back(Waiting { snapshot, base: base.filter(|_| pair.has_base()).cloned(), pair });
            }
        }
        Ok(NewBases { waiting, ready: VecDeque::new() })
    }

    /// The new base of a snapshot, which must be the next one in order; `None` if it has none.
    pub(super) fn next(&mut self, catalog: &Catalog, snapshot: SnapshotId) -> Result<Option<NewBase>, Error> {
        if self.ready.is_empty() && self.waiting.front().is_some_and(|next| next.snapshot == snapshot) {
            let pairs: Vec<_> = self.waiting.iter().take(PAIRS).map(|next| next.pair).collect();
            let changes = catalog.usage_changes(&pairs, BLOCKS)?;
            let done = changes.len().min(self.waiting.len());
            let next = self.waiting.drain(..done);
            self.ready.extend(next.zip(changes).map(|(next, change)| {
                let Waiting { snapshot, base, .. } = next;
                (snapshot, NewBase { base, change })
            }));
        }
        let is_next = self.ready.front().is_some_and(|(next, _)| *next == snapshot);
        Ok(if is_next { self.ready.pop_front().map(|(_, base)| base) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::id::SourceId;

    fn usage(snapshot: &SnapshotName, base: Option<&SnapshotName>) -> SnapshotUsage {
        SnapshotUsage {
            snapshot: snapshot.clone(),
            base: base.cloned(),
            added: Vec::new(),
            removed: Vec::new(),
            source: String::new(),
            files: 0,
            bytes: 0,
            stored_bytes: 0,
            labels: Default::default(),
        }
    }

    #[test]
    fn the_new_base_is_the_last_kept_snapshot_of_the_series() {
        let source = SourceId::random();
        let names: Vec<_> = (0..6)
            .map(|sequence| SnapshotName {
                source,
                sequence,
                time: "20261120T145201Z".into(),
                id: SnapshotId::random(),
            })
            .collect();
        let [a, b, c, d, e, f] = &names[..] else { panic!() };
        // `f` is its own base, by damage; the usage of `e` is gone.
        let usages = [usage(a, None), usage(b, Some(a)), usage(c, Some(b)), usage(d, Some(c)), usage(f, Some(f))];
        let bases_without = |removed: &[&SnapshotName], asked: &SnapshotName| {
            let removed = removed.iter().map(|name| name.id).collect();
            let mut bases = Bases::new(&removed);
            let orphans = bases.learn(&usages);
            (orphans.iter().map(|orphan| orphan.snapshot).collect::<Vec<_>>(), bases.kept_before(asked).cloned())
        };
        assert_eq!(bases_without(&[b, c], c), (vec![d.id], Some(a.clone())));
        assert_eq!(bases_without(&[a, b, c], c), (vec![d.id], None));
        assert_eq!(bases_without(&[a], a), (vec![b.id], None));
        assert_eq!(bases_without(&[b, e], e), (vec![c.id], None));
        assert_eq!(bases_without(&[f], f), (vec![], None));
    }
}
