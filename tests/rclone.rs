//! Repositories on a remote of rclone, through the real program and a real rclone: a whole round, an rclone that is missing,
//! too old, killed or frozen, a remote that is full, away or refuses the login, and killed runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use brackfs::storage::{Error, ErrorKind, Location, LocationKind, RcloneStorage, Storage};
use common::machine::copy;
use common::rclone::{RCLONE, Rclone};
use common::remote::{MIB, NO_FILES, RemoteServer, RemoteSite, borrowed, is_alive, many, round_files};
use common::sftp::{below, free_port};
use common::wait::until;
use common::{noise, run, set_mode, webdav};
use rustix::process::{Signal, kill_process};
use uuid::Uuid;

/// A site with a repository.
fn ready(files: &[(&str, impl AsRef<[u8]>)]) -> RemoteSite<Rclone> {
    RemoteSite::ready(Rclone::new(), files)
}

/// The number of folders with sockets.
fn sockets(remote: &RemoteSite<Rclone>) -> usize {
    fs::read_dir(remote.server.sockets()).unwrap().count()
}

/// A command may end before its threads, without removing its folder. The next one then removes it.
fn leaves_no_sockets(remote: &RemoteSite<Rclone>) {
    until("no folder with sockets is left", || {
        remote.brackfs(&["snapshots"]).ok();
        sockets(remote) == 0
    });
}

