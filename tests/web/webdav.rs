//! Repositories on a WebDAV server (Apache): a whole round, logins, a server that is busy, cut off, full, silent, read-only or
//! away, hostile answers, and killed runs.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use brackfs::storage::{ErrorKind, LocationKind, Storage, WebdavStorage};
use uuid::Uuid;

use crate::answer;
use crate::common::http_proxy::Flaw;
use crate::common::remote::{MIB, NO_FILES, RemoteServer, RemoteSite, borrowed, many, round_files};
use crate::common::wait::until;
use crate::common::webdav::{Login, PASSWORD, Server, USER};
use crate::common::{NOBODY, Site, age, noise, run, set_mode, settle};

/// A site with a repository.
fn ready(files: &[(&str, impl AsRef<[u8]>)]) -> RemoteSite<Server> {
    RemoteSite::ready(Server::start(), files)
}

fn open(remote: &RemoteSite<Server>) -> WebdavStorage {
    let location = remote.server.repository();
    let LocationKind::Webdav(address) = location.kind() else { panic!("{location}") };
    WebdavStorage::open(address, location.remote()).unwrap()
}

/// Stores an object, and returns the kind of error.
fn put(storage: &dyn Storage, name: &str, bytes: &[u8]) -> Result<(), ErrorKind> {
    let mut spool = storage.spool(name, Uuid::from_u128(7)).unwrap();
    spool.append(bytes).unwrap();
    storage.store(&spool).map_err(|error| error.kind)
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    ready(&round_files()).a_whole_round_works();
}

#[test]
fn digest_login_and_tls_work_and_a_certificate_is_trusted_only_with_its_authority() {
    let digest = RemoteSite::new(Server::with_options(Login::Digest, false), &[("file", noise("file", MIB))]);
    digest.init().ok();
    digest.backup(&[]).ok();
    digest.is_whole();
    let heads = digest.server.proxy.heads();
    let logins: Vec<_> = heads.iter().filter(|head| head.contains("authorization: ")).collect();
    assert!(logins.len() > 10 && logins.iter().all(|head| head.contains("authorization: Digest username=\"tester\"")));

    let tls = RemoteSite::new(Server::with_options(Login::Basic, true), &[("file", noise("file", MIB))]);
    let with_tls = |arguments: &[&str]| {
        let mut command = tls.command(arguments);
        command.env("BRACKFS_REPOSITORY", tls.server.tls_url("repo"));
        command
    };
    let trusting = |arguments: &[&str]| {
        let mut command = with_tls(arguments);
        command.env("BRACKFS_CA", tls.server.certificate());
        run(command)
    };
    let certificate = tls.site.keys().join("owner.pub");
    let url = tls.server.tls_url("repo");
    let init = ["init", url.as_str(), "--recipient", certificate.to_str().unwrap()];
    let refused = run(with_tls(&init)).code(1);
    assert!(refused.stderr.contains("certificate is not trusted") && refused.stderr.contains("--ca"), "{refused}");
    trusting(&init).ok();
    trusting(&["backup", tls.site.source().to_str().unwrap()]).ok();
    trusting(&["check", "--read-data"]).ok();
}

#[test]
fn logins_are_found_in_variables_and_netrc_and_never_shown() {
    let remote = ready(&borrowed(&many(2)));
    let none = run(remote.bare(&["snapshots"])).code(1);
    assert!(none.stderr.contains("set WEBDAV_USER and WEBDAV_PASSWORD"), "{none}");
    let mut variables = remote.bare(&["snapshots"]);
    variables.env("WEBDAV_USER", USER).env("WEBDAV_PASSWORD", PASSWORD);
    run(variables).ok();
    let mut user = remote.bare(&["snapshots"]);
    user.env("BRACKFS_REPOSITORY", remote.server.url("repo").replace("://", &format!("://{USER}@")));
    fs::copy(remote.server.file(), remote.site.path().join(".netrc")).unwrap();
    run(user).ok();
    fs::remove_file(remote.site.path().join(".netrc")).unwrap();
    let mut netrc = remote.bare(&["snapshots"]);
    netrc.env("NETRC", remote.server.file());
    run(netrc).ok();

    remote.server.proxy.fail("PUT", "packs/", 1, answer("503 Busy", ""));
    let sent = openssl::base64::encode_block(format!("{USER}:{PASSWORD}").as_bytes());
    remote.no_secret_is_shown(&[PASSWORD, &sent]);

    set_mode(&remote.server.file(), 0o644);
    fs::remove_dir_all(remote.server.folder().unwrap()).unwrap();
    let noted = remote.init().ok();
    assert!(noted.stderr.contains("other users can read the file with the password"), "{noted}");
}

