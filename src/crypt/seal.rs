//! Seals messages to an audience. Many messages share a session key.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// The PKESK packets of all session keys so far.
    all_pkesks: Vec<Vec<u8>>,
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

    /// Returns the PKESK packets of each session key so far. Every message begins with one of these. Normally there is one;
    /// there are more after 64 GiB or 2^20 messages.
    pub fn pkesks(&self) -> Vec<Vec<u8>> {
        self.shared.session().all_pkesks.clone()
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
        let mut session = self.session();
        if session.messages >= MAX_MESSAGES || session.bytes.saturating_add(bytes) > MAX_BYTES {
            session.replace(&self.audience, self.version)?;
        }
        session.messages += 1;
        session.bytes = session.bytes.saturating_add(bytes);
        Ok(Arc::clone(&session.keys))
    }

    fn session(&self) -> MutexGuard<'_, SessionKeyUsage> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionKeyUsage {
    fn new(audience: &[PublicKey], version: Version) -> Result<Self, Error> {
        let keys = SealingKey::new(audience, version)?;
        let all_pkesks = vec![keys.pkesks.clone()];
        Ok(SessionKeyUsage { keys: Arc::new(keys), all_pkesks, messages: 0, bytes: 0 })
    }

    /// Begins to use a new session key.
    fn replace(&mut self, audience: &[PublicKey], version: Version) -> Result<(), Error> {
        let keys = SealingKey::new(audience, version)?;
        self.all_pkesks.push(keys.pkesks.clone());
        (self.keys, self.messages, self.bytes) = (Arc::new(keys), 0, 0);
        Ok(())
    }
}

impl SealingKey {
    fn new(audience: &[PublicKey], version: Version) -> Result<Self, Error> {
        Self::generate(audience, version).map_err(Error::during("encrypt a session key"))
    }

    fn generate(audience: &[PublicKey], version: Version) -> sequoia_openpgp::Result<Self> {
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
    use crate::crypt::framing::Envelope;
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
        let third = pkesks(0);
        assert_ne!(third, second);
        assert_eq!(sealer.pkesks(), [first, second, third]);
    }

    #[test]
    fn every_message_begins_with_the_pkesk_packets_of_its_sealer() {
        for profile in [Profile::Rfc9580, Profile::Rfc4880] {
            let key = || SecretKey::generate(profile, "owner", KeyPurpose::Owner, None).unwrap().certificate();
            let sealer = Sealer::new(&[key(), key()]).unwrap();
            let mut message = Vec::new();
            sealer.clone().seal(b"hello", &mut message).unwrap();
            let pkesks = sealer.pkesks();
            let [pkesks] = pkesks.as_slice() else { panic!("{} session keys", pkesks.len()) };
            assert_eq!(Envelope::parse(&message).unwrap().pkesks, pkesks);
            assert!(Sealer::new(&[key()]).unwrap().pkesks() != sealer.pkesks());
        }
    }

    #[test]
    fn an_empty_audience_is_an_error() {
        assert!(matches!(Sealer::new(&[]), Err(Error::NoAudience)));
    }
}
