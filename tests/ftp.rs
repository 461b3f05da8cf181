//! Repositories on an FTP server, through the real program and real servers: a whole round with and without TLS, logins and
//! certificates, a server that is cut off, stopped, frozen, full or hostile, and killed runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::storage::{
    Credentials, ErrorKind, FtpAddress, FtpSecurity, FtpStorage, Location, LocationKind, Remote as Options, Storage,
};
use common::ftp::{PASSWORD, Program, Server, Tls, USER};
use common::remote::{MIB, NO_FILES, RemoteServer, RemoteSite, borrowed, many, packs_below, round_files};
use common::wait::{LIMIT, until};
use common::{Site, noise, run, set_mode};
use tempfile::TempDir;

/// A site with a repository on ProFTPD without TLS.
fn ready(files: &[(&str, impl AsRef<[u8]>)]) -> RemoteSite<Server> {
    RemoteSite::ready(Server::start(), files)
}

fn open(location: &Location) -> FtpStorage {
    let LocationKind::Ftp(address) = location.kind() else { panic!("{location}") };
    FtpStorage::open(address, location.remote()).unwrap()
}

fn a_whole_round_works(program: Program, tls: Tls) {
    let remote = RemoteSite::new(Server::with(program, tls, ""), &round_files());
    let made = remote.init().ok();
    // The login is not protected without TLS, which is noted once.
    assert_eq!(made.stderr.contains("sent unencrypted"), tls == Tls::Never, "{made}");
    remote.a_whole_round_works();
    let later = remote.backup(&[]).ok();
    assert!(!later.stderr.contains("unencrypted"), "{later}");
}

#[test]
fn a_whole_round_works_without_tls() {
    a_whole_round_works(Program::ProFtpd, Tls::Never);
}

#[test]
fn a_whole_round_works_with_tls() {
    a_whole_round_works(Program::ProFtpd, Tls::Explicit);
}

#[test]
fn a_whole_round_works_on_vsftpd() {
    a_whole_round_works(Program::Vsftpd, Tls::Explicit);
}

#[test]
fn logins_are_found_where_other_programs_look_and_refused_ones_end_a_command_at_once() {
    let remote = ready(&[("file", b"content".to_vec())]);
    let none = run(remote.bare(&["snapshots"])).code(1);
    assert!(none.stderr.contains("set FTP_PASSWORD") && none.stderr.contains("~/.netrc"), "{none}");
    let mut variables = remote.bare(&["snapshots"]);
    variables.env("FTP_PASSWORD", PASSWORD).env("FTP_USER", USER);
    run(variables).ok();
    fs::copy(remote.server.credentials(), remote.site.path().join(".netrc")).unwrap();
    run(remote.bare(&["snapshots"])).ok();

    remote.server.log_in_with("hunter2");
    let refused = remote.backup(&["-v"]).code(1);
    assert!(refused.stderr.contains("refuses the login") && !refused.stderr.contains("waiting for"), "{refused}");
    assert!(!refused.stderr.contains("hunter2"), "{refused}");
    remote.server.log_in_with(PASSWORD);
    let mut missing = remote.command(&["snapshots"]);
    missing.env("BRACKFS_REPOSITORY", remote.server.url("none"));
    assert!(run(missing).code(10).stderr.contains("no such directory"));
    remote.backup(&[]).ok();
}

#[test]
fn passwords_in_locations_are_refused_and_never_repeated() {
    let site = Site::new();
    for scheme in ["ftp", "ftps"] {
        let location = format!("{scheme}://me:hunter2@host/repo");
        for arguments in [&["init", &location][..], &["snapshots", "--repo", &location]] {
            let refused = site.brackfs(arguments).code(2);
            assert!(refused.stderr.contains("password does not belong"), "{refused}");
            assert!(!refused.stderr.contains("hunter2"), "{refused}");
        }
    }
}

