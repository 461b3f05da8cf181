//! What brackfs-switching(7) promises: imports from restic and borg, and snapshots in Samba's shares.
//!
//! `scripts/setup --soak` installs these programs, and `scripts/soak` runs these tests. `cargo test` reports them as ignored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::machine::{spawn, succeed};
use common::wait::{send, until};
use common::{Run, Site, age, noise, run, set_mode, set_time, settle, tree};
use rustix::process::Signal;
use serde_json::Value;

/// A program in `contrib`.
fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(name)
}

/// A machine with another program's repository.
struct Old {
    site: Site,
}

impl Old {
    fn new() -> Self {
        let site = Site::with_files(&[
            ("home/me/large", noise("large", 3 << 20)),
            ("home/me/a", b"one".to_vec()),
            ("etc/hosts", b"hosts".to_vec()),
        ]);
        site.init();
        age(&site.source());
        Old { site }
    }

    /// Changes a file on a day before its snapshot is made.
    fn change(&self, day: usize) {
        set_time(&self.site.write("home/me/new", format!("{day}")), CHANGED + day as i64 * 24 * 60 * 60, 0);
    }

    fn path(&self, name: &str) -> String {
        self.site.source().join(name).to_str().unwrap().to_owned()
    }

    /// A program with the environment of brackfs, and of the other programs.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let other = self.site.path().join("other");
        for (name, value) in self.site.command(&["snapshots"]).get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("HOME", self.site.path()).env("XDG_CACHE_HOME", self.site.path().join("cache"));
        command.env("RESTIC_REPOSITORY", &other).env("RESTIC_PASSWORD", "secret");
        command.env("BORG_REPO", &other).env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        command
    }

    fn other(&self, program: &str, arguments: &[&str]) {
        succeed(self.command(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()));
    }

    fn import(&self, name: &str, arguments: &[&str]) -> Run {
        let (brackfs, log) = (self.site.path().join("brackfs"), self.log());
        let script = "[ \"$1\" != backup ] || exec \"$REAL\" \"$@\" --json >>\"$LOG\"; exec \"$REAL\" \"$@\"";
        fs::write(&brackfs, format!("#!/bin/sh\n{script}\n")).unwrap();
        set_mode(&brackfs, 0o755);
        let mut command = self.command(contrib(name));
        command.env("REAL", env!("CARGO_BIN_EXE_brackfs")).env("LOG", log);
        command.arg("--brackfs").arg(brackfs).args(arguments);
        run(command)
    }

    /// The file with what the backups of an import print.
    fn log(&self) -> PathBuf {
        self.site.path().join("log")
    }

    fn snapshots(&self) -> Vec<Value> {
        let listed = self.site.brackfs(&["snapshots", "--json"]).ok();
        serde_json::from_str(&listed.stdout).unwrap()
    }

    /// Restores a path of the last snapshot of a source.
    fn restored(&self, what: &str) -> PathBuf {
        let out = self.site.path().join("out");
        let _ = fs::remove_dir_all(&out);
        self.site.brackfs(&["restore", what, "--to", out.to_str().unwrap()]).ok();
        out
    }

    /// Imports twice, the second time with nothing to do, and looks at the snapshots.
    fn is_imported(&self, name: &str, times: &[&str], host: Option<&str>) {
        let count = times.len();
        let listed = self.import(name, &["--dry-run"]).ok();
        assert_eq!((listed.stdout.lines().count(), self.snapshots().len()), (count, 0), "{listed}");
        // A file on FUSE that changed within a minute is read again by the next backup, and its ctime tells.
        sleep(Duration::from_secs(61));
        self.import(name, &[]).ok();
        let again = self.import(name, &[]).ok();
        assert!(again.stderr.contains(&format!("{count} snapshots, {count} of them imported before")), "{again}");
        let snapshots = self.snapshots();
        let found: Vec<_> = snapshots.iter().map(|snapshot| snapshot["time"].as_str().unwrap()).collect();
        assert_eq!(found, times);
        let hosts = |snapshot: &Value| host.is_none_or(|host| snapshot["host"] == host);
        assert!(snapshots.iter().all(hosts), "{snapshots:?}");
        let paths = serde_json::json!([self.path("etc"), self.path("home/me")]);
        assert_eq!(snapshots.last().unwrap()["paths"], paths);
        // Files that did not change were read once: later, only the new one.
        let log = fs::read_to_string(self.log()).unwrap();
        let objects = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let summaries: Vec<_> = objects.filter(|object| object["message_type"] == "summary").collect();
        let read: Vec<_> = summaries.iter().map(|summary| summary["bytes_read"].as_u64().unwrap()).collect();
        assert_eq!((read[0], &read[1..]), ((3 << 20) + 9, &vec![1; count - 1][..]));
        // The large file was stored once.
        let stored = snapshots.iter().map(|snapshot| snapshot["stored_bytes"].as_u64().unwrap()).sum::<u64>();
        assert!(stored < 4 << 20, "{stored}");
        let home = self.path("home");
        let out = self.restored(&format!("root/latest:{home}"));
        assert_eq!(tree(&out.join("me")), tree(&self.site.source().join("home/me")));
        assert!(!common::is_mounted(&self.site.path().join(format!("cache/brackfs-{name}"))));
    }
}

