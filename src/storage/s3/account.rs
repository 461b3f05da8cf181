//! Keys, region and endpoint, found where other programs for S3 look for them.

use std::path::{Path, PathBuf};

use super::signature::AccessKey;
use crate::storage::remote::Remote;
use crate::storage::secret::{self, Credentials, Document, UNFIT, reveal};

/// The region if none is given.
const REGION: &str = "us-east-1";

/// How to reach an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) key: AccessKey,
    pub(super) region: String,
    /// A URL without a path; `None` for Amazon.
    pub(super) endpoint: Option<String>,
    /// Other users can read the file with the secret key.
    pub(super) is_exposed: bool,
}

/// The settings of a profile in a file.
#[derive(Debug, Default)]
struct Profile(Vec<(String, String)>);

impl Account {
    /// Looks the account up. `variable` returns environment variables. The error says what to do.
    pub(super) fn find(remote: &Remote, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let name = set("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
        let home = |file: &str| set("HOME").map(|home| PathBuf::from(home).join(".aws").join(file));
        let (mut keys, mut is_exposed, mut given) = (Profile::default(), false, None);
        match &remote.credentials {
            Some(Credentials::Document(document)) => {
                let document = Document::given(document, remote)?;
                (keys, is_exposed) = (Profile::parse(&document.text, &[&name]), document.is_exposed);
                let missing = || {
                    format!(
                        "{} has no aws_access_key_id and aws_secret_access_key for the profile {name}",
                        document.name
                    )
                };
                given = Some(keys.access_key().ok_or_else(missing)?);
            }
            Some(Credentials::AccessKey { id, secret, token }) => {
                let reveal = |secret| reveal(secret, remote);
                let token = token.as_ref().map(reveal).transpose()?;
                is_exposed = secret::is_exposed(secret);
                given = Some(AccessKey { id: reveal(id)?, secret: reveal(secret)?, token });
            }
            Some(Credentials::Password { .. }) => return Err(UNFIT.to_owned()),
            None => {
                let file = set("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from).or_else(|| home("credentials"));
                if let Some(file) = &file {
                    (keys, is_exposed) = Profile::read(file, &[&name])?;
                }
            }
        }
        let settings_file = set("AWS_CONFIG_FILE").map(PathBuf::from).or_else(|| home("config"));
        let (settings, settings_exposed) = match &settings_file {
            Some(file) if name == "default" => Profile::read(file, &["default", "profile default"])?,
            Some(file) => Profile::read(file, &[&format!("profile {name}")])?,
            None => (Profile::default(), false),
        };
        let from_variables = || -> Option<AccessKey> {
            Some(AccessKey {
                id: set("AWS_ACCESS_KEY_ID")?,
                secret: set("AWS_SECRET_ACCESS_KEY")?,
                token: set("AWS_SESSION_TOKEN"),
            })
        };
        // Given credentials are used alone. Otherwise variables come before files.
        let found = given.map(|keys| (keys, is_exposed)).or_else(|| {
            let from_files = || {
                let keys = keys.access_key().map(|keys| (keys, is_exposed));
                keys.or_else(|| settings.access_key().map(|keys| (keys, settings_exposed)))
            };
            from_variables().map(|keys| (keys, false)).or_else(from_files)
        });
        let missing = || {
            format!(
                "no access key found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them for the profile {name} to \
                 ~/.aws/credentials, or to a file for --credentials"
            )
        };
        let (key, is_exposed) = found.ok_or_else(missing)?;
        let fits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !fits(&key.id) || !fits(&key.secret) || key.token.as_deref().is_some_and(|t| !fits(t)) {
            return Err("the access key has characters that no key has; copy it again".to_owned());
        }
        let setting = |key: &str| keys.get(key).or_else(|| settings.get(key)).map(str::to_owned);
        let region = set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")).or_else(|| setting("region"));
        let region = region.unwrap_or_else(|| REGION.to_owned());
        if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
            return Err("the region is not valid; set AWS_REGION".to_owned());
        }
        let endpoint =
            remote.endpoint.clone().or_else(|| set("AWS_ENDPOINT_URL_S3")).or_else(|| set("AWS_ENDPOINT_URL"));
        let endpoint = endpoint.or_else(|| setting("endpoint_url"));
        let endpoint = endpoint.map(|url| parse_endpoint(&url).map_err(str::to_owned)).transpose()?;
        Ok(Account { key, region, endpoint, is_exposed })
    }
}

impl Profile {
    /// Reads the section with one of these names from a file, and whether other users can read the file. A missing file is
    /// empty.
    fn read(file: &Path, names: &[&str]) -> Result<(Profile, bool), String> {
        let document = Document::in_file(file, false)?.unwrap_or_default();
        Ok((Profile::parse(&document.text, names), document.is_exposed))
    }

