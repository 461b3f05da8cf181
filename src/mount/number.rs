//! Inode numbers.
//!
//! A number encodes the location of its inode, so no table is needed that grows with the files looked up:
//!
//! | inode | bit 63 | bits 62–40 | bits 39–0 |
//! | --- | --- | --- | --- |
//! | entry of a snapshot | 0 | snapshot + 1 | rank of the entry |
//! | hard-linked file | 1 | snapshot + 1 | bits 39–32: digest, bits 31–0: link id |
//! | root of the mount | 0 | 0 | 1 |
//! | directory of a source | 0 | 0 | bit 39: 0, bits 38–0: 2 × (source + 1) |
//! | `latest` | 0 | 0 | bit 39: 0, bits 38–0: 2 × (snapshot + 1) + 1 |
//! | `by-tag` | 0 | 0 | bit 39: 1, other bits 0 |
//! | directory of a tag | 0 | 0 | bit 39: 1, bits 38–23: tag + 1, bits 22–0: 0 |
//! | link in such a directory | 0 | 0 | bit 39: 1, bits 38–23: tag + 1, bits 22–0: snapshot + 1 |
//!
//! Snapshots, sources and tags are numbered from 0 in the order in which they are found. The rank is the position in a
//! preorder walk of the snapshot; the root has rank 0. All names of a hard-linked file share one number; `digest` is the
//! first byte of the digest of everything its names share (see [`super::links`]).
//!
//! The number of a link contains the snapshot it points to, so its target never changes and the kernel may cache it.

use crate::format::{Digest, HardLink};

/// An inode number.
pub type Ino = u64;

/// The root of the mount.
pub(super) const TOP: Ino = 1;
/// Number of bits for a rank, or for digest and link id.
const RANK_BITS: u32 = 40;
const RANKS: u64 = 1 << RANK_BITS;
/// The bit of hard-linked files.
const LINKED: u64 = 1 << 63;
/// The directory `by-tag`. The directories and links in it have higher numbers.
const BY_TAG: Ino = 1 << (RANK_BITS - 1);
/// Number of bits for the snapshot of a link in `by-tag`.
const LINK_BITS: u32 = 23;

/// A decoded inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// An inode above the snapshots.
    Virtual(VirtualNode),
    /// A snapshot's number and the rank of an entry in it.
    Entry(u64, u64),
    /// A snapshot's number, and digest and link id of a hard-linked file in it.
    Linked(u64, u64),
}

/// An inode above the snapshots. Sources, snapshots and tags are given by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VirtualNode {
    Top,
    /// The directory of a source.
    Source(u64),
    /// The link `latest` to this snapshot.
    Latest(u64),
    ByTag,
    /// The directory of a tag.
    Tag(u64),
    /// The link to a snapshot (second) in the directory of a tag (first).
    Link(u64, u64),
}

impl Number {
    /// The file with this link id and digest in a snapshot.
    pub(super) fn linked(snapshot: u64, id: u64, file: Digest) -> Number {
        let Digest([check, ..]) = file;
        Number::Linked(snapshot, (u64::from(check) * HardLink::ID_LIMIT) | (id % HardLink::ID_LIMIT))
    }

    /// Decodes `ino`; `None` if it is not valid.
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
    fn every_inode_has_a_unique_number_that_encodes_its_location() {
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
    fn link_ids_and_digests_give_different_numbers() {
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
    fn invalid_numbers_are_not_decoded() {
        for ino in [0, BY_TAG | 1, BY_TAG | 7, LINKED, LINKED | 5] {
            assert_eq!(Number::of(ino), None, "{ino:x}");
        }
    }
}
