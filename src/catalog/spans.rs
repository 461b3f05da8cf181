//! Spans: for which snapshots of a source a block is used.
//!
//! A span is a range of consecutive snapshots of one source that all use a block. Only *recorded* snapshots count,
//! those whose blocks are known: a span says nothing about other numbers in its range. Spans of a block and source do
//! not overlap.
//!
//! The spans of [`GROUP`] consecutive blocks are one row, because a row for each would take most of its space for
//! SQLite's record headers, a checksum, and pages that split when a span ends.

use roaring::RoaringTreemap;

use super::numbers::{put, take};
use super::sums::Sum;

/// The number of blocks in a group. A row should not be much larger than a quarter of a page.
pub(super) const GROUP: u64 = 256;

/// The end of a span that includes the newest recorded snapshot.
pub(super) const OPEN: u64 = u64::MAX;

/// The group of a block.
pub(super) fn group_of(block: u64) -> u64 {
    block / GROUP
}

/// A range of snapshots of a source that use a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) block: u64,
    pub(super) source: i64,
    /// The number of the first snapshot.
    pub(super) first: u64,
    /// The number of the last snapshot, or [`OPEN`].
    pub(super) last: u64,
}

impl Span {
    /// Whether the snapshot with this number is in the range.
    pub(super) fn contains(&self, sequence: u64) -> bool {
        self.first <= sequence && sequence <= self.last
    }
}

/// The position of a snapshot among the recorded ones of its source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) source: i64,
    pub(super) sequence: u64,
    /// The number of the recorded snapshot before it.
    pub(super) before: Option<u64>,
    /// The number of the recorded snapshot after it.
    pub(super) after: Option<u64>,
}

/// The blocks of the newest recorded snapshot of a source.
#[derive(Debug)]
pub(super) struct NewestUsage {
    pub(super) source: i64,
    pub(super) sequence: u64,
    pub(super) blocks: RoaringTreemap,
    /// Whether the database has it, too.
    pub(super) is_stored: bool,
}

/// Records in the sorted spans of a group whether the snapshot at `position` uses `block`.
pub(super) fn place(spans: &mut Vec<Span>, position: Position, block: u64, is_used: bool) {
    let Position { source, sequence, before, after } = position;
    let from = spans.partition_point(|span| (span.block, span.source) < (block, source));
    let to = spans.partition_point(|span| (span.block, span.source) <= (block, source));
    let old = spans.get(from..to).unwrap_or_default();
    let mut new = Vec::with_capacity(old.len() + 2);
    if let Some(before) = before {
        let earlier = old.iter().filter(|span| span.first <= before);
        new.extend(earlier.map(|span| Span { last: span.last.min(before), ..*span }));
    }
    let mut later = Vec::new();
    if let Some(after) = after {
        let spans = old.iter().filter(|span| span.last >= after);
        later.extend(spans.map(|span| Span { first: span.first.max(after), ..*span }));
    }
    if is_used {
        let last = if after.is_some() { sequence } else { OPEN };
        let mut span = Span { block, source, first: sequence, last };
        if let Some(previous) = new.pop_if(|previous| Some(previous.last) == before) {
            span.first = previous.first;
        }
        if later.first().is_some_and(|next| Some(next.first) == after) {
            span.last = later.remove(0).last;
        }
        new.push(span);
    }
    new.append(&mut later);
    if new != old {
        spans.splice(from..to, new);
    }
}

/// Encodes the sorted spans of a group, followed by a checksum. Most spans take two or three bytes, since neighbouring
/// blocks tend to be of one snapshot.
pub(super) fn encode(group: u64, spans: &[Span]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 * spans.len() + 8);
    let mut previous = start(group);
    for span in spans {
        let same = span.source == previous.source && span.first == previous.first;
        put(&mut out, (span.block - previous.block) << 1 | u64::from(same));
        if !same {
            put(&mut out, span.source as u64);
            put(&mut out, span.first);
        }
        put(&mut out, if span.last == OPEN { 0 } else { span.last - span.first + 1 });
        previous = *span;
    }
    let sum = sum(group, &out);
    out.extend(sum);
    out
}

