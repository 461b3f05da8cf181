//! rclone for tests, with a configuration of its own and a remote in a local directory.
//!
//! ```text
//! <folder>/data/           the files of the remote `there`
//! <folder>/rclone.conf     the configuration
//! <folder>/run/            folders with the sockets of commands
//! ```

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use brackfs::storage::{Location, Remote};
use rustix::process::Pid;
use tempfile::TempDir;

use super::remote::{RemoteServer, uploads_below};
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
        fs::create_dir(rclone.sockets()).expect("folder of sockets");
        rclone.configure(&format!("type = alias\nremote = {}", rclone.data().display()));
        rclone
    }

    /// Changes the remote `there`.
    pub fn configure(&self, remote: &str) {
        fs::write(self.configuration(), format!("[there]\n{remote}\n")).expect("configuration");
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("rclone.conf")
    }

    /// The folder with the folders of sockets.
    pub fn sockets(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The processes that run it.
    pub fn processes(&self) -> Vec<Pid> {
        let parse = |entry: fs::DirEntry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let is_ours =
                arguments.split(|byte| *byte == 0).any(|word| word == self.configuration().as_os_str().as_bytes());
            (is_ours && arguments.starts_with(RCLONE.as_bytes())).then(|| Pid::from_raw(id))?
        };
        fs::read_dir("/proc").expect("/proc").filter_map(|entry| parse(entry.ok()?)).collect()
    }

    /// The folder with the files of the remote.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The command that starts it, as for `--rclone`.
    pub fn command(&self) -> String {
        format!("{RCLONE} --config {}", self.configuration().display())
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

impl RemoteServer for Rclone {
    fn repository(&self) -> Location {
        self.location("repo")
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_RCLONE", self.command()).env("XDG_RUNTIME_DIR", self.sockets());
    }

    /// Takes the disk with the files away.
    fn stop(&mut self) {
        fs::rename(self.data(), self.folder.path().join("away")).expect("the folder of data");
    }

    fn start_again(&mut self) {
        fs::rename(self.folder.path().join("away"), self.data()).expect("the folder of data");
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.data().join("repo"))
    }

    fn is_receiving(&self) -> bool {
        !uploads_below(&self.data().join("repo")).is_empty()
    }
}

impl Drop for Rclone {
    fn drop(&mut self) {
        mounts_below(self.folder.path()).iter().for_each(|path| unmount(path));
    }
}
