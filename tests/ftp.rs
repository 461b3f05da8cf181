//! Repositories on an FTP server, through the real program and real servers: a whole round with and without TLS, logins and
//! certificates, a server that is cut off, stopped, frozen, full or hostile, and killed runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::storage::{
    ErrorKind, FtpAddress, FtpSecurity, FtpStorage, LocationKind, Remote as Options, Rivals, Storage,
};
use common::ftp::{PASSWORD, Program, Server, Tls, USER};
use common::machine::mount_tmpfs;
use common::remote::{files_below, is_temporary, length, packs_below};
use common::{Run, Site, age, noise, run, settle, tree};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// A site whose repository is on a server.
struct Remote {
    site: Site,
    server: Server,
}

impl Remote {
    /// A site with these files, and without a repository.
    fn new(server: Server, files: &[(&str, Vec<u8>)]) -> Remote {
        let site = Site::with_files(files);
        site.key("rfc9580");
        Remote { site, server }
    }

    /// The same with a repository, on ProFTPD without TLS.
    fn ready(files: &[(&str, Vec<u8>)]) -> Remote {
        let remote = Remote::new(Server::start(), files);
        remote.init().ok();
        remote
    }

    fn init(&self) -> Run {
        let certificate = self.site.keys().join("owner.pub");
        self.brackfs(&["init", &self.server.url("repo"), "--recipient", certificate.to_str().unwrap()])
    }

    /// A run that finds logins and settings nowhere.
    fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        for name in ["FTP_USER", "FTP_PASSWORD", "NETRC", "BRACKFS_CREDENTIALS", "BRACKFS_CA"] {
            command.env_remove(name);
        }
        command.env("BRACKFS_REPOSITORY", self.server.url("repo")).env("HOME", self.site.path());
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare(arguments);
        command.env("BRACKFS_CREDENTIALS", self.server.credentials());
        if let Some(ca) = self.server.remote().ca {
            command.env("BRACKFS_CA", ca);
        }
        command
    }

    fn brackfs(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    fn source(&self) -> String {
        self.site.source().to_str().unwrap().to_owned()
    }

    fn backup(&self, extra: &[&str]) -> Run {
        self.brackfs(&[&["backup", &self.source(), "--json"], extra].concat())
    }

    /// A backup under way. Its messages go to a file.
    fn begin_backup(&self, extra: &[&str]) -> Child {
        let log = fs::File::create(self.site.path().join("messages")).unwrap();
        let mut command = self.command(&[&["backup", &self.source()], extra].concat());
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// The messages of the backup under way.
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

    fn repo(&self) -> PathBuf {
        self.server.data().join("repo")
    }

    /// Temporary files of uploads.
    fn temporary_files(&self) -> Vec<PathBuf> {
        files_below(&self.repo()).into_iter().filter(|path| is_temporary(path)).collect()
    }

    fn packs(&self) -> Vec<PathBuf> {
        packs_below(&self.repo())
    }

    /// Cuts all connections in the middle of the upload of a pack, other than those of `cut`, which gets its temporary file.
    fn cut_an_upload(&self, cut: &mut Vec<PathBuf>) {
        until("an upload is cut", || {
            let is_new = |path: &PathBuf| path.starts_with(self.repo().join("packs")) && !cut.contains(path);
            let uploads: Vec<_> = self.temporary_files().into_iter().filter(is_new).collect();
            if !uploads.iter().any(|upload| length(upload) > 0) {
                return false;
            }
            self.server.cut();
            // No session is left, so an upload that has not ended yet never does.
            let unfinished = uploads.into_iter().find(|upload| (1..MIB as u64 * 12).contains(&length(upload)));
            unfinished.map(|upload| cut.push(upload)).is_some()
        });
    }
}

/// Files of random bytes: many packs.
fn many(count: usize) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|at| (format!("file{at}"), noise(&format!("file{at}"), 8 * MIB))).collect()
}

