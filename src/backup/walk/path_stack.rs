//! Where in the source an event is: events say no more than the name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The path of the directory that the walk is in, for those who follow it.
pub(in crate::backup) struct PathStack {
    path: PathBuf,
}

impl PathStack {
    /// A walk that begins at `root`.
    pub(in crate::backup) fn new(root: &Path) -> Self {
        PathStack { path: root.to_owned() }
    }

    /// A directory begins; the root has no name.
    pub(in crate::backup) fn enter(&mut self, name: &[u8]) {
        if !name.is_empty() {
            self.path.push(OsStr::from_bytes(name));
        }
    }

    /// A directory ends.
    pub(in crate::backup) fn leave(&mut self) {
        self.path.pop();
    }

    /// The directory.
    pub(in crate::backup) fn path(&self) -> &Path {
        &self.path
    }

    /// What has this name in it.
    pub(in crate::backup) fn child(&self, name: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(name))
    }
}
