//! Logins of servers: from variables, or from a file in the format of netrc, which curl and ftp read as well.

use std::fmt;
use std::path::PathBuf;

use super::remote::Remote;
use super::secret::{Credentials, Document, UNFIT, is_exposed, reveal};

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
    /// Other users can read the file with the password.
    pub(super) is_exposed: bool,
}

/// An entry of a file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    /// `None` for the default entry.
    machine: Option<String>,
    user: Option<String>,
    password: Option<String>,
}

impl Login {
    /// Looks up the login for a server; `None` if there is none. `user` is that of the location, and `prefix` that of the
    /// variables, such as `FTP` for `FTP_USER` and `FTP_PASSWORD`. `variable` returns environment variables. The error says
    /// what to do, and never has a password.
    ///
    /// [`Remote::credentials`] come first and are then the only source. Otherwise it is the variables, and then
    /// the file of the variable `NETRC`, or else `~/.netrc`.
    pub(super) fn find(
        remote: &Remote,
        prefix: &str,
        host: &str,
        user: Option<&str>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Login>, String> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let [user_name, password_name] = ["USER", "PASSWORD"].map(|name| format!("{prefix}_{name}"));
        if let Some(credentials) = &remote.credentials {
            return Login::given(credentials, remote, host, user).and_then(Login::checked).map(Some);
        }
        let named = set(&user_name);
        // A password belongs to the user next to it.
        let is_meant = user.is_none() || named.is_none() || user == named.as_deref();
        let user = user.map(str::to_owned).or(named);
        if let Some(password) = set(&password_name).filter(|_| is_meant) {
            let missing = || format!("{password_name} is set, but no user; set {user_name}");
            return Login { user: user.ok_or_else(missing)?, password, is_exposed: false }.checked().map(Some);
        }
        let file =
            set("NETRC").map(PathBuf::from).or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".netrc")));
        let document = file.map(|file| Document::in_file(&file, false)).transpose()?.flatten();
        let found = document.map(|document| Login::find_in(&document, host, user.as_deref())).transpose()?.flatten();
        match (found, user) {
            (Some(login), _) => login.checked().map(Some),
            (None, Some(user)) => Err(format!(
                "no password found for {user} on {host}; set {password_name}, or write it to ~/.netrc or to a file for \
                 --credentials"
            )),
            (None, None) => Ok(None),
        }
    }

    fn given(credentials: &Credentials, remote: &Remote, host: &str, user: Option<&str>) -> Result<Login, String> {
        match credentials {
            Credentials::Document(secret) => {
                let document = Document::given(secret, remote)?;
                let missing = || {
                    let whose = user.map(|user| format!(" and the user {user}")).unwrap_or_default();
                    format!("{} has no login and password for the machine {host}{whose}", document.name)
                };
                Login::find_in(&document, host, user)?.ok_or_else(missing)
            }
            Credentials::Password { user: named, password } => {
                let named = named.as_ref().map(|named| reveal(named, remote)).transpose()?;
                let missing = || format!("the credentials have a password for {host}, but no user");
                let user = match (user, named) {
                    (Some(user), Some(named)) if user != named => {
                        return Err(format!("the credentials are those of the user {named}, not of {user}"));
                    }
                    (user, named) => named.or(user.map(str::to_owned)).ok_or_else(missing)?,
                };
                Ok(Login { user, is_exposed: is_exposed(password), password: reveal(password, remote)? })
            }
            Credentials::AccessKey { .. } => Err(UNFIT.to_owned()),
        }
    }

    fn find_in(document: &Document, host: &str, user: Option<&str>) -> Result<Option<Login>, String> {
        let failed = |why: &str| format!("cannot read {}: {why}", document.name);
        let fits = |entry: &Entry| {
            let is_machine = entry.machine.as_ref().is_none_or(|machine| machine.eq_ignore_ascii_case(host));
            let is_user = user.is_none() || entry.user.is_none() || entry.user.as_deref() == user;
            is_machine && is_user && entry.password.is_some()
        };
        let entry = parse(&document.text).map_err(failed)?.into_iter().find(fits);
        Ok(entry.and_then(|Entry { user: named, password, .. }| {
            Some(Login {
                user: named.or(user.map(str::to_owned))?,
                password: password?,
                is_exposed: document.is_exposed,
            })
        }))
    }

    /// Refuses characters that a line of a protocol cannot have.
    fn checked(self) -> Result<Login, String> {
        let fits = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        if fits(&self.user) && fits(&self.password) {
            return Ok(self);
        }
        Err("the user or the password is empty or has control characters".to_owned())
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// Parses the entries of a file. An entry for any machine ends the list.
fn parse(text: &str) -> Result<Vec<Entry>, &'static str> {
    const MISSING: &str = "a word at its end has no value";
    let (mut entries, mut rest): (Vec<Entry>, &str) = (Vec::new(), text);
    while let Some(word) = next_word(&mut rest)? {
        match word.as_str() {
            "machine" if entries.last().is_some_and(|last| last.machine.is_none()) => return Ok(entries),
            "machine" => {
                let machine = Some(next_word(&mut rest)?.ok_or(MISSING)?);
                entries.push(Entry { machine, ..Entry::default() });
            }
            "default" => entries.push(Entry::default()),
            "login" | "password" | "account" => {
                let value = next_word(&mut rest)?.ok_or(MISSING)?;
                let entry = entries.last_mut().ok_or("it does not begin with machine or default")?;
                match word.as_str() {
                    "login" => entry.user = Some(value),
                    "password" => entry.password = Some(value),
                    _ => {}
                }
            }
            // A macro ends with an empty line.
            "macdef" => rest = rest.split_once("\n\n").map_or("", |(_, after)| after),
            _ => return Err("it has a word that is not one of netrc; write a value with spaces between double quotes"),
        }
    }
    Ok(entries)
}

