//! The monitor of a run at the terminal: problems and a progress line on standard error, and a report on SIGUSR1.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::object_names::shortened;
use super::output::{self, Priority};
use super::progress::Status;
use super::show::{self, printable};
use super::signals::INTERRUPTED;
use super::systemd;
use super::ticker::{Tick, Ticker};
use crate::failure::worded;
use crate::monitor::{Monitor, Progress};

/// Interval of the progress line.
const INTERVAL: Duration = Duration::from_millis(100);
/// Interval of status objects with --json.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of the status for systemd.
const STATUS_INTERVAL: Duration = Duration::from_secs(3);
/// Width of a terminal that does not report it.
const COLUMNS: usize = 80;
/// Without --verbose, at most this many problems of a run are shown, and at most this many main problems.
const SHOWN_PROBLEMS: u64 = 20;

/// The view of the run whose progress is shown, which messages must not tear.
static SHOWN: Mutex<Weak<View>> = Mutex::new(Weak::new());

/// The view of the run whose progress is shown.
fn shown() -> Option<Arc<View>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
}

/// Writes a message to standard error, above the progress line if there is one.
pub(super) fn announce(message: &str) {
    match shown() {
        Some(view) => view.note(message),
        None => output::warning(output::note_line(&words(message, output::is_json()))),
    }
}

/// Ends the process after a signal, with a last message instead of the progress line.
pub(super) fn abort(message: &str) -> ! {
    if let Some(view) = shown() {
        view.bar.finish_and_clear();
    }
    match output::is_json() {
        true => output::exit_error(INTERRUPTED, message),
        false => output::error(printable(&format!("brackfs: {message}"))),
    }
    std::process::exit(INTERRUPTED.into());
}

/// A message without numbers of system errors and, unless `whole`, without names of objects.
pub(super) fn words(message: &str, whole: bool) -> String {
    let message = worded(message);
    if whole { message.into_owned() } else { shortened(&message) }
}

/// A message about a path, with the path in front unless the message names it. A path without a slash may be a common word,
/// so it is always in front.
fn with_path(path: &str, message: &str) -> String {
    let ends_word = |c: char| c.is_whitespace() || ":;,.()'\"".contains(c);
    let is_whole = |(at, _): (usize, _)| {
        let (before, after) = (&message[..at], &message[at + path.len()..]);
        before.chars().next_back().is_none_or(ends_word) && after.chars().next().is_none_or(ends_word)
    };
    match path.is_empty() || (path.contains('/') && message.match_indices(path).any(is_whole)) {
        true => message.to_owned(),
        false => format!("{path}: {message}"),
    }
}

/// Whether standard error is a terminal.
pub(super) fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}

/// The number of problems reported to all monitors of this kind.
static REPORTED: AtomicU64 = AtomicU64::new(0);

/// The number of problems that the process has reported so far.
pub(super) fn reported_problems() -> u64 {
    REPORTED.load(Ordering::Relaxed)
}

/// A monitor that writes to standard error. With `json`, everything except problems goes to standard output.
pub(super) struct Terminal {
    quiet: bool,
    verbose: bool,
    view: Arc<View>,
    ticker: Mutex<Option<Ticker>>,
    /// Whether the run has begun, which then reports the problems that were not shown.
    is_started: AtomicBool,
    /// The number of problems that are neither main problems nor caused by lost objects.
    problems: AtomicU64,
    main_problems: AtomicU64,
    /// The number of entries that need lost objects and were not shown.
    hidden: AtomicU64,
}

/// The parts that the reporter thread shares.
struct View {
    json: bool,
    quiet: bool,
    /// Whether names of objects are shown whole.
    whole: bool,
    bar: ProgressBar,
    progress: Progress,
    /// When the service manager was told about the progress.
    told: Mutex<Option<Instant>>,
}

impl Terminal {
    pub(super) fn new(quiet: bool, verbose: bool, json: bool) -> Self {
        let is_shown = !quiet && !json && is_interactive();
        let bar = if is_shown {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        let view = Arc::new(View {
            json,
            quiet,
            whole: json || verbose,
            bar,
            progress: Progress::default(),
            told: Mutex::new(None),
        });
        Terminal {
            quiet,
            verbose,
            view,
            ticker: Mutex::new(None),
            is_started: AtomicBool::new(false),
            problems: AtomicU64::new(0),
            main_problems: AtomicU64::new(0),
            hidden: AtomicU64::new(0),
        }
    }

    /// Starts to show progress and to answer SIGUSR1. If no thread can be started, the run goes on without.
    pub(super) fn start(&self) {
        let interval = match (self.quiet, self.view.json, self.view.bar.is_hidden()) {
            (false, true, _) => Some(JSON_INTERVAL),
            (false, false, false) => Some(INTERVAL),
            _ => systemd::takes_status().then_some(STATUS_INTERVAL),
        };
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&self.view);
        self.is_started.store(true, Ordering::Relaxed);
        let (view, started) = (self.view.clone(), Instant::now());
        let ticker = Ticker::start(interval, move |tick| view.show(&tick, started.elapsed()));
        *self.ticker.lock().unwrap_or_else(PoisonError::into_inner) = ticker.ok();
    }

