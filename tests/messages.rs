//! What brackfs says to wrong or unlucky users: each message names the object, the cause and the next step, is short, and
//! shows neither numbers of system errors nor names of objects in the repository.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::machine::spawn;
use common::{NOBODY, Run, Site, run};

/// Maximum length of a line, unless it lists something.
const LONGEST: usize = 200;

/// A use of brackfs that fails, or that needs an explanation.
struct Case<'c> {
    arguments: &'c [&'c str],
    code: i32,
    /// Parts of the message: the object, the cause, the next step.
    says: &'c [&'c str],
    /// Whether the message is a list, which may be long.
    lists: bool,
}

const fn case<'c>(arguments: &'c [&'c str], code: i32, says: &'c [&'c str]) -> Case<'c> {
    Case { arguments, code, says, lists: false }
}

/// Asserts the rules that hold for all messages.
#[track_caller]
fn assert_plain(run: &Run, lists: bool) {
    assert!(!run.stderr.contains("panicked"), "{run}");
    assert!(!run.stderr.contains("(os error"), "{run}");
    for line in run.stderr.lines().filter(|line| !line.starts_with("Usage: ")) {
        assert!(lists || line.chars().count() < LONGEST, "too long: {line}");
        for object in ["packs/", "snapshots/", "index/"] {
            let bare = line.match_indices(object).any(|(at, _)| {
                let id = line.get(at + object.len()..at + object.len() + 3).unwrap_or_default();
                !id.is_empty() && id.chars().all(|c| c.is_ascii_hexdigit() || c == '/')
            });
            assert!(!bare, "names an object: {line}");
        }
    }
}

#[track_caller]
fn check(site: &Site, cases: &[Case<'_>]) {
    for Case { arguments, code, says, lists } in cases {
        let run = site.brackfs(arguments);
        assert_eq!(run.code, *code, "{arguments:?}\n{run}");
        assert_plain(&run, *lists);
        for words in *says {
            assert!(run.stderr.contains(words), "{arguments:?} does not say {words:?}\n{run}");
        }
    }
}

/// A site with two snapshots of a source.
fn ready() -> Site {
    let site = Site::with_files(&[("hello.txt", "hello"), ("docs/a", "a")]);
    std::os::unix::fs::symlink("hello.txt", site.source().join("link")).unwrap();
    site.init();
    site.backup(&[]).ok();
    site
}

/// Runs the command without the key that `Site::command` gives.
fn without_key(site: &Site, arguments: &[&str]) -> Run {
    let mut command = site.command(arguments);
    let home = site.path().join("gnupg");
    fs::create_dir_all(&home).unwrap();
    common::set_mode(&home, 0o700);
    command.env_remove("BRACKFS_KEY_FILE").env("GNUPGHOME", home);
    run(command)
}

fn packs(repository: &Path) -> Vec<PathBuf> {
    let files = common::paths_below(&repository.join("packs"));
    files.into_iter().filter(|path| path.is_file()).collect()
}

#[test]
fn wrong_repositories_and_snapshots_are_explained() {
    let site = ready();
    let away = site.path().join("usb/backup");
    let away = away.to_str().unwrap();
    let source = site.source();
    let source = source.to_str().unwrap();
    check(
        &site,
        &[
            case(&["ls", "latest", "--repo", away], 10, &[away, "is its disk mounted?", "brackfs init"]),
            case(
                &["ls", "latest", "--repo", "rep"],
                10,
                &["no repository at rep", "no such directory", "brackfs init rep"],
            ),
            case(&["ls", "latest", "--repo", source], 10, &[source, "it has no brackfs.toml", "brackfs init"]),
            case(&["init", "s3:bucket", "--no-encryption"], 2, &["s3:bucket", "write s3://BUCKET", "./s3:bucket"]),
            case(&["init", "me@host:x", "--no-encryption"], 2, &["me@host:x", "sftp://", "./me@host:x"]),
            case(&["ls", "zz"], 1, &["called zz", "`brackfs snapshots` lists them", "latest:zz"]),
            case(&["ls", "docs"], 1, &["called docs", "latest:docs"]),
            case(&["ls", "/docs"], 2, &["/docs", "latest:docs"]),
            case(&["ls", "docs/latest"], 1, &["source called docs", "`brackfs snapshots` lists them"]),
            case(&["ls", "2001-01-01"], 1, &["begins with 2001-01-01", "`brackfs snapshots` lists them"]),
            case(&["forget", "zz"], 1, &["called zz", "`brackfs snapshots` lists them"]),
            case(&["ls", "latest:zz"], 1, &["the snapshot has no /zz", "brackfs ls"]),
            case(&["ls", "latest:hello.txt/x"], 1, &["/hello.txt is not a directory"]),
            case(&["versions", "zz"], 1, &["no snapshot has zz", "brackfs find"]),
            case(&["cat", "latest"], 1, &["latest", "whole snapshot", "latest:PATH"]),
            case(&["cat", "latest:docs"], 1, &["latest:docs", "directory", "brackfs dump"]),
            case(&["cat", "latest:link"], 1, &["latest:link", "symbolic link to hello.txt", "name that file"]),
            case(&["mount", "latest"], 2, &["mount point is missing", "brackfs mount latest DIRECTORY"]),
            case(&["mount", "zz"], 1, &["zz", "no such directory", "make it first"]),
            case(&["mount", "latest:hello.txt", "mnt"], 1, &["hello.txt", "not a directory", "brackfs cat"]),
            case(&["mount", "-o", "nosuch=3", "mnt"], 2, &["unknown mount option nosuch=3", "brackfs mount --help"]),
            case(&["umount", "mnt"], 1, &["mnt", "not a brackfs mount", "findmnt"]),
            case(&["restore", "latest", "--to", "source/hello.txt"], 1, &["source/hello.txt", "exists", "choose"]),
            case(&["forget"], 2, &["keeps no snapshots", "--keep"]),
            case(&["ls", "--repo", "", "latest"], 2, &["invalid value for '--repo <REPO>'", "it is empty"]),
            case(&["lss"], 2, &["lss", "'ls'"]),
        ],
    );
}

#[test]
fn a_backup_explains_what_it_cannot_use() {
    let site = ready();
    check(
        &site,
        &[
            case(&["backup"], 2, &["no PATH is given", "no configuration", "brackfs backup PATH"]),
            case(&["backup", "zz"], 1, &["cannot back up zz", "No such file", "check the path"]),
            case(
                &["backup", "source", "days", "--source", "s"],
                3,
                &["days", "No such file", "missing from the snapshot"],
            ),
            case(
                &["backup", "source", "--source", "a:b"],
                2,
                &["\"a:b\" can't name a source", "without slashes, colons"],
            ),
            case(&["backup", "source", "--settle-max", "soon"], 2, &["soon", "--settle-max", "write a number with"]),
            case(&["backup", "source", "--recheck", "much"], 2, &["much", "--recheck", "write a number with"]),
        ],
    );
    let mut command = site.command(&["backup", "source"]);
    command.env_remove("BRACKFS_REPOSITORY");
    let run = run(command).code(2);
    assert!(run.stderr.contains("which repository?") && run.stderr.contains("--repo REPO"), "{run}");
    // Usual spellings of sizes and durations.
    for (option, value) in [
        ("--settle-max", "3d"),
        ("--settle-max", "1.5h"),
        ("--settle-max", "2 days"),
        ("--settle-max", "90sec"),
        ("--recheck", "1.5G"),
        ("--recheck", ".5G"),
        ("--recheck", "100 MB"),
    ] {
        site.brackfs(&["backup", "source", option, value]).ok();
    }
}

#[test]
fn a_host_key_that_cannot_be_used_is_named_with_what_to_do() {
    let site = ready();
    let folders = fs::read_dir(site.state()).unwrap().map(|entry| entry.unwrap().path().join("host.key"));
    let key = folders.into_iter().find(|key| key.exists()).unwrap();
    fs::write(&key, "").unwrap();
    for arguments in [&["backup", "source"][..], &["prune"], &["forget", "latest"]] {
        let failed = site.brackfs(arguments).code(1);
        let path = key.display().to_string();
        assert!(failed.stderr.contains(&format!("cannot use the host key {path}: ")), "{failed}");
        assert!(failed.stderr.contains("from a copy") && failed.stderr.contains("`brackfs adopt`"), "{failed}");
    }
}

#[test]
fn keys_are_named_by_their_primary_fingerprints() {
    let site = ready();
    let owner = site.keys().join("owner.pub");
    site.key_named("other", "rfc9580");
    fs::write(site.path().join("text"), "not a key").unwrap();
    let listed = site.brackfs(&["recipients", "list"]).ok().stdout;
    let fingerprint = listed.split_whitespace().next().unwrap();
    for (run, says) in [
        (without_key(&site, &["ls", "latest"]), ["give the secret key", "--key"]),
        (
            without_key(&site, &["ls", "latest", "--key", "keys/other"]),
            ["with the key keys/other", "the repository is for"],
        ),
    ] {
        let run = run.code(12);
        assert_plain(&run, false);
        assert!(says.iter().all(|words| run.stderr.contains(words)), "{run}");
        assert!(run.stderr.contains(fingerprint) && run.stderr.contains("brackfs owner"), "{run}");
    }
    check(
        &site,
        &[
            case(&["ls", "latest", "--key", "text"], 12, &["text", "no OpenPGP secret key", "--key"]),
            case(&["ls", "latest", "--key", "nosuch"], 12, &["nosuch", "No such file", "secret key"]),
            case(&["ls", "latest", "--key", owner.to_str().unwrap()], 12, &["only a public certificate", "secret key"]),
            case(
                &["init", "r", "--recipient", "me@example.org"],
                1,
                &["me@example.org", "gpg --export me@example.org"],
            ),
            case(&["init", "r", "--recipient", "text"], 1, &["text", "no OpenPGP certificate", "owner.key.pub"]),
            case(&["key", "generate", "--output", "keys/owner"], 1, &["keys/owner", "exists", "choose another name"]),
        ],
    );
    // Keys can be told apart by their user ids.
    let host = rustix::system::uname();
    assert!(listed.contains(&format!("brackfs owner {}", host.nodename().to_str().unwrap())), "{listed}");
}

#[test]
fn ambiguous_ids_are_listed() {
    let site = Site::with_files(&[("f", "f")]);
    site.init();
    // Of 17 ids, two have the same first digit.
    for _ in 0..17 {
        site.backup(&[]).ok();
    }
    let listed = site.brackfs(&["snapshots"]).ok().stdout;
    let ids: Vec<_> = listed.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let digit = |id: &&&str| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1;
    let digit = &ids.iter().find(digit).unwrap()[..1];
    for command in [&["ls", digit][..], &["forget", digit]] {
        let run = site.brackfs(command).code(1);
        assert_plain(&run, true);
        for id in ids.iter().filter(|id| id.starts_with(digit)).take(10) {
            assert!(run.stderr.contains(id), "{id}: {run}");
        }
        assert!(run.stderr.contains("write more of it"), "{run}");
    }
}

#[test]
fn a_full_standard_output_is_named() {
    let site = ready();
    let config = site.path().join("config.toml");
    let text = format!(
        "version = 1\n[target.t]\nrepository = {:?}\n[source.s]\npaths = [{:?}]\nto = [\"t\"]\n",
        site.repo(),
        site.source()
    );
    fs::write(&config, text).unwrap();
    common::set_mode(&config, 0o600);
    for arguments in [
        &["ls", "latest"][..],
        &["cat", "latest:hello.txt"],
        &["dump", "latest"],
        &["snapshots"],
        &["find", "hello*"],
        &["versions", "hello.txt"],
        &["diff", "latest", "latest"],
        &["stats"],
        &["backup", "source", "--json"],
        &["restore", "latest", "--to", "out", "--json"],
        &["check", "--json"],
        &["catalog", "verify", "--json"],
        &["catalog", "rebuild", "--json"],
        &["hold", "latest", "--json"],
        &["release", "latest", "--json"],
        &["forget", "--keep-last", "1", "--dry-run"],
        &["forget", "--keep-last", "1", "--json"],
        &["prune", "--json"],
        &["recipients", "list"],
        &["adopt", "--json"],
        &["config", "check"],
        &["config", "show"],
        &["config", "unit"],
        &["status"],
        &["status", "--json"],
        &["status", "--format", "prom"],
        &["status", "--format", "nagios"],
        &["run", "--json"],
        &["completions", "bash"],
        &["completions", "zsh"],
        &["--version"],
        &["ls", "--help"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = site.command(arguments);
        command.env("BRACKFS_CONFIG", &config).stdout(full).stderr(Stdio::piped());
        let output = spawn(&mut command).wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let object = if arguments[0] == "dump" { "the archive" } else { "to standard output" };
        let words = format!("cannot write {object}: No space left on device");
        assert!(said.contains(&words), "{arguments:?}: {said}");
        assert!(!said.contains("os error"), "{said}");
    }
}

#[test]
fn a_missing_pack_is_one_line_that_counts_files_and_snapshots() {
    let site = Site::new();
    for number in 0..30 {
        site.write(&format!("d/f{number}"), number.to_string());
    }
    site.init();
    site.backup(&[]).ok();
    let before = packs(&site.repo());
    // Another snapshot with the same files, and a file of its own.
    site.write("more", "more");
    site.backup(&[]).ok();
    for pack in &before {
        let content = fs::read(pack).unwrap();
        fs::remove_file(pack).unwrap();
        let run = site.brackfs(&["check"]).code(1);
        assert_plain(&run, false);
        let id = &pack.file_name().unwrap().to_str().unwrap()[..8];
        let about: Vec<_> = run.stderr.lines().filter(|line| line.contains(id)).collect();
        assert_eq!(about.len(), 1, "{run}");
        assert!(about[0].contains("it is missing") && about[0].contains("cannot be read"), "{run}");
        let is_of_files = about[0].contains("30 files in 2 snapshots");
        assert!(is_of_files || about[0].contains("director"), "{run}");
        assert!(run.stderr.contains("-v lists"), "{run}");
        if is_of_files {
            let whole = site.brackfs(&["check", "-v"]).code(1);
            assert_eq!(whole.stderr.lines().filter(|line| line.contains("/d/f")).count(), 30, "{whole}");
            let json = site.brackfs(&["check", "--json"]).code(1);
            assert_eq!(json.stderr.matches("/d/f").count(), 30, "{json}");
            // A restore names the first files.
            let run = site.brackfs(&["restore", "latest", "--to", "out"]).code(1);
            assert_plain(&run, false);
            assert_eq!(run.stderr.lines().filter(|line| line.contains("/d/f")).count(), 20, "{run}");
            assert!(run.stderr.contains("and 10 more: -v shows all"), "{run}");
            assert!(run.stderr.contains(&format!("pack {id} is missing or damaged: 30 entries")), "{run}");
            assert!(fs::read_to_string(site.path().join("out/more")).unwrap() == "more");
        }
        fs::write(pack, content).unwrap();
    }
    site.brackfs(&["check"]).ok();
}

#[test]
fn of_many_unreadable_files_the_first_are_shown() {
    let site = Site::new();
    for number in 0..3000 {
        site.write(&format!("f{number}"), "");
    }
    let paths = common::paths_below(&site.source());
    paths.iter().filter(|path| path.is_file()).for_each(|path| common::set_mode(path, 0));
    site.write("good", "good");
    site.init();
    let backup = |extra: &[&str]| {
        let site_path = site.path();
        Command::new("chmod").args(["-R", "a+rwX"]).args(["repo", "state"]).current_dir(site_path).status().unwrap();
        run(site.command_as_nobody(&[&["backup", "source"], extra].concat())).code(3)
    };
    for path in [site.repo(), site.state()] {
        Command::new("chown").arg("-R").arg(NOBODY.to_string()).arg(path).status().unwrap();
    }
    let said = backup(&[]);
    assert_plain(&said, false);
    assert_eq!(said.stderr.lines().filter(|line| line.contains("Permission denied")).count(), 20, "{said}");
    assert!(said.stderr.contains("and 2980 more: -v shows all"), "{said}");
    let said = backup(&["--reread", "--json"]);
    assert_eq!(said.stderr.matches("Permission denied").count(), 3000);
    let said = backup(&["--reread", "-v"]);
    assert_eq!(said.stderr.matches("Permission denied").count(), 3000);
}

#[test]
fn that_no_snapshot_was_made_is_always_shown() {
    let site = Site::new();
    let names: Vec<_> = (0..60).map(|number| format!("f{number}")).collect();
    names.iter().for_each(|name| _ = site.write(name, ""));
    let list = site.path().join("list");
    fs::write(&list, names.iter().map(|name| format!("source/{name}\n")).collect::<String>()).unwrap();
    site.init();
    let backup = ["backup", "--files-from", "list", "--source", "s"];
    site.brackfs(&backup).ok();
    names.iter().skip(3).for_each(|name| fs::remove_file(site.source().join(name)).unwrap());
    for extra in [&[][..], &["--dry-run"]] {
        let run = site.brackfs(&[&backup, extra].concat()).code(3);
        assert_eq!(run.stderr.matches("missing from the snapshot").count(), 20, "{run}");
        assert!(run.stderr.contains("and 37 more: -v shows all"), "{run}");
        assert!(run.stderr.contains("has 60 files, and now there are 3; no snapshot was made"), "{run}");
    }
}

#[test]
fn problems_of_documents_are_always_shown() {
    let site = Site::new();
    site.brackfs(&["init", "repo", "--no-encryption"]).ok();
    for number in 0..12 {
        site.write("file", number.to_string());
        site.backup(&[]).ok();
    }
    packs(&site.repo()).iter().for_each(|pack| fs::remove_file(pack).unwrap());
    let newest = |folder: &str| {
        let files = fs::read_dir(site.repo().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.is_file()).max().unwrap()
    };
    for (folder, said) in [("generation", "generation/"), ("keys", "keys/")] {
        let path = newest(folder);
        let content = fs::read(&path).unwrap();
        fs::write(&path, "not what was written").unwrap();
        let run = site.brackfs(&["check"]).code(1);
        assert_eq!(run.stderr.lines().filter(|line| line.contains("brackfs: pack ")).count(), 20, "{run}");
        assert!(run.stderr.contains(" more: -v shows all"), "{run}");
        assert!(run.stderr.contains(&format!("brackfs: {said}")), "{run}");
        fs::write(&path, content).unwrap();
    }
}

#[test]
fn of_many_missing_documents_the_folder_and_the_first_are_shown() {
    let site = Site::new();
    site.brackfs(&["init", "repo", "--no-encryption"]).ok();
    for number in 0..32 {
        site.write("file", number.to_string());
        site.backup(&[]).ok();
    }
    common::snapshot_objects(&site).iter().for_each(|snapshot| fs::remove_file(snapshot).unwrap());
    let run = site.brackfs(&["check"]).code(1);
    assert_plain(&run, false);
    let problems: Vec<_> = run.stderr.lines().filter(|line| line.contains("missing")).collect();
    // The last run did not count its own snapshot.
    assert!(problems[0].starts_with("brackfs: snapshots/: 31 snapshots are missing: "), "{run}");
    assert!(problems.len() <= 22 && run.stderr.contains(" more: -v shows all"), "{run}");
    let whole = site.brackfs(&["check", "-v"]).code(1).stderr;
    assert!(whole.lines().filter(|line| line.contains("missing")).count() >= 31, "{whole}");
}

#[test]
fn problems_name_their_paths() {
    let site = ready();
    for name in ["e", "No such", "source/e"] {
        let run = site.brackfs(&["backup", "source", name, "--source", "s"]).code(3);
        assert!(run.stderr.contains(&format!("brackfs: {name}: No such file or directory; it is missing")), "{run}");
    }
}

#[test]
fn a_missing_gpg_is_named() {
    let site = ready();
    let mut command = site.command(&["ls", "latest"]);
    command.env_remove("BRACKFS_KEY_FILE").env("PATH", site.path());
    let run = run(command).code(12);
    assert_plain(&run, true);
    for words in ["cannot run gpg", "install gpg, or give the secret key as a file with --key", "brackfs owner"] {
        assert!(run.stderr.contains(words), "{run}");
    }
}

#[test]
fn a_missing_fusermount3_is_named() {
    let site = ready();
    let mut command = site.command_as_nobody(&["mount", "mnt"]);
    command.env("PATH", site.path());
    Command::new("chmod").args(["-R", "a+rX"]).arg(site.path()).status().unwrap();
    for path in [site.mnt(), site.state()] {
        Command::new("chown").arg("-R").arg(NOBODY.to_string()).arg(path).status().unwrap();
    }
    let run = run(command).code(1);
    assert_plain(&run, false);
    assert!(run.stderr.contains("fusermount3 is missing") && run.stderr.contains("package fuse3"), "{run}");
}

/// Runs brackfs at a terminal, on which `lines` are typed.
fn typed(site: &Site, arguments: &[&str], lines: &str) -> (Option<i32>, String) {
    let inner = site.command(arguments);
    let mut line = String::from("exec");
    for word in std::iter::once(inner.get_program()).chain(inner.get_args()) {
        line.push_str(&format!(" '{}'", word.to_str().unwrap()));
    }
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.current_dir(site.path());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env_remove("BRACKFS_PASSPHRASE").env_remove("BRACKFS_KEY_FILE");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let mut terminal = child.stdin.take().unwrap();
    terminal.write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output();
    drop(terminal);
    let output = output.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_passphrase_may_be_typed_three_times() {
    let site = Site::with_files(&[("f", "f")]);
    let make = ["key", "generate", "--output", "typed"];
    let (code, said) = typed(&site, &make, "one\ntwo\n\none\none\n");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the two passphrases differ; try again"), "{said}");
    assert!(said.contains("the passphrase is empty, which protects nothing; try again"), "{said}");
    let (code, said) = typed(&site, &["key", "generate", "--output", "other"], "\n\n\n");
    assert_eq!(code, Some(12), "{said}");
    assert!(!site.path().join("other").exists());

    let mut command = site.command(&["init", "repo", "--recipient", "typed.pub"]);
    command.env_remove("BRACKFS_KEY_FILE");
    run(command).ok();
    site.backup(&[]).ok();
    let list = ["ls", "latest", "--key", "typed"];
    let (code, said) = typed(&site, &list, "a\nb\none\n");
    assert_eq!((code, said.matches("the passphrase is wrong; try again").count()), (Some(0), 2), "{said}");
    let (code, said) = typed(&site, &list, "a\nb\nc\n");
    assert_eq!(code, Some(12), "{said}");
    assert!(said.contains("the passphrase is wrong for"), "{said}");
}

#[test]
fn options_of_other_programs_are_understood() {
    let site = ready();
    let repo = site.repo();
    let mut command = site.command(&["restore", "latest", "-r", repo.to_str().unwrap(), "--target", "out"]);
    command.env_remove("BRACKFS_REPOSITORY");
    run(command).ok();
    assert_eq!(fs::read_to_string(site.path().join("out/hello.txt")).unwrap(), "hello");
}

#[test]
fn help_groups_options_by_headings() {
    let site = Site::new();
    for (command, headings) in [
        ("backup", &["What to back up:", "What to leave out:", "Detection of changes:", "Resources:", "Output:"][..]),
        ("forget", &["Policy:"]),
        ("ls", &["Keys and cache:", "Target options:", "Common options:"]),
    ] {
        let help = site.brackfs(&[command, "-h"]).ok().stdout;
        assert!(headings.iter().all(|heading| help.lines().any(|line| line == *heading)), "{help}");
    }
}

#[test]
fn a_target_among_the_paths_of_a_backup_is_refused() {
    let site = Site::with_files(&[("f", "f")]);
    site.init();
    let config = site.path().join("config.toml");
    fs::write(&config, format!("[target.mine]\nrepository = {:?}\n", site.repo())).unwrap();
    common::set_mode(&config, 0o600);
    let backup = |path: &str| {
        let mut command = site.command(&["backup", "source", path]);
        command.env("BRACKFS_CONFIG", &config);
        run(command)
    };
    let refused = backup("@mine").code(2);
    assert!(refused.stderr.contains("brackfs backup @mine PATH"), "{refused}");
    assert!(!site.repo().join("snapshots").exists());
    backup("@other").code(3);
    fs::write(site.path().join("@mine"), "").unwrap();
    backup("@mine").ok();
}

#[test]
fn a_source_without_snapshots_is_named() {
    let site = Site::with_files(&[("f", "f")]);
    site.init();
    site.backup(&[]).ok();
    for command in ["snapshots", "stats", "find f", "versions f"] {
        let arguments: Vec<_> = command.split(' ').chain(["--source", "typo"]).collect();
        let run = site.brackfs(&arguments);
        assert!(run.stderr.contains("no snapshot of a source called typo"), "{run}");
    }
    assert_eq!(site.brackfs(&["snapshots", "--source", "typo", "--json"]).ok().stdout, "[]\n");
    for command in ["snapshots", "stats"] {
        assert_eq!(site.brackfs(&[command, "--source", "source"]).ok().stderr, "");
    }
}

/// The code and the messages of a command whose standard output was closed by its reader.
fn closed(mut command: Command) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = spawn(command.stdout(writer).stderr(Stdio::piped())).wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn problems_that_were_reported_before_a_pipe_was_closed_count() {
    let site = Site::with_files(&[("a/lost", "one")]);
    common::age(&site.source());
    site.init();
    site.backup(&[]).ok();
    let first = packs(&site.repo());
    site.write("b/there", "two");
    common::age(&site.source().join("b"));
    common::set_time(&site.source(), common::AGED, 0);
    site.backup(&[]).ok();
    let expect = |arguments: &[&str], code: i32, words: &str| {
        let (found, said) = closed(site.command(arguments));
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words) && !said.contains("standard output"), "{arguments:?}: {said}");
    };
    let listings: [&[&str]; 4] = [&["ls", "-R", "latest"], &["find", "*"], &["versions", "b/there"], &["snapshots"]];
    for arguments in listings {
        expect(arguments, 0, "");
    }
    // The node of `a`.
    for pack in first {
        fs::remove_file(pack).unwrap();
    }
    expect(&["ls", "-R", "latest"], 1, "a/: cannot list all of this directory");
    // It reports the lost packs.
    let _ = site.backup(&[]);
    let newest = common::snapshot_objects(&site).pop().unwrap();
    fs::write(&newest, "").unwrap();
    for arguments in [&["find", "there"][..], &["find", "there", "--json"], &["versions", "b/there"], &["snapshots"]] {
        expect(arguments, 1, "it is cut off");
    }
}

#[test]
fn a_closed_pipe_does_not_hide_a_failure() {
    let site = Site::with_files(&[("f", "f")]);
    site.init();
    site.backup(&[]).ok();
    let config = site.path().join("config.toml");
    let text = format!(
        "[target.mine]\nrepository = {:?}\n[source.other]\npaths = [\"/nowhere\"]\nto = [\"mine\"]\n",
        site.repo()
    );
    fs::write(&config, text).unwrap();
    common::set_mode(&config, 0o600);
    let expect = |arguments: &[&str], code: i32| {
        let mut command = site.command(arguments);
        command.env("BRACKFS_CONFIG", &config);
        let (found, said) = closed(command);
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        assert!(!said.contains("standard output"), "{arguments:?}: {said}");
    };
    expect(&["ls", "latest"], 0);
    expect(&["restore", "latest", "--to", "out", "--json"], 0);
    expect(&["backup", "source", "nowhere", "--json", "--source", "several"], 3);
    expect(&["status"], 3);
    expect(&["status", "--json"], 3);
    expect(&["run", "--json"], 1);
    let last_prune = || {
        let mut command = site.command(&["status", "--json"]);
        command.env("BRACKFS_CONFIG", &config).env_remove("BRACKFS_REPOSITORY");
        run(command).json()["targets"][0]["last_prune"].clone()
    };
    assert!(last_prune().is_null());
    expect(&["forget", "@mine", "--keep-last", "1", "--json", "--prune"], 0);
    assert_eq!(last_prune()["outcome"], "done");
    let packs = common::paths_below(&site.repo().join("packs"));
    for pack in packs.into_iter().filter(|path| path.is_file()) {
        fs::write(pack, "").unwrap();
    }
    expect(&["check", "--json"], 1);
    expect(&["catalog", "verify", "--json"], 1);
}
