//! Opening: from a message to its session key, and to its content.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sequoia_openpgp::KeyHandle;
use sequoia_openpgp::crypto::mem::Protected;
use sequoia_openpgp::crypto::{KeyPair, SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::parse::Parse;

use super::framing::{Envelope, Inside};
use super::gpg::{Found, Gpg};
use super::kept::{self, Kept, KeyStore, Known};
use super::{Error, SecretKey, seipd1, seipd2};

const CIPHER: SymmetricAlgorithm = SymmetricAlgorithm::AES256;

/// Opens messages with a secret key. Any number of threads may open at once.
///
/// Finding out a session key is slow, and with gpg may ask a person, so session keys are remembered, and with gpg also
/// kept for the next run.
pub struct Opener {
    keys: Keys,
    known: Mutex<Known>,
    /// Held while a session key is found out, so that many threads ask once.
    asking: Mutex<Asking>,
}

struct Asking {
    /// How often.
    times: u64,
    /// What is kept for the next run, if that is wanted.
    kept: Option<Kept>,
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
        Ok(Self::with_keys(Keys::Held(key.decryption_pairs()?, key.name()), None))
    }

    /// Opens with any of several keys. Those that are locked or cannot decrypt are left out; without any other, the first
    /// one's error is returned.
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
            _ => Ok(Self::with_keys(Keys::Held(pairs, names.join(", ")), None)),
        }
    }

    /// Opens with the keys of the user's gpg: its agent asks for passphrases, and reaches smart cards.
    /// gpg runs once for each session key, and once for all that are in `store`: there they are kept, sealed to the key
    /// that gpg used.
    pub fn gpg(store: Option<Box<dyn KeyStore>>) -> Self {
        Self::with_gpg(Gpg::default(), store)
    }

    pub(super) fn with_gpg(gpg: Gpg, store: Option<Box<dyn KeyStore>>) -> Self {
        Self::with_keys(Keys::Gpg(gpg), store)
    }

    fn with_keys(keys: Keys, store: Option<Box<dyn KeyStore>>) -> Self {
        let asking = Asking { times: 0, kept: store.map(Kept::new) };
        Opener { keys, known: Mutex::new(Known::new(kept::REMEMBERED)), asking: Mutex::new(asking) }
    }

    /// Whether a session key costs a call of another program, and maybe a person's attention.
    pub fn is_slow(&self) -> bool {
        matches!(self.keys, Keys::Gpg(_))
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

    /// Keeps session keys that are new for the next run. That happens now and then, and at the end, too; nothing
    /// depends on it, so it does not fail.
    pub fn keep(&self) {
        self.write_down(&mut lock(&self.asking));
    }

    /// How often a session key was found out, which is slow.
    #[cfg(test)]
    pub(super) fn asked(&self) -> u64 {
        lock(&self.asking).times
    }

    fn append(&self, inside: Inside, message: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let envelope = Envelope::parse(message)?;
        // Before the key is asked for, so that nobody types a passphrase in vain.
        let container = Container::parse(&envelope, inside, limit)?;
        let key = self.session_key(message, &envelope)?;
        let start = out.len();
        let opened = container.open(&key, out);
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
        let mut asking = lock(&self.asking);
        // Another thread may have asked while this one waited.
        if let Some(key) = known() {
            return Ok(key);
        }
        let key = match &self.keys {
            Keys::Held(pairs, name) => {
                asking.times += 1;
                find(pairs, name, envelope)?
            }
            Keys::Gpg(gpg) => {
                self.recall(gpg, &mut asking);
                if let Some(key) = known() {
                    return Ok(key);
                }
                let Found { key, by } = asking.ask(gpg, message, envelope)?;
                if let Some(kept) = &mut asking.kept {
                    kept.add(by);
                }
                key
            }
        };
        let key = Arc::new(key);
        lock(&self.known).put(digest, Arc::clone(&key));
        if asking.kept.as_ref().is_some_and(Kept::is_due) {
            self.write_down(&mut asking);
        }
        Ok(key)
    }

    /// Takes in what an earlier run kept, before the first question. If it can't be opened, it is as if there were none.
    fn recall(&self, gpg: &Gpg, asking: &mut Asking) {
        let Some(sealed) = asking.kept.as_mut().and_then(Kept::recall) else { return };
        let mut open = || -> Result<Protected, Error> {
            let envelope = Envelope::parse(&sealed)?;
            let container = Container::parse(&envelope, Inside::Literal, kept::CONTENT)?;
            let mut content = Vec::new();
            container.open(&asking.ask(gpg, &sealed, &envelope)?.key, &mut content)?;
            Ok(content.into())
        };
        if let Ok(content) = open() {
            kept::decode(&content, &mut lock(&self.known));
        }
    }

    fn write_down(&self, asking: &mut Asking) {
        if let (Keys::Gpg(gpg), Some(kept)) = (&self.keys, &mut asking.kept) {
            kept.write(gpg, || kept::encode(&lock(&self.known)));
        }
    }
}

impl Asking {
    fn ask(&mut self, gpg: &Gpg, message: &[u8], envelope: &Envelope<'_>) -> Result<Found, Error> {
        self.times += 1;
        gpg.session_key(message, &recipients(envelope)?)
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.keep();
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

    /// Appends the content. What was appended when an error is returned is not authenticated.
    fn open(&self, key: &SessionKey, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Container::One(container) => container.open(key, out),
            Container::Two(container) => container.open(key, out),
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
                Some((None | Some(CIPHER), key)) if key.len() == kept::KEY => return Ok(key),
                _ => {}
            }
        }
    }
    match addressed {
        true => Err(Error::Damaged { what: "its encrypted session key does not decrypt" }),
        false => Err(Error::NoKey { key: name.to_owned(), recipients: recipients(envelope)? }),
    }
}
