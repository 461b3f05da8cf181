//! `brackfs status`: the state of configured backups, without a target.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use common::machine::spawn;
use common::wait::until;
use common::{Run, Site, machine, run};
use rusqlite::Connection;
use serde_json::Value;

const DAY: i64 = 24 * 60 * 60;

/// Two sources, `etc` and `home`, and a target `nas`.
struct Machine {
    site: Site,
}

impl Machine {
    fn new() -> Self {
        let site = Site::with_files(&[("etc/one", "one"), ("home/two", "two"), ("home/three", "three")]);
        let machine = Machine { site };
        let nas = machine.path("nas");
        machine.site.brackfs(&["init", nas.to_str().unwrap(), "--no-encryption"]).ok();
        machine.configure("");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path().join(name)
    }

    /// Writes the configuration, with more keys for the source `home`, which is last.
    fn configure(&self, more: &str) {
        let [nas, source] = ["nas", "source"].map(|name| self.path(name).display().to_string());
        let text = format!(
            "[target.nas]\nrepository = \"{nas}\"\n[source.etc]\npaths = [\"{source}/etc\"]\nto = [\"nas\"]\n\
             [source.home]\npaths = [\"{source}/home\"]\nto = [\"nas\"]\n{more}"
        );
        fs::write(self.path("config.toml"), text).unwrap();
        fs::set_permissions(self.path("config.toml"), Permissions::from_mode(0o644)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        command.env("BRACKFS_CONFIG", self.path("config.toml")).env_remove("BRACKFS_REPOSITORY");
        command.env("LC_ALL", "C").env("TZ", "UTC").env("COLUMNS", "80").env_remove("NO_COLOR");
        command
    }

    fn brackfs(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    fn status(&self, code: i32) -> Value {
        let run = self.brackfs(&["status", "--json"]).code(code);
        assert_eq!(run.stderr, "");
        let status: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(status["code"], code);
        status
    }

    /// The states of all backups.
    fn states(&self, code: i32) -> Vec<String> {
        let status = self.status(code);
        let backups = status["backups"].as_array().unwrap().iter();
        backups.map(|it| ["source", "state"].map(|key| it[key].as_str().unwrap()).join(" ")).collect()
    }

    /// Changes the record of steps.
    fn alter(&self, sql: &str) {
        let db = Connection::open(self.site.state().join("journal.sqlite")).unwrap();
        db.execute_batch(sql).unwrap();
    }

    /// The number of recorded steps of a kind.
    fn recorded(&self, step: &str) -> i64 {
        let db = Connection::open(self.site.state().join("journal.sqlite")).unwrap();
        db.query_row("SELECT count(*) FROM steps WHERE step = ?", [step], |row| row.get(0)).unwrap()
    }
}

#[test]
fn the_code_is_of_the_worst_backup_and_no_target_is_opened() {
    let machine = Machine::new();
    assert_eq!(machine.states(3), ["etc never", "home never"]);
    assert!(!machine.site.state().join("journal.sqlite").exists());
    machine.brackfs(&["run", "etc"]).ok();
    assert_eq!(machine.states(3), ["etc ok", "home never"]);
    machine.brackfs(&["run"]).ok();
    fs::rename(machine.path("nas"), machine.path("gone")).unwrap();
    assert_eq!(machine.states(0), ["etc ok", "home ok"]);
    let status = machine.status(0);
    assert_eq!((&status["backups"][0]["snapshots"], &status["backups"][1]["snapshots"]), (&2.into(), &1.into()));
    assert_eq!(status["backups"][1]["last_success"]["files"], 2);
    assert!(status["targets"][0]["stored_bytes"].as_u64().unwrap() > 0);
    // Those of the kept snapshots.
    let listed = machine.brackfs(&["status"]).ok().stdout;
    let db = Connection::open(
        common::paths_below(&machine.site.state()).into_iter().find(|path| path.ends_with("catalog.sqlite")).unwrap(),
    )
    .unwrap();
    let sum = "SELECT sum(stored) FROM snapshots JOIN sources ON sources.id = source WHERE name = 'etc'";
    let sum = db.query_row(sum, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(status["backups"][0]["stored_bytes"], sum);
    assert!(sum > 0 && listed.contains(" stored\n"), "{listed}");
    assert_eq!(status["last_run"]["code"], 0);
    // A backup that is too old is worse than one that was never made, and a failure is worse than both.
    machine.alter(&format!("UPDATE steps SET ended = ended - 2 * {DAY} WHERE source = 'etc'"));
    assert_eq!(machine.states(1), ["etc LATE", "home ok"]);
    machine.alter("DELETE FROM steps WHERE source = 'home'");
    assert_eq!(machine.states(1), ["etc LATE", "home never"]);
    machine.brackfs(&["run", "home", "--only", "backup"]).code(10);
    assert_eq!(machine.states(2), ["etc LATE", "home FAILED"]);
    machine.brackfs(&["status", "etc"]).code(1);
    machine.brackfs(&["status", "etc", "--max-age", "3d"]).code(0);
    let unknown = machine.brackfs(&["status", "hmoe"]).code(64);
    machine.brackfs(&["status", "--no-such"]).code(64);
    assert!(unknown.stdout.is_empty() && unknown.stderr.contains("did you mean home?"), "{unknown}");
}

/// Binds a folder to itself, read-only, until it is dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn new(folder: PathBuf) -> Self {
        machine::succeed(Command::new("mount").arg("--bind").args([&folder, &folder]));
        machine::succeed(Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&folder));
        ReadOnly(folder)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        machine::succeed(Command::new("umount").arg(&self.0));
    }
}

