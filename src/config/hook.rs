//! Hooks: `[[hook]]`.

use std::time::Duration;

use super::place::{Mistakes, Place, suggestion};
use super::settings::{Settings, Used};
use super::value::Table;
use crate::quantity::parse_duration;

/// A command that runs at certain moments of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The moments.
    pub on: Vec<Moment>,
    /// The sources that it belongs to; empty for the whole run.
    pub sources: Vec<String>,
    /// The program and its arguments.
    pub words: Vec<String>,
    /// The time after which it is ended.
    pub timeout: Duration,
    /// What its failure means.
    pub on_failure: OnFailure,
    /// The settings of the file.
    pub used: Vec<Used>,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the backups.
    Before,
    /// After snapshots of the file systems were made, and before they are read.
    Snapshot,
    /// After backups of which all are complete.
    Success,
    /// After backups of which one has problems, and none failed.
    Warning,
    /// After backups of which one failed.
    Failure,
    /// At the end, in any case.
    Finally,
}

/// What the failure of a hook means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The backups are not made, and the run fails.
    #[default]
    Abort,
    /// It is reported, and the run goes on.
    Warn,
    /// Nothing.
    Ignore,
}

/// The moments by their names.
const MOMENTS: [(&str, Moment); 6] = [
    ("before", Moment::Before),
    ("snapshot", Moment::Snapshot),
    ("success", Moment::Success),
    ("warning", Moment::Warning),
    ("failure", Moment::Failure),
    ("finally", Moment::Finally),
];

/// How long a hook may run unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

impl Hook {
    pub(super) fn read(place: &Place, table: &Table, sources: &[&str], mistakes: &mut Mistakes) -> Option<Self> {
        let mut settings = Settings::new("hook", vec![table], mistakes);
        let on = settings.list("on", |word| {
            let found = MOMENTS.iter().find(|(name, _)| *name == word).map(|(_, moment)| *moment);
            found.ok_or_else(|| {
                let names = MOMENTS.map(|(name, _)| name);
                format!("{word:?} is none of {}{}", names.join(", "), suggestion(word, names))
            })
        });
        let of = settings.list("for", |name| match sources.contains(&name) {
            true => Ok(name.to_owned()),
            false => Err(format!("there is no source.{name}{}", suggestion(name, sources.iter().copied()))),
        });
        let words = settings.command("run");
        let timeout = settings.quantity("timeout", |text| match parse_duration(text)? {
            Duration::ZERO => Err("must not be 0".to_owned()),
            timeout => Ok(timeout),
        });
        let on_failure = settings.word(
            "on-failure",
            &[("abort", OnFailure::Abort), ("warn", OnFailure::Warn), ("ignore", OnFailure::Ignore)],
        );
        for (key, is_missing, write) in [
            ("on", on.as_ref().is_none_or(Vec::is_empty), "on = [\"before\"]"),
            ("run", settings.find("run").is_none(), "run = [\"/path/of/program\"]"),
        ] {
            if is_missing && settings.find(key).is_none_or(|value| value.to_string() == "[]") {
                settings.missing(place, key, write);
            }
        }
        if of.as_ref().is_some_and(Vec::is_empty)
            && let Some(value) = settings.find("for").filter(|value| value.to_string() == "[]")
        {
            settings.wrong(&value.place, "for", "names no source; without this key, the hook runs once");
        }
        if of.is_none()
            && on.iter().flatten().any(|moment| *moment == Moment::Snapshot)
            && let Some(value) = settings.find("on")
        {
            settings.wrong(&value.place, "on", "snapshots are made for a source; name it with for = [\"home\"]");
        }
        let used = settings.end();
        Some(Hook {
            on: on?,
            sources: of.unwrap_or_default(),
            words: words?,
            timeout: timeout.unwrap_or(TIMEOUT),
            on_failure: on_failure.unwrap_or_default(),
            used,
        })
    }
}
