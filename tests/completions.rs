//! `brackfs completions`: scripts that shells accept, and the candidates that brackfs gives them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::Site;
use common::machine::spawn;
use common::wait::until;

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

fn script(shell: &str) -> String {
    Site::new().brackfs(&["completions", shell]).ok().stdout
}

/// Passes `input` to a program, which must accept it, and returns the output.
fn content(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().expect("standard input");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("output");
    writer.join().expect("writer").expect("input");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What bash offers at the end of a line.
fn offered(site: &Site, line: &str) -> Vec<String> {
    offered_with(site, line, &[])
}

/// A word of a shell script.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Splits a line into words as readline does, and returns them with the number of the last one. A word that ends in a colon,
/// an equals sign or an at sign is several words.
fn as_readline(line: &str) -> (Vec<String>, usize) {
    let (mut words, mut quote) = (vec![String::new()], None);
    let is_break = |word: &str| word.chars().all(|c| ":=@".contains(c));
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        let last = words.last_mut().unwrap();
        match c {
            '\\' => last.extend(['\\'].into_iter().chain(characters.next())),
            '"' | '\'' => {
                quote = if quote == Some(c) { None } else { quote.or(Some(c)) };
                last.push(c);
            }
            ' ' if quote.is_none() => words.push(String::new()),
            _ if quote.is_none() && !last.is_empty() && is_break(last) != is_break(&c.to_string()) => {
                words.push(c.into())
            }
            _ => last.push(c),
        }
    }
    let last = words.len() - 1;
    (words, last)
}

