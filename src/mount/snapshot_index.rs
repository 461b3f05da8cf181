//! The snapshots of a mount and the names under which they are shown.
//!
//! Snapshots and sources are numbered as they are found, for their inode numbers; a number is never reused. A snapshot
//! whose name or source's name changes gets a new number, because its old path no longer exists and links to it get new
//! targets. The index takes some hundred bytes per snapshot, and updating it takes time proportional to its size.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::ops::Bound;
use std::sync::Arc;

use lru::LruCache;

use crate::archive::OpenSnapshot;
use crate::format::id::{SnapshotId, SourceId};
use crate::format::name::SnapshotName;

/// Maximum number of open snapshots. Opening one takes a fraction of a millisecond, or an operation of a smart card.
const OPEN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);
/// Maximum number of snapshots; further ones are not shown.
pub(super) const SNAPSHOTS: u64 = 1 << 22;

/// The names in a directory above the snapshots, and the number for each.
#[derive(Default)]
pub(super) struct VirtualFolder {
    numbers: BTreeMap<String, u64>,
    /// Current or last name of each number: a listing can continue after a removed name.
    names: HashMap<u64, String>,
}

impl VirtualFolder {
    /// Returns the number for a name.
    pub(super) fn get(&self, name: &str) -> Option<u64> {
        self.numbers.get(name).copied()
    }

    /// Returns the current name of a number.
    pub(super) fn name(&self, number: u64) -> Option<&str> {
        self.names.get(&number).map(String::as_str).filter(|name| self.get(name) == Some(number))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Returns names and numbers in order, after the one with this listing offset (0: all of them); see
    /// [`VirtualFolder::offset`].
    pub(super) fn after(&self, offset: u64) -> impl Iterator<Item = (&str, u64)> {
        let first = match offset.checked_sub(1).map(|number| self.names.get(&number)) {
            None => Some(Bound::Unbounded),
            Some(Some(name)) => Some(Bound::Excluded(name.as_str())),
            Some(None) => None,
        };
        let range = first.map(|first| self.numbers.range::<str, _>((first, Bound::Unbounded)));
        range.into_iter().flatten().map(|(name, number)| (name.as_str(), *number))
    }

    /// Returns the listing offset after a number; never 0.
    pub(super) fn offset(number: u64) -> u64 {
        number + 1
    }

    /// Removes all names, but remembers them for listings in progress and for renames.
    pub(super) fn clear(&mut self) {
        self.numbers.clear();
    }

    /// Adds a name. Returns whether its number had another name before.
    pub(super) fn add(&mut self, name: String, number: u64) -> bool {
        let renamed = self.names.insert(number, name.clone()).is_some_and(|before| before != name);
        self.numbers.insert(name, number);
        renamed
    }
}

/// A source and the directory of its snapshots.
#[derive(Default)]
struct SourceFolder {
    /// `None` while it cannot be read.
    name: Option<String>,
    snapshots: VirtualFolder,
    /// All names ever given. A name is not given to another snapshot, so that a path never changes its target.
    given: HashMap<String, SnapshotId>,
    /// Numbers of the snapshots, oldest first. Names are in the order of the clock, which may have been wrong.
    order: Vec<u64>,
}

/// The snapshots found so far, and the directories of sources.
pub(super) struct SnapshotIndex {
    /// By number.
    names: Vec<SnapshotName>,
    numbers: HashMap<SnapshotName, u64>,
    /// Numbers of the existing snapshots, oldest first.
    there: Vec<u64>,
    /// Numbers of objects that have the name of a snapshot and do not verify. They are not shown.
    hidden: HashSet<u64>,
    /// Whether the snapshot exists and is shown, by number.
    is_there: Vec<bool>,
    open: LruCache<u64, Arc<OpenSnapshot>>,
    /// By number.
    sources: Vec<SourceFolder>,
    source_numbers: HashMap<SourceId, u64>,
    /// The directories of sources.
    top: VirtualFolder,
    /// A name that no source may have.
    reserved: &'static str,
    edition: u64,
}

impl SnapshotIndex {
    /// Creates an empty index, in which no source gets the name `reserved`.
    pub(super) fn new(reserved: &'static str) -> Self {
        SnapshotIndex {
            names: Vec::new(),
            numbers: HashMap::new(),
            there: Vec::new(),
            hidden: HashSet::new(),
            is_there: Vec::new(),
            open: LruCache::new(OPEN),
            sources: Vec::new(),
            source_numbers: HashMap::new(),
            top: VirtualFolder::default(),
            reserved,
            edition: 0,
        }
    }

