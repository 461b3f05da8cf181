//! Where a target is, as users write it.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::remote::Remote;
use super::secret::Credentials;
use super::{ftp, rclone, s3, sftp, swift, webdav};
use crate::secret::Secret;

/// The location of a target: parsed once, on the command line, and handed down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    given: String,
    kind: LocationKind,
    remote: Remote,
}

/// The kinds of target that a location can name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocationKind {
    /// A directory on this machine.
    Directory(PathBuf),
    /// A directory on an FTP server.
    Ftp(ftp::Address),
    /// A directory on a remote of rclone.
    Rclone(rclone::Address),
    /// A directory on an SFTP server.
    Sftp(sftp::Address),
    /// A prefix in a bucket of S3.
    S3(s3::Address),
    /// A prefix in a container of OpenStack Swift.
    Swift(swift::Address),
    /// A folder on a WebDAV server.
    Webdav(webdav::Address),
}

/// A location that names no target of a supported kind. The text names a location to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LocationError(String);

impl Location {
    fn new(given: &str, kind: LocationKind) -> Self {
        Location { given: given.to_owned(), kind, remote: Remote::default() }
    }

    /// The kind of target, and where it is.
    pub fn kind(&self) -> &LocationKind {
        &self.kind
    }

    /// The directory, if the target is on this machine.
    pub fn directory(&self) -> Option<&Path> {
        match &self.kind {
            LocationKind::Directory(path) => Some(path),
            _ => None,
        }
    }

    /// The same location with other options for a target on another machine.
    #[must_use]
    pub fn with_remote(self, remote: Remote) -> Self {
        Location { remote, ..self }
    }

    /// How to use the target, if it is on another machine.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// A hash that differs for different targets: of the location, its options, the current directory, and the variables of
    /// the environment that choose a server or an account. Passwords are left out.
    pub fn identity(&self) -> String {
        let Remote { ssh, rclone, endpoint, credentials, ca, .. } = &self.remote;
        let mut hash = blake3::Hasher::new();
        let mut add = |part: &[u8]| {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part);
        };
        add(self.to_string().as_bytes());
        add(format!("{ssh:?} {rclone:?} {endpoint:?} {credentials:?} {ca:?}").as_bytes());
        // A path on a remote of rclone may be relative.
        add(std::env::current_dir().unwrap_or_default().as_os_str().as_bytes());
        let mut variables: Vec<_> = std::env::vars_os().filter(|(name, _)| chooses_account(name)).collect();
        if let Some(Secret::Variable(name)) = credentials.as_ref().and_then(Credentials::account) {
            variables.extend(std::env::var_os(name).map(|value| (name.into(), value)));
        }
        variables.sort_unstable();
        for (name, value) in &variables {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }

    /// The location as a word that could also be the name of something: a path without a slash.
    pub fn as_name(&self) -> Option<&str> {
        let is_word = matches!(self.kind, LocationKind::Directory(_)) && !self.given.contains(['/', '.']);
        is_word.then_some(self.given.as_str())
    }

    /// Whether the target is on another machine.
    pub fn is_remote(&self) -> bool {
        match self.kind {
            LocationKind::Directory(_) => false,
            LocationKind::Ftp(_)
            | LocationKind::Rclone(_)
            | LocationKind::Sftp(_)
            | LocationKind::S3(_)
            | LocationKind::Swift(_)
            | LocationKind::Webdav(_) => true,
        }
    }
}

impl FromStr for Location {
    type Err = LocationError;

    /// Parses a path or a URL. A colon before the first slash is how other programs name a machine or a service, so it is
    /// refused; `./` in front makes it a path. The error does not repeat a possible password.
    fn from_str(text: &str) -> Result<Self, LocationError> {
        let begins = |schemes: &[&str]| schemes.iter().any(|scheme| text.starts_with(scheme));
        let kind = if let Some(path) = text.strip_prefix("file://") {
            Ok(LocationKind::Directory(path.into()))
        } else if begins(&["ftp://", "ftps://"]) {
            ftp::Address::parse(text).map(LocationKind::Ftp)
        } else if begins(&["rclone:"]) {
            rclone::Address::parse(text).map(LocationKind::Rclone).map_err(str::to_owned)
        } else if begins(&["sftp://"]) {
            sftp::Address::parse(text).map(LocationKind::Sftp)
        } else if begins(&["s3://"]) {
            s3::Address::parse(text).map(LocationKind::S3).map_err(str::to_owned)
        } else if begins(&["swift://"]) {
            swift::Address::parse(text).map(LocationKind::Swift).map_err(str::to_owned)
        } else if begins(&["webdav://", "webdavs://"]) {
            webdav::Address::parse(text).map(LocationKind::Webdav)
        } else {
            match text.split('/').next().and_then(|head| head.split_once(':')) {
                None => Ok(LocationKind::Directory(text.into())),
                Some((place, _)) => Err(refusal(place, text)),
            }
        };
        kind.map(|kind| Location::new(text, kind)).map_err(LocationError)
    }
}

