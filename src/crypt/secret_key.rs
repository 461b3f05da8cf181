//! Generates, parses and unlocks secret keys.
//!
//! An owner's key opens backups and is stored under a passphrase. A host's key signs backups and is stored without a
//! passphrase, since backups run unattended.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;
use std::time::SystemTime;

use sequoia_openpgp::cert::amalgamation::key::{ErasedKeyAmalgamation, PrimaryKey};
use sequoia_openpgp::cert::{CertBuilder, CipherSuite};
use sequoia_openpgp::crypto::{AEADAlgorithm, KeyPair, Password, S2K, SymmetricAlgorithm};
use sequoia_openpgp::packet::Key;
use sequoia_openpgp::packet::key::{KeyRole, PublicParts, SecretKeyMaterial, SecretParts};
use sequoia_openpgp::policy::StandardPolicy;
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::types::{Features, HashAlgorithm, KeyFlags};
use sequoia_openpgp::{Cert, Packet};

use super::certificate::Certificate;
use super::certificate::{name, parse_one};
use super::error::Error;
use super::fingerprint::Fingerprint;
use super::numbers;

/// The OpenPGP standard of a new key and of the messages sealed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// RFC 9580 of 2024: faster.
    Rfc9580,
    /// RFC 4880 of 2007: for programs that do not support RFC 9580, such as gpg.
    Rfc4880,
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "rfc9580" => Ok(Profile::Rfc9580),
            "rfc4880" => Ok(Profile::Rfc4880),
            _ => Err(Error::Profile { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Rfc9580 => "rfc9580",
            Profile::Rfc4880 => "rfc4880",
        })
    }
}

/// The purpose of a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Opens backups.
    Owner,
    /// Signs backups, and opens the documents that the host reads again.
    Host,
}

/// A passphrase, kept encrypted in memory and wiped after use.
#[derive(Clone)]
pub struct Passphrase(Password);

impl From<String> for Passphrase {
    fn from(text: String) -> Self {
        Passphrase(text.into_bytes().into())
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// The most memory that unlocking takes in addition to that of Argon2, in bytes.
const UNLOCK_SPARE: usize = 1 << 20;
/// The most memory for unlocking a key, as a power of two in KiB: 2 GiB. Keys from a target are not trusted.
const MAX_ARGON2_MEMORY: u8 = 21;

/// A secret key with its certificate, locked with a passphrase or unlocked.
#[derive(Clone)]
pub struct SecretKey {
    cert: Cert,
}

impl SecretKey {
    /// Generates a key that never expires, locked with `passphrase` if there is one.
    pub fn generate(
        profile: Profile,
        user_id: &str,
        purpose: KeyPurpose,
        passphrase: Option<&Passphrase>,
    ) -> Result<Self, Error> {
        let cert = generate_cert(profile, user_id, purpose).map_err(Error::during("generate a key"))?;
        let cert = match passphrase {
            Some(passphrase) => lock(cert, profile, &passphrase.0).map_err(Error::during("lock the new key"))?,
            None => cert,
        };
        Ok(SecretKey { cert })
    }

    /// Generates the key of a host whose backups are encrypted to `recipients`.
    pub fn generate_host(recipients: &[Certificate]) -> Result<Self, Error> {
        // Without encryption only signatures matter, and every gpg can verify those of the older standard.
        let supports_aead = !recipients.is_empty() && recipients.iter().all(Certificate::supports_aead);
        let profile = if supports_aead { Profile::Rfc9580 } else { Profile::Rfc4880 };
        SecretKey::generate(profile, "brackfs host", KeyPurpose::Host, None)
    }

    /// Parses one secret key, armored or binary. A certificate without a secret key is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let key = SecretKey { cert: parse_one(bytes, "secret key")? };
        if key.secrets().next().is_none() {
            return Err(Error::NoSecretKey { key: key.name() });
        }
        Ok(key)
    }

    /// Returns the public part.
    pub fn certificate(&self) -> Certificate {
        Certificate::new(self.cert.clone())
    }

    /// The fingerprint of the primary key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.cert.fingerprint().into()
    }

    /// Returns the armored secret key. It is locked only if this key is; an unlocked key needs protection.
    pub fn to_armored(&self) -> Result<Vec<u8>, Error> {
        self.cert.as_tsk().armored().to_vec().map_err(Error::during("write a secret key"))
    }

