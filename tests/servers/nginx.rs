//! nginx as a WebDAV server, with its module dav-ext and without locks.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use brackfs::storage::{Credentials, Location, Remote};
use openssl::base64::encode_block;
use openssl::sha::sha1;
use tempfile::TempDir;

use crate::common::NOBODY;
use crate::common::http_proxy::Proxy;
use crate::common::remote::{MIB, NO_FILES, RemoteServer, RemoteSite, borrowed, many};
use crate::common::sftp::{end_all, free_port, listening};
use crate::common::{noise, run};

/// Unpacked by `scripts/setup --soak`.
const UNPACKED: &str = "/var/cache/brackfs-tests/nginx";

/// All methods that it has.
const METHODS: &str = "PUT DELETE MKCOL COPY MOVE";

const USER: &str = "tester";
const PASSWORD: &str = "pass phrase:1";

/// A running server. It ends with this.
pub struct Nginx {
    folder: TempDir,
    /// `None` while it is stopped.
    child: Option<Child>,
    port: u16,
    /// Requests go through it.
    pub proxy: Proxy,
}

impl Nginx {
    pub fn start() -> Nginx {
        Nginx::with("client_max_body_size 65m;", METHODS)
    }

    /// Starts a server with these lines of configuration and these methods.
    fn with(lines: &str, methods: &str) -> Nginx {
        let program = format!("{UNPACKED}/usr/sbin/nginx");
        assert!(
            fs::exists(&program).is_ok_and(|is| is),
            "{program} is missing: run scripts/setup --soak, which unpacks it"
        );
        let folder = TempDir::with_prefix("brackfs-nginx-").expect("temporary directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode of the server's folder");
        for name in ["data", "bodies"] {
            let path = folder.path().join(name);
            fs::create_dir(&path).expect("folder");
            chown(&path, Some(NOBODY), Some(NOBODY)).expect("owner of the folder");
        }
        let port = free_port();
        let mut server = Nginx { folder, child: None, port, proxy: Proxy::start(port) };
        fs::write(server.at("users"), format!("{USER}:{{SHA}}{}\n", encode_block(&sha1(PASSWORD.as_bytes()))))
            .expect("users");
        fs::write(server.file(), format!("machine 127.0.0.1 login {USER} password \"{PASSWORD}\"\n"))
            .expect("credentials");
        fs::set_permissions(server.file(), fs::Permissions::from_mode(0o600)).expect("mode");
        server.configure(lines, methods);
        server.start_again();
        server
    }

    /// Writes the configuration. It counts from the next start.
    fn configure(&self, lines: &str, methods: &str) {
        let at = self.folder.path().display();
        let text = format!(
            "load_module {UNPACKED}/usr/lib/nginx/modules/ngx_http_dav_ext_module.so;\nuser nobody nogroup;\ndaemon off;\n\
             master_process on;\nworker_processes 1;\npid {at}/pid;\nerror_log {at}/log;\nevents {{}}\nhttp {{\n\
             access_log off;\nclient_body_temp_path {at}/bodies;\nproxy_temp_path {at}/bodies;\nfastcgi_temp_path {at}/bodies;\n\
             uwsgi_temp_path {at}/bodies;\nscgi_temp_path {at}/bodies;\nserver {{\nlisten 127.0.0.1:{port};\nroot {at}/data;\n\
             auth_basic test;\nauth_basic_user_file {at}/users;\ndav_methods {methods};\ndav_ext_methods PROPFIND OPTIONS;\n\
             {lines}\n}}\n}}\n",
            port = self.port
        );
        fs::write(self.at("conf"), text).expect("configuration");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file with the password.
    fn file(&self) -> PathBuf {
        self.at("netrc")
    }

    fn url(&self, path: &str) -> String {
        format!("webdav://127.0.0.1:{}/{path}", self.proxy.port())
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.at(name)).unwrap_or_default();
        read("start") + &read("log")
    }
}

impl RemoteServer for Nginx {
    fn repository(&self) -> Location {
        let location: Location = self.url("repo").parse().expect("location");
        location.with_remote(Remote { credentials: Some(Credentials::in_file(self.file())), ..Remote::default() })
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_CREDENTIALS", self.file());
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.at("data/repo"))
    }

    fn is_receiving(&self) -> bool {
        self.proxy.is_receiving("PUT", "/packs/")
    }

    fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut nginx = Command::new(format!("{UNPACKED}/usr/sbin/nginx"));
        nginx.arg("-p").arg(self.folder.path()).arg("-c").arg(self.at("conf"));
        let log = fs::File::create(self.at("start")).expect("log");
        nginx.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(listening(&mut nginx, self.port, || self.log()));
    }

    fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end_all(child);
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}

promises!(super::Nginx::start);

#[test]
#[ignore = "scripts/soak runs it"]
fn no_secret_is_shown_and_refusals_say_what_to_do() {
    let remote = RemoteSite::ready(Nginx::start(), &borrowed(&many(1)));
    remote.no_secret_is_shown(&[PASSWORD, &encode_block(format!("{USER}:{PASSWORD}").as_bytes())]);
    let mut wrong = remote.bare(&["snapshots"]);
    wrong.env("WEBDAV_USER", USER).env("WEBDAV_PASSWORD", "hunter2");
    let wrong = run(wrong).code(1);
    assert!(wrong.stderr.contains("the server refuses the login; check the user and the password"), "{wrong}");
    let mut missing = remote.command(&["snapshots"]);
    missing.env("BRACKFS_REPOSITORY", remote.server.url("missing"));
    let missing = run(missing).code(10);
    assert!(missing.stderr.contains("no such file"), "{missing}");
    let certificate = remote.site.keys().join("owner.pub");
    let above = remote.brackfs(&["init", &remote.server.url("a/b"), "-r", certificate.to_str().unwrap()]).code(1);
    assert!(above.stderr.contains("the folder above it does not exist"), "{above}");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn a_limit_of_sizes_is_named() {
    // 1 MiB, if it is not configured.
    let remote = RemoteSite::ready(Nginx::with("", METHODS), &borrowed(&many(1)));
    let refused = remote.backup(&[]).code(1);
    assert!(refused.stderr.contains("raise its limit to at least 65 MiB"), "{refused}");
    assert!(!refused.stderr.contains("waiting for"), "{refused}");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn a_server_that_lacks_methods_is_not_used() {
    // Without dav_methods, only listings work.
    let remote = RemoteSite::new(Nginx::with("", "off"), &NO_FILES);
    let refused = remote.init().code(1);
    assert!(refused.stderr.contains("does not support WebDAV") && !refused.stderr.contains("waiting for"), "{refused}");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn a_user_that_may_only_read_can_restore_and_not_back_up() {
    let mut remote = RemoteSite::ready(Nginx::start(), &[("file", noise("file", MIB))]);
    remote.backup(&[]).ok();
    remote.server.stop();
    remote.server.configure("location / { limit_except GET PROPFIND { deny all; } }", METHODS);
    remote.server.start_again();
    remote.can_be_read_and_not_written("denies access");
}

#[test]
#[ignore = "scripts/soak runs it"]
fn init_accepts_only_an_empty_folder() {
    let remote = RemoteSite::new(Nginx::start(), &NO_FILES);
    let folder = remote.server.folder().unwrap();
    let put = || {
        fs::create_dir(&folder).unwrap();
        chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::write(folder.join("mine"), "mine").unwrap();
    };
    remote.init_accepts_only_an_empty_place(put, || fs::remove_file(folder.join("mine")).unwrap());
}
