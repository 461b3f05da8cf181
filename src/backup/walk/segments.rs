//! The segments of a directory as it was in the last backup, and the entries that are compared with them.
//!
//! Names come sorted, so a group of entries lines up with a segment, and if nothing changed their stats are equal as bytes.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::listing::StatEntry;
use super::recognize::KnownDirectory;
use crate::backup::error::Error;
use crate::catalog::stats::StatsReader;
use crate::catalog::{BlockId, DirectoryId, Past, SegmentId, SegmentNode, SegmentRow};
use crate::format::{BlockLocation, Entry, Items};

/// Bytes of the nodes of segments that are compared together.
const GROUP_BYTES: u64 = 512 << 10;
/// Segments that are read from the catalog at once.
const SEGMENTS_AT_ONCE: usize = 4;

/// The segments of a directory, in order.
pub(super) struct Segments {
    directory: Option<DirectoryId>,
    ready: VecDeque<SegmentRow>,
    /// The catalog has no more than those that are ready.
    is_over: bool,
    /// How many are read at once: at least two, so that the last one is known when more are read.
    at_once: usize,
}

impl Segments {
    /// The segments of a directory; none if it is not known. If `is_crowded`, few are held.
    pub(super) fn new(known: Option<&KnownDirectory>, is_crowded: bool) -> Self {
        let at_once = if is_crowded { 2 } else { SEGMENTS_AT_ONCE };
        Segments { directory: known.map(|known| known.row.id), ready: VecDeque::new(), is_over: false, at_once }
    }

    /// Whether `name` is in the next segment, or a later one.
    pub(super) fn next_begins_by(&self, name: &OsStr) -> bool {
        self.ready.front().is_some_and(|next| next.first.as_slice() <= name.as_bytes())
    }

    pub(super) fn next(&mut self, past: &Past) -> Result<Option<SegmentRow>, Error> {
        // More are read when the last one is taken, and not later: until then nothing was sent that comes after it, so the
        // follower can't have committed segments of this run there, which would be taken for old ones.
        if let (0 | 1, false, Some(directory)) = (self.ready.len(), self.is_over, self.directory) {
            let after = self.ready.back().map(|last| last.first.as_slice());
            let some = past.segments(directory, after, self.at_once)?;
            self.is_over = some.len() < self.at_once;
            self.ready.extend(some);
        }
        Ok(self.ready.pop_front())
    }
}

/// An entry as it was in the last backup.
pub(super) struct OldEntry {
    pub(super) entry: Entry,
    /// Its identity.
    pub(super) identity: Vec<u8>,
    /// The node that it is in.
    pub(super) node: Arc<SegmentNode>,
}

/// An entry with the blocks that its references count in.
pub(super) struct EntryWithBlocks {
    pub(super) entry: Entry,
    pub(super) blocks: Vec<(BlockId, BlockLocation)>,
}

impl OldEntry {
    /// Takes the entry out of its node.
    pub(super) fn detach(self) -> EntryWithBlocks {
        let OldEntry { mut entry, node, .. } = self;
        let mut blocks = Vec::new();
        for chunk in entry.chunk_refs_mut() {
            let at = chunk.block as usize;
            chunk.block = blocks.len() as u32;
            blocks.extend(node.blocks.get(at).copied().zip(node.node.blocks.get(at).copied()));
        }
        EntryWithBlocks { entry, blocks }
    }
}

/// Appends the entries of a segment to `old`.
pub(super) fn read_segment(past: &Past, row: &SegmentRow, old: &mut VecDeque<OldEntry>) -> Result<(), Error> {
    // A directory that is found by its inode may be in its own place too, and the run may already have replaced segments
    // there.
    let Some(node) = past.segment_node(row.id)?.map(Arc::new) else { return Ok(()) };
    let Items::Entries(entries) = &node.node.items else { return Ok(()) };
    let mut stats = StatsReader::new(&node.stats);
    for entry in entries {
        let Some((name, identity)) = stats.next_entry() else { break };
        if name == entry.name {
            old.push_back(OldEntry { entry: entry.clone(), identity: identity.to_vec(), node: node.clone() });
        }
    }
    Ok(())
}

/// Neighbouring entries of a directory, and the segments that have their names.
#[derive(Default)]
pub(super) struct Group {
    pub(super) entries: Vec<StatEntry>,
    /// The segments, unless they are replaced already.
    pub(super) old: Vec<SegmentRow>,
    /// A part of the group was sent already.
    pub(super) is_begun: bool,
    /// Entries of the replaced segments that come next.
    pub(super) old_entries: VecDeque<OldEntry>,
}

impl Group {
    /// A group that begins with the names of a segment.
    pub(super) fn of(segment: Option<SegmentRow>) -> Self {
        Group { old: Vec::from_iter(segment), ..Group::default() }
    }

    /// Whether a segment can be added: all its entries are in memory at the same time.
    pub(super) fn has_room_for(&self, next: &SegmentRow) -> bool {
        let lengths = self.old.iter().map(|row| u64::from(row.node.length));
        lengths.sum::<u64>() + u64::from(next.node.length) <= GROUP_BYTES
    }

    /// Takes the old entry of this name, and drops those before it: they do not exist any more.
    pub(super) fn take_old(&mut self, name: &[u8]) -> Option<OldEntry> {
        while self.old_entries.front().is_some_and(|old| old.entry.name.as_slice() < name) {
            self.old_entries.pop_front();
        }
        let is_it = self.old_entries.front().is_some_and(|old| old.entry.name == name);
        if is_it { self.old_entries.pop_front() } else { None }
    }
}

/// The comparison of a directory with its segments.
pub(super) struct Comparison {
    pub(super) segments: Segments,
    pub(super) group: Group,
    /// Segments none of whose names exist any more.
    pub(super) removed: Vec<SegmentId>,
}

impl Comparison {
    pub(super) fn begin(known: Option<&KnownDirectory>, past: &Past, is_crowded: bool) -> Result<Self, Error> {
        let mut segments = Segments::new(known, is_crowded);
        let group = Group::of(segments.next(past)?);
        Ok(Comparison { segments, group, removed: Vec::new() })
    }
}
