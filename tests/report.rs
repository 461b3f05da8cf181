//! `brackfs report`: the state of configured backups as text and as a web page.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::machine::spawn;
use common::{Run, Site, noise, run};
use rusqlite::Connection;

/// A source `home` that is backed up to an encrypted target, and another target that nothing reached yet.
struct Machine {
    site: Site,
}

impl Machine {
    fn new() -> Self {
        let site = Site::with_files(&[("alice/notes", "one"), ("bob/notes", "two")]);
        site.key("rfc9580");
        let machine = Machine { site };
        let (nas, key) = (machine.path("nas"), machine.site.keys().join("owner.pub"));
        machine.site.brackfs(&["init", nas.to_str().unwrap(), "--recipient", key.to_str().unwrap()]).ok();
        let [nas, source] = ["nas", "source"].map(|name| machine.path(name).display().to_string());
        let text = format!(
            "[target.nas]\nrepository = \"{nas}\"\n[target.usb]\nrepository = \"/nonexistent\"\n\
             require-mount = \"/nonexistent\"\nwhen-missing = \"skip\"\n\
             [source.home]\npaths = [\"{source}\"]\nto = [\"nas\", \"usb\"]\n"
        );
        fs::write(machine.path("config.toml"), text).unwrap();
        fs::set_permissions(machine.path("config.toml"), Permissions::from_mode(0o644)).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.site.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        command.env("BRACKFS_CONFIG", self.path("config.toml")).env_remove("BRACKFS_REPOSITORY");
        command.env("LC_ALL", "C").env("TZ", "UTC").env("COLUMNS", "80");
        command
    }

    fn brackfs(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    fn without_key(&self, arguments: &[&str]) -> Run {
        let mut command = self.command(arguments);
        command.env_remove("BRACKFS_KEY_FILE");
        run(command)
    }

    fn alter(&self, sql: &str) {
        let db = Connection::open(self.site.state().join("journal.sqlite")).unwrap();
        db.execute_batch(sql).unwrap();
    }
}

/// Checks a page: it is valid, small, and needs nothing else.
#[track_caller]
fn check_page(page: &str) {
    let mut xmllint = Command::new("xmllint");
    xmllint.args(["--html", "--noout", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut xmllint);
    let mut stdin = child.stdin.take().unwrap();
    let text = page.to_owned();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    // It knows the elements of HTML 4 only.
    let said = String::from_utf8_lossy(&output.stderr);
    let is_element = |line: &&str| {
        ["svg", "rect", "path", "polyline", "line", "text", "title", "figure", "figcaption"]
            .iter()
            .any(|name| line.contains(&format!("Tag {name} invalid")))
    };
    let errors: Vec<_> = said.lines().filter(|line| line.contains("error")).filter(|line| !is_element(line)).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(page.len() < 300_000, "{} bytes", page.len());
    let lower = page.to_lowercase();
    for external in
        ["<script", "http:", "https:", "src=", "href", "url(", "@import", "<link", "<img", "javascript", "onload"]
    {
        assert!(!lower.contains(external), "{external}");
    }
}

#[test]
fn a_page_needs_nothing_and_has_a_square_for_each_day() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    machine.alter(
        "UPDATE steps SET ended = ended - 864000 WHERE step = 'backup';
        INSERT INTO steps (ended, seconds, step, source, target, outcome, message)
            VALUES (unixepoch() - 60, 1, 'backup', 'home', 'nas', 'failed', 'no <b>room</b> \"here\" & \u{1b}[31m')",
    );
    let file = machine.path("report.html");
    machine.without_key(&["report", "--html", file.to_str().unwrap()]).ok();
    let page = fs::read_to_string(&file).unwrap();
    check_page(&page);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert_eq!(page.matches("<rect").count(), 2 * 53 * 7);
    assert_eq!(page.matches(": complete</title>").count(), 1);
    assert_eq!(page.matches(": failed</title>").count(), 1);
    assert!(page.contains("no &lt;b&gt;room&lt;/b&gt; &quot;here&quot; &amp; \\u{1b}[31m"), "{page}");
    assert!(page.contains("add --key FILE"), "{page}");
    assert_eq!(machine.without_key(&["report", "--html"]).ok().stdout.matches("<rect").count(), 2 * 53 * 7);
    // The file is replaced as a whole, and nothing else is left.
    let inode = fs::metadata(&file).unwrap().ino();
    machine.without_key(&["report", "--html", file.to_str().unwrap()]).ok();
    assert_ne!(fs::metadata(&file).unwrap().ino(), inode);
    let names = fs::read_dir(machine.site.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().starts_with(".brackfs")));
    machine.without_key(&["report", "--html", "/nonexistent/report.html"]).code(1);
}