/// Another place of a folder, until it is dropped.
struct Writable(PathBuf);

impl Writable {
    fn new(folder: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        machine::succeed(Command::new("mount").arg("--bind").args([folder, &at]));
        Writable(at)
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        machine::succeed(Command::new("umount").arg(&self.0));
    }
}

/// Every file below a folder, with its bytes and its modification time.
fn everything(folder: &Path) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
    let files = common::paths_below(folder).into_iter().filter(|path| path.is_file());
    files.map(|path| (path.clone(), fs::read(&path).unwrap(), path.metadata().unwrap().modified().unwrap())).collect()
}

const READS: [&[&str]; 8] = [
    &["status"],
    &["report"],
    &["snapshots", "@nas"],
    &["find", "@nas", "two"],
    &["versions", "@nas", "two"],
    &["ls", "@nas", "home/latest"],
    &["stats", "@nas"],
    &["recipients", "list", "@nas"],
];

#[test]
fn the_state_is_read_where_it_cannot_be_written() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    let state = machine.site.state();
    let source = machine.path("source/home");
    let dry: [&[&str]; 2] = [&["run", "--dry-run"], &["backup", "@nas", "--dry-run", source.to_str().unwrap()]];
    let all: Vec<_> = READS.into_iter().chain(dry).collect();
    let expected: Vec<_> = all.iter().map(|words| machine.brackfs(words).ok()).collect();
    {
        let _read_only = ReadOnly::new(state.clone());
        for (words, expected) in all.iter().zip(&expected) {
            let found = machine.brackfs(words).ok();
            assert_eq!(found.stderr, expected.stderr, "{words:?}");
        }
        assert_eq!(machine.states(0), ["etc ok", "home ok"]);
    }
    // A run that was killed has left the log of the catalog. It is read with its index, but not without.
    let catalog = common::paths_below(&state).into_iter().find(|path| path.ends_with("catalog.sqlite")).unwrap();
    let db = Connection::open(&catalog).unwrap();
    db.execute_batch("UPDATE sources SET name = 'renamed' WHERE name = 'home'").unwrap();
    let [log, index] = ["catalog.sqlite-wal", "catalog.sqlite-shm"].map(|name| catalog.with_file_name(name));
    let kept = [&catalog, &log, &index].map(|path| fs::read(path).unwrap());
    drop(db);
    for (path, bytes) in [&catalog, &log, &index].into_iter().zip(&kept) {
        fs::write(path, bytes).unwrap();
    }
    let unread =
        |run: &Run| run.stdout.contains("cannot read the catalog") || run.stderr.contains("cannot read the catalog");
    {
        let _read_only = ReadOnly::new(state.clone());
        let found = machine.brackfs(&["snapshots", "@nas", "--json"]).ok();
        assert!(found.stdout.contains("renamed"), "{found}");
    }
    fs::remove_file(&index).unwrap();
    {
        let writable = Writable::new(&state, machine.path("writable"));
        let _read_only = ReadOnly::new(state.clone());
        // Another process is just making or removing the index.
        let reader = spawn(machine.command(&["snapshots", "@nas", "--json"]).stdout(Stdio::piped()));
        thread::sleep(Duration::from_millis(300));
        let index = writable.0.join(index.strip_prefix(&state).unwrap());
        fs::write(&index, &kept[2]).unwrap();
        let found = reader.wait_with_output().unwrap();
        assert!(found.status.success() && String::from_utf8_lossy(&found.stdout).contains("renamed"), "{found:?}");
        fs::remove_file(&index).unwrap();
        let found = machine.brackfs(&["status"]);
        assert!(unread(&found), "{found}");
        let found = machine.brackfs(&["stats", "@nas"]).code(1);
        assert!(unread(&found), "{found}");
    }
    let found = machine.brackfs(&["snapshots", "@nas", "--json"]).ok();
    assert!(found.stdout.contains("renamed"), "{found}");
}

