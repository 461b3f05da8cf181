//! Swift behind Keystone, with logins of version 3.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use brackfs::storage::Location;
use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::http::Request;

use crate::common::http_proxy::Proxy;
use crate::common::remote::{MIB, RemoteServer, RemoteSite, borrowed, many};
use crate::common::sftp::free_port;
use crate::common::{noise, run, settle, swift};

/// Made by `scripts/setup --soak`.
const PYTHON: &str = "/var/cache/brackfs-tests/keystone/bin/python";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/keystone_server.py");

const PASSWORD: &str = "admin-secret";
const LIFE: Duration = Duration::from_secs(86_400);

/// A running Keystone. It ends with this.
struct Keystone {
    /// Its database, which several may use.
    folder: Arc<TempDir>,
    child: Child,
    port: u16,
}

impl Keystone {
    /// The one that tests at the same time share, since its first start takes half a minute.
    fn shared() -> Arc<Keystone> {
        static SHARED: Mutex<Weak<Keystone>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let folder = TempDir::with_prefix("brackfs-keystone-").expect("temporary directory");
            let keystone = Arc::new(Keystone::start(Arc::new(folder), LIFE));
            let token = keystone.token();
            let service = json!({ "service": { "type": "object-store", "name": "swift" } });
            keystone.ask("POST", "services", &token, &service);
            *shared = Arc::downgrade(&keystone);
            keystone
        })
    }

    /// Starts one whose tokens live for so long.
    fn start(folder: Arc<TempDir>, life: Duration) -> Keystone {
        assert!(
            fs::exists(PYTHON).is_ok_and(|is| is),
            "{PYTHON} is missing: run scripts/setup --soak, which installs Keystone"
        );
        let (port, log) = (free_port(), folder.path().join("messages"));
        let mut python = Command::new(PYTHON);
        python.arg(SCRIPT).arg(folder.path()).args([port.to_string(), life.as_secs().to_string()]);
        python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(&log).expect("log"));
        let mut child = python.spawn().expect("python");
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("output")).read_line(&mut line);
        let keystone = Keystone { folder, child, port };
        let messages = || fs::read_to_string(&log).unwrap_or_default();
        assert!(read.is_ok() && line == "ready\n", "Keystone does not start: {line}{}", messages());
        keystone
    }

    /// The URL for logins.
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v3", self.port)
    }

    /// Makes a request. Returns the token of the answer, and its body.
    fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> (String, Value) {
        let request = Request::builder().method(method).uri(format!("{}/{path}", self.url()));
        let request = request.header("x-auth-token", token).header("content-type", "application/json");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = ureq::run(request.body(body).expect("a request"));
        let mut answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let token = answer.headers().get("x-subject-token").map(|token| token.to_str().expect("a token").to_owned());
        let text = answer.body_mut().read_to_string().expect("text");
        (token.unwrap_or_default(), serde_json::from_str(&text).unwrap_or_default())
    }

    /// The answer to a login of the administrator: a token, and what it is for.
    fn log_in(&self) -> (String, Value) {
        let user = json!({ "name": "admin", "domain": { "id": "default" }, "password": PASSWORD });
        let project = json!({ "name": "admin", "domain": { "id": "default" } });
        let identity = json!({ "methods": ["password"], "password": { "user": user } });
        let login = json!({ "auth": { "identity": identity, "scope": { "project": project } } });
        self.ask("POST", "auth/tokens", "", &login)
    }

    fn token(&self) -> String {
        self.log_in().0
    }

    /// The id of the object of a kind, such as `users`, with this name.
    fn id(&self, kind: &str, name: &str) -> String {
        let found = self.ask("GET", &format!("{kind}?name={name}"), &self.token(), &Value::Null).1;
        found[kind][0]["id"].as_str().unwrap_or_else(|| panic!("{kind} {name}: {found}")).to_owned()
    }
}

impl Drop for Keystone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Swift that trusts a Keystone.
pub struct Server {
    swift: swift::Server,
    keystone: Arc<Keystone>,
    /// The name of its region in the catalog of Keystone.
    region: String,
}