/// Decodes the spans of a group, and replaces the content of `spans` with them. Returns `None` if the checksum differs.
pub(super) fn decode(group: u64, bytes: &[u8], spans: &mut Vec<Span>) -> Option<()> {
    spans.clear();
    let (mut left, stored) = bytes.split_last_chunk()?;
    if *stored != sum(group, left) {
        return None;
    }
    let mut previous = start(group);
    while !left.is_empty() {
        let head = take(&mut left)?;
        let (source, first) =
            if head & 1 == 1 { (previous.source, previous.first) } else { (take(&mut left)? as i64, take(&mut left)?) };
        let last = match take(&mut left)? {
            0 => OPEN,
            length => first.checked_add(length - 1)?,
        };
        previous = Span { block: previous.block.checked_add(head >> 1)?, source, first, last };
        spans.push(previous);
    }
    spans.iter().all(|span| group_of(span.block) == group).then_some(())
}

/// The values that the first span of a group is encoded relative to.
fn start(group: u64) -> Span {
    Span { block: group.saturating_mul(GROUP), source: 0, first: 0, last: 0 }
}

fn sum(group: u64, bytes: &[u8]) -> [u8; 4] {
    Sum::of("spans").number(group as i64).bytes(bytes).value().bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(block: u64, source: i64, first: u64, last: u64) -> Span {
        Span { block, source, first, last }
    }

    #[test]
    fn a_group_round_trips_and_damage_is_detected() {
        let spans = [
            span(512, 1, 1, OPEN),
            span(513, 1, 1, 7),
            span(513, 1, 9, 9),
            span(513, 2, 9, OPEN),
            span(767, 300, 1 << 40, (1 << 40) + 1),
        ];
        let bytes = encode(2, &spans);
        let mut read = vec![span(1, 1, 1, 1)];
        decode(2, &bytes, &mut read).unwrap();
        assert_eq!(read, spans);
        assert_eq!(decode(3, &bytes, &mut read), None);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1 << bit;
                assert_eq!(decode(2, &wrong, &mut read), None, "bit {bit} of byte {at}");
            }
            assert_eq!(decode(2, &bytes[..at], &mut read), None);
        }
        decode(2, &encode(2, &[]), &mut read).unwrap();
        assert_eq!(read, []);
    }

    #[test]
    fn a_snapshot_extends_splits_and_joins_spans() {
        let check = |old: &[(u64, u64)], at: (u64, Option<u64>, Option<u64>), is_used, new: &[(u64, u64)]| {
            let spans = |ranges: &[(u64, u64)]| {
                let mut spans = vec![span(1, 2, 1, OPEN), span(2, 1, 1, OPEN)];
                spans.extend(ranges.iter().map(|(first, last)| span(2, 2, *first, *last)));
                spans.extend([span(2, 3, 1, OPEN), span(3, 2, 1, OPEN)]);
                spans
            };
            let mut found = spans(old);
            let (sequence, before, after) = at;
            place(&mut found, Position { source: 2, sequence, before, after }, 2, is_used);
            assert_eq!(found, spans(new), "{old:?} {at:?} {is_used}");
        };
        let (newest, middle) = ((5, Some(4), None), (5, Some(4), Some(6)));
        check(&[], newest, true, &[(5, OPEN)]);
        check(&[], newest, false, &[]);
        check(&[(1, OPEN)], newest, true, &[(1, OPEN)]);
        check(&[(1, OPEN)], newest, false, &[(1, 4)]);
        check(&[(1, 3)], newest, true, &[(1, 3), (5, OPEN)]);
        check(&[(1, OPEN)], middle, true, &[(1, OPEN)]);
        check(&[(1, OPEN)], middle, false, &[(1, 4), (6, OPEN)]);
        check(&[(1, 4), (6, 9)], middle, true, &[(1, 9)]);
        check(&[(1, 4)], middle, true, &[(1, 5)]);
        check(&[(6, 6)], middle, true, &[(5, 6)]);
        check(&[(1, 2), (8, 8)], middle, true, &[(1, 2), (5, 5), (8, 8)]);
        check(&[(6, OPEN)], (5, None, Some(6)), true, &[(5, OPEN)]);
        check(&[(6, OPEN)], (5, None, Some(6)), false, &[(6, OPEN)]);
        // Spans that begin or end at a snapshot that is no longer recorded shrink to recorded ones.
        check(&[(5, 5)], middle, false, &[]);
        check(&[(2, 5), (7, OPEN)], newest, true, &[(2, OPEN)]);
        check(&[(2, 3), (5, 8)], newest, false, &[(2, 3)]);
    }
}
