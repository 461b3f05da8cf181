//! A Swift server for tests, reached through a proxy that can be told to fail; and a stand-in for Keystone, which logs in.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use brackfs::storage::{Credentials, Location, Remote};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http_proxy::Proxy;
use super::remote::RemoteServer;
use super::sftp::free_port;

/// Made by `scripts/setup --tests`.
const PYTHON: &str = "/var/cache/brackfs-tests/swift/bin/python";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/swift_server.py");

/// The user that may do everything, and the key.
pub const WRITER: (&str, &str) = ("test:writer", "writer-secret");
/// The user that may only read, and the key.
pub const READER: (&str, &str) = ("test:reader", "reader-secret");

/// A running server with the container `backups`. It ends with this.
pub struct Server {
    folder: TempDir,
    child: Child,
    /// Requests go through it.
    pub proxy: Proxy,
}

impl Server {
    /// Starts a server.
    pub fn start() -> Server {
        Server::with_token_life(Duration::from_secs(86_400))
    }

    /// Starts a server whose tokens live for so many seconds.
    pub fn with_token_life(life: Duration) -> Server {
        Server::with(PYTHON, &[life.as_secs().to_string()])
    }

    /// Starts a server that is run by this Python, with more arguments.
    pub fn with(python: &str, arguments: &[String]) -> Server {
        assert!(fs::exists(python).is_ok_and(|is| is), "{python} is missing: run scripts/setup, which installs Swift");
        let folder = TempDir::with_prefix("brackfs-swift-").expect("temporary directory");
        let port = free_port();
        let log = fs::File::create(folder.path().join("log")).expect("log");
        let mut python = Command::new(python);
        python.arg(SCRIPT).arg(folder.path()).arg(port.to_string()).args(arguments);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = python.spawn().expect("python");
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("output")).read_line(&mut line);
        let messages = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        assert!(read.is_ok() && line == "ready\n", "Swift does not start: {}", messages());
        let server = Server { folder, child, proxy: Proxy::start(port) };
        server.log_in_as(WRITER);
        server
    }

    /// The URL for logins of version 1.
    pub fn login(&self) -> String {
        format!("http://127.0.0.1:{}/auth/v1.0", self.proxy.port())
    }

    /// Writes this user and key to the file of [`Server::file`].
    pub fn log_in_as(&self, (user, key): (&str, &str)) {
        self.set_variables(&[("ST_AUTH", &self.login()), ("ST_USER", user), ("ST_KEY", key)]);
    }

    /// Writes these variables to the file of [`Server::file`].
    pub fn set_variables(&self, variables: &[(&str, &str)]) {
        let lines = variables.iter().map(|(name, value)| format!("export {name}=\"{value}\"\n"));
        fs::write(self.file(), lines.collect::<String>()).expect("credentials");
        fs::set_permissions(self.file(), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    /// The file with the login.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("openrc")
    }

    /// A location in the container.
    pub fn location(&self, prefix: &str) -> Location {
        let location: Location = format!("swift://backups/{prefix}").parse().expect("location");
        location.with_remote(Remote { credentials: Some(Credentials::in_file(self.file())), ..Remote::default() })
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
        command.env("BRACKFS_CREDENTIALS", self.file()).env("BRACKFS_LISTING_LAG", "1s");
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

/// Answers logins of version 3 with tokens of version 1. It checks what was asked for.
pub struct Keystone {
    port: u16,
    /// The bodies of logins.
    asked: Arc<Mutex<Vec<Value>>>,
    logins: Arc<AtomicUsize>,
}

impl Keystone {
    /// In front of a server. Refuses logins without this password.
    pub fn start(server: &Server, password: &'static str) -> Keystone {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("address").port();
        let (asked, logins): (Arc<Mutex<Vec<Value>>>, Arc<AtomicUsize>) = Default::default();
        let (noted, counted, swift) = (asked.clone(), logins.clone(), server.proxy.port());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Some((head, question)) = request(&client) else { continue };
                assert!(head.starts_with("POST /v3/auth/tokens "), "{head}");
                let answer = if question.to_string().contains(&format!("\"{password}\"")) {
                    counted.fetch_add(1, Ordering::Relaxed);
                    accepted(swift)
                } else {
                    let body =
                        "{\"error\":{\"code\":401,\"message\":\"The request you have made requires authentication.\"}}";
                    format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                };
                noted.lock().expect("lock").push(question);
                let _ = (&client).write_all(answer.as_bytes());
            }
        });
        Keystone { port, asked, logins }
    }

    /// The URL for logins.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bodies of logins since the last call.
    pub fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut self.asked.lock().expect("lock"))
    }

    /// How many logins succeeded.
    pub fn logins(&self) -> usize {
        self.logins.load(Ordering::Relaxed)
    }
}

/// The head and the body of a request.
fn request(client: &TcpStream) -> Option<(String, Value)> {
    let (mut lines, mut head, mut length) = (BufReader::new(client), String::new(), 0);
    loop {
        let before = head.len();
        if lines.read_line(&mut head).ok()? == 0 {
            return None;
        }
        let line = head[before..].to_ascii_lowercase();
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}

/// Logs in with version 1, and returns an answer of version 3.
fn accepted(swift: u16) -> String {
    let mut server = TcpStream::connect(("127.0.0.1", swift)).expect("Swift");
    let (user, key) = WRITER;
    let head = format!(
        "GET /auth/v1.0 HTTP/1.1\r\nHost: 127.0.0.1:{swift}\r\nX-Auth-User: {user}\r\nX-Auth-Key: {key}\r\n\r\n"
    );
    server.write_all(head.as_bytes()).expect("login");
    let (mut token, mut url, mut life) = (String::new(), String::new(), 0);
    for line in BufReader::new(server).lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(": ") else { continue };
        match name.to_ascii_lowercase().as_str() {
            "x-auth-token" => token = value.to_owned(),
            "x-storage-url" => url = value.to_owned(),
            "x-auth-token-expires" => life = value.parse::<i64>().expect("seconds"),
            _ => {}
        }
    }
    // The clock of this server is wrong.
    let start: jiff::Timestamp = "2001-02-03T04:05:06.789012Z".parse().expect("time");
    let end = start + jiff::SignedDuration::from_secs(life);
    let endpoint = |interface: &str, region: &str, url: &str| json!({ "interface": interface, "region": region, "region_id": region, "url": url });
    let endpoints = [
        endpoint("public", "elsewhere", "http://127.0.0.1:1/v1"),
        endpoint("admin", "here", "http://127.0.0.1:1/v1"),
        endpoint("public", "here", &url),
    ];
    let body = json!({ "token": {
        "issued_at": start.to_string(), "expires_at": end.to_string(), "methods": ["password"],
        "catalog": [{ "type": "identity", "endpoints": [] }, { "type": "object-store", "endpoints": endpoints }],
    } });
    let body = body.to_string();
    format!("HTTP/1.1 201 Created\r\nX-Subject-Token: {token}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
