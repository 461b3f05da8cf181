//! Session keys by the digest of their PKESK packets: cached in memory, and saved between runs.
//!
//! They are saved only if the user's gpg has the secret key: decrypting a session key then takes a process, and may take a
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
//! Saving rewrites the whole message, so the number of new keys that triggers it grows with the number of saved keys.
//!
//! All of this is best effort. On any failure, gpg is asked for each session key.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use blake3::Hash;
use lru::LruCache;
use sequoia_openpgp::crypto::SessionKey;
use sequoia_openpgp::crypto::mem::Protected;

use super::error::Error;
use super::fingerprint::Fingerprint;
use super::gpg::Gpg;
use super::seal::Sealer;

/// The maximum number of session keys in the cache, in the saved message and in a table: hourly backups of 30 years.
pub(super) const MAX_KEYS: NonZeroUsize = NonZeroUsize::new(1 << 18).unwrap();

/// The first line of the content.
const HEADER: &[u8] = b"brackfs session keys 1\n";
const DIGEST_SIZE: usize = blake3::OUT_LEN;
pub(super) const SESSION_KEY_SIZE: usize = 32;

/// The digest of the PKESK packets and the session key.
pub(super) type Record = [u8; DIGEST_SIZE + SESSION_KEY_SIZE];

/// The largest content, in bytes.
pub(super) const MAX_CONTENT: usize = HEADER.len() + MAX_KEYS.get() * size_of::<Record>();
/// The largest message read from a store, in bytes: the content, an encrypted session key and tags.
pub(super) const MAX_SEALED: usize = MAX_CONTENT + (8 << 10);

/// The fewest new session keys that are saved at once. If more are saved already, an eighth of their number.
const SAVE_AFTER_KEYS: usize = 64;
/// After this time since the last save, the next new session key is saved as well; later if many are saved already. The
/// rest is saved on drop.
const SAVE_AFTER_TIME: Duration = Duration::from_secs(60);
/// For each of this many saved session keys, [`SAVE_AFTER_TIME`] passes once more between saves.
const SAVED_PER_TIME: usize = 4096;

/// Storage for sealed session keys between runs.
pub trait KeyStore: Send + Sync {
    /// Returns the bytes written last. `None` if there are none, if they exceed `limit` bytes, or on a read error.
    fn read(&self, limit: usize) -> Option<Vec<u8>>;

    /// Replaces the stored bytes with `sealed`. On error, the old bytes stay.
    fn write(&self, sealed: &[u8]);
}

/// The session keys used last, up to [`MAX_KEYS`]. Each takes about 130 bytes.
pub(super) struct SessionKeyCache(LruCache<Hash, CachedKey>);

/// A session key, wiped on drop. The type of the library takes two more allocations.
struct CachedKey([u8; SESSION_KEY_SIZE]);

impl Drop for CachedKey {
    fn drop(&mut self) {
        self.0.fill(0);
        // The compiler must not remove the writes.
        black_box(&self.0);
    }
}

impl SessionKeyCache {
    pub(super) fn new() -> Self {
        // `LruCache::new` would allocate memory for the maximum.
        let mut keys = LruCache::unbounded();
        keys.resize(MAX_KEYS);
        SessionKeyCache(keys)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&mut self, digest: &Hash) -> Option<SessionKey> {
        self.0.get(digest).map(|key| SessionKey::from(key.0.as_slice()))
    }

    /// Adds a session key. Ignores one of another size than [`SESSION_KEY_SIZE`].
    pub(super) fn put(&mut self, digest: Hash, key: &[u8]) {
        if let Ok(key) = key.try_into() {
            self.0.put(digest, CachedKey(key));
        }
    }

    /// Encodes all session keys, the most recently used first.
    pub(super) fn encode(&self) -> Protected {
        encode(self.len(), self.0.iter().map(|(digest, key)| (digest, key.0.as_slice())))
    }

    /// Adds the session keys from the output of [`SessionKeyCache::encode`]. Ignores any other content.
    pub(super) fn decode(&mut self, content: &[u8]) {
        // Insert the most recently used last.
        for record in records(content).unwrap_or_default().iter().rev() {
            let (digest, key) = split(record);
            self.put(Hash::from_bytes(*digest), key);
        }
    }
}

