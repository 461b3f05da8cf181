//! Limited resources: threads, file sizes, open files, no home, no standard output.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsString;
use std::process::Command;

use common::ordeal::under_strace;
use common::{Run, Site, age, run, settle, tree};

fn backed_up() -> Site {
    let site = Site::with_files(&[("a", vec![1; 900_000]), ("b", vec![2; 300]), ("c/d", vec![3; 5_000_000])]);
    site.brackfs(&["init".into(), site.repo(), "--no-encryption".into()]).ok();
    site.backup(&[]).ok();
    site
}

fn change(site: &Site, content: &str) {
    site.write("new", content.repeat(100_000));
    age(&site.source());
    settle();
}

/// The command, started by a shell after these shell commands.
fn in_shell(before: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.current_dir(command.get_current_dir().unwrap()).stdin(std::process::Stdio::null());
    shell
}

#[track_caller]
fn in_words(run: &Run, words: &str) {
    assert!(run.stderr.contains(words) && !run.stderr.contains("panicked"), "{run}");
}

#[test]
fn with_few_threads_every_command_works_or_reports_the_limit() {
    let site = backed_up();
    let backup: [OsString; 2] = ["backup".into(), site.source().into()];
    let preview: [OsString; 3] = ["backup".into(), site.source().into(), "--dry-run".into()];
    for (arguments, least) in [(&backup[..], 9), (&preview, 6)] {
        // From too few threads to enough.
        for first in (1..14).chain([20]) {
            change(&site, &first.to_string());
            let inject = format!("inject=clone3,clone:error=EAGAIN:when={first}+");
            let arguments = site.command(arguments);
            let end = run(under_strace(&["-o", "/dev/null", "-e", "trace=clone3,clone", "-e", &inject], &arguments));
            match end.code {
                0 => assert!(!end.stderr.contains("panicked"), "{end}"),
                1 if first < least => in_words(&end, "ulimit -u"),
                _ => panic!("with {} threads\n{end}", first - 1),
            }
        }
    }
    for first in 1..8 {
        let inject = format!("inject=clone3,clone:error=EAGAIN:when={first}+");
        let arguments = site.command(&["restore", "latest", "--to", &format!("out{first}")]);
        let end = run(under_strace(&["-o", "/dev/null", "-e", "trace=clone3,clone", "-e", &inject], &arguments));
        match end.code {
            0 => assert_eq!(tree(&site.path().join(format!("out{first}"))).len(), tree(&site.source()).len()),
            1 if first < 5 => in_words(&end, "ulimit -u"),
            _ => panic!("with {} threads\n{end}", first - 1),
        }
    }
    let reads =
        [&["check", "--read-data"][..], &["dump", "latest"], &["find", "a"], &["cat", "latest:c/d"], &["ls", "latest"]];
    for arguments in reads {
        let inject = ["-o", "/dev/null", "-e", "trace=clone3,clone", "-e", "inject=clone3,clone:error=EAGAIN"];
        run(under_strace(&inject, &site.command(arguments))).ok();
    }
}

#[test]
fn a_limit_of_file_sizes_is_reported_and_loses_nothing() {
    let site = backed_up();
    let limit = "ulimit -c 0; ulimit -f 500";
    site.write("noise", common::ordeal::Random::new(1, "noise").bytes(3 << 20));
    age(&site.source());
    settle();
    let backup: [OsString; 2] = ["backup".into(), site.source().into()];
    let refused = run(in_shell(limit, &site.command(&backup))).code(1);
    in_words(&refused, "File too large");
    let refused = run(in_shell(limit, &site.command(&["restore", "latest", "--to", "out"]))).code(1);
    in_words(&refused, "ulimit -f");
    site.backup(&[]).ok();
    site.brackfs(&["check", "--read-data"]).ok();
    site.brackfs(&["restore", "latest", "--to", "whole"]).ok();
    assert_eq!(tree(&site.path().join("whole")), tree(&site.source()));
}

#[test]
fn with_few_open_files_every_command_works_or_reports_the_limit() {
    let site = backed_up();
    let backup: [OsString; 2] = ["backup".into(), site.source().into()];
    let mut worked = 0;
    for files in [6, 8, 10, 12, 14, 16, 20, 24, 32] {
        change(&site, &files.to_string());
        for command in [site.command(&backup), site.command(&["check"]), site.command(&["cat", "latest:b"])] {
            let end = run(in_shell(&format!("ulimit -n {files}"), &command));
            match end.code {
                0 => worked += 1,
                1 | 3 | 10 => assert!(!end.stderr.is_empty() && !end.stderr.contains("panicked"), "{end}"),
                _ => panic!("{files} files\n{end}"),
            }
        }
    }
    assert!(worked > 9);
    site.backup(&[]).ok();
    site.brackfs(&["check", "--read-data"]).ok();
}

#[test]
fn output_to_a_closed_standard_output_is_an_error() {
    let site = backed_up();
    for arguments in [
        &["cat", "latest:a"][..],
        &["ls", "latest"],
        &["find", "a"],
        &["versions", "a"],
        &["diff", "latest", "latest"],
        &["dump", "latest"],
        &["snapshots"],
        &["completions", "bash"],
        &["stats"],
        &["recipients", "list"],
    ] {
        let refused = run(in_shell("exec >&-", &site.command(arguments))).code(1);
        in_words(&refused, "standard output is closed");
        run(in_shell("exec >/dev/null", &site.command(arguments))).ok();
        run(in_shell("exec 1<>/dev/null", &site.command(arguments))).ok();
    }
    let backup: [OsString; 2] = ["backup".into(), site.source().into()];
    run(in_shell("exec <&- >&- 2>&-", &site.command(&backup))).ok();
}

#[test]
fn readers_need_no_home_directory() {
    let site = backed_up();
    for arguments in [&["ls", "latest"][..], &["restore", "latest", "--to", "out"], &["check"], &["cat", "latest:b"]] {
        let mut command = Command::new("setpriv");
        let program = site.path().join("brackfs");
        std::fs::copy(env!("CARGO_BIN_EXE_brackfs"), &program).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(site.path(), open).unwrap();
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(arguments);
        command.env_clear().env("BRACKFS_REPOSITORY", site.repo()).current_dir(site.path());
        let read = run(command).ok();
        in_words(&read, "cannot remember host key");
    }
    assert_eq!(tree(&site.path().join("out")).len(), tree(&site.source()).len());
}
