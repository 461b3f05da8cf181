//! Files with several names: which number their names share.
//!
//! A link's id alone says nothing that can be relied on: file systems give two files one inode number, a file changes
//! between the backups of two of its names, and a stolen host key signs anything. The kernel keeps one set of attributes
//! and one set of cached pages per inode number, so names share a number only if their entries agree in everything but
//! the name. A part of the digest of everything else is in the number, so that names that differ get different numbers in
//! each mount. Where those parts are equal by chance or by intent, the names that the kernel heard of first have the
//! number, and others are shown as files of their own.

use std::collections::HashMap;
use std::sync::Mutex;

use super::lock::lock;
use super::number::{Ino, Number};
use crate::format::{Digest, Entry};

/// Numbers of files with several names, as far as the kernel knows them. Each leads to the entry it was given to first.
#[derive(Default)]
pub(super) struct SharedInodes {
    known: Mutex<HashMap<Ino, SharedInode>>,
}

struct SharedInode {
    /// An entry of the file: the snapshot's number, and the entry's rank.
    place: (u64, u64),
    /// What all its names have in common.
    file: Digest,
    /// How many times the kernel was told of the number and did not forget it.
    told: u64,
}

impl SharedInodes {
    /// The number of an entry.
    pub(super) fn ino(&self, snapshot: u64, rank: u64, entry: &Entry) -> Ino {
        let own = Number::Entry(snapshot, rank).ino();
        let Some((shared, file)) = shared(snapshot, entry) else { return own };
        match lock(&self.known).get(&shared) {
            Some(known) if known.file != file => own,
            _ => shared,
        }
    }

    /// The number of an entry, which the kernel is told and remembers until it forgets it.
    pub(super) fn tell(&self, snapshot: u64, rank: u64, entry: &Entry) -> Ino {
        let own = Number::Entry(snapshot, rank).ino();
        let Some((shared, file)) = shared(snapshot, entry) else { return own };
        let mut known = lock(&self.known);
        let known = known.entry(shared).or_insert(SharedInode { place: (snapshot, rank), file, told: 0 });
        if known.file != file {
            return own;
        }
        known.told += 1;
        shared
    }

    /// The kernel forgot a number so many times.
    pub(super) fn forget(&self, ino: Ino, times: u64) {
        if !matches!(Number::of(ino), Some(Number::Linked(..))) {
            return;
        }
        let mut all = lock(&self.known);
        if let Some(known) = all.get_mut(&ino) {
            known.told = known.told.saturating_sub(times);
            if known.told == 0 {
                all.remove(&ino);
            }
        }
    }

    /// The entry that a number leads to: the snapshot's number, and the entry's rank.
    pub(super) fn place(&self, ino: Ino) -> Option<(u64, u64)> {
        lock(&self.known).get(&ino).map(|known| known.place)
    }
}

/// The number that the names of the entry's file share, and what they have in common. `None`: it has one name.
fn shared(snapshot: u64, entry: &Entry) -> Option<(Ino, Digest)> {
    let link = entry.link.filter(|link| link.count > 1)?;
    let file = entry.inode_digest();
    Some((Number::linked(snapshot, link.id, file).ino(), file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Kind;
    use crate::format::entry::{Content, HardLink, Timestamp};

    fn entry(name: &str, mtime: i64) -> Entry {
        Entry {
            name: name.into(),
            kind: Kind::Fifo,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp { seconds: mtime, nanos: 0 },
            size: 0,
            content: Content::Empty,
            link: Some(HardLink { id: 7, count: 2 }),
            xattrs: Vec::new(),
            flags: 0,
            inode_flags: 0,
        }
    }

    /// Two entries with one link id that differ, although the parts of their digests in their numbers are equal.
    fn twins() -> [Entry; 2] {
        let first = entry("first", 0);
        let ino = |entry: &Entry| shared(3, entry).unwrap().0;
        let second = (1..).map(|mtime| entry("second", mtime)).find(|second| ino(second) == ino(&first));
        [first, second.unwrap()]
    }

    #[test]
    fn names_of_one_file_share_a_number_and_others_do_not() {
        let links = SharedInodes::default();
        let tell = |rank, entry: &Entry| links.tell(3, rank, entry);
        let first = tell(5, &entry("a", 0));
        assert_eq!((tell(9, &entry("b", 0)), links.place(first)), (first, Some((3, 5))));
        let different: Vec<_> = (1..20).map(|mtime| tell(mtime as u64 + 20, &entry("c", mtime))).collect();
        assert!(!different.contains(&first));
        let other_snapshot = links.tell(4, 5, &entry("a", 0));
        assert_ne!(other_snapshot, first);
        let alone = Entry { link: None, ..entry("a", 0) };
        assert_eq!(tell(5, &alone), Number::Entry(3, 5).ino());
    }

    #[test]
    fn the_first_of_two_that_collide_has_the_number_until_it_is_forgotten() {
        let [first, second] = twins();
        let links = SharedInodes::default();
        let shared = links.tell(3, 5, &first);
        let own = Number::Entry(3, 9).ino();
        assert_eq!((links.ino(3, 9, &second), links.tell(3, 9, &second)), (own, own));
        assert_eq!((links.tell(3, 6, &first), links.place(shared)), (shared, Some((3, 5))));
        links.forget(shared, 1);
        links.forget(own, 1);
        assert_eq!(links.tell(3, 9, &second), own, "one name of it is still known");
        links.forget(shared, 1);
        assert_eq!(links.place(shared), None);
        assert_eq!((links.tell(3, 9, &second), links.place(shared)), (shared, Some((3, 9))));
    }
}
