//! A real SFTP server for tests: OpenSSH on a free port of the loopback interface, with throw-away keys.
//!
//! ```text
//! <server>/data/         the files that it serves; they belong to `nobody`, the user that logs in
//! <server>/ssh_config    how `ssh -F` reaches it
//! ```

use std::collections::HashSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::storage::{Location, Remote};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::remote::{RemoteServer, uploads_below};
use super::wait::LIMIT;
use super::{NOBODY, mounts_below, unmount};

const SSHD: &str = "/usr/sbin/sshd";

/// A running server. On drop, it is stopped with all its sessions, which must have ended by then.
pub struct Server {
    folder: TempDir,
    port: u16,
    /// `None` while it is stopped.
    listener: Option<Child>,
}

impl Server {
    /// A server for the user `nobody`.
    pub fn start() -> Server {
        Server::with_options("")
    }

    /// A server that runs `internal-sftp` with these options, such as `-R` for read-only.
    pub fn with_options(options: &str) -> Server {
        assert!(Path::new(SSHD).exists(), "{SSHD} is missing: install openssh-server, as scripts/setup --tests does");
        let folder = TempDir::with_prefix("brackfs-sftp-").expect("temporary directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode of the server's folder");
        // sshd changes its root to this folder while it reads from the network.
        fs::create_dir_all("/run/sshd").expect("/run/sshd");
        let mut server = Server { folder, port: free_port(), listener: None };
        fs::create_dir(server.data()).expect("folder of data");
        chown(server.data(), Some(NOBODY), Some(NOBODY)).expect("owner of the folder");
        server.new_host_key();
        server.generate_key("key");
        fs::copy(server.key().with_extension("pub"), server.folder.path().join("authorized_keys")).expect("keys");
        server.trust_host_key();
        server.configure(options);
        server.start_again();
        // The connection that found it listening. Later, a client that waits may connect at once.
        server.wait_for_sessions(0);
        server
    }

    /// Writes the configuration. It counts from the next start.
    pub fn configure(&self, options: &str) {
        let (port, at, data) = (self.port, self.folder.path().display(), self.data());
        let configuration = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host_key\nPidFile none\nAuthorizedKeysFile {at}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowUsers nobody\n\
             MaxStartups 100\nSubsystem sftp internal-sftp\nForceCommand internal-sftp -d {} {options}\n",
            data.display()
        );
        fs::write(self.folder.path().join("sshd_config"), configuration).expect("configuration of sshd");
        let client = format!(
            "Host *\n  IdentityFile {at}/key\n  IdentitiesOnly yes\n  UserKnownHostsFile {at}/known_hosts\n  \
             GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
        );
        fs::write(self.folder.path().join("ssh_config"), client).expect("configuration of ssh");
    }

    fn generate_key(&self, name: &str) {
        let path = self.folder.path().join(name);
        let _ = fs::remove_file(&path);
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
        assert!(made.expect("ssh-keygen").success());
    }

    /// Replaces the server's host key. It counts from the next start.
    pub fn new_host_key(&self) {
        self.generate_key("host_key");
    }

    /// Lets ssh know the server's host key.
    pub fn trust_host_key(&self) {
        let key = fs::read_to_string(self.folder.path().join("host_key.pub")).expect("host key");
        let mut words = key.split(' ');
        let (kind, key) = (words.next().expect("kind"), words.next().expect("key"));
        self.trust(&format!("[127.0.0.1]:{} {kind} {key}\n", self.port));
    }

    /// Replaces the host keys that ssh knows.
    pub fn trust(&self, known: &str) {
        fs::write(self.folder.path().join("known_hosts"), known).expect("known hosts");
    }

    /// Lets no key log in from now on.
    pub fn refuse_logins(&self) {
        fs::write(self.folder.path().join("authorized_keys"), "").expect("keys");
    }

    /// The file with the secret key that logs in.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        end(&self.sessions());
    }

    /// Stops all sessions where they are: a server that does not answer.
    pub fn freeze(&self) {
        for session in self.sessions() {
            // It may have ended by now.
            let _ = kill_process(session, Signal::STOP);
        }
    }

    /// Waits until at most this many processes of sessions are left.
    pub fn wait_for_sessions(&self, most: usize) {
        let start = Instant::now();
        while self.sessions().len() > most {
            assert!(start.elapsed() < LIMIT, "sessions do not end: {:?}\n{}", self.sessions(), self.log());
            sleep(Duration::from_millis(5));
        }
    }

    /// The folder that it serves.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The URL of a path on the server.
    pub fn url(&self, path: &Path) -> String {
        format!("sftp://nobody@127.0.0.1:{}{}", self.port, path.display())
    }

    /// The command that reaches it, as for `--ssh`.
    pub fn ssh(&self) -> String {
        format!("ssh -F {}", self.folder.path().join("ssh_config").display())
    }

    /// The location of a path on the server.
    pub fn location(&self, path: &Path) -> Location {
        let ssh = self.ssh().split(' ').map(str::to_owned).collect();
        let location: Location = self.url(path).parse().expect("location");
        location.with_remote(Remote { ssh, ..Remote::default() })
    }

    /// The messages of the server.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl RemoteServer for Server {
    fn repository(&self) -> Location {
        self.location(&self.data().join("repo"))
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_SSH", self.ssh());
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.data().join("repo"))
    }

    fn is_receiving(&self) -> bool {
        !uploads_below(&self.data().join("repo")).is_empty()
    }

    fn start_again(&mut self) {
        assert!(self.listener.is_none(), "it runs already");
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).expect("log");
        let mut sshd = Command::new(SSHD);
        sshd.args(["-D", "-e", "-f"]).arg(self.folder.path().join("sshd_config"));
        sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.listener = Some(listening(&mut sshd, self.port, || self.log()));
    }

    fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            end_all(listener);
        }
    }

    fn sessions(&self) -> Vec<Pid> {
        self.listener.as_ref().map(below).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() && self.listener.is_some() {
            self.wait_for_sessions(0);
        }
        self.stop();
        mounts_below(self.folder.path()).iter().for_each(|path| unmount(path));
    }
}

