//! Content of files: verified reads at any offset.

use std::ops::ControlFlow;

use super::error::Error;
use crate::format::Digest;

/// The content of a file. Every byte is verified before it is returned. Threads share it.
pub trait FileContent: Send + Sync {
    /// The file's size in bytes.
    fn size(&self) -> u64;

    /// Calls `use_bytes` once with up to `length` bytes from `offset` on; fewer at the end of the file. Sequential reads
    /// may be prefetched.
    fn read_with(&self, offset: u64, length: usize, use_bytes: &mut dyn FnMut(&[u8])) -> Result<(), Error>;

    /// Calls `visit` with all of the file in order, until it returns `Break`.
    fn visit(&self, visit: &mut dyn FnMut(FileData<'_>) -> ControlFlow<()>) -> Result<(), Error>;

    /// Calls `visit` with start and length of each stored range in order. No content is read, except for ranges for which
    /// `visit` returns true: these are verified.
    fn stored_ranges(&self, visit: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), Error>;

    /// Returns the next offset at or after `offset` in data or in a hole; `None` if there is none. The end of the file
    /// counts as a hole. Small holes may count as data, but data never counts as a hole.
    fn seek(&self, offset: u64, to: Seek) -> Result<Option<u64>, Error>;

    /// Returns the digest that the whole content must have, as [`ContentHasher`](crate::format::ContentHasher) computes it;
    /// `None` if reading all of it verifies that, too.
    fn unverified_digest(&self) -> Option<Digest>;
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileData<'a> {
    /// Stored bytes.
    Bytes(&'a [u8]),
    /// A hole of this many bytes.
    Hole(u64),
}

impl FileData<'_> {
    /// The number of bytes of the file.
    pub fn length(&self) -> u64 {
        match self {
            FileData::Bytes(bytes) => bytes.len() as u64,
            FileData::Hole(length) => *length,
        }
    }
}

/// The target of a seek, as in lseek(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// Stored bytes.
    Data,
    /// Zeros that are not stored.
    Hole,
}

impl dyn FileContent + '_ {
    /// Like [`FileContent::read_with`], and returns the result of `use_bytes`.
    pub fn read<T>(&self, offset: u64, length: usize, use_bytes: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        let (mut use_bytes, mut result) = (Some(use_bytes), None);
        self.read_with(offset, length, &mut |bytes| {
            if let Some(use_bytes) = use_bytes.take() {
                result = Some(use_bytes(bytes));
            }
        })?;
        result.ok_or_else(|| Error::NotFound("the file's content was not read".into()))
    }

    /// Calls `visit` with all of the file in order, until it fails.
    pub fn each<E: From<Error>>(&self, mut visit: impl FnMut(FileData<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut failed = None;
        let read = self.visit(&mut |data| match visit(data) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(read?),
        }
    }
}
