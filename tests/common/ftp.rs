//! Real FTP servers for tests, on a free port of the loopback interface: ProFTPD and vsftpd, in the clear or with TLS, which
//! then demand that data connections continue the TLS session of their control connection.
//!
//! ```text
//! <server>/base/data/    the files that it serves; they belong to the user of sessions, which see `base` as their root
//! <server>/netrc         the login, as for `--credentials`
//! ```

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use brackfs::storage::{Credentials, Location, Remote};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::machine::make_certificate;
use super::remote::{RemoteServer, uploads_below};
use super::sftp::{below, end, end_all, free_port, listening};
use super::{NOBODY, mounts_below, unmount};

/// Where `scripts/setup --tests` unpacks the servers.
const UNPACKED: &str = "/var/cache/brackfs-tests/ftp";

/// The user that logs in. To vsftpd it is anonymous, with a list of passwords.
pub const USER: &str = "ftp";
pub const PASSWORD: &str = "correct-horse";

/// The number of the user `daemon` in Debian. vsftpd enters the home directory of its user, and that of `nobody` is missing.
const DAEMON: u32 = 1;

/// The server programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Lists folders with MLSD.
    ProFtpd,
    /// Does not know MLSD. Its LIST shows hidden files only with the option `-a`.
    Vsftpd,
}

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    Never,
    /// After the command AUTH TLS, which it demands.
    Explicit,
    /// At once. Only ProFTPD is set up for it.
    Implicit,
}

/// A running server. On drop, it is stopped with all its sessions.
pub struct Server {
    folder: TempDir,
    program: Program,
    tls: Tls,
    port: u16,
    /// `None` while it is stopped.
    listener: Option<Child>,
}

impl Server {
    /// ProFTPD without encryption.
    pub fn start() -> Server {
        Server::with(Program::ProFtpd, Tls::Never, "")
    }

    /// A server with more lines of configuration.
    pub fn with(program: Program, tls: Tls, options: &str) -> Server {
        let folder = TempDir::with_prefix("brackfs-ftp-").expect("temporary directory");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode of the server's folder");
        let mut server = Server { folder, program, tls, port: free_port(), listener: None };
        assert!(
            server.executable().exists(),
            "{} is missing: run scripts/setup --tests, which unpacks it",
            server.executable().display()
        );
        fs::create_dir_all(server.data()).expect("folder of data");
        fs::create_dir(server.at("empty")).expect("folder");
        let owner = server.owner();
        chown(server.data(), Some(owner), Some(owner)).expect("owner of the folder");
        make_certificate(&server.certificate(), &server.at("key.pem"));
        fs::set_permissions(server.at("key.pem"), fs::Permissions::from_mode(0o600)).expect("mode");
        server.accept(PASSWORD);
        server.log_in_with(PASSWORD);
        server.configure(options);
        server.start_again();
        server
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The number of the user of sessions.
    pub fn owner(&self) -> u32 {
        if self.program == Program::ProFtpd { NOBODY } else { DAEMON }
    }

    fn unpacked(&self) -> PathBuf {
        Path::new(UNPACKED).join(if self.program == Program::ProFtpd { "proftpd" } else { "vsftpd" })
    }

    fn executable(&self) -> PathBuf {
        self.unpacked().join(if self.program == Program::ProFtpd { "usr/sbin/proftpd" } else { "usr/sbin/vsftpd" })
    }

    /// The file with the server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.at("cert.pem")
    }

