//! Digests and identifiers.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use super::Error;

/// A BLAKE3 digest of plaintext.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// The first eight bytes as a number, for tables that are keyed by integers.
    pub fn head(&self) -> i64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        i64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// A digest out of exactly 32 bytes.
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

/// An identifier that is a random UUID.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(Uuid);

        impl $name {
            /// A new random identifier.
            pub fn random() -> Self {
                $name(Uuid::new_v4())
            }

            /// The identifier's 16 bytes, as they stand in CBOR.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The identifier of exactly 16 bytes.
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
                // One spelling only, so that a name cannot stand for two objects.
                if id.to_string() != text {
                    return Err(Error::malformed($what, "not in lower case with hyphens"));
                }
                Ok($name(id))
            }
        }
    };
}

uuid_id!(
    /// Names a repository; every signed document repeats it.
    RepositoryId,
    "repository id"
);
uuid_id!(
    /// Names a pack. Its first half is random, so that nothing has to be known before its first byte is written. The
    /// second half marks it as a pack of its run: see [`PackId::of_run`].
    PackId,
    "pack id"
);
uuid_id!(
    /// Names a source without saying what it is.
    SourceId,
    "source id"
);
uuid_id!(
    /// Names any other object that is written once: index, sums, secrets.
    ObjectId,
    "object id"
);
uuid_id!(
    /// Names one catalog, that is, one writer of a repository.
    CatalogId,
    "catalog id"
);

uuid_id!(
    /// Names one run that writes, so that it is known again and not taken for another one of its number.
    RunId,
    "run id"
);

impl PackId {
    /// A new identifier for a pack that `run` writes. It looks random to everyone who does not know the run's id.
    pub fn of_run(run: RunId) -> Self {
        PackId(marked(*Uuid::new_v4().as_bytes(), run))
    }

    /// Whether `run` made this identifier.
    pub fn is_of_run(&self, run: RunId) -> bool {
        marked(*self.as_bytes(), run) == self.0
    }
}

/// A version 4 UUID with the first half of `bytes`, and a second half that follows from that and the run.
fn marked(mut bytes: [u8; 16], run: RunId) -> Uuid {
    let (head, tail) = bytes.split_at_mut(8);
    let mut hasher = blake3::Hasher::new_derive_key("brackfs 2026-11-28 packs of a run");
    hasher.update(run.as_bytes()).update(head);
    hasher.finalize_xof().fill(tail);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// Names a snapshot: eight random bytes, written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId(pub [u8; 8]);

impl SnapshotId {
    /// A new random identifier.
    pub fn random() -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *Uuid::new_v4().as_bytes();
        // A version 4 UUID fixes four bits of byte 6; the other 60 are random.
        SnapshotId([a, b, c, d, e, f, g, h])
    }

    /// The identifier of exactly 8 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, Error> {
        bytes.try_into().map(SnapshotId).map_err(|_| Error::malformed("snapshot id", "not 8 bytes"))
    }

    /// The first eight digits, enough to tell snapshots apart by eye.
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
    fn a_run_knows_its_packs_and_no_others() {
        let [run, other] = [RunId::random(), RunId::random()];
        for _ in 0..100 {
            let pack = PackId::of_run(run);
            assert!(pack.is_of_run(run) && !pack.is_of_run(other));
            assert_eq!(pack.to_string().parse::<PackId>().unwrap(), pack);
            assert!(!PackId::random().is_of_run(run));
        }
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
