//! Targets: `[target.NAME]`.

use std::path::PathBuf;
use std::time::Duration;

use super::credentials::credentials;
use super::place::{Mistakes, Place};
use super::settings::{Settings, Used, absolute};
use super::value::Table;
use crate::quantity::{parse_duration, parse_percent, parse_rate, parse_size};
use crate::storage::{Location, Rates, Remote, parse_endpoint};

/// A repository, and how to use it.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// Its name.
    pub name: String,
    /// Where it is, with the options for it.
    pub location: Location,
    /// The bytes per second.
    pub rates: Rates,
    /// When it is skipped.
    pub conditions: Conditions,
    /// When and how far it is pruned.
    pub prune: Prune,
    /// How long to wait for another run that writes to it.
    pub wait_lock: Duration,
    /// The files with the certificates that it must be encrypted to; `None` if that is not compared.
    pub recipients: Option<Vec<PathBuf>>,
    /// The settings of the file.
    pub used: Vec<Used>,
}

/// When a source or a target is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// A directory that must be a mount point.
    pub mount: Option<PathBuf>,
    /// What to do if it is not.
    pub missing: Missing,
    /// Only while the machine is not on battery.
    pub ac_power: bool,
    /// Only while the network is not metered.
    pub unmetered: bool,
}

/// What to do if something that is required is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missing {
    /// It is a failure.
    #[default]
    Fail,
    /// It is as expected, as with a disk that is plugged in now and then.
    Skip,
}

/// When and how far a target is pruned.
#[derive(Debug, Clone)]
pub struct Prune {
    /// The time from one prune to the next.
    pub every: Duration,
    /// The options of each.
    pub options: crate::prune::Options,
}

impl Conditions {
    /// Reads `require-mount`, `when-missing` and `when`.
    pub(super) fn read(settings: &mut Settings<'_>) -> Self {
        let mount = settings.parsed("require-mount", absolute);
        let missing = settings.word("when-missing", &[("fail", Missing::Fail), ("skip", Missing::Skip)]);
        let when = settings.table("when", |when| {
            (when.flag("ac-power").unwrap_or(false), when.flag("metered").is_some_and(|metered| !metered))
        });
        let (ac_power, unmetered) = when.unwrap_or_default();
        Conditions { mount, missing: missing.unwrap_or_default(), ac_power, unmetered }
    }
}

impl TargetConfig {
    pub(super) fn read(name: &str, place: &Place, table: &Table, mistakes: &mut Mistakes) -> Option<Self> {
        let mut settings = Settings::new(format!("target.{name}"), vec![table], mistakes);
        let location = settings.parsed("repository", |text| {
            let location: Location = text.parse().map_err(|e: crate::storage::LocationError| e.to_string())?;
            match (location.is_remote(), text.starts_with('/') || text.starts_with("file:///")) {
                (false, false) => Err("write an absolute path, or a URL".to_owned()),
                _ => Ok(location),
            }
        });
        if location.is_none() && table.get("repository").is_none() {
            settings.missing(place, "repository", "the path or the URL of the repository");
        }
        let remote = Remote::default();
        let words = |settings: &mut Settings<'_>, key| {
            let command = settings.text(key);
            command.map(|(text, _)| text.split_ascii_whitespace().map(str::to_owned).collect())
        };
        let file = |settings: &mut Settings<'_>, key| settings.text(key).map(|(path, place)| place.path(path));
        let credentials = credentials(&mut settings, location.as_ref().map(Location::kind));
        let remote = Remote {
            ssh: words(&mut settings, "ssh").unwrap_or(remote.ssh),
            rclone: words(&mut settings, "rclone").unwrap_or(remote.rclone),
            endpoint: settings.parsed("endpoint", parse_endpoint),
            credentials,
            ca: file(&mut settings, "ca"),
            connections: settings
                .quantity("connections", |text| text.parse().map_err(|_| "write a number from 1 on"))
                .or(remote.connections),
            spool_size: settings.quantity("spool-size", parse_size).unwrap_or(remote.spool_size),
            ..remote
        };
        let rates = Rates {
            upload: settings.quantity("limit-upload", parse_rate),
            download: settings.quantity("limit-download", parse_rate),
        };
        let conditions = Conditions::read(&mut settings);
        let prune = settings.table("prune", Prune::read).unwrap_or_default();
        let wait_lock = settings.quantity("wait-lock", parse_duration).unwrap_or(WAIT_LOCK);
        let recipients = settings.texts("recipients");
        let recipients = recipients.map(|files| files.into_iter().map(|(path, place)| place.path(path)).collect());
        let used = settings.end();
        Some(TargetConfig {
            name: name.to_owned(),
            location: location?.with_remote(remote),
            rates,
            conditions,
            prune,
            wait_lock,
            recipients,
            used,
        })
    }
}

/// How long a configured run waits for another run: nobody is there to start it again.
const WAIT_LOCK: Duration = Duration::from_secs(60 * 60);

impl Prune {
    fn read(settings: &mut Settings<'_>) -> Self {
        let standard = Prune::default();
        let options = crate::prune::Options {
            max_waste: settings
                .parsed("max-waste", |text| parse_percent(text, 1000))
                .unwrap_or(standard.options.max_waste),
            max_copy: settings.quantity("max-copy", parse_size).unwrap_or(standard.options.max_copy),
            max_duration: settings.quantity("max-duration", parse_duration),
            grace: settings.quantity("grace", parse_duration).unwrap_or(standard.options.grace),
            now: None,
        };
        Prune { every: settings.quantity("every", parse_duration).unwrap_or(standard.every), options }
    }
}

impl Default for Prune {
    fn default() -> Self {
        Prune { every: Duration::from_secs(7 * 24 * 60 * 60), options: crate::prune::Options::default() }
    }
}
