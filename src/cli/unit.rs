//! Units of systemd: a drop-in for `brackfs.service` with the paths of a configuration.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::geteuid;

use crate::config::{Conditions, Config, Missing, SnapshotKind, SourceConfig, TargetConfig};
use crate::job::snapshot_tops;
use crate::secret::{CREDENTIALS, Secret};
use crate::storage::Credentials;

/// The configuration that the service reads.
pub(super) const CONFIG: &str = "/etc/brackfs/config.toml";

/// The beginning of a drop-in that this program wrote.
const WRITTEN: &str = "# Written by `brackfs ";
/// Where LVM writes when it makes a snapshot.
const LVM: [&str; 3] = ["/etc/lvm", "/run/lock/lvm", "/run/lvm"];

/// The drop-in for a configuration in this file.
pub(super) fn drop_in(config: &Config, file: &Path) -> String {
    let mut text =
        format!("{WRITTEN}config unit`; setup replaces it. For other settings: systemctl edit brackfs.service\n");
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
    let elsewhere = (file != Path::new(CONFIG)).then(|| elsewhere(file));
    elsewhere.iter().for_each(|[condition, _]| line(condition));
    required.iter().for_each(|mount| line(&format!("RequiresMountsFor={}", quoted("", mount))));
    line("\n[Service]");
    elsewhere.iter().for_each(|[_, environment]| line(environment));
    for why in needs_root(config).chain(doubtful_secrets(config)) {
        line(&format!("# {why}"));
    }
    if needs_root(config).next().is_some() {
        line("User=root");
        // Its repositories may belong to the user that the service had before. New files must get that owner.
        line("CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE");
        // systemd 257 takes CAP_SETUID and CAP_SYS_ADMIN from root with NoNewPrivileges= and system call filters, unless they are
        // ambient. The kernel clears ambient ones when a command changes to another user.
        if config.sources.iter().any(has_user) {
            line("CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_AUDIT_WRITE\nAmbientCapabilities=CAP_SETUID");
        }
    }
    if config.sources.iter().any(has_snapshot) {
        line("CapabilityBoundingSet=CAP_SYS_ADMIN\nAmbientCapabilities=CAP_SYS_ADMIN\nSystemCallFilter=@mount");
        // ProtectClock= allows only the devices that it lists.
        line("PrivateDevices=no\nProtectClock=no");
    }
    let local = local_targets(config);
    let metrics = config.report.metrics.iter().filter_map(|file| file.parent());
    let of_snapshots = snapshot_folders(config);
    let writable: BTreeSet<_> = local.chain(metrics).chain(of_snapshots.iter().map(PathBuf::as_path)).collect();
    // These make directories read-only in a way that ReadWritePaths= of the same directories does not change.
    for (setting, folders) in [("ProtectSystem", &["/"][..]), ("ProtectHome", &["/home", "/root"])] {
        if folders.iter().any(|folder| writable.contains(Path::new(folder))) {
            line(&format!("{setting}=no"));
        }
    }
    // A path that is missing must not prevent the backups of others.
    writable.iter().for_each(|path| line(&format!("ReadWritePaths={}", quoted("-", path))));
    let logins = config.targets.iter().filter_map(|target| target.location.remote().credentials.as_ref());
    let secrets = logins.flat_map(Credentials::secrets).chain(config.report.ping.iter().map(|ping| &ping.url));
    let names: BTreeSet<_> = secrets.filter_map(Secret::credential).collect();
    for name in names {
        line("# Put the secret into this file, readable by root only:");
        line(&format!("LoadCredential={name}:{CREDENTIALS}/{name}"));
    }
    text
}

/// Where the programs write that make snapshots of file systems.
fn snapshot_folders(config: &Config) -> BTreeSet<PathBuf> {
    let wanted = config.sources.iter().filter_map(|source| Some((source.snapshot.as_ref()?, source)));
    let tops = wanted.flat_map(|(wanted, source)| snapshot_tops(wanted, &source.options.selection.paths));
    let folders = tops.flat_map(|(kind, top)| match kind {
        SnapshotKind::Btrfs => vec![top],
        SnapshotKind::Zfs => Vec::new(),
        SnapshotKind::Lvm => LVM.map(PathBuf::from).to_vec(),
    });
    folders.collect()
}

/// The drop-in of a user's service for a configuration in this file.
pub(super) fn user_drop_in(file: &Path) -> String {
    let [condition, environment] = elsewhere(file);
    format!("{WRITTEN}setup`, which replaces it.\n\n[Unit]\n{condition}\n\n[Service]\n{environment}\n")
}

