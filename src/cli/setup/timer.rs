//! The service and its timer: of the system for root, else of the user.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result};
use nix::unistd::User;
use rustix::process::geteuid;

use super::super::exit::Usage;
use super::super::global::{standard_config, standard_directory};
use super::super::unit;
use crate::config::Config;
use crate::sys::durable::{IfExists, write_file};

/// It exists where systemd runs; see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// Where packages put units of the system and of users.
const PACKAGED: [&[&str]; 2] =
    [&["/usr/lib/systemd/system", "/lib/systemd/system"], &["/usr/lib/systemd/user", "/lib/systemd/user"]];
/// The timers, which run every day.
const SYSTEM_TIMER: &str = include_str!("../../../packaging/systemd/system/brackfs.timer");
const USER_TIMER: &str = include_str!("../../../packaging/systemd/user/brackfs.timer");
/// The units of the system and of users, for machines where no package installed them.
const UNITS: [&[(&str, &str)]; 2] = [
    &[
        ("brackfs.service", include_str!("../../../packaging/systemd/system/brackfs.service")),
        ("brackfs.timer", SYSTEM_TIMER),
        ("brackfs-failed@.service", include_str!("../../../packaging/systemd/system/brackfs-failed@.service")),
    ],
    &[
        ("brackfs.service", include_str!("../../../packaging/systemd/user/brackfs.service")),
        ("brackfs.timer", USER_TIMER),
        ("brackfs-failed@.service", include_str!("../../../packaging/systemd/user/brackfs-failed@.service")),
    ],
];
/// The user of the service, for systemd-sysusers.
const SYSUSERS: &str = include_str!("../../../packaging/sysusers.d/brackfs.conf");
/// The drop-in with the times of the timer.
const TIMES: &str = "when.conf";
/// Its text up to the event. The first line resets the times of the unit.
const TIMES_BEGIN: &str = "[Timer]\nOnCalendar=\nOnCalendar=";
/// The line of the drop-in without which the timer waits for up to an hour after each of its times.
const EXACT: &str = "RandomizedDelaySec=0\n";
/// The program in the packaged units.
const PROGRAM: &str = "/usr/bin/brackfs";

/// When backups run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Schedule {
    /// At the times of a calendar event; see systemd.time(7).
    At(String),
    Never,
}

impl Schedule {
    /// The age up to which a backup is fresh, if the default is too short for this schedule.
    pub(super) fn max_age(&self) -> Option<&'static str> {
        match self {
            Schedule::At(event) if event == "weekly" => Some("8d"),
            Schedule::At(event) if event == "monthly" => Some("32d"),
            Schedule::At(_) | Schedule::Never => None,
        }
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Schedule::Never);
        }
        let is_known = matches!(text, "hourly" | "daily" | "weekly" | "monthly");
        match is_known || is_calendar_event(text) {
            true => Ok(Schedule::At(text.to_owned())),
            false => Err(format!("{text:?} is not hourly, daily, weekly, a calendar event of systemd, or never")),
        }
    }
}

/// The times of an event in a line for cron, and a word for them, if they can be written there.
pub(super) fn cron_times(event: &str) -> Option<(&'static str, &'static str)> {
    match event {
        "hourly" => Some(("17 * * * *", "every hour")),
        "daily" => Some(("17 3 * * *", "every night")),
        "weekly" => Some(("17 3 * * 0", "every week")),
        "monthly" => Some(("17 3 1 * *", "every month")),
        _ => None,
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::At(event) => f.write_str(event),
            Schedule::Never => f.write_str("never"),
        }
    }
}

