//! The rclone process: started when it is needed, started again if it ended, and ended with brackfs.
//!
//! It serves on two Unix sockets in a folder that only this user can enter, so it needs no password.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process_group};
use tempfile::TempDir;
use tracing::debug;

use super::failure::{Failure, shown};
use crate::storage::error::ErrorKind;
use crate::sys::end_with_parent;

/// Bytes of rclone's messages that are kept.
const WORDS: usize = 16 << 10;
/// How long rclone may take to end once it is told to, before it is killed.
const ENDING: Duration = Duration::from_secs(2);
/// How long to wait for a message that belongs to a failed request, and for the end of rclone after that of a connection.
const MESSAGE: Duration = Duration::from_millis(300);
/// The prefix of the names of folders with sockets; the number of the process follows.
const PREFIX: &str = "brackfs-rclone-";
/// Options of rclone that are not taken from its variables (`RCLONE_DRY_RUN`): they hide or keep files, serve on other
/// addresses as well, or send messages elsewhere.
const UNSET: [&str; 43] = [
    "ADDR",
    "ALLOW_ORIGIN",
    "APPEND_ONLY",
    "BACKUP_DIR",
    "BASEURL",
    "CERT",
    "CLIENT_CA",
    "COMPARE_DEST",
    "COPY_DEST",
    "CUTOFF_MODE",
    "DRY_RUN",
    "HASH_FILTER",
    "HTPASSWD",
    "IGNORE_CASE",
    "IGNORE_EXISTING",
    "IMMUTABLE",
    "INTERACTIVE",
    "KEY",
    "MAX_AGE",
    "MAX_DEPTH",
    "MAX_DURATION",
    "MAX_SIZE",
    "MAX_TRANSFER",
    "MIN_AGE",
    "MIN_SIZE",
    "MIN_TLS_VERSION",
    "NAME_TRANSFORM",
    "PASS",
    "PRIVATE_REPOS",
    "QUIET",
    "RC",
    "REALM",
    "RESPONSE_HEADER",
    "SALT",
    "STDIO",
    "SUFFIX",
    "SUFFIX_KEEP_EXTENSION",
    "SYSLOG",
    "SYSLOG_FACILITY",
    "UPDATE",
    "USER",
    "USER_FROM_HEADER",
    "USE_JSON_LOG",
];
/// The beginnings of names of more such options.
const UNSET_FAMILIES: [&str; 8] =
    ["EXCLUDE", "FILES_FROM", "FILTER", "INCLUDE", "LOG_", "METADATA_", "METRICS_", "RC_"];

/// How to start rclone, and the process that runs now.
#[derive(Debug)]
pub(super) struct Process {
    /// The program and options of the user.
    program: Vec<String>,
    remote: String,
    folder: TempDir,
    /// How long it may take until it serves.
    stall: Duration,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// `None` once it was waited for.
    process: Option<Pid>,
    ended: bool,
    words: Vec<u8>,
    /// The number of bytes of messages so far.
    said: u64,
}

