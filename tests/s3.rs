//! Repositories in S3, through the real program and moto: a whole round, keys and how they are found, a server that is busy,
//! cut off, silent or away, hostile answers, and the number of requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use brackfs::storage::{Credentials, ErrorKind, Location, LocationKind, Remote, S3Storage, Storage, Target};
use common::http_proxy::Flaw;
use common::machine::spawn;
use common::rclone::RCLONE;
use common::remote::{Begun, MIB, NO_FILES, RemoteServer, RemoteSite, borrowed, many, remove_settings, round_files};
use common::s3::Server;
use common::wait::{LIMIT, ended};
use common::{NOBODY, Site, in_mount_namespace, noise, paths_below, run, set_mode, settle, tree};
use rustix::process::Signal;
use tempfile::NamedTempFile;
use uuid::Uuid;

const URL: &str = "s3://backups/repo";

/// A site with a repository.
fn ready(files: &[(&str, impl AsRef<[u8]>)]) -> RemoteSite<Server> {
    RemoteSite::ready(Server::start(), files)
}

fn open(remote: &RemoteSite<Server>) -> S3Storage {
    let location = remote.server.repository();
    let LocationKind::S3(address) = location.kind() else { panic!("{location}") };
    S3Storage::open(address, location.remote()).unwrap()
}

/// An answer with an error of S3.
fn refusal(status: &str, headers: &str, code: &str, more: &str) -> Flaw {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message>{more}</Error>");
    Flaw::Answer(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()))
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    ready(&round_files()).a_whole_round_works();
}

/// A program that is killed on drop.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `rclone serve s3`, which sends ranges with the status of whole objects.
#[test]
fn rclone_is_a_server_too() {
    let site = Site::with_files(&round_files());
    site.key("rfc9580");
    let (data, keys) = (site.path().join("data"), site.path().join("credentials"));
    fs::create_dir_all(data.join("backups")).unwrap();
    fs::write(&keys, "[default]\naws_access_key_id = someone\naws_secret_access_key = long-secret\n").unwrap();
    set_mode(&keys, 0o600);
    let mut rclone = Command::new(RCLONE);
    rclone.args(["serve", "s3", data.to_str().unwrap(), "--addr", "127.0.0.1:0", "--auth-key", "someone,long-secret"]);
    rclone.args(["--config", site.path().join("rclone.conf").to_str().unwrap()]).env("HOME", site.path());
    let mut server = Killed(spawn(rclone.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped())));
    let messages = BufReader::new(server.0.stderr.take().unwrap());
    let mut endpoints = messages.lines().map_while(Result::ok).filter_map(|line| {
        let (_, address) = line.split_once("http://127.0.0.1:")?;
        Some(format!("http://127.0.0.1:{}", address.split(|c: char| !c.is_ascii_digit()).next()?))
    });
    let endpoint = endpoints.next().unwrap();
    let brackfs = |arguments: &[&str]| {
        let mut command = site.command(arguments);
        remove_settings(&mut command);
        command.env("BRACKFS_REPOSITORY", URL).env("BRACKFS_ENDPOINT", &endpoint).env("BRACKFS_CREDENTIALS", &keys);
        run(command).ok()
    };
    brackfs(&["init", URL, "--recipient", site.keys().join("owner.pub").to_str().unwrap()]);
    brackfs(&["backup", site.source().to_str().unwrap()]);
    brackfs(&["check", "--read-data"]);
    brackfs(&["restore", "latest", "--to", "restored"]);
    assert!(tree(&site.path().join("restored")) == tree(&site.source()));
}

