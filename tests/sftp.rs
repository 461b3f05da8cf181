//! Repositories on an SFTP server, through the real program and a real OpenSSH: a whole round, a server that is cut off,
//! stopped, frozen, full, read-only or another one, and killed runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::machine::{copy, mount_tmpfs, succeed};
use common::remote::{Begun, MIB, NO_FILES, RemoteServer, RemoteSite, borrowed, files_below, many, round_files};
use common::sftp::{Server, below};
use common::wait::ended;
use common::{Site, age, noise, number, run, settle, tree};
use rustix::process::{Pid, Signal};

/// A site with a repository.
fn ready(files: &[(&str, impl AsRef<[u8]>)]) -> RemoteSite<Server> {
    RemoteSite::ready(Server::start(), files)
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    ready(&round_files()).a_whole_round_works();
}

#[test]
fn a_repository_moves_from_a_directory_to_a_server() {
    let remote = RemoteSite::new(Server::start(), &[("file", noise("file", MIB))]);
    remote.site.init();
    remote.site.backup(&[]).ok();
    let folder = remote.server.folder().unwrap();
    copy(&remote.site.repo(), &folder);
    succeed(Command::new("chown").args(["-R", "nobody"]).arg(folder));
    let summary = remote.backup(&[]).ok().json();
    assert_eq!(summary["bytes_read"], 0, "the catalog is used: {summary}");
    remote.restores();
}

#[test]
fn init_accepts_only_an_empty_directory() {
    let remote = RemoteSite::new(Server::start(), &NO_FILES);
    let folder = remote.server.folder().unwrap();
    let put = || {
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(common::NOBODY), None).unwrap();
        fs::write(folder.join("mine"), "mine").unwrap();
    };
    remote.init_accepts_only_an_empty_place(put, || fs::remove_file(folder.join("mine")).unwrap());
    // Another path on the same server has none.
    let mut missing = remote.command(&["snapshots"]);
    missing.env("BRACKFS_REPOSITORY", remote.server.url(&remote.server.data().join("none")));
    assert!(run(missing).code(10).stderr.contains("no such file"));
}

/// Runs a command on a repository of a distant server. Returns how often it waited for the server.
fn waits(site: &Site, arguments: &[&str]) -> usize {
    run(distant(site, arguments)).ok();
    waits_so_far(site)
}