/// Encodes `count` session keys, each of which must have [`SESSION_KEY_SIZE`] bytes.
pub(super) fn encode<'k>(count: usize, keys: impl Iterator<Item = (&'k Hash, &'k [u8])>) -> Protected {
    // Allocated once, so that no copy stays in memory.
    let mut content = Vec::with_capacity(HEADER.len() + count * size_of::<Record>());
    content.extend(HEADER);
    for (digest, key) in keys {
        content.extend(digest.as_bytes());
        content.extend(key);
    }
    content.into()
}

/// Returns the records in the output of [`encode`]; `None` for any other content.
pub(super) fn records(content: &[u8]) -> Option<&[Record]> {
    let (records, rest) = content.strip_prefix(HEADER)?.as_chunks();
    rest.is_empty().then_some(records)
}

/// The same, to change their order.
pub(super) fn records_mut(content: &mut [u8]) -> Option<&mut [Record]> {
    let (header, records) = content.split_at_mut_checked(HEADER.len())?;
    let (records, rest) = records.as_chunks_mut();
    (header == HEADER && rest.is_empty()).then_some(records)
}

/// Splits a record into the digest of the PKESK packets and the session key.
pub(super) fn split(record: &Record) -> (&[u8; DIGEST_SIZE], &[u8]) {
    let (digest, key) = record.split_at(DIGEST_SIZE);
    (digest.first_chunk().unwrap_or(&[0; DIGEST_SIZE]), key)
}

/// A store of session keys, and the state of saving to it.
pub(super) struct SavedSessionKeys {
    store: Box<dyn KeyStore>,
    loaded: bool,
    /// The key that gpg used last.
    owner: Option<Fingerprint>,
    /// The number of session keys that are saved.
    saved: usize,
    /// The number of session keys that are not saved yet.
    new: usize,
    /// The time of the last save.
    since: Instant,
}

impl SavedSessionKeys {
    pub(super) fn new(store: Box<dyn KeyStore>) -> Self {
        SavedSessionKeys { store, loaded: false, owner: None, saved: 0, new: 0, since: Instant::now() }
    }

