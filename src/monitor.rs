//! What engines tell those who watch them. Engines never print.

use std::path::Path;

/// Receives what an engine reports. Called from several threads; must be quick.
pub trait Monitor: Send + Sync {
    /// Something that the user should know, and that does not end the run: a file that could not be read,
    /// a damaged block. `path` is the file it is about.
    fn problem(&self, path: &Path, message: &str);

    /// Something worth knowing that is no problem.
    fn note(&self, message: &str);

    /// An entry was handled; shown at high verbosity.
    fn entry(&self, path: &Path, what: &str);

    /// How far it is.
    fn progress(&self, progress: Progress);
}

/// How far an engine is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Files done.
    pub files: u64,
    /// Bytes of files done.
    pub bytes: u64,
    /// Bytes written.
    pub stored_bytes: u64,
}

/// A monitor for those who don't want to know.
#[derive(Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn problem(&self, _path: &Path, _message: &str) {}
    fn note(&self, _message: &str) {}
    fn entry(&self, _path: &Path, _what: &str) {}
    fn progress(&self, _progress: Progress) {}
}
