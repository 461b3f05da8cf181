//! Repositories on a remote of rclone, through the real program and a real rclone: a whole round, an rclone that is missing,
//! too old, killed, frozen or out of room, and killed runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::storage::{ErrorKind, LocationKind, RcloneStorage, Remote as Options, Storage};
use common::machine::mount_tmpfs;
use common::rclone::Rclone;
use common::sftp::below;
use common::{Run, Site, age, noise, run, settle, tree};
use rustix::process::{Pid, Signal, kill_process};

const MIB: usize = 1 << 20;
const URL: &str = "rclone:there:repo";

/// A site whose repository is on a remote.
struct Remote {
    site: Site,
    rclone: Rclone,
}

impl Remote {
    /// A site with these files, and without a repository.
    fn new(files: &[(&str, Vec<u8>)]) -> Remote {
        let site = Site::with_files(files);
        site.key("rfc9580");
        fs::create_dir(site.path().join("run")).unwrap();
        Remote { site, rclone: Rclone::new() }
    }

    /// The same with a repository.
    fn ready(files: &[(&str, Vec<u8>)]) -> Remote {
        let remote = Remote::new(files);
        remote.init().ok();
        remote
    }

    fn init(&self) -> Run {
        let certificate = self.site.keys().join("owner.pub");
        self.brackfs(&["init", URL, "--recipient", certificate.to_str().unwrap()])
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        command.env("BRACKFS_REPOSITORY", URL).env("BRACKFS_RCLONE", self.rclone.command());
        command.env("XDG_RUNTIME_DIR", self.site.path().join("run"));
        command
    }

    fn brackfs(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    fn source(&self) -> String {
        self.site.source().to_str().unwrap().to_owned()
    }

    fn backup(&self, extra: &[&str]) -> Run {
        self.brackfs(&[&["backup", &self.source(), "--json"], extra].concat())
    }

    /// A backup under way. Its messages go to a file.
    fn begin_backup(&self, extra: &[&str]) -> Child {
        let log = fs::File::create(self.site.path().join("messages")).unwrap();
        let mut command = self.command(&[&["backup", &self.source()], extra].concat());
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// The messages of the backup under way.
    fn said(&self) -> String {
        fs::read_to_string(self.site.path().join("messages")).unwrap()
    }

    /// Checks everything, restores the newest snapshot and compares it with the source.
    fn is_whole(&self) {
        self.brackfs(&["check", "--read-data"]).ok();
        let out = self.site.path().join("out");
        self.brackfs(&["restore", "latest", "--to", out.to_str().unwrap()]).ok();
        assert!(tree(&out) == tree(&self.site.source()), "the restored files differ");
        fs::remove_dir_all(out).unwrap();
    }

    fn repo(&self) -> PathBuf {
        self.rclone.data().join("repo")
    }

    /// Files below the repository whose names begin with this.
    fn files(&self, begin: &str) -> Vec<PathBuf> {
        let all = common::paths_below(&self.repo());
        all.into_iter().filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(begin)).collect()
    }

    fn packs(&self) -> usize {
        let packs = self.repo().join("packs");
        let is_pack = |path: &&PathBuf| path.is_file() && !path.to_str().unwrap().contains(".tmp-");
        if packs.exists() { common::paths_below(&packs).iter().filter(is_pack).count() } else { 0 }
    }

    /// The folders with sockets.
    fn sockets(&self) -> usize {
        fs::read_dir(self.site.path().join("run")).unwrap().count()
    }

    fn storage(&self, stall: Duration) -> RcloneStorage {
        let location = self.rclone.location("repo");
        let LocationKind::Rclone(address) = location.kind() else { panic!("{location}") };
        RcloneStorage::open(address, &Options { stall, ..location.remote().clone() }).unwrap()
    }
}

/// Files of random bytes: many packs.
fn many(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|at| (format!("file{at}"), noise(&format!("file{at}"), 8 * MIB))).collect()
}

fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, Vec<u8>)> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect()
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}");
        sleep(Duration::from_millis(5));
    }
}

fn is_alive(process: Pid) -> bool {
    let state = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    state.is_ok_and(|state| !state.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    let remote = Remote::ready(&[("file", b"content".to_vec()), ("large", noise("large", 20 * MIB))]);
    let again = remote.init().code(1);
    assert!(again.stderr.contains("already"), "{again}");
    remote.backup(&[]).ok();
    remote.site.write("new", noise("new", MIB));
    fs::remove_file(remote.site.source().join("large")).unwrap();
    age(&remote.site.source());
    settle();
    remote.backup(&[]).ok();
    remote.is_whole();
    assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 2);
    remote.brackfs(&["catalog", "verify"]).ok();

    let mnt = remote.site.mnt();
    remote.brackfs(&["mount", mnt.to_str().unwrap()]).ok();
    let copy = remote.site.path().join("copy");
    assert!(Command::new("cp").arg("-a").args([&mnt.join("source/latest/."), &copy]).status().unwrap().success());
    assert!(tree(&copy) == tree(&remote.site.source()));
    remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();

    let before = remote.packs();
    remote.brackfs(&["forget", "--keep-last", "1"]).ok();
    remote.brackfs(&["prune", "--grace", "0"]).ok();
    assert!(remote.packs() < before, "{before} packs before, {} after", remote.packs());
    remote.is_whole();
    assert_eq!(remote.files(".tmp-"), [] as [PathBuf; 0]);
    // A mount may end without removing its folder, which the next run then does.
    until("the mount ends", || {
        remote.brackfs(&["snapshots"]).ok();
        remote.sockets() == 0
    });

    // The layout is that of a directory.
    let moved = remote.site.path().join("moved");
    assert!(Command::new("cp").arg("-a").args([&remote.repo(), &moved]).status().unwrap().success());
    remote.site.brackfs(&["check", "--read-data", "--repo", moved.to_str().unwrap()]).ok();
}

