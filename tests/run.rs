//! Configured runs: `brackfs config`, `brackfs run`, and targets by name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::machine::mount_tmpfs;
use common::wait::{ended, send, until};
use common::{Run, Site, run, tree, with_umask};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use serde_json::Value;

/// Two sources and two targets, `near` and `far`, of which each is a repository.
struct World {
    site: Site,
}

impl World {
    fn new() -> Self {
        let site = Site::with_files(&[("etc/one", "one"), ("home/two", "two"), ("home/three", "three")]);
        site.key("rfc9580");
        let world = World { site };
        ["near", "far"].iter().for_each(|target| world.init(target));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path().join(name)
    }

    fn init(&self, target: &str) {
        let (at, key) = (self.path(target), self.site.keys().join("owner.pub"));
        self.site.brackfs(&["init", at.to_str().unwrap(), "--recipient", key.to_str().unwrap()]).ok();
    }

    /// Writes the configuration: the usual targets and sources, and more.
    fn configure(&self, more: &str) {
        let [near, far, source] = ["near", "far", "source"].map(|name| self.path(name).display().to_string());
        let usual = format!(
            "[target.near]\nrepository = \"{near}\"\n[target.far]\nrepository = \"{far}\"\n\
             [source.etc]\npaths = [\"{source}/etc\"]\nto = [\"near\", \"far\"]\n\
             [source.home]\npaths = [\"{source}/home\"]\nto = [\"near\", \"far\"]\n"
        );
        self.write_config(&format!("{usual}{more}"));
    }

    fn write_config(&self, text: &str) {
        fs::write(self.path("config.toml"), text).unwrap();
        fs::set_permissions(self.path("config.toml"), Permissions::from_mode(0o644)).unwrap();
    }

    /// A command that finds its repository in the configuration.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        command.env("BRACKFS_CONFIG", self.path("config.toml")).env_remove("BRACKFS_REPOSITORY");
        command
    }

    fn brackfs(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    /// The number of snapshots of a source on a target.
    fn snapshots(&self, target: &str, source: &str) -> usize {
        let listed = self.brackfs(&["snapshots", "--repo", target, "--source", source, "--json"]).ok();
        serde_json::from_str::<Vec<Value>>(&listed.stdout).unwrap().len()
    }

    /// Runs the configuration, and returns the outcome of each step, such as `backup etc near done`.
    fn steps(&self, arguments: &[&str], code: i32) -> Vec<String> {
        let run = self.brackfs(&[&["run", "--json"], arguments].concat()).code(code);
        let objects: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.last().unwrap()["code"], code, "{run}");
        let steps = objects.iter().filter(|object| object["message_type"] == "step");
        let word = |step: &Value, key: &str| step[key].as_str().unwrap_or("-").to_owned();
        steps.map(|step| ["step", "source", "target", "outcome"].map(|key| word(step, key)).join(" ")).collect()
    }
}

const ALL: [&str; 4] = ["backup etc near done", "backup etc far done", "backup home near done", "backup home far done"];
const PRUNED: [&str; 2] = ["prune - near done", "prune - far done"];

#[test]
fn all_sources_are_backed_up_to_all_targets_and_a_good_run_is_silent() {
    let world = World::new();
    world.configure("");
    let run = world.brackfs(&["run"]).ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    for target in ["near", "far"] {
        for source in ["etc", "home"] {
            assert_eq!(world.snapshots(target, source), 1, "{source} {target}");
        }
        let out = world.path(&format!("out-{target}"));
        world.brackfs(&["restore", "--repo", target, "home/latest", "--to", out.to_str().unwrap()]).ok();
        assert_eq!(tree(&out), tree(&world.path("source/home")));
        world.brackfs(&["check", &format!("@{target}"), "--read-data"]).ok();
    }
    // A prune is due once in a while.
    let steps = world.steps(&["etc"], 0);
    assert_eq!(steps, [&ALL[..2], &["prune - near skipped", "prune - far skipped"]].concat());
    assert_eq!((world.snapshots("near", "etc"), world.snapshots("near", "home")), (2, 1));
    assert_eq!(world.steps(&["--only", "prune"], 0), PRUNED);
    assert_eq!(world.steps(&["home", "--only", "backup"], 0), ALL[2..]);
}

#[test]
fn a_broken_target_harms_no_other_and_the_worst_code_counts() {
    let world = World::new();
    world.configure("[defaults]\nkeep = { last = 1 }\n");
    assert_eq!(world.steps(&[], 0).len(), 4 + 4 + 2);
    fs::rename(world.path("far"), world.path("gone")).unwrap();
    let failed = world.steps(&[], 10);
    let expected = [
        "backup etc near done",
        "backup etc far failed",
        "backup home near done",
        "backup home far failed",
        "forget etc near done",
        "forget etc far skipped",
        "forget home near done",
        "forget home far skipped",
        "prune - near skipped",
        "prune - far skipped",
    ];
    assert_eq!(failed, expected);
    assert_eq!((world.snapshots("near", "etc"), world.snapshots("near", "home")), (1, 1));
    // A failure is shown without a terminal, with a line for each step.
    let run = world.brackfs(&["run"]).code(10);
    let lines: Vec<_> = run.stderr.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{run}");
    assert!(lines[1].starts_with("failed    backup  etc to far") && lines[1].contains("no repository"), "{run}");
    fs::rename(world.path("gone"), world.path("far")).unwrap();
    // Problems are milder than failures.
    fs::remove_file(world.path("source/etc/one")).unwrap();
    let shrunk = world.steps(&[], 3);
    assert_eq!(shrunk[..2], ["backup etc near failed", "backup etc far failed"]);
}

