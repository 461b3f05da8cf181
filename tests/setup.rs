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
fn a_new_repository_of_a_known_target_gets_its_first_backup() {
    let site = site();
    let first = setup(&site, &answers(&site)).ok();
    for text in ["to do: forget old snapshots by its rule: keep = {", "to do: leave out what it excludes: exclude"] {
        assert!(first.stderr.contains(text), "{text}\n{first}");
    }
    assert!(fs::read_to_string(config(&site)).unwrap().contains("\n[check]\n"));
    let listed = |count: usize| {
        let listed = run(command(&site, &["snapshots", "--json"])).ok().stdout;
        assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&listed).unwrap().len(), count);
    };
    listed(1);
    run(command(&site, &["status"])).ok();
    // Another place, and a lost repository.
    let moved = site.path().join("moved");
    let text = fs::read_to_string(config(&site)).unwrap();
    let text = text.replace(&site.repo().display().to_string(), &moved.display().to_string());
    fs::write(config(&site), text).unwrap();
    let mut again = answers(&site);
    again[4] = moved.display().to_string();
    for _ in 0..2 {
        let made = setup(&site, &again).ok();
        assert!(made.stderr.contains("to do: make the first backup of"), "{made}");
        listed(1);
        run(command(&site, &["status"])).ok();
        fs::remove_dir_all(&moved).unwrap();
    }
    // By hand: the former record does not count.
    let certificate = site.keys().join("owner.pub").display().to_string();
    run(command(&site, &["init", "@disk", "--recipient", &certificate])).ok();
    run(command(&site, &["status"])).code(3);
}