    /// Whether it needs a passphrase to decrypt, or to sign if it has no encryption key.
    pub fn is_locked(&self) -> bool {
        let locked = |key: SecretAmalgamation<'_>| key.key().secret().is_encrypted();
        if self.has_encryption_secret() { self.decryption_keys().all(locked) } else { self.secrets().all(locked) }
    }

    /// Whether it can decrypt once unlocked.
    pub fn has_encryption_secret(&self) -> bool {
        self.decryption_keys().next().is_some()
    }

    /// Unlocks the key. Subkeys with a different passphrase stay locked.
    pub fn unlock(self, passphrase: &Passphrase) -> Result<Self, Error> {
        let (mut open, mut too_large) = (Vec::new(), None);
        for key in self.secrets() {
            if let Err(error) = self.check_memory(&key) {
                too_large = Some(error);
                continue;
            }
            // `None` for a wrong passphrase and for an unlocked key.
            if let Some(secret) = numbers::unlock(key.key().clone(), &passphrase.0) {
                open.push(if key.primary() {
                    Packet::from(secret.role_into_primary())
                } else {
                    Packet::from(secret.role_into_subordinate())
                });
            }
        }
        let name = self.name();
        let (cert, _) = self.cert.insert_packets(open).map_err(Error::during("unlock a key"))?;
        let key = SecretKey { cert };
        if key.is_locked() {
            return Err(too_large.unwrap_or(Error::WrongPassphrase { key: name }));
        }
        Ok(key)
    }

    /// Fails if the limit on memory (`ulimit -v`) is too low to unlock `key`. The library would report a wrong passphrase.
    fn check_memory(&self, key: &SecretAmalgamation<'_>) -> Result<(), Error> {
        let SecretKeyMaterial::Encrypted(locked) = key.key().secret() else { return Ok(()) };
        let S2K::Argon2 { m, .. } = locked.s2k() else { return Ok(()) };
        let bytes = 1024_usize.checked_shl((*m).into()).unwrap_or(usize::MAX);
        let mut room = Vec::<u8>::new();
        match room.try_reserve_exact(bytes.saturating_add(UNLOCK_SPARE)) {
            Ok(()) => drop(black_box(room)),
            Err(_) => return Err(Error::NoMemory { key: self.name(), bytes }),
        }
        Ok(())
    }

    /// The key's name in messages: its fingerprint and user id.
    pub(super) fn name(&self) -> String {
        name(&self.cert)
    }

    /// Returns all unlocked keys that can decrypt, including expired and revoked ones.
    pub(super) fn decryption_pairs(&self) -> Result<Vec<KeyPair>, Error> {
        if !self.has_encryption_secret() {
            return Err(Error::NoDecryptionKey { key: self.name() });
        }
        let open = self.decryption_keys().filter(|key| !key.key().secret().is_encrypted());
        let pairs: Result<Vec<_>, _> = open.map(|key| key.key().clone().into_keypair()).collect();
        let pairs = pairs.map_err(Error::during("use a secret key"))?;
        if pairs.is_empty() {
            return Err(Error::Locked { key: self.name() });
        }
        Ok(pairs)
    }

    /// Returns the newest key that can sign today.
    pub(super) fn signing_pair(&self) -> Result<KeyPair, Error> {
        let policy = StandardPolicy::new();
        // The key must stay valid if the clock was set back.
        let now = SystemTime::now().max(self.cert.primary_key().key().creation_time());
        let keys = || self.cert.keys().with_policy(&policy, now).for_signing().alive().revoked(false).supported();
        if let Some(key) = keys().unencrypted_secret().max_by_key(|key| key.key().creation_time()) {
            return key.key().clone().into_keypair().map_err(Error::during("use a secret key"));
        }
        Err(match keys().encrypted_secret().next() {
            Some(_) => Error::Locked { key: self.name() },
            None => Error::NoSigningKey { key: self.name() },
        })
    }

