//! The address of a directory on an SFTP server: `sftp://[USER@]HOST[:PORT]/PATH`.

use crate::storage::url::{Authority, decode};

/// A directory on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The user; `None` for the one that ssh chooses.
    pub user: Option<String>,
    /// The name or the address of the machine, or a `Host` of ssh's configuration.
    pub host: String,
    /// The port; `None` for the one that ssh chooses.
    pub port: Option<u16>,
    /// The path: absolute, or relative to the user's home directory.
    pub path: String,
}

impl Address {
    /// Parses a URL. The error says what is wrong, but does not repeat the URL, which may have a password in it.
    pub(in crate::storage) fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("sftp://").ok_or("write sftp://HOST/PATH")?;
        let (authority, path) = rest.split_once('/').ok_or("the path is missing: write sftp://HOST/PATH")?;
        let Authority { user, host, port } =
            Authority::parse(authority, "sftp://[USER@]HOST/PATH", "let ssh log in with a key or an agent")?;
        let path = decode(path)?;
        if path.contains('\0') {
            return Err("the path is not valid".to_owned());
        }
        let path = match path.strip_prefix('~') {
            Some("" | "/") => ".".to_owned(),
            Some(below) if below.starts_with('/') => below.trim_matches('/').to_owned(),
            _ => format!("/{}", path.trim_matches('/')),
        };
        Ok(Address { user, host, port, path })
    }

    /// The path of an object, or of a folder.
    pub(super) fn path_of(&self, name: &str) -> String {
        format!("{}/{}", self.path.trim_end_matches('/'), name.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> Result<Address, String> {
        Ok(Address { user: user.map(str::to_owned), host: host.into(), port, path: path.into() })
    }

    #[test]
    fn paths_are_absolute_or_below_the_home_directory() {
        for (url, path) in [
            ("sftp://host/srv/backup", "/srv/backup"),
            ("sftp://host//srv/backup/", "/srv/backup"),
            ("sftp://host/", "/"),
            ("sftp://host/~/backup", "backup"),
            ("sftp://host/~", "."),
            ("sftp://host/~other/backup", "/~other/backup"),
            ("sftp://host/with%20space%25", "/with space%"),
        ] {
            assert_eq!(Address::parse(url), address(None, "host", None, path), "{url}");
        }
        let root = Address::parse("sftp://host/").unwrap();
        assert_eq!(root.path_of("packs/"), "/packs");
        assert_eq!(Address::parse("sftp://host/~").unwrap().path_of("packs/ab"), "./packs/ab");
    }

    #[test]
    fn users_hosts_and_ports_are_parsed() {
        for (url, user, host, port) in [
            ("sftp://me@host/x", Some("me"), "host", None),
            ("sftp://me@host:2222/x", Some("me"), "host", Some(2222)),
            ("sftp://me%40corp@host/x", Some("me@corp"), "host", None),
            ("sftp://me@corp@host/x", Some("me@corp"), "host", None),
            ("sftp://[::1]:22/x", None, "::1", Some(22)),
            ("sftp://[fe80::1%eth0]/x", None, "fe80::1%eth0", None),
        ] {
            assert_eq!(Address::parse(url), address(user, host, port, "/x"), "{url}");
        }
    }

    #[test]
    fn errors_never_repeat_the_url() {
        for (url, why) in [
            ("sftp://me:secret@host/x", "password"),
            ("sftp://me:secret@corp@host/x", "password"),
            ("sftp://:secret@host/x", "password"),
            ("sftp://host", "path is missing"),
            ("sftp:///x", "host is missing"),
            ("sftp://-oProxyCommand=x/x", "host is missing or not valid"),
            ("sftp://host:port/x", "port"),
            ("sftp://host:0/x", "port"),
            ("sftp://[::1/x", "]"),
            ("sftp://[::1]2/x", "port"),
            ("sftp://@host/x", "user"),
            ("sftp://host/50%", "percent"),
            ("sftp://host/%ff", "percent"),
            ("sftp://host/%+1", "percent"),
            ("sftp://host/%00", "path"),
        ] {
            let said = Address::parse(url).unwrap_err();
            assert!(said.contains(why) && !said.contains("secret"), "{url}: {said}");
        }
    }
}
