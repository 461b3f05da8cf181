//! Opening: from a message to its session key, and to its content.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use sequoia_openpgp::KeyHandle;
use sequoia_openpgp::crypto::{KeyPair, SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::parse::Parse;

use super::framing::{Envelope, Inside};
use super::gpg::Gpg;
use super::{Error, SecretKey, seipd1, seipd2};

/// Session keys that are remembered; each takes about 150 bytes.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES256;
const KEY_LENGTH: usize = 32;

/// Opens messages with a secret key. Any number of threads may open at once.
///
/// Finding out a session key is slow, and with gpg may ask a person, so session keys are remembered.
pub struct Opener {
    keys: Keys,
    /// By the digest of the packets that the session key was found in.
    known: Mutex<LruCache<blake3::Hash, Arc<SessionKey>>>,
    /// Held while a session key is found out, so that many threads ask once. Counts how often.
    asked: Mutex<u64>,
}

enum Keys {
    /// Secret keys at hand, and what messages call them.
    Held(Vec<KeyPair>, String),
    /// Secret keys that only the user's gpg can use.
    Gpg(Gpg),
}

impl Opener {
    /// Opens with a key that must be unlocked. Expired and revoked keys open what was sealed to them.
    pub fn new(key: SecretKey) -> Result<Self, Error> {
        Ok(Self::with_keys(Keys::Held(key.decryption_pairs()?, key.name())))
    }

    /// Opens with the keys of the user's gpg: its agent asks for passphrases, and reaches smart cards.
    /// gpg runs once for each session key.
    pub fn gpg() -> Self {
        Self::with_gpg(Gpg::default())
    }

    pub(super) fn with_gpg(gpg: Gpg) -> Self {
        Self::with_keys(Keys::Gpg(gpg))
    }

    fn with_keys(keys: Keys) -> Self {
        Opener { keys, known: Mutex::new(LruCache::new(REMEMBERED)), asked: Mutex::new(0) }
    }

    /// Appends the content of a message to `out`. A message with more than `limit` bytes of it is refused
    /// before memory is taken. If it fails, `out` is as before.
    pub fn open(&self, message: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(Inside::Literal, message, limit, out)
    }

    /// The packets in a message, for example a signed message: at most `limit` bytes.
    pub fn open_message(&self, message: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
        let mut packets = Vec::new();
        self.append(Inside::Packets, message, limit, &mut packets)?;
        Ok(packets)
    }

    /// How often a session key was found out, which is slow.
    #[cfg(test)]
    pub(super) fn asked(&self) -> u64 {
        *lock(&self.asked)
    }

    fn append(&self, inside: Inside, message: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let envelope = Envelope::parse(message)?;
        // Before the key is asked for, so that nobody types a passphrase in vain.
        let container = Container::parse(&envelope, inside, limit)?;
        let key = self.session_key(message, &envelope)?;
        let start = out.len();
        let opened = match container {
            Container::One(container) => container.open(&key, out),
            Container::Two(container) => container.open(&key, out),
        };
        if opened.is_err() {
            out.truncate(start);
        }
        opened
    }

    fn session_key(&self, message: &[u8], envelope: &Envelope<'_>) -> Result<Arc<SessionKey>, Error> {
        let digest = blake3::hash(envelope.address);
        let known = || lock(&self.known).get(&digest).cloned();
        if let Some(key) = known() {
            return Ok(key);
        }
        let mut asked = lock(&self.asked);
        // Another thread may have asked while this one waited.
        if let Some(key) = known() {
            return Ok(key);
        }
        *asked += 1;
        let key = Arc::new(match &self.keys {
            Keys::Held(pairs, name) => find(pairs, name, envelope)?,
            Keys::Gpg(gpg) => gpg.session_key(message, &recipients(envelope)?)?,
        });
        lock(&self.known).put(digest, Arc::clone(&key));
        Ok(key)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.keys {
            Keys::Held(_, name) => write!(f, "Opener({name})"),
            Keys::Gpg(_) => f.write_str("Opener(gpg)"),
        }
    }
}

/// The encrypted packet of either version.
enum Container<'m> {
    One(seipd1::Container<'m>),
    Two(seipd2::Container<'m>),
}

impl<'m> Container<'m> {
    fn parse(envelope: &Envelope<'m>, inside: Inside, limit: usize) -> Result<Self, Error> {
        match envelope.version {
            1 => seipd1::Container::parse(envelope.sealed, inside, limit).map(Container::One),
            2 => seipd2::Container::parse(envelope.sealed, inside, limit).map(Container::Two),
            _ => Err(Error::Refused { what: "it is encrypted in a version that is not known" }),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half done under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The encrypted session keys of a message, whose versions must fit the container's: with one of the
/// other version, a message could be passed off as weaker than it was written.
fn encrypted_keys(envelope: &Envelope<'_>) -> Result<Vec<PKESK>, Error> {
    let fitting = match envelope.version {
        1 => 3,
        _ => 6,
    };
    let parse = |body: &&[u8]| match PKESK::from_bytes(*body) {
        Ok(pkesk) if pkesk.version() == fitting => Ok(pkesk),
        Ok(_) => Err(Error::Refused { what: "its session key is of another version than its content" }),
        Err(_) => Err(Error::Damaged { what: "its encrypted session key can't be read" }),
    };
    envelope.recipients.iter().map(parse).collect()
}

/// The ids of the keys that a message is encrypted to, in words.
fn recipients(envelope: &Envelope<'_>) -> Result<String, Error> {
    let names = encrypted_keys(envelope)?.iter().map(recipient).collect::<Vec<_>>();
    Ok(names.join(", "))
}

fn recipient(pkesk: &PKESK) -> String {
    match pkesk.recipient() {
        Some(KeyHandle::Fingerprint(fingerprint)) => fingerprint.to_hex(),
        Some(KeyHandle::KeyID(id)) => id.to_hex(),
        None => "someone hidden".into(),
    }
}

/// Finds the session key of a message with the keys at hand.
fn find(pairs: &[KeyPair], name: &str, envelope: &Envelope<'_>) -> Result<SessionKey, Error> {
    let mut addressed = false;
    for pkesk in encrypted_keys(envelope)? {
        let recipient = pkesk.recipient();
        for pair in pairs.iter().filter(|pair| pair.public().pk_algo() == pkesk.pk_algo()) {
            // A hidden recipient may be anyone.
            let named = recipient.as_ref().map(|handle| pair.public().key_handle().aliases(handle));
            if named == Some(false) {
                continue;
            }
            addressed |= named.is_some();
            match pkesk.decrypt(&mut pair.clone(), Some(CIPHER)) {
                Some((None | Some(CIPHER), key)) if key.len() == KEY_LENGTH => return Ok(key),
                _ => {}
            }
        }
    }
    match addressed {
        true => Err(Error::Damaged { what: "its encrypted session key does not decrypt" }),
        false => Err(Error::NoKey { key: name.to_owned(), recipients: recipients(envelope)? }),
    }
}