#[test]
fn no_password_is_shown_by_processes_messages_and_logs() {
    let remote = RemoteSite::new(Server::with(Program::ProFtpd, Tls::Explicit, ""), &borrowed(&many(1)));
    set_mode(&remote.server.credentials(), 0o644);
    let noted = remote.init().ok();
    assert!(noted.stderr.contains("other users can read the file with the password"), "{noted}");
    remote.no_secret_is_shown(&[PASSWORD]);
}

#[test]
fn a_certificate_is_trusted_only_with_its_authority() {
    let remote = RemoteSite::new(Server::with(Program::ProFtpd, Tls::Explicit, ""), &NO_FILES);
    remote.init().ok();
    let mut untrusting = remote.command(&["snapshots"]);
    untrusting.env_remove("BRACKFS_CA");
    let refused = run(untrusting).code(1);
    assert!(refused.stderr.contains("certificate is not trusted") && refused.stderr.contains("--ca"), "{refused}");
    assert!(!refused.stderr.contains("waiting for"), "{refused}");
    let other = Server::with(Program::ProFtpd, Tls::Explicit, "");
    let mut wrong = remote.command(&["snapshots"]);
    wrong.env("BRACKFS_CA", other.certificate());
    assert!(run(wrong).code(1).stderr.contains("certificate is not trusted"));
    // A password is not sent to a server without TLS.
    let plain = Server::start();
    let mut downgraded = remote.command(&["snapshots"]);
    downgraded.env("BRACKFS_REPOSITORY", plain.url("repo").replace("ftp://", "ftps://"));
    assert!(run(downgraded).code(1).stderr.contains("does not offer TLS"));
    assert!(!plain.log().contains("PASS"), "{}", plain.log());
    // Nor is a server that demands TLS satisfied without.
    let mut clear = remote.command(&["snapshots"]);
    clear.env("BRACKFS_REPOSITORY", remote.url().replace("ftps://", "ftp://"));
    assert!(run(clear).code(1).stderr.contains("SSL/TLS required"));
}

fn one_version_is_used(version: &str) {
    let server = Server::with(Program::ProFtpd, Tls::Explicit, &format!("TLSProtocol {version}"));
    let remote = RemoteSite::ready(server, &[("file", noise("file", 3 * MIB))]);
    remote.backup(&[]).ok();
    remote.is_whole();
    assert!(remote.server.log().contains("reused TLS session"), "{}", remote.server.log());
}

#[test]
fn a_server_with_only_tls_1_2_is_used() {
    one_version_is_used("TLSv1.2");
}

#[test]
fn a_server_with_only_tls_1_3_is_used() {
    one_version_is_used("TLSv1.3");
}

#[test]
fn a_server_can_begin_with_tls_at_once() {
    let server = Server::with(Program::ProFtpd, Tls::Implicit, "");
    let location = server.location("");
    let LocationKind::Ftp(address) = location.kind() else { panic!("{location}") };
    // In a location, port 990 says so.
    let address = FtpAddress { security: FtpSecurity::Implicit, ..address.clone() };
    let storage = FtpStorage::open(&address, location.remote()).unwrap();
    let mut spool = storage.spool("x", uuid::Uuid::nil()).unwrap();
    spool.append(b"bytes").unwrap();
    storage.store(&spool).unwrap();
    assert_eq!(storage.get("x", 9).unwrap(), b"bytes");
    assert!(server.log().contains("reused TLS session"), "{}", server.log());
}

#[test]
fn an_upload_that_is_cut_off_is_made_again_and_leaves_nothing() {
    let remote = ready(&borrowed(&many(6)));
    remote.an_upload_that_is_cut_off_is_made_again(|| remote.server.cut());
}

#[test]
fn a_backup_waits_for_a_server_that_is_restarted() {
    let mut remote = ready(&borrowed(&many(2)));
    remote.a_backup_waits_for_the_server();
    remote.server.stop();
    let away = remote.brackfs(&["snapshots"]).code(1);
    assert!(away.stderr.contains("cannot connect to 127.0.0.1, port"), "{away}");
}

