//! Finds the processes that use a mount, for the message that it is in use.

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Maximum number of processes in the message.
const NAMED: usize = 5;

/// Processes that use a mount, as far as this user may see them.
pub(super) struct Users {
    /// Pid and name.
    processes: Vec<(u32, String)>,
}

impl Users {
    /// Finds processes with an open or mapped file, working directory, root directory or executable at or below `path`.
    /// Sends no request to the mounted file system.
    pub(super) fn of(path: &Path) -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut processes: Vec<_> = numbers.filter(|pid| uses(*pid, path)).map(|pid| (pid, name(pid))).collect();
        processes.sort_unstable();
        Users { processes }
    }
}

fn name(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().escape_debug().to_string()
}

fn uses(pid: u32, path: &Path) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let leads_there = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(path));
    let open = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    ["cwd", "root", "exe"].iter().any(|name| leads_there(&process.join(name)))
        || open().any(|file| leads_there(&file.path()))
        || maps(&fs::read(process.join("maps")).unwrap_or_default(), path)
}

/// Whether `list`, in the format of `/proc/PID/maps`, has a file at or below `path`.
fn maps(list: &[u8], path: &Path) -> bool {
    list.split(|byte| *byte == b'\n').any(|line| {
        // The fields before the path have no slash.
        let file = line.iter().position(|byte| *byte == b'/').and_then(|at| line.get(at..));
        file.is_some_and(|file| Path::new(std::ffi::OsStr::from_bytes(file)).starts_with(path))
    })
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> =
            self.processes.iter().take(NAMED).map(|(pid, name)| format!("{name} (process {pid})")).collect();
        match self.processes.len().saturating_sub(NAMED) {
            _ if named.is_empty() => write!(f, "it is in use"),
            0 => write!(f, "it is in use by {}", named.join(", ")),
            more => write!(f, "it is in use by {} and {more} more", named.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_counts_and_a_neighbour_does_not() {
        let list = b"7f00-7f01 r--p 00000000 00:2a 12 /mnt/a b/file\n7f01-7f02 rw-p 00000000 00:00 0 [heap]\n";
        assert!(maps(list, Path::new("/mnt/a b")));
        assert!(!maps(list, Path::new("/mnt/a")));
        assert!(!maps(list, Path::new("/mnt/a b/file/below")));
    }

    #[test]
    fn a_process_in_a_directory_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        assert_eq!(Users::of(&path).to_string(), "it is in use");
        let mut child = std::process::Command::new("sleep").arg("100").current_dir(&path).spawn().unwrap();
        let said = Users::of(&path).to_string();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(said, format!("it is in use by sleep (process {})", child.id()));
    }
}
