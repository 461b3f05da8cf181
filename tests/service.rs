//! Runs by a timer: as a user of its own with few rights, with messages for the journal, and quietly under cron.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::machine::succeed;
use common::wait::{ended, send, until};
use common::{NOBODY, Site, run, run_within};
use rustix::fs::fstat;
use rustix::process::Signal;

/// A site with a configuration of a source and a target, and the repository.
fn configured() -> Site {
    let site = Site::with_files(&[("etc/one", "one"), ("home/two", "two")]);
    site.init();
    let text = format!(
        "[target.disk]\nrepository = \"{}\"\n[source.all]\npaths = [\"{}\"]\nto = [\"disk\"]\nkeep = {{ last = 3 }}\n",
        site.repo().display(),
        site.source().display()
    );
    fs::write(config(&site), text).unwrap();
    fs::set_permissions(config(&site), fs::Permissions::from_mode(0o644)).unwrap();
    site
}

fn config(site: &Site) -> PathBuf {
    site.path().join("config.toml")
}

/// A command that reads the configuration.
fn command(site: &Site, arguments: &[&str]) -> Command {
    let mut command = site.command(arguments);
    command.env("BRACKFS_CONFIG", config(site));
    command
}

/// All files and folders below a folder, and itself.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(below(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}

fn give(folder: &Path) {
    below(folder).iter().for_each(|path| chown(path, Some(NOBODY), Some(NOBODY)).unwrap());
}

#[test]
fn root_leaves_nothing_of_its_own_among_the_files_of_the_services_user() {
    let site = configured();
    let [state, cache] = ["state", "cache"].map(|name| site.path().join(name));
    fs::create_dir_all(&cache).unwrap();
    [&state, &cache, &site.repo(), &site.keys()].iter().for_each(|folder| give(folder));
    // As systemd says it, for several directories.
    let list = format!("{}:/nonexistent", state.display());
    let with_state = |mut command: Command| {
        command.env_remove("BRACKFS_STATE_DIR").env("STATE_DIRECTORY", &list).env("BRACKFS_CONFIG", config(&site));
        run(command).ok()
    };
    let as_user = |arguments: &[&str]| with_state(site.command_as_nobody(arguments));
    let as_root = |arguments: &[&str]| with_state(site.command(arguments));
    let all = [&["run"][..], &["check"], &["prune"], &["catalog", "verify"]];
    let new_file = |name: &str| site.write(name, name.repeat(100_000));
    all.iter().for_each(|arguments| drop(as_user(arguments)));
    new_file("home/three");
    all.iter().for_each(|arguments| drop(as_root(arguments)));
    as_root(&["catalog", "rebuild"]);
    let (second, first) = (site.path().join("second"), site.keys().join("owner.pub"));
    fs::create_dir(&second).unwrap();
    chown(&second, Some(NOBODY), Some(NOBODY)).unwrap();
    as_root(&["init", second.to_str().unwrap(), "--recipient", first.to_str().unwrap()]);
    as_root(&["backup", site.source().to_str().unwrap(), "--repo", second.to_str().unwrap()]);
    for folder in [&state, &cache, &site.repo(), &second] {
        for path in below(folder) {
            let found = fs::symlink_metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY), "{}", path.display());
        }
    }
    new_file("home/four");
    all.iter().for_each(|arguments| drop(as_user(arguments)));
    as_user(&["backup", site.source().to_str().unwrap(), "--repo", second.to_str().unwrap()]);
    let listed = as_user(&["snapshots", "--json"]).stdout;
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&listed).unwrap().len(), 3);
}

