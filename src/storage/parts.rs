//! Parts of an object that follow each other, to be read with one request.

use std::io::{self, Read};

/// Size of a joined read in bytes: about the bandwidth-delay product of 50 ms and 100 MB/s. Two blocks of the largest size fit.
pub(super) const JOINED: usize = 5 << 20;

/// Parts of an object that follow each other. They are read in this order.
pub struct Parts<'p> {
    /// Where the first part begins.
    pub offset: u64,
    /// The length of each part, in bytes.
    pub lengths: &'p [usize],
    /// Buffer for each part; holds the last one afterwards.
    pub bytes: &'p mut Vec<u8>,
    /// Called with each part.
    pub take: &'p mut dyn FnMut(&[u8]),
}

impl Parts<'_> {
    /// Reads each part with a call of `read`, with its offset and length.
    pub(super) fn one_by_one<E>(self, read: impl Fn(u64, usize, &mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let Parts { mut offset, lengths, bytes, take } = self;
        for length in lengths {
            read(offset, *length, bytes)?;
            take(bytes);
            offset = offset.saturating_add(*length as u64);
        }
        Ok(())
    }

    /// The length of all parts together.
    pub(super) fn length(&self) -> u64 {
        self.lengths.iter().map(|length| *length as u64).sum()
    }

    /// Where the last part ends; `None` if no object can be so long.
    pub(super) fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.length())
    }

    /// The range for a header of HTTP, such as `bytes=0-99`; `None` if it is empty, which HTTP does not know.
    pub(super) fn range(&self) -> Option<String> {
        let last = self.length().checked_sub(1)?;
        Some(format!("bytes={}-{}", self.offset, self.offset.saturating_add(last)))
    }

    /// Takes parts that are all empty.
    pub(super) fn take_empty(self) {
        self.bytes.clear();
        self.lengths.iter().for_each(|_| (self.take)(&[]));
    }

    /// Reads the parts from `source`. Returns false if it ends too early.
    pub(super) fn read_from(&mut self, source: &mut dyn Read) -> io::Result<bool> {
        for length in self.lengths {
            self.bytes.clear();
            source.take(*length as u64).read_to_end(self.bytes)?;
            if self.bytes.len() != *length {
                return Ok(false);
            }
            (self.take)(self.bytes);
        }
        Ok(true)
    }
}
