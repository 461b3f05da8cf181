//! Every line that a command prints with --json matches its schema in `schemas/`, and every failure ends with `exit_error`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::machine::spawn;
use common::{Run, Site, age, run, settle};
use serde_json::{Value, json};

fn schemas() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

/// All commands that have --json, as words.
fn commands() -> Vec<Vec<String>> {
    fn collect(command: &clap::Command, words: &[String], found: &mut Vec<Vec<String>>) {
        if command.get_arguments().any(|argument| argument.get_long() == Some("json")) {
            found.push(words.to_vec());
        }
        for below in command.get_subcommands() {
            collect(below, &[words, &[below.get_name().to_owned()]].concat(), found);
        }
    }
    let mut found = Vec::new();
    collect(&brackfs::cli::command(), &[], &mut found);
    found
}

/// The lines of standard output and standard error, all of which must be JSON.
#[track_caller]
fn lines(run: &Run) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}\n{run}"));
    run.stdout.lines().chain(run.stderr.lines()).map(parse).collect()
}

/// The runs so far, by command.
#[derive(Default)]
struct Seen(BTreeMap<String, Vec<Value>>);

impl Seen {
    /// Runs a command with --json; its name is the first word or the first two.
    #[track_caller]
    fn run(&mut self, site: &Site, command: &str, extra: &[&str], code: i32) {
        let words: Vec<_> = command.split(' ').chain(["--json"]).chain(extra.iter().copied()).collect();
        let run = site.brackfs(&words).code(code);
        self.add(command, &run);
    }

    #[track_caller]
    fn add(&mut self, command: &str, run: &Run) {
        let lines = lines(run);
        // The exit code of status is the state that it prints.
        let is_state = command == "status" && !run.stdout.is_empty();
        if run.code != 0 && !is_state {
            let last = run.stderr.lines().last().expect("a message");
            let last: Value = serde_json::from_str(last).unwrap();
            assert_eq!((&last["message_type"], &last["code"]), (&json!("exit_error"), &json!(run.code)), "{run}");
        }
        self.0.entry(command.replace(' ', "-")).or_default().extend(lines);
    }
}

/// Validates the lines. Returns the types of message that were seen for each command.
fn validate(seen: &Seen) -> BTreeMap<String, BTreeSet<String>> {
    // Debian's own python3 has Debian's modules.
    let mut command = Command::new("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/json/validate.py")).arg(schemas());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    child.stdin.take().unwrap().write_all(serde_json::to_string(&seen.0).unwrap().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["mistakes"], json!([]));
    serde_json::from_value(found["seen"].take()).unwrap()
}

#[test]
fn every_command_has_a_schema() {
    let names: BTreeSet<_> = commands().iter().map(|words| format!("{}.json", words.join("-"))).collect();
    let there = fs::read_dir(schemas()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<BTreeSet<_>>(), names);
}

#[test]
fn every_failure_ends_with_an_exit_error() {
    let site = Site::new();
    let mut seen = Seen::default();
    for words in commands() {
        let name = words.join(" ");
        // Without its arguments, or without a repository.
        for extra in [&[][..], &["--no-such-option"], &["latest"], &["latest", "latest"]] {
            let arguments: Vec<_> =
                words.iter().map(String::as_str).chain(["--json"]).chain(extra.iter().copied()).collect();
            let mut command = site.command(&arguments);
            command
                .env("BRACKFS_REPOSITORY", site.path().join("nowhere"))
                .env("BRACKFS_CONFIG", site.path().join("none"));
            let run = run(command);
            if name != "init" {
                assert_ne!(run.code, 0, "{run}");
            }
            seen.add(&name, &run);
        }
    }
    validate(&seen);
    let run = site.brackfs(&["cat", "--json", "x"]).code(2);
    assert!(run.stderr.contains("exit_error"), "{run}");
    for arguments in [&["status", "--format", "json"][..], &["status", "--format=json"]] {
        let mut command = site.command(arguments);
        command.env("BRACKFS_CONFIG", site.path().join("none"));
        let run = common::run(command);
        assert_ne!(run.code, 0, "{run}");
        assert!(lines(&run).last().unwrap()["message_type"] == "exit_error", "{run}");
    }
}

