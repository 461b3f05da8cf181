//! Repositories on an SFTP server, through the real program and a real OpenSSH: a whole round, a server that is cut off,
//! stopped, frozen, full, read-only or another one, and killed runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::backup::{Options, Selection, back_up};
use brackfs::monitor::Silent;
use brackfs::repository::Repository;
use brackfs::storage::{self, Interrupt, Limit, Rates, RetryPolicy, RetryStorage, Waiting};
use common::machine::mount_tmpfs;
use common::remote::{files_below, is_temporary, length, packs_below};
use common::sftp::Server;
use common::{Run, Site, age, noise, run, settle, tree};
use rustix::io::Errno;
use rustix::process::Signal;

const MIB: usize = 1 << 20;

/// A site whose repository is on a server. Fields are dropped in this order: nothing may use the server at its end.
struct Remote {
    site: Site,
    server: Server,
}

impl Remote {
    /// A site with these files, and without a repository.
    fn new(files: &[(&str, Vec<u8>)]) -> Remote {
        let site = Site::with_files(files);
        site.key("rfc9580");
        Remote { site, server: Server::start() }
    }

    /// The same with a repository.
    fn ready(files: &[(&str, Vec<u8>)]) -> Remote {
        let remote = Remote::new(files);
        remote.init().ok();
        remote
    }

    /// After two machines with one state wrote, data is whole. The user decides for one of them, which removes the leftovers.
    #[track_caller]
    fn goes_on_after_a_race(&self) {
        self.brackfs(&["check", "--read-data"]).ok();
        self.brackfs(&["adopt"]).ok();
        self.backup(&[]).ok();
        self.brackfs(&["check", "--read-data"]).ok();
        self.holds();
    }

    fn repo(&self) -> PathBuf {
        self.server.data().join("repo")
    }

    fn url(&self) -> String {
        self.server.url(&self.repo())
    }

    fn init(&self) -> Run {
        let certificate = self.site.keys().join("owner.pub");
        self.brackfs(&["init", &self.url(), "--recipient", certificate.to_str().unwrap()])
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        command.env("BRACKFS_REPOSITORY", self.url()).env("BRACKFS_SSH", self.server.ssh());
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

    /// Copies the state, as a clone of the machine has it.
    fn clone_state(&self, clone: &Path) {
        let _ = fs::remove_dir_all(clone);
        assert!(Command::new("cp").arg("-a").args([&self.site.state(), clone]).status().unwrap().success());
    }

    /// A command under way with this state.
    fn begin_as(&self, state: &Path, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.env("BRACKFS_STATE_DIR", state).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// The messages of the backup under way.
    fn said(&self) -> String {
        fs::read_to_string(self.site.path().join("messages")).unwrap()
    }

    /// Restores the newest snapshot and compares it with the source.
    fn holds(&self) {
        let out = self.site.path().join("out");
        self.brackfs(&["restore", "latest", "--to", out.to_str().unwrap()]).ok();
        assert!(tree(&out) == tree(&self.site.source()), "the restored files differ");
        fs::remove_dir_all(out).unwrap();
    }

    /// Temporary files of uploads.
    fn temporary_files(&self) -> Vec<PathBuf> {
        files_below(&self.repo()).into_iter().filter(|path| is_temporary(path)).collect()
    }

    fn packs(&self) -> usize {
        packs_below(&self.repo()).len()
    }

    /// Cuts all connections in the middle of the upload of a pack, other than those of `cut`, which gets its temporary file.
    fn cut_an_upload(&self, cut: &mut Vec<PathBuf>) {
        until("an upload is cut", || {
            let is_new = |path: &PathBuf| path.starts_with(self.repo().join("packs")) && !cut.contains(path);
            let uploads: Vec<_> = self.temporary_files().into_iter().filter(is_new).collect();
            if !uploads.iter().any(|upload| length(upload) > 0) {
                return false;
            }
            self.server.cut();
            // No session is left, so an upload that has not ended yet never does.
            let unfinished = uploads.into_iter().find(|upload| (1..MIB as u64 * 12).contains(&length(upload)));
            unfinished.map(|upload| cut.push(upload)).is_some()
        });
    }
}

/// Waits for a run. Returns whether it was stopped because of another machine with the same state.
fn is_stopped(run: Child) -> bool {
    let run = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    match run.status.code() {
        Some(0) => false,
        Some(1) => {
            let is_rival = said.contains("another machine") && said.contains("brackfs adopt");
            // A prune may also find that the repository is not as it was.
            assert!(is_rival || said.contains("nothing was removed"), "{said}");
            true
        }
        other => panic!("{other:?}: {said}"),
    }
}

/// Files of random bytes: many packs.
fn many(prefix: &str, count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|at| (format!("{prefix}{at}"), noise(&format!("{prefix}{at}"), 8 * MIB))).collect()
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

#[test]
fn a_whole_round_works_as_on_a_directory() {
    let remote = Remote::ready(&[("file", b"content".to_vec()), ("large", noise("large", 20 * MIB))]);
    remote.backup(&[]).ok();
    remote.holds();
    remote.site.write("new", noise("new", MIB));
    fs::remove_file(remote.site.source().join("large")).unwrap();
    age(&remote.site.source());
    settle();
    remote.backup(&[]).ok();
    remote.holds();
    assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 2);
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.brackfs(&["catalog", "verify"]).ok();

    let mnt = remote.site.mnt();
    remote.brackfs(&["mount", mnt.to_str().unwrap()]).ok();
    let copy = remote.site.path().join("copy");
    let from = mnt.join("source/latest/.");
    assert!(Command::new("cp").arg("-a").args([&from, &copy]).status().unwrap().success());
    assert!(tree(&copy) == tree(&remote.site.source()));
    remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();

    let before = remote.packs();
    remote.brackfs(&["forget", "--keep-last", "1"]).ok();
    remote.brackfs(&["prune", "--grace", "0"]).ok();
    assert!(remote.packs() < before, "{before} packs before, {} after", remote.packs());
    assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 1);
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
    // Nothing of the spool is left either.
    assert_eq!(fs::read_dir(remote.site.state().join("spool")).unwrap().count(), 0);
}

