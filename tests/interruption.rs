//! A backup is interrupted, suspended, or loses its terminal or pipes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{File, write};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::Site;
use common::ordeal::{Ordeal, Random, objects, rounds};
use common::silent::Silent;
use common::wait::{ended, send, threads, until, until_delivered, until_it_waits_for_fuse};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// A source that needs several packs.
fn large(name: &str) -> Ordeal {
    of_files(name, 160, 300 << 10)
}

/// The same with more files of `length` bytes.
fn of_files(name: &str, files: u64, length: u64) -> Ordeal {
    let mut ordeal = Ordeal::new(Random::new(1, name), 1);
    for _ in 0..files {
        ordeal.make(1, length);
    }
    common::settle();
    ordeal
}

/// The command of a backup that commits only at its end.
fn backup(ordeal: &Ordeal, extra: &[&str]) -> Command {
    let source = ordeal.site.source().display().to_string();
    let mut command = ordeal.site.command(&[&["backup", &source], extra].concat());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn packs(ordeal: &Ordeal) -> usize {
    objects(&ordeal.site.repo()).iter().filter(|name| name.starts_with("packs/")).count()
}

/// Waits until a backup has stored another pack.
fn wait_for_pack(ordeal: &Ordeal, child: &mut Child, before: usize) {
    until("a pack is stored", || {
        assert!(child.try_wait().expect("waiting").is_none(), "the backup ended too early");
        packs(ordeal) > before
    });
}

/// Waits for the end; returns the status and the messages.
#[track_caller]
fn end(mut child: Child) -> (ExitStatus, String) {
    let status = ended(&mut child);
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut said).expect("messages");
    }
    (status, said)
}

#[test]
fn data_of_an_interrupted_backup_is_not_stored_again() {
    // With many small files, the walk still runs when the first pack is stored; with fewer large ones it has finished.
    for (signal, files, length) in
        [(Signal::INT, 160, 300 << 10), (Signal::TERM, 48, 1 << 20), (Signal::HUP, 160, 300 << 10)]
    {
        let mut ordeal = of_files("interrupted", files, length);
        let (before, committed) = (packs(&ordeal), ordeal.committed());
        let mut child = backup(&ordeal, &[]).spawn().expect("a backup");
        wait_for_pack(&ordeal, &mut child, before);
        send(&child, signal);
        let (status, said) = end(child);
        assert_eq!(status.code(), Some(130), "{signal:?}: {said}");
        assert!(said.contains("the next backup continues from there"), "{said}");
        let kept = ordeal.committed() - committed;
        assert!(kept >= 16 << 20, "a pack was stored, but {kept} bytes are known");
        // Asserts that the rest is stored once.
        ordeal.holds();
    }
}

#[test]
fn a_second_interrupt_ends_a_backup_at_once_and_loses_nothing() {
    let mut ordeal = of_files("interrupted twice", 640, 300 << 10);
    let before = packs(&ordeal);
    let mut child = backup(&ordeal, &["--json"]).spawn().expect("a backup");
    wait_for_pack(&ordeal, &mut child, before);
    // The repository stops answering, so the first signal cannot end the backup soon.
    send(&child, Signal::STOP);
    until("it is stopped", || is_stopped(&child));
    let silent = Silent::mount(&ordeal.site.repo().join("packs"));
    send(&child, Signal::CONT);
    until_it_waits_for_fuse(&mut child);
    send(&child, Signal::INT);
    until_delivered(&child, Signal::INT);
    sleep(Duration::from_secs(1));
    assert!(child.try_wait().expect("waiting").is_none(), "the first signal ended it");
    send(&child, Signal::INT);
    let (status, said) = end(child);
    assert_eq!(status.code(), Some(130), "{said}");
    // Otherwise the time limit of the first signal ended it.
    assert!(!said.contains("did not end within"), "{said}");
    assert_exit_error(&said, "interrupted by a second signal");
    drop(silent);
    assert!(ordeal.snapshots().len() == 1, "an interrupted backup made a snapshot");
    // Uncommitted data is stored again, so do not check that.
    ordeal.memory.forget_what_is_new();
    ordeal.holds();
}

/// Asserts that the last line of a command with --json says why it ended.
#[track_caller]
fn assert_exit_error(said: &str, why: &str) {
    let last: serde_json::Value = serde_json::from_str(said.lines().last().expect("a line")).expect(said);
    let expected = serde_json::json!({ "message_type": "exit_error", "code": 130, "message": why });
    assert_eq!(last, expected, "{said}");
}

