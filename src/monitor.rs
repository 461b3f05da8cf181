//! What engines tell those who watch them. Engines never print.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

/// A file takes about as long as so many bytes of a large one: it has to be found, opened and described.
const FILE_WORK: f64 = 32.0 * 1024.0;

/// Receives what an engine reports. Called from several threads; must be quick.
pub trait Monitor: Send + Sync {
    /// Something that the user should know, and that does not end the run: a file that could not be read,
    /// a damaged block. `path` is the file it is about.
    fn problem(&self, path: &Path, message: &str);

    /// Something worth knowing that is no problem.
    fn note(&self, message: &str);

    /// An entry was handled; shown at high verbosity.
    fn entry(&self, path: &Path, what: &str);

    /// The run was told to stop, and a call about this path does not return. A thread that waits in the kernel can't be
    /// ended, so a program that has nothing else to do should end now; otherwise the run goes on to wait.
    fn hangs(&self, _path: &Path) {}

    /// Where an engine counts how far it is.
    fn progress(&self) -> &Progress {
        /// For all who don't look.
        static UNSEEN: LazyLock<Progress> = LazyLock::new(Progress::default);
        &UNSEEN
    }
}

/// A number of things, for people: `1 file`, `2 files`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}

/// How far an engine is. Its threads count here as they go, which costs next to nothing; whoever watches looks when
/// it likes, also while the engine waits for something.
#[derive(Debug, Default)]
pub struct Progress {
    files: AtomicU64,
    bytes: AtomicU64,
    read_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    total: Mutex<Option<Total>>,
    path: Mutex<PathBuf>,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// It was so last time, or is near enough.
    pub estimated: bool,
}

/// What a look at the progress shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// Files done.
    pub files: u64,
    /// Bytes of files done, also of those that needed no work.
    pub bytes: u64,
    /// Bytes that had to be read for that.
    pub read_bytes: u64,
    /// Bytes written.
    pub stored_bytes: u64,
    /// How much there is, as soon as that is known.
    pub total: Option<Total>,
    /// What is at hand.
    pub path: PathBuf,
}

impl Progress {
    /// A file is done; its bytes are counted as they come.
    pub fn file(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of a file are done.
    pub fn bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes were read.
    pub fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes were written.
    pub fn stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says how much there is to do.
    pub fn expect(&self, total: Total) {
        *self.total.lock().unwrap_or_else(PoisonError::into_inner) = Some(total);
    }

    /// Says what is at hand.
    pub fn at(&self, path: &Path) {
        let mut at = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        // Its room is used again.
        at.as_mut_os_string().clear();
        at.as_mut_os_string().push(path);
    }

    /// How far it is now.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ProgressSnapshot {
            files: get(&self.files),
            bytes: get(&self.bytes),
            read_bytes: get(&self.read_bytes),
            stored_bytes: get(&self.stored_bytes),
            total: *self.total.lock().unwrap_or_else(PoisonError::into_inner),
            path: self.path.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl ProgressSnapshot {
    /// How much of all is done, from 0 to 1; a file is some work, however small it is. None as long as nobody knows how
    /// much there is, or if there is more than was estimated.
    pub fn fraction(&self) -> Option<f64> {
        let total = self.total?;
        if total.estimated && (self.files > total.files || self.bytes > total.bytes) {
            return None;
        }
        let work = |files: u64, bytes: u64| bytes as f64 + files as f64 * FILE_WORK;
        match work(total.files, total.bytes) {
            0.0 => Some(1.0),
            // Files may grow while they are read.
            all => Some((work(self.files, self.bytes) / all).min(1.0)),
        }
    }
}

/// A monitor for those who don't want to know.
#[derive(Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn problem(&self, _path: &Path, _message: &str) {}
    fn note(&self, _message: &str) {}
    fn entry(&self, _path: &Path, _what: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(files: u64, bytes: u64, total: Option<Total>) -> ProgressSnapshot {
        ProgressSnapshot { files, bytes, total, ..ProgressSnapshot::default() }
    }

    #[test]
    fn files_and_bytes_are_work() {
        let mib = 1 << 20;
        let total = |estimated| Some(Total { files: 32, bytes: mib, estimated });
        assert_eq!(look(0, 0, total(false)).fraction(), Some(0.0));
        assert_eq!(look(16, 0, total(false)).fraction(), Some(0.25));
        assert_eq!(look(0, mib / 2, total(true)).fraction(), Some(0.25));
        assert_eq!(look(32, mib, total(false)).fraction(), Some(1.0));
        // More than there was is known to be all only if that was counted.
        assert_eq!(look(32, mib + 1, total(false)).fraction(), Some(1.0));
        assert_eq!(look(32, mib + 1, total(true)).fraction(), None);
        assert_eq!(look(33, mib, total(true)).fraction(), None);
        assert_eq!(look(1, 1, None).fraction(), None);
        let nothing = Some(Total { files: 0, bytes: 0, estimated: false });
        assert_eq!(look(0, 0, nothing).fraction(), Some(1.0));
    }

    #[test]
    fn what_is_counted_is_seen() {
        let progress = Progress::default();
        progress.file();
        progress.bytes(5);
        progress.read(4);
        progress.stored(3);
        progress.at(Path::new("/a/long/path"));
        progress.at(Path::new("/b"));
        let seen = progress.snapshot();
        assert_eq!((seen.files, seen.bytes, seen.read_bytes, seen.stored_bytes), (1, 5, 4, 3));
        assert_eq!(seen.path, Path::new("/b"));
    }
}