#[test]
fn keys_and_settings_are_found_where_other_programs_look() {
    let remote = ready(&[("file", b"content".to_vec())]);
    let (id, secret) = &remote.server.writer;
    let none = run(remote.bare(&["snapshots", "--endpoint", &remote.server.endpoint()])).code(1);
    assert!(none.stderr.contains("AWS_ACCESS_KEY_ID") && none.stderr.contains("~/.aws/credentials"), "{none}");

    let mut variables = remote.bare(&["snapshots"]);
    variables.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    run({
        variables.env("AWS_ENDPOINT_URL_S3", remote.server.endpoint());
        variables
    })
    .ok();

    let aws = remote.site.path().join(".aws");
    fs::create_dir(&aws).unwrap();
    let keys = format!("[other]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    fs::write(aws.join("credentials"), keys).unwrap();
    let settings = format!("[profile other]\nendpoint_url = {}\nregion = us-east-1\n", remote.server.endpoint());
    fs::write(aws.join("config"), settings).unwrap();
    let mut profile = remote.bare(&["snapshots"]);
    profile.env("AWS_PROFILE", "other");
    run(profile).ok();
}

#[test]
fn a_configuration_says_where_the_access_key_is() {
    let remote = ready(&[("file", b"content".to_vec())]);
    let (id, secret) = remote.server.writer.clone();
    let config = remote.site.path().join("config.toml");
    fs::write(remote.site.path().join("secret"), format!("{secret}\n")).unwrap();
    let snapshots = |credentials: &str| {
        let (url, endpoint) = (remote.url(), remote.server.endpoint());
        let target = format!("repository = {url:?}\nendpoint = {endpoint:?}\ncredentials = {credentials}\n");
        fs::write(&config, format!("[target.far]\n{target}")).unwrap();
        let mut command = remote.bare(&["snapshots", "@far"]);
        command.env_remove("BRACKFS_REPOSITORY").env("BRACKFS_CONFIG", &config).env("SECRET", &secret);
        run(command)
    };
    for key in ["{ file = \"secret\" }", "{ env = \"SECRET\" }", "{ command = [\"printenv\", \"SECRET\"] }"] {
        snapshots(&format!("{{ access-key = {id:?}, secret-key = {key} }}")).ok();
    }
    let document = format!("printf '[default]\\naws_access_key_id={id}\\naws_secret_access_key=%s' $SECRET");
    snapshots(&format!("{{ command = [\"sh\", \"-c\", {document:?}] }}")).ok();
    let failed = snapshots(&format!("{{ access-key = {id:?}, secret-key = {{ command = [\"false\"] }} }}")).code(1);
    assert!(failed.stderr.contains("false failed (exit status: 1)"), "{failed}");
}

#[test]
fn a_file_with_keys_that_others_can_read_is_noted() {
    let remote = RemoteSite::new(Server::start(), &NO_FILES);
    set_mode(&remote.server.file(), 0o644);
    let noted = remote.init().ok();
    assert!(noted.stderr.contains("other users can read the file with the secret key"), "{noted}");
}

#[test]
fn refused_keys_and_missing_buckets_end_a_command_at_once() {
    let remote = ready(&[("file", b"content".to_vec())]);
    let (id, secret) = remote.server.writer.clone();
    let wrong_secret = (id.clone(), format!("{}X", &secret[1..]));
    remote.server.credentials(&wrong_secret);
    let refused = remote.backup(&[]).code(1);
    assert!(refused.stderr.contains("check AWS_SECRET_ACCESS_KEY"), "{refused}");
    assert!(!refused.stderr.contains(&wrong_secret.1) && !refused.stderr.contains("waiting for"), "{refused}");
    remote.server.credentials(&("AKIAUNKNOWN".into(), secret.clone()));
    let refused = remote.backup(&[]).code(1);
    assert!(refused.stderr.contains("check AWS_ACCESS_KEY_ID") && !refused.stderr.contains("waiting for"), "{refused}");
    remote.server.credentials(&(id, secret));

    let mut missing = remote.command(&["snapshots"]);
    missing.env("BRACKFS_REPOSITORY", "s3://no-such-bucket/repo");
    let missing = run(missing).code(10);
    assert!(missing.stderr.contains("the bucket does not exist"), "{missing}");
    let mut empty = remote.command(&["snapshots"]);
    empty.env("BRACKFS_REPOSITORY", "s3://backups/other");
    run(empty).code(10);
    remote.backup(&[]).ok();
}

#[test]
fn a_read_only_key_can_restore_and_not_back_up() {
    let remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.credentials(&remote.server.reader.clone());
    remote.can_be_read_and_not_written("the server denies access");
}

#[test]
fn keys_in_locations_and_endpoints_are_refused_and_never_repeated() {
    let site = Site::new();
    let location = "s3://id:hunter2@bucket/repo";
    for arguments in [&["init", location][..], &["snapshots", "--repo", location]] {
        let refused = site.brackfs(arguments).code(2);
        assert!(refused.stderr.contains("keys do not belong in a location"), "{refused}");
        assert!(!refused.stderr.contains("hunter2"), "{refused}");
    }
    let endpoint = "https://id:hunter2@host";
    let refused = site.brackfs(&["snapshots", "--repo", "s3://bucket", "--endpoint", endpoint]).code(2);
    assert!(refused.stderr.contains("keys do not belong in the endpoint"), "{refused}");
    assert!(!refused.stderr.contains("hunter2"), "{refused}");
    let mut help = site.command(&["backup", "--help"]);
    help.env("BRACKFS_REPOSITORY", location).env("BRACKFS_ENDPOINT", endpoint);
    assert!(!run(help).ok().stdout.contains("hunter2"));
}

#[test]
fn answers_that_trying_again_cannot_change_say_what_to_do() {
    let remote = ready(&NO_FILES);
    for (flaw, words) in [
        (refusal("403 Forbidden", "", "RequestTimeTooSkewed", ""), "set the clock"),
        (refusal("403 Forbidden", "", "ExpiredToken", ""), "get a new one"),
        (
            refusal("400 Bad Request", "", "AuthorizationHeaderMalformed", "<Region>eu-9</Region>"),
            "set AWS_REGION=eu-9",
        ),
        (refusal("301 Moved", "x-amz-bucket-region: eu-8\r\n", "PermanentRedirect", ""), "set AWS_REGION=eu-8"),
        (refusal("403 Forbidden", "", "AccessDenied", ""), "denies access"),
        (Flaw::Answer("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone".into()), "check the endpoint"),
        (Flaw::Answer("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>".into()), "check the endpoint"),
    ] {
        remote.server.proxy.fail("", "", 1, flaw);
        let refused = remote.brackfs(&["snapshots"]).code(1);
        assert!(refused.stderr.contains(words) && !refused.stderr.contains("waiting for"), "{words}: {refused}");
        assert_eq!(remote.server.proxy.failures_left(), 0);
    }
}

#[test]
fn an_answer_of_a_hostile_server_is_an_error_and_never_a_panic() {
    let remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let page = |inner: &str| format!("<ListBucketResult>{inner}</ListBucketResult>");
    let long = "x".repeat(100_000);
    let bodies = [
        page("<IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken>"),
        page("<Contents><Key>other/x</Key><Size>1</Size></Contents><IsTruncated>false</IsTruncated>"),
        page(&format!("<Contents><Key>repo/{long}</Key><Size>1</Size></Contents><IsTruncated>false</IsTruncated>")),
        page(&"<x>".repeat(10_000)),
        format!("<!DOCTYPE x [<!ENTITY a \"{long}\">]>{}", page("&a;&a;&a;")),
        "\u{0}".into(),
    ];
    let answers = bodies.iter().map(|body| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let heads =
        ["\r\n\r\n", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 999 x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"];
    let heads = heads.map(str::to_owned).into_iter().chain([
        format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n".to_owned() + &long,
        "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n".to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000),
    ]);
    for answer in answers.chain(heads) {
        // Both when the repository is opened, and later.
        for part in ["max-keys=1&", "prefix=repo%2Fsnapshots"] {
            remote.server.proxy.fail("GET", part, 3, Flaw::Answer(answer.clone() + &"\0".repeat(9 << 20)));
            let run = remote.brackfs(&["snapshots"]);
            let shown: String = answer.chars().take(80).collect();
            assert!(matches!(run.code, 0 | 1) && !run.stderr.contains("panicked"), "{shown}: {run}");
            remote.server.proxy.forgive();
        }
    }
    remote.is_whole();
}

#[test]
fn a_redirect_is_not_followed() {
    let remote = ready(&NO_FILES);
    let elsewhere = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    for status in ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let header = format!("Location: http://{}/\r\n", elsewhere.local_addr().unwrap());
        remote.server.proxy.fail("", "", 1, refusal(status, &header, "TemporaryRedirect", ""));
        let refused = remote.brackfs(&["snapshots"]).code(1);
        assert!(refused.stderr.contains("the server redirects the request"), "{refused}");
    }
    assert!(elsewhere.accept().is_err(), "a redirect was followed");
}

#[test]
fn a_certificate_is_trusted_only_with_its_authority() {
    let remote = RemoteSite::new(Server::with_tls(), &[("file", noise("file", MIB))]);
    let with_tls = |arguments: &[&str]| {
        let mut command = remote.command(arguments);
        command.env("BRACKFS_ENDPOINT", remote.server.tls_endpoint());
        command
    };
    let certificate = remote.site.keys().join("owner.pub");
    let init = ["init", URL, "--recipient", certificate.to_str().unwrap()];
    let refused = run(with_tls(&init)).code(1);
    assert!(refused.stderr.contains("certificate is not trusted") && refused.stderr.contains("--ca"), "{refused}");
    let trusting = |arguments: &[&str]| {
        let mut command = with_tls(arguments);
        command.env("BRACKFS_CA", remote.server.certificate());
        run(command)
    };
    trusting(&init).ok();
    trusting(&["backup", &remote.source()]).ok();
    trusting(&["check", "--read-data"]).ok();
    // Another authority is not enough.
    let other = Server::with_tls();
    let mut wrong = with_tls(&["snapshots"]);
    wrong.env("BRACKFS_CA", other.certificate());
    let wrong = run(wrong).code(1);
    assert!(wrong.stderr.contains("certificate is not trusted"), "{wrong}");
    let mut none = with_tls(&["snapshots"]);
    none.env("BRACKFS_CA", remote.server.file());
    let none = run(none).code(1);
    assert!(none.stderr.contains("no certificate in PEM format"), "{none}");
}

#[test]
fn no_secret_is_shown_by_processes_messages_and_logs() {
    let remote = ready(&borrowed(&many(1)));
    remote.server.proxy.fail("PUT", "packs/", 1, refusal("503 Busy", "", "SlowDown", ""));
    remote.server.proxy.heads();
    let (id, secret) = &remote.server.writer;
    remote.no_secret_is_shown(&[id, secret, "Signature="]);
    let heads = remote.server.proxy.heads();
    // Nor does the server see it.
    assert!(heads.len() > 5 && heads.iter().all(|head| !head.contains(secret) && head.contains("Signature=")));
}

#[test]
fn a_busy_server_is_waited_for() {
    let remote = ready(&borrowed(&many(4)));
    remote.server.proxy.fail("PUT", "packs/", 6, refusal("503 Busy", "Retry-After: 1\r\n", "SlowDown", ""));
    remote.server.proxy.fail(
        "GET",
        "brackfs.toml",
        1,
        Flaw::Answer("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".into()),
    );
    let mut backup = remote.begin_backup(&["--connections", "1"]);
    backup.succeeds();
    assert_eq!(remote.server.proxy.failures_left(), 0);
    assert_eq!(backup.said().matches("waiting for s3://backups/repo").count(), 1, "{}", backup.said());
    assert!(backup.said().contains("the server is busy"), "{}", backup.said());
    // With --json, also before the run begins.
    for part in ["brackfs.toml", "packs%2F"] {
        remote.server.proxy.fail("GET", part, 2, refusal("503 Busy", "Retry-After: 1\r\n", "SlowDown", ""));
        let run = remote.brackfs(&["check", "--json"]).ok();
        assert_eq!(remote.server.proxy.failures_left(), 0);
        let said: Vec<serde_json::Value> = run.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let is_said = |note: &serde_json::Value| note["message"].as_str().unwrap().contains("waiting for");
        assert!(said.iter().any(is_said), "{part}: {run}");
    }
    remote.is_whole();
}

#[test]
fn uploads_that_are_cut_off_are_made_again() {
    let remote = ready(&borrowed(&many(6)));
    // In the middle of a pack, and after its last byte: then the server has it, and it is not stored twice.
    remote.server.proxy.fail("PUT", "packs/", 2, Flaw::CutRequest(6 << 20));
    remote.server.proxy.fail("PUT", "packs/", 2, Flaw::CutAnswer(0));
    remote.server.proxy.fail("PUT", "index/", 1, Flaw::CutAnswer(0));
    remote.server.proxy.fail("PUT", "snapshots/", 1, Flaw::CutAnswer(0));
    remote.backup(&[]).ok();
    assert_eq!(remote.server.proxy.failures_left(), 0);
    assert_eq!(remote.snapshots(), 1);
    remote.is_whole();
}

#[test]
fn downloads_that_are_cut_off_are_made_again() {
    let remote = ready(&borrowed(&many(4)));
    remote.backup(&[]).ok();
    for bytes in [0, 1, 100_000] {
        remote.server.proxy.fail("GET", "packs/", 2, Flaw::CutAnswer(bytes));
    }
    remote.server.proxy.fail("GET", "snapshots%2F", 1, Flaw::CutAnswer(100));
    remote.restores();
    assert_eq!(remote.server.proxy.failures_left(), 0);
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
fn a_backup_waits_for_a_server_that_is_restarted() {
    ready(&borrowed(&many(2))).a_backup_waits_for_the_server();
}

#[test]
fn a_mount_waits_for_a_server_that_is_restarted() {
    ready(&borrowed(&many(2))).a_mount_waits_for_the_server();
}

#[test]
fn a_server_that_is_away_when_a_command_starts_ends_it() {
    let remote = ready(&NO_FILES);
    remote.server.proxy.stop();
    let away = remote.brackfs(&["snapshots"]).code(1);
    assert!(away.stderr.contains("the server closed the connection"), "{away}");
    assert!(!away.stderr.contains("waiting for"), "{away}");
    let mut nowhere = remote.command(&["snapshots"]);
    nowhere.env("BRACKFS_ENDPOINT", format!("http://127.0.0.1:{}", common::sftp::free_port()));
    let nowhere = run(nowhere).code(1);
    assert!(nowhere.stderr.contains("refuses the connection"), "{nowhere}");
    assert!(!nowhere.stderr.contains("waiting for"), "{nowhere}");
}

#[test]
fn two_machines_with_one_state_that_start_together_lose_nothing() {
    ready(&[("file", noise("file", MIB))]).two_machines_lose_nothing();
}

#[test]
fn a_killed_backup_leaves_nothing() {
    ready(&borrowed(&many(2))).a_killed_backup_leaves_nothing();
}

#[test]
fn init_accepts_only_an_empty_prefix() {
    let remote = RemoteSite::new(Server::start(), &NO_FILES);
    let storage = open(&remote);
    let target = Target::open(&remote.server.repository()).unwrap();
    remote
        .init_accepts_only_an_empty_place(|| target.put("mine", b"mine").unwrap(), || storage.remove("mine").unwrap());
}

#[test]
fn neighbours_in_a_pack_are_read_with_one_request() {
    let large = noise("large", 40 * MIB);
    let remote = ready(&[("large", large.clone())]);
    remote.backup(&[]).ok();
    let pack_reads = |work: &dyn Fn()| {
        remote.server.proxy.requests();
        work();
        let requests = remote.server.proxy.requests();
        requests.iter().filter(|request| request.starts_with("GET ") && request.contains("/packs/")).count()
    };
    // Of 50 blocks or so. The cache and small blocks that several files share bound how much a restore joins.
    let restore = pack_reads(&|| remote.restores());
    assert!(restore <= 35, "{restore} requests");
    let check = pack_reads(&|| remote.brackfs(&["check", "--read-data"]).ok().stdout.clear());
    assert!(check <= 25, "{check} requests");
    // With one connection, nothing may wait for a second one.
    let out = remote.site.path().join("out");
    for cache in ["1MiB", "6MiB", "64MiB"] {
        let to = ["--to", out.to_str().unwrap(), "--connections", "1", "--cache-size", cache];
        remote.brackfs(&[&["restore", "latest"][..], &to].concat()).ok();
        assert!(fs::read(out.join("large")).unwrap() == large);
        fs::remove_dir_all(&out).unwrap();
    }
    remote.brackfs(&["check", "--read-data", "--connections", "1"]).ok();
    // A damaged block among them is found, and only this one.
    let storage = open(&remote);
    let mut packs = Vec::new();
    storage.visit("packs/", &mut |pack| packs.push(pack)).unwrap();
    let pack = packs.into_iter().max_by_key(|pack| pack.length).unwrap().name;
    let mut bytes = storage.get(&pack, 64 * MIB).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    storage.remove(&pack).unwrap();
    let mut spool = storage.spool(&pack, Uuid::new_v4()).unwrap();
    spool.append(&bytes).unwrap();
    storage.store(&spool).unwrap();
    let run = remote.brackfs(&["check", "--read-data"]).code(1);
    assert_eq!(run.stderr.matches("is not the one that was stored").count(), 1, "{run}");
    let id = pack.rsplit('/').next().unwrap();
    assert!(run.stderr.contains(&id[..8]), "{run}");
}

#[test]
fn blocks_are_read_from_the_server_once_and_then_from_the_cache_on_disk() {
    let large: String = noise("large", 3 * MIB).iter().map(|byte| format!("{byte:02x}")).collect();
    let remote = ready(&[("large", large.clone().into_bytes()), ("folder/small", b"small".to_vec())]);
    remote.backup(&[]).ok();
    let pack_reads = || {
        let requests = remote.server.proxy.requests();
        requests.iter().filter(|request| request.starts_with("GET ") && request.contains("/packs/")).count()
    };
    let cache = remote.site.path().join("cache");
    let cat = |extra: &[&str]| {
        pack_reads();
        let arguments = [&["cat", "latest:large"], extra].concat();
        assert!(remote.brackfs(&arguments).ok().stdout == large);
        pack_reads()
    };
    assert!(cat(&["--disk-cache", "0"]) > 0);
    // Commands that read everything once add nothing.
    remote.restores();
    remote.brackfs(&["dump", "latest"]).ok();
    assert!(!cache.exists());
    assert!(cat(&[]) > 0);
    assert_eq!(cat(&[]), 0);
    // A mount of the same user shares it.
    let mnt = remote.site.mnt();
    remote.brackfs(&["mount", mnt.to_str().unwrap()]).ok();
    assert!(fs::read_to_string(mnt.join("source/latest/large")).unwrap() == large);
    assert_eq!(pack_reads(), 0);
    assert_eq!(fs::read(mnt.join("source/latest/folder/small")).unwrap(), b"small");
    remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();
    // A check does not use it: it finds what is lost on the server.
    let storage = open(&remote);
    let mut packs = Vec::new();
    storage.visit("packs/", &mut |pack| packs.push(pack.name)).unwrap();
    packs.iter().for_each(|pack| storage.remove(pack).unwrap());
    remote.brackfs(&["check", "--read-data"]).code(1);
    assert_eq!(cat(&[]), 0);
    // It may be removed at any time.
    fs::remove_dir_all(&cache).unwrap();
    remote.brackfs(&["cat", "latest:large"]).code(1);
}

#[test]
fn wrong_bytes_in_the_cache_on_disk_are_read_from_the_server_again() {
    let text: String = noise("text", MIB).iter().map(|byte| format!("{byte:02x}")).collect();
    let encrypted = ready(&[("text", text.clone().into_bytes())]);
    let plain = RemoteSite::new(Server::start(), &[("text", text.clone().into_bytes())]);
    plain.brackfs(&["init", URL, "--no-encryption"]).ok();
    for remote in [encrypted, plain] {
        remote.backup(&[]).ok();
        let pack_reads = || {
            remote.server.proxy.requests();
            assert!(remote.brackfs(&["cat", "latest:text"]).ok().stdout == text);
            remote.server.proxy.requests().iter().filter(|request| request.contains("/packs/")).count()
        };
        assert!(pack_reads() > 0);
        assert_eq!(pack_reads(), 0);
        // As if the server had sent them so: the hash after the bytes agrees with them.
        let copies = paths_below(&remote.site.path().join("cache")).into_iter();
        let copies = copies.filter(|path| path.is_file() && !path.ends_with("CACHEDIR.TAG"));
        // Marks of packs with directories are empty.
        let copies: Vec<_> = copies.filter(|path| fs::metadata(path).unwrap().len() > 0).collect();
        assert!(!copies.is_empty());
        for copy in copies {
            let mut bytes = fs::read(&copy).unwrap();
            bytes.truncate(bytes.len() - 32);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            let hash = blake3::hash(&bytes);
            fs::write(&copy, [&bytes, hash.as_bytes().as_slice()].concat()).unwrap();
        }
        assert!(pack_reads() > 0);
        assert_eq!(pack_reads(), 0);
    }
}

#[test]
fn a_backup_of_nothing_new_makes_few_requests() {
    let remote = ready(&[("file", noise("file", MIB)), ("folder/other", b"other".to_vec())]);
    remote.backup(&[]).ok();
    settle();
    remote.backup(&[]).ok();
    remote.server.proxy.requests();
    remote.backup(&[]).ok();
    let requests = remote.server.proxy.requests();
    assert!(requests.len() <= 12, "{} requests: {requests:#?}", requests.len());
    assert!(requests.iter().all(|request| !request.starts_with("HEAD ")), "{requests:#?}");
}

#[test]
fn a_prune_of_many_snapshots_makes_few_requests() {
    const SNAPSHOTS: usize = 70;
    let remote = ready(&[("file", noise("file", MIB))]);
    for day in 0..SNAPSHOTS {
        remote.site.write("day", noise(&day.to_string(), 20_000));
        remote.backup(&[]).ok();
    }
    remote.brackfs(&["forget", "--keep-last", "10", "--force"]).ok();
    remote.server.proxy.requests();
    let pruned = remote.brackfs(&["prune", "--grace", "0", "--json"]).ok().json();
    let requests = remote.server.proxy.requests();
    assert_eq!(pruned["removed_snapshots"], SNAPSHOTS - 10);
    // Each index is read once. What is removed, and the sums, add no request for each snapshot.
    assert!(requests.len() <= SNAPSHOTS + 50, "{} requests: {requests:#?}", requests.len());
    assert!(requests.iter().all(|request| !request.starts_with("DELETE ")), "{requests:#?}");
    remote.brackfs(&["check"]).ok();
    // Small indexes and lists were joined.
    for (prefix, most) in [("index/", 2), ("sums/", 1), ("snapshots/", 10), ("generation/", 66)] {
        let mut found = 0;
        open(&remote).visit(prefix, &mut |_| found += 1).unwrap();
        assert!(found <= most, "{found} objects in {prefix}");
    }
}

/// The proxy closes a connection after an answer of its own.
const CLOSE: &str = "Connection: close\r\n";

fn closing(body: &str) -> Flaw {
    Flaw::Answer(format!("HTTP/1.1 200 OK\r\n{CLOSE}Content-Length: {}\r\n\r\n{body}", body.len()))
}

/// An answer to a request that removes many objects.
fn removal(body: &str) -> Flaw {
    closing(&format!("<DeleteResult>{body}</DeleteResult>"))
}

#[test]
fn many_objects_are_removed_with_one_request_if_the_server_can() {
    let server = Server::start();
    let location = server.location("a & <b>");
    let LocationKind::S3(address) = location.kind() else { panic!("{location}") };
    let remove = |names: &[&str]| {
        let storage = S3Storage::open(address, location.remote()).unwrap();
        for name in names {
            let mut spool = storage.spool(name, Uuid::nil()).unwrap();
            spool.append(b"x").unwrap();
            match storage.store(&spool) {
                Err(error) if error.kind == ErrorKind::AlreadyExists => {}
                stored => stored.unwrap(),
            }
        }
        server.proxy.requests();
        let mut results = vec![None; names.len()];
        let removed = storage.remove_all(names, &mut |at, result| {
            assert_eq!(results[at].replace(result.map_err(|error| error.kind)), None);
        });
        let methods: Vec<_> = server.proxy.requests().iter().map(|line| line[..4].to_owned()).collect();
        let mut left = Vec::new();
        storage.visit("", &mut |object| left.push(object.name)).unwrap();
        (removed.map_err(|error| error.kind), results, methods.concat(), left.concat())
    };
    let names = ["a", "b", "c"];
    let all = || vec![Some(Ok(())); 3];
    assert_eq!(remove(&names), (Ok(()), all(), "POST".into(), String::new()));
    // A server that does not know such requests, and those that say something else.
    for (flaw, requests) in [
        (refusal("501 Not Implemented", CLOSE, "NotImplemented", ""), "POSTDELEDELEDELE"),
        (refusal("500 Internal Server Error", CLOSE, "NotImplemented", ""), "POSTDELEDELEDELE"),
        (refusal("405 Method Not Allowed", CLOSE, "MethodNotAllowed", ""), "POSTDELEDELEDELE"),
        (refusal("403 Forbidden", CLOSE, "SignatureDoesNotMatch", ""), "POSTDELEDELEDELE"),
        (closing("<html></html>"), "POSTDELEDELEDELE"),
        (removal("<Deleted><Key>other</Key></Deleted>"), "POSTDELEDELEDELE"),
        // What the code of a key means depends on the status, which only a single removal has.
        (removal("<Error><Key>a &amp; &lt;b>/c</Key><Code>Strange</Code></Error>"), "POSTDELEDELEDELE"),
    ] {
        server.proxy.fail("POST", "", 1, flaw);
        assert_eq!(remove(&names), (Ok(()), all(), requests.into(), String::new()));
    }
    // Some keys are refused, and others are not answered yet.
    let told = "<Error><Key>a &amp; &lt;b>/a</Key><Code>AccessDenied</Code></Error><Error><Key>a &amp; &lt;b>/b</Key>\
                <Code>SlowDown</Code></Error><Deleted><Key>a &amp; &lt;b>/c</Key></Deleted>";
    server.proxy.fail("POST", "", 1, removal(told));
    let (removed, results, requests, _) = remove(&names);
    assert_eq!((removed, requests.as_str()), (Err(ErrorKind::Throttled), "POST"));
    assert_eq!(results, [Some(Err(ErrorKind::PermissionDenied)), None, Some(Ok(()))]);
    // A busy server is asked again, and loses nothing.
    for flaw in [refusal("503 Slow Down", CLOSE, "SlowDown", ""), refusal("500 Oops", CLOSE, "InternalError", "")] {
        server.proxy.fail("POST", "", 1, flaw);
        let (removed, results, requests, left) = remove(&names);
        assert_eq!((removed, requests.as_str(), left.as_str()), (Err(ErrorKind::Throttled), "POST", "abc"));
        assert_eq!(results, vec![None; 3]);
    }
    // A key that may only read.
    server.credentials(&server.reader.clone());
    let storage = S3Storage::open(address, location.remote()).unwrap();
    let mut results = Vec::new();
    storage.remove_all(&names, &mut |_, result| results.push(result.map_err(|error| error.kind))).unwrap();
    assert_eq!(results, [Err(ErrorKind::PermissionDenied); 3]);
}

#[test]
fn lists_from_pipes_are_read_once() {
    let remote = ready(&[("file", "first"), ("secret", "hidden")]);
    let source = remote.site.source();
    let backup = || {
        settle();
        remote.server.proxy.requests();
        let mut command = Command::new("bash");
        let script =
            "printf '%s\\0' \"$1\" | \"$0\" backup --skip-if-unchanged --files-from - --exclude-from <(echo secret)";
        let brackfs = remote.command(&[]);
        command.arg("-c").arg(script).arg(brackfs.get_program()).arg(&source).current_dir(remote.site.path());
        for (name, value) in brackfs.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        run(command).ok();
        remote.server.proxy.requests().len()
    };
    assert!(backup() > 0);
    // Other programs may change the directories on the way to the source, such as /tmp, which belong to the snapshot.
    assert!((0..20).any(|_| backup() == 0));
    remote.site.write("file", "second");
    assert!(backup() > 0);
    let listed = remote.brackfs(&["ls", "-R", "latest"]).ok();
    assert!(listed.stdout.contains("file") && !listed.stdout.contains("secret"), "{listed}");
    assert_eq!(remote.brackfs(&["cat", &format!("latest:{}/file", source.display())]).ok().stdout, "second");
}

#[test]
fn a_server_is_not_asked_whether_the_source_changed_but_once_a_day() {
    let remote = ready(&[("file", noise("file", MIB)), ("folder/other", b"other".to_vec())]);
    remote.backup(&[]).ok();
    settle();
    remote.backup(&[]).ok();
    let requests = |arguments: &[&str]| {
        settle();
        remote.server.proxy.requests();
        remote.backup(&[&["--skip-if-unchanged"], arguments].concat()).ok();
        remote.server.proxy.requests().len()
    };
    assert_eq!(requests(&[]), 0);
    assert_eq!(requests(&["--exclude", "nothing"]), 0);
    assert!(requests(&["--ignore-ctime", "--reread"]) > 0, "all files are to be read");
    requests(&[]);
    assert_eq!(requests(&[]), 0);
    let before = remote.snapshots();
    // Everything that a backup would notice.
    let source = remote.site.source();
    let changes: [&dyn Fn(); 6] = [
        &|| _ = remote.site.write("folder/other", "OTHER"),
        &|| _ = remote.site.write("folder/new", "new"),
        &|| fs::remove_file(source.join("folder/new")).unwrap(),
        // Not the mode that a umask of 077 gives.
        &|| set_mode(&source.join("folder"), 0o711),
        &|| set_mode(&source, 0o711),
        &|| fs::rename(source.join("folder"), source.join("renamed")).unwrap(),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        change();
        assert!(requests(&[]) > 0, "change {at}");
        assert_eq!(remote.snapshots(), before + 1 + at, "change {at}");
        requests(&[]);
        assert_eq!(requests(&[]), 0, "after change {at}");
    }
    // What is verified again is on the server.
    assert!(requests(&["--recheck", "1GiB"]) > 0);
    // Another selection, source or place is another question.
    assert!(requests(&["--exclude", "file"]) > 0);
    assert!(requests(&["--source", "other"]) > 0);
    requests(&[]);
    assert_eq!(requests(&[]), 0);
    let mut elsewhere = remote.command(&["backup", "--skip-if-unchanged", &remote.source()]);
    elsewhere.env("AWS_PROFILE", "default");
    remote.server.proxy.requests();
    run(elsewhere).ok();
    assert!(!remote.server.proxy.requests().is_empty());
    // A day later, the server is asked.
    let mut states = fs::read_dir(remote.site.state()).unwrap().map(|state| state.unwrap().path().join("looked"));
    let looked = states.find(|path| path.exists()).unwrap();
    requests(&[]);
    assert_eq!(requests(&[]), 0);
    let long_ago = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    fs::File::options().write(true).open(looked).unwrap().set_modified(long_ago).unwrap();
    let all = requests(&[]);
    assert!(all > 0 && requests(&[]) == 0, "{all}");
}

#[test]
fn the_cache_on_disk_is_private_and_in_the_standard_place() {
    let remote = RemoteSite::new(Server::start(), &[("file", noise("file", MIB))]);
    remote.brackfs(&["init", URL, "--no-encryption"]).ok();
    remote.backup(&[]).ok();
    let reach = |mut command: Command| {
        let (id, secret) = &remote.server.writer;
        remove_settings(&mut command);
        command.env("BRACKFS_REPOSITORY", URL).env("BRACKFS_ENDPOINT", remote.server.endpoint());
        command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
        command
            .env_remove("BRACKFS_CACHE_DIR")
            .env_remove("XDG_CACHE_HOME")
            .env("HOME", remote.site.path().join("home"));
        command
    };
    for (name, variable) in [("xdg/brackfs", Some("xdg")), ("home/.cache/brackfs", None)] {
        for folder in ["home", "xdg"].map(|name| remote.site.path().join(name)) {
            fs::create_dir_all(&folder).unwrap();
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut command = reach(remote.site.command_as_nobody(&["cat", "latest:file"]));
        command.env("BRACKFS_STATE_DIR", remote.site.path().join("home/state"));
        variable.map(|variable| command.env("XDG_CACHE_HOME", remote.site.path().join(variable)));
        run(command).ok();
        let caches: Vec<_> =
            fs::read_dir(remote.site.path().join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(caches.len(), 1, "one for each repository: {caches:?}");
        let mut files = 0;
        for path in paths_below(&caches[0]).into_iter().filter(|path| !path.ends_with("CACHEDIR.TAG")) {
            let found = fs::metadata(&path).unwrap();
            let is_file = found.is_file();
            files += usize::from(is_file);
            assert_eq!(found.mode() & 0o7777, if is_file { 0o600 } else { 0o700 }, "{}", path.display());
        }
        assert!(files > 0, "nothing is cached");
    }
    // That of root.
    let program = remote.site.program_for_everyone();
    let script =
        "mount -t tmpfs tmpfs /var/cache && \"$0\" cat latest:file >/dev/null && find /var/cache/brackfs -mindepth 2";
    let mut command = reach(in_mount_namespace("sh"));
    command.args(["-c", script]).arg(program).env("BRACKFS_STATE_DIR", remote.site.state());
    let listed = run(command).ok().stdout;
    assert!(listed.lines().any(|line| line.ends_with("/CACHEDIR.TAG")), "{listed}");
}

#[test]
fn an_object_of_unknown_length_is_read_as_a_whole() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            let mut lines = BufReader::new(&stream);
            lines.read_line(&mut line).unwrap();
            while lines.by_ref().lines().next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let answer = match line.split(' ').take(2).collect::<Vec<_>>()[..] {
                ["HEAD", _] => "Content-Length: 6\r\n\r\n",
                // Without a length, the object ends with the connection.
                ["GET", path] if path.ends_with("/whole") => "\r\nobject",
                ["GET", path] if path.ends_with("/half") => "\r\nobj",
                _ => "\r\n<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
            };
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{answer}");
            // The client may have ended the connection.
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
    let credentials = NamedTempFile::new().unwrap();
    fs::write(credentials.path(), "[default]\naws_access_key_id = id\naws_secret_access_key = secret\n").unwrap();
    let location: Location = "s3://bucket".parse().unwrap();
    let LocationKind::S3(address) = location.kind() else { panic!("{location}") };
    let credentials = Some(Credentials::in_file(credentials.path()));
    let options = Remote { endpoint: Some(endpoint), credentials, ..Remote::default() };
    let storage = S3Storage::open(address, &options).unwrap();
    assert_eq!(storage.get("whole", 100).unwrap(), b"object");
    assert_eq!(storage.get("half", 100).unwrap_err().kind, ErrorKind::Unavailable);
}

/// Lets the server be silent about the next requests.
fn silence(remote: &RemoteSite<Server>) {
    ["PUT", "GET", "HEAD"].iter().for_each(|method| remote.server.proxy.fail(method, "", SILENT, Flaw::Stall));
}

/// The number of requests of a method that get no answer.
const SILENT: usize = 1000;

#[test]
fn an_interrupt_ends_a_wait_for_a_silent_server() {
    let remote = ready(&borrowed(&many(2)));
    remote.an_interrupt_ends_a_wait_for_a_silent_server(|| silence(&remote));
    remote.server.proxy.forgive();
    remote.backup(&[]).ok();
    remote.is_whole();
    let proxy = &remote.server.proxy;
    let source = remote.source();
    for command in
        [&["prune"][..], &["check"], &["check", "--read-data"], &["backup", &source], &["catalog", "rebuild"]]
    {
        let mut silent = 0;
        // The requests with which a repository is opened are answered.
        for answered in [3, 7] {
            proxy.requests();
            let mut run = Begun::start(remote.command(command));
            let mut seen = 0;
            run.until("some requests are answered", |_| {
                seen += proxy.requests().len();
                seen >= answered
            });
            silence(&remote);
            let begins = Instant::now();
            while !run.has_ended() && proxy.failures_left() == 3 * SILENT && begins.elapsed() < LIMIT {
                sleep(Duration::from_millis(2));
            }
            let begun = Instant::now();
            if !run.has_ended() {
                run.send(Signal::TERM);
                silent += 1;
                let status = ended(&mut run.child);
                assert_eq!(status.code(), Some(130), "{command:?}: {}", run.said());
                assert!(begun.elapsed() < Duration::from_secs(8), "{command:?}: {:?} {}", begun.elapsed(), run.said());
            }
            proxy.forgive();
            proxy.cut();
        }
        println!("{command:?}: ended in {silent} waits");
    }
    remote.backup(&[]).ok();
    remote.is_whole();
}
