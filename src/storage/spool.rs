//! An object that is still being written, in a temporary file.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, unlinkat};

use super::Error;

/// An object being written. Its bytes are in a file, not in memory. Dropping it removes the file.
#[derive(Debug)]
pub struct Spool {
    pub(super) file: File,
    pub(super) object: String,
    pub(super) length: u64,
    /// The object's folder.
    pub(super) folder: OwnedFd,
    /// The temporary file's name in the folder; `None` for an unnamed file (`O_TMPFILE`).
    pub(super) named: Option<String>,
}

impl Spool {
    /// Appends bytes to the object.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.object, e))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The number of bytes appended so far.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(name) = self.named.take() {
            // Best effort: a file that stays has a temporary name, so listings skip it.
            let _ = unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}
