//! Logging in: the header Authorization, as the server wants it.
//!
//! Of the ways that a server offers, Digest comes before Basic: it does not send the password. Basic is only used if the
//! connection is encrypted or stays on this machine.

use std::sync::{Mutex, MutexGuard, PoisonError};

use openssl::base64::encode_block;
use openssl::error::ErrorStack;
use openssl::hash::{MessageDigest, hash};

use super::failure::Failure;
use crate::storage::error::ErrorKind;
use crate::storage::netrc::Login;
use crate::storage::url::encode;

/// Names of unsupported ways that are shown.
const MOST_NAMES: usize = 4;

/// Logs in to a server.
#[derive(Debug)]
pub(super) struct Door {
    login: Option<Login>,
    /// Whether a password that is sent can be seen by the server only.
    is_private: bool,
    state: Mutex<State>,
}

/// The way to log in that the server wanted last.
#[derive(Debug, Default)]
struct State {
    way: Option<Way>,
    /// How often that has changed.
    round: u64,
    /// The server accepted it.
    works: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Basic,
    Digest(Digest),
}

/// A challenge of the server, and the number of answers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digest {
    realm: String,
    nonce: String,
    opaque: Option<String>,
    /// As the server named it; `None` for MD5.
    algorithm: Option<String>,
    has_quality: bool,
    own_nonce: String,
    count: u32,
}

