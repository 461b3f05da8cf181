//! temporary
#![allow(missing_docs, unused, dead_code, clippy::all)]
use std::collections::HashMap;
use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use openpgp::cert::prelude::*;
use openpgp::crypto::{Password, SessionKey};
use openpgp::packet::{PKESK, Packet, SKESK};
use openpgp::parse::Parse;
use openpgp::parse::stream::*;
use openpgp::policy::StandardPolicy;
use openpgp::serialize::stream::*;
use openpgp::serialize::{Marshal, MarshalInto, Serialize};
use openpgp::types::*;
use openpgp::{Cert, KeyHandle};
use sequoia_openpgp as openpgp;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Other(String),
    #[error("key problem: {0}")]
    Key(String),
    #[error("signed by {signer}")]
    UnknownSigner { signer: String },
}
impl Error {
    pub fn is_key_problem(&self) -> bool {
        matches!(self, Error::Key(_))
    }
}
fn e(x: impl fmt::Display) -> Error {
    Error::Other(x.to_string())
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Rfc9580,
    Rfc4880,
}
impl FromStr for Profile {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "rfc9580" => Ok(Profile::Rfc9580),
            "rfc4880" => Ok(Profile::Rfc4880),
            _ => Err(e("no such profile")),
        }
    }
}
pub enum Role {
    Owner,
    Host,
}
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);
impl FromStr for Fingerprint {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        Ok(Fingerprint(s.to_uppercase()))
    }
}
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
pub struct Passphrase(Password);
impl From<String> for Passphrase {
    fn from(s: String) -> Self {
        Passphrase(s.into())
    }
}
#[derive(Clone, Debug)]
pub struct Certificate(Cert);
impl Certificate {
    pub fn parse(b: &[u8]) -> Result<Self, Error> {
        Ok(Certificate(Cert::from_bytes(b).map_err(e)?.strip_secret_key_material()))
    }
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.0.fingerprint().to_hex())
    }
    pub fn to_armored(&self) -> Result<Vec<u8>, Error> {
        self.0.armored().to_vec().map_err(e)
    }
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.0.to_vec().map_err(e)
    }
    pub fn check_recipient(&self) -> Result<(), Error> {
        Ok(())
    }
    pub fn supports_aead(&self) -> bool {
        let p = StandardPolicy::new();
        self.0.with_policy(&p, None).ok().and_then(|c| c.features()).is_some_and(|f| f.supports_seipdv2())
    }
}
#[derive(Clone)]
pub struct SecretKey(Cert);
impl SecretKey {
    pub fn generate(p: Profile, u: &str, r: Role, pw: Option<&Passphrase>) -> Result<Self, Error> {
        let profile = match p {
            Profile::Rfc9580 => openpgp::Profile::RFC9580,
            Profile::Rfc4880 => openpgp::Profile::RFC4880,
        };
        let (cert, _) = CertBuilder::new()
            .set_profile(profile)
            .map_err(e)?
            .add_userid(u)
            .add_signing_subkey()
            .add_subkey(KeyFlags::empty().set_storage_encryption().set_transport_encryption(), None, None)
            .set_password(pw.map(|p| p.0.clone()))
            .generate()
            .map_err(e)?;
        Ok(SecretKey(cert))
    }
    pub fn parse(b: &[u8]) -> Result<Self, Error> {
        let c = Cert::from_bytes(b).map_err(e)?;
        if !c.is_tsk() {
            return Err(Error::Key("holds no secret key".into()));
        }
        Ok(SecretKey(c))
    }
    pub fn certificate(&self) -> Certificate {
        Certificate(self.0.clone().strip_secret_key_material())
    }
    pub fn to_armored(&self) -> Result<Vec<u8>, Error> {
        self.0.as_tsk().armored().to_vec().map_err(e)
    }
    pub fn is_locked(&self) -> bool {
        self.0.keys().secret().any(|k| k.key().secret().is_encrypted())
    }
    pub fn unlock(self, p: &Passphrase) -> Result<Self, Error> {
        let mut out = self.0.clone();
        for k in self.0.keys().secret() {
            let key = k.key().clone().decrypt_secret(&p.0).map_err(|_| Error::Key("wrong passphrase".into()))?;
            let pk: Packet =
                if k.primary() { key.role_into_primary().into() } else { key.role_into_subordinate().into() };
            out = out.insert_packets(pk).map_err(e)?.0;
        }
        Ok(SecretKey(out))
    }
}
#[derive(Clone)]
pub struct Sealer {
    pk: Arc<Vec<u8>>,
    sk: SessionKey,
    v2: bool,
}
impl Sealer {
    pub fn new(a: &[Certificate]) -> Result<Self, Error> {
        let sk = SessionKey::new(32).map_err(e)?;
        let v2 = a.iter().all(|c| c.supports_aead());
        let p = StandardPolicy::new();
        let mut pk = Vec::new();
        for c in a {
            let key =
                c.0.keys()
                    .with_policy(&p, None)
                    .supported()
                    .for_storage_encryption()
                    .for_transport_encryption()
                    .last()
                    .ok_or(e("no enc key"))?
                    .key()
                    .clone();
            let pkesk: PKESK = if v2 {
                openpgp::packet::pkesk::PKESK6::for_recipient(&sk, &key).map_err(e)?.into()
            } else {
                openpgp::packet::pkesk::PKESK3::for_recipient(SymmetricAlgorithm::AES256, &sk, &key).map_err(e)?.into()
            };
            pk.extend(Packet::from(pkesk).to_vec().map_err(e)?);
        }
        Ok(Sealer { pk: Arc::new(pk), sk, v2 })
    }
    pub fn seal(&self, c: &[u8], o: &mut Vec<u8>) -> Result<(), Error> {
        let mut m = Message::new(o);
        m.write_all(&self.pk).map_err(e)?;
        let mut en = Encryptor::with_session_key(m, SymmetricAlgorithm::AES256, self.sk.clone()).map_err(e)?;
        if self.v2 {
            en = en.aead_algo(AEADAlgorithm::OCB);
        }
        let mut w = LiteralWriter::new(en.build().map_err(e)?).build().map_err(e)?;
        w.write_all(c).map_err(e)?;
        w.finalize().map_err(e)
    }
    pub fn seal_message(&self, c: &[u8], o: &mut Vec<u8>) -> Result<(), Error> {
        self.seal(c, o)
    }
}
type Cache = Mutex<HashMap<Vec<u8>, (Option<SymmetricAlgorithm>, SessionKey)>>;
pub struct Opener {
    key: Option<Cert>,
    cache: Cache,
}
struct Helper<'a>(&'a Opener);
impl VerificationHelper for Helper<'_> {
    fn get_certs(&mut self, _: &[KeyHandle]) -> openpgp::Result<Vec<Cert>> {
        Ok(vec![])
    }
    fn check(&mut self, _: MessageStructure) -> openpgp::Result<()> {
        Ok(())
    }
}
impl DecryptionHelper for Helper<'_> {
    fn decrypt(
        &mut self,
        pkesks: &[PKESK],
        _: &[SKESK],
        hint: Option<SymmetricAlgorithm>,
        decrypt: &mut dyn FnMut(Option<SymmetricAlgorithm>, &SessionKey) -> bool,
    ) -> openpgp::Result<Option<Cert>> {
        let p = StandardPolicy::new();
        for k in pkesks {
            let id = k.to_vec()?;
            if let Some((a, sk)) = self.0.cache.lock().unwrap().get(&id) {
                if decrypt(*a, sk) {
                    return Ok(None);
                }
            }
            let Some(cert) = &self.0.key else { continue };
            for ka in cert.keys().unencrypted_secret().key_handles(k.recipient()) {
                let mut pair = ka.key().clone().into_keypair()?;
                if let Some((a, sk)) = k.decrypt(&mut pair, hint) {
                    if decrypt(a, &sk) {
                        self.0.cache.lock().unwrap().insert(id, (a, sk));
                        return Ok(None);
                    }
                }
            }
        }
        Err(openpgp::anyhow::anyhow!("NOKEY"))
    }
}
impl Opener {
    pub fn new(k: SecretKey) -> Result<Self, Error> {
        Ok(Opener { key: Some(k.0), cache: Cache::default() })
    }
    pub fn gpg() -> Self {
        Opener { key: None, cache: Cache::default() }
    }
    pub fn open(&self, m: &[u8], _l: usize, o: &mut Vec<u8>) -> Result<(), Error> {
        let p = StandardPolicy::new();
        let map = |x: openpgp::anyhow::Error| {
            if x.to_string().contains("NOKEY") { Error::Key("no key".into()) } else { e(x) }
        };
        let mut d = DecryptorBuilder::from_bytes(m)
            .map_err(map)?
            .buffer_size(2 << 20)
            .with_policy(&p, None, Helper(self))
            .map_err(map)?;
        d.read_to_end(o).map_err(e)?;
        Ok(())
    }
    pub fn open_message(&self, m: &[u8], l: usize) -> Result<Vec<u8>, Error> {
        let mut o = Vec::new();
        self.open(m, l, &mut o)?;
        Ok(o)
    }
}
pub struct Signer(Cert);
impl Signer {
    pub fn new(k: SecretKey) -> Result<Self, Error> {
        Ok(Signer(k.0))
    }
    pub fn sign(&self, d: &[u8]) -> Result<Vec<u8>, Error> {
        let p = StandardPolicy::new();
        let pair = self
            .0
            .keys()
            .unencrypted_secret()
            .with_policy(&p, None)
            .for_signing()
            .next()
            .ok_or(e("nosign"))?
            .key()
            .clone()
            .into_keypair()
            .map_err(e)?;
        let mut sig = Vec::new();
        let mut s = openpgp::serialize::stream::Signer::new(Message::new(&mut sig), pair)
            .map_err(e)?
            .detached()
            .build()
            .map_err(e)?;
        s.write_all(d).map_err(e)?;
        s.finalize().map_err(e)?;
        let mut out = (sig.len() as u32).to_be_bytes().to_vec();
        out.extend(self.0.fingerprint().as_bytes().len().to_be_bytes());
        out.extend(self.0.fingerprint().as_bytes());
        out.extend(sig);
        out.extend(d);
        Ok(out)
    }
}
pub fn verify<'m>(m: &'m [u8], k: &[Certificate]) -> Result<(&'m [u8], Fingerprint), Error> {
    let n = u32::from_be_bytes(m[..4].try_into().unwrap()) as usize;
    let f = usize::from_be_bytes(m[4..12].try_into().unwrap());
    let fp: String = m[12..12 + f].iter().map(|b| format!("{b:02X}")).collect();
    if !k.iter().any(|c| c.fingerprint().0 == fp) {
        return Err(Error::UnknownSigner { signer: fp });
    }
    Ok((&m[12 + f + n..], Fingerprint(fp)))
}
