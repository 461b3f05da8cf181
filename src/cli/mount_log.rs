//! `mount.log`: messages of a mount in the background, in the repository's state.
//!
//! Any user of a shared mount can cause messages: each read of a damaged file is one. So the log is bounded. The same
//! message is written once an hour, an hour has room for a limited number of messages, and a long log is moved aside.
//! Several mounts of one repository write to one log, so no file is kept open.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::show;
use crate::format::Digest;
use crate::monitor::Monitor;

const NAME: &str = "mount.log";
/// A log that is longer becomes the old one. There is one old log.
const SIZE: u64 = 1 << 20;
/// Time in which a message is written once.
const PERIOD: Duration = Duration::from_secs(3600);
/// Most messages in that time.
const MOST: usize = 1000;

/// The log of a mount. Without a file it takes messages and drops them.
#[derive(Clone, Default)]
pub(super) struct Log(Option<Arc<Inner>>);

struct Inner {
    path: PathBuf,
    recent: Mutex<Recent>,
}

/// What was written in the current period.
struct Recent {
    since: Instant,
    messages: HashSet<Digest>,
}

impl Log {
    /// The log in a folder, which must be writable.
    pub(super) fn open(folder: &Path) -> io::Result<Log> {
        let path = folder.join(NAME);
        open(&path)?;
        let recent = Mutex::new(Recent { since: Instant::now(), messages: HashSet::new() });
        Ok(Log(Some(Arc::new(Inner { path, recent }))))
    }

    fn say(&self, text: &str) {
        let Some(inner) = &self.0 else { return };
        let room = inner.recent.lock().unwrap_or_else(PoisonError::into_inner).take(text);
        // Errors are ignored: a full disk must not end a mount.
        let _ = match room {
            Room::Free => inner.write(text),
            Room::Last => inner.write(text).and_then(|()| inner.write("too many messages; the log pauses for an hour")),
            Room::Taken => Ok(()),
        };
    }
}

/// Whether there is room for a message.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    Free,
    /// It is the last one in this period.
    Last,
    /// It was written already, or there is no room.
    Taken,
}

impl Recent {
    fn take(&mut self, text: &str) -> Room {
        if self.since.elapsed() >= PERIOD {
            *self = Recent { since: Instant::now(), messages: HashSet::new() };
        }
        if self.messages.len() >= MOST || !self.messages.insert(Digest::of(text.as_bytes())) {
            return Room::Taken;
        }
        if self.messages.len() == MOST { Room::Last } else { Room::Free }
    }
}

impl Inner {
    fn write(&self, text: &str) -> io::Result<()> {
        let mut file = open(&self.path)?;
        if file.metadata()?.len() >= SIZE {
            fs::rename(&self.path, self.path.with_extension("log.old"))?;
            file = open(&self.path)?;
        }
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        file.write_all(format!("{now} {}\n", show::printable(text)).as_bytes())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Monitor for Log {
    fn problem(&self, path: &Path, message: &str) {
        self.say(&format!("{}: {message}", path.display()));
    }

    fn note(&self, message: &str) {
        self.say(message);
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
    fn a_message_is_written_once_an_hour() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        for _ in 0..5 {
            log.problem(Path::new("/a\nb"), "damaged");
            log.problem(Path::new("/c"), "damaged");
        }
        assert_eq!(lines(folder.path(), NAME).len(), 2);
        assert!(lines(folder.path(), NAME)[0].ends_with(" /a\\nb: damaged"));
        let inner = log.0.as_ref().unwrap();
        let Some(before) = Instant::now().checked_sub(PERIOD) else { return };
        inner.recent.lock().unwrap().since = before;
        log.problem(Path::new("/c"), "damaged");
        assert_eq!(lines(folder.path(), NAME).len(), 3);
    }

    #[test]
    fn an_hour_has_room_for_so_many_messages() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::open(folder.path()).unwrap();
        for number in 0..MOST * 3 {
            log.note(&number.to_string());
        }
        let lines = lines(folder.path(), NAME);
        assert_eq!(lines.len(), MOST + 1);
        assert!(lines[MOST].contains("pauses"));
    }

    #[test]
    fn a_long_log_is_moved_aside_by_whichever_mount_writes_next() {
        let folder = tempfile::tempdir().unwrap();
        let logs = [Log::open(folder.path()).unwrap(), Log::open(folder.path()).unwrap()];
        let long = "x".repeat(10_000);
        for number in 0..MOST - 1 {
            logs[number % 2].note(&format!("{number} {long}"));
        }
        let size = |name: &str| folder.path().join(name).metadata().unwrap().len();
        let limit = SIZE + 2 * long.len() as u64;
        assert!(size(NAME) <= limit && (SIZE..=limit).contains(&size("mount.log.old")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn without_a_place_messages_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Log::open(&folder.path().join("missing")).is_err());
        Log::default().note("nowhere");
    }
}
