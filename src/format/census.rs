//! Names and generations of documents, and whether they are those of a census.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::generation::NameSet;
use super::name;

/// Maximum number of names that are looked at to find out which ones a census did not count.
const MAX_WORK: usize = 1 << 24;

/// A name, and the generation of the run that wrote the object.
pub type DatedName = (String, u64);

/// The documents of a folder.
#[derive(Debug, Default)]
pub struct Documents {
    /// Names and generations of those that were opened.
    opened: HashMap<String, u64>,
    /// Names of those that others replace, with the generations of these.
    replaced: HashMap<String, Vec<u64>>,
    /// Whether a document could not be opened.
    pub is_incomplete: bool,
}

/// The documents that a census counts, apart from snapshots.
#[derive(Debug, Default)]
pub struct KnownDocuments {
    /// Indexes.
    pub index: Documents,
    /// Shards of moves.
    pub moved: Documents,
    /// Documents of tombstones.
    pub forgotten: Documents,
    /// Secrets documents.
    pub secrets: Documents,
}

impl KnownDocuments {
    /// The documents of a folder; `None` if a census does not count documents of it.
    pub fn of(&self, folder: &str) -> Option<&Documents> {
        match folder {
            name::INDEX => Some(&self.index),
            name::MOVED => Some(&self.moved),
            name::FORGOTTEN => Some(&self.forgotten),
            name::SECRETS => Some(&self.secrets),
            _ => None,
        }
    }
}

impl Documents {
    /// Adds a document that was opened.
    pub fn add(&mut self, object: String, generation: u64) {
        self.opened.insert(object, generation);
    }

    /// Notes that a document of `generation` replaces these.
    pub fn replace(&mut self, objects: impl Iterator<Item = String>, generation: u64) {
        for object in objects {
            self.replaced.entry(object).or_default().push(generation);
        }
    }

    /// The highest generation of the documents that were opened.
    pub fn newest(&self) -> u64 {
        self.opened.values().copied().max().unwrap_or(0)
    }

    /// The documents on which a run of `generation` relied when it began. Documents that were replaced since then may have
    /// been removed; their generation is unknown, and 0.
    pub fn counted(&self, generation: u64) -> Vec<DatedName> {
        self.counted_without(generation, &(0..0))
    }

    /// Like [`Documents::counted`], of a run that did not know the documents of the generations in `unknown`.
    fn counted_without(&self, generation: u64, unknown: &Range<u64>) -> Vec<DatedName> {
        let is_known = |written: &u64| *written < generation && !unknown.contains(written);
        let is_replaced = |object: &str| self.replaced.get(object).is_some_and(|by| by.iter().any(is_known));
        let opened = self.opened.iter().filter(|(object, written)| is_known(written) && !is_replaced(object));
        let removed = self.replaced.keys().filter(|object| !self.opened.contains_key(*object) && !is_replaced(object));
        let removed = removed.map(|object| (object.clone(), 0));
        opened.map(|(object, written)| (object.clone(), *written)).chain(removed).collect()
    }

    /// Whether the census of a run of `generation` is that of these documents without those of some successive runs. Another
    /// machine may have written these, with a host key that the run did not trust.
    pub fn are_counted_except_runs(&self, expected: NameSet, generation: u64) -> bool {
        let runs: BTreeSet<_> = self.opened.values().copied().filter(|written| *written < generation).collect();
        let runs: Vec<_> = runs.into_iter().collect();
        let documents = self.opened.len() + self.replaced.len();
        if runs.len().saturating_mul(runs.len()).saturating_mul(documents) > MAX_WORK {
            return false;
        }
        let from = |at| runs.iter().skip(at).map(move |last| last + 1);
        let mut ranges = runs.iter().enumerate().flat_map(|(at, first)| from(at).map(|end| *first..end));
        ranges.any(|unknown| {
            let names = self.counted_without(generation, &unknown).into_iter().map(|(name, _)| name);
            NameSet::of(names.collect()) == expected
        })
    }
}

/// Whether a census is that of these names, in order, without some that were written one after the other.
pub fn are_counted_except_some(expected: NameSet, names: &[DatedName]) -> bool {
    let more = names.len().saturating_sub(usize::try_from(expected.count).unwrap_or(usize::MAX));
    if more == 0 || names.len().saturating_mul(names.len()) > MAX_WORK {
        return false;
    }
    let mut by_time: Vec<_> = names.iter().enumerate().map(|(at, (_, generation))| (*generation, at)).collect();
    by_time.sort_unstable();
    by_time.windows(more).any(|left_out| {
        let left_out: BTreeSet<_> = left_out.iter().map(|(_, at)| *at).collect();
        let rest = names.iter().enumerate().filter(|(at, _)| !left_out.contains(at));
        NameSet::of_sorted(rest.map(|(_, (name, _))| name.as_str())) == expected
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> NameSet {
        NameSet::of(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_name_that_was_added_does_not_replace_a_missing_one() {
        let names: Vec<_> =
            [("a", 1), ("b", 3), ("c", 2), ("d", 3)].map(|(name, written)| (name.to_owned(), written)).into();
        for counted in [["a", "b", "c"].as_slice(), &["b", "c", "d"], &["a", "c"], &["a"], &[]] {
            assert!(are_counted_except_some(set(counted), &names), "{counted:?}");
        }
        for counted in [["a", "b", "x"].as_slice(), &["x"], &["a", "b", "c", "d"], &["a", "b", "c", "x"], &["c"]] {
            assert!(!are_counted_except_some(set(counted), &names), "{counted:?}");
        }
    }

    #[test]
    fn a_run_may_not_know_documents_that_replaced_others() {
        let mut documents = Documents::default();
        for (name, written) in [("a", 1), ("b", 2), ("d", 4), ("e", 5)] {
            documents.add(name.to_owned(), written);
        }
        // The third document was removed.
        documents.replace(["a", "c"].map(str::to_owned).into_iter(), 4);
        let is_explained = |names: &[&str]| documents.are_counted_except_runs(set(names), 5);
        let mut counted: Vec<_> = documents.counted(5).into_iter().map(|(name, _)| name).collect();
        counted.sort();
        assert_eq!(counted, ["b", "d"]);
        assert!(is_explained(&["a", "b", "c"]) && is_explained(&["d"]) && is_explained(&["a", "c"]));
        assert!(!is_explained(&["b"]) && !is_explained(&["a", "b"]) && !is_explained(&["a", "b", "c", "d"]));
    }
}