fn borrowed(files: &[(String, Vec<u8>)]) -> Vec<(&str, Vec<u8>)> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect()
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_whole_round_works_as_on_a_directory() {
    for (program, tls) in
        [(Program::ProFtpd, Tls::Never), (Program::ProFtpd, Tls::Explicit), (Program::Vsftpd, Tls::Explicit)]
    {
        let files = [("file", b"content".to_vec()), ("large", noise("large", 20 * MIB))];
        let remote = Remote::new(Server::with(program, tls, ""), &files);
        let made = remote.init().ok();
        // The login is not protected without TLS, which is noted once.
        assert_eq!(made.stderr.contains("sent unencrypted"), tls == Tls::Never, "{made}");
        let again = remote.init().code(1);
        assert!(again.stderr.contains("already"), "{again}");
        remote.backup(&[]).ok();
        remote.site.write("new", noise("new", MIB));
        fs::remove_file(remote.site.source().join("large")).unwrap();
        age(&remote.site.source());
        settle();
        let second = remote.backup(&[]).ok();
        assert!(!second.stderr.contains("unencrypted"), "{second}");
        remote.is_whole();
        assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 2);
        remote.brackfs(&["catalog", "verify"]).ok();

        let mnt = remote.site.mnt();
        remote.brackfs(&["mount", mnt.to_str().unwrap()]).ok();
        let copy = remote.site.path().join("copy");
        assert!(Command::new("cp").arg("-a").args([&mnt.join("source/latest/."), &copy]).status().unwrap().success());
        assert!(tree(&copy) == tree(&remote.site.source()));
        remote.brackfs(&["umount", mnt.to_str().unwrap()]).ok();

        let before = remote.packs().len();
        remote.brackfs(&["forget", "--keep-last", "1"]).ok();
        remote.brackfs(&["prune", "--grace", "0"]).ok();
        assert!(remote.packs().len() < before, "{before} packs before, {} after", remote.packs().len());
        assert_eq!(remote.brackfs(&["snapshots"]).ok().stdout.lines().count(), 1);
        remote.is_whole();
        assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
        assert_eq!(fs::read_dir(remote.site.state().join("spool")).unwrap().count(), 0);
    }
}

#[test]
fn logins_are_found_where_other_programs_look_and_refused_ones_end_a_command_at_once() {
    let remote = Remote::ready(&[("file", b"content".to_vec())]);
    let none = run(remote.bare(&["snapshots"])).code(1);
    assert!(none.stderr.contains("set FTP_PASSWORD") && none.stderr.contains("~/.netrc"), "{none}");
    let mut variables = remote.bare(&["snapshots"]);
    variables.env("FTP_PASSWORD", PASSWORD).env("FTP_USER", USER);
    run(variables).ok();
    fs::copy(remote.server.credentials(), remote.site.path().join(".netrc")).unwrap();
    run(remote.bare(&["snapshots"])).ok();

    let start = Instant::now();
    remote.server.log_in_with("hunter2");
    let refused = remote.backup(&["-v"]).code(1);
    assert!(refused.stderr.contains("refuses the login") && !refused.stderr.contains("waiting for"), "{refused}");
    assert!(!refused.stderr.contains("hunter2"), "{refused}");
    remote.server.log_in_with(PASSWORD);
    let mut missing = remote.command(&["snapshots"]);
    missing.env("BRACKFS_REPOSITORY", remote.server.url("none"));
    assert!(run(missing).code(10).stderr.contains("no such directory"));
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
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
    let remote = Remote::new(Server::with(Program::ProFtpd, Tls::Explicit, ""), &borrowed(&many(3)));
    fs::set_permissions(remote.server.credentials(), fs::Permissions::from_mode(0o644)).unwrap();
    let noted = remote.init().ok();
    assert!(noted.stderr.contains("other users can read the file with the password"), "{noted}");
    let log = remote.site.path().join("log");
    let mut backup = remote.begin_backup(&["--log", log.to_str().unwrap(), "-v"]);
    let mut shown = String::new();
    while backup.try_wait().unwrap().is_none() {
        for file in ["cmdline", "environ"] {
            shown += &String::from_utf8_lossy(&fs::read(format!("/proc/{}/{file}", backup.id())).unwrap_or_default());
        }
        sleep(Duration::from_millis(20));
    }
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    shown += &remote.said();
    shown += &fs::read_to_string(log).unwrap();
    assert!(shown.contains("BRACKFS_CREDENTIALS") && shown.contains("connected"), "{shown}");
    assert!(!shown.contains(PASSWORD), "{shown}");
}

