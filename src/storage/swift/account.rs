//! The login of an account: from the variables of OpenStack's programs, or from a file with such variables.

use std::fmt;

use crate::storage::remote::Remote;
use crate::storage::secret::{Credentials, Document, UNFIT};

/// How to log in, and which of the account's servers to use.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Account {
    /// Where to log in, without a slash at its end.
    pub(super) url: String,
    pub(super) secret: Secret,
    /// `None` for the first region.
    pub(super) region: Option<String>,
    /// `public`, `internal` or `admin`.
    pub(super) interface: String,
    /// Other users can read the file with the secret.
    pub(super) is_exposed: bool,
}

/// The secret of a login, and its owner.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// For version 1.
    Key { user: String, key: String },
    /// For version 3.
    Password { user: Name, password: String, project: Option<Name> },
    /// For version 3, in the project of the credential.
    Application { id: Named, secret: String },
}

/// An id, or a name in a domain.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Name {
    Id(String),
    In { domain: Named, name: String },
}

/// An id or a name.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Named {
    Id(String),
    /// With the user, for a credential.
    Name(String, Option<Box<Name>>),
}

impl Account {
    /// Looks the account up. `variable` returns environment variables. The error says what to do, and has no secret.
    pub(super) fn find(remote: &Remote, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let document = match &remote.credentials {
            None => return Account::of(variable, false),
            Some(Credentials::Document(secret)) => Document::given(secret, remote)?,
            Some(Credentials::AccessKey { .. } | Credentials::Password { .. }) => return Err(UNFIT.to_owned()),
        };
        // Lines such as `export NAME="value"`.
        let variables: Vec<_> = document.text.lines().filter_map(parse).collect();
        let in_document = |name: &str| {
            let mut found = variables.iter().rev();
            found.find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        Account::of(&in_document, document.is_exposed).map_err(|why| format!("{}: {why}", document.name))
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>, is_exposed: bool) -> Result<Self, String> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let needed = |name: &str| set(name).ok_or_else(|| format!("{name} is not set"));
        let region = set("OS_REGION_NAME");
        let interface = set("OS_INTERFACE").or_else(|| set("OS_ENDPOINT_TYPE")).unwrap_or_default();
        let interface = match interface.trim_end_matches("URL") {
            "" => "public".to_owned(),
            interface => interface.to_owned(),
        };
        let (url, secret) = if let Some(url) = set("OS_AUTH_URL") {
            let url = url.trim_end_matches('/');
            let url = match url.rsplit('/').next() {
                Some("v3") => url.to_owned(),
                Some("v2.0" | "v2" | "v1.0") => {
                    return Err("OS_AUTH_URL is that of another version than 3; write https://HOST:PORT/v3".to_owned());
                }
                _ => format!("{url}/v3"),
            };
            (url, Secret::find(&set)?)
        } else if let Some(url) = set("ST_AUTH") {
            (url.trim_end_matches('/').to_owned(), Secret::Key { user: needed("ST_USER")?, key: needed("ST_KEY")? })
        } else {
            return Err(
                "no login found; set OS_AUTH_URL, OS_USERNAME, OS_PASSWORD and OS_PROJECT_NAME, or ST_AUTH, ST_USER and ST_KEY, or \
                 write them to a file for --credentials"
                    .to_owned(),
            );
        };
        check(&url)?;
        if let Secret::Key { user, key } = &secret
            && [user, key].iter().any(|text| !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
        {
            return Err("ST_USER or ST_KEY has characters that a header cannot have".to_owned());
        }
        Ok(Account { url, secret, region, interface, is_exposed })
    }
}

impl Secret {
    fn find(set: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let domain = |prefix: &str| {
            let id = set(&format!("OS_{prefix}_DOMAIN_ID")).or_else(|| set("OS_DEFAULT_DOMAIN_ID")).map(Named::Id);
            let name = set(&format!("OS_{prefix}_DOMAIN_NAME")).or_else(|| set("OS_DEFAULT_DOMAIN_NAME"));
            let name = name.map(|name| Named::Name(name, None));
            id.or(name).unwrap_or_else(|| Named::Id("default".to_owned()))
        };
        let named = |prefix: &str, id: Option<String>, name: Option<String>| {
            id.map(Name::Id).or_else(|| Some(Name::In { domain: domain(prefix), name: name? }))
        };
        let user = named("USER", set("OS_USER_ID"), set("OS_USERNAME"));
        let credential = match (set("OS_APPLICATION_CREDENTIAL_ID"), set("OS_APPLICATION_CREDENTIAL_NAME")) {
            (Some(id), _) => Some(Named::Id(id)),
            (None, Some(name)) => Some(Named::Name(name, user.clone().map(Box::new))),
            (None, None) => None,
        };
        if let Some(id) = credential {
            let secret = set("OS_APPLICATION_CREDENTIAL_SECRET");
            return match (&id, secret) {
                (Named::Name(_, None), _) => Err("OS_USERNAME or OS_USER_ID is not set".to_owned()),
                (_, None) => Err("OS_APPLICATION_CREDENTIAL_SECRET is not set".to_owned()),
                (_, Some(secret)) => Ok(Secret::Application { id, secret }),
            };
        }
        let tenant = |name: &str| set(&format!("OS_PROJECT_{name}")).or_else(|| set(&format!("OS_TENANT_{name}")));
        Ok(Secret::Password {
            user: user.ok_or("OS_USERNAME is not set")?,
            password: set("OS_PASSWORD").ok_or("OS_PASSWORD is not set")?,
            project: named("PROJECT", tenant("ID"), tenant("NAME")),
        })
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").finish_non_exhaustive()
    }
}

/// Checks the URL of a server. The error does not repeat it, as it may have a password.
pub(super) fn check(url: &str) -> Result<(), String> {
    let wrong = || "the URL for the login is not valid; write https://HOST[:PORT]/PATH".to_owned();
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let host = rest.split('/').next().unwrap_or_default();
    let is_fit = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'@');
    if !matches!(scheme, "http" | "https") || host.is_empty() || !rest.bytes().all(is_fit) {
        return Err(wrong());
    }
    Ok(())
}

