//! Opens messages: finds the session key of a message, then decrypts its content.

use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use blake3::Hash;
use sequoia_openpgp::KeyHandle;
use sequoia_openpgp::crypto::mem::Protected;
use sequoia_openpgp::crypto::{KeyPair, SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::parse::Parse;

use super::certificate::Certificate;
use super::error::Error;
use super::fingerprint::Fingerprint;
use super::framing::{Envelope, Payload};
use super::gpg::{Gpg, GpgSessionKey};
use super::rewrapped::{self, Rewrapped, RewrappedKeys, Tables};
use super::seal::Sealer;
use super::secret_key::SecretKey;
use super::seipd1::SeipdV1;
use super::seipd2::SeipdV2;
use super::session_keys::{self, KeyStore, SavedSessionKeys, SessionKeyCache};

const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES256;

/// Opens messages with a secret key. Several threads may use one opener at the same time.
///
/// Decrypting a session key is slow, and gpg may prompt the user for it. So session keys are cached in memory, and those
/// from gpg are also saved for the next run.
pub struct Opener {
    keys: KeySource,
    cache: Mutex<SessionKeyCache>,
    /// Session keys for recipients who were added later, loaded when first needed.
    rewrapped: OnceLock<Tables>,
    /// Locked while a session key is looked up, so that concurrent threads do it only once.
    lookup: Mutex<Lookup>,
}

struct Lookup {
    attempts: u64,
    /// `None` if session keys are not saved between runs.
    saved: Option<SavedSessionKeys>,
}

enum KeySource {
    /// Secret keys held in memory.
    Secret(SecretKeys),
    /// Secret keys held by the user's gpg.
    Gpg(Gpg),
}

struct SecretKeys {
    pairs: Vec<KeyPair>,
    /// The fingerprints of their certificates.
    certificates: Vec<Fingerprint>,
    /// Their name in error messages.
    name: String,
}

impl Opener {
    /// Opens with a key, which must be unlocked. Expired and revoked keys still decrypt.
    pub fn new(key: SecretKey) -> Result<Self, Error> {
        Self::with_any(vec![key])
    }

    /// Opens with any of several keys. Skips keys that are locked or cannot decrypt; if no other key is left, returns the
    /// error of the first one.
    pub fn with_any(keys: Vec<SecretKey>) -> Result<Self, Error> {
        let names: Vec<_> = keys.iter().map(SecretKey::name).collect();
        let certificates = keys.iter().map(SecretKey::fingerprint).collect();
        let (mut pairs, mut failed) = (Vec::new(), None);
        for key in keys {
            match key.decryption_pairs() {
                Ok(found) => pairs.extend(found),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match (pairs.is_empty(), failed) {
            (true, Some(error)) => Err(error),
            _ => {
                let name = names.join(", ");
                Ok(Self::with_keys(KeySource::Secret(SecretKeys { pairs, certificates, name }), None))
            }
        }
    }

    /// Opens with the keys of the user's gpg, whose agent asks for passphrases and accesses smart cards. gpg runs once for
    /// each session key, and once for all session keys in `store`. They are saved there, sealed to the key that gpg used.
    pub fn gpg(store: Option<Box<dyn KeyStore>>) -> Self {
        Self::with_gpg(Gpg::default(), store)
    }

    pub(super) fn with_gpg(gpg: Gpg, store: Option<Box<dyn KeyStore>>) -> Self {
        Self::with_keys(KeySource::Gpg(gpg), store)
    }

    fn with_keys(keys: KeySource, store: Option<Box<dyn KeyStore>>) -> Self {
        let lookup = Lookup { attempts: 0, saved: store.map(SavedSessionKeys::new) };
        Opener {
            keys,
            cache: Mutex::new(SessionKeyCache::new()),
            rewrapped: OnceLock::new(),
            lookup: Mutex::new(lookup),
        }
    }

    /// Whether getting a session key runs another program, which may prompt the user.
    pub fn is_slow(&self) -> bool {
        matches!(self.keys, KeySource::Gpg(_))
    }

    /// Appends the content of a message to `out`. Refuses a message with more than `limit` bytes of content before it
    /// allocates memory. On error, `out` is unchanged.
    pub fn open(&self, message: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(Payload::Literal, message, limit, out)
    }

    /// Returns the packets in a message, for example a signed message; at most `limit` bytes.
    pub fn open_message(&self, message: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
        let mut packets = Vec::new();
        self.append(Payload::Packets, message, limit, &mut packets)?;
        Ok(packets)
    }

    /// Saves new session keys for the next run. This also happens periodically and on drop. Best effort.
    pub fn save_session_keys(&self) {
        self.save(&mut lock(&self.lookup));
    }

    /// The number of session key lookups that were not answered by the cache.
    #[cfg(test)]
    pub(super) fn lookups(&self) -> u64 {
        lock(&self.lookup).attempts
    }

    /// Looks for session keys for `message` that were sealed again, after it could not be opened for lack of a key (see
    /// [`Error::is_other_key`]). Loads the tables in `store` for this opener's keys on the first call. Returns whether there
    /// are any for this message, so that it may open now.
    pub fn find_rewrapped(&self, message: &[u8], store: &dyn RewrappedKeys) -> bool {
        let Ok(envelope) = Envelope::parse(message) else { return false };
        if self.rewrapped.get().is_none() {
            let mut lookup = lock(&self.lookup);
            // Another thread may have loaded them while this one waited for the lock.
            if self.rewrapped.get().is_none()
                && let Some(tables) = self.load_tables(store, &mut lookup)
            {
                // This cannot fail under the lock.
                let _ = self.rewrapped.set(tables);
            }
        }
        self.candidates(&blake3::hash(envelope.pkesks)).next().is_some()
    }

    /// Seals session keys again, to a recipient who was added later: makes a table to be stored for
    /// [`Opener::find_rewrapped`]. Each of `pkesks` is the PKESK packets that messages begin with, as returned by
    /// [`Sealer::pkesks`]; a malformed one is an error.
    pub fn rewrap(&self, pkesks: &[Vec<u8>], recipient: &Certificate) -> Result<Rewrapped, Error> {
        let (mut keys, mut missing) = (Vec::new(), 0);
        for pkesks in pkesks {
            let digest = blake3::hash(pkesks);
            let message = rewrapped::message_with(pkesks)?;
            let envelope = Envelope::parse(&message)?;
            match self.session_key(&message, &envelope, &digest) {
                Ok(key) => keys.push((digest, key)),
                Err(error) if error.is_other_key() => {
                    // Without a message it is unknown which of them is right.
                    let before = keys.len();
                    keys.extend(self.candidates(&digest).map(|key| (digest, key)));
                    missing += usize::from(keys.len() == before);
                }
                Err(error) => return Err(error),
            }
        }
        let limit = session_keys::MAX_KEYS.get();
        if keys.len() > limit {
            return Err(Error::TooLarge { size: keys.len() as u64, limit: limit as u64 });
        }
        let content = session_keys::encode(keys.len(), keys.iter().map(|(digest, key)| (digest, &key[..])));
        let mut sealed = Vec::new();
        Sealer::new(std::slice::from_ref(recipient))?.seal(&content, &mut sealed)?;
        Ok(Rewrapped { sealed, keys: keys.len(), missing })
    }

    fn append(&self, payload: Payload, message: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let envelope = Envelope::parse(message)?;
        // Check the packet first, so that gpg does not ask for a passphrase for nothing.
        let seipd = Seipd::parse(&envelope, payload, limit)?;
        let digest = blake3::hash(envelope.pkesks);
        let mut refused = None;
        if self.cached(&digest).is_none() {
            for key in self.candidates(&digest) {
                match seipd.append(&key, out) {
                    // It is not cached: the table and the message may both be forged, and other messages need another key.
                    Ok(()) => return Ok(()),
                    Err(error) => refused = Some(error),
                }
            }
        }
        match (self.session_key(message, &envelope, &digest), refused) {
            (Ok(key), _) => seipd.append(&key, out),
            // A table has a session key, so the message is damaged, or the table is.
            (Err(error), Some(refused)) if error.is_other_key() => Err(refused),
            (Err(error), _) => Err(error),
        }
    }

    fn cached(&self, digest: &Hash) -> Option<SessionKey> {
        lock(&self.cache).get(digest)
    }

    /// Returns the session keys for these PKESK packets in the tables that are loaded.
    fn candidates(&self, digest: &Hash) -> impl Iterator<Item = SessionKey> {
        self.rewrapped.get().into_iter().flat_map(|tables| tables.candidates(digest))
    }

    fn session_key(&self, message: &[u8], envelope: &Envelope<'_>, digest: &Hash) -> Result<SessionKey, Error> {
        if let Some(key) = self.cached(digest) {
            return Ok(key);
        }
        let mut lookup = lock(&self.lookup);
        // Another thread may have found the key while this one waited for the lock.
        if let Some(key) = self.cached(digest) {
            return Ok(key);
        }
        if let KeySource::Gpg(gpg) = &self.keys {
            self.load_saved(gpg, &mut lookup);
            if let Some(key) = self.cached(digest) {
                return Ok(key);
            }
        }
        let key = self.decrypt(message, envelope, &mut lookup)?;
        self.remember(*digest, &key, &mut lookup);
        Ok(key)
    }

    /// Decrypts the session key of a message with the secret keys.
    fn decrypt(&self, message: &[u8], envelope: &Envelope<'_>, lookup: &mut Lookup) -> Result<SessionKey, Error> {
        lookup.attempts += 1;
        let gpg = match &self.keys {
            KeySource::Secret(keys) => return keys.decrypt(envelope),
            KeySource::Gpg(gpg) => gpg,
        };
        let GpgSessionKey { key, recipient } = gpg.session_key(message, &recipients(envelope)?)?;
        if let Some(saved) = &mut lookup.saved {
            saved.set_owner(recipient);
        }
        Ok(key)
    }

    /// Caches a session key, and saves it with others if that is due.
    fn remember(&self, digest: Hash, key: &SessionKey, lookup: &mut Lookup) {
        lock(&self.cache).put(digest, key);
        if let Some(saved) = &mut lookup.saved {
            saved.add();
            if saved.is_due() {
                self.save(lookup);
            }
        }
    }

    /// Loads the session keys saved by earlier runs, before the first lookup. Best effort.
    fn load_saved(&self, gpg: &Gpg, lookup: &mut Lookup) {
        let Some(sealed) = lookup.saved.as_mut().and_then(SavedSessionKeys::load_once) else { return };
        let mut open = || -> Result<Protected, Error> {
            let envelope = Envelope::parse(&sealed)?;
            let seipd = Seipd::parse(&envelope, Payload::Literal, session_keys::MAX_CONTENT)?;
            lookup.attempts += 1;
            let key = gpg.session_key(&sealed, &recipients(&envelope)?)?.key;
            let mut content = Vec::new();
            seipd.append(&key, &mut content)?;
            Ok(content.into())
        };
        if let Ok(content) = open() {
            let mut cache = lock(&self.cache);
            cache.decode(&content);
            if let Some(saved) = &mut lookup.saved {
                saved.set_saved(cache.len());
            }
        }
    }

    /// Loads all usable tables. `None` if they cannot be listed now.
    fn load_tables(&self, store: &dyn RewrappedKeys, lookup: &mut Lookup) -> Option<Tables> {
        let mut tables = Tables::default();
        let own = match &self.keys {
            KeySource::Secret(keys) => keys.certificates.clone(),
            KeySource::Gpg(gpg) => gpg.secret_keys(),
        };
        let mut add = |sealed: &[u8]| -> Result<(), Error> {
            let envelope = Envelope::parse(sealed)?;
            let seipd = Seipd::parse(&envelope, Payload::Literal, session_keys::MAX_CONTENT)?;
            if matches!(self.keys, KeySource::Gpg(_)) && !is_encrypted_to(&envelope, &own)? {
                return Err(Error::Refused { what: "it is encrypted to another key" });
            }
            tables.count()?;
            let key = self.decrypt(sealed, &envelope, lookup)?;
            let mut content = Vec::new();
            seipd.append(&key, &mut content)?;
            tables.add(content.into())
        };
        store.visit(&own, session_keys::MAX_SEALED, &mut add).then_some(tables)
    }

    fn save(&self, lookup: &mut Lookup) {
        if let (KeySource::Gpg(gpg), Some(saved)) = (&self.keys, &mut lookup.saved) {
            saved.write(gpg, &lock(&self.cache));
        }
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.save_session_keys();
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.keys {
            KeySource::Secret(keys) => write!(f, "Opener({})", keys.name),
            KeySource::Gpg(_) => f.write_str("Opener(gpg)"),
        }
    }
}

/// The encrypted packet of a message, of either version.
enum Seipd<'m> {
    V1(SeipdV1<'m>),
    V2(SeipdV2<'m>),
}

impl<'m> Seipd<'m> {
    fn parse(envelope: &Envelope<'m>, payload: Payload, limit: usize) -> Result<Self, Error> {
        match envelope.version {
            1 => SeipdV1::parse(envelope.sealed, payload, limit).map(Seipd::V1),
            2 => SeipdV2::parse(envelope.sealed, payload, limit).map(Seipd::V2),
            _ => Err(Error::Refused { what: "the version of its encrypted packet is unknown" }),
        }
    }

    /// Appends the content. On error, `out` is unchanged.
    fn append(&self, key: &SessionKey, out: &mut Vec<u8>) -> Result<(), Error> {
        let start = out.len();
        let opened = match self {
            Seipd::V1(packet) => packet.open(key, out),
            Seipd::V2(packet) => packet.open(key, out),
        };
        if opened.is_err() {
            out.truncate(start);
        }
        opened
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The locked data is consistent even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Parses the encrypted session keys of a message. Their version must match that of the encrypted packet, to prevent
/// downgrade attacks.
fn encrypted_keys(envelope: &Envelope<'_>) -> Result<Vec<PKESK>, Error> {
    let fitting = match envelope.version {
        1 => 3,
        _ => 6,
    };
    let parse = |body: &&[u8]| match PKESK::from_bytes(*body) {
        Ok(pkesk) if pkesk.version() == fitting => Ok(pkesk),
        Ok(_) => Err(Error::Refused { what: "the versions of its session key and its content do not match" }),
        Err(_) => Err(Error::Damaged { what: "its encrypted session key cannot be parsed" }),
    };
    envelope.recipients.iter().map(parse).collect()
}

/// The ids of the keys that a message is encrypted to, for error messages.
fn recipients(envelope: &Envelope<'_>) -> Result<String, Error> {
    let names = encrypted_keys(envelope)?.iter().map(recipient).collect::<Vec<_>>();
    Ok(names.join(", "))
}

fn recipient(pkesk: &PKESK) -> String {
    match pkesk.recipient() {
        Some(KeyHandle::Fingerprint(fingerprint)) => fingerprint.to_hex(),
        Some(KeyHandle::KeyID(id)) => id.to_hex(),
        None => "a hidden recipient".into(),
    }
}

/// Whether a message names one of these keys as a recipient.
fn is_encrypted_to(envelope: &Envelope<'_>, keys: &[Fingerprint]) -> Result<bool, Error> {
    let handles: Vec<_> = keys.iter().filter_map(|key| key.to_string().parse::<KeyHandle>().ok()).collect();
    let named = |pkesk: &PKESK| {
        pkesk.recipient().is_some_and(|recipient| handles.iter().any(|handle| handle.aliases(&recipient)))
    };
    Ok(encrypted_keys(envelope)?.iter().any(named))
}

impl SecretKeys {
    /// Decrypts the session key of a message with one of the keys.
    fn decrypt(&self, envelope: &Envelope<'_>) -> Result<SessionKey, Error> {
        let mut addressed = false;
        for pkesk in encrypted_keys(envelope)? {
            let recipient = pkesk.recipient();
            for pair in self.pairs.iter().filter(|pair| pair.public().pk_algo() == pkesk.pk_algo()) {
                // If the recipient is hidden, try every key.
                let named = recipient.as_ref().map(|handle| pair.public().key_handle().aliases(handle));
                if named == Some(false) {
                    continue;
                }
                addressed |= named.is_some();
                match pkesk.decrypt(&mut pair.clone(), Some(CIPHER)) {
                    Some((None | Some(CIPHER), key)) if key.len() == session_keys::SESSION_KEY_SIZE => return Ok(key),
                    _ => {}
                }
            }
        }
        if addressed {
            Err(Error::Damaged { what: "its encrypted session key cannot be decrypted" })
        } else {
            Err(Error::NoKey { key: self.name.clone(), recipients: recipients(envelope)? })
        }
    }
}
