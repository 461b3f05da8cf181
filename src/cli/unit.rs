//! Units of systemd: a drop-in for `brackfs.service` with the paths of a configuration.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::config::{Conditions, Config, Missing, Secret, SourceConfig, TargetConfig};
use crate::storage::LocationKind;

/// The configuration that the service reads.
pub(super) const CONFIG: &str = "/etc/brackfs/config.toml";

/// The drop-in for a configuration in this file.
pub(super) fn drop_in(config: &Config, file: &Path) -> String {
    let mut text = String::from("# Written by `brackfs config unit`.\n");
    // Writing to a string cannot fail.
    let mut line = |line: &str| _ = writeln!(text, "{line}");
    let conditions = || {
        let of_targets = config.targets.iter().map(|target| &target.conditions);
        of_targets.chain(config.sources.iter().map(|source| &source.conditions))
    };
    let mounts =
        |missing| conditions().filter(move |it| it.missing == missing).filter_map(|it: &Conditions| it.mount.as_ref());
    let required: BTreeSet<_> = mounts(Missing::Fail).collect();
    line("\n[Unit]");
    let is_elsewhere = file != Path::new(CONFIG);
    if is_elsewhere {
        line(&format!("ConditionPathExists=\nConditionPathExists={}", quoted("", file)));
    }
    required.iter().for_each(|mount| line(&format!("RequiresMountsFor={}", quoted("", mount))));
    line("\n[Service]");
    if is_elsewhere {
        line(&format!("Environment={}", quoted("BRACKFS_CONFIG=", file)));
    }
    for why in needs_root(config) {
        line(&format!("# {why}"));
    }
    if needs_root(config).next().is_some() {
        line("User=root");
        if config.sources.iter().any(has_user) {
            line("AmbientCapabilities=\nCapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_AUDIT_WRITE");
        }
    }
    let local = config.targets.iter().filter_map(|target| match target.location.kind() {
        LocationKind::Directory(path) => Some(path.as_path()),
        _ => None,
    });
    let metrics = config.report.metrics.iter().filter_map(|file| file.parent());
    // A path that is missing must not prevent the backups of others.
    let writable: BTreeSet<_> = local.chain(metrics).collect();
    writable.iter().for_each(|path| line(&format!("ReadWritePaths={}", quoted("-", path))));
    if let Some(Secret::Credential(name)) = config.report.ping.as_ref().map(|ping| &ping.url) {
        line("# Put the secret into this file, readable by root only:");
        line(&format!("LoadCredential={name}:/etc/brackfs/credentials/{name}"));
    }
    text
}

/// This program as the first word of `ExecStart=`.
pub(super) fn program(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("the path of this program is not UTF-8: {}", path.display()))?;
    Ok(quoted("", Path::new(text)).replace('$', "$$"))
}

/// Why the service must run as root.
pub(super) fn needs_root(config: &Config) -> impl Iterator<Item = String> {
    let commands = config.sources.iter().filter(|source| has_user(source));
    let commands = commands.map(|source| format!("source.{} has a command of another user.", source.name));
    let servers = config.targets.iter().filter(|target| has_login_at_home(target));
    let servers = servers.map(|target| format!("The login of target.{} is in root's home directory.", target.name));
    commands.chain(servers)
}

/// Whether a source has a command that another user runs, which only root can do.
fn has_user(source: &SourceConfig) -> bool {
    source.used.iter().any(|used| used.key == "user")
}

/// Whether a target is on a server whose login is not in a file that the configuration names.
fn has_login_at_home(target: &TargetConfig) -> bool {
    target.location.is_remote() && target.location.remote().credentials.is_none()
}

/// A word of a setting, in quotes if it needs them.
fn quoted(before: &str, path: &Path) -> String {
    let text = format!("{before}{}", path.display());
    let is_plain = |c: char| c.is_alphanumeric() || "/._-:=@+,".contains(c);
    if text.chars().all(is_plain) {
        return text;
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_are_quoted() {
        assert_eq!(quoted("-", Path::new("/mnt/nas")), "-/mnt/nas");
        assert_eq!(quoted("-", Path::new("/mnt/my disk")), "\"-/mnt/my disk\"");
        assert_eq!(quoted("", Path::new("/a\"\\100%\n")), "\"/a\\\"\\\\100%%\\x0a\"");
    }
}
