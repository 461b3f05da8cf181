//! `brackfs setup`: with options and on a terminal, without systemd and with a systemd that only notes what it is told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::wait::ended;
use common::{Run, Site, in_mount_namespace, run, tree};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

fn site() -> Site {
    let site = Site::with_files(&[("docs/one", "one"), ("two", "two")]);
    site.key("rfc9580");
    site
}

fn config(site: &Site) -> PathBuf {
    site.path().join("etc/config.toml")
}

fn command(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.command(arguments);
    command.env("BRACKFS_CONFIG", config(site)).env_remove("BRACKFS_REPOSITORY").env_remove("BRACKFS_KEY_FILE");
    command
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// The options that answer all questions.
fn answers(site: &Site) -> Vec<String> {
    let (source, certificate) = (site.source(), site.keys().join("owner.pub"));
    let [source, repo, certificate] = [source, site.repo(), certificate].map(|path| path.display().to_string());
    ["setup", "--path", &source, "--to", &repo, "--recipient", &certificate, "--when", "daily", "--yes"]
        .map(str::to_owned)
        .into()
}

fn setup(site: &Site, arguments: &[String]) -> Run {
    run(command(site, &arguments.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn restores(site: &Site, environment: &[(&str, &str)]) {
    let out = site.path().join("out");
    let mut command = command(site, &["restore", "latest", "--to", out.to_str().unwrap()]);
    run({
        command.envs(environment.iter().copied());
        command
    })
    .ok();
    assert_eq!(tree(&out), tree(&site.source()));
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn options_answer_all_questions_and_a_second_run_changes_nothing() {
    let site = site();
    let run = setup(&site, &answers(&site)).ok();
    let cron = format!("17 3 * * *  {} run", env!("CARGO_BIN_EXE_brackfs"));
    for text in ["\nKEEP THIS", "\nHost key ", "\nSecret key ", &cron, "\n  brackfs restore latest"] {
        assert!(run.stdout.contains(text), "{text}\n{run}");
    }
    // No line break is escaped.
    assert!(!run.stdout.contains('\\'), "{run}");
    assert_eq!(fs::metadata(config(&site)).unwrap().permissions().mode() & 0o777, 0o600);
    common::run(command(&site, &["config", "check"])).ok();
    let owner = site.keys().join("owner");
    restores(&site, &[("BRACKFS_KEY_FILE", owner.to_str().unwrap())]);
    let before = [tree(&site.repo()), tree(&site.path().join("etc"))];
    // Neither with the options nor without them.
    for arguments in [answers(&site), vec!["setup".to_owned()]] {
        let again = setup(&site, &arguments).ok();
        assert!(again.stderr.contains("everything is set up already"), "{again}");
        for kept in ["kept: the configuration", "kept: the repository", "kept: the backups"] {
            assert!(again.stderr.contains(kept), "{kept}\n{again}");
        }
        assert!(again.stdout.contains("KEEP THIS"), "{again}");
        assert_eq!([tree(&site.repo()), tree(&site.path().join("etc"))], before);
    }
}

#[test]
fn what_a_failed_setup_left_is_used_by_the_next_one() {
    let site = site();
    site.write("more", "more");
    fs::create_dir(site.repo()).unwrap();
    fs::write(site.repo().join("in the way"), "").unwrap();
    let failed = setup(&site, &answers(&site)).code(1);
    assert!(failed.stderr.contains("not empty"), "{failed}");
    fs::remove_file(site.repo().join("in the way")).unwrap();
    let run = setup(&site, &answers(&site)).ok();
    assert!(run.stderr.contains("kept: the configuration") && run.stderr.contains("to do: make a repository"), "{run}");
    // A repository of another machine is refused, before anything is written.
    fs::rename(site.state(), site.path().join("other-state")).unwrap();
    let refused = setup(&site, &answers(&site)).code(1);
    assert!(refused.stderr.contains("brackfs adopt") && !site.state().exists(), "{refused}");
}

#[test]
fn without_a_terminal_each_missing_option_is_named() {
    let site = site();
    let all = answers(&site);
    for (flag, length) in [("--path", 2), ("--to", 2), ("--recipient", 2), ("--yes", 1)] {
        let mut some = all.clone();
        let at = some.iter().position(|word| word == flag).unwrap();
        some.drain(at..at + length);
        let run = setup(&site, &some).code(2);
        assert!(run.stderr.contains(&format!("give {flag}")) || run.stderr.contains(&format!("or {flag}")), "{run}");
        assert!(!config(&site).exists() && !site.repo().exists() && is_empty(&site.state()));
    }
    // Wrong answers.
    for (flag, wrong, code) in [
        ("--path", "/nonexistent", 2),
        ("--to", "sftp://", 2),
        ("--when", "sometimes", 2),
        ("--recipient", "/nonexistent", 1),
    ] {
        let mut some = all.clone();
        let at = some.iter().position(|word| word == flag).unwrap();
        some[at + 1] = wrong.to_owned();
        let run = setup(&site, &some).code(code);
        assert!(!config(&site).exists() && !site.repo().exists(), "{run}");
    }
}

#[test]
fn a_dry_run_changes_nothing() {
    let site = site();
    let mut arguments = answers(&site);
    *arguments.last_mut().unwrap() = "--dry-run".to_owned();
    let run = setup(&site, &arguments).ok();
    assert!(run.stderr.contains("to do: write the configuration") && run.stdout.contains("[target.disk]"), "{run}");
    assert!(run.stderr.contains("is on the same disk as"), "{run}");
    assert!(!site.path().join("etc").exists() && !site.repo().exists() && is_empty(&site.state()));
}

/// A pseudoterminal: the side of the test, and the side of the program.
fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    (ours.into(), rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap())
}

/// Runs setup on a terminal. Each answer is typed after its question. Returns what the terminal showed, and the exit code.
fn talk(site: &Site, arguments: &[&str], answers: &[(&str, &str)]) -> (String, i32) {
    let (mut screen, theirs) = terminal();
    let inner = command(site, &[&["setup"], arguments].concat());
    let mut command = Command::new("setsid");
    command
        .args(["--ctty", "--fork", "--wait"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(site.path());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let ends = [(); 2].map(|()| theirs.try_clone().unwrap());
    let [stdin, stdout] = ends.map(Stdio::from);
    let mut child = command.env("TERM", "dumb").stdin(stdin).stdout(stdout).stderr(theirs).spawn().unwrap();
    drop(command);
    let (mut seen, mut some, mut read) = (Vec::new(), [0; 4096], 0);
    let mut typed = screen.try_clone().unwrap();
    let mut next = |seen: &mut Vec<u8>| match screen.read(&mut some) {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            seen.extend_from_slice(&some[..length]);
            true
        }
    };
    for (question, answer) in answers {
        while !String::from_utf8_lossy(&seen[read..]).contains(question) {
            assert!(next(&mut seen), "no {question}: {}", String::from_utf8_lossy(&seen));
        }
        read = seen.len();
        typed.write_all(format!("{answer}\n").as_bytes()).unwrap();
    }
    while next(&mut seen) {}
    (String::from_utf8_lossy(&seen).into_owned(), ended(&mut child).code().unwrap())
}

#[test]
fn questions_on_a_terminal_are_asked_again_until_the_answer_makes_sense() {
    let site = site();
    let [source, repo] = [site.source(), site.repo()].map(|path| path.display().to_string());
    let (screen, code) = talk(
        &site,
        &[],
        &[
            ("What to back up?", "/nonexistent"),
            ("cannot back up /nonexistent", &source),
            ("sftp://USER@HOST/PATH", "nonsense://x"),
            ("sftp://USER@HOST/PATH", &repo),
            ("A number [1]", "7"),
            ("A number [1]", ""),
            ("Passphrase for the backups", "secret"),
            ("Repeat the passphrase", "other"),
            ("Passphrase for the backups", "secret"),
            ("Repeat the passphrase", "secret"),
            ("Go ahead?", "y"),
        ],
    );
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains("KEEP THIS") && screen.contains("Passphrase   ____"), "{screen}");
    restores(&site, &[("BRACKFS_PASSPHRASE", "secret")]);
}

#[test]
fn nothing_is_written_if_the_last_answer_is_no() {
    let site = site();
    let [source, repo] = [site.source(), site.repo()].map(|path| path.display().to_string());
    let certificate = site.keys().join("owner.pub").display().to_string();
    let arguments = ["--path", &source, "--to", &repo];
    let (screen, code) = talk(
        &site,
        &arguments,
        &[("A number [1]", "2"), ("File with the certificate", &certificate), ("Go ahead?", "no")],
    );
    assert!(code == 0 && screen.contains("nothing was changed"), "{screen}");
    assert!(!config(&site).exists() && !site.repo().exists() && is_empty(&site.state()));
}

#[test]
fn with_systemd_the_service_gets_a_user_and_the_timer_is_enabled() {
    let site = site();
    let told = site.path().join("told");
    let bin = site.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let systemctl = bin.join("systemctl");
    // Enabled after `enable`.
    let script =
        "#!/bin/sh\necho \"$*\" >> told\ncase $1 in is-enabled) [ -e enabled ];; enable) touch enabled;; esac\n";
    fs::write(&systemctl, script).unwrap();
    fs::set_permissions(&systemctl, Permissions::from_mode(0o755)).unwrap();
    // A machine of its own: /etc, /run and /var/lib/brackfs.
    for name in ["etc-copy", "run", "lib"] {
        fs::create_dir(site.path().join(name)).unwrap();
    }
    common::machine::succeed(
        Command::new("sh")
            .args(["-c", "cp -a /etc/. etc-copy && rm -rf etc-copy/systemd/system/brackfs*"])
            .current_dir(site.path()),
    );
    let lib = ["/usr/lib/systemd/system", "/lib/systemd/system"];
    assert!(!lib.iter().any(|folder| PathBuf::from(folder).join("brackfs.service").exists()), "brackfs is installed");
    let made = !PathBuf::from("/var/lib/brackfs").exists();
    fs::create_dir_all("/var/lib/brackfs").unwrap();
    let script = "set -e
        mkdir -p run/systemd/system
        mount --bind etc-copy /etc; mount --bind run /run; mount --bind lib /var/lib/brackfs
        exec \"$@\"";
    let inside = |arguments: &[String]| {
        let inner = command(&site, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let mut command = in_mount_namespace("sh");
        command.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args()).current_dir(site.path());
        command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())).stdin(Stdio::null());
        command.env("BRACKFS_CONFIG", "/etc/brackfs/config.toml").env_remove("BRACKFS_STATE_DIR");
        for name in ["BRACKFS_REPOSITORY", "BRACKFS_KEY_FILE"] {
            command.env_remove(name);
        }
        run(command)
    };
    let mut arguments = answers(&site);
    let at = arguments.iter().position(|word| word == "daily").unwrap();
    arguments[at] = "Mon..Fri 12:30".to_owned();
    let run = inside(&arguments).ok();
    assert!(run.stderr.contains("make the user brackfs") && run.stdout.contains("journalctl -u brackfs"), "{run}");
    let etc = site.path().join("etc-copy");
    let passwd = fs::read_to_string(etc.join("passwd")).unwrap();
    let user = passwd.lines().find(|line| line.starts_with("brackfs:")).unwrap();
    let id: u32 = user.split(':').nth(2).unwrap().parse().unwrap();
    // The service can use all that was made.
    for folder in [site.path().join("lib"), site.repo()] {
        for (path, _) in tree(&folder) {
            assert_eq!(fs::symlink_metadata(folder.join(&path)).unwrap().uid(), id, "{path:?}");
        }
        assert_eq!(fs::metadata(&folder).unwrap().uid(), id);
    }
    let config = fs::metadata(etc.join("brackfs/config.toml")).unwrap();
    assert_eq!((config.uid(), config.permissions().mode() & 0o777), (0, 0o640));
    assert_ne!(config.gid(), 0);
    let unit = |name: &str| fs::read_to_string(etc.join("systemd/system").join(name)).unwrap();
    assert!(unit("brackfs.service").contains(&format!("ExecStart={} run", env!("CARGO_BIN_EXE_brackfs"))));
    assert!(unit("brackfs.service.d/config.conf").contains(&format!("ReadWritePaths=-{}", site.repo().display())));
    assert!(unit("brackfs.timer.d/when.conf").contains("OnCalendar=\nOnCalendar=Mon..Fri 12:30\n"));
    assert!(unit("brackfs.timer").contains("Persistent=true") && unit("brackfs-failed@.service").contains("sendmail"));
    let log = fs::read_to_string(&told).unwrap();
    assert!(log.contains("daemon-reload\nenable --now brackfs.timer\n"), "{log}");
    let again = inside(&["setup".to_owned()]).ok();
    assert!(
        again.stderr.contains("everything is set up already") && again.stderr.contains("kept: the timer"),
        "{again}"
    );
    let log = fs::read_to_string(&told).unwrap();
    assert_eq!(log.matches("enable --now").count(), 1, "{log}");
    if made {
        fs::remove_dir("/var/lib/brackfs").unwrap();
    }
}
