//! The directories that the walk is in, from the root down, with their entries so far.

use std::path::{Path, PathBuf};

use super::indexes::LinkedSegment;
use super::nodes::{Link, NodeKey};
use roaring::RoaringTreemap;

use crate::backup::error::Error;
use crate::backup::limits::{ATTRIBUTES_OPEN, ENTRIES_OPEN};
use crate::backup::walk::path_stack::PathStack;
use crate::catalog::{DirectoryId, DirectoryRow, SegmentRow};
use crate::source::{Extended, Stat};

/// Bytes at which a segment ends, well before its node could be larger than a block.
const NODE_BYTES: usize = 512 << 10;

/// The error of events in the wrong order.
const NO_DIRECTORY: Error = Error::Internal("an event is outside of all directories");

/// A directory that the walk is in.
pub(super) struct Frame {
    pub(super) id: DirectoryId,
    pub(super) name: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) extended: Extended,
    /// It may change, or be completed, without its identity showing it.
    pub(super) untrusted: bool,
    /// Its row in the catalog, if it has one.
    pub(super) row: Option<DirectoryRow>,
    /// Its finished segments.
    pub(super) parts: Vec<LinkedSegment>,
    pub(super) segment: OpenSegment,
    /// The ids of directories in it that were entered, if it has a row: others in the catalog vanished.
    pub(super) entered: RoaringTreemap,
    /// It differs from its row.
    pub(super) changed: bool,
    /// Only deferred files in it are visited.
    pub(super) again: bool,
}

/// The segment that the walk is in.
pub(super) enum OpenSegment {
    None,
    /// A segment in which only directories may have changed.
    Old {
        row: Box<SegmentRow>,
        changed: Vec<FinishedDirectory>,
    },
    New(NewPart),
}

/// A segment that is being made.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewPart {
    pub(super) key: NodeKey,
    /// About how many bytes its entries take.
    pub(super) bytes: usize,
}

impl NewPart {
    /// Whether the next entry belongs in another segment.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= NODE_BYTES
    }
}

/// A directory that the walk has left.
pub(in crate::backup) struct FinishedDirectory {
    pub(in crate::backup) id: DirectoryId,
    pub(in crate::backup) name: Vec<u8>,
    pub(in crate::backup) stat: Stat,
    pub(in crate::backup) extended: Extended,
    /// It may change without its identity showing it.
    pub(in crate::backup) untrusted: bool,
    /// Entries below it.
    pub(in crate::backup) below: u64,
    /// Its top node; `None` if it is empty.
    pub(super) link: Option<Link>,
    /// Its node differs from the one in its parent's old segment.
    pub(in crate::backup) changed: bool,
}

/// All directories that the walk is in, and the bounds on their memory.
pub(super) struct Frames {
    open: Vec<Frame>,
    path: PathStack,
    /// Bytes of extended attributes of these directories.
    attributes: usize,
    /// About how many bytes the entries of their open segments take.
    entries: usize,
}

impl Frames {
    /// A walk that begins at `root`.
    pub(super) fn new(root: &Path) -> Self {
        Frames { open: Vec::new(), path: PathStack::new(root), attributes: 0, entries: 0 }
    }

    /// The path of the innermost directory.
    pub(super) fn path(&self) -> &Path {
        self.path.path()
    }

    pub(super) fn child_path(&self, name: &[u8]) -> PathBuf {
        self.path.child(name)
    }

    /// The innermost directory.
    pub(super) fn last(&mut self) -> Result<&mut Frame, Error> {
        self.open.last_mut().ok_or(NO_DIRECTORY)
    }

    /// The innermost directory, if the walk is in any.
    pub(super) fn innermost(&mut self) -> Option<&mut Frame> {
        self.open.last_mut()
    }

    /// The owner of the innermost directory.
    pub(super) fn owner(&self) -> u32 {
        self.open.last().map_or(0, |frame| frame.stat.uid)
    }