    /// Returns the sources of `listed` whose names are not known yet.
    pub(super) fn unnamed(&self, listed: &[SnapshotName]) -> Vec<SourceId> {
        let is_named = |id: &SourceId| {
            let number = self.source_numbers.get(id);
            number.and_then(|number| self.source(*number)).is_some_and(|source| source.name.is_some())
        };
        let mut ids: Vec<_> = listed.iter().map(|name| name.source).filter(|id| !is_named(id)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Updates the index with all existing snapshots, oldest first, and with newly read names of sources. Returns whether
    /// anything changed.
    pub(super) fn update(&mut self, listed: Vec<SnapshotName>, names: Vec<(SourceId, String)>) -> bool {
        let mut there = Vec::with_capacity(listed.len());
        for name in listed {
            self.source_number(name.source);
            let next = self.names.len() as u64;
            let number = self.numbers.get(&name).copied().or((next < SNAPSHOTS).then_some(next));
            let Some(number) = number else { continue };
            if number == next {
                self.numbers.insert(name.clone(), number);
                self.names.push(name);
            }
            there.push(number);
        }
        let is_new = there != self.there || !names.is_empty();
        for (id, name) in names {
            let number = self.source_number(id);
            if let Some(source) = at_mut(&mut self.sources, number) {
                source.name = Some(name);
            }
        }
        if is_new {
            self.there = there;
            self.show_again();
        }
        is_new
    }

    /// Hides objects that are not valid snapshots.
    pub(super) fn hide(&mut self, numbers: &[u64]) {
        self.hidden.extend(numbers);
        self.show_again();
    }

    /// Objects that are not shown.
    pub(super) fn hidden(&self) -> Vec<(u64, SnapshotName)> {
        self.hidden.iter().filter_map(|number| Some((*number, at(&self.names, *number)?.clone()))).collect()
    }

    /// Shows hidden objects again.
    pub(super) fn unhide(&mut self, numbers: &[u64]) {
        numbers.iter().for_each(|number| _ = self.hidden.remove(number));
        self.show_again();
    }

    fn show_again(&mut self) {
        let renamed = self.show();
        if !renamed.is_empty() {
            self.renumber(&renamed);
            self.show();
        }
    }

    fn source_number(&mut self, id: SourceId) -> u64 {
        let next = self.sources.len() as u64;
        let number = *self.source_numbers.entry(id).or_insert(next);
        if number == next {
            self.sources.push(SourceFolder::default());
        }
        number
    }

    /// Gives new numbers to renamed snapshots.
    fn renumber(&mut self, renamed: &HashSet<u64>) {
        for number in self.there.iter_mut().filter(|number| renamed.contains(number)) {
            let next = self.names.len() as u64;
            let Some(name) = at(&self.names, *number).filter(|_| next < SNAPSHOTS).cloned() else { continue };
            self.numbers.insert(name.clone(), next);
            self.names.push(name);
            *number = next;
        }
    }

    /// Rebuilds the directories. Returns the snapshots whose paths changed.
    fn show(&mut self) -> HashSet<u64> {
        let (mut renamed, mut renamed_sources) = (HashSet::new(), HashSet::new());
        self.edition += 1;
        self.top.clear();
        for source in &mut self.sources {
            source.snapshots.clear();
            source.order.clear();
        }
        self.is_there.clear();
        self.is_there.resize(self.names.len(), false);
        for number in self.there.iter().filter(|number| !self.hidden.contains(number)) {
            let Some(name) = at(&self.names, *number) else { continue };
            if let Some(there) = at_mut(&mut self.is_there, *number) {
                *there = true;
            }
            let Some(source_number) = self.source_numbers.get(&name.source).copied() else { continue };
            let Some(source) = at_mut(&mut self.sources, source_number) else { continue };
            if source.snapshots.is_empty() {
                // The id is appended to a name in use, and stands for a name that cannot be read.
                let id = name.source.to_string();
                let names = source.name.iter().flat_map(|name| [name.clone(), format!("{name}-{id}")]);
                let is_free = |name: &String| self.top.get(name).is_none() && name != self.reserved;
                if let Some(free) = names.chain([id.clone()]).find(is_free)
                    && self.top.add(free, source_number)
                {
                    renamed_sources.insert(source_number);
                }
            }
            // Likewise for snapshots of the same second.
            let time = match source.given.get(&name.time) {
                Some(id) if *id != name.id => format!("{}-{}", name.time, name.id.short()),
                _ => name.time.clone(),
            };
            source.given.insert(time.clone(), name.id);
            source.order.push(*number);
            if source.snapshots.add(time, *number) || renamed_sources.contains(&source_number) {
                renamed.insert(*number);
            }
        }
        renamed
    }

    /// A number that changes whenever the directories do.
    pub(super) fn edition(&self) -> u64 {
        self.edition
    }

    /// The directories of sources, with their numbers.
    pub(super) fn top(&self) -> &VirtualFolder {
        &self.top
    }

    fn source(&self, number: u64) -> Option<&SourceFolder> {
        at(&self.sources, number)
    }

    /// Returns the directory of a source: snapshots by time, with their numbers. `None` if it has no snapshots.
    pub(super) fn snapshots_of(&self, source: u64) -> Option<&VirtualFolder> {
        self.source(source).map(|source| &source.snapshots).filter(|folder| !folder.is_empty())
    }

    /// Returns the snapshots of a source, oldest first.
    pub(super) fn in_order(&self, source: u64) -> &[u64] {
        self.source(source).map_or(&[], |source| &source.order)
    }

    /// Returns the path of an existing snapshot: the name of its source's directory, and its own name in it.
    pub(super) fn shown(&self, number: u64) -> Option<(&str, &str)> {
        let source = *self.source_numbers.get(&self.name(number)?.source)?;
        Some((self.top.name(source)?, self.snapshots_of(source)?.name(number)?))
    }

    /// Returns the object name of a snapshot if it exists, even if it has a new number by now.
    pub(super) fn name(&self, number: u64) -> Option<&SnapshotName> {
        at(&self.names, number).filter(|name| {
            let now = self.numbers.get(name);
            now.and_then(|now| at(&self.is_there, *now)) == Some(&true)
        })
    }

    /// Numbers of the existing snapshots, oldest first.
    pub(super) fn there(&self) -> &[u64] {
        &self.there
    }

    /// Returns a snapshot if it is open.
    pub(super) fn open(&mut self, number: u64) -> Option<Arc<OpenSnapshot>> {
        self.open.get(&number).cloned()
    }

    /// Caches an open snapshot.
    pub(super) fn keep(&mut self, number: u64, snapshot: Arc<OpenSnapshot>) {
        self.open.put(number, snapshot);
    }

    /// Returns all open snapshots.
    pub(super) fn all_open(&self) -> impl Iterator<Item = &Arc<OpenSnapshot>> {
        self.open.iter().map(|(_, snapshot)| snapshot)
    }
}

fn at<T>(list: &[T], number: u64) -> Option<&T> {
    list.get(usize::try_from(number).ok()?)
}

fn at_mut<T>(list: &mut [T], number: u64) -> Option<&mut T> {
    list.get_mut(usize::try_from(number).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(source: SourceId, time: &str) -> SnapshotName {
        SnapshotName { source, sequence: 1, time: time.into(), id: SnapshotId::random() }
    }

    fn listed(folder: &VirtualFolder) -> Vec<&str> {
        folder.after(0).map(|(name, _)| name).collect()
    }

    #[test]
    fn names_are_unique_and_the_reserved_name_is_not_used() {
        let ids = [(); 5].map(|()| SourceId::random());
        let all: Vec<_> = ids.iter().map(|id| snapshot(*id, "20261120T145201Z")).collect();
        let mut index = SnapshotIndex::new("by-tag");
        let [a, b, c, d, e] = ids;
        let twin = format!("home-{b}");
        let names = vec![(a, "home".to_owned()), (b, "home".into()), (c, "by-tag".into()), (d, twin.clone())];
        assert_eq!(index.unnamed(&all).len(), 5);
        index.update(all.clone(), names);
        assert_eq!(index.unnamed(&all), [e]);
        let mut expected =
            vec!["home".to_owned(), twin.clone(), format!("by-tag-{c}"), format!("{twin}-{d}"), e.to_string()];
        expected.sort();
        assert_eq!(listed(index.top()), expected);
        let mut twice = all.clone();
        twice.push(snapshot(a, "20261120T145201Z"));
        index.update(twice.clone(), Vec::new());
        let home = index.top().get("home").unwrap();
        let time = format!("20261120T145201Z-{}", twice[5].id.short());
        assert_eq!(listed(index.snapshots_of(home).unwrap()), ["20261120T145201Z", &time]);
        assert_eq!(index.shown(5), Some(("home", time.as_str())));
    }

    #[test]
    fn the_newest_has_the_highest_number_and_is_not_hidden() {
        let id = SourceId::random();
        let all = ["20301120T010000Z", "20261120T010000Z", "20261121T010000Z"].map(|time| snapshot(id, time));
        let mut index = SnapshotIndex::new("by-tag");
        index.update(all.to_vec(), vec![(id, "home".into())]);
        assert_eq!(index.in_order(0), [0, 1, 2]);
        let edition = index.edition();
        index.hide(&[2]);
        assert_ne!(index.edition(), edition);
        assert_eq!((index.in_order(0), index.name(2)), ([0, 1].as_slice(), None));
        index.update(all.to_vec(), Vec::new());
        assert_eq!(listed(index.snapshots_of(0).unwrap()), ["20261120T010000Z", "20301120T010000Z"]);
        index.hide(&[0, 1]);
        assert!(index.snapshots_of(0).is_none() && index.in_order(0).is_empty());
    }

    #[test]
    fn a_renamed_snapshot_gets_a_new_number() {
        let ids = [(); 2].map(|()| SourceId::random());
        let all = [
            snapshot(ids[0], "20261120T010000Z"),
            snapshot(ids[1], "20261120T020000Z"),
            snapshot(ids[1], "20261120T020000Z"),
            snapshot(ids[1], "20261120T030000Z"),
        ];
        let mut index = SnapshotIndex::new("by-tag");
        index.update(all.to_vec(), ids.map(|id| (id, "home".into())).to_vec());
        let (twin, second) = (format!("home-{}", ids[1]), format!("20261120T020000Z-{}", all[2].id.short()));
        assert_eq!(index.shown(3), Some((twin.as_str(), "20261120T030000Z")));
        assert_eq!(index.shown(2), Some((twin.as_str(), second.as_str())));
        // The other snapshot of that second is removed; its name is not given to this one.
        index.update(vec![all[0].clone(), all[2].clone(), all[3].clone()], Vec::new());
        assert_eq!(index.there(), [0, 2, 3]);
        assert_eq!(index.shown(2), Some((twin.as_str(), second.as_str())));
        // The other source called home is removed.
        index.update(vec![all[2].clone(), all[3].clone()], Vec::new());
        assert_eq!(index.there(), [4, 5]);
        assert_eq!(index.shown(4), Some(("home", second.as_str())));
        assert_eq!(index.shown(5), Some(("home", "20261120T030000Z")));
        assert_eq!([2, 3].map(|number| index.shown(number)), [None; 2]);
        // Processes in the snapshot can still use the old number.
        assert_eq!([2, 3].map(|number| index.name(number)), [Some(&all[2]), Some(&all[3])]);
        assert_eq!(index.name(5), Some(&all[3]));
    }

    #[test]
    fn a_removed_snapshot_is_not_shown_and_keeps_its_number() {
        let id = SourceId::random();
        let all: Vec<_> = (1..5).map(|hour| snapshot(id, &format!("20261120T0{hour}0000Z"))).collect();
        let mut index = SnapshotIndex::new("by-tag");
        index.update(all.clone(), vec![(id, "home".into())]);
        let edition = index.edition();
        index.update(all.clone(), Vec::new());
        assert_eq!(index.edition(), edition, "nothing is new");
        index.update(vec![all[0].clone(), all[3].clone()], Vec::new());
        assert_ne!(index.edition(), edition);
        let folder = index.snapshots_of(0).unwrap();
        assert_eq!(listed(folder), ["20261120T010000Z", "20261120T040000Z"]);
        assert_eq!(index.name(1), None);
        // A listing continues after a removed snapshot.
        let rest: Vec<_> = folder.after(VirtualFolder::offset(1)).collect();
        assert_eq!(rest, [("20261120T040000Z", 3)]);
        assert_eq!(folder.after(VirtualFolder::offset(77)).count(), 0);
        index.update(Vec::new(), Vec::new());
        assert!(index.snapshots_of(0).is_none() && index.top().is_empty());
        index.update(all.clone(), Vec::new());
        assert_eq!((index.name(2), index.there().len()), (Some(&all[2]), 4));
    }
}
