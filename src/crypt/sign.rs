//! Signed messages: what a host writes, anyone who knows its key can verify.

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

use super::certificate::with_key;
use super::framing::{self, Inside, literal_content};
use super::{Certificate, Error, Fingerprint, SecretKey};

/// Signs documents with a host's key.
pub struct Signer {
    pair: KeyPair,
    fingerprint: Fingerprint,
}

impl Signer {
    /// Signs with a key that must be unlocked and valid.
    pub fn new(key: SecretKey) -> Result<Self, Error> {
        Ok(Signer { pair: key.signing_pair()?, fingerprint: key.fingerprint() })
    }

    /// The fingerprint of the certificate that verifies what this signs.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    /// A signed message with `document` in it.
    pub fn sign(&self, document: &[u8]) -> Result<Vec<u8>, Error> {
        // A signature from before its key, by a clock that was set back, would never verify.
        self.sign_at(document, SystemTime::now().max(self.pair.public().creation_time()))
    }

    pub(super) fn sign_at(&self, document: &[u8], time: SystemTime) -> Result<Vec<u8>, Error> {
        let head = Inside::Literal.head(document.len())?;
        let (announcement, signature) = self.packets(document, time).map_err(Error::during("sign a document"))?;
        Ok([announcement.as_slice(), &head, document, &signature].concat())
    }

    /// What stands before the literal packet, and after it.
    fn packets(&self, document: &[u8], time: SystemTime) -> sequoia_openpgp::Result<(Vec<u8>, Vec<u8>)> {
        let signature = SignatureBuilder::new(SignatureType::Binary)
            .set_signature_creation_time(time)?
            .sign_message(&mut self.pair.clone(), document)?;
        Ok((announcement(&signature)?, Packet::from(signature).to_vec()?))
    }
}

/// The one-pass signature packet that announces a signature.
fn announcement(signature: &Signature) -> sequoia_openpgp::Result<Vec<u8>> {
    let mut announcement = OnePassSig::try_from(signature)?;
    announcement.set_last(true);
    Packet::from(announcement).to_vec()
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.fingerprint)
    }
}

/// Verifies a signed message, and returns its document and the fingerprint of the certificate, one of
/// `known`, that signed it.
///
/// What counts is whether the key was valid when it signed: later it may expire. A key that was revoked
/// as compromised never counts.
pub fn verify<'m>(message: &'m [u8], known: &[Certificate]) -> Result<(&'m [u8], Fingerprint), Error> {
    let (document, signature) = take_apart(message)?;
    let issuers = signature.get_issuers();
    let claimed = || issuers.first().map_or("someone unnamed".to_owned(), |issuer| format!("{issuer:X}"));
    let mut why = None;
    for certificate in with_key(known, &issuers) {
        match verify_by(&signature, document, certificate) {
            Ok(()) => return Ok((document, certificate.fingerprint())),
            Err(reason) => why = Some(reason),
        }
    }
    match why {
        Some(why) => Err(Error::BadSignature { signer: claimed(), why }),
        None => Err(Error::UnknownSigner { signer: claimed() }),
    }
}

/// The document of a signed message. Nothing is verified.
pub fn unverified(message: &[u8]) -> Result<&[u8], Error> {
    take_apart(message).map(|(document, _)| document)
}

/// The document and the signature of a message of the shape that [`Signer::sign`] writes.
fn take_apart(message: &[u8]) -> Result<(&[u8], Signature), Error> {
    let other = Error::Refused { what: "it is something else than one signed document" };
    let (first, rest) = framing::Packet::split(message)?;
    if first.tag == framing::PKESK {
        return Err(Error::Refused { what: "it is encrypted where only a signature should be" });
    }
    let (literal, rest) = framing::Packet::split(rest)?;
    let (signature, rest) = framing::Packet::split(rest)?;
    let tags = [first.tag, literal.tag, signature.tag];
    if tags != [framing::ONE_PASS_SIGNATURE, framing::LITERAL, framing::SIGNATURE] || !rest.is_empty() {
        return Err(other);
    }
    let Some(document) = literal_content(literal.raw) else { return Err(other) };
    let signature = Signature::from_bytes(signature.body);
    let signature = signature.map_err(|_| Error::Damaged { what: "its signature can't be read" })?;
    // No signature covers what announces it, and gpg can't check a message in which the two differ.
    match announcement(&signature) {
        Ok(announced) if announced == first.raw => Ok((document, signature)),
        _ => Err(other),
    }
}

/// Says what is wrong with the signature, if anything is.
fn verify_by(signature: &Signature, document: &[u8], certificate: &Certificate) -> Result<(), &'static str> {
    let policy = StandardPolicy::new();
    let strong = policy.signature(signature, HashAlgoSecurity::CollisionResistance);
    strong.map_err(|_| "its algorithm is too weak, or not known here")?;
    let created = signature.signature_creation_time().ok_or("it does not say when it was made")?;
    if signature.typ() != SignatureType::Binary {
        return Err("it is a signature of another kind");
    }
    let keys = certificate.cert().keys().with_policy(&policy, created).for_signing().alive().revoked(false);
    let mut result = Err("its key was not valid for signing when it was made");
    for key in keys.key_handles(signature.get_issuers()) {
        // A key may be valid by itself when its certificate is not.
        if let RevocationStatus::Revoked(_) = key.valid_cert().revocation_status() {
            return Err("its certificate was revoked");
        }
        key.valid_cert().alive().map_err(|_| "its certificate was not valid when it was made")?;
        result = signature.verify_message(key.key(), document).map_err(|_| "it does not fit the document");
        if result.is_ok() {
            break;
        }
    }
    result
}