#[test]
fn a_mount_waits_for_a_server_that_is_restarted() {
    ready(&borrowed(&many(2))).a_mount_waits_for_the_server();
}

fn init_accepts_only_an_empty_directory(program: Program) {
    let remote = RemoteSite::new(Server::with(program, Tls::Never, ""), &NO_FILES);
    let folder = remote.server.folder().unwrap();
    let put = || {
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(remote.server.owner()), None).unwrap();
        fs::write(folder.join("mine"), "mine").unwrap();
    };
    remote.init_accepts_only_an_empty_place(put, || fs::remove_file(folder.join("mine")).unwrap());
}

#[test]
fn init_accepts_only_an_empty_directory_on_proftpd() {
    init_accepts_only_an_empty_directory(Program::ProFtpd);
}

#[test]
fn init_accepts_only_an_empty_directory_on_vsftpd() {
    init_accepts_only_an_empty_directory(Program::Vsftpd);
}

#[test]
fn two_machines_with_one_state_that_write_at_the_same_time_lose_nothing() {
    ready(&[("file", noise("file", MIB))]).two_machines_lose_nothing();
}

#[test]
fn a_read_only_server_can_be_restored_from_and_not_backed_up_to() {
    let mut remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.stop();
    remote.server.configure("<Limit WRITE>\nDenyAll\n</Limit>");
    remote.server.start_again();
    remote.can_be_read_and_not_written("denies permission");
}

fn a_full_disk_ends_a_backup_at_once(program: Program) {
    let remote = RemoteSite::new(Server::with(program, Tls::Never, ""), &borrowed(&many(6)));
    remote.a_full_disk_ends_a_backup("the server has no more room");
}

#[test]
fn a_full_disk_of_proftpd_ends_a_backup_at_once() {
    a_full_disk_ends_a_backup_at_once(Program::ProFtpd);
}

#[test]
fn a_full_disk_of_vsftpd_ends_a_backup_at_once() {
    a_full_disk_ends_a_backup_at_once(Program::Vsftpd);
}

fn temporaries_of_a_killed_backup_are_removed(program: Program) {
    let remote = RemoteSite::ready(Server::with(program, Tls::Never, ""), &borrowed(&many(2)));
    assert!(remote.a_killed_backup_leaves_nothing() > 0, "the kill hit no upload");
}

#[test]
fn temporaries_of_a_killed_backup_are_removed_on_proftpd() {
    temporaries_of_a_killed_backup_are_removed(Program::ProFtpd);
}

/// vsftpd shows temporary files only when it is asked for hidden ones.
#[test]
fn temporaries_of_a_killed_backup_are_removed_on_vsftpd() {
    temporaries_of_a_killed_backup_are_removed(Program::Vsftpd);
}

fn few_sessions_are_enough(program: Program, options: &str, refusal: &str) {
    let remote = RemoteSite::ready(Server::with(program, Tls::Explicit, options), &borrowed(&many(4)));
    remote.backup(&["--connections", "4"]).ok();
    assert!(remote.server.log().contains(refusal), "no session was refused: {}", remote.server.log());
    until("sessions end", || remote.server.sessions().len() <= 1);
    remote.is_whole();
}

#[test]
fn a_proftpd_that_allows_one_session_is_used_with_that() {
    few_sessions_are_enough(Program::ProFtpd, "MaxClientsPerHost 1", "MaxClientsPerHost");
}

#[test]
fn a_vsftpd_that_allows_one_session_is_used_with_that() {
    few_sessions_are_enough(Program::Vsftpd, "max_per_ip=1", "421 ");
}

