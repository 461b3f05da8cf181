//! Certificates: the public part of a key, which is all that sealing needs.

use std::fmt;
use std::time::SystemTime;

use sequoia_openpgp::cert::{CertParser, Preferences};
use sequoia_openpgp::crypto::mpi;
use sequoia_openpgp::packet::Key;
use sequoia_openpgp::packet::key::{PublicParts, UnspecifiedRole};
use sequoia_openpgp::parse::Parse;
use sequoia_openpgp::policy::{AsymmetricAlgorithm, StandardPolicy};
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::types::RevocationStatus;
use sequoia_openpgp::{Cert, KeyHandle};

use super::{Error, Fingerprint};

/// A key for encryption, or for signatures, without its secret.
pub(super) type PublicKey = Key<PublicParts, UnspecifiedRole>;

/// An OpenPGP certificate. It never holds a secret.
#[derive(Clone)]
pub struct Certificate {
    cert: Cert,
}

impl Certificate {
    /// Parses one certificate, armored or binary. Of a secret key the public part is taken.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        parse_one(bytes, "certificate").map(Self::new)
    }

    pub(super) fn new(cert: Cert) -> Self {
        Certificate { cert: cert.strip_secret_key_material() }
    }

    pub(super) fn cert(&self) -> &Cert {
        &self.cert
    }

    /// The fingerprint of its primary key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.cert.fingerprint().into()
    }

    /// Whose it says it is. Control characters are replaced, so that it can be printed.
    pub fn user_id(&self) -> Option<String> {
        user_id(&self.cert)
    }

    /// The certificate as text.
    pub fn to_armored(&self) -> Result<Vec<u8>, Error> {
        self.cert.armored().to_vec().map_err(Error::during("write a certificate"))
    }

    /// The certificate as bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.cert.to_vec().map_err(Error::during("write a certificate"))
    }

    /// Checks that something can be encrypted to it today.
    pub fn check_recipient(&self) -> Result<(), Error> {
        self.encryption_key().map(drop)
    }

    /// Whether it announces that its owner reads AEAD encryption (SEIPD version 2, RFC 9580).
    pub fn supports_aead(&self) -> bool {
        let policy = StandardPolicy::new();
        let valid = self.cert.with_policy(&policy, None);
        valid.ok().and_then(|valid| valid.features()).is_some_and(|features| features.supports_seipdv2())
    }

    /// The newest key to which something can be encrypted today.
    pub(super) fn encryption_key(&self) -> Result<PublicKey, Error> {
        let certificate = || name(&self.cert);
        let policy = StandardPolicy::new();
        let valid = self.cert.with_policy(&policy, None);
        let valid = valid.map_err(|e| Error::Invalid { certificate: certificate(), why: e.to_string() })?;
        if let RevocationStatus::Revoked(_) = valid.revocation_status() {
            return Err(Error::Revoked { certificate: certificate(), part: "certificate" });
        }
        if let Err(error) = valid.alive() {
            return Err(match error.downcast_ref() {
                Some(sequoia_openpgp::Error::Expired(at)) => {
                    Error::Expired { certificate: certificate(), part: "certificate", day: day(*at) }
                }
                _ => Error::Invalid { certificate: certificate(), why: error.to_string() },
            });
        }

        let keys = || valid.keys().for_storage_encryption().for_transport_encryption();
        let fit = keys().revoked(false).alive().filter(|key| is_supported(key.key()));
        if let Some(newest) = fit.max_by_key(|key| key.key().creation_time()) {
            return Ok(newest.key().clone());
        }
        // There is none: the rest finds out why.
        let part = "encryption key";
        if let Some(key) = keys().revoked(false).filter(|key| is_supported(key.key())).last() {
            return Err(match key.key_expiration_time() {
                Some(at) if at <= SystemTime::now() => {
                    Error::Expired { certificate: certificate(), part, day: day(at) }
                }
                _ => Error::Invalid { certificate: certificate(), why: format!("its {part} is not valid yet") },
            });
        }
        if keys().any(|key| is_supported(key.key())) {
            return Err(Error::Revoked { certificate: certificate(), part });
        }
        Err(match self.refused_algorithm() {
            Some(algorithm) => Error::UnsupportedAlgorithm { certificate: certificate(), algorithm },
            None => Error::NoEncryptionKey { certificate: certificate() },
        })
    }

    /// The key with this fingerprint, whatever it is for and fit for.
    pub(super) fn key(&self, fingerprint: &Fingerprint) -> Result<PublicKey, Error> {
        let key = self.cert.keys().find(|key| Fingerprint::from(key.key().fingerprint()) == *fingerprint);
        let key = key.ok_or_else(|| Error::NoEncryptionKey { certificate: name(&self.cert) })?;
        Ok(key.key().clone())
    }

    /// The algorithm of a key for encryption that we can't or don't want to use.
    fn refused_algorithm(&self) -> Option<String> {
        let mut anything = StandardPolicy::new();
        AsymmetricAlgorithm::variants().for_each(|algorithm| anything.accept_asymmetric_algo(algorithm));
        let keys = self.cert.keys().with_policy(&anything, None).for_storage_encryption().for_transport_encryption();
        keys.last().map(|key| match key.key().mpis().bits() {
            Some(bits) => format!("{} with {bits} bits", key.key().pk_algo()),
            None => key.key().pk_algo().to_string(),
        })
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", name(&self.cert))
    }
}

