//! How much memory may be taken for a cache that nobody gave a size to.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// What part of the memory that may be used a cache takes at most.
const SHARE: u64 = 4;
/// Less is of no use.
const LEAST: u64 = 4 << 20;

/// The size of a cache: `wanted`, or less where memory is short.
pub(super) fn cache(wanted: u64) -> u64 {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = [of_cgroups(&cgroups, Path::new("/sys/fs/cgroup")), of_machine(), of_process()];
    part(wanted, limits.into_iter().flatten().min())
}

fn part(wanted: u64, limit: Option<u64>) -> u64 {
    limit.map_or(wanted, |limit| wanted.min((limit / SHARE).max(LEAST)))
}

/// The memory of the machine.
fn of_machine() -> Option<u64> {
    bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// What is left of the address space that the process may have.
fn of_process() -> Option<u64> {
    let limit = getrlimit(Resource::As).current?;
    let used = fs::read_to_string("/proc/self/status").ok().and_then(|status| bytes(&status, "VmSize:"));
    Some(limit.saturating_sub(used.unwrap_or(0)))
}

/// The number on a line `NAME  123 kB` of a file below /proc.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix("kB")?;
    number.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit of the cgroups that the process is in, and of those above them. `cgroups` is /proc/self/cgroup, and
/// `root` is where their hierarchies are mounted: version 2 there or in `unified`, version 1 in `memory`.
fn of_cgroups(cgroups: &str, root: &Path) -> Option<u64> {
    let limits = cgroups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_memory = controllers.split(',').any(|controller| controller == "memory");
        let (folders, name) = match controllers {
            "" => (&["", "unified"][..], "memory.max"),
            _ if is_memory => (&["memory"][..], "memory.limit_in_bytes"),
            _ => return None,
        };
        folders.iter().filter_map(|folder| of_folder(&root.join(folder), path, name)).min()
    });
    limits.min()
}

/// The least number in the files `name` from `root` down to `path`. Those that are not there, or hold no number, do not
/// count: in a container the path can be one of the host's.
fn of_folder(root: &Path, path: &str, name: &str) -> Option<u64> {
    let below = Path::new(path.trim_start_matches('/'));
    let limits = below.ancestors().filter_map(|folder| {
        let text = fs::read_to_string(root.join(folder).join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_cache_is_a_part_of_what_may_be_used() {
        assert_eq!(part(128 * MIB, None), 128 * MIB);
        assert_eq!(part(128 * MIB, Some(1 << 40)), 128 * MIB);
        assert_eq!(part(128 * MIB, Some(64 * MIB)), 16 * MIB);
        assert_eq!(part(128 * MIB, Some(0)), LEAST);
        assert_eq!(part(1, Some(0)), 1);
    }

    #[test]
    fn the_machine_has_memory() {
        assert!(of_machine().unwrap() > 16 * MIB);
    }

    #[test]
    fn limits_of_cgroups_are_found_in_both_versions_and_above() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let second = "0::/system.slice/a.service\n";
        assert_eq!(of_cgroups(second, root), None);
        put("system.slice/a.service/memory.max", "max\n");
        assert_eq!(of_cgroups(second, root), None);
        put("system.slice/memory.max", "67108864\n");
        assert_eq!(of_cgroups(second, root), Some(64 * MIB));
        put("system.slice/a.service/memory.max", "33554432\n");
        assert_eq!(of_cgroups(second, root), Some(32 * MIB));
        let first = "12:pids:/p\n5:cpu,memory:/docker/abc\n1:name=systemd:/\n0::/\n";
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(of_cgroups(first, root), Some(9_223_372_036_854_771_712));
        put("memory/docker/abc/memory.limit_in_bytes", "1048576\n");
        assert_eq!(of_cgroups(first, root), Some(MIB));
        put("unified/memory.max", "4096");
        assert_eq!(of_cgroups(second, root), Some(4096));
        assert_eq!(of_cgroups("nonsense\n1:cpu:/\n", root), None);
    }
}
