//! The service and its timer: of the system for root, else of the user.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result};
use nix::unistd::User;
use rustix::process::geteuid;

use super::super::exit::Usage;
use super::super::global::standard_directory;
use super::super::unit;
use crate::config::Config;
use crate::sys::durable::{IfExists, write_file};

/// It exists where systemd runs; see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// Where packages put units of the system and of users.
const PACKAGED: [&[&str]; 2] =
    [&["/usr/lib/systemd/system", "/lib/systemd/system"], &["/usr/lib/systemd/user", "/lib/systemd/user"]];
/// The units of the system and of users, for machines where no package installed them.
const UNITS: [&[(&str, &str)]; 2] = [
    &[
        ("brackfs.service", include_str!("../../../packaging/systemd/system/brackfs.service")),
        ("brackfs.timer", include_str!("../../../packaging/systemd/system/brackfs.timer")),
        ("brackfs-failed@.service", include_str!("../../../packaging/systemd/system/brackfs-failed@.service")),
    ],
    &[
        ("brackfs.service", include_str!("../../../packaging/systemd/user/brackfs.service")),
        ("brackfs.timer", include_str!("../../../packaging/systemd/user/brackfs.timer")),
    ],
];
/// The user of the service, for systemd-sysusers.
const SYSUSERS: &str = include_str!("../../../packaging/sysusers.d/brackfs.conf");
/// The program in the packaged units.
const PROGRAM: &str = "/usr/bin/brackfs";

/// When backups run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Schedule {
    /// At the times of a calendar event; see systemd.time(7).
    At(String),
    Never,
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

    /// Installs the units unless a package did, and enables the timer.
    pub(super) fn set(&self, schedule: &Schedule, config: &Config, file: &Path) -> Result<()> {
        if !self.has_systemd {
            return Ok(());
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
                write_new(&folder.join(name), &text.replace(PROGRAM, &program))?;
            }
        }
        if self.is_root {
            write_new(&folder.join("brackfs.service.d/config.conf"), &unit::drop_in(config, file))?;
        }
        if let Schedule::At(event) = schedule
            && event != "daily"
        {
            let event = event.replace('%', "%%");
            let text = format!("[Timer]\nOnCalendar=\nOnCalendar={event}\n");
            write_new(&folder.join("brackfs.timer.d/when.conf"), &text)?;
        }
        for arguments in [&["daemon-reload"][..], &["enable", "--now", "brackfs.timer"]] {
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

/// Writes a file with its folders, unless it exists.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if path.exists() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), fs::create_dir_all).with_context(failed)?;
    write_file(path, text.as_bytes(), 0o644, IfExists::Fail).with_context(failed)
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