#[test]
fn an_interrupt_ends_a_command_that_only_reads_at_once() {
    let ordeal = of_files("read", 3, 1 << 10);
    let folder = ordeal.site.repo().join("snapshots");
    for arguments in [&["find", "*"][..], &["ls", "latest"], &["versions", "x"], &["dump", "latest"]] {
        // It waits for the repository.
        let silent = Silent::mount(&hidden(&folder));
        for extra in [&["--json"][..], &[]] {
            if arguments[0] == "dump" && !extra.is_empty() {
                continue;
            }
            let mut command = ordeal.site.command(&[arguments, extra].concat());
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a command");
            until_it_waits_for_fuse(&mut child);
            send(&child, Signal::INT);
            let (status, said) = end(child);
            assert_eq!(status.code(), Some(130), "{said}");
            match extra.is_empty() {
                true => assert_eq!(said, ""),
                false => assert_exit_error(&said, "interrupted"),
            }
        }
        drop(silent);
    }
}

/// Moves the content of a folder aside, so that it can be a mount point.
fn hidden(folder: &Path) -> PathBuf {
    let aside = folder.with_extension("aside");
    if !aside.exists() {
        std::fs::rename(folder, &aside).expect("moving a folder");
        std::fs::create_dir(folder).expect("a folder");
    }
    folder.to_owned()
}

#[test]
fn a_hangup_that_is_ignored_does_not_end_a_backup() {
    let mut ordeal = large("nohup");
    let before = packs(&ordeal);
    let inner = backup(&ordeal, &[]);
    let mut command = Command::new("nohup");
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a backup");
    wait_for_pack(&ordeal, &mut child, before);
    send(&child, Signal::HUP);
    let (status, said) = end(child);
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(ordeal.snapshots().len(), 2);
    ordeal.holds();
}

/// A run with one target and one source. `at` is the target's host and port.
fn run_to(site: &Site, url: &str, at: &str) -> Command {
    let repository = match url {
        "s3" => format!("repository = \"s3://bucket/repo\"\nendpoint = \"http://{at}\""),
        url => format!("repository = \"{}\"", url.replace("AT", at)),
    };
    let source = site.source().display().to_string();
    let config = site.path().join("config.toml");
    let text = format!("[target.t]\n{repository}\n[source.s]\npaths = [\"{source}\"]\nto = [\"t\"]\n");
    write(&config, text).expect("the configuration");
    let mut run = site.command(&["run"]);
    run.env("BRACKFS_CONFIG", config).env("AWS_ACCESS_KEY_ID", "id").env("AWS_SECRET_ACCESS_KEY", "secret");
    run.env("FTP_PASSWORD", "secret").stdout(Stdio::null()).stderr(Stdio::piped());
    run
}

/// A run that waits for a server. It is killed if the test fails.
struct Waiting(Option<Child>);