#[test]
fn the_policy_of_a_source_is_applied_where_it_got_a_snapshot() {
    let world = World::new();
    world.configure("[defaults]\nkeep = { last = 2 }\n");
    for _ in 0..4 {
        world.brackfs(&["run"]).ok();
    }
    assert_eq!((world.snapshots("near", "etc"), world.snapshots("far", "home")), (2, 2));
    // The source has shrunk: no new snapshot, and nothing is forgotten.
    world.configure("[defaults]\nkeep = { last = 1 }\n");
    fs::remove_file(world.path("source/etc/one")).unwrap();
    let steps = world.steps(&["etc"], 3);
    assert_eq!(
        steps[..4],
        ["backup etc near failed", "backup etc far failed", "forget etc near skipped", "forget etc far skipped"]
    );
    assert_eq!(world.snapshots("near", "etc"), 2);
    // Unless forgetting is all that is wanted.
    assert_eq!(world.steps(&["etc", "--only", "forget"], 0), ["forget etc near done", "forget etc far done"]);
    assert_eq!((world.snapshots("near", "etc"), world.snapshots("near", "home")), (1, 2));
    // The user may say that the source is as it should be.
    let allowed = world.steps(&["etc", "--only", "backup", "--allow-shrink"], 0);
    assert_eq!(allowed, ALL[..2]);
    assert_eq!(world.snapshots("near", "etc"), 2);
}

#[test]
fn nothing_is_forgotten_after_a_snapshot_without_one_of_the_paths() {
    let world = World::new();
    let [near, source] = ["near", "source"].map(|name| world.path(name).display().to_string());
    world.write_config(&format!(
        "[target.near]\nrepository = \"{near}\"\n[source.both]\npaths = [\"{source}/etc\", \"{source}/home\"]\n\
         to = [\"near\"]\nkeep = {{ last = 1 }}\n"
    ));
    world.brackfs(&["run"]).ok();
    fs::rename(world.path("source/etc"), world.path("away")).unwrap();
    for number in 2..4 {
        let steps = world.steps(&[], 3);
        assert_eq!(steps[..2], ["backup both near problems", "forget both near skipped"]);
        assert_eq!(world.snapshots("near", "both"), number);
    }
}

#[test]
fn a_policy_that_forgets_much_is_refused_also_in_a_dry_run_unless_it_is_forced() {
    let world = World::new();
    world.configure("[defaults]\nkeep = { last = 9 }\n");
    (0..5).for_each(|_| _ = world.brackfs(&["run", "etc"]).ok());
    world.configure("[defaults]\nkeep = { last = 1 }\n");
    for dry in [&["--dry-run"][..], &[]] {
        let run = world.brackfs(&[&["run", "etc"], dry].concat()).code(1);
        assert!(run.stderr.contains("add --force"), "{run}");
    }
    assert_eq!(world.snapshots("near", "etc"), 6);
    world.brackfs(&["run", "etc", "--force"]).ok();
    assert_eq!(world.snapshots("near", "etc"), 1);
}

/// The packs of a target.
fn packs(world: &World, target: &str) -> Vec<PathBuf> {
    tree(&world.path(target).join("packs")).into_keys().filter(|path| path.components().count() == 2).collect()
}

#[test]
fn targets_are_checked_in_parts_without_a_secret_key_when_it_is_due() {
    let world = World::new();
    world.configure("[check]\nevery = \"7d\"\nread-data = \"0.01%\"\n");
    let run_steps = |arguments: &[&str], code: i32| {
        let mut command = world.command(&[&["run", "--json"], arguments].concat());
        command.env_remove("BRACKFS_KEY_FILE");
        let ended = run(command).code(code);
        let objects = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let checks = objects
            .filter(|object| object["step"] == "check")
            .map(|step| ["target", "outcome", "message"].map(|key| step[key].as_str().unwrap().to_owned()));
        (checks.collect::<Vec<_>>(), ended)
    };
    let (checks, _) = run_steps(&[], 0);
    let count = packs(&world, "near").len();
    assert!(count > 1);
    let expected = format!("{count} packs compared, 1 of them read (");
    assert!(checks.iter().all(|check| check[1] == "done" && check[2].starts_with(&expected)), "{checks:?}");
    let (checks, _) = run_steps(&[], 0);
    assert!(checks.iter().all(|check| check[1] == "skipped" && check[2] == "it is not due"), "{checks:?}");
    let (checks, _) = run_steps(&["--only", "check", "--dry-run"], 0);
    assert!(checks.iter().all(|check| check[1] == "skipped"), "{checks:?}");

    // Each check reads one pack, so after as many as there are packs, all were read.
    let count = packs(&world, "near").len();
    let pack = world.path("near").join("packs").join(packs(&world, "near").last().unwrap());
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&pack, Permissions::from_mode(0o600)).unwrap();
    fs::write(&pack, bytes).unwrap();
    let mut damaged = 0;
    for _ in 0..count {
        let mut command = world.command(&["run", "etc", "--only", "check", "--json"]);
        command.env_remove("BRACKFS_KEY_FILE");
        let ended = run(command);
        assert!(ended.code == 0 || ended.code == 3, "{ended}");
        if ended.code == 3 {
            damaged += 1;
            assert!(ended.stderr.contains("not those that were stored"), "{ended}");
            assert!(ended.stdout.contains("1 problem; "), "{ended}");
        }
    }
    assert_eq!(damaged, 1);
    // The table has it.
    let listed = world.brackfs(&["run", "--only", "check", "-v"]).ok();
    assert!(listed.stderr.contains("done      check   near"), "{listed}");
}

#[test]
fn a_target_that_lacks_packs_is_found_by_a_check_that_reads_none() {
    let world = World::new();
    world.configure("[check]\nread-data = \"0%\"\n");
    world.brackfs(&["run"]).ok();
    fs::remove_file(world.path("far").join("packs").join(packs(&world, "far").last().unwrap())).unwrap();
    let ended = world.brackfs(&["run", "--only", "check"]).code(3);
    assert!(ended.stderr.contains("the pack is missing"), "{ended}");
    assert!(ended.stderr.contains("failed    check   far"), "{ended}");
    // Without [check], nothing is checked unless it is asked for.
    world.configure("");
    assert!(!world.steps(&[], 0).iter().any(|step| step.starts_with("check")));
}