/// Takes the next word from `rest`: one between spaces, or in double quotes with backslashes. Lines that begin with a number
/// sign are comments.
fn next_word(rest: &mut &str) -> Result<Option<String>, &'static str> {
    let mut is_line_start = true;
    loop {
        let spaces = rest.len() - rest.trim_start().len();
        let (skipped, after) = rest.split_at(spaces);
        is_line_start |= skipped.contains('\n');
        *rest = after;
        if !(is_line_start && after.starts_with('#')) {
            break;
        }
        *rest = after.find('\n').map_or("", |end| &after[end..]);
        is_line_start = true;
    }
    if rest.is_empty() {
        return Ok(None);
    }
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        *rest = after;
        return Ok(Some(word.to_owned()));
    };
    let (mut word, mut is_escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if is_escaped => {
                is_escaped = false;
                word.push(match c {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    c => c,
                });
            }
            '\\' => is_escaped = true,
            '"' => {
                *rest = &quoted[at + 1..];
                return Ok(Some(word));
            }
            c => word.push(c),
        }
    }
    Err("a double quote is not closed")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::secret::Secret;

    fn entry(machine: Option<&str>, user: Option<&str>, password: Option<&str>) -> Entry {
        let [machine, user, password] = [machine, user, password].map(|text| text.map(str::to_owned));
        Entry { machine, user, password }
    }

    #[test]
    fn files_are_parsed() {
        let text = "# a comment machine x\nmachine one login me password s#1\n\n  # another\nmachine two\n\taccount a\n\tpassword \
                    \"a \\\"b\\\" \\\\c\"\nmacdef init\nmachine no\nlogin no\n\nmachine three login \"\"\ndefault login any password p\n\
                    machine late login l password p";
        let expected = [
            entry(Some("one"), Some("me"), Some("s#1")),
            entry(Some("two"), None, Some("a \"b\" \\c")),
            entry(Some("three"), Some(""), None),
            entry(None, Some("any"), Some("p")),
        ];
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), []);
        for (text, why) in [
            ("login me", "begin with"),
            ("machine", "no value"),
            ("machine x password", "no value"),
            ("machine x password hunter2 too", "not one of netrc"),
            ("machine x password \"hunter2", "not closed"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn a_given_file_comes_before_variables_and_these_before_netrc() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let path = home.path().to_str().unwrap();
        let find = |remote: &Remote, user: Option<&str>, variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                let home = [("HOME", path)];
                variables.iter().chain(&home).find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            Login::find(remote, "WEBDAV", "Host.example", user, &variable)
                .map(|found| found.map(|login| (login.user, login.password)))
        };
        let login = |user: &str, password: &str| Ok(Some((user.to_owned(), password.to_owned())));
        let none = Remote::default();
        assert_eq!(find(&none, None, &[]), Ok(None));
        let missing = find(&none, Some("me"), &[]).unwrap_err();
        assert!(missing.contains("set WEBDAV_PASSWORD") && missing.contains("~/.netrc"), "{missing}");

        write(".netrc", "machine host.EXAMPLE login one password p1\nmachine host.example login two password p2");
        assert_eq!(find(&none, None, &[]), login("one", "p1"));
        assert_eq!(find(&none, Some("two"), &[]), login("two", "p2"));
        assert_eq!(find(&none, None, &[("WEBDAV_USER", "two")]), login("two", "p2"));
        let variables = [("WEBDAV_USER", "three"), ("WEBDAV_PASSWORD", "p3")];
        assert_eq!(find(&none, None, &variables), login("three", "p3"));
        assert_eq!(find(&none, Some("three"), &variables), login("three", "p3"));
        assert_eq!(find(&none, Some("two"), &variables), login("two", "p2"), "that is not the password of two");
        assert_eq!(find(&none, Some("two"), &variables[1..]), login("two", "p3"));
        let without_user = find(&none, None, &variables[1..]).unwrap_err();
        assert!(without_user.contains("set WEBDAV_USER") && !without_user.contains("p3"), "{without_user}");

        let other = write("other", "default login four password p4");
        assert_eq!(find(&none, None, &[("NETRC", other.to_str().unwrap())]), login("four", "p4"));
        let given = Remote { credentials: Some(Credentials::in_file(&other)), ..Remote::default() };
        assert_eq!(find(&given, None, &variables), login("four", "p4"));
        write("other", "machine elsewhere login four password p4");
        let missing = find(&given, None, &variables).unwrap_err();
        assert!(missing.contains("no login and password for the machine Host.example"), "{missing}");
        write("other", "default login \"a\\nb\" password p4");
        assert!(find(&given, None, &[]).unwrap_err().contains("control characters"));
        fs::remove_file(&other).unwrap();
        assert!(find(&given, None, &variables).unwrap_err().contains("cannot read"));

        let command = |script: &str| Secret::Command(["sh", "-c", script].map(str::to_owned).to_vec());
        let with = |credentials| Remote { credentials: Some(credentials), ..Remote::default() };
        let password = |user: Option<&str>| {
            let user = user.map(|user| Secret::Plain(user.to_owned()));
            with(Credentials::Password { user, password: command("echo p5") })
        };
        assert_eq!(find(&password(Some("five")), None, &variables), login("five", "p5"));
        assert_eq!(find(&password(None), Some("me"), &variables), login("me", "p5"));
        let document = with(Credentials::Document(command("echo default login six password p6")));
        assert_eq!(find(&document, None, &variables), login("six", "p6"));
        for (wrong, user, why) in [
            (password(None), None, "a password for Host.example, but no user"),
            (password(Some("five")), Some("me"), "those of the user five, not of me"),
            (
                with(Credentials::Document(command("echo p5"))),
                None,
                "the output of sh: it has a word that is not one of netrc",
            ),
        ] {
            let error = find(&wrong, user, &variables).unwrap_err();
            assert!(error.contains(why) && !error.contains("p5"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_known_and_passwords_are_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "default login me password hunter2").unwrap();
        for (mode, is_exposed) in [(0o600, false), (0o640, true), (0o604, true)] {
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            let remote = Remote { credentials: Some(Credentials::in_file(file.path())), ..Remote::default() };
            let login = Login::find(&remote, "FTP", "host", None, &|_| None).unwrap().unwrap();
            assert_eq!((login.password.as_str(), login.is_exposed), ("hunter2", is_exposed));
            let password = Credentials::Password { user: None, password: Secret::File(file.path().to_owned()) };
            let remote = Remote { credentials: Some(password), ..Remote::default() };
            let by_part = Login::find(&remote, "FTP", "host", Some("me"), &|_| None).unwrap().unwrap();
            assert_eq!(by_part.is_exposed, is_exposed);
            assert!(!format!("{login:?}").contains("hunter2"));
        }
    }
}
