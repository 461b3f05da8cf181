//! Parts of URLs.

use std::net::IpAddr;

/// The part of a URL that names a server: `[USER@]HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) user: Option<String>,
    /// A name or an address, that of IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

const PORT: &str = "the port is not a number from 1 to 65535";

impl Authority {
    /// Parses it. The error says to write `form` (`sftp://[USER@]HOST/PATH`), and `instead` of a password, and does not repeat
    /// the text, which may have one in it.
    pub(super) fn parse(text: &str, form: &str, instead: &str) -> Result<Self, String> {
        let (user, place) = match text.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, text),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err(format!(
                "a password does not belong in a location, where other users and logs can see it: {instead}, and write {form}"
            ));
        }
        let user = user.map(decode).transpose()?;
        let (host, port) = match place.strip_prefix('[') {
            // An IPv6 address.
            Some(place) => {
                let (host, port) = place.split_once(']').ok_or("the host has [ but no ]")?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(PORT)?) })
            }
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map(|port| port.parse().ok().filter(|port| *port != 0).ok_or(PORT)).transpose()?;
        // Programs would take the first for an option, and NUL cannot be passed on.
        let is_unfit = |text: &str| text.is_empty() || text.starts_with('-') || text.contains(['\0', ' ', '@']);
        if is_unfit(host) {
            return Err(format!("the host is missing or not valid: write {form}"));
        }
        if user.as_deref().is_some_and(|user| user.is_empty() || user.contains('\0')) {
            return Err(format!("the user is not valid: write {form}"));
        }
        Ok(Authority { user, host: host.to_owned(), port })
    }
}

/// Whether a host, without the brackets of IPv6, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Decodes `%20` and the like.
pub(super) fn decode(text: &str) -> Result<String, &'static str> {
    const WRONG: &str =
        "a percent sign is not followed by two hexadecimal digits of UTF-8; write %25 for the sign itself";
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(WRONG)?;
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or(WRONG)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| WRONG)
}

/// Encodes text for a path, or for a query without slashes.
pub(super) fn encode(text: &str, slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            b'/' if slashes => encoded.push('/'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_encoded_and_decoded() {
        assert_eq!(encode("a/b c+é~", true), "a/b%20c%2B%C3%A9~");
        assert_eq!(encode("a/b=&", false), "a%2Fb%3D%26");
        assert_eq!(decode("a%2Fb%3D%26+%c3%a9").unwrap(), "a/b=&+é");
        for text in ["50%", "%ff", "%+1", "%2"] {
            decode(text).unwrap_err();
        }
    }
}