#[test]
fn a_page_shows_what_made_a_source_grow_if_it_has_a_key() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    machine.site.write("alice/photos/2026/summer/one.jpg", noise("one", 300_000));
    machine.site.write("alice/photos/2026/autumn/two.jpg", noise("two", 200_000));
    machine.site.write("bob/<i>x</i>/three", noise("three", 1000));
    machine.brackfs(&["run"]).ok();
    let page = machine.brackfs(&["report", "@nas", "--html"]).ok().stdout;
    check_page(&page);
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not in {page}"));
    // Names below the third level count for it.
    assert!(at("488 KiB") < at("alice/photos/2026") && at("alice/photos/2026") < at("bob/&lt;i&gt;x&lt;"), "{page}");
    assert!(!page.contains("summer"));
    // A key with a passphrase is not asked for, and a target that is away does not spoil the report.
    let locked = machine.path("locked");
    let mut generate = machine.command(&["key", "generate", "--output", locked.to_str().unwrap()]);
    generate.env("BRACKFS_PASSPHRASE", "secret");
    run(generate).ok();
    let asked = machine.brackfs(&["report", "@nas", "--html", "--key", locked.to_str().unwrap()]).ok();
    assert!(asked.stdout.contains("a secret key without a passphrase"), "{asked}");
    let away = machine.brackfs(&["report", "@usb", "--html"]).ok();
    assert!(away.stdout.contains("no repository at /nonexistent") && away.stderr.contains("no repository"), "{away}");
}

#[test]
fn a_page_of_many_sources_and_problems_is_small() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    let mut config = fs::read_to_string(machine.path("config.toml")).unwrap();
    for number in 0..30 {
        config += &format!("[source.s{number}]\ninherit = \"home\"\nto = [\"nas\"]\n");
        machine.alter(&format!(
            "WITH RECURSIVE days (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM days WHERE n < 380)
            INSERT INTO steps (ended, seconds, step, source, target, outcome, message, files, bytes, stored_bytes, problems)
                SELECT unixepoch() - n * 86400, 1, 'backup', 's{number}', 'nas', 'problems',
                    printf('%.*c', 2000, '<'), 1000, 1000000 + n * 1000, n * 100, 1 FROM days"
        ));
    }
    fs::write(machine.path("config.toml"), config).unwrap();
    let page = machine.without_key(&["report", "--html"]).ok().stdout;
    check_page(&page);
    assert!(page.contains("s29 → nas"));
}

#[test]
fn text_lists_the_problems_of_a_month() {
    let machine = Machine::new();
    machine.brackfs(&["run"]).ok();
    let report = || machine.without_key(&["report"]).ok().stdout;
    assert!(report().contains("home -> nas  ok ") && report().contains("No problems in the last 30 days"));
    machine.alter(
        "INSERT INTO steps (ended, seconds, step, source, target, outcome, message)
            VALUES (unixepoch() - 3 * 86400, 1, 'prune', NULL, 'nas', 'failed', 'no room'),
            (unixepoch() - 9 * 86400, 1, 'prune', NULL, 'nas', 'failed', 'no room'),
            (unixepoch() - 40 * 86400, 1, 'prune', NULL, 'nas', 'failed', 'long ago')",
    );
    let text = report();
    assert!(
        text.contains("3 days ago, prune of nas failed (2 times): no room") && !text.contains("long ago"),
        "{text}"
    );
}
