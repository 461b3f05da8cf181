//! The keys that lie beside the data.
//!
//! Public certificates are there so that people find them; nobody trusts them for lying there. The
//! owner's secret key is there, under its passphrase, if `init` was asked to keep it.

use super::Error;
use crate::crypt::{Certificate, Fingerprint, SecretKey};
use crate::format::name;
use crate::target::Target;

/// Most bytes of a key file: certificates with many signatures are large.
const KEY_SIZE: usize = 4 << 20;

/// The keys of a repository.
pub struct Keys<'t> {
    target: &'t Target,
}

impl<'t> Keys<'t> {
    pub(super) fn new(target: &'t Target) -> Self {
        Keys { target }
    }

    /// Adds a recipient's certificate.
    pub fn put_recipient(&self, certificate: &Certificate) -> Result<(), Error> {
        self.put(name::recipient(&certificate.fingerprint().to_string()), certificate.to_armored())
    }

    /// Adds the certificate of a host.
    pub fn put_host(&self, certificate: &Certificate) -> Result<(), Error> {
        self.put(name::host(&certificate.fingerprint().to_string()), certificate.to_armored())
    }

    /// Keeps the owner's secret key, which must be locked.
    pub fn put_owner(&self, key: &SecretKey) -> Result<(), Error> {
        self.put(name::owner(&key.certificate().fingerprint().to_string()), key.to_armored())
    }

    /// The recipients' certificates, as the target has them.
    pub fn recipients(&self) -> Result<Vec<Certificate>, Error> {
        self.certificates("recipient-")
    }

    /// The certificates of hosts, as the target has them.
    pub fn hosts(&self) -> Result<Vec<Certificate>, Error> {
        self.certificates("host-")
    }

    /// The certificate of the host with this fingerprint.
    pub fn host(&self, fingerprint: &Fingerprint) -> Result<Certificate, Error> {
        let missing = || Error::NoCertificate { signer: fingerprint.clone() };
        let bytes = self.target.get(&name::host(&fingerprint.to_string()), KEY_SIZE).map_err(|_| missing())?;
        // The name is the target's word; the fingerprint is computed from the key.
        match Certificate::parse(&bytes) {
            Ok(certificate) if certificate.fingerprint() == *fingerprint => Ok(certificate),
            _ => Err(missing()),
        }
    }

    /// The owner's secret key, if it is kept here.
    pub fn owner(&self) -> Result<Option<SecretKey>, Error> {
        match self.objects("owner-")?.first() {
            Some(object) => {
                let bytes = self.target.get(object, KEY_SIZE)?;
                let key = SecretKey::parse(&bytes);
                Ok(Some(key.map_err(|source| Error::Crypt { object: object.clone(), source })?))
            }
            None => Ok(None),
        }
    }

    /// Checks that a key file holds the key that its name says. A file of another name means nothing.
    pub fn check(&self, object: &str) -> Result<(), Error> {
        let Some(leaf) = object.strip_prefix(name::KEYS).and_then(|leaf| leaf.strip_suffix(".asc")) else {
            return Ok(());
        };
        let Some((role @ ("recipient" | "host" | "owner"), said)) = leaf.split_once('-') else { return Ok(()) };
        let bytes = self.target.get(object, KEY_SIZE)?;
        let certificate = match role {
            "owner" => SecretKey::parse(&bytes).map(|key| key.certificate()),
            _ => Certificate::parse(&bytes),
        };
        let failed = |source| Error::Crypt { object: object.to_owned(), source };
        let found = certificate.map_err(failed)?.fingerprint();
        match found.to_string() == said {
            true => Ok(()),
            false => Err(Error::OtherKey { object: object.to_owned(), found }),
        }
    }

    fn put(&self, object: String, bytes: Result<Vec<u8>, crate::crypt::Error>) -> Result<(), Error> {
        let bytes = bytes.map_err(|source| Error::Crypt { object: object.clone(), source })?;
        Ok(self.target.put(&object, &bytes)?)
    }

    fn certificates(&self, role: &str) -> Result<Vec<Certificate>, Error> {
        let read = |object: String| {
            let bytes = self.target.get(&object, KEY_SIZE)?;
            Certificate::parse(&bytes).map_err(|source| Error::Crypt { object, source })
        };
        self.objects(role)?.into_iter().map(read).collect()
    }

    fn objects(&self, role: &str) -> Result<Vec<String>, Error> {
        let prefix = format!("{}{role}", name::KEYS);
        let objects = self.target.list(name::KEYS)?;
        Ok(objects.into_iter().map(|object| object.name).filter(|name| name.starts_with(&prefix)).collect())
    }
}
