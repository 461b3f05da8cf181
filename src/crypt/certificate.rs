//! Certificates: the public part of a key. Sealing needs nothing else.

use std::fmt;
use std::time::SystemTime;

use sequoia_openpgp::cert::{CertParser, Preferences, ValidCert};
use sequoia_openpgp::crypto::mpi;
use sequoia_openpgp::packet::key::{KeyParts, KeyRole, PublicParts, UnspecifiedRole};
use sequoia_openpgp::packet::{Key, Tag};
use sequoia_openpgp::parse::Parse;
use sequoia_openpgp::policy::{AsymmetricAlgorithm, StandardPolicy};
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::types::{Curve, HashAlgorithm, RevocationStatus};
use sequoia_openpgp::{Cert, KeyHandle, Packet, PacketPile};

use super::error::Error;
use super::fingerprint::Fingerprint;
use super::numbers;

/// The first packet of a certificate or a secret key.
const KEYS: [Tag; 2] = [Tag::PublicKey, Tag::SecretKey];

/// The OID of the curve secp256k1, which the library does not know.
const SECP256K1: [u8; 5] = [0x2B, 0x81, 0x04, 0x00, 0x0A];

/// A public key for encryption or signatures.
pub(super) type PublicKey = Key<PublicParts, UnspecifiedRole>;

/// An OpenPGP certificate. It never contains secret keys.
#[derive(Clone)]
pub struct Certificate {
    cert: Cert,
}

