//! A new configuration, from the answers.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use rustix::process::geteuid;

use crate::storage::Location;
use crate::sys::mountinfo::{self, MountInfo};

/// Types of file systems that are fit for a repository.
const DISKS: [&[u8]; 16] = [
    b"ext2",
    b"ext3",
    b"ext4",
    b"xfs",
    b"btrfs",
    b"f2fs",
    b"zfs",
    b"bcachefs",
    b"vfat",
    b"exfat",
    b"ntfs3",
    b"fuseblk",
    b"nfs",
    b"nfs4",
    b"cifs",
    b"smb3",
];
/// Mount points of the system, which are not offered.
const SYSTEM: [&str; 8] = ["/boot", "/efi", "/etc", "/nix", "/snap", "/usr", "/var/lib", "/run/credentials"];

/// A new configuration.
pub(super) struct Draft {
    pub(super) paths: Vec<String>,
    pub(super) repository: String,
    pub(super) credentials: Option<String>,
    pub(super) endpoint: Option<String>,
}

impl Draft {
    /// The text of the file. `max_age`: the age up to which a backup is fresh, if it is not the usual one.
    pub(super) fn text(&self, max_age: Option<&str>) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let list =
            |texts: &[String]| format!("[{}]", texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "));
        let mut text = String::new();
        // Writing to a string cannot fail.
        let mut line = |line: &str| _ = writeln!(text, "{line}");
        line(
            "# Written by `brackfs setup`. See brackfs-config(5). After a change, run: brackfs config check\n\nversion = 1\n",
        );
        line("[defaults]\nexclude-caches = true");
        if let Some(age) = max_age {
            line(&format!("# `brackfs status` reports older backups as late.\nmax-age = {}", quoted(age)));
        }
        line("# Older snapshots than these are forgotten.");
        line("keep = { last = 3, daily = 7, weekly = 5, monthly = 12, yearly = 3 }\n");
        let is_local = self.local().is_some();
        let target = if is_local { "disk" } else { "server" };
        line(&format!("[target.{target}]\nrepository = {}", quoted(&self.repository)));
        if let Some(mount) = self.local().as_deref().and_then(mount_of) {
            line(&format!("require-mount = {}", quoted(&mount)));
        }
        for (key, value) in [("credentials", &self.credentials), ("endpoint", &self.endpoint)] {
            value.iter().for_each(|value| line(&format!("{key} = {}", quoted(value))));
        }
        let source = if geteuid().is_root() { "system" } else { "home" };
        line(&format!("\n[source.{source}]\npaths = {}\nto = [\"{target}\"]", list(&self.paths)));
        let caches = match geteuid().is_root() {
            true => vec!["/home/*/.cache".to_owned(), "/root/.cache".to_owned()],
            false => home().into_iter().map(|home| format!("{}/.cache", home.trim_end_matches('/'))).collect(),
        };
        line(&format!("exclude = {}", list(&caches)));
        if self.paths.iter().any(|path| path == "/") {
            line("# Other file systems, such as /proc, are left out. To back up one of them, add it to paths.");
            line("one-file-system = true");
        }
        line("\n# Each target is checked once a week, and 2% of its data is read.\n[check]");
        text
    }

    /// The directory of the repository, if it is on this machine.
    fn local(&self) -> Option<PathBuf> {
        Some(self.repository.parse::<Location>().ok()?.directory()?.to_owned())
    }
}

fn home() -> Option<String> {
    std::env::var("HOME").ok().filter(|home| home.starts_with('/'))
}

/// The paths that are backed up unless others are given.
pub(super) fn usual_paths() -> Vec<String> {
    match geteuid().is_root() {
        true => ["/etc", "/home", "/root", "/srv"]
            .map(str::to_owned)
            .into_iter()
            .filter(|it| Path::new(it).is_dir())
            .collect(),
        false => home().into_iter().collect(),
    }
}

/// Existing paths, made absolute.
pub(super) fn checked_paths(paths: &[&Path]) -> Result<Vec<String>, String> {
    let check = |path: &&Path| match path.symlink_metadata() {
        Ok(_) => absolute(path),
        Err(error) => Err(format!("cannot back up {}: {error}", path.display())),
    };
    paths.iter().map(check).collect()
}

/// The location of a repository: a directory is made absolute.
pub(super) fn checked_repository(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("write a directory or a URL".into());
    }
    let location: Location = text.parse().map_err(|error: crate::storage::LocationError| error.to_string())?;
    location.directory().map_or_else(|| Ok(text.to_owned()), absolute)
}