impl Server {
    pub fn start() -> Server {
        let keystone = Keystone::shared();
        let (token, login) = keystone.log_in();
        let account = format!("AUTH_{}", login["token"]["project"]["id"].as_str().expect("a project"));
        let arguments = ["--keystone", &keystone.url(), &token, &account].map(str::to_owned);
        let swift = swift::Server::with(PYTHON, &arguments);
        let region = format!("region-{}", swift.proxy.port());
        let url = format!("http://127.0.0.1:{}/v1/{account}", swift.proxy.port());
        let service = keystone.id("services", "swift");
        keystone.ask("POST", "regions", &token, &json!({ "region": { "id": region } }));
        let endpoint = json!({ "interface": "public", "region_id": region, "url": url, "service_id": service });
        keystone.ask("POST", "endpoints", &token, &json!({ "endpoint": endpoint }));
        let server = Server { swift, keystone, region };
        server.swift.set_variables(&server.variables(&server.keystone.url()));
        server
    }

    /// The login of the administrator.
    fn variables<'v>(&'v self, url: &'v str) -> [(&'static str, &'v str); 5] {
        [
            ("OS_AUTH_URL", url),
            ("OS_USERNAME", "admin"),
            ("OS_PASSWORD", PASSWORD),
            ("OS_PROJECT_NAME", "admin"),
            ("OS_REGION_NAME", &self.region),
        ]
    }

    /// The tokens of requests since the last call. Those of successive requests with the same one are merged.
    fn tokens(&self) -> Vec<String> {
        let heads = self.proxy().heads();
        let tokens = heads.iter().filter_map(|head| head.lines().find_map(|line| line.strip_prefix("x-auth-token: ")));
        let mut tokens: Vec<_> = tokens.map(str::to_owned).collect();
        tokens.dedup();
        tokens
    }

    fn proxy(&self) -> &Proxy {
        &self.swift.proxy
    }
}

impl std::ops::Deref for Server {
    type Target = swift::Server;

    fn deref(&self) -> &swift::Server {
        &self.swift
    }
}

impl RemoteServer for Server {
    fn repository(&self) -> Location {
        self.swift.repository()
    }

    fn connect(&self, command: &mut Command) {
        self.swift.connect(command);
    }

    fn stop(&mut self) {
        self.swift.stop();
    }

    fn start_again(&mut self) {
        self.swift.start_again();
    }

    fn is_receiving(&self) -> bool {
        self.swift.is_receiving()
    }
}

promises!(super::Server::start);

#[test]
#[ignore = "scripts/soak runs it"]
fn no_secret_is_shown() {
    let remote = RemoteSite::ready(Server::start(), &borrowed(&many(1)));
    let mut shown = vec![PASSWORD.to_owned()];
    shown.extend(remote.server.tokens());
    assert!(shown.len() > 1, "no token was used");
    remote.no_secret_is_shown(&shown.iter().map(String::as_str).collect::<Vec<_>>());
    let now = remote.server.tokens();
    assert!(!now.is_empty());
}