#[test]
fn a_missing_permission_and_a_missing_disk_are_not_missing_objects() {
    let remote = ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let folder = remote.server.folder().unwrap();
    let pack = packs_below(&folder).swap_remove(0);
    let name = pack.strip_prefix(&folder).unwrap().to_str().unwrap();
    let parent = pack.parent().unwrap();
    chown(parent, Some(0), Some(0)).unwrap();
    set_mode(parent, 0o700);
    let storage = open(&remote.server.repository());
    assert_ne!(storage.length(name).unwrap_err().kind, ErrorKind::NotFound);
    assert_ne!(storage.read(name, 0, 1, &mut Vec::new()).unwrap_err().kind, ErrorKind::NotFound);
    let listed = storage.visit("packs/", &mut |_| ()).unwrap_err();
    assert_eq!(listed.kind, ErrorKind::PermissionDenied, "{listed}");
    set_mode(parent, 0o755);
    storage.length(name).unwrap();
    // The disk of the repository is unmounted.
    fs::rename(&folder, remote.server.data().join("elsewhere")).unwrap();
    fs::create_dir(&folder).unwrap();
    assert_eq!(storage.length(name).unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(storage.visit("packs/", &mut |_| ()).unwrap_err().kind, ErrorKind::Unavailable);
    fs::remove_dir(&folder).unwrap();
    assert_eq!(storage.remove(name).unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(storage.visit("", &mut |_| ()).unwrap_err().kind, ErrorKind::Unavailable);
}

/// A server that logs anyone in, and whose replies to some commands are given. `DATA` in a reply stands for a data connection
/// with the bytes after it, and the reply to its end after a bar.
struct Hostile {
    port: u16,
    commands: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
}

impl Hostile {
    fn start(replies: Vec<(&'static str, Vec<u8>)>) -> Hostile {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let commands: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = commands.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A connection that ends is no failure of the test.
                let _ = Hostile::serve(&stream, &replies, &seen);
            }
        });
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("netrc"), "default login me password secret").unwrap();
        Hostile { port, commands, folder }
    }

    fn serve(mut stream: &TcpStream, replies: &[(&str, Vec<u8>)], seen: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let data = TcpListener::bind(("127.0.0.1", 0))?;
        let port = data.local_addr()?.port();
        stream.write_all(b"220 hello\r\n")?;
        for line in BufReader::new(stream).lines() {
            let line = line?;
            seen.lock().unwrap().push(line.clone());
            let given = replies.iter().find(|(begin, _)| line.starts_with(begin)).map(|(_, reply)| reply.as_slice());
            let word = line.split(' ').next().unwrap_or_default();
            match (given, word) {
                (Some(reply), _) => match reply.strip_prefix(b"DATA") {
                    Some(rest) => {
                        let at = rest.iter().rposition(|byte| *byte == b'|').unwrap();
                        stream.write_all(b"150 here\r\n")?;
                        let (mut connection, _) = data.accept()?;
                        let sent = connection.write_all(&rest[..at]);
                        drop(connection);
                        stream.write_all(&rest[at + 1..])?;
                        sent?;
                    }
                    None => stream.write_all(reply)?,
                },
                (None, "EPSV") => stream.write_all(format!("229 go (|||{port}|)\r\n").as_bytes())?,
                (None, "FEAT") => stream.write_all(b"211-x\r\n MLST type*;size*;\r\n211 end\r\n")?,
                (None, "USER") => stream.write_all(b"331 x\r\n")?,
                (None, "PASS") => stream.write_all(b"230 x\r\n")?,
                (None, "QUIT") => return Ok(()),
                (None, "MLSD") => {
                    stream.write_all(b"150 here\r\n")?;
                    data.accept()?.0.write_all(b"type=cdir; .\r\ntype=file;size=5; x\r\n")?;
                    stream.write_all(b"226 x\r\n")?;
                }
                (None, "SIZE") => stream.write_all(b"213 5\r\n")?,
                (None, "REST") => stream.write_all(b"350 x\r\n")?,
                (None, "CWD") => stream.write_all(b"250 x\r\n")?,
                (None, _) => stream.write_all(b"200 x\r\n")?,
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<FtpStorage, brackfs::storage::Error> {
        let location: brackfs::storage::Location = format!("ftp://127.0.0.1:{}/repo", self.port).parse().unwrap();
        let LocationKind::Ftp(address) = location.kind() else { panic!("{location}") };
        let credentials = Some(Credentials::in_file(self.folder.path().join("netrc")));
        FtpStorage::open(address, &Options { credentials, stall: Duration::from_secs(2), ..Options::default() })
    }
}

#[test]
fn a_hostile_server_is_an_error_and_never_a_panic() {
    let long = vec![b'x'; 3 * MIB];
    // At the login and when the directory is listed.
    for (command, reply) in [
        ("USER", b"garbage\r\n".to_vec()),
        ("USER", b"331 x\r\n331 y\r\n".to_vec()),
        ("USER", long.clone()),
        ("USER", [b"331-x\r\n".to_vec(), b"more\r\n".repeat(1_000_000)].concat()),
        ("PASS", b"530 wrong: secret\r\n".to_vec()),
        ("PASS", b"421 go away\r\n".to_vec()),
        ("PASS", Vec::new()),
        ("EPSV", b"229 (|||0|)\r\n".to_vec()),
        ("EPSV", b"229 (|||99999|)\r\n".to_vec()),
        ("EPSV", b"227 x\r\n".to_vec()),
        ("MLSD", b"DATA|226 x\r\n".to_vec()),
        ("MLSD", b"DATAtype=file;size=5; x|226 x\r\n".to_vec()),
        ("MLSD", b"DATAtype=file;size=99999999999999999999; x\r\n|226 x\r\n".to_vec()),
        ("MLSD", b"DATAtype=dir; x\r\n|226-x\r\n226 Output truncated to 1 matches\r\n".to_vec()),
        ("MLSD", b"DATAtype=dir; x\r\n|426 cut\r\n".to_vec()),
        ("MLSD", b"DATAtype=dir; x\r\n|".to_vec()),
        ("MLSD", [b"DATA".to_vec(), long.clone(), b"|226 x\r\n".to_vec()].concat()),
        ("MLSD", b"DATA01-31-26  12:00PM  <DIR>  packs\r\n|226 x\r\n".to_vec()),
    ] {
        let hostile = Hostile::start(vec![(command, reply.clone()), ("CWD", b"550 no\r\n".to_vec())]);
        let begun = Instant::now();
        let shown = String::from_utf8_lossy(&reply[..reply.len().min(60)]).into_owned();
        let error = hostile.open().map(|_| ()).unwrap_err();
        assert!(error.to_string().len() < 600 && !error.to_string().contains("secret"), "{shown}: {error}");
        assert!(begun.elapsed() < LIMIT, "{shown}: {:?}", begun.elapsed());
    }
}

#[test]
fn data_connections_go_to_the_server_and_replies_stay_in_step() {
    // The address in the reply is not used; the port is that of the server.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let [high, low] = listener.local_addr().unwrap().port().to_be_bytes();
    let passive = format!("227 go (203,0,113,1,{high},{low})\r\n").into_bytes();
    let hostile = Hostile::start(vec![("EPSV", b"500 what\r\n".to_vec()), ("PASV", passive)]);
    let opening = std::thread::spawn(move || hostile.open().map(|_| ()).map_err(|error| error.to_string()));
    listener.set_nonblocking(true).unwrap();
    until("the client opens a data connection", || listener.accept().is_ok());
    let _ = opening.join().unwrap();

    // A reply that nothing asked for ends the session instead of being taken for the next one.
    let hostile = Hostile::start(vec![("SIZE /repo/x", b"213 5\r\n213 6\r\n".to_vec())]);
    let storage = hostile.open().unwrap();
    for _ in 0..3 {
        assert_eq!(storage.length("x").unwrap(), 5);
        sleep(Duration::from_millis(100));
    }
    let logins = || hostile.commands.lock().unwrap().iter().filter(|line| line.starts_with("USER")).count();
    assert_eq!(logins(), 3);

    // A server that does not answer twice when a transfer is aborted is used, with another session.
    for (name, aborted, sessions) in [("once", &b""[..], 2), ("twice", b"225 x\r\n", 1)] {
        let data = [b"DATA".to_vec(), vec![7; MIB], b"|426 cut\r\n".to_vec()].concat();
        let hostile = Hostile::start(vec![("RETR", data), ("ABOR", aborted.to_vec())]);
        let storage = hostile.open().unwrap();
        let mut bytes = Vec::new();
        for _ in 0..2 {
            storage.read("x", 3, 5, &mut bytes).unwrap();
            assert_eq!(bytes, [7; 5], "{name}");
        }
        let logins = hostile.commands.lock().unwrap().iter().filter(|line| line.starts_with("USER")).count();
        // On a busy machine the second answer may be too late.
        assert!(logins == sessions || name == "twice" && logins == 2, "{name}: {logins}");
    }
}

#[test]
fn a_silent_server_is_given_up_and_the_backup_goes_on() {
    let remote = ready(&borrowed(&many(2)));
    remote.a_silent_server_is_given_up(|| remote.server.freeze(), || ());
    // The frozen sessions.
    remote.server.cut();
    remote.is_whole();
}

#[test]
fn a_folder_that_cannot_be_listed_is_never_empty() {
    for program in [Program::ProFtpd, Program::Vsftpd] {
        let server = Server::with(program, Tls::Never, "");
        let folder = server.new_folder();
        let packs = server.data().join(&folder).join("packs/ab");
        fs::create_dir_all(&packs).unwrap();
        fs::write(packs.join("x"), "object").unwrap();
        // It can be entered.
        set_mode(&packs, 0o711);
        let storage = open(&server.location(&folder));
        let listed = storage.visit("packs/", &mut |_| ()).unwrap_err();
        assert_eq!(listed.kind, ErrorKind::PermissionDenied, "{program:?}: {listed}");
        assert_eq!(storage.length("packs/ab/x").unwrap(), 6, "{program:?}");
        assert_eq!(storage.length("packs/ab/y").unwrap_err().kind, ErrorKind::PermissionDenied, "{program:?}");
    }
}

#[test]
fn an_object_behind_a_link_to_a_folder_is_not_missing() {
    let hostile = Hostile::start(vec![
        ("SIZE", b"550 no\r\n".to_vec()),
        ("MLSD /repo/packs", b"DATAtype=cdir; .\r\ntype=file;size=5; x\r\n|226 x\r\n".to_vec()),
        ("MLSD /repo", b"DATAtype=cdir; .\r\ntype=OS.unix=slink:/disk; packs\r\n|226 x\r\n".to_vec()),
    ]);
    let storage = hostile.open().unwrap();
    assert_eq!(storage.length("packs/x").unwrap_err().kind, ErrorKind::Other);
    assert_eq!(storage.length("packs/y").unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_server_that_aborts_all_uploads_is_not_full() {
    let hostile = Hostile::start(vec![("STOR", b"426 busy\r\n".to_vec()), ("SIZE", b"550 no\r\n".to_vec())]);
    let storage = hostile.open().unwrap();
    let mut spool = storage.spool("packs/x", uuid::Uuid::nil()).unwrap();
    spool.append(b"bytes").unwrap();
    let error = storage.store(&spool).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[test]
fn a_server_that_ends_a_handshake_is_away() {
    let hostile = Hostile::start(vec![("AUTH TLS", b"234 go\r\n".to_vec())]);
    let location: Location = format!("ftps://127.0.0.1:{}/repo", hostile.port).parse().unwrap();
    let LocationKind::Ftp(address) = location.kind() else { panic!("{location}") };
    let credentials = Some(Credentials::in_file(hostile.folder.path().join("netrc")));
    let error = FtpStorage::open(address, &Options { credentials, ..Options::default() }).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[test]
fn an_interrupt_ends_a_wait_for_a_server_that_freezes() {
    let remote = ready(&borrowed(&many(2)));
    remote.an_interrupt_ends_a_wait_for_a_silent_server(|| remote.server.freeze());
    remote.server.cut();
    remote.backup(&[]).ok();
    remote.is_whole();
}