#[test]
fn a_repository_moves_from_a_directory_to_a_server() {
    let remote = Remote::new(&[("file", noise("file", MIB))]);
    remote.site.init();
    remote.site.backup(&[]).ok();
    assert!(Command::new("cp").arg("-a").args([remote.site.repo(), remote.repo()]).status().unwrap().success());
    assert!(Command::new("chown").args(["-R", "nobody"]).arg(remote.repo()).status().unwrap().success());
    let summary = remote.backup(&[]).ok().json();
    assert_eq!(summary["bytes_read"], 0, "the catalog is used: {summary}");
    remote.holds();
}

#[test]
fn init_accepts_only_an_empty_directory() {
    let remote = Remote::new(&[]);
    fs::create_dir(remote.repo()).unwrap();
    fs::write(remote.repo().join("mine"), "mine").unwrap();
    let refused = remote.init().code(1);
    assert!(refused.stderr.contains("not empty"), "{refused}");
    fs::remove_file(remote.repo().join("mine")).unwrap();
    std::os::unix::fs::chown(remote.repo(), Some(common::NOBODY), None).unwrap();
    remote.init().ok();
    let again = remote.init().code(1);
    assert!(again.stderr.contains("already"), "{again}");
    // Another path on the same server has none.
    let missing = run({
        let mut command = remote.command(&["snapshots"]);
        command.env("BRACKFS_REPOSITORY", remote.server.url(&remote.server.data().join("none")));
        command
    });
    assert!(missing.code(10).stderr.contains("no such file"));
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
    let remote = Remote::ready(&borrowed(&many("file", 8)));
    let mut backup = remote.begin_backup(&["--connections", "2", "--limit-upload", "16MiB"]);
    let mut most = 0;
    let program = format!("{} -o", remote.server.ssh());
    let secret = fs::read_to_string(remote.server.key()).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    while backup.try_wait().unwrap().is_none() {
        let shown = Command::new("ps").args(["-eo", "args"]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let is_ours = |line: &&str| line.starts_with(&program) && line.contains("-s -- 127.0.0.1 sftp");
        most = most.max(shown.lines().filter(is_ours).count());
        assert!(!shown.contains(secret));
    }
    assert_eq!(most, 2);
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
}

#[test]
fn a_changed_host_key_ends_a_command_at_once() {
    let mut remote = Remote::ready(&[("file", b"content".to_vec())]);
    remote.server.stop();
    remote.server.new_host_key();
    remote.server.start_again();
    let start = Instant::now();
    let refused = remote.backup(&[]).code(1);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
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
    let remote = Remote::ready(&[("file", b"content".to_vec())]);
    remote.server.refuse_logins();
    let start = Instant::now();
    let refused = remote.backup(&[]).code(1);
    assert!(refused.stderr.contains("the server refuses the login"), "{refused}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_host_key_that_changes_during_a_run_condemns_nothing() {
    let mut remote = Remote::ready(&borrowed(&many("file", 12)));
    let mut backup = remote.begin_backup(&["--limit-upload", "16MiB"]);
    until("a pack is stored", || remote.packs() > 0);
    remote.server.stop();
    remote.server.new_host_key();
    remote.server.start_again();
    assert_eq!(backup.wait().unwrap().code(), Some(1), "{}", remote.said());
    assert!(remote.said().contains("host key is not the one"), "{}", remote.said());
    remote.server.trust_host_key();
    remote.backup(&[]).ok();
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
}

#[test]
fn an_upload_that_is_cut_off_is_made_again() {
    let remote = Remote::ready(&borrowed(&many("file", 6)));
    // A pack takes more than a second.
    let mut backup = remote.begin_backup(&["--connections", "2", "--limit-upload", "16MiB"]);
    let mut cut = Vec::new();
    for _ in 0..2 {
        remote.cut_an_upload(&mut cut);
    }
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    assert!(remote.said().contains(&format!("waiting for {}", remote.url())), "{}", remote.said());
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
}

#[test]
fn a_connection_cut_while_a_restore_reads_is_made_again() {
    let remote = Remote::ready(&borrowed(&many("file", 10)));
    remote.backup(&[]).ok();
    let out = remote.site.path().join("out");
    let mut restore =
        remote.command(&["restore", "latest", "-q", "--limit-download", "40MiB", "--to", out.to_str().unwrap()]);
    let restore = restore.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the restore begins", || out.join("file0").exists());
    assert!(remote.server.cut());
    let restore = restore.wait_with_output().unwrap();
    assert!(restore.status.success() && restore.stderr.is_empty(), "{restore:?}");
    assert!(tree(&out) == tree(&remote.site.source()));
}

#[test]
fn a_backup_waits_for_a_server_that_is_restarted() {
    let mut remote = Remote::ready(&borrowed(&many("file", 10)));
    let mut backup = remote.begin_backup(&["--limit-upload", "32MiB"]);
    until("a pack is stored", || remote.packs() > 0);
    remote.server.stop();
    sleep(Duration::from_secs(2));
    remote.server.start_again();
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    assert_eq!(remote.said().matches("waiting for").count(), 1, "said once in a minute: {}", remote.said());
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
}

#[test]
fn a_mount_waits_for_a_server_that_is_restarted() {
    let large = noise("large", 30 * MIB);
    let mut remote = Remote::ready(&[("large", large.clone()), ("small", b"small".to_vec())]);
    remote.backup(&[]).ok();
    let mnt = remote.site.mnt();
    remote.brackfs(&["mount", "--cache-size", "1MiB", mnt.to_str().unwrap()]).ok();
    let file = mnt.join("source/latest/large");
    assert!(fs::read(&file).unwrap() == large);
    remote.server.stop();
    let reader = std::thread::spawn({
        let file = file.clone();
        move || fs::read(file)
    });
    sleep(Duration::from_secs(2));
    remote.server.start_again();
    assert!(reader.join().unwrap().unwrap() == large);
    assert_eq!(fs::read(mnt.join("source/latest/small")).unwrap(), b"small");
    remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();
}

#[test]
fn a_mount_whose_server_stays_away_times_out() {
    let large = noise("large", 30 * MIB);
    let mut remote = Remote::ready(&[("large", large.clone())]);
    remote.backup(&[]).ok();
    let mnt = remote.site.mnt();
    remote.brackfs(&["mount", "--cache-size", "1MiB", mnt.to_str().unwrap()]).ok();
    let file = mnt.join("source/latest/large");
    fs::metadata(&file).unwrap();
    remote.server.stop();
    let error = fs::read(&file).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::TIMEDOUT));
    remote.server.start_again();
    assert!(fs::read(&file).unwrap() == large);
    remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();
}