#[test]
fn a_service_needs_only_the_right_to_read_all_files() {
    let site = configured();
    let secret = site.write("home/secret", "of root");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    [site.state(), site.repo()].iter().for_each(|folder| give(folder));
    let capability = "+dac_read_search";
    let inner = command(&site, &["run"]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all,+dac_read_search"]);
    command.args(["--inh-caps", capability, "--ambient-caps", capability, "--no-new-privs", "--"]);
    // All is read-only, except the state and the repository.
    let script = "set -e
        for folder in state repo; do mount --bind $folder $folder; done
        mount -o remount,bind,ro /
        ro=$(stat -c %d /) && [ \"$ro\" ] && ! touch /brackfs-test 2>/dev/null
        exec \"$@\"";
    let mut unshared = common::in_mount_namespace("sh");
    unshared.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    unshared.arg(site.program_for_everyone()).args(inner.get_args()).current_dir(site.path()).stdin(Stdio::null());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => unshared.env(name, value),
            None => unshared.env_remove(name),
        };
    }
    let run = run_within(unshared, Duration::from_secs(60)).ok();
    assert_eq!(run.stderr, "");
    let out = site.path().join("out");
    site.brackfs(&["restore", "all/latest", "--to", out.to_str().unwrap()]).ok();
    assert_eq!(fs::read(out.join("home/secret")).unwrap(), b"of root");
}

#[test]
fn a_good_run_prints_nothing_although_its_own_files_are_in_the_source() {
    let site = Site::with_files(&[("a", "one")]);
    site.init();
    let source = site.source();
    for own in ["repo", "state"] {
        fs::rename(site.path().join(own), source.join(own)).unwrap();
    }
    let config = source.join("config.toml");
    let text = format!(
        "[target.disk]\nrepository = \"{0}/repo\"\n[source.all]\npaths = [\"{0}\"]\nto = [\"disk\"]\n",
        source.display()
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let there = |arguments: &[&str]| {
        let mut command = site.command(arguments);
        command.env("BRACKFS_REPOSITORY", source.join("repo")).env("BRACKFS_STATE_DIR", source.join("state"));
        command.env("BRACKFS_CACHE_DIR", source.join("cache")).env("BRACKFS_CONFIG", &config);
        run(command).ok()
    };
    for arguments in [&["backup", source.to_str().unwrap()][..], &["run"]] {
        for _ in 0..5 {
            let run = there(arguments);
            assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""), "{run}");
        }
        let run = there(&[arguments, &["-v"]].concat());
        assert!(run.stderr.contains("state belongs to brackfs itself"), "{run}");
    }
}

/// The lines that a command writes to a journal, and its exit code.
fn to_journal(command: Command, is_announced: bool) -> (Vec<String>, i32) {
    to_journal_meanwhile(command, is_announced, |_| ())
}

/// The same, with something to do while the command runs.
fn to_journal_meanwhile(mut command: Command, is_announced: bool, act: impl FnOnce(&Child)) -> (Vec<String>, i32) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let stat = fstat(&theirs).unwrap();
    if is_announced {
        command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
    } else {
        command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino + 1));
    }
    let mut child = command.stdout(Stdio::null()).stderr(OwnedFd::from(theirs)).spawn().unwrap();
    drop(command);
    act(&child);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    (text.lines().map(str::to_owned).collect(), ended(&mut child).code().unwrap())
}

#[test]
fn the_journal_gets_one_line_for_a_good_run_and_priorities() {
    let site = configured();
    let source = site.source();
    let journal = |arguments: &[&str]| to_journal(command(&site, arguments), true);
    let (lines, code) = journal(&["run"]);
    assert!(code == 0 && lines.len() == 1, "{lines:?}");
    assert!(lines[0].starts_with("<6>3 of 3 steps done; 2 files, 6 B, "), "{lines:?}");
    let (lines, code) = journal(&["backup", source.to_str().unwrap()]);
    assert!(code == 0 && lines.len() == 1, "{lines:?}");
    assert!(lines[0].starts_with("<6>snapshot ") && lines[0].contains("; 2 files ("), "{lines:?}");
    assert_eq!(journal(&["run", "-q"]).0, [""; 0]);
    // A warning.
    let (lines, code) = journal(&["backup", source.to_str().unwrap(), "/nonexistent"]);
    assert!(code == 3 && lines.len() == 2, "{lines:?}");
    assert!(lines[0].starts_with("<4>brackfs: ") && lines[1].starts_with("<6>snapshot "), "{lines:?}");
    // Errors, each line of them.
    let (lines, code) = journal(&["ls", "latest", "--repo", "/nonexistent"]);
    assert!(code == 10 && lines[0].starts_with("<3>brackfs: no repository"), "{lines:?}");
    let (lines, code) = journal(&["ls", "--no-such-option"]);
    assert!(code == 2 && lines.len() > 1 && lines.iter().all(|line| line.starts_with("<3>")), "{lines:?}");
    fs::rename(site.repo(), site.path().join("away")).unwrap();
    let (lines, code) = journal(&["run"]);
    assert!(code == 10 && lines.iter().filter(|line| line.starts_with("<6>")).count() == 1, "{lines:?}");
    assert!(lines[0].starts_with("<3>failed") && lines.len() > 1, "{lines:?}");
    // Another stream is no journal.
    let (lines, _) = to_journal(command(&site, &["run"]), false);
    assert!(lines[0].starts_with("failed "), "{lines:?}");
}