/// Makes a site, and runs commands whose lines have all types of message.
fn all_lines() -> Seen {
    let mut seen = Seen::default();
    let site = Site::with_files(&[("d/a", "a"), ("d/b", "b")]);
    site.key("rfc9580");
    std::os::unix::fs::symlink("a", site.source().join("d/link")).unwrap();
    // A name that is not UTF-8.
    let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
    fs::write(site.source().join(name), "raw").unwrap();
    age(&site.source());
    settle();
    seen.run(&site, "init", &["repo", "--recipient", "keys/owner.pub"], 0);
    seen.run(&site, "backup", &["source", "--dry-run", "-v"], 0);
    seen.run(&site, "backup", &["source", "nowhere", "--source", "several"], 3);
    seen.run(&site, "backup", &["source", "-v", "--tag", "t"], 0);
    site.write("d/a", "changed");
    fs::remove_file(site.source().join("d/b")).unwrap();
    site.write("d/c", "new");
    seen.run(&site, "backup", &["source", "-v"], 0);
    // Progress, from a pipe that stays open.
    let mut command = site.command(&["backup", "--json", "--stdin-filename", "x", "--source", "pipe"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let mut pipe = child.stdin.take().unwrap();
    pipe.write_all(b"bytes").unwrap();
    sleep(Duration::from_millis(1500));
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let lines = text(output.stdout) + &text(output.stderr);
    seen.0.get_mut("backup").unwrap().extend(lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));

    seen.run(&site, "snapshots", &[], 0);
    seen.run(&site, "snapshots", &["--key", "keys/owner"], 0);
    seen.run(&site, "ls", &["-R", "source/latest"], 0);
    // A note: there are several sources.
    seen.run(&site, "ls", &["latest"], 0);
    seen.run(&site, "find", &["*"], 0);
    seen.run(&site, "versions", &["d/a"], 0);
    seen.run(&site, "versions", &["d/b"], 0);
    let listed = site.brackfs(&["snapshots", "--json", "--source", "source"]).ok().stdout;
    let first: Value = serde_json::from_str(&listed).unwrap();
    seen.run(&site, "diff", &[first[0]["id"].as_str().unwrap(), "source/latest"], 0);
    seen.run(&site, "restore", &["source/latest", "--to", "out", "-v"], 0);
    seen.run(&site, "restore", &["source/latest", "--to", "out", "-n", "-v", "--conflict", "overwrite"], 0);
    seen.run(&site, "check", &["--read-data"], 0);
    seen.run(&site, "stats", &[], 0);
    seen.run(&site, "catalog verify", &[], 0);
    seen.run(&site, "catalog verify", &["--read-data"], 0);
    seen.run(&site, "recipients list", &[], 0);
    seen.run(&site, "recipients update", &["keys/owner.pub"], 0);
    seen.run(&site, "hold", &["source/latest"], 0);
    seen.run(&site, "release", &["source/latest"], 0);
    seen.run(&site, "forget", &["--keep-last", "1", "--source", "source", "--force"], 0);
    seen.run(&site, "forget", &["--undo"], 0);
    seen.run(&site, "forget", &["--keep-last", "1", "--source", "source", "--force", "--prune"], 0);
    seen.run(&site, "prune", &["--dry-run"], 0);
    seen.run(&site, "prune", &["--grace", "0"], 0);
    seen.run(&site, "catalog rebuild", &[], 0);
    seen.run(&site, "adopt", &[], 0);
    // A problem.
    fs::remove_file(common::snapshot_objects(&site).pop().unwrap()).unwrap();
    seen.run(&site, "check", &[], 1);

    let config = site.path().join("config.toml");
    let text = format!(
        "version = 1\n[target.t]\nrepository = {:?}\n[source.configured]\npaths = [{:?}]\nto = [\"t\"]\n",
        site.path().join("configured"),
        site.source()
    );
    fs::write(&config, &text).unwrap();
    common::set_mode(&config, 0o600);
    let mut configured = |command: &str, code| {
        let words: Vec<_> = command.split(' ').chain(["--json", "--config", "config.toml"]).collect();
        let mut command_line = site.command(&words);
        command_line.env_remove("BRACKFS_REPOSITORY");
        seen.add(command, &run(command_line).code(code));
    };
    configured("config check", 0);
    configured("config show", 0);
    // There is no repository yet.
    configured("run", 10);
    site.brackfs(&["init", "configured", "--no-encryption"]).ok();
    configured("run", 0);
    // Output of a hook and of the command of a source.
    fs::write(
        &config,
        text + "[[hook]]\non = [\"before\"]\nrun = [\"sh\", \"-c\", \"echo out; echo err >&2\"]\n\
            [source.dump]\ncommand = [\"sh\", \"-c\", \"echo warning >&2; echo content\"]\nfilename = \"x\"\nto = [\"t\"]\n",
    )
    .unwrap();
    configured("run", 0);
    configured("status", 0);
    seen
}

#[test]
fn every_line_matches_its_schema_and_needs_all_members() {
    let seen = validate(&all_lines());
    let mut missing = Vec::new();
    for words in commands() {
        let name = words.join("-");
        let schema: Value =
            serde_json::from_str(&fs::read_to_string(schemas().join(format!("{name}.json"))).unwrap()).unwrap();
        for message in schema["$defs"].as_object().unwrap().keys() {
            // These are the same for all commands.
            let is_shared = ["error", "note", "exit_error", "program_output", "status"].contains(&message.as_str());
            if !is_shared && !seen.get(&name).is_some_and(|types| types.contains(message)) {
                missing.push(format!("{name}: {message}"));
            }
        }
    }
    assert_eq!(missing, [""; 0], "message types that no line had");
    let types: BTreeSet<_> = seen.values().flatten().map(String::as_str).collect();
    assert!(
        ["error", "note", "exit_error", "program_output", "status"].iter().all(|shared| types.contains(shared)),
        "{types:?}"
    );
}

#[test]
fn types_of_all_commands_are_the_same() {
    let mut shared: BTreeMap<String, Value> = BTreeMap::new();
    for file in fs::read_dir(schemas()).unwrap() {
        let schema: Value = serde_json::from_str(&fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        for name in ["error", "note", "exit_error", "program_output", "status"] {
            if let Some(one) = schema["$defs"].get(name) {
                assert_eq!(shared.entry(name.to_owned()).or_insert_with(|| one.clone()), one, "{}", schema["title"]);
            }
        }
    }
    assert_eq!(shared.len(), 5);
}
