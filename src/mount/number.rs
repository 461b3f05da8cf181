//! Inode numbers.
//!
//! They say where a thing is, so there is no table to grow: 23 bits count the snapshots as they are found, 40 bits are the
//! entry's rank in its snapshot (its place in a preorder walk; the root has 0). An entry is found again by descending.
//! Names of the same file must share a number, so hard links have the highest bit set, and instead of a rank their link's
//! id (32 bits) and 8 bits of a digest of everything that the names must have in common (see `links`).
//! What stands above the snapshots has none in its number: sources have even ones, `latest` has an odd one that says
//! which snapshot it leads to, and with the highest bit below the snapshot's, 16 bits count tags and 23 the links in them.
//! So no link ever leads elsewhere, and the kernel may keep where they lead.

use crate::format::{Digest, HardLink};

/// An inode number.
pub type Ino = u64;

/// The top of what is mounted.
pub(super) const TOP: Ino = 1;
/// Bits of a number that are a rank, or stand for a hard link.
const RANK_BITS: u32 = 40;
const RANKS: u64 = 1 << RANK_BITS;
/// Set in the number of a file with several names.
const LINKED: u64 = 1 << 63;
/// The folder of tags; its folders and links have numbers above.
const BY_TAG: Ino = 1 << (RANK_BITS - 1);
/// Bits of a number that say which snapshot a link in a tag's folder leads to.
const LINK_BITS: u32 = 23;

/// What an inode number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// VirtualTree the snapshots.
    Virtual(VirtualNode),
    /// In the snapshot of this number, the entry of this rank.
    Entry(u64, u64),
    /// In the snapshot of this number, the file whose names have this in common: a link's id and bits of a digest.
    Linked(u64, u64),
}

/// A place above the snapshots. Sources, snapshots and tags have numbers of their own, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VirtualNode {
    Top,
    /// The folder of a source.
    Source(u64),
    /// The link to the newest snapshot of a source, by the snapshot's number.
    Latest(u64),
    ByTag,
    /// The folder of a tag.
    Tag(u64),
    /// In the folder of a tag, the link to a snapshot.
    Link(u64, u64),
}

impl Number {
    /// In the snapshot of this number, the file of this link id and digest.
    pub(super) fn linked(snapshot: u64, id: u64, file: Digest) -> Number {
        let Digest([check, ..]) = file;
        Number::Linked(snapshot, (u64::from(check) * HardLink::ID_LIMIT) | (id % HardLink::ID_LIMIT))
    }

    /// What `ino` says; none: nothing has such a number.
    pub(super) fn of(ino: Ino) -> Option<Number> {
        let (snapshot, low) = ((ino & !LINKED) >> RANK_BITS, ino % RANKS);
        match (snapshot.checked_sub(1), ino & LINKED != 0) {
            (Some(snapshot), true) => Some(Number::Linked(snapshot, low)),
            (Some(snapshot), false) => Some(Number::Entry(snapshot, low)),
            (None, true) => None,
            (None, false) => VirtualNode::of(low).map(Number::Virtual),
        }
    }

    /// The inode number.
    pub(super) fn ino(self) -> Ino {
        match self {
            Number::Virtual(place) => place.ino(),
            Number::Entry(snapshot, rank) => entry(snapshot, rank),
            Number::Linked(snapshot, id) => LINKED | entry(snapshot, id),
        }
    }
}

impl VirtualNode {
    fn of(low: u64) -> Option<VirtualNode> {
        match low {
            TOP => Some(VirtualNode::Top),
            BY_TAG => Some(VirtualNode::ByTag),
            _ if low > BY_TAG => {
                let (tag, link) = ((low - BY_TAG) >> LINK_BITS, low % (1 << LINK_BITS));
                let tag = tag.checked_sub(1)?;
                Some(link.checked_sub(1).map_or(VirtualNode::Tag(tag), |snapshot| VirtualNode::Link(tag, snapshot)))
            }
            _ => {
                let of = (low / 2).checked_sub(1)?;
                Some(if low.is_multiple_of(2) { VirtualNode::Source(of) } else { VirtualNode::Latest(of) })
            }
        }
    }

    /// The inode number.
    pub(super) fn ino(self) -> Ino {
        match self {
            VirtualNode::Top => TOP,
            VirtualNode::Source(source) => (source + 1) * 2,
            VirtualNode::Latest(snapshot) => (snapshot + 1) * 2 + 1,
            VirtualNode::ByTag => BY_TAG,
            VirtualNode::Tag(tag) => BY_TAG | ((tag + 1) << LINK_BITS),
            VirtualNode::Link(tag, snapshot) => VirtualNode::Tag(tag).ino() | (snapshot + 1),
        }
    }
}

fn entry(snapshot: u64, low: u64) -> Ino {
    ((snapshot + 1) << RANK_BITS) | (low % RANKS)
}

#[cfg(test)]
mod tests {
    use super::super::snapshot_index::SNAPSHOTS;
    use super::super::tags::TAGS;
    use super::*;

    #[test]
    fn every_thing_has_a_number_of_its_own_that_says_where_it_is() {
        let snapshots = [0, 1, 2, SNAPSHOTS / 2, SNAPSHOTS - 1];
        let tags = [0, 1, TAGS - 1];
        let lows = [0, 1, 2, BY_TAG, RANKS - 1];
        let mut all = vec![Number::Virtual(VirtualNode::Top), Number::Virtual(VirtualNode::ByTag)];
        for snapshot in snapshots {
            all.extend([VirtualNode::Source(snapshot), VirtualNode::Latest(snapshot)].map(Number::Virtual));
            all.extend(tags.map(|tag| Number::Virtual(VirtualNode::Link(tag, snapshot))));
            all.extend(lows.map(|low| Number::Entry(snapshot, low)));
            all.extend(lows.map(|low| Number::Linked(snapshot, low)));
        }
        all.extend(tags.map(|tag| Number::Virtual(VirtualNode::Tag(tag))));
        for number in &all {
            assert_eq!(Number::of(number.ino()), Some(*number), "{:x}", number.ino());
        }
        let mut numbers: Vec<_> = all.iter().map(|number| number.ino()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all.len());
    }

    #[test]
    fn a_link_id_and_what_its_names_have_in_common_are_told_apart() {
        let digest = |first| Digest([first; 32]);
        let ids = [0, 1, HardLink::ID_LIMIT - 1];
        let all = ids.iter().flat_map(|id| [0, 1, 255].map(|first| Number::linked(7, *id, digest(first))));
        let mut numbers: Vec<_> = all.clone().map(Number::ino).collect();
        for (number, ino) in all.zip(&numbers) {
            assert_eq!(Number::of(*ino), Some(number), "{ino:x}");
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 9);
    }

    #[test]
    fn what_has_no_number_is_told_from_what_has_one() {
        for ino in [0, BY_TAG | 1, BY_TAG | 7, LINKED, LINKED | 5] {
            assert_eq!(Number::of(ino), None, "{ino:x}");
        }
    }
}
