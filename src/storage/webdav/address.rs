//! The address of a folder on a WebDAV server: `webdav://[USER@]HOST[:PORT]/PATH`, or `webdavs://` for TLS.

use crate::storage::url::{Authority, decode, is_loopback};

/// A folder on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whether connections are encrypted.
    pub tls: bool,
    /// The user; `None` for the one of the variables or of netrc.
    pub user: Option<String>,
    /// The name or the address of the machine.
    pub host: String,
    /// The port; `None` for the usual one.
    pub port: Option<u16>,
    /// The path: empty, or with a slash at its beginning and none at its end.
    pub path: String,
}

impl Address {
    /// Parses a URL. The error says what is wrong, but does not repeat the URL, which may have a password in it.
    pub(in crate::storage) fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "webdavs://[USER@]HOST[:PORT]/PATH";
        let (tls, rest) = match url.strip_prefix("webdavs://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("webdav://").ok_or_else(|| format!("write {FORM}"))?),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let Authority { user, host, port } =
            Authority::parse(authority, FORM, "set WEBDAV_PASSWORD, or write it to ~/.netrc")?;
        let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if !host.chars().all(is_fit) {
            return Err(format!("the host is not valid: write {FORM}"));
        }
        if path.contains(['?', '#']) {
            return Err(
                "a path has no ? and #; write %3F and %23 for these characters, and options as flags".to_owned()
            );
        }
        let path = decode(path.trim_matches('/'))?;
        if path.chars().any(char::is_control) {
            return Err("the path is not valid".to_owned());
        }
        // Servers and proxies resolve these.
        if !path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("the path has an empty part, . or ..".to_owned());
        }
        let path = if path.is_empty() { path } else { format!("/{path}") };
        Ok(Address { tls, user, host: host.to_ascii_lowercase(), port, path })
    }

    /// The path of an object, or of a folder, whose name then ends in a slash or is empty.
    pub(super) fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// The server in URLs of HTTP.
    pub(super) fn server(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}")
    }

    /// Whether the server is on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        for (url, user, server, path) in [
            ("webdav://host/backup", None, "http://host", "/backup"),
            ("webdavs://me@Host.example:8443/a/b/", Some("me"), "https://host.example:8443", "/a/b"),
            ("webdavs://me%40corp@host//with%20space%25", Some("me@corp"), "https://host", "/with space%"),
            ("webdav://[::1]:80", None, "http://[::1]:80", ""),
            ("webdav://host/", None, "http://host", ""),
            ("webdav://host/a%3Fb", None, "http://host", "/a?b"),
        ] {
            let address = Address::parse(url).unwrap();
            let found = (address.user.as_deref(), address.server(), address.path.as_str());
            assert_eq!(found, (user, server.to_owned(), path), "{url}");
        }
        assert_eq!(Address::parse("webdav://host/a").unwrap().path_of("packs/"), "/a/packs/");
        assert_eq!(Address::parse("webdav://host").unwrap().path_of(""), "/");
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for (host, is) in [("localhost", true), ("127.1.2.3", true), ("[::1]", true), ("127.0.0.1.evil.example", false)]
        {
            assert_eq!(Address::parse(&format!("webdav://{host}/x")).unwrap().is_loopback(), is, "{host}");
        }
    }

    #[test]
    fn errors_never_repeat_the_url() {
        for (url, why) in [
            ("webdav://me:secret@host/x", "password"),
            ("webdavs://:secret@host/x", "password"),
            ("webdavs:///x", "host is missing"),
            ("webdavs://ho st/x", "host is missing or not valid"),
            ("webdavs://ho<st/x", "host is not valid"),
            ("webdavs://host:0/x", "port"),
            ("webdavs://host/x?secret", "%3F"),
            ("webdavs://host/a/../b", ".."),
            ("webdavs://host/a//b", "empty part"),
            ("webdavs://host/a/%2e%2e", ".."),
            ("webdavs://host/50%", "percent"),
            ("webdavs://host/%0d", "path"),
        ] {
            let said = Address::parse(url).unwrap_err();
            assert!(said.contains(why) && !said.contains("secret"), "{url}: {said}");
        }
    }
}