/// 2024-01-01T00:00:00Z.
const CHANGED: i64 = 1_704_067_200;
const TIMES: [&str; 3] = ["2024-01-01T03:04:05Z", "2024-01-02T03:04:05Z", "2024-01-03T03:04:05Z"];

#[test]
#[ignore = "scripts/soak runs it"]
fn snapshots_of_restic_are_imported_with_their_times_and_paths() {
    let old = Old::new();
    old.other("restic", &["init"]);
    for (day, time) in TIMES.iter().enumerate() {
        old.change(day);
        let time = time.replace('T', " ").replace('Z', "");
        old.other(
            "restic",
            &["backup", "--time", &time, "--host", "oldbox", "--tag", "x", &old.path("etc"), &old.path("home/me")],
        );
    }
    old.is_imported("import-restic", &TIMES, Some("oldbox"));
    let tags = old.snapshots()[0]["tags"].as_array().unwrap().clone();
    assert!(tags.len() == 2 && tags.contains(&Value::from("x")), "{tags:?}");
    // One path keeps its name, and another host can be left out.
    old.other("restic", &["backup", "--host", "other", &old.path("home/me")]);
    assert_eq!(old.import("import-restic", &["--host", "oldbox", "--dry-run"]).ok().stdout, "");
    old.import("import-restic", &[]).ok();
    assert_eq!(old.snapshots().last().unwrap()["source"], "me");
    assert_eq!(tree(&old.restored("me/latest")), tree(&old.site.source().join("home/me")));
}

#[test]
#[ignore = "scripts/soak runs it"]
fn archives_of_borg_are_imported_with_their_times_and_paths() {
    let old = Old::new();
    old.other("borg", &["init", "-e", "none"]);
    for (day, time) in TIMES.iter().enumerate() {
        old.change(day);
        let archive = format!("::day{day}");
        let time = time.replace('Z', "");
        let create = ["create", "--timestamp", &time, &archive, &old.path("etc"), &old.path("home/me")];
        old.other("borg", &create);
    }
    old.is_imported("import-borg", &TIMES, None);
    assert!(old.snapshots()[2]["tags"].as_array().unwrap().contains(&Value::from("day2")));
}

#[test]
#[ignore = "scripts/soak runs it"]
fn snapshots_are_previous_versions_of_a_share() {
    let site = Site::with_files(&[("hello.txt", "old")]);
    site.init();
    let source = site.source();
    let path = source.to_str().unwrap();
    let backup = || site.brackfs(&["backup", path, "--source", "share"]).ok();
    backup();
    site.write("hello.txt", "new content");
    settle();
    common::wait::next_second();
    backup();
    let mounted = site.mount(&["-o", "allow_other"]);
    let folder = site.path().join("smb");
    fs::create_dir(&folder).unwrap();
    // It is free again once the listener is dropped.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let at = folder.display();
    let directories =
        ["private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir"];
    let directories: String = directories.map(|name| format!("{name} = {at}\n")).concat();
    let settings = format!(
        "[global]\nserver role = standalone server\nmap to guest = Bad User\nguest account = root\nsmb ports = {port}\n\
         bind interfaces only = yes\ninterfaces = 127.0.0.1\nlog file = {at}/log\n{directories}\
         [share]\npath = {path}\nguest ok = yes\nvfs objects = shadow_copy2\nshadow:snapdir = {}/share\n\
         shadow:basedir = {path}\nshadow:mountpoint = {path}\nshadow:format = %Y%m%dT%H%M%SZ\n\
         shadow:localtime = no\nshadow:sort = desc\n",
        mounted.path().display()
    );
    let configuration = folder.join("smb.conf");
    fs::write(&configuration, settings).unwrap();
    let mut server = Command::new("smbd");
    server.arg("-s").arg(&configuration).args(["-F", "--debug-stdout"]);
    server.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()));
    let mut server = spawn(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    let client = |command: &str| {
        let mut client = Command::new("smbclient");
        client.args(["-s", configuration.to_str().unwrap(), "-p", &port, "-N", "//127.0.0.1/share", "-c", command]);
        run(client)
    };
    until("the share to be there", || client("ls").code == 0);
    let shown = client("allinfo hello.txt").ok();
    let versions: Vec<_> = shown.stdout.lines().filter(|line| line.starts_with("@GMT-")).collect();
    assert_eq!(versions.len(), 2, "{shown}");
    let out = folder.join("out");
    for (version, content) in versions.iter().zip(["new content", "old"]) {
        client(&format!("get {version}/hello.txt {}", out.display())).ok();
        assert_eq!(fs::read_to_string(&out).unwrap(), content);
    }
    send(&server, Signal::TERM);
    server.wait().unwrap();
}
