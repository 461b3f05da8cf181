//! Session keys saved between runs, sealed to the key that decrypted them.
//!
//! This is done only if the user's gpg has that key: decrypting a session key then takes a process, and may take a
//! passphrase or a touch of a smart card. All session keys are saved in one message, so that loading them uses the key only
//! once:
//!
//! ```text
//! PKESK SEIPD( literal( "brackfs session keys 1\n" { digest of packets, session key: 32 bytes each }… ) )
//! ```
//!
//! It is sealed to the key that gpg used, exported from gpg. A certificate from the repository is never used, since an
//! attacker could have replaced it. The key may be expired or revoked: it could open all these messages anyway.
//!
//! All of this is best effort. On any failure, gpg is asked for each session key.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use sequoia_openpgp::crypto::SessionKey;
use sequoia_openpgp::crypto::mem::Protected;

use super::error::Error;
use super::fingerprint::Fingerprint;
use super::gpg::Gpg;
use super::seal::Sealer;

/// Session keys by the digest of their PKESK packets, the most recently used first.
pub(super) type SessionKeyCache = LruCache<blake3::Hash, Arc<SessionKey>>;

/// The number of cached session keys; each takes about 150 bytes.
pub(super) const CACHE_SIZE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The first line of the content.
const HEADER: &[u8] = b"brackfs session keys 1\n";
const DIGEST_SIZE: usize = blake3::OUT_LEN;
pub(super) const SESSION_KEY_SIZE: usize = 32;

/// The largest content, in bytes.
pub(super) const MAX_CONTENT: usize = HEADER.len() + CACHE_SIZE.get() * (DIGEST_SIZE + SESSION_KEY_SIZE);
/// The largest message read from a store, in bytes: the content, an encrypted session key and tags.
const MAX_SEALED: usize = MAX_CONTENT + (8 << 10);

/// The number of new session keys that are saved at once.
const SAVE_AFTER_KEYS: usize = 64;
/// After this time since the last save, the next new session key is saved as well. The rest is saved on drop.
const SAVE_AFTER_TIME: Duration = Duration::from_secs(60);

/// Storage for sealed session keys between runs.
pub trait KeyStore: Send + Sync {
    /// Returns the bytes written last. `None` if there are none, if they exceed `limit` bytes, or on a read error.
    fn read(&self, limit: usize) -> Option<Vec<u8>>;

    /// Replaces the stored bytes with `sealed`. On error, the old bytes stay.
    fn write(&self, sealed: &[u8]);
}

/// A store of session keys, and the state of saving to it.
pub(super) struct SavedSessionKeys {
    store: Box<dyn KeyStore>,
    loaded: bool,
    /// The key that gpg used last.
    owner: Option<Fingerprint>,
    /// The number of session keys that are not saved yet.
    new: usize,
    /// The time of the last save.
    since: Instant,
}

impl SavedSessionKeys {
    pub(super) fn new(store: Box<dyn KeyStore>) -> Self {
        SavedSessionKeys { store, loaded: false, owner: None, new: 0, since: Instant::now() }
    }

