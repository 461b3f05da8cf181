//! A pool of buffers for blocks.
//!
//! Decoding a block takes three buffers: ciphertext, compressed data and plaintext. Allocated on the heap for each block,
//! they would fragment it; mapped for each block, the kernel would zero them, which takes as long as decrypting the block.
//! So they are reused: the first two have one size, and plaintext buffers have one of six.

use std::sync::{Mutex, PoisonError};

use crate::format::{BLOCK_SIZE, SEALED_SIZE};

/// Maximum size of all free plaintext buffers, in bytes.
pub(super) const KEPT: usize = 4 * BLOCK_SIZE;
/// Maximum size of all free buffers for ciphertext and compressed data, in bytes.
pub(super) const WORK_KEPT: usize = 4 * SEALED_SIZE;
/// Size of the buffers with which one thread decodes a block, in bytes: ciphertext, compressed data and plaintext.
pub(super) const IN_USE: usize = 2 * SEALED_SIZE + BLOCK_SIZE;

/// Smaller plaintext buffers are not pooled: other allocations can use the heap space they leave.
const LARGE: usize = 64 << 10;

/// The free buffers.
#[derive(Default)]
pub(super) struct Buffers {
    plaintext: Mutex<Vec<Vec<u8>>>,
    work: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Returns an empty buffer with a capacity of at least `length` and less than twice `length` bytes.
    pub(super) fn plaintext(&self, length: usize) -> Vec<u8> {
        let room = round_up(length);
        let mut free = self.plaintext.lock().unwrap_or_else(PoisonError::into_inner);
        match free.iter().rposition(|buffer| buffer.capacity() == room) {
            Some(at) => free.remove(at),
            None => Vec::with_capacity(room),
        }
    }

    /// Returns a plaintext buffer to the pool.
    pub(super) fn give_plaintext(&self, buffer: Vec<u8>) {
        if buffer.capacity() >= LARGE {
            keep(&self.plaintext, buffer, KEPT);
        }
    }

    /// Returns an empty buffer with room for any stored block.
    pub(super) fn work(&self) -> Vec<u8> {
        let free = self.work.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(SEALED_SIZE))
    }

    /// Returns a buffer from [`Buffers::work`] to the pool.
    pub(super) fn give_work(&self, buffer: Vec<u8>) {
        keep(&self.work, buffer, WORK_KEPT);
    }
}

/// The size of the buffer for this many bytes of plaintext. Rounds up to one of a few sizes, so that a free buffer soon fits
/// again. Blocks of small files are packed close to these sizes.
pub(super) fn round_up(length: usize) -> usize {
    match length {
        0..LARGE => length,
        _ => length.next_power_of_two(),
    }
}

/// Adds a free buffer. Drops the least recently used ones above `most` bytes.
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
    fn lengths_are_rounded_to_a_few_sizes() {
        assert_eq!([0, 1, LARGE - 1, LARGE, BLOCK_SIZE].map(round_up), [0, 1, LARGE - 1, LARGE, BLOCK_SIZE]);
        let mut few: Vec<usize> = (LARGE..=BLOCK_SIZE).map(round_up).collect();
        few.dedup();
        assert_eq!(few, [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20]);
    }

    #[test]
    fn a_buffer_is_reused_for_a_similar_length() {
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
    fn free_buffers_are_bounded_in_bytes() {
        let buffers = Buffers::default();
        let sizes = [KEPT / 2, KEPT / 4, KEPT / 8, KEPT / 2];
        sizes.into_iter().for_each(|size| buffers.give_plaintext(Vec::with_capacity(size)));
        assert_eq!(capacities(&buffers.plaintext), [KEPT / 4, KEPT / 8, KEPT / 2]);
        let work: Vec<_> = (0..10).map(|_| buffers.work()).collect();
        work.into_iter().for_each(|buffer| buffers.give_work(buffer));
        assert_eq!(capacities(&buffers.work), [SEALED_SIZE; WORK_KEPT / SEALED_SIZE]);
    }
}