#[test]
fn an_unfinished_change_of_the_record_is_undone_where_that_is_possible() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    let state = machine.site.state();
    let undo = state.join("journal.sqlite-journal");
    let db = Connection::open(state.join("journal.sqlite")).unwrap();
    // Otherwise, the head of the file is written last.
    db.execute_batch("PRAGMA synchronous = off; BEGIN IMMEDIATE; UPDATE steps SET outcome = 'failed'").unwrap();
    let bytes = fs::read(&undo).unwrap();
    drop(db);
    fs::write(&undo, bytes).unwrap();
    let words = "cannot read the record of runs";
    {
        let _read_only = ReadOnly::new(state.clone());
        let found = machine.brackfs(&["status"]).code(1);
        assert!(found.stderr.contains(words) && found.stderr.contains("write access"), "{found}");
        let found = machine.brackfs(&["run", "--dry-run"]).ok();
        assert!(found.stderr.contains(words), "{found}");
    }
    assert_eq!(machine.states(0), ["etc ok", "home ok"]);
    assert!(!undo.exists());
}

#[test]
fn commands_that_read_change_nothing() {
    let machine = Machine::new();
    let state = machine.site.state();
    let before = everything(&state);
    for words in [&["status"][..], &["run", "--dry-run"]] {
        machine.brackfs(words);
        assert_eq!(everything(&state), before, "{words:?}");
    }
    machine.brackfs(&["run"]).ok();
    let source = machine.path("source/home");
    let more: [&[&str]; 7] = [
        &["run", "--dry-run"],
        &["backup", "@nas", "--dry-run", source.to_str().unwrap()],
        &["forget", "@nas", "--dry-run", "--keep-last", "1"],
        &["prune", "@nas", "--dry-run"],
        &["setup", "--dry-run"],
        &["catalog", "verify", "@nas"],
        &["report", "--html"],
    ];
    let (before, repository) = (everything(&state), everything(&machine.path("nas")));
    for words in READS.iter().chain(&more) {
        let run = machine.brackfs(words).ok();
        let (now, repository_now) = (everything(&state), everything(&machine.path("nas")));
        let names = |all: &[(PathBuf, Vec<u8>, SystemTime)]| all.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
        assert_eq!(names(&now), names(&before), "{run}");
        assert!(now == before && repository_now == repository, "{run}");
    }
    // Nor does the record of a step that was killed change.
    machine.alter("UPDATE steps SET outcome = 'started' WHERE source = 'home' AND step = 'backup'");
    let before = everything(&state);
    assert_eq!(machine.states(2), ["etc ok", "home FAILED"]);
    assert!(everything(&state) == before);
}