impl Waiting {
    fn start(mut command: Command) -> Self {
        Waiting(Some(command.spawn().expect("a run")))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asserts that one signal ends a run soon that waits for a server.
#[track_caller]
fn assert_ends(mut waiting: Waiting, url: &str) {
    let begun = Instant::now();
    let child = waiting.0.take().expect("a run");
    send(&child, Signal::TERM);
    let (status, said) = end(child);
    assert_eq!(status.code(), Some(130), "{url}: {said}");
    assert!(said.contains("interrupted: ") && !said.contains("waiting for"), "{url}: {said}");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{url}: {took:?}");
}

#[test]
fn one_signal_ends_a_run_that_waits_for_a_server_that_says_nothing() {
    for url in
        ["sftp://AT/repo", "ftp://me@AT/repo", "ftps://me@AT/repo", "webdav://AT/repo", "webdavs://AT/repo", "s3"]
    {
        let site = Site::with_files(&[("file", "content")]);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("an address").to_string();
        listener.set_nonblocking(true).expect("a listener that does not block");
        let run = Waiting::start(run_to(&site, url, &at));
        let mut connection = None;
        until("it connects", || {
            connection = listener.accept().ok();
            connection.is_some()
        });
        assert_ends(run, url);
    }
}

#[test]
fn one_signal_ends_a_run_that_waits_for_a_connection() {
    for url in ["ftp://me@AT/repo", "webdav://AT/repo", "s3"] {
        let site = Site::with_files(&[("file", "content")]);
        // The kernel drops attempts to connect while connections wait to be accepted.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        rustix::net::listen(&listener, 0).expect("a short queue");
        let at = listener.local_addr().expect("an address");
        let connect = || TcpStream::connect_timeout(&at, Duration::from_secs(1)).ok();
        let _waiting: Vec<_> = std::iter::from_fn(connect).collect();
        let is_trying = |port: u16| {
            let attempt = format!(":{port:04X} 02 ");
            std::fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.contains(&attempt))
        };
        // Those of this test.
        until("no attempt is left", || !is_trying(at.port()));
        let run = Waiting::start(run_to(&site, url, &at.to_string()));
        until("it connects", || is_trying(at.port()));
        assert_ends(run, url);
    }
}

#[test]
fn one_signal_ends_a_run_that_looks_up_a_name() {
    for url in ["ftp://me@AT/repo", "webdav://AT/repo", "s3"] {
        let site = Site::with_files(&[("file", "content")]);
        // Name servers have port 53. Another suite may use some of the addresses.
        let free = |last| UdpSocket::bind((Ipv4Addr::new(127, 0, 88, last), 53)).ok();
        let resolver = (1..=250).find_map(free).expect("an address for a name server");
        resolver.set_nonblocking(true).expect("a socket that does not block");
        let address = resolver.local_addr().expect("an address").ip();
        let servers = site.path().join("resolv.conf");
        write(&servers, format!("nameserver {address}\noptions timeout:30\n")).expect("a list of name servers");
        let run = run_to(&site, url, "server.test:12345");
        let mut command = common::in_mount_namespace("sh");
        command.args(["-c", r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#]).arg(servers);
        command.arg(run.get_program()).args(run.get_args());
        for (name, value) in run.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let run = Waiting::start(command);
        until("it asks", || resolver.recv(&mut [0; 512]).is_ok());
        assert_ends(run, url);
    }
}

#[test]
fn an_interrupt_at_any_moment_loses_nothing() {
    rounds("interrupts", 6, |random| {
        let mut ordeal = Ordeal::new(random, 1);
        for _ in 0..3 {
            ordeal.change();
            let mut command = ordeal.command();
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a backup");
            sleep(Duration::from_millis(ordeal.random.below(120)));
            if child.try_wait().expect("waiting").is_none() {
                send(&child, *ordeal.random.choose(&[Signal::INT, Signal::TERM, Signal::HUP]));
            }
            let (status, said) = end(child);
            // A signal before the handlers are installed ends it, like any program.
            let ended = status.code().is_none();
            assert!(ended || matches!(status.code(), Some(0 | 130)), "{status}: {said}");
            ordeal.look();
        }
        ordeal.holds();
    });
}

#[test]
fn a_suspended_backup_continues() {
    for signal in [Signal::TSTP, Signal::STOP] {
        let mut ordeal = large("suspended");
        let before = packs(&ordeal);
        // In its own process group, as in a shell.
        let mut child = backup(&ordeal, &[]).process_group(0).spawn().expect("a backup");
        wait_for_pack(&ordeal, &mut child, before);
        send(&child, signal);
        until("it is stopped", || is_stopped(&child));
        let stored = objects(&ordeal.site.repo());
        // A reader sees all finished snapshots in the meantime.
        ordeal.holds_so_far();
        assert_eq!(objects(&ordeal.site.repo()), stored, "something is stored while it is suspended");
        send(&child, Signal::CONT);
        let (status, said) = end(child);
        assert_eq!(status.code(), Some(0), "{said}");
        assert_eq!(ordeal.snapshots().len(), 2);
        ordeal.holds();
    }
}

/// Whether all threads are stopped.
fn is_stopped(child: &Child) -> bool {
    let threads = threads(child.id(), "stat");
    threads.iter().all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
}

#[test]
fn a_backup_finishes_after_its_outputs_are_closed() {
    for arguments in [["--json", "-v"].as_slice(), &["--json"], &["-v"]] {
        let mut ordeal = large("nobody listens");
        let before = packs(&ordeal);
        let mut command = backup(&ordeal, arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a backup");
        // While it runs, close both of its outputs.
        let mut first = [0; 1];
        if arguments.len() == 2 {
            child.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("a byte");
        }
        drop((child.stdout.take(), child.stderr.take()));
        let (status, _) = end(child);
        assert!(status.code().is_some(), "it was ended by a signal: {status}");
        assert_eq!(ordeal.snapshots().len(), 2, "{arguments:?}: no snapshot was made ({status})");
        assert!(packs(&ordeal) > before);
        ordeal.holds();
    }
}

#[test]
fn a_hangup_of_the_terminal_ends_a_backup_and_keeps_stored_data() {
    // Enough that it does not end while a busy machine lets this test wait.
    let mut ordeal = of_files("hung up", 640, 300 << 10);
    let (before, committed) = (packs(&ordeal), ordeal.committed());
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("a terminal");
    let name = ptsname(&ours, Vec::new()).expect("its name");
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let theirs: File = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).expect("its other side").into();
    let inner = backup(&ordeal, &[]);
    // It gets the terminal as its controlling terminal.
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--fork", "--wait"]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let other = || theirs.try_clone().expect("another handle");
    let mut child = command.stdin(other()).stdout(other()).stderr(other()).spawn().expect("a backup");
    drop((command, theirs));
    wait_for_pack(&ordeal, &mut child, before);
    drop(ours);
    let (status, _) = end(child);
    assert_eq!(status.code(), Some(130));
    assert!(ordeal.committed() - committed >= 16 << 20, "a pack was stored, and is not known");
    ordeal.holds();
}
