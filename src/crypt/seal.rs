//! Seals messages to an audience. Many messages share a session key.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sequoia_openpgp::Packet;
use sequoia_openpgp::crypto::{SessionKey, SymmetricAlgorithm};
use sequoia_openpgp::packet::PKESK;
use sequoia_openpgp::packet::pkesk::{PKESK3, PKESK6};
use sequoia_openpgp::serialize::MarshalInto;

use super::certificate::Certificate;
use super::certificate::PublicKey;
use super::error::Error;
use super::fingerprint::Fingerprint;
use super::framing::Payload;
use super::{seipd1, seipd2};

/// The most messages per session key.
const MAX_MESSAGES: u64 = 1 << 20;
/// The most bytes of content per session key.
const MAX_BYTES: u64 = 64 << 30;

/// Seals messages to an audience. Clones share the session key. Several threads may seal at the same time.
///
/// A session key is used for up to 2^20 messages and 64 GiB, so that a reader (or a smart card) decrypts it once and not
/// for every message. Each message has its own salt or random block.
#[derive(Clone)]
pub struct Sealer {
    shared: Arc<SealerState>,
}

struct SealerState {
    audience: Vec<PublicKey>,
    version: Version,
    session: Mutex<SessionKeyUsage>,
}

/// The version of the encrypted packet (SEIPD).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The current session key and its use so far.
struct SessionKeyUsage {
    keys: Arc<SealingKey>,
    messages: u64,
    bytes: u64,
}

/// A session key, and its PKESK packets: the key encrypted to each recipient.
struct SealingKey {
    session: SessionKey,
    pkesks: Vec<u8>,
}

impl Version {
    /// Version 2 if all certificates support it.
    fn for_audience(audience: &[Certificate]) -> Self {
        if audience.iter().all(Certificate::supports_aead) { Version::Two } else { Version::One }
    }
}

impl Sealer {
    /// Seals to the newest encryption key of each certificate. Each certificate must have one that is valid today.
    pub fn new(audience: &[Certificate]) -> Result<Self, Error> {
        if audience.is_empty() {
            return Err(Error::NoAudience);
        }
        let version = Version::for_audience(audience);
        let mut keys = Vec::<PublicKey>::new();
        for certificate in audience {
            let key = certificate.encryption_key()?;
            if !keys.iter().any(|known| known.fingerprint() == key.fingerprint()) {
                keys.push(key);
            }
        }
        Self::with(keys, version)
    }

    /// Seals to one key of a certificate, even if the key is expired or revoked. Only for data that stays with its owner.
    pub(super) fn to_key(certificate: &Certificate, key: &Fingerprint) -> Result<Self, Error> {
        Self::with(vec![certificate.key(key)?], Version::for_audience(std::slice::from_ref(certificate)))
    }

    fn with(audience: Vec<PublicKey>, version: Version) -> Result<Self, Error> {
        let session = Mutex::new(SessionKeyUsage::new(&audience, version)?);
        Ok(Sealer { shared: Arc::new(SealerState { audience, version, session }) })
    }

    /// Appends a message with `content` to `out`. On error, `out` is unchanged.
    pub fn seal(&self, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(Payload::Literal, content, out)
    }

    /// Appends a message that contains `packets`, for example a signed message, to `out`. On error, `out` is unchanged.
    pub fn seal_message(&self, packets: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.append(Payload::Packets, packets, out)
    }

    fn append(&self, payload: Payload, content: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let keys = self.shared.keys_for(content.len() as u64)?;
        let start = out.len();
        out.extend(&keys.pkesks);
        let sealed = match self.shared.version {
            Version::One => seipd1::seal(&keys.session, payload, content, out),
            Version::Two => seipd2::seal(&keys.session, payload, content, out),
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

impl SealerState {
    /// Returns the session key for a message with this many bytes of content. Replaces the session key at its limits.
    fn keys_for(&self, bytes: u64) -> Result<Arc<SealingKey>, Error> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.messages >= MAX_MESSAGES || session.bytes.saturating_add(bytes) > MAX_BYTES {
            *session = SessionKeyUsage::new(&self.audience, self.version)?;
        }
        session.messages += 1;
        session.bytes = session.bytes.saturating_add(bytes);
        Ok(Arc::clone(&session.keys))
    }
}

impl SessionKeyUsage {
    fn new(audience: &[PublicKey], version: Version) -> Result<Self, Error> {
        let keys = SealingKey::new(audience, version).map_err(Error::during("encrypt a session key"))?;
        Ok(SessionKeyUsage { keys: Arc::new(keys), messages: 0, bytes: 0 })
    }
}

impl SealingKey {
    fn new(audience: &[PublicKey], version: Version) -> sequoia_openpgp::Result<Self> {
        let cipher = SymmetricAlgorithm::AES256;
        let session = SessionKey::new(cipher.key_size()?)?;
        let mut pkesks = Vec::new();
        for key in audience {
            let pkesk: PKESK = match version {
                Version::One => PKESK3::for_recipient(cipher, &session, key)?.into(),
                Version::Two => PKESK6::for_recipient(&session, key)?.into(),
            };
            pkesks.extend(Packet::from(pkesk).to_vec()?);
        }
        Ok(SealingKey { session, pkesks })
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_BYTES, MAX_MESSAGES, Sealer};
    use crate::crypt::{Error, KeyPurpose, Profile, SecretKey};

    #[test]
    fn the_session_key_is_replaced_at_its_limits_of_messages_and_bytes() {
        let key = SecretKey::generate(Profile::Rfc9580, "owner", KeyPurpose::Owner, None).unwrap();
        let sealer = Sealer::new(&[key.certificate()]).unwrap();
        let pkesks = |bytes| sealer.shared.keys_for(bytes).unwrap().pkesks.clone();
        let first = pkesks(0);
        assert_eq!(pkesks(MAX_BYTES), first);
        let second = pkesks(1);
        assert_ne!(second, first);
        for _ in 1..MAX_MESSAGES {
            sealer.shared.keys_for(0).unwrap();
        }
        assert_ne!(pkesks(0), second);
    }

    #[test]
    fn an_empty_audience_is_an_error() {
        assert!(matches!(Sealer::new(&[]), Err(Error::NoAudience)));
    }
}