#[test]
fn a_failed_prune_or_forget_counts_and_the_maximum_age_may_be_configured() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    machine.alter(&format!("UPDATE steps SET ended = ended - 2 * {DAY}"));
    assert_eq!(machine.states(1), ["etc LATE", "home LATE"]);
    machine.configure("max-age = \"3d\"\n");
    assert_eq!(machine.states(1), ["etc LATE", "home ok"]);
    let defaults = "[defaults]\nmax-age = \"3d\"\n";
    machine.configure(&format!("{defaults}keep = {{ last = 9 }}\n"));
    assert_eq!(machine.states(0), ["etc ok", "home ok"]);
    for step in ["prune", "forget"] {
        let source = if step == "prune" { "NULL" } else { "'home'" };
        machine.alter(&format!(
            "INSERT INTO steps (ended, seconds, step, source, target, outcome, message)
                VALUES (unixepoch(), 1, '{step}', {source}, 'nas', 'failed', 'no room')"
        ));
        assert_eq!(machine.states(2), ["etc ok", "home ok"]);
        let shown = machine.brackfs(&["status"]).code(2);
        assert!(shown.stdout.contains(&format!("{step} FAILED just now: no room")), "{shown}");
        let line = machine.brackfs(&["status", "--format", "nagios"]).code(2).stdout;
        assert!(line.starts_with("BRACKFS CRITICAL - ") && line.contains(&format!("{step} of ")), "{line}");
        if step == "prune" {
            machine.alter("DELETE FROM steps WHERE step = 'prune'");
        }
    }
    // Without a policy, no run would ever forget and end the failure.
    machine.configure(defaults);
    assert_eq!(machine.states(0), ["etc ok", "home ok"]);
}

#[test]
fn skipped_backups_and_problems_are_told_apart_from_good_ones() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    machine.configure("require-mount = \"/nonexistent\"\nwhen-missing = \"skip\"\n");
    machine.brackfs(&["run"]).ok();
    assert_eq!(machine.states(0), ["etc ok", "home skipped"]);
    let shown = machine.brackfs(&["status"]).ok();
    assert!(shown.stdout.contains("skipped just now: /nonexistent is not a mount point"), "{shown}");
    machine.alter("UPDATE steps SET outcome = 'problems', problems = 2 WHERE source = 'etc'");
    assert_eq!(machine.states(0), ["etc problems", "home skipped"]);
    assert!(machine.brackfs(&["status"]).ok().stdout.contains("2 problems in the last backup"));
    let line = machine.brackfs(&["status", "--format", "nagios"]).ok().stdout;
    assert!(line.starts_with("BRACKFS OK - etc/") && line.contains(" has problems | "), "{line}");
    // Skipping does not make an old backup fresh.
    machine.alter(&format!("UPDATE steps SET ended = ended - 2 * {DAY} WHERE outcome = 'done'"));
    assert_eq!(machine.states(1), ["etc problems", "home LATE"]);
}

#[test]
fn a_clock_that_was_ahead_makes_no_backup_fresh() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    machine.alter(&format!("UPDATE steps SET ended = ended + 400 * {DAY} WHERE source = 'home'"));
    assert_eq!(machine.states(3), ["etc ok", "home never"]);
}

