//! Repositories in a container of OpenStack Swift: a whole round, logins of both versions, tokens that expire, a server that is
//! busy, cut off or full, hostile answers, and listings that lag behind.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use brackfs::storage::{ErrorKind, LocationKind, Storage, SwiftStorage, Target};
use rustix::process::Signal;

use crate::answer;
use crate::common::http_proxy::Flaw;
use crate::common::remote::{Begun, MIB, NO_FILES, RemoteServer, RemoteSite, borrowed, many, round_files};
use crate::common::swift::{Keystone, READER, Server, WRITER};
use crate::common::wait::LIMIT;
use crate::common::webdav::{self, Login};
use crate::common::{noise, run, set_mode, settle};

/// A site with a repository.
fn ready(files: &[(&str, impl AsRef<[u8]>)]) -> RemoteSite<Server> {
    RemoteSite::ready(Server::start(), files)
}

fn open(remote: &RemoteSite<Server>) -> SwiftStorage {
    let location = remote.server.repository();
    let LocationKind::Swift(address) = location.kind() else { panic!("{location}") };
    SwiftStorage::open(address, location.remote()).unwrap()
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    let prune = ready(&round_files()).a_whole_round_works();
    assert!(prune.stderr.contains("waiting 2 s before anything is removed"), "{prune}");
}

#[test]
fn a_prune_waits_for_late_listings_and_stops_for_a_backup_of_a_clone() {
    let remote = ready(&[("file", noise("file", MIB)), ("old", noise("old", MIB))]);
    remote.backup(&[]).ok();
    let clone = remote.site.path().join("clone");
    remote.clone_state(&clone);
    fs::remove_file(remote.site.source().join("old")).unwrap();
    settle();
    remote.backup(&[]).ok();
    remote.brackfs(&["forget", "--keep-last", "1"]).ok();
    let before = remote.packs();
    let begin_prune = |lag: Duration| {
        let mut prune = remote.command(&["prune", "--grace", "0"]);
        prune.env("BRACKFS_LISTING_LAG", lag.as_secs().to_string());
        let mut prune = Begun::start(prune);
        prune.until("the prune waits", |prune| prune.said().contains("before anything is removed"));
        prune
    };
    // It can be ended.
    let mut prune = begin_prune(LIMIT * 10);
    prune.send(Signal::INT);
    prune.ends_with(130);
    assert!(remote.packs() >= before, "packs were removed");

    let mut prune = begin_prune(Duration::from_secs(5));
    // The wait does not end before the backup of the clone, however long that takes.
    prune.send(Signal::STOP);
    remote.begin_as(&clone, &["backup", &remote.source()]).succeeds();
    prune.send(Signal::CONT);
    assert!(prune.is_stopped_by_a_rival(), "{}", prune.said());
    assert!(remote.packs() >= before, "packs were removed");
}

#[test]
fn logins_of_both_versions_are_found_and_never_shown() {
    let remote = ready(&borrowed(&many(2)));
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
    assert!(wrong.stderr.contains("check ST_USER and ST_KEY"), "{wrong}");

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
    assert_eq!((asked.len(), keystone.logins()), (1, 1), "{asked:?}");
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
    assert!(wrong.stderr.contains("check OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME"), "{wrong}");
    let nowhere = third(&[password[0], password[1], password[2], ("OS_REGION_NAME", "nowhere")]).code(1);
    assert!(nowhere.stderr.contains("check OS_REGION_NAME"), "{nowhere}");

    let storage = open(&remote);
    remote.server.proxy.heads();
    storage.length("brackfs.toml").unwrap();
    let token = |head: &str| head.lines().find_map(|line| line.strip_prefix("x-auth-token: ").map(str::to_owned));
    let token = remote.server.proxy.heads().iter().find_map(|head| token(head)).unwrap();
    remote.server.proxy.fail("PUT", "packs/", 1, answer("503 Busy", ""));
    // The server gives each user one token.
    remote.no_secret_is_shown(&[WRITER.1, &token]);

    set_mode(&remote.server.file(), 0o644);
    let mut other = remote.command(&["init", "swift://backups/other", "--no-encryption"]);
    other.env("BRACKFS_STATE_DIR", remote.site.path().join("other"));
    let noted = run(other).ok();
    assert!(noted.stderr.contains("other users can read the file with the secret"), "{noted}");
}

#[test]
fn tokens_are_renewed_before_and_after_they_expire() {
    const LIFE: Duration = Duration::from_secs(6);
    let remote = RemoteSite::ready(Server::with_token_life(LIFE), &borrowed(&many(2)));
    let start = Instant::now();
    remote.backup(&["--limit-upload", "2MiB"]).ok();
    assert!(start.elapsed() > LIFE, "no token has expired");
    remote.server.proxy.requests();
    let storage = open(&remote);
    let logins = || {
        storage.length("brackfs.toml").unwrap();
        remote.server.proxy.requests().iter().filter(|request| request.contains("/auth/v1.0")).count()
    };
    assert_eq!(logins(), 1);
    // Renewed while the server still accepts it.
    std::thread::sleep(LIFE * 3 / 4);
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
    let remote = ready(&[("file", noise("file", MIB))]);
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
    let full = remote.backup(&[]).code(1);
    assert!(full.stderr.contains("the server has no more room") && !full.stderr.contains("waiting for"), "{full}");
    remote.server.proxy.forgive();
    remote.backup(&[]).ok();

    // A user that may only read.
    remote.server.log_in_as(READER);
    remote.can_be_read_and_not_written("the server denies access");
    remote.server.proxy.stop();
    let away = remote.brackfs(&["snapshots"]).code(1);
    assert!(away.stderr.contains("the server closed the connection"), "{away}");
    assert!(!away.stderr.contains("waiting for"), "{away}");
}