#[test]
fn systemd_is_told_about_the_progress() {
    let site = configured();
    let folder = site.path().join("notify");
    let name = format!("brackfs-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let sockets = [
        (UnixDatagram::bind(&folder).unwrap(), folder.display().to_string()),
        (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}")),
    ];
    for (socket, address) in sockets {
        let mut command = command(
            &site,
            &["backup", "-q", "--stdin-filename", "x", "--stdin-from-command", "--", "sh", "-c", "echo one; sleep 4"],
        );
        let mut child = command.env("NOTIFY_SOCKET", address).stderr(Stdio::piped()).spawn().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut bytes = [0; 1000];
        let length = socket.recv(&mut bytes).unwrap();
        let told = str::from_utf8(&bytes[..length]).unwrap();
        // A later backup has an estimate.
        let is_known = ["0 files, ", "~0 %"]
            .iter()
            .any(|text| told.strip_prefix("STATUS=").is_some_and(|it| it.starts_with(text)));
        assert!(is_known && !told.contains('\n'), "{told:?}");
        assert!(ended(&mut child).success());
        // Not more than one every three seconds.
        socket.set_nonblocking(true).unwrap();
        let more = std::iter::from_fn(|| socket.recv(&mut bytes).ok()).count();
        assert!(more < 20, "{more} more");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
    }
    // A service manager that is gone harms nothing.
    let mut command = command(&site, &["run"]);
    assert_eq!(
        run({
            command.env("NOTIFY_SOCKET", "/nonexistent");
            command
        })
        .ok()
        .stderr,
        ""
    );
}

#[test]
fn a_stopped_service_does_not_count_as_failed() {
    let site = configured();
    let started = site.path().join("started");
    let more = format!(
        "[source.slow]\ncommand = [\"sh\", \"-c\", \"touch {}; exec sleep 1000\"]\nfilename = \"x\"\nto = [\"disk\"]\n",
        started.display()
    );
    let text = fs::read_to_string(config(&site)).unwrap();
    fs::write(config(&site), format!("{text}{more}")).unwrap();
    let (lines, code) = to_journal_meanwhile(command(&site, &["run"]), true, |child| {
        until("the command of the source runs", || started.exists());
        send(child, Signal::TERM);
    });
    assert!(lines.iter().any(|line| line.starts_with("<4>failed    backup  slow to disk")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("<3>")), "{lines:?}");
    let status = run(command(&site, &["status"])).code(2).stdout;
    assert!(status.contains("interrupted"), "{status}");
    for kind in ["system", "user"] {
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(kind).join("brackfs.service");
        let unit = fs::read_to_string(unit).unwrap();
        let good: Vec<_> = unit
            .lines()
            .filter_map(|line| line.strip_prefix("SuccessExitStatus="))
            .flat_map(str::split_whitespace)
            .collect();
        // Before there is a handler, the signal itself ends the process.
        for end in [&code.to_string(), "SIGTERM"] {
            assert!(good.contains(&end), "{end} in {unit}");
        }
    }
}

