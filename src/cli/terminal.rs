//! What a run says while it goes on: problems on standard error, a line of progress if somebody looks.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::common::is_interactive;
use super::say;
use super::show::{printable, size};
use crate::monitor::{Monitor, Progress};

/// Time between two looks at the progress.
const TICK: Duration = Duration::from_millis(100);

/// A monitor that writes to standard error.
pub(super) struct Terminal {
    quiet: bool,
    verbose: bool,
    json: bool,
    bar: ProgressBar,
    last: Mutex<Instant>,
}

impl Terminal {
    pub(super) fn new(quiet: bool, verbose: bool, json: bool) -> Self {
        let bar = match !quiet && !json && is_interactive() {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            bar.set_style(style);
        }
        Terminal { quiet, verbose, json, bar, last: Mutex::new(Instant::now()) }
    }

    /// Takes the line of progress away.
    pub(super) fn done(&self) {
        self.bar.finish_and_clear();
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| say::aside(line));
    }
}

impl Monitor for Terminal {
    fn problem(&self, path: &Path, message: &str) {
        match self.json {
            true => {
                let path = path.to_string_lossy();
                self.say(&json!({ "message_type": "error", "path": path, "message": message }).to_string());
            }
            // Errors of the file system name the path themselves.
            false if message.contains(&*path.to_string_lossy()) => {
                self.say(&format!("brackfs: {}", printable(message)));
            }
            false => self.say(&printable(&format!("brackfs: {}: {message}", path.display()))),
        }
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            self.say(&printable(&format!("brackfs: {message}")));
        }
    }

    fn entry(&self, path: &Path, what: &str) {
        if self.verbose {
            self.say(&printable(&format!("{what} {}", path.display())));
        }
    }

    fn progress(&self, progress: Progress) {
        if self.bar.is_hidden() {
            return;
        }
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() < TICK {
            return;
        }
        *last = Instant::now();
        let stored = match progress.stored_bytes {
            0 => String::new(),
            bytes => format!(", {} stored", size(bytes)),
        };
        self.bar.set_message(format!("{} files, {}{stored}", progress.files, size(progress.bytes)));
        self.bar.tick();
    }
}