/// Starts a server, and waits until it listens. If it ends before, as its port may still be in use, it is started again.
#[track_caller]
pub fn listening(server: &mut Command, port: u16, log: impl Fn() -> String) -> Child {
    let start = Instant::now();
    let mut child = server.spawn().expect("a server");
    loop {
        // While nothing listens, a connection may have the same port at both ends.
        let is_server = |found: TcpStream| found.local_addr().ok() != found.peer_addr().ok();
        let listens = TcpStream::connect(("127.0.0.1", port)).is_ok_and(is_server);
        let has_ended = child.try_wait().expect("waiting for a server").is_some();
        if listens && !has_ended {
            return child;
        }
        if start.elapsed() > LIMIT {
            // Never outlives the test.
            let _ = child.kill();
            panic!("{server:?} does not listen: {}", log());
        }
        sleep(Duration::from_millis(10));
        if has_ended {
            child = server.spawn().expect("a server");
        }
    }
}

/// A port of the loopback interface that nothing listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("address").port()
}

/// The processes that a process started, and those that they started.
pub fn below(listener: &Child) -> Vec<Pid> {
    let listener = listener.id().cast_signed();
    let mut all: HashSet<i32> = HashSet::from([listener]);
    let parents: Vec<(i32, i32)> = processes();
    loop {
        let before = all.len();
        all.extend(parents.iter().filter(|(_, parent)| all.contains(parent)).map(|(id, _)| *id).collect::<Vec<_>>());
        if all.len() == before {
            break;
        }
    }
    all.remove(&listener);
    all.into_iter().filter_map(Pid::from_raw).collect()
}

/// All processes, each with its parent.
fn processes() -> Vec<(i32, i32)> {
    let parse = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        // A zombie has ended.
        let is_alive = fields.next()? != "Z";
        is_alive.then_some((id, fields.next()?.parse().ok()?))
    };
    fs::read_dir("/proc").expect("/proc").filter_map(|entry| parse(entry.ok()?)).collect()
}

/// Kills a server and all its sessions.
pub fn end_all(mut listener: Child) {
    // A stopped server begins no session while those that it has are looked up. It may have ended by itself.
    let _ = kill_process(Pid::from_child(&listener), Signal::STOP);
    let sessions = below(&listener);
    listener.kill().expect("killing the server");
    listener.wait().expect("waiting for the server");
    end(&sessions);
}

/// Kills processes and waits until they are gone.
pub fn end(processes: &[Pid]) {
    for process in processes {
        // It may have ended by now.
        let _ = kill_process(*process, Signal::KILL);
    }
    let start = Instant::now();
    let ids: Vec<_> = processes.iter().map(|process| process.as_raw_nonzero().get()).collect();
    while self::processes().iter().any(|(id, _)| ids.contains(id)) {
        assert!(start.elapsed() < LIMIT, "processes do not end: {processes:?}");
        sleep(Duration::from_millis(2));
    }
}