/// A way to log in that a server offers.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Door {
    pub(super) fn new(login: Option<Login>, is_private: bool) -> Self {
        Door { login, is_private, state: Mutex::default() }
    }

    /// Whether other users can read the file with the password.
    pub(super) fn is_exposed(&self) -> bool {
        self.login.as_ref().is_some_and(|login| login.is_exposed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header for a request, and the round for [`Door::refused`].
    pub(super) fn header(&self, method: &str, target: &str) -> Result<(Option<String>, u64), Failure> {
        let mut state = self.state();
        let (round, Some(login)) = (state.round, &self.login) else { return Ok((None, state.round)) };
        let header = match &mut state.way {
            None => return Ok((None, round)),
            Some(Way::Basic) => {
                format!("Basic {}", encode_block(format!("{}:{}", login.user, login.password).as_bytes()))
            }
            Some(Way::Digest(digest)) => digest.answer(login, method, target).map_err(|e| {
                let why = format!("cannot answer the server's challenge: {e}; use webdavs:// and Basic login");
                Failure::new(ErrorKind::Refused, why)
            })?,
        };
        Ok((Some(header), round))
    }

    /// Notes that the server accepted a header of this round.
    pub(super) fn accepted(&self, round: u64) {
        let mut state = self.state();
        if state.round == round {
            state.works = true;
        }
    }

    /// Takes the challenges of an answer with the status 401 to a request of this round. `Ok` if the request should be made
    /// again.
    pub(super) fn refused(&self, round: u64, challenges: &[String]) -> Result<(), Failure> {
        let refused = |why: String| Err(Failure::new(ErrorKind::Refused, why));
        let Some(login) = &self.login else {
            return refused(
                "the server wants a login; set WEBDAV_USER and WEBDAV_PASSWORD, or write them to ~/.netrc or to a file for \
                 --credentials"
                    .to_owned(),
            );
        };
        let mut state = self.state();
        if state.round != round {
            // Another request has found out what the server wants.
            return Ok(());
        }
        let offers: Vec<_> = challenges.iter().flat_map(|text| parse(text)).collect();
        let is_stale = match &state.way {
            None => true,
            Some(Way::Basic) => false,
            // After a restart, some servers do not know their challenges, and do not say so.
            Some(Way::Digest(_)) => state.works || offers.iter().any(Challenge::is_stale),
        };
        if !is_stale {
            return refused(
                "the server refuses the login; check the user and the password in WEBDAV_USER and WEBDAV_PASSWORD, in ~/.netrc, \
                 or in the credentials"
                    .to_owned(),
            );
        }
        let digests = offers.iter().filter_map(|offer| offer.digest().transpose());
        let digests = digests.collect::<Result<Vec<_>, _>>();
        let digests = digests.map_err(|e| Failure::new(ErrorKind::Other, format!("no random bytes: {e}")))?;
        let offers_basic = offers.is_empty() || offers.iter().any(|offer| offer.scheme == "basic");
        let way = match digests.into_iter().max_by_key(|digest| digest.name().starts_with("SHA-256")) {
            Some(digest) => Way::Digest(digest),
            None if offers_basic && !self.is_private => {
                return refused(
                    "the server wants the password unencrypted (Basic login without TLS), and brackfs does not send it like \
                     that; use webdavs://, or let the server offer Digest login"
                        .to_owned(),
                );
            }
            None if offers_basic && login.user.contains(':') => {
                return refused(
                    "a user with a colon cannot log in to this server, which offers only Basic login".to_owned(),
                );
            }
            None if offers_basic => Way::Basic,
            None => {
                let names: Vec<_> = offers.iter().take(MOST_NAMES).map(|offer| offer.scheme.as_str()).collect();
                let names = names.join(", ");
                return refused(format!("the server offers neither Digest nor Basic login, only {names}"));
            }
        };
        *state = State { way: Some(way), round: round + 1, works: false };
        Ok(())
    }
}

impl Digest {
    /// Such as `MD5` or `SHA-256-SESS`.
    fn name(&self) -> String {
        self.algorithm.as_deref().unwrap_or("MD5").to_ascii_uppercase()
    }

    /// The header that answers the challenge for a request.
    fn answer(&mut self, login: &Login, method: &str, target: &str) -> Result<String, ErrorStack> {
        let name = self.name();
        let digest = if name.starts_with("SHA-256") { MessageDigest::sha256() } else { MessageDigest::md5() };
        let hex = |text: String| -> Result<String, ErrorStack> {
            Ok(hash(digest, text.as_bytes())?.iter().map(|byte| format!("{byte:02x}")).collect())
        };
        self.count = self.count.saturating_add(1);
        let Digest { realm, nonce, own_nonce, count, .. } = self;
        let mut secret = hex(format!("{}:{realm}:{}", login.user, login.password))?;
        if name.ends_with("-SESS") {
            secret = hex(format!("{secret}:{nonce}:{own_nonce}"))?;
        }
        let request = hex(format!("{method}:{target}"))?;
        let user = match login.user.is_ascii() {
            true => format!("username={}", quoted(&login.user)),
            false => format!("username*=UTF-8''{}", encode(&login.user, false)),
        };
        let mut header = format!("Digest {user}, realm={}, nonce={}, uri=\"{target}\"", quoted(realm), quoted(nonce));
        let response = match self.has_quality {
            true => {
                header.push_str(&format!(", qop=auth, nc={count:08x}, cnonce=\"{own_nonce}\""));
                hex(format!("{secret}:{nonce}:{count:08x}:{own_nonce}:auth:{request}"))?
            }
            false => hex(format!("{secret}:{nonce}:{request}"))?,
        };
        header.push_str(&format!(", response=\"{response}\""));
        if let Some(algorithm) = &self.algorithm {
            header.push_str(&format!(", algorithm={algorithm}"));
        }
        if let Some(opaque) = &self.opaque {
            header.push_str(&format!(", opaque={}", quoted(opaque)));
        }
        Ok(header)
    }
}

impl Challenge {
    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn is_stale(&self) -> bool {
        self.get("stale").is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The challenge, if it is one of a supported kind. The error is that of the random number generator.
    fn digest(&self) -> Result<Option<Digest>, getrandom::Error> {
        let algorithm = self.get("algorithm");
        let is_known = algorithm.is_none_or(|name| {
            matches!(name.to_ascii_uppercase().as_str(), "MD5" | "MD5-SESS" | "SHA-256" | "SHA-256-SESS")
        });
        let quality = self.get("qop");
        let is_fit = quality.is_none_or(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case("auth")));
        // A header has only such characters.
        let is_plain = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let all_plain = ["realm", "nonce", "opaque"].iter().filter_map(|name| self.get(name)).all(is_plain);
        let (Some(realm), Some(nonce)) = (self.get("realm"), self.get("nonce")) else { return Ok(None) };
        if self.scheme != "digest" || !is_known || !is_fit || !all_plain {
            return Ok(None);
        }
        Ok(Some(Digest {
            realm: realm.to_owned(),
            nonce: nonce.to_owned(),
            opaque: self.get("opaque").map(str::to_owned),
            algorithm: algorithm.map(str::to_owned),
            has_quality: quality.is_some(),
            own_nonce: format!("{:016x}", getrandom::u64()?),
            count: 0,
        }))
    }
}

/// A value in double quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Parses a header WWW-Authenticate, which may have several challenges.
fn parse(text: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    for part in split(text) {
        let part = part.trim();
        let (word, rest) = part.split_once([' ', '\t']).map_or((part, ""), |(word, rest)| (word, rest.trim_start()));
        let is_scheme = !word.contains('=') && !rest.starts_with('=');
        let parameter = if is_scheme { rest } else { part };
        if is_scheme && !word.is_empty() {
            let scheme = word.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(20);
            challenges
                .push(Challenge { scheme: scheme.collect::<String>().to_ascii_lowercase(), parameters: Vec::new() });
        }
        if let (Some(challenge), Some((name, value))) = (challenges.last_mut(), parameter.split_once('=')) {
            challenge.parameters.push((name.trim().to_ascii_lowercase(), unquoted(value.trim())));
        }
    }
    challenges
}

/// The parts between commas that are not in quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut is_quoted, mut is_escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"') else { return text.to_owned() };
    let (mut value, mut is_escaped) = (String::new(), false);
    for c in inner.chars() {
        match c {
            _ if is_escaped => {
                is_escaped = false;
                value.push(c);
            }
            '\\' => is_escaped = true,
            '"' => break,
            c => value.push(c),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str) -> Login {
        Login { user: user.into(), password: password.into(), is_exposed: false }
    }

    fn door(is_private: bool) -> Door {
        Door::new(Some(login("Mufasa", "Circle of Life")), is_private)
    }

    fn refused(door: &Door, round: u64, challenges: &[&str]) -> Result<(), String> {
        let challenges: Vec<_> = challenges.iter().map(|&text| text.to_owned()).collect();
        door.refused(round, &challenges).map_err(|failure| {
            assert_eq!(failure.kind, ErrorKind::Refused);
            assert!(!failure.why.contains("Circle of Life"));
            failure.why
        })
    }

    const MD5: &str = "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm=MD5, \
                       nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";

    /// The example of RFC 7616, section 3.9.1.
    #[test]
    fn the_documented_examples_are_answered_as_documented() {
        for (algorithm, response) in [
            ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
            ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ] {
            let challenge = parse(&MD5.replace("algorithm=MD5", &format!("algorithm={algorithm}")));
            let mut digest = challenge[0].digest().unwrap().unwrap();
            digest.own_nonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ".into();
            let header = digest.answer(&login("Mufasa", "Circle of Life"), "GET", "/dir/index.html").unwrap();
            assert!(header.contains(&format!("response=\"{response}\"")), "{header}");
            assert!(header.contains("nc=00000001") && header.contains("opaque=\"FQhe"), "{header}");
            let next = digest.answer(&login("Mufasa", "Circle of Life"), "GET", "/dir/index.html").unwrap();
            assert!(next.contains("nc=00000002") && !next.contains(response), "{next}");
        }
    }

    /// The example of RFC 2069 with its erratum, which has no quality of protection.
    #[test]
    fn old_servers_are_answered() {
        let challenge = parse("Digest realm=\"testrealm@host.com\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\"");
        let mut digest = challenge[0].digest().unwrap().unwrap();
        let header = digest.answer(&login("Mufasa", "CircleOfLife"), "GET", "/dir/index.html").unwrap();
        assert!(
            header.contains("response=\"1949323746fe6a43ef61f9606e7febea\"") && !header.contains("qop"),
            "{header}"
        );
    }

    #[test]
    fn the_strongest_way_is_chosen_and_the_password_is_never_sent_in_the_clear() {
        let chosen = |is_private: bool, challenges: &[&str]| {
            let door = door(is_private);
            assert_eq!(door.header("GET", "/").unwrap(), (None, 0));
            refused(&door, 0, challenges).map(|()| door.header("GET", "/").unwrap().0.unwrap())
        };
        let sha = MD5.replace("MD5", "SHA-256");
        let both = format!("Basic realm=\"a, b\", {MD5}");
        for is_private in [true, false] {
            assert!(chosen(is_private, &[&both]).unwrap().starts_with("Digest "));
            assert!(chosen(is_private, &["Basic realm=\"x\"", MD5, &sha]).unwrap().contains("algorithm=SHA-256"));
        }
        assert_eq!(chosen(true, &["Negotiate", "basic realm=\"x\""]).unwrap(), "Basic TXVmYXNhOkNpcmNsZSBvZiBMaWZl");
        assert!(chosen(true, &[]).unwrap().starts_with("Basic "));
        for challenges in [&["Basic realm=\"x\""][..], &[]] {
            assert!(chosen(false, challenges).unwrap_err().contains("use webdavs://"));
        }
        let other = "Digest realm=\"x\", nonce=\"y\", algorithm=SHA-512-256, Negotiate abc==, NTLM";
        assert!(chosen(true, &[other]).unwrap_err().contains("only digest, negotiate, ntlm"));
        assert!(chosen(false, &[&format!("{other}, Basic realm=x")]).unwrap_err().contains("webdavs"));
    }

    #[test]
    fn a_wrong_password_is_tried_once_and_an_old_challenge_is_answered_again() {
        let digest = door(false);
        refused(&digest, 0, &[MD5]).unwrap();
        assert!(refused(&digest, 1, &[MD5]).unwrap_err().contains("refuses the login"));
        refused(&digest, 1, &[&format!("{MD5}, stale=TRUE")]).unwrap();
        digest.accepted(2);
        refused(&digest, 1, &[MD5]).unwrap();
        refused(&digest, 2, &[MD5]).unwrap();
        assert!(refused(&digest, 3, &[MD5]).unwrap_err().contains("refuses the login"));
        let basic = door(true);
        refused(&basic, 0, &["Basic realm=x"]).unwrap();
        basic.accepted(1);
        assert!(refused(&basic, 1, &["Basic realm=x"]).unwrap_err().contains("refuses the login"));
        let without = Door::new(None, true);
        assert!(refused(&without, 0, &[MD5]).unwrap_err().contains("WEBDAV_PASSWORD"));
    }

    #[test]
    fn quotes_and_users_of_other_languages_are_written_as_the_standards_say() {
        let challenges = parse("Digest realm=\"a \\\"b\\\", c\", nonce=\"1\\\\2\" , qop=auth");
        let mut digest = challenges[0].digest().unwrap().unwrap();
        assert_eq!((digest.realm.as_str(), digest.nonce.as_str()), ("a \"b\", c", "1\\2"));
        let header = digest.answer(&login("Jäsøn", "x"), "GET", "/").unwrap();
        assert!(
            header.contains("username*=UTF-8''J%C3%A4s%C3%B8n, realm=\"a \\\"b\\\", c\", nonce=\"1\\\\2\""),
            "{header}"
        );
        for text in [
            "",
            ",",
            "=",
            "Digest",
            "Digest realm",
            "\"",
            "Digest realm=\"",
            "Digest realm=\"é\", nonce=\"x\"",
            "\\,\\",
        ] {
            assert!(parse(text).iter().all(|challenge| challenge.digest().unwrap().is_none()), "{text}");
        }
    }
}
