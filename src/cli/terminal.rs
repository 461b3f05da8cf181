//! What a run says while it goes on: problems on standard error, a line of progress if somebody looks, and how far it
//! is to whoever asks by a signal.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::common::is_interactive;
use super::exit::INTERRUPTED;
use super::say;
use super::show::{self, printable};
use super::status::Status;
use super::watch::{Watch, Why};
use crate::monitor::{Monitor, Progress};

/// Time between two looks at the progress, for people.
const TICK: Duration = Duration::from_millis(100);
/// The same for programs.
const JSON_TICK: Duration = Duration::from_secs(1);
/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

/// A monitor that writes to standard error; with `json`, what is no problem goes to standard output.
pub(super) struct Terminal {
    quiet: bool,
    verbose: bool,
    view: Arc<View>,
    watch: Mutex<Option<Watch>>,
}

/// What is looked at, and where it is shown.
struct View {
    json: bool,
    bar: ProgressBar,
    progress: Progress,
}

impl Terminal {
    pub(super) fn new(quiet: bool, verbose: bool, json: bool) -> Self {
        let bar = match !quiet && !json && is_interactive() {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        let view = Arc::new(View { json, bar, progress: Progress::default() });
        Terminal { quiet, verbose, view, watch: Mutex::new(None) }
    }

    /// The run begins: from here on its progress is shown, and SIGUSR1 is answered. Where the system allows no thread for
    /// that, the run goes on without.
    pub(super) fn start(&self) {
        let every = match (self.quiet, self.view.json, self.view.bar.is_hidden()) {
            (false, true, _) => Some(JSON_TICK),
            (false, false, false) => Some(TICK),
            _ => None,
        };
        let (view, begun) = (self.view.clone(), Instant::now());
        let watch = Watch::begin(every, move |why| view.show(&why, begun.elapsed()));
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = watch.ok();
    }

    /// The run is over: takes the line of progress away.
    pub(super) fn done(&self) {
        if let Some(watch) = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take() {
            watch.end();
        }
        self.view.bar.finish_and_clear();
    }
}

impl View {
    /// A line beside that of the progress.
    fn say(&self, line: &str) {
        self.bar.suspend(|| say::aside(line));
    }

    fn show(&self, why: &Why, elapsed: Duration) {
        let status = Status { look: self.progress.snapshot(), elapsed };
        match (why, self.json) {
            (Why::Asked, true) => self.say(&show::json(&status.json())),
            (Why::Asked, false) => self.say(&format!("brackfs: {}", status.sentence())),
            // If nobody reads any more, the result will tell.
            (Why::Time, true) => _ = say::result(show::json(&status.json())),
            (Why::Time, false) => {
                self.bar.set_message(status.line(columns()));
                self.bar.tick();
            }
        }
    }
}

impl Monitor for Terminal {
    fn problem(&self, path: &Path, message: &str) {
        match self.view.json {
            true => {
                let path = path.to_string_lossy();
                self.view.say(&show::json(&json!({ "message_type": "error", "path": path, "message": message })));
            }
            // Errors of the file system name the path themselves.
            false if message.contains(&*path.to_string_lossy()) => {
                self.view.say(&format!("brackfs: {}", printable(message)));
            }
            false => self.view.say(&printable(&format!("brackfs: {}: {message}", path.display()))),
        }
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            self.view.say(&printable(&format!("brackfs: {message}")));
        }
    }

    fn entry(&self, path: &Path, what: &str) {
        match (self.verbose, self.view.json) {
            (false, _) => {}
            (true, true) => {
                let item = path.to_string_lossy();
                // If nobody reads any more, the result will tell.
                let _ =
                    say::result(show::json(&json!({ "message_type": "verbose_status", "action": what, "item": item })));
            }
            (true, false) => self.view.say(&printable(&format!("{what} {}", path.display()))),
        }
    }

    fn hangs(&self, path: &Path) {
        self.view.bar.finish_and_clear();
        self.problem(path, "interrupted; it does not answer, so it was not waited for. What was stored so far is kept");
        std::process::exit(INTERRUPTED.into());
    }

    fn progress(&self) -> &Progress {
        &self.view.progress
    }
}

/// How wide standard error is.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr());
    size.map(|size| usize::from(size.ws_col)).ok().filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}