#[test]
fn the_record_of_another_user_does_not_look_empty() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    fs::set_permissions(machine.site.state(), Permissions::from_mode(0o700)).unwrap();
    for (form, code) in [("text", 1), ("nagios", 3)] {
        let mut command = machine.site.command_as_nobody(&["status", "--format", form]);
        command.env("BRACKFS_CONFIG", machine.path("config.toml"));
        let refused = run(command).code(code);
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains("cannot use the record of runs") && said.contains("Permission denied"), "{refused}");
    }
}

#[test]
fn commands_by_hand_are_recorded_if_they_name_what_is_configured() {
    let machine = Machine::new();
    let home = machine.path("source/home").display().to_string();
    let backup = |more: &[&str]| machine.brackfs(&[&["backup", &home], more].concat()).ok();
    let nas = machine.path("nas").display().to_string();
    backup(&["--repo", &nas, "--source", "home"]);
    backup(&["--repo", "nas", "--source", "other"]);
    backup(&["--repo", "nas", "--source", "home", "--time", "2020-01-01"]);
    backup(&["--repo", "nas", "--source", "home", "--dry-run"]);
    assert_eq!(machine.states(3), ["etc never", "home never"]);
    // The only target needs no name.
    backup(&["--source", "home"]);
    assert_eq!(machine.states(3), ["etc never", "home ok"]);
    assert_eq!(machine.status(3)["backups"][1]["snapshots"], 3);
    assert_eq!(machine.recorded("backup"), 1);
    machine.brackfs(&["prune", "@nas", "--dry-run"]).ok();
    machine.brackfs(&["check", "@nas"]).ok();
    assert_eq!((machine.recorded("prune"), machine.recorded("check")), (0, 1));
    machine.brackfs(&["prune", "@nas"]).ok();
    let status = machine.status(3);
    assert_eq!(status["targets"][0]["last_prune"]["outcome"], "done");
    assert_eq!(status["targets"][0]["last_check"]["outcome"], "done");
    // A check that finds damage is a failure, until another finds none.
    let packs = common::paths_below(&machine.path("nas/packs")).into_iter().filter(|path| path.is_file());
    for pack in packs {
        fs::remove_file(pack).unwrap();
    }
    machine.brackfs(&["check", "@nas"]).code(1);
    assert_eq!(machine.status(2)["targets"][0]["last_check"]["outcome"], "failed");
}

/// Starts a command, and kills it once its steps are in the record.
fn kill(machine: &Machine, arguments: &[&str], steps: i64) {
    let started = || {
        let db = Connection::open(machine.site.state().join("journal.sqlite")).unwrap();
        let count = "SELECT count(*) FROM steps WHERE outcome = 'started'";
        db.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap_or(0)
    };
    let mut command = machine.command(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the steps are in the record", || started() == steps);
    // They are running.
    let states = machine.states(0);
    assert_eq!(states, ["etc ok", "home ok"]);
    assert_eq!(started(), steps);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_steps_are_interrupted() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    // It waits for standard input.
    kill(&machine, &["backup", "@nas", "--source", "home", "--stdin-filename", "x"], 1);
    let status = machine.status(2);
    let home = &status["backups"][1];
    assert_eq!((&home["state"], &home["last_try"]["outcome"]), (&"FAILED".into(), &"failed".into()));
    let message = "interrupted: it was killed, or the machine stopped";
    assert_eq!(home["last_try"]["message"], message);
    let shown = machine.brackfs(&["status"]).code(2);
    assert!(shown.stdout.contains(&format!("failed just now: {message}")), "{shown}");
    machine.brackfs(&["run"]).ok();
    assert_eq!(machine.states(0), ["etc ok", "home ok"]);
    // The second hook runs when one source is backed up and the other is not.
    machine.configure("[[hook]]\non = [\"before\"]\nfor = [\"home\"]\nrun = [\"sleep\", \"1000\"]\n");
    kill(&machine, &["run"], 1);
    assert_eq!(machine.status(2)["last_run"]["code"], 137);
    assert_eq!(machine.states(2), ["etc ok", "home FAILED"]);
    machine.configure("");
    machine.brackfs(&["run"]).ok();
    machine.configure("[[hook]]\non = [\"before\"]\nrun = [\"sleep\", \"1000\"]\n");
    kill(&machine, &["run"], 2);
    let metrics = machine.brackfs(&["status", "--format", "prom"]).code(2).stdout;
    for source in ["etc", "home"] {
        let failed = format!("brackfs_last_run_failed{{step=\"backup\",source=\"{source}\",target=\"nas\"}} 1\n");
        assert!(metrics.contains(&failed), "{metrics}");
    }
    assert_eq!(machine.states(2), ["etc FAILED", "home FAILED"]);
}

#[test]
fn failures_by_hand_are_recorded_unless_the_command_could_not_begin() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    let home = machine.path("source/home").display().to_string();
    let backup = ["backup", "@nas", &home, "--source", "home"];
    // A wrong argument, and a repository that is not there, say nothing about the backups.
    machine.brackfs(&[&backup[..], &["--stdin-filename", "x"]].concat()).code(2);
    fs::rename(machine.path("nas"), machine.path("gone")).unwrap();
    machine.brackfs(&backup).code(10);
    assert_eq!(machine.states(0), ["etc ok", "home ok"]);
    fs::rename(machine.path("gone"), machine.path("nas")).unwrap();
    let begun = machine.recorded("backup");
    machine.brackfs(&["backup", "@nas", "--source", "home", "--stdin-filename", "x"]).code(1);
    assert_eq!(machine.recorded("backup"), begun + 1);
    assert_eq!(machine.states(2), ["etc ok", "home FAILED"]);
    machine.brackfs(&backup).ok();
    assert_eq!(machine.states(0), ["etc ok", "home ok"]);
}

