//! Whether a source or a target is to be used now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::outcome::{Failed, Outcome};
use crate::config::{Conditions, Missing};
use crate::sys::mountinfo::{self, MountInfo};

/// The power supplies of this machine.
const SUPPLIES: &str = "/sys/class/power_supply";

/// Returns why a step is not made, if it is not.
pub(super) fn obstacle(conditions: &Conditions) -> Option<Outcome> {
    if let Some(mount) = &conditions.mount
        && !is_mount_point(mount)
    {
        let why = format!("{} is not a mount point", mount.display());
        return Some(match conditions.missing {
            Missing::Skip => Outcome::Skipped(why),
            Missing::Fail => Outcome::Failed(Failed::new(format!("{why}; is its file system not mounted?"))),
        });
    }
    if conditions.ac_power && is_on_battery(Path::new(SUPPLIES)) {
        return Some(Outcome::Skipped("the machine is on battery".to_owned()));
    }
    if conditions.unmetered && is_metered() {
        return Some(Outcome::Skipped("the network is metered".to_owned()));
    }
    None
}

/// Whether a file system is mounted on a directory.
fn is_mount_point(path: &Path) -> bool {
    // The table has no symbolic links.
    let Ok(path) = fs::canonicalize(path) else { return false };
    mountinfo::read().is_ok_and(|table| is_mounted(&mountinfo::mounts(&table).collect::<Vec<_>>(), &path))
}

/// Whether the table has a mount on a path. A directory that is mounted on itself does not count: systemd does this to make it
/// writable for a service.
fn is_mounted(table: &[MountInfo<'_>], path: &Path) -> bool {
    // Of several mounts on one directory, the last one is visible.
    let mut mounts = table.iter().filter(|mount| mount.mount_point() == path);
    mounts.any(|mount| {
        let parent = table.iter().find(|parent| parent.id == mount.parent && parent.id != mount.id);
        !parent.is_some_and(|parent| is_itself(mount, parent))
    })
}

/// Whether a mount shows the same directory as the mount that it is on.
fn is_itself(mount: &MountInfo<'_>, parent: &MountInfo<'_>) -> bool {
    let below = mount.mount_point();
    let below = below.strip_prefix(parent.mount_point()).ok();
    mount.device == parent.device
        && below.is_some_and(|below| parent.mounted_folder().join(below) == mount.mounted_folder())
}

/// Whether a machine that has a battery lacks other power. What the kernel does not tell does not count.
fn is_on_battery(supplies: &Path) -> bool {
    let read = |supply: &Path, what: &str| fs::read_to_string(supply.join(what)).unwrap_or_default().trim().to_owned();
    let entries = fs::read_dir(supplies).into_iter().flatten().flatten();
    let supplies: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    // Batteries of mice and keyboards are of scope Device.
    let discharges = |supply: &PathBuf| {
        read(supply, "type") == "Battery"
            && read(supply, "scope") != "Device"
            && read(supply, "status") == "Discharging"
    };
    let has_power = |supply: &PathBuf| read(supply, "type") != "Battery" && read(supply, "online") == "1";
    supplies.iter().any(discharges) && !supplies.iter().any(has_power)
}

/// Whether NetworkManager takes the network for metered. Without it, no network is.
fn is_metered() -> bool {
    let mut command = Command::new("busctl");
    command.args([
        "--system",
        "get-property",
        "org.freedesktop.NetworkManager",
        "/org/freedesktop/NetworkManager",
        "org.freedesktop.NetworkManager",
        "Metered",
    ]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.is_ok_and(|output| says_metered(&String::from_utf8_lossy(&output.stdout)))
}

/// Whether the answer `u N` is NM_METERED_YES or NM_METERED_GUESS_YES.
fn says_metered(answer: &str) -> bool {
    matches!(answer.trim(), "u 1" | "u 3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_on_battery_if_it_discharges_without_other_power() {
        let folder = tempfile::tempdir().unwrap();
        let supply = |name: &str, files: &[(&str, &str)]| {
            fs::create_dir_all(folder.path().join(name)).unwrap();
            for (file, text) in files {
                fs::write(folder.path().join(name).join(file), format!("{text}\n")).unwrap();
            }
        };
        assert!(!is_on_battery(folder.path()) && !is_on_battery(Path::new("/nonexistent")));
        supply("mouse", &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")]);
        supply("AC", &[("type", "Mains"), ("online", "0")]);
        assert!(!is_on_battery(folder.path()));
        supply("BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        assert!(is_on_battery(folder.path()));
        supply("AC", &[("type", "Mains"), ("online", "1")]);
        assert!(!is_on_battery(folder.path()));
        supply("AC", &[("online", "0")]);
        supply("BAT0", &[("status", "Full")]);
        assert!(!is_on_battery(folder.path()));
    }

    #[test]
    fn answers_of_networkmanager() {
        assert!(says_metered("u 1\n") && says_metered("u 3"));
        assert!(!says_metered("u 0") && !says_metered("u 2") && !says_metered("u 4") && !says_metered(""));
    }

    #[test]
    fn a_directory_that_is_mounted_on_itself_is_not_a_mount_point() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 8:1 /srv/empty /srv/empty rw - ext4 /dev/sda1 rw\n\
            3 1 8:1 /srv/data /data rw - ext4 /dev/sda1 rw\n\
            4 1 8:2 / /mnt/a\\040b rw - ext4 /dev/sdb1 rw\n\
            5 4 8:2 / /mnt/a\\040b rw - ext4 /dev/sdb1 rw\n\
            6 3 8:1 /srv/data/x /data/x rw - ext4 /dev/sda1 rw\n";
        let table: Vec<_> = mountinfo::mounts(table).collect();
        let is_mounted = |path: &str| is_mounted(&table, Path::new(path));
        assert!(is_mounted("/") && is_mounted("/data") && is_mounted("/mnt/a b"));
        assert!(!is_mounted("/srv/empty") && !is_mounted("/data/x") && !is_mounted("/srv"));
    }

    #[test]
    fn mount_points_are_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(folder.path()) && !is_mount_point(Path::new("/nonexistent")));
        let conditions =
            |missing| Conditions { mount: Some(folder.path().to_owned()), missing, ..Conditions::default() };
        assert!(matches!(obstacle(&conditions(Missing::Skip)), Some(Outcome::Skipped(_))));
        assert!(matches!(obstacle(&conditions(Missing::Fail)), Some(Outcome::Failed(_))));
        assert!(obstacle(&Conditions::default()).is_none());
    }
}
