//! Session keys that are kept between runs, sealed to the key that found them out.
//!
//! Only where the user's gpg has that key: there each session key takes a process, and may take a passphrase or a
//! touch of a smart card. What is kept is a message like any other, so that one use of the key brings all of it back:
//!
//! ```text
//! PKESK SEIPD( literal( "brackfs session keys 1\n" { digest of packets, session key: 32 bytes each }… ) )
//! ```
//!
//! It is sealed to the very key that gpg used, taken from gpg, never to a certificate of the repository, which the target
//! could have exchanged. Whether that key has expired or was revoked does not matter: it opens nothing here that it could
//! not open before.
//!
//! Nothing depends on any of this. Whatever fails, session keys are asked for one by one.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use sequoia_openpgp::crypto::SessionKey;
use sequoia_openpgp::crypto::mem::Protected;

use super::gpg::Gpg;
use super::{Error, Fingerprint, Sealer};

/// Session keys by the digest of the packets that they were found in, the last used first.
pub(super) type Known = LruCache<blake3::Hash, Arc<SessionKey>>;

/// Session keys that are remembered; each takes about 150 bytes.
pub(super) const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// What the content begins with.
const HEADER: &[u8] = b"brackfs session keys 1\n";
const DIGEST: usize = blake3::OUT_LEN;
pub(super) const KEY: usize = 32;

/// Most bytes of content.
pub(super) const CONTENT: usize = HEADER.len() + REMEMBERED.get() * (DIGEST + KEY);
/// Most bytes that are taken from a store: there are an encrypted session key and tags beside the content.
const SEALED: usize = CONTENT + (8 << 10);

/// New session keys that are written down at once.
const MANY: usize = 64;
/// Fewer are written down so long after the last time, if one more comes, else at the end.
const LONG: Duration = Duration::from_secs(60);

/// Where sealed session keys are kept between runs.
pub trait KeyStore: Send + Sync {
    /// What was written last. None if there is nothing, if it is more than `limit` bytes, or if it can't be read.
    fn read(&self, limit: usize) -> Option<Vec<u8>>;

    /// Keeps `sealed` in the place of what there is. If that fails, the other stays.
    fn write(&self, sealed: &[u8]);
}

/// What is kept, and what is not yet.
pub(super) struct Kept {
    store: Box<dyn KeyStore>,
    recalled: bool,
    /// The key that gpg used last.
    owner: Option<Fingerprint>,
    new: usize,
    since: Instant,
}

impl Kept {
    pub(super) fn new(store: Box<dyn KeyStore>) -> Self {
        Kept { store, recalled: false, owner: None, new: 0, since: Instant::now() }
    }

    /// What an earlier run kept, the first time.
    pub(super) fn recall(&mut self) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.recalled, true) {
            true => None,
            false => self.store.read(SEALED),
        }
    }

    /// Another session key was found out with the key `owner`, as far as gpg told.
    pub(super) fn add(&mut self, owner: Option<Fingerprint>) {
        self.owner = owner.or(self.owner.take());
        self.new += 1;
    }

    /// Whether what is new should be written down now.
    pub(super) fn is_due(&self) -> bool {
        self.new >= MANY || (self.new > 0 && self.since.elapsed() >= LONG)
    }

    /// Writes down what is known, if there is anything new in it.
    pub(super) fn write(&mut self, gpg: &Gpg, known: impl FnOnce() -> Protected) {
        // Even if it fails: it would fail again at once.
        let new = std::mem::take(&mut self.new);
        self.since = Instant::now();
        if let Some(owner) = self.owner.as_ref().filter(|_| new > 0)
            && let Ok(sealed) = seal(gpg, owner, &known())
        {
            self.store.write(&sealed);
        }
    }
}

fn seal(gpg: &Gpg, owner: &Fingerprint, content: &[u8]) -> Result<Vec<u8>, Error> {
    let mut sealed = Vec::new();
    Sealer::to_key(&gpg.certificate(owner)?, owner)?.seal(content, &mut sealed)?;
    Ok(sealed)
}