fn offered_with(site: &Site, line: &str, environment: &[(&str, &Path)]) -> Vec<String> {
    let (words, current) = as_readline(&format!("brackfs {line}"));
    let asked = format!(
        "{}\nCOMP_WORDBREAKS=$' \\t\\n:=@\\'\"'; COMP_LINE={}; COMP_WORDS=({}); COMP_CWORD={current}; COMPREPLY=()\n_brackfs\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        script("bash"),
        quoted(&format!("brackfs {line}")),
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    );
    let inner = site.command::<&str>(&[]);
    let mut command = Command::new("bash");
    command.arg("--norc").current_dir(site.path());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.envs(environment.iter().copied());
    let folder = Path::new(inner.get_program()).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", folder.display()));
    let found = content(&mut command, &asked);
    found.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn scripts_for_every_shell_run_brackfs() {
    for shell in SHELLS {
        let script = script(shell);
        assert!(script.contains("brackfs") && script.contains("BRACKFS_COMPLETE"), "{script}");
    }
    Site::new().brackfs(&["completions", "tcsh"]).code(2);
}

#[test]
fn zsh_and_fish_accept_their_scripts() {
    for (shell, arguments) in [("zsh", ["-f", "-n"]), ("fish", ["--no-config", "--no-execute"])] {
        content(Command::new(shell).args(arguments), &script(shell));
    }
    content(Command::new("bash").arg("-n"), &script("bash"));
}

#[test]
fn bash_completes_commands_options_and_values() {
    let site = Site::new();
    for (line, expected) in [
        ("bac", "backup"),
        ("backup --one", "--one-file-system"),
        ("restore --conflict ski", "skip"),
        ("restore --conflict=ski", "skip"),
        ("catalog reb", "rebuild"),
    ] {
        assert_eq!(offered(&site, line), [expected], "after brackfs {line}");
    }
}

#[test]
fn snapshots_sources_and_paths_are_completed() {
    let site = Site::with_files(&[("docs/a", "a"), ("docs/b", "b"), ("file", "f")]);
    site.init();
    site.backup(&[]).ok();
    let listed = site.brackfs(&["snapshots"]).ok().stdout;
    let id = &listed[..8];
    for command in ["ls", "cat", "restore", "dump", "mount", "diff", "forget", "hold", "release", "find --snapshot"] {
        assert_eq!(offered(&site, &format!("{command} la")), ["latest"], "{command}");
        assert_eq!(offered(&site, &format!("{command} source/")), ["source/latest"], "{command}");
        assert_eq!(offered(&site, &format!("{command} {}", &id[..7])), [id], "{command}");
    }
    for command in ["snapshots", "versions", "find", "forget"] {
        assert_eq!(offered(&site, &format!("{command} --source so")), ["source"], "{command}");
    }
    assert_eq!(offered(&site, "diff latest source/"), ["source/latest"]);
    // A key is configured, and has no passphrase.
    assert_eq!(offered(&site, "ls latest:d"), ["docs/"]);
    assert_eq!(offered(&site, "ls latest:docs/"), ["docs/a", "docs/b"]);
    assert_eq!(offered(&site, "cat source/latest:f"), ["file"]);
    let nothing: [&str; 0] = [];
    assert_eq!(offered(&site, "ls latest:nowhere/"), nothing);
    assert_eq!(offered(&site, "ls nowhere:d"), nothing);
    let locked = site.keys().join("locked");
    let mut make = site.command(&["key", "generate", "--output", "keys/locked"]);
    make.env("BRACKFS_PASSPHRASE", "secret");
    common::run(make).ok();
    assert_eq!(offered_with(&site, "ls latest:d", &[("BRACKFS_KEY_FILE", &locked)]), nothing);
    assert_eq!(offered_with(&site, "ls latest:d", &[("BRACKFS_KEY_FILE", Path::new("nowhere"))]), nothing);
    // A pipe without a writer: nothing waits for it.
    let pipe = site.keys().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(offered_with(&site, "ls latest:d", &[("BRACKFS_KEY_FILE", &pipe)]), nothing);
    // No server is contacted.
    let (ssh, contacted) = (site.path().join("ssh"), site.path().join("contacted"));
    fs::write(&ssh, format!("#!/bin/sh\ntouch {}\n", contacted.display())).unwrap();
    common::set_mode(&ssh, 0o700);
    for word in ["la", "latest:d"] {
        let line = format!("ls --repo sftp://host/repo --ssh {} {word}", ssh.display());
        assert_eq!(offered(&site, &line), nothing);
        assert!(!contacted.exists(), "{word}");
    }
    // The repository of the line counts.
    assert_eq!(offered(&site, "ls --repo elsewhere la"), nothing);
    let nowhere = ("BRACKFS_REPOSITORY", Path::new("elsewhere"));
    assert_eq!(offered_with(&site, "ls la", &[nowhere]), nothing);
    assert_eq!(offered_with(&site, "ls --repo repo la", &[nowhere]), ["latest"]);
}

#[test]
fn what_was_typed_selects_among_more_than_are_offered() {
    let names: Vec<_> = (0..1200).map(|number| (format!("d/f{number:04}"), "")).collect();
    let files: Vec<_> = names.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    let site = Site::with_files(&files);
    site.write("e/a\u{1b}[31m", "");
    site.write("d/z", "");
    site.init();
    site.backup(&[]).ok();
    assert_eq!(offered(&site, "ls latest:d/").len(), 500);
    assert_eq!(offered(&site, "ls latest:d/f110").len(), 10);
    assert_eq!(offered(&site, "ls latest:d/f1199"), ["d/f1199"]);
    assert_eq!(offered(&site, "ls latest:d/z"), ["d/z"]);
    let nothing: [&str; 0] = [];
    for none in ["d/A", "d/a", "d/f2", "d/zz", "e/"] {
        assert_eq!(offered(&site, &format!("ls latest:{none}")), nothing, "{none}");
    }
}

#[test]
fn values_with_equals_signs_spaces_and_patterns_are_completed() {
    let site =
        Site::with_files(&[("my docs/a b", "a"), ("my docs/*", "b"), ("my docs/[x]", "c"), ("my docs/it's", "d")]);
    site.init();
    site.backup(&[]).ok();
    // They would be replaced by the names of these files.
    site.write("../-x", "");
    site.write("../x", "");
    for (line, expected) in [
        ("find --snapshot=la", "latest"),
        ("find --snapshot=source/la", "source/latest"),
        ("find --snapshot=latest:m", r"my\ docs/"),
        ("find --repo=re", "repo/"),
        ("cat latest:", r"my\ docs/"),
        ("cat latest:m", r"my\ docs/"),
        (r"cat latest:my\ docs/a", r"my\ docs/a\ b"),
        (r"cat latest:my\ docs/\*", r"my\ docs/\*"),
        (r"cat latest:my\ docs/\[", r"my\ docs/\[x\]"),
        (r"cat latest:my\ docs/i", r"my\ docs/it\'s"),
        ("cat \"latest:my docs/a", "latest:my docs/a b"),
        ("cat 'latest:my docs/[", "latest:my docs/[x]"),
        (r"diff latest:my\ docs latest:m", r"my\ docs/"),
    ] {
        assert_eq!(offered(&site, line), [expected], "after brackfs {line}");
    }
    assert_eq!(offered(&site, r"cat latest:my\ docs/").len(), 4);
}

#[test]
fn an_interactive_bash_inserts_completions() {
    let site = Site::with_files(&[("my docs/a b", "a")]);
    site.init();
    site.backup(&[]).ok();
    let (rc, seen) = (site.path().join("bashrc"), site.path().join("seen"));
    // The key ^T writes the line to a file and clears it.
    let keys = r#"bind -x '"\C-t": printf "%s\n" "$READLINE_LINE" >> seen; READLINE_LINE='"#;
    fs::write(&rc, format!("{}\n{keys}\nprintf 'ready\\n' >> seen\n", script("bash"))).unwrap();
    let inner = site.command::<&str>(&[]);
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", "exec bash --rcfile bashrc -i", "/dev/null"]);
    command.current_dir(site.path()).env("TERM", "dumb");
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let folder = Path::new(inner.get_program()).parent().unwrap();
    command.env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()));
    let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()));
    let mut terminal = child.stdin.take().unwrap();
    let lines = || fs::read_to_string(&seen).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    until("bash is ready", || !lines().is_empty());
    for (typed, line) in [
        ("brackfs restore --conflict=ski\t", "brackfs restore --conflict=skip "),
        ("brackfs cat latest:m\ta\t", r"brackfs cat latest:my\ docs/a\ b "),
        ("brackfs find --snapshot=la\t", "brackfs find --snapshot=latest "),
        ("brackfs cat \"latest:my docs/a\t", "brackfs cat \"latest:my docs/a b\" "),
    ] {
        let before = lines().len();
        terminal.write_all(format!("{typed}\x14").as_bytes()).unwrap();
        until("the line is written", || lines().len() > before);
        assert_eq!(lines().last().unwrap(), line);
    }
    terminal.write_all(b"exit\n").unwrap();
    drop(terminal);
    child.wait().unwrap();
}

