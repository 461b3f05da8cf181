//! Options of every command.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::systemd;
use super::terminal::{Terminal, is_interactive};
use crate::config::Config;

/// Heading of these options in help and manual pages.
const HEADING: &str = "Common options";

/// Options of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Print only errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = HEADING)]
    pub(super) quiet: bool,
    /// List processed files on standard error
    #[arg(short, long, global = true, help_heading = HEADING)]
    pub(super) verbose: bool,
    /// Append a log for bug reports to FILE; if FILE is stderr, write it to standard error
    ///
    /// The log has ids, sizes and durations. It has no names of files, no content and no secrets.
    #[arg(long, global = true, value_name = "FILE", help_heading = HEADING)]
    pub(super) log: Option<PathBuf>,
    /// Read the configuration in FILE [default: /etc/brackfs/config.toml for root, else
    /// $XDG_CONFIG_HOME/brackfs/config.toml or ~/.config/brackfs/config.toml]
    ///
    /// Files matching conf.d/*.toml in the same directory are read too.
    #[arg(long, global = true, env = "BRACKFS_CONFIG", value_name = "FILE", help_heading = HEADING)]
    pub(super) config: Option<PathBuf>,
    /// Keep this machine's catalogs and keys in DIR [default: $STATE_DIRECTORY; without it /var/lib/brackfs for root, else
    /// $XDG_STATE_HOME/brackfs or ~/.local/state/brackfs]
    ///
    /// systemd sets $STATE_DIRECTORY for units with StateDirectory=. If root uses the state directory of another user, all new
    /// files in it belong to that user.
    #[arg(long, global = true, env = "BRACKFS_STATE_DIR", value_name = "DIR", help_heading = HEADING)]
    pub(super) state_dir: Option<PathBuf>,
}

impl Global {
    /// The configuration; `None` if there is none, and none was named.
    pub(super) fn config(&self) -> Result<Option<Config>> {
        match self.config_file()? {
            Some(file) => Ok(Some(Config::load(&file)?)),
            None => Ok(None),
        }
    }

    /// The configuration of a command that needs one.
    pub(super) fn required_config(&self) -> Result<Config> {
        Ok(Config::load(&self.config_path()?)?)
    }

    /// The configuration file, if it exists or was named.
    fn config_file(&self) -> Result<Option<PathBuf>> {
        match (&self.config, standard_config()) {
            (Some(given), _) => Ok(Some(given.clone())),
            (None, Some(standard)) if standard.symlink_metadata().is_ok() => Ok(Some(standard)),
            (None, _) => Ok(None),
        }
    }

    /// Where the configuration file is, or is expected.
    pub(super) fn config_path(&self) -> Result<PathBuf> {
        let found = self.config.clone().or_else(standard_config);
        found.context("cannot find a home directory for the configuration; set --config or BRACKFS_CONFIG")
    }

    /// The state directory.
    pub(super) fn state(&self) -> Result<PathBuf> {
        if let Some(given) = &self.state_dir {
            return std::path::absolute(given)
                .with_context(|| format!("cannot use the state directory {}", given.display()));
        }
        service_directory("STATE_DIRECTORY")
            .or_else(|| standard_directory("/var/lib", "XDG_STATE_HOME", ".local/state"))
            .context("cannot find a home directory for the state; set --state-dir or BRACKFS_STATE_DIR")
    }

    /// The state directory of a command that only reads. Without a home directory this is a path that does not exist, so
    /// the command finds and keeps no state.
    pub(super) fn state_to_read(&self) -> PathBuf {
        self.state().unwrap_or_else(|_| PathBuf::from("/nonexistent/brackfs"))
    }

    /// Whether a summary is printed: on a terminal, in the journal, with --verbose, and for a dry run.
    pub(super) fn shows_summary(&self, dry_run: bool) -> bool {
        !self.quiet && (self.verbose || dry_run || is_interactive() || systemd::has_journal())
    }

    /// The monitor for this run.
    pub(super) fn monitor(&self, json: bool) -> Terminal {
        Terminal::new(self.quiet, self.verbose, json)
    }
}

/// The configuration file that is read if none is named.
pub(super) fn standard_config() -> Option<PathBuf> {
    Some(standard_directory("/etc", "XDG_CONFIG_HOME", ".config")?.join("config.toml"))
}

/// The directory that systemd gives a unit: the first of the list in the variable.
pub(super) fn service_directory(variable: &str) -> Option<PathBuf> {
    first_directory(&std::env::var_os(variable)?)
}

fn first_directory(list: &OsStr) -> Option<PathBuf> {
    let first = list.as_bytes().split(|byte| *byte == b':').next().unwrap_or_default();
    Some(PathBuf::from(OsStr::from_bytes(first))).filter(|path| path.is_absolute())
}

/// The directory of a kind of file: in `system` for root, else in that of the variable, else in the home directory.
pub(super) fn standard_directory(system: &str, variable: &str, in_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let parent = match rustix::process::geteuid().is_root() {
        true => Some(PathBuf::from(system)),
        false => absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(in_home))),
    };
    parent.map(|parent| parent.join("brackfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_of_a_unit_counts() {
        let first = |list: &str| first_directory(OsStr::new(list));
        assert_eq!(first("/var/lib/brackfs"), Some("/var/lib/brackfs".into()));
        assert_eq!(first("/var/lib/one:/var/lib/two"), Some("/var/lib/one".into()));
        assert_eq!((first(""), first("relative:/x")), (None, None));
    }
}