#[test]
fn a_failed_service_says_that_its_drop_in_is_too_old() {
    let site = configured();
    let more = "[source.dump]\ncommand = [\"id\"]\nuser = \"root\"\nfilename = \"id\"\nto = [\"disk\"]\n";
    let text = fs::read_to_string(config(&site)).unwrap();
    fs::write(config(&site), format!("{text}{more}")).unwrap();
    [site.state(), site.repo()].iter().for_each(|folder| give(folder));
    let run_as_nobody = |invocation: Option<&str>| {
        let mut command = site.command_as_nobody(&["run"]);
        command.env("BRACKFS_CONFIG", config(&site)).env("STATE_DIRECTORY", site.state());
        invocation.map(|id| command.env("INVOCATION_ID", id));
        run(command).code(1).stderr
    };
    let hint = "brackfs.service does not fit the configuration: it does not run as root. source.dump has a command";
    assert!(run_as_nobody(Some("1")).contains(hint));
    assert!(!run_as_nobody(None).contains(hint));
}

/// The units, with this program instead of the installed one.
fn units(site: &Site, kind: &str) -> PathBuf {
    let folder = site.path().join(kind);
    fs::create_dir(&folder).unwrap();
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(kind);
    for entry in fs::read_dir(packaged).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("/usr/bin/brackfs", site.program_for_everyone().to_str().unwrap());
        fs::write(folder.join(path.file_name().unwrap()), text).unwrap();
    }
    folder
}

/// Verifies units. Warnings count.
fn verify(folder: &Path, user: bool) {
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=one"]);
    command.args(user.then_some("--user")).env("XDG_RUNTIME_DIR", folder);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // A template needs an instance.
        let name = path.file_name().unwrap().to_str().unwrap().replace("@.", "@x.");
        command.args(path.is_file().then(|| folder.join(name)));
    }
    let run = run(command).ok();
    assert_eq!(run.stderr, "");
}

#[test]
fn units_are_valid_and_the_service_has_few_rights() {
    let site = configured();
    let system = units(&site, "system");
    verify(&system, false);
    verify(&units(&site, "user"), true);
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=yes", "--threshold=25"]).arg(system.join("brackfs.service"));
    run(command).ok();
    // A mail program may be set-id. In systemd 252, such settings imply NoNewPrivileges=yes for a User=; see systemd.exec(5).
    let mail = fs::read_to_string(system.join("brackfs-failed@.service")).unwrap();
    let has_rights = |line: &str| {
        let implied =
            ["NoNew", "PrivateDevices", "ProtectKernel", "ProtectClock", "SystemCall", "Restrict", "Lock", "Memory"];
        !implied.iter().any(|setting| line.starts_with(setting))
    };
    assert!(mail.contains("User=brackfs") && mail.lines().all(has_rights), "{mail}");
    succeed(
        Command::new("sh").arg("-n").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/cron.daily/brackfs")),
    );
}