    /// Returns the sealed session keys of earlier runs; `None` from the second call on.
    pub(super) fn load_once(&mut self) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.loaded, true) {
            return None;
        }
        self.store.read(MAX_SEALED)
    }

    /// Notes that `count` session keys were loaded.
    pub(super) fn set_saved(&mut self, count: usize) {
        self.saved = count;
    }

    /// Notes the key that gpg used; `None` if gpg did not report it.
    pub(super) fn set_owner(&mut self, owner: Option<Fingerprint>) {
        self.owner = owner.or(self.owner.take());
    }

    /// Counts a new session key.
    pub(super) fn add(&mut self) {
        self.new += 1;
    }

    /// Whether new session keys should be saved now.
    pub(super) fn is_due(&self) -> bool {
        let wait = SAVE_AFTER_TIME.saturating_mul(u32::try_from(1 + self.saved / SAVED_PER_TIME).unwrap_or(u32::MAX));
        self.new >= SAVE_AFTER_KEYS.max(self.saved / 8) || (self.new > 0 && self.since.elapsed() >= wait)
    }

    /// Saves all session keys if any of them is new.
    pub(super) fn write(&mut self, gpg: &Gpg, known: &SessionKeyCache) {
        // Reset even on failure, so that it is not retried immediately.
        let new = std::mem::take(&mut self.new);
        self.since = Instant::now();
        self.saved = known.len();
        if let Some(owner) = self.owner.as_ref().filter(|_| new > 0)
            && let Ok(sealed) = seal(gpg, owner, &known.encode())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::{KeyPurpose, Opener, Profile, SecretKey};

    fn known(numbers: impl Iterator<Item = u32>) -> SessionKeyCache {
        let mut known = SessionKeyCache::new();
        for number in numbers {
            let key = blake3::hash(&number.to_le_bytes());
            known.put(blake3::hash(key.as_bytes()), key.as_bytes());
        }
        known
    }

    fn decoded(content: &[u8]) -> SessionKeyCache {
        let mut known = SessionKeyCache::new();
        known.decode(content);
        known
    }

    const MORE_THAN_FIT: u32 = MAX_KEYS.get() as u32 + 1000;

    #[test]
    fn encoding_and_decoding_keeps_the_order() {
        for count in [0, 1, 10_000, MORE_THAN_FIT] {
            let before = known(0..count);
            let content = before.encode();
            assert!(content.len() <= MAX_CONTENT);
            let after = decoded(&content);
            let bytes = |cache: &SessionKeyCache| cache.0.iter().map(|(d, key)| (*d, key.0)).collect::<Vec<_>>();
            assert!(bytes(&before) == bytes(&after));
            assert_eq!(after.len(), MAX_KEYS.get().min(count as usize));
        }
    }

    #[test]
    fn the_least_recently_used_key_goes_first() {
        let mut cache = known(0..MAX_KEYS.get() as u32);
        let digest = |number: u32| blake3::hash(blake3::hash(&number.to_le_bytes()).as_bytes());
        assert!(cache.get(&digest(0)).is_some());
        cache.put(blake3::hash(b"new"), &[7; SESSION_KEY_SIZE]);
        assert_eq!(cache.len(), MAX_KEYS.get());
        assert!(cache.get(&digest(0)).is_some() && cache.get(&digest(1)).is_none());
        assert_eq!(*cache.get(&blake3::hash(b"new")).unwrap(), [7; SESSION_KEY_SIZE]);
        cache.put(blake3::hash(b"short"), &[7; SESSION_KEY_SIZE - 1]);
        assert!(cache.get(&blake3::hash(b"short")).is_none());
    }

    #[test]
    fn the_largest_saved_message_is_within_the_read_limit() {
        let content = known(0..MORE_THAN_FIT).encode();
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
        let content = known(0..3).encode();
        assert_eq!(decoded(&content).len(), 3);
        let other = [b"brackfs session keys 2\n", content.get(HEADER.len()..).unwrap()].concat();
        for wrong in [&[], &content[..content.len() - 1], &content[1..], &[&content[..], b"\n"].concat(), &other] {
            assert_eq!(decoded(wrong).len(), 0);
            assert!(records_mut(&mut wrong.to_vec()).is_none());
        }
    }

    struct NullStore;

    impl KeyStore for NullStore {
        fn read(&self, _limit: usize) -> Option<Vec<u8>> {
            Some(vec![])
        }
        fn write(&self, _sealed: &[u8]) {}
    }

    #[test]
    fn many_new_keys_are_saved_at_once_and_few_after_a_while() {
        let mut saved = SavedSessionKeys::new(Box::new(NullStore));
        assert_eq!((saved.load_once(), saved.load_once()), (Some(vec![]), None));
        let long_ago = Instant::now().checked_sub(SAVE_AFTER_TIME).unwrap();
        saved.since = long_ago;
        assert!(!saved.is_due());
        saved.add();
        assert!(saved.is_due());
        let missing = Gpg::with("/nowhere/gpg", &[]);
        saved.write(&missing, &known(0..1));
        for _ in 1..SAVE_AFTER_KEYS {
            saved.add();
            assert!(!saved.is_due());
        }
        saved.add();
        assert!(saved.is_due());
    }

    #[test]
    fn the_more_keys_are_saved_the_more_must_be_new() {
        let mut saved = SavedSessionKeys::new(Box::new(NullStore));
        let missing = Gpg::with("/nowhere/gpg", &[]);
        let mut cache = SessionKeyCache::new();
        let (mut saves, mut written) = (0, 0);
        for number in 0..20_000_u32 {
            cache.put(blake3::hash(&number.to_le_bytes()), &[7; SESSION_KEY_SIZE]);
            saved.add();
            if saved.is_due() {
                saved.write(&missing, &cache);
                (saves, written) = (saves + 1, written + cache.len());
            }
        }
        assert!(saves < 50 && written < 10 * cache.len(), "{saves} saves of {written} keys");
        // Time counts for less as well.
        saved.add();
        saved.since = Instant::now().checked_sub(SAVE_AFTER_TIME).unwrap();
        assert!(!saved.is_due());
        saved.since = Instant::now().checked_sub(SAVE_AFTER_TIME * 6).unwrap();
        assert!(saved.is_due());
    }
}