/// The error for a text that begins with the name of a machine or a service in the notation of other programs. Says what to
/// write instead.
fn refusal(place: &str, text: &str) -> String {
    let (is_service, help) = match place {
        "sftp" | "ssh" | "scp" => (true, "write sftp://[USER@]HOST[:PORT]/PATH"),
        "ftp" | "ftps" => (true, "write ftps://[USER@]HOST[:PORT]/PATH"),
        "s3" => (true, "write s3://BUCKET/PREFIX"),
        "swift" => (true, "write swift://CONTAINER/PREFIX"),
        "http" | "https" | "dav" | "davs" | "webdav" | "webdavs" => {
            (true, "write webdavs://[USER@]HOST/PATH for a WebDAV server")
        }
        "b2" | "gs" | "azure" | "rest" => (true, "make a remote with `rclone config`, and write rclone:REMOTE:PATH"),
        _ => (false, "for an SSH server, write sftp://[USER@]HOST[:PORT]/PATH"),
    };
    // A colon before the last at sign, other than that of the service, separates a user from a password. A user may also be a
    // token, but not that of an SSH server.
    let rest = text.get(if is_service { place.len() + 1 } else { 0 }..).unwrap_or_default();
    let has_tokens = is_service && !matches!(place, "sftp" | "ssh" | "scp");
    let shown = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains(':') || has_tokens => "a path that begins with ./".to_owned(),
        // A remote of rclone with its options, which may be a password.
        _ if place.is_empty() => "a path that begins with ./".to_owned(),
        _ => format!("./{text}"),
    };
    format!("this looks like a server or a service: {help}; for a local directory of this name, write {shown}")
}

impl From<&Path> for Location {
    /// The location of a directory, whatever characters are in its path.
    fn from(path: &Path) -> Self {
        Location::new(&path.display().to_string(), LocationKind::Directory(path.to_owned()))
    }
}

impl fmt::Display for Location {
    /// Writes the location as it was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.given)
    }
}

