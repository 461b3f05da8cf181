//! Reports of engines to their callers: problems, notes and progress. Engines never print.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

/// The fixed cost of a file (lookup, open, metadata), in bytes of a large file that take as long.
const FILE_WORK: f64 = 32.0 * 1024.0;

/// Receives the reports of an engine. Called from several threads; must be quick.
pub trait Monitor: Send + Sync {
    /// A problem that does not end the run, such as an unreadable file or a damaged block. `path` is the affected file
    /// or object.
    fn problem(&self, path: &Path, message: &str);

    /// A problem of the whole run or repository, such as that no snapshot was made, or of one of its documents. A monitor that
    /// leaves out problems after the first ones must show the first of these, too.
    fn main_problem(&self, path: &Path, message: &str) {
        self.problem(path, message);
    }

    /// A problem of one of the entries that need an object which is lost or damaged. The object itself is reported with
    /// [`Monitor::problem`], with the number of these entries.
    fn problem_of(&self, _object: &str, path: &Path, message: &str) {
        self.problem(path, message);
    }

    /// Whether lines that other programs write go to [`Monitor::output`], because they must not be mixed with other output.
    /// Otherwise, programs write to standard error themselves.
    fn takes_output(&self) -> bool {
        false
    }

    /// A line that a program wrote, such as a hook.
    fn output(&self, _program: &str, _line: &str) {}

    /// Information that is not a problem.
    fn note(&self, message: &str);

    /// Information that is the same in every run. It matters to a person who watches, but not in a mail from cron.
    fn remark(&self, message: &str) {
        self.note(message);
    }

    /// An entry was processed with this result; shown at high verbosity.
    fn entry(&self, path: &Path, what: &str);

    /// The run was stopped, but a system call on this path does not return. A thread that is blocked in the kernel
    /// cannot be ended, so a program with nothing else to do should exit now; otherwise the run keeps waiting.
    fn hangs(&self, _path: &Path) {}

    /// Whether the progress is shown to a user, so that it is worth while to count the work ahead.
    fn shows_progress(&self) -> bool {
        false
    }

    /// The engine's progress counters.
    fn progress(&self) -> &Progress {
        /// Shared by all monitors that do not show progress.
        static UNUSED: LazyLock<Progress> = LazyLock::new(Progress::default);
        &UNUSED
    }
}

/// Formats a number with a singular or plural noun: `1 file`, `2 files`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        number => format!("{number} {many}"),
    }
}

/// Progress counters of an engine. Its threads update them at negligible cost; other threads can take a snapshot at any
/// time, even while the engine is blocked.
#[derive(Debug, Default)]
pub struct Progress {
    files: AtomicU64,
    unit: Mutex<Unit>,
    bytes: AtomicU64,
    read_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    total: Mutex<Option<Total>>,
    path: Mutex<PathBuf>,
}

/// What the counter of files counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unit {
    /// Files.
    #[default]
    Files,
    /// Packs of the repository.
    Packs,
    /// Chunks of files and trees. Their bytes are not counted.
    Chunks,
}

/// The total work of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// The number of files.
    pub files: u64,
    /// The total size of the files in bytes.
    pub bytes: u64,
    /// Whether this is only an estimate, such as the totals of the previous run.
    pub estimated: bool,
}

/// The state of [`Progress`] at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// The number of finished files.
    pub files: u64,
    /// What `files` counts.
    pub unit: Unit,
    /// Bytes of finished files and parts of files, including unchanged ones that were not read.
    pub bytes: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub stored_bytes: u64,
    /// The total work, once it is known.
    pub total: Option<Total>,
    /// The path that is being processed.
    pub path: PathBuf,
}

impl Progress {
    /// Counts a finished file. Its bytes are counted separately.
    pub fn file(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets what the counter of files counts.
    pub fn count(&self, unit: Unit) {
        *self.unit.lock().unwrap_or_else(PoisonError::into_inner) = unit;
    }

    /// Counts finished bytes of files.
    pub fn bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that were read.
    pub fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that were written.
    pub fn stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sets the total work. An estimate does not replace an exact total.
    pub fn expect(&self, total: Total) {
        let mut known = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        if !total.estimated || known.is_none_or(|known| known.estimated) {
            *known = Some(total);
        }
    }

    /// Sets the path that is being processed.
    pub fn at(&self, path: &Path) {
        let mut at = self.path.lock().unwrap_or_else(PoisonError::into_inner);
        // Reuse the allocation.
        at.as_mut_os_string().clear();
        at.as_mut_os_string().push(path);
    }

    /// Reads all counters.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ProgressSnapshot {
            files: get(&self.files),
            unit: *self.unit.lock().unwrap_or_else(PoisonError::into_inner),
            bytes: get(&self.bytes),
            read_bytes: get(&self.read_bytes),
            stored_bytes: get(&self.stored_bytes),
            total: *self.total.lock().unwrap_or_else(PoisonError::into_inner),
            path: self.path.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl ProgressSnapshot {
    /// The finished part of the total work, from 0 to 1, with a fixed cost for each file. `None` if the total is
    /// unknown, or if it was estimated and has been exceeded.
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

/// A monitor that ignores all reports.
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

    fn snapshot(files: u64, bytes: u64, total: Option<Total>) -> ProgressSnapshot {
        ProgressSnapshot { files, bytes, total, ..ProgressSnapshot::default() }
    }

    #[test]
    fn files_and_bytes_count_as_work() {
        let mib = 1 << 20;
        let total = |estimated| Some(Total { files: 32, bytes: mib, estimated });
        assert_eq!(snapshot(0, 0, total(false)).fraction(), Some(0.0));
        assert_eq!(snapshot(16, 0, total(false)).fraction(), Some(0.25));
        assert_eq!(snapshot(0, mib / 2, total(true)).fraction(), Some(0.25));
        assert_eq!(snapshot(32, mib, total(false)).fraction(), Some(1.0));
        // If the total is exceeded, the fraction is 1 only if the total was exact.
        assert_eq!(snapshot(32, mib + 1, total(false)).fraction(), Some(1.0));
        assert_eq!(snapshot(32, mib + 1, total(true)).fraction(), None);
        assert_eq!(snapshot(33, mib, total(true)).fraction(), None);
        assert_eq!(snapshot(1, 1, None).fraction(), None);
        let nothing = Some(Total { files: 0, bytes: 0, estimated: false });
        assert_eq!(snapshot(0, 0, nothing).fraction(), Some(1.0));
    }

    #[test]
    fn a_snapshot_has_all_counters() {
        let progress = Progress::default();
        progress.file();
        progress.bytes(5);
        progress.read(4);
        progress.stored(3);
        progress.at(Path::new("/a/long/path"));
        progress.at(Path::new("/b"));
        let total = |estimated| Total { files: 1, bytes: u64::from(estimated), estimated };
        for (set, is_estimated) in [(true, true), (false, false), (true, false)] {
            progress.expect(total(set));
            assert_eq!(progress.snapshot().total, Some(total(is_estimated)));
        }
        let seen = progress.snapshot();
        assert_eq!((seen.files, seen.bytes, seen.read_bytes, seen.stored_bytes), (1, 5, 4, 3));
        assert_eq!(seen.path, Path::new("/b"));
    }
}