#[test]
fn what_does_not_start_ends_a_command_at_once_with_the_reason() {
    let remote = Remote::ready(&[]);
    let old = remote.site.path().join("old");
    fs::write(&old, "#!/bin/sh\necho 'listen tcp: address tcp////x: unknown port' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    let start = Instant::now();
    for (variable, value, code, words) in [
        ("BRACKFS_RCLONE", "/missing/rclone", 1, "install rclone 1.75 or later"),
        ("BRACKFS_RCLONE", old.to_str().unwrap(), 1, "rclone is too old"),
        ("BRACKFS_REPOSITORY", "rclone:elsewhere:repo", 1, "didn't find section in config file"),
        ("BRACKFS_REPOSITORY", "rclone:there:none", 10, "no such directory"),
        ("BRACKFS_REPOSITORY", "rclone::sftp,host=h,pass=hunter2:x", 2, "secrets do not belong"),
    ] {
        let mut command = remote.command(&["snapshots"]);
        command.env(variable, value);
        let refused = run(command).code(code);
        assert!(refused.stderr.contains(words), "{words}: {refused}");
        assert!(!refused.stderr.contains("hunter2") && !refused.stderr.contains("waiting for"), "{refused}");
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(remote.sockets(), 0);
}

#[test]
fn an_rclone_that_ends_is_started_again() {
    let remote = Remote::ready(&borrowed(&many(8)));
    let mut backup = remote.begin_backup(&["--limit-upload", "32MiB"]);
    until("a pack is stored", || remote.packs() > 0);
    let processes = below(&backup);
    assert_eq!(processes.len(), 1, "{processes:?}");
    kill_process(processes[0], Signal::KILL).unwrap();
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    assert!(remote.said().contains(&format!("waiting for {URL}")), "{}", remote.said());
    assert!(remote.said().contains("rclone has ended"), "{}", remote.said());
    remote.is_whole();
}

#[test]
fn a_killed_backup_takes_rclone_with_it_and_its_temporaries_are_removed() {
    let remote = Remote::ready(&borrowed(&many(8)));
    let mut killed = false;
    for _ in 0..4 {
        let mut backup = remote.begin_backup(&["--connections", "2", "--limit-upload", "32MiB"]);
        until("an upload is under way", || !remote.files(".tmp-").is_empty() || backup.try_wait().unwrap().is_some());
        let processes = below(&backup);
        backup.kill().unwrap();
        backup.wait().unwrap();
        until("rclone ends", || !processes.iter().any(|process| is_alive(*process)));
        killed |= !remote.files(".tmp-").is_empty();
        if killed {
            assert_eq!((processes.len(), remote.sockets()), (1, 1));
            break;
        }
    }
    assert!(killed, "no kill hit an upload");
    remote.backup(&[]).ok();
    assert_eq!(remote.files(".tmp-"), [] as [PathBuf; 0]);
    assert_eq!(remote.sockets(), 0, "also that of the killed run");
    remote.is_whole();
}

#[test]
fn a_full_disk_ends_a_backup_at_once() {
    let remote = Remote::new(&borrowed(&many(6)));
    fs::create_dir(remote.repo()).unwrap();
    mount_tmpfs(&remote.repo(), c"size=24m");
    remote.init().ok();
    let start = Instant::now();
    let full = remote.backup(&[]).code(1);
    assert!(full.stderr.contains("the remote has no more room"), "{full}");
    assert!(!full.stderr.contains("waiting for"), "{full}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(remote.files(".tmp-"), [] as [PathBuf; 0]);
    for at in 1..6 {
        fs::remove_file(remote.site.source().join(format!("file{at}"))).unwrap();
    }
    settle();
    remote.backup(&[]).ok();
    remote.is_whole();
}

#[test]
fn a_silent_rclone_is_given_up_and_a_missing_disk_is_no_missing_object() {
    let remote = Remote::ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let before = common::rclone::processes();
    let storage = remote.storage(Duration::from_secs(2));
    let process = common::rclone::processes().into_iter().find(|process| !before.contains(process)).unwrap();
    let length = storage.length("brackfs.toml").unwrap();
    kill_process(process, Signal::STOP).unwrap();
    let begun = Instant::now();
    let error = storage.length("brackfs.toml").unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.to_string().contains("rclone was silent for 2 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    kill_process(process, Signal::CONT).unwrap();
    assert_eq!(storage.length("brackfs.toml").unwrap(), length);

    fs::rename(remote.repo(), remote.rclone.data().join("elsewhere")).unwrap();
    fs::create_dir(remote.repo()).unwrap();
    for _ in 0..2 {
        assert_eq!(storage.length("brackfs.toml").unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(storage.read("brackfs.toml", 0, 1, &mut Vec::new()).unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(storage.visit("packs/", &mut |_| ()).unwrap_err().kind, ErrorKind::Unavailable);
        // The second time it is missing.
        let _ = fs::remove_dir(remote.repo());
    }
    drop(storage);
    assert!(!is_alive(process), "rclone ends with the storage");
}