    /// The keys whose secret is present, that is, not on a smart card and not omitted from an export.
    fn secrets(&self) -> impl Iterator<Item = SecretAmalgamation<'_>> {
        self.cert.keys().secret().filter(|key| match key.key().secret() {
            SecretKeyMaterial::Unencrypted(_) => true,
            SecretKeyMaterial::Encrypted(locked) => match locked.s2k() {
                S2K::Argon2 { m, .. } => *m <= MAX_ARGON2_MEMORY,
                other => other.is_supported(),
            },
        })
    }

    fn decryption_keys(&self) -> impl Iterator<Item = SecretAmalgamation<'_>> {
        self.secrets().filter(|key| key.key().pk_algo().for_encryption() && may_encrypt(key))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name())
    }
}

type SecretAmalgamation<'a> = ErasedKeyAmalgamation<'a, SecretParts>;

/// Whether the key was ever flagged for encryption. Signing-only RSA keys could decrypt as well, but must not be used.
/// Validity is ignored, so that old messages can be read.
fn may_encrypt(key: &SecretAmalgamation<'_>) -> bool {
    let of_user_ids = key.cert().userids().filter(|_| key.primary()).flat_map(|user_id| user_id.self_signatures());
    let mut flags = key.self_signatures().chain(of_user_ids).filter_map(|signature| signature.key_flags()).peekable();
    flags.peek().is_none() || flags.any(|flags| flags.for_storage_encryption() || flags.for_transport_encryption())
}

fn generate_cert(profile: Profile, user_id: &str, purpose: KeyPurpose) -> sequoia_openpgp::Result<Cert> {
    let certify = KeyFlags::empty().set_certification();
    let primary = match purpose {
        KeyPurpose::Owner => certify,
        KeyPurpose::Host => certify.set_signing(),
    };
    let (standard, features) = match profile {
        Profile::Rfc9580 => (sequoia_openpgp::Profile::RFC9580, Features::empty().set_seipdv1().set_seipdv2()),
        Profile::Rfc4880 => (sequoia_openpgp::Profile::RFC4880, Features::empty().set_seipdv1()),
    };
    let (cert, _) = CertBuilder::new()
        .set_profile(standard)?
        .set_features(features)?
        .set_cipher_suite(CipherSuite::Cv25519)
        .set_validity_period(None)
        .set_primary_key_flags(primary)
        .add_subkey(KeyFlags::empty().set_storage_encryption().set_transport_encryption(), None, None)
        .add_userid(user_id)
        .generate()?;
    Ok(cert)
}

/// Encrypts all secrets of a new key with a passphrase.
fn lock(cert: Cert, profile: Profile, password: &Password) -> sequoia_openpgp::Result<Cert> {
    let mut packets = Vec::new();
    for key in cert.keys().unencrypted_secret() {
        let (public, secret) = key.key().clone().take_secret();
        packets.push(if key.primary() {
            Packet::from(add_locked(public.role_into_primary(), secret, profile, password)?)
        } else {
            Packet::from(add_locked(public.role_into_subordinate(), secret, profile, password)?)
        });
    }
    Ok(cert.insert_packets(packets)?.0)
}

fn add_locked<R: KeyRole>(
    public: Key<PublicParts, R>,
    secret: SecretKeyMaterial,
    profile: Profile,
    password: &Password,
) -> sequoia_openpgp::Result<Key<SecretParts, R>> {
    let mode = match profile {
        Profile::Rfc9580 => Some(AEADAlgorithm::OCB),
        Profile::Rfc4880 => None,
    };
    let locked = secret.encrypt_with(&public, key_derivation(profile)?, SymmetricAlgorithm::AES256, mode, password)?;
    Ok(public.add_secret(locked).0)
}

/// The key derivation for a passphrase: the second recommended option of RFC 9106 (Argon2 with 64 MiB of memory), since an
/// attacker may get the key from a target. RFC 4880 has no Argon2; there it is the maximum number of SHA-256 rounds.
fn key_derivation(profile: Profile) -> sequoia_openpgp::Result<S2K> {
    match profile {
        Profile::Rfc9580 => {
            let mut salt = [0; 16];
            getrandom::fill(&mut salt)?;
            Ok(S2K::Argon2 { salt, t: 3, p: 4, m: 16 })
        }
        Profile::Rfc4880 => S2K::new_iterated(HashAlgorithm::SHA256, 0x3e0_0000),
    }
}
