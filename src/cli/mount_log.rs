//! `mount.log`: messages of a background mount, in the folder of the repository in the state directory.
//!
//! Any user of a shared mount can cause messages, by reading a damaged file. So the log is bounded: each message is written
//! at most once an hour, the number of messages per hour is limited, and a long log is renamed. Several mounts of a
//! repository write to the same log, so the file is opened for each message.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::show;
use crate::failure::worded;
use crate::format::Digest;
use crate::monitor::Monitor;
use crate::sys::owner::open_private;

const NAME: &str = "mount.log";
/// Size in bytes at which the log is renamed. Only one old log is kept.
const MAX_SIZE: u64 = 1 << 20;
/// Each message is written at most once in this time.
const PERIOD: Duration = Duration::from_secs(3600);
/// Maximum number of messages in this time.
const MAX_MESSAGES: usize = 1000;

/// The log of a mount. Without a file, messages are dropped.
#[derive(Clone, Default)]
pub(super) struct Log(Option<Arc<Inner>>);

struct Inner {
    path: PathBuf,
    recent: Mutex<Recent>,
}

/// Digests of the subjects of the messages that were written in the current period.
struct Recent {
    since: Instant,
    messages: HashSet<Digest>,
}

impl Log {
    /// Opens the log in a folder, which must be writable.
    pub(super) fn open(folder: &Path) -> io::Result<Log> {
        let path = folder.join(NAME);
        open(&path)?;
        let recent = Mutex::new(Recent { since: Instant::now(), messages: HashSet::new() });
        Ok(Log(Some(Arc::new(Inner { path, recent }))))
    }

    fn log(&self, text: &str) {
        self.log_once(text, text);
    }

    /// Writes a text, unless another one about the same thing was written in this period.
    fn log_once(&self, about: &str, text: &str) {
        let Some(inner) = &self.0 else { return };
        let text = &*worded(text);
        let room = inner.recent.lock().unwrap_or_else(PoisonError::into_inner).take(about, Instant::now());
        // Errors are ignored: a full disk must not end the mount.
        let _ = match room {
            Room::Free => inner.write(text),
            Room::Last => inner.write(text).and_then(|()| inner.write("too many messages; the log pauses for an hour")),
            Room::Taken => Ok(()),
        };
    }
}

/// Whether a message is written.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    Free,
    /// Written as the last one in this period.
    Last,
    /// Dropped: it was written already, or the limit is reached.
    Taken,
}

impl Recent {
    fn take(&mut self, about: &str, now: Instant) -> Room {
        if now.duration_since(self.since) >= PERIOD {
            *self = Recent { since: now, messages: HashSet::new() };
        }
        if self.messages.len() >= MAX_MESSAGES || !self.messages.insert(Digest::of(about.as_bytes())) {
            return Room::Taken;
        }
        if self.messages.len() == MAX_MESSAGES { Room::Last } else { Room::Free }
    }
}

impl Inner {
    fn write(&self, text: &str) -> io::Result<()> {
        let mut file = open(&self.path)?;
        if file.metadata()?.len() >= MAX_SIZE {
            fs::rename(&self.path, self.path.with_extension("log.old"))?;
            file = open(&self.path)?;
        }
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        file.write_all(format!("{now} {}\n", show::printable(text)).as_bytes())
    }
}

fn open(path: &Path) -> io::Result<File> {
    open_private(path, OpenOptions::new().append(true))
}

impl Monitor for Log {
    fn problem(&self, path: &Path, message: &str) {
        self.log(&format!("{}: {message}", path.display()));
    }

    fn problem_of(&self, object: &str, path: &Path, message: &str) {
        let text = format!("{}: {message}; other files that need {object} are not listed for an hour", path.display());
        self.log_once(object, &text);
    }

    fn note(&self, message: &str) {
        self.log(message);
    }

    fn entry(&self, _path: &Path, _what: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(folder: &Path, name: &str) -> Vec<String> {
        fs::read_to_string(folder.join(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_message_is_written_at_most_once_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        for _ in 0..5 {
            log.problem(Path::new("/a\nb"), "damaged");
            log.problem(Path::new("/c"), "damaged");
        }
        assert_eq!(lines(folder.path(), NAME).len(), 2);
        assert!(lines(folder.path(), NAME)[0].ends_with(" /a\\nb: damaged"));
        let now = Instant::now();
        let mut recent = Recent { since: now, messages: HashSet::new() };
        for (seconds, room) in [(0, Room::Free), (3599, Room::Taken), (3600, Room::Free), (7199, Room::Taken)] {
            assert_eq!(recent.take("damaged", now + Duration::from_secs(seconds)), room, "after {seconds} s");
        }
    }

    #[test]
    fn a_lost_object_is_written_once_and_not_for_each_file() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        for object in ["packs/aa", "packs/bb"] {
            for file in 0..9 {
                log.problem_of(object, Path::new(&format!("/{file}")), "its data is lost");
            }
        }
        let lines = lines(folder.path(), NAME);
        assert_eq!(lines.len(), 2);
        assert!(lines[1].ends_with(" /0: its data is lost; other files that need packs/bb are not listed for an hour"));
    }

    #[test]
    fn messages_per_hour_are_limited() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        for number in 0..MAX_MESSAGES * 3 {
            log.note(&number.to_string());
        }
        let lines = lines(folder.path(), NAME);
        assert_eq!(lines.len(), MAX_MESSAGES + 1);
        assert!(lines[MAX_MESSAGES].contains("pauses"));
    }

    #[test]
    fn a_long_log_is_renamed_by_the_next_mount_that_writes() {
        let folder = tempfile::tempdir().unwrap();
        let logs = [Log::open(folder.path()).unwrap(), Log::open(folder.path()).unwrap()];
        let long = "x".repeat(10_000);
        for number in 0..MAX_MESSAGES - 1 {
            logs[number % 2].note(&format!("{number} {long}"));
        }
        let size = |name: &str| folder.path().join(name).metadata().unwrap().len();
        let limit = MAX_SIZE + 2 * long.len() as u64;
        assert!(size(NAME) <= limit && (MAX_SIZE..=limit).contains(&size("mount.log.old")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn messages_are_dropped_without_a_log_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Log::open(&folder.path().join("missing")).is_err());
        Log::default().note("nowhere");
    }
}