#[test]
fn a_server_that_freezes_is_given_up_and_the_backup_goes_on() {
    let remote = Remote::ready(&borrowed(&many("file", 6)));
    let location = remote.server.location(&remote.repo());
    let options = storage::Remote { stall: Duration::from_secs(4), ..location.remote().clone() };
    let said = Arc::new(Mutex::new(Vec::new()));
    let repository = Repository::open_wrapped(&location.with_remote(options), |storage| {
        let rates = Rates { upload: NonZeroU64::new(16 << 20), download: None };
        let [longest, first_wait, longest_wait] = [60_000, 100, 1000].map(Duration::from_millis);
        let said = said.clone();
        let note = move |waiting: &Waiting<'_>| said.lock().unwrap().push(waiting.error.to_string());
        let policy = RetryPolicy { longest, first_wait, longest_wait };
        Box::new(
            RetryStorage::new(Box::new(Limit::new(storage, rates, &Interrupt::default())), policy).with_notice(note),
        )
    });
    let repository = repository.unwrap();
    std::thread::scope(|threads| {
        let backup = threads.spawn(|| {
            let selection = Selection { paths: vec![remote.site.source()], ..Selection::default() };
            let options = Options { selection, ..Options::default() };
            back_up(&repository, &remote.site.state(), &options, &Silent, &AtomicBool::new(false))
        });
        until("a pack is stored", || remote.packs() > 0);
        remote.server.freeze(Signal::STOP);
        assert_eq!(backup.join().unwrap().unwrap().problems, 0);
    });
    drop(repository);
    let said = said.lock().unwrap();
    assert!(said.iter().any(|said| said.contains("the server was silent for 4 s")), "{said:?}");
    // The frozen sessions.
    remote.server.cut();
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
}

