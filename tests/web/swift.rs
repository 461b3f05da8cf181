//! Repositories in a container of OpenStack Swift: a whole round, logins of both versions, tokens that expire, a server that is
//! busy, cut off or full, hostile answers, and listings that lag behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use brackfs::storage::{ErrorKind, LocationKind, Storage, SwiftStorage};

use crate::common::http_proxy::Flaw;
use crate::common::swift::{Keystone, READER, Server, WRITER};
use crate::common::{Run, Site, age, noise, run, settle, tree};
use crate::{MIB, answer, borrowed, many, until};

const URL: &str = "swift://backups/repo";

/// A site whose repository is in a container.
struct Remote {
    site: Site,
    server: Server,
}

impl Remote {
    /// A site with these files, and without a repository.
    fn new(files: &[(&str, Vec<u8>)], server: Server) -> Remote {
        let site = Site::with_files(files);
        site.key("rfc9580");
        Remote { site, server }
    }

    /// The same with a repository.
    fn ready(files: &[(&str, Vec<u8>)]) -> Remote {
        let remote = Remote::new(files, Server::start());
        remote.init().ok();
        remote
    }

    fn init(&self) -> Run {
        self.brackfs(&["init", URL, "--recipient", self.site.keys().join("owner.pub").to_str().unwrap()])
    }

    /// A run that finds no login.
    fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_uppercase();
            if text.starts_with("ST_") || text.starts_with("OS_") || text.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.env("BRACKFS_REPOSITORY", URL).env("HOME", self.site.path()).env("BRACKFS_LISTING_LAG", "0");
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare(arguments);
        command.env("BRACKFS_CREDENTIALS", self.server.file());
        command
    }

    fn brackfs(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    fn backup(&self) -> Run {
        self.brackfs(&["backup", self.site.source().to_str().unwrap()])
    }

    /// A command under way. Its messages go to a file.
    fn begin(&self, mut command: Command) -> Child {
        let log = fs::File::create(self.site.path().join("messages")).unwrap();
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    fn begin_backup(&self, extra: &[&str]) -> Child {
        self.begin(self.command(&[&["backup", self.site.source().to_str().unwrap()], extra].concat()))
    }

    /// The messages of the command under way.
    fn said(&self) -> String {
        fs::read_to_string(self.site.path().join("messages")).unwrap()
    }

    /// Checks everything, restores the newest snapshot and compares it with the source.
    fn is_whole(&self) {
        self.brackfs(&["check", "--read-data"]).ok();
        let out = self.site.path().join("out");
        self.brackfs(&["restore", "latest", "--to", out.to_str().unwrap()]).ok();
        assert!(tree(&out) == tree(&self.site.source()), "the restored files differ");
        fs::remove_dir_all(out).unwrap();
    }

    fn storage(&self) -> SwiftStorage {
        let location = self.server.location("repo");
        let LocationKind::Swift(address) = location.kind() else { panic!("{location}") };
        SwiftStorage::open(address, location.remote()).unwrap()
    }

    fn packs(&self) -> usize {
        let mut packs = 0;
        self.storage().visit("packs/", &mut |_| packs += 1).unwrap();
        packs
    }
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    let remote = Remote::ready(&[("file", b"content".to_vec()), ("large", noise("large", 20 * MIB))]);
    let again = remote.init().code(1);
    assert!(again.stderr.contains("already"), "{again}");
    remote.backup().ok();
    remote.site.write("new", noise("new", MIB));
    fs::remove_file(remote.site.source().join("large")).unwrap();
    age(&remote.site.source());
    settle();
    remote.backup().ok();
    remote.is_whole();
    assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 2);
    remote.brackfs(&["catalog", "verify"]).ok();

    let mnt = remote.site.mnt();
    remote.brackfs(&["mount", mnt.to_str().unwrap()]).ok();
    let copy = remote.site.path().join("copy");
    assert!(Command::new("cp").arg("-a").args([&mnt.join("source/latest/."), &copy]).status().unwrap().success());
    assert!(tree(&copy) == tree(&remote.site.source()));
    remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();

    let before = remote.packs();
    remote.brackfs(&["forget", "--keep-last", "1"]).ok();
    let mut prune = remote.command(&["prune", "--grace", "0"]);
    prune.env("BRACKFS_LISTING_LAG", "1s");
    let prune = run(prune).ok();
    assert!(prune.stderr.contains("waiting 1 s before anything is removed"), "{prune}");
    assert!(remote.packs() < before, "{before} packs before, {} after", remote.packs());
    assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 1);
    remote.is_whole();
}