#[test]
#[ignore = "scripts/soak runs it"]
fn application_credentials_log_in_and_refusals_say_what_to_do() {
    let remote = RemoteSite::ready(Server::start(), &borrowed(&many(1)));
    let keystone = &remote.server.keystone;
    let url = keystone.url();
    let password = remote.server.variables(&url);
    let snapshots = |variables: &[(&str, &str)]| {
        let mut command = remote.bare(&["snapshots"]);
        command.envs(variables.iter().copied());
        run(command)
    };
    snapshots(&password).ok();
    // The URL without a version, and ids.
    let [user, project] = ["users", "projects"].map(|kind| keystone.id(kind, "admin"));
    let short = url.trim_end_matches("/v3");
    let ids =
        [("OS_USER_ID", user.as_str()), ("OS_PROJECT_ID", &project), ("OS_AUTH_URL", short), password[2], password[4]];
    snapshots(&ids).ok();
    let body = json!({ "application_credential": { "name": "backup", "secret": "app secret", "roles": [{ "name": "admin" }] } });
    let made = keystone.ask("POST", &format!("users/{user}/application_credentials"), &keystone.token(), &body).1;
    let id = made["application_credential"]["id"].as_str().expect("an id");
    let credential = ("OS_APPLICATION_CREDENTIAL_SECRET", "app secret");
    snapshots(&[password[0], password[4], ("OS_APPLICATION_CREDENTIAL_ID", id), credential]).ok();
    let name = ("OS_APPLICATION_CREDENTIAL_NAME", "backup");
    snapshots(&[password[0], password[1], password[4], name, credential]).ok();

    let outsider = json!({ "user": { "name": "outsider", "password": "hunter2", "domain_id": "default" } });
    keystone.ask("POST", "users", &keystone.token(), &outsider);
    let (outsider, role) = (keystone.id("users", "outsider"), keystone.id("roles", "reader"));
    keystone.ask("PUT", &format!("projects/{project}/users/{outsider}/roles/{role}"), &keystone.token(), &Value::Null);
    let with = |changes: &[(&'static str, &'static str)]| -> Vec<(&str, &str)> {
        password.iter().copied().chain(changes.iter().copied()).collect()
    };
    for (variables, words) in [
        (with(&[("OS_PASSWORD", "hunter2")]), "check OS_USERNAME, OS_PASSWORD"),
        (with(&[("OS_USERNAME", "nobody")]), "check OS_USERNAME, OS_PASSWORD"),
        (with(&[("OS_PROJECT_NAME", "other")]), "OS_PROJECT_NAME"),
        (with(&[("OS_PROJECT_DOMAIN_NAME", "other")]), "domains of user and project"),
        (with(&[("OS_REGION_NAME", "elsewhere")]), "check OS_REGION_NAME"),
        (with(&[("OS_INTERFACE", "internal")]), "OS_INTERFACE"),
        (with(&[("OS_USERNAME", "outsider"), ("OS_PASSWORD", "hunter2")]), "the server denies access"),
    ] {
        let refused = snapshots(&variables).code(1);
        assert!(refused.stderr.contains(words) && !refused.stderr.contains("waiting for"), "{words}: {refused}");
        assert!(!refused.stderr.contains("hunter2") && !refused.stderr.contains(PASSWORD), "{refused}");
    }
}

#[test]
#[ignore = "scripts/soak runs it"]
fn tokens_are_renewed_before_they_expire_and_when_they_are_revoked() {
    let remote = RemoteSite::ready(Server::start(), &borrowed(&many(2)));
    // Another Keystone with the same users.
    let life = Duration::from_secs(8);
    let brief = Keystone::start(remote.server.keystone.folder.clone(), life);
    let url = brief.url();
    remote.server.set_variables(&remote.server.variables(&url));
    remote.server.tokens();
    let begun = Instant::now();
    remote.backup(&["--limit-upload", "1MiB"]).ok();
    assert!(begun.elapsed() > 2 * life, "no token has expired");
    assert!(remote.server.tokens().len() > 1);

    remote.server.set_variables(&remote.server.variables(&remote.server.keystone.url()));
    remote.site.write("more", noise("more", 24 * MIB));
    settle();
    let mut backup = remote.begin_slow_backup();
    backup.until("a pack is uploaded", |_| remote.server.is_receiving());
    let token = remote.server.tokens().pop().expect("a token");
    let request = Request::builder().method("DELETE").uri(format!("{}/auth/tokens", remote.server.keystone.url()));
    let request = request.header("x-auth-token", remote.server.keystone.token()).header("x-subject-token", &token);
    ureq::run(request.body(()).unwrap()).expect("the token is revoked");
    backup.succeeds();
    assert_eq!(backup.said(), "");
    let later = remote.server.tokens();
    assert!(later.last().is_some_and(|last| *last != token), "it was not renewed");
    remote.is_whole();
}
