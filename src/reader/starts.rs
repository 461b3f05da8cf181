//! Offsets of consecutive items of different lengths.

/// Returns the start of each of several consecutive lengths, and their sum; `None` if that overflows.
pub(super) fn starts_of(lengths: impl Iterator<Item = u64>) -> (Vec<u64>, Option<u64>) {
    let mut end = Some(0u64);
    let mut start = 0;
    let starts = lengths.map(|length| {
        let begins = start;
        end = end.and_then(|end| end.checked_add(length));
        start = end.unwrap_or(u64::MAX);
        begins
    });
    (starts.collect(), end)
}

/// Returns the index and the value of the last start that is not above `offset`.
pub(super) fn find(starts: &[u64], offset: u64) -> (usize, u64) {
    let at = starts.partition_point(|start| *start <= offset).saturating_sub(1);
    (at, starts.get(at).copied().unwrap_or(0))
}
