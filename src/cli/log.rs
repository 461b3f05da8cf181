//! The log for bug reports. It is off by default.
//!
//! Events of all modules go to it, at the level that [`LEVEL`] sets. They have ids, sizes, counts and durations: never
//! names or paths of files, content, error texts (which have paths) or secrets.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use tracing::info;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::exit::{self, Usage};
use super::version::VERSION;

/// The variable with the level.
const LEVEL: &str = "BRACKFS_LOG";
/// The value of `--log` for standard error.
const STDERR: &str = "stderr";

/// Starts the log, if `--log` or [`LEVEL`] is set.
pub(super) fn start(to: Option<&Path>) -> Result<()> {
    let text = std::env::var_os(LEVEL).map(|text| text.to_string_lossy().into_owned());
    let level = level(text.as_deref(), to.is_some())?;
    if level == LevelFilter::OFF {
        return Ok(());
    }
    let writer = match to {
        Some(path) if path != Path::new(STDERR) => {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
            BoxMakeWriter::new(Mutex::new(file.with_context(|| format!("cannot write the log {}", path.display()))?))
        }
        _ => BoxMakeWriter::new(io::stderr),
    };
    // A log that cannot be written, as on a full disk, must not disturb the command.
    let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).log_internal_errors(false);
    log.with_thread_names(true).with_writer(writer).init();
    Ok(())
}

/// The level; `given` is whether there is a `--log`.
fn level(text: Option<&str>, given: bool) -> Result<LevelFilter, Usage> {
    match text {
        None | Some("") if given => Ok(LevelFilter::DEBUG),
        None | Some("") => Ok(LevelFilter::OFF),
        Some(text @ ("off" | "error" | "warn" | "info" | "debug" | "trace")) => {
            Ok(text.parse().unwrap_or(LevelFilter::DEBUG))
        }
        Some(text) => Err(Usage(format!("{LEVEL}={text} is not a level; use off, error, warn, info, debug or trace"))),
    }
}

/// Runs a command, and logs its start and end.
pub(super) fn around(name: &str, run: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    let start = Instant::now();
    info!(version = VERSION, process = std::process::id(), "{name} started");
    let result = run();
    let milliseconds = start.elapsed().as_millis();
    match &result {
        Ok(code) => info!(?code, milliseconds, "{name} ended"),
        Err(error) => info!(failure = ?exit::kind(error), milliseconds, "{name} failed"),
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_off_by_default_and_at_debug_level_if_a_file_is_given() {
        assert_eq!(level(None, false).unwrap(), LevelFilter::OFF);
        assert_eq!(level(Some(""), false).unwrap(), LevelFilter::OFF);
        assert_eq!(level(None, true).unwrap(), LevelFilter::DEBUG);
        assert_eq!(level(Some("trace"), false).unwrap(), LevelFilter::TRACE);
        assert_eq!(level(Some("off"), true).unwrap(), LevelFilter::OFF);
        assert!(level(Some("loud"), true).unwrap_err().to_string().contains("use off, error"));
    }
}