#[test]
fn a_dry_run_changes_nothing() {
    let world = World::new();
    let mark = world.path("mark");
    let hook = format!("[[hook]]\non = [\"before\", \"finally\"]\nrun = [\"touch\", \"{}\"]\n", mark.display());
    world.configure(&hook);
    world.brackfs(&["run", "--only", "backup"]).ok();
    fs::remove_file(&mark).unwrap();
    world.site.write("etc/new", "new");
    // SQLite's own files next to a database exist while it is open.
    let content = |name: &str| {
        let files = tree(&world.path(name)).into_iter().filter(|(path, _)| !path.to_string_lossy().contains("sqlite-"));
        files.map(|(path, entry)| (path, entry.content)).collect::<BTreeMap<_, _>>()
    };
    let before = ["near", "far", "state"].map(content);
    let run = world.brackfs(&["run", "--dry-run"]).ok();
    assert!(run.stderr.contains("would read 1 file"), "{run}");
    for (before, name) in before.into_iter().zip(["near", "far", "state"]) {
        assert_eq!(before, content(name), "{name}");
    }
    assert!(!mark.exists());
}

#[test]
fn hooks_run_around_the_backups_and_learn_the_result() {
    let world = World::new();
    let log = world.path("log");
    let script = format!("echo \"$0 $BRACKFS_SOURCE $BRACKFS_RESULT\" >> {}", log.display());
    let hook = |moment: &str, sources: &str| {
        let name = if sources.is_empty() { format!("all-{moment}") } else { moment.to_owned() };
        let of = if sources.is_empty() { String::new() } else { format!("for = [\"{sources}\"]\n") };
        format!("[[hook]]\non = [\"{moment}\"]\n{of}run = [\"sh\", \"-c\", '{script}', \"{name}\"]\n")
    };
    let all: Vec<_> = ["before", "success", "warning", "failure", "finally"]
        .iter()
        .flat_map(|moment| [hook(moment, ""), hook(moment, "home")])
        .collect();
    world.configure(&all.concat());
    let logged = || {
        let text = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    world.brackfs(&["run"]).ok();
    let good = [
        "all-before",
        "before home",
        "success home success",
        "finally home success",
        "all-success  success",
        "all-finally  success",
    ];
    assert_eq!(logged(), good);
    fs::rename(world.path("far"), world.path("gone")).unwrap();
    world.brackfs(&["run", "home"]).code(10);
    let bad = [
        "all-before",
        "before home",
        "failure home failure",
        "finally home failure",
        "all-failure  failure",
        "all-finally  failure",
    ];
    assert_eq!(logged(), bad);
    // The hooks after the backups have all of it.
    let script = "{ echo $BRACKFS_TARGET; printenv BRACKFS_EXIT BRACKFS_MESSAGE BRACKFS_SUMMARY_JSON; }";
    let hook =
        |of| format!("[[hook]]\non = [\"failure\"]\n{of}run = [\"sh\", \"-c\", '{script} > {}']\n", log.display());
    for (of, targets) in [("for = [\"home\"]\n", "near far"), ("", "")] {
        world.configure(&hook(of));
        world.brackfs(&["run", "home"]).code(10);
        let told = logged();
        let [target, code, message, summary] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((target.as_str(), code.as_str()), (targets, "10"));
        assert!(message.starts_with("backup: "), "{message}");
        let steps: Vec<Value> = serde_json::from_str(summary).unwrap();
        let outcomes: Vec<_> = steps.iter().map(|step| (step["target"].as_str(), step["outcome"].as_str())).collect();
        let of_backups = [(Some("near"), Some("done")), (Some("far"), Some("failed"))];
        assert_eq!(outcomes.get(..2), Some(&of_backups[..]), "{summary}");
    }
    // A dry run, and other steps than backups, have none.
    world.brackfs(&["run", "--only", "prune"]).code(10);
    assert!(!log.exists());
}

#[test]
fn a_failed_hook_before_a_backup_stops_it_as_configured() {
    let world = World::new();
    let hook = |run: &str, more: &str| {
        format!("[[hook]]\non = [\"before\"]\nfor = [\"etc\"]\nrun = [\"sh\", \"-c\", \"{run}\"]\n{more}")
    };
    for (text, code, outcome) in [
        (hook("exit 1", ""), 1, "failed"),
        (hook("exit 1", "on-failure = \"warn\"\n"), 3, "done"),
        (hook("exit 1", "on-failure = \"ignore\"\n"), 0, "done"),
        (hook("exit 75", ""), 0, "skipped"),
        (hook("sleep 1000", "timeout = \"200ms\"\n"), 1, "failed"),
        ("[[hook]]\non = [\"before\"]\nfor = [\"etc\"]\nrun = [\"/no/such/program\"]\n".to_owned(), 1, "failed"),
    ] {
        world.configure(&text);
        let steps = world.steps(&["--only", "backup"], code);
        let of_etc: Vec<_> = steps.iter().filter(|step| step.starts_with("backup etc")).collect();
        assert_eq!(of_etc, [&format!("backup etc near {outcome}"), &format!("backup etc far {outcome}")], "{text}");
        assert_eq!(steps[steps.len() - 2..], ALL[2..], "{text}");
    }
    // After backups, 75 is a failure like any other.
    world.configure("[[hook]]\non = [\"success\"]\nrun = [\"sh\", \"-c\", \"exit 75\"]\n");
    assert_eq!(world.steps(&["etc", "--only", "backup"], 1)[2], "hook - - failed");
    // One without a source stops all.
    world.configure("[[hook]]\non = [\"before\"]\nrun = [\"false\"]\n");
    let steps = world.steps(&[], 1);
    assert_eq!(
        steps.iter().filter(|step| step.starts_with("backup") && step.ends_with("failed")).count(),
        4,
        "{steps:?}"
    );
}

#[test]
fn hooks_of_success_do_not_run_if_nothing_was_backed_up() {
    let world = World::new();
    let mark = world.path("mark").display().to_string();
    world.configure(&format!(
        "[[hook]]\non = [\"before\"]\nrun = [\"sh\", \"-c\", \"exit 75\"]\n\
         [[hook]]\non = [\"success\", \"warning\", \"failure\"]\nrun = [\"touch\", \"{mark}\"]\n\
         [[hook]]\non = [\"finally\"]\nrun = [\"sh\", \"-c\", \"echo $BRACKFS_RESULT > {mark}-finally\"]\n"
    ));
    let steps = world.steps(&[], 0);
    assert_eq!(steps[1], "backup etc near skipped");
    assert!(steps.contains(&"prune - near skipped".to_owned()), "{steps:?}");
    assert!(!world.path("mark").exists());
    assert_eq!(fs::read_to_string(world.path("mark-finally")).unwrap(), "skipped\n");
}

#[test]
fn what_hooks_print_is_not_mixed_with_results() {
    let world = World::new();
    world.configure("[[hook]]\non = [\"before\"]\nrun = [\"echo\", \"from the hook\"]\n");
    // Every line is an object.
    world.steps(&["etc"], 0);
    let run = world.brackfs(&["run", "etc", "--json"]).ok();
    assert!(run.stderr.contains("from the hook") && !run.stdout.contains("from the hook\n"), "{run}");
}

#[test]
fn a_command_may_run_as_another_user_and_has_no_terminal() {
    let world = World::new();
    world.configure(
        "[source.who]\ncommand = [\"sh\", \"-c\", \"id -un; (true < /dev/tty) || echo none\"]\nuser = \"nobody\"\n\
         filename = \"w\"\nto = [\"near\"]\n",
    );
    world.brackfs(&["run", "who", "who"]).ok();
    assert_eq!(world.brackfs(&["cat", "@near", "who/latest:w"]).ok().stdout, "nobody\nnone\n");
    // Named twice, it is run once.
    assert_eq!(world.snapshots("near", "who"), 1);
}

#[test]
fn a_target_that_is_not_mounted_fails_or_is_skipped_as_configured() {
    let world = World::new();
    let (disk, source) = (world.path("disk"), world.path("source"));
    fs::create_dir(&disk).unwrap();
    let config = |missing: &str| {
        format!(
            "[target.usb]\nrepository = \"{0}/repo\"\nrequire-mount = \"{0}\"\n{missing}\
             [source.etc]\npaths = [\"{1}/etc\"]\nto = [\"usb\"]\n",
            disk.display(),
            source.display()
        )
    };
    world.write_config(&config(""));
    assert_eq!(world.steps(&[], 1)[0], "backup etc usb failed");
    world.write_config(&config("when-missing = \"skip\"\n"));
    assert_eq!(world.steps(&[], 0), ["backup etc usb skipped", "prune - usb skipped"]);
    mount_tmpfs(&disk, c"mode=700,size=64m");
    world.init("disk/repo");
    assert_eq!(world.steps(&[], 0), ["backup etc usb done", "prune - usb done"]);
    unmount(&disk, UnmountFlags::DETACH).unwrap();
    assert!(fs::read_dir(&disk).unwrap().next().is_none());
}

#[test]
fn hooks_of_a_source_run_only_if_a_target_can_be_used() {
    let world = World::new();
    let (disk, source, near, mark) = (world.path("disk"), world.path("source"), world.path("near"), world.path("mark"));
    fs::create_dir(&disk).unwrap();
    let configure = |targets: &str| {
        world.write_config(&format!(
            "[target.usb]\nrepository = \"{0}/repo\"\nrequire-mount = \"{0}\"\nwhen-missing = \"skip\"\n\
             [target.near]\nrepository = \"{1}\"\n[source.etc]\npaths = [\"{2}/etc\"]\nto = {targets}\n\
             [[hook]]\non = [\"before\", \"finally\"]\nfor = [\"etc\"]\nrun = [\"touch\", \"{3}\"]\n",
            disk.display(),
            near.display(),
            source.display(),
            mark.display()
        ));
    };
    configure("[\"usb\"]");
    assert_eq!(world.steps(&[], 0), ["backup etc usb skipped", "prune - usb skipped"]);
    assert!(!mark.exists());
    configure("[\"usb\", \"near\"]");
    let backups = ["hook etc - done", "backup etc usb skipped", "backup etc near done", "hook etc - done"];
    assert_eq!(world.steps(&["--only", "backup"], 0), backups);
    assert!(mark.exists());
}

#[test]
fn the_output_of_a_command_is_a_source() {
    let world = World::new();
    let source = |script: &str| {
        format!("[source.dump]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nfilename = \"d.sql\"\nto = [\"near\"]\n")
    };
    world.configure(&source("echo data"));
    assert_eq!(world.steps(&["dump"], 0)[0], "backup dump near done");
    assert_eq!(world.brackfs(&["cat", "@near", "dump/latest:d.sql"]).ok().stdout, "data\n");
    world.configure(&source("echo part; exit 1"));
    assert_eq!(world.steps(&["dump"], 1)[0], "backup dump near failed");
    assert_eq!(world.snapshots("near", "dump"), 1);
}

#[test]
fn an_interrupt_ends_a_run_and_its_last_hooks_still_run() {
    let world = World::new();
    let [started, over] = ["started", "over"].map(|name| world.path(name));
    world.configure(&format!(
        "[[hook]]\non = [\"before\"]\nfor = [\"etc\"]\nrun = [\"sh\", \"-c\", \"touch {}; sleep 1000\"]\n\
         [[hook]]\non = [\"finally\"]\nfor = [\"etc\"]\nrun = [\"touch\", \"{}\"]\n",
        started.display(),
        over.display()
    ));
    let mut child = world.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the hook runs", || started.exists());
    send(&child, Signal::TERM);
    assert_eq!(ended(&mut child).code(), Some(130));
    assert!(over.exists());
    assert_eq!(world.snapshots("near", "home"), 0);
}

#[test]
fn steps_that_were_not_begun_did_not_fail() {
    let world = World::new();
    let usual = "[defaults]\nkeep = { last = 5 }\n";
    world.configure(usual);
    world.brackfs(&["run"]).ok();
    // The next prune is due in a week.
    let started = world.path("started");
    let hook = format!(
        "[[hook]]\non = [\"before\"]\nfor = [\"etc\"]\nrun = [\"sh\", \"-c\", \"touch {}; sleep 1000\"]\n",
        started.display()
    );
    world.configure(&format!("{usual}{hook}"));
    let mut child = world.command(&["run", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    until("the hook runs", || started.exists());
    send(&child, Signal::TERM);
    assert_eq!(ended(&mut child).code(), Some(130));
    let mut told = String::new();
    child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    for (step, outcome) in [("backup", "failed"), ("forget", "skipped"), ("prune", "skipped")] {
        let is_it = |line: &&str| line.contains(&format!("\"step\":\"{step}\""));
        let all: Vec<_> = told.lines().filter(is_it).collect();
        assert!(
            !all.is_empty() && all.iter().all(|line| line.contains(&format!("\"outcome\":\"{outcome}\""))),
            "{told}"
        );
    }
    world.configure(usual);
    world.brackfs(&["run"]).ok();
    world.brackfs(&["status"]).ok();
}

#[test]
fn an_interrupt_ends_a_hook_after_the_backups_soon() {
    let world = World::new();
    let started = world.path("started");
    let hook = format!("touch {}; sleep 1000", started.display());
    world.configure(&format!("[[hook]]\non = [\"finally\"]\nrun = [\"sh\", \"-c\", \"{hook}\"]\n"));
    let mut child = world.command(&["run"]).stderr(Stdio::null()).spawn().unwrap();
    until("the hook runs", || started.exists());
    let begun = Instant::now();
    send(&child, Signal::TERM);
    assert_eq!(ended(&mut child).code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    // The run has ended in order, and its backups count.
    world.brackfs(&["status"]).ok();
}

#[test]
fn a_dry_run_before_the_first_backup_succeeds() {
    let world = World::new();
    world.configure("[defaults]\nkeep = { last = 5 }\n[check]\n");
    let run = world.brackfs(&["run", "--dry-run"]).ok();
    for (message, times) in [("there is no snapshot yet", 4), ("nothing was backed up yet", 2)] {
        assert_eq!(run.stderr.matches(message).count(), times, "{run}");
    }
    world.brackfs(&["run"]).ok();
}

#[test]
fn a_failed_forget_is_tried_again_even_if_nothing_changes() {
    let world = World::new();
    world.configure("[defaults]\nkeep = { last = 5 }\nskip-if-unchanged = true\n");
    world.brackfs(&["run"]).ok();
    let outcomes = || {
        let run = world.brackfs(&["run", "--json"]).ok();
        let steps = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of_forget = steps.filter(|step| step["step"] == "forget");
        of_forget.map(|step| step["outcome"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(), ["skipped"; 4]);
    let journal = rusqlite::Connection::open(world.site.state().join("journal.sqlite")).unwrap();
    let fail = "UPDATE steps SET outcome = 'failed' WHERE step = 'forget' AND outcome = 'done' AND source = 'etc'";
    assert_eq!(journal.execute(fail, []).unwrap(), 2);
    world.brackfs(&["status"]).code(2);
    assert_eq!(outcomes(), ["done", "done", "skipped", "skipped"]);
    world.brackfs(&["status"]).ok();
    assert_eq!(outcomes(), ["skipped"; 4]);
}

#[test]
fn a_damaged_record_of_runs_is_reported_and_does_no_harm() {
    let world = World::new();
    world.configure("");
    world.brackfs(&["run"]).ok();
    let journal = world.site.state().join("journal.sqlite");
    assert_eq!(fs::metadata(&journal).unwrap().mode() & 0o777, 0o600);
    fs::write(&journal, [7; 5000]).unwrap();
    // When the last prune was is not known, so there is none. Without a failure, the disk could fill up.
    let run = world.brackfs(&["run", "-v"]).code(1);
    assert_eq!(run.stderr.matches("journal.sqlite is damaged").count(), 1, "{run}");
    assert!(run.stderr.contains("it is not known whether it is due"), "{run}");
    assert_eq!(world.snapshots("near", "etc"), 2);
    let unknown = world.brackfs(&["status", "--format", "nagios"]).code(3);
    assert!(unknown.stdout.contains("move the file away"), "{unknown}");
    fs::rename(&journal, world.path("damaged")).unwrap();
    world.brackfs(&["run"]).ok();
    world.brackfs(&["status"]).ok();
}

// --- reports ---

/// Answers requests on a port of this machine, and returns the URL and what it was asked.
fn listener(answers: usize) -> (String, thread::JoinHandle<Vec<String>>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/token", server.local_addr().unwrap());
    let asked = thread::spawn(move || {
        let answer = |mut stream: TcpStream| {
            let mut bytes = [0; 4096];
            let mut text = String::new();
            // A request of these tests has a length or no body.
            loop {
                let read = stream.read(&mut bytes).unwrap();
                text.push_str(&String::from_utf8_lossy(&bytes[..read]));
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head
                    .lines()
                    .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    break;
                }
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            text
        };
        server.incoming().take(answers).map(|stream| answer(stream.unwrap())).collect()
    });
    (url, asked)
}

#[test]
fn a_url_is_told_the_beginning_and_the_exit_code() {
    let world = World::new();
    let (url, asked) = listener(4);
    fs::write(world.path("url"), format!("{url}\n")).unwrap();
    let report = |more: &str| world.configure(&format!("[report]\nping = {{ url = {{ file = \"url\" }}{more} }}\n"));
    report("");
    world.brackfs(&["run", "etc"]).ok();
    report(", send-log = true");
    fs::remove_file(world.path("source/etc/one")).unwrap();
    world.brackfs(&["run", "etc"]).code(3);
    // A dry run tells nobody.
    world.brackfs(&["run", "etc", "--dry-run"]).code(3);
    let asked = asked.join().unwrap();
    let begins: Vec<_> = asked.iter().map(|text| text.lines().next().unwrap()).collect();
    let expected = ["GET /token/start", "GET /token/0", "GET /token/start", "POST /token/3"];
    assert_eq!(begins, expected.map(|line| format!("{line} HTTP/1.1")));
    assert!(asked[3].contains("failed    backup  etc to near"), "{}", asked[3]);
    // A server that is away changes nothing, and the URL is not shown.
    let run = world.brackfs(&["run", "home"]).ok();
    assert_eq!(run.stderr.matches("cannot ping").count(), 1, "{run}");
    assert!(!run.stderr.contains("token"), "{run}");
    assert_eq!(world.snapshots("near", "home"), 1);
}

#[test]
fn metrics_are_written_as_a_whole_for_all_that_was_ever_run() {
    let world = World::new();
    let file = world.path("metrics/brackfs.prom");
    fs::create_dir(file.parent().unwrap()).unwrap();
    world.configure(&format!("[report]\nmetrics = \"{}\"\n", file.display()));
    world.brackfs(&["run", "etc"]).ok();
    let inode = fs::metadata(&file).unwrap().ino();
    fs::rename(world.path("far"), world.path("gone")).unwrap();
    // As the service, whose umask hides its other files. A server reads this one.
    run(with_umask(0o077, &world.command(&["run", "home"]))).code(10);
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o644);
    assert_ne!(metadata.ino(), inode, "it was not replaced");
    let text = fs::read_to_string(&file).unwrap();
    let value = |name: &str, source: &str, target: &str| {
        let begin = format!("brackfs_{name}{{step=\"backup\",source=\"{source}\",target=\"{target}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&begin)?.parse::<f64>().ok())
    };
    assert_eq!(value("source_files", "etc", "near"), Some(1.0));
    assert_eq!(value("source_files", "home", "near"), Some(2.0));
    assert_eq!(value("last_run_failed", "home", "far"), Some(1.0));
    assert_eq!(value("last_success_timestamp_seconds", "home", "far"), None);
    assert!(value("last_success_timestamp_seconds", "etc", "far").unwrap() > 1.7e9);
    assert!(text.contains("brackfs_run_exit_code 10\n"), "{text}");
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "a temporary file is left");
    // A folder that is missing is said, and harms nothing.
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
    fs::rename(world.path("gone"), world.path("far")).unwrap();
    let run = world.brackfs(&["run", "etc"]).ok();
    assert!(run.stderr.contains("cannot write metrics"), "{run}");
}

// --- targets by name ---

#[test]
fn commands_find_targets_by_name() {
    let world = World::new();
    world.configure("");
    world.brackfs(&["run"]).ok();
    let listed = |arguments: &[&str]| world.brackfs(arguments).ok().stdout.lines().count();
    assert_eq!(listed(&["snapshots", "--repo", "near"]), 2);
    assert_eq!(listed(&["snapshots", "@far", "--source", "etc"]), 1);
    let mut by_variable = world.command(&["snapshots"]);
    by_variable.env("BRACKFS_REPOSITORY", "far");
    assert_eq!(run(by_variable).ok().stdout.lines().count(), 2);
    // With a slash it is a path. The other name is the directory of the same target.
    assert_eq!(listed(&["snapshots", "--repo", "./near"]), 2);
    // With several targets, one must be named.
    let which = world.brackfs(&["snapshots"]).code(2);
    assert!(which.stderr.contains("which target? give --repo with one of near, far"), "{which}");
    let unknown = world.brackfs(&["snapshots", "@naer"]).code(2);
    assert!(unknown.stderr.contains("no target naer (did you mean near?)"), "{unknown}");
    let source = world.path("source");
    let near = world.path("near");
    world.write_config(&format!("[target.only]\nrepository = \"{}\"\n", near.display()));
    assert_eq!(listed(&["snapshots"]), 2);
    world.brackfs(&["backup", source.to_str().unwrap()]).ok();
    // Without a configuration, the message says what is missing.
    let mut without = world.command(&["snapshots"]);
    without.env("BRACKFS_CONFIG", world.path("none.toml"));
    let none = run(without).code(2);
    assert!(none.stderr.contains("none.toml"), "{none}");
}

#[test]
fn a_repository_is_made_for_a_target_by_name() {
    let world = World::new();
    let new = world.path("new");
    world.write_config(&format!("[target.new]\nrepository = \"{}\"\n", new.display()));
    world.brackfs(&["init", "@new", "--no-encryption"]).ok();
    assert!(new.join("brackfs.toml").exists());
    assert_eq!(world.brackfs(&["snapshots", "@new"]).ok().stdout, "");
    let unknown = world.brackfs(&["init", "@nwe", "--no-encryption"]).code(2);
    assert!(unknown.stderr.contains("did you mean new?"), "{unknown}");
}

// --- config ---

#[test]
fn an_example_is_written_once_and_has_no_mistakes() {
    let world = World::new();
    let file = world.path("config.toml");
    world.brackfs(&["config", "init"]).ok();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).unwrap();
    let again = world.brackfs(&["config", "init"]).code(2);
    assert!(again.stderr.contains("exists already"), "{again}");
    assert_eq!(world.brackfs(&["config", "init", "--stdout"]).ok().stdout, text);
    world.brackfs(&["config", "check"]).ok();
    // Also if everything in it is used.
    let used: String = text
        .lines()
        .map(|line| {
            let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
            format!("{setting}\n")
        })
        .collect();
    fs::write(&file, used).unwrap();
    let checked = world.brackfs(&["config", "check"]).ok();
    assert!(checked.stdout.contains("2 sources, 2 targets, 1 hook"), "{checked}");
}

#[test]
fn a_check_of_the_configuration_reads_files_of_patterns() {
    let world = World::new();
    world.write_config(&format!(
        "[target.near]\nrepository = {:?}\n[source.home]\npaths = [\"/home\"]\nto = [\"near\"]\nexclude-from = [\"patterns\"]\n",
        world.path("near")
    ));
    let run = world.brackfs(&["config", "check"]).code(2);
    let place = format!("{}:6:16: exclude-from: ", world.path("config.toml").display());
    assert!(run.stderr.contains(&format!("{place}cannot read patterns from")), "{run}");
    fs::write(world.path("patterns"), "*.o\n[\n*.a\n{\n").unwrap();
    let run = world.brackfs(&["config", "check"]).code(2);
    for line in [2, 4] {
        let found = run
            .stderr
            .lines()
            .any(|said| said.contains(&place) && said.contains(&format!("line {line}, is not valid")));
        assert!(found, "{run}");
    }
    fs::write(world.path("patterns"), "*.o\n").unwrap();
    world.brackfs(&["config", "check"]).ok();
}

#[test]
fn mistakes_are_all_named_with_their_places_and_code_2() {
    let world = World::new();
    let file = world.path("config.toml");
    world.write_config("[source.home]\npaths = [\"home\"]\nto = [\"nas\"]\nexlude = []\n");
    let run = world.brackfs(&["config", "check"]).code(2);
    for (place, words) in
        [("2:10", "write an absolute path"), ("3:7", "no target.nas"), ("4:1", "did you mean exclude?")]
    {
        let line = format!("{}:{place}: ", file.display());
        assert!(run.stderr.lines().any(|said| said.contains(&line) && said.contains(words)), "{place}\n{run}");
    }
    world.brackfs(&["run"]).code(2);
    world.brackfs(&["snapshots", "@near"]).code(2);
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    let exposed = world.brackfs(&["config", "show"]).code(2);
    assert!(exposed.stderr.contains("other users can change"), "{exposed}");
}

#[test]
fn a_backup_without_a_path_is_one_of_the_configured_sources() {
    let world = World::new();
    world.configure("");
    world.brackfs(&["backup", "@near"]).ok();
    assert_eq!(["near", "far"].map(|target| world.snapshots(target, "etc")), [1, 0]);
    world.brackfs(&["backup", "--repo", "far", "--dry-run"]).ok();
    let json = world.brackfs(&["backup", "--json"]).ok();
    assert_eq!(json.stdout.lines().filter(|line| line.contains("\"step\":\"backup\"")).count(), 4, "{json}");
    assert_eq!(["near", "far"].map(|target| world.snapshots(target, "home")), [2, 1]);
    let lost = world.brackfs(&["backup", "--exclude", "x"]).code(2);
    assert!(lost.stderr.contains("--exclude needs a PATH"), "{lost}");
    let path = world.path("near").display().to_string();
    let strange = world.brackfs(&["backup", "--repo", &path]).code(2);
    assert!(strange.stderr.contains("is not a target of the configuration"), "{strange}");
    world.write_config("[target.near]\nrepository = \"/x\"\n[target.far]\nrepository = \"/y\"\n[source.a]\npaths = [\"/z\"]\nto = [\"far\"]\n");
    let unused = world.brackfs(&["backup", "@near"]).code(2);
    assert!(unused.stderr.contains("no source of the configuration is backed up to near"), "{unused}");
}

#[test]
fn a_repository_must_be_encrypted_to_the_configured_recipients() {
    let world = World::new();
    let other = world.path("other");
    let mut generate = world.site.command(&["key", "generate", "--output", other.to_str().unwrap()]);
    generate.env("BRACKFS_PASSPHRASE", "secret");
    run(generate).ok();
    let configure = |certificates: &[&Path]| {
        let [near, source] = ["near", "source"].map(|name| world.path(name));
        world.write_config(&format!(
            "[target.near]\nrepository = {near:?}\nrecipients = {certificates:?}\n\
             [source.etc]\npaths = [\"{}/etc\"]\nto = [\"near\"]\n",
            source.display()
        ));
    };
    let (owner, other) = (world.site.keys().join("owner.pub"), world.path("other.pub"));
    configure(&[&owner]);
    world.brackfs(&["run", "--only", "backup"]).ok();
    for wrong in [&[other.as_path()][..], &[&owner, &other], &[]] {
        configure(wrong);
        let refused = world.brackfs(&["run", "--only", "backup"]).code(1);
        assert!(refused.stderr.contains("the repository is encrypted to"), "{refused}");
        let path = world.path("source/etc").display().to_string();
        let by_hand = world.brackfs(&["backup", "@near", &path]).code(1);
        assert!(by_hand.stderr.contains("the repository is encrypted to"), "{by_hand}");
    }
    configure(&[&world.path("none")]);
    let missing = world.brackfs(&["run", "--only", "backup"]).code(1);
    assert!(missing.stderr.contains("cannot read the certificate") && missing.stderr.contains("/none"), "{missing}");
    configure(&[&owner]);
    assert_eq!(world.snapshots("near", "etc"), 1);
}

#[test]
fn settings_are_shown_with_their_places() {
    let world = World::new();
    world.configure("[source.more]\ninherit = \"home\"\nexclude = [\"*.o\"]\n");
    let file = world.path("config.toml");
    let shown = world.brackfs(&["config", "show"]).ok().stdout;
    assert!(
        shown.contains(&format!(
            "[source.more]\nexclude = [\"*.o\"]  # {0}:13:11\nto = [\"near\", \"far\"]  # {0}:10:6\n",
            file.display()
        )),
        "{shown}"
    );
    let tables =
        "[[hook]]\non = [\"before\"]\nrun = [\"true\"]\n\n[check]\nevery = \"3d\"\n\n[report]\nmetrics = \"/x\"\n";
    world.configure(&format!("[source.more]\ninherit = \"home\"\nexclude = [\"*.o\"]\n{tables}"));
    let shown = world.brackfs(&["config", "show"]).ok().stdout;
    let plain = shown.lines().map(|line| line.split("  # ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    assert!(plain.ends_with(tables.trim_end()) || plain.trim_end().ends_with(tables.trim_end()), "{shown}");
    let json: Value = serde_json::from_str(&world.brackfs(&["config", "show", "--json"]).ok().stdout).unwrap();
    assert_eq!(json["hooks"][0]["run"]["value"], "[\"true\"]");
    assert_eq!(
        (&json["check"]["every"]["value"], &json["report"]["metrics"]["value"]),
        (&"\"3d\"".into(), &"\"/x\"".into())
    );
    assert_eq!(json["sources"]["more"]["exclude"]["value"], "[\"*.o\"]");
    assert_eq!(json["sources"]["more"]["exclude"]["from"], format!("{}:13:11", file.display()));
    assert_eq!(json["targets"]["near"]["repository"]["value"], format!("\"{}\"", world.path("near").display()));
}

#[test]
fn output_of_other_programs_is_json_if_messages_are() {
    let world = World::new();
    let hook = "[[hook]]\non = [\"before\"]\nrun = [\"sh\", \"-c\", \"echo out; printf err >&2\"]\n\
        [[hook]]\non = [\"success\"]\nrun = [\"sh\", \"-c\", \"sleep 1000 & echo $! >> background; echo done\"]\n";
    let command = "[source.dump]\ncommand = [\"sh\", \"-c\", \"head -c 200000 /dev/zero | tr '\\\\0' x >&2; echo >&2; echo content\"]\n\
        filename = \"x\"\nto = [\"near\"]\n";
    world.configure(&format!("{hook}{command}"));
    let run = world.brackfs(&["run", "dump", "--json"]).ok();
    let lines: Vec<Value> = run.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |text: &str| {
        let found = lines.iter().find(|line| line["text"] == text).unwrap_or_else(|| panic!("{text}: {run}"));
        assert_eq!((&found["message_type"], &found["program"]), (&"program_output".into(), &"sh".into()), "{run}");
    };
    ["out", "err", "done"].into_iter().for_each(of);
    // More than a pipe holds, in parts of a line.
    let long = lines.iter().filter_map(|line| line["text"].as_str()).filter(|text| text.starts_with("xx"));
    assert_eq!(long.map(str::len).sum::<usize>(), 200_000);
    // Without --json it is as the programs wrote it.
    let run = world.brackfs(&["run", "dump", "--only", "backup"]).ok();
    assert!(run.stderr.starts_with("out\nerr") && run.stderr.ends_with("\ndone\n"), "{}", run.stderr.len());
    let background = fs::read_to_string(world.path("background")).unwrap();
    assert!(Command::new("kill").args(background.lines()).status().unwrap().success());
}

#[test]
fn steps_run_with_the_priority_of_their_source() {
    let world = World::new();
    let source = |name: &str, more: &str| {
        format!(
            "[source.{name}]\ncommand = [\"sh\", \"-c\", \"nice; ionice -p $$\"]\nfilename = \"x\"\nto = [\"near\"]\n{more}"
        )
    };
    let sources =
        [("low", "nice = 15\nio = \"idle\"\n"), ("high", "nice = 0\nio = \"best-effort 0\"\n"), ("usual", "")];
    let sources: String = sources.into_iter().map(|(name, more)| source(name, more)).collect();
    world.configure(&format!("{sources}[defaults]\nnice = 7\nio = \"best-effort 6\"\n"));
    world.brackfs(&["config", "check"]).ok();
    world.brackfs(&["run", "low", "high", "usual", "--only", "backup"]).ok();
    // The tests may run with a lower priority.
    let own = rustix::process::getpriority_process(None).unwrap();
    let expect = |source: &str, nice: i32, class: &str| {
        let printed = world.brackfs(&["cat", "--repo", "near", &format!("{source}/latest:x")]).ok().stdout;
        assert_eq!(printed, format!("{}\n{class}\n", nice.max(own)), "{source}");
    };
    expect("low", 15, "idle");
    expect("high", 0, "best-effort: prio 0");
    expect("usual", 7, "best-effort: prio 6");
    let shown = world.brackfs(&["config", "show"]).ok();
    assert!(shown.stdout.contains("nice = 15") && shown.stdout.contains("io = \"idle\""), "{shown}");
}

#[test]
fn a_run_that_finds_the_lock_held_names_its_own_setting() {
    let world = World::new();
    world.configure("");
    world.brackfs(&["run", "etc"]).ok();
    let config = fs::read_to_string(world.path("config.toml")).unwrap();
    world.write_config(&config.replace("[target.far]\n", "[target.far]\nwait-lock = \"0s\"\n"));
    let locks = common::paths_below(&world.site.state()).into_iter().filter(|path| path.ends_with("lock"));
    let locks: Vec<_> = locks.map(|path| File::options().write(true).open(path).unwrap()).collect();
    assert_eq!(locks.len(), 2);
    locks.iter().for_each(|lock| flock(lock, FlockOperation::LockExclusive).unwrap());
    world.write_config(
        &fs::read_to_string(world.path("config.toml")).unwrap().replace("to = [\"near\", \"far\"]", "to = [\"far\"]"),
    );
    let run = world.brackfs(&["run"]).code(11);
    assert!(run.stderr.contains("wait-lock in the configuration of the target"), "{run}");
    assert!(!run.stderr.contains("--wait-lock"), "{run}");
    let run = world.brackfs(&["prune", "@far"]).code(11);
    assert!(run.stderr.contains("wait longer with --wait-lock"), "{run}");
}