impl Process {
    /// Starts nothing yet.
    pub(super) fn new(program: Vec<String>, remote: String, stall: Duration) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(ErrorKind::Other, format!("no folder for sockets: {error}"));
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
        let base = runtime.unwrap_or_else(std::env::temp_dir);
        sweep(&base);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(&base).map_err(failed)?;
        Ok(Process { program, remote, folder, stall, running: Mutex::default() })
    }

    /// The socket for objects.
    pub(super) fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// The socket for commands.
    pub(super) fn commands(&self) -> PathBuf {
        self.folder.path().join("commands")
    }

    /// Makes sure that rclone runs and serves. Returns the place in its messages.
    pub(super) fn ensure(&self) -> Result<u64, Failure> {
        let mut running = lock(&self.running);
        if let Some(running) = &*running {
            let state = lock(&running.shared.state);
            if !state.ended {
                return Ok(state.said);
            }
        }
        *running = None;
        let new = self.start()?;
        let said = lock(&new.shared.state).said;
        *running = Some(new);
        Ok(said)
    }

    /// Whether rclone has ended, after a connection to it did. Its end may be noticed a little later.
    pub(super) fn has_ended(&self) -> bool {
        let Some(shared) = lock(&self.running).as_ref().map(|running| running.shared.clone()) else { return true };
        let waited = shared.changed.wait_timeout_while(lock(&shared.state), MESSAGE, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    /// The last message with these words after this place.
    pub(super) fn message(&self, about: &str, place: u64) -> Option<String> {
        let shared = lock(&self.running).as_ref().map(|running| running.shared.clone())?;
        let end = Instant::now() + MESSAGE;
        let mut state = lock(&shared.state);
        loop {
            let text = state.text_after(place);
            let line = text.lines().rfind(|line| line.contains(about) && !line.trim().is_empty());
            let left = end.saturating_duration_since(Instant::now());
            if line.is_some() || left.is_zero() || state.ended {
                return line.map(without_time);
            }
            state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program.first().map_or("rclone", String::as_str));
        command.args(self.program.iter().skip(1)).args([
            "serve",
            "restic",
            "--rc",
            "--rc-no-auth",
            "--ask-password=false",
        ]);
        // Commands on the other socket change objects as well, which a cache would not notice.
        command.args(["--cache-objects=false", "--user=", "--pass="]);
        command.arg(format!("--addr=unix://{}", self.objects().display()));
        command.arg(format!("--rc-addr=unix://{}", self.commands().display()));
        command.arg("--").arg(&self.remote);
        // Ctrl-C in the terminal ends brackfs in order, and not rclone under it.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        std::env::vars_os().filter(|(name, _)| is_unset(name)).for_each(|(name, _)| _ = command.env_remove(name));
        end_with_parent(&mut command);
        command
    }

    fn start(&self) -> Result<Running, Failure> {
        for socket in [self.objects(), self.commands()] {
            if socket.as_os_str().len() > 100 {
                let why =
                    format!("the path {} is too long for a socket; set TMPDIR to a shorter one", socket.display());
                return Err(Failure::new(ErrorKind::Refused, why));
            }
            // Those of a process that ended.
            let _ = fs::remove_file(socket);
        }
        let mut command = self.command();
        let (started, starts) = mpsc::sync_channel(1);
        let shared = Arc::new(Shared::default());
        let watched = shared.clone();
        // rclone ends with the thread that started it.
        let watcher = thread::Builder::new().name("rclone".into()).spawn(move || match command.spawn() {
            Ok(child) => {
                lock(&watched.state).process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                let _ = started.send(Ok(()));
                watched.watch(child);
            }
            Err(error) => drop(started.send(Err(error))),
        });
        watcher.map_err(|error| Failure::new(ErrorKind::Other, format!("cannot start a thread: {error}")))?;
        let program = self.program.first().map_or("rclone", String::as_str);
        let failed = |error: &io::Error| {
            let help = match error.kind() {
                io::ErrorKind::NotFound => {
                    "; install rclone 1.75 or later from https://rclone.org, or give it with --rclone"
                }
                _ => "",
            };
            Failure::new(ErrorKind::Refused, format!("cannot start {program}: {error}{help}"))
        };
        match starts.recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(Failure::new(ErrorKind::Other, format!("cannot start {program}"))),
        }
        let running = Running { shared };
        let begun = Instant::now();
        while ![self.objects(), self.commands()].iter().all(|socket| UnixStream::connect(socket).is_ok()) {
            let state = lock(&running.shared.state);
            if state.ended {
                return Err(self.explain(&state.text_after(0)));
            }
            if begun.elapsed() > self.stall {
                let why = format!("rclone does not serve within {} s", self.stall.as_secs());
                return Err(Failure::new(ErrorKind::Unavailable, why));
            }
            drop(state);
            thread::sleep(Duration::from_millis(10));
        }
        debug!(remote = self.remote, "rclone serves");
        Ok(running)
    }

    /// Why rclone did not start.
    fn explain(&self, text: &str) -> Failure {
        let last = text.lines().rfind(|line| !line.trim().is_empty()).map(without_time).unwrap_or_default();
        if last.contains("unknown port") || last.contains("unknown flag") || last.contains("unknown command") {
            let why =
                format!("rclone is too old to serve on a socket; install 1.75 or later (it says: {})", shown(&last));
            return Failure::new(ErrorKind::Refused, why);
        }
        match Failure::said(&last) {
            failure if failure.kind.is_temporary() => failure,
            failure => Failure { kind: ErrorKind::Refused, ..failure },
        }
    }
}