    /// Ends what `start` began, clears the progress line, and says how many problems were not shown.
    pub(super) fn finish(&self) {
        if let Some(ticker) = self.ticker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            ticker.stop();
        }
        self.view.bar.finish_and_clear();
        self.is_started.store(false, Ordering::Relaxed);
        self.count_hidden();
    }

    /// Says how many problems were not shown.
    fn count_hidden(&self) {
        let [problems, main] = [&self.problems, &self.main_problems]
            .map(|counter| counter.swap(0, Ordering::Relaxed).saturating_sub(SHOWN_PROBLEMS));
        match problems + main {
            0 => {}
            _ if self.view.whole => {}
            more => self.view.message(Priority::Warning, &format!("brackfs: and {more} more: -v shows all")),
        }
        match self.hidden.swap(0, Ordering::Relaxed) {
            0 => {}
            _ => self.view.message(Priority::Warning, "brackfs: -v lists the files that need lost packs"),
        }
    }
}

impl View {
    /// Writes a line above the progress line.
    fn message(&self, priority: Priority, line: &str) {
        self.bar.suspend(|| output::write(priority, line));
    }

    /// Tells the service manager about the progress, but not too often.
    fn tell(&self, status: &Status) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if systemd::takes_status() && told.is_none_or(|told| told.elapsed() >= STATUS_INTERVAL) {
            systemd::set_status(&status.brief());
            *told = Some(Instant::now());
        }
    }

    fn note(&self, message: &str) {
        self.message(Priority::Warning, &output::note_line(&words(message, self.whole)));
    }

    fn show(&self, tick: &Tick, elapsed: Duration) {
        let status = Status { look: self.progress.snapshot(), elapsed };
        match (tick, self.json) {
            (Tick::Signal, true) => self.message(Priority::Info, &show::json(&status.json())),
            (Tick::Signal, false) => self.message(Priority::Info, &format!("brackfs: {}", status.sentence())),
            (Tick::Interval, json) => {
                self.tell(&status);
                if json && !self.quiet {
                    // An error is reported when the result is written.
                    _ = output::object(&status.json());
                } else if !self.bar.is_hidden() {
                    self.bar.set_message(status.line(columns()));
                    self.bar.tick();
                }
            }
        }
    }
}

impl Terminal {
    /// Shows a problem, unless this many of its kind were shown.
    fn show_problem(&self, counter: &AtomicU64, path: &Path, message: &str) {
        REPORTED.fetch_add(1, Ordering::Relaxed);
        let earlier = if self.is_started.load(Ordering::Relaxed) { counter.fetch_add(1, Ordering::Relaxed) } else { 0 };
        if earlier >= SHOWN_PROBLEMS && !self.view.whole {
            return;
        }
        let (view, path) = (&self.view, path.to_string_lossy());
        if view.json {
            let object = json!({ "message_type": "error", "path": path, "message": words(message, true) });
            view.message(Priority::Warning, &show::json(&object));
        } else {
            let text = words(&with_path(&path, message), view.whole);
            view.message(Priority::Warning, &printable(&format!("brackfs: {text}")));
        }
    }
}

impl Monitor for Terminal {
    fn problem(&self, path: &Path, message: &str) {
        self.show_problem(&self.problems, path, message);
    }

    fn main_problem(&self, path: &Path, message: &str) {
        self.show_problem(&self.main_problems, path, message);
    }

    fn takes_output(&self) -> bool {
        self.view.json
    }

    fn output(&self, program: &str, line: &str) {
        self.view.message(Priority::Info, &output::program_line(program, line));
    }

    fn problem_of(&self, _object: &str, path: &Path, message: &str) {
        // A mount in the foreground never starts and ends a run.
        if self.view.whole || !self.is_started.load(Ordering::Relaxed) {
            self.problem(path, message);
        } else {
            REPORTED.fetch_add(1, Ordering::Relaxed);
            self.hidden.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            self.view.note(message);
        }
    }

    fn remark(&self, message: &str) {
        if self.verbose || is_interactive() {
            self.note(message);
        }
    }

    fn entry(&self, path: &Path, what: &str) {
        if !self.verbose {
            return;
        }
        let item = path.to_string_lossy();
        if self.view.json {
            let object = json!({ "message_type": "verbose_status", "action": what, "item": item });
            // An error is reported when the result is written.
            let _ = output::object(&object);
        } else {
            self.view.message(Priority::Info, &printable(&format!("{what} {item}")));
        }
    }

    fn hangs(&self, path: &Path) {
        self.view.bar.finish_and_clear();
        self.count_hidden();
        let path = path.display();
        abort(&format!("{path}: interrupted: this path does not answer. The data stored so far is kept"));
    }

    fn shows_progress(&self) -> bool {
        !self.view.bar.is_hidden()
    }

    fn progress(&self) -> &Progress {
        &self.view.progress
    }
}

/// The width of standard error.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr());
    size.map(|size| usize::from(size.ws_col)).ok().filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_left_out_only_if_the_message_names_it() {
        for (path, message, shown) in [
            ("/a", "cannot read /a: gone", "cannot read /a: gone"),
            ("/a", "cannot read \"/a\"", "cannot read \"/a\""),
            ("/a", "cannot read /a/b: gone", "/a: cannot read /a/b: gone"),
            ("/a", "cannot read /b/a: gone", "/a: cannot read /b/a: gone"),
            ("b/a", "cannot read /b/a, then b/a", "cannot read /b/a, then b/a"),
            ("e", "No such file", "e: No such file"),
            ("file", "No such file", "file: No such file"),
            ("", "gone", "gone"),
        ] {
            assert_eq!(with_path(path, message), shown);
        }
    }
}