    fn parse(text: &str, names: &[&str]) -> Profile {
        let (mut profile, mut inside) = (Profile::default(), false);
        for line in text.lines() {
            // An indented line belongs to a setting of another program.
            let is_nested = line.starts_with([' ', '\t']);
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
                let words: Vec<_> = name.split_whitespace().collect();
                inside = names.contains(&words.join(" ").as_str());
            } else if inside
                && !is_nested
                && let Some((key, value)) = line.split_once('=')
            {
                profile.0.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        profile
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    fn access_key(&self) -> Option<AccessKey> {
        Some(AccessKey {
            id: self.get("aws_access_key_id")?.to_owned(),
            secret: self.get("aws_secret_access_key")?.to_owned(),
            token: self.get("aws_session_token").map(str::to_owned),
        })
    }
}

/// Parses the URL of a server. The error does not repeat it, as it may have a password.
pub fn parse_endpoint(url: &str) -> Result<String, &'static str> {
    const WRONG: &str = "the endpoint is not valid: write https://HOST[:PORT]";
    let url = url.trim_end_matches('/');
    let (scheme, host) = url.split_once("://").ok_or(WRONG)?;
    if host.contains('@') {
        return Err("keys do not belong in the endpoint: write https://HOST[:PORT]");
    }
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(is_fit) {
        return Err(WRONG);
    }
    let (scheme, port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => ("http", ":80"),
        "https" => ("https", ":443"),
        _ => return Err(WRONG),
    };
    // Requests are signed with the host as it is sent, without the usual port.
    let host = host.to_ascii_lowercase();
    Ok(format!("{scheme}://{}", host.strip_suffix(port).unwrap_or(&host)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::secret::Secret;

    fn find(remote: &Remote, variables: &[(&str, &str)]) -> Result<Account, String> {
        Account::find(remote, &|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn variables_come_before_files_and_a_given_file_before_both() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        let aws = home.path().join(".aws");
        fs::create_dir(&aws).unwrap();
        let none = find(&Remote::default(), &[("HOME", path)]).unwrap_err();
        assert!(none.contains("AWS_ACCESS_KEY_ID") && none.contains("~/.aws/credentials"), "{none}");
        fs::write(
            aws.join("credentials"),
            "# keys\n[default]\naws_access_key_id = one\nAWS_SECRET_ACCESS_KEY=s1=\n\n[ other ]\naws_access_key_id=two\n\
             aws_secret_access_key=s2\naws_session_token=t2\n",
        )
        .unwrap();
        fs::write(
            aws.join("config"),
            "[default]\nregion = eu-1\n[profile other]\nregion=eu-2\nendpoint_url = https://Host:443/\ns3 =\n  region = no\n\
             [profile third]\naws_access_key_id=three\naws_secret_access_key=s3\n",
        )
        .unwrap();
        let of = |variables: &[(&str, &str)]| {
            let found = find(&Remote::default(), &[variables, &[("HOME", path)]].concat()).unwrap();
            (found.key.id, found.key.secret, found.key.token, found.region, found.endpoint)
        };
        let text = |text: &str| text.to_owned();
        assert_eq!(of(&[]), (text("one"), text("s1="), None, text("eu-1"), None));
        let other = (text("two"), text("s2"), Some(text("t2")), text("eu-2"), Some(text("https://host")));
        assert_eq!(of(&[("AWS_PROFILE", "other")]), other);
        assert_eq!(of(&[("AWS_PROFILE", "third")]).0, "three");
        let variables = [
            ("AWS_ACCESS_KEY_ID", "four"),
            ("AWS_SECRET_ACCESS_KEY", "s4"),
            ("AWS_DEFAULT_REGION", "eu-3"),
            ("AWS_ENDPOINT_URL", "http://h:81"),
        ];
        assert_eq!(of(&variables), (text("four"), text("s4"), None, text("eu-3"), Some(text("http://h:81"))));
        let given = home.path().join("given");
        fs::write(&given, "[default]\naws_access_key_id=five\naws_secret_access_key=s5").unwrap();
        let remote = Remote { credentials: Some(Credentials::in_file(&given)), ..Remote::default() };
        let found = find(&remote, &variables).unwrap();
        assert_eq!((found.key.id.as_str(), found.is_exposed), ("five", true));
        fs::set_permissions(&given, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!find(&remote, &variables).unwrap().is_exposed);
        let missing = find(&remote, &[("AWS_PROFILE", "none")]).unwrap_err();
        assert!(missing.contains("profile none"), "{missing}");
        fs::remove_file(&given).unwrap();
        assert!(find(&remote, &variables).unwrap_err().contains("cannot read"));

        // A given key is not combined with a token found elsewhere. Region and endpoint may be found elsewhere.
        let with = |credentials| Remote { credentials: Some(credentials), ..Remote::default() };
        let of = |credentials| find(&with(credentials), &[("HOME", path), ("AWS_SESSION_TOKEN", "t4")]);
        let command = |script: &str| Secret::Command(["sh", "-c", script].map(str::to_owned).to_vec());
        let secret = command("echo s6");
        let key = |secret: &Secret, token| Credentials::AccessKey {
            id: Secret::Plain("six".into()),
            secret: secret.clone(),
            token,
        };
        let found = of(key(&secret, None)).unwrap();
        assert_eq!((found.key.id.as_str(), found.key.secret.as_str(), found.key.token), ("six", "s6", None));
        assert_eq!((found.region.as_str(), found.is_exposed), ("eu-1", false));
        assert_eq!(of(key(&secret, Some(command("echo t6")))).unwrap().key.token.as_deref(), Some("t6"));
        let document = "printf '[default]\\naws_access_key_id=seven\\naws_secret_access_key=s7'";
        assert_eq!(of(Credentials::Document(command(document))).unwrap().key.id, "seven");
        for (wrong, why) in [
            (key(&command("echo s6; exit 1"), None), "sh failed (exit status: 1)"),
            (Credentials::Document(command("echo s6")), "the output of sh has no aws_access_key_id and"),
            (Credentials::Password { user: None, password: command("echo s6") }, "of another kind of target"),
        ] {
            let error = of(wrong).unwrap_err();
            assert!(error.contains(why) && !error.contains("s6"), "{error}");
        }
    }

    #[test]
    fn endpoints_are_urls_without_paths_and_keys() {
        for (url, endpoint) in [
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("HTTPS://Host.example:443/", "https://host.example"),
            ("http://[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(parse_endpoint(url).as_deref(), Ok(endpoint));
        }
        for url in
            ["", "host:9000", "ftp://host", "https://", "https://host/path", "https://me:secret@host", "http://a b"]
        {
            let why = parse_endpoint(url).unwrap_err();
            assert!(why.contains("https://HOST") && !why.contains("secret"), "{url}: {why}");
        }
    }
}
