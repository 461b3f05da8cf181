//! A WebDAV server for tests: Apache on the loopback interface, reached through a proxy that can be told to fail.
//!
//! ```text
//! <server>/data/       the files that it serves; they belong to `nobody`, the user that it runs as
//! <server>/log         its messages
//! ```

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use brackfs::storage::{Credentials, Location, Remote};
use openssl::base64::encode_block;
use openssl::hash::{MessageDigest, hash};
use openssl::sha::sha1;
use tempfile::TempDir;

use super::NOBODY;
use super::http_proxy::Proxy;
use super::machine::make_certificate;
use super::remote::RemoteServer;
use super::sftp::{free_port, listening};

const APACHE: &str = "/usr/sbin/apache2";
const MODULES: &str = "/usr/lib/apache2/modules";

/// The user that may log in, and the password.
pub const USER: &str = "tester";
pub const PASSWORD: &str = "pass phrase:1";

/// How users log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    Basic,
    Digest,
}

/// A running server. It ends with this.
pub struct Server {
    folder: TempDir,
    /// `None` while it is stopped.
    child: Option<Child>,
    port: u16,
    /// Requests go through it.
    pub proxy: Proxy,
}

impl Server {
    /// Starts a server with Basic login.
    pub fn start() -> Server {
        Server::with_options(Login::Basic, false)
    }

    /// Starts a server. With TLS, it is reached at [`Server::tls_url`] and without the proxy; its certificate is its own
    /// authority, in [`Server::certificate`].
    pub fn with_options(login: Login, tls: bool) -> Server {
        assert!(Path::new(APACHE).exists(), "{APACHE} is missing: install apache2-bin, as scripts/setup --tests does");
        let folder = TempDir::with_prefix("brackfs-webdav-").expect("temporary directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode of the server's folder");
        for name in ["data", "locks"] {
            let path = folder.path().join(name);
            fs::create_dir(&path).expect("folder");
            chown(&path, Some(NOBODY), Some(NOBODY)).expect("owner of the folder");
        }
        let port = free_port();
        let mut server = Server { folder, child: None, port, proxy: Proxy::start(port) };
        server.configure(login, tls);
        let text = format!(
            "machine 127.0.0.1 login {USER} password \"{PASSWORD}\"\nmachine localhost login {USER} password \"{PASSWORD}\"\n"
        );
        fs::write(server.file(), text).expect("credentials");
        fs::set_permissions(server.file(), fs::Permissions::from_mode(0o600)).expect("mode");
        server.start_again();
        server
    }

    fn configure(&self, login: Login, tls: bool) {
        let at = self.folder.path();
        let mut modules =
            vec!["mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "dav", "dav_fs", "setenvif"];
        let (kind, line) = match login {
            Login::Basic => ("Basic", format!("{USER}:{{SHA}}{}", encode_block(&sha1(PASSWORD.as_bytes())))),
            Login::Digest => {
                let secret = hash(MessageDigest::md5(), format!("{USER}:test:{PASSWORD}").as_bytes()).expect("MD5");
                (
                    "Digest",
                    format!("{USER}:test:{}", secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
                )
            }
        };
        modules.push(if login == Login::Basic { "auth_basic" } else { "auth_digest" });
        fs::write(at.join("users"), line + "\n").expect("users");
        let mut more = String::new();
        if tls {
            modules.extend(["socache_shmcb", "ssl"]);
            make_certificate(&self.certificate(), &at.join("key.pem"));
            more = format!(
                "SSLEngine On\nSSLCertificateFile {0}/cert.pem\nSSLCertificateKeyFile {0}/key.pem\n",
                at.display()
            );
        }
        let modules: String =
            modules.iter().map(|name| format!("LoadModule {name}_module {MODULES}/mod_{name}.so\n")).collect();
        let (port, at) = (self.port, at.display());
        let text = format!(
            "{modules}ServerName localhost\nListen 127.0.0.1:{port}\nPidFile {at}/pid\nErrorLog {at}/log\nUser nobody\nGroup nogroup\n\
             DocumentRoot {at}/data\nDavLockDB {at}/locks/db\nKeepAliveTimeout 30\nMaxKeepAliveRequests 0\n{more}\
             <Directory {at}/data>\nDav On\nAuthType {kind}\nAuthName test\nAuth{kind}Provider file\nAuthUserFile {at}/users\n\
             Require valid-user\n</Directory>\n"
        );
        fs::write(self.folder.path().join("conf"), text).expect("configuration");
    }

    /// Lets the user only read, from the next start.
    pub fn forbid_writing(&self) {
        let path = self.folder.path().join("conf");
        let text = fs::read_to_string(&path).expect("configuration");
        let reading = "GET OPTIONS PROPFIND";
        let limited = format!(
            "<Limit {reading}>\nRequire valid-user\n</Limit>\n<LimitExcept {reading}>\nRequire all denied\n</LimitExcept>"
        );
        fs::write(path, text.replace("Require valid-user", &limited)).expect("configuration");
    }

    /// The folder that it serves.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The file with the password.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("netrc")
    }

    /// The file with the server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// The URL of a folder on the server, through the proxy.
    pub fn url(&self, path: &str) -> String {
        format!("webdav://127.0.0.1:{}/{path}", self.proxy.port())
    }

    /// The URL of a folder on the server, with TLS.
    pub fn tls_url(&self, path: &str) -> String {
        format!("webdavs://localhost:{}/{path}", self.port)
    }

    /// The location of a folder on the server, through the proxy.
    pub fn location(&self, path: &str) -> Location {
        let location: Location = self.url(path).parse().expect("location");
        location.with_remote(Remote { credentials: Some(Credentials::in_file(self.file())), ..Remote::default() })
    }

    /// A new folder on the server.
    pub fn new_folder(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("folder-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let path = self.data().join(&name);
        fs::create_dir(&path).expect("folder");
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("owner of the folder");
        name
    }

    /// The messages of the server.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("start") + &read("log")
    }
}

impl RemoteServer for Server {
    fn repository(&self) -> Location {
        self.location("repo")
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_CREDENTIALS", self.file());
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.data().join("repo"))
    }

    fn is_receiving(&self) -> bool {
        self.proxy.is_receiving("PUT", "/packs/")
    }

    fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut apache = Command::new(APACHE);
        // One process, so that its end is that of all.
        apache.arg("-X").arg("-d").arg(self.folder.path()).arg("-f").arg(self.folder.path().join("conf"));
        let log = fs::File::create(self.folder.path().join("start")).expect("log");
        apache.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(listening(&mut apache, self.port, || self.log()));
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