/// Parses a line. Other lines than those of variables do not count.
fn parse(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let (name, value) = line.split_once('=')?;
    let value = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value);
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (is_name && !name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Account, String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Account::find(&Remote::default(), &variable)
    }

    const PASSWORD: [(&str, &str); 3] =
        [("OS_AUTH_URL", "https://host:5000/"), ("OS_USERNAME", "me"), ("OS_PASSWORD", "hunter2")];

    #[test]
    fn both_versions_are_found_and_the_newer_comes_first() {
        let old = [("ST_AUTH", "http://host/auth/v1.0/"), ("ST_USER", "test:me"), ("ST_KEY", "hunter2")];
        let account = of(&old).unwrap();
        assert_eq!(account.url, "http://host/auth/v1.0");
        assert!(account.secret == Secret::Key { user: "test:me".into(), key: "hunter2".into() });
        let account =
            of(&[&PASSWORD[..], &old, &[("OS_PROJECT_NAME", "p"), ("OS_REGION_NAME", "r")]].concat()).unwrap();
        let text = |text: &str| text.to_owned();
        let default = Named::Id(text("default"));
        let user = Name::In { domain: default.clone(), name: text("me") };
        let project = Name::In { domain: default, name: text("p") };
        assert!(account.secret == Secret::Password { user, password: text("hunter2"), project: Some(project) });
        let found = (account.url.as_str(), account.region.as_deref(), account.interface.as_str());
        assert_eq!(found, ("https://host:5000/v3", Some("r"), "public"));
        assert!(!format!("{account:?}").contains("hunter2"));

        let more = [("OS_PROJECT_ID", "7"), ("OS_USER_DOMAIN_NAME", "d"), ("OS_INTERFACE", "internalURL")];
        let account = of(&[&PASSWORD[..], &more].concat()).unwrap();
        let user = Name::In { domain: Named::Name(text("d"), None), name: text("me") };
        let project = Some(Name::Id(text("7")));
        assert!(account.secret == Secret::Password { user, password: text("hunter2"), project });
        assert_eq!(account.interface, "internal");

        let credential =
            [PASSWORD[0], ("OS_APPLICATION_CREDENTIAL_ID", "c"), ("OS_APPLICATION_CREDENTIAL_SECRET", "s")];
        assert!(of(&credential).unwrap().secret == Secret::Application { id: Named::Id(text("c")), secret: text("s") });
    }

    #[test]
    fn what_is_missing_or_wrong_is_said_without_secrets() {
        let credential = ("OS_APPLICATION_CREDENTIAL_NAME", "c");
        for (variables, why) in [
            (&[][..], "set OS_AUTH_URL"),
            (&[("ST_AUTH", "https://h"), ("ST_KEY", "hunter2")], "ST_USER is not set"),
            (&[("ST_AUTH", "https://h"), ("ST_USER", "u"), ("ST_KEY", "hunter2\n")], "header"),
            (&[("ST_AUTH", "https://me:hunter2@h"), ("ST_USER", "u"), ("ST_KEY", "k")], "not valid"),
            (&[("ST_AUTH", "ftp://h"), ("ST_USER", "u"), ("ST_KEY", "k")], "not valid"),
            (&PASSWORD[..2], "OS_PASSWORD is not set"),
            (&[PASSWORD[0], PASSWORD[2]], "OS_USERNAME is not set"),
            (&[("OS_AUTH_URL", "https://host/v2.0")], "https://HOST:PORT/v3"),
            (&[PASSWORD[0], credential], "OS_USERNAME or OS_USER_ID is not set"),
            (&[PASSWORD[0], PASSWORD[1], credential], "OS_APPLICATION_CREDENTIAL_SECRET is not set"),
        ] {
            let said = of(variables).unwrap_err();
            assert!(said.contains(why) && !said.contains("hunter2"), "{variables:?}: {said}");
        }
    }

    #[test]
    fn a_file_with_variables_is_read_and_not_run() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "#!/bin/sh\nexport ST_AUTH=https://h/v1\n ST_USER='a b'\nexport ST_KEY=\"k=1\"\nread -s X; rm -rf $X\n\
                    ST_OLD=x # no\n";
        fs::write(file.path(), text).unwrap();
        let remote = Remote { credentials: Some(Credentials::in_file(file.path())), ..Remote::default() };
        let variables = |_: &str| Some("other".to_owned());
        let account = Account::find(&remote, &variables).unwrap();
        assert!(account.secret == Secret::Key { user: "a b".into(), key: "k=1".into() });
        assert!(!account.is_exposed);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Account::find(&remote, &variables).unwrap().is_exposed);
        fs::write(file.path(), "").unwrap();
        let none = Account::find(&remote, &variables).unwrap_err();
        assert!(none.contains(file.path().to_str().unwrap()) && none.contains("no login found"), "{none}");
        let missing = Remote { credentials: Some(Credentials::in_file("/nonexistent")), ..Remote::default() };
        assert!(Account::find(&missing, &variables).unwrap_err().contains("cannot read /nonexistent"));
    }
}