/// Whether an environment variable may select a server or an account. Passwords are not counted.
fn chooses_account(name: &OsStr) -> bool {
    const PROGRAMS: [&str; 6] = ["AWS_", "FTP_", "OS_", "RCLONE_", "ST_", "WEBDAV_"];
    const FILES: [&str; 4] = ["HOME", "NETRC", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME"];
    const SECRETS: [&str; 5] = ["PASS", "PASSWORD", "SECRET_ACCESS_KEY", "ST_KEY", "TOKEN"];
    let name = name.to_string_lossy();
    let is_listed = PROGRAMS.iter().any(|program| name.starts_with(program)) || FILES.contains(&&*name);
    is_listed && !SECRETS.iter().any(|secret| name.ends_with(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Location, LocationError> {
        text.parse()
    }

    #[test]
    fn paths_and_file_urls_are_directories_and_print_as_given() {
        for (text, path) in [
            ("/backup", "/backup"),
            ("relative/path", "relative/path"),
            ("file:///backup", "/backup"),
            ("./host:repo", "./host:repo"),
            ("a/b:c", "a/b:c"),
            ("", ""),
        ] {
            let location = parse(text).unwrap();
            assert_eq!(location.kind(), &LocationKind::Directory(path.into()));
            assert_eq!(location.to_string(), text);
        }
    }

    #[test]
    fn other_machines_and_services_are_refused_with_the_way_to_use_them() {
        for (text, help) in [
            ("ssh://host/repo", "write sftp://"),
            ("sftp:host:/repo", "write sftp://"),
            ("s3:bucket/repo", "write s3://"),
            ("ftp:host/repo", "write ftps://"),
            ("swift:bucket:/repo", "write swift://"),
            ("https://host/repo", "write webdavs://"),
            ("webdav:host/repo", "write webdavs://"),
            ("b2:bucket:repo", "write rclone:"),
            ("host:repo", "for an SSH server, write sftp://"),
            ("user@host:/repo", "for an SSH server, write sftp://"),
            ("sftp:user@host:/repo", "write sftp://"),
            ("ssh://user@host/repo", "write sftp://"),
        ] {
            let refused = parse(text).unwrap_err().to_string();
            assert!(refused.contains(help) && refused.ends_with(&format!("write ./{text}")), "{refused}");
        }
        for text in [
            "sftp://me:secret@host/repo",
            "s3://id:secret@bucket/repo",
            "ftp://me:secret@host/repo",
            "swift://me:secret@container/repo",
            "webdavs://me:secret@host/repo",
            "https://me:secret@host/repo",
            "https://me:sec/secret@host/repo",
            "sftp:me:secret@host:/repo",
            "sftp:me:secret@host/repo",
            ":sftp,host=host,user=me,pass=secret:/repo",
            "s3:id:secret@bucket/repo",
            "me:secret@host:/repo",
            "me:secret@corp@host:/repo",
            "sshfs://me:secret@host/repo",
            "https://secret@host/repo",
            "b2:secret@bucket",
        ] {
            assert!(!parse(text).unwrap_err().to_string().contains("secret"), "{text}");
        }
    }

    #[test]
    fn targets_with_other_options_have_other_identities() {
        let location = parse("s3://bucket/repo").unwrap();
        let with = |remote| parse("s3://bucket/repo").unwrap().with_remote(remote).identity();
        assert_eq!(location.identity(), with(Remote::default()));
        let others = [
            parse("s3://bucket/other").unwrap().identity(),
            with(Remote { endpoint: Some("https://host".into()), ..Remote::default() }),
            with(Remote { credentials: Some(Credentials::in_file("/keys")), ..Remote::default() }),
        ];
        // A user chooses an account, and a password does not.
        let [user, password] = ["HOME", "PATH"].map(|name| Secret::Variable(name.to_owned()));
        let by_variable = Credentials::Password { user: Some(user.clone()), password };
        assert_eq!(by_variable.account(), Some(&user));
        for (at, other) in others.iter().enumerate() {
            assert!(*other != location.identity() && !others[..at].contains(other), "{at}");
        }
    }

    #[test]
    fn variables_of_an_account_count_and_passwords_do_not() {
        let counts = |name: &str| chooses_account(OsStr::new(name));
        let accounts =
            ["AWS_PROFILE", "AWS_ACCESS_KEY_ID", "OS_AUTH_URL", "ST_USER", "WEBDAV_USER", "FTP_USER", "HOME"];
        assert!(accounts.into_iter().chain(["RCLONE_CONFIG", "RCLONE_CONFIG_KEYS_TYPE"]).all(counts));
        let others =
            ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OS_PASSWORD", "ST_KEY", "FTP_PASSWORD", "PATH", "LANG"];
        assert!(!others.into_iter().any(counts));
    }

    #[test]
    fn an_sftp_url_is_a_directory_on_a_server() {
        let location = parse("sftp://me@host:2222/repo").unwrap();
        let LocationKind::Sftp(address) = location.kind() else { panic!("{location:?}") };
        assert_eq!((address.user.as_deref(), address.host.as_str(), address.port), (Some("me"), "host", Some(2222)));
        assert!(location.is_remote() && !parse("/repo").unwrap().is_remote());
        assert_eq!(location.to_string(), "sftp://me@host:2222/repo");
    }

    #[test]
    fn an_ftp_url_is_a_directory_on_a_server() {
        for (text, security) in
            [("ftp://me@host/repo", ftp::Security::None), ("ftps://me@host/repo", ftp::Security::Explicit)]
        {
            let location = parse(text).unwrap();
            let LocationKind::Ftp(address) = location.kind() else { panic!("{location:?}") };
            assert_eq!((address.security, address.path.as_str()), (security, "/repo"));
            assert!(location.is_remote());
        }
    }

    #[test]
    fn a_remote_of_rclone_is_a_location() {
        let location = parse("rclone:b2:bucket/repo").unwrap();
        let LocationKind::Rclone(address) = location.kind() else { panic!("{location:?}") };
        assert_eq!(address.remote, "b2:bucket/repo");
        assert!(location.is_remote() && !parse("rclone:x").unwrap_err().to_string().contains("rclone:x"));
    }

    #[test]
    fn an_s3_url_is_a_prefix_in_a_bucket() {
        let location = parse("s3://bucket/a/b/").unwrap();
        let LocationKind::S3(address) = location.kind() else { panic!("{location:?}") };
        assert_eq!((address.bucket.as_str(), address.prefix.as_str()), ("bucket", "a/b"));
        assert!(location.is_remote());
        assert_eq!(location.to_string(), "s3://bucket/a/b/");
    }

    #[test]
    fn a_webdav_url_is_a_folder_on_a_server() {
        for (text, tls) in [("webdav://me@host:81/repo/", false), ("webdavs://me@host:81/repo/", true)] {
            let location = parse(text).unwrap();
            let LocationKind::Webdav(address) = location.kind() else { panic!("{location:?}") };
            assert_eq!((address.tls, address.path.as_str()), (tls, "/repo"));
            assert!(location.is_remote());
            assert_eq!(location.to_string(), text);
        }
    }

    #[test]
    fn a_swift_url_is_a_prefix_in_a_container() {
        let location = parse("swift://backups/a/b/").unwrap();
        let LocationKind::Swift(address) = location.kind() else { panic!("{location:?}") };
        assert_eq!((address.container.as_str(), address.prefix.as_str()), ("backups", "a/b"));
        assert!(location.is_remote());
        assert_eq!(location.to_string(), "swift://backups/a/b/");
    }
}