    /// Changes the password that the server accepts.
    pub fn accept(&self, password: &str) {
        fs::write(self.at("passwords"), format!("{password}\n")).expect("passwords");
        let hashed = Command::new("openssl").args(["passwd", "-6", password]).output().expect("openssl").stdout;
        let hashed = String::from_utf8(hashed).expect("hash");
        let line = format!("{USER}:{}:{NOBODY}:{NOBODY}::{}:/bin/sh\n", hashed.trim(), self.at("base").display());
        fs::write(self.at("passwd"), line).expect("passwd");
        fs::set_permissions(self.at("passwd"), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    /// Changes the password that clients use.
    pub fn log_in_with(&self, password: &str) {
        fs::write(self.credentials(), format!("machine 127.0.0.1 login {USER} password {password}\n")).expect("netrc");
        fs::set_permissions(self.credentials(), fs::Permissions::from_mode(0o600)).expect("mode");
    }

    /// The file with the login.
    pub fn credentials(&self) -> PathBuf {
        self.at("netrc")
    }

    /// Writes the configuration. It counts from the next start.
    pub fn configure(&self, options: &str) {
        let (port, at) = (self.port, self.folder.path().display());
        let (certificate, key) = (self.certificate(), self.at("key.pem"));
        let (certificate, key) = (certificate.display(), key.display());
        let modules = self.unpacked().join("usr/lib/proftpd");
        // Parts of the program in some releases of Debian.
        let parts = ["mod_ls", "mod_xfer"].into_iter().filter(|part| modules.join(format!("{part}.so")).exists());
        let loads: String = parts.map(|part| format!("LoadModule {part}.c\n")).collect();
        let mut text = match self.program {
            Program::ProFtpd => format!(
                "ModulePath {modules}\n{loads}ServerName test\nServerType standalone\nDefaultAddress 127.0.0.1\nPort {port}\nUser nobody\n\
                 Group nogroup\nUseIPv6 off\nWtmpLog off\nMaxInstances 100\nRequireValidShell off\nAuthPAM off\n\
                 AuthOrder mod_auth_file.c\nAuthUserFile {at}/passwd\nDefaultRoot ~\nUmask 022\nAllowOverwrite on\n\
                 AllowRetrieveRestart on\nPidFile {at}/pid\nScoreboardFile {at}/scoreboard\nSystemLog {at}/log\n\
                 TransferLog none\nExtendedLog {at}/commands ALL\nUseReverseDNS off\n",
                modules = modules.display()
            ),
            Program::Vsftpd => format!(
                "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nbackground=NO\nlocal_enable=NO\n\
                 anonymous_enable=YES\nsecure_email_list_enable=YES\nemail_password_file={at}/passwords\n\
                 anon_root={at}/base\nwrite_enable=YES\nanon_upload_enable=YES\nanon_mkdir_write_enable=YES\n\
                 anon_other_write_enable=YES\nanon_umask=022\nanon_world_readable_only=NO\nftp_username=daemon\n\
                 nopriv_user=nobody\nsecure_chroot_dir={at}/empty\nseccomp_sandbox=NO\nxferlog_enable=YES\n\
                 vsftpd_log_file={at}/commands\nlog_ftp_protocol=YES\nsyslog_enable=NO\n"
            ),
        };
        if self.tls != Tls::Never {
            text += &match self.program {
                Program::ProFtpd => format!(
                    "LoadModule mod_tls.c\nTLSEngine on\nTLSRequired on\nTLSProtocol TLSv1.2 TLSv1.3\n\
                     TLSECCertificateFile {certificate}\nTLSECCertificateKeyFile {key}\nTLSLog {at}/tls\n"
                ),
                Program::Vsftpd => format!(
                    "ssl_enable=YES\nallow_anon_ssl=YES\nforce_anon_logins_ssl=YES\nforce_anon_data_ssl=YES\n\
                     rsa_cert_file={certificate}\nrsa_private_key_file={key}\nssl_ciphers=HIGH\nrequire_ssl_reuse=YES\n\
                     debug_ssl=YES\n"
                ),
            };
        }
        if self.tls == Tls::Implicit {
            text += "TLSOptions UseImplicitSSL\n";
        }
        fs::write(self.at("configuration"), text + options + "\n").expect("configuration");
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

    /// The folder that it serves.
    pub fn data(&self) -> PathBuf {
        self.at("base/data")
    }

    /// The URL of a path below [`Server::data`].
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls == Tls::Never { "ftp" } else { "ftps" };
        format!("{scheme}://{USER}@127.0.0.1:{}/data/{path}", self.port)
    }

    /// Makes a folder below [`Server::data`] that no other caller gets.
    pub fn new_folder(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("folder-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let owner = self.owner();
        fs::create_dir(self.data().join(&name)).expect("folder");
        chown(self.data().join(&name), Some(owner), Some(owner)).expect("owner of the folder");
        name
    }

    /// How to reach it.
    pub fn remote(&self) -> Remote {
        let ca = (self.tls != Tls::Never).then(|| self.certificate());
        Remote { credentials: Some(Credentials::in_file(self.credentials())), ca, ..Remote::default() }
    }

    /// The location of a path below [`Server::data`].
    pub fn location(&self, path: &str) -> Location {
        let location: Location = self.url(path).parse().expect("location");
        location.with_remote(self.remote())
    }

    /// The commands and messages of the server.
    pub fn log(&self) -> String {
        let read = |name| fs::read(self.at(name)).unwrap_or_default();
        let all = ["output", "log", "tls", "commands"].map(read).concat();
        String::from_utf8_lossy(&all).into_owned()
    }
}

impl RemoteServer for Server {
    fn repository(&self) -> Location {
        self.location("repo")
    }

    fn connect(&self, command: &mut Command) {
        command.env("BRACKFS_CREDENTIALS", self.credentials());
        if let Some(ca) = self.remote().ca {
            command.env("BRACKFS_CA", ca);
        }
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.data().join("repo"))
    }

    fn is_receiving(&self) -> bool {
        !uploads_below(&self.data().join("repo")).is_empty()
    }

    fn start_again(&mut self) {
        assert!(self.listener.is_none(), "it runs already");
        let log = fs::File::options().create(true).append(true).open(self.at("output")).expect("log");
        let mut server = Command::new(self.executable());
        match self.program {
            Program::ProFtpd => server.args(["-n", "-c"]).arg(self.at("configuration")),
            Program::Vsftpd => server.arg(self.at("configuration")),
        };
        let libraries = fs::read_dir(self.unpacked().join("usr/lib")).expect("libraries");
        let libraries: Vec<_> = libraries.map(|entry| entry.expect("entry").path().display().to_string()).collect();
        server.env("LD_LIBRARY_PATH", libraries.join(":"));
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.listener = Some(listening(&mut server, self.port, || self.log()));
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
        self.stop();
        mounts_below(self.folder.path()).iter().for_each(|path| unmount(path));
    }
}