#[test]
fn a_certificate_is_trusted_only_with_its_authority() {
    let remote = Remote::new(Server::with(Program::ProFtpd, Tls::Explicit, ""), &[]);
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
    clear.env("BRACKFS_REPOSITORY", remote.server.url("repo").replace("ftps://", "ftp://"));
    assert!(run(clear).code(1).stderr.contains("SSL/TLS required"));
}

#[test]
fn servers_with_one_version_of_tls_are_used() {
    for version in ["TLSv1.2", "TLSv1.3"] {
        let options = format!("TLSProtocol {version}");
        let remote =
            Remote::new(Server::with(Program::ProFtpd, Tls::Explicit, &options), &[("file", noise("file", 3 * MIB))]);
        remote.init().ok();
        remote.backup(&[]).ok();
        remote.is_whole();
        assert!(remote.server.log().contains("reused TLS session"), "{}", remote.server.log());
    }
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
    storage.store(&spool, Rivals::None).unwrap();
    assert_eq!(storage.get("x", 9).unwrap(), b"bytes");
    assert!(server.log().contains("reused TLS session"), "{}", server.log());
}

#[test]
fn an_upload_that_is_cut_off_is_made_again_and_leaves_nothing() {
    let remote = Remote::ready(&borrowed(&many(6)));
    // A pack takes more than a second.
    let mut backup = remote.begin_backup(&["--connections", "2", "--limit-upload", "16MiB"]);
    let (mut cut, mut stored) = (Vec::new(), BTreeMap::new());
    for _ in 0..2 {
        remote.cut_an_upload(&mut cut);
        stored.extend(remote.packs().into_iter().map(|pack| (pack.clone(), length(&pack))));
    }
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    assert!(remote.said().contains(&format!("waiting for {}", remote.server.url("repo"))), "{}", remote.said());
    // Packs had their names only when they were complete.
    assert!(stored.iter().all(|(pack, stored)| length(pack) == *stored), "{stored:?}");
    remote.is_whole();
    // A temporary file of the last cut may be left until the next object is stored.
    remote.site.write("new", "new");
    settle();
    remote.backup(&[]).ok();
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
}

#[test]
fn a_backup_waits_for_a_server_that_is_restarted() {
    let mut remote = Remote::ready(&borrowed(&many(8)));
    let mut backup = remote.begin_backup(&["--limit-upload", "32MiB"]);
    until("a pack is stored", || !remote.packs().is_empty());
    remote.server.stop();
    sleep(Duration::from_secs(2));
    remote.server.start_again();
    assert!(backup.wait().unwrap().success(), "{}", remote.said());
    assert_eq!(remote.said().matches("waiting for").count(), 1, "said once in a minute: {}", remote.said());
    remote.is_whole();
    remote.server.stop();
    let away = remote.brackfs(&["snapshots"]).code(1);
    assert!(away.stderr.contains("cannot be reached"), "{away}");
}

#[test]
fn a_full_disk_on_the_server_ends_a_backup_at_once() {
    for program in [Program::ProFtpd, Program::Vsftpd] {
        let remote = Remote::new(Server::with(program, Tls::Never, ""), &borrowed(&many(6)));
        fs::create_dir(remote.repo()).unwrap();
        mount_tmpfs(&remote.repo(), c"size=24m,mode=777");
        remote.init().ok();
        let start = Instant::now();
        let full = remote.backup(&[]).code(1);
        assert!(full.stderr.contains("the server has no more room"), "{full}");
        assert!(!full.stderr.contains("waiting for"), "{full}");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        // Temporary files are removed, so that something fits again.
        assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
        for at in 1..6 {
            fs::remove_file(remote.site.source().join(format!("file{at}"))).unwrap();
        }
        settle();
        remote.backup(&[]).ok();
        remote.is_whole();
    }
}