#[test]
fn refused_logins_and_missing_folders_end_a_command_at_once() {
    let mut remote = ready(&[("file", b"content".to_vec())]);
    let mut wrong = remote.bare(&["snapshots"]);
    wrong.env("WEBDAV_USER", USER).env("WEBDAV_PASSWORD", "hunter2");
    remote.server.proxy.requests();
    let wrong = run(wrong).code(1);
    assert!(wrong.stderr.contains("the server refuses the login; check the user and the password"), "{wrong}");
    assert!(!wrong.stderr.contains("hunter2") && !wrong.stderr.contains("waiting for"), "{wrong}");
    assert_eq!(remote.server.proxy.requests().len(), 2);

    let mut missing = remote.command(&["snapshots"]);
    missing.env("BRACKFS_REPOSITORY", remote.server.url("missing"));
    let missing = run(missing).code(10);
    assert!(missing.stderr.contains("no such file"), "{missing}");
    let certificate = remote.site.keys().join("owner.pub");
    let above = remote.brackfs(&["init", &remote.server.url("a/b"), "-r", certificate.to_str().unwrap()]).code(1);
    assert!(above.stderr.contains("the folder above it does not exist"), "{above}");
    remote.server.stop();
    let away = remote.brackfs(&["snapshots"]).code(1);
    assert!(away.stderr.contains("the server closed the connection"), "{away}");
    assert!(!away.stderr.contains("waiting for"), "{away}");
}

#[test]
fn a_password_is_never_taken_from_a_location_nor_sent_unencrypted_to_another_machine() {
    let site = Site::new();
    for scheme in ["webdav", "webdavs"] {
        let location = format!("{scheme}://me:hunter2@host/repo");
        for arguments in [&["init", location.as_str()][..], &["snapshots", "--repo", &location]] {
            let refused = site.brackfs(arguments).code(2);
            assert!(refused.stderr.contains("a password does not belong in a location"), "{refused}");
            assert!(!refused.stderr.contains("hunter2"), "{refused}");
        }
    }
    // Through a proxy, a connection without TLS leaves this machine even if its other end is there.
    let remote = RemoteSite::new(Server::start(), &NO_FILES);
    let mut proxied = remote.command(&["snapshots"]);
    let tunnel = Tunnel::start();
    proxied.env("HTTP_PROXY", format!("http://127.0.0.1:{}", tunnel.port)).env("NO_PROXY", "");
    let refused = run(proxied).code(1);
    assert!(refused.stderr.contains("the server wants the password unencrypted"), "{refused}");
    let heads = remote.server.proxy.heads();
    assert!(
        !heads.is_empty() && heads.iter().all(|head| !head.to_ascii_lowercase().contains("authorization")),
        "{heads:?}"
    );
}

#[test]
fn answers_that_trying_again_cannot_change_say_what_to_do() {
    let remote = ready(&NO_FILES);
    let elsewhere = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let location = format!("Location: http://{}/\r\n", elsewhere.local_addr().unwrap());
    for (flaw, words) in [
        (answer("403 Forbidden", ""), "denies access"),
        (answer("405 No", ""), "does not support WebDAV"),
        (answer("301 Moved", &location), "redirects to another address"),
        (answer("308 Moved", &location), "redirects to another address"),
        (answer("200 OK", ""), "not one of WebDAV"),
        (answer("401 No", "WWW-Authenticate: Negotiate\r\n"), "neither Digest nor Basic"),
    ] {
        remote.server.proxy.fail("", "", 1, flaw);
        let refused = remote.brackfs(&["snapshots"]).code(1);
        assert!(refused.stderr.contains(words) && !refused.stderr.contains("waiting for"), "{words}: {refused}");
        assert_eq!(remote.server.proxy.failures_left(), 0);
    }
    assert!(elsewhere.accept().is_err(), "a redirect was followed");
}

