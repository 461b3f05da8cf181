//! Digests and identifiers.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::error::Error;

/// A BLAKE3 digest of plaintext.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// The first eight bytes as an integer, for database keys.
    pub fn head(&self) -> i64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        i64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// Makes a digest from exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Digest)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Digest(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The check of a stored block: the first eight bytes of the BLAKE3 digest of its stored bytes.
///
/// It detects accidents in the storage, one block at a time and without a secret key. Forgery is detected by the digests of
/// chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Check(pub [u8; 8]);

impl Check {
    /// Computes the check of a stored block.
    pub fn of(stored: &[u8]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(stored).as_bytes();
        Check([a, b, c, d, e, f, g, h])
    }
}

/// Defines an identifier that is a UUID.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(Uuid);

        impl $name {
            /// Generates a random identifier.
            pub fn random() -> Self {
                $name(Uuid::new_v4())
            }

            /// The identifier's 16 bytes, as encoded in CBOR.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Makes an identifier from exactly 16 bytes.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, Error> {
                Uuid::from_slice(bytes).map($name).map_err(|e| Error::malformed($what, e))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                let id = Uuid::try_parse(text).map_err(|e| Error::malformed($what, e))?;
                // Accept only one spelling, so that two object names cannot have the same id.
                if id.to_string() != text {
                    return Err(Error::malformed($what, "not in lower case with hyphens"));
                }
                Ok($name(id))
            }
        }
    };
}

uuid_id!(
    /// Identifies a repository. Part of every signed document.
    RepositoryId,
    "repository id"
);
uuid_id!(
    /// Identifies a pack. The first half is random, so that it does not depend on the content. The second half marks the
    /// pack as one of its run: see [`PackId::of_run`].
    PackId,
    "pack id"
);
uuid_id!(
    /// Identifies a source without revealing its name.
    SourceId,
    "source id"
);
uuid_id!(
    /// Identifies an object of `index/`, `sums/`, `secrets/`, `moved/`, `forgotten/` or `rewrapped/`.
    ObjectId,
    "object id"
);
uuid_id!(
    /// Identifies a catalog, and so a writer of a repository.
    CatalogId,
    "catalog id"
);

uuid_id!(
    /// Identifies a writing run, also among runs with the same number.
    RunId,
    "run id"
);

impl PackId {
    /// Generates an identifier for a pack of `run`. It looks random without the run's id.
    pub fn of_run(run: RunId) -> Self {
        PackId(marked(*Uuid::new_v4().as_bytes(), run))
    }

    /// Whether this identifier was generated for `run`.
    pub fn is_of_run(&self, run: RunId) -> bool {
        marked(*self.as_bytes(), run) == self.0
    }
}

impl RunId {
    /// Returns the name of the run in its temporary files. It does not reveal the run's id, which identifies its packs.
    pub fn writer(self) -> Uuid {
        let mut hasher = blake3::Hasher::new_derive_key("brackfs 2026-11-28 name of a run");
        let mut bytes = [0; 16];
        hasher.update(self.as_bytes()).finalize_xof().fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// Returns a version 4 UUID with the first half of `bytes`, and a second half derived from that and the run.
fn marked(mut bytes: [u8; 16], run: RunId) -> Uuid {
    let (head, tail) = bytes.split_at_mut(8);
    let mut hasher = blake3::Hasher::new_derive_key("brackfs 2026-11-28 packs of a run");
    hasher.update(run.as_bytes()).update(head);
    hasher.finalize_xof().fill(tail);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// Identifies a snapshot: eight random bytes, written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId(pub [u8; 8]);

impl SnapshotId {
    /// Generates a random identifier.
    pub fn random() -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *Uuid::new_v4().as_bytes();
        // A version 4 UUID fixes four bits of byte 6; the other 60 are random.
        SnapshotId([a, b, c, d, e, f, g, h])
    }

    /// Makes an identifier from exactly 8 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, Error> {
        bytes.try_into().map(SnapshotId).map_err(|_| Error::malformed("snapshot id", "not 8 bytes"))
    }

    /// The first eight digits, as shown to users.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for SnapshotId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let lower_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 16 || !lower_hex {
            return Err(Error::malformed("snapshot id", "not 16 hexadecimal digits in lower case"));
        }
        u64::from_str_radix(text, 16)
            .map(|n| SnapshotId(n.to_be_bytes()))
            .map_err(|e| Error::malformed("snapshot id", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_recognizes_only_its_own_packs() {
        let [run, other] = [RunId::random(), RunId::random()];
        for _ in 0..100 {
            let pack = PackId::of_run(run);
            assert!(pack.is_of_run(run) && !pack.is_of_run(other));
            assert_eq!(pack.to_string().parse::<PackId>().unwrap(), pack);
            assert!(!PackId::random().is_of_run(run));
        }
    }

    #[test]
    fn temporary_files_name_their_run_without_its_id() {
        let [run, other] = [RunId::random(), RunId::random()];
        assert_eq!(run.writer(), run.writer());
        assert_ne!(run.writer(), other.writer());
        assert_ne!(run.writer().as_bytes(), run.as_bytes());
    }

    #[test]
    fn ids_have_one_spelling() {
        let id = PackId::random();
        assert_eq!(id.to_string().parse::<PackId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<PackId>().is_err());
        assert!("".parse::<PackId>().is_err());
        let id = SnapshotId::random();
        assert_eq!(id.to_string().parse::<SnapshotId>().unwrap(), id);
        assert!("00000000000000G0".parse::<SnapshotId>().is_err());
        assert!("+000000000000000".parse::<SnapshotId>().is_err());
    }
}
