//! `brackfs completions`: a script for each shell, which that shell accepts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::Site;
use common::machine::spawn;

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

fn script(shell: &str) -> String {
    Site::new().brackfs(&["completions", shell]).ok().stdout
}

/// Passes `input` to a program, which must accept it, and returns the output.
fn content(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let mut stdin = child.stdin.take().expect("standard input");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect(program);
    writer.join().expect("writer").expect("input");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn scripts_for_every_shell_have_commands_and_options() {
    for shell in SHELLS {
        let script = script(shell);
        for word in ["snapshots", "umount", "completions", "generate", "one-file-system"] {
            assert!(script.contains(word), "{word} is not in the script for {shell}");
        }
    }
    Site::new().brackfs(&["completions", "tcsh"]).code(2);
}

#[test]
fn bash_completes_commands_options_and_values() {
    let script = script("bash");
    content("bash", &["-n"], &script);
    for (line, expected) in
        [("bac", "backup"), ("backup --one", "--one-file-system"), ("restore --conflict ski", "skip")]
    {
        let words: Vec<_> = std::iter::once("brackfs").chain(line.split(' ')).collect();
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        // As readline does it: the words so far, the one at the cursor, the one before it.
        let asked = format!(
            "{script}\nCOMP_WORDS=({}); COMP_CWORD={}; COMPREPLY=()\n_brackfs brackfs {last} {before}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            words.join(" "),
            words.len() - 1,
        );
        let found = content("bash", &["--norc"], &asked);
        assert_eq!(found.lines().collect::<Vec<_>>(), [expected], "after brackfs {line}");
    }
}

#[test]
fn zsh_and_fish_accept_their_scripts() {
    for (shell, arguments) in [("zsh", ["-f", "-n"]), ("fish", ["--no-config", "--no-execute"])] {
        let script = script(shell);
        assert!(script.contains("brackfs"), "the script for {shell} does not name brackfs");
        content(shell, &arguments, &script);
    }
}