/// A command on a repository of a distant server.
fn distant(site: &Site, arguments: &[&str]) -> Command {
    let (mark, server) = (mark(site), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/sftp_server.py"));
    let _ = fs::remove_file(&mark);
    let mut command = site.command(arguments);
    command.env("BRACKFS_REPOSITORY", format!("sftp://host{}", site.repo().display()));
    command.env("BRACKFS_SSH", format!("python3 {server} {} rounds", mark.display()));
    command
}

fn mark(site: &Site) -> PathBuf {
    site.path().join("waits")
}

fn waits_so_far(site: &Site) -> usize {
    fs::read(mark(site)).unwrap().len()
}

#[test]
fn a_mount_and_its_first_listing_wait_few_times_for_the_server() {
    let site = Site::with_files(&[("file", "file")]);
    site.init();
    site.backup(&[]).ok();
    let mounted = site.mount_by(distant(&site, &["mount", site.mnt().to_str().unwrap()]));
    let listed = fs::read_dir(mounted.path().join("source/latest/")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(listed.collect::<Vec<_>>(), ["file"]);
    let waits = waits_so_far(&site);
    assert!(waits <= 10, "{waits}");
}

#[test]
fn a_cache_on_disk_prefers_packs_with_directories() {
    let site = Site::with_files(&[("file", noise("file", MIB))]);
    site.init();
    site.backup(&[]).ok();
    waits(&site, &["cat", "latest:file"]);
    let files = files_below(&site.path().join("cache"));
    let ranges = files.iter().filter(|path| path.file_name().unwrap().to_str().unwrap().contains('-'));
    let preferred: Vec<_> = files.iter().filter(|path| path.ends_with("preferred")).collect();
    // The content is in another pack.
    let of_trees = ranges.clone().filter(|path| path.parent() == preferred[0].parent());
    let bytes = |path: &PathBuf| fs::metadata(path).unwrap().len();
    assert_eq!(preferred.len(), 1, "{files:?}");
    assert!(of_trees.clone().count() > 0 && of_trees.clone().all(|path| bytes(path) < 64 << 10), "{files:?}");
    assert!(ranges.map(bytes).sum::<u64>() > MIB as u64, "{files:?}");
}

#[test]
fn snapshots_are_read_together() {
    let site = Site::with_files(&[("file", "file")]);
    site.init();
    for _ in 0..24 {
        site.backup(&[]).ok();
    }
    // On the machine that is backed up, the catalog has them.
    let key = site.keys().join("owner");
    let waits_of = |arguments: &[&str]| waits(&site, &[arguments, &["--key", key.to_str().unwrap()]].concat());
    for arguments in [&["snapshots"][..], &["find", "nothing"], &["versions", "file"]] {
        let waits = waits_of(arguments);
        assert!(waits <= 20, "{arguments:?}: {waits}");
    }
}

#[test]
fn a_backup_of_nothing_new_waits_few_times_for_the_server() {
    let site = Site::with_files(&[("file", "file")]);
    site.init();
    site.backup(&[]).ok();
    settle();
    let source = site.source();
    let backup = ["backup", source.to_str().unwrap()];
    // The first one of a day looks for lost documents.
    waits(&site, &backup);
    let waits = waits(&site, &backup);
    assert!(waits <= 17, "{waits}");
}

#[test]
fn a_first_backup_makes_folders_without_waiting_for_each() {
    let site = Site::with_files(&[("file", "file")]);
    site.init();
    let source = site.source();
    let waits = waits(&site, &["backup", source.to_str().unwrap()]);
    assert!(waits <= 38, "{waits}");
}

#[test]
fn passwords_in_locations_are_refused_and_never_repeated() {
    let site = Site::new();
    for arguments in
        [&["init", "sftp://me:hunter2@host/repo"][..], &["snapshots", "--repo", "sftp://me:hunter2@host/repo"]]
    {
        let refused = site.brackfs(arguments).code(2);
        assert!(refused.stderr.contains("password does not belong"), "{refused}");
        assert!(!refused.stderr.contains("hunter2"), "{refused}");
    }
    let mut help = site.command(&["backup", "--help"]);
    help.env("BRACKFS_REPOSITORY", "sftp://me:hunter2@host/repo");
    assert!(!run(help).ok().stdout.contains("hunter2"));
}

#[test]
fn connections_are_bounded_and_no_process_shows_a_secret() {
    let remote = ready(&borrowed(&many(4)));
    let program = format!("{} -o", remote.server.ssh());
    let secret = fs::read_to_string(remote.server.key()).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    let most = |mut command: Begun| {
        let mut most = 0;
        while !command.has_ended() {
            let arguments = |process: Pid| {
                let words = fs::read(format!("/proc/{}/cmdline", process.as_raw_nonzero())).unwrap_or_default();
                String::from_utf8_lossy(&words).replace('\0', " ")
            };
            let shown: Vec<_> = below(&command.child).into_iter().map(arguments).collect();
            let is_ours = |line: &&String| line.starts_with(&program) && line.contains("-s -- 127.0.0.1 sftp");
            most = most.max(shown.iter().filter(is_ours).count());
            assert!(!shown.concat().contains(secret));
            sleep(Duration::from_millis(20));
        }
        command.succeeds();
        most
    };
    assert_eq!(most(remote.begin_backup(&["--connections", "2", "--limit-upload", "16MiB"])), 2);
    let restore = ["restore", "latest", "--to", "out", "--connections", "2", "--limit-download", "16MiB"];
    assert_eq!(most(Begun::start(remote.command(&restore))), 2);
}

#[test]
fn a_changed_host_key_ends_a_command_at_once() {
    let mut remote = ready(&[("file", b"content".to_vec())]);
    remote.server.stop();
    remote.server.new_host_key();
    remote.server.start_again();
    let refused = remote.backup(&[]).code(1);
    assert!(!refused.stderr.contains("waiting for"), "{refused}");
    for words in ["host key is not the one that ssh knows", "SHA256:", "ssh-keygen -R '[127.0.0.1]:"] {
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
    // An unknown key is not accepted either.
    remote.server.trust("");
    let refused = remote.backup(&[]).code(1);
    assert!(refused.stderr.contains("does not trust the server's host key yet"), "{refused}");
    remote.server.trust_host_key();
    remote.backup(&[]).ok();
}

#[test]
fn a_refused_login_ends_a_command_at_once() {
    let remote = ready(&[("file", b"content".to_vec())]);
    remote.server.refuse_logins();
    let refused = remote.backup(&[]).code(1);
    assert!(refused.stderr.contains("the server refuses the login"), "{refused}");
    assert!(!refused.stderr.contains("waiting for"), "{refused}");
}

#[test]
fn a_host_key_that_changes_during_a_run_condemns_nothing() {
    let mut remote = ready(&borrowed(&many(2)));
    let mut backup = remote.begin_slow_backup();
    backup.until("a pack is uploaded", |_| remote.server.is_receiving());
    remote.server.stop();
    remote.server.new_host_key();
    remote.server.start_again();
    backup.ends_with(1);
    assert!(backup.said().contains("host key is not the one"), "{}", backup.said());
    remote.server.trust_host_key();
    remote.backup(&[]).ok();
    remote.is_whole();
}

#[test]
fn an_upload_that_is_cut_off_is_made_again() {
    let remote = ready(&borrowed(&many(6)));
    remote.an_upload_that_is_cut_off_is_made_again(|| remote.server.cut());
}

#[test]
fn a_connection_cut_while_a_restore_reads_is_made_again() {
    let remote = ready(&borrowed(&many(3)));
    remote.backup(&[]).ok();
    let out = remote.site.path().join("out");
    let arguments = ["restore", "latest", "-q", "--limit-download", "2MiB", "--to", out.to_str().unwrap()];
    let mut restore = Begun::start(remote.command(&arguments));
    // A file has its name when it is whole. Another takes four seconds.
    restore.until("a file is restored", |_| !files_below(&out).is_empty());
    remote.server.cut();
    assert!(!restore.has_ended(), "it ended before the cut");
    restore.succeeds();
    assert_eq!(restore.said(), "");
    assert!(tree(&out) == tree(&remote.site.source()));
}

#[test]
fn a_backup_waits_for_a_server_that_is_restarted() {
    ready(&borrowed(&many(2))).a_backup_waits_for_the_server();
}

#[test]
fn a_mount_waits_for_a_server_that_is_restarted() {
    ready(&borrowed(&many(2))).a_mount_waits_for_the_server();
}

#[test]
fn a_server_that_freezes_is_given_up_and_the_backup_goes_on() {
    let remote = ready(&borrowed(&many(2)));
    remote.a_silent_server_is_given_up(|| remote.server.freeze(), || ());
    // The frozen sessions.
    remote.server.cut();
    remote.is_whole();
}

#[test]
fn two_machines_with_one_state_that_write_at_the_same_time_harm_nothing() {
    let remote = ready(&[("file", noise("file", MIB))]);
    remote.two_machines_lose_nothing();
    remote.brackfs(&["forget", "--keep-last", "1", "--force"]).ok();
    remote.backup(&[]).ok();
    remote.brackfs(&["prune", "--grace", "0"]).ok();
    remote.is_whole();
}

#[test]
fn a_clone_that_prunes_during_a_backup_removes_nothing_that_the_backup_needs() {
    let remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let clone = remote.site.path().join("clone");
    let (mut stopped, mut ended) = (0, 0);
    for round in 0..4u64 {
        // Unneeded content comes back while it is being removed.
        for content in ["odd", "even"] {
            remote.site.write("changing", noise(content, 4 * MIB));
            age(&remote.site.source());
            settle();
            remote.backup(&[]).ok();
        }
        remote.brackfs(&["forget", "--keep-last", "1", "--force"]).ok();
        remote.clone_state(&clone);
        remote.site.write("changing", noise("odd", 4 * MIB));
        age(&remote.site.source());
        settle();
        let prune = remote.begin_as(&clone, &["prune", "--grace", "0", "--max-waste", "0%"]);
        sleep(Duration::from_millis(round * 100));
        let backup = remote.begin_as(&remote.site.state(), &["backup", &remote.source()]);
        for is_stopped in [prune, backup].map(|mut run| run.is_stopped_by_a_rival()) {
            *(if is_stopped { &mut stopped } else { &mut ended }) += 1;
        }
        remote.goes_on_after_a_race();
    }
    println!("{stopped} runs stopped, {ended} ended");
    // The machine that goes on can remove data again. It may have compared its catalog with the repository while the clone
    // removed documents; then it needs a new one first, as the message says.
    let pruned = remote.brackfs(&["prune", "--grace", "0"]);
    if pruned.code != 0 {
        assert!(pruned.stderr.contains("brackfs catalog rebuild"), "{pruned}");
        remote.brackfs(&["catalog", "rebuild"]).ok();
        remote.backup(&[]).ok();
        remote.brackfs(&["prune", "--grace", "0"]).ok();
    }
    remote.is_whole();
}

#[test]
fn an_interrupt_ends_a_backup_with_a_low_rate() {
    let remote = ready(&borrowed(&many(3)));
    let mut backup = remote.begin_backup(&["--limit-upload", "10KiB"]);
    backup.until("an upload begins", |_| !remote.temporary_files().is_empty());
    backup.send(Signal::INT);
    backup.ends_with(130);
    remote.backup(&[]).ok();
    remote.restores();
}

/// Backs up 80 MiB to a slow server, and interrupts that when files with `read` MiB are read and a pack is stored. It must end long
/// before the rest could be stored.
fn an_interrupt_ends_the_uploads_of_a_backup(read: u64) {
    let site = Site::with_files(&borrowed(&many(10)));
    site.init();
    let (source, url) = (site.source(), format!("sftp://host{}", site.repo().display()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/sftp_server.py");
    let slow = format!("python3 {script} {} slow {}", site.path().join("mark").display(), 2 * MIB);
    let words = ["backup", source.to_str().unwrap(), "--repo", &url, "--ssh", &slow, "--connections", "2"];
    let mut backup = Begun::start(site.command(&words));
    let io = format!("/proc/{}/io", backup.id());
    let packs = || files_below(&site.repo().join("packs"));
    let stored = || packs().iter().filter(|path| !path.to_string_lossy().contains(".tmp-")).count();
    backup.until("files are read and a pack is stored", |_| {
        let counts = fs::read_to_string(&io).unwrap();
        let bytes: u64 = counts.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
        bytes >= read * MIB as u64 && stored() > 0
    });
    let begun = Instant::now();
    backup.send(Signal::TERM);
    backup.ends_with(130);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(backup.said().contains("interrupted; stored content is kept"), "{}", backup.said());
    assert!(stored() < 5, "all of it was stored");
    let kept: u64 = packs().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    // What was stored is used, and nothing else is left.
    let summary = site.backup(&[]).ok().json();
    let left = number(&summary, "data_bytes");
    // Stored bytes include padding and the framing of blocks, together less than 3 %.
    assert!(left + kept <= 82 << 20, "{kept} bytes were kept, and then {left} stored");
    assert!(packs().iter().all(|path| !path.to_string_lossy().contains(".tmp-")), "{:?}", packs());
    let check = site.brackfs(&["check", "--read-data"]).ok();
    assert_eq!(check.stderr, "", "{check}");
    site.brackfs(&["catalog", "verify"]).ok();
    let out = site.path().join("out");
    site.brackfs(&["restore", "latest", "--to", out.to_str().unwrap()]).ok();
    assert!(tree(&out) == tree(&source), "the restored files differ");
}

#[test]
fn an_interrupt_ends_the_uploads_of_a_backup_that_reads_files() {
    an_interrupt_ends_the_uploads_of_a_backup(40);
}

#[test]
fn an_interrupt_ends_the_last_uploads_of_a_backup() {
    an_interrupt_ends_the_uploads_of_a_backup(80);
}

#[test]
fn a_read_only_account_can_restore_and_not_back_up() {
    let mut remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.stop();
    remote.server.configure("-R");
    remote.server.start_again();
    remote.can_be_read_and_not_written("denies permission");
}

#[test]
fn a_full_disk_on_the_server_ends_a_backup_at_once() {
    RemoteSite::new(Server::start(), &borrowed(&many(6))).a_full_disk_ends_a_backup("the server's disk is full");
}

#[test]
fn a_full_disk_of_the_spool_is_named_and_ends_a_backup_at_once() {
    let remote = ready(&borrowed(&many(4)));
    let spool = remote.site.state().join("spool");
    fs::create_dir_all(&spool).unwrap();
    mount_tmpfs(&spool, c"size=8m");
    let full = remote.backup(&[]);
    assert!(Command::new("umount").arg(&spool).status().unwrap().success());
    let full = full.code(1);
    assert!(full.stderr.contains(&format!("cannot write a temporary file in {}", spool.display())), "{full}");
    assert!(full.stderr.contains("free some space") && !full.stderr.contains("waiting for"), "{full}");
    remote.backup(&[]).ok();
    remote.restores();
}

#[test]
fn a_killed_backup_leaves_nothing_partial_and_its_temporaries_are_removed() {
    assert!(ready(&borrowed(&many(2))).a_killed_backup_leaves_nothing() > 0, "the kill hit no upload");
}

#[test]
fn an_interrupt_ends_a_wait_and_ssh_in_order() {
    let mut remote = ready(&borrowed(&many(2)));
    let mut backup = remote.begin_slow_backup();
    backup.until("a pack is uploaded", |_| remote.server.is_receiving());
    remote.server.stop();
    backup.until("the backup waits", |backup| backup.said().contains("waiting for"));
    backup.send(Signal::INT);
    let code = ended(&mut backup.child).code();
    assert!(matches!(code, Some(1 | 130)), "{code:?}: {}", backup.said());
    remote.server.start_again();
    remote.backup(&[]).ok();
    remote.restores();
}

#[test]
fn an_interrupt_ends_a_wait_for_a_server_that_freezes() {
    let remote = ready(&borrowed(&many(2)));
    remote.an_interrupt_ends_a_wait_for_a_silent_server(|| remote.server.freeze());
    remote.server.cut();
    remote.backup(&[]).ok();
    remote.is_whole();
}