#[test]
fn a_busy_server_is_waited_for_and_cut_transfers_are_made_again() {
    let remote = ready(&borrowed(&many(2)));
    // Few for each object, as waits become longer from try to try.
    remote.server.proxy.fail("PUT", "packs/", 1, answer("498 Rate Limited", "Retry-After: 1\r\n"));
    remote.server.proxy.fail("PUT", "packs/", 1, Flaw::CutRequest(6 << 20));
    remote.server.proxy.fail("PUT", "sums/", 1, answer("422 Unprocessable Entity", ""));
    remote.server.proxy.fail("PUT", "index/", 1, Flaw::LoseAnswer);
    remote.server.proxy.fail("PUT", "snapshots/", 1, Flaw::LoseAnswer);
    let mut backup = remote.begin_backup(&["--connections", "1"]);
    backup.succeeds();
    assert_eq!(remote.server.proxy.failures_left(), 0);
    assert_eq!(backup.said().matches("waiting for swift://backups/repo").count(), 1, "{}", backup.said());
    assert!(backup.said().contains("the server is busy"), "{}", backup.said());
    assert_eq!(remote.snapshots(), 1);
    for bytes in [0, 1, 100_000] {
        remote.server.proxy.fail("GET", "/packs/", 1, Flaw::CutAnswer(bytes));
    }
    remote.server.proxy.fail("GET", "snapshots%2F", 1, Flaw::CutAnswer(10));
    remote.is_whole();
    assert_eq!(remote.server.proxy.failures_left(), 0);
}

#[test]
fn a_backup_waits_for_a_server_that_is_away() {
    ready(&borrowed(&many(2))).a_backup_waits_for_the_server();
}

#[test]
fn pages_of_a_listing_are_read_to_the_end_and_hostile_answers_are_errors() {
    let remote = ready(&NO_FILES);
    let storage = open(&remote);
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

#[test]
fn a_redirect_is_not_followed_and_a_certificate_is_trusted_only_with_its_authority() {
    let remote = ready(&NO_FILES);
    let elsewhere = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let location = format!("Location: http://{}/\r\n", elsewhere.local_addr().unwrap());
    for status in ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        for (part, words) in [("/auth/", "does not answer logins at this URL"), ("/backups", "the server redirects")] {
            remote.server.proxy.fail("GET", part, 1, answer(status, &location));
            let refused = remote.brackfs(&["snapshots"]).code(1);
            assert!(refused.stderr.contains(words), "{status} {part}: {refused}");
            assert!(!refused.stderr.contains("waiting for"), "{refused}");
            assert_eq!(remote.server.proxy.failures_left(), 0);
        }
    }
    assert!(elsewhere.accept().is_err(), "a redirect was followed");

    // A login over TLS, at a server of another kind.
    let tls = webdav::Server::with_options(Login::Basic, true);
    let log_in = |ca: Option<&std::path::Path>| {
        let mut command = remote.bare(&["snapshots"]);
        let url = tls.tls_url("auth/v1.0").replace("webdavs://", "https://");
        command.env("ST_AUTH", url).env("ST_USER", WRITER.0).env("ST_KEY", WRITER.1);
        ca.map(|ca| command.env("BRACKFS_CA", ca));
        run(command).code(1)
    };
    let refused = log_in(None);
    assert!(refused.stderr.contains("certificate is not trusted") && refused.stderr.contains("--ca"), "{refused}");
    let trusted = log_in(Some(&tls.certificate()));
    assert!(!trusted.stderr.contains("certificate"), "{trusted}");
}

#[test]
fn a_silent_server_is_given_up_and_the_backup_goes_on() {
    let remote = ready(&borrowed(&many(2)));
    remote.server.proxy.fail("PUT", "packs/", 1, Flaw::Stall);
    remote.server.proxy.fail("GET", "keys/host", 1, Flaw::StallAnswer(10));
    remote.a_silent_server_is_given_up(|| (), || ());
    assert_eq!(remote.server.proxy.failures_left(), 0);
    remote.is_whole();
}

#[test]
fn a_mount_waits_for_a_server_that_is_away() {
    ready(&borrowed(&many(2))).a_mount_waits_for_the_server();
}

#[test]
fn a_killed_backup_leaves_nothing() {
    ready(&borrowed(&many(2))).a_killed_backup_leaves_nothing();
}

#[test]
fn two_machines_with_one_state_that_write_at_the_same_time_lose_nothing() {
    ready(&[("file", noise("file", MIB))]).two_machines_lose_nothing();
}

#[test]
fn init_accepts_only_an_empty_prefix() {
    let remote = RemoteSite::new(Server::start(), &NO_FILES);
    let storage = open(&remote);
    let target = Target::open(&remote.server.repository()).unwrap();
    remote
        .init_accepts_only_an_empty_place(|| target.put("mine", b"mine").unwrap(), || storage.remove("mine").unwrap());
}
