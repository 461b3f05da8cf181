//! Signs documents with a host's key, and verifies signed documents.

use std::fmt;
use std::time::SystemTime;

use sequoia_openpgp::Packet;
use sequoia_openpgp::cert::amalgamation::ValidAmalgamation;
use sequoia_openpgp::crypto::KeyPair;
use sequoia_openpgp::packet::signature::SignatureBuilder;
use sequoia_openpgp::packet::{OnePassSig, Signature};
use sequoia_openpgp::parse::Parse;
use sequoia_openpgp::policy::{HashAlgoSecurity, Policy, StandardPolicy};
use sequoia_openpgp::serialize::MarshalInto;
use sequoia_openpgp::types::{RevocationStatus, SignatureType};

use super::certificate::Certificate;
use super::certificate::with_key;
use super::error::Error;
use super::fingerprint::Fingerprint;
use super::framing::{self, Payload, literal_content};
use super::secret_key::SecretKey;

/// Signs documents with a host's key.
pub struct Signer {
    pair: KeyPair,
    fingerprint: Fingerprint,
}

impl Signer {
    /// The key must be unlocked and valid.
    pub fn new(key: SecretKey) -> Result<Self, Error> {
        Ok(Signer { pair: key.signing_pair()?, fingerprint: key.fingerprint() })
    }

    /// The fingerprint of the certificate that verifies these signatures.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    /// Returns a signed message that contains `document`.
    pub fn sign(&self, document: &[u8]) -> Result<Vec<u8>, Error> {
        // If the clock was set back, a signature older than its key would never verify.
        self.sign_at(document, SystemTime::now().max(self.pair.public().creation_time()))
    }

    pub(super) fn sign_at(&self, document: &[u8], time: SystemTime) -> Result<Vec<u8>, Error> {
        let head = Payload::Literal.head(document.len())?;
        let (one_pass, signature) = self.packets(document, time).map_err(Error::during("sign a document"))?;
        Ok([one_pass.as_slice(), &head, document, &signature].concat())
    }

    /// Returns the packets before and after the literal packet.
    fn packets(&self, document: &[u8], time: SystemTime) -> sequoia_openpgp::Result<(Vec<u8>, Vec<u8>)> {
        let signature = SignatureBuilder::new(SignatureType::Binary)
            .set_signature_creation_time(time)?
            .sign_message(&mut self.pair.clone(), document)?;
        Ok((one_pass_packet(&signature)?, Packet::from(signature).to_vec()?))
    }
}

/// Returns the one-pass signature packet for a signature.
fn one_pass_packet(signature: &Signature) -> sequoia_openpgp::Result<Vec<u8>> {
    let mut one_pass = OnePassSig::try_from(signature)?;
    one_pass.set_last(true);
    Packet::from(one_pass).to_vec()
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.fingerprint)
    }
}

/// Verifies a signed message. Returns its document and the fingerprint of the certificate in `known` that signed it.
///
/// The key must have been valid when it signed; it may have expired since. Signatures by a key revoked as compromised are
/// never accepted.
pub fn verify<'m>(message: &'m [u8], known: &[Certificate]) -> Result<(&'m [u8], Fingerprint), Error> {
    let (document, signature) = split_signed_message(message)?;
    let issuers = signature.get_issuers();
    let claimed = || issuers.first().map_or("an unnamed key".to_owned(), |issuer| format!("{issuer:X}"));
    let mut why = None;
    for certificate in with_key(known, &issuers) {
        match verify_with(&signature, document, certificate) {
            Ok(()) => return Ok((document, certificate.fingerprint())),
            Err(reason) => why = Some(reason),
        }
    }
    match why {
        Some(why) => Err(Error::BadSignature { signer: claimed(), why }),
        None => Err(Error::UnknownSigner { signer: claimed() }),
    }
}

/// Returns the document of a signed message without verifying the signature.
pub fn unverified(message: &[u8]) -> Result<&[u8], Error> {
    split_signed_message(message).map(|(document, _)| document)
}

/// Splits a message written by [`Signer::sign`] into document and signature.
fn split_signed_message(message: &[u8]) -> Result<(&[u8], Signature), Error> {
    let other = Error::Refused { what: "it is not a single signed document" };
    let (first, rest) = framing::Packet::split(message)?;
    if first.tag == framing::PKESK {
        return Err(Error::Refused { what: "it is encrypted, but should only be signed" });
    }
    let (literal, rest) = framing::Packet::split(rest)?;
    let (signature, rest) = framing::Packet::split(rest)?;
    let tags = [first.tag, literal.tag, signature.tag];
    if tags != [framing::ONE_PASS_SIGNATURE, framing::LITERAL, framing::SIGNATURE] || !rest.is_empty() {
        return Err(other);
    }
    let Some(document) = literal_content(literal.raw) else { return Err(other) };
    let signature = Signature::from_bytes(signature.body);
    let signature = signature.map_err(|_| Error::Damaged { what: "its signature cannot be parsed" })?;
    // The signature does not cover the one-pass packet, and gpg cannot verify a message in which the two differ.
    match one_pass_packet(&signature) {
        Ok(one_pass) if one_pass == first.raw => Ok((document, signature)),
        _ => Err(other),
    }
}

/// Verifies a signature with a certificate. The error says why the signature is not accepted.
fn verify_with(signature: &Signature, document: &[u8], certificate: &Certificate) -> Result<(), &'static str> {
    let policy = StandardPolicy::new();
    let strong = policy.signature(signature, HashAlgoSecurity::CollisionResistance);
    strong.map_err(|_| "its algorithm is too weak or not supported")?;
    let created = signature.signature_creation_time().ok_or("it has no creation time")?;
    if signature.typ() != SignatureType::Binary {
        return Err("it is not a signature of a binary document");
    }
    let keys = certificate.cert().keys().with_policy(&policy, created).for_signing().alive().revoked(false);
    let mut result = Err("its key was not valid for signing when it was made");
    for key in keys.key_handles(signature.get_issuers()) {
        // A key may be valid while its certificate is not.
        if let RevocationStatus::Revoked(_) = key.valid_cert().revocation_status() {
            return Err("its certificate was revoked");
        }
        key.valid_cert().alive().map_err(|_| "its certificate was not valid when it was made")?;
        result = signature.verify_message(key.key(), document).map_err(|_| "it does not match the document");
        if result.is_ok() {
            break;
        }
    }
    result
}
