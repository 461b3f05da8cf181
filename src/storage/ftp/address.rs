//! The address of a directory on an FTP server: `ftp://[USER@]HOST[:PORT]/PATH`, or `ftps://…` for TLS.

use crate::storage::url::{Authority, decode};

/// The usual port of servers that begin with TLS at once.
const IMPLICIT: u16 = 990;
const USUAL: u16 = 21;

/// Whether and when a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Never.
    None,
    /// After the command `AUTH TLS`, before the login.
    Explicit,
    /// From the first byte on.
    Implicit,
}

/// A directory on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whether connections are encrypted.
    pub security: Security,
    /// The user; `None` for the one of the login that is found.
    pub user: Option<String>,
    /// The name or the address of the machine.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path: absolute, or relative to the directory after the login.
    pub path: String,
}

impl Address {
    /// Parses a URL. The error says what is wrong, but does not repeat the URL, which may have a password in it.
    pub(in crate::storage) fn parse(url: &str) -> Result<Self, String> {
        let scheme = if url.starts_with("ftps:") { "ftps" } else { "ftp" };
        let form = format!("{scheme}://[USER@]HOST/PATH");
        let rest = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
        let rest = rest.ok_or_else(|| format!("write {form}"))?;
        let (authority, path) = rest.split_once('/').ok_or_else(|| format!("the path is missing: write {form}"))?;
        let instead = "set FTP_PASSWORD, or write the password to ~/.netrc";
        let Authority { user, host, port } = Authority::parse(authority, &form, instead)?;
        let path = decode(path)?;
        // They would end a command.
        if [user.as_deref().unwrap_or_default(), &path].iter().any(|text| text.chars().any(char::is_control)) {
            return Err("the user and the path have no control characters".to_owned());
        }
        if path.split('/').any(|part| part == "..") {
            return Err("the path is written without ..".to_owned());
        }
        let path = match path.strip_prefix('~') {
            Some("" | "/") => ".".to_owned(),
            Some(below) if below.starts_with('/') => below.trim_matches('/').to_owned(),
            _ => format!("/{}", path.trim_matches('/')),
        };
        let port = port.unwrap_or(USUAL);
        let security = match (scheme, port) {
            ("ftp", _) => Security::None,
            (_, IMPLICIT) => Security::Implicit,
            _ => Security::Explicit,
        };
        Ok(Address { security, user, host, port, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_and_ports_say_when_tls_begins() {
        for (url, security, user, port, path) in [
            ("ftp://host/a/b/", Security::None, None, 21, "/a/b"),
            ("ftp://me@host:990/", Security::None, Some("me"), 990, "/"),
            ("ftps://me%40corp@host/~/b", Security::Explicit, Some("me@corp"), 21, "b"),
            ("ftps://me@corp@host:2121/~", Security::Explicit, Some("me@corp"), 2121, "."),
            ("ftps://host:990/b%20c", Security::Implicit, None, 990, "/b c"),
        ] {
            let expected =
                Address { security, user: user.map(str::to_owned), host: "host".into(), port, path: path.into() };
            assert_eq!(Address::parse(url), Ok(expected), "{url}");
        }
    }

    #[test]
    fn errors_never_repeat_the_url() {
        for (url, why) in [
            ("ftp://me:secret@host/x", "FTP_PASSWORD"),
            ("ftps://me:secret@host/x", "ftps://[USER@]HOST/PATH"),
            ("ftp://secret", "path is missing"),
            ("ftp://host/a%0d%0aDELE%20secret", "control characters"),
            ("ftp://a%0asecret@host/", "control characters"),
            ("ftp://host/secret/..", ".."),
        ] {
            let said = Address::parse(url).unwrap_err();
            assert!(said.contains(why) && !said.contains("secret"), "{url}: {said}");
        }
    }
}