impl Shared {
    /// Reads messages until the process ends, and waits for it.
    fn watch(&self, mut child: Child) {
        if let Some(mut messages) = child.stderr.take() {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = messages.read(&mut bytes) {
                let mut state = lock(&self.state);
                state.words.extend_from_slice(bytes.get(..read).unwrap_or_default());
                state.said += read as u64;
                let excess = state.words.len().saturating_sub(WORDS);
                state.words.drain(..excess);
                self.changed.notify_all();
            }
        }
        // Cleared before the process is reaped, after which another one can get its number.
        let mut state = lock(&self.state);
        state.process = None;
        drop(state);
        let _ = child.kill();
        let _ = child.wait();
        state = lock(&self.state);
        state.ended = true;
        self.changed.notify_all();
    }
}

impl State {
    fn text_after(&self, place: u64) -> String {
        let new = usize::try_from(self.said.saturating_sub(place)).unwrap_or(usize::MAX).min(self.words.len());
        String::from_utf8_lossy(self.words.get(self.words.len() - new..).unwrap_or_default()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        for signal in [Signal::TERM, Signal::KILL] {
            if let Some(process) = state.process {
                // It may have ended by now.
                let _ = kill_process_group(process, signal);
            }
            let end = Instant::now() + ENDING;
            while !state.ended {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.shared.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// Whether rclone does not get a variable of this name.
fn is_unset(name: &OsStr) -> bool {
    let option = name.to_str().and_then(|name| name.strip_prefix("RCLONE_"));
    option
        .is_some_and(|option| UNSET.contains(&option) || UNSET_FAMILIES.iter().any(|family| option.starts_with(family)))
}

/// A line of rclone's log without the time.
fn without_time(line: &str) -> String {
    let is_time =
        line.get(..19).is_some_and(|time| time.bytes().all(|byte| byte.is_ascii_digit() || b"/: ".contains(&byte)));
    if is_time { line.get(20..).unwrap_or_default().to_owned() } else { line.to_owned() }
}

/// Removes folders with sockets of processes that were killed.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()) else { continue };
        let is_gone = id.parse::<u32>().is_ok_and(|id| !Path::new(&format!("/proc/{id}")).exists());
        let is_ours = entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == getuid().as_raw());
        if is_gone && is_ours {
            // Best effort: an empty folder does no harm.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_remotes_and_of_the_network_are_passed_on_and_filters_are_not() {
        for name in [
            "RCLONE_CONFIG",
            "RCLONE_CONFIG_B2_KEY",
            "RCLONE_S3_ENDPOINT",
            "RCLONE_USER_AGENT",
            "RCLONE_BWLIMIT",
            "FILTER",
        ] {
            assert!(!is_unset(name.as_ref()), "{name}");
        }
        for name in [
            "RCLONE_FILTER_FROM",
            "RCLONE_FILES_FROM0",
            "RCLONE_MAX_AGE",
            "RCLONE_RC_ADDR",
            "RCLONE_ADDR",
            "RCLONE_LOG_FILE",
        ] {
            assert!(is_unset(name.as_ref()), "{name}");
        }
    }
}
