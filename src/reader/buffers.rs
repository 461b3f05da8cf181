//! Buffers that are used again.
//!
//! Blocks come and go by the thousand, and each takes three buffers: as it is stored, opened, and decompressed. Taken from
//! the heap and given back each time they would leave holes that smaller things settle in; taken from the system each time
//! they would leave none, but it has to clear them first, which takes as long as to decrypt what goes into them. So the
//! first two are all of one size, and the third has one of six.

use std::sync::{Mutex, PoisonError};

use crate::format::{BLOCK_SIZE, SEALED_SIZE};

/// Bytes that are kept at most of buffers for plaintext, and of those for what is not opened or decompressed yet.
pub(super) const KEPT: usize = 4 * BLOCK_SIZE;
pub(super) const WORK_KEPT: usize = 4 * SEALED_SIZE;
/// Bytes of the buffers that one thread uses to decode a block: as it is stored, opened, and decompressed.
pub(super) const IN_USE: usize = 2 * SEALED_SIZE + BLOCK_SIZE;

/// Smaller ones are taken from the heap: what they leave there others can use.
const LARGE: usize = 64 << 10;

/// Buffers that nobody uses at the moment.
#[derive(Default)]
pub(super) struct Buffers {
    plaintext: Mutex<Vec<Vec<u8>>>,
    work: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer with room for `length` bytes of plaintext, and for less than twice as many.
    pub(super) fn plaintext(&self, length: usize) -> Vec<u8> {
        let room = round_up(length);
        let mut free = self.plaintext.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().rposition(|buffer| buffer.capacity() == room) {
            Some(at) => free.remove(at),
            None => Vec::with_capacity(room),
        }
    }

    /// Keeps a buffer of plaintext for who needs one next.
    pub(super) fn give_plaintext(&self, buffer: Vec<u8>) {
        if buffer.capacity() >= LARGE {
            keep(&self.plaintext, buffer, KEPT);
        }
    }

    /// An empty buffer with room for any block as it is stored.
    pub(super) fn work(&self) -> Vec<u8> {
        let free = self.work.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(SEALED_SIZE))
    }

    /// Keeps a buffer that came from [`Buffers::work`].
    pub(super) fn give_work(&self, buffer: Vec<u8>) {
        keep(&self.work, buffer, WORK_KEPT);
    }
}

/// So few lengths are left that a buffer fits again soon. What gathers small files fills such lengths.
fn round_up(length: usize) -> usize {
    match length {
        0..LARGE => length,
        _ => length.next_power_of_two(),
    }
}

/// Keeps a buffer. The oldest go if they become too many bytes: lengths that nobody wanted for long.
fn keep(free: &Mutex<Vec<Vec<u8>>>, mut buffer: Vec<u8>, most: usize) {
    buffer.clear();
    let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
    free.push(buffer);
    let mut kept: usize = free.iter().map(Vec::capacity).sum();
    let too_many = free.iter().take_while(|oldest| {
        let is_too_many = kept > most;
        kept -= oldest.capacity();
        is_too_many
    });
    let too_many = too_many.count();
    free.drain(..too_many);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacities(free: &Mutex<Vec<Vec<u8>>>) -> Vec<usize> {
        free.lock().unwrap().iter().map(Vec::capacity).collect()
    }

    #[test]
    fn few_lengths_are_left() {
        assert_eq!([0, 1, LARGE - 1, LARGE, BLOCK_SIZE].map(round_up), [0, 1, LARGE - 1, LARGE, BLOCK_SIZE]);
        let mut few: Vec<usize> = (LARGE..=BLOCK_SIZE).map(round_up).collect();
        few.dedup();
        assert_eq!(few, [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20]);
    }

    #[test]
    fn a_buffer_is_used_again_by_who_needs_about_as_much() {
        let buffers = Buffers::default();
        let mut first = buffers.plaintext(100_000);
        let (capacity, at) = (first.capacity(), first.as_ptr());
        first.extend([7; 100]);
        buffers.give_plaintext(first);
        buffers.give_plaintext(buffers.plaintext(1000));
        assert!(buffers.plaintext(capacity + 1).capacity() > capacity);
        let again = buffers.plaintext(capacity - 1);
        assert_eq!((again.len(), again.capacity(), again.as_ptr()), (0, capacity, at));
        assert!(capacities(&buffers.plaintext).is_empty());
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let buffers = Buffers::default();
        let sizes = [KEPT / 2, KEPT / 4, KEPT / 8, KEPT / 2];
        sizes.into_iter().for_each(|size| buffers.give_plaintext(Vec::with_capacity(size)));
        assert_eq!(capacities(&buffers.plaintext), [KEPT / 4, KEPT / 8, KEPT / 2]);
        let work: Vec<_> = (0..10).map(|_| buffers.work()).collect();
        work.into_iter().for_each(|buffer| buffers.give_work(buffer));
        assert_eq!(capacities(&buffers.work), [SEALED_SIZE; WORK_KEPT / SEALED_SIZE]);
    }
}