#[test]
fn a_drop_in_has_the_paths_of_the_configuration() {
    let site = configured();
    let more = "[target.nas]\nrepository = \"/mnt/my nas/brackfs\"\nrequire-mount = \"/mnt/my nas\"\n\
        [target.usb]\nrepository = \"/mnt/usb/brackfs\"\nrequire-mount = \"/mnt/usb\"\nwhen-missing = \"skip\"\n\
        [target.away]\nrepository = \"s3://bucket/x\"\ncredentials = \"s3.ini\"\n\
        [target.key]\nrepository = \"s3://bucket/y\"\n\
        credentials = { access-key = { env = \"ID\" }, secret-key = { credential = \"s3\" } }\n\
        [report]\nmetrics = \"/var/lib/metrics/brackfs.prom\"\nping = { url = { credential = \"ping\" } }\n";
    let text = fs::read_to_string(config(&site)).unwrap();
    fs::write(config(&site), format!("{text}{more}")).unwrap();
    let unit = || run(command(&site, &["config", "unit"])).ok().stdout;
    let printed = unit();
    for line in [
        "RequiresMountsFor=\"/mnt/my nas\"",
        "ReadWritePaths=\"-/mnt/my nas/brackfs\"",
        "ReadWritePaths=-/mnt/usb/brackfs",
        "ReadWritePaths=-/var/lib/metrics",
        "LoadCredential=ping:/etc/brackfs/credentials/ping",
        "LoadCredential=s3:/etc/brackfs/credentials/s3",
        "# The login of target.key is the variable ID, which the service must be able to use.",
        &format!("ReadWritePaths=-{}", site.repo().display()),
        &format!("ConditionPathExists={}", config(&site).display()),
        &format!("Environment=BRACKFS_CONFIG={}", config(&site).display()),
    ] {
        assert!(printed.lines().any(|it| it == line), "{line}\n{printed}");
    }
    assert!(!printed.contains("RequiresMountsFor=/mnt/usb") && !printed.contains("User="), "{printed}");
    let folder = units(&site, "system");
    fs::create_dir(folder.join("brackfs.service.d")).unwrap();
    fs::write(folder.join("brackfs.service.d/config.conf"), &printed).unwrap();
    verify(&folder, false);
    // Only root can run a command as another user, or read its own login.
    let more = "[target.ssh]\nrepository = \"sftp://host/x\"\n\
        [source.shop]\ncommand = [\"pg_dump\"]\nuser = \"postgres\"\nfilename = \"x\"\nto = [\"disk\"]\n";
    fs::write(config(&site), format!("{text}{more}")).unwrap();
    let printed = unit();
    assert!(printed.contains("\nUser=root\n") && printed.contains("source.shop") && printed.contains("target.ssh"));
    fs::write(folder.join("brackfs.service.d/config.conf"), &printed).unwrap();
    verify(&folder, false);
    // A path with a space; a condition has no quotes.
    let spaced = site.path().join("my config.toml");
    fs::rename(config(&site), &spaced).unwrap();
    let mut command = site.command(&["config", "unit", "--config", "my config.toml"]);
    command.current_dir(site.path());
    let printed = run(command).ok().stdout;
    assert!(printed.contains(&format!("\nConditionPathExists={}\n", spaced.display())), "{printed}");
    fs::write(folder.join("brackfs.service.d/config.conf"), &printed).unwrap();
    verify(&folder, false);
}

#[test]
fn a_drop_in_lets_the_service_make_snapshots_of_file_systems() {
    let site = configured();
    let text = fs::read_to_string(config(&site)).unwrap();
    let folder = units(&site, "system");
    fs::create_dir(folder.join("brackfs.service.d")).unwrap();
    for (kind, writes_lvm) in [("auto", false), ("zfs", false), ("lvm", true)] {
        fs::write(config(&site), format!("{text}snapshot = \"{kind}\"\n")).unwrap();
        let printed = run(command(&site, &["config", "unit"])).ok().stdout;
        for line in [
            "# source.all makes snapshots of file systems.",
            "User=root",
            "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE",
            "CapabilityBoundingSet=CAP_SYS_ADMIN",
            "AmbientCapabilities=CAP_SYS_ADMIN",
            "SystemCallFilter=@mount",
            "PrivateDevices=no",
            "ProtectClock=no",
        ] {
            assert!(printed.lines().any(|it| it == line), "{line}\n{printed}");
        }
        assert_eq!(printed.contains("ReadWritePaths=-/run/lock/lvm\n"), writes_lvm, "{printed}");
        fs::write(folder.join("brackfs.service.d/config.conf"), &printed).unwrap();
        verify(&folder, false);
    }
    // ReadWritePaths= does not change the directories of these settings themselves.
    for (folder, setting) in [("", "ProtectSystem=no"), ("/home", "ProtectHome=no"), ("/home/me", "")] {
        fs::write(config(&site), format!("{text}[report]\nmetrics = \"{folder}/metrics.prom\"\n")).unwrap();
        let printed = run(command(&site, &["config", "unit"])).ok().stdout;
        let settings: Vec<_> = printed.lines().filter(|line| line.starts_with("Protect")).collect();
        assert_eq!(settings.concat(), setting, "{printed}");
    }
    fs::write(config(&site), text).unwrap();
    let printed = run(command(&site, &["config", "unit"])).ok().stdout;
    assert!(!printed.contains("CAP_SYS_ADMIN") && !printed.contains("User="), "{printed}");
}
