//! The log for bug reports: what is in it, and what must never be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::{Site, run};

const PASSPHRASE: &str = "kestrel-on-a-wire";
const SECRET_NAMES: [&str; 4] = ["quarterly-figures", "letter-to-nora.txt", "love-letters", "plover.dat"];
const CONTENT: &str = "the cormorant dives at dawn";

/// A site with secret names, and a repository that keeps its owner's key under a passphrase.
fn secret_site() -> Site {
    let [folder, letter, link, data] = SECRET_NAMES;
    let site = Site::with_files(&[
        (format!("{folder}/{letter}").as_str(), CONTENT.to_owned()),
        (data, format!("{CONTENT}, and {}", "again ".repeat(100_000))),
    ]);
    symlink(letter, site.source().join(folder).join(link)).unwrap();
    site
}

/// Runs brackfs with all levels of the log. Returns the exit code and the log.
fn logged<A: AsRef<OsStr>>(site: &Site, arguments: &[A]) -> (i32, String) {
    let log = site.path().join("log");
    let mut command = site.command(arguments);
    command.arg("--log").arg(&log).env("BRACKFS_LOG", "trace").env("BRACKFS_PASSPHRASE", PASSPHRASE);
    let code = run(command).code;
    let text = fs::read_to_string(&log).unwrap();
    fs::remove_file(log).unwrap();
    (code, text)
}

#[track_caller]
fn assert_no_secret(site: &Site, log: &str) {
    let place = site.path().to_str().unwrap();
    for secret in SECRET_NAMES.into_iter().chain([PASSPHRASE, CONTENT, place]) {
        assert!(!log.contains(secret), "{secret:?} is in the log:\n{log}");
    }
}

#[track_caller]
fn assert_events(log: &str, events: &[&str]) {
    for event in events {
        assert!(log.contains(event), "{event:?} is not in the log:\n{log}");
    }
}

#[test]
fn the_log_of_a_backup_and_a_restore_has_no_names_content_or_secrets() {
    let site = secret_site();
    let (code, log) = logged(&site, &["init".into(), site.repo()]);
    assert_eq!(code, 0, "{log}");
    assert_no_secret(&site, &log);

    let (code, log) = logged(&site, &["backup".into(), site.source()]);
    assert_eq!(code, 0, "{log}");
    assert_no_secret(&site, &log);
    assert_events(
        &log,
        &["backup started", "session opened", "run announced", "operation=Store", "pack stored", "catalog committed"],
    );
    assert_events(&log, &["snapshot published", "backup ended"]);

    let out = site.path().join("out");
    let restore: [&OsStr; 4] = ["restore".as_ref(), "latest".as_ref(), "--to".as_ref(), out.as_ref()];
    let (code, log) = logged(&site, &restore);
    assert_eq!(code, 0, "{log}");
    assert_eq!(fs::read_to_string(out.join(SECRET_NAMES[0]).join(SECRET_NAMES[1])).unwrap(), CONTENT);
    assert_no_secret(&site, &log);
    assert_events(&log, &["restore started", "operation=Read", "restore ended"]);
}

#[test]
fn the_log_of_a_command_that_fails_has_the_kind_of_failure_and_no_names() {
    let site = secret_site();
    for arguments in [["init".into(), site.repo()], ["backup".into(), site.source()]] {
        let (code, log) = logged(&site, &arguments);
        assert_eq!(code, 0, "{log}");
    }
    let (code, log) = logged(&site, &["cat".to_owned(), format!("latest:{}/missing", SECRET_NAMES[0])]);
    assert_eq!(code, 1);
    assert_no_secret(&site, &log);
    assert_events(&log, &["cat failed failure=Failed"]);
    assert!(!log.contains("missing"), "{log}");
    fs::rename(site.repo(), site.path().join("moved")).unwrap();
    let (code, log) = logged(&site, &["ls", "latest"]);
    assert_eq!(code, 10);
    assert_no_secret(&site, &log);
    assert_events(&log, &["ls failed failure=NoRepository"]);
}

#[test]
fn a_mount_logs_requests_that_fail_by_inode_and_errno() {
    let site = secret_site();
    site.init();
    site.backup(&[]).ok();
    let log = site.path().join("log");
    let mounted = site.mount(&["--log", log.to_str().unwrap()]);
    let file = mounted.latest().join(SECRET_NAMES[0]).join(SECRET_NAMES[1]);
    fs::metadata(&file).unwrap();
    let packs = site.repo().join("packs");
    fs::rename(&packs, site.path().join("packs")).unwrap();
    fs::read(&file).unwrap_err();
    fs::rename(site.path().join("packs"), &packs).unwrap();
    drop(mounted);
    let log = fs::read_to_string(log).unwrap();
    assert_no_secret(&site, &log);
    assert_events(&log, &["mount started", "request failed errno=5", "fuse{inode="]);
}

#[test]
fn the_log_is_off_by_default_and_appends_to_a_private_file() {
    let site = Site::with_files(&[("file", "content")]);
    site.init();
    let run_with = |level: Option<&str>, log: &[&str]| {
        let arguments: Vec<_> = ["snapshots"].iter().chain(log).map(OsStr::new).collect();
        let mut command = site.command(&arguments);
        level.map(|level| command.env("BRACKFS_LOG", level));
        run(command)
    };
    assert_eq!(run_with(None, &[]).ok().stderr, "");
    assert_eq!(run_with(Some("off"), &["--log", "stderr"]).ok().stderr, "");
    assert!(run_with(Some("info"), &[]).ok().stderr.contains("snapshots ended"));
    assert!(run_with(None, &["--log", "stderr"]).ok().stderr.contains("operation="));
    assert!(run_with(Some("loud"), &[]).code(2).stderr.contains("not a level"));
    for times in 1..=2 {
        run_with(Some("info"), &["--log", "private"]).ok();
        let log = site.path().join("private");
        assert_eq!(fs::read_to_string(&log).unwrap().matches("snapshots ended").count(), times);
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o600);
    }
    let refused = run_with(None, &["--log", "no/such/folder/log"]).code(1);
    assert!(refused.stderr.contains("cannot write the log no/such/folder/log"), "{refused}");
}