#[test]
fn a_killed_backup_leaves_nothing_partial_and_its_temporaries_are_removed() {
    // vsftpd shows temporary files only when it is asked for hidden ones.
    let remote = Remote::new(Server::with(Program::Vsftpd, Tls::Never, ""), &borrowed(&many(8)));
    remote.init().ok();
    let mut killed = false;
    for _ in 0..4 {
        let mut backup = remote.begin_backup(&["--connections", "2", "--limit-upload", "64MiB"]);
        until("an upload is under way", || {
            !remote.temporary_files().is_empty() || backup.try_wait().unwrap().is_some()
        });
        backup.kill().unwrap();
        backup.wait().unwrap();
        until("sessions end", || remote.server.sessions().is_empty());
        killed |= !remote.temporary_files().is_empty();
        if killed {
            break;
        }
    }
    assert!(killed, "no kill hit an upload");
    remote.backup(&[]).ok();
    assert_eq!(remote.temporary_files(), [] as [PathBuf; 0]);
    remote.is_whole();
}

#[test]
fn a_server_that_allows_few_sessions_is_used_with_those() {
    for (program, tls, options) in
        [(Program::ProFtpd, Tls::Explicit, "MaxClientsPerHost 1"), (Program::Vsftpd, Tls::Explicit, "max_per_ip=1")]
    {
        let remote = Remote::new(Server::with(program, tls, options), &borrowed(&many(4)));
        remote.init().ok();
        remote.backup(&["--connections", "4"]).ok();
        until("sessions end", || remote.server.sessions().len() <= 1);
        remote.is_whole();
    }
}

#[test]
fn a_missing_permission_and_a_missing_disk_are_not_missing_objects() {
    let remote = Remote::ready(&[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    let pack = remote.packs().swap_remove(0);
    let folder = pack.parent().unwrap();
    chown(folder, Some(0), Some(0)).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    let location = remote.server.location("repo");
    let LocationKind::Ftp(address) = location.kind() else { panic!("{location}") };
    let storage = FtpStorage::open(address, location.remote()).unwrap();
    let name = pack.strip_prefix(remote.repo()).unwrap().to_str().unwrap();
    assert_ne!(storage.length(name).unwrap_err().kind, ErrorKind::NotFound);
    assert_ne!(storage.read(name, 0, 1, &mut Vec::new()).unwrap_err().kind, ErrorKind::NotFound);
    let listed = storage.visit("packs/", &mut |_| ()).unwrap_err();
    assert_eq!(listed.kind, ErrorKind::PermissionDenied, "{listed}");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    storage.length(name).unwrap();
    // The disk of the repository is unmounted.
    fs::rename(remote.repo(), remote.server.data().join("elsewhere")).unwrap();
    fs::create_dir(remote.repo()).unwrap();
    assert_eq!(storage.length(name).unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(storage.visit("packs/", &mut |_| ()).unwrap_err().kind, ErrorKind::Unavailable);
    fs::remove_dir(remote.repo()).unwrap();
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
        let credentials = Some(self.folder.path().join("netrc"));
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
        assert!(begun.elapsed() < Duration::from_secs(15), "{shown}: {:?}", begun.elapsed());
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
    listener.accept().unwrap();
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
        assert_eq!(logins, sessions, "{name}");
    }
}

#[test]
fn a_silent_server_is_given_up() {
    let remote = Remote::ready(&[("file", noise("file", MIB))]);
    let location = remote.server.location("repo");
    let LocationKind::Ftp(address) = location.kind() else { panic!("{location}") };
    let options = Options { stall: Duration::from_secs(2), ..location.remote().clone() };
    let storage = FtpStorage::open(address, &options).unwrap();
    remote.server.freeze();
    let begun = Instant::now();
    let error = storage.length("brackfs.toml").unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.to_string().contains("silent for 2 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    // The next operation has a new session.
    storage.length("brackfs.toml").unwrap();
}