/// Whether systemd understands a calendar event.
fn is_calendar_event(text: &str) -> bool {
    let mut command = Command::new("systemd-analyze");
    command.args(["calendar", "--", text]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    !text.contains(char::is_control) && command.status().is_ok_and(|status| status.success())
}

/// The timer of the system or of the user.
pub(super) struct Timer {
    is_root: bool,
    has_systemd: bool,
    is_enabled: bool,
}

impl Timer {
    /// Finds out whether the timer is enabled.
    pub(super) fn find(state: &Path) -> Result<Self> {
        let has_systemd = Path::new(BOOTED).is_dir();
        let mut timer = Timer { is_root: geteuid().is_root(), has_systemd, is_enabled: false };
        if has_systemd {
            let mut command = timer.systemctl(&["is-enabled", "--quiet", "brackfs.timer"]);
            timer.is_enabled = command.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
            let standard = standard_directory("/var/lib", "XDG_STATE_HOME", ".local/state");
            if let Some(standard) = standard.filter(|standard| standard != state) {
                let standard = standard.display();
                return Err(Usage(format!("the service has its state in {standard}; leave --state-dir out")).into());
            }
        }
        Ok(timer)
    }

    pub(super) fn has_systemd(&self) -> bool {
        self.has_systemd
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// Whether it is, or would be, of the whole system.
    pub(super) fn is_system(&self) -> bool {
        self.has_systemd && self.is_root
    }

    /// Finds out which files the schedule needs.
    pub(super) fn files(&self, schedule: Option<&Schedule>, config: &Config, file: &Path) -> Result<Files> {
        let mut files = Files::default();
        if !self.has_systemd {
            return Ok(files);
        }
        let folder = self.folder()?;
        let [system, user] = PACKAGED;
        let packaged = if self.is_root { system } else { user };
        let is_packaged = packaged.iter().any(|folder| Path::new(folder).join("brackfs.service").exists());
        if !is_packaged {
            let program = std::env::current_exe().context("cannot find this program")?;
            let program = unit::program(&program)?;
            let [system, user] = UNITS;
            for (name, text) in if self.is_root { system } else { user } {
                files.add(folder.join(name), text.replace(PROGRAM, &program))?;
            }
        }
        let of_service = match self.is_root {
            true => Some(unit::drop_in(config, file)),
            false => (standard_config().as_deref() != Some(file)).then(|| unit::user_drop_in(file)),
        };
        if let Some(text) = of_service {
            files.add_drop_in(folder.join("brackfs.service.d/config.conf"), text)?;
        }
        files.add_times(&folder, schedule)?;
        Ok(files)
    }

    /// Refuses times that setup cannot set.
    pub(super) fn check(&self, schedule: &Schedule, files: &Files) -> Result<()> {
        let why = match (schedule, &files.times) {
            (Schedule::At(event), _) if !self.has_systemd && cron_times(event).is_none() => {
                "without systemd, --when must be hourly, daily, weekly, monthly or never".to_owned()
            }
            (Schedule::Never, _) if self.is_enabled => {
                let user = if self.is_root { "" } else { "--user " };
                format!("brackfs.timer is enabled; to disable it, run: systemctl {user}disable --now brackfs.timer")
            }
            (Schedule::At(_), Some(file)) if self.is_enabled => {
                format!("the times of brackfs.timer are in {}; change them there, or leave --when out", file.display())
            }
            _ => return Ok(()),
        };
        Err(Usage(why).into())
    }

    /// Writes the files, and enables the timer unless it is enabled.
    pub(super) fn set(&self, files: &Files) -> Result<()> {
        if !self.has_systemd || self.is_enabled && files.new.is_empty() {
            return Ok(());
        }
        for (path, text) in &files.new {
            let failed = || format!("cannot write {}", path.display());
            path.parent().map_or(Ok(()), fs::create_dir_all).with_context(failed)?;
            write_file(path, text.as_bytes(), 0o644, IfExists::Replace).with_context(failed)?;
        }
        let enable = (!self.is_enabled).then_some(&["enable", "--now", "brackfs.timer"][..]);
        for arguments in [&["daemon-reload"][..]].into_iter().chain(enable) {
            let words = format!("systemctl {}", arguments.join(" "));
            let status = self.systemctl(arguments).status().with_context(|| format!("cannot run {words}"))?;
            anyhow::ensure!(status.success(), "{words} failed ({status})");
        }
        Ok(())
    }

    /// Where units go that no package has.
    fn folder(&self) -> Result<PathBuf> {
        if self.is_root {
            return Ok(PathBuf::from("/etc/systemd/system"));
        }
        let config =
            standard_directory("/etc", "XDG_CONFIG_HOME", ".config").context("cannot find a home directory")?;
        Ok(config.with_file_name("systemd/user"))
    }

    fn systemctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("systemctl");
        command.args((!self.is_root).then_some("--user")).args(arguments).stdin(Stdio::null());
        command
    }
}

/// Files of the units.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Those to be written, and their texts.
    pub(super) new: Vec<(PathBuf, String)>,
    /// Those that stay as they are, though setup would write another text.
    pub(super) kept: Vec<PathBuf>,
    /// A file that setup does not write, with times at which the timer starts the service.
    pub(super) times: Option<PathBuf>,
}

