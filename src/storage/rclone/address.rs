//! The address of a directory on a remote of rclone: `rclone:REMOTE:PATH`.

const FORM: &str = "write rclone:REMOTE:PATH, with a remote that `rclone config` has made";
/// Parts of the names of settings with secrets.
const SECRETS: [&str; 13] = [
    "auth",
    "connection_string",
    "cookie",
    "cred",
    "grant",
    "header",
    "key",
    "mnemonic",
    "pass",
    "sas_url",
    "secret",
    "session",
    "token",
];

/// A directory on a remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// As rclone takes it: the name of a remote in its configuration, a colon, and a path.
    pub remote: String,
}

impl Address {
    /// Parses a location. The error says what is wrong, but does not repeat the location, which may have a secret in it.
    pub(in crate::storage) fn parse(text: &str) -> Result<Self, &'static str> {
        let remote = text.strip_prefix("rclone:").ok_or(FORM)?;
        // A remote without a name, with all of its settings, begins with a colon.
        let named = remote.strip_prefix(':').unwrap_or(remote);
        let end = named.find([',', ':']).ok_or(FORM)?;
        let (name, mut rest) = named.split_at_checked(end).ok_or(FORM)?;
        if name.is_empty() || name.starts_with('-') || name.contains('/') {
            return Err(FORM);
        }
        let mut has_secret = false;
        while let Some(setting) = rest.strip_prefix(',') {
            let (is_secret, after) = parse_setting(setting).ok_or(FORM)?;
            has_secret |= is_secret;
            rest = after;
        }
        if has_secret {
            return Err(
                "secrets do not belong in a location, where other users and logs can see them: make a remote with \
                 `rclone config`, and write rclone:REMOTE:PATH",
            );
        }
        if remote.chars().any(char::is_control) {
            return Err("the remote and the path have no control characters");
        }
        Ok(Address { remote: remote.trim_end_matches('/').to_owned() })
    }
}

/// Parses a setting such as `host=h` or `url="https://h:81"`, as rclone does. Returns whether it may have a secret, and the
/// text from the comma or the colon after it on.
fn parse_setting(text: &str) -> Option<(bool, &str)> {
    let (name, rest) = text.split_at_checked(text.find(['=', ',', ':'])?)?;
    let (value, rest) = match rest.strip_prefix('=') {
        None => ("", rest),
        Some(rest) => match rest.chars().next().filter(|first| matches!(first, '"' | '\'')) {
            None => rest.split_at_checked(rest.find([',', ':'])?)?,
            Some(quote) => {
                let quoted = rest.strip_prefix(quote)?;
                let mut at = 0;
                // A quote within the value is doubled.
                let end = loop {
                    let end = at + quoted.get(at..)?.find(quote)?;
                    if !quoted.get(end + 1..)?.starts_with(quote) {
                        break end;
                    }
                    at = end + 2;
                };
                (quoted.get(..end)?, quoted.get(end + 1..)?)
            }
        },
    };
    let name = name.to_ascii_lowercase();
    // A URL with a user may have a password, too.
    let is_secret = SECRETS.iter().any(|word| name.contains(word)) || (value.contains("//") && value.contains('@'));
    rest.starts_with([',', ':']).then_some((is_secret, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_taken_as_rclone_takes_them() {
        for (text, remote) in [
            ("rclone:b2:bucket/prefix/", "b2:bucket/prefix"),
            ("rclone:my remote:", "my remote:"),
            ("rclone::local:/srv/backup", ":local:/srv/backup"),
            ("rclone:drive,shared_with_me:folder", "drive,shared_with_me:folder"),
            ("rclone:drive,root_folder_id=keybase:a,pass=b", "drive,root_folder_id=keybase:a,pass=b"),
            ("rclone::webdav,url=\"http://h:81/a,b\":x", ":webdav,url=\"http://h:81/a,b\":x"),
            ("rclone::webdav,vendor='it''s: x',url='':x", ":webdav,vendor='it''s: x',url='':x"),
        ] {
            assert_eq!(Address::parse(text), Ok(Address { remote: remote.into() }), "{text}");
        }
    }

    #[test]
    fn errors_never_repeat_the_location() {
        for (text, why) in [
            ("rclone:hunter2", "REMOTE:PATH"),
            ("rclone:/hunter2", "REMOTE:PATH"),
            ("rclone:/a:hunter2", "REMOTE:PATH"),
            ("rclone::hunter2", "REMOTE:PATH"),
            ("rclone:-v:hunter2", "REMOTE:PATH"),
            ("rclone::sftp,host=h,user=hunter2", "REMOTE:PATH"),
            ("rclone::webdav,url=\"hunter2:x", "REMOTE:PATH"),
            ("rclone::webdav,url=\"x\"hunter2:x", "REMOTE:PATH"),
            ("rclone::sftp,host=h,user=u,pass=hunter2:x", "secrets do not belong"),
            ("rclone:s3,secret_access_key=hunter2:x", "secrets do not belong"),
            ("rclone::webdav,url=\"https://h:81\",pass=hunter2:x", "secrets do not belong"),
            ("rclone::webdav,url='a''b:c',Pass=hunter2:x", "secrets do not belong"),
            ("rclone::webdav,pass=\"hunter2:,:\":x", "secrets do not belong"),
            ("rclone::webdav,url=\"https://me:hunter2@h\":x", "secrets do not belong"),
            ("rclone::gcs,service_account_credentials={hunter2}:x", "secrets do not belong"),
            ("rclone::azureblob,sas_url=hunter2:x", "secrets do not belong"),
            ("rclone::iclouddrive,cookies=hunter2:x", "secrets do not belong"),
            ("rclone::storj,access_grant=hunter2:x", "secrets do not belong"),
            ("rclone:a:hunter2\n", "control characters"),
        ] {
            let said = Address::parse(text).unwrap_err();
            assert!(said.contains(why) && !said.contains("hunter2"), "{text}: {said}");
        }
    }
}
