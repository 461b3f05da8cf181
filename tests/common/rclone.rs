//! rclone for tests, with a configuration of its own and a remote in a local directory.
//!
//! ```text
//! <folder>/data/           the files of the remote `there`
//! <folder>/rclone.conf     the configuration
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use brackfs::storage::{Location, Remote};
use rustix::process::Pid;
use tempfile::TempDir;

use super::{mounts_below, unmount};

/// Made by `scripts/setup --tests`.
pub const RCLONE: &str = "/var/cache/brackfs-tests/rclone/bin/rclone";

/// A remote in a local directory.
pub struct Rclone {
    folder: TempDir,
}

impl Rclone {
    pub fn new() -> Rclone {
        assert!(Path::new(RCLONE).exists(), "{RCLONE} is missing: run scripts/setup --tests, which installs rclone");
        let folder = TempDir::with_prefix("brackfs-test-rclone-").expect("temporary directory");
        let rclone = Rclone { folder };
        fs::create_dir(rclone.data()).expect("folder of data");
        let configuration = format!("[there]\ntype = alias\nremote = {}\n", rclone.data().display());
        fs::write(rclone.folder.path().join("rclone.conf"), configuration).expect("configuration");
        rclone
    }

    /// The folder with the files of the remote.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The command that starts it, as for `--rclone`.
    pub fn command(&self) -> String {
        format!("{RCLONE} --config {}", self.folder.path().join("rclone.conf").display())
    }

    /// The location of a path on the remote.
    pub fn location(&self, path: &str) -> Location {
        let location: Location = format!("rclone:there:{path}").parse().expect("location");
        location.with_remote(self.remote())
    }

    /// How to reach it.
    pub fn remote(&self) -> Remote {
        let rclone = self.command().split(' ').map(str::to_owned).collect();
        Remote { rclone, ..Remote::default() }
    }
}

impl Drop for Rclone {
    fn drop(&mut self) {
        mounts_below(self.folder.path()).iter().for_each(|path| unmount(path));
    }
}

/// The processes that run it, of all tests.
pub fn processes() -> Vec<Pid> {
    let parse = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read(entry.path().join("cmdline")).ok()?;
        arguments.starts_with(RCLONE.as_bytes()).then(|| Pid::from_raw(id))?
    };
    fs::read_dir("/proc").expect("/proc").filter_map(|entry| parse(entry.ok()?)).collect()
}