/// The absolute path as text.
pub(super) fn absolute(path: &Path) -> Result<String, String> {
    let absolute = std::path::absolute(path).map_err(|error| format!("cannot use {}: {error}", path.display()))?;
    absolute.into_os_string().into_string().map_err(|path| format!("{} is not UTF-8", path.display()))
}

/// The mount point of another file system than the root's that a path is on.
fn mount_of(path: &Path) -> Option<String> {
    // The repository may not exist yet, and the table has no symbolic links.
    let existing = path.ancestors().find_map(|path| path.canonicalize().ok())?;
    let table = mountinfo::read().ok()?;
    let points = mountinfo::mounts(&table).map(|mount| mount.mount_point());
    let nearest = points.filter(|point| existing.starts_with(point)).max_by_key(|point| point.components().count())?;
    nearest.into_os_string().into_string().ok().filter(|point| point != "/")
}

/// A mounted file system that can hold a repository.
pub(super) struct Disk {
    pub(super) point: PathBuf,
    pub(super) kind: String,
    /// In bytes.
    pub(super) free: u64,
}

impl Disk {
    /// The disks that are mounted, except those of the system.
    pub(super) fn mounted() -> Vec<Self> {
        let table = mountinfo::read().unwrap_or_default();
        let mut disks: Vec<Disk> = Vec::new();
        for mount in mountinfo::mounts(&table).filter(is_fit) {
            let point = mount.mount_point();
            let Ok(space) = statvfs(&point) else { continue };
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            disks.retain(|disk| disk.point != point);
            disks.push(Disk { point, kind: String::from_utf8_lossy(mount.kind).into_owned(), free });
        }
        disks
    }
}

fn is_fit(mount: &MountInfo<'_>) -> bool {
    let point = mount.mount_point();
    let is_of_system = point == Path::new("/") || SYSTEM.iter().any(|folder| point.starts_with(folder));
    DISKS.contains(&mount.kind) && mount.root == b"/" && mount.has_flag("rw") && !is_of_system
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Credentials;

    #[test]
    fn disks_that_can_hold_a_repository_are_offered() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 8:2 / /boot/efi rw - vfat /dev/sda2 rw\n\
            3 1 8:17 / /mnt/my\\040disk rw,relatime - ext4 /dev/sdb1 rw\n\
            4 1 8:33 / /mnt/dvd ro - ext4 /dev/sdc1 ro\n\
            5 1 0:40 / /run rw - tmpfs tmpfs rw\n\
            6 1 8:1 /srv/x /srv/y rw - ext4 /dev/sda1 rw\n\
            7 1 0:50 / /nas rw - nfs4 server:/export rw\n";
        let fit: Vec<_> = mountinfo::mounts(table).filter(is_fit).map(|mount| mount.mount_point()).collect();
        assert_eq!(fit, [Path::new("/mnt/my disk"), Path::new("/nas")]);
    }

    #[test]
    fn a_draft_is_a_valid_configuration() {
        let draft = |paths: &[&str], repository: &str| {
            let paths = paths.iter().map(|path| (*path).to_owned()).collect();
            let credentials = Some("/etc/s3.ini".to_owned());
            let text = Draft { paths, repository: repository.to_owned(), credentials, endpoint: None }.text(Some("8d"));
            (crate::config::Config::parse(Path::new("/etc/brackfs/config.toml"), &text).unwrap(), text)
        };
        let (config, text) = draft(&["/etc", "/a \"b\" \\c"], "/proc/x");
        assert_eq!(config.sources[0].options.selection.paths[1], Path::new("/a \"b\" \\c"));
        // The file system that the repository is on must be mounted.
        assert_eq!(config.targets[0].conditions.mount.as_deref(), Some(Path::new("/proc")));
        assert_eq!(config.sources[0].max_age.as_secs(), 8 * 24 * 60 * 60);
        assert!(config.check.is_some());
        assert!(config.sources[0].keep.is_some() && !text.contains("one-file-system"), "{text}");
        let (config, _) = draft(&["/"], "s3://bucket/x");
        assert!(config.sources[0].options.selection.one_file_system && config.targets[0].name == "server");
        assert_eq!(config.targets[0].location.remote().credentials, Some(Credentials::in_file("/etc/s3.ini")));
    }

    #[test]
    fn directories_are_made_absolute_and_missing_paths_are_refused() {
        assert_eq!(checked_repository("s3://bucket/x").as_deref(), Ok("s3://bucket/x"));
        assert!(checked_repository("x").unwrap().ends_with("/x"));
        checked_repository("").unwrap_err();
        checked_repository("nonsense://x").unwrap_err();
        checked_paths(&[Path::new("/nonexistent")]).unwrap_err();
    }
}
