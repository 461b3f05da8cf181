//! Default cache sizes, limited by the memory of the machine, the cgroup and the process.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// A cache takes at most this fraction of the available memory: one SHARE-th.
const SHARE: u64 = 4;
/// Minimum size of a cache in bytes; smaller ones are useless.
const LEAST: u64 = 4 << 20;

/// The size of a cache in bytes: `wanted`, or less if memory is short.
pub(super) fn cache(wanted: u64) -> u64 {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = [of_cgroups(&cgroups, Path::new("/sys/fs/cgroup")), of_machine(), of_process()];
    part(wanted, limits.into_iter().flatten().min())
}

fn part(wanted: u64, limit: Option<u64>) -> u64 {
    limit.map_or(wanted, |limit| wanted.min((limit / SHARE).max(LEAST)))
}

fn of_machine() -> Option<u64> {
    bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// The address space that the process can still allocate.
fn of_process() -> Option<u64> {
    let limit = getrlimit(Resource::As).current?;
    let used = fs::read_to_string("/proc/self/status").ok().and_then(|status| bytes(&status, "VmSize:"));
    Some(limit.saturating_sub(used.unwrap_or(0)))
}

/// The bytes on a line `NAME  123 kB` of a file in /proc.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix("kB")?;
    number.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The lowest memory limit of the process's cgroups and their ancestors. `cgroups` is the text of /proc/self/cgroup. The
/// hierarchies are mounted at `root`: version 2 there or in `unified`, version 1 in `memory`.
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

/// The lowest number in the files `name` from `root` down to `path`. Files that are missing or hold no number are ignored:
/// in a container, the path can be one of the host.
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
    fn a_cache_takes_a_quarter_of_the_limit() {
        assert_eq!(part(128 * MIB, None), 128 * MIB);
        assert_eq!(part(128 * MIB, Some(1 << 40)), 128 * MIB);
        assert_eq!(part(128 * MIB, Some(64 * MIB)), 16 * MIB);
        assert_eq!(part(128 * MIB, Some(0)), LEAST);
        assert_eq!(part(1, Some(0)), 1);
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert!(of_machine().unwrap() > 16 * MIB);
    }

    #[test]
    fn cgroup_limits_of_both_versions_and_of_ancestors_are_read() {
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