impl Certificate {
    /// Parses one certificate, armored or binary. Drops the secret part of a secret key.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        parse_one(bytes, "certificate").map(Self::new)
    }

    pub(super) fn new(cert: Cert) -> Self {
        Certificate { cert: cert.strip_secret_key_material() }
    }

    pub(super) fn cert(&self) -> &Cert {
        &self.cert
    }

    /// The fingerprint of the primary key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.cert.fingerprint().into()
    }

    /// The primary user id. Control characters are replaced, so that it is safe to print.
    pub fn user_id(&self) -> Option<String> {
        user_id(&self.cert)
    }

    /// Serializes the certificate as armored text.
    pub fn to_armored(&self) -> Result<Vec<u8>, Error> {
        self.cert.armored().to_vec().map_err(Error::during("write a certificate"))
    }

    /// Serializes the certificate in binary.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.cert.to_vec().map_err(Error::during("write a certificate"))
    }

    /// Checks that it has a key for encryption that is valid now.
    pub fn check_recipient(&self) -> Result<(), Error> {
        self.encryption_key().map(drop)
    }

    /// Whether it announces support for AEAD encryption (SEIPD version 2, RFC 9580).
    pub fn supports_aead(&self) -> bool {
        let policy = StandardPolicy::new();
        let valid = self.cert.with_policy(&policy, None);
        valid.ok().and_then(|valid| valid.features()).is_some_and(|features| features.supports_seipdv2())
    }

    /// The time when its last encryption key expires. `None` if it never does, or if no key is valid now.
    pub fn expiry(&self) -> Option<SystemTime> {
        let policy = StandardPolicy::new();
        let valid = self.cert.with_policy(&policy, None).ok()?;
        valid.alive().ok()?;
        let keys = valid.keys().for_storage_encryption().for_transport_encryption().revoked(false).alive();
        let ends = keys.filter(|key| is_supported(key.key())).map(|key| key.key_expiration_time());
        // A key that never expires outlasts all others.
        let last = ends.reduce(|one, other| Some(one?.max(other?)))?;
        let certificate = valid.primary_key().key_expiration_time();
        [last, certificate].into_iter().flatten().min()
    }

    /// Merges this certificate with `other`, a later copy of it.
    ///
    /// The result contains all packets of both, so nothing (such as a revocation) is lost if `other` is in fact older.
    pub fn merged_with(&self, other: &Certificate) -> Result<Certificate, Error> {
        let merged = self.cert.clone().merge_public(other.cert.clone());
        merged.map(Certificate::new).map_err(Error::during("merge two certificates of different keys"))
    }

    /// Returns the newest encryption key that is valid now.
    pub(super) fn encryption_key(&self) -> Result<PublicKey, Error> {
        let now = SystemTime::now();
        let certificate = || name(&self.cert);
        let policy = StandardPolicy::new();
        let valid = self.cert.with_policy(&policy, now).map_err(|_| self.why_invalid(now))?;
        if let RevocationStatus::Revoked(_) = valid.revocation_status() {
            return Err(Error::Revoked { certificate: certificate(), part: "certificate" });
        }
        if valid.alive().is_err() {
            return Err(match valid.primary_key().key_expiration_time() {
                Some(at) if at <= now => {
                    Error::Expired { certificate: certificate(), part: "certificate", day: day(at) }
                }
                _ => self.why_invalid(now),
            });
        }

        let keys = || valid.keys().for_storage_encryption().for_transport_encryption();
        let fit = keys().revoked(false).alive().filter(|key| is_supported(key.key()));
        if let Some(newest) = fit.max_by_key(|key| key.key().creation_time()) {
            return Ok(newest.key().clone());
        }
        // There is no such key. Find the reason.
        let part = "encryption key";
        if let Some(key) = keys().revoked(false).filter(|key| is_supported(key.key())).last() {
            return Err(match key.key_expiration_time() {
                Some(at) if at <= now => Error::Expired { certificate: certificate(), part, day: day(at) },
                _ => not_yet_valid(certificate(), part, key.key().creation_time(), now),
            });
        }
        if keys().any(|key| is_supported(key.key())) {
            return Err(Error::Revoked { certificate: certificate(), part });
        }
        // Keys with a binding signature from the future are not among those that are valid now.
        if let Some(since) = self.moments().into_iter().filter(|moment| *moment > now).find(|moment| {
            let valid = self.cert.with_policy(&policy, *moment);
            let keys = |valid: &ValidCert<'_>| valid.keys().for_storage_encryption().for_transport_encryption().count();
            valid.is_ok_and(|valid| keys(&valid) > 0)
        }) {
            return Err(not_yet_valid(certificate(), part, since, now));
        }
        Err(match self.refused_algorithm(now) {
            Some(algorithm) => Error::UnsupportedAlgorithm { certificate: certificate(), part, algorithm },
            None => Error::NoEncryptionKey { certificate: certificate() },
        })
    }

    /// Returns the reason why the certificate as a whole is not valid now.
    fn why_invalid(&self, now: SystemTime) -> Error {
        let (certificate, part) = (name(&self.cert), "certificate");
        let primary = self.cert.primary_key().key();
        if !primary.pk_algo().is_supported() || !has_supported_curve(primary) {
            let algorithm = algorithm(primary);
            return Error::UnsupportedAlgorithm { certificate, part: "primary key", algorithm };
        }
        let policy = StandardPolicy::new();
        let is_valid = |moment: &SystemTime| self.cert.with_policy(&policy, *moment).is_ok();
        if let Some(since) = self.moments().into_iter().filter(|moment| *moment > now).find(is_valid) {
            return not_yet_valid(certificate, part, since, now);
        }
        // The relaxed policies only select the message: the certificate is refused in any case.
        if self.cert.with_policy(&any_algorithm(), now).is_ok() {
            return Error::UnsupportedAlgorithm { certificate, part: "primary key", algorithm: algorithm(primary) };
        }
        match self.cert.with_policy(&any_hash(), now) {
            Ok(_) => Error::Weak { certificate },
            Err(_) => Error::Invalid { certificate },
        }
    }

    /// The creation times of its keys and self-signatures, the oldest first.
    fn moments(&self) -> Vec<SystemTime> {
        let keys = self.cert.keys().map(|key| key.key().creation_time());
        let of_keys = self.cert.keys().flat_map(|key| key.self_signatures());
        let of_user_ids = self.cert.userids().flat_map(|user_id| user_id.self_signatures());
        let signatures = of_keys.chain(of_user_ids).filter_map(|signature| signature.signature_creation_time());
        let mut moments: Vec<_> = keys.chain(signatures).collect();
        moments.sort();
        moments
    }

    /// Returns the key with this fingerprint, whether it is valid or not.
    pub(super) fn key(&self, fingerprint: &Fingerprint) -> Result<PublicKey, Error> {
        let key = self.cert.keys().find(|key| Fingerprint::from(key.key().fingerprint()) == *fingerprint);
        let key = key.ok_or_else(|| Error::NoEncryptionKey { certificate: name(&self.cert) })?;
        Ok(key.key().clone())
    }

    /// Returns the algorithm of an encryption key that was refused for its algorithm.
    fn refused_algorithm(&self, now: SystemTime) -> Option<String> {
        let anything = any_algorithm();
        let keys = self.cert.keys().with_policy(&anything, now).for_storage_encryption().for_transport_encryption();
        keys.last().map(|key| algorithm(key.key()))
    }
}

/// The fingerprint and, if there is one, the user id.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(&self.cert))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", name(&self.cert))
    }
}

