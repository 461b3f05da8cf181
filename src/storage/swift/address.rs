//! The address of a repository in OpenStack Swift: `swift://CONTAINER[/PREFIX]`.

/// The longest name of a container in bytes.
const LONGEST_CONTAINER: usize = 256;
/// The longest prefix in bytes. A name has at most 1024.
const LONGEST_PREFIX: usize = 800;

/// A container, and the common beginning of the repository's names in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The name of the container.
    pub container: String,
    /// Without slashes at its ends; empty for the whole container.
    pub prefix: String,
}

impl Address {
    /// Parses a URL. The error says what is wrong, but does not repeat the URL, which may have a secret in it.
    pub(in crate::storage) fn parse(url: &str) -> Result<Self, &'static str> {
        let rest = url.strip_prefix("swift://").ok_or("write swift://CONTAINER/PREFIX")?;
        let (container, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('@') || container.contains(':') {
            return Err(
                "a login does not belong in a location, where other users and logs can see it: set the ST_ or OS_ variables, and \
                 write swift://CONTAINER/PREFIX",
            );
        }
        if container.is_empty() || container.len() > LONGEST_CONTAINER || matches!(container, "." | "..") {
            return Err("the container is missing or not valid: write swift://CONTAINER/PREFIX");
        }
        if rest.contains(['?', '#']) || rest.chars().any(char::is_control) {
            return Err(
                "a location has no question marks, number signs or control characters; options are given as flags",
            );
        }
        let prefix = prefix.trim_matches('/');
        // Proxies and libraries may take these for parts of a path.
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("the prefix has an empty part, . or ..");
        }
        if prefix.len() > LONGEST_PREFIX {
            return Err("the prefix is too long");
        }
        Ok(Address { container: container.to_owned(), prefix: prefix.to_owned() })
    }

    /// The name of an object in the container, or the beginning of names.
    pub(super) fn name_of(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_prefixes_are_parsed() {
        for (url, container, prefix, name) in [
            ("swift://backups", "backups", "", "packs/ab"),
            ("swift://my backups/", "my backups", "", "packs/ab"),
            ("swift://backups//a/b c%20/", "backups", "a/b c%20", "a/b c%20/packs/ab"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.container.as_str(), address.prefix.as_str()), (container, prefix), "{url}");
            assert_eq!(address.name_of("packs/ab"), name);
        }
    }

    #[test]
    fn errors_never_repeat_the_url() {
        for (url, why) in [
            ("swift://", "container is missing"),
            ("swift:///prefix", "container is missing"),
            ("swift://..", "container is missing"),
            ("swift://user:secret@host/x", "a login does not belong"),
            ("swift://host:8080/x", "a login does not belong"),
            ("swift://backups/x?secret=1", "flags"),
            ("swift://backups/a/../b", ".."),
            ("swift://backups/a//b", "empty part"),
        ] {
            let said = Address::parse(url).unwrap_err();
            assert!(said.contains(why) && !said.contains("secret"), "{url}: {said}");
        }
        assert!(Address::parse(&format!("swift://backups/{}", "x".repeat(801))).unwrap_err().contains("too long"));
    }
}
