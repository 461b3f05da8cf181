//! An object on its way: bytes that go into a file until the object is complete.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, unlinkat};

use super::Error;

/// Bytes of an object that is not stored yet. Memory does not grow with it. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Spool {
    pub(super) file: File,
    pub(super) object: String,
    pub(super) length: u64,
    /// The folder that the object will lie in.
    pub(super) folder: OwnedFd,
    /// The file's name in the folder, where the file system knows no files without one.
    pub(super) named: Option<String>,
}

impl Spool {
    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.object, e))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(name) = self.named.take() {
            // Best effort: what stays behind has a temporary's name and is no object.
            let _ = unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}