    /// Returns the sealed session keys of earlier runs; `None` from the second call on.
    pub(super) fn load_once(&mut self) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.loaded, true) {
            return None;
        }
        self.store.read(MAX_SEALED)
    }

    /// Counts a new session key, which was encrypted to `owner`; `None` if gpg did not report it.
    pub(super) fn add(&mut self, owner: Option<Fingerprint>) {
        self.owner = owner.or(self.owner.take());
        self.new += 1;
    }

    /// Whether new session keys should be saved now.
    pub(super) fn is_due(&self) -> bool {
        self.new >= SAVE_AFTER_KEYS || (self.new > 0 && self.since.elapsed() >= SAVE_AFTER_TIME)
    }

    /// Saves all session keys if any of them is new.
    pub(super) fn write(&mut self, gpg: &Gpg, known: impl FnOnce() -> Protected) {
        // Reset even on failure, so that it is not retried immediately.
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

/// Encodes session keys, each of which must have [`SESSION_KEY_SIZE`] bytes.
pub(super) fn encode(known: &SessionKeyCache) -> Protected {
    // Allocated once, so that no copy stays in memory.
    let mut content = Vec::with_capacity(HEADER.len() + known.len() * (DIGEST_SIZE + SESSION_KEY_SIZE));
    content.extend(HEADER);
    for (digest, key) in known {
        content.extend(digest.as_bytes());
        content.extend(key.iter());
    }
    content.into()
}

/// Adds the session keys from the output of [`encode`] to the cache. Ignores any other content.
pub(super) fn decode(content: &[u8], known: &mut SessionKeyCache) {
    let (records, []) =
        content.strip_prefix(HEADER).unwrap_or_default().as_chunks::<{ DIGEST_SIZE + SESSION_KEY_SIZE }>()
    else {
        return;
    };
    // Insert the most recently used last.
    for record in records.iter().rev() {
        if let Some((digest, key)) = record.split_first_chunk::<DIGEST_SIZE>() {
            known.put(blake3::Hash::from_bytes(*digest), Arc::new(SessionKey::from(key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::{KeyPurpose, Opener, Profile, SecretKey};

    fn known(numbers: impl Iterator<Item = u32>) -> SessionKeyCache {
        let mut known = SessionKeyCache::new(CACHE_SIZE);
        for number in numbers {
            let key = blake3::hash(&number.to_le_bytes());
            known.put(blake3::hash(key.as_bytes()), Arc::new(SessionKey::from(key.as_bytes().as_slice())));
        }
        known
    }

    fn decoded(content: &[u8]) -> SessionKeyCache {
        let mut known = SessionKeyCache::new(CACHE_SIZE);
        decode(content, &mut known);
        known
    }

    #[test]
    fn encoding_and_decoding_keeps_the_order() {
        for count in [0, 1, 5000] {
            let before = known(0..count);
            let content = encode(&before);
            assert!(content.len() <= MAX_CONTENT);
            let after = decoded(&content);
            assert!(before.iter().eq(after.iter()));
            assert_eq!(after.len(), CACHE_SIZE.get().min(count as usize));
        }
    }

    #[test]
    fn the_largest_saved_message_is_within_the_read_limit() {
        let content = encode(&known(0..5000));
        for profile in [Profile::Rfc9580, Profile::Rfc4880] {
            let key = SecretKey::generate(profile, "owner", KeyPurpose::Owner, None).unwrap();
            let mut sealed = Vec::new();
            Sealer::new(&[key.certificate()]).unwrap().seal(&content, &mut sealed).unwrap();
            // A session key encrypted to RSA takes half a kilobyte more.
            assert!(sealed.len() + 1024 <= MAX_SEALED, "{}", sealed.len());
            let mut opened = Vec::new();
            Opener::new(key).unwrap().open(&sealed, MAX_CONTENT, &mut opened).unwrap();
            assert!(opened[..] == content[..]);
        }
    }

    #[test]
    fn other_content_is_ignored() {
        let content = encode(&known(0..3));
        assert_eq!(decoded(&content).len(), 3);
        let other = [b"brackfs session keys 2\n", content.get(HEADER.len()..).unwrap()].concat();
        for wrong in [&[], &content[..content.len() - 1], &content[1..], &[&content[..], b"\n"].concat(), &other] {
            assert_eq!(decoded(wrong).len(), 0);
        }
    }

    #[test]
    fn many_new_keys_are_saved_at_once_and_few_after_a_while() {
        struct NullStore;
        impl KeyStore for NullStore {
            fn read(&self, _limit: usize) -> Option<Vec<u8>> {
                Some(vec![])
            }
            fn write(&self, _sealed: &[u8]) {}
        }
        let mut saved = SavedSessionKeys::new(Box::new(NullStore));
        assert_eq!((saved.load_once(), saved.load_once()), (Some(vec![]), None));
        let long_ago = Instant::now().checked_sub(SAVE_AFTER_TIME).unwrap();
        saved.since = long_ago;
        assert!(!saved.is_due());
        saved.add(None);
        assert!(saved.is_due());
        let missing = Gpg::with("/nowhere/gpg", &[]);
        saved.write(&missing, || unreachable!("there is no key to seal to"));
        for _ in 1..SAVE_AFTER_KEYS {
            saved.add(None);
            assert!(!saved.is_due());
        }
        saved.add(None);
        assert!(saved.is_due());
    }
}