/// Parses exactly one certificate or key; `expected` is the word for it.
pub(super) fn parse_one(bytes: &[u8], expected: &'static str) -> Result<Cert, Error> {
    // The parser stops after the first armored block, and would overlook the others.
    const ARMOR: &[u8] = b"-----BEGIN PGP ";
    let is_text = bytes.first().is_none_or(|first| first & 0x80 == 0);
    if is_text && bytes.windows(ARMOR.len()).filter(|window| *window == ARMOR).count() > 1 {
        return Err(Error::SeveralKeys);
    }
    let not_a_key = |why: String| Error::NotAKey { expected, why };
    let mut certs = CertParser::from_bytes(bytes).map_err(|e| not_a_key(e.to_string()))?;
    let cert = certs.next().ok_or_else(|| not_a_key("there is none in it".into()))?;
    let cert = cert.map_err(|e| not_a_key(e.to_string()))?;
    match certs.next() {
        None => Ok(cert),
        Some(Ok(_)) => Err(Error::SeveralKeys),
        Some(Err(e)) => Err(not_a_key(e.to_string())),
    }
}

/// What messages call a key: its fingerprint and, if it has one, its user id.
pub(super) fn name(cert: &Cert) -> String {
    match user_id(cert) {
        Some(user_id) => format!("{} ({user_id})", cert.fingerprint()),
        None => cert.fingerprint().to_string(),
    }
}

fn user_id(cert: &Cert) -> Option<String> {
    let policy = StandardPolicy::new();
    let primary = cert.with_policy(&policy, None).and_then(|valid| Ok(valid.primary_userid()?.userid().clone()));
    let user_id = primary.ok().or_else(|| cert.userids().next().map(|user_id| user_id.userid().clone()))?;
    let text = String::from_utf8_lossy(user_id.value()).into_owned();
    Some(text.replace(char::is_control, "\u{FFFD}"))
}

/// Whether the library at hand can encrypt with a key of this kind.
fn is_supported(key: &PublicKey) -> bool {
    let curve = match key.mpis() {
        mpi::PublicKey::ECDH { curve, .. } => curve.is_supported(),
        _ => true,
    };
    key.pk_algo().is_supported() && curve
}

/// Among `known`, the certificates that have one of the keys `issuers`.
pub(super) fn with_key<'k>(known: &'k [Certificate], issuers: &[KeyHandle]) -> impl Iterator<Item = &'k Certificate> {
    let has_key = |certificate: &&Certificate| certificate.cert.keys().key_handles(issuers.iter()).next().is_some();
    known.iter().filter(has_key)
}

fn day(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => time.strftime("%Y-%m-%d").to_string(),
        Err(_) => "a day long ago".into(),
    }
}