#[test]
fn an_answer_of_a_hostile_server_is_an_error_and_never_a_panic() {
    let remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let list = |inner: &str| format!("<multistatus xmlns=\"DAV:\">{inner}</multistatus>");
    let file = |href: &str| {
        format!(
            "<response><href>{href}</href><propstat><prop><getcontentlength>1</getcontentlength></prop></propstat></response>"
        )
    };
    let long = "x".repeat(100_000);
    let bodies = [
        list(""),
        list(&file("/other/x")),
        list(&file("/repo/snapshots/a/b/c")),
        list(&file("/repo/snapshots/%2e%2e")),
        list(&file("/repo/snapshots/..%2f..%2fx")),
        list(&file(&format!("/repo/snapshots/{long}"))),
        list(&"<x>".repeat(10_000)),
        format!("<!DOCTYPE x [<!ENTITY a \"{long}\">]>{}", list("&a;&a;&a;")),
        "\0".into(),
    ];
    let answers =
        bodies.iter().map(|body| format!("HTTP/1.1 207 Multi-Status\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let heads = ["\r\n\r\n", "HTTP/1.1 999 x\r\n\r\n", "HTTP/1.1 207 OK\r\nContent-Length: -1\r\n\r\n"];
    let heads = heads.map(str::to_owned).into_iter().chain([
        format!("HTTP/1.1 401 No\r\nWWW-Authenticate: Digest {long}\r\n\r\n"),
        "HTTP/1.1 401 No\r\nWWW-Authenticate: Digest realm=\"\\\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 207 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n".to_owned(),
    ]);
    let storage = open(&remote);
    for answer in answers.chain(heads) {
        let flaw = Flaw::Answer(answer.clone() + &"\0".repeat(100_000));
        let shown: String = answer.chars().take(120).collect();
        remote.server.proxy.fail("PROPFIND", "repo/snapshots/", 1, flaw.clone());
        storage.visit("snapshots/", &mut |object| panic!("{object:?}: {shown}")).expect_err(&shown);
        remote.server.proxy.fail("PROPFIND", "repo/", 1, flaw);
        let location = remote.server.location("repo");
        let LocationKind::Webdav(address) = location.kind() else { panic!("{location}") };
        let kind = WebdavStorage::open(address, location.remote()).expect_err(&shown).kind;
        assert!(!matches!(kind, ErrorKind::NotFound | ErrorKind::Truncated | ErrorKind::Damaged), "{kind:?}: {shown}");
        remote.server.proxy.forgive();
    }
    remote.is_whole();
}

#[test]
fn a_busy_server_is_waited_for_and_cut_uploads_are_made_again() {
    let remote = ready(&borrowed(&many(2)));
    remote.server.proxy.fail("PUT", "packs/", 3, answer("503 Busy", "Retry-After: 1\r\n"));
    let mut backup = remote.begin_backup(&["--connections", "1"]);
    backup.succeeds();
    assert_eq!(remote.server.proxy.failures_left(), 0);
    assert_eq!(backup.said().matches("waiting for webdav://").count(), 1, "{}", backup.said());
    assert!(backup.said().contains("the server is busy"), "{}", backup.said());

    fs::write(remote.site.source().join("file0"), noise("other", 20 * MIB)).unwrap();
    age(&remote.site.source());
    settle();
    let packs = remote.packs();
    remote.server.proxy.fail("PUT", "packs/", 1, Flaw::CutRequest(6 << 20));
    remote.server.proxy.fail("PUT", "packs/", 1, Flaw::LoseAnswer);
    remote.server.proxy.fail("MOVE", "packs/", 1, Flaw::LoseAnswer);
    remote.server.proxy.fail("MOVE", "index/", 1, Flaw::LoseAnswer);
    remote.server.proxy.fail("MOVE", "generation/", 1, Flaw::LoseAnswer);
    remote.server.proxy.fail("MOVE", "snapshots/", 1, answer("423 Locked", ""));
    remote.backup(&[]).ok();
    assert_eq!(remote.server.proxy.failures_left(), 0);
    assert!((2..=3).contains(&(remote.packs() - packs)), "no pack is stored twice");
    assert_eq!(remote.snapshots(), 2);
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);

    for bytes in [0, 1, 100_000] {
        remote.server.proxy.fail("GET", "packs/", 1, Flaw::CutAnswer(bytes));
    }
    remote.server.proxy.fail("PROPFIND", "snapshots/", 1, Flaw::CutAnswer(100));
    remote.is_whole();
    assert_eq!(remote.server.proxy.failures_left(), 0);
}

#[test]
fn an_upload_that_is_cut_leaves_nothing_under_its_name_and_the_rest_is_removed_later() {
    let remote = ready(&NO_FILES);
    let storage = open(&remote);
    let bytes = noise("object", 4 * MIB);
    put(&storage, "packs/ab/first", b"x").unwrap();
    // The server cannot be asked to remove what it has.
    remote.server.proxy.fail("PUT", "", 1, Flaw::CutRequest(2 << 20));
    remote.server.proxy.fail("DELETE", "", 1, answer("503 Busy", ""));
    assert_eq!(put(&storage, "packs/ab/cut", &bytes), Err(ErrorKind::Unavailable));
    assert_eq!(storage.length("packs/ab/cut").unwrap_err().kind, ErrorKind::NotFound);
    // A server that keeps less than it was sent.
    remote.server.proxy.fail("PUT", "", 1, answer("201 Created", ""));
    assert_eq!(put(&storage, "packs/ab/lost", &bytes), Err(ErrorKind::Other));
    assert_eq!(storage.length("packs/ab/lost").unwrap_err().kind, ErrorKind::NotFound);

    // Temporary files of a run that was killed.
    let dead = Uuid::from_u128(9);
    let folder = remote.server.folder().unwrap().join("packs/ab");
    for run in [dead, Uuid::from_u128(8)] {
        fs::write(folder.join(format!(".tmp-{run}-{}", Uuid::new_v4())), "x").unwrap();
    }
    for file in fs::read_dir(&folder).unwrap() {
        chown(file.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut listed = Vec::new();
    storage.visit("packs/", &mut |object| listed.push(object.name)).unwrap();
    assert_eq!(listed, ["packs/ab/first"]);
    assert_eq!(storage.discard(&["packs/", "none/"], &[dead]).unwrap(), 1);
    let left = remote.temporary_files();
    assert!(left.len() == 1 && !left[0].to_str().unwrap().contains(&dead.to_string()), "{left:?}");
}

#[test]
fn servers_that_know_less_or_another_address_are_used_as_well() {
    let remote = ready(&NO_FILES);
    let storage = open(&remote);
    let bytes = noise("object", MIB);
    put(&storage, "index/a", &bytes).unwrap();
    // nginx reports a missing folder like an error of its own.
    remote.server.proxy.fail("PUT", "new/", 1, answer("500 Oops", ""));
    put(&storage, "new/a", &bytes).unwrap();
    remote.server.proxy.fail("PUT", "new/", 1, answer("500 Oops", ""));
    assert_eq!(put(&storage, "new/b", &bytes), Err(ErrorKind::Throttled));

    // A proxy in front of the server changes its address, so the server takes the destination for another server's.
    remote.server.proxy.heads();
    remote.server.proxy.fail("MOVE", "", 1, answer("502 Bad Gateway", ""));
    remote.server.proxy.fail("MOVE", "", 2, answer("201 Created", ""));
    put(&storage, "index/b", &bytes).unwrap();
    put(&storage, "index/c", &bytes).unwrap();
    let moves: Vec<_> = remote.server.proxy.heads().into_iter().filter(|head| head.starts_with("MOVE ")).collect();
    let short = |head: &String| head.contains("destination: /repo/index/");
    assert_eq!(moves.iter().map(short).collect::<Vec<_>>(), [false, true, true], "{moves:?}");

    // A server that does not know ranges sends all of the file.
    let whole = |bytes: &[u8], head: &str| {
        let text: String = bytes.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        (text.clone(), Flaw::Answer(format!("HTTP/1.1 200 OK\r\n{head}\r\n{text}")))
    };
    let (text, flaw) = whole(&bytes, &format!("Content-Length: {MIB}\r\n"));
    let mut read = Vec::new();
    for (offset, length) in [(0, MIB), (1000, 10), (MIB - 1, 1)] {
        remote.server.proxy.fail("GET", "index/a", 1, flaw.clone());
        let result = storage.read("index/a", offset as u64, length, &mut read);
        assert!(result.is_ok(), "{}", result.unwrap_err());
        assert!(read == text.as_bytes()[offset..offset + length], "{offset} {length}");
    }
    for (offset, length) in [(0, MIB + 1), (MIB, 1), (MIB + 5, 1)] {
        remote.server.proxy.fail("GET", "index/a", 1, flaw.clone());
        assert_eq!(storage.read("index/a", offset as u64, length, &mut read).unwrap_err().kind, ErrorKind::Truncated);
    }
    remote.server.proxy.fail("GET", "index/a", 1, answer("206 Partial Content", "Content-Range: bytes 7-9/100\r\n"));
    assert_eq!(storage.read("index/a", 0, 10, &mut read).unwrap_err().kind, ErrorKind::Other);
}

#[test]
fn a_folder_whose_disk_is_not_mounted_is_away_and_not_empty() {
    let remote = ready(&[("file", b"content".to_vec())]);
    let storage = open(&remote);
    assert_eq!(storage.length("none").unwrap_err().kind, ErrorKind::NotFound);
    storage.length("brackfs.toml").unwrap();
    let aside = remote.server.data().join("aside");
    fs::rename(remote.server.folder().unwrap(), &aside).unwrap();
    let check = || {
        assert_eq!(storage.length("brackfs.toml").unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(storage.get("brackfs.toml", 1000).unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(storage.visit("packs/", &mut |_| ()).unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(storage.remove("brackfs.toml").unwrap_err().kind, ErrorKind::Unavailable);
    };
    check();
    assert_eq!(put(&storage, "index/x", b"x"), Err(ErrorKind::Unavailable));
    assert!(!remote.server.folder().unwrap().exists(), "the folder was made again");
    fs::create_dir(remote.server.folder().unwrap()).unwrap();
    check();
    fs::remove_dir(remote.server.folder().unwrap()).unwrap();
    fs::rename(aside, remote.server.folder().unwrap()).unwrap();
    storage.length("brackfs.toml").unwrap();
}

#[test]
fn a_full_server_ends_a_backup_with_words() {
    let remote = ready(&borrowed(&many(1)));
    remote.server.proxy.fail("PUT", "packs/", 100, answer("507 Insufficient Storage", ""));
    let full = remote.backup(&[]).code(1);
    assert!(full.stderr.contains("the server has no more room"), "{full}");
    assert!(!full.stderr.contains("waiting for"), "{full}");
    remote.server.proxy.forgive();
    remote.backup(&[]).ok();
    remote.is_whole();
}

#[test]
fn a_backup_waits_for_a_server_that_is_restarted() {
    let mut remote = ready(&borrowed(&many(2)));
    remote.a_backup_waits_for_the_server();
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
}

#[test]
fn a_mount_waits_for_a_server_that_is_restarted() {
    ready(&borrowed(&many(2))).a_mount_waits_for_the_server();
}

#[test]
fn a_killed_backup_is_followed_by_one_that_removes_its_temporary_files() {
    let remote = ready(&borrowed(&many(2)));
    // The server neither renames nor removes the upload that it has when the backup is killed.
    for method in ["MOVE", "DELETE"] {
        remote.server.proxy.fail(method, "packs/", 100, answer("503 Busy", "Retry-After: 60\r\n"));
    }
    let mut backup = remote.begin_backup(&[]);
    backup.until("an upload has no name yet", |backup| backup.said().contains("waiting for"));
    backup.kill();
    remote.server.proxy.forgive();
    assert!(!remote.temporary_files().is_empty());
    remote.backup(&[]).ok();
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
    remote.is_whole();
    // The server removes what it has of an upload in which the client is killed.
    remote.site.write("more", noise("more", 16 * MIB));
    settle();
    remote.a_backup_is_killed();
    until("the server removes the upload", || remote.temporary_files().is_empty());
    remote.backup(&[]).ok();
    remote.is_whole();
}

#[test]
fn two_machines_with_one_state_that_write_at_the_same_time_lose_nothing() {
    ready(&[("file", noise("file", MIB))]).two_machines_lose_nothing();
}

#[test]
fn init_accepts_only_an_empty_folder() {
    let remote = RemoteSite::new(Server::start(), &NO_FILES);
    let folder = remote.server.folder().unwrap();
    let put = || {
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::write(folder.join("mine"), "mine").unwrap();
    };
    remote.init_accepts_only_an_empty_place(put, || fs::remove_file(folder.join("mine")).unwrap());
}

#[test]
fn a_user_that_may_only_read_can_restore_and_not_back_up() {
    let mut remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.stop();
    remote.server.forbid_writing();
    remote.server.start_again();
    remote.can_be_read_and_not_written("denies access");
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

/// A proxy for tunnels to anywhere, as in `HTTP_PROXY`.
struct Tunnel {
    port: u16,
}

impl Tunnel {
    fn start() -> Tunnel {
        use std::io::{BufRead, BufReader, Write, copy};
        use std::net::TcpStream;
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(client.try_clone().unwrap());
                    let mut line = String::new();
                    lines.read_line(&mut line).unwrap();
                    let server = TcpStream::connect(line.split(' ').nth(1).unwrap()).unwrap();
                    while line.trim() != "" {
                        line.clear();
                        lines.read_line(&mut line).unwrap();
                    }
                    (&client).write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
                    let (mut up, mut down) = (server.try_clone().unwrap(), client);
                    std::thread::spawn(move || copy(&mut lines, &mut up));
                    let _ = copy(&mut &server, &mut down);
                });
            }
        });
        Tunnel { port }
    }
}