#[test]
fn damage_that_a_run_finds_is_a_failure() {
    let machine = Machine::new();
    let metrics = machine.path("metrics");
    machine.configure(&format!("[check]\nread-data = \"0%\"\n[report]\nmetrics = \"{}\"\n", metrics.display()));
    machine.brackfs(&["run"]).ok();
    assert_eq!(machine.status(0)["targets"][0]["last_check"]["outcome"], "done");
    let pack = common::paths_below(&machine.path("nas/packs")).into_iter().find(|path| path.is_file()).unwrap();
    fs::remove_file(pack).unwrap();
    machine.brackfs(&["run", "--only", "check"]).code(3);
    let status = machine.status(2);
    assert_eq!(status["targets"][0]["last_check"]["outcome"], "failed");
    assert_eq!(status["last_run"]["code"], 3);
    let line = machine.brackfs(&["status", "--format", "nagios"]).code(2).stdout;
    assert!(line.starts_with("BRACKFS CRITICAL - check of nas FAILED | "), "{line}");
    let metrics = fs::read_to_string(metrics).unwrap();
    assert!(metrics.contains("brackfs_last_run_failed{step=\"check\",source=\"\",target=\"nas\"} 1\n"), "{metrics}");
}

#[test]
fn text_fits_the_width_and_has_only_ascii_without_utf_8() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    machine.alter(&format!(
        "UPDATE steps SET ended = ended - {DAY} WHERE step = 'backup';
        INSERT INTO steps (ended, seconds, step, source, target, outcome, message)
            VALUES (unixepoch(), 1, 'backup', 'home', 'nas', 'failed',
            'cannot write to the repository because of a reason that takes many words \u{1b}[31m')"
    ));
    for columns in ["80", "40"] {
        let mut command = machine.command(&["status"]);
        command.env("COLUMNS", columns);
        let plain = run(command).code(2).stdout;
        let most: usize = columns.parse().unwrap();
        assert!(plain.is_ascii() && !plain.contains('\u{1b}'), "{plain}");
        assert!(plain.lines().all(|line| line.len() <= most), "{plain}");
        assert!(plain.starts_with("etc -> nas   ok        24 h ago"), "{plain}");
        assert!(plain.contains(&format!("  {}#.", ".".repeat(28))), "{plain}");
        assert!(plain.contains(&format!("  {}#X", ".".repeat(28))), "{plain}");
        assert!(plain.contains("failed just now: cannot write"), "{plain}");
        let mut command = machine.command(&["status"]);
        command.env("COLUMNS", columns).env("LC_ALL", "").env("LANG", "de_DE.UTF-8");
        let fancy = run(command).code(2).stdout;
        assert!(fancy.lines().all(|line| line.chars().count() <= most), "{fancy}");
        for mark in ["etc → nas", "·■·", "·■✗", "█"] {
            assert!(fancy.contains(mark), "{mark}\n{fancy}");
        }
    }
}

