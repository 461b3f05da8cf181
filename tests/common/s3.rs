//! An S3 server for tests: moto on the loopback interface, reached through a proxy that can be told to fail. The data is in
//! the memory of the server, so a stop is one of the proxy.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use brackfs::storage::{Credentials, Location, Remote};
use tempfile::TempDir;

use super::http_proxy::Proxy;
use super::machine::make_certificate;
use super::remote::RemoteServer;
use super::sftp::free_port;
use super::wait::LIMIT;

/// Made by `scripts/setup --tests`.
const PYTHON: &str = "/var/cache/brackfs-tests/moto/bin/python";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/s3_server.py");

/// A running server with the bucket `backups`. It ends with this.
pub struct Server {
    folder: TempDir,
    child: Child,
    /// Of moto itself.
    port: u16,
    /// What requests go through.
    pub proxy: Proxy,
    /// Key and secret of the account that may do everything.
    pub writer: (String, String),
    /// Key and secret of the account that may only read.
    pub reader: (String, String),
}

impl Server {
    /// Starts a server.
    pub fn start() -> Server {
        Server::with_options(|_| Vec::new())
    }

    /// Starts a server that is reached over TLS at [`Server::tls_endpoint`], without the proxy. Its certificate is its own
    /// authority, in [`Server::certificate`].
    pub fn with_tls() -> Server {
        Server::with_options(|folder| {
            let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.join(name));
            make_certificate(&certificate, &key);
            [certificate, key].map(|path| path.display().to_string()).into()
        })
    }

    fn with_options(options: impl FnOnce(&Path) -> Vec<String>) -> Server {
        assert!(
            fs::exists(PYTHON).is_ok_and(|is| is),
            "{PYTHON} is missing: run scripts/setup --tests, which installs moto"
        );
        let folder = TempDir::with_prefix("brackfs-s3-").expect("temporary directory");
        let port = free_port();
        let log = fs::File::create(folder.path().join("log")).expect("log");
        let mut python = Command::new(PYTHON);
        python
            .args([SCRIPT, &port.to_string()])
            .args(options(folder.path()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = python.spawn().expect("python");
        let mut lines = BufReader::new(child.stdout.take().expect("output")).lines();
        let mut keys = || -> (String, String) {
            let line = lines.next().and_then(Result::ok).unwrap_or_else(|| {
                panic!("moto does not start: {}", fs::read_to_string(folder.path().join("log")).unwrap_or_default())
            });
            let (id, secret) = line.split_once(' ').expect("keys");
            (id.to_owned(), secret.to_owned())
        };
        let (writer, reader) = (keys(), keys());
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < LIMIT, "moto does not listen");
            sleep(Duration::from_millis(10));
        }
        let server = Server { folder, child, port, proxy: Proxy::start(port), writer, reader };
        server.credentials(&server.writer.clone());
        server
    }

    /// Writes these keys to the file of [`Server::file`].
    pub fn credentials(&self, (id, secret): &(String, String)) {
        let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(self.file(), text).expect("credentials");
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    /// The file with the keys.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("credentials")
    }

    /// The URL of the server.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.proxy.port())
    }

    /// The URL of the server behind the proxy, with TLS.
    pub fn tls_endpoint(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The file with the server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// A location in the bucket.
    pub fn location(&self, prefix: &str) -> Location {
        let location: Location = format!("s3://backups/{prefix}").parse().expect("location");
        location.with_remote(self.remote())
    }

    /// How to reach it.
    pub fn remote(&self) -> Remote {
        Remote {
            endpoint: Some(self.endpoint()),
            credentials: Some(Credentials::in_file(self.file())),
            ..Remote::default()
        }
    }

    /// A prefix that no other caller gets.
    pub fn new_prefix() -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("prefix-{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl RemoteServer for Server {
    fn repository(&self) -> Location {
        self.location("repo")
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_ENDPOINT", self.endpoint()).env("BRACKFS_CREDENTIALS", self.file());
    }

    fn stop(&mut self) {
        self.proxy.stop();
    }

    fn start_again(&mut self) {
        self.proxy.start_again();
    }

    fn is_receiving(&self) -> bool {
        self.proxy.is_receiving("PUT", "/packs/")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It also ends when this process does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