/// Whether this program wrote a drop-in, rather than a person.
pub(super) fn is_written(text: &str) -> bool {
    text.starts_with(WRITTEN)
}

/// The lines of `[Unit]` and `[Service]` for a configuration in another file.
fn elsewhere(file: &Path) -> [String; 2] {
    // A condition has no quotes, so some paths cannot be written there.
    let path = file.display().to_string();
    let is_plain = !path.contains(char::is_control) && !path.ends_with(['\\', ' ']);
    let condition = is_plain.then(|| format!("\nConditionPathExists={}", path.replace('%', "%%")));
    [
        format!("ConditionPathExists={}", condition.unwrap_or_default()),
        format!("Environment={}", quoted("BRACKFS_CONFIG=", file)),
    ]
}

/// This program as the first word of `ExecStart=`.
pub(super) fn program(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("the path of this program is not UTF-8: {}", path.display()))?;
    Ok(quoted("", Path::new(text)).replace('$', "$$"))
}

/// Why the service must run as root.
pub(super) fn needs_root(config: &Config) -> impl Iterator<Item = String> {
    let servers = config.targets.iter().filter(|target| has_login_at_home(target));
    let servers = servers.map(|target| format!("The login of target.{} is in root's home directory.", target.name));
    sources_need_root(config).chain(servers)
}

/// Secrets that the user of the service may not be able to get. A command may need a home directory, and a unit has its own
/// variables.
pub(super) fn doubtful_secrets(config: &Config) -> impl Iterator<Item = String> {
    let is_doubtful = |secret: &&Secret| matches!(secret, Secret::Command(_) | Secret::Variable(_));
    let logins = config.targets.iter().filter_map(move |target| {
        let credentials = target.location.remote().credentials.as_ref()?;
        let secret = credentials.secrets().into_iter().find(is_doubtful)?;
        Some((format!("The login of target.{}", target.name), secret))
    });
    let ping = config.report.ping.iter().map(|ping| ("The URL of the report".to_owned(), &ping.url));
    let found = logins.chain(ping.filter(move |(_, secret)| is_doubtful(secret)));
    found.map(|(what, secret)| format!("{what} is {}, which the service must be able to use.", secret.name()))
}

/// The sources that only root can back up.
fn sources_need_root(config: &Config) -> impl Iterator<Item = String> {
    let commands = config.sources.iter().filter(|source| has_user(source));
    let commands = commands.map(|source| format!("source.{} has a command of another user.", source.name));
    let snapshots = config.sources.iter().filter(|source| has_snapshot(source));
    let snapshots = snapshots.map(|source| format!("source.{} makes snapshots of file systems.", source.name));
    commands.chain(snapshots)
}

/// What the configuration needs and the service may not do. Its drop-in is then too old. `None` if this process is not the
/// service.
pub(super) fn shortcoming(config: &Config) -> Option<String> {
    // systemd sets both for the service of the system.
    if ["INVOCATION_ID", "STATE_DIRECTORY"].iter().any(|name| std::env::var_os(name).is_none()) {
        return None;
    }
    let needs_root = sources_need_root(config).next().filter(|_| !geteuid().is_root());
    let is_read_only =
        |path: &&Path| statvfs(*path).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY));
    let found = needs_root.map(|why| format!("it does not run as root. {why}")).or_else(|| {
        let path = local_targets(config).find(is_read_only)?;
        Some(format!("it may not write to {}.", path.display()))
    })?;
    Some(format!("brackfs.service does not fit the configuration: {found} Run `brackfs setup` to renew its drop-in"))
}

/// The repositories on this machine's disks.
fn local_targets(config: &Config) -> impl Iterator<Item = &Path> {
    config.targets.iter().filter_map(|target| target.location.directory())
}

/// Whether a source has a command that another user runs, which only root can do.
fn has_user(source: &SourceConfig) -> bool {
    source.used.iter().any(|used| used.key == "user")
}

/// Whether snapshots of file systems are made for a source, which only root can do.
fn has_snapshot(source: &SourceConfig) -> bool {
    source.snapshot.is_some()
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
        let condition = |path: &str| elsewhere(Path::new(path))[0].clone();
        assert_eq!(condition("/a \"b\"/100%"), "ConditionPathExists=\nConditionPathExists=/a \"b\"/100%%");
        for path in ["/a\nb", "/a ", "/a\\"] {
            assert_eq!(condition(path), "ConditionPathExists=", "{path:?}");
        }
    }
}