/// The content for these. Each key has [`KEY`] bytes.
pub(super) fn encode(known: &Known) -> Protected {
    // It never moves, so that no copy is left behind.
    let mut content = Vec::with_capacity(HEADER.len() + known.len() * (DIGEST + KEY));
    content.extend(HEADER);
    for (digest, key) in known {
        content.extend(digest.as_bytes());
        content.extend(key.iter());
    }
    content.into()
}

/// Takes in what [`encode`] made; nothing if it is anything else.
pub(super) fn decode(content: &[u8], known: &mut Known) {
    let (records, []) = content.strip_prefix(HEADER).unwrap_or_default().as_chunks::<{ DIGEST + KEY }>() else {
        return;
    };
    // The last used ones are put in last.
    for record in records.iter().rev() {
        if let Some((digest, key)) = record.split_first_chunk::<DIGEST>() {
            known.put(blake3::Hash::from_bytes(*digest), Arc::new(SessionKey::from(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::{Opener, Profile, Role, SecretKey};

    fn known(numbers: impl Iterator<Item = u32>) -> Known {
        let mut known = Known::new(REMEMBERED);
        for number in numbers {
            let key = blake3::hash(&number.to_le_bytes());
            known.put(blake3::hash(key.as_bytes()), Arc::new(SessionKey::from(key.as_bytes().as_slice())));
        }
        known
    }

    fn decoded(content: &[u8]) -> Known {
        let mut known = Known::new(REMEMBERED);
        decode(content, &mut known);
        known
    }

    #[test]
    fn what_was_encoded_is_decoded_in_its_order() {
        for count in [0, 1, 5000] {
            let before = known(0..count);
            let content = encode(&before);
            assert!(content.len() <= CONTENT);
            let after = decoded(&content);
            assert!(before.iter().eq(after.iter()));
            assert_eq!(after.len(), REMEMBERED.get().min(count as usize));
        }
    }

    #[test]
    fn most_that_is_kept_is_no_more_than_what_is_read() {
        let content = encode(&known(0..5000));
        for profile in [Profile::Rfc9580, Profile::Rfc4880] {
            let key = SecretKey::generate(profile, "owner", Role::Owner, None).unwrap();
            let mut sealed = Vec::new();
            Sealer::new(&[key.certificate()]).unwrap().seal(&content, &mut sealed).unwrap();
            // The encrypted session key of an RSA key takes half a kilobyte more.
            assert!(sealed.len() + 1024 <= SEALED, "{}", sealed.len());
            let mut opened = Vec::new();
            Opener::new(key).unwrap().open(&sealed, CONTENT, &mut opened).unwrap();
            assert!(opened[..] == content[..]);
        }
    }

    #[test]
    fn anything_else_is_ignored() {
        let content = encode(&known(0..3));
        assert_eq!(decoded(&content).len(), 3);
        let other = [b"brackfs session keys 2\n", content.get(HEADER.len()..).unwrap()].concat();
        for wrong in [&[], &content[..content.len() - 1], &content[1..], &[&content[..], b"\n"].concat(), &other] {
            assert_eq!(decoded(wrong).len(), 0);
        }
    }

    #[test]
    fn many_new_ones_are_written_at_once_and_few_after_a_while() {
        struct Nowhere;
        impl KeyStore for Nowhere {
            fn read(&self, _limit: usize) -> Option<Vec<u8>> {
                Some(vec![])
            }
            fn write(&self, _sealed: &[u8]) {}
        }
        let mut kept = Kept::new(Box::new(Nowhere));
        assert_eq!((kept.recall(), kept.recall()), (Some(vec![]), None));
        let long_ago = Instant::now().checked_sub(LONG).unwrap();
        kept.since = long_ago;
        assert!(!kept.is_due());
        kept.add(None);
        assert!(kept.is_due());
        let nobody = Gpg::with("/nowhere/gpg", &[]);
        kept.write(&nobody, || unreachable!("nobody to seal it to"));
        for _ in 1..MANY {
            kept.add(None);
            assert!(!kept.is_due());
        }
        kept.add(None);
        assert!(kept.is_due());
    }
}