/// Parses exactly one certificate or key. `expected` names it in error messages.
pub(super) fn parse_one(bytes: &[u8], expected: &'static str) -> Result<Cert, Error> {
    // The parser stops after the first armored block and would ignore further ones.
    const ARMOR: &[u8] = b"-----BEGIN PGP ";
    let is_text = bytes.first().is_none_or(|first| first & 0x80 == 0);
    if is_text && bytes.windows(ARMOR.len()).filter(|window| *window == ARMOR).count() > 1 {
        return Err(Error::SeveralKeys);
    }
    let not_a_key = |why| Error::NotAKey { expected, why };
    let packets = PacketPile::from_bytes(bytes).map_err(|_| not_a_key("it is something else or damaged"))?;
    let packets: Vec<_> = packets.into_children().map(numbers::repair_secret_key).collect();
    match packets.first() {
        None => return Err(not_a_key("it is empty")),
        Some(Packet::Unknown(key)) if KEYS.contains(&key.tag()) => {
            // Other versions are not in RFC 4880 or 9580 or are obsolete: GnuPG writes version 5; version 3 is from the 1990s.
            return Err(match key.body().first() {
                Some(version) if !matches!(version, 4 | 6) => Error::KeyVersion { version: *version },
                _ => not_a_key("it is damaged"),
            });
        }
        Some(first) if KEYS.contains(&first.tag()) => {}
        Some(_) => return Err(not_a_key("it holds something else")),
    }
    let mut certs = CertParser::from(packets);
    match (certs.next(), certs.next()) {
        (Some(Ok(cert)), None) => Ok(cert),
        (Some(Ok(_)), Some(Ok(_))) => Err(Error::SeveralKeys),
        _ => Err(not_a_key("it is damaged")),
    }
}

/// The name of a key in messages: its fingerprint and, if it has one, its user id.
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

/// Whether the library supports the key's algorithm.
fn is_supported(key: &PublicKey) -> bool {
    key.pk_algo().is_supported() && has_supported_curve(key)
}

fn has_supported_curve<P: KeyParts, R: KeyRole>(key: &Key<P, R>) -> bool {
    curve(key).is_none_or(Curve::is_supported)
}

fn curve<P: KeyParts, R: KeyRole>(key: &Key<P, R>) -> Option<&Curve> {
    match key.mpis() {
        mpi::PublicKey::ECDH { curve, .. }
        | mpi::PublicKey::ECDSA { curve, .. }
        | mpi::PublicKey::EdDSA { curve, .. } => Some(curve),
        _ => None,
    }
}

/// The name of a key's algorithm in messages.
fn algorithm<P: KeyParts, R: KeyRole>(key: &Key<P, R>) -> String {
    let algorithm = key.pk_algo();
    match (curve(key), key.mpis().bits()) {
        (Some(Curve::Unknown(oid)), _) if **oid == SECP256K1 => format!("{algorithm} on the curve secp256k1"),
        (Some(Curve::Unknown(_)), _) => format!("{algorithm} on an unknown curve"),
        (Some(curve), _) => format!("{algorithm} on the curve {curve}"),
        (None, Some(bits)) => format!("{algorithm} with {bits} bits"),
        (None, None) => algorithm.to_string(),
    }
}

/// Returns the certificates in `known` that have one of the keys `issuers`.
pub(super) fn with_key<'k>(known: &'k [Certificate], issuers: &[KeyHandle]) -> impl Iterator<Item = &'k Certificate> {
    let has_key = |certificate: &&Certificate| certificate.cert.keys().key_handles(issuers.iter()).next().is_some();
    known.iter().filter(has_key)
}

/// The standard policy, except that it accepts all key algorithms.
fn any_algorithm() -> StandardPolicy<'static> {
    let mut policy = StandardPolicy::new();
    AsymmetricAlgorithm::variants().for_each(|algorithm| policy.accept_asymmetric_algo(algorithm));
    policy
}

/// The same, except that it also accepts weak hashes.
fn any_hash() -> StandardPolicy<'static> {
    let mut policy = any_algorithm();
    [HashAlgorithm::SHA1, HashAlgorithm::MD5, HashAlgorithm::RipeMD].iter().for_each(|hash| policy.accept_hash(*hash));
    policy
}

fn not_yet_valid(certificate: String, part: &'static str, since: SystemTime, now: SystemTime) -> Error {
    Error::NotYetValid { certificate, part, since: minute(since), now: minute(now) }
}

fn day(time: SystemTime) -> String {
    format_time(time, "%Y-%m-%d")
}

fn minute(time: SystemTime) -> String {
    format_time(time, "%Y-%m-%d %H:%M:%S UTC")
}

fn format_time(time: SystemTime, format: &str) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => time.strftime(format).to_string(),
        Err(_) => "a time out of range".into(),
    }
}