/// Text as rclone obscures it in its configuration.
fn obscured(text: &str) -> String {
    let obscured = Command::new(RCLONE).args(["obscure", text]).output().unwrap();
    String::from_utf8(obscured.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    let remote = ready(&round_files());
    remote.a_whole_round_works();
    leaves_no_sockets(&remote);

    // The layout is that of a directory.
    let moved = remote.site.path().join("moved");
    copy(&remote.server.folder().unwrap(), &moved);
    remote.site.brackfs(&["check", "--read-data", "--repo", moved.to_str().unwrap()]).ok();
}

#[test]
fn an_rclone_that_cannot_start_ends_a_command_at_once_with_the_reason() {
    let remote = ready(&NO_FILES);
    let old = remote.site.path().join("old");
    fs::write(&old, "#!/bin/sh\necho 'listen tcp: address tcp////x: unknown port' >&2\nexit 1\n").unwrap();
    set_mode(&old, 0o755);
    for (variable, value, code, words) in [
        ("BRACKFS_RCLONE", "/missing/rclone", 1, "install rclone 1.75 or later"),
        ("BRACKFS_RCLONE", old.to_str().unwrap(), 1, "rclone is too old"),
        ("BRACKFS_REPOSITORY", "rclone:elsewhere:repo", 1, "didn't find section in config file"),
        ("BRACKFS_REPOSITORY", "rclone:there:none", 10, "no such directory (rclone says: "),
        ("BRACKFS_REPOSITORY", "rclone::sftp,host=h,pass=hunter2:x", 2, "secrets do not belong"),
    ] {
        let mut command = remote.command(&["snapshots"]);
        command.env(variable, value);
        let refused = run(command).code(code);
        assert!(refused.stderr.contains(words), "{words}: {refused}");
        assert!(!refused.stderr.contains("hunter2") && !refused.stderr.contains("waiting for"), "{refused}");
    }
    assert_eq!(sockets(&remote), 0);
}

#[test]
fn an_rclone_that_ends_is_started_again() {
    let remote = ready(&borrowed(&many(2)));
    let mut backup = remote.begin_slow_backup();
    backup.until("a pack is uploaded", |_| remote.server.is_receiving());
    let processes = below(&backup.child);
    assert_eq!(processes.len(), 1, "{processes:?}");
    kill_process(processes[0], Signal::KILL).unwrap();
    backup.succeeds();
    assert!(backup.said().contains(&format!("waiting for {}", remote.url())), "{}", backup.said());
    assert!(backup.said().contains("rclone has ended"), "{}", backup.said());
    remote.is_whole();
}

#[test]
fn a_killed_backup_takes_rclone_with_it_and_its_temporaries_are_removed() {
    let remote = ready(&borrowed(&many(2)));
    assert!(remote.a_killed_backup_leaves_nothing() > 0, "the kill hit no upload");
    leaves_no_sockets(&remote);
}

#[test]
fn a_full_disk_ends_a_backup_at_once() {
    let remote = RemoteSite::new(Rclone::new(), &borrowed(&many(6)));
    remote.a_full_disk_ends_a_backup("the remote has no more room");
}

#[test]
fn a_silent_rclone_is_given_up_and_the_backup_goes_on() {
    let remote = ready(&borrowed(&many(2)));
    let send = |signal| {
        let processes = remote.server.processes();
        assert_eq!(processes.len(), 1, "{processes:?}");
        kill_process(processes[0], signal).unwrap();
    };
    remote.a_silent_server_is_given_up(|| send(Signal::STOP), || send(Signal::CONT));
    remote.is_whole();
}

#[test]
fn a_missing_disk_is_not_a_missing_object() {
    let remote = ready(&[("file", noise("file", MIB))]);
    let location = remote.server.repository();
    let LocationKind::Rclone(address) = location.kind() else { panic!("{location}") };
    let storage = RcloneStorage::open(address, location.remote()).unwrap();
    storage.length("brackfs.toml").unwrap();
    let folder = remote.server.folder().unwrap();
    fs::rename(&folder, remote.server.data().join("elsewhere")).unwrap();
    fs::create_dir(&folder).unwrap();
    for _ in 0..2 {
        assert_eq!(storage.length("brackfs.toml").unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(storage.read("brackfs.toml", 0, 1, &mut Vec::new()).unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(storage.visit("packs/", &mut |_| ()).unwrap_err().kind, ErrorKind::Unavailable);
        // The second time it is missing.
        let _ = fs::remove_dir(&folder);
    }
    let processes = remote.server.processes();
    drop(storage);
    assert!(
        !processes.is_empty() && !processes.iter().any(|process| is_alive(*process)),
        "rclone ends with the storage"
    );
}

#[test]
fn a_mount_waits_for_a_disk_that_is_away() {
    ready(&borrowed(&many(2))).a_mount_waits_for_the_server();
}

#[test]
fn two_machines_with_one_state_that_write_at_the_same_time_lose_nothing() {
    ready(&[("file", noise("file", MIB))]).two_machines_lose_nothing();
}

#[test]
fn init_accepts_only_an_empty_directory() {
    let remote = RemoteSite::new(Rclone::new(), &NO_FILES);
    let folder = remote.server.folder().unwrap();
    let put = || {
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("mine"), "mine").unwrap();
    };
    remote.init_accepts_only_an_empty_place(put, || fs::remove_file(folder.join("mine")).unwrap());
}

#[test]
fn a_login_that_the_remote_refuses_ends_a_command_at_once_and_none_is_shown() {
    let remote = RemoteSite::new(Rclone::new(), &borrowed(&many(1)));
    let server = webdav::Server::start();
    let log_in = |password: &str| {
        let (password, port) = (obscured(password), server.proxy.port());
        let user = webdav::USER;
        let settings =
            format!("type = webdav\nurl = http://127.0.0.1:{port}\nvendor = other\nuser = {user}\npass = {password}");
        remote.server.configure(&settings);
        password
    };
    let stored = log_in(webdav::PASSWORD);
    remote.init().ok();
    remote.no_secret_is_shown(&[webdav::PASSWORD, &stored]);
    remote.is_whole();

    let stored = log_in("hunter2");
    for arguments in [&["snapshots"][..], &["backup", &remote.source(), "-v"]] {
        let refused = remote.brackfs(arguments).code(1);
        assert!(refused.stderr.to_lowercase().contains("unauthorized"), "{refused}");
        for word in ["hunter2", &stored, "waiting for"] {
            assert!(!refused.stderr.contains(word), "{refused}");
        }
    }
}

/// A storage on this remote, with the configuration of another one.
fn storage_on(remote: &str, rclone: &Rclone) -> Result<RcloneStorage, Error> {
    let location: Location = format!("rclone:{remote}").parse().unwrap();
    let LocationKind::Rclone(address) = location.kind() else { panic!("{location}") };
    RcloneStorage::open(address, &rclone.remote())
}

fn put(storage: &RcloneStorage, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let mut spool = storage.spool(name, Uuid::from_u128(7))?;
    spool.append(bytes)?;
    storage.store(&spool)
}

#[test]
fn a_part_of_a_remote_that_is_away_is_never_an_empty_list() {
    let rclone = Rclone::new();
    let index = rclone.data().join("index");
    fs::create_dir(&index).unwrap();
    fs::write(index.join("a"), "object").unwrap();
    // The other part lies on a disk that is not mounted.
    let remote =
        format!(":combine,upstreams='index={} packs={}':", index.display(), rclone.data().join("packs").display());
    let storage = storage_on(&remote, &rclone).unwrap();
    for prefix in ["packs/", ""] {
        let error = storage.visit(prefix, &mut |_| ()).unwrap_err();
        assert!(error.kind == ErrorKind::Unavailable && error.to_string().contains("not found"), "{prefix}: {error}");
    }
    let mut found = Vec::new();
    storage.visit("index/", &mut |object| found.push(object.name)).unwrap();
    storage.visit("none/", &mut |object| found.push(object.name)).unwrap();
    assert_eq!(found, ["index/a"]);
    assert_eq!(storage.length("index/b").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(storage.length("index").unwrap_err().kind, ErrorKind::NotAFile);
}

#[test]
fn an_object_is_not_stored_where_the_directory_vanished() {
    let rclone = Rclone::new();
    fs::create_dir(rclone.data().join("repo")).unwrap();
    let storage = storage_on("there:repo", &rclone).unwrap();
    put(&storage, "packs/ab/x", b"bytes").unwrap();
    // The disk is unmounted: at first the empty mount point stays.
    fs::remove_dir_all(rclone.data().join("repo")).unwrap();
    fs::create_dir(rclone.data().join("repo")).unwrap();
    for _ in 0..2 {
        let error = put(&storage, "packs/ab/y", b"bytes").unwrap_err();
        assert!(error.kind == ErrorKind::Unavailable && error.to_string().contains("empty or missing"), "{error}");
        let _ = fs::remove_dir(rclone.data().join("repo"));
    }
    assert!(!rclone.data().join("repo").exists());
}

#[test]
fn variables_of_rclone_neither_hide_files_nor_open_ports() {
    let remote = ready(&[("file", noise("file", MIB))]);
    let (port, log) = (free_port(), remote.site.path().join("log"));
    let with_variables = |arguments: &[&str]| {
        let mut command = remote.command(arguments);
        for (variable, value) in [
            ("EXCLUDE", "packs/**"),
            ("MAX_AGE", "1ms"),
            ("MAX_DEPTH", "1"),
            ("MAX_SIZE", "1"),
            ("DRY_RUN", "true"),
            ("LOG_FILE", log.to_str().unwrap()),
            ("RC_ADDR", &format!("127.0.0.1:{port}")),
        ] {
            command.env(format!("RCLONE_{variable}"), value);
        }
        run(command).ok()
    };
    with_variables(&["backup", &remote.source()]);
    with_variables(&["check", "--read-data"]);
    let mnt = remote.site.mnt();
    with_variables(&["mount", mnt.to_str().unwrap()]);
    let is_open = TcpStream::connect(("127.0.0.1", port)).is_ok();
    remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();
    assert!(!is_open, "every user can command rclone");
    assert!(!log.exists());
    remote.is_whole();
}