#[test]
fn targets_and_mounts_are_completed() {
    let site = Site::with_files(&[("f", "f")]);
    site.init();
    site.backup(&[]).ok();
    let config = site.path().join("config.toml");
    let text = format!(
        "version = 1\n[target.mine]\nrepository = {:?}\n[source.home]\npaths = [\"/home\"]\nto = [\"mine\"]\n",
        site.repo()
    );
    fs::write(&config, text).unwrap();
    common::set_mode(&config, 0o600);
    let configured = [("BRACKFS_CONFIG", config.as_path()), ("BRACKFS_REPOSITORY", Path::new("elsewhere"))];
    assert_eq!(offered_with(&site, "ls --repo mi", &configured), ["mine"]);
    assert_eq!(offered_with(&site, "ls @mine la", &configured), ["latest"]);
    // bash completes what is behind the @.
    assert_eq!(offered_with(&site, "ls @mi", &configured), ["mine"]);
    assert_eq!(offered_with(&site, "init @", &configured), ["mine"]);
    assert_eq!(offered_with(&site, "run ho", &configured), ["home"]);
    // Directories are repositories, too.
    assert_eq!(offered(&site, "ls --repo rep"), ["repo/"]);
    let mounted = site.mount(&[]);
    let place = mounted.path().to_str().unwrap();
    assert_eq!(offered(&site, &format!("umount {}", &place[..place.len() - 1])), [place]);
}