#[test]
fn two_machines_with_one_state_that_write_at_the_same_time_harm_nothing() {
    let remote = Remote::ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let clone = remote.site.path().join("clone");
    let (mut stopped, mut ended) = (0, 0);
    for round in 0..4 {
        remote.clone_state(&clone);
        remote.site.write("changing", noise(&format!("round {round}"), 20 * MIB));
        age(&remote.site.source());
        settle();
        let arguments = ["backup", &remote.source(), "--limit-upload", "20MiB"];
        let runs = [remote.site.state(), clone.clone()].map(|state| remote.begin_as(&state, &arguments));
        let are_stopped = runs.map(is_stopped);
        assert!(are_stopped.contains(&true), "both wrote");
        stopped += are_stopped.iter().filter(|is_stopped| **is_stopped).count();
        ended += are_stopped.iter().filter(|is_stopped| !**is_stopped).count();
        remote.goes_on_after_a_race();
    }
    println!("{stopped} runs stopped, {ended} ended");
    remote.brackfs(&["forget", "--keep-last", "1", "--force"]).ok();
    remote.backup(&[]).ok();
    remote.brackfs(&["prune", "--grace", "0"]).ok();
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
}

#[test]
fn a_clone_that_prunes_during_a_backup_removes_nothing_that_the_backup_needs() {
    let remote = Remote::ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let clone = remote.site.path().join("clone");
    let (mut stopped, mut ended) = (0, 0);
    for round in 0..6u64 {
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
        for is_stopped in [prune, backup].map(is_stopped) {
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
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
}

#[test]
fn an_interrupt_ends_a_backup_with_a_low_rate() {
    let remote = Remote::ready(&borrowed(&many("file", 3)));
    let mut backup = remote.begin_backup(&["--limit-upload", "10KiB"]);
    until("an upload begins", || !remote.temporary_files().is_empty());
    let start = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&backup), Signal::INT).unwrap();
    assert_eq!(backup.wait().unwrap().code(), Some(130), "{}", remote.said());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    remote.backup(&[]).ok();
    remote.holds();
}

