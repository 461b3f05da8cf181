//! The address of a repository in S3: `s3://BUCKET[/PREFIX]`.

/// The longest prefix in bytes. A key has at most 1024.
const LONGEST_PREFIX: usize = 800;

/// A bucket, and the common beginning of the repository's keys in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The name of the bucket.
    pub bucket: String,
    /// Without slashes at its ends; empty for the whole bucket.
    pub prefix: String,
}

impl Address {
    /// Parses a URL. The error says what is wrong, but does not repeat the URL, which may have a secret in it.
    pub(in crate::storage) fn parse(url: &str) -> Result<Self, &'static str> {
        let rest = url.strip_prefix("s3://").ok_or("write s3://BUCKET/PREFIX")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if rest.contains('@') || bucket.contains(':') {
            return Err(
                "keys do not belong in a location, where other users and logs can see them, and a server is given with \
                 --endpoint: write s3://BUCKET/PREFIX",
            );
        }
        let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if !(3..=255).contains(&bucket.len()) || !bucket.chars().all(is_fit) || bucket.starts_with(['.', '-']) {
            return Err("the bucket is missing or not valid: write s3://BUCKET/PREFIX");
        }
        let prefix = prefix.trim_matches('/');
        if prefix.contains(['?', '#']) || prefix.chars().any(char::is_control) {
            return Err(
                "a prefix has no question marks, number signs or control characters; options are given as flags",
            );
        }
        // Proxies and libraries may take these for parts of a path.
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("the prefix has an empty part, . or ..");
        }
        if prefix.len() > LONGEST_PREFIX {
            return Err("the prefix is too long");
        }
        Ok(Address { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The key of an object, or the beginning of keys.
    pub(super) fn key_of(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_prefixes_are_parsed() {
        for (url, bucket, prefix, key) in [
            ("s3://bucket", "bucket", "", "packs/ab"),
            ("s3://bucket/", "bucket", "", "packs/ab"),
            ("s3://my.bucket-1/a", "my.bucket-1", "a", "a/packs/ab"),
            ("s3://bucket//a/b c%20/", "bucket", "a/b c%20", "a/b c%20/packs/ab"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!((address.bucket.as_str(), address.prefix.as_str()), (bucket, prefix), "{url}");
            assert_eq!(address.key_of("packs/ab"), key);
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_repeating_it() {
        for (url, why) in [
            ("s3://", "bucket is missing"),
            ("s3:///prefix", "bucket is missing"),
            ("s3://id:secret@bucket/x", "keys do not belong"),
            ("s3://host:9000/bucket", "--endpoint"),
            ("s3://bucket/x?secret=1", "flags"),
            ("s3://bucket/a/../b", ".."),
            ("s3://bucket/a//b", "empty part"),
            ("s3://buck et/a", "not valid"),
        ] {
            let said = Address::parse(url).unwrap_err();
            assert!(said.contains(why) && !said.contains("secret"), "{url}: {said}");
        }
        assert!(Address::parse(&format!("s3://bucket/{}", "x".repeat(801))).unwrap_err().contains("too long"));
    }
}
