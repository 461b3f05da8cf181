//! The monitor of a run at the terminal: problems and a progress line on standard error, and a report on SIGUSR1.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

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

/// The view of the run whose progress is shown, which messages must not tear.
static SHOWN: Mutex<Weak<View>> = Mutex::new(Weak::new());

/// Writes a message to standard error, above the progress line if there is one.
pub(super) fn announce(message: &str) {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    let line = printable(&format!("brackfs: {}", worded(message))).into_owned();
    match shown {
        Some(view) => view.message(Priority::Warning, &line),
        None => output::warning(line),
    }
}

/// Whether standard error is a terminal.
pub(super) fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}

/// A monitor that writes to standard error. With `json`, everything except problems goes to standard output.
pub(super) struct Terminal {
    quiet: bool,
    verbose: bool,
    view: Arc<View>,
    ticker: Mutex<Option<Ticker>>,
}

/// The parts that the reporter thread shares.
struct View {
    json: bool,
    quiet: bool,
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
        let view = Arc::new(View { json, quiet, bar, progress: Progress::default(), told: Mutex::new(None) });
        Terminal { quiet, verbose, view, ticker: Mutex::new(None) }
    }

    /// Starts to show progress and to answer SIGUSR1. If no thread can be started, the run goes on without.
    pub(super) fn start(&self) {
        let interval = match (self.quiet, self.view.json, self.view.bar.is_hidden()) {
            (false, true, _) => Some(JSON_INTERVAL),
            (false, false, false) => Some(INTERVAL),
            _ => systemd::takes_status().then_some(STATUS_INTERVAL),
        };
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&self.view);
        let (view, started) = (self.view.clone(), Instant::now());
        let ticker = Ticker::start(interval, move |tick| view.show(&tick, started.elapsed()));
        *self.ticker.lock().unwrap_or_else(PoisonError::into_inner) = ticker.ok();
    }

    /// Ends what `start` began, and clears the progress line.
    pub(super) fn finish(&self) {
        if let Some(ticker) = self.ticker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            ticker.stop();
        }
        self.view.bar.finish_and_clear();
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

    fn show(&self, tick: &Tick, elapsed: Duration) {
        let status = Status { look: self.progress.snapshot(), elapsed };
        match (tick, self.json) {
            (Tick::Signal, true) => self.message(Priority::Info, &show::json(&status.json())),
            (Tick::Signal, false) => self.message(Priority::Info, &format!("brackfs: {}", status.sentence())),
            (Tick::Interval, json) => {
                self.tell(&status);
                if json && !self.quiet {
                    // A broken pipe is reported when the result is written.
                    _ = output::result(show::json(&status.json()));
                } else if !self.bar.is_hidden() {
                    self.bar.set_message(status.line(columns()));
                    self.bar.tick();
                }
            }
        }
    }
}

impl Monitor for Terminal {
    fn problem(&self, path: &Path, message: &str) {
        let message = &*worded(message);
        let shown = path.to_string_lossy();
        if self.view.json {
            let object = json!({ "message_type": "error", "path": shown, "message": message });
            self.view.message(Priority::Warning, &show::json(&object));
        } else if message.contains(&*shown) {
            // The message names the path already.
            self.view.message(Priority::Warning, &format!("brackfs: {}", printable(message)));
        } else {
            self.view.message(Priority::Warning, &printable(&format!("brackfs: {shown}: {message}")));
        }
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            self.view.message(Priority::Warning, &printable(&format!("brackfs: {}", worded(message))));
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
            // A broken pipe is reported when the result is written.
            let _ = output::result(show::json(&object));
        } else {
            self.view.message(Priority::Info, &printable(&format!("{what} {item}")));
        }
    }

    fn hangs(&self, path: &Path) {
        self.view.bar.finish_and_clear();
        self.problem(path, "interrupted: this path does not answer. The data stored so far is kept");
        std::process::exit(INTERRUPTED.into());
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
