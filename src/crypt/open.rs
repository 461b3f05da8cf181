//! Opens messages: finds the session key of a message, then decrypts its content.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sequoia_openpgp::KeyHandle;
use sequoia_openpgp::crypto::mem::Protected;
use sequoia_openpgp::crypto::{KeyPair, SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::parse::Parse;

use super::error::Error;
use super::framing::{Envelope, Payload};
use super::gpg::{Gpg, GpgSessionKey};
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
    /// Locked while a session key is looked up, so that concurrent threads do it only once.
    lookup: Mutex<Lookup>,
}

struct Lookup {
    attempts: u64,
    /// `None` if session keys are not saved between runs.
    saved: Option<SavedSessionKeys>,
}

enum KeySource {
    /// Secret keys held in memory, and their name in error messages.
    Secret(Vec<KeyPair>, String),
    /// Secret keys held by the user's gpg.
    Gpg(Gpg),
}

impl Opener {
    /// Opens with a key, which must be unlocked. Expired and revoked keys still decrypt.
    pub fn new(key: SecretKey) -> Result<Self, Error> {
        Ok(Self::with_keys(KeySource::Secret(key.decryption_pairs()?, key.name()), None))
    }

    /// Opens with any of several keys. Skips keys that are locked or cannot decrypt; if no other key is left, returns the
    /// error of the first one.
    pub fn with_any(keys: Vec<SecretKey>) -> Result<Self, Error> {
        let names: Vec<_> = keys.iter().map(SecretKey::name).collect();
        let (mut pairs, mut failed) = (Vec::new(), None);
        for key in keys {
            match key.decryption_pairs() {
                Ok(found) => pairs.extend(found),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match (pairs.is_empty(), failed) {
            (true, Some(error)) => Err(error),
            _ => Ok(Self::with_keys(KeySource::Secret(pairs, names.join(", ")), None)),
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
        Opener { keys, cache: Mutex::new(SessionKeyCache::new(session_keys::CACHE_SIZE)), lookup: Mutex::new(lookup) }
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

    fn append(&self, payload: Payload, message: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let envelope = Envelope::parse(message)?;
        // Check the packet first, so that gpg does not ask for a passphrase for nothing.
        let seipd = Seipd::parse(&envelope, payload, limit)?;
        let key = self.session_key(message, &envelope)?;
        let start = out.len();
        let opened = seipd.open(&key, out);
        if opened.is_err() {
            out.truncate(start);
        }
        opened
    }

    fn session_key(&self, message: &[u8], envelope: &Envelope<'_>) -> Result<Arc<SessionKey>, Error> {
        let digest = blake3::hash(envelope.pkesks);
        let cached = || lock(&self.cache).get(&digest).cloned();
        if let Some(key) = cached() {
            return Ok(key);
        }
        let mut lookup = lock(&self.lookup);
        // Another thread may have found the key while this one waited for the lock.
        if let Some(key) = cached() {
            return Ok(key);
        }
        let key = match &self.keys {
            KeySource::Secret(pairs, name) => {
                lookup.attempts += 1;
                decrypt_session_key(pairs, name, envelope)?
            }
            KeySource::Gpg(gpg) => {
                self.load_saved(gpg, &mut lookup);
                if let Some(key) = cached() {
                    return Ok(key);
                }
                let GpgSessionKey { key, recipient } = lookup.ask(gpg, message, envelope)?;
                if let Some(saved) = &mut lookup.saved {
                    saved.add(recipient);
                }
                key
            }
        };
        let key = Arc::new(key);
        lock(&self.cache).put(digest, Arc::clone(&key));
        if lookup.saved.as_ref().is_some_and(SavedSessionKeys::is_due) {
            self.save(&mut lookup);
        }
        Ok(key)
    }

    /// Loads the session keys saved by earlier runs, before the first lookup. Best effort.
    fn load_saved(&self, gpg: &Gpg, lookup: &mut Lookup) {
        let Some(sealed) = lookup.saved.as_mut().and_then(SavedSessionKeys::load_once) else { return };
        let mut open = || -> Result<Protected, Error> {
            let envelope = Envelope::parse(&sealed)?;
            let seipd = Seipd::parse(&envelope, Payload::Literal, session_keys::MAX_CONTENT)?;
            let mut content = Vec::new();
            seipd.open(&lookup.ask(gpg, &sealed, &envelope)?.key, &mut content)?;
            Ok(content.into())
        };
        if let Ok(content) = open() {
            session_keys::decode(&content, &mut lock(&self.cache));
        }
    }

    fn save(&self, lookup: &mut Lookup) {
        if let (KeySource::Gpg(gpg), Some(saved)) = (&self.keys, &mut lookup.saved) {
            saved.write(gpg, || session_keys::encode(&lock(&self.cache)));
        }
    }
}

impl Lookup {
    fn ask(&mut self, gpg: &Gpg, message: &[u8], envelope: &Envelope<'_>) -> Result<GpgSessionKey, Error> {
        self.attempts += 1;
        gpg.session_key(message, &recipients(envelope)?)
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
            KeySource::Secret(_, name) => write!(f, "Opener({name})"),
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

    /// Appends the content. On error, `out` may hold unauthenticated bytes.
    fn open(&self, key: &SessionKey, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Seipd::V1(packet) => packet.open(key, out),
            Seipd::V2(packet) => packet.open(key, out),
        }
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

/// Decrypts the session key of a message with one of `pairs`.
fn decrypt_session_key(pairs: &[KeyPair], name: &str, envelope: &Envelope<'_>) -> Result<SessionKey, Error> {
    let mut addressed = false;
    for pkesk in encrypted_keys(envelope)? {
        let recipient = pkesk.recipient();
        for pair in pairs.iter().filter(|pair| pair.public().pk_algo() == pkesk.pk_algo()) {
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
        Err(Error::NoKey { key: name.to_owned(), recipients: recipients(envelope)? })
    }
}