#[test]
fn nagios_gets_a_line_in_any_case() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    let line = |code| machine.brackfs(&["status", "--format", "nagios"]).code(code).stdout;
    let good = line(0);
    assert!(good.starts_with("BRACKFS OK - 2 backups, the oldest just now | 'etc/nas'="), "{good}");
    assert!(good.contains("s;129600;;0 'home/nas'=") && good.lines().count() == 1, "{good}");
    machine.alter(&format!("UPDATE steps SET ended = ended - 2 * {DAY} WHERE source = 'etc'"));
    assert!(line(1).starts_with("BRACKFS WARNING - etc/nas LATE (2 days ago) | "));
    machine.alter("DELETE FROM steps WHERE source = 'etc'");
    assert!(line(3).starts_with("BRACKFS UNKNOWN - etc/nas never | 'home/nas'="));
    fs::write(machine.site.state().join("journal.sqlite"), [7; 5000]).unwrap();
    assert!(line(3).starts_with("BRACKFS UNKNOWN - the record of runs "));
    assert_eq!(machine.brackfs(&["status"]).code(1).stdout, "");
    fs::write(machine.path("config.toml"), "sauce = 1\n").unwrap();
    let broken = line(3);
    assert!(broken.starts_with("BRACKFS UNKNOWN - ") && broken.lines().count() == 1, "{broken}");
}

#[test]
fn prometheus_gets_the_same_text_as_the_file() {
    let machine = Machine::new();
    let file = machine.path("brackfs.prom");
    machine.configure(&format!("[report]\nmetrics = \"{}\"\n", file.display()));
    machine.brackfs(&["run"]).ok();
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(machine.brackfs(&["status", "--format", "prom"]).ok().stdout, text);
    let has = |line: &str| assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    has("brackfs_run_exit_code 0");
    has("brackfs_snapshots{source=\"home\",target=\"nas\"} 1");
    assert!(text.contains("\nbrackfs_snapshots_stored_bytes{source=\"home\",target=\"nas\"} "), "{text}");
    has("brackfs_max_age_seconds{source=\"home\",target=\"nas\"} 129600");
    has("brackfs_last_run_failed{step=\"prune\",source=\"\",target=\"nas\"} 0");
    has(&format!("brackfs_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
    assert!(text.contains("\nbrackfs_repository_bytes{target=\"nas\"} "), "{text}");
    // A command by hand writes the file as well.
    let home = machine.path("source/home").display().to_string();
    machine.brackfs(&["backup", &home, "--source", "home"]).ok();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("brackfs_snapshots{source=\"home\",target=\"nas\"} 2\n"), "{text}");
    // Sources that are not configured any more are gone.
    let config = fs::read_to_string(machine.path("config.toml")).unwrap();
    fs::write(machine.path("config.toml"), config.replace("source.etc", "source.var")).unwrap();
    machine.brackfs(&["run", "home"]).ok();
    assert!(!fs::read_to_string(&file).unwrap().contains("etc"));
    // Every metric is in the page.
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/man/brackfs-config.5")).unwrap();
    let page = page.replace('\\', "");
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(page.contains(name), "{name} is not in brackfs-config(5)");
    }
}