#[test]
fn a_prune_finds_another_run_that_listings_showed_late() {
    let remote = Remote::ready(&[("file", noise("file", MIB)), ("old", noise("old", MIB))]);
    remote.backup().ok();
    let clone = remote.site.path().join("clone");
    assert!(Command::new("cp").arg("-a").args([remote.site.state(), clone.clone()]).status().unwrap().success());
    fs::remove_file(remote.site.source().join("old")).unwrap();
    settle();
    remote.backup().ok();
    remote.brackfs(&["forget", "--keep-last", "1"]).ok();
    let before = remote.packs();
    let mut prune = remote.command(&["prune", "--grace", "0"]);
    prune.env("BRACKFS_LISTING_LAG", "600");
    let mut prune = remote.begin(prune);
    until("the prune waits", || remote.said().contains("before anything is removed"));
    // It can be ended.
    let interrupt = Command::new("kill").args(["-INT", &prune.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let start = Instant::now();
    assert!(!prune.wait().unwrap().success());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(remote.packs() >= before, "packs were removed");

    let mut prune = remote.command(&["prune", "--grace", "0"]);
    prune.env("BRACKFS_LISTING_LAG", "15");
    let mut prune = remote.begin(prune);
    until("the prune waits", || remote.said().contains("before anything is removed"));
    let mut rival = remote.command(&["backup", remote.site.source().to_str().unwrap()]);
    rival.env("BRACKFS_STATE_DIR", &clone);
    run(rival).ok();
    assert!(!prune.wait().unwrap().success());
    assert!(remote.said().contains("another machine with a copy of this machine's state"), "{}", remote.said());
    assert!(remote.packs() >= before, "packs were removed");
}

#[test]
fn logins_of_both_versions_are_found_and_never_shown() {
    let remote = Remote::ready(&borrowed(&many(2)));
    let none = run(remote.bare(&["snapshots"])).code(1);
    assert!(
        none.stderr.contains("set OS_AUTH_URL, OS_USERNAME, OS_PASSWORD and OS_PROJECT_NAME, or ST_AUTH"),
        "{none}"
    );
    let first = |key: &str| {
        let mut command = remote.bare(&["snapshots"]);
        command.env("ST_AUTH", remote.server.login()).env("ST_USER", WRITER.0).env("ST_KEY", key);
        run(command)
    };
    first(WRITER.1).ok();
    let wrong = first("hunter2").code(1);
    assert!(wrong.stderr.contains("the server refuses the login") && !wrong.stderr.contains("hunter2"), "{wrong}");

    let keystone = Keystone::start(&remote.server, "pass word");
    let third = |variables: &[(&str, &str)]| {
        let mut command = remote.bare(&["snapshots"]);
        command.env("OS_AUTH_URL", keystone.url()).envs(variables.iter().copied());
        run(command)
    };
    let password = [
        ("OS_USERNAME", "me"),
        ("OS_PASSWORD", "pass word"),
        ("OS_PROJECT_NAME", "project"),
        ("OS_USER_DOMAIN_NAME", "domain"),
        ("OS_REGION_NAME", "here"),
    ];
    third(&password).ok();
    let asked = keystone.asked();
    // The command opens the repository twice.
    assert_eq!((asked.len(), keystone.logins()), (2, 2), "{asked:?}");
    assert_eq!(asked[0]["auth"]["identity"]["password"]["user"]["domain"]["name"], "domain");
    assert_eq!(asked[0]["auth"]["scope"]["project"]["name"], "project");
    third(&[
        ("OS_APPLICATION_CREDENTIAL_ID", "id"),
        ("OS_APPLICATION_CREDENTIAL_SECRET", "pass word"),
        ("OS_REGION_NAME", "here"),
    ])
    .ok();
    let wrong = third(&[password[0], ("OS_PASSWORD", "hunter2"), password[2]]).code(1);
    assert!(wrong.stderr.contains("requires authentication") && !wrong.stderr.contains("hunter2"), "{wrong}");
    let nowhere = third(&[password[0], password[1], password[2], ("OS_REGION_NAME", "nowhere")]).code(1);
    assert!(nowhere.stderr.contains("check OS_REGION_NAME"), "{nowhere}");

    let log = remote.site.path().join("log");
    remote.server.proxy.fail("PUT", "packs/", 1, answer("503 Busy", ""));
    remote.server.proxy.heads();
    let mut backup = remote.begin_backup(&["--log", log.to_str().unwrap(), "-v"]);
    let mut shown = String::new();
    while backup.try_wait().unwrap().is_none() {
        for file in ["cmdline", "environ"] {
            shown += &String::from_utf8_lossy(&fs::read(format!("/proc/{}/{file}", backup.id())).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    shown += &remote.said();
    shown += &fs::read_to_string(log).unwrap();
    let heads = remote.server.proxy.heads();
    let token =
        heads.iter().find_map(|head| head.lines().find_map(|line| line.strip_prefix("x-auth-token: "))).unwrap();
    assert!(shown.contains("BRACKFS_REPOSITORY") && !shown.contains(WRITER.1) && !shown.contains(token), "{shown}");

    fs::set_permissions(remote.server.file(), fs::Permissions::from_mode(0o644)).unwrap();
    let mut other = remote.command(&["init", "swift://backups/other", "--no-encryption"]);
    other.env("BRACKFS_STATE_DIR", remote.site.path().join("other"));
    let noted = run(other).ok();
    assert!(noted.stderr.contains("other users can read the file with the secret"), "{noted}");
}

#[test]
fn tokens_are_renewed_before_and_after_they_expire() {
    let server = Server::with_token_life(Duration::from_secs(4));
    let remote = Remote::new(&borrowed(&many(3)), server);
    remote.init().ok();
    let mut backup = remote.begin_backup(&["--limit-upload", "4MiB"]);
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    remote.server.proxy.requests();
    let storage = remote.storage();
    let logins = || {
        storage.length("brackfs.toml").unwrap();
        remote.server.proxy.requests().iter().filter(|request| request.contains("/auth/v1.0")).count()
    };
    assert_eq!(logins(), 1);
    // The server would know it for a while.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(logins(), 1);
    // Once if the server does not know the token any more, and not again.
    let refusal = || answer("401 Unauthorized", "");
    remote.server.proxy.fail("GET", "/backups/", 1, refusal());
    remote.is_whole();
    assert_eq!(remote.server.proxy.failures_left(), 0);
    remote.server.proxy.fail("GET", "/backups", 2, refusal());
    let refused = remote.brackfs(&["snapshots"]).code(1);
    assert!(
        refused.stderr.contains("does not accept its own token") && !refused.stderr.contains("waiting"),
        "{refused}"
    );
}

#[test]
fn errors_that_trying_again_cannot_change_end_a_command_at_once() {
    let remote = Remote::ready(&[("file", noise("file", MIB))]);
    let start = Instant::now();
    let mut missing = remote.command(&["snapshots"]);
    missing.env("BRACKFS_REPOSITORY", "swift://no-such-container/repo");
    let missing = run(missing).code(10);
    assert!(missing.stderr.contains("the container does not exist"), "{missing}");
    let mut missing = remote.command(&["init", "swift://no-such-container/repo", "--no-encryption"]);
    missing.env("BRACKFS_STATE_DIR", remote.site.path().join("other"));
    let missing = run(missing).code(1);
    assert!(missing.stderr.contains("the container does not exist"), "{missing}");
    let mut empty = remote.command(&["snapshots"]);
    empty.env("BRACKFS_REPOSITORY", "swift://backups/other");
    run(empty).code(10);
    for location in ["swift://user:hunter2@host/repo", "swift://host:hunter2/repo"] {
        let refused = remote.site.brackfs(&["snapshots", "--repo", location]).code(2);
        assert!(refused.stderr.contains("a login does not belong") && !refused.stderr.contains("hunter2"), "{refused}");
    }
    remote.server.proxy.fail("PUT", "packs/", 100, answer("413 Request Entity Too Large", ""));
    let full = remote.backup().code(1);
    assert!(full.stderr.contains("the server has no more room"), "{full}");
    remote.server.proxy.forgive();
    remote.backup().ok();

    // A user that may only read.
    remote.server.log_in_as(READER);
    remote.is_whole();
    remote.site.write("new", "new");
    settle();
    let refused = remote.backup().code(1);
    assert!(refused.stderr.contains("the server denies access"), "{refused}");
    remote.server.proxy.stop();
    let away = remote.brackfs(&["snapshots"]).code(1);
    assert!(away.stderr.contains("the server closed the connection"), "{away}");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn a_busy_server_is_waited_for_and_cut_transfers_are_made_again() {
    let remote = Remote::ready(&borrowed(&many(2)));
    // Few for each object, as waits become longer from try to try.
    remote.server.proxy.fail("PUT", "packs/", 1, answer("498 Rate Limited", "Retry-After: 1\r\n"));
    remote.server.proxy.fail("PUT", "packs/", 1, Flaw::CutRequest(6 << 20));
    remote.server.proxy.fail("PUT", "sums/", 1, answer("422 Unprocessable Entity", ""));
    remote.server.proxy.fail("PUT", "index/", 1, Flaw::LoseAnswer);
    remote.server.proxy.fail("PUT", "snapshots/", 1, Flaw::LoseAnswer);
    let mut backup = remote.begin_backup(&["--connections", "1"]);
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    assert_eq!(remote.server.proxy.failures_left(), 0);
    assert_eq!(remote.said().matches("waiting for swift://backups/repo").count(), 1, "{}", remote.said());
    assert!(remote.said().contains("the server is busy"), "{}", remote.said());
    assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 1);
    for bytes in [0, 1, 100_000] {
        remote.server.proxy.fail("GET", "/packs/", 1, Flaw::CutAnswer(bytes));
    }
    remote.server.proxy.fail("GET", "snapshots%2F", 1, Flaw::CutAnswer(10));
    remote.is_whole();
    assert_eq!(remote.server.proxy.failures_left(), 0);
}

#[test]
fn a_backup_waits_for_a_server_that_is_away() {
    let remote = Remote::ready(&borrowed(&many(4)));
    let mut backup = remote.begin_backup(&["--limit-upload", "12MiB"]);
    until("a pack is stored", || remote.packs() > 0);
    remote.server.proxy.stop();
    std::thread::sleep(Duration::from_secs(1));
    remote.server.proxy.start_again();
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    assert!(remote.said().contains("waiting for swift://"), "{}", remote.said());
    remote.is_whole();
}

#[test]
fn pages_of_a_listing_are_read_to_the_end_and_hostile_answers_are_errors() {
    let remote = Remote::ready(&[]);
    let storage = remote.storage();
    let list = |storage: &SwiftStorage| {
        let mut names = Vec::new();
        storage.visit("packs/", &mut |object| names.push(object.name)).map(|()| names).map_err(|error| error.kind)
    };
    // Pages may be short before the end.
    let page = |names: &[&str]| {
        let entries = names.iter().map(|name| format!("{{\"name\":\"repo/packs/{name}\",\"bytes\":1}}"));
        let body = format!("[{}]", entries.collect::<Vec<_>>().join(","));
        Flaw::Answer(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    remote.server.proxy.requests();
    for names in [&["a", "b"][..], &["c"], &[]] {
        remote.server.proxy.fail("GET", "backups?", 1, page(names));
    }
    assert_eq!(list(&storage).unwrap(), ["packs/a", "packs/b", "packs/c"]);
    let requests = remote.server.proxy.requests();
    assert!(
        requests[1].contains("marker=repo%2Fpacks%2Fb&") && requests[2].contains("marker=repo%2Fpacks%2Fc&"),
        "{requests:?}"
    );

    let long = "x".repeat(100_000);
    let bodies = [
        "[{\"name\":\"other/x\",\"bytes\":1}]".to_owned(),
        format!("[{{\"name\":\"repo/packs/{long}\",\"bytes\":1}}]"),
        "[".repeat(100_000),
        "<html></html>".into(),
        "\0".into(),
    ];
    let answers = bodies.iter().map(|body| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let heads = ["\r\n\r\n", "HTTP/1.1 999 x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"];
    for answer in answers.chain(heads.map(str::to_owned)) {
        let shown: String = answer.chars().take(100).collect();
        remote.server.proxy.fail("GET", "backups?", 1, Flaw::Answer(answer + &"\0".repeat(9 << 20)));
        let kind = list(&storage).expect_err(&shown);
        assert!(!matches!(kind, ErrorKind::NotFound | ErrorKind::Damaged | ErrorKind::Truncated), "{kind:?}: {shown}");
    }
    // The same page again and again.
    remote.server.proxy.fail("GET", "backups?", 2, page(&["a", "b"]));
    assert_eq!(list(&storage), Err(ErrorKind::Other));
    // Logins.
    for headers in ["", "X-Storage-Url: http://h\r\n", "X-Auth-Token: x\r\nX-Storage-Url: file:///\r\n"] {
        remote.server.proxy.fail("GET", "/auth/", 1, answer("200 OK", headers));
        let refused = remote.brackfs(&["snapshots"]).code(1);
        assert!(refused.stderr.contains("the answer to the login is not valid"), "{refused}");
    }
}
