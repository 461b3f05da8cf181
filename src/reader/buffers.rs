//! Buffers that are used again.
//!
//! Blocks come and go by the thousand, and each takes three buffers: as it is stored, opened, and decompressed. Taken from the
//! heap and given back each time, they would leave holes that smaller things settle in. (Taken from the system each time
//! they would leave none, but it has to clear them first: that takes as long as to decrypt what goes into them.)

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Bytes of buffers that are kept at most.
const KEPT: usize = 8 << 20;

/// Smaller ones are taken from the heap: what they leave there others can use.
const LARGE: usize = 64 << 10;

/// Buffers that nobody uses at the moment.
#[derive(Default)]
pub(super) struct Buffers {
    free: Mutex<VecDeque<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer with room for `length` bytes, and for at most a quarter more.
    pub(super) fn take(&self, length: usize) -> Vec<u8> {
        let fits = |buffer: &Vec<u8>| (length..=length + length / 4).contains(&buffer.capacity());
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().position(fits) {
            Some(at) => free.swap_remove_back(at).unwrap_or_default(),
            None => Vec::with_capacity(length),
        }
    }

    /// Keeps a buffer for who needs one next.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() < LARGE {
            return;
        }
        buffer.clear();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept: usize = free.iter().map(Vec::capacity).sum();
        // The oldest go: sizes that nobody wanted for long.
        while kept + buffer.capacity() > KEPT && !free.is_empty() {
            kept -= free.pop_front().map_or(0, |oldest| oldest.capacity());
        }
        free.push_back(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacities(buffers: &Buffers) -> Vec<usize> {
        buffers.free.lock().unwrap().iter().map(Vec::capacity).collect()
    }

    #[test]
    fn a_buffer_is_used_again_by_who_needs_about_as_much() {
        let buffers = Buffers::default();
        buffers.give(vec![7; 100_000]);
        buffers.give(vec![7; 1000]);
        assert_eq!(buffers.take(100_001).capacity(), 100_001);
        assert_eq!(buffers.take(79_999).capacity(), 79_999);
        let again = buffers.take(80_000);
        assert_eq!((again.len(), again.capacity()), (0, 100_000));
        assert!(capacities(&buffers).is_empty());
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let buffers = Buffers::default();
        let sizes = [KEPT / 2, KEPT / 4, KEPT / 8, KEPT / 2];
        sizes.into_iter().for_each(|size| buffers.give(Vec::with_capacity(size)));
        assert_eq!(capacities(&buffers), [KEPT / 4, KEPT / 8, KEPT / 2]);
        // One that is too large by itself is the only one.
        buffers.give(Vec::with_capacity(2 * KEPT));
        assert_eq!(capacities(&buffers), [2 * KEPT]);
    }
}
