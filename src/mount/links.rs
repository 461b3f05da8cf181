//! Inode numbers of hard-linked files.
//!
//! A stored link id cannot be trusted: file systems reuse inode numbers, a file may change between the backups of two of
//! its names, and a stolen host key can sign anything. The kernel keeps one set of attributes and cached pages per inode
//! number, so names share a number only if their entries are equal in everything except the name. The number contains
//! some bits of a digest of the rest, so that names that differ get different numbers, the same in each mount. If those
//! bits collide, the file that the kernel looked up first keeps the number, and names of the other are shown as separate
//! files.

use std::collections::HashMap;
use std::sync::Mutex;

use super::lock::lock;
use super::number::{Ino, Number};
use crate::archive::EntryHandle;
use crate::format::Digest;

/// The shared inode numbers that the kernel holds. Each refers to the entry for which it was first returned.
#[derive(Default)]
pub(super) struct SharedInodes {
    known: Mutex<HashMap<Ino, SharedInode>>,
}

struct SharedInode {
    /// An entry of the file: the snapshot's number and the entry's rank.
    entry: (u64, u64),
    /// Digest of everything the file's names share.
    file: Digest,
    /// Lookup count of the kernel.
    lookups: u64,
}

impl SharedInodes {
    /// Returns the inode number of an entry.
    pub(super) fn ino(&self, snapshot: u64, entry: &EntryHandle) -> Ino {
        let own = Number::Entry(snapshot, entry.rank).ino();
        let Some((shared, file)) = shared(snapshot, entry) else { return own };
        match lock(&self.known).get(&shared) {
            Some(known) if known.file != file => own,
            _ => shared,
        }
    }

    /// Returns the inode number of an entry and counts a lookup of it, until [`SharedInodes::forget`].
    pub(super) fn ino_counted(&self, snapshot: u64, entry: &EntryHandle) -> Ino {
        let own = Number::Entry(snapshot, entry.rank).ino();
        let Some((shared, file)) = shared(snapshot, entry) else { return own };
        let mut known = lock(&self.known);
        let known = known.entry(shared).or_insert(SharedInode { entry: (snapshot, entry.rank), file, lookups: 0 });
        if known.file != file {
            return own;
        }
        known.lookups += 1;
        shared
    }

    /// Reduces the lookup count of an inode number by `times`.
    pub(super) fn forget(&self, ino: Ino, times: u64) {
        if !matches!(Number::of(ino), Some(Number::Linked(..))) {
            return;
        }
        let mut all = lock(&self.known);
        if let Some(known) = all.get_mut(&ino) {
            known.lookups = known.lookups.saturating_sub(times);
            if known.lookups == 0 {
                all.remove(&ino);
            }
        }
    }

    /// Returns the entry of a shared inode number: the snapshot's number and the entry's rank.
    pub(super) fn entry(&self, ino: Ino) -> Option<(u64, u64)> {
        lock(&self.known).get(&ino).map(|known| known.entry)
    }
}

/// Returns the shared inode number of the entry's file and the digest of everything its names share; `None` if it has one
/// name.
fn shared(snapshot: u64, entry: &EntryHandle) -> Option<(Ino, Digest)> {
    let link = entry.entry().link.filter(|link| link.count > 1)?;
    let file = entry.inode_digest();
    Some((Number::linked(snapshot, link.id, file).ino(), file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::memory::MemoryEntry;
    use crate::format::entry::HardLink;

    fn entry(name: &str, mtime: i64) -> MemoryEntry {
        MemoryEntry { mtime, link: Some(HardLink { id: 7, count: 2 }), ..MemoryEntry::file(name, b"") }
    }

    /// Two different entries with one link id whose digests collide in the bits that the numbers contain.
    fn twins() -> [MemoryEntry; 2] {
        let first = entry("first", 0);
        let ino = |entry: &MemoryEntry| shared(3, &entry.clone().handle(0)).unwrap().0;
        let second = (1..).map(|mtime| entry("second", mtime)).find(|second| ino(second) == ino(&first));
        [first, second.unwrap()]
    }

    #[test]
    fn names_of_one_file_share_a_number_and_others_do_not() {
        let links = SharedInodes::default();
        let tell = |rank, entry: &MemoryEntry| links.ino_counted(3, &entry.clone().handle(rank));
        let first = tell(5, &entry("a", 0));
        assert_eq!((tell(9, &entry("b", 0)), links.entry(first)), (first, Some((3, 5))));
        let different: Vec<_> = (1..20).map(|mtime| tell(mtime as u64 + 20, &entry("c", mtime))).collect();
        assert!(!different.contains(&first));
        let other_snapshot = links.ino_counted(4, &entry("a", 0).handle(5));
        assert_ne!(other_snapshot, first);
        let alone = MemoryEntry { link: None, ..entry("a", 0) };
        assert_eq!(tell(5, &alone), Number::Entry(3, 5).ino());
    }

    #[test]
    fn the_first_of_two_that_collide_has_the_number_until_it_is_forgotten() {
        let [first, second] = twins();
        let (first, second) = (|rank| first.clone().handle(rank), second.handle(9));
        let links = SharedInodes::default();
        let shared = links.ino_counted(3, &first(5));
        let own = Number::Entry(3, 9).ino();
        assert_eq!((links.ino(3, &second), links.ino_counted(3, &second)), (own, own));
        assert_eq!((links.ino_counted(3, &first(6)), links.entry(shared)), (shared, Some((3, 5))));
        links.forget(shared, 1);
        links.forget(own, 1);
        assert_eq!(links.ino_counted(3, &second), own, "one name of it is still known");
        links.forget(shared, 1);
        assert_eq!(links.entry(shared), None);
        assert_eq!((links.ino_counted(3, &second), links.entry(shared)), (shared, Some((3, 9))));
    }
}
