//! An object on its way: bytes that go into a file until the object is complete.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use super::Error;

/// Bytes of an object that is not stored yet. Memory does not grow with it. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Spool {
    pub(super) file: File,
    pub(super) object: String,
    pub(super) length: u64,
    /// The file's name, where the file system knows no files without one.
    pub(super) named: Option<PathBuf>,
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
        if let Some(path) = self.named.take() {
            // Best effort: what stays behind has a temporary's name and is no object.
            let _ = std::fs::remove_file(path);
        }
    }
}
