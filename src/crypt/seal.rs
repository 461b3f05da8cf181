//! Sealing: an audience, and the session key that serves it for a while.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sequoia_openpgp::Packet;
use sequoia_openpgp::crypto::{SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::packet::pkesk::{PKESK3, PKESK6};
use sequoia_openpgp::serialize::MarshalInto;

use super::certificate::PublicKey;
use super::framing::Inside;
use super::{Certificate, Error, Fingerprint, seipd1, seipd2};

/// Most messages of one session key.
const MAX_MESSAGES: u64 = 1 << 20;
/// Most bytes under one session key.
const MAX_BYTES: u64 = 64 << 30;

/// Seals messages to an audience. Clones share the session key; any number of threads may seal at once.
///
/// A session key serves up to 2^20 messages and 64 GiB, so that a reader, or his smart card, finds it
/// out once and not for every message. Each message has a salt or random block of its own.
#[derive(Clone)]
pub struct Sealer {
    shared: Arc<Shared>,
}

struct Shared {
    audience: Vec<PublicKey>,
    version: Version,
    session: Mutex<Session>,
}

/// The version of the encrypted packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A session key, and what was done with it.
struct Session {
    keys: Arc<Keys>,
    messages: u64,
    bytes: u64,
}

/// A session key, and the same encrypted to each of the audience.
struct Keys {
    session: SessionKey,
    address: Vec<u8>,
}

impl Sealer {
    /// Seals to the newest encryption key of each certificate, all of which must be fit for it today.
    pub fn new(audience: &[Certificate]) -> Result<Self, Error> {
        if audience.is_empty() {
            return Err(Error::NoAudience);
        }
        let version = match audience.iter().all(Certificate::supports_aead) {
            true => Version::Two,
            false => Version::One,
        };
        let mut keys = Vec::<PublicKey>::new();
        for certificate in audience {
            let key = certificate.encryption_key()?;
            if !keys.iter().any(|known| known.fingerprint() == key.fingerprint()) {
                keys.push(key);
            }
        }
        Self::with(keys, version)
    }

    /// Seals to a key of a certificate, be it fit for it today or not: for what stays with its owner.
    pub(super) fn to_key(certificate: &Certificate, key: &Fingerprint) -> Result<Self, Error> {
        let version = match certificate.supports_aead() {
            true => Version::Two,
            false => Version::One,
        };
        Self::with(vec![certificate.key(key)?], version)
    }

    fn with(audience: Vec<PublicKey>, version: Version) -> Result<Self, Error> {
        let session = Mutex::new(Session::new(&audience, version)?);
        Ok(Sealer { shared: Arc::new(Shared { audience, version, session }) })
    }

    /// Appends a message with `content` to `out`. If it fails, `out` is as before.
    pub fn seal(&self, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(Inside::Literal, content, out)
    }

    /// Appends a message around `packets`, for example a signed message, to `out`. If it fails, `out` is
    /// as before.
    pub fn seal_message(&self, packets: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(Inside::Packets, packets, out)
    }

    fn append(&self, inside: Inside, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let keys = self.shared.keys_for(content.len() as u64)?;
        let start = out.len();
        out.extend(&keys.address);
        let sealed = match self.shared.version {
            Version::One => seipd1::seal(&keys.session, inside, content, out),
            Version::Two => seipd2::seal(&keys.session, inside, content, out),
        };
        if sealed.is_err() {
            out.truncate(start);
        }
        sealed
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let audience = self.shared.audience.iter().map(|key| key.keyid().to_hex());
        f.debug_list().entries(audience).finish()
    }
}

impl Shared {
    /// The keys for a message of so many bytes.
    fn keys_for(&self, bytes: u64) -> Result<Arc<Keys>, Error> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.messages >= MAX_MESSAGES || session.bytes.saturating_add(bytes) > MAX_BYTES {
            *session = Session::new(&self.audience, self.version)?;
        }
        session.messages += 1;
        session.bytes = session.bytes.saturating_add(bytes);
        Ok(Arc::clone(&session.keys))
    }
}

impl Session {
    fn new(audience: &[PublicKey], version: Version) -> Result<Self, Error> {
        let keys = Keys::new(audience, version).map_err(Error::during("encrypt a session key"))?;
        Ok(Session { keys: Arc::new(keys), messages: 0, bytes: 0 })
    }
}

impl Keys {
    fn new(audience: &[PublicKey], version: Version) -> sequoia_openpgp::Result<Self> {
        let cipher = SymmetricAlgorithm::AES256;
        let session = SessionKey::new(cipher.key_size()?)?;
        let mut address = Vec::new();
        for key in audience {
            let pkesk: PKESK = match version {
                Version::One => PKESK3::for_recipient(cipher, &session, key)?.into(),
                Version::Two => PKESK6::for_recipient(&session, key)?.into(),
            };
            address.extend(Packet::from(pkesk).to_vec()?);
        }
        Ok(Keys { session, address })
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_BYTES, MAX_MESSAGES, Sealer};
    use crate::crypt::{Error, Profile, Role, SecretKey};

    #[test]
    fn session_key_is_renewed_after_so_many_messages_or_bytes() {
        let key = SecretKey::generate(Profile::Rfc9580, "owner", Role::Owner, None).unwrap();
        let sealer = Sealer::new(&[key.certificate()]).unwrap();
        let address = |bytes| sealer.shared.keys_for(bytes).unwrap().address.clone();
        let first = address(0);
        assert_eq!(address(MAX_BYTES), first);
        let second = address(1);
        assert_ne!(second, first);
        for _ in 1..MAX_MESSAGES {
            sealer.shared.keys_for(0).unwrap();
        }
        assert_ne!(address(0), second);
    }

    #[test]
    fn audience_of_nobody_is_an_error() {
        assert!(matches!(Sealer::new(&[]), Err(Error::NoAudience)));
    }
}