#[test]
fn options_answer_all_questions_and_a_second_run_changes_nothing() {
    let site = site();
    let run = setup(&site, &answers(&site)).ok();
    let cron = format!(
        "17 3 * * *  {} run --config {} --state-dir {}\n",
        env!("CARGO_BIN_EXE_brackfs"),
        config(&site).display(),
        site.state().display()
    );
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
    // A place that cannot be made leaves no configuration that would be kept.
    let mut elsewhere = answers(&site);
    let at = elsewhere.iter().position(|word| word == "--to").unwrap();
    elsewhere[at + 1] = "/proc/brackfs".to_owned();
    let failed = setup(&site, &elsewhere).code(1);
    assert!(failed.stderr.contains("cannot make /proc/brackfs") && !config(&site).exists(), "{failed}");
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

/// The answers, with other values.
fn answers_but(site: &Site, changes: &[(&str, &str)]) -> Vec<String> {
    let mut words = answers(site);
    for (flag, value) in changes {
        match words.iter().position(|word| word == flag) {
            Some(at) => words[at + 1] = (*value).to_owned(),
            None => words.extend([flag, value].map(|word| (*word).to_owned())),
        }
    }
    words
}

#[test]
fn an_option_that_differs_from_what_is_there_is_refused() {
    let site = site();
    let other = site.path().join("keys/other");
    let (other_key, other_repo) = (other.to_str().unwrap(), site.path().join("other-repo").display().to_string());
    let generate = ["key", "generate", "--no-passphrase", "--output", other_key];
    common::run(command(&site, &generate)).ok();
    let certificate = format!("{other_key}.pub");
    setup(&site, &answers(&site)).ok();
    let before = [tree(&site.repo()), tree(&site.path().join("etc"))];
    let (file, repo) = (config(&site).display().to_string(), site.repo().display().to_string());
    for (flag, value, texts) in [
        ("--to", other_repo.as_str(), [file.as_str(), repo.as_str(), other_repo.as_str()]),
        ("--to", "sftp://me@host/srv/backup", [&file, &repo, "sftp://me@host/srv/backup"]),
        ("--path", "/etc", [&file, "/etc", "run setup again"]),
        ("--credentials", "/etc/login", [&file, "target.disk", "credentials"]),
        ("--endpoint", "https://s3.example.org", [&file, "target.disk", "endpoint"]),
        ("--recipient", &certificate, [&repo, "is encrypted to", "another place"]),
    ] {
        let refused = setup(&site, &answers_but(&site, &[(flag, value)])).code(2);
        for text in texts {
            assert!(refused.stderr.contains(text), "{flag} {text}\n{refused}");
        }
    }
    let mut with_passphrase = answers(&site);
    let at = with_passphrase.iter().position(|word| word == "--recipient").unwrap();
    with_passphrase.splice(at..at + 2, ["--passphrase".to_owned()]);
    let refused = setup(&site, &with_passphrase).code(2);
    assert!(refused.stderr.contains("is encrypted to"), "{refused}");
    assert_eq!([tree(&site.repo()), tree(&site.path().join("etc"))], before);
    // The same place and the same path, written in another way; and one of several targets and sources.
    let more = format!(
        "[target.other]\nrepository = \"{other_repo}\"\n[source.more]\npaths = [\"/etc/hostname\"]\nto = [\"other\"]\n"
    );
    let text = fs::read_to_string(config(&site)).unwrap();
    fs::write(config(&site), format!("{text}{more}")).unwrap();
    let again = setup(&site, &answers_but(&site, &[("--to", &other_repo), ("--recipient", &certificate)])).ok();
    assert!(again.stderr.contains("to do: make a repository") && again.stderr.contains(&other_repo), "{again}");
    let (source, url) = (format!("{}/", site.source().display()), format!("file://{repo}/"));
    let again = setup(&site, &answers_but(&site, &[("--to", &url), ("--path", &source)])).ok();
    assert!(again.stderr.contains("everything is set up already"), "{again}");
    setup(&site, &answers_but(&site, &[("--recipient", &certificate)])).code(2);
    setup(&site, &answers_but(&site, &[("--to", &other_repo), ("--recipient", &certificate)])).ok();
}

#[test]
fn a_repository_without_encryption_is_not_taken_for_an_encrypted_one() {
    let site = site();
    let repo = site.repo().display().to_string();
    common::run(command(&site, &["init", &repo, "--no-encryption"])).ok();
    let refused = setup(&site, &answers(&site)).code(2);
    assert!(refused.stderr.contains("is not encrypted") && !config(&site).exists(), "{refused}");
    let mut without = answers(&site);
    let at = without.iter().position(|word| word == "--recipient").unwrap();
    without.drain(at..at + 2);
    setup(&site, &without).ok();
}

#[test]
fn the_line_for_cron_has_the_times_that_were_asked_for() {
    let site = site();
    let line = |when: &str| setup(&site, &answers_but(&site, &[("--when", when)])).ok().stdout;
    for (when, times) in
        [("weekly", "17 3 * * 0 "), ("hourly", "17 * * * * "), ("monthly", "17 3 1 * * "), ("daily", "17 3 * * * ")]
    {
        assert!(line(when).contains(&format!(":   {times}")), "{when}: {}", line(when));
    }
    assert!(!line("never").contains("crontab"));
    let refused = setup(&site, &answers_but(&site, &[("--when", "Mon..Fri 12:30")])).code(2);
    assert!(refused.stderr.contains("hourly, daily, weekly, monthly or never"), "{refused}");
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

#[test]
fn backups_that_are_made_weekly_are_fresh_for_a_week() {
    let site = site();
    for (when, age) in [("daily", ""), ("weekly", "max-age = \"8d\""), ("monthly", "max-age = \"32d\"")] {
        let mut arguments = answers(&site);
        *arguments.last_mut().unwrap() = "--dry-run".to_owned();
        arguments.iter_mut().filter(|word| *word == "daily").for_each(|word| *word = when.to_owned());
        let run = setup(&site, &arguments).ok();
        assert!(run.stdout.contains(age) && run.stdout.contains("max-age") != age.is_empty(), "{when}: {run}");
    }
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

/// A machine with a systemd that only notes what it is told: it has /etc, /run and /var/lib of its own.
struct Machine<'s> {
    site: &'s Site,
}

impl<'s> Machine<'s> {
    fn new(site: &'s Site) -> Self {
        let machine = Machine { site };
        let bin = machine.path("bin");
        for name in ["bin", "etc-copy", "run", "lib", "lib/brackfs", "home"] {
            fs::create_dir(machine.path(name)).unwrap();
        }
        // Enabled after `enable`.
        let script = "#!/bin/sh\necho \"$*\" >> told\n\
            case \"$*\" in *is-enabled*) [ -e enabled ];; *enable*) touch enabled;; esac\n";
        fs::write(bin.join("systemctl"), script).unwrap();
        fs::set_permissions(bin.join("systemctl"), Permissions::from_mode(0o755)).unwrap();
        common::machine::succeed(
            Command::new("sh")
                .args(["-c", "cp -a /etc/. etc-copy && rm -rf etc-copy/systemd/system/brackfs*"])
                .current_dir(site.path()),
        );
        let lib = ["/usr/lib/systemd/system", "/lib/systemd/system"];
        assert!(
            !lib.iter().any(|folder| PathBuf::from(folder).join("brackfs.service").exists()),
            "brackfs is installed"
        );
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path().join(name)
    }

    /// A file of the units of the system.
    fn unit(&self, name: &str) -> PathBuf {
        self.path("etc-copy/systemd/system").join(name)
    }

    fn told(&self) -> String {
        fs::read_to_string(self.path("told")).unwrap()
    }

    /// The user of the service.
    fn user(&self) -> Option<u32> {
        let passwd = fs::read_to_string(self.path("etc-copy/passwd")).unwrap();
        let user = passwd.lines().find(|line| line.starts_with("brackfs:"))?;
        Some(user.split(':').nth(2).unwrap().parse().unwrap())
    }

    /// Runs the program there, by way of another one.
    fn brackfs(&self, by: &[&str], arguments: &[String]) -> Run {
        let script = "set -e
            mkdir -p run/systemd/system
            mount --bind etc-copy /etc; mount --bind run /run; mount --bind lib /var/lib
            exec \"$@\"";
        let mut command = in_mount_namespace("sh");
        command.args(["-c", script, "sh"]).args(by).arg(self.site.program_for_everyone()).args(arguments);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        command.current_dir(self.site.path()).env("PATH", path).stdin(Stdio::null());
        for name in ["BRACKFS_REPOSITORY", "BRACKFS_KEY_FILE", "BRACKFS_STATE_DIR", "BRACKFS_CONFIG"] {
            command.env_remove(name);
        }
        for name in ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HOME", self.path("home"));
        run(command)
    }

    fn root(&self, arguments: &[String]) -> Run {
        self.brackfs(&[], arguments)
    }
}

/// The answers, with other times.
fn answers_with(site: &Site, when: &str) -> Vec<String> {
    answers(site).into_iter().map(|word| if word == "daily" { when.to_owned() } else { word }).collect()
}

#[test]
fn with_systemd_the_service_gets_a_user_and_the_timer_is_enabled() {
    let site = site();
    let machine = Machine::new(&site);
    // What root left there is given to the user.
    fs::create_dir(machine.path("lib/brackfs/old")).unwrap();
    let run = machine.root(&answers_with(&site, "Mon..Fri 12:30")).ok();
    assert!(run.stderr.contains("make the user brackfs") && run.stdout.contains("journalctl -u brackfs"), "{run}");
    assert!(run.stderr.contains("to do: give /var/lib/brackfs to the user brackfs"), "{run}");
    assert!(run.stderr.contains("to do: enable brackfs.timer (Mon..Fri 12:30)"), "{run}");
    let id = machine.user().unwrap();
    // The service can use all that was made.
    for folder in [machine.path("lib/brackfs"), site.repo()] {
        for (path, _) in tree(&folder) {
            assert_eq!(fs::symlink_metadata(folder.join(&path)).unwrap().uid(), id, "{path:?}");
        }
        assert_eq!(fs::metadata(&folder).unwrap().uid(), id);
    }
    let config = fs::metadata(machine.path("etc-copy/brackfs/config.toml")).unwrap();
    assert_eq!((config.uid(), config.permissions().mode() & 0o777), (0, 0o640));
    assert_ne!(config.gid(), 0);
    let unit = |name: &str| fs::read_to_string(machine.unit(name)).unwrap();
    assert!(unit("brackfs.service").contains(&format!("ExecStart={} run", site.program_for_everyone().display())));
    assert!(unit("brackfs.service.d/config.conf").contains(&format!("ReadWritePaths=-{}", site.repo().display())));
    let times = "[Timer]\nOnCalendar=\nOnCalendar=Mon..Fri 12:30\nRandomizedDelaySec=0\n";
    assert_eq!(unit("brackfs.timer.d/when.conf"), times);
    assert!(unit("brackfs.timer").contains("Persistent=true") && unit("brackfs-failed@.service").contains("sendmail"));
    let log = machine.told();
    assert!(log.contains("daemon-reload\nenable --now brackfs.timer\n"), "{log}");
    let again = machine.root(&["setup".to_owned()]).ok();
    assert!(
        again.stderr.contains("everything is set up already") && again.stderr.contains("kept: the timer"),
        "{again}"
    );
    assert!(!again.stderr.contains("chown") && !again.stderr.contains("config.conf"), "{again}");
    let log = machine.told();
    assert_eq!(log.matches("enable --now").count(), 1, "{log}");
}

#[test]
fn the_service_follows_the_configuration_when_the_timer_is_enabled_already() {
    let site = site();
    let machine = Machine::new(&site);
    machine.root(&answers(&site)).ok();
    let drop_in = machine.unit("brackfs.service.d/config.conf");
    let written = "to do: write /etc/systemd/system/brackfs.service.d/config.conf";
    let again = ["setup".to_owned(), "--yes".to_owned()];
    let text = fs::read_to_string(&drop_in).unwrap();
    fs::remove_file(&drop_in).unwrap();
    let run = machine.root(&again).ok();
    assert!(run.stderr.contains(written) && run.stderr.contains("kept: the timer"), "{run}");
    assert_eq!(fs::read_to_string(&drop_in).unwrap(), text);
    assert!(machine.told().ends_with("daemon-reload\n"), "{}", machine.told());
    // Now the service must run as root, which then owns the state.
    let config = machine.path("etc-copy/brackfs/config.toml");
    let configured = fs::read_to_string(&config).unwrap();
    fs::write(&config, configured.replace("[source.system]", "[source.system]\nsnapshot = \"auto\"")).unwrap();
    let owner = || fs::metadata(machine.path("lib/brackfs/journal.sqlite")).unwrap().uid();
    assert_ne!(owner(), 0);
    let run = machine.root(&again).ok();
    assert!(
        run.stderr.contains(written) && run.stderr.contains("to do: give /var/lib/brackfs to the user root"),
        "{run}"
    );
    assert!(fs::read_to_string(&drop_in).unwrap().contains("User=root") && owner() == 0);
    let told = machine.told();
    assert!(told.ends_with("daemon-reload\n") && told.matches("enable --now").count() == 1, "{told}");
    // A drop-in that a person wrote stays.
    fs::write(&config, &configured).unwrap();
    fs::write(&drop_in, "[Service]\nNice=5\n").unwrap();
    let run = machine.root(&again).ok();
    assert!(run.stderr.contains("config.conf, which setup would write differently"), "{run}");
    assert_eq!(fs::read_to_string(&drop_in).unwrap(), "[Service]\nNice=5\n");
    assert_ne!(owner(), 0);
}

#[test]
fn times_are_told_only_if_they_are_in_force() {
    let site = site();
    let machine = Machine::new(&site);
    let drop_ins = machine.unit("brackfs.timer.d");
    fs::create_dir_all(&drop_ins).unwrap();
    fs::create_dir(machine.unit("brackfs.service.d")).unwrap();
    fs::write(machine.unit("brackfs.service.d/config.conf"), "[Service]\nNice=5\n").unwrap();
    let plan = |when: &str| {
        let arguments = answers_with(&site, when).into_iter().chain(["--dry-run".to_owned()]).collect::<Vec<_>>();
        machine.root(&arguments).ok().stderr
    };
    let elsewhere = |name: &str| format!("to do: enable brackfs.timer with the times in {name}");
    let folder = "/etc/systemd/system";
    let kept = format!("kept: {folder}/brackfs.service.d/config.conf");
    // What setup wrote is replaced.
    let own = |event: &str| format!("[Timer]\nOnCalendar=\nOnCalendar={event}\n");
    for (before, when) in [(own("weekly"), "daily"), (own("*:0/10") + "RandomizedDelaySec=0\n", "hourly")] {
        fs::write(drop_ins.join("when.conf"), before).unwrap();
        let told = plan(when);
        assert!(told.contains(&format!("enable brackfs.timer ({when})")) && told.contains(&kept), "{told}");
    }
    // A drop-in that has no times, or whose times are reset, changes nothing.
    fs::write(drop_ins.join("a.conf"), "[Timer]\nOnCalendar=monthly\n").unwrap();
    fs::write(drop_ins.join("x.conf"), "[Timer]\nRandomizedDelaySec=0\n").unwrap();
    assert!(plan("hourly").contains("enable brackfs.timer (hourly)"));
    fs::write(drop_ins.join("z.conf"), "[Timer]\nOnCalendar=monthly\n").unwrap();
    let told = plan("hourly");
    assert!(told.contains(&elsewhere(&format!("{folder}/brackfs.timer.d/z.conf"))), "{told}");
    fs::remove_file(drop_ins.join("z.conf")).unwrap();
    // What somebody else wrote stays.
    let changed = own("weekly") + "Persistent=no\n";
    fs::write(drop_ins.join("when.conf"), &changed).unwrap();
    let told = plan("hourly");
    let file = format!("{folder}/brackfs.timer.d/when.conf");
    assert!(told.contains(&elsewhere(&file)) && told.contains(&format!("kept: {file}")), "{told}");
    machine.root(&answers_with(&site, "hourly")).ok();
    assert_eq!(fs::read_to_string(drop_ins.join("when.conf")).unwrap(), changed);
    // Without the file, the times are those of the unit.
    fs::remove_file(machine.path("enabled")).unwrap();
    fs::remove_dir_all(&drop_ins).unwrap();
    fs::write(machine.unit("brackfs.timer"), "[Timer]\nOnBootSec=1h\n").unwrap();
    let told = plan("daily");
    assert!(told.contains(&elsewhere(&format!("{folder}/brackfs.timer"))), "{told}");
    assert!(plan("weekly").contains("enable brackfs.timer (weekly)"));
    fs::create_dir(&drop_ins).unwrap();
    fs::write(drop_ins.join("when.conf"), own("weekly")).unwrap();
    machine.root(&answers(&site)).ok();
    assert_eq!(fs::read_to_string(drop_ins.join("when.conf")).unwrap(), own("daily"));
}

#[test]
fn other_times_change_a_timer_that_is_enabled() {
    let site = site();
    let machine = Machine::new(&site);
    let times = machine.unit("brackfs.timer.d/when.conf");
    machine.root(&answers(&site)).ok();
    let changed = machine.root(&answers_with(&site, "weekly")).ok();
    let written = "to do: write /etc/systemd/system/brackfs.timer.d/when.conf";
    assert!(changed.stderr.contains(written) && changed.stderr.contains("kept: the timer"), "{changed}");
    assert!(fs::read_to_string(&times).unwrap().contains("OnCalendar=weekly\n"));
    assert!(machine.told().ends_with("daemon-reload\n"), "{}", machine.told());
    let again = machine.root(&answers_with(&site, "weekly")).ok();
    assert!(again.stderr.contains("everything is set up already"), "{again}");
    // They are in another file.
    fs::write(machine.unit("brackfs.timer.d/z.conf"), "[Timer]\nOnCalendar=monthly\n").unwrap();
    let told = machine.root(&answers_with(&site, "hourly")).code(2).stderr;
    assert!(told.contains("/etc/systemd/system/brackfs.timer.d/z.conf"), "{told}");
    let told = machine.root(&answers_with(&site, "never")).code(2).stderr;
    assert!(told.contains("systemctl disable --now brackfs.timer"), "{told}");
    assert!(fs::read_to_string(&times).unwrap().contains("OnCalendar=weekly\n"));
}

#[test]
fn a_kept_repository_of_another_user_is_told() {
    let site = site();
    let machine = Machine::new(&site);
    let repo = site.repo().display().to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let certificate = site.keys().join("owner.pub").display().to_string();
    machine.root(&words(&["init", &repo, "--recipient", &certificate])).ok();
    let run = machine.root(&answers(&site)).ok();
    let warning = format!("the user brackfs of the service does not own {repo}; run: chown -R brackfs: {repo}");
    assert!(run.stderr.contains(&warning) && run.stderr.contains("kept: the repository"), "{run}");
    let id = machine.user().unwrap();
    let state = machine.path("lib/brackfs");
    for (path, _) in tree(&state) {
        assert_eq!(fs::symlink_metadata(state.join(&path)).unwrap().uid(), id, "{path:?}");
    }
    let again = machine.root(&words(&["setup"])).ok();
    assert!(again.stderr.contains(&warning) && again.stderr.contains("everything is set up already"), "{again}");
    common::machine::succeed(Command::new("chown").args(["-R", &format!("{id}:{id}"), &repo]));
    let again = machine.root(&words(&["setup"])).ok();
    assert!(!again.stderr.contains("chown"), "{again}");
}

#[test]
fn the_service_of_a_user_reads_the_configuration_that_setup_was_given() {
    let site = site();
    let machine = Machine::new(&site);
    let file = site.path().join("my config.toml");
    site.program_for_everyone();
    common::machine::succeed(Command::new("chown").args(["-R", "65534:65534"]).arg(site.path()));
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut arguments = answers(&site);
    arguments.extend(["--config".to_owned(), file.display().to_string()]);
    machine.brackfs(&nobody, &arguments).ok();
    let folder = machine.path("home/.config/systemd/user");
    let text = fs::read_to_string(folder.join("brackfs.service.d/config.conf")).unwrap();
    let path = file.display();
    assert!(text.contains(&format!("\nConditionPathExists=\nConditionPathExists={path}\n")), "{text}");
    assert!(text.contains(&format!("\nEnvironment=\"BRACKFS_CONFIG={path}\"\n")), "{text}");
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--user", "--man=no", "--recursive-errors=one"])
        .arg(folder.join("brackfs.service"))
        .env("XDG_RUNTIME_DIR", site.path())
        .output()
        .unwrap();
    assert!(verified.status.success() && verified.stderr.is_empty(), "{verified:?}");
    assert!(machine.told().contains("--user enable --now brackfs.timer\n"));
    // The standard place needs no drop-in.
    fs::remove_dir_all(&folder).unwrap();
    fs::remove_file(machine.path("enabled")).unwrap();
    machine.brackfs(&nobody, &answers(&site)).ok();
    assert!(folder.join("brackfs.service").exists() && !folder.join("brackfs.service.d").exists());
}
