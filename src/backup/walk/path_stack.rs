//! The path of the current directory: events have only names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The path of the directory that a walk is in.
pub(in crate::backup) struct PathStack {
    path: PathBuf,
}

impl PathStack {
    /// A walk that begins at `root`.
    pub(in crate::backup) fn new(root: &Path) -> Self {
        PathStack { path: root.to_owned() }
    }

    /// Enters a directory. The root has no name.
    pub(in crate::backup) fn enter(&mut self, name: &[u8]) {
        if !name.is_empty() {
            self.path.push(OsStr::from_bytes(name));
        }
    }

    /// Leaves the directory.
    pub(in crate::backup) fn leave(&mut self) {
        self.path.pop();
    }

    /// The directory.
    pub(in crate::backup) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry of the directory.
    pub(in crate::backup) fn child(&self, name: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(name))
    }
}