#[test]
fn a_read_only_account_can_restore_and_not_back_up() {
    let mut remote = Remote::ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.stop();
    remote.server.configure("-R");
    remote.server.start_again();
    remote.holds();
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.site.write("new", "new");
    settle();
    let start = Instant::now();
    let refused = remote.backup(&[]).code(1);
    assert!(refused.stderr.contains("denies permission"), "{refused}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn a_full_disk_on_the_server_ends_a_backup_at_once() {
    let remote = Remote::new(&borrowed(&many("file", 6)));
    fs::create_dir(remote.repo()).unwrap();
    mount_tmpfs(&remote.repo(), c"size=24m,mode=777");
    remote.init().ok();
    let start = Instant::now();
    let full = remote.backup(&[]).code(1);
    assert!(full.stderr.contains("the server's disk is full"), "{full}");
    assert!(!full.stderr.contains("waiting for"), "{full}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // Temporary files are removed, so that something fits again.
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
    for at in 1..6 {
        fs::remove_file(remote.site.source().join(format!("file{at}"))).unwrap();
    }
    settle();
    remote.backup(&[]).ok();
    remote.holds();
}

#[test]
fn a_full_disk_of_the_spool_is_named_and_ends_a_backup_at_once() {
    let remote = Remote::ready(&borrowed(&many("file", 4)));
    let spool = remote.site.state().join("spool");
    fs::create_dir_all(&spool).unwrap();
    mount_tmpfs(&spool, c"size=8m");
    let full = remote.backup(&[]);
    assert!(Command::new("umount").arg(&spool).status().unwrap().success());
    let full = full.code(1);
    assert!(full.stderr.contains(&format!("cannot write a temporary file in {}", spool.display())), "{full}");
    assert!(full.stderr.contains("free some space") && !full.stderr.contains("waiting for"), "{full}");
    remote.backup(&[]).ok();
    remote.holds();
}

#[test]
fn a_killed_backup_leaves_nothing_partial_and_its_temporaries_are_removed() {
    let remote = Remote::ready(&borrowed(&many("file", 8)));
    let mut killed = 0;
    for _ in 0..4 {
        let mut backup = remote.begin_backup(&["--connections", "2"]);
        until("an upload is under way", || {
            !remote.temporary_files().is_empty() || backup.try_wait().unwrap().is_some()
        });
        backup.kill().unwrap();
        backup.wait().unwrap();
        remote.server.wait_for_sessions(0);
        if !remote.temporary_files().is_empty() {
            killed += 1;
        }
        if killed > 0 {
            break;
        }
    }
    assert!(killed > 0, "no kill hit an upload");
    let before = remote.packs();
    remote.backup(&[]).ok();
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
    assert!(remote.packs() >= before.min(1));
    remote.brackfs(&["check", "--read-data"]).ok();
    remote.holds();
}

#[test]
fn an_interrupt_ends_a_wait_and_ssh_in_order() {
    let mut remote = Remote::ready(&borrowed(&many("file", 8)));
    let mut backup = remote.begin_backup(&["--limit-upload", "32MiB"]);
    until("a pack is stored", || remote.packs() > 0);
    remote.server.stop();
    until("the backup waits", || remote.said().contains("waiting for"));
    let start = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&backup), Signal::INT).unwrap();
    let code = backup.wait().unwrap().code();
    assert!(matches!(code, Some(1 | 130)), "{code:?}: {}", remote.said());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    remote.server.start_again();
    remote.backup(&[]).ok();
    remote.holds();
}