    /// Follows the walk into a directory, before its frame is made.
    pub(super) fn enter(&mut self, name: &[u8]) {
        self.path.enter(name);
    }

    /// Whether a directory's attributes may be held with those of the directories above it.
    pub(super) fn has_room_for(&self, extended: &Extended) -> bool {
        self.attributes + extended.bytes() <= ATTRIBUTES_OPEN
    }

    pub(super) fn push(&mut self, frame: Frame) {
        self.attributes += frame.extended.bytes();
        self.open.push(frame);
    }

    /// Leaves the innermost directory.
    pub(super) fn pop(&mut self) -> Result<Frame, Error> {
        let frame = self.open.pop().ok_or(NO_DIRECTORY)?;
        self.attributes -= frame.extended.bytes();
        self.path.leave();
        Ok(frame)
    }

    /// Notes that an entry of `bytes` was added to the open segment, and returns the segment's node.
    pub(super) fn add(&mut self, bytes: usize) -> Result<NodeKey, Error> {
        let OpenSegment::New(part) = &mut self.last()?.segment else {
            return Err(Error::Internal("an entry is in no new segment"));
        };
        part.bytes += bytes;
        let key = part.key;
        self.entries += bytes;
        Ok(key)
    }

    /// Takes the open segment of the innermost directory.
    pub(super) fn take_segment(&mut self) -> Result<OpenSegment, Error> {
        let segment = std::mem::replace(&mut self.last()?.segment, OpenSegment::None);
        if let OpenSegment::New(part) = &segment {
            self.entries -= part.bytes;
        }
        Ok(segment)
    }

    /// Whether the open segment should end before another directory is entered: the segments of all open directories take
    /// much memory together.
    pub(super) fn is_heavy(&self) -> bool {
        let has_entries =
            self.open.last().is_some_and(|frame| matches!(frame.segment, OpenSegment::New(NewPart { bytes: 1.., .. })));
        has_entries && self.entries > ENTRIES_OPEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::store::fixture::Site;
    use crate::backup::store::nodes::Purpose;
    use crate::format::Items;

    fn frame(attributes: usize) -> Frame {
        let stat = Stat::of_fd(tempfile::tempfile().unwrap()).unwrap();
        let xattrs = vec![(Vec::new(), vec![0; attributes])];
        Frame {
            id: DirectoryId(1),
            name: Vec::new(),
            stat,
            extended: Extended { xattrs, ..Extended::default() },
            untrusted: false,
            row: None,
            parts: Vec::new(),
            segment: OpenSegment::None,
            entered: RoaringTreemap::new(),
            changed: false,
            again: false,
        }
    }

    #[test]
    fn attributes_of_open_directories_are_bounded() {
        let mut frames = Frames::new(Path::new("/"));
        let large = frame(ATTRIBUTES_OPEN).extended;
        assert!(frames.has_room_for(&large));
        frames.push(frame(1));
        assert!(!frames.has_room_for(&large));
        frames.pop().unwrap();
        assert!(frames.has_room_for(&large));
        assert!(frames.pop().is_err());
    }

    #[test]
    fn entries_of_open_segments_are_bounded() {
        Site::new().with_nodes(|mut nodes| {
            let mut frames = Frames::new(Path::new("/"));
            for _ in 0..2 {
                frames.push(frame(0));
                assert!(frames.add(1).is_err());
                let key = nodes.open(0, Purpose::Index, Items::Segments(Vec::new()));
                frames.last().unwrap().segment = OpenSegment::New(NewPart { key, bytes: 0 });
            }
            assert!(!frames.is_heavy());
            frames.add(ENTRIES_OPEN + 1).unwrap();
            assert!(frames.is_heavy());
            assert!(matches!(frames.take_segment().unwrap(), OpenSegment::New(part) if part.is_full()));
            assert!(!frames.is_heavy());
        });
    }
}