impl Files {
    /// Wants a file with this text. An existing file stays.
    fn add(&mut self, path: PathBuf, text: String) -> Result<()> {
        match read(&path)? {
            None => self.new.push((path, text)),
            Some(there) if there != text => self.kept.push(path),
            Some(_) => {}
        }
        Ok(())
    }

    /// Adds the drop-in of the service to the files to write. An existing one is kept, unless this program wrote it for another
    /// configuration.
    fn add_drop_in(&mut self, path: PathBuf, text: String) -> Result<()> {
        match read(&path)? {
            Some(there) if there == text => {}
            Some(there) if !unit::is_written(&there) => self.kept.push(path),
            _ => self.new.push((path, text)),
        }
        Ok(())
    }

    /// Wants the times of the schedule.
    fn add_times(&mut self, folder: &Path, schedule: Option<&Schedule>) -> Result<()> {
        let Some(Schedule::At(event)) = schedule else { return Ok(()) };
        let (unit, drop_ins) = (folder.join("brackfs.timer"), folder.join("brackfs.timer.d"));
        let (own, text) = (drop_ins.join(TIMES), times(event));
        let there = read(&own)?;
        // Without the file, the times are those of the unit.
        let is_ours = there.as_ref().map_or(event != "daily", |there| is_times(there));
        match there {
            Some(_) if !is_ours => self.kept.push(own),
            there if is_ours && there.as_ref() != Some(&text) => self.new.push((own, text)),
            _ => {}
        }
        let mut others = match drop_ins.read_dir() {
            Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", drop_ins.display())),
        };
        others.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        others.sort();
        if is_ours {
            // It resets the times of those before it.
            others.retain(|path| path.file_name() > Some(OsStr::new(TIMES)));
        } else {
            others.insert(0, unit);
        }
        for path in others {
            let text = read(&path)?.filter(|text| text != SYSTEM_TIMER && text != USER_TIMER);
            if text.is_some_and(|text| text.lines().any(|line| line.trim_start().starts_with("On"))) {
                self.times = Some(path);
            }
        }
        Ok(())
    }
}

/// A drop-in with the times of a calendar event. A time of day must be kept to the minute; `daily` and longer words need not.
fn times(event: &str) -> String {
    let exact = if ["daily", "weekly", "monthly"].contains(&event) { "" } else { EXACT };
    format!("{TIMES_BEGIN}{}\n{exact}", event.replace('%', "%%"))
}

/// Whether a drop-in has only the times of an event, so setup wrote it.
fn is_times(text: &str) -> bool {
    let event = text.strip_prefix(TIMES_BEGIN).map(|rest| rest.strip_suffix(EXACT).unwrap_or(rest));
    event.and_then(|event| event.strip_suffix('\n')).is_some_and(|event| !event.contains('\n'))
}

/// The text of a file, if there is one.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The user of the service, who is made if there is none.
pub(super) fn make_user(name: &str) -> Result<User> {
    let find = || User::from_name(name).with_context(|| format!("cannot look up the user {name}"));
    if let Some(user) = find()? {
        return Ok(user);
    }
    let lines = SYSUSERS.lines().filter(|line| !line.starts_with('#'));
    let mut command = Command::new("systemd-sysusers");
    let status =
        command.arg("--inline").args(lines).stdin(Stdio::null()).status().context("cannot run systemd-sysusers")?;
    anyhow::ensure!(status.success(), "systemd-sysusers failed ({status})");
    find()?.with_context(|| format!("systemd-sysusers did not make the user {name}"))
}
