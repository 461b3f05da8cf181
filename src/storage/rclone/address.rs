//! The address of a directory on a remote of rclone: `rclone:REMOTE:PATH`.

/// A directory on a remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// As rclone takes it: the name of a remote in its configuration, a colon, and a path.
    pub remote: String,
}

impl Address {
    /// Parses a location. The error says what is wrong, but does not repeat the location, which may have a secret in it.
    pub(in crate::storage) fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "write rclone:REMOTE:PATH, with a remote that `rclone config` has made";
        let remote = text.strip_prefix("rclone:").ok_or(FORM)?;
        // A remote without a name, with all of its settings, begins with a colon.
        let settings = remote.strip_prefix(':').unwrap_or(remote);
        let (name, _) = settings.split_once(':').ok_or(FORM)?;
        let name = name.to_ascii_lowercase();
        if name.is_empty() || name.starts_with('-') || name.contains('/') {
            return Err(FORM);
        }
        if name.contains(',') && ["pass", "secret", "token", "key", "auth"].iter().any(|word| name.contains(word)) {
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
            ("rclone::sftp,host=h,user=u,pass=hunter2:x", "secrets do not belong"),
            ("rclone:s3,secret_access_key=hunter2:x", "secrets do not belong"),
            ("rclone:a:hunter2\n", "control characters"),
        ] {
            let said = Address::parse(text).unwrap_err();
            assert!(said.contains(why) && !said.contains("hunter2"), "{text}: {said}");
        }
    }
}
